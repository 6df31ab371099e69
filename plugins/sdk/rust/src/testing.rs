//! Runs a plugin natively, without Tidemill and without WebAssembly, for its unit tests.
//!
//! What the plugin returns is held against the contract as Tidemill would do it, so that a test sees a
//! violation, too.

use crate::Transform;
use crate::columns::{
    Batch, BatchError, BytesColumn, HeaderColumn, MARK_DELETE, MARK_KEY, MARK_VALUE, MARKS_KNOWN, Rows,
};
use crate::instance::Instance;
use crate::reject::Reject;

/// A record to give to a plugin.
#[derive(Debug, Clone)]
pub struct Input {
    value: Option<Vec<u8>>,
    key: Option<Vec<u8>>,
    delete: bool,
    timestamp_us: i64,
    partition: u32,
    offset: i64,
    headers: Vec<(String, Vec<u8>)>,
}

impl Input {
    /// A record with this value, no key, no headers, timestamp 0, partition 0, and as offset its index in the batch.
    pub fn value(value: impl AsRef<[u8]>) -> Self {
        Self { value: Some(value.as_ref().to_vec()), delete: false, ..Self::tombstone() }
    }

    /// A Kafka record without a value: a delete.
    pub fn tombstone() -> Self {
        Self {
            value: None,
            key: None,
            delete: true,
            timestamp_us: 0,
            partition: 0,
            offset: -1,
            headers: Vec::new(),
        }
    }

    /// Gives it a key.
    #[must_use]
    pub fn key(mut self, key: impl AsRef<[u8]>) -> Self {
        self.key = Some(key.as_ref().to_vec());
        self
    }

    /// Makes it a delete that has a value.
    #[must_use]
    pub fn delete(mut self) -> Self {
        self.delete = true;
        self
    }

    /// Gives it a time, in microseconds since 1970 UTC.
    #[must_use]
    pub fn timestamp_us(mut self, timestamp_us: i64) -> Self {
        self.timestamp_us = timestamp_us;
        self
    }

    /// Gives it a position.
    #[must_use]
    pub fn position(mut self, partition: u32, offset: i64) -> Self {
        self.partition = partition;
        self.offset = offset;
        self
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, content: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.to_owned(), content.as_ref().to_vec()));
        self
    }
}

impl From<&str> for Input {
    fn from(value: &str) -> Self {
        Self::value(value)
    }
}

/// A row as it would be loaded, with everything that it has from its record filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestRow {
    /// The record that it comes from.
    pub input: usize,
    /// The table that the plugin chose; `None` stands for the pipeline's own.
    pub table: Option<String>,
    /// Its value without the line feed at the end.
    pub value: String,
    /// Whether it is a delete.
    pub delete: bool,
    /// Its key, if the plugin wants keys and it has one.
    pub key: Option<Vec<u8>>,
    /// Its time in microseconds since 1970 UTC; 0 if the plugin does not want timestamps.
    pub timestamp_us: i64,
    /// Its headers, if the plugin wants headers.
    pub headers: Vec<(String, Vec<u8>)>,
}

/// What became of a batch.
#[derive(Debug)]
pub struct Answer {
    /// The rows, in order.
    pub rows: Vec<TestRow>,
    /// Each rejected record with its index.
    pub rejects: Vec<(usize, TestReject)>,
    /// The columns as they would be returned, to see which were touched.
    pub columns: Rows,
}

/// A reject with an owned code, as it arrives at Tidemill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestReject {
    /// The kind of error.
    pub code: String,
    /// What is wrong.
    pub message: String,
}

impl Answer {
    /// The rows' values.
    pub fn values(&self) -> Vec<&str> {
        self.rows.iter().map(|row| row.value.as_str()).collect()
    }
}

/// A configured plugin.
pub struct Harness<T> {
    instance: Instance<T>,
    source: String,
}

