//! Which spans are open, and how far each partition is safe: no I/O, no clock, no async.
//!
//! A span is opened before its records go anywhere and is closed when every ticket that was made for
//! it is settled. The watermark of a stay is the end of the last span before the first open one.
//! Nothing is settled by default: a ticket that is dropped poisons its span, and the watermark never
//! passes a poisoned span (delivery.md §1 rule 6).

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::planted::{Bug, planted};
use crate::position::{Span, Stay, Watermark};

/// A pipeline's ledger: a handle that lanes, stage and control share. Locked once a chunk.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    stays: BTreeMap<Stay, Track>,
    /// First span of which a ticket was dropped unsettled.
    poisoned: Option<Span>,
}

/// The open spans of one stay, oldest first.
#[derive(Debug)]
struct Track {
    spans: VecDeque<OpenSpan>,
    /// Index of `spans[0]` among all spans ever opened in this stay.
    first: u64,
    /// End of the last span that was opened.
    opened_upto: i64,
    /// Everything up to here is safe.
    safe_upto: i64,
    /// What the last [`Ledger::progress`] told.
    told_upto: i64,
    /// What became of the stay's rows, for whoever waits for it.
    tally: Tally,
    /// Told whenever nobody holds a ticket of the stay any more.
    watch: Option<Arc<Notify>>,
}

/// What became of the records of a stay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Records that are durable in StarRocks: each counts once, with its first row, however many rows it
    /// gave, and also if a later row of the same key took its place within a batch.
    pub loaded: u64,
    /// Records that are kept as dead letters.
    pub dead_lettered: u64,
    /// Records that gave no row: plugins left them out.
    pub dropped: u64,
    /// Records that were refused and are to be told of, in the order in which they were refused.
    pub refused: Vec<Refused>,
    /// A piece was given up: its rows were not loaded, as far as is known.
    pub lost: bool,
}

/// Spans, by stay and place, and how many tickets of each are meant.
pub type Tickets = BTreeMap<(Stay, u64), u32>;

/// How far a stay would be safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// Position of the last record.
    pub upto: i64,
    /// Place of the first span that is not reached.
    pub places: u64,
}

/// A refused record of a stay that answers for its records itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Position of the record.
    pub offset: i64,
    /// Short reason for machines.
    pub code: String,
    /// The reason for people.
    pub message: String,
}

/// A stay that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// How far it is safe.
    pub watermark: Watermark,
    /// What became of its rows.
    pub tally: Tally,
}

#[derive(Debug)]
struct OpenSpan {
    after: i64,
    upto: i64,
    /// Tickets not yet settled.
    holds: u32,
    /// A ticket was given up or dropped: the watermark never passes this span.
    lost: bool,
    /// Rows of it are durable.
    durable: bool,
}

/// The right to say that a piece of a span is safe, and the duty to say it.
#[derive(Debug)]
#[must_use = "a ticket that is dropped poisons its span"]
pub struct Ticket {
    state: Arc<Mutex<State>>,
    stay: Stay,
    index: u64,
    reading: Reading,
    settled: bool,
}

/// Where the records of a span stand among all that the pipeline has read.
#[derive(Debug, Clone, Copy, Default)]
struct Reading {
    /// Read before them.
    before: u64,
    records: u64,
    after: i64,
    upto: i64,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // A thread that panicked while it held the lock left its own ticket unsettled: the watermark
    // cannot move past it, so the state is safe to go on with.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Track {
    fn is_quiet(&self) -> bool {
        self.spans.iter().all(|span| span.holds == 0)
    }

    fn tell_if_quiet(&self) {
        if let Some(watch) = self.watch.as_ref().filter(|_| self.is_quiet()) {
            watch.notify_one();
        }
    }
}

impl Ledger {
    /// An empty ledger.
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins a stay whose first span starts behind `after`.
    pub fn begin(&self, stay: Stay, after: i64) {
        self.begin_stay(stay, after, None);
    }

    /// Begins a stay like [`Ledger::begin`]; `watch` is told whenever nobody holds a ticket of it.
    pub fn begin_watched(&self, stay: Stay, after: i64, watch: Arc<Notify>) {
        self.begin_stay(stay, after, Some(watch));
    }

