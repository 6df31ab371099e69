//! The rows that a batch becomes. Columns are returned only if the plugin touched them.
//!
//! Each optional column lags: it holds the rows up to the last one that was touched, and the rows between are copied
//! from the input when the next one is touched or the batch ends. So a column that nobody touches costs nothing, and
//! a row that touches nothing costs four bytes.

use crate::columns::{
    Batch, BytesColumn, HeaderColumn, MARK_DELETE, MARK_KEY, MARK_VALUE, MARKS_KNOWN, RecordError, Rows,
};
use crate::reject::{CODE_NO_TABLE, Reject};
use crate::setup::{Setup, TableId};
use serde::Serialize;

/// Stands for a table that has not been chosen yet. It is no index: `TABLES_MAX` declared tables end below it.
const TABLE_OPEN: u16 = u16::MAX;

/// Where a plugin puts the rows of a record: none (the record is dropped), one, or several.
pub struct Output<'b> {
    batch: &'b Batch,
    setup: &'b Setup,
    rows: Rows,
    /// The record that rows are being made from.
    input: u32,
    /// How many rows there were before it.
    rows_before: usize,
}

impl<'b> Output<'b> {
    pub(crate) fn new(batch: &'b Batch, setup: &'b Setup) -> Self {
        let rows = Rows { inputs: Vec::with_capacity(batch.marks.len()), ..Rows::default() };
        Self { batch, setup, rows, input: 0, rows_before: 0 }
    }

    /// Makes a row with the record's own value. Nothing is copied unless another row of the batch is replaced.
    #[inline]
    pub fn keep(&mut self) -> Row<'_, 'b> {
        self.rows.inputs.push(self.input);
        self.open_row()
    }

    /// Makes no row: says so where a reader may wonder. A record without rows is dropped, with or without this.
    #[inline]
    #[expect(clippy::should_implement_trait, reason = "to drop a record is what everybody calls it")]
    pub fn drop(&mut self) {}

    /// Makes a row of these bytes: one JSON object. A line feed is put after it if it does not end in one.
    #[inline]
    pub fn replace(&mut self, value: &[u8]) -> Row<'_, 'b> {
        self.replace_with(|column| column.extend_from_slice(value))
    }