impl<T: Transform> Harness<T> {
    /// Configures the plugin with JSON as it would come from `config = { … }` in the pipeline's file.
    ///
    /// # Errors
    ///
    /// The sentence that the person who wrote the file would see.
    pub fn new(config: &str) -> Result<Self, String> {
        Ok(Self { instance: Instance::configure(config)?, source: "test".to_owned() })
    }

    /// Sets the topic that the next batches come from; `test` otherwise.
    #[must_use]
    pub fn source(mut self, source: &str) -> Self {
        source.clone_into(&mut self.source);
        self
    }

    /// The tables that the plugin declared.
    pub fn tables(&self) -> &[String] {
        self.instance.tables()
    }

    /// Gives the plugin one batch.
    ///
    /// # Panics
    ///
    /// If the plugin fails the whole batch, or breaks the contract: a test that does not expect it fails here.
    pub fn run<I: Into<Input>>(&mut self, inputs: impl IntoIterator<Item = I>) -> Answer {
        match self.try_run(inputs) {
            Ok(answer) => answer,
            Err(error) => panic!("the plugin failed the batch: {error:?}"),
        }
    }

    /// Gives the plugin one batch that it may fail.
    ///
    /// # Errors
    ///
    /// What the plugin answered for the whole batch.
    ///
    /// # Panics
    ///
    /// If the plugin breaks the contract.
    pub fn try_run<I: Into<Input>>(
        &mut self,
        inputs: impl IntoIterator<Item = I>,
    ) -> Result<Answer, BatchError> {
        let inputs: Vec<Input> = inputs.into_iter().map(Into::into).collect();
        let batch = self.batch(&inputs);
        let columns = self.instance.process(&batch)?;
        if let Err(violation) = check(&columns, batch.marks.len(), self.tables().len()) {
            panic!("the plugin breaks the contract: {violation}");
        }
        Ok(self.answer(&batch, columns))
    }

    fn batch(&self, inputs: &[Input]) -> Batch {
        let wants = self.instance.wants();
        let mut batch = Batch { source: self.source.clone(), ..Batch::default() };
        for (index, input) in inputs.iter().enumerate() {
            batch.values.push(input.value.as_deref().unwrap_or_default());
            batch.marks.push(
                if input.delete { MARK_DELETE } else { 0 }
                    | if input.key.is_some() { MARK_KEY } else { 0 }
                    | if input.value.is_some() { MARK_VALUE } else { 0 },
            );
            if wants.key {
                batch.keys.push(input.key.as_deref().unwrap_or_default());
            }
            if wants.timestamp {
                batch.timestamps.push(input.timestamp_us);
            }
            if wants.position {
                batch.partitions.push(input.partition);
                batch.offsets.push(if input.offset < 0 { index as i64 } else { input.offset });
            }
            if wants.headers {
                for (name, content) in &input.headers {
                    batch.headers.append(name.as_bytes(), content);
                }
                batch.headers.close_record();
            }
        }
        batch
    }

    fn answer(&self, batch: &Batch, columns: Rows) -> Answer {
        let rows = (0..columns.inputs.len()).map(|row| self.row(batch, &columns, row)).collect();
        let rejects = columns
            .errors
            .iter()
            .map(|error| {
                let reject = TestReject { code: error.code.clone(), message: error.message.clone() };
                (error.input as usize, reject)
            })
            .collect();
        Answer { rows, rejects, columns }
    }

    fn row(&self, batch: &Batch, columns: &Rows, row: usize) -> TestRow {
        let input = columns.inputs[row] as usize;
        let mark = columns.marks.as_ref().map_or(batch.marks[input], |marks| marks[row]);
        let value = of(&columns.values, &batch.values, row, input);
        let wants = self.instance.wants();
        let key = wants.key.then(|| of(&columns.keys, &batch.keys, row, input).to_vec());
        let timestamp = batch.timestamps.get(input).copied().unwrap_or_default();
        let table = columns.tables.as_ref().map(|tables| self.tables()[tables[row] as usize].clone());
        TestRow {
            input,
            table: table.filter(|name| !name.is_empty()),
            value: String::from_utf8_lossy(value.strip_suffix(b"\n").unwrap_or(value)).into_owned(),
            delete: mark & MARK_DELETE != 0,
            key: key.filter(|_| mark & MARK_KEY != 0),
            timestamp_us: columns.timestamps.as_ref().map_or(timestamp, |timestamps| timestamps[row]),
            headers: match &columns.headers {
                Some(headers) => headers_of(headers, row),
                None if wants.headers => headers_of(&batch.headers, input),
                None => Vec::new(),
            },
        }
    }
}

