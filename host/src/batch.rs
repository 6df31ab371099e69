//! The shared batching stage: rows of all lanes gather here, a batch a table, until one is full by
//! rows or bytes or old enough; then it is loaded. When to cut is a pure function ([`decide`]).
//!
//! A batch is a list of segments that the lanes made: nothing is copied here, one message a chunk.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::budget::Permit;
use crate::config::model::BatchLimits;
use crate::delivery::owner::Owner;
use crate::ledger::Ticket;
use crate::sink::Destination;

pub mod key;
pub mod stage;
pub mod stretch;

/// Top bit of [`RowIndex::deltas`]: the row is its record's first, so that records can be counted
/// although a record may give several rows.
pub const FIRST_ROW: u32 = 1 << 31;

/// Next bit of [`RowIndex::deltas`]: the row lacks columns whose values did not change and which keep
/// what the table has.
pub const PARTIAL_ROW: u32 = 1 << 30;

/// The bits of [`RowIndex::deltas`] that are the position.
pub const POSITION_BITS: u32 = PARTIAL_ROW - 1;

/// Where each row of a segment ends and which record it came from. Shared by the parts of a piece.
#[derive(Debug)]
pub struct RowIndex {
    /// End of each row, its line feed included, in the segment as it was made.
    pub ends: Vec<u32>,
    /// Position of each row's record less `base`, with [`FIRST_ROW`] set on a record's first row and
    /// [`PARTIAL_ROW`] on rows that are updates of some columns.
    pub deltas: Vec<u32>,
    /// A hash of each row's key ([`key::KeyHasher`]), so that a batch can tell which rows replace one another; empty for rows
    /// whose source does not know their table's key.
    pub keys: Vec<u64>,
    /// Position of the chunk's first record.
    pub base: i64,
    /// Topic, `schema.table` or path that the chunk came from, for dead letters.
    pub source: Arc<str>,
}

/// Rows of one chunk for one destination: what a lane hands over.
#[derive(Debug)]
pub struct Piece {
    /// NDJSON of the whole segment; this piece's rows are `rows` of it.
    segment: Bytes,
    index: Arc<RowIndex>,
    rows: std::ops::Range<usize>,
    /// Last plugin that touched the rows, for dead letters.
    pub plugin: Option<Arc<str>>,
    ticket: Ticket,
    permit: Permit,
    owner: Arc<Owner>,
    /// Records whose rows were replaced by later ones of the same batch: what a piece without rows counts as.
    absorbed: u64,
    /// When its first record arrived, if somebody waits for it.
    arrived: Option<Instant>,
}

impl Piece {
    /// A piece of all rows of `segment`, each of which ends with a line feed. The permit grows to what it holds.
    pub fn new(
        segment: Bytes,
        index: RowIndex,
        plugin: Option<Arc<str>>,
        ticket: Ticket,
        permit: Permit,
        owner: Arc<Owner>,
    ) -> Self {
        assert!(index.ends.len() == index.deltas.len(), "a row index has one entry a row");
        assert!(index.keys.is_empty() || index.keys.len() == index.ends.len(), "all rows have keys, or none");
        let rows = 0..index.ends.len();
        let mut piece = Self {
            segment,
            index: Arc::new(index),
            rows,
            plugin,
            ticket,
            permit,
            owner,
            absorbed: 0,
            arrived: None,
        };
        piece.permit.resize(piece.charge());
        piece
    }

    /// The same of records that arrived at that time.
    #[must_use]
    pub fn arrived_at(self, arrived: Option<Instant>) -> Self {
        Piece { arrived, ..self }
    }

    /// When its first record arrived, if somebody waits for it.
    pub fn arrived(&self) -> Option<Instant> {
        self.arrived
    }

    /// The pipeline that the rows are of.
    pub fn owner(&self) -> &Arc<Owner> {
        &self.owner
    }

