//! Epochs are prepared, decided and committed, rows are refused, answers and tickets are lost, labels are forgotten, the
//! process dies and recovers.

use std::collections::VecDeque;

use proptest::prelude::*;
use proptest_state_machine::{ReferenceStateMachine, prop_state_machine};

use self::system::System;
use super::reckoning::{Opened, Reckoning};
use super::records::Hold;
use super::{LINGER, PARTITIONS, TABLES};
use crate::config::model::BatchLimits;
use crate::delivery::decision::SEQUENCES_UNDECIDED_MAX;

mod situations;
mod system;
mod world;

const LIMITS: BatchLimits = BatchLimits { max_rows: 6, max_bytes: 10_000, linger: LINGER, stretch: None };

#[derive(Debug, Clone)]
enum Step {
    Read {
        partition: usize,
        places: i64,
    },
    /// What gathers is cut before it is full, because it is old.
    Linger,
    /// It is, because a lane waits for room.
    Press,
    /// It is from now on, because the pipeline drains.
    Drain,
    /// The epoch on its way begins, or begins again under the next sequence.
    Begin,
    /// The next of its loads is prepared.
    Prepare,
    /// Instead, a row of it is refused: the epoch is given up and tried without it.
    Refuse {
        row: usize,
    },
    /// It is given up: its loads are rolled back, or the rollback does not arrive.
    Abandon {
        arrives: bool,
    },
    /// Its decision is written, or is not, and in either case the answer may be lost.
    Decide {
        written: bool,
        answered: bool,
    },
    /// The next of its loads is committed.
    Commit,
    /// All of them are: its spans close.
    Leave,
    /// Nothing runs: that is written over what stands.
    WriteDone,
    /// The writer of letters keeps what it has, if they do not go with decisions.
    KeepLetters,
    /// StarRocks forgets what is finished.
    Forget,
    /// By a defect, tickets are dropped that nobody has settled.
    Lose(Loss),
    /// That is noticed: nothing more begins; what is decided is committed, or that takes too long.
    Halt {
        commits: bool,
    },
    /// The process dies. A prepare that was on its way arrives all the same, or does not. The next process makes so many
    /// steps of its take-over, and dies, too, if those are not all.
    Crash {
        arrives: bool,
        steps: usize,
    },
}

/// Who dropped them.
#[derive(Debug, Clone, Copy)]
enum Loss {
    /// The stage: rows for a table that it does not know.
    Rows { partition: usize, places: i64 },
    /// Whoever carried the epoch.
    Epoch,
    /// The writer of letters, or whoever wrote them with a decision.
    Letters,
}

/// Steps of a whole take-over.
const TAKE_OVER_STEPS: usize = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Cut, and without a sequence.
    Waits,
    /// So many loads are prepared.
    Prepares(usize),
    /// So many loads are committed.
    Decided(usize),
    /// Its carrier is gone, when it ran or when it did not.
    Gone { ran: bool },
}

/// Rows for each table, cut together.
type Rows = [Vec<Hold>; TABLES];

/// What ought to be: the offsets in Kafka say what is loaded, and nothing else does.
#[derive(Debug, Clone)]
struct Reference {
    /// Letters are written with the decisions that move past them.
    decides_letters: bool,
    committed: [i64; PARTITIONS],
    reckoning: Reckoning,
    open: Rows,
    ready: VecDeque<Rows>,
    epoch: Option<(Rows, Phase)>,
    letters: Vec<Hold>,
    begun: u64,
    decided: u64,
    drains: bool,
}

fn loads(epoch: &Rows) -> usize {
    epoch.iter().filter(|rows| !rows.is_empty()).count()
}

impl Reference {
    fn starting(committed: [i64; PARTITIONS], decides_letters: bool) -> Reference {
        Reference {
            decides_letters,
            committed,
            reckoning: Reckoning::behind(committed),
            open: Rows::default(),
            ready: VecDeque::new(),
            epoch: None,
            letters: Vec::new(),
            begun: 0,
            decided: 0,
            drains: false,
        }
    }

