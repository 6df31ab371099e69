//! Letters of an exactly_once pipeline whose topic is on its source's cluster: they wait here for the decision that
//! moves the offsets past their records, and are written in its transaction (delivery.md §3 rule 9). Whoever reads
//! with `read_committed` sees each once, with the decision or not at all.
//!
//! ```text
//! lanes, carriers ─► post ┄┄► take ─► [transaction] ─► kept · give back · forget
//!                                      control
//! ```

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::envelope::Envelope;
use super::notice::Notice;
use super::tally::{Producer, is_final, never_passes, send};
use super::topic::refused;
use super::{Bundle, Rejected};
use crate::budget::Permit;
use crate::fault::Fault;
use crate::ledger::Tickets;
use crate::meter::PipelineMeter;
use crate::position::Stay;

/// Bytes that may wait before lanes do: all of them go into one transaction, which has its time-out.
const WAITING_BYTES_MAX: u64 = 8 << 20;

/// What waits for a decision; cheap to clone.
#[derive(Debug, Clone)]
pub struct Outbox(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    envelope: Envelope,
    meter: Arc<PipelineMeter>,
    state: Mutex<State>,
    /// Told when there is room again.
    room: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Undecided>,
    bytes: u64,
    /// The pipeline ends: what comes is read again.
    ended: bool,
    notice: Notice,
}

/// Letters of one span.
#[derive(Debug)]
#[must_use = "they are kept, given back or forgotten"]
pub struct Undecided {
    rejected: Rejected,
    permit: Permit,
}

impl Undecided {
    /// What would be written.
    #[cfg(test)]
    pub(crate) fn letters(&self) -> &[super::DeadLetter] {
        &self.rejected.letters
    }

    fn is_of(&self, stays: &[Stay]) -> bool {
        stays.contains(self.rejected.ticket.stay())
    }

    /// The letters of each span of a bundle, with their part of its bytes.
    fn of(bundle: Bundle) -> impl Iterator<Item = Undecided> {
        let Bundle { rejected, permit: whole } = bundle;
        rejected.into_iter().map(move |rejected| {
            let mut permit = whole.empty();
            permit.resize(rejected.bytes());
            Undecided { rejected, permit }
        })
    }
}

