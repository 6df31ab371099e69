//! The host's code with a world around it that outlives it: Kafka, StarRocks, kept letters.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest_state_machine::StateMachineTest;

use super::super::{Chunk, Fate, PARTITIONS, Reader, Record, TABLES, records};
use super::{LIMITS, LINGER, Reference, Step};
use crate::batch::stage::epoch::Gathering;
use crate::batch::stage::fakes::destination;
use crate::batch::stage::{Done, EpochOutlet};
use crate::batch::{Batch, Piece};
use crate::delivery::decision::{Decision, Recovery, Terms, label, recover};
use crate::ledger::{Ticket, Tickets};
use crate::sink::starrocks::state::LabelState;

const DAY: Duration = Duration::from_secs(86_400);

/// A transaction of StarRocks.
struct Transaction {
    state: LabelState,
    table: usize,
    rows: Vec<Record>,
}

/// What outlives the process.
struct World {
    /// Kafka: the last offset that is done, and the text beside it.
    standings: [(i64, String); PARTITIONS],
    transactions: BTreeMap<String, Transaction>,
    visible: BTreeMap<(usize, Record), u32>,
    kept: BTreeSet<Record>,
    seen: [i64; PARTITIONS],
    lives: u64,
}

struct Running {
    batches: Vec<Batch>,
    /// None while it waits for its next begin.
    seq: Option<u64>,
    prepared: usize,
    decision: Option<Decision>,
    committed: usize,
}

/// What dies with the process.
struct Process {
    stem: String,
    reader: Reader,
    gathering: Gathering,
    letters: Vec<(Record, Ticket)>,
    running: Option<Running>,
    begun: u64,
    now: Instant,
}

pub(super) struct System {
    world: World,
    process: Process,
}

/// The steps take what is cut themselves.
struct Nowhere;

impl EpochOutlet for Nowhere {
    fn start(&self, _: Vec<Batch>, _: Done) {}
}

fn terms() -> Terms {
    Terms { tables_max: TABLES as u32, prepared_timeout: DAY, database: "shop".into() }
}

fn rows_of(batch: &Batch) -> Vec<Record> {
    batch.pieces.iter().flat_map(Piece::iter).map(|(_, row)| Record::of_row(row)).collect()
}

fn table_of(batch: &Batch) -> usize {
    usize::from(batch.destination.table == "t1")
}

impl World {
    fn state_of(&self, label: &str) -> LabelState {
        self.transactions.get(label).map_or(LabelState::Unknown, |transaction| transaction.state)
    }

    fn prepare(&mut self, label: String, batch: &Batch) {
        let (state, table, rows) = (LabelState::Prepared, table_of(batch), rows_of(batch));
        let before = self.transactions.insert(label, Transaction { state, table, rows });
        assert!(before.is_none(), "a label is never used again");
    }

    fn commit(&mut self, label: &str) {
        let transaction = self.transactions.get_mut(label).expect("it was prepared");
        transaction.state = LabelState::Visible;
        for record in &transaction.rows {
            *self.visible.entry((transaction.table, *record)).or_default() += 1;
        }
    }

    fn roll_back(&mut self, label: &str) {
        let found = self.transactions.get_mut(label);
        if let Some(transaction) = found.filter(|found| found.state == LabelState::Prepared) {
            transaction.state = LabelState::Aborted;
        }
    }

    fn forget(&mut self) {
        self.transactions.retain(|_, transaction| transaction.state == LabelState::Prepared);
    }

    /// Does what the host does about a label that was decided.
    fn settle(&mut self, label: &str, decision: &Decision) {
        let timeout = Duration::from_secs(decision.prepared_timeout_s);
        match recover(self.state_of(label), Duration::ZERO, timeout) {
            Recovery::Done => {}
            Recovery::Commit => self.commit(label),
            Recovery::Lost => panic!("decided load {label} is lost"),
        }
    }

    fn decision_at(&self, partition: usize) -> Option<Decision> {
        Decision::read(&self.standings[partition].1).expect("our own form")
    }

    fn write(&mut self, offsets: [i64; PARTITIONS], decision: &Decision) {
        for (standing, offset) in self.standings.iter_mut().zip(offsets) {
            *standing = (offset, decision.beginning_at(standing.0 + 1).to_metadata());
        }
    }

    fn committed(&self) -> [i64; PARTITIONS] {
        std::array::from_fn(|partition| self.standings[partition].0)
    }