    fn phase(&self) -> Option<(Phase, usize)> {
        self.epoch.as_ref().map(|(epoch, phase)| (*phase, loads(epoch)))
    }

    fn is_poisoned(&self) -> bool {
        self.reckoning.poisoned.is_some()
    }

    /// Rows that are not in an epoch on its way.
    fn gathering(&self) -> impl Iterator<Item = &Hold> {
        self.open.iter().chain(self.ready.iter().flatten()).flatten()
    }

    fn of_the_epoch(&self) -> impl Iterator<Item = &Hold> {
        self.epoch.iter().flat_map(|(epoch, _)| epoch.iter().flatten())
    }

    fn holds(&self) -> Vec<Hold> {
        self.gathering().chain(self.of_the_epoch()).chain(&self.letters).copied().collect()
    }

    /// Letters that a decision does not take along.
    fn letters_in_the_way(&self) -> &[Hold] {
        if self.decides_letters { &[] } else { &self.letters }
    }

    /// Where the decision of the running epoch moves the offsets; none if something of its spans is not safe.
    fn decides(&self) -> Option<[i64; PARTITIONS]> {
        let open: Vec<&Hold> = self.gathering().chain(self.letters_in_the_way()).collect();
        let safe: [i64; PARTITIONS] =
            std::array::from_fn(|partition| self.reckoning.reach(partition, open.iter().copied()));
        let is_covered = |row: &Hold| row.record.offset <= safe[row.record.partition];
        self.of_the_epoch().all(is_covered).then_some(safe)
    }

    /// Where "all is done" moves them.
    fn done(&self) -> [i64; PARTITIONS] {
        let open = self.gathering().chain(self.of_the_epoch()).chain(self.letters_in_the_way());
        let open: Vec<&Hold> = open.collect();
        std::array::from_fn(|partition| self.reckoning.reach(partition, open.iter().copied()))
    }

    /// Takes out the letters that go with what reaches so far.
    fn take_letters(&mut self, reach: [i64; PARTITIONS]) -> Vec<Hold> {
        let is_taken =
            |letter: &Hold| self.decides_letters && letter.record.offset <= reach[letter.record.partition];
        let (taken, left) = std::mem::take(&mut self.letters).into_iter().partition(is_taken);
        self.letters = left;
        taken
    }

    fn keep(&mut self, letters: &[Hold]) {
        letters.iter().for_each(|letter| self.reckoning.settle(letter));
    }

    fn read(&mut self, partition: usize, places: i64, arrives: bool) {
        let Opened { letters, rows } = self.reckoning.open(partition, places);
        self.letters.extend(letters);
        for (table, rows) in rows.into_iter().enumerate() {
            if arrives {
                self.open[table].extend(rows);
            } else {
                self.reckoning.lose(&rows);
            }
        }
        if self.open.iter().any(|rows| rows.len() as u64 >= LIMITS.max_rows) {
            self.seal();
        }
    }

    fn seal(&mut self) {
        self.ready.push_back(std::mem::take(&mut self.open));
        self.start();
    }

    /// What was cut first goes when nothing else is on its way.
    fn start(&mut self) {
        if self.epoch.is_none() {
            self.epoch = self.ready.pop_front().map(|rows| (rows, Phase::Waits));
        }
    }

    /// Whether what gathers could go at once.
    fn could_go(&self) -> bool {
        self.epoch.is_none() && self.ready.is_empty() && self.open.iter().any(|rows| !rows.is_empty())
    }

    fn cut(&mut self) {
        if self.could_go() {
            self.seal();
        }
    }

    /// No epoch is on its way any more.
    fn finish(&mut self) {
        self.epoch = None;
        self.start();
        if self.drains {
            self.cut();
        }
    }

    fn begin(&mut self) {
        self.epoch = self.epoch.take().map(|(epoch, _)| (epoch, Phase::Prepares(0)));
        self.begun += 1;
    }

    fn count_load(&mut self) {
        if let Some((_, Phase::Prepares(done) | Phase::Decided(done))) = &mut self.epoch {
            *done += 1;
        }
    }