impl Outbox {
    /// For letters of the pipeline of `meter`, to `topic`.
    pub(super) fn new(topic: &str, meter: &Arc<PipelineMeter>) -> Outbox {
        Outbox(Arc::new(Shared {
            envelope: Envelope { topic: topic.to_owned(), pipeline: meter.name.clone() },
            meter: Arc::clone(meter),
            state: Mutex::default(),
            room: Condvar::new(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Letters come and go whole: a panic elsewhere leaves the state usable.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes letters in; waits up to `patience` while too many wait already, and gives them back if they still do.
    pub(super) fn post(&self, bundle: Bundle, patience: Duration) -> Option<Bundle> {
        let deadline = Instant::now() + patience;
        let mut state = self.lock();
        while state.bytes >= WAITING_BYTES_MAX && !state.ended {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Some(bundle);
            }
            state = self.0.room.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        self.admit(&mut state, bundle);
        None
    }

    /// Takes letters in however many wait: those of an epoch's rows, which is not decided before.
    pub(super) fn post_at_once(&self, bundle: Bundle) {
        self.admit(&mut self.lock(), bundle);
    }

    fn admit(&self, state: &mut State, bundle: Bundle) {
        if state.ended {
            bundle.forget();
            return;
        }
        for undecided in Undecided::of(bundle) {
            state.bytes += undecided.permit.bytes();
            state.waiting.push_back(undecided);
        }
    }

    /// The spans that letters wait for, each as often as it is held for them. What is of stays that have ended goes.
    pub fn tickets(&self) -> Tickets {
        let mut state = self.lock();
        self.forget_where(&mut state, |undecided| undecided.rejected.ticket.has_ended());
        let mut tickets = Tickets::new();
        for Undecided { rejected, .. } in &state.waiting {
            *tickets.entry((rejected.ticket.stay().clone(), rejected.ticket.place())).or_default() += 1;
        }
        tickets
    }

    /// Whether no letter waits.
    pub fn is_empty(&self) -> bool {
        self.lock().waiting.is_empty()
    }

    /// Whether lanes wait for a decision to make room.
    pub fn is_full(&self) -> bool {
        self.lock().bytes >= WAITING_BYTES_MAX
    }

    /// Takes the letters out of whose span (stay and place) `is_reached` says that a decision moves past it.
    pub fn take(&self, is_reached: impl Fn(&Stay, u64) -> bool) -> Vec<Undecided> {
        let mut state = self.lock();
        let reached = |one: &Undecided| is_reached(one.rejected.ticket.stay(), one.rejected.ticket.place());
        let (taken, left): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut state.waiting).into_iter().partition(reached);
        state.waiting = left;
        state.bytes -= taken.iter().map(|one| one.permit.bytes()).sum::<u64>();
        self.0.room.notify_all();
        taken.into()
    }

    /// Writes letters into the open transaction of `producer`, and waits until the brokers have them.
    ///
    /// # Errors
    /// The first failure; the transaction is to be aborted.
    pub(crate) fn write(&self, producer: &Producer, letters: &[Undecided]) -> Result<(), KafkaError> {
        let envelope = &self.0.envelope;
        let letters = letters.iter().flat_map(|one| &one.rejected.letters);
        send(producer, letters.map(|letter| envelope.record(letter)))
    }

    /// The fault of letters that were not written, and of a transaction that the brokers ended for this reason, if they
    /// did: librdkafka then throws the letters away, and their own failure says nothing.
    pub(crate) fn not_written(&self, error: KafkaError, ended: Option<(RDKafkaErrorCode, &str)>) -> Fault {
        let (what, topic) = ("keep dead letters", &self.0.envelope.topic);
        match ended {
            _ if is_final(&error) => refused(what, topic, &error),
            Some((code, text)) if never_passes(code) => refused(what, topic, &text),
            Some((_, text)) => {
                Fault::retry(format!("cannot {what} in topic `{topic}`: {text}")).caused_by(error)
            }
            None => Fault::retry(format!("cannot {what} in topic `{topic}`")).caused_by(error),
        }
    }

    /// The decision stands, and with it these letters.
    pub fn kept(&self, letters: Vec<Undecided>) {
        let meter = &self.0.meter;
        let all = letters.iter().flat_map(|one| &one.rejected.letters);
        self.lock().notice.kept(&meter.name, all);
        for Undecided { rejected: Rejected { ticket, records, .. }, .. } in letters {
            meter.leave(&meter.records_dead_lettered, records);
            let _ = ticket.settle_kept(records);
        }
    }

    /// It does not, and never will: they wait for the next one.
    pub fn give_back(&self, letters: Vec<Undecided>) {
        let mut state = self.lock();
        if state.ended {
            self.forget_all(letters);
            return;
        }
        for undecided in letters.into_iter().rev() {
            state.bytes += undecided.permit.bytes();
            state.waiting.push_front(undecided);
        }
    }

    /// Gives up letters that were taken out: whoever comes next reads their records again, or finds them decided.
    pub fn forget_all(&self, letters: Vec<Undecided>) {
        let meter = &self.0.meter;
        for Undecided { rejected, .. } in letters {
            meter.leave(&meter.records_given_up, rejected.records);
            rejected.forget();
        }
    }

    /// Gives up what waits of partitions that are being given up.
    pub fn forget(&self, stays: &[Stay]) {
        self.forget_where(&mut self.lock(), |undecided| undecided.is_of(stays));
    }

    fn forget_where(&self, state: &mut State, gone: impl Fn(&Undecided) -> bool) {
        let (gone, left): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut state.waiting).into_iter().partition(gone);
        state.waiting = left;
        state.bytes -= gone.iter().map(|one| one.permit.bytes()).sum::<u64>();
        self.0.room.notify_all();
        self.forget_all(gone.into());
    }

    /// The pipeline ends: nothing is decided any more.
    pub fn end(&self) {
        let mut state = self.lock();
        state.ended = true;
        self.forget_where(&mut state, |_| true);
        state.notice.end(&self.0.meter.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::{Budget, Share};
    use crate::dead_letter::{Content, DeadLetter, Stage};
    use crate::ledger::Ledger;
    use crate::meter::Meter;
    use crate::position::{Epoch, Partition, Span};

    fn stay() -> Stay {
        Stay { partition: Partition { source: "orders".into(), number: 0 }, epoch: Epoch(1) }
    }

    struct Bench {
        outbox: Outbox,
        ledger: Ledger,
        share: Share,
        opened: i64,
    }

    impl Bench {
        fn new() -> Bench {
            let ledger = Ledger::new();
            ledger.begin(stay(), -1);
            let meter = Meter::new().pipeline("orders");
            let share = Budget::new(1 << 30).share(1 << 30, 1 << 20);
            Bench { outbox: Outbox::new("dead", &meter), ledger, share, opened: -1 }
        }

        /// Rejects of a chunk of ten records, with a letter of so many bytes.
        fn bundle(&mut self, bytes: usize) -> Bundle {
            let span = Span { stay: stay(), after: self.opened, upto: self.opened + 10 };
            self.opened += 10;
            let ticket = self.ledger.open(&span).unwrap();
            let letter = DeadLetter {
                stage: Stage::Transform,
                plugin: None,
                code: "parse".into(),
                message: String::new(),
                partition: stay().partition,
                offset: span.after + 1,
                timestamp_us: 0,
                key: None,
                value: Some(vec![b'x'; bytes]),
                headers: Vec::new(),
                content: Content::default(),
            };
            let rejected = Rejected { letters: vec![letter], ticket, records: 10 };
            Bundle::new(vec![rejected], &self.share)
        }
    }

    #[test]
    fn letters_are_taken_as_far_as_a_decision_reaches_and_settle_when_it_stands() {
        let mut bench = Bench::new();
        for _ in 0..3 {
            let bundle = bench.bundle(10);
            assert!(bench.outbox.post(bundle, Duration::ZERO).is_none());
        }
        assert_eq!(bench.outbox.tickets().values().sum::<u32>(), 3);
        let taken = bench.outbox.take(|_, place| place < 2);
        assert_eq!((taken.len(), bench.outbox.tickets().len()), (2, 1));
        assert_eq!(bench.ledger.watermark(&stay()).unwrap().upto, -1, "not before the decision stands");
        bench.outbox.give_back(taken);
        assert_eq!(bench.outbox.tickets().len(), 3);
        let taken = bench.outbox.take(|_, place| place < 2);
        bench.outbox.kept(taken);
        assert_eq!(bench.ledger.watermark(&stay()).unwrap().upto, 19);
        bench.outbox.end();
        assert_eq!(bench.share.used(), 0, "nothing is charged any more");
        assert_eq!(bench.ledger.poisoned(), None);
    }

    #[test]
    fn lanes_wait_while_too_much_waits_and_an_epochs_own_letters_never_do() {
        let mut bench = Bench::new();
        let large = bench.bundle(WAITING_BYTES_MAX as usize);
        assert!(bench.outbox.post(large, Duration::ZERO).is_none());
        assert!(bench.outbox.is_full());
        let next = bench.bundle(10);
        let back = bench.outbox.post(next, Duration::ZERO).expect("no room");
        bench.outbox.post_at_once(back);
        let taken = bench.outbox.take(|_, place| place == 0);
        assert!(!bench.outbox.is_full());
        bench.outbox.kept(taken);
        bench.outbox.forget(&[stay()]);
        assert!(bench.outbox.tickets().is_empty());
        assert!(bench.ledger.is_quiet(&stay()));
    }

    #[test]
    fn what_comes_after_the_end_is_read_again() {
        let mut bench = Bench::new();
        let (first, second) = (bench.bundle(10), bench.bundle(10));
        bench.outbox.post_at_once(first);
        let taken = bench.outbox.take(|_, _| true);
        bench.outbox.end();
        bench.outbox.post_at_once(second);
        bench.outbox.give_back(taken);
        assert!(bench.outbox.tickets().is_empty());
        assert_eq!((bench.ledger.poisoned(), bench.ledger.watermark(&stay()).unwrap().upto), (None, -1));
    }

    #[test]
    fn letters_of_partitions_that_are_anothers_by_now_go() {
        let mut bench = Bench::new();
        let bundle = bench.bundle(10);
        bench.outbox.post_at_once(bundle);
        bench.ledger.end(&stay());
        assert!(bench.outbox.tickets().is_empty());
        assert_eq!(bench.share.used(), 0);
    }
}