impl TestReject {
    /// Whether it is this reject.
    pub fn is(&self, reject: &Reject) -> bool {
        self.code == reject.code() && self.message == reject.message()
    }
}

fn of<'c>(made: &'c Option<BytesColumn>, came: &'c BytesColumn, row: usize, input: usize) -> &'c [u8] {
    match made {
        Some(column) => column.get(row),
        None => came.get(input),
    }
}

fn headers_of(headers: &HeaderColumn, index: usize) -> Vec<(String, Vec<u8>)> {
    headers
        .range(index)
        .map(|header| {
            let name = String::from_utf8_lossy(headers.names.get(header)).into_owned();
            (name, headers.contents.get(header).to_vec())
        })
        .collect()
}

/// The checks of the contract that a plugin can fail even with this crate between, and those that only a mistake
/// in this crate can fail.
fn check(rows: &Rows, records: usize, tables: usize) -> Result<(), String> {
    let count = rows.inputs.len();
    if !rows.inputs.is_sorted() || rows.inputs.last().is_some_and(|last| *last as usize >= records) {
        return Err("inputs are not ascending record indexes".to_owned());
    }
    for (name, column) in [("values", &rows.values), ("keys", &rows.keys)] {
        if let Some(column) = column {
            check_bytes(name, column, count)?;
        }
    }
    if let Some(headers) = &rows.headers {
        check_headers(headers, count)?;
    }
    if rows.tables.as_ref().is_some_and(|column| column.len() != count)
        || rows.marks.as_ref().is_some_and(|column| column.len() != count)
        || rows.timestamps.as_ref().is_some_and(|column| column.len() != count)
    {
        return Err(format!("a column of numbers has not {count} entries"));
    }
    if rows.tables.iter().flatten().any(|table| *table as usize >= tables) {
        return Err("a table is not declared".to_owned());
    }
    if rows.marks.iter().flatten().any(|mark| mark & !MARKS_KNOWN != 0) {
        return Err("a mark has reserved bits".to_owned());
    }
    check_errors(rows, records)
}

fn check_bytes(name: &str, column: &BytesColumn, count: usize) -> Result<(), String> {
    let last = column.ends.last().map_or(0, |end| *end as usize);
    if column.ends.len() != count || !column.ends.is_sorted() || last != column.data.len() {
        return Err(format!("the ends of {name} do not fit its data or the {count} rows"));
    }
    Ok(())
}

fn check_headers(headers: &HeaderColumn, count: usize) -> Result<(), String> {
    let total = headers.ends.last().map_or(0, |end| *end as usize);
    if headers.ends.len() != count || !headers.ends.is_sorted() {
        return Err(format!("the ends of headers do not fit the {count} rows"));
    }
    check_bytes("header names", &headers.names, total)?;
    check_bytes("header contents", &headers.contents, total)
}

fn check_errors(rows: &Rows, records: usize) -> Result<(), String> {
    let mut before = None;
    for error in &rows.errors {
        let known = error.code.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'));
        if !known || error.code.is_empty() || error.code.len() > 64 {
            return Err(format!("`{}` is no code: 1 to 64 bytes of a-z, 0-9, _ and -", error.code));
        }
        if error.input as usize >= records || before.is_some_and(|before| before >= error.input) {
            return Err("errors are not strictly ascending record indexes".to_owned());
        }
        if rows.inputs.binary_search(&error.input).is_ok() {
            return Err(format!("record {} is in error and has rows", error.input));
        }
        before = Some(error.input);
    }
    Ok(())
}