    fn give_up(&mut self) {
        self.epoch = self.epoch.take().map(|(epoch, _)| (epoch, Phase::Waits));
    }

    /// The rows that are prepared next.
    fn next_load(&self) -> Option<&Vec<Hold>> {
        let (epoch, Phase::Prepares(done)) = self.epoch.as_ref()? else { return None };
        epoch.iter().filter(|rows| !rows.is_empty()).nth(*done)
    }

    fn refuse(&mut self, row: usize) {
        let Some((epoch, Phase::Prepares(done))) = &mut self.epoch else { return };
        let load = epoch.iter_mut().filter(|rows| !rows.is_empty()).nth(*done);
        self.letters.extend(load.map(|rows| rows.remove(row).refused()));
        let is_empty = loads(epoch) == 0;
        self.give_up();
        if is_empty {
            self.finish();
        }
    }

    fn decide(&mut self, written: bool) {
        let Some(safe) = self.decides() else { return };
        let letters = self.take_letters(safe);
        if !written {
            // Without an answer one looks, and gives up what does not stand. Its letters are first in the next one.
            self.letters.splice(0..0, letters);
            return self.give_up();
        }
        (self.committed, self.decided) = (safe, self.begun);
        self.keep(&letters);
        self.epoch = self.epoch.take().map(|(epoch, _)| (epoch, Phase::Decided(0)));
    }

    fn leave(&mut self) {
        let rows: Vec<Hold> = self.of_the_epoch().copied().collect();
        rows.iter().for_each(|row| self.reckoning.settle(row));
        self.finish();
    }

    fn write_done(&mut self) {
        let done = self.done();
        self.committed = std::array::from_fn(|partition| done[partition].max(self.committed[partition]));
        let letters = self.take_letters(done);
        self.keep(&letters);
        self.decided = self.begun;
    }

    fn lose(&mut self, loss: Loss) {
        match loss {
            Loss::Rows { partition, places } => self.read(partition, places, false),
            Loss::Epoch => {
                let Some((rows, phase)) = self.epoch.take() else { return };
                self.reckoning.lose(rows.iter().flatten());
                self.epoch = Some((Rows::default(), Phase::Gone { ran: phase != Phase::Waits }));
            }
            Loss::Letters => self.reckoning.lose(&std::mem::take(&mut self.letters)),
        }
    }
}

impl ReferenceStateMachine for Reference {
    type State = Reference;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Reference> {
        any::<bool>().prop_map(|decides| Reference::starting([-1; PARTITIONS], decides)).boxed()
    }

    /// Mostly what comes next in an epoch's life, or few sequences would come to its end.
    fn transitions(state: &Reference) -> BoxedStrategy<Step> {
        let often = || prop::bool::weighted(0.8);
        let cut = || prop_oneof![2 => Just(Step::Linger), 3 => Just(Step::Press), 1 => Just(Step::Drain)];
        let crash = || {
            let crash = (any::<bool>(), 0..=TAKE_OVER_STEPS);
            crash.prop_map(|(arrives, steps)| Step::Crash { arrives, steps })
        };
        let halt = || any::<bool>().prop_map(|commits| Step::Halt { commits });
        // What has to halt does so soon, but not at once.
        let halts = if state.is_poisoned() { 4 } else { 1 };
        let next = match state.phase() {
            None => cut().boxed(),
            Some((Phase::Waits, _)) => {
                prop_oneof![4 => Just(Step::Begin), 1 => Just(Step::WriteDone)].boxed()
            }
            Some((Phase::Prepares(done), loads)) if done < loads => {
                // Now and then of a small epoch nothing is left.
                let refuses = if state.of_the_epoch().count() < 3 { 10 } else { 3 };
                let refuse = (0_usize..6).prop_map(|row| Step::Refuse { row });
                prop_oneof![6 => Just(Step::Prepare), refuses => refuse].boxed()
            }
            Some((Phase::Prepares(_), _)) => {
                let decide = (often(), often());
                decide.prop_map(|(written, answered)| Step::Decide { written, answered }).boxed()
            }
            Some((Phase::Decided(done), loads)) if done < loads => {
                prop_oneof![8 => Just(Step::Commit), 4 * halts => halt(), 1 => crash()].boxed()
            }
            Some((Phase::Decided(_), _)) => prop_oneof![6 => Just(Step::Leave), 1 => crash()].boxed(),
            Some((Phase::Gone { .. }, _)) => prop_oneof![halt(), crash()].boxed(),
        };
        let chunk = || (0..PARTITIONS, 1_i64..6);
        let loss = prop_oneof![
            3 => chunk().prop_map(|(partition, places)| Loss::Rows { partition, places }),
            2 => Just(Loss::Epoch),
            2 => Just(Loss::Letters),
        ];
        let ends = prop_oneof![3 => loss.prop_map(Step::Lose), halts => halt(), 4 => crash()];
        prop_oneof![
            16 => next,
            6 => chunk().prop_map(|(partition, places)| Step::Read { partition, places }),
            2 => cut(),
            1 => any::<bool>().prop_map(|arrives| Step::Abandon { arrives }),
            1 => Just(Step::WriteDone),
            2 => Just(Step::KeepLetters),
            3 => Just(Step::Forget),
            3 => ends,
        ]
        .boxed()
    }

