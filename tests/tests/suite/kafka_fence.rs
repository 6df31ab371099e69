//! Loads into Primary Key tables of a process that is dead, frozen or cut off bring no old rows back over its
//! successor's (delivery.md §2).

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tidemill_sandbox::{ClientFate, FaultKind, LoadRecord, Options, TransactionState};
use tidemill_tests::{
    kafka::{self, Kafka, Record},
    limit::within,
    pipeline::Pipeline,
    process::Tidemill,
    proxy::Traffic,
    stand::{Model, Stand},
    wait_until,
};

/// From the last byte of a body to its commit: as long as StarRocks was seen to take under load.
const LATE_COMMIT_MS: u64 = 30_000;
/// From a request to the begin of its load: longer than a successor needs to take over.
const LATE_BEGIN_MS: u64 = 10_000;
const KEYS: u64 = 100;

/// What the table has to show: `amount` by `id`.
type Expected = BTreeMap<u64, u64>;

fn set(amount: u64) -> impl Iterator<Item = Record> {
    (0..KEYS).map(move |id| Record::of(format!(r#"{{"id":{id},"amount":{amount},"note":"v{amount}"}}"#)))
}

/// Newer rows for half of the keys, and the end of the others.
fn set_and_delete(stand: &Stand, amount: u64) -> Expected {
    let kept = set(amount).take(50);
    let deleted = (50..KEYS).map(|id| Record::of(format!(r#"{{"id":{id},"__op":1}}"#)));
    stand.kafka.produce(&stand.name, kept.chain(deleted));
    (0..50).map(|id| (id, amount)).collect()
}

/// A process that has loaded all keys once, and is stopped when the fault meets it as it loads them again; its successor;
/// and what the successor has made of the table since.
fn overtaken(
    stand: &Stand,
    pipeline: &Pipeline,
    fault: FaultKind,
    stop: impl FnOnce(&mut Tidemill),
) -> (Tidemill, Tidemill, Expected) {
    let mut first = stand.run(pipeline);
    stand.kafka.produce(&stand.name, set(1));
    first.until_settled(60, KEYS);
    stand.until_released(30, KEYS);
    let fault = stand.warehouse.fault_times_on(&stand.table, fault, 1);
    stand.kafka.produce(&stand.name, set(2));
    stand.warehouse.until_fired(fault, 1);
    stop(&mut first);
    let expected = set_and_delete(stand, 3);
    let successor = stand.run(&stand.pipeline().soon_forgotten());
    stand.until_released(90, 3 * KEYS);
    must_show(stand, &expected);
    (first, successor, expected)
}

/// Newer rows still come, and nothing is left of what the first process gave up.
fn both_go_on(stand: &Stand, first: &mut Tidemill) {
    stand.kafka.produce(&stand.name, set(4));
    stand.until_released(60, 4 * KEYS);
    first.until(60, "no record in flight", |metrics| metrics.count("tidemill_records_in_flight", &[]) == 0);
    must_show(stand, &(0..KEYS).map(|id| (id, 4)).collect());
}

/// The first process's loads, by the stem of the oldest label.
fn loads_of_the_first(stand: &Stand) -> Vec<LoadRecord> {
    let stem = |label: &str| label.rsplit_once('-').map(|(stem, _)| stem.to_owned());
    let loads: Vec<LoadRecord> =
        stand.warehouse.loads().into_iter().filter(|load| load.table == stand.table).collect();
    let first = loads.first().and_then(|load| stem(&load.label));
    loads.into_iter().filter(|load| stem(&load.label) == first).collect()
}

/// Waits until the load that met the fault is decided, whichever way; then nothing late can come any more.
fn until_decided(stand: &Stand, seconds: u64) -> TransactionState {
    let late = || loads_of_the_first(stand).get(1).map(|load| load.state);
    wait_until(Duration::from_secs(seconds), late).expect("the late load is decided")
}

fn must_show(stand: &Stand, expected: &Expected) {
    assert_eq!(&stand.warehouse.amounts(&stand.table), expected, "{:?}", stand.warehouse.loads());
}

#[test]
fn a_load_that_commits_half_a_minute_after_its_process_died_brings_no_old_rows_back() {
    within(180, || {
        let stand = Stand::new("fence_killed", 1, Model::Primary);
        let late = FaultKind::LateCommit { delay_ms: LATE_COMMIT_MS, client: ClientFate::KeptWaiting };
        let (_dead, mut successor, expected) =
            overtaken(&stand, &stand.pipeline().soon_forgotten(), late, Tidemill::kill);
        let state = until_decided(&stand, 60);
        must_show(&stand, &expected);
        assert_eq!(state, TransactionState::Aborted, "the successor has ended it");
        let metrics = successor.metrics().expect("metrics");
        assert_eq!(metrics.count("tidemill_labels_cancelled_total", &[]), 1);
        assert_eq!(metrics.count("tidemill_claims_unfenced", &[]), 0, "claims are transactions");
        successor.drain(30);
    });
}

#[test]
fn a_load_that_begins_after_the_take_over_gets_no_body_from_a_process_that_thaws() {
    within(180, || {
        let stand = Stand::new("fence_thawed", 1, Model::Primary);
        let late = FaultKind::LateBegin { delay_ms: LATE_BEGIN_MS };
        let (mut frozen, mut successor, expected) =
            overtaken(&stand, &stand.pipeline().soon_forgotten(), late, |first| first.freeze());
        frozen.thaw();
        until_decided(&stand, 60);
        must_show(&stand, &expected);
        frozen.until(60, "the fence has refused", |metrics| {
            metrics.count("tidemill_fence_refusals_total", &[]) > 0
        });
        both_go_on(&stand, &mut frozen);
        successor.drain(30);
        frozen.drain(30);
    });
}

#[test]
fn a_process_that_freezes_between_begin_and_body_sends_none_when_it_thaws() {
    within(180, || {
        let stand = Stand::new("fence_between", 1, Model::Primary);
        let held = FaultKind::ContinueWithheld { delay_ms: 2_000 };
        let (mut frozen, mut successor, expected) =
            overtaken(&stand, &stand.pipeline().soon_forgotten(), held, |first| first.freeze());
        frozen.thaw();
        until_decided(&stand, 60);
        frozen.until(60, "it is back in the group", |metrics| {
            metrics.count("tidemill_rebalances_total", &[]) >= 3
        });
        must_show(&stand, &expected);
        successor.drain(30);
        frozen.drain(30);
    });
}

#[test]
fn a_process_cut_from_kafka_sends_nothing_over_its_successors_rows() {
    within(240, || {
        let (broker, proxy) = kafka::own_broker_behind_a_proxy();
        let stand = Stand::on(Kafka::of(&broker), "fence_cut", 1, Model::Primary, Options::default());
        let far = Pipeline { brokers: proxy.address().to_string(), ..stand.pipeline().soon_forgotten() };
        let late = FaultKind::LateBegin { delay_ms: LATE_BEGIN_MS };
        let (mut cut_off, mut successor, expected) =
            overtaken(&stand, &far, late, |_| proxy.set(Traffic::Swallowed));
        until_decided(&stand, 60);
        must_show(&stand, &expected);
        cut_off.until(60, "the fence has refused", |metrics| {
            metrics.count("tidemill_fence_refusals_total", &[]) > 0
        });
        proxy.set(Traffic::Flowing);
        proxy.cut();
        both_go_on(&stand, &mut cut_off);
        successor.drain(30);
        // Alone it goes on when librdkafka has found its way back.
        stand.kafka.produce(&stand.name, set(5));
        stand.until_released(60, 5 * KEYS);
        must_show(&stand, &(0..KEYS).map(|id| (id, 5)).collect());
        cut_off.kill();
    });
}

#[test]
fn without_transactions_in_kafka_loads_are_guarded_by_plain_commits_and_a_warning_says_so() {
    within(240, || {
        // Shorter than any transaction of ours wants.
        let broker = kafka::own_broker(&[("transaction.max.timeout.ms", "5000")]);
        let stand = Stand::on(Kafka::of(&broker), "fence_plain", 1, Model::Primary, Options::default());
        let late = FaultKind::LateBegin { delay_ms: LATE_BEGIN_MS };
        let (mut frozen, mut successor, expected) =
            overtaken(&stand, &stand.pipeline().soon_forgotten(), late, |first| first.freeze());
        frozen.thaw();
        until_decided(&stand, 60);
        must_show(&stand, &expected);
        let metrics = successor.metrics().expect("metrics");
        assert_eq!(metrics.count("tidemill_claims_unfenced", &[]), 1);
        successor.until_logged(1, "grant WRITE and DESCRIBE on TransactionalId");
        successor.drain(30);
        frozen.kill();
    });
}

#[test]
fn an_orderly_rebalance_and_a_drain_leave_nothing_to_look_for() {
    within(120, || {
        let stand = Stand::new("fence_orderly", 2, Model::Primary);
        let mut first = stand.run(&stand.pipeline());
        stand.kafka.produce(&stand.name, set(1));
        stand.until_released(60, KEYS);
        let mut second = stand.run(&stand.pipeline());
        second.until(60, "a partition", |metrics| metrics.count("tidemill_partitions", &[]) == 1);
        stand.kafka.produce(&stand.name, set(2));
        stand.until_released(60, 2 * KEYS);
        first.drain(30);
        second.until(60, "all partitions", |metrics| metrics.count("tidemill_partitions", &[]) == 2);
        second.drain(30);
        let mut third = stand.run(&stand.pipeline());
        third.until(60, "all partitions", |metrics| metrics.count("tidemill_partitions", &[]) == 2);
        for process in [&first, &second, &third] {
            let log = process.log();
            let mut taken_over =
                log.lines().filter(|line| line.contains("nothing of the members before is open"));
            let looked_for = |line: &str| !line.contains(" labels=0 ");
            assert!(taken_over.next().is_some_and(|line| !looked_for(line)), "{log}");
            assert!(!taken_over.any(looked_for), "{log}");
        }
        must_show(&stand, &(0..KEYS).map(|id| (id, 2)).collect());
        third.drain(30);
    });
}

#[test]
fn a_load_costs_one_commit_and_tables_of_other_models_cost_none() {
    within(180, || {
        const ROWS: u64 = 10_000;
        const ASSIGNMENTS_MAX: u64 = 2;
        for model in [Model::Primary, Model::Duplicate] {
            let stand = Stand::on(
                kafka::shared(),
                "fence_cost",
                2,
                model,
                Options { compaction: Some(Duration::from_millis(200)), ..Options::default() },
            );
            stand.produce(0..ROWS);
            let pipeline =
                Pipeline { batch: "max_rows = 100\nlinger = \"100ms\"".to_owned(), ..stand.pipeline() };
            let began = Instant::now();
            let mut tidemill = stand.run(&pipeline);
            tidemill.until_settled(60, ROWS);
            stand.until_released(30, ROWS);
            let metrics = tidemill.metrics().expect("metrics");
            let loads = metrics.count("tidemill_loads_total", &[]);
            let waits = metrics.count("tidemill_fence_wait_seconds_count", &[]);
            let mean_ms = 1_000.0 * metrics.sum("tidemill_fence_wait_seconds_sum", &[]) / waits.max(1) as f64;
            let load_ms = 1_000.0 * metrics.sum("tidemill_load_seconds_sum", &[]) / loads.max(1) as f64;
            let commits = metrics.count("tidemill_commits_total", &[]);
            // What is committed without any load: the start of each assignment, and once a `commit_interval` of a second.
            let others = ASSIGNMENTS_MAX + 1 + began.elapsed().as_secs();
            println!(
                "{model:?}: {loads} loads of {load_ms:.1} ms, {waits} waits of {mean_ms:.1} ms, {commits} commits, of \
                 which {others} are for other reasons at most"
            );
            assert!(loads >= ROWS / 100, "{metrics:?}");
            match model {
                Model::Primary => {
                    assert_eq!(waits, loads, "each load asks once");
                    assert!(mean_ms < 500.0, "a wait takes {mean_ms} ms");
                    assert!(
                        commits <= loads + others,
                        "{commits} commits for {loads} loads and {others} others"
                    );
                }
                Model::Duplicate => {
                    assert_eq!(waits, 0);
                    assert!(commits <= others, "{commits} commits, and not {others}");
                    assert!(others < loads, "too slow to tell them apart: {loads} loads");
                }
            }
            tidemill.drain(30);
        }
    });
}
