use std::collections::VecDeque;
use std::sync::mpsc;

use super::*;
use crate::batch::Batch;
use crate::batch::stage::fakes::{Shown, destination, owner};
use crate::batch::stage::{Done, Registration};
use crate::budget::Budget;
use crate::config::model::{BatchLimits, TableModel};
use crate::dead_letter::DeadLetterBox;
use crate::position::{Epoch, Partition, Stay};
use crate::rows::Target;

const SOON: Duration = Duration::from_secs(20);
const NEVER: Duration = Duration::from_secs(3600);
const BUDGET: u64 = 10_000;

fn stay() -> Stay {
    Stay { partition: Partition { source: "t".into(), number: 7 }, epoch: Epoch(1) }
}

/// Gives its chunks and ends. The stay is owned until it was asked for `asked` times.
struct Script {
    chunks: VecDeque<(Span, Columns)>,
    asked: u32,
}

impl Feed for Script {
    fn next(&mut self, into: &mut Columns) -> Result<Fed, Fault> {
        match self.chunks.pop_front() {
            Some((span, chunk)) => {
                *into = chunk;
                Ok(Fed::Chunk(span))
            }
            None => Ok(Fed::Ended),
        }
    }

    fn owns(&mut self, _stay: &Stay) -> bool {
        self.asked = self.asked.saturating_sub(1);
        self.asked > 0
    }
}

/// Records of `values` (none = tombstone) from offset 10 on.
fn script(values: &[Option<&str>], asked: u32) -> Script {
    let mut chunk = Columns { source: Some("t".into()), ..Columns::default() };
    for (place, value) in values.iter().enumerate() {
        chunk.values.push(format!("{}\n", value.unwrap_or_default()).as_bytes());
        chunk.keys.push(b"key");
        chunk.marks.push(if value.is_some() { MARK_VALUE | MARK_KEY } else { MARK_KEY });
        chunk.offsets.push(10 + place as i64);
    }
    let span = Span { stay: stay(), after: 9, upto: 9 + values.len() as i64 };
    Script { chunks: [(span, chunk)].into(), asked }
}

struct Bench {
    runtime: tokio::runtime::Runtime,
    parts: LaneParts,
    started: mpsc::Receiver<(Batch, Done)>,
    letters: tokio::sync::mpsc::Receiver<Bundle>,
    fills: tokio::sync::mpsc::Sender<Bundle>,
}

impl Bench {
    /// A pipeline of one table and no plugin, with dead letters of which one bundle may wait.
    fn new() -> Bench {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let stage = StageHandle::start(runtime.handle().clone()).expect("a thread");
        let share = Budget::new(BUDGET).share(BUDGET, 0);
        let (shows, started) = mpsc::channel();
        let registration = Registration {
            destinations: vec![destination("orders")],
            limits: BatchLimits { max_rows: 1_000, max_bytes: BUDGET, linger: NEVER, stretch: None },
            in_flight: 1,
            share: share.clone(),
            meters: Vec::new(),
            outlet: Arc::new(Shown(shows)),
            epochs: None,
        };
        stage.register(0, registration).expect("the stage lives");
        let (fills, letters) = tokio::sync::mpsc::channel(1);
        let letter_box = DeadLetterBox::to_test(fills.clone(), runtime.handle());
        let parts = LaneParts {
            stage,
            ledger: Ledger::new(),
            owner: Arc::new(owner(0, &share, Rejects::Keep(letter_box, None))),
            targets: Targets {
                tables: vec![Target { model: TableModel::Duplicate.into() }],
                own: Some(0),
                row_bytes_max: 1_000,
                names: std::sync::Arc::default(),
            },
            line_feeds: true,
        };
        parts.ledger.begin(stay(), 9);
        Bench { runtime, parts, started, letters, fills }
    }

    fn run(&self, script: Script) -> Result<(), Fault> {
        let chain = Chain::start(&[], &|_| Vec::new()).expect("no plugin to start");
        Lane::new(self.parts.clone(), script, chain).run()
    }

    fn bundle(&self, tickets: Vec<Ticket>) -> Bundle {
        let rejected = tickets.into_iter().map(|ticket| Rejected { letters: Vec::new(), ticket, records: 0 });
        Bundle::new(rejected.collect(), &self.parts.owner.share)
    }

    /// Read, dropped, given up and in flight.
    fn counts(&self) -> [u64; 4] {
        let meter = &self.parts.owner.meter;
        let in_flight = u64::try_from(meter.records_in_flight.get()).expect("not below zero");
        [meter.records_read.get(), meter.records_dropped.get(), meter.records_given_up.get(), in_flight]
    }

