//! Epochs are prepared, decided and committed, answers are lost, labels are forgotten, the process dies and recovers.

use std::collections::VecDeque;
use std::time::Duration;

use proptest::prelude::*;
use proptest_state_machine::{ReferenceStateMachine, prop_state_machine};

use self::system::System;
use super::{Fate, PARTITIONS, Record, TABLES, records};
use crate::config::model::BatchLimits;
use crate::delivery::decision::SEQUENCES_UNDECIDED_MAX;

mod system;

/// So long that only the steps cut.
const LINGER: Duration = Duration::from_secs(3600);
const LIMITS: BatchLimits = BatchLimits { max_rows: 6, max_bytes: 10_000, linger: LINGER, stretch: None };

prop_state_machine! {
    #![proptest_config(super::config())]
    #[test]
    fn every_row_comes_once_whatever_is_decided_when_and_whenever_the_process_dies(sequential 1..=64 => System);
}

#[test]
fn the_process_dies_on_either_side_of_a_decision() {
    let situations = [
        "dies while it prepares",
        "dies with decided loads that are not committed",
        "dies with all committed and nothing settled",
        "a dead letter holds the decision up",
        "an epoch begins again",
        "a decision is not written",
        "the answer to a decision is lost",
        "a label is forgotten while its decision stands",
    ];
    super::must_reach::<Reference>(&situations, |state, step| {
        let phase = state.epoch.as_ref().map(|(epoch, phase)| (*phase, loads(epoch)));
        match (step, phase) {
            (Step::Crash { .. }, Some((Phase::Prepares(_), _))) => Some(situations[0]),
            (Step::Crash { .. }, Some((Phase::Decided(done), loads))) => {
                Some(situations[if done < loads { 1 } else { 2 }])
            }
            (Step::Decide { .. }, _) if state.decides().is_none() => Some(situations[3]),
            (Step::Begin, Some(_)) => Some(situations[4]),
            (Step::Decide { written: false, .. }, _) => Some(situations[5]),
            (Step::Decide { answered: false, .. }, _) => Some(situations[6]),
            (Step::Forget, Some((Phase::Decided(done), _))) if done > 0 => Some(situations[7]),
            _other => None,
        }
    });
}

#[derive(Debug, Clone)]
enum Step {
    Read {
        partition: usize,
        places: i64,
    },
    Cut {
        drains: bool,
    },
    /// The epoch that was cut first begins, or begins again under the next sequence.
    Begin,
    /// The next of its loads is prepared.
    Prepare,
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
    KeepLetters,
    /// StarRocks forgets what is finished.
    Forget,
    /// The process dies. A prepare that was on its way arrives all the same, or does not.
    Crash {
        arrives: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Cut, and without a sequence.
    Waits,
    /// So many loads are prepared.
    Prepares(usize),
    /// So many loads are committed.
    Decided(usize),
}

/// What ought to be: the offsets in Kafka say what is loaded, and nothing else does.
#[derive(Debug, Clone, Default)]
struct Reference {
    start: [i64; PARTITIONS],
    committed: [i64; PARTITIONS],
    ends: [Vec<i64>; PARTITIONS],
    open: [Vec<Record>; TABLES],
    ready: VecDeque<[Vec<Record>; TABLES]>,
    epoch: Option<([Vec<Record>; TABLES], Phase)>,
    letters: Vec<Record>,
    begun: u64,
    decided: u64,
}

fn loads(epoch: &[Vec<Record>; TABLES]) -> usize {
    epoch.iter().filter(|rows| !rows.is_empty()).count()
}

impl Reference {
    /// The end of the last span before the first of `pending`.
    fn safe<'a>(&self, partition: usize, pending: impl Iterator<Item = &'a Record>) -> i64 {
        let of = pending.filter(|record| record.partition == partition);
        let first = of.map(|record| record.offset).min().unwrap_or(i64::MAX);
        let safe = self.ends[partition].iter().take_while(|end| **end < first);
        safe.last().copied().unwrap_or(self.start[partition])
    }

    /// Everything on its way that is not in the running epoch.
    fn outside(&self) -> impl Iterator<Item = &Record> {
        self.open.iter().chain(self.ready.iter().flatten()).flatten().chain(&self.letters)
    }

    /// Where the decision of the running epoch moves the offsets; none if something of its spans is not safe.
    fn decides(&self) -> Option<[i64; PARTITIONS]> {
        let (epoch, _) = self.epoch.as_ref()?;
        let safe: [i64; PARTITIONS] = std::array::from_fn(|partition| self.safe(partition, self.outside()));
        let covered = |record: &Record| record.offset <= safe[record.partition];
        epoch.iter().flatten().all(covered).then_some(safe)
    }

    fn seal(&mut self) {
        self.ready.push_back(std::mem::take(&mut self.open));
    }

    fn is_open(&self) -> bool {
        self.open.iter().any(|rows| !rows.is_empty())
    }
}

impl ReferenceStateMachine for Reference {
    type State = Reference;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Reference> {
        let from = [-1; PARTITIONS];
        Just(Reference { start: from, committed: from, ..Reference::default() }).boxed()
    }

