//! Who may send, what is decided, and how a batch is carried to its outcome.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::fault::Fault;
use crate::position::Stay;

mod blame;
pub mod carriers;
pub mod carry;
pub mod decision;
pub mod epoch;
pub mod epoch_carrier;
pub mod first_sight;
mod fold;
mod isolation;
pub mod marker;
pub mod owner;
mod refused;
pub mod take_over;

/// Asks a pipeline to drain and end. Cheap to clone; asked once, for good.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asks.
    pub fn request(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether it was asked.
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// The first fault that halts a pipeline, from whatever part of it. Control takes it.
#[derive(Debug, Clone, Default)]
pub struct Alarm(Arc<Mutex<Option<Fault>>>);

impl Alarm {
    fn lock(&self) -> MutexGuard<'_, Option<Fault>> {
        // One value: a panic elsewhere leaves it usable.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Halts the pipeline; the first fault is the one that is told.
    pub fn raise(&self, fault: Fault) {
        self.lock().get_or_insert(fault);
    }

    /// The fault, once.
    pub fn take(&self) -> Option<Fault> {
        self.lock().take()
    }

    /// Whether there is a fault that nobody took yet.
    pub fn is_raised(&self) -> bool {
        self.lock().is_some()
    }
}

/// Stays that are being given up, and the loads that carry rows of them: a load that is known not to
/// be loaded stops trying, drops their rows and goes on with the others (delivery.md §1 rule 4).
#[derive(Debug, Default)]
pub struct GivingUp {
    state: Mutex<GivingUpState>,
}

/// Sets: each request of HTTP is a stay of its own, and a halt gives thousands of them up at once.
#[derive(Debug, Default)]
struct GivingUpState {
    stays: HashSet<Stay>,
    /// The stays of each load on its way, by its number, and how it is told.
    loads: HashMap<u64, (Vec<Stay>, Arc<watch::Sender<bool>>)>,
    next: u64,
}

impl GivingUpState {
    fn concerns_any(&self, stays: &[Stay]) -> bool {
        !self.stays.is_empty() && stays.iter().any(|stay| self.stays.contains(stay))
    }
}

impl GivingUp {
    fn lock(&self) -> MutexGuard<'_, GivingUpState> {
        // Plain values: a panic elsewhere leaves them usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to give stays up: loads with rows of them are told.
    pub fn give_up(&self, stays: &[Stay]) {
        let mut state = self.lock();
        state.stays.extend(stays.iter().cloned());
        // A load of which a stay was given up before has been told already: once more does no harm.
        for (carried, told) in state.loads.values() {
            if state.concerns_any(carried) {
                told.send_replace(true);
            }
        }
    }

    /// The stays have ended.
    pub fn done(&self, stays: &[Stay]) {
        let mut state = self.lock();
        for stay in stays {
            state.stays.remove(stay);
        }
    }

    /// Whether rows of `stay` are to be dropped rather than sent.
    pub fn concerns(&self, stay: &Stay) -> bool {
        self.lock().stays.contains(stay)
    }

    /// A load with rows of `stays` is on its way; `told` turns true when one is given up.
    fn carrying(self: &Arc<Self>, stays: Vec<Stay>, told: &Arc<watch::Sender<bool>>) -> Carrying {
        let mut state = self.lock();
        if state.concerns_any(&stays) {
            told.send_replace(true);
        }
        state.next += 1;
        let id = state.next;
        state.loads.insert(id, (stays, Arc::clone(told)));
        Carrying { giving_up: Arc::clone(self), id }
    }
}

/// A load's entry; gone when dropped.
struct Carrying {
    giving_up: Arc<GivingUp>,
    id: u64,
}

impl Drop for Carrying {
    fn drop(&mut self) {
        self.giving_up.lock().loads.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::{Epoch, Partition};

    fn stay(number: u32) -> Stay {
        Stay { partition: Partition { source: "t".into(), number }, epoch: Epoch(1) }
    }

    #[test]
    fn a_load_hears_that_one_of_its_stays_is_given_up() {
        let giving_up = Arc::new(GivingUp::default());
        let tell = || Arc::new(watch::Sender::new(false));
        let (concerned, other, late) = (tell(), tell(), tell());
        let _one = giving_up.carrying(vec![stay(1), stay(2)], &concerned);
        let _two = giving_up.carrying(vec![stay(3)], &other);
        giving_up.give_up(&[stay(2)]);
        assert!(*concerned.borrow());
        assert!(!*other.borrow());
        let _three = giving_up.carrying(vec![stay(2)], &late);
        assert!(*late.borrow());
        giving_up.done(&[stay(2)]);
        assert!(!giving_up.concerns(&stay(2)));
    }

    #[test]
    fn the_first_fault_is_told() {
        let alarm = Alarm::default();
        alarm.raise(Fault::retry("first"));
        alarm.raise(Fault::retry("second"));
        assert_eq!(alarm.take().map(|fault| fault.what), Some("first".to_owned()));
        assert!(!alarm.is_raised());
    }
}