    fn begin_stay(&self, stay: Stay, after: i64, watch: Option<Arc<Notify>>) {
        let track = Track {
            spans: VecDeque::new(),
            first: 0,
            opened_upto: after,
            safe_upto: after,
            told_upto: after,
            tally: Tally::default(),
            watch,
        };
        lock(&self.state).stays.insert(stay, track);
    }

    /// Opens a span; none if its stay has ended, in which case its records must not be used.
    ///
    /// # Panics
    /// If the span does not begin where the last one ended: that would hide a lost record.
    pub fn open(&self, span: &Span) -> Option<Ticket> {
        let mut state = lock(&self.state);
        let track = state.stays.get_mut(&span.stay)?;
        assert!(
            span.after == track.opened_upto && span.upto > span.after,
            "span {span} does not follow {}",
            track.opened_upto
        );
        track.opened_upto = span.upto;
        let index = track.first + track.spans.len() as u64;
        track.spans.push_back(OpenSpan {
            after: span.after,
            upto: span.upto,
            holds: 1,
            lost: false,
            durable: false,
        });
        let reading = Reading { after: span.after, upto: span.upto, ..Reading::default() };
        Some(Ticket {
            state: Arc::clone(&self.state),
            stay: span.stay.clone(),
            index,
            reading,
            settled: false,
        })
    }

    /// Moves the watermark over a span in which the source has no record for us. Only whoever opens the stay's spans may
    /// say so. False, and nothing is moved, if the stay has ended, while a span of it is open, and if this one does not
    /// begin where the last one ended.
    pub fn advance(&self, span: &Span) -> bool {
        let mut state = lock(&self.state);
        let Some(track) = state.stays.get_mut(&span.stay) else { return false };
        let is_next = span.after == track.opened_upto && span.upto > span.after;
        let advances = is_next && track.spans.is_empty();
        if advances {
            (track.opened_upto, track.safe_upto) = (span.upto, span.upto);
        }
        advances
    }

    /// Where the next span of a stay has to begin; none if the stay has ended.
    pub fn opened_upto(&self, stay: &Stay) -> Option<i64> {
        lock(&self.state).stays.get(stay).map(|track| track.opened_upto)
    }

    /// The watermarks that moved since the last call.
    pub fn progress(&self) -> Vec<Watermark> {
        let mut state = lock(&self.state);
        let moved = state.stays.iter_mut().filter(|(_, track)| track.safe_upto > track.told_upto);
        moved
            .map(|(stay, track)| {
                track.told_upto = track.safe_upto;
                Watermark { stay: stay.clone(), upto: track.safe_upto }
            })
            .collect()
    }

    /// The watermark of a stay; none if it has ended.
    pub fn watermark(&self, stay: &Stay) -> Option<Watermark> {
        let state = lock(&self.state);
        let track = state.stays.get(stay)?;
        Some(Watermark { stay: stay.clone(), upto: track.safe_upto })
    }

    /// How far each stay would be safe if `tickets` and `further` ones, so many of each span, were settled; none while
    /// somebody else holds a span of `tickets`, or one before it. Of the further ones those count that are reached.
    pub fn safe_with(&self, tickets: &Tickets, further: &Tickets) -> Option<BTreeMap<Stay, Reach>> {
        let state = lock(&self.state);
        let mut safe = BTreeMap::new();
        for (stay, track) in &state.stays {
            let mut reach = Reach { upto: track.safe_upto, places: track.first };
            for span in &track.spans {
                let place = (stay.clone(), reach.places);
                let settled = [tickets, further].map(|one| one.get(&place).copied().unwrap_or(0));
                if span.lost || span.holds > settled.iter().sum::<u32>() {
                    break;
                }
                reach = Reach { upto: span.upto, places: reach.places + 1 };
            }
            let last = tickets.range((stay.clone(), 0)..=(stay.clone(), u64::MAX)).next_back();
            if last.is_some_and(|((_, place), _)| *place >= reach.places) {
                return None;
            }
            safe.insert(stay.clone(), reach);
        }
        tickets.keys().all(|(stay, _)| safe.contains_key(stay)).then_some(safe)
    }

    /// How far a source whose order spans all its stays is safe: up to `place`, of which all records were
    /// opened before, or to where the first unsettled span begins. Places are counted over all stays.
    pub fn safe_before(&self, place: i64) -> i64 {
        let state = lock(&self.state);
        let open = state.stays.values().filter(|track| !track.spans.is_empty());
        open.map(|track| track.safe_upto).min().map_or(place, |first| first.min(place))
    }

