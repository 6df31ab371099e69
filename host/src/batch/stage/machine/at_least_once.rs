//! Tables load batches in any order, answers are lost, rows are refused, partitions come and go, tickets are lost, the
//! process dies.

use std::collections::VecDeque;

use proptest::prelude::*;
use proptest_state_machine::{ReferenceStateMachine, prop_state_machine};

use self::system::System;
use super::reckoning::{Opened, Reckoning};
use super::records::Hold;
use super::{LINGER, PARTITIONS, TABLES};
use crate::config::model::BatchLimits;

mod situations;
mod system;

const LIMITS: BatchLimits = BatchLimits { max_rows: 6, max_bytes: 150, linger: LINGER, stretch: None };
const IN_FLIGHT_MAX: usize = 2;

#[derive(Debug, Clone)]
enum Step {
    Read {
        partition: usize,
        places: i64,
    },
    /// Batches are cut before they are full, because they are old.
    Linger,
    /// One is, because a lane waits for room.
    Press,
    /// All are from now on, because the pipeline drains.
    Drain,
    /// A load has landed, and its answer came. It may have landed before.
    Land {
        flight: usize,
    },
    /// A load has landed, and its answer was lost.
    LandUnheard {
        flight: usize,
    },
    /// A row of a load is refused, and the others go on.
    Refuse {
        flight: usize,
        row: usize,
    },
    KeepLetters,
    Release,
    /// A partition is to go: rows that were not sent are dropped, but for those of spans of which some were.
    GiveUp {
        partition: usize,
    },
    /// It goes, whatever of it is on its way, and comes again; lost = without a last commit.
    Revoke {
        partition: usize,
        lost: bool,
    },
    /// By a defect, tickets are dropped that nobody has settled.
    Lose(Loss),
    /// That is noticed: nothing more is sent, what is on its way lands or does not, what is safe is released.
    Halt {
        lands: u8,
    },
    /// The process dies. Loads that were on their way land all the same, or do not.
    Crash {
        lands: u8,
    },
}

/// Who dropped them.
#[derive(Debug, Clone, Copy)]
enum Loss {
    /// The stage: rows for a table that it does not know.
    Rows { partition: usize, places: i64 },
    /// Whoever carried the load.
    Load { flight: usize },
    /// The writer of letters.
    Letters,
}

/// What ought to be.
#[derive(Debug, Clone)]
struct Reference {
    released: [i64; PARTITIONS],
    reckoning: Reckoning,
    open: [Vec<Hold>; TABLES],
    ready: [VecDeque<Vec<Hold>>; TABLES],
    flying: Vec<Flying>,
    letters: Vec<Hold>,
    /// Slots of loads that were lost: nobody gives them back.
    stuck: [usize; TABLES],
    drains: bool,
    /// The last span of each partition of which rows were sent.
    sent: [Option<usize>; PARTITIONS],
    /// Partitions that are being given up: they are read no more.
    leaves: [bool; PARTITIONS],
}

#[derive(Debug, Clone)]
struct Flying {
    table: usize,
    rows: Vec<Hold>,
    landed: bool,
}

/// Whether a load that is the `place`th on its way lands in the end.
fn lands_in_the_end(lands: u8, place: usize) -> bool {
    lands >> (place % 8) & 1 == 1
}

fn bytes(rows: &[Hold]) -> u64 {
    rows.iter().map(Hold::bytes).sum()
}

impl Reference {
    fn starting(released: [i64; PARTITIONS]) -> Reference {
        Reference {
            released,
            reckoning: Reckoning::behind(released),
            open: std::array::from_fn(|_| Vec::new()),
            ready: std::array::from_fn(|_| VecDeque::new()),
            flying: Vec::new(),
            letters: Vec::new(),
            stuck: [0; TABLES],
            drains: false,
            sent: [None; PARTITIONS],
            leaves: [false; PARTITIONS],
        }
    }

    fn unsent(&self) -> impl Iterator<Item = &Hold> {
        self.open.iter().chain(self.ready.iter().flatten()).flatten()
    }

    fn holds(&self) -> Vec<Hold> {
        let sent = self.flying.iter().flat_map(|flying| &flying.rows);
        self.unsent().chain(sent).chain(&self.letters).copied().collect()
    }

    fn watermark(&self, partition: usize) -> i64 {
        self.reckoning.reach(partition, &self.holds())
    }

    fn is_poisoned(&self) -> bool {
        self.reckoning.poisoned.is_some()
    }

    fn in_flight(&self, table: usize) -> usize {
        self.flying.iter().filter(|flying| flying.table == table).count() + self.stuck[table]
    }

    /// Whether the open batch of a table could be loaded at once.
    fn could_relieve(&self, table: usize) -> bool {
        self.in_flight(table) + self.ready[table].len() < IN_FLIGHT_MAX && !self.open[table].is_empty()
    }

    /// Whether one will be cut for its age.
    fn has_deadline(&self) -> bool {
        (0..TABLES).any(|table| !self.open[table].is_empty() && self.in_flight(table) < IN_FLIGHT_MAX)
    }