    /// Topic, `schema.table` or path that the rows came from.
    pub fn source(&self) -> &Arc<str> {
        &self.index.source
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn start_of(&self, row: usize) -> usize {
        if row == 0 { 0 } else { self.index.ends[row - 1] as usize }
    }

    /// Bytes of the rows.
    pub fn bytes(&self) -> u64 {
        (self.start_of(self.rows.end) - self.start_of(self.rows.start)) as u64
    }

    /// What the budget is charged: the rows, and what is kept about each.
    fn charge(&self) -> u64 {
        let about_each = 2 * size_of::<u32>() + if self.index.keys.is_empty() { 0 } else { size_of::<u64>() };
        self.bytes() + (self.len() * about_each) as u64
    }

    /// The rows' bytes, without a copy.
    pub fn body(&self) -> Bytes {
        self.segment.slice(self.start_of(self.rows.start)..self.start_of(self.rows.end))
    }

    /// Bytes of the first row, its line feed included.
    pub fn first_row_bytes(&self) -> u64 {
        let end = self.index.ends.get(self.rows.start).map_or(0, |end| *end as usize);
        end.saturating_sub(self.start_of(self.rows.start)) as u64
    }

    /// Number of records whose first row is in this piece, or was until it was replaced.
    pub fn records(&self) -> u64 {
        let rows = self.index.deltas[self.rows.clone()].iter();
        rows.filter(|delta| **delta & FIRST_ROW != 0).count() as u64 + self.absorbed
    }

    /// What is left of the piece when its rows need no load, because later ones took their places: the duty to
    /// settle its ticket, and `absorbed` records to count.
    #[must_use]
    pub fn emptied(mut self, absorbed: u64) -> Piece {
        self.rows.end = self.rows.start;
        self.permit.resize(self.charge());
        Piece { absorbed, ..self }
    }

    /// Each row with the position of its record.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (i64, &[u8])> {
        self.rows.clone().map(|row| {
            let delta = self.index.deltas[row] & POSITION_BITS;
            (
                self.index.base + i64::from(delta),
                &self.segment[self.start_of(row)..self.index.ends[row] as usize],
            )
        })
    }

    /// The ticket that this piece holds.
    pub fn ticket(&self) -> &Ticket {
        &self.ticket
    }

    /// Keeps the first rows that fit within `rows` and `bytes` (at least one row) and returns the
    /// others, if any. Costs no copy: both parts share the segment.
    pub fn split(&mut self, rows: u64, bytes: u64) -> Option<Piece> {
        let start = self.start_of(self.rows.start) as u64;
        let most = usize::try_from(rows.max(1)).unwrap_or(usize::MAX).min(self.len());
        let ends = &self.index.ends[self.rows.start..self.rows.start + most];
        let kept = ends.partition_point(|end| u64::from(*end) - start <= bytes).max(1);
        if kept >= self.len() {
            return None;
        }
        let at = self.rows.start + kept;
        let mut rest = Piece {
            segment: self.segment.clone(),
            index: Arc::clone(&self.index),
            rows: at..self.rows.end,
            plugin: self.plugin.clone(),
            ticket: self.ticket.hold(),
            permit: self.permit.empty(),
            owner: Arc::clone(&self.owner),
            absorbed: 0,
            arrived: self.arrived,
        };
        self.rows.end = at;
        rest.permit.resize(rest.charge());
        self.permit.resize(self.charge());
        Some(rest)
    }

    /// The piece without the rows `bad` (places within this piece, ascending); none if nothing is left.
    /// Copies the rows that stay.
    pub fn without(self, bad: &[usize]) -> Option<Piece> {
        let rest = self.rewritten(|place, _, row, body| {
            let stays = bad.binary_search(&place).is_err();
            if stays {
                body.extend_from_slice(row);
            }
            stays
        });
        if rest.is_empty() {
            let _ = rest.ticket.settle();
            return None;
        }
        Some(rest)
    }

    /// The piece with other rows: `write(place, flags, row, body)` appends what a row becomes to `body`, with
    /// its line feed, and says whether it stays. A piece of which no row stays still holds its ticket.
    pub fn rewritten(self, mut write: impl FnMut(usize, u32, &[u8], &mut Vec<u8>) -> bool) -> Piece {
        let mut body = Vec::with_capacity(usize::try_from(self.bytes()).unwrap_or_default());
        let (base, source) = (self.index.base, Arc::clone(&self.index.source));
        let mut index = RowIndex { ends: Vec::new(), deltas: Vec::new(), keys: Vec::new(), base, source };
        for place in 0..self.len() {
            let flags = self.flags(place);
            if write(place, flags, self.row(place), &mut body) {
                index.ends.push(body.len() as u32);
                index.deltas.push(flags);
                index.keys.extend(self.key(place));
            }
        }
        let Piece { plugin, ticket, permit, owner, absorbed, arrived, .. } = self;
        Piece { absorbed, arrived, ..Piece::new(body.into(), index, plugin, ticket, permit, owner) }
    }

