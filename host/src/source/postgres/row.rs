//! Rows of a table → JSON objects, and their keys.

use super::copy_text::CopyRow;
use super::pgoutput::{Field, Old, Tuple, Update};
use super::value::{Noted, ValueError, append_json};

mod column_sets;
#[cfg(test)]
mod every_type;
mod layout;
#[cfg(test)]
mod tests;

pub use column_sets::{ColumnSetId, ColumnSets};
pub use layout::{Layout, LayoutColumn, NoSuchColumn, key_columns, table_of};

/// Why there is no row.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// The stream's rows are not those that its Relation described (PostgreSQL 15.0 and 15.1 did this), or
    /// the COPY has other columns than were asked for. Nothing of the table can be trusted: halt.
    #[error("the row has {found} columns, the table {expected}")]
    Columns {
        /// Columns of the layout.
        expected: usize,
        /// Columns of the row.
        found: usize,
    },
    /// A value has no JSON form: the row is a dead letter.
    #[error("column {column}")]
    Value {
        /// Whose value.
        column: String,
        /// What is wrong with it.
        #[source]
        cause: ValueError,
    },
    /// A key column has no value that can be a key: the row is a dead letter.
    #[error("key column {column} {lacks}")]
    NoKey {
        /// Which.
        column: String,
        /// Why.
        lacks: &'static str,
    },
    /// Updates leave out too many different sets of columns.
    #[error("more than {} different sets of columns were left out by updates", column_sets::COLUMN_SETS_MAX)]
    ColumnSets,
}

/// What was appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a partial row must not be loaded as a whole one"]
pub struct Appended {
    /// The columns that it lacks, since they did not change and were not told; none = it is a whole row.
    pub missing: Option<ColumnSetId>,
    /// Values of it that have no StarRocks form and are null.
    pub nulled: u32,
}

/// All functions that append leave `out` as it was if they fail. None of them appends a line feed.
impl Layout {
    /// Appends a new row: `{"id":1,"name":"Ann"}`.
    ///
    /// Values that did not change and were not told are taken from `old`, if that has them; otherwise they
    /// are left out, and the row is a partial one.
    ///
    /// # Errors
    /// See [`RowError`].
    pub fn append_row(
        &self,
        new: Tuple<'_>,
        old: Option<&Old<'_>>,
        sets: &mut ColumnSets,
        out: &mut Vec<u8>,
    ) -> Result<Appended, RowError> {
        self.check_length(new.len())?;
        sets.begin();
        let nulled =
            self.append_object(self.filled(new, old)?, |_| true, |place| sets.leave_out(place), out)?;
        match sets.end() {
            Ok(missing) => Ok(Appended { missing, nulled: nulled.count }),
            Err(error) => {
                out.truncate(nulled.start);
                Err(error)
            }
        }
    }

    /// Appends a row of the snapshot, in the same form.
    ///
    /// # Errors
    /// See [`RowError`].
    pub fn append_copied(&self, row: &CopyRow<'_>, out: &mut Vec<u8>) -> Result<Appended, RowError> {
        self.append_fields(row.fields(), out)
    }

