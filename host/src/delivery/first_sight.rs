//! How a topic stood when its group began to read it, as it stands beside each of the group's offsets.
//!
//! Processes of a group that start together each claim their own partitions. Whoever is later finds the claims of the
//! others, and has to tell a partition that nobody has claimed yet, which begins where `start` says, from one that was
//! added since, of which all is new (decision 0035).

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// What the first member of the group saw that claimed partitions of the topic. Whoever commits offsets later says it on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirstSight {
    /// When it was, in milliseconds since 1970, by that member's clock.
    #[serde(rename = "at")]
    pub at_ms: i64,
    /// Partitions that the topic had.
    #[serde(rename = "n")]
    pub partitions: u32,
    /// [Digest](digest) of the topics that were there, if patterns are read and this is one of them; none for a topic that
    /// came later.
    #[serde(rename = "of", default, skip_serializing_if = "Option::is_none")]
    pub topics: Option<u32>,
}

impl FirstSight {
    /// Reads it from the text beside an offset, whichever text of ours that is; none if it is not said there.
    pub fn read(text: &str) -> Option<FirstSight> {
        let Ok(Value::Object(mut fields)) = serde_json::from_str(text) else { return None };
        serde_json::from_value(fields.remove("first")?).ok()
    }
}

/// A short digest of names in their order: two processes that found the same topics need not know which.
pub fn digest<'a>(names: impl Iterator<Item = &'a str>) -> u32 {
    let mut sum = Sha256::new();
    for name in names {
        // No topic's name holds one.
        sum.update(name.as_bytes());
        sum.update([0]);
    }
    sum.finalize().iter().take(4).fold(0, |digest, byte| digest << 8 | u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_found_beside_whatever_else_a_text_says() {
        let first = FirstSight { at_ms: 1_700_000_000_123, partitions: 12, topics: None };
        let text = format!(r#"{{"v":1,"stem":"s","first":{}}}  "#, serde_json::json!(first));
        assert_eq!(text, r#"{"v":1,"stem":"s","first":{"at":1700000000123,"n":12}}  "#);
        assert_eq!(FirstSight::read(&text), Some(first));
        for text in
            ["", "x", "[1]", r#"{"v":1,"stem":"s"}"#, r#"{"first":7}"#, r#"{"first":{"n":-1,"at":0}}"#]
        {
            assert_eq!(FirstSight::read(text), None, "{text}");
        }
    }

    #[test]
    fn the_same_topics_have_the_same_digest_and_others_another() {
        assert_eq!(digest(["a", "b"].into_iter()), digest(["a", "b"].into_iter()));
        assert_ne!(digest(["a", "b"].into_iter()), digest(["ab"].into_iter()));
        assert_ne!(digest(["a"].into_iter()), digest(["a", "b"].into_iter()));
    }
}
