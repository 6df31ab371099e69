//! The list of FEs: the first that answered last is asked first, those that failed rest for a while.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::address::Address;

/// How long a failed FE is only asked when no other answers.
pub(super) const REST_AFTER_FAILURE: Duration = Duration::from_secs(10);

/// The FEs of one cluster; never empty.
#[derive(Debug)]
pub(super) struct Frontends {
    all: Vec<Frontend>,
    preferred: AtomicUsize,
}

#[derive(Debug)]
struct Frontend {
    address: Address,
    rests_until: Mutex<Option<Instant>>,
}

impl Frontends {
    /// In the order of the file.
    pub(super) fn new(addresses: Vec<Address>) -> Self {
        let all = addresses
            .into_iter()
            .map(|address| Frontend { address, rests_until: Mutex::new(None) })
            .collect();
        Self { all, preferred: AtomicUsize::new(0) }
    }

    /// Whom to ask, in order, with the index that `answered` and `failed` want.
    pub(super) fn in_order(&self, now: Instant) -> Vec<(usize, &Address)> {
        let count = self.all.len();
        let first = self.preferred.load(Ordering::Relaxed);
        let mut order: Vec<(usize, &Address)> = (0..count)
            .map(|step| (first + step) % count)
            .filter_map(|index| self.all.get(index).map(|frontend| (index, &frontend.address)))
            .collect();
        // Stable: those that rest come last, otherwise the order stays.
        order.sort_by_key(|(index, _)| self.rests(*index, now));
        order
    }

    /// It works: ask it first from now on.
    pub(super) fn answered(&self, index: usize) {
        self.preferred.store(index, Ordering::Relaxed);
        self.set_rest(index, None);
    }

    /// It does not: leave it alone for [`REST_AFTER_FAILURE`].
    pub(super) fn failed(&self, index: usize, now: Instant) {
        self.set_rest(index, Some(now + REST_AFTER_FAILURE));
    }

    fn rests(&self, index: usize, now: Instant) -> bool {
        let until = self.all.get(index).map(|frontend| *lock(&frontend.rests_until));
        until.flatten().is_some_and(|until| until > now)
    }

    fn set_rest(&self, index: usize, until: Option<Instant>) {
        if let Some(frontend) = self.all.get(index) {
            *lock(&frontend.rests_until) = until;
        }
    }
}

fn lock(rest: &Mutex<Option<Instant>>) -> std::sync::MutexGuard<'_, Option<Instant>> {
    rest.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(frontends: &Frontends, now: Instant) -> Vec<usize> {
        frontends.in_order(now).into_iter().map(|(index, _)| index).collect()
    }

    #[test]
    fn the_good_one_is_remembered_and_the_failed_one_rests() {
        let addresses = ["http://a:1", "http://b:1", "http://c:1"];
        let frontends =
            Frontends::new(addresses.iter().map(|url| Address::split(url).expect("an address").0).collect());
        let now = Instant::now();
        assert_eq!(order(&frontends, now), [0, 1, 2]);
        frontends.failed(0, now);
        assert_eq!(order(&frontends, now), [1, 2, 0]);
        frontends.answered(1);
        frontends.failed(2, now);
        assert_eq!(order(&frontends, now), [1, 2, 0], "two rest: after the good one, in the list's order");
        assert_eq!(order(&frontends, now + REST_AFTER_FAILURE), [1, 2, 0]);
        frontends.answered(0);
        assert_eq!(order(&frontends, now), [0, 1, 2]);
    }
}