    /// Whether nobody holds a ticket of the stay: what is safe by now is all that will be. A stay that
    /// has ended is quiet.
    pub fn is_quiet(&self, stay: &Stay) -> bool {
        let state = lock(&self.state);
        state.stays.get(stay).is_none_or(Track::is_quiet)
    }

    /// Whether rows are durable that whoever reads on from the stay's watermark would load once more.
    pub fn would_repeat(&self, stay: &Stay) -> bool {
        let state = lock(&self.state);
        state.stays.get(stay).is_some_and(|track| track.spans.iter().any(|span| span.durable))
    }

    /// The first span that was given up of each stay that has one: the watermark never passes it.
    pub fn lost(&self) -> Vec<Span> {
        let state = lock(&self.state);
        let lost = state.stays.iter().filter(|(_, track)| track.tally.lost).filter_map(|(stay, track)| {
            let span = track.spans.iter().find(|span| span.lost)?;
            Some(Span { stay: stay.clone(), after: span.after, upto: span.upto })
        });
        lost.collect()
    }

    /// Number of spans in all stays of which somebody holds a ticket. Spans that were given up, and those
    /// closed behind them, wait for nobody: they are read again.
    pub fn open_spans(&self) -> usize {
        let open = |track: &Track| track.spans.iter().filter(|span| span.holds > 0).count();
        lock(&self.state).stays.values().map(open).sum()
    }

    /// All stays that have not ended.
    pub fn stays(&self) -> Vec<Stay> {
        lock(&self.state).stays.keys().cloned().collect()
    }

    /// Ends a stay: its open spans are forgotten and their tickets mean nothing any more. Returns the
    /// last watermark, which may still be committed while the partition is owned, and what became of the
    /// stay's rows.
    pub fn end(&self, stay: &Stay) -> Option<Ended> {
        let track = lock(&self.state).stays.remove(stay)?;
        let watermark = Watermark { stay: stay.clone(), upto: track.safe_upto };
        Some(Ended { watermark, tally: track.tally })
    }

    /// What has become of a stay's rows so far; none if it has ended.
    #[cfg(test)]
    pub(crate) fn tally(&self, stay: &Stay) -> Option<Tally> {
        lock(&self.state).stays.get(stay).map(|track| track.tally.clone())
    }

    /// The first span of which a ticket was dropped: the pipeline has to halt.
    pub fn poisoned(&self) -> Option<Span> {
        lock(&self.state).poisoned.clone()
    }
}

impl Ticket {
    /// Another ticket for the same span: both have to be settled.
    pub fn hold(&self) -> Ticket {
        let mut state = lock(&self.state);
        if let Some(span) = state.span(&self.stay, self.index) {
            span.holds += 1;
        }
        let (state, stay) = (Arc::clone(&self.state), self.stay.clone());
        Ticket { state, stay, index: self.index, reading: self.reading, settled: false }
    }

    /// Notes how many `records` the span has, the first of them at position `first`, and how many the pipeline had read
    /// `before` it.
    pub fn count(&mut self, before: u64, records: u64, first: i64) {
        self.reading = Reading { before, records, after: first.saturating_sub(1), ..self.reading };
    }

    /// How many records the pipeline had read before the one at `position`. Where there are gaps between the span's
    /// records that is about right: they are taken to be evenly spread.
    pub fn read_before(&self, position: i64) -> u64 {
        let Reading { before, records, after, upto } = self.reading;
        let width = u128::from(upto.abs_diff(after)).max(1);
        let passed = u128::from(position.saturating_sub(after).saturating_sub(1).max(0).unsigned_abs());
        let own = passed.saturating_mul(u128::from(records)) / width;
        before + u64::try_from(own).unwrap_or(u64::MAX).min(records.saturating_sub(1))
    }

    /// Says that this piece of the span is safe. Returns the stay's watermark if that moved it.
    pub fn settle(self) -> Option<Watermark> {
        self.settle_as(false, |_tally| {})
    }

    /// Settles a piece of which `records` records are durable.
    pub fn settle_loaded(self, records: u64) -> Option<Watermark> {
        self.settle_as(true, |tally| tally.loaded += records)
    }

