//! Loads into Primary Key tables of a process that is dead, frozen or cut off bring no old rows back over its
//! successor's (delivery.md §2).

use std::{collections::BTreeMap, time::Duration};

use tidemill_sandbox::{ClientFate, FaultKind, LoadRecord, Options, TransactionState};
use tidemill_test_kafka::free_port;
use tidemill_tests::{
    kafka::{self, Kafka, Record},
    limit::within,
    pipeline::Pipeline,
    process::Tidemill,
    proxy::{Proxy, Traffic},
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

/// A process that has loaded all keys once, and is about to load them again when the fault meets it.
fn about_to_load(stand: &Stand, pipeline: &Pipeline, fault: FaultKind) -> Tidemill {
    let mut first = stand.run(pipeline);
    stand.kafka.produce(&stand.name, set(1));
    first.until_settled(60, KEYS);
    stand.until_released(30, KEYS);
    stand.warehouse.fault_times(fault, 1);
    stand.kafka.produce(&stand.name, set(2));
    let fired = || (stand.warehouse.faults_fired() > 0).then_some(());
    wait_until(Duration::from_secs(30), fired).expect("a load meets the fault");
    first
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
        let mut first = about_to_load(&stand, &stand.pipeline(), late);
        first.kill();
        let expected = set_and_delete(&stand, 3);
        let mut successor = stand.run(&stand.pipeline());
        stand.until_released(60, 3 * KEYS);
        must_show(&stand, &expected);
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
        let mut frozen =
            about_to_load(&stand, &stand.pipeline(), FaultKind::LateBegin { delay_ms: LATE_BEGIN_MS });
        frozen.freeze();
        let expected = set_and_delete(&stand, 3);
        let mut successor = stand.run(&stand.pipeline());
        stand.until_released(60, 3 * KEYS);
        must_show(&stand, &expected);
        frozen.thaw();
        until_decided(&stand, 60);
        must_show(&stand, &expected);
        frozen.until(60, "the fence has refused", |metrics| {
            metrics.count("tidemill_fence_refusals_total", &[]) > 0
        });
        // Both go on, and nothing is left of what was given up.
        stand.kafka.produce(&stand.name, set(4));
        stand.until_released(60, 4 * KEYS);
        frozen.until(30, "no record in flight", |metrics| {
            metrics.count("tidemill_records_in_flight", &[]) == 0
        });
        must_show(&stand, &(0..KEYS).map(|id| (id, 4)).collect());
        successor.drain(30);
        frozen.drain(30);
    });
}

#[test]
fn a_process_that_freezes_between_begin_and_body_sends_none_when_it_thaws() {
    within(180, || {
        let stand = Stand::new("fence_between", 1, Model::Primary);
        let held = FaultKind::ContinueWithheld { delay_ms: 2_000 };
        let mut frozen = about_to_load(&stand, &stand.pipeline(), held);
        frozen.freeze();
        let expected = set_and_delete(&stand, 3);
        let mut successor = stand.run(&stand.pipeline());
        stand.until_released(60, 3 * KEYS);
        must_show(&stand, &expected);
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

/// Two listeners, one of them behind a proxy.
fn cut_off_by(proxy: &Proxy, port: u16) -> tidemill_test_kafka::Broker {
    let listeners = format!(
        "PLAINTEXT://127.0.0.1:{{port}},FAR://127.0.0.1:{port},CONTROLLER://127.0.0.1:{{controller_port}}"
    );
    let advertised = format!("PLAINTEXT://127.0.0.1:{{port}},FAR://127.0.0.1:{}", proxy.port());
    kafka::own_broker(&[
        ("listeners", &listeners),
        ("advertised.listeners", &advertised),
        ("listener.security.protocol.map", "PLAINTEXT:PLAINTEXT,FAR:PLAINTEXT,CONTROLLER:PLAINTEXT"),
        ("inter.broker.listener.name", "PLAINTEXT"),
    ])
}

#[test]
fn a_process_cut_from_kafka_sends_nothing_over_its_successors_rows() {
    within(240, || {
        let port = free_port().expect("there is a free port");
        let proxy = Proxy::to_port(port);
        let broker = cut_off_by(&proxy, port);
        let stand = Stand::on(Kafka::of(&broker), "fence_cut", 1, Model::Primary, Options::default());
        let far = Pipeline { brokers: proxy.address().to_string(), ..stand.pipeline() };
        let mut cut_off = about_to_load(&stand, &far, FaultKind::LateBegin { delay_ms: LATE_BEGIN_MS });
        proxy.set(Traffic::Swallowed);
        let expected = set_and_delete(&stand, 3);
        let mut successor = stand.run(&stand.pipeline());
        stand.until_released(60, 3 * KEYS);
        until_decided(&stand, 60);
        must_show(&stand, &expected);
        cut_off.until(60, "the fence has refused", |metrics| {
            metrics.count("tidemill_fence_refusals_total", &[]) > 0
        });
        proxy.set(Traffic::Flowing);
        proxy.cut();
        stand.kafka.produce(&stand.name, set(4));
        stand.until_released(60, 4 * KEYS);
        must_show(&stand, &(0..KEYS).map(|id| (id, 4)).collect());
        successor.drain(30);
        // It joins again when librdkafka has found its way back.
        cut_off.until_settled(60, KEYS);
        cut_off.kill();
    });
}

#[test]
fn without_transactions_in_kafka_loads_are_guarded_by_plain_commits_and_a_warning_says_so() {
    within(240, || {
        // Shorter than any transaction of ours wants.
        let broker = kafka::own_broker(&[("transaction.max.timeout.ms", "5000")]);
        let stand = Stand::on(Kafka::of(&broker), "fence_plain", 1, Model::Primary, Options::default());
        let mut frozen =
            about_to_load(&stand, &stand.pipeline(), FaultKind::LateBegin { delay_ms: LATE_BEGIN_MS });
        let metrics = frozen.metrics().expect("metrics");
        assert_eq!(metrics.count("tidemill_claims_unfenced", &[]), 1);
        frozen.until_logged(1, "grant WRITE and DESCRIBE on TransactionalId");
        frozen.freeze();
        let expected = set_and_delete(&stand, 3);
        let mut successor = stand.run(&stand.pipeline());
        stand.until_released(90, 3 * KEYS);
        frozen.thaw();
        until_decided(&stand, 60);
        must_show(&stand, &expected);
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
        for process in [&second, &third] {
            let log = process.log();
            assert!(log.contains("labels=0 ") && !log.contains("labels=3"), "{log}");
        }
        must_show(&stand, &(0..KEYS).map(|id| (id, 2)).collect());
        third.drain(30);
    });
}