    /// Whether a row is in its table, or will be by what stands in Kafka.
    fn has(&self, table: usize, record: Record) -> bool {
        let decided = self
            .decision_at(record.partition)
            .into_iter()
            .flat_map(|decision| decision.labels().collect::<Vec<_>>());
        let named = decided.filter_map(|label| self.transactions.get(&label));
        let mut prepared = named.filter(|found| found.state == LabelState::Prepared);
        self.visible.contains_key(&(table, record))
            || prepared.any(|found| found.table == table && found.rows.contains(&record))
    }
}

impl Process {
    /// Takes over: commits what was decided, claims, gives up what was not, and reads on.
    fn start(world: &mut World) -> Process {
        let before: Vec<Decision> =
            (0..PARTITIONS).filter_map(|partition| world.decision_at(partition)).collect();
        for decision in &before {
            decision.labels().for_each(|label| world.settle(&label, decision));
        }
        world.lives += 1;
        let stem = format!("life-{}", world.lives);
        world.write(world.committed(), &Decision::empty(&stem, 0, &terms()));
        for decision in &before {
            decision.undecided_labels().for_each(|label| world.roll_back(&label));
        }
        let reader = Reader::starting(world.committed());
        let destinations = (0..TABLES).map(|number| destination(&format!("t{number}"))).collect();
        let gathering = Gathering::new(destinations, LIMITS, reader.share.clone(), Arc::new(Nowhere));
        let (letters, running, now) = (Vec::new(), None, Instant::now());
        Process { stem, reader, gathering, letters, running, begun: 0, now }
    }

    fn read(&mut self, partition: usize, places: i64) {
        let Chunk { pieces, letters } = self.reader.next_chunk(partition, places);
        self.letters.extend(letters);
        let pieces = pieces.into_iter().map(|(table, piece)| (table as u16, piece)).collect();
        self.gathering.append(pieces, self.now);
    }

    fn begin(&mut self) {
        self.begun += 1;
        let running = self.running.get_or_insert_with(|| Running {
            batches: self.gathering.next().expect("an epoch was cut"),
            seq: None,
            prepared: 0,
            decision: None,
            committed: 0,
        });
        (running.seq, running.prepared) = (Some(self.begun), 0);
    }

    fn labels(&self) -> Vec<String> {
        let running = self.running.as_ref().expect("an epoch runs");
        let seq = running.seq.expect("it has begun");
        (0..running.batches.len()).map(|place| label(&self.stem, seq, place as u32)).collect()
    }

    fn prepare(&mut self, world: &mut World) {
        let labels = self.labels();
        let running = self.running.as_mut().expect("an epoch runs");
        if let Some(batch) = running.batches.get(running.prepared) {
            assert!(!batch.pieces.is_empty(), "an epoch has no load without rows");
            world.prepare(labels[running.prepared].clone(), batch);
            running.prepared += 1;
        }
    }

    fn abandon(&mut self, world: &mut World, arrives: bool) {
        if arrives {
            self.labels().iter().for_each(|label| world.roll_back(label));
        }
        self.running.as_mut().expect("an epoch runs").seq = None;
    }

    fn decide(&mut self, world: &mut World, written: bool, answered: bool) {
        let running = self.running.as_mut().expect("an epoch runs");
        let mut tickets = Tickets::new();
        for piece in running.batches.iter().flat_map(|batch| &batch.pieces) {
            *tickets.entry((piece.ticket().stay().clone(), piece.ticket().place())).or_default() += 1;
        }
        let Some(safe) = self.reader.ledger.safe_with(&tickets, &Tickets::new()) else { return };
        let seq = running.seq.expect("it has begun");
        let decision = Decision::of_epoch(&self.stem, seq, running.batches.len() as u32, 1, &terms());
        if written {
            let offsets = std::array::from_fn(|partition| safe[&self.reader.stays[partition]].upto);
            world.write(offsets, &decision);
        }
        let stands = |world: &World| world.decision_at(0).is_some_and(|found| found.is_same_epoch(&decision));
        let known = if answered { written } else { stands(world) };
        if known {
            running.decision = Some(decision);
        } else {
            self.abandon(world, true);
        }
    }

    fn commit(&mut self, world: &mut World) {
        let labels = self.labels();
        let running = self.running.as_mut().expect("an epoch runs");
        let decision = running.decision.as_ref().expect("it is decided");
        world.settle(&labels[running.committed], decision);
        running.committed += 1;
    }

    fn leave(&mut self) {
        let running = self.running.take().expect("an epoch runs");
        let pieces = running.batches.into_iter().flat_map(|batch| batch.pieces);
        pieces.for_each(|piece| drop(piece.settle()));
        self.gathering.finished();
    }

    fn write_done(&self, world: &mut World) {
        let committed = world.committed();
        let offsets =
            std::array::from_fn(|partition| committed[partition].max(self.reader.watermark(partition)));
        world.write(offsets, &Decision::empty(&self.stem, self.begun, &terms()));
    }

