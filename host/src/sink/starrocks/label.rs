//! Names of loads: StarRocks' idempotency key (delivery.md §1 rule 1).

use std::sync::atomic::{AtomicU64, Ordering};

/// Longest label that StarRocks takes (`^[-\w]{1,128}$`, FeNameFormat).
pub const LABEL_CHARS_MAX: usize = 128;
/// Hexadecimal digits of the nonce: 64 random bits.
const NONCE_CHARS: usize = 16;
/// A sequence number in decimal: `u64` has at most 20 digits.
const SEQUENCE_CHARS_MAX: usize = 20;

/// Makes the labels of one pipeline in one life of the process: `<pipeline>-<nonce>-<seq>`.
///
/// The nonce is random for each start, so no other process and no later life uses a label again.
#[derive(Debug)]
pub struct Labels {
    stem: String,
    next: AtomicU64,
}

impl Labels {
    /// Characters that StarRocks does not take become `_`; a long name is cut.
    pub fn new(pipeline: &str) -> Self {
        let name_chars_max = LABEL_CHARS_MAX - NONCE_CHARS - SEQUENCE_CHARS_MAX - 2;
        let name: String = pipeline
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '_' })
            .take(name_chars_max)
            .collect();
        Self { stem: format!("{name}-{:016x}", rand::random::<u64>()), next: AtomicU64::new(0) }
    }

    /// A label never given before.
    pub fn next(&self) -> String {
        format!("{}-{}", self.stem, self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// What all labels of this life begin with, without the hyphen before the sequence number.
    pub fn stem(&self) -> &str {
        &self.stem
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_differ_and_are_of_the_allowed_characters_and_length() {
        let labels = Labels::new(&"größe é/".repeat(40));
        labels.next.store(u64::MAX - 1, Ordering::Relaxed);
        let (one, two) = (labels.next(), labels.next());
        assert_ne!(one, two);
        for label in [&one, &two] {
            assert!(label.len() <= LABEL_CHARS_MAX, "{label}");
            assert!(label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'), "{label}");
            assert!(label.starts_with(labels.stem()));
        }
    }

    #[test]
    fn two_lives_of_one_pipeline_share_no_label() {
        assert_ne!(Labels::new("orders").next(), Labels::new("orders").next());
        assert!(Labels::new("orders").next().starts_with("orders-"));
    }
}
