//! One destination at the stage: the batch that gathers, those that wait, and how many are on their way.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::strain::Strain;
use super::{Outlet, PipelineId, forget_where};
use crate::batch::stretch::Sign;
use crate::batch::{Batch, Cut, Fill, Piece, decide};
use crate::config::model::BatchLimits;
use crate::position::{Epoch, Partition, Stay};
use crate::sink::Destination;

/// Rows count as waiting since they arrived, but at most for this part of the linger: what trickled in, or waited for a
/// busy lane, must not cut batches short.
const ARRIVING_PART_OF_LINGER: u32 = 8;

/// A destination's batches.
pub(super) struct Table {
    destination: Arc<Destination>,
    /// As the file has them.
    limits: BatchLimits,
    /// What they grow to.
    pub(super) strain: Strain,
    in_flight_max: usize,
    outlet: Arc<dyn Outlet>,
    open: Vec<Piece>,
    rows: u64,
    bytes: u64,
    since: Option<Instant>,
    ready: VecDeque<Batch>,
    in_flight: usize,
}

impl Table {
    pub(super) fn new(
        destination: Arc<Destination>,
        limits: BatchLimits,
        in_flight_max: usize,
        outlet: Arc<dyn Outlet>,
    ) -> Table {
        Table {
            destination,
            limits,
            strain: Strain::new(limits),
            in_flight_max,
            outlet,
            open: Vec::new(),
            rows: 0,
            bytes: 0,
            since: None,
            ready: VecDeque::new(),
            in_flight: 0,
        }
    }

    /// Whether rows for `destination` under these limits may gather here.
    pub(super) fn is_for(&self, destination: &Destination, limits: &BatchLimits, in_flight: usize) -> bool {
        self.limits == *limits
            && self.in_flight_max == in_flight
            && self.destination.takes_the_same_loads(destination)
    }

    /// Rows for `destination` gather here from now on. If they know their key and those that were first do not, all
    /// are told apart by it: a row that updates some columns must not be loaded as a whole one. A key is for good:
    /// rows of a table that was made anew with another one gather elsewhere.
    pub(super) fn welcome(&mut self, destination: &Arc<Destination>) {
        if self.destination.key.is_empty() {
            self.destination = Arc::clone(destination);
        }
    }

    pub(super) fn outlet(&self) -> &dyn Outlet {
        self.outlet.as_ref()
    }