    /// Makes a row of what `write` appends to the column: one JSON object, written straight to where it is returned
    /// from. A line feed is put after it if it does not end in one.
    ///
    /// # Panics
    ///
    /// If `write` takes away bytes that were there before: these are other rows.
    #[inline]
    pub fn replace_with(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Row<'_, 'b> {
        let column = self.values_to_date();
        let start = column.data.len();
        write(&mut column.data);
        assert!(column.data.len() >= start, "replace_with may only append to the column");
        end_line(&mut column.data, start);
        column.close_element();
        self.push_replaced()
    }

    /// Makes a row of `value` as JSON, serialised straight into the column that is returned.
    ///
    /// # Errors
    ///
    /// A reject with the code `parse` if `value` cannot be serialised (a map whose keys are no strings, or an error
    /// of its own). Nothing of it stays.
    #[inline]
    pub fn replace_json<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<Row<'_, 'b>, Reject> {
        let column = self.values_to_date();
        let closed = column.len();
        if let Err(error) = serde_json::to_writer(&mut column.data, value) {
            column.truncate(closed);
            return Err(error.into());
        }
        column.data.push(b'\n');
        column.close_element();
        Ok(self.push_replaced())
    }

    /// Starts the next record.
    #[inline]
    pub(crate) fn begin(&mut self, input: u32) {
        self.input = input;
        self.rows_before = self.rows.inputs.len();
    }

    /// Ends the record: a reject takes back the rows that it already has.
    #[inline]
    pub(crate) fn end(&mut self, verdict: Result<(), Reject>) {
        if let Err(reject) = verdict.and_then(|()| self.check_tables()) {
            self.reject(reject);
        }
    }

    pub(crate) fn finish(mut self) -> Rows {
        let rows = self.rows.inputs.len();
        self.fill_values(rows);
        self.fill_marks(rows);
        self.fill_keys(rows);
        self.fill_timestamps(rows);
        self.fill_headers(rows);
        self.fill_tables(rows);
        self.rows
    }

    /// Kept out of line: rejects are rare, and the loop over the records stays small.
    #[cold]
    #[inline(never)]
    fn reject(&mut self, reject: Reject) {
        let rows = self.rows_before;
        let made = &mut self.rows;
        made.inputs.truncate(rows);
        if let Some(values) = &mut made.values {
            values.truncate(rows.min(values.len()));
        }
        if let Some(keys) = &mut made.keys {
            keys.truncate(rows.min(keys.len()));
        }
        if let Some(headers) = &mut made.headers {
            headers.truncate(rows.min(headers.ends.len()));
        }
        if let Some(marks) = &mut made.marks {
            marks.truncate(rows);
        }
        if let Some(timestamps) = &mut made.timestamps {
            timestamps.truncate(rows);
        }
        if let Some(tables) = &mut made.tables {
            tables.truncate(rows);
        }
        made.errors.push(RecordError {
            input: self.input,
            code: reject.code().to_owned(),
            message: reject.into_message(),
        });
    }

    /// A plugin that declared tables, but not the pipeline's own, names one for each row.
    #[inline]
    fn check_tables(&mut self) -> Result<(), Reject> {
        if self.setup.tables.is_empty() || self.setup.own_table.is_some() {
            return Ok(());
        }
        let rows = self.rows.inputs.len();
        self.rows.tables.get_or_insert_default();
        self.fill_tables(rows);
        match &self.rows.tables {
            Some(tables) if tables[self.rows_before..].contains(&TABLE_OPEN) => {
                Err(Reject::new(CODE_NO_TABLE, "the plugin chose no table for a row of this record"))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The column of values with all earlier rows in it.
    #[inline]
    fn values_to_date(&mut self) -> &mut BytesColumn {
        let rows = self.rows.inputs.len();
        if self.rows.values.is_none() {
            // As many bytes as came in, and a line feed each: most plugins leave out and rename.
            let records = self.batch.marks.len();
            let bytes = self.batch.values.data.len() + records;
            self.rows.values = Some(BytesColumn::with_capacity(records, bytes));
        }
        self.fill_values(rows);
        self.rows.values.get_or_insert_default()
    }

    #[inline]
    fn push_replaced(&mut self) -> Row<'_, 'b> {
        self.rows.inputs.push(self.input);
        let mut row = self.open_row();
        if row.input_mark() & MARK_VALUE == 0 {
            row.change_mark(|mark| mark | MARK_VALUE);
        }
        row
    }

    #[inline]
    fn open_row(&mut self) -> Row<'_, 'b> {
        let index = self.rows.inputs.len() - 1;
        Row { output: self, index }
    }

    #[inline]
    fn fill_values(&mut self, upto: usize) {
        let Some(values) = &mut self.rows.values else { return };
        for row in values.len()..upto {
            let start = values.data.len();
            values.data.extend_from_slice(self.batch.values.get(self.rows.inputs[row] as usize));
            if values.data.len() > start {
                end_line(&mut values.data, start);
            }
            values.close_element();
        }
    }

    fn fill_marks(&mut self, upto: usize) {
        let Some(marks) = &mut self.rows.marks else { return };
        for row in marks.len()..upto {
            marks.push(self.batch.marks[self.rows.inputs[row] as usize] & MARKS_KNOWN);
        }
    }

    fn fill_keys(&mut self, upto: usize) {
        let Some(keys) = &mut self.rows.keys else { return };
        for row in keys.len()..upto {
            keys.push(self.batch.keys.get(self.rows.inputs[row] as usize));
        }
    }

    fn fill_timestamps(&mut self, upto: usize) {
        let Some(timestamps) = &mut self.rows.timestamps else { return };
        for row in timestamps.len()..upto {
            timestamps.push(self.batch.timestamps[self.rows.inputs[row] as usize]);
        }
    }

    fn fill_headers(&mut self, upto: usize) {
        let Some(headers) = &mut self.rows.headers else { return };
        for row in headers.ends.len()..upto {
            append_input_headers(headers, self.batch, self.rows.inputs[row]);
            headers.close_record();
        }
    }

    fn fill_tables(&mut self, upto: usize) {
        let Some(tables) = &mut self.rows.tables else { return };
        let default = self.setup.own_table.map_or(TABLE_OPEN, |own| own.0);
        if tables.len() < upto {
            tables.resize(upto, default);
        }
    }
}

/// The row that was made last, to say more about it than its value.
pub struct Row<'r, 'b> {
    output: &'r mut Output<'b>,
    index: usize,
}

impl Row<'_, '_> {
    /// Sends it to a table that was declared with [`Setup::table`].
    #[inline]
    pub fn table(self, table: TableId) -> Self {
        let made = &mut self.output.rows;
        made.tables.get_or_insert_default();
        self.output.fill_tables(self.index + 1);
        if let Some(tables) = &mut self.output.rows.tables {
            tables[self.index] = table.0;
        }
        self
    }

    /// Makes it a delete of the row with its key. Its value then needs the fields of the table's key and no others.
    pub fn delete(mut self) -> Self {
        self.change_mark(|mark| mark | MARK_DELETE);
        self
    }

    /// Makes it an upsert, also where the record was a delete.
    pub fn upsert(mut self) -> Self {
        self.change_mark(|mark| mark & !MARK_DELETE);
        self
    }

    /// Gives it a key. Keys are not loaded: they are for the next plugin. Needs [`Setup::want_key`].
    ///
    /// # Panics
    ///
    /// If the plugin did not ask for keys: the other rows of the batch would lose theirs.
    pub fn key(mut self, key: &[u8]) -> Self {
        self.set_key(key);
        self.change_mark(|mark| mark | MARK_KEY);
        self
    }

    /// Takes its key away. Needs [`Setup::want_key`].
    ///
    /// # Panics
    ///
    /// If the plugin did not ask for keys.
    pub fn no_key(mut self) -> Self {
        self.set_key(b"");
        self.change_mark(|mark| mark & !MARK_KEY);
        self
    }

    /// Gives it a time, in microseconds since 1970 UTC, for the next plugin. Needs [`Setup::want_timestamp`].
    ///
    /// # Panics
    ///
    /// If the plugin did not ask for timestamps.
    pub fn timestamp_us(self, timestamp_us: i64) -> Self {
        let wanted = self.output.setup.wants.timestamp;
        assert!(wanted, "the plugin must call setup.want_timestamp() before it can set times");
        self.output.rows.timestamps.get_or_insert_default();
        self.output.fill_timestamps(self.index + 1);
        if let Some(timestamps) = &mut self.output.rows.timestamps {
            timestamps[self.index] = timestamp_us;
        }
        self
    }

    /// Adds a header to those that it has from its record, for the next plugin. Needs [`Setup::want_headers`].
    ///
    /// # Panics
    ///
    /// If the plugin did not ask for headers.
    pub fn header(self, name: &str, content: &[u8]) -> Self {
        self.edit_headers(|headers| headers.append(name.as_bytes(), content))
    }

    /// Takes away the headers that it has so far. Needs [`Setup::want_headers`].
    ///
    /// # Panics
    ///
    /// If the plugin did not ask for headers.
    pub fn clear_headers(self) -> Self {
        let index = self.index;
        self.edit_headers(|headers| {
            let before = if index == 0 { 0 } else { headers.ends[index - 1] as usize };
            headers.names.truncate(before);
            headers.contents.truncate(before);
        })
    }

    fn input_mark(&self) -> u8 {
        let input = self.output.rows.inputs[self.index];
        self.output.batch.marks[input as usize] & MARKS_KNOWN
    }

    /// Leaves the column alone as long as every row has its record's mark.
    fn change_mark(&mut self, change: impl Fn(u8) -> u8) {
        let own = self.output.rows.marks.as_ref().and_then(|marks| marks.get(self.index).copied());
        let mark = own.unwrap_or_else(|| self.input_mark());
        let changed = change(mark);
        if changed == mark {
            return;
        }
        self.output.rows.marks.get_or_insert_default();
        self.output.fill_marks(self.index + 1);
        if let Some(marks) = &mut self.output.rows.marks {
            marks[self.index] = changed;
        }
    }

    fn set_key(&mut self, key: &[u8]) {
        assert!(self.output.setup.wants.key, "the plugin must call setup.want_key() before it can set keys");
        self.output.rows.keys.get_or_insert_default();
        self.output.fill_keys(self.index);
        if let Some(keys) = &mut self.output.rows.keys {
            keys.truncate(self.index);
            keys.push(key);
        }
    }

    fn edit_headers(self, edit: impl FnOnce(&mut HeaderColumn)) -> Self {
        let wanted = self.output.setup.wants.headers;
        assert!(wanted, "the plugin must call setup.want_headers() before it can set headers");
        self.output.rows.headers.get_or_insert_default();
        self.output.fill_headers(self.index + 1);
        if let Some(headers) = &mut self.output.rows.headers {
            headers.ends.truncate(self.index);
            edit(headers);
            headers.close_record();
        }
        self
    }
}

/// Puts a line feed after a row that does not end in one, so that the host can send the column as it is.
#[inline]
fn end_line(data: &mut Vec<u8>, start: usize) {
    if data.len() == start || data[data.len() - 1] != b'\n' {
        data.push(b'\n');
    }
}

fn append_input_headers(headers: &mut HeaderColumn, batch: &Batch, input: u32) {
    for header in batch.headers.range(input as usize) {
        headers.append(batch.headers.names.get(header), batch.headers.contents.get(header));
    }
}
