//! Epochs of an exactly-once pipeline: what the stage cut at one point of all tables is prepared together, decided
//! by the control thread, and committed (delivery.md §3).
//!
//! ```text
//! carrier   enter ─► begin · load · prepare (every table) ─► offer ┄┄┄┄► committed ─► leave
//! control   open                                              decide in Kafka   (nothing is decided or claimed
//!                                                                                while an epoch runs)
//! ```
//!
//! Whatever is not prepared for certain is rolled back and begun again under the next sequence: no label that was
//! ever rolled back is used again, since the request may still be on its way.

use std::sync::Arc;

use tokio::sync::watch;

use super::decision::{Decision, SEQUENCES_UNDECIDED_MAX, Terms};
use crate::ledger::Tickets;
use crate::planted::{Bug, planted};

/// What control and carrier of a pipeline tell one another. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Epochs {
    state: Arc<watch::Sender<State>>,
    /// What all its decisions have in common.
    pub terms: Arc<Terms>,
}

#[derive(Debug, Default)]
struct State {
    stem: Option<Stem>,
    running: Running,
    offer: Option<Arc<Offer>>,
    verdict: Option<Verdict>,
    /// The pipeline ends: nothing begins any more.
    ended: bool,
}

impl State {
    /// Whether an epoch may begin. None does while another one runs; one that was decided and cannot be committed runs
    /// for good, and its decision stands.
    fn may_begin(&self) -> bool {
        self.running == Running::None && self.stem.as_ref().is_some_and(|stem| !stem.is_exhausted())
    }
}

/// Where the one running epoch stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Running {
    #[default]
    None,
    Undecided,
    /// To be given up.
    Abandoned,
    Decided,
}

/// One assignment's labels.
#[derive(Debug, Clone)]
struct Stem {
    text: String,
    /// Newest sequence of which a decision stands in Kafka.
    decided: u64,
    /// Newest sequence that was begun.
    begun: u64,
}

impl Stem {
    fn is_exhausted(&self) -> bool {
        self.begun - self.decided >= SEQUENCES_UNDECIDED_MAX
    }
}

/// A sequence that was not used before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// Begin of the labels.
    pub stem: String,
    /// The sequence.
    pub seq: u64,
}

/// An epoch whose loads are all prepared.
#[derive(Debug)]
pub struct Offer {
    /// What would be decided.
    pub decision: Decision,
    /// The spans whose rows it loads, and how many tickets of each it holds.
    pub tickets: Tickets,
}

/// What control says to an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It stands in Kafka: commit.
    Decided,
    /// It never will: roll back.
    Abandoned,
    /// Nobody here will learn whether it does: whoever comes next does what is to be done.
    Left,
}

impl Epochs {
    /// Nothing may begin yet.
    pub fn new(terms: Terms) -> Epochs {
        Epochs { state: Arc::new(watch::Sender::new(State::default())), terms: Arc::new(terms) }
    }

    // Control's side.

    /// Epochs may begin, under a stem of which [`Epochs::standing`] was claimed for every partition.
    pub fn open(&self, stem: String) {
        self.state.send_modify(|state| state.stem = Some(Stem { text: stem, decided: 0, begun: 0 }));
    }

    /// Whether epochs may begin.
    pub fn is_open(&self) -> bool {
        self.state.borrow().stem.is_some()
    }

    /// No further epoch begins; one that runs goes on.
    pub fn close(&self) {
        self.state.send_modify(|state| state.stem = None);
    }

    /// Nothing begins any more.
    pub fn end(&self) {
        self.state.send_modify(|state| {
            state.ended = true;
            state.stem = None;
        });
    }

