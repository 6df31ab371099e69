//! What no other test would notice: each was written because a bug that was planted (`docs/sensitivity.md`) went by unseen.

use std::time::Duration;

use tidemill_sandbox::{AnswerFault, FaultKind, Hop};
use tidemill_tests::{
    kafka::Record,
    limit::within,
    machine,
    oracle::Promise,
    pipeline::{Pipeline, transform},
    process::Tidemill,
    replica::Replica,
    stand::{Model, Stand},
    wait_until,
    warehouse::row,
};

/// How long something that must not happen is waited for: many times what it takes when it does.
const LOOKED_FOR: Duration = Duration::from_secs(2);

fn until_assigned(tidemill: &mut Tidemill, partitions: u64) {
    tidemill.until(60, "partitions are assigned", |metrics| {
        metrics.count("tidemill_partitions", &[]) == partitions
    });
}

/// One table takes nothing, the other one all: the later rows are durable before the earlier ones.
#[test]
fn nothing_is_released_past_rows_that_another_table_does_not_take() {
    within(120, || {
        let stand = Stand::new("out_of_order", 1, Model::Duplicate);
        let record = |kind: &str, id: u64| Record::of(format!(r#"{{"id":{id},"kind":"{kind}","amount":1}}"#));
        let mut pipeline = stand.pipeline().soon_forgotten();
        stand.routed(&mut pipeline);
        pipeline.source_more = "commit_interval = \"50ms\"".to_owned();
        let refused = stand.warehouse.fault_on("clicks", FaultKind::TooManyVersions);
        let mut tidemill = stand.run(&pipeline);
        stand.kafka.produce(&stand.name, (0..500).map(|id| record("click", id)));
        stand.warehouse.until_fired(refused, 1);
        // Of another span, since the first one was read long ago.
        stand.kafka.produce(&stand.name, (500..1_000).map(|id| record("view", id)));
        stand.warehouse.until_rows(30, "views", 500);
        let offsets = stand.offsets();
        let _ = wait_until(LOOKED_FOR, || (offsets.sum() > 0).then_some(()));
        tidemill.kill();
        stand.warehouse.clear_faults();
        let mut next = stand.run(&pipeline);
        stand.until_released(60, 1_000);
        next.drain(30);
        stand.judge_routed(1_000).must_keep(Promise::AtLeastOnce);
    });
}

#[test]
fn a_dead_letter_that_cannot_be_kept_releases_nothing() {
    within(120, || {
        let stand = Stand::new("unkept_letter", 1, Model::Duplicate);
        let directory = stand.folder.path().join("letters");
        let mut pipeline = stand.pipeline().soon_forgotten();
        pipeline.transforms = transform(&machine::test_plugin(), "{}");
        pipeline.dead_letters = format!("directory = {directory:?}");
        let mut tidemill = stand.run(&pipeline);
        until_assigned(&mut tidemill, 1);
        // As root one may write where one must not: only a folder that is gone takes no file.
        std::fs::remove_dir_all(&directory).expect("the folder was made at the start");
        stand.kafka.produce(&stand.name, [Record::of(r#"{"id":7,"do":"reject"}"#)]);
        let ended = tidemill.until_ended(60);
        assert_eq!(ended.code, Some(1), "{}", ended.log);
        assert_eq!(stand.committed(), 0, "records released, and kept nowhere");
        let mut next = stand.run(&pipeline);
        next.until_settled(30, 1);
        next.drain(30);
        let kept = std::fs::read_dir(&directory).expect("the folder was made again").count();
        assert_eq!((kept, stand.committed()), (1, 1), "files with letters, and records released");
    });
}

/// Frozen with a load on its way, of which it hears when its partitions are another's, and it is a member again.
#[test]
fn what_lands_after_its_partition_was_taken_moves_no_offset_back() {
    within(180, || {
        let stand = Stand::new("late_settle", 2, Model::Duplicate);
        let produce = |ids: std::ops::Range<u64>| {
            let record = |id: u64| Record::of(row(id)).on(i32::from(id.is_multiple_of(2)));
            stand.kafka.produce(&stand.name, ids.map(record));
        };
        let mut pipeline = stand.pipeline().soon_forgotten();
        pipeline.source_more = "commit_interval = \"50ms\"".to_owned();
        produce(0..1_000);
        let slow = stand.warehouse.fault_on(&stand.table, FaultKind::SlowLoad { delay_ms: 3_000 });
        let mut frozen = stand.run(&pipeline);
        stand.warehouse.until_fired(slow, 1);
        frozen.freeze();
        stand.warehouse.clear_faults();
        let mut successor = stand.run(&pipeline);
        stand.until_released(60, 1_000);
        produce(1_000..2_000);
        stand.until_released(60, 2_000);
        frozen.thaw();
        until_assigned(&mut frozen, 1);
        until_assigned(&mut successor, 1);
        let offsets = stand.offsets();
        // 0 is no answer.
        let rewound = || Some(offsets.sum()).filter(|sum| (1..2_000).contains(sum));
        if let Ok(released) = wait_until(LOOKED_FOR, rewound) {
            panic!("of 2000 records that were released only {released} are so after the thaw");
        }
        stand.judge(2_000).must_keep(Promise::AtLeastOnce);
    });
}

fn exactly_once(stand: &Stand) -> Pipeline {
    Pipeline {
        delivery: "exactly_once".to_owned(),
        batch: "linger = \"200ms\"".to_owned(),
        source_more: "commit_interval = \"50ms\"".to_owned(),
        ..stand.pipeline().soon_forgotten()
    }
}

/// Other lost answers hit whatever is asked next, mostly a begin. This one is of the body itself.
#[test]
fn a_body_whose_answer_was_lost_counts_once() {
    within(120, || {
        let stand = Stand::new("body_answer", 1, Model::Duplicate);
        let mut tidemill = stand.run(&exactly_once(&stand));
        until_assigned(&mut tidemill, 1);
        let slow = stand.warehouse.fault(FaultKind::SlowRedirect { delay_ms: 3_000 });
        stand.produce(0..1_000);
        // The first redirect is that of the begin; while the second one waits, the body is the next thing to come.
        stand.warehouse.until_fired(slow, 2);
        let lost = FaultKind::AnswerLost { at: Hop::Backend, how: AnswerFault::Dropped, committed: true };
        let lost = stand.warehouse.fault_times(lost, 1);
        assert_eq!(stand.warehouse.fired(slow), 2, "the body has not gone by");
        stand.warehouse.until_fired(lost, 1);
        stand.warehouse.clear_faults();
        stand.until_released(60, 1_000);
        tidemill.drain(30);
        stand.judge(1_000).must_keep(Promise::Once);
    });
}

/// Killed after the decision, with no load committed: who comes next must still find what was decided.
#[test]
fn a_decision_stands_until_its_loads_are_committed() {
    within(120, || {
        let stand = Stand::new("standing", 1, Model::Duplicate);
        // All records are in one epoch: a second one would wait for the commit of the first.
        let pipeline = Pipeline { batch: "linger = \"2s\"".to_owned(), ..exactly_once(&stand) };
        let mut tidemill = stand.run(&pipeline);
        until_assigned(&mut tidemill, 1);
        // A load is asked for before it is committed, and not before it is prepared.
        stand.warehouse.fault(FaultKind::AnswerLost {
            at: Hop::State,
            how: AnswerFault::Http500,
            committed: false,
        });
        stand.produce(0..1_000);
        stand.until_released(60, 1_000);
        let commits = |tidemill: &Tidemill| {
            tidemill.metrics().map_or(0, |metrics| metrics.count("tidemill_commits_total", &[]))
        };
        // The claim, the decision, and a third one that must not come.
        let _ = wait_until(LOOKED_FOR, || (commits(&tidemill) > 2).then_some(()));
        assert!(stand.warehouse.ids(&stand.table).is_empty(), "the kill is to come before the commit");
        tidemill.kill();
        stand.warehouse.clear_faults();
        let mut next = stand.run(&pipeline);
        stand.produce(1_000..1_100);
        stand.until_released(60, 1_100);
        next.drain(30);
        stand.judge(1_100).must_keep(Promise::Once);
    });
}

/// The order of a confirmation, looked at while it takes its time: rows, position row, the server's log.
#[test]
fn no_place_in_the_log_is_confirmed_before_its_position_row_is_visible() {
    // The server is told every 10 s: once at least while the position row is on its way.
    const POSITION_TAKES_MS: u64 = 13_000;
    within(120, || {
        let replica = Replica::new("confirmed");
        replica.postgres.run("CREATE TABLE orders (id bigint PRIMARY KEY, note text)");
        let mut tidemill = replica.run(&replica.pipeline());
        replica.postgres.until_streaming(60, &replica.slot());
        let place = |what: &str| replica.postgres.number(&format!("SELECT {what} - '0/0'::pg_lsn"));
        let slot = replica.slot();
        let all = "SELECT confirmed_flush_lsn FROM pg_replication_slots";
        let confirmed = || place(&format!("({all} WHERE slot_name = '{slot}')"));
        let position = || {
            let stream = "SELECT lsn FROM shop.tidemill_positions WHERE source_table = ''";
            let rows = replica.warehouse.execute(stream).into_iter().flatten().flatten();
            rows.filter_map(|lsn| lsn.parse::<u64>().ok()).max().unwrap_or(0)
        };
        let known = wait_until(Duration::from_secs(30), || (position() > 0).then_some(()));
        known.expect("the stream has a position from its begin on");
        let takes = FaultKind::SlowLoad { delay_ms: POSITION_TAKES_MS };
        replica.warehouse.fault_on("tidemill_positions", takes);
        replica.postgres.run("INSERT INTO orders VALUES (1, 'followed')");
        let written = place("pg_current_wal_lsn()");
        let ordered = wait_until(Duration::from_secs(60), || {
            // In this order: the position may only have grown since.
            let (confirmed, position) = (confirmed(), position());
            assert!(confirmed <= position, "{confirmed} is confirmed, the position row says {position}");
            (confirmed >= written).then_some(())
        });
        ordered.unwrap_or_else(|late| panic!("place {written} is to be confirmed: {late}"));
        assert!(replica.warehouse.faults_fired() > 0, "the position was not slow: this shows nothing");
        replica.warehouse.clear_faults();
        replica.until_equal(10, &["orders"]);
        tidemill.drain(30);
    });
}

/// Nobody could cancel a load that has not begun: only the question before its body stops it.
#[test]
fn a_load_that_begins_after_its_process_was_overtaken_is_not_sent() {
    within(180, || {
        let replica = Replica::new("begun_late");
        replica.postgres.run(
            "CREATE TABLE orders (id bigint PRIMARY KEY, note text);
             INSERT INTO orders SELECT n, 'old' FROM generate_series(1, 100) n",
        );
        let mut frozen = replica.run(&replica.pipeline());
        replica.until_equal(60, &["orders"]);
        replica.postgres.until_streaming(60, &replica.slot());
        // On its way to the BE, and there it freezes.
        let slow = replica.warehouse.fault_on("orders", FaultKind::SlowRedirect { delay_ms: 3_000 });
        replica.postgres.run("UPDATE orders SET note = 'frozen'");
        replica.warehouse.until_fired(slow, 1);
        frozen.freeze();
        replica.warehouse.clear_faults();
        replica.postgres.run("UPDATE orders SET note = 'new'; DELETE FROM orders WHERE id > 50");
        let mut successor = replica.run(&replica.pipeline());
        replica.until_equal(30, &["orders"]);
        let loads = || replica.warehouse.loads().iter().filter(|load| load.table == "orders").count();
        let before = loads();
        frozen.thaw();
        let ended = wait_until(Duration::from_secs(30), || (loads() > before).then_some(()));
        ended.expect("the load begins, and ends in one way or another");
        frozen.until_logged(60, "another process has taken slot");
        replica.until_equal(1, &["orders"]);
        successor.drain(30);
    });
}
