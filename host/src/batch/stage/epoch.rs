//! What gathers for an exactly-once pipeline: rows of all tables up to one point, cut together.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::strain::Strain;
use super::{EpochOutlet, PipelineId, TableIndex, forget_where};
use crate::batch::stretch::Sign;
use crate::batch::{Batch, Cut, Fill, Piece, decide};
use crate::budget::Share;
use crate::config::model::BatchLimits;
use crate::meter::TableMeter;
use crate::position::Stay;
use crate::sink::Destination;

/// The epoch that gathers, those that wait, and whether one is on its way.
///
/// A chunk's rows are never parted: the offsets that are decided with an epoch are ends of chunks. So an epoch may
/// be larger than the limits by one chunk.
pub(super) struct Gathering {
    /// Each with its stretch: the table under most pressure stretches the epoch, which is cut for all at once.
    tables: Vec<(Arc<Destination>, Strain)>,
    /// As the file has them.
    limits: BatchLimits,
    share: Share,
    outlet: Arc<dyn EpochOutlet>,
    open: BTreeMap<TableIndex, Vec<Piece>>,
    since: Option<Instant>,
    ready: VecDeque<Vec<Batch>>,
    in_flight: bool,
}

impl Gathering {
    pub(super) fn new(
        destinations: Vec<Arc<Destination>>,
        limits: BatchLimits,
        share: Share,
        outlet: Arc<dyn EpochOutlet>,
    ) -> Gathering {
        Gathering {
            tables: destinations.into_iter().map(|table| (table, Strain::new(limits))).collect(),
            limits,
            share,
            outlet,
            open: BTreeMap::new(),
            since: None,
            ready: VecDeque::new(),
            in_flight: false,
        }
    }

    pub(super) fn outlet(&self) -> &dyn EpochOutlet {
        self.outlet.as_ref()
    }

    /// The metrics of the pipeline show how far its tables are stretched.
    pub(super) fn shown_by(&mut self, pipeline: PipelineId, meters: &[TableMeter]) {
        for ((_, strain), meter) in self.tables.iter_mut().zip(meters) {
            strain.shown_by(pipeline, meter);
        }
    }

    /// The limits of an epoch now: those of the table that is stretched most.
    fn limits(&self) -> BatchLimits {
        let most = self.tables.iter().map(|(_, strain)| strain).max_by_key(|strain| strain.factor());
        most.map_or(self.limits, Strain::limits)
    }

    /// Takes a sign of a table in.
    pub(super) fn see(&mut self, table: &str, sign: Sign, now: Instant) {
        let place = self.tables.iter().position(|(destination, _)| destination.table == table);
        if let Some(place) = place {
            self.see_at(place, sign, now);
        }
    }

    /// The fullest replica of the table at that place has so many versions.
    pub(super) fn see_versions(&mut self, place: usize, versions: u64, now: Instant) {
        self.see_at(place, Sign::Versions(versions), now);
    }

    fn see_at(&mut self, place: usize, sign: Sign, now: Instant) {
        let Some((destination, strain)) = self.tables.get_mut(place) else { return };
        if strain.see(destination, sign, now) {
            self.widen_share();
        }
    }

    /// When a stretch changes by itself.
    pub(super) fn rests_at(&self) -> Option<Instant> {
        self.tables.iter().filter_map(|(_, strain)| strain.rests_at()).min()
    }

    /// Steps back from stretches that are over.
    pub(super) fn rest(&mut self, now: Instant) {
        let rested =
            self.tables.iter_mut().filter_map(|(table, strain)| strain.rest(table, now).then_some(()));
        if rested.count() > 0 {
            self.widen_share();
        }
    }

    /// Stretched epochs need room: one that gathers and one that is on its way. The budget as a whole stays the limit.
    fn widen_share(&self) {
        let stretched = self.limits().max_bytes.saturating_sub(self.limits.max_bytes);
        let tables = self.tables.len() as u64;
        self.share.widen(stretched.saturating_mul(2).saturating_mul(tables));
    }

    fn slot_free(&self) -> bool {
        !self.in_flight && self.ready.is_empty()
    }

    /// When what gathers is old enough; none while nothing could be done about it.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.since.filter(|_| self.slot_free()).map(|since| since + self.limits().linger)
    }

    /// The rows of one chunk.
    pub(super) fn append(&mut self, pieces: Vec<(TableIndex, Piece)>, now: Instant) {
        for (index, piece) in pieces {
            // The lanes only know indexes that were registered; dropping poisons the span, and the pipeline
            // halts instead of losing the rows.
            if usize::from(index) < self.tables.len() {
                self.open.entry(index).or_default().push(piece);
                self.since.get_or_insert(now);
            }
        }
        self.cut(now, false);
    }

    /// Cuts if there is a reason to.
    pub(super) fn cut(&mut self, now: Instant, draining: bool) -> bool {
        // The fullest table decides.
        let rows = self.open.values().map(|pieces| pieces.iter().map(|piece| piece.len() as u64).sum());
        let bytes = self.open.values().map(|pieces| pieces.iter().map(Piece::bytes).sum());
        let fill = Fill {
            rows: rows.max().unwrap_or(0),
            bytes: bytes.max().unwrap_or(0),
            age: self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since)),
            slot_free: self.slot_free(),
            pressure: self.share.is_waiting() && self.slot_free(),
            draining,
        };
        let reason = decide(&fill, &self.limits());
        if let Some(reason) = reason {
            self.seal(reason);
        }
        reason.is_some()
    }

    fn seal(&mut self, reason: Cut) {
        let since = self.since.take().unwrap_or_else(Instant::now);
        let open = std::mem::take(&mut self.open).into_iter();
        let batches = open.filter_map(|(index, pieces)| {
            let destination = Arc::clone(&self.tables.get(usize::from(index))?.0);
            Some(Batch { destination, pieces, reason, since })
        });
        self.ready.push_back(batches.collect());
    }

    /// The epoch to load now, if there is one and none is on its way.
    pub(super) fn next(&mut self) -> Option<Vec<Batch>> {
        if self.in_flight {
            return None;
        }
        let batches = self.ready.pop_front()?;
        self.in_flight = true;
        Some(batches)
    }

    /// The epoch on its way has ended.
    pub(super) fn finished(&mut self) {
        self.in_flight = false;
    }

    /// Drops unsent rows of stays; returns how many records they were.
    pub(super) fn forget(&mut self, stays: &[Stay]) -> u64 {
        self.drop_pieces(|piece| stays.contains(piece.ticket().stay()))
    }

    /// Drops all unsent rows of the pipeline, which ends.
    pub(super) fn forget_all(mut self, pipeline: PipelineId) {
        self.tables.iter_mut().for_each(|(_, strain)| strain.forget(pipeline));
        self.drop_pieces(|_| true);
    }

    fn drop_pieces(&mut self, is_gone: impl Fn(&Piece) -> bool) -> u64 {
        let batches = self.ready.iter_mut().flatten().map(|batch| &mut batch.pieces);
        let dropped =
            self.open.values_mut().chain(batches).map(|pieces| forget_where(pieces, &is_gone)).sum();
        self.open.retain(|_, pieces| !pieces.is_empty());
        for batches in &mut self.ready {
            batches.retain(|batch| !batch.pieces.is_empty());
        }
        self.ready.retain(|batches| !batches.is_empty());
        if self.open.is_empty() {
            self.since = None;
        }
        dropped
    }
}
