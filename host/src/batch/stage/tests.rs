use std::sync::mpsc;
use std::time::Duration;

use super::fakes::{Shown, destination, owner};
use super::*;
use crate::batch::{Cut, FIRST_ROW, RowIndex};
use crate::budget::Budget;
use crate::config::model::{StretchBounds, TableModel};
use crate::dead_letter::Rejects;
use crate::delivery::owner::Owner;
use crate::ledger::Ledger;
use crate::position::{Epoch, Partition, Span};

/// How long something that has to happen may take.
const SOON: Duration = Duration::from_secs(20);
/// A linger that is never over within a test.
const NEVER: Duration = Duration::from_secs(3600);
/// A budget that nothing here fills.
const ROOM: u64 = 1 << 20;

struct Bench {
    runtime: tokio::runtime::Runtime,
    stage: StageHandle,
    started: mpsc::Receiver<(Batch, Done)>,
    ledger: Ledger,
    share: Share,
    owners: [Arc<Owner>; 2],
}

fn stay(number: u32) -> Stay {
    Stay { partition: Partition { source: "t".into(), number }, epoch: Epoch(1) }
}

impl Bench {
    /// A stage with two pipelines of the same two tables.
    fn new(max_rows: u64, linger: Duration, in_flight: usize) -> Bench {
        Bench::with_budget(max_rows, linger, in_flight, ROOM)
    }

    fn with_budget(max_rows: u64, linger: Duration, in_flight: usize, budget: u64) -> Bench {
        let limits = BatchLimits { max_rows, max_bytes: ROOM, linger, stretch: None };
        Bench::with_limits(limits, in_flight, budget)
    }

    fn with_limits(limits: BatchLimits, in_flight: usize, budget: u64) -> Bench {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let stage = StageHandle::start(runtime.handle().clone()).expect("a thread");
        let share = Budget::new(budget).share(budget, 0);
        let (shows, started) = mpsc::channel();
        let outlet = Arc::new(Shown(shows));
        for pipeline in [0, 1] {
            let registration = Registration {
                destinations: vec![destination("orders"), destination("events")],
                limits,
                in_flight,
                share: share.clone(),
                meters: Vec::new(),
                outlet: outlet.clone(),
                epochs: None,
            };
            stage.register(pipeline, registration).expect("the stage lives");
        }
        let owners = [0, 1].map(|pipeline| Arc::new(owner(pipeline, &share, Rejects::Halt)));
        let ledger = Ledger::new();
        (0..3).for_each(|number| ledger.begin(stay(number), -1));
        Bench { runtime, stage, started, ledger, share, owners }
    }

    /// A span of `rows` records of partition `number`, all of which go to `table`.
    fn hand_over(&mut self, number: u32, table: TableIndex, rows: usize) {
        self.hand_over_by(0, number, table, rows);
    }

    fn hand_over_by(&mut self, pipeline: usize, number: u32, table: TableIndex, rows: usize) {
        let after = self.ledger.opened_upto(&stay(number)).expect("the stay has begun");
        let upto = after + rows as i64;
        let ticket = self.ledger.open(&Span { stay: stay(number), after, upto }).expect("the stay has begun");
        let index = RowIndex {
            ends: (1..=rows as u32).map(|row| row * 3).collect(),
            deltas: (0..rows as u32).map(|row| row | FIRST_ROW).collect(),
            keys: Vec::new(),
            base: after + 1,
            source: "t".into(),
        };
        let body = b"{}\n".repeat(rows);
        let permit = self.share.overdraft(body.len() as u64);
        let piece = Piece::new(body.into(), index, None, ticket, permit, Arc::clone(&self.owners[pipeline]));
        self.stage.hand_over(pipeline as PipelineId, vec![(table, piece)]).expect("the stage lives");
    }

    /// The next batch whose load was started.
    #[track_caller]
    fn next(&self) -> (Batch, Done) {
        self.started.recv_timeout(SOON).expect("a load within the time")
    }