    fn keep_letters(&mut self, world: &mut World) {
        for (record, ticket) in self.letters.drain(..) {
            world.kept.insert(record);
            let _ = ticket.settle_kept(1);
        }
    }
}

impl System {
    fn crash(&mut self, arrives: bool) {
        let undecided = |running: &Running| running.seq.is_some() && running.decision.is_none();
        if arrives && self.process.running.as_ref().is_some_and(undecided) {
            self.process.prepare(&mut self.world);
        }
        self.process = Process::start(&mut self.world);
    }

    /// Loads and decides whatever is left of what was ever read.
    fn drain(&mut self) {
        let System { world, process } = self;
        for partition in 0..PARTITIONS {
            let left = world.seen[partition] - process.reader.read[partition];
            if left > 0 {
                process.read(partition, left);
            }
        }
        process.keep_letters(world);
        loop {
            process.gathering.cut(process.now, true);
            let Some(batches) = process.gathering.next() else { break };
            let (seq, prepared, decision, committed) = (None, 0, None, 0);
            process.running = Some(Running { batches, seq, prepared, decision, committed });
            process.begin();
            (0..TABLES).for_each(|_| process.prepare(world));
            process.decide(world, true, true);
            (0..process.labels().len()).for_each(|_| process.commit(world));
            process.leave();
        }
        process.write_done(world);
    }
}

impl StateMachineTest for System {
    type SystemUnderTest = System;
    type Reference = Reference;

    fn init_test(reference: &Reference) -> System {
        let mut world = World {
            standings: reference.committed.map(|offset| (offset, String::new())),
            transactions: BTreeMap::new(),
            visible: BTreeMap::new(),
            kept: BTreeSet::new(),
            seen: reference.committed,
            lives: 0,
        };
        System { process: Process::start(&mut world), world }
    }

    fn apply(mut system: System, _: &Reference, step: Step) -> System {
        let System { world, process } = &mut system;
        match step {
            Step::Read { partition, places } => {
                process.read(partition, places);
                world.seen[partition] = world.seen[partition].max(process.reader.read[partition]);
            }
            Step::Cut { drains } => {
                // Nobody waits for room here, so that only a drain cuts; the host's other reasons are `decide`'s.
                process.gathering.cut(process.now + if drains { Duration::ZERO } else { LINGER }, drains);
            }
            Step::Begin => process.begin(),
            Step::Prepare => process.prepare(world),
            Step::Abandon { arrives } => process.abandon(world, arrives),
            Step::Decide { written, answered } => process.decide(world, written, answered),
            Step::Commit => process.commit(world),
            Step::Leave => process.leave(),
            Step::WriteDone => process.write_done(world),
            Step::KeepLetters => process.keep_letters(world),
            Step::Forget => world.forget(),
            Step::Crash { arrives } => {
                system.crash(arrives);
                system.check_loaded_is_committed();
            }
        }
        system
    }

    fn check_invariants(system: &System, reference: &Reference) {
        let System { world, process } = system;
        assert_eq!(process.reader.ledger.poisoned(), None);
        assert_eq!(world.committed(), reference.committed, "offsets in Kafka");
        assert!(world.visible.values().all(|count| *count == 1), "rows came twice: {:?}", world.visible);
        for partition in 0..PARTITIONS {
            for record in records(partition, -1, reference.committed[partition]) {
                match record.fate() {
                    Fate::Gap | Fate::Dropped => {}
                    Fate::Letter => assert!(world.kept.contains(&record), "letter {record:?} is nowhere"),
                    Fate::Rows(tables) => {
                        assert!(
                            tables.iter().all(|table| world.has(*table, record)),
                            "{record:?} is nowhere"
                        );
                    }
                }
            }
        }
    }

    fn teardown(mut system: System, _: Reference) {
        system.crash(true);
        system.drain();
        assert_eq!(system.world.committed(), system.world.seen, "all is decided in the end");
        system.check_loaded_is_committed();
    }
}

impl System {
    /// After a recovery the tables hold the rows up to the offsets, once, and none behind them.
    fn check_loaded_is_committed(&self) {
        let committed = self.world.committed();
        let all = (0..PARTITIONS).flat_map(|partition| records(partition, -1, committed[partition]));
        let rows = all.flat_map(|record| (0..TABLES).map(move |table| (table, record)));
        let expected: BTreeMap<_, u32> =
            rows.filter(|(table, record)| record.is_row_of(*table)).map(|row| (row, 1)).collect();
        assert_eq!(self.world.visible, expected);
    }
}