    /// Whether the pipeline has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.state.borrow().ended
    }

    /// Whether an epoch is between its begin and its end: what stands in Kafka must not be overwritten.
    pub fn is_running(&self) -> bool {
        self.state.borrow().running != Running::None
    }

    /// The running epoch is given up, if it is not decided.
    pub fn abandon(&self) {
        self.state.send_modify(|state| {
            if state.running == Running::Undecided && state.verdict.is_none() {
                state.running = Running::Abandoned;
                state.offer = None;
                state.verdict = Some(Verdict::Abandoned);
            }
        });
    }

    /// The offered epoch is left as it is: it may be decided, and nobody here will learn.
    pub fn leave_undecided(&self) {
        self.state.send_modify(|state| {
            if state.offer.take().is_some() {
                state.verdict = Some(Verdict::Left);
            }
        });
    }

    /// The epoch that waits for its decision.
    pub fn offered(&self) -> Option<Arc<Offer>> {
        self.state.borrow().offer.clone()
    }

    /// Answers the offer: it was decided.
    pub fn decided(&self) {
        self.state.send_modify(|state| {
            let Some(offer) = state.offer.take() else { return };
            if let Some(stem) = &mut state.stem {
                stem.decided = stem.decided.max(offer.decision.seq);
            }
            state.running = Running::Decided;
            state.verdict = Some(Verdict::Decided);
        });
    }

    /// What may be written over a decision whose loads are all committed; none without a stem, or while an epoch
    /// runs.
    pub fn standing(&self) -> Option<Decision> {
        let state = self.state.borrow();
        let is_over = state.running == Running::Decided && planted(Bug::DecisionOverwritten);
        if state.running != Running::None && !is_over {
            return None;
        }
        let stem = state.stem.as_ref()?;
        Some(Decision::empty(&stem.text, stem.begun, &self.terms))
    }

    /// Whether nothing can begin before [`Epochs::standing`] is written: a successor looks for so many sequences
    /// only.
    pub fn is_exhausted(&self) -> bool {
        let state = self.state.borrow();
        state.running == Running::None && state.stem.as_ref().is_some_and(Stem::is_exhausted)
    }

    /// `decision`, of [`Epochs::standing`], was written.
    pub fn stands(&self, decision: &Decision) {
        self.state.send_modify(|state| {
            if let Some(stem) = state.stem.as_mut().filter(|stem| stem.text == decision.stem) {
                stem.decided = stem.decided.max(decision.seq);
            }
        });
    }

    // The carrier's side.

    /// Begins an epoch, or a further try of one, when that is allowed; none if it never will be.
    pub(super) async fn enter(&self) -> Option<Turn> {
        loop {
            let mut receiver = self.state.subscribe();
            let may = |state: &State| state.ended || state.may_begin();
            // The sender lives as long as `self`.
            if receiver.wait_for(may).await.is_err() {
                return None;
            }
            let mut turn = None;
            let mut ended = false;
            self.state.send_modify(|state| {
                ended = state.ended;
                if !state.may_begin() {
                    return;
                }
                let Some(stem) = state.stem.as_mut() else { return };
                stem.begun += 1;
                turn = Some(Turn { stem: stem.text.clone(), seq: stem.begun });
                (state.running, state.offer, state.verdict) = (Running::Undecided, None, None);
            });
            if turn.is_some() || ended {
                return turn;
            }
        }
    }

    /// Waits until the running epoch is given up; for ever, if it is not.
    pub(super) async fn given_up(&self) {
        let mut receiver = self.state.subscribe();
        if receiver.wait_for(|state| state.running == Running::Abandoned).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Offers the epoch for its decision, and waits for it.
    pub(super) async fn offer(&self, offer: Offer) -> Verdict {
        let mut receiver = self.state.subscribe();
        self.state.send_modify(|state| {
            if state.verdict.is_none() {
                state.offer = Some(Arc::new(offer));
            }
        });
        let answered = receiver.wait_for(|state| state.verdict.is_some()).await;
        answered.ok().and_then(|state| state.verdict).unwrap_or(Verdict::Abandoned)
    }

    /// The epoch has ended: committed, or given up.
    pub(super) fn leave(&self) {
        self.state.send_modify(|state| {
            (state.running, state.offer, state.verdict) = (Running::None, None, None);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};
    use std::time::Duration;

    use super::*;

    fn terms() -> Terms {
        Terms { tables_max: 2, prepared_timeout: Duration::from_secs(86_400), database: "shop".into() }
    }

    fn offer_of(turn: &Turn) -> Offer {
        let decision = Decision::of_epoch(&turn.stem, turn.seq, 1, 5, &terms());
        Offer { decision, tickets: Tickets::new() }
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime")
            .block_on(future)
    }

    #[test]
    fn an_epoch_runs_from_its_begin_until_it_leaves_and_is_decided_once() {
        block_on(async {
            let epochs = Epochs::new(terms());
            epochs.open("s".into());
            let turn = epochs.enter().await.expect("a turn");
            assert_eq!((turn.stem.as_str(), turn.seq), ("s", 1));
            assert!(epochs.is_running() && epochs.offered().is_none());
            let (theirs, offer) = (epochs.clone(), offer_of(&turn));
            let waiting = tokio::spawn(async move { theirs.offer(offer).await });
            let offered = async {
                while epochs.offered().is_none() {
                    tokio::task::yield_now().await;
                }
            };
            offered.await;
            epochs.decided();
            // Too late: what stands in Kafka is committed, whatever comes.
            epochs.abandon();
            assert_eq!(waiting.await.expect("no panic"), Verdict::Decided);
            assert!(epochs.is_running(), "its loads are not committed yet");
            epochs.leave();
            assert!(!epochs.is_running());
            assert_eq!(epochs.standing(), Some(Decision::empty("s", 1, &terms())));
        });
    }

    #[test]
    fn an_epoch_that_was_given_up_is_never_offered() {
        block_on(async {
            let epochs = Epochs::new(terms());
            epochs.open("s".into());
            let turn = epochs.enter().await.expect("a turn");
            epochs.abandon();
            epochs.given_up().await;
            assert_eq!(epochs.offer(offer_of(&turn)).await, Verdict::Abandoned);
            assert!(epochs.offered().is_none());
            epochs.leave();
            assert_eq!(epochs.enter().await.map(|turn| turn.seq), Some(2), "a sequence of its own");
        });
    }

    #[test]
    fn a_stem_begins_no_more_than_a_successor_would_look_for() {
        block_on(async {
            let epochs = Epochs::new(terms());
            epochs.open("s".into());
            for _ in 0..SEQUENCES_UNDECIDED_MAX {
                assert!(!epochs.is_exhausted());
                assert!(epochs.enter().await.is_some());
                epochs.leave();
            }
            assert!(epochs.is_exhausted());
            let standing = epochs.standing().expect("a stem");
            epochs.stands(&standing);
            assert_eq!(epochs.enter().await.map(|turn| turn.seq), Some(SEQUENCES_UNDECIDED_MAX + 1));
        });
    }

    #[test]
    fn an_epoch_of_which_nobody_knows_is_left_as_it_is() {
        block_on(async {
            let epochs = Epochs::new(terms());
            epochs.open("s".into());
            let turn = epochs.enter().await.expect("a turn");
            let (theirs, offer) = (epochs.clone(), offer_of(&turn));
            let waiting = tokio::spawn(async move { theirs.offer(offer).await });
            while epochs.offered().is_none() {
                tokio::task::yield_now().await;
            }
            epochs.end();
            assert!(epochs.offered().is_some(), "the end alone gives nothing up");
            epochs.leave_undecided();
            assert_eq!(waiting.await.expect("no panic"), Verdict::Left);
        });
    }

    /// Its loads could not be committed: the carrier halts the pipeline, and never leaves.
    #[test]
    fn nothing_begins_while_a_decision_stands_whose_loads_are_not_committed() {
        block_on(async {
            let epochs = Epochs::new(terms());
            epochs.open("s".into());
            let turn = epochs.enter().await.expect("a turn");
            let (theirs, offer) = (epochs.clone(), offer_of(&turn));
            let waiting = tokio::spawn(async move { theirs.offer(offer).await });
            while epochs.offered().is_none() {
                tokio::task::yield_now().await;
            }
            epochs.decided();
            assert_eq!(waiting.await.expect("no panic"), Verdict::Decided);
            let mut next = std::pin::pin!(epochs.enter());
            let mut context = Context::from_waker(Waker::noop());
            assert_eq!(next.as_mut().poll(&mut context), Poll::Pending, "the decision stands");
            assert_eq!(epochs.standing(), None, "and nothing is written over it");
            epochs.end();
            assert_eq!(next.await, None);
        });
    }

    #[test]
    fn nothing_begins_after_the_end() {
        block_on(async {
            let epochs = Epochs::new(terms());
            let theirs = epochs.clone();
            let waiting = tokio::spawn(async move { theirs.enter().await });
            tokio::task::yield_now().await;
            epochs.end();
            assert_eq!(waiting.await.expect("no panic"), None);
        });
    }
}
