//! Records by their places, and what is made of them: rows and dead letters.

use crate::batch::{Batch, Piece};

/// A record by its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Record {
    pub(super) partition: usize,
    pub(super) offset: i64,
}

/// What becomes of a record: a function of its place, so that it is the same when it is read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// No record: a place that compaction or a transaction has left.
    Gap,
    /// A plugin leaves it out.
    Dropped,
    /// A plugin refuses it.
    Letter,
    /// It becomes a row of these tables.
    Rows(&'static [usize]),
    /// It becomes a row of these tables, and what it would be in others is refused.
    RowsAndLetter(&'static [usize]),
}

impl Record {
    pub(super) fn fate(self) -> Fate {
        match (self.offset * 7 + self.partition as i64 * 3) % 10 {
            0 => Fate::Gap,
            1 => Fate::Dropped,
            2 => Fate::Letter,
            3 => Fate::Rows(&[0, 1]),
            4 => Fate::RowsAndLetter(&[1]),
            other => Fate::Rows(if other % 2 == 0 { &[0] } else { &[1] }),
        }
    }

    /// The tables of which it becomes a row.
    pub(super) fn tables(self) -> &'static [usize] {
        match self.fate() {
            Fate::Gap | Fate::Dropped | Fate::Letter => &[],
            Fate::Rows(tables) | Fate::RowsAndLetter(tables) => tables,
        }
    }

    pub(super) fn is_row_of(self, table: usize) -> bool {
        self.tables().contains(&table)
    }

    /// Whether a letter tells of it before it comes to any table.
    pub(super) fn has_letter(self) -> bool {
        matches!(self.fate(), Fate::Letter | Fate::RowsAndLetter(_))
    }

    /// Whether it counts with its row of `table`: the first one, unless a letter counts it.
    pub(super) fn counts_with(self, table: usize) -> bool {
        !self.has_letter() && self.tables().first() == Some(&table)
    }

    /// Its row, of 20 to 44 bytes and now and then of more than a batch may have.
    pub(super) fn row(self) -> String {
        let pad = if self.offset % 13 == 12 { 150 } else { self.offset % 25 };
        let pad = "x".repeat(usize::try_from(pad).expect("small"));
        format!("{{\"p\":{},\"n\":{},\"x\":\"{pad}\"}}\n", self.partition, self.offset)
    }

    /// Reads a row back.
    pub(super) fn of_row(row: &[u8]) -> Record {
        let row: serde_json::Value = serde_json::from_slice(row).expect("a row is JSON");
        let number = |name: &str| row[name].as_i64().expect("a number");
        Record { partition: usize::try_from(number("p")).expect("small"), offset: number("n") }
    }
}

/// The records of a partition from behind `after` up to `upto`.
pub(super) fn records(partition: usize, after: i64, upto: i64) -> impl Iterator<Item = Record> {
    (after + 1..=upto).map(move |offset| Record { partition, offset })
}

/// The records whose rows a batch holds.
pub(super) fn rows_of(batch: &Batch) -> Vec<Record> {
    batch.pieces.iter().flat_map(Piece::iter).map(|(_, row)| Record::of_row(row)).collect()
}

/// What a dead letter tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Letter {
    pub(super) record: Record,
    /// Its row of this table; none = the record itself.
    pub(super) table: Option<usize>,
}

/// What of a record is on its way, and keeps its span open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hold {
    pub(super) record: Record,
    pub(super) of: Part,
    /// Its stay has ended: it keeps nothing open any more.
    pub(super) has_ended: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Row(usize),
    Letter(Option<usize>),
}

/// What an index entry of a row costs beside its bytes, in the budget.
const INDEX_BYTES: u64 = 8;

impl Hold {
    pub(super) fn row(record: Record, table: usize) -> Hold {
        Hold { record, of: Part::Row(table), has_ended: false }
    }

    pub(super) fn letter(record: Record) -> Hold {
        Hold { record, of: Part::Letter(None), has_ended: false }
    }

    /// A row was refused: a letter tells of it.
    pub(super) fn refused(self) -> Hold {
        let table = match self.of {
            Part::Row(table) => Some(table),
            Part::Letter(table) => table,
        };
        Hold { of: Part::Letter(table), ..self }
    }

    pub(super) fn is_row(&self) -> bool {
        matches!(self.of, Part::Row(_))
    }

    /// Bytes of a row.
    pub(super) fn bytes(&self) -> u64 {
        self.record.row().len() as u64
    }

    /// What a row is charged to the budget.
    pub(super) fn charge(&self) -> u64 {
        self.bytes() + INDEX_BYTES
    }

    /// How many records are counted with it: one or none.
    pub(super) fn records(&self) -> u64 {
        u64::from(match self.of {
            Part::Row(table) | Part::Letter(Some(table)) => self.record.counts_with(table),
            Part::Letter(None) => true,
        })
    }
}
