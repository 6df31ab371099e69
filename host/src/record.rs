//! Records by column: plain data, no behaviour beyond filling and reading columns.

use std::sync::Arc;
use std::time::Instant;

/// Mark bit: the record deletes its key.
pub const MARK_DELETE: u8 = 1;
/// Mark bit: the record has a key (an empty key is not an absent one).
pub const MARK_KEY: u8 = 2;
/// Mark bit: the record has a value (a Kafka tombstone has none).
pub const MARK_VALUE: u8 = 4;

/// Bytes of a record's entries in the columns of fixed width: ends, mark, time, partition, offset.
const RECORD_BYTES: usize = 32;

/// Byte strings one behind the other; element `i` is `data[ends[i-1]..ends[i]]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BytesColumn {
    /// All elements.
    pub data: Vec<u8>,
    /// Where each element ends. Never decreasing; the last one is `data.len()`.
    pub ends: Vec<u32>,
}

impl BytesColumn {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Element `index`; empty if there is none.
    pub fn get(&self, index: usize) -> &[u8] {
        let start = if index == 0 { 0 } else { self.ends.get(index - 1).map_or(0, |end| *end as usize) };
        let end = self.ends.get(index).map_or(start, |end| *end as usize);
        self.data.get(start..end).unwrap_or_default()
    }

    /// Appends one element: one copy.
    pub fn push(&mut self, element: &[u8]) {
        self.data.extend_from_slice(element);
        self.ends.push(self.data.len() as u32);
    }

    /// Empties the column and keeps its memory.
    pub fn clear(&mut self) {
        self.data.clear();
        self.ends.clear();
    }

    /// Elements in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).map(|index| self.get(index))
    }
}

/// The headers of all records: record `i` owns pairs `ends[i-1]..ends[i]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeaderColumn {
    /// Where each record's pairs end.
    pub ends: Vec<u32>,
    /// Names, UTF-8 by Kafka's own rule.
    pub names: BytesColumn,
    /// Contents.
    pub contents: BytesColumn,
}

impl HeaderColumn {
    /// Appends a record with no further pairs than those pushed since the last call.
    pub fn end_record(&mut self) {
        self.ends.push(self.names.len() as u32);
    }

    /// The pairs of record `index`.
    pub fn pairs(&self, index: usize) -> impl Iterator<Item = (&[u8], &[u8])> {
        let start = if index == 0 { 0 } else { self.ends.get(index - 1).copied().unwrap_or(0) };
        let end = self.ends.get(index).copied().unwrap_or(start);
        (start as usize..end as usize).map(|pair| (self.names.get(pair), self.contents.get(pair)))
    }

    /// Empties the column and keeps its memory.
    pub fn clear(&mut self) {
        self.ends.clear();
        self.names.clear();
        self.contents.clear();
    }
}

/// The records of one span, by column. All columns have one element a record, except those that
/// nobody wants, which stay empty.
#[derive(Debug, Clone, Default)]
pub struct Columns {
    /// Topic, `schema.table` or path: one a chunk.
    pub source: Option<Arc<str>>,
    /// Values; empty for a record without one.
    pub values: BytesColumn,
    /// `MARK_*` bits of each record.
    pub marks: Vec<u8>,
    /// Keys; empty for a record without one.
    pub keys: BytesColumn,
    /// Microseconds since 1970 in UTC; 0 where the source has none.
    pub timestamps: Vec<i64>,
    /// Partition numbers.
    pub partitions: Vec<u32>,
    /// Offsets.
    pub offsets: Vec<i64>,
    /// Headers.
    pub headers: HeaderColumn,
    /// Place among the pipeline's destinations of rows that no plugin routes, for sources whose records
    /// are rows of tables; their keys are then their table's keys. None = the pipeline's own table.
    pub destination: Option<u16>,
    /// Records that are updates of some columns only, ascending.
    pub partial: Vec<u32>,
    /// When the first of the records arrived, if somebody waits for them: their batch is as old. None = just now.
    pub arrived: Option<Instant>,
    /// Records that the source itself could not make a row of, ascending; they have no value.
    pub refused: Vec<RecordReject>,
}

impl Columns {
    /// Number of records.
    pub fn len(&self) -> usize {
        self.marks.len()
    }

    /// Whether there is no record.
    pub fn is_empty(&self) -> bool {
        self.marks.is_empty()
    }

    /// Name of the source; empty before the first record.
    pub fn source(&self) -> &str {
        self.source.as_deref().unwrap_or_default()
    }

    /// Bytes of the records themselves: values, keys and headers.
    pub fn data_bytes(&self) -> usize {
        self.values.data.len()
            + self.keys.data.len()
            + self.headers.names.data.len()
            + self.headers.contents.data.len()
    }

    /// Bytes held by the columns: what the budget is charged.
    pub fn bytes(&self) -> usize {
        self.data_bytes() + self.len() * RECORD_BYTES
    }

    /// Empties all columns and keeps their memory.
    pub fn clear(&mut self) {
        self.values.clear();
        self.marks.clear();
        self.keys.clear();
        self.timestamps.clear();
        self.partitions.clear();
        self.offsets.clear();
        self.headers.clear();
        self.partial.clear();
        self.arrived = None;
        self.refused.clear();
    }
}

/// What a plugin answered for one chunk, already checked: safe to use as it is.
#[derive(Debug, Default)]
pub struct Answer {
    /// Source record of each output row, never decreasing.
    pub inputs: Vec<u32>,
    /// Index into the plugin's declared tables for each row; none = the pipeline's own table.
    pub tables: Option<Vec<u16>>,
    /// Values of the rows; none = as in the input.
    pub values: Option<BytesColumn>,
    /// Marks of the rows; none = as in the input.
    pub marks: Option<Vec<u8>>,
    /// Keys of the rows; none = as in the input.
    pub keys: Option<BytesColumn>,
    /// Timestamps of the rows; none = as in the input.
    pub timestamps: Option<Vec<i64>>,
    /// Headers of the rows; none = as in the input.
    pub headers: Option<HeaderColumn>,
    /// Records that the plugin refused.
    pub rejects: Vec<RecordReject>,
}

/// One refused record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordReject {
    /// Index of the record in the chunk.
    pub input: u32,
    /// Short machine-readable reason.
    pub code: String,
    /// The reason for a person.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bytes_column_gives_back_what_was_pushed() {
        let mut column = BytesColumn::default();
        for element in [&b"a"[..], b"", b"bcd"] {
            column.push(element);
        }
        assert_eq!(column.iter().collect::<Vec<_>>(), [&b"a"[..], b"", b"bcd"]);
        assert_eq!(column.get(3), b"");
    }

    #[test]
    fn headers_belong_to_their_record() {
        let mut headers = HeaderColumn::default();
        headers.end_record();
        headers.names.push(b"trace");
        headers.contents.push(b"42");
        headers.end_record();
        assert_eq!(headers.pairs(0).count(), 0);
        assert_eq!(headers.pairs(1).collect::<Vec<_>>(), [(&b"trace"[..], &b"42"[..])]);
    }
}