    fn safe_upto(&self) -> i64 {
        self.parts.ledger.watermark(&stay()).expect("the stay has begun").upto
    }
}

#[test]
fn rejects_become_letters_and_the_others_go_to_the_stage() {
    let mut bench = Bench::new();
    bench.run(script(&[Some("{\"a\":1}"), None, Some(" "), Some("{\"a\":2}")], 1)).expect("nothing halts");
    let bundle = bench.letters.try_recv().expect("letters");
    let [Rejected { letters, ticket, records }] = <[_; 1]>::try_from(bundle.rejected).expect("one span");
    let told: Vec<_> = letters.iter().map(|one| (one.offset, one.code.as_str(), one.stage)).collect();
    assert_eq!(told, [(11, "no_value", Stage::Read), (12, "empty", Stage::Read)]);
    assert_eq!((&letters[0].value, &letters[1].value), (&None, &Some(b" ".to_vec())));
    assert_eq!(letters[0].key.as_deref(), Some(&b"key"[..]));
    assert_eq!(records, 2);
    bench.parts.stage.drain(0).expect("the stage lives");
    let (batch, _done) = bench.started.recv_timeout(SOON).expect("a load");
    assert_eq!((batch.rows(), batch.records()), (2, 2));
    assert_eq!(bench.counts(), [4, 0, 0, 4]);
    batch.pieces.into_iter().for_each(|piece| drop(piece.settle()));
    assert_eq!(bench.safe_upto(), 9, "the letters are not durable");
    let _ = ticket.settle();
    assert_eq!(bench.safe_upto(), 13);
}

#[test]
fn without_dead_letters_the_first_reject_halts() {
    let mut bench = Bench::new();
    bench.parts.owner = Arc::new(owner(0, &bench.parts.owner.share, Rejects::Halt));
    let fault = bench.run(script(&[Some("{}"), None], 1)).expect_err("a reject");
    assert_eq!(fault.kind, FaultKind::Halt);
    assert!(fault.what.contains("t[7] offset 11: no_value"), "{}", fault.what);
    assert!(bench.parts.ledger.poisoned().is_some(), "nothing may be committed past it");
    assert_eq!((bench.parts.ledger.open_spans(), bench.safe_upto()), (0, 9));
}

#[test]
fn a_wait_for_the_budget_ends_when_the_partition_is_taken_back() {
    let bench = Bench::new();
    let all = bench.parts.owner.share.acquire(BUDGET, Duration::ZERO).expect("nothing is charged yet");
    bench.run(script(&[Some("{}")], 3)).expect("nothing halts");
    assert_eq!(bench.counts(), [0; 4]);
    assert_eq!((bench.parts.ledger.open_spans(), bench.parts.ledger.poisoned()), (0, None));
    assert_eq!(bench.parts.ledger.opened_upto(&stay()), Some(9));
    drop(all);
    assert_eq!(bench.parts.owner.share.used(), 0);
}

#[test]
fn a_wait_for_the_dead_letters_ends_when_the_partition_is_taken_back() {
    let bench = Bench::new();
    bench.fills.try_send(bench.bundle(Vec::new())).expect("room for one");
    bench.run(script(&[Some("{}"), None], 2)).expect("nothing halts");
    assert_eq!(bench.counts(), [2, 0, 2, 0]);
    assert_eq!((bench.parts.ledger.open_spans(), bench.parts.ledger.poisoned()), (0, None));
    assert_eq!((bench.safe_upto(), bench.parts.owner.share.used()), (9, 0));
    assert_eq!(
        bench.parts.stage.forget(0, vec![stay()], false).expect("the stage lives"),
        0,
        "a row got there"
    );
}

#[test]
fn letters_wait_for_a_writer_that_is_behind() {
    let mut bench = Bench::new();
    bench.fills.try_send(bench.bundle(Vec::new())).expect("room for one");
    let (parts, chain) = (bench.parts.clone(), Chain::start(&[], &|_| Vec::new()).expect("no plugin"));
    let lane = std::thread::spawn(move || Lane::new(parts, script(&[None], u32::MAX), chain).run());
    let mut come = || bench.runtime.block_on(bench.letters.recv()).expect("a bundle");
    assert_eq!((come().rejected.len(), come().rejected.len()), (0, 1));
    lane.join().expect("no panic").expect("nothing halts");
}