    /// Nothing was started, and all that was said to the stage has been heard.
    #[track_caller]
    fn nothing_started(&self) {
        self.stage.forget(0, Vec::new(), false).expect("the stage lives");
        assert!(self.started.try_recv().is_err(), "a load was started");
    }

    fn land(&self, (batch, done): (Batch, Done)) {
        batch.pieces.into_iter().for_each(|piece| drop(piece.settle()));
        self.runtime.block_on(done.finish());
    }

    fn safe_upto(&self, number: u32) -> i64 {
        self.ledger.watermark(&stay(number)).expect("the stay has begun").upto
    }
}

#[test]
fn a_batch_is_loaded_when_it_is_old_enough() {
    let linger = Duration::from_millis(30);
    let mut bench = Bench::new(100, linger, 1);
    let began = Instant::now();
    bench.hand_over(0, 0, 2);
    let (batch, done) = bench.next();
    assert!(began.elapsed() >= linger);
    assert_eq!((batch.reason, batch.rows(), batch.destination.table.as_str()), (Cut::Linger, 2, "orders"));
    bench.land((batch, done));
    assert_eq!(bench.safe_upto(0), 1);
    assert_eq!(bench.share.used(), 0);
}

#[test]
fn a_busy_table_holds_its_next_batch_until_its_load_has_ended() {
    let mut bench = Bench::new(2, NEVER, 1);
    bench.hand_over(0, 0, 2);
    let first = bench.next();
    bench.hand_over(1, 0, 2);
    bench.nothing_started();
    // Another table is not concerned.
    bench.hand_over(2, 1, 2);
    let other = bench.next();
    assert_eq!(other.0.destination.table, "events");
    bench.land(first);
    let second = bench.next();
    assert_eq!((second.0.reason, second.0.rows()), (Cut::Rows, 2));
    bench.land(second);
    bench.land(other);
    assert_eq!([bench.safe_upto(0), bench.safe_upto(1), bench.safe_upto(2)], [1, 1, 1]);
}

#[test]
fn as_many_loads_are_on_their_way_as_allowed() {
    let mut bench = Bench::new(1, NEVER, 2);
    bench.hand_over(0, 0, 3);
    let (first, _second) = (bench.next(), bench.next());
    bench.nothing_started();
    bench.land(first);
    let third = bench.next();
    assert_eq!(third.0.rows(), 1);
    assert_eq!(bench.safe_upto(0), -1, "its second row is on its way");
}

#[test]
fn a_waiting_reader_cuts_the_largest_batch_that_can_be_loaded_at_once() {
    // A row is charged 11 bytes: its own 3, and 8 of the index. There is room for what the reader wants when the larger
    // batch has landed.
    let mut bench = Bench::with_budget(100, NEVER, 1, 400);
    bench.hand_over(0, 0, 10);
    bench.hand_over(1, 1, 20);
    let reader = {
        let share = bench.share.clone();
        std::thread::spawn(move || share.acquire(180, SOON).map(|permit| permit.bytes()))
    };
    while !bench.share.is_waiting() {
        std::thread::yield_now();
    }
    bench.stage.nudge();
    let batch = bench.next();
    assert_eq!((batch.0.reason, batch.0.destination.table.as_str()), (Cut::Pressure, "events"));
    bench.land(batch);
    assert_eq!(reader.join().expect("no panic"), Some(180));
}

#[test]
fn draining_loads_what_is_open() {
    let mut bench = Bench::new(100, NEVER, 1);
    bench.hand_over(0, 0, 3);
    bench.hand_over(1, 0, 3);
    bench.nothing_started();
    bench.stage.drain(0).expect("the stage lives");
    let batch = bench.next();
    assert_eq!((batch.0.reason, batch.0.rows()), (Cut::Flush, 6));
}

