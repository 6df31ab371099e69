//! Letters read again: what they say, and which of them are meant.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use serde::Deserialize;

use super::{Content, DeadLetter, Holds, Stage, text};
use crate::position::Partition;

/// Microseconds since 1970 UTC by this machine's clock.
pub fn now_us() -> i64 {
    i64::try_from(crate::clock::since_1970().as_micros()).unwrap_or(i64::MAX)
}

/// A point in time for people, to the second; empty for 0, which means that it is not known.
pub fn time_text(us: i64) -> String {
    let Some(us) = u64::try_from(us).ok().filter(|us| *us > 0) else { return String::new() };
    // Later than the year 9999 it is no time that anybody wrote.
    const LAST_SECOND: u64 = 253_402_300_799;
    let whole = Duration::from_secs((us / 1_000_000).min(LAST_SECOND));
    humantime::format_rfc3339_seconds(UNIX_EPOCH + whole).to_string()
}

/// Where a letter is kept: its name. Never reused, so that a mark means one letter.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The file's name, or the partition of the topic.
    pub within: Arc<str>,
    /// Its line, from 1; or its offset.
    pub at: i64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.within, self.at)
    }
}

/// A letter that was read again.
#[derive(Debug, Clone)]
pub struct Kept {
    /// What was kept.
    pub letter: DeadLetter,
    /// Where.
    pub place: Place,
    /// By which pipeline.
    pub pipeline: String,
    /// When, in microseconds since 1970 UTC; 0 = unknown.
    pub kept_us: i64,
    /// A replay has got it through.
    pub replayed: bool,
}

impl Kept {
    /// As a line of JSON, with a line feed.
    ///
    /// # Errors
    /// As [`text::append`].
    pub fn append_json(&self, into: &mut Vec<u8>) -> serde_json::Result<()> {
        let seen = text::Seen { place: &self.place.to_string(), replayed: self.replayed };
        text::append(&self.letter, &self.pipeline, self.kept_us, Some(seen), into)
    }
}

/// Which letters are meant. What is `None` does not matter.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Where they died.
    pub stage: Option<Stage>,
    /// The reason for machines.
    pub code: Option<String>,
    /// The plugin concerned.
    pub plugin: Option<String>,
    /// Kept then or later, in microseconds since 1970 UTC.
    pub since_us: Option<i64>,
    /// Kept before that.
    pub until_us: Option<i64>,
    /// Exactly this one, as [`Place`] is written.
    pub place: Option<String>,
    /// Also those that were replayed.
    pub replayed: bool,
}

impl Filter {
    /// Whether the letter is one of them.
    pub fn takes(&self, kept: &Kept) -> bool {
        let letter = &kept.letter;
        let same = |wanted: &Option<String>, found: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| Some(wanted) == found)
        };
        (self.replayed || !kept.replayed)
            && self.stage.is_none_or(|stage| stage == letter.stage)
            && same(&self.code, Some(&letter.code))
            && same(&self.plugin, letter.plugin.as_deref())
            && self.since_us.is_none_or(|since| kept.kept_us >= since)
            && self.until_us.is_none_or(|until| kept.kept_us < until)
            && self.place.as_deref().is_none_or(|place| place == kept.place.to_string())
    }
}

/// Why bytes are no letter; names the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Not JSON, or a field is missing or of another type.
    #[error("{0}")]
    Json(String),
    /// A field has a value that none of ours has.
    #[error("`{field}` is {found:?}")]
    Field {
        /// Its name.
        field: &'static str,
        /// What stands there.
        found: String,
    },
}

/// The line as [`text::append`] writes it. Fields that came later may be missing.
#[derive(Debug, Deserialize)]
struct Line {
    pipeline: String,
    stage: String,
    plugin: Option<String>,
    code: String,
    message: String,
    source: String,
    partition: u32,
    offset: i64,
    #[serde(default)]
    timestamp_us: i64,
    #[serde(default)]
    kept_us: i64,
    holds: Option<String>,
    table: Option<String>,
    #[serde(default)]
    delete: bool,
    #[serde(default)]
    partial: bool,
    key: Option<String>,
    key_hex: Option<String>,
    value: Option<String>,
    value_hex: Option<String>,
    #[serde(default)]
    headers: Vec<HeaderLine>,
}

#[derive(Debug, Deserialize)]
struct HeaderLine {
    name: String,
    content: Option<String>,
    content_hex: Option<String>,
}

/// Reads a line of a letters' file.
///
/// # Errors
/// If it is no letter.
pub fn from_line(line: &[u8], place: Place) -> Result<Kept, Unreadable> {
    let line: Line = serde_json::from_slice(line).map_err(|error| Unreadable::Json(error.to_string()))?;
    let headers = line.headers.into_iter().map(|header| {
        let content = bytes("content_hex", header.content, header.content_hex)?;
        Ok((header.name.into_bytes(), content.unwrap_or_default()))
    });
    let letter = DeadLetter {
        stage: stage(&line.stage)?,
        plugin: line.plugin.map(Into::into),
        code: line.code,
        message: line.message,
        partition: Partition { source: line.source.into(), number: line.partition },
        offset: line.offset,
        timestamp_us: line.timestamp_us,
        key: bytes("key_hex", line.key, line.key_hex)?,
        value: bytes("value_hex", line.value, line.value_hex)?,
        headers: headers.collect::<Result<_, Unreadable>>()?,
        content: Content {
            holds: holds(line.holds.as_deref().unwrap_or(Holds::Record.name()))?,
            table: line.table.map(Into::into),
            delete: line.delete,
            partial: line.partial,
        },
    };
    Ok(Kept { letter, place, pipeline: line.pipeline, kept_us: line.kept_us, replayed: false })
}

