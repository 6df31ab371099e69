//! One record of a batch, as the plugin sees it.

use crate::columns::{Batch, MARK_DELETE, MARK_KEY, MARK_VALUE};
use crate::json;
use crate::reject::{CODE_NO_VALUE, Reject};
use serde::Deserialize;

/// The timestamp that stands for "has none".
const TIMESTAMP_NONE: i64 = 0;

/// What is said when a plugin reads a column that it did not ask for: a mistake in the plugin's code that no
/// configuration and no record can cause, and that would otherwise read as "the record has none".
macro_rules! must_want {
    ($column:expr, $want:literal) => {
        assert!($column, concat!("the plugin must call setup.", $want, "() before it can read this column"))
    };
}

/// One record: a view into the batch's columns, free to copy.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    batch: &'a Batch,
    index: usize,
    value: &'a [u8],
}

impl<'a> Record<'a> {
    #[inline]
    pub(crate) fn new(batch: &'a Batch, index: usize, value: &'a [u8]) -> Self {
        Self { batch, index, value }
    }

    /// Where it comes from: the Kafka topic, `schema.table` for Postgres, the path for HTTP.
    pub fn source(&self) -> &'a str {
        &self.batch.source
    }

    /// Its value as the producer sent it; empty if it has none.
    #[inline]
    pub fn value(&self) -> &'a [u8] {
        self.value
    }

    /// Whether it has a value. A Kafka tombstone has none.
    #[inline]
    pub fn has_value(&self) -> bool {
        self.mark() & MARK_VALUE != 0
    }

    /// Whether it is a delete.
    #[inline]
    pub fn is_delete(&self) -> bool {
        self.mark() & MARK_DELETE != 0
    }

    /// Whether it has a key, which may be empty.
    #[inline]
    pub fn has_key(&self) -> bool {
        self.mark() & MARK_KEY != 0
    }

    /// Its value as text.
    ///
    /// # Errors
    ///
    /// `no_value` if it has none, `parse` if it is not UTF-8.
    pub fn text(&self) -> Result<&'a str, Reject> {
        json::text(self.needed_value()?)
    }

    /// Its value as JSON, as [`json::read`] reads it. Borrow what you can: an owned string costs an allocation.
    ///
    /// # Errors
    ///
    /// `no_value` if it has none, `parse` if it is not the JSON that `T` wants.
    #[inline]
    pub fn json<T: Deserialize<'a>>(&self) -> Result<T, Reject> {
        json::read(self.needed_value()?)
    }

    /// Its key, if it has one. Needs [`crate::Setup::want_key`].
    ///
    /// # Panics
    ///
    /// If the plugin did not ask for keys.
    pub fn key(&self) -> Option<&'a [u8]> {
        must_want!(!self.batch.keys.is_empty(), "want_key");
        self.has_key().then(|| self.batch.keys.get(self.index))
    }

    /// Microseconds since 1970 UTC, if it has a timestamp. Needs [`crate::Setup::want_timestamp`].
    ///
    /// # Panics
    ///
    /// If the plugin did not ask for timestamps.
    pub fn timestamp_us(&self) -> Option<i64> {
        must_want!(!self.batch.timestamps.is_empty(), "want_timestamp");
        Some(self.batch.timestamps[self.index]).filter(|timestamp| *timestamp != TIMESTAMP_NONE)
    }

    /// The Kafka partition; 0 for sources with one only. Needs [`crate::Setup::want_position`].
    ///
    /// # Panics
    ///
    /// If the plugin did not ask for positions.
    pub fn partition(&self) -> u32 {
        must_want!(!self.batch.partitions.is_empty(), "want_position");
        self.batch.partitions[self.index]
    }

    /// The Kafka offset, the Postgres LSN, a running number for HTTP. Needs [`crate::Setup::want_position`].
    ///
    /// # Panics
    ///
    /// If the plugin did not ask for positions.
    pub fn offset(&self) -> i64 {
        must_want!(!self.batch.offsets.is_empty(), "want_position");
        self.batch.offsets[self.index]
    }

    /// Its headers in the producer's order, as name and content; a name may occur more than once. Needs
    /// [`crate::Setup::want_headers`].
    ///
    /// # Panics
    ///
    /// If the plugin did not ask for headers.
    pub fn headers(&self) -> impl DoubleEndedIterator<Item = (&'a str, &'a [u8])> + use<'a> {
        let headers = &self.batch.headers;
        must_want!(!headers.ends.is_empty(), "want_headers");
        // The contract says that names are UTF-8; a broken one is shown as empty rather than trapping.
        headers.range(self.index).map(|header| {
            (std::str::from_utf8(headers.names.get(header)).unwrap_or_default(), headers.contents.get(header))
        })
    }

    /// The content of the last header of this name, as Kafka's clients define it. Needs
    /// [`crate::Setup::want_headers`].
    ///
    /// # Panics
    ///
    /// If the plugin did not ask for headers.
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.headers().rfind(|(header, _)| *header == name).map(|(_, content)| content)
    }

    /// Its value, which it must have.
    ///
    /// # Errors
    ///
    /// `no_value` if it has none.
    #[inline]
    pub fn needed_value(&self) -> Result<&'a [u8], Reject> {
        if self.has_value() {
            Ok(self.value)
        } else {
            Err(Reject::new(CODE_NO_VALUE, "the record has no value"))
        }
    }

    #[inline]
    fn mark(&self) -> u8 {
        self.batch.marks[self.index]
    }
}