#[test]
fn only_rows_of_the_stays_named_are_dropped() {
    let mut bench = Bench::new(100, NEVER, 1);
    bench.hand_over(0, 0, 3);
    bench.hand_over(1, 0, 4);
    bench.hand_over(0, 1, 5);
    assert_eq!(bench.stage.forget(0, vec![stay(0)], true).expect("the stage lives"), 8);
    assert!(bench.ledger.is_quiet(&stay(0)));
    assert_eq!((bench.safe_upto(0), bench.ledger.poisoned()), (-1, None));
    bench.stage.drain(0).expect("the stage lives");
    let batch = bench.next();
    assert_eq!((batch.0.rows(), batch.0.destination.table.as_str()), (4, "orders"));
    bench.land(batch);
    assert_eq!(bench.safe_upto(1), 3);
}

/// The next owner begins behind the last span that is safe: a span of which some rows were sent and the
/// others dropped would be loaded again whole.
#[test]
fn what_was_begun_is_finished_when_a_partition_is_given_up() {
    let mut bench = Bench::new(3, NEVER, 1);
    bench.hand_over(0, 1, 1);
    bench.hand_over(0, 0, 4);
    bench.hand_over(0, 0, 1);
    let sent = bench.next();
    assert_eq!(sent.0.rows(), 3);
    // Dropped: the last span. Finished: the fourth row of the one before it, and the span before that.
    assert_eq!(bench.stage.forget(0, vec![stay(0)], true).expect("the stage lives"), 1);
    let before = bench.next();
    assert_eq!((before.0.reason, before.0.destination.table.as_str()), (Cut::Flush, "events"));
    bench.land(sent);
    let rest = bench.next();
    assert_eq!((rest.0.reason, rest.0.rows()), (Cut::Flush, 1));
    bench.land(before);
    bench.land(rest);
    assert!(bench.ledger.is_quiet(&stay(0)));
    assert_eq!(bench.safe_upto(0), 4);
}

#[test]
fn nothing_is_finished_for_a_partition_that_is_lost() {
    let mut bench = Bench::new(3, NEVER, 1);
    bench.hand_over(0, 0, 4);
    let sent = bench.next();
    assert_eq!(bench.stage.forget(0, vec![stay(0)], false).expect("the stage lives"), 1);
    bench.land(sent);
    bench.nothing_started();
    assert_eq!((bench.safe_upto(0), bench.ledger.is_quiet(&stay(0))), (-1, true));
}

#[test]
fn rows_of_a_pipeline_that_is_gone_are_given_up() {
    let mut bench = Bench::new(100, NEVER, 1);
    bench.hand_over(0, 0, 1);
    bench.stage.remove(0);
    bench.hand_over(0, 0, 1);
    bench.nothing_started();
    assert_eq!((bench.ledger.open_spans(), bench.ledger.poisoned()), (0, None));
    assert_eq!(bench.share.used(), 0);
}

#[test]
fn pipelines_into_one_table_share_its_batches_and_part_without_the_other() {
    let mut bench = Bench::new(4, NEVER, 1);
    bench.hand_over_by(0, 0, 0, 2);
    bench.nothing_started();
    bench.hand_over_by(1, 1, 0, 2);
    let (batch, done) = bench.next();
    let owners: Vec<_> = batch.pieces.iter().map(|piece| piece.owner().pipeline).collect();
    assert_eq!((batch.reason, owners), (Cut::Rows, vec![0, 1]));
    bench.land((batch, done));

    // One that ends takes only its own rows along, and one that drains waits for nobody.
    bench.hand_over_by(0, 0, 0, 1);
    bench.hand_over_by(1, 1, 0, 1);
    bench.stage.remove(0);
    bench.stage.drain(1).expect("the stage lives");
    let (batch, done) = bench.next();
    let owners: Vec<_> = batch.pieces.iter().map(|piece| piece.owner().pipeline).collect();
    assert_eq!((batch.reason, owners), (Cut::Flush, vec![1]));
    bench.land((batch, done));
    assert_eq!((bench.safe_upto(0), bench.safe_upto(1)), (1, 2));
}

