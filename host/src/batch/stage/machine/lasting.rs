//! What outlives a process, whatever the delivery: rows in tables, and letters.

use std::collections::BTreeMap;

use super::PARTITIONS;
use super::records::{Letter, Record};

/// Rows and letters that are durable, and how far was ever read.
pub(super) struct Lasting {
    /// How often each row is in its table.
    pub(super) rows: BTreeMap<(usize, Record), u32>,
    /// How often each letter is kept.
    pub(super) letters: BTreeMap<Letter, u32>,
    /// The furthest that was ever read.
    pub(super) seen: [i64; PARTITIONS],
}

impl Lasting {
    /// Nothing, read from behind `from`.
    pub(super) fn behind(from: [i64; PARTITIONS]) -> Lasting {
        Lasting { rows: BTreeMap::new(), letters: BTreeMap::new(), seen: from }
    }

    pub(super) fn see(&mut self, read: [i64; PARTITIONS]) {
        for (seen, read) in self.seen.iter_mut().zip(read) {
            *seen = read.max(*seen);
        }
    }

    pub(super) fn load(&mut self, table: usize, rows: impl IntoIterator<Item = Record>) {
        for record in rows {
            *self.rows.entry((table, record)).or_default() += 1;
        }
    }

    pub(super) fn keep(&mut self, letter: Letter) {
        *self.letters.entry(letter).or_default() += 1;
    }

    /// How often a row is in its table.
    pub(super) fn times(&self, table: usize, record: Record) -> u32 {
        self.rows.get(&(table, record)).copied().unwrap_or(0)
    }

    /// How often a letter is kept that tells of the row, or with no table of the record.
    pub(super) fn told(&self, record: Record, table: Option<usize>) -> u32 {
        self.letters.get(&Letter { record, table }).copied().unwrap_or(0)
    }

    /// Expects that nothing of a record would be missed if it were never read again: each of its rows is somewhere or
    /// was refused, and a letter tells of what was; `is_loaded` knows of rows that are not in their table yet.
    pub(super) fn must_have(&self, record: Record, is_loaded: impl Fn(usize) -> bool) {
        for table in record.tables() {
            let is_there = self.times(*table, record) > 0 || is_loaded(*table);
            let is_told = self.told(record, Some(*table)) > 0;
            assert!(is_there || is_told, "the row of {record:?} for table {table} is nowhere");
        }
        if record.has_letter() {
            assert!(self.told(record, None) > 0, "the letter of {record:?} is nowhere");
        }
    }
}
