//! Counters of one plugin, over all of its instances.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Its value now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }
}

/// What a plugin did and cost, over all instances of one [`Plugin`](super::Plugin). Counted a few times a call, read by
/// the meter whenever it likes.
#[derive(Debug, Default)]
pub struct Stats {
    /// Calls of `process`, failed ones included.
    pub calls: Counter,
    /// Calls that ended in a trap other than those counted apart.
    pub traps: Counter,
    /// Calls that outlasted their time.
    pub timeouts: Counter,
    /// Calls that wanted more memory than they may have.
    pub out_of_memory: Counter,
    /// Outputs that broke the contract or were too large.
    pub invalid_outputs: Counter,
    /// Instances started, the first of each lane included.
    pub instances_started: Counter,
    /// Instances dropped because of a failure or of their size.
    pub instances_replaced: Counter,
    /// Log lines above the limit.
    pub log_lines_dropped: Counter,
    /// Time spent inside `process`, copying in and out included, in nanoseconds.
    pub guest_ns: Counter,
}