#[test]
fn what_one_pipeline_gives_up_is_not_the_others() {
    let mut bench = Bench::new(100, NEVER, 1);
    // Both call their partition and its stay by the same name.
    bench.hand_over_by(0, 0, 0, 1);
    bench.hand_over_by(1, 0, 0, 1);
    assert_eq!(bench.stage.forget(1, vec![stay(0)], false).expect("the stage lives"), 1);
    bench.stage.drain(0).expect("the stage lives");
    let (batch, done) = bench.next();
    assert_eq!((batch.rows(), batch.pieces[0].owner().pipeline), (1, 0));
    bench.land((batch, done));
}

/// A Primary Key table whose rows know its key, or do not.
fn with_key(key: &[&str]) -> Arc<Destination> {
    let key = key.iter().map(|column| (*column).to_owned()).collect();
    let plain = destination("orders");
    let (cluster, table) = (Arc::clone(&plain.cluster), plain.table.clone());
    Arc::new(Destination { cluster, table, model: TableModel::Primary, key })
}

/// A source's table may go and come again with another key, and a pipeline that does not know the key is welcome to both.
#[test]
fn rows_are_folded_by_the_key_that_they_came_with() {
    let bench = Bench::new(1, NEVER, 1);
    let (shows, started) = mpsc::channel();
    let outlet = Arc::new(Shown(shows));
    let key_of_next = |pipeline: PipelineId, key: &[&str]| {
        let registration = Registration {
            destinations: vec![with_key(key)],
            // Other limits than those of the bench's own pipelines, which share no batch with these.
            limits: BatchLimits { max_rows: 1, max_bytes: ROOM / 2, linger: NEVER, stretch: None },
            in_flight: 1,
            share: bench.share.clone(),
            meters: Vec::new(),
            outlet: outlet.clone(),
            epochs: None,
        };
        bench.stage.register(pipeline, registration).expect("the stage lives");
        let piece = crate::batch::fakes::numbered_rows(0..1);
        bench.stage.hand_over(pipeline, vec![(0, piece)]).expect("the stage lives");
        let (batch, done) = started.recv_timeout(SOON).expect("a load within the time");
        let key = batch.destination.key.clone();
        bench.land((batch, done));
        key
    };
    assert_eq!(key_of_next(2, &["id"]), ["id"]);
    assert_eq!(key_of_next(2, &["id", "region"]), ["id", "region"]);
    // Another one is still where the first key holds, and one that knows none shares with either.
    assert_eq!(key_of_next(3, &["id"]), ["id"]);
    assert_eq!(key_of_next(4, &[]), ["id"]);
    assert_eq!(key_of_next(2, &["id", "region"]), ["id", "region"]);
}

#[test]
fn rows_are_as_old_as_their_arrival_but_what_trickled_in_is_not() {
    let (shows, _started) = mpsc::channel();
    let limits =
        BatchLimits { max_rows: 100, max_bytes: ROOM, linger: Duration::from_secs(8), stretch: None };
    let mut table = table::Table::new(destination("orders"), limits, 1, Arc::new(Shown(shows)));
    // From where an hour ago is a time that there was.
    let now = Instant::now() + NEVER;
    let age = |arrived: Option<Duration>, table: &mut table::Table| {
        let piece = crate::batch::fakes::numbered_rows(0..1);
        table.append(piece.arrived_at(arrived.map(|ago| now - ago)), now, &BTreeSet::new());
        now + limits.linger - table.deadline().expect("a batch waits")
    };
    assert_eq!(age(None, &mut table), Duration::ZERO);
    let arrived = Duration::from_millis(300);
    assert_eq!(age(Some(arrived), &mut table), arrived);
    // The oldest row counts, however late it came.
    assert_eq!(age(Some(Duration::ZERO), &mut table), arrived);
    assert_eq!(age(Some(NEVER), &mut table), Duration::from_secs(1));
}

/// Batches of ten rows that may grow to forty.
fn stretching(calm: Duration) -> BatchLimits {
    let bounds = StretchBounds { max_rows: 40, max_bytes: 2 * ROOM, linger: NEVER, versions: 100, calm };
    BatchLimits { max_rows: 10, max_bytes: ROOM, linger: NEVER, stretch: Some(bounds) }
}

