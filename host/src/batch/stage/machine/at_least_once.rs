//! Tables load batches in any order, answers are lost, rows are refused, partitions come and go, the process dies.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};

use super::{Chunk, Fate, PARTITIONS, Reader, Record, TABLES, partition_of, records};
use crate::batch::stage::fakes::{Shown, destination};
use crate::batch::stage::table::Table;
use crate::batch::{Batch, Piece};
use crate::config::model::BatchLimits;
use crate::ledger::Ticket;
use crate::position::{Stay, Watermark};

/// So long that only the steps cut.
const LINGER: Duration = Duration::from_secs(3600);
const LIMITS: BatchLimits = BatchLimits { max_rows: 6, max_bytes: 150, linger: LINGER, stretch: None };
const IN_FLIGHT_MAX: usize = 2;

prop_state_machine! {
    #![proptest_config(super::config())]
    #[test]
    fn nothing_is_lost_whatever_lands_when_and_whenever_the_process_dies(sequential 1..=64 => System);
}

#[test]
fn loads_are_on_their_way_when_the_process_dies_and_partitions_go() {
    let situations = [
        "dies with a load on its way",
        "dies with an answer lost",
        "loses a partition with rows on their way",
        "gives a partition up with rows on their way",
        "a row is refused",
        "a later load lands first",
        "part of what was read is released",
    ];
    super::must_reach::<Reference>(&situations, |state, step| {
        let on_their_way = |partition: &usize| {
            let mut rows = state.flying.iter().flat_map(|flying| &flying.rows);
            rows.any(|(record, ended)| record.partition == *partition && !ended)
        };
        match step {
            Step::Crash { .. } if state.flying.iter().any(|flying| flying.landed) => Some(situations[1]),
            Step::Crash { .. } if !state.flying.is_empty() => Some(situations[0]),
            Step::Revoke { partition, lost: true } if on_their_way(partition) => Some(situations[2]),
            Step::Revoke { partition, lost: false } if on_their_way(partition) => Some(situations[3]),
            Step::Refuse { .. } => Some(situations[4]),
            Step::Land { flight } if *flight > 0 => Some(situations[5]),
            Step::Release => {
                let part =
                    |at: usize| (state.released[at] + 1..state.read(at)).contains(&state.watermark(at));
                (0..PARTITIONS).any(part).then_some(situations[6])
            }
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
    /// A batch is cut before it is full, because a reader waits for room or the pipeline drains.
    Cut {
        table: usize,
        drains: bool,
    },
    Start {
        table: usize,
    },
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
    /// A partition goes, and comes again; lost = without a last commit.
    Revoke {
        partition: usize,
        lost: bool,
    },
    /// The process dies. Loads that were on their way land all the same, or do not.
    Crash {
        lands: u8,
    },
}

/// What ought to be: each row and letter that is somewhere on its way holds up its partition.
#[derive(Debug, Clone, Default)]
struct Reference {
    start: [i64; PARTITIONS],
    released: [i64; PARTITIONS],
    /// Ends of the spans of the present stay.
    ends: [Vec<i64>; PARTITIONS],
    open: [Vec<Record>; TABLES],
    ready: [VecDeque<Vec<Record>>; TABLES],
    flying: Vec<Flying>,
    letters: Vec<(Record, bool)>,
}

#[derive(Debug, Clone)]
struct Flying {
    table: usize,
    /// With whether its stay has ended.
    rows: Vec<(Record, bool)>,
    landed: bool,
}

impl Reference {
    fn read(&self, partition: usize) -> i64 {
        self.ends[partition].last().copied().unwrap_or(self.start[partition])
    }

    /// The end of the last span before the first record that is still on its way.
    fn watermark(&self, partition: usize) -> i64 {
        let batched = self.open.iter().chain(self.ready.iter().flatten()).flatten();
        let sent = self.flying.iter().flat_map(|flying| &flying.rows).chain(&self.letters);
        let sent = sent.filter(|(_, ended)| !ended).map(|(record, _)| record);
        let of = batched.chain(sent).filter(|record| record.partition == partition);
        let first = of.map(|record| record.offset).min().unwrap_or(i64::MAX);
        let safe = self.ends[partition].iter().take_while(|end| **end < first);
        safe.last().copied().unwrap_or(self.start[partition])
    }

    fn add(&mut self, table: usize, record: Record) {
        let bytes = |rows: &[Record]| rows.iter().map(|row| row.row().len() as u64).sum::<u64>();
        let open = &self.open[table];
        if !open.is_empty() && bytes(open) + bytes(&[record]) > LIMITS.max_bytes {
            self.seal(table);
        }
        self.open[table].push(record);
        let open = &self.open[table];
        if open.len() as u64 >= LIMITS.max_rows || bytes(open) >= LIMITS.max_bytes {
            self.seal(table);
        }
    }

    fn seal(&mut self, table: usize) {
        let rows = std::mem::take(&mut self.open[table]);
        self.ready[table].push_back(rows);
    }

    fn in_flight(&self, table: usize) -> usize {
        self.flying.iter().filter(|flying| flying.table == table).count()
    }

    fn begin(&mut self, partition: usize) {
        self.start[partition] = self.released[partition];
        self.ends[partition].clear();
    }

    fn revoke(&mut self, partition: usize, lost: bool) {
        if !lost {
            self.released[partition] = self.watermark(partition);
        }
        for rows in self.open.iter_mut().chain(self.ready.iter_mut().flatten()) {
            rows.retain(|record| record.partition != partition);
        }
        self.ready.iter_mut().for_each(|ready| ready.retain(|rows| !rows.is_empty()));
        let sent = self.flying.iter_mut().flat_map(|flying| &mut flying.rows).chain(&mut self.letters);
        sent.for_each(|(record, ended)| *ended |= record.partition == partition);
        self.begin(partition);
    }
}

impl ReferenceStateMachine for Reference {
    type State = Reference;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Reference> {
        let from = [-1; PARTITIONS];
        Just(Reference { start: from, released: from, ..Reference::default() }).boxed()
    }

    fn transitions(state: &Reference) -> BoxedStrategy<Step> {
        let (partition, table) = (0..PARTITIONS, 0..TABLES);
        let flight = 0..state.flying.len().max(1);
        prop_oneof![
            6 => (partition.clone(), 1_i64..8).prop_map(|(partition, places)| Step::Read { partition, places }),
            2 => (table.clone(), any::<bool>()).prop_map(|(table, drains)| Step::Cut { table, drains }),
            6 => table.prop_map(|table| Step::Start { table }),
            6 => flight.clone().prop_map(|flight| Step::Land { flight }),
            2 => flight.clone().prop_map(|flight| Step::LandUnheard { flight }),
            2 => (flight, 0_usize..6).prop_map(|(flight, row)| Step::Refuse { flight, row }),
            2 => Just(Step::KeepLetters),
            4 => Just(Step::Release),
            1 => (partition, any::<bool>()).prop_map(|(partition, lost)| Step::Revoke { partition, lost }),
            1 => any::<u8>().prop_map(|lands| Step::Crash { lands }),
        ]
        .boxed()
    }

    fn preconditions(state: &Reference, step: &Step) -> bool {
        let flying = |flight: &usize| state.flying.get(*flight);
        match step {
            Step::Start { table } => {
                !state.ready[*table].is_empty() && state.in_flight(*table) < IN_FLIGHT_MAX
            }
            Step::Land { flight } => flying(flight).is_some(),
            Step::LandUnheard { flight } => flying(flight).is_some_and(|flying| !flying.landed),
            Step::Refuse { flight, row } => {
                flying(flight).is_some_and(|flying| !flying.landed && *row < flying.rows.len())
            }
            Step::Read { .. }
            | Step::Cut { .. }
            | Step::KeepLetters
            | Step::Release
            | Step::Revoke { .. }
            | Step::Crash { .. } => true,
        }
    }

    fn apply(mut state: Reference, step: &Step) -> Reference {
        match *step {
            Step::Read { partition, places } => {
                let after = state.read(partition);
                for record in records(partition, after, after + places) {
                    match record.fate() {
                        Fate::Gap | Fate::Dropped => {}
                        Fate::Letter => state.letters.push((record, false)),
                        Fate::Rows(tables) => tables.iter().for_each(|table| state.add(*table, record)),
                    }
                }
                state.ends[partition].push(after + places);
            }
            Step::Cut { table, .. } => {
                let is_free = state.in_flight(table) + state.ready[table].len() < IN_FLIGHT_MAX;
                if is_free && !state.open[table].is_empty() {
                    state.seal(table);
                }
            }
            Step::Start { table } => {
                let rows = state.ready[table].pop_front().into_iter().flatten();
                let rows = rows.map(|record| (record, false)).collect();
                state.flying.push(Flying { table, rows, landed: false });
            }
            Step::Land { flight } => drop(state.flying.remove(flight)),
            Step::LandUnheard { flight } => state.flying[flight].landed = true,
            Step::Refuse { flight, row } => {
                let refused = state.flying[flight].rows.remove(row);
                state.letters.push(refused);
                state.flying.retain(|flying| !flying.rows.is_empty());
            }
            Step::KeepLetters => state.letters.clear(),
            Step::Release => {
                state.released = std::array::from_fn(|partition| state.watermark(partition));
            }
            Step::Revoke { partition, lost } => state.revoke(partition, lost),
            Step::Crash { .. } => {
                let Reference { start, released, .. } = state;
                state = Reference { start, released, ..Reference::default() };
                (0..PARTITIONS).for_each(|partition| state.begin(partition));
            }
        }
        state
    }
}

/// What outlives the process.
struct World {
    released: [i64; PARTITIONS],
    /// How often each row is in its table.
    loaded: BTreeMap<(usize, Record), u32>,
    kept: BTreeSet<Record>,
    /// The furthest that was ever read.
    seen: [i64; PARTITIONS],
}

struct Flight {
    table: usize,
    batch: Batch,
    landed: bool,
}

/// What dies with the process.
struct Process {
    reader: Reader,
    tables: [Table; TABLES],
    flying: Vec<Flight>,
    letters: Vec<(Record, Ticket)>,
    now: Instant,
}

struct System {
    world: World,
    process: Process,
}

fn rows_of(batch: &Batch) -> Vec<Record> {
    batch.pieces.iter().flat_map(Piece::iter).map(|(_, row)| Record::of_row(row)).collect()
}

impl World {
    fn land(&mut self, flight: &mut Flight) {
        // The label is known: the rows of a load are taken once.
        if std::mem::replace(&mut flight.landed, true) {
            return;
        }
        for record in rows_of(&flight.batch) {
            *self.loaded.entry((flight.table, record)).or_default() += 1;
        }
    }

    /// Whether nothing of a record would be missed if it were never read again.
    fn has(&self, record: Record) -> bool {
        let is_kept = self.kept.contains(&record);
        match record.fate() {
            Fate::Gap | Fate::Dropped => true,
            Fate::Letter => is_kept,
            // A row that was refused is a letter.
            Fate::Rows(tables) => {
                is_kept || tables.iter().all(|table| self.loaded.contains_key(&(*table, record)))
            }
        }
    }
}

impl Process {
    fn start(world: &World) -> Process {
        let outlet = Arc::new(Shown(mpsc::channel().0));
        let table = |number: usize| {
            Table::new(destination(&format!("t{number}")), LIMITS, IN_FLIGHT_MAX, outlet.clone())
        };
        Process {
            reader: Reader::starting(world.released),
            tables: std::array::from_fn(table),
            flying: Vec::new(),
            letters: Vec::new(),
            now: Instant::now(),
        }
    }

    fn read(&mut self, partition: usize, places: i64) {
        let Chunk { pieces, letters } = self.reader.next_chunk(partition, places);
        self.letters.extend(letters);
        for (table, piece) in pieces {
            self.tables[table].append(piece, self.now, &BTreeSet::new());
        }
    }

    fn start_load(&mut self, table: usize) -> bool {
        let Some(batch) = self.tables[table].next_load() else { return false };
        assert!(batch.rows() <= LIMITS.max_rows, "{} rows in a batch", batch.rows());
        assert!(batch.bytes() <= LIMITS.max_bytes || batch.rows() == 1, "{} bytes in a batch", batch.bytes());
        self.flying.push(Flight { table, batch, landed: false });
        true
    }

    fn land(&mut self, world: &mut World, flight: usize) {
        let mut flight = self.flying.remove(flight);
        world.land(&mut flight);
        self.tables[flight.table].finished();
        flight.batch.pieces.into_iter().for_each(|piece| drop(piece.settle()));
    }

    /// As the host does it: the row's ticket goes with its letter, the other rows go on under another label.
    fn refuse(&mut self, flight: usize, row: usize) {
        let Flight { table, batch, .. } = &mut self.flying[flight];
        let (table, mut row, mut rest) = (*table, row, Vec::new());
        for piece in std::mem::take(&mut batch.pieces) {
            if row >= piece.len() {
                row -= piece.len();
                rest.push(piece);
                continue;
            }
            self.letters.push((Record::of_row(piece.row(row)), piece.ticket().hold()));
            rest.extend(piece.without(&[row]));
            row = usize::MAX;
        }
        batch.pieces = rest;
        if batch.pieces.is_empty() {
            self.flying.remove(flight);
            self.tables[table].finished();
        }
    }

    fn keep_letters(&mut self, world: &mut World) {
        for (record, ticket) in self.letters.drain(..) {
            world.kept.insert(record);
            let _ = ticket.settle_kept(1);
        }
    }

    fn release(&self, world: &mut World) {
        for Watermark { stay, upto } in self.reader.ledger.progress() {
            let partition = partition_of(&stay);
            assert_eq!(stay, self.reader.stays[partition], "a stay that has ended moves nothing");
            assert!(upto > world.released[partition], "{upto} is behind what was released of {stay:?}");
            world.released[partition] = upto;
        }
    }

    fn revoke(&mut self, world: &mut World, partition: usize, lost: bool) {
        let stays: [Stay; 1] = [self.reader.stays[partition].clone()];
        for table in &mut self.tables {
            table.forget(0, &stays, |_| false);
        }
        let ended = self.reader.ledger.end(&stays[0]).expect("the stay stands");
        if !lost {
            world.released[partition] = ended.watermark.upto;
        }
        self.reader.stay_anew(partition, world.released[partition]);
    }
}

impl System {
    fn crash(&mut self, lands: u8) {
        for (place, flight) in self.process.flying.iter_mut().enumerate() {
            if lands >> (place % 8) & 1 == 1 {
                self.world.land(flight);
            }
        }
        self.process = Process::start(&self.world);
    }

    /// Loads and releases whatever is left of what was ever read.
    fn drain(&mut self) {
        let System { world, process } = self;
        for partition in 0..PARTITIONS {
            let left = world.seen[partition] - process.reader.read[partition];
            if left > 0 {
                process.read(partition, left);
            }
        }
        let draining = BTreeSet::from([0]);
        for table in 0..TABLES {
            while process.tables[table].cut(process.now, false, &draining) || process.start_load(table) {
                (0..process.flying.len()).rev().for_each(|flight| process.land(world, flight));
            }
        }
        process.keep_letters(world);
        process.release(world);
    }
}

impl StateMachineTest for System {
    type SystemUnderTest = System;
    type Reference = Reference;

    fn init_test(reference: &Reference) -> System {
        let (loaded, kept) = (BTreeMap::new(), BTreeSet::new());
        let world = World { released: reference.released, loaded, kept, seen: reference.released };
        System { process: Process::start(&world), world }
    }

    fn apply(mut system: System, _: &Reference, step: Step) -> System {
        let System { world, process } = &mut system;
        match step {
            Step::Read { partition, places } => {
                process.read(partition, places);
                world.seen[partition] = world.seen[partition].max(process.reader.read[partition]);
            }
            Step::Cut { table, drains } => {
                let draining = BTreeSet::from_iter(drains.then_some(0));
                process.tables[table].cut(process.now, !drains, &draining);
            }
            Step::Start { table } => assert!(process.start_load(table), "a batch is ready"),
            Step::Land { flight } => process.land(world, flight),
            Step::LandUnheard { flight } => world.land(&mut process.flying[flight]),
            Step::Refuse { flight, row } => process.refuse(flight, row),
            Step::KeepLetters => process.keep_letters(world),
            Step::Release => process.release(world),
            Step::Revoke { partition, lost } => process.revoke(world, partition, lost),
            Step::Crash { lands } => system.crash(lands),
        }
        system
    }

    fn check_invariants(system: &System, reference: &Reference) {
        let System { world, process } = system;
        assert_eq!(process.reader.ledger.poisoned(), None);
        let flying: Vec<_> = process.flying.iter().map(|flight| rows_of(&flight.batch)).collect();
        let expected =
            reference.flying.iter().map(|flying| flying.rows.iter().map(|(row, _)| *row).collect());
        assert_eq!(flying, expected.collect::<Vec<Vec<_>>>(), "rows in flight");
        for partition in 0..PARTITIONS {
            assert_eq!(process.reader.watermark(partition), reference.watermark(partition), "watermark");
            assert_eq!(world.released[partition], reference.released[partition], "released");
            for record in records(partition, -1, world.released[partition]) {
                assert!(world.has(record), "{record:?} was released and is nowhere: {:?}", record.fate());
            }
        }
    }

    fn teardown(mut system: System, _: Reference) {
        system.crash(0);
        system.drain();
        assert_eq!(system.world.released, system.world.seen, "all is released in the end");
        Self::check_all(&system.world);
    }
}

impl System {
    fn check_all(world: &World) {
        for partition in 0..PARTITIONS {
            for record in records(partition, -1, world.seen[partition]) {
                assert!(world.has(record), "{record:?} is lost");
            }
        }
    }
}