    /// Mostly what comes next in an epoch's life, or few sequences would come to its end.
    fn transitions(state: &Reference) -> BoxedStrategy<Step> {
        let often = || prop::bool::weighted(0.8);
        let decide = (often(), often()).prop_map(|(written, answered)| Step::Decide { written, answered });
        let next = match state.epoch.as_ref().map(|(epoch, phase)| (*phase, loads(epoch))) {
            None if state.ready.is_empty() => any::<bool>().prop_map(|drains| Step::Cut { drains }).boxed(),
            None | Some((Phase::Waits, _)) => {
                prop_oneof![4 => Just(Step::Begin), 1 => Just(Step::WriteDone)].boxed()
            }
            Some((Phase::Prepares(done), loads)) if done < loads => Just(Step::Prepare).boxed(),
            Some((Phase::Prepares(_), _)) => decide.boxed(),
            Some((Phase::Decided(done), loads)) if done < loads => Just(Step::Commit).boxed(),
            Some((Phase::Decided(_), _)) => Just(Step::Leave).boxed(),
        };
        prop_oneof![
            16 => next,
            6 => (0..PARTITIONS, 1_i64..6).prop_map(|(partition, places)| Step::Read { partition, places }),
            1 => any::<bool>().prop_map(|drains| Step::Cut { drains }),
            1 => any::<bool>().prop_map(|arrives| Step::Abandon { arrives }),
            1 => Just(Step::WriteDone),
            2 => Just(Step::KeepLetters),
            2 => Just(Step::Forget),
            2 => any::<bool>().prop_map(|arrives| Step::Crash { arrives }),
        ]
        .boxed()
    }

    fn preconditions(state: &Reference, step: &Step) -> bool {
        let phase = state.epoch.as_ref().map(|(epoch, phase)| (*phase, loads(epoch)));
        let may_begin = state.begun - state.decided < SEQUENCES_UNDECIDED_MAX;
        match step {
            Step::Begin => match phase {
                None => may_begin && !state.ready.is_empty(),
                Some((phase, _)) => may_begin && phase == Phase::Waits,
            },
            Step::Prepare => matches!(phase, Some((Phase::Prepares(done), loads)) if done < loads),
            Step::Abandon { .. } => matches!(phase, Some((Phase::Prepares(_), _))),
            Step::Decide { .. } => matches!(phase, Some((Phase::Prepares(done), loads)) if done == loads),
            Step::Commit => matches!(phase, Some((Phase::Decided(done), loads)) if done < loads),
            Step::Leave => matches!(phase, Some((Phase::Decided(done), loads)) if done == loads),
            Step::WriteDone => matches!(phase, None | Some((Phase::Waits, _))),
            Step::Read { .. } | Step::Cut { .. } | Step::KeepLetters | Step::Forget | Step::Crash { .. } => {
                true
            }
        }
    }

    fn apply(mut state: Reference, step: &Step) -> Reference {
        match *step {
            Step::Read { partition, places } => {
                let after = state.ends[partition].last().copied().unwrap_or(state.start[partition]);
                for record in records(partition, after, after + places) {
                    match record.fate() {
                        Fate::Gap | Fate::Dropped => {}
                        Fate::Letter => state.letters.push(record),
                        Fate::Rows(tables) => tables.iter().for_each(|table| state.open[*table].push(record)),
                    }
                }
                state.ends[partition].push(after + places);
                if state.open.iter().any(|rows| rows.len() as u64 >= LIMITS.max_rows) {
                    state.seal();
                }
            }
            Step::Cut { .. } => {
                if state.epoch.is_none() && state.ready.is_empty() && state.is_open() {
                    state.seal();
                }
            }
            Step::Begin => {
                let waits = state.epoch.take().map(|(epoch, _)| epoch).or_else(|| state.ready.pop_front());
                state.epoch = waits.map(|epoch| (epoch, Phase::Prepares(0)));
                state.begun += 1;
            }
            Step::Prepare | Step::Commit => {
                if let Some((_, Phase::Prepares(done) | Phase::Decided(done))) = &mut state.epoch {
                    *done += 1;
                }
            }
            Step::Abandon { .. } => state.epoch = state.epoch.map(|(epoch, _)| (epoch, Phase::Waits)),
            Step::Decide { written, answered } => {
                let Some(safe) = state.decides() else { return state };
                if written {
                    (state.committed, state.decided) = (safe, state.begun);
                }
                // Without an answer one looks, and gives up what does not stand.
                let next = match (written, answered) {
                    (true, _) => Phase::Decided(0),
                    (false, _) => Phase::Waits,
                };
                state.epoch = state.epoch.map(|(epoch, _)| (epoch, next));
            }
            Step::Leave => state.epoch = None,
            Step::WriteDone => {
                let epoch = state.epoch.iter().flat_map(|(epoch, _)| epoch.iter().flatten());
                let pending: Vec<Record> = state.outside().chain(epoch).copied().collect();
                state.committed = std::array::from_fn(|partition| {
                    state.safe(partition, pending.iter()).max(state.committed[partition])
                });
                state.decided = state.begun;
            }
            Step::KeepLetters => state.letters.clear(),
            Step::Forget => {}
            Step::Crash { .. } => {
                let start = state.committed;
                state = Reference { start, committed: start, ..Reference::default() };
            }
        }
        state
    }
}
