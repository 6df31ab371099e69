//! `Idempotency-Key`: a repeated request is answered from the first one's result, also while that is still
//! on its way.
//!
//! Kept in memory, so it holds within one process's life; across processes Primary Key tables converge
//! (delivery.md §5). Only a request that has loaded nothing forgets its key.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use super::answer::Shared;

/// What a request is, beyond its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Of a path and a body as it was sent.
    pub(super) fn of(path: &str, body: &[u8]) -> Fingerprint {
        let mut hash = Sha256::new();
        // The length keeps the two apart.
        hash.update((path.len() as u64).to_le_bytes());
        hash.update(path.as_bytes());
        hash.update(body);
        Fingerprint(hash.finalize().into())
    }
}

/// The keys of a listener.
#[derive(Debug)]
pub(super) struct Memory {
    state: Mutex<State>,
    window: Duration,
    answers_max: usize,
}

#[derive(Debug, Default)]
struct State {
    keys: HashMap<Arc<str>, Known>,
    /// Answered keys, oldest first.
    answered: VecDeque<(Instant, Arc<str>, u64)>,
    /// Tells one use of a key from a later one.
    uses: u64,
}

#[derive(Debug)]
struct Known {
    fingerprint: Fingerprint,
    number: u64,
    outcome: Outcome,
}

#[derive(Debug)]
enum Outcome {
    UnderWay(watch::Receiver<Option<Shared>>),
    Answered(Shared),
}

/// What a key means for a request that names it.
#[derive(Debug)]
pub(super) enum Begun {
    /// It is new: the request goes on, and has to say how it ended.
    First(Claim),
    /// The same request was answered already.
    Answered(Shared),
    /// The same request is on its way: its answer comes here, or an error if it forgets its key.
    UnderWay(watch::Receiver<Option<Shared>>),
    /// The key was used for another request.
    Different,
}

/// A key in use. Dropped without an answer, the key is forgotten: nothing of the request was loaded.
#[derive(Debug)]
#[must_use = "a claim that is dropped forgets its key"]
pub(super) struct Claim {
    memory: Arc<Memory>,
    key: Arc<str>,
    number: u64,
    told: watch::Sender<Option<Shared>>,
}

impl Memory {
    pub(super) fn new(window: Duration, answers_max: usize) -> Memory {
        Memory { state: Mutex::default(), window, answers_max }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Plain values, changed without a panic in between.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks a key up, and takes it if it is new.
    pub(super) fn begin(self: &Arc<Self>, key: &str, fingerprint: Fingerprint, now: Instant) -> Begun {
        let mut state = self.lock();
        state.forget_older(now.checked_sub(self.window));
        if let Some(known) = state.keys.get(key) {
            if known.fingerprint != fingerprint {
                return Begun::Different;
            }
            return match &known.outcome {
                Outcome::UnderWay(answer) => Begun::UnderWay(answer.clone()),
                Outcome::Answered(answer) => Begun::Answered(Arc::clone(answer)),
            };
        }
        state.uses += 1;
        let (key, number): (Arc<str>, u64) = (key.into(), state.uses);
        let (told, answer) = watch::channel(None);
        let known = Known { fingerprint, number, outcome: Outcome::UnderWay(answer) };
        state.keys.insert(Arc::clone(&key), known);
        Begun::First(Claim { memory: Arc::clone(self), key, number, told })
    }
}

impl State {
    fn forget_older(&mut self, than: Option<Instant>) {
        let Some(than) = than else { return };
        while self.answered.front().is_some_and(|(at, _, _)| *at < than) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, key, number)) = self.answered.pop_front() {
            self.forget(&key, number);
        }
    }

    fn forget(&mut self, key: &str, number: u64) {
        if self.keys.get(key).is_some_and(|known| known.number == number) {
            self.keys.remove(key);
        }
    }
}