    fn read(&mut self, partition: usize, places: i64, arrives: bool) {
        let Opened { letters, rows } = self.reckoning.open(partition, places);
        self.letters.extend(letters);
        for (table, rows) in rows.into_iter().enumerate() {
            if arrives {
                rows.into_iter().for_each(|row| self.add(table, row));
                self.start(table);
            } else {
                self.reckoning.lose(&rows);
            }
        }
    }

    fn add(&mut self, table: usize, row: Hold) {
        let open = &self.open[table];
        if !open.is_empty() && bytes(open) + row.bytes() > LIMITS.max_bytes {
            self.seal(table);
        }
        self.open[table].push(row);
        let open = &self.open[table];
        if open.len() as u64 >= LIMITS.max_rows || bytes(open) >= LIMITS.max_bytes {
            self.seal(table);
        }
    }

    fn seal(&mut self, table: usize) {
        let rows = std::mem::take(&mut self.open[table]);
        self.ready[table].push_back(rows);
    }

    /// What is ready goes as far as there are slots.
    fn start(&mut self, table: usize) {
        while self.in_flight(table) < IN_FLIGHT_MAX {
            let Some(rows) = self.ready[table].pop_front() else { break };
            for row in &rows {
                let last = &mut self.sent[row.record.partition];
                *last = Some(self.reckoning.span_of(row.record)).max(*last);
            }
            self.flying.push(Flying { table, rows, landed: false });
        }
    }

    fn cut(&mut self, table: usize) {
        if self.could_relieve(table) {
            self.seal(table);
            self.start(table);
        }
    }

    /// A slot of a table is free.
    fn finish(&mut self, table: usize) {
        self.start(table);
        if self.drains {
            self.cut(table);
        }
    }

    fn press(&mut self) {
        let idle = (0..TABLES).filter(|table| self.could_relieve(*table));
        let largest = idle.max_by_key(|table| bytes(&self.open[*table]));
        largest.into_iter().for_each(|table| self.cut(table));
    }

    fn land(&mut self, flight: usize) {
        let Flying { table, rows, .. } = self.flying.remove(flight);
        rows.iter().for_each(|row| self.reckoning.settle(row));
        self.finish(table);
    }

    fn refuse(&mut self, flight: usize, row: usize) {
        let flying = &mut self.flying[flight];
        let table = flying.table;
        self.letters.push(flying.rows.remove(row).refused());
        if flying.rows.is_empty() {
            self.flying.remove(flight);
            self.finish(table);
        }
    }

    fn keep_letters(&mut self) {
        self.letters.drain(..).for_each(|letter| self.reckoning.settle(&letter));
    }

    fn release(&mut self) {
        self.released = std::array::from_fn(|partition| self.watermark(partition));
    }

    /// Drops rows of a partition that are not sent; returns them.
    fn drop_unsent(&mut self, partition: usize, is_dropped: impl Fn(&Hold) -> bool) -> Vec<Hold> {
        let is_gone = |row: &Hold| row.record.partition == partition && is_dropped(row);
        let dropped: Vec<Hold> = self.unsent().copied().filter(is_gone).collect();
        dropped.iter().for_each(|row| self.reckoning.give_up(row));
        for rows in self.open.iter_mut().chain(self.ready.iter_mut().flatten()) {
            rows.retain(|row| !is_gone(row));
        }
        self.ready.iter_mut().for_each(|ready| ready.retain(|rows| !rows.is_empty()));
        dropped
    }

    /// Whether rows of the span were sent, or of a later one.
    fn is_begun(&self, row: &Hold) -> bool {
        let last = self.sent[row.record.partition];
        last.is_some_and(|last| self.reckoning.span_of(row.record) <= last)
    }

    fn give_up(&mut self, partition: usize) {
        self.leaves[partition] = true;
        let begun: Vec<Hold> = self.unsent().filter(|row| self.is_begun(row)).copied().collect();
        let dropped = self.drop_unsent(partition, |row| !begun.contains(row));
        dropped.iter().for_each(|row| self.reckoning.forget(row));
        for table in 0..TABLES {
            if self.open[table].iter().any(|row| row.record.partition == partition) {
                self.seal(table);
            }
        }
        (0..TABLES).for_each(|table| self.start(table));
        if self.drains {
            (0..TABLES).for_each(|table| self.cut(table));
        }
    }

    fn revoke(&mut self, partition: usize, lost: bool) {
        if !lost {
            self.released[partition] = self.watermark(partition);
        }
        self.drop_unsent(partition, |_| true);
        let sent = self.flying.iter_mut().flat_map(|flying| &mut flying.rows).chain(&mut self.letters);
        let of_it = sent.filter(|hold| hold.record.partition == partition);
        of_it.for_each(|hold| hold.has_ended = true);
        self.reckoning.stay_anew(partition, self.released[partition]);
        (self.sent[partition], self.leaves[partition]) = (None, false);
    }

    fn lose(&mut self, loss: Loss) {
        match loss {
            Loss::Rows { partition, places } => self.read(partition, places, false),
            Loss::Load { flight } => {
                let Flying { table, rows, .. } = self.flying.remove(flight);
                self.reckoning.lose(&rows);
                self.stuck[table] += 1;
            }
            Loss::Letters => self.reckoning.lose(&std::mem::take(&mut self.letters)),
        }
    }