    fn preconditions(state: &Reference, step: &Step) -> bool {
        let phase = state.phase();
        let may_begin = state.begun - state.decided < SEQUENCES_UNDECIDED_MAX;
        match step {
            Step::Read { .. } | Step::Lose(Loss::Rows { .. }) | Step::Drain => !state.drains,
            // A lane waits only if something is in its way.
            Step::Press => state.holds().iter().any(Hold::is_row),
            Step::Begin => may_begin && matches!(phase, Some((Phase::Waits, _))),
            Step::Prepare => state.next_load().is_some(),
            Step::Refuse { row } => state.next_load().is_some_and(|rows| *row < rows.len()),
            Step::Abandon { .. } => matches!(phase, Some((Phase::Prepares(_), _))),
            Step::Decide { .. } => matches!(phase, Some((Phase::Prepares(done), loads)) if done == loads),
            Step::Commit => matches!(phase, Some((Phase::Decided(done), loads)) if done < loads),
            Step::Leave => matches!(phase, Some((Phase::Decided(done), loads)) if done == loads),
            Step::WriteDone => matches!(phase, None | Some((Phase::Waits | Phase::Gone { ran: false }, _))),
            Step::KeepLetters => !state.decides_letters,
            Step::Lose(Loss::Epoch) => state.of_the_epoch().next().is_some(),
            Step::Lose(Loss::Letters) => !state.letters.is_empty(),
            Step::Halt { .. } => state.is_poisoned(),
            Step::Linger | Step::Forget | Step::Crash { .. } => true,
        }
    }

    fn apply(mut state: Reference, step: &Step) -> Reference {
        match *step {
            Step::Read { partition, places } => state.read(partition, places, true),
            Step::Linger | Step::Press => state.cut(),
            Step::Drain => {
                state.drains = true;
                state.cut();
            }
            Step::Begin => state.begin(),
            Step::Prepare | Step::Commit => state.count_load(),
            Step::Refuse { row } => state.refuse(row),
            Step::Abandon { .. } => state.give_up(),
            Step::Decide { written, .. } => state.decide(written),
            Step::Leave => state.leave(),
            Step::WriteDone => state.write_done(),
            Step::KeepLetters => {
                let letters = std::mem::take(&mut state.letters);
                state.keep(&letters);
            }
            Step::Forget => {}
            Step::Lose(loss) => state.lose(loss),
            Step::Halt { .. } | Step::Crash { .. } => {
                state = Reference::starting(state.committed, state.decides_letters);
            }
        }
        state
    }
}

prop_state_machine! {
    #![proptest_config(super::config())]
    #[test]
    fn every_row_comes_once_whatever_is_decided_when_and_whenever_the_process_dies(sequential 1..=super::STEPS_MAX => System);
}