#[test]
fn batches_grow_under_version_pressure_and_those_cut_before_it_go_as_one() {
    let mut bench = Bench::with_limits(stretching(NEVER), 1, ROOM);
    bench.hand_over(0, 0, 10);
    let first = bench.next();
    bench.hand_over(1, 0, 30);
    bench.nothing_started();
    first.1.signs().show(&first.0.destination, Sign::Refused);
    bench.land(first);
    let second = bench.next();
    assert_eq!((second.0.rows(), second.0.reason), (20, Cut::Rows), "two of ten");
    // What comes now is cut later; another table is not concerned.
    bench.hand_over(2, 0, 15);
    bench.hand_over(2, 1, 10);
    let other = bench.next();
    assert_eq!((other.0.destination.table.as_str(), other.0.rows()), ("events", 10));
    bench.land(second);
    let third = bench.next();
    assert_eq!(third.0.rows(), 10, "together they would be more than a batch may have");
    bench.land(third);
    bench.nothing_started();
    bench.hand_over(2, 0, 5);
    assert_eq!(bench.next().0.rows(), 20);
    bench.land(other);
}

/// An update of some columns that was loaded with rows whose key nobody knows would be loaded as a whole row.
#[test]
fn batches_from_before_and_after_the_key_was_known_are_loaded_apart() {
    let limits = stretching(NEVER);
    let outlet = Arc::new(Shown(mpsc::channel().0));
    let mut table = table::Table::new(with_key(&[]), limits, 1, outlet);
    let now = Instant::now();
    let append = |table: &mut table::Table, rows| {
        table.append(crate::batch::fakes::numbered_rows(rows), now, &BTreeSet::new());
    };
    append(&mut table, 0..10);
    append(&mut table, 10..20);
    table.welcome(&with_key(&["id"]));
    append(&mut table, 20..30);
    append(&mut table, 30..40);
    assert!(table.see(Sign::Refused, now) && table.see(Sign::Refused, now + Duration::from_secs(2)));
    assert_eq!(table.strain.limits().max_rows, 40, "all of it would fit into one load");
    let loads = [(); 3].map(|()| {
        let batch = table.next_load();
        table.finished();
        batch.map(|batch| (batch.rows(), batch.destination.key.clone()))
    });
    assert_eq!(loads, [Some((20, vec![])), Some((20, vec!["id".to_owned()])), None]);
}

#[test]
fn a_table_of_many_versions_stretches_its_batches() {
    let mut bench = Bench::with_limits(stretching(NEVER), 1, ROOM);
    bench.stage.show_versions(0, 0, 99);
    bench.hand_over(0, 0, 10);
    let small = bench.next();
    assert_eq!(small.0.rows(), 10);
    bench.land(small);
    bench.stage.show_versions(0, 0, 100);
    bench.hand_over(0, 0, 19);
    bench.nothing_started();
    bench.hand_over(0, 0, 1);
    assert_eq!(bench.next().0.rows(), 20);
}

#[test]
fn calm_makes_batches_as_configured_again_without_anybody_asking() {
    let meter = crate::meter::Meter::new();
    let shown = meter.table("p", "shop.orders");
    let mut table = table::Table::new(
        destination("orders"),
        stretching(Duration::from_secs(60)),
        1,
        Arc::new(Shown(mpsc::channel().0)),
    );
    table.strain.shown_by(0, &shown);
    let now = Instant::now();
    assert!(table.see(Sign::PublishTimeout, now));
    assert_eq!((shown.stretch.get(), table.strain.limits().max_rows), (2, 20));
    assert_eq!(table.bytes_stretched(), 2 * ROOM, "one batch that gathers and one on its way");
    let due = table.strain.rests_at().expect("it is stretched");
    assert!(!table.rest(due - Duration::from_secs(1)));
    assert!(table.rest(due));
    assert_eq!((shown.stretch.get(), table.strain.limits()), (1, stretching(Duration::from_secs(60))));
    let text = meter.text().expect("text");
    let counted =
        "tidemill_version_pressure_total{pipeline=\"p\",table=\"shop.orders\",cause=\"publish_timeout\"} 1";
    assert!(text.contains(counted), "{text}");
}

