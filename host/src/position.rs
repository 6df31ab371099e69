//! Where a record stands in its source: partition, epoch, span, watermark.

use std::fmt;
use std::sync::Arc;

/// A source's unit of order. For Kafka a topic and a partition number.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Partition {
    /// Topic, `schema.table` or path: what plugins see as `source`.
    pub source: Arc<str>,
    /// Number within the source.
    pub number: u32,
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.source, self.number)
    }
}

/// Grows with each assignment of a partition to this process, so that a settle that comes after the
/// partition was given up can be told from one that counts (delivery.md §1 rule 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Epoch(pub u64);

/// One stay of a partition with this process: the ledger's key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Stay {
    /// The partition.
    pub partition: Partition,
    /// Which of its assignments.
    pub epoch: Epoch,
}

/// A contiguous piece of one partition: everything in `(after, upto]`.
///
/// Positions are the source's own numbers (Kafka offsets). Gaps inside a span (compacted or control
/// records) belong to it. `after` of the first record of a Kafka partition is -1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Whose.
    pub stay: Stay,
    /// Exclusive start.
    pub after: i64,
    /// Inclusive end.
    pub upto: i64,
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({}, {}]", self.stay.partition, self.after, self.upto)
    }
}

/// Everything of a stay up to and including `upto` is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watermark {
    /// Whose.
    pub stay: Stay,
    /// Inclusive. A Kafka commit is one more.
    pub upto: i64,
}
