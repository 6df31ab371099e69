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
    /// By their numbers.
    loads: HashMap<u64, OnItsWay>,
    next: u64,
}

/// A load on its way.
#[derive(Debug)]
struct OnItsWay {
    /// Whose rows it has.
    stays: Vec<Stay>,
    /// How it is told that one of them is given up.
    told: Arc<watch::Sender<bool>>,
    /// It is known not to be loaded, and waits for its next attempt.
    rests: bool,
}

impl GivingUpState {
    fn concerns_any(&self, stays: &[Stay]) -> bool {
        !self.stays.is_empty() && stays.iter().any(|stay| self.stays.contains(stay))
    }

    fn give_up(&mut self, stays: &[Stay]) {
        self.stays.extend(stays.iter().cloned());
        // A load of which a stay was given up before has been told already: once more does no harm.
        for load in self.loads.values() {
            if self.concerns_any(&load.stays) {
                load.told.send_replace(true);
            }
        }
    }
}

impl GivingUp {
    fn lock(&self) -> MutexGuard<'_, GivingUpState> {
        // Plain values: a panic elsewhere leaves them usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to give stays up: loads with rows of them are told.
    pub fn give_up(&self, stays: &[Stay]) {
        self.lock().give_up(stays);
    }

    /// Likewise those of `stays` of which no load is in an attempt, nor lands just now, and `may` says so; returns the
    /// others. When `may` is asked, all that has landed of the stay is settled.
    pub fn give_up_at_rest(&self, stays: Vec<Stay>, may: impl Fn(&Stay) -> bool) -> Vec<Stay> {
        let mut state = self.lock();
        let rests = |stay: &Stay| state.loads.values().all(|load| load.rests || !load.stays.contains(stay));
        let (given_up, others): (Vec<_>, Vec<_>) =
            stays.into_iter().partition(|stay| rests(stay) && may(stay));
        state.give_up(&given_up);
        others
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
        state.loads.insert(id, OnItsWay { stays, told: Arc::clone(told), rests: false });
        Carrying { giving_up: Arc::clone(self), id }
    }
}

/// A load's entry; gone when dropped, which is when what has landed of it is settled.
struct Carrying {
    giving_up: Arc<GivingUp>,
    id: u64,
}

impl Carrying {
    /// Whether the load is known not to be loaded, and waits.
    fn set_rests(&self, rests: bool) {
        if let Some(load) = self.giving_up.lock().loads.get_mut(&self.id) {
            load.rests = rests;
        }
    }
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
    fn a_stay_of_which_a_load_is_in_an_attempt_is_not_given_up_by_those_that_rest() {
        let giving_up = Arc::new(GivingUp::default());
        let tell = || Arc::new(watch::Sender::new(false));
        let (sends, waits) = (tell(), tell());
        let sending = giving_up.carrying(vec![stay(1), stay(2)], &sends);
        let waiting = giving_up.carrying(vec![stay(2), stay(3), stay(4)], &waits);
        waiting.set_rests(true);
        let stays = || (1..=5).map(stay).collect::<Vec<_>>();
        let may = |one: &Stay| one.partition.number != 4;
        assert_eq!(giving_up.give_up_at_rest(stays(), may), [stay(1), stay(2), stay(4)]);
        assert_eq!((*sends.borrow(), *waits.borrow()), (false, true));
        waiting.set_rests(false);
        assert_eq!(giving_up.give_up_at_rest(vec![stay(4)], |_| true), [stay(4)], "it is tried again");
        drop((sending, waiting));
        assert_eq!(giving_up.give_up_at_rest(stays(), |_| true), []);
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
