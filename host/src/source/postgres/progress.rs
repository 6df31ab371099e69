//! How far the stream was read, and how far of it is safe: what the feed and control tell each other.
//!
//! Rows get places, counted over all tables of the slot; the ledger knows places. A mark says which LSN may be
//! confirmed once everything up to a place is durable. Only ends of transactions and idle keepalives make
//! marks, so nothing within a transaction is ever confirmed (reference/postgres-cdc.md §0.6).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::lsn::Lsn;
use super::table::TableName;
use super::warehouse_table::{Added, Remembered};
use crate::fault::Fault;
use crate::ledger::Ledger;

/// Which LSN is safe behind which place.
#[derive(Debug, Default)]
pub(super) struct Marks(VecDeque<(i64, Lsn)>);

impl Marks {
    /// Everything up to `place` is all that there is up to `lsn`.
    pub(super) fn push(&mut self, place: i64, lsn: Lsn) {
        match self.0.back_mut() {
            // Nothing was read in between: the later one says more.
            Some(last) if last.0 == place => last.1 = last.1.max(lsn),
            _ => self.0.push_back((place, lsn)),
        }
    }

    /// The newest LSN that is safe when everything up to `place` is; forgets the marks up to there.
    pub(super) fn reach(&mut self, place: i64) -> Option<Lsn> {
        let mut safe = None;
        while let Some((_, lsn)) = self.0.front().filter(|(at, _)| *at <= place) {
            safe = Some(*lsn);
            self.0.pop_front();
        }
        safe
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Moves the marks of `other` behind these.
    pub(super) fn append(&mut self, other: &mut Marks) {
        other.0.drain(..).for_each(|(place, lsn)| self.push(place, lsn));
    }
}

/// What the feed cannot go past before control has done something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Barrier {
    /// Tables were emptied in the source.
    Truncate(Vec<TableName>),
    /// A table has another shape from here on.
    Reshape {
        /// The source table.
        table: TableName,
        /// Columns that the destination lacks.
        add: Vec<Added>,
        /// All its columns, to be remembered.
        columns: Vec<Remembered>,
        /// The transaction that told of it.
        at: Lsn,
    },
    /// The stream cannot be read past this place until somebody has done something. What came before is loaded
    /// first, so that it need not be read again in whatever shape the tables have then.
    Halt {
        /// Why.
        what: String,
        /// What to do.
        hint: String,
    },
}

/// Where a barrier stands.
#[derive(Debug, Default)]
enum Gate {
    #[default]
    Open,
    /// The feed waits: everything before the barrier was handed over.
    Shut(Barrier),
    /// Control has done what was asked.
    Passed,
}

#[derive(Debug, Default)]
struct State {
    marks: Marks,
    /// Everything up to here is in the ledger.
    handed_upto: i64,
    /// How far the server has told of its log, and when its last transaction was committed.
    received: Lsn,
    commit_time_us: i64,
    gate: Gate,
    /// There is a connection, as far as anybody here knows.
    connected: bool,
    /// The newest connection: marks of an earlier one say nothing of what comes again.
    session: u64,
    /// Why the connection broke off.
    broken: Option<Fault>,
}

/// Shared by the stream's feed, its pump and control. Locked once a chunk.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress {
    state: Arc<Mutex<State>>,
    ended: Arc<AtomicBool>,
}

impl Progress {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Plain values: a panic elsewhere leaves them usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Told by the feed: everything up to `handed_upto` was opened in the ledger, and these are the marks
    /// since the last call, of connection `session`.
    ///
    /// Marks of an earlier connection are dropped: what it told of comes again, and until it has, a key may be
    /// back at what it was before. No position may be written that does not cover that.
    pub(super) fn publish(&self, session: u64, handed_upto: i64, marks: &mut Marks, commit_time_us: i64) {
        let mut state = self.lock();
        state.handed_upto = handed_upto;
        state.commit_time_us = commit_time_us;
        if session == state.session {
            state.marks.append(marks);
        } else {
            marks.clear();
        }
    }

    /// The newest LSN all of whose rows are durable, if it moved since the last call.
    pub(super) fn reach(&self, ledger: &Ledger) -> Option<Lsn> {
        let mut state = self.lock();
        let safe = ledger.safe_before(state.handed_upto);
        state.marks.reach(safe)
    }

    /// Told by the pump: the server's log goes this far.
    pub(super) fn received(&self, lsn: Lsn) {
        let mut state = self.lock();
        state.received = state.received.max(lsn);
    }

    /// How far the server's log goes, and when its last transaction was committed, in microseconds since 1970.
    pub(super) fn newest(&self) -> (Lsn, i64) {
        let state = self.lock();
        (state.received, state.commit_time_us)
    }

