//! Ledger, batches, release and restart against short references, with a crash after any step.
//!
//! What is under test is the host's own code: [`Ledger`], [`Table`], [`Gathering`], `Piece`, `recover`. What stands around it
//! is a world of maps that outlives a crash: released offsets, loaded rows, kept letters. `PROPTEST_CASES` says how
//! many sequences there are instead of 500.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::{Config, TestRunner};
use proptest_state_machine::ReferenceStateMachine;

use super::fakes;
use crate::batch::{FIRST_ROW, Piece, RowIndex};
use crate::budget::{Budget, Share};
use crate::dead_letter::Rejects;
use crate::delivery::owner::Owner;
use crate::ledger::{Ledger, Ticket};
use crate::position::{Epoch, Partition, Span, Stay};

mod at_least_once;
mod exactly_once;
mod recovery;

const PARTITIONS: usize = 2;
const TABLES: usize = 2;
const SEQUENCES: u32 = 500;
/// A budget that nothing here fills, in bytes.
const ROOM: u64 = 1 << 20;

fn config() -> Config {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    let cases = cases.unwrap_or(SEQUENCES);
    // A step that the state does not allow is drawn again, and counts as a reject: a few hundred in long sequences.
    let max_local_rejects = cases.saturating_mul(1_000).max(65_536);
    Config { cases, max_local_rejects, failure_persistence: None, ..Config::default() }
}

/// Fewer sequences than this that meet a situation would show little of it.
const REACHED_MIN: u32 = 25;

/// Expects that sequences as they are generated meet what they are for. `met` names the situation of a step.
fn must_reach<R: ReferenceStateMachine>(
    situations: &[&'static str],
    met: impl Fn(&R::State, &R::Transition) -> Option<&'static str>,
) {
    let (mut runner, strategy) = (TestRunner::deterministic(), R::sequential_strategy(1..=64));
    let mut reached: BTreeMap<&str, u32> = situations.iter().map(|situation| (*situation, 0)).collect();
    for _ in 0..SEQUENCES {
        let (mut state, steps, _) = strategy.new_tree(&mut runner).expect("a sequence").current();
        for step in steps {
            if let Some(situation) = met(&state, &step) {
                *reached.entry(situation).or_default() += 1;
            }
            state = R::apply(state, &step);
        }
    }
    assert!(reached.values().all(|times| *times >= REACHED_MIN), "{reached:?}");
}

/// A record by its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Record {
    partition: usize,
    offset: i64,
}

/// What becomes of a record: a function of its place, so that it is the same when it is read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// No record: a place that compaction or a transaction has left.
    Gap,
    /// A plugin leaves it out.
    Dropped,
    /// A plugin refuses it.
    Letter,
    /// It becomes a row of these tables.
    Rows(&'static [usize]),
}

impl Record {
    fn fate(self) -> Fate {
        match (self.offset * 7 + self.partition as i64 * 3) % 10 {
            0 => Fate::Gap,
            1 => Fate::Dropped,
            2 => Fate::Letter,
            3 => Fate::Rows(&[0, 1]),
            other => Fate::Rows(if other % 2 == 0 { &[0] } else { &[1] }),
        }
    }

    fn is_row_of(self, table: usize) -> bool {
        matches!(self.fate(), Fate::Rows(tables) if tables.contains(&table))
    }

    /// Its row, of 20 to 44 bytes and now and then of more than a batch may have.
    fn row(self) -> String {
        let pad = if self.offset % 13 == 12 { 150 } else { self.offset % 25 };
        let pad = "x".repeat(usize::try_from(pad).expect("small"));
        format!("{{\"p\":{},\"n\":{},\"x\":\"{pad}\"}}\n", self.partition, self.offset)
    }

    /// Reads a row back.
    fn of_row(row: &[u8]) -> Record {
        let row: serde_json::Value = serde_json::from_slice(row).expect("a row is JSON");
        let number = |name: &str| row[name].as_i64().expect("a number");
        Record { partition: usize::try_from(number("p")).expect("small"), offset: number("n") }
    }
}

