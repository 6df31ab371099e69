//! What control tells a lane: which stays to read. A lane says when it has seen it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::position::Stay;

/// One lane's orders, shared between control (writes) and the lane (reads and acknowledges).
#[derive(Debug, Default)]
pub(super) struct Orders {
    stays: Mutex<Vec<Start>>,
    ended: AtomicBool,
    /// Grows with each change.
    version: AtomicU64,
    /// The last version that the lane has acted upon: of stays that were taken back before it, no
    /// further span will be opened.
    seen: AtomicU64,
    /// Grows when a read of the queue begins and when it ends: odd while one is under way.
    reads: AtomicU64,
    /// Grows with each turn of the lane's loop, so that a hung lane can be told from an idle one:
    /// polling any queue resets `max.poll.interval.ms`, so Kafka cannot tell (delivery.md §1 rule 8).
    turns: AtomicU64,
}

/// A stay and where reading begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) stay: Stay,
    /// Everything up to here is not ours to read.
    pub(super) after: i64,
}

impl Orders {
    fn lock(&self) -> MutexGuard<'_, Vec<Start>> {
        // Plain values: a panic in between leaves them usable.
        self.stays.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a stay; returns at once. Its queue is forwarded afterwards.
    pub(super) fn give(&self, start: Start) {
        self.lock().push(start);
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Takes stays back; [`Orders::are_seen`] tells when the lane has let go.
    pub(super) fn take_back(&self, stays: &[Stay]) {
        self.lock().retain(|start| !stays.contains(&start.stay));
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Tells the lane to end.
    pub(super) fn end(&self) {
        self.lock().clear();
        self.ended.store(true, Ordering::Release);
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Number of stays the lane has to read.
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether the lane has acted upon everything it was told.
    pub(super) fn are_seen(&self) -> bool {
        self.seen.load(Ordering::Acquire) == self.version.load(Ordering::Acquire)
    }

    /// The lane: a read of its queue begins. It ends when what it brought is known to be of one stay or of none.
    pub(super) fn begin_read(&self) {
        self.reads.fetch_add(1, Ordering::SeqCst);
    }

    /// The lane: the read has ended.
    pub(super) fn end_read(&self) {
        self.reads.fetch_add(1, Ordering::SeqCst);
    }

    /// The read that is under way, by a number of its own; none between reads.
    pub(super) fn read_under_way(&self) -> Option<u64> {
        Some(self.reads.load(Ordering::SeqCst)).filter(|reads| reads % 2 == 1)
    }

    /// How often the lane went round.
    pub(super) fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    /// The lane: goes round; returns the new orders if there are any. Reading them is the
    /// acknowledgement, so the lane must drop what it holds of other stays before it opens a span.
    pub(super) fn news(&self) -> Option<News> {
        self.turns.fetch_add(1, Ordering::Relaxed);
        let version = self.version.load(Ordering::Acquire);
        if version == self.seen.load(Ordering::Relaxed) {
            return None;
        }
        let stays = self.lock().clone();
        self.seen.store(version, Ordering::Release);
        Some(News { stays, ended: self.ended.load(Ordering::Acquire) })
    }
}

/// What a lane has to read from now on.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct News {
    pub(super) stays: Vec<Start>,
    pub(super) ended: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::{Epoch, Partition};

    #[test]
    fn a_lane_acknowledges_by_reading() {
        let orders = Orders::default();
        assert!(orders.are_seen());
        let stay = Stay { partition: Partition { source: "t".into(), number: 3 }, epoch: Epoch(1) };
        orders.give(Start { stay: stay.clone(), after: 4 });
        assert!(!orders.are_seen());
        assert_eq!(orders.news().map(|news| news.stays.len()), Some(1));
        assert!(orders.are_seen());
        assert_eq!(orders.news(), None);
        orders.take_back(&[stay]);
        assert!(!orders.are_seen());
        assert_eq!(orders.news(), Some(News { stays: Vec::new(), ended: false }));
    }

    #[test]
    fn a_read_is_told_from_the_one_after_it() {
        let orders = Orders::default();
        assert_eq!(orders.read_under_way(), None);
        orders.begin_read();
        let first = orders.read_under_way();
        assert!(first.is_some());
        orders.end_read();
        assert_eq!(orders.read_under_way(), None);
        orders.begin_read();
        assert_ne!(orders.read_under_way(), first);
    }
}
