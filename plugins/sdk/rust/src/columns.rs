//! The contract's columns as plain data, the same natively and in a component.

/// Mark, bit 0: the record or row is a delete.
pub const MARK_DELETE: u8 = 1 << 0;
/// Mark, bit 1: it has a key (which may be empty).
pub const MARK_KEY: u8 = 1 << 1;
/// Mark, bit 2: it has a value (which may be empty).
pub const MARK_VALUE: u8 = 1 << 2;
/// The marks that mean something in version 0.1.0; the others stay 0 in an output.
pub(crate) const MARKS_KNOWN: u8 = MARK_DELETE | MARK_KEY | MARK_VALUE;

/// Byte strings, one after the other: element `i` is `data[ends[i - 1]..ends[i]]`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct BytesColumn {
    /// All elements without anything between them.
    pub data: Vec<u8>,
    /// Where each element ends in `data`.
    pub ends: Vec<u32>,
}

impl BytesColumn {
    /// An empty column with room for `rows` elements of `bytes` bytes together.
    pub fn with_capacity(rows: usize, bytes: usize) -> Self {
        Self { data: Vec::with_capacity(bytes), ends: Vec::with_capacity(rows) }
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Element `index`.
    ///
    /// # Panics
    ///
    /// If there is no such element, as indexing a slice does.
    pub fn get(&self, index: usize) -> &[u8] {
        &self.data[self.start_of(index)..self.ends[index] as usize]
    }

    /// Adds an element.
    pub fn push(&mut self, element: &[u8]) {
        self.data.extend_from_slice(element);
        self.close_element();
    }

    /// Ends the element whose bytes have been appended to `data`.
    pub(crate) fn close_element(&mut self) {
        // A component has 4 GiB of memory at most, so no column can be longer.
        self.ends.push(self.data.len() as u32);
    }

    /// Keeps the first `rows` elements, and throws away bytes that were appended without being closed.
    pub(crate) fn truncate(&mut self, rows: usize) {
        self.ends.truncate(rows);
        self.data.truncate(self.start_of(self.ends.len()));
    }

    fn start_of(&self, index: usize) -> usize {
        if index == 0 { 0 } else { self.ends[index - 1] as usize }
    }
}

/// The headers of each record: record `i` has `ends[i - 1]..ends[i]` of `names` and `contents`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct HeaderColumn {
    /// Where the headers of each record end, counted in headers.
    pub ends: Vec<u32>,
    /// The names, UTF-8.
    pub names: BytesColumn,
    /// The contents, any bytes.
    pub contents: BytesColumn,
}

impl HeaderColumn {
    /// The headers of one record as indexes into `names` and `contents`.
    pub(crate) fn range(&self, index: usize) -> std::ops::Range<usize> {
        let start = if index == 0 { 0 } else { self.ends[index - 1] as usize };
        start..self.ends[index] as usize
    }

    /// Appends a header without ending its record.
    pub(crate) fn append(&mut self, name: &[u8], content: &[u8]) {
        self.names.push(name);
        self.contents.push(content);
    }

    /// Ends the record whose headers have been appended.
    pub(crate) fn close_record(&mut self) {
        self.ends.push(self.names.len() as u32);
    }

    pub(crate) fn truncate(&mut self, rows: usize) {
        self.ends.truncate(rows);
        let headers = self.ends.last().map_or(0, |end| *end as usize);
        self.names.truncate(headers);
        self.contents.truncate(headers);
    }
}

/// The columns that a plugin can ask for. `source`, `values` and `marks` always come.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Columns {
    /// The records' keys.
    pub key: bool,
    /// The records' timestamps.
    pub timestamp: bool,
    /// Partition and offset.
    pub position: bool,
    /// The records' headers.
    pub headers: bool,
}

/// The records of one call. See `wit/transform.wit` for the exact meaning of each column.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Topic, `schema.table` or path.
    pub source: String,
    /// The values as the producer sent them.
    pub values: BytesColumn,
    /// `MARK_*` of each record; its length is the number of records.
    pub marks: Vec<u8>,
    /// Empty unless asked for.
    pub keys: BytesColumn,
    /// Microseconds since 1970 UTC. Empty unless asked for.
    pub timestamps: Vec<i64>,
    /// Empty unless asked for.
    pub partitions: Vec<u32>,
    /// Empty unless asked for.
    pub offsets: Vec<i64>,
    /// Empty unless asked for.
    pub headers: HeaderColumn,
}

/// A record that could not become rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordError {
    /// Index of the record in its batch.
    pub input: u32,
    /// The kind of error, out of a small set.
    pub code: String,
    /// What is wrong, for people.
    pub message: String,
}

/// The rows of one call. `None` means: as in the input record.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Rows {
    /// The input record of each row; its length is the number of rows.
    pub inputs: Vec<u32>,
    /// The table of each row, as an index into the declared tables.
    pub tables: Option<Vec<u16>>,
    /// JSON objects.
    pub values: Option<BytesColumn>,
    /// `MARK_*` of each row.
    pub marks: Option<Vec<u8>>,
    /// Keys.
    pub keys: Option<BytesColumn>,
    /// Microseconds since 1970 UTC.
    pub timestamps: Option<Vec<i64>>,
    /// Headers.
    pub headers: Option<HeaderColumn>,
    /// Records in error, in ascending order.
    pub errors: Vec<RecordError>,
}

/// Why a whole batch failed. Bad records are not a reason: reject them one by one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BatchError {
    /// It may go better another time: once more on a fresh instance, then in halves.
    Retry(String),
    /// It will never go better: the pipeline halts.
    Fatal(String),
}