    /// Bytes that gather.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    fn slot_free(&self) -> bool {
        self.in_flight + self.ready.len() < self.in_flight_max
    }

    /// Whether cutting now would start a load with rows of `pipeline`.
    pub(super) fn could_relieve(&self, pipeline: PipelineId) -> bool {
        self.slot_free() && self.open.iter().any(|piece| piece.owner().pipeline == pipeline)
    }

    /// When the open batch is old enough; none while no load could start.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let since = self.since.filter(|_| self.in_flight < self.in_flight_max);
        since.map(|since| since + self.strain.limits().linger)
    }

    /// A load has ended.
    pub(super) fn finished(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// Takes a sign in; whether the limits are others now.
    pub(super) fn see(&mut self, sign: Sign, now: Instant) -> bool {
        self.strain.see(&self.destination, sign, now)
    }

    /// Steps back from a stretch if that is due; whether the limits are others now.
    pub(super) fn rest(&mut self, now: Instant) -> bool {
        self.strain.rest(&self.destination, now)
    }

    /// Bytes by which the batches that gather and are on their way may be larger than configured.
    pub(super) fn bytes_stretched(&self) -> u64 {
        let stretched = self.strain.limits().max_bytes.saturating_sub(self.limits.max_bytes);
        stretched.saturating_mul(self.in_flight_max as u64 + 1)
    }

    /// The batch to load now, if there is one and a free slot. Under pressure batches that were cut before it go
    /// as one, unless they were cut before and after the table's key was known: rows of the one are loaded as they are,
    /// those of the other told apart by it.
    pub(super) fn next_load(&mut self) -> Option<Batch> {
        if self.in_flight >= self.in_flight_max {
            return None;
        }
        let mut batch = self.ready.pop_front()?;
        if self.strain.factor() > 1 {
            let limits = self.strain.limits();
            let (mut rows, mut bytes) = (batch.rows(), batch.bytes());
            while let Some(next) = self.ready.pop_front() {
                (rows, bytes) = (rows + next.rows(), bytes + next.bytes());
                let is_too_large = rows > limits.max_rows || bytes > limits.max_bytes;
                if is_too_large || next.destination.key != batch.destination.key {
                    self.ready.push_front(next);
                    break;
                }
                batch.pieces.extend(next.pieces);
            }
        }
        self.in_flight += 1;
        Some(batch)
    }

    /// Adds a piece to the open batch, and cuts as often as the limits ask for.
    pub(super) fn append(&mut self, piece: Piece, now: Instant, draining: &BTreeSet<PipelineId>) {
        let mut left = Some(piece);
        let limits = self.strain.limits();
        while let Some(mut piece) = left {
            let room_bytes = limits.max_bytes.saturating_sub(self.bytes);
            if self.rows > 0 && piece.first_row_bytes() > room_bytes {
                self.seal(Cut::Bytes);
                left = Some(piece);
                continue;
            }
            left = piece.split(limits.max_rows.saturating_sub(self.rows), room_bytes);
            self.rows += piece.len() as u64;
            self.bytes += piece.bytes();
            let since = self.arrival(&piece, now);
            self.since = Some(self.since.map_or(since, |earlier| earlier.min(since)));
            self.open.push(piece);
            if left.is_some() {
                self.seal(if self.rows >= limits.max_rows { Cut::Rows } else { Cut::Bytes });
            } else {
                self.cut(now, false, draining);
            }
        }
    }

    /// Since when the piece's rows wait for a load.
    fn arrival(&self, piece: &Piece, now: Instant) -> Instant {
        let earliest = now.checked_sub(self.limits.linger / ARRIVING_PART_OF_LINGER).unwrap_or(now);
        piece.arrived().map_or(now, |arrived| arrived.clamp(earliest, now))
    }

    /// Seals the open batch if there is a reason to.
    pub(super) fn cut(&mut self, now: Instant, pressure: bool, draining: &BTreeSet<PipelineId>) -> bool {
        let drains = |piece: &Piece| draining.contains(&piece.owner().pipeline);
        let fill = Fill {
            rows: self.rows,
            bytes: self.bytes,
            age: self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since)),
            slot_free: self.slot_free(),
            pressure,
            draining: !draining.is_empty() && self.open.iter().any(drains),
        };
        let reason = decide(&fill, &self.strain.limits());
        if let Some(reason) = reason {
            self.seal(reason);
        }
        reason.is_some()
    }

    fn seal(&mut self, reason: Cut) {
        let since = self.since.take().unwrap_or_else(Instant::now);
        let pieces = std::mem::take(&mut self.open);
        (self.rows, self.bytes) = (0, 0);
        self.ready.push_back(Batch { destination: Arc::clone(&self.destination), pieces, reason, since });
    }

    /// Drops unsent pieces of `stays` of `pipeline`, except those that are to be finished, whose batch is
    /// cut; returns the number of records dropped.
    pub(super) fn forget(
        &mut self,
        pipeline: PipelineId,
        stays: &[Stay],
        finishes: impl Fn(&Piece) -> bool,
    ) -> u64 {
        let given_up =
            |piece: &Piece| piece.owner().pipeline == pipeline && stays.contains(piece.ticket().stay());
        let dropped = self.drop_pieces(|piece| given_up(piece) && !finishes(piece));
        if self.open.iter().any(given_up) {
            self.seal(Cut::Flush);
        }
        dropped
    }

    /// Drops all unsent pieces of a pipeline that ends.
    pub(super) fn forget_all_of(&mut self, pipeline: PipelineId) {
        self.drop_pieces(|piece| piece.owner().pipeline == pipeline);
    }

    fn drop_pieces(&mut self, is_gone: impl Fn(&Piece) -> bool) -> u64 {
        let batches = self.ready.iter_mut().map(|batch| &mut batch.pieces);
        let all = std::iter::once(&mut self.open).chain(batches);
        let dropped = all.map(|pieces| forget_where(pieces, &is_gone)).sum();
        self.ready.retain(|batch| !batch.pieces.is_empty());
        self.rows = self.open.iter().map(|piece| piece.len() as u64).sum();
        self.bytes = self.open.iter().map(Piece::bytes).sum();
        if self.rows == 0 {
            self.since = None;
        }
        dropped
    }
}

/// The last span of each partition of which rows were sent, by its place in its stay.
#[derive(Default)]
pub(super) struct Sent(BTreeMap<Partition, (Epoch, u64)>);

impl Sent {
    pub(super) fn note(&mut self, piece: &Piece) {
        let Stay { partition, epoch } = piece.ticket().stay();
        let this = (*epoch, piece.ticket().place());
        match self.0.get_mut(partition) {
            Some(last) => *last = this.max(*last),
            None => {
                self.0.insert(partition.clone(), this);
            }
        }
    }

    /// Whether rows of the piece's span, or of a later one of its stay, were sent.
    pub(super) fn is_begun(&self, piece: &Piece) -> bool {
        let Stay { partition, epoch } = piece.ticket().stay();
        let last = self.0.get(partition).filter(|(of, _)| of == epoch);
        last.is_some_and(|(_, place)| piece.ticket().place() <= *place)
    }
}
