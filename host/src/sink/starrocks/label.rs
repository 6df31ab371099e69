//! Names of loads: StarRocks' idempotency key (delivery.md §1 rule 1).

use std::sync::atomic::{AtomicU64, Ordering};

/// Longest label that StarRocks takes (`^[-\w]{1,128}$`, FeNameFormat).
pub const LABEL_CHARS_MAX: usize = 128;
/// Hexadecimal digits of the nonce: 64 random bits.
const NONCE_CHARS: usize = 16;
/// A sequence number in decimal: `u64` has at most 20 digits.
const SEQUENCE_CHARS_MAX: usize = 20;

/// Makes the labels of one life of the process for one cluster: `<pipeline>-<nonce>-<seq>`.
///
/// The nonce is random for each start, so no other process and no later life uses a label again. The
/// pipeline is that of the load's first row.
#[derive(Debug)]
pub struct Labels {
    nonce: u64,
    next: AtomicU64,
}

impl Default for Labels {
    fn default() -> Self {
        Self { nonce: rand::random(), next: AtomicU64::new(0) }
    }
}

impl Labels {
    /// A label never given before.
    pub fn next(&self, pipeline: &str) -> String {
        self.next_numbered(pipeline).0
    }

    /// A label never given before, and its number.
    pub fn next_numbered(&self, pipeline: &str) -> (String, u64) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        (format!("{}-{number}", self.stem(pipeline)), number)
    }

    /// What all labels of this life and of `pipeline` begin with, without the hyphen before the sequence
    /// number. Characters that StarRocks does not take become `_`; a long name is cut.
    pub fn stem(&self, pipeline: &str) -> String {
        let name_chars_max = LABEL_CHARS_MAX - NONCE_CHARS - SEQUENCE_CHARS_MAX - 2;
        let taken = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '_' };
        let name: String = pipeline.chars().map(taken).take(name_chars_max).collect();
        format!("{name}-{:016x}", self.nonce)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_differ_and_are_of_the_allowed_characters_and_length() {
        let (labels, pipeline) = (Labels::default(), "größe é/".repeat(40));
        labels.next.store(u64::MAX - 1, Ordering::Relaxed);
        let (one, two) = (labels.next(&pipeline), labels.next(&pipeline));
        assert_ne!(one, two);
        for label in [&one, &two] {
            assert!(label.len() <= LABEL_CHARS_MAX, "{label}");
            assert!(label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'), "{label}");
            assert!(label.starts_with(&labels.stem(&pipeline)));
        }
    }

    #[test]
    fn two_lives_of_one_pipeline_share_no_label() {
        assert_ne!(Labels::default().next("orders"), Labels::default().next("orders"));
        assert!(Labels::default().next("orders").starts_with("orders-"));
    }
}
