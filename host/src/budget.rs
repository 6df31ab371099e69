//! Bytes in flight: one limit for the process, a cap and a floor for each pipeline.
//!
//! Only readers wait here. Output that is larger than its input is charged as overdraft and never
//! waited for, or a full budget could stop the very loads that would empty it (delivery.md §1 rule 7).

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The process's limit; pipelines get their shares from it.
#[derive(Debug, Clone)]
pub struct Budget {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limit: u64,
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    used: u64,
    shares: Vec<ShareState>,
}

#[derive(Debug)]
struct ShareState {
    used: u64,
    waiting: usize,
    cap: u64,
    /// Room beyond the cap, for now.
    extra: u64,
    floor: u64,
}

/// One pipeline's part of the budget.
#[derive(Debug, Clone)]
pub struct Share {
    shared: Arc<Shared>,
    index: usize,
}

/// Bytes charged; given back when dropped. Rides in the chunk, then in the batch.
#[derive(Debug)]
#[must_use = "dropping a permit gives its bytes back"]
pub struct Permit {
    share: Share,
    bytes: u64,
}

fn lock(shared: &Shared) -> MutexGuard<'_, State> {
    // The state is two counters that are changed without a panic in between.
    shared.state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Budget {
    /// A budget of `limit` bytes.
    pub fn new(limit: u64) -> Self {
        let shared = Shared { limit, state: Mutex::new(State::default()), freed: Condvar::new() };
        Self { shared: Arc::new(shared) }
    }

    /// A pipeline's share: at most `cap` bytes, and `floor` bytes even while others have used up the
    /// whole budget, so that one stuck table does not stop the other pipelines.
    pub fn share(&self, cap: u64, floor: u64) -> Share {
        let mut state = lock(&self.shared);
        state.shares.push(ShareState { used: 0, waiting: 0, cap: cap.max(floor), extra: 0, floor });
        Share { shared: Arc::clone(&self.shared), index: state.shares.len() - 1 }
    }

    /// Bytes charged now.
    pub fn used(&self) -> u64 {
        lock(&self.shared).used
    }

    /// The limit.
    pub fn limit(&self) -> u64 {
        self.shared.limit
    }
}

impl Share {
    /// Charges `bytes` if there is room. A request larger than the whole share is let through when
    /// nothing else of the share is in flight: otherwise it could never be.
    pub fn try_acquire(&self, bytes: u64) -> Option<Permit> {
        let mut state = lock(&self.shared);
        self.fits(&state, bytes).then(|| self.charge(&mut state, bytes))
    }

    /// Waits up to `patience` for room. While it waits, [`Share::is_waiting`] holds.
    pub fn acquire(&self, bytes: u64, patience: Duration) -> Option<Permit> {
        let deadline = Instant::now() + patience;
        let mut state = lock(&self.shared);
        self.mine(&mut state).waiting += 1;
        while !self.fits(&state, bytes) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.shared.freed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        self.mine(&mut state).waiting -= 1;
        self.fits(&state, bytes).then(|| self.charge(&mut state, bytes))
    }

    /// Charges `bytes` whether or not there is room.
    pub fn overdraft(&self, bytes: u64) -> Permit {
        let mut state = lock(&self.shared);
        self.charge(&mut state, bytes)
    }

    /// Lets the share go beyond its cap by so many bytes, within the budget, until it is told otherwise: its batches
    /// may be larger for a while.
    pub fn widen(&self, extra: u64) {
        let mut state = lock(&self.shared);
        let mine = self.mine(&mut state);
        let heard = mine.extra < extra && mine.waiting > 0;
        mine.extra = extra;
        if heard {
            self.shared.freed.notify_all();
        }
    }

    /// Whether a reader of this share is waiting: a reason to cut a batch early.
    pub fn is_waiting(&self) -> bool {
        lock(&self.shared).shares.get(self.index).is_some_and(|share| share.waiting > 0)
    }

    /// Bytes of this share in flight.
    pub fn used(&self) -> u64 {
        lock(&self.shared).shares.get(self.index).map_or(0, |share| share.used)
    }