impl Claim {
    /// The request was answered: so is every repetition within the window.
    pub(super) fn settle(self, answer: Shared, now: Instant) {
        let mut state = self.memory.lock();
        if let Some(known) = state.keys.get_mut(&self.key).filter(|known| known.number == self.number) {
            known.outcome = Outcome::Answered(Arc::clone(&answer));
            state.answered.push_back((now, Arc::clone(&self.key), self.number));
        }
        while state.answered.len() > self.memory.answers_max {
            state.forget_oldest();
        }
        drop(state);
        self.told.send_replace(Some(answer));
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // A settled one has told its answer.
        if self.told.borrow().is_none() {
            self.memory.lock().forget(&self.key, self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::http::answer::Answer;

    const WINDOW: Duration = Duration::from_secs(600);

    fn answer(accepted: u64) -> Shared {
        Arc::new(Answer::queued(accepted))
    }

    fn of(body: &str) -> Fingerprint {
        Fingerprint::of("events", body.as_bytes())
    }

    fn first(memory: &Arc<Memory>, key: &str, now: Instant) -> Claim {
        match memory.begin(key, of("{}"), now) {
            Begun::First(claim) => claim,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_repeated_request_gets_the_first_ones_answer_for_a_while() {
        let (memory, now) = (Arc::new(Memory::new(WINDOW, 10)), Instant::now());
        first(&memory, "a", now).settle(answer(7), now);
        let Begun::Answered(again) = memory.begin("a", of("{}"), now + WINDOW) else { panic!("answered") };
        assert_eq!(again.text(), r#"{"accepted":7}"#);
        first(&memory, "a", now + WINDOW + Duration::from_millis(1)).settle(answer(8), now);
    }

    #[test]
    fn a_key_is_for_one_path_and_one_body() {
        let (memory, now) = (Arc::new(Memory::new(WINDOW, 10)), Instant::now());
        let claim = first(&memory, "a", now);
        assert!(matches!(memory.begin("a", of("[]"), now), Begun::Different));
        claim.settle(answer(1), now);
        assert!(matches!(memory.begin("a", of("[]"), now), Begun::Different));
        assert!(matches!(memory.begin("a", Fingerprint::of("other", b"{}"), now), Begun::Different));
        assert_ne!(Fingerprint::of("ab", b"c"), Fingerprint::of("a", b"bc"));
    }

    #[tokio::test]
    async fn repetitions_wait_for_the_first_one() {
        let (memory, now) = (Arc::new(Memory::new(WINDOW, 10)), Instant::now());
        let claim = first(&memory, "a", now);
        let Begun::UnderWay(mut waits) = memory.begin("a", of("{}"), now) else { panic!("under way") };
        claim.settle(answer(3), now);
        let told = waits.wait_for(Option::is_some).await.expect("an answer").clone();
        assert_eq!(told.expect("an answer").text(), r#"{"accepted":3}"#);
    }

    #[tokio::test]
    async fn a_request_that_loaded_nothing_forgets_its_key() {
        let (memory, now) = (Arc::new(Memory::new(WINDOW, 10)), Instant::now());
        let claim = first(&memory, "a", now);
        let Begun::UnderWay(mut waits) = memory.begin("a", of("{}"), now) else { panic!("under way") };
        drop(claim);
        assert!(waits.wait_for(Option::is_some).await.is_err());
        drop(first(&memory, "a", now));
    }

    #[test]
    fn the_oldest_answers_go_first() {
        let (memory, now) = (Arc::new(Memory::new(WINDOW, 2)), Instant::now());
        for key in ["a", "b", "c"] {
            first(&memory, key, now).settle(answer(1), now);
        }
        assert!(matches!(memory.begin("b", of("{}"), now), Begun::Answered(_)));
        assert!(matches!(memory.begin("a", of("{}"), now), Begun::First(_)));
        let state = memory.lock();
        assert_eq!((state.keys.len(), state.answered.len()), (2, 2));
    }
}