    /// Told by control: the stream begins anew. Returns the number of the connection.
    pub(super) fn connected(&self) -> u64 {
        let mut state = self.lock();
        state.connected = true;
        state.broken = None;
        state.marks.clear();
        state.session += 1;
        state.session
    }

    /// Whether there is a connection, as far as anybody here knows.
    pub(super) fn is_connected(&self) -> bool {
        self.lock().connected
    }

    /// Told by the pump, or by whoever notices it from outside: the connection is gone.
    pub(super) fn broke(&self, fault: Fault) {
        let mut state = self.lock();
        state.connected = false;
        state.broken.get_or_insert(fault);
    }

    /// Why the connection is gone, once.
    pub(super) fn take_broken(&self) -> Option<Fault> {
        self.lock().broken.take()
    }

    /// Told by the feed: it goes on when control has dealt with `barrier`.
    pub(super) fn shut(&self, barrier: Barrier) {
        self.lock().gate = Gate::Shut(barrier);
    }

    /// Whether the barrier may be passed; true once.
    pub(super) fn may_pass(&self) -> bool {
        let mut state = self.lock();
        let passed = matches!(state.gate, Gate::Passed);
        if passed {
            state.gate = Gate::Open;
        }
        passed
    }

    /// The barrier that the feed waits at.
    pub(super) fn barrier(&self) -> Option<Barrier> {
        match &self.lock().gate {
            Gate::Shut(barrier) => Some(barrier.clone()),
            Gate::Open | Gate::Passed => None,
        }
    }

    /// Lets the feed pass.
    pub(super) fn pass(&self) {
        self.lock().gate = Gate::Passed;
    }

    /// Asks the feed to end.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    /// Whether it was asked.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::{Epoch, Partition, Span, Stay};

    #[test]
    fn a_mark_is_reached_when_everything_before_it_is() {
        let mut marks = Marks::default();
        marks.push(0, Lsn(5));
        marks.push(3, Lsn(10));
        marks.push(3, Lsn(12));
        marks.push(7, Lsn(20));
        assert_eq!(marks.reach(-1), None);
        assert_eq!(marks.reach(6), Some(Lsn(12)));
        assert_eq!(marks.reach(6), None);
        assert_eq!(marks.reach(100), Some(Lsn(20)));
    }

    #[test]
    fn a_transaction_over_two_tables_is_safe_when_both_are() {
        let stay = |number| Stay { partition: Partition { source: "slot".into(), number }, epoch: Epoch(1) };
        let (ledger, progress, mut marks) = (Ledger::new(), Progress::default(), Marks::default());
        // Rows 1 and 3 are of one table, row 2 of another; the transaction ends behind row 3.
        ledger.begin(stay(0), 0);
        ledger.begin(stay(1), 1);
        marks.push(3, Lsn(30));
        let second = ledger.open(&Span { stay: stay(1), after: 1, upto: 2 }).expect("a stay");
        progress.publish(0, 0, &mut marks, 0);
        let first = ledger.open(&Span { stay: stay(0), after: 0, upto: 3 }).expect("a stay");
        let _ = second.settle();
        assert_eq!(progress.reach(&ledger), None, "row 3 may not be in the ledger yet");
        progress.publish(0, 3, &mut marks, 0);
        assert_eq!(progress.reach(&ledger), None, "the first table is not durable");
        let _ = first.settle();
        assert_eq!(progress.reach(&ledger), Some(Lsn(30)));
    }

    #[test]
    fn marks_of_an_earlier_connection_reach_nothing() {
        let (ledger, progress, mut marks) = (Ledger::new(), Progress::default(), Marks::default());
        marks.push(1, Lsn(10));
        progress.publish(0, 1, &mut marks, 0);
        let session = progress.connected();
        assert_eq!(progress.reach(&ledger), None);
        // Read by the feed before it saw the new connection.
        marks.push(2, Lsn(20));
        progress.publish(0, 2, &mut marks, 0);
        assert_eq!(progress.reach(&ledger), None);
        marks.push(3, Lsn(15));
        progress.publish(session, 3, &mut marks, 0);
        assert_eq!(progress.reach(&ledger), Some(Lsn(15)));
    }

    #[test]
    fn the_feed_waits_at_a_barrier_until_control_lets_it_pass() {
        let progress = Progress::default();
        let barrier = Barrier::Truncate(vec![TableName::new("public", "orders")]);
        assert_eq!((progress.barrier(), progress.may_pass()), (None, false));
        progress.shut(barrier.clone());
        assert_eq!((progress.barrier(), progress.may_pass()), (Some(barrier), false));
        progress.pass();
        assert_eq!((progress.barrier(), progress.may_pass(), progress.may_pass()), (None, true, false));
    }
}