    fn fits(&self, state: &State, bytes: u64) -> bool {
        let Some(mine) = state.shares.get(self.index) else { return false };
        let after = mine.used.saturating_add(bytes);
        let in_budget = state.used.saturating_add(bytes) <= self.shared.limit
            && after <= mine.cap.saturating_add(mine.extra);
        mine.used == 0 || in_budget || after <= mine.floor
    }

    fn charge(&self, state: &mut State, bytes: u64) -> Permit {
        state.used = state.used.saturating_add(bytes);
        let mine = self.mine(state);
        mine.used = mine.used.saturating_add(bytes);
        Permit { share: self.clone(), bytes }
    }

    fn mine<'a>(&self, state: &'a mut State) -> &'a mut ShareState {
        // A share is made with its index and shares are never removed.
        &mut state.shares[self.index]
    }
}

impl Permit {
    /// Bytes charged.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A permit of the same share that charges nothing yet.
    pub fn empty(&self) -> Permit {
        Permit { share: self.share.clone(), bytes: 0 }
    }

    /// Changes what is charged to `bytes`, without waiting.
    pub fn resize(&mut self, bytes: u64) {
        if bytes == self.bytes {
            return;
        }
        let shared = Arc::clone(&self.share.shared);
        let mut state = lock(&shared);
        state.used = state.used.saturating_sub(self.bytes).saturating_add(bytes);
        let mine = self.share.mine(&mut state);
        mine.used = mine.used.saturating_sub(self.bytes).saturating_add(bytes);
        // Mostly nobody waits, and to wake nobody is a system call, too.
        let heard = bytes < self.bytes && state.shares.iter().any(|share| share.waiting > 0);
        self.bytes = bytes;
        if heard {
            shared.freed.notify_all();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.resize(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;

    #[test]
    fn readers_wait_for_room_and_get_it_when_a_permit_returns() {
        let share = Budget::new(100).share(100, 10);
        let first = share.acquire(80, NOW).unwrap();
        assert!(share.acquire(30, NOW).is_none());
        let reader = {
            let share = share.clone();
            std::thread::spawn(move || {
                share.acquire(30, Duration::from_secs(60)).map(|permit| permit.bytes())
            })
        };
        while !share.is_waiting() {
            std::thread::yield_now();
        }
        drop(first);
        assert_eq!(reader.join().unwrap(), Some(30));
        assert_eq!(share.used(), 0);
    }

    #[test]
    fn a_full_budget_leaves_each_pipeline_its_floor() {
        let budget = Budget::new(100);
        let (stuck, other) = (budget.share(100, 10), budget.share(100, 10));
        let _all = stuck.acquire(100, NOW).unwrap();
        let one = other.acquire(6, NOW).unwrap();
        assert!(other.acquire(6, NOW).is_none());
        drop(one);
        assert!(other.acquire(6, NOW).is_some());
    }

    #[test]
    fn a_cap_keeps_one_pipeline_from_taking_everything() {
        let budget = Budget::new(100);
        let share = budget.share(50, 10);
        let _half = share.acquire(50, NOW).unwrap();
        assert!(share.acquire(1, NOW).is_none());
        assert_eq!(budget.used(), 50);
    }

    #[test]
    fn a_widened_share_goes_beyond_its_cap_but_not_beyond_the_budget() {
        let budget = Budget::new(100);
        let share = budget.share(50, 10);
        let _half = share.acquire(50, NOW).unwrap();
        let reader = {
            let share = share.clone();
            std::thread::spawn(move || {
                share.acquire(30, Duration::from_secs(60)).map(|permit| permit.bytes())
            })
        };
        while !share.is_waiting() {
            std::thread::yield_now();
        }
        share.widen(1_000);
        assert_eq!(reader.join().unwrap(), Some(30));
        assert!(share.acquire(51, NOW).is_none(), "the budget");
        share.widen(0);
        assert!(share.acquire(1, NOW).is_none(), "the cap");
    }

    #[test]
    fn an_oversize_chunk_passes_alone_and_overdraft_never_waits() {
        let share = Budget::new(100).share(100, 10);
        let large = share.acquire(1_000, NOW).unwrap();
        assert!(share.acquire(1, NOW).is_none());
        let mut extra = share.overdraft(50);
        assert_eq!(share.used(), 1_050);
        extra.resize(20);
        drop(large);
        assert_eq!(share.used(), 20);
    }
}
