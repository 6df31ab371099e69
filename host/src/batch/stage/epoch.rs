//! What gathers for an exactly-once pipeline: rows of all tables up to one point, cut together.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{EpochOutlet, TableIndex, forget_where};
use crate::batch::{Batch, Cut, Fill, Piece, decide};
use crate::budget::Share;
use crate::config::model::BatchLimits;
use crate::position::Stay;
use crate::sink::Destination;

/// The epoch that gathers, those that wait, and whether one is on its way.
///
/// A chunk's rows are never parted: the offsets that are decided with an epoch are ends of chunks. So an epoch may
/// be larger than the limits by one chunk.
pub(super) struct Gathering {
    destinations: Vec<Arc<Destination>>,
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
            destinations,
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

    fn slot_free(&self) -> bool {
        !self.in_flight && self.ready.is_empty()
    }

    /// When what gathers is old enough; none while nothing could be done about it.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.since.filter(|_| self.slot_free()).map(|since| since + self.limits.linger)
    }

    /// The rows of one chunk.
    pub(super) fn append(&mut self, pieces: Vec<(TableIndex, Piece)>, now: Instant) {
        for (index, piece) in pieces {
            // The lanes only know indexes that were registered; dropping poisons the span, and the pipeline
            // halts instead of losing the rows.
            if usize::from(index) < self.destinations.len() {
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
        let reason = decide(&fill, &self.limits);
        if let Some(reason) = reason {
            self.seal(reason);
        }
        reason.is_some()
    }

    fn seal(&mut self, reason: Cut) {
        let since = self.since.take().unwrap_or_else(Instant::now);
        let open = std::mem::take(&mut self.open).into_iter();
        let batches = open.filter_map(|(index, pieces)| {
            let destination = Arc::clone(self.destinations.get(usize::from(index))?);
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

    /// Drops all unsent rows.
    pub(super) fn forget_all(mut self) {
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