#[test]
fn the_table_under_most_pressure_stretches_the_epoch() {
    let mut bench = Bench::new(1_000, NEVER, 1);
    let (shows, started) = mpsc::channel();
    let registration = Registration {
        destinations: vec![destination("orders"), destination("events")],
        limits: stretching(NEVER),
        in_flight: 1,
        share: bench.share.clone(),
        meters: Vec::new(),
        outlet: Arc::new(Shown(mpsc::channel().0)),
        epochs: Some(Arc::new(ShownEpochs(shows))),
    };
    bench.stage.register(1, registration).expect("the stage lives");
    bench.hand_over_by(1, 0, 0, 10);
    let (first, done) = started.recv_timeout(SOON).expect("an epoch");
    done.signs().show(&first[0].destination, Sign::Refused);
    bench.runtime.block_on(done.finish());
    // Rows of the other table wait as well.
    bench.hand_over_by(1, 1, 1, 19);
    bench.nothing_started();
    assert!(started.try_recv().is_err(), "an epoch was started");
    bench.hand_over_by(1, 1, 1, 1);
    let (second, _done) = started.recv_timeout(SOON).expect("the next epoch");
    assert_eq!(second.iter().map(Batch::rows).sum::<u64>(), 20);
    for batch in first.into_iter().chain(second) {
        batch.pieces.into_iter().for_each(Piece::forget);
    }
}

/// Shows what is started.
struct ShownEpochs(mpsc::Sender<(Vec<Batch>, Done)>);

impl EpochOutlet for ShownEpochs {
    fn start(&self, batches: Vec<Batch>, done: Done) {
        self.0.send((batches, done)).expect("the test listens");
    }
}

#[test]
fn the_tables_of_an_epoch_are_cut_at_one_point_and_one_epoch_is_on_its_way_at_a_time() {
    let mut bench = Bench::new(1_000, NEVER, 4);
    let (shows, started) = mpsc::channel();
    let registration = Registration {
        destinations: vec![destination("orders"), destination("events")],
        limits: BatchLimits { max_rows: 10, max_bytes: ROOM, linger: NEVER, stretch: None },
        in_flight: 4,
        share: bench.share.clone(),
        meters: Vec::new(),
        outlet: Arc::new(Shown(mpsc::channel().0)),
        epochs: Some(Arc::new(ShownEpochs(shows))),
    };
    bench.stage.register(1, registration).expect("the stage lives");
    bench.hand_over_by(1, 0, 0, 3);
    bench.hand_over_by(1, 1, 1, 4);
    // The fullest table decides; a chunk is never parted.
    bench.hand_over_by(1, 0, 0, 9);
    let rows = |batches: &[Batch]| -> Vec<(String, usize)> {
        let rows = |batch: &Batch| batch.pieces.iter().map(Piece::len).sum();
        batches.iter().map(|batch| (batch.destination.table.clone(), rows(batch))).collect()
    };
    let (first, done) = started.recv_timeout(SOON).expect("an epoch");
    assert_eq!(rows(&first), [("orders".to_owned(), 12), ("events".to_owned(), 4)]);
    bench.hand_over_by(1, 1, 1, 10);
    bench.hand_over_by(1, 2, 1, 5);
    // Rows of a partition that is given up leave what waits, and what gathers.
    assert_eq!(bench.stage.forget(1, vec![stay(2)], true).expect("the stage lives"), 5);
    assert!(started.try_recv().is_err(), "one at a time");
    bench.runtime.block_on(done.finish());
    let (second, _done) = started.recv_timeout(SOON).expect("the next epoch");
    assert_eq!(rows(&second), [("events".to_owned(), 10)]);
    for batch in first.into_iter().chain(second) {
        batch.pieces.into_iter().for_each(Piece::forget);
    }
}