    /// Settles what is left of a chunk of which `records` records gave no row.
    pub fn settle_dropped(self, records: u64) -> Option<Watermark> {
        self.settle_as(false, |tally| tally.dropped += records)
    }

    /// Settles a piece of which `records` records are kept as dead letters.
    pub fn settle_kept(self, records: u64) -> Option<Watermark> {
        self.settle_as(false, |tally| tally.dead_lettered += records)
    }

    /// Settles a piece whose records were refused and are told of by the stay itself.
    pub fn settle_refused(self, refused: impl Iterator<Item = Refused>) -> Option<Watermark> {
        self.settle_as(false, |tally| tally.refused.extend(refused))
    }

    /// `durable` = it was rows that StarRocks has.
    fn settle_as(mut self, durable: bool, count: impl FnOnce(&mut Tally)) -> Option<Watermark> {
        self.settled = true;
        let mut state = lock(&self.state);
        let span = state.span(&self.stay, self.index)?;
        span.holds -= 1;
        span.durable |= durable;
        let leap = (span.holds == 0 && planted(Bug::NonContiguousRelease)).then_some(span.upto);
        let track = state.stays.get_mut(&self.stay)?;
        count(&mut track.tally);
        let before = track.safe_upto;
        while track.spans.front().is_some_and(|span| span.holds == 0 && !span.lost) {
            let closed = track.spans.pop_front()?;
            track.first += 1;
            track.safe_upto = closed.upto;
        }
        track.safe_upto = leap.map_or(track.safe_upto, |upto| upto.max(before).max(track.safe_upto));
        track.tell_if_quiet();
        (track.safe_upto > before).then(|| Watermark { stay: self.stay.clone(), upto: track.safe_upto })
    }

    /// Gives the ticket up without settling and without poisoning: only for spans whose stay is about
    /// to end, so that their records will be read again. The watermark stays before the span.
    pub fn forget(mut self) {
        self.settled = true;
        let mut state = lock(&self.state);
        let _ = state.lose(&self.stay, self.index);
    }

    /// The stay that the span belongs to.
    pub fn stay(&self) -> &Stay {
        &self.stay
    }

    /// Place of the span among all that were opened in its stay, from 0.
    pub fn place(&self) -> u64 {
        self.index
    }

    /// Whether the stay has ended: the ticket means nothing any more, and whoever has the partition now
    /// reads its records again.
    pub fn has_ended(&self) -> bool {
        !lock(&self.state).stays.contains_key(&self.stay)
    }

    /// Whether the records are read again whatever becomes of this ticket: its stay has ended, or the watermark stays
    /// before its span, since that one or one before it was given up.
    pub fn comes_again(&self) -> bool {
        let state = lock(&self.state);
        let Some(track) = state.stays.get(&self.stay) else { return true };
        let before = usize::try_from(self.index.saturating_sub(track.first)).unwrap_or(usize::MAX);
        track.tally.lost && track.spans.iter().take(before.saturating_add(1)).any(|span| span.lost)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        if planted(Bug::DroppedTicketSettles) {
            let (state, stay, index) = (Arc::clone(&self.state), self.stay.clone(), self.index);
            let _ = Ticket { state, stay, index, reading: self.reading, settled: false }.settle();
            return;
        }
        let mut state = lock(&self.state);
        if let Some(span) = state.lose(&self.stay, self.index) {
            state.poisoned.get_or_insert(span);
        }
    }
}

impl State {
    /// The open span, if its stay still stands.
    fn span(&mut self, stay: &Stay, index: u64) -> Option<&mut OpenSpan> {
        let track = self.stays.get_mut(stay)?;
        let place = index.checked_sub(track.first)?;
        track.spans.get_mut(usize::try_from(place).ok()?)
    }

    /// A ticket that was not settled: the watermark stays before its span.
    fn lose(&mut self, stay: &Stay, index: u64) -> Option<Span> {
        let span = self.span(stay, index)?;
        span.holds -= 1;
        span.lost = true;
        let lost = Span { stay: stay.clone(), after: span.after, upto: span.upto };
        let track = self.stays.get_mut(stay)?;
        track.tally.lost = true;
        track.tell_if_quiet();
        Some(lost)
    }
}

#[cfg(test)]
mod tests;