/// The records of a partition from behind `after` up to `upto`.
fn records(partition: usize, after: i64, upto: i64) -> impl Iterator<Item = Record> {
    (after + 1..=upto).map(move |offset| Record { partition, offset })
}

/// The part of a process that reads: a ledger with a stay of each partition.
struct Reader {
    ledger: Ledger,
    stays: [Stay; PARTITIONS],
    read: [i64; PARTITIONS],
    share: Share,
    owner: Arc<Owner>,
}

/// What a chunk becomes.
struct Chunk {
    pieces: Vec<(usize, Piece)>,
    letters: Vec<(Record, Ticket)>,
}

fn stay(partition: usize, epoch: u64) -> Stay {
    let number = u32::try_from(partition).expect("small");
    Stay { partition: Partition { source: "orders".into(), number }, epoch: Epoch(epoch) }
}

fn partition_of(stay: &Stay) -> usize {
    stay.partition.number as usize
}

impl Reader {
    /// Reads on behind `released`.
    fn starting(released: [i64; PARTITIONS]) -> Reader {
        let share = Budget::new(ROOM).share(ROOM, 0);
        let owner = Arc::new(fakes::owner(0, &share, Rejects::Halt));
        let reader = Reader {
            ledger: Ledger::new(),
            stays: std::array::from_fn(|partition| stay(partition, 1)),
            read: released,
            share,
            owner,
        };
        for (stay, released) in reader.stays.iter().zip(released) {
            reader.ledger.begin(stay.clone(), released);
        }
        reader
    }

    /// A further stay of a partition, behind `released`.
    fn stay_anew(&mut self, partition: usize, released: i64) {
        self.stays[partition] = stay(partition, self.stays[partition].epoch.0 + 1);
        self.read[partition] = released;
        self.ledger.begin(self.stays[partition].clone(), released);
    }

    /// The next `places` places of a partition as a chunk, as a lane makes it.
    fn next_chunk(&mut self, partition: usize, places: i64) -> Chunk {
        let (after, upto) = (self.read[partition], self.read[partition] + places);
        self.read[partition] = upto;
        let span = Span { stay: self.stays[partition].clone(), after, upto };
        let ticket = self.ledger.open(&span).expect("the stay stands");
        let all = || records(partition, after, upto);
        let refused = all().filter(|record| record.fate() == Fate::Letter);
        let letters = refused.map(|record| (record, ticket.hold())).collect();
        let pieces = (0..TABLES).filter_map(|table| {
            let rows: Vec<Record> = all().filter(|record| record.is_row_of(table)).collect();
            Some((table, self.piece(table, &rows, ticket.hold())?))
        });
        let pieces = pieces.collect();
        let dropped = all().filter(|record| record.fate() == Fate::Dropped).count();
        let _ = ticket.settle_dropped(dropped as u64);
        Chunk { pieces, letters }
    }

    fn piece(&self, table: usize, rows: &[Record], ticket: Ticket) -> Option<Piece> {
        let Some(first) = rows.first() else {
            let _ = ticket.settle();
            return None;
        };
        let (mut body, mut ends, mut deltas) = (Vec::new(), Vec::new(), Vec::new());
        for record in rows {
            body.extend_from_slice(record.row().as_bytes());
            ends.push(body.len() as u32);
            let counts = matches!(record.fate(), Fate::Rows(tables) if tables[0] == table);
            deltas.push((record.offset - first.offset) as u32 | if counts { FIRST_ROW } else { 0 });
        }
        let index = RowIndex { ends, deltas, keys: Vec::new(), base: first.offset, source: "orders".into() };
        let owner = Arc::clone(&self.owner);
        Some(Piece::new(body.into(), index, None, ticket, self.share.overdraft(0), owner))
    }

    fn watermark(&self, partition: usize) -> i64 {
        self.ledger.watermark(&self.stays[partition]).expect("the stay stands").upto
    }
}