    fn halt(&mut self, lands: u8) {
        let unsent: Vec<Hold> = self.unsent().copied().collect();
        unsent.iter().for_each(|row| self.reckoning.forget(row));
        (self.open, self.ready) = Default::default();
        for (place, Flying { rows, .. }) in std::mem::take(&mut self.flying).iter().enumerate() {
            for row in rows {
                if lands_in_the_end(lands, place) {
                    self.reckoning.settle(row);
                } else {
                    self.reckoning.forget(row);
                }
            }
        }
        self.keep_letters();
        self.release();
    }
}

impl ReferenceStateMachine for Reference {
    type State = Reference;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Reference> {
        Just(Reference::starting([-1; PARTITIONS])).boxed()
    }

    fn transitions(state: &Reference) -> BoxedStrategy<Step> {
        let partition = 0..PARTITIONS;
        let flight = 0..state.flying.len().max(1);
        // What ends a process that reads no more, or has to halt, comes soon.
        let ends = if state.drains || state.is_poisoned() { 4 } else { 1 };
        let chunk = (partition.clone(), 1_i64..8);
        let loss = prop_oneof![
            1 => chunk.clone().prop_map(|(partition, places)| Loss::Rows { partition, places }),
            2 => flight.clone().prop_map(|flight| Loss::Load { flight }),
            1 => Just(Loss::Letters),
        ];
        let batches = prop_oneof![
            6 => chunk.prop_map(|(partition, places)| Step::Read { partition, places }),
            2 => Just(Step::Linger),
            2 => Just(Step::Press),
        ];
        let loads = prop_oneof![
            6 => flight.clone().prop_map(|flight| Step::Land { flight }),
            2 => flight.clone().prop_map(|flight| Step::LandUnheard { flight }),
            2 => (flight, 0_usize..6).prop_map(|(flight, row)| Step::Refuse { flight, row }),
            2 => Just(Step::KeepLetters),
            4 => Just(Step::Release),
        ];
        let ends = prop_oneof![
            2 => partition.clone().prop_map(|partition| Step::GiveUp { partition }),
            2 => (partition, any::<bool>()).prop_map(|(partition, lost)| Step::Revoke { partition, lost }),
            1 => Just(Step::Drain),
            2 => loss.prop_map(Step::Lose),
            2 * ends => any::<u8>().prop_map(|lands| Step::Halt { lands }),
            2 * ends => any::<u8>().prop_map(|lands| Step::Crash { lands }),
        ];
        prop_oneof![10 => batches, 14 => loads, 4 => ends].boxed()
    }

    fn preconditions(state: &Reference, step: &Step) -> bool {
        let flying = |flight: &usize| state.flying.get(*flight);
        match step {
            Step::Read { partition, .. } | Step::Lose(Loss::Rows { partition, .. }) => {
                !state.drains && !state.leaves[*partition]
            }
            Step::GiveUp { partition } => !state.leaves[*partition],
            // A lane waits only if something is in its way.
            Step::Press => state.holds().iter().any(Hold::is_row),
            Step::Drain => !state.drains,
            Step::Land { flight } | Step::Lose(Loss::Load { flight }) => flying(flight).is_some(),
            Step::LandUnheard { flight } => flying(flight).is_some_and(|flying| !flying.landed),
            Step::Refuse { flight, row } => {
                flying(flight).is_some_and(|flying| !flying.landed && *row < flying.rows.len())
            }
            Step::Lose(Loss::Letters) => !state.letters.is_empty(),
            Step::Halt { .. } => state.is_poisoned(),
            Step::Linger | Step::KeepLetters | Step::Release | Step::Revoke { .. } | Step::Crash { .. } => {
                true
            }
        }
    }

    fn apply(mut state: Reference, step: &Step) -> Reference {
        match *step {
            Step::Read { partition, places } => state.read(partition, places, true),
            Step::Linger => (0..TABLES).for_each(|table| state.cut(table)),
            Step::Press => state.press(),
            Step::Drain => {
                state.drains = true;
                (0..TABLES).for_each(|table| state.cut(table));
            }
            Step::Land { flight } => state.land(flight),
            Step::LandUnheard { flight } => state.flying[flight].landed = true,
            Step::Refuse { flight, row } => state.refuse(flight, row),
            Step::KeepLetters => state.keep_letters(),
            Step::Release => state.release(),
            Step::GiveUp { partition } => state.give_up(partition),
            Step::Revoke { partition, lost } => state.revoke(partition, lost),
            Step::Lose(loss) => state.lose(loss),
            Step::Halt { lands } => {
                state.halt(lands);
                state = Reference::starting(state.released);
            }
            Step::Crash { .. } => state = Reference::starting(state.released),
        }
        state
    }
}

prop_state_machine! {
    #![proptest_config(super::config())]
    #[test]
    fn nothing_is_lost_whatever_lands_when_and_whenever_the_process_dies(sequential 1..=super::STEPS_MAX => System);
}