    /// Appends a row that was asked for column by column, in the form of the stream's text.
    ///
    /// # Errors
    /// See [`RowError`].
    pub fn append_fields<'f>(
        &self,
        fields: impl ExactSizeIterator<Item = Option<&'f [u8]>>,
        out: &mut Vec<u8>,
    ) -> Result<Appended, RowError> {
        self.check_length(fields.len())?;
        let fields = fields.map(|field| field.map_or(Field::Null, Field::Text));
        let nulled = self.append_object(fields, |_| true, |_| {}, out)?;
        Ok(Appended { missing: None, nulled: nulled.count })
    }

    /// Appends the key of a new row: its key columns in the order of the table, `{"id":1}`. Equal keys give
    /// equal bytes.
    ///
    /// # Errors
    /// See [`RowError`].
    pub fn append_key(
        &self,
        new: Tuple<'_>,
        old: Option<&Old<'_>>,
        out: &mut Vec<u8>,
    ) -> Result<(), RowError> {
        self.check_length(new.len())?;
        let fields = self.filled(new, old)?.take(self.key_end());
        self.append_object(fields, |column| column.in_key, |_| {}, out).map(|_| ())
    }

    /// Appends the key of a row of the snapshot.
    ///
    /// # Errors
    /// See [`RowError`].
    pub fn append_copied_key(&self, row: &CopyRow<'_>, out: &mut Vec<u8>) -> Result<(), RowError> {
        self.check_length(row.len())?;
        let fields = row.fields().map(|field| field.map_or(Field::Null, Field::Text)).take(self.key_end());
        self.append_object(fields, |column| column.in_key, |_| {}, out).map(|_| ())
    }

    /// Appends the key that a row had: the whole of a delete row, and equal to what
    /// [`append_key`](Self::append_key) gave for it. Without a key it is what is told of the old row.
    ///
    /// # Errors
    /// See [`RowError`]; [`RowError::NoKey`] also if the replica identity does not have the key.
    pub fn append_old_key(&self, old: &Old<'_>, out: &mut Vec<u8>) -> Result<(), RowError> {
        let tuple = old.tuple();
        self.check_length(tuple.len())?;
        let whole = matches!(old, Old::Row(_));
        // In a key tuple NULL says nothing of a column that is not in the identity.
        let told = |column: &LayoutColumn| whole || column.in_identity;
        if let Some(column) = self.columns().iter().find(|column| column.in_key && !told(column)) {
            let lacks = "is not in the table's replica identity, so its old value is not told";
            return Err(RowError::NoKey { column: column.name.clone(), lacks });
        }
        let wanted = |column: &LayoutColumn| if self.has_key() { column.in_key } else { told(column) };
        self.append_object(tuple.columns(), wanted, |_| {}, out).map(|_| ())
    }

    /// Appends the key that `update` took away from its row, if it is another than `new_key`, which
    /// [`append_key`](Self::append_key) gave. If so, the old key's row has to be deleted first.
    ///
    /// If the new row is a partial one besides, the values that it lacks are in the old key's row, which is
    /// about to go: they have to come from the same batch or from the source itself.
    ///
    /// # Errors
    /// See [`RowError`].
    pub fn append_replaced_key(
        &self,
        update: &Update<'_>,
        new_key: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<bool, RowError> {
        let Some(old) = update.old.as_ref().filter(|_| self.has_key()) else { return Ok(false) };
        let start = out.len();
        self.append_old_key(old, out)?;
        let replaced = out.get(start..) != Some(new_key);
        if !replaced {
            out.truncate(start);
        }
        Ok(replaced)
    }

    fn check_length(&self, found: usize) -> Result<(), RowError> {
        let expected = self.columns().len();
        if found == expected { Ok(()) } else { Err(RowError::Columns { expected, found }) }
    }

    /// The new row's fields, those that did not change from the old one.
    fn filled<'t>(
        &'t self,
        new: Tuple<'t>,
        old: Option<&Old<'t>>,
    ) -> Result<impl Iterator<Item = Field<'t>> + use<'t>, RowError> {
        let mut before = None;
        if let Some(old) = old {
            self.check_length(old.tuple().len())?;
            before = Some((old.tuple().columns(), matches!(old, Old::Row(_))));
        }
        Ok(self.columns().iter().zip(new.columns()).map(move |(column, field)| {
            let Some((fields, whole)) = &mut before else { return field };
            match (field, fields.next()) {
                (Field::Unchanged, Some(before)) if *whole || column.in_identity => before,
                (field, _) => field,
            }
        }))
    }

    /// Appends the columns that are wanted as one object.
    #[inline]
    fn append_object<'f>(
        &self,
        fields: impl Iterator<Item = Field<'f>>,
        wanted: impl Fn(&LayoutColumn) -> bool,
        mut leave_out: impl FnMut(u16),
        out: &mut Vec<u8>,
    ) -> Result<Nulled, RowError> {
        let start = out.len();
        let mut count = 0;
        for (place, (column, field)) in (0..).zip(self.columns().iter().zip(fields)) {
            if !wanted(column) {
                continue;
            }
            match column.append(field, out) {
                Ok(Some(Noted::Exact)) => {}
                Ok(Some(Noted::Nulled)) => count += 1,
                Ok(None) => leave_out(place),
                Err(error) => {
                    out.truncate(start);
                    return Err(error);
                }
            }
        }
        // Each column begins with a comma; the first one's becomes the brace.
        match out.get_mut(start) {
            Some(comma) => *comma = b'{',
            None => out.push(b'{'),
        }
        out.push(b'}');
        Ok(Nulled { start, count })
    }
}

/// Where an object begins, and how many of its values have no form.
struct Nulled {
    start: usize,
    count: u32,
}

impl LayoutColumn {
    /// Appends `,"name":value`; nothing for a value that is not told.
    #[inline]
    fn append(&self, field: Field<'_>, out: &mut Vec<u8>) -> Result<Option<Noted>, RowError> {
        match field {
            Field::Text(text) => {
                out.extend_from_slice(&self.member);
                match append_json(&self.kind, text, out) {
                    Ok(Noted::Nulled) if self.in_key => {
                        Err(self.no_key("has a value that StarRocks cannot hold (infinity or a far year)"))
                    }
                    Ok(noted) => Ok(Some(noted)),
                    Err(cause) => Err(RowError::Value { column: self.name.clone(), cause }),
                }
            }
            Field::Null if self.in_key => Err(self.no_key("is NULL")),
            Field::Null => {
                out.extend_from_slice(&self.member);
                out.extend_from_slice(b"null");
                Ok(Some(Noted::Exact))
            }
            Field::Unchanged if self.in_key => Err(self.no_key("is stored out of line and not told")),
            Field::Unchanged => Ok(None),
        }
    }

    #[cold]
    fn no_key(&self, lacks: &'static str) -> RowError {
        RowError::NoKey { column: self.name.clone(), lacks }
    }
}
