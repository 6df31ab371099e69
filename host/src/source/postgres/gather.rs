//! Rows of one table on their way from the stream to a chunk.

use std::sync::Arc;

use super::copy_text::CopyRow;
use super::lsn::Lsn;
use super::pgoutput::{Delete, Old, Tuple, Update};
use super::row::{Appended, ColumnSets, Layout, RowError};
use crate::fault::Fault;
use crate::position::{Span, Stay};
use crate::record::{Columns, MARK_DELETE, MARK_KEY, MARK_VALUE, RecordReject};
use crate::source::Gathering;

/// Records of a chunk: from about a thousand on, a guest call's fixed cost is lost in the noise.
const CHUNK_RECORDS_MAX: usize = 4096;
/// Bytes of a chunk's values and keys, unless one row alone is larger. A little less than a power of two, to which
/// their memory grows: what is not filled of it is held for as long as the batch gathers, and charged to nobody.
const CHUNK_BYTES_MAX: usize = 500 << 10;

/// The transaction that is being read.
#[derive(Debug, Default)]
pub(super) struct Transaction {
    /// LSN of its commit record.
    pub(super) final_lsn: Lsn,
    /// Its number in the source.
    pub(super) xid: u32,
    /// When it was committed, microseconds since 1970 UTC.
    pub(super) commit_time_us: i64,
    /// Headers of its rows, written once.
    headers: [(&'static str, String); 3],
}

impl Transaction {
    pub(super) fn new(final_lsn: Lsn, xid: u32, commit_time_us: i64) -> Transaction {
        let headers = [
            ("postgres.lsn", final_lsn.to_string()),
            ("postgres.xid", xid.to_string()),
            ("postgres.commit_time_us", commit_time_us.to_string()),
        ];
        Transaction { final_lsn, xid, commit_time_us, headers }
    }
}

/// A table's rows that were read and not handed over.
#[derive(Debug)]
pub(super) struct Gathered {
    /// How its rows are taken apart.
    pub(super) layout: Layout,
    sets: ColumnSets,
    source: Arc<str>,
    destination: u16,
    stay: Stay,
    gathering: Gathering,
    columns: Columns,
    /// End of the last span that was handed over.
    handed_upto: i64,
    upto: i64,
    /// The key of the row at hand.
    key: Vec<u8>,
    /// Values that StarRocks cannot hold and that became null.
    pub(super) nulled: u64,
}

/// A row could not be told in full: its key changed and large values did not.
#[derive(Debug)]
pub(super) struct Incomplete;

impl Gathered {
    pub(super) fn new(
        layout: Layout,
        destination: u16,
        stay: Stay,
        after: i64,
        gathering: Gathering,
    ) -> Gathered {
        Gathered {
            source: layout.name().to_string().into(),
            layout,
            sets: ColumnSets::new(),
            destination,
            stay,
            gathering,
            columns: Columns::default(),
            handed_upto: after,
            upto: after,
            key: Vec::new(),
            nulled: 0,
        }
    }

    /// The table's rows look otherwise from now on.
    pub(super) fn relaid(&mut self, layout: Layout) {
        self.layout = layout;
        self.sets = ColumnSets::new();
    }

    pub(super) fn bytes(&self) -> usize {
        self.columns.bytes()
    }

    /// Place of the first row; that of the last one ever if there is none.
    pub(super) fn first_place(&self) -> i64 {
        self.columns.offsets.first().copied().unwrap_or(self.upto)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        let Columns { values, keys, .. } = &self.columns;
        self.columns.len() >= CHUNK_RECORDS_MAX || values.data.len() + keys.data.len() >= CHUNK_BYTES_MAX
    }

    /// Swaps the rows for the emptied columns of the lane.
    pub(super) fn hand_on(&mut self, into: &mut Columns) -> Span {
        into.clear();
        std::mem::swap(&mut self.columns, into);
        into.source = Some(Arc::clone(&self.source));
        into.destination = Some(self.destination);
        let span = Span { stay: self.stay.clone(), after: self.handed_upto, upto: self.upto };
        self.handed_upto = self.upto;
        span
    }

    /// A new row at `place`.
    pub(super) fn insert(
        &mut self,
        place: i64,
        new: Tuple<'_>,
        transaction: &Transaction,
    ) -> Result<(), Fault> {
        let told = self.upsert(place, new, None, transaction);
        self.or_refused(place, told, transaction)
    }

    /// A row of the snapshot.
    pub(super) fn copied(
        &mut self,
        place: i64,
        row: &CopyRow<'_>,
        transaction: &Transaction,
    ) -> Result<(), Fault> {
        self.key.clear();
        let told = self.layout.append_copied_key(row, &mut self.key);
        let told = told.and_then(|()| self.layout.append_copied(row, &mut self.columns.values.data));
        let told = told.map(|appended| self.end_upsert(place, appended, transaction));
        self.or_refused(place, told, transaction)
    }

    /// A changed row. Returns the number of records that it became: one, or two if its key is another now.
    pub(super) fn update(
        &mut self,
        place: i64,
        update: &Update<'_>,
        transaction: &Transaction,
    ) -> Result<Result<i64, Incomplete>, Fault> {
        self.key.clear();
        let told = self.layout.append_key(update.new, update.old.as_ref(), &mut self.key);
        let start = self.columns.values.data.len();
        let replaced = told
            .and_then(|()| self.layout.append_replaced_key(update, &self.key, &mut self.columns.values.data));
        let mut records = 0;
        match replaced {
            Err(error) => {
                return self.or_refused(place, Err(error), transaction).map(|()| Ok(1));
            }
            Ok(false) => {}
            Ok(true) => {
                if self.lacks_values(update) {
                    self.columns.values.data.truncate(start);
                    return Ok(Err(Incomplete));
                }
                self.end_delete(place, start, transaction);
                records += 1;
            }
        }
        let told = self.upsert(place + records, update.new, update.old.as_ref(), transaction);
        self.or_refused(place + records, told, transaction)?;
        Ok(Ok(records + 1))
    }

    /// A changed row of which the source gave all values as they are now; the old key's row is deleted.
    pub(super) fn update_read_back(
        &mut self,
        place: i64,
        update: &Update<'_>,
        row: Option<&[Option<Vec<u8>>]>,
        transaction: &Transaction,
    ) -> Result<i64, Fault> {
        self.key.clear();
        let start = self.columns.values.data.len();
        let replaced = self.layout.append_replaced_key(update, &[], &mut self.columns.values.data);
        if let Err(error) = replaced {
            return self.or_refused(place, Err(error), transaction).map(|()| 1);
        }
        self.end_delete(place, start, transaction);
        // A row that is gone meanwhile is deleted, or gets another key, later in the stream.
        let Some(row) = row else { return Ok(1) };
        self.key.clear();
        let fields = || row.iter().map(|field| field.as_deref());
        let told = self.layout.append_fields(fields(), &mut self.columns.values.data);
        let told = told.and_then(|appended| {
            self.layout.append_key(update.new, update.old.as_ref(), &mut self.key).map(|()| appended)
        });
        let told = told.map(|appended| self.end_upsert(place + 1, appended, transaction));
        self.or_refused(place + 1, told, transaction)?;
        Ok(2)
    }

    /// A deleted row.
    pub(super) fn delete(
        &mut self,
        place: i64,
        delete: &Delete<'_>,
        transaction: &Transaction,
    ) -> Result<(), Fault> {
        self.key.clear();
        let start = self.columns.values.data.len();
        let told = self.layout.append_old_key(&delete.old, &mut self.columns.values.data);
        let told = told.map(|()| self.end_delete(place, start, transaction));
        self.or_refused(place, told, transaction)
    }

    /// Whether the new row has values that were not told.
    fn lacks_values(&self, update: &Update<'_>) -> bool {
        use super::pgoutput::Field;
        let whole = matches!(update.old, Some(Old::Row(_)));
        !whole && update.new.columns().any(|field| field == Field::Unchanged)
    }

    fn upsert(
        &mut self,
        place: i64,
        new: Tuple<'_>,
        old: Option<&Old<'_>>,
        transaction: &Transaction,
    ) -> Result<(), RowError> {
        self.key.clear();
        self.layout.append_key(new, old, &mut self.key)?;
        let appended = self.layout.append_row(new, old, &mut self.sets, &mut self.columns.values.data)?;
        self.end_upsert(place, appended, transaction);
        Ok(())
    }

    fn end_upsert(&mut self, place: i64, appended: Appended, transaction: &Transaction) {
        self.nulled += u64::from(appended.nulled);
        if appended.missing.is_some() {
            self.columns.partial.push(self.columns.len() as u32);
        }
        self.columns.keys.push(&self.key);
        self.end_record(place, MARK_KEY | MARK_VALUE, transaction);
    }

    /// Ends a delete whose value, the key, was appended from `start` on.
    fn end_delete(&mut self, place: i64, start: usize, transaction: &Transaction) {
        let Columns { values, keys, .. } = &mut self.columns;
        keys.push(values.data.get(start..).unwrap_or_default());
        self.end_record(place, MARK_KEY | MARK_VALUE | MARK_DELETE, transaction);
    }

    fn end_record(&mut self, place: i64, mark: u8, transaction: &Transaction) {
        let columns = &mut self.columns;
        if self.gathering.line_feeds {
            columns.values.data.push(b'\n');
        }
        columns.values.ends.push(columns.values.data.len() as u32);
        columns.marks.push(mark);
        columns.offsets.push(place);
        if self.gathering.timestamps {
            columns.timestamps.push(transaction.commit_time_us);
        }
        if self.gathering.partitions {
            columns.partitions.push(self.stay.partition.number);
        }
        if self.gathering.headers {
            for (name, content) in &transaction.headers {
                columns.headers.names.push(name.as_bytes());
                columns.headers.contents.push(content.as_bytes());
            }
            columns.headers.end_record();
        }
        self.upto = place;
    }

    /// A row that has no form in StarRocks is refused and counted; rows that are not what the stream said
    /// they would be cannot be trusted at all.
    fn or_refused(
        &mut self,
        place: i64,
        told: Result<(), RowError>,
        transaction: &Transaction,
    ) -> Result<(), Fault> {
        let error = match told {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let code = match &error {
            RowError::Value { .. } => "value",
            RowError::NoKey { .. } => "key",
            RowError::Columns { .. } | RowError::ColumnSets => {
                return Err(Fault::halt(
                    format!("cannot read rows of {}", self.source),
                    "update PostgreSQL to its newest minor version (15.0 and 15.1 are known for it), restart, and \
                     report it if it comes again: nothing was confirmed past this row",
                )
                .caused_by(error));
            }
        };
        let mut message = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(deeper) = cause {
            message.push_str(": ");
            message.push_str(&deeper.to_string());
            cause = deeper.source();
        }
        let input = self.columns.len() as u32;
        self.columns.refused.push(RecordReject { input, code: code.to_owned(), message });
        // A row that has its key can be found.
        self.columns.keys.push(&self.key);
        self.end_record(place, if self.key.is_empty() { 0 } else { MARK_KEY }, transaction);
        Ok(())
    }
}