    /// The row at `place`, its line feed included.
    pub fn row(&self, place: usize) -> &[u8] {
        let row = self.rows.start + place;
        &self.segment[self.start_of(row)..self.index.ends[row] as usize]
    }

    /// Position and flags of the row at `place`, as in [`RowIndex::deltas`].
    pub fn flags(&self, place: usize) -> u32 {
        self.index.deltas[self.rows.start + place]
    }

    /// The hash of the key of the row at `place`, if its source knows it.
    pub fn key(&self, place: usize) -> Option<u64> {
        self.index.keys.get(self.rows.start + place).copied()
    }

    /// The same rows once more, under a ticket of their own: rows of one piece can then go two ways.
    pub fn twin(&self) -> Piece {
        Piece {
            segment: self.segment.clone(),
            index: Arc::clone(&self.index),
            rows: self.rows.clone(),
            plugin: self.plugin.clone(),
            ticket: self.ticket.hold(),
            permit: self.permit.empty(),
            owner: Arc::clone(&self.owner),
            absorbed: 0,
            arrived: self.arrived,
        }
    }

    /// Takes the piece apart when its rows are durable: settles the ticket and gives the bytes back.
    /// Returns the segment, for its memory.
    pub fn settle(self) -> Bytes {
        let records = self.records();
        let _ = self.ticket.settle_loaded(records);
        self.segment
    }

    /// Gives the rows up because their partition was: they will be read again.
    pub fn forget(self) {
        self.ticket.forget();
    }
}

/// A batch that was cut: immutable, loaded under one label.
#[derive(Debug)]
pub struct Batch {
    /// Where to.
    pub destination: Arc<Destination>,
    /// The rows.
    pub pieces: Vec<Piece>,
    /// Why it was cut, for the metric.
    pub reason: Cut,
    /// When its first row came.
    pub since: Instant,
}

impl Batch {
    /// Rows in all pieces.
    pub fn rows(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.len() as u64).sum()
    }

    /// Bytes of all rows.
    pub fn bytes(&self) -> u64 {
        self.pieces.iter().map(Piece::bytes).sum()
    }

    /// Records whose first row is in the batch.
    pub fn records(&self) -> u64 {
        self.pieces.iter().map(Piece::records).sum()
    }
}

/// Why a batch was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cut {
    /// `max_rows` reached.
    Rows,
    /// `max_bytes` reached.
    Bytes,
    /// `linger` over.
    Linger,
    /// A reader waits for the budget.
    Pressure,
    /// The pipeline drains.
    Flush,
}

impl Cut {
    /// The metric's label.
    pub fn name(self) -> &'static str {
        match self {
            Cut::Rows => "rows",
            Cut::Bytes => "bytes",
            Cut::Linger => "linger",
            Cut::Pressure => "pressure",
            Cut::Flush => "flush",
        }
    }
}

/// What [`decide`] looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    /// Rows in the open batch.
    pub rows: u64,
    /// Bytes in the open batch.
    pub bytes: u64,
    /// Time since its first row.
    pub age: Duration,
    /// Whether a load could start at once.
    pub slot_free: bool,
    /// Whether a reader waits for the budget.
    pub pressure: bool,
    /// Whether the pipeline drains.
    pub draining: bool,
}

/// Whether to cut now, and why. A full batch is cut in any case. Age, pressure and draining count
/// only when the load could start at once: as long as the table is busy, a larger batch costs fewer
/// versions and not a millisecond.
pub fn decide(fill: &Fill, limits: &BatchLimits) -> Option<Cut> {
    if fill.rows == 0 {
        return None;
    }
    if fill.rows >= limits.max_rows {
        return Some(Cut::Rows);
    }
    if fill.bytes >= limits.max_bytes {
        return Some(Cut::Bytes);
    }
    if !fill.slot_free {
        return None;
    }
    if fill.draining {
        return Some(Cut::Flush);
    }
    if fill.age >= limits.linger {
        return Some(Cut::Linger);
    }
    fill.pressure.then_some(Cut::Pressure)
}

#[cfg(test)]
pub(crate) mod fakes;
#[cfg(test)]
mod tests;
