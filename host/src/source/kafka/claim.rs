//! What stands beside each committed offset of an at_least_once pipeline: which labels its member may have open, for
//! whoever takes the partition over (delivery.md §2).

use serde::{Deserialize, Serialize};

use crate::delivery::first_sight::FirstSight;

/// The form of [`Claim::text`]; decisions of exactly_once are 2.
const VERSION: u32 = 1;
/// Numbers that are claimed ahead: each commit claims anew, so few are used between two. A successor asks
/// StarRocks for each of them.
pub(super) const CLAIMED_AHEAD: u64 = 32;
/// Labels that one claim may name: what a successor asks for. More loads of one pipeline wait for their turn.
pub(super) const OPEN_MAX: usize = 128;
/// The largest text of a claim, in bytes: the brokers' default of `offset.metadata.max.bytes`.
pub(super) const TEXT_BYTES_MAX: usize = 4096;

/// A claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Claim {
    #[serde(rename = "v")]
    version: u32,
    /// Begin of the labels: one life of one process.
    pub(super) stem: String,
    /// First number that has not been used.
    pub(super) from: u64,
    /// Number behind the last one that may be used. Older versions had no fence, and did not say.
    #[serde(default)]
    pub(super) end: u64,
    /// Numbers before `from` that may be open, as what they are short of it: few digits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    open: Vec<u64>,
    /// How the partition's topic stood when the group began to read it. Older versions did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    first: Option<FirstSight>,
}

impl Claim {
    /// No label with rows of the partition is open, or will be.
    pub(super) fn nothing(stem: &str) -> Claim {
        Claim { version: VERSION, stem: stem.to_owned(), from: 0, end: 0, open: Vec::new(), first: None }
    }

    /// Labels that may be open: `open` of those that were used, and `ahead` of those that were not.
    pub(super) fn of(stem: &str, from: u64, ahead: u64, open: impl Iterator<Item = u64>) -> Claim {
        let open = open.filter_map(|number| from.checked_sub(number)).filter(|short| *short > 0).collect();
        Claim { from, end: from.saturating_add(ahead), open, ..Claim::nothing(stem) }
    }

    /// The text beside an offset of a topic that stood like `first` when the group began to read it. At most 128 numbers
    /// of 20 digits: well within the brokers' 4096 bytes.
    pub(super) fn text(&self, first: Option<FirstSight>) -> String {
        serde_json::json!(Claim { first, ..self.clone() }).to_string()
    }

    /// Reads the text beside an offset; none if it is no claim of ours.
    pub(super) fn read(text: &str) -> Option<Claim> {
        serde_json::from_str(text).ok().filter(|claim: &Claim| claim.version == VERSION)
    }

    /// Whether a successor would look for the label with this number.
    pub(super) fn covers(&self, number: u64) -> bool {
        let is_open = || self.from.checked_sub(number).is_some_and(|short| self.open.contains(&short));
        (self.from..self.end).contains(&number) || is_open()
    }

    /// The labels to look for. Bounded, whatever stands there.
    pub(super) fn labels(&self) -> impl Iterator<Item = String> {
        let ahead = self.end.min(self.from.saturating_add(CLAIMED_AHEAD));
        let used = self.open.iter().take(OPEN_MAX).filter_map(|short| self.from.checked_sub(*short));
        used.chain(self.from..ahead).map(|number| format!("{}-{number}", self.stem))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_read_as_it_was_written() {
        let claim = Claim::of("orders-00ff", 40, 2, [3, 39, 40].into_iter());
        let text = claim.text(None);
        assert_eq!(text, r#"{"v":1,"stem":"orders-00ff","from":40,"end":42,"open":[37,1]}"#);
        assert_eq!(Claim::read(&text), Some(claim.clone()));
        let first = FirstSight { at_ms: 1_700_000_000_123, partitions: 12, topics: None };
        assert_eq!(FirstSight::read(&claim.text(Some(first))), Some(first));
        assert_eq!(
            Claim::read(&claim.text(Some(first))),
            Some(Claim { first: Some(first), ..claim.clone() })
        );
        let labels: Vec<String> = claim.labels().collect();
        assert_eq!(labels, ["orders-00ff-3", "orders-00ff-39", "orders-00ff-40", "orders-00ff-41"]);
        let covered: Vec<u64> = (0..50).filter(|number| claim.covers(*number)).collect();
        assert_eq!(covered, [3, 39, 40, 41]);
    }

    #[test]
    fn a_partition_that_was_given_up_in_order_has_nothing_open() {
        let claim = Claim::nothing("orders-00ff");
        assert_eq!(Claim::read(&claim.text(None)), Some(claim.clone()));
        assert_eq!(claim.labels().count(), 0);
    }

    #[test]
    fn what_others_left_names_nothing() {
        let older = r#"{"v":1,"stem":"orders-00ff","from":0}"#;
        assert_eq!(Claim::read(older).map(|claim| claim.labels().count()), Some(0));
        for text in ["", "{}", "[1]", "consumer-1", r#"{"v":2,"stem":"s","from":0}"#, r#"{"v":1,"stem":7}"#] {
            assert_eq!(Claim::read(text), None, "{text}");
        }
    }

    #[test]
    fn the_largest_claim_fits_beside_an_offset() {
        let stem = "s".repeat(107);
        let largest = Claim::of(&stem, u64::MAX - CLAIMED_AHEAD, CLAIMED_AHEAD, 0..OPEN_MAX as u64);
        let text =
            largest.text(Some(FirstSight { at_ms: i64::MAX, partitions: u32::MAX, topics: Some(u32::MAX) }));
        assert!(text.len() <= TEXT_BYTES_MAX, "{} bytes", text.len());
        let forged = Claim { end: u64::MAX, ..Claim::nothing("s") };
        assert_eq!(forged.labels().count() as u64, CLAIMED_AHEAD, "nobody asks for ever");
    }
}