/// The stage of that name.
pub(super) fn stage(name: &str) -> Result<Stage, Unreadable> {
    let found = Stage::ALL.into_iter().find(|stage| stage.name() == name);
    found.ok_or_else(|| Unreadable::Field { field: "stage", found: name.chars().take(20).collect() })
}

/// What a letter of that name holds.
pub(super) fn holds(name: &str) -> Result<Holds, Unreadable> {
    let found = [Holds::Record, Holds::Row].into_iter().find(|holds| holds.name() == name);
    found.ok_or_else(|| Unreadable::Field { field: "holds", found: name.chars().take(20).collect() })
}

/// The bytes that stand as text or, if they are none, in hexadecimal.
fn bytes(
    field: &'static str,
    text: Option<String>,
    hex: Option<String>,
) -> Result<Option<Vec<u8>>, Unreadable> {
    let Some(hex) = hex else { return Ok(text.map(String::into_bytes)) };
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let pairs = hex.as_bytes().chunks(2).map(|pair| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    });
    let read: Option<Vec<u8>> = pairs.collect();
    read.map(Some).ok_or(Unreadable::Field { field, found: hex.chars().take(20).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place { within: "shop-00000001-0000.ndjson".into(), at: 3 }
    }

    fn letter() -> DeadLetter {
        DeadLetter {
            stage: Stage::Load,
            plugin: Some("orders".into()),
            code: "refused".into(),
            message: "NULL in a NOT NULL column".into(),
            partition: Partition { source: "orders".into(), number: 3 },
            offset: 42,
            timestamp_us: 7,
            key: Some(vec![0xff, 0x00]),
            value: Some(b"{\"a\":1}".to_vec()),
            headers: vec![(b"trace".to_vec(), vec![0xfe])],
            content: Content { holds: Holds::Row, table: Some("sales".into()), delete: false, partial: true },
        }
    }

    fn written(letter: &DeadLetter) -> Vec<u8> {
        let mut line = Vec::new();
        text::append(letter, "shop", 1_000_000, None, &mut line).unwrap();
        line
    }

    #[test]
    fn what_is_written_is_read_again() {
        for letter in [
            letter(),
            DeadLetter { plugin: None, key: None, value: None, headers: Vec::new(), ..letter() },
            DeadLetter {
                content: Content { delete: true, ..Content::default() },
                stage: Stage::Transform,
                ..letter()
            },
        ] {
            let line = written(&letter);
            let kept = from_line(&line, place()).unwrap();
            assert_eq!(written(&kept.letter), line);
            assert_eq!(kept.letter.content, letter.content);
            assert_eq!((kept.letter.key, kept.letter.value), (letter.key, letter.value));
            assert_eq!((kept.pipeline.as_str(), kept.kept_us, kept.replayed), ("shop", 1_000_000, false));
        }
    }

    #[test]
    fn a_line_that_is_no_letter_says_which_field_is_wrong() {
        let line = String::from_utf8(written(&letter())).unwrap();
        let check = |from: &str, to: &str, expected: &str| {
            let error = from_line(line.replacen(from, to, 1).as_bytes(), place()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check("\"load\"", "\"lode\"", "`stage` is \"lode\"");
        check("\"row\"", "\"rows\"", "`holds` is \"rows\"");
        check("ff00", "ff0", "`key_hex` is \"ff0\"");
        check("ff00", "fg", "`key_hex` is \"fg\"");
        check("\"code\"", "\"cod\"", "missing field `code`");
        check("{", "", "line 1");
    }

    #[test]
    fn a_filter_takes_what_it_names() {
        let kept = from_line(&written(&letter()), place()).unwrap();
        let check = |filter: Filter, expected: bool| {
            assert_eq!(filter.takes(&kept), expected, "{filter:?}");
        };
        let any = Filter::default;
        check(any(), true);
        check(Filter { stage: Some(Stage::Load), code: Some("refused".into()), ..any() }, true);
        check(Filter { stage: Some(Stage::Read), ..any() }, false);
        check(Filter { code: Some("syntax".into()), ..any() }, false);
        check(Filter { plugin: Some("orders".into()), ..any() }, true);
        check(Filter { plugin: Some("route".into()), ..any() }, false);
        check(Filter { since_us: Some(1_000_000), until_us: Some(1_000_001), ..any() }, true);
        check(Filter { since_us: Some(1_000_001), ..any() }, false);
        check(Filter { until_us: Some(1_000_000), ..any() }, false);
        check(Filter { place: Some("shop-00000001-0000.ndjson:3".into()), ..any() }, true);
        check(Filter { place: Some("shop-00000001-0000.ndjson:30".into()), ..any() }, false);
        let replayed = Kept { replayed: true, ..kept.clone() };
        assert!(!any().takes(&replayed));
        assert!(Filter { replayed: true, ..any() }.takes(&replayed));
    }

    #[test]
    fn times_are_told_in_utc() {
        assert_eq!(time_text(1_767_225_600_999_999), "2026-01-01T00:00:00Z");
        assert_eq!(time_text(0), "");
        assert_eq!(time_text(i64::MAX), "9999-12-31T23:59:59Z");
    }
}
