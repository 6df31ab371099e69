//! kill -9, again and again: what was promised is still true.

use rand::{RngExt as _, rngs::StdRng};
use std::{collections::BTreeMap, time::Duration};
use tidemill_sandbox::FaultKind;
use tidemill_tests::{
    chance,
    kafka::{self, Record},
    limit::within,
    metrics::Metrics,
    oracle::Promise,
    stand::{Model, Stand},
    wait_until,
};

const KILLS: u32 = 20;
const RECORDS: u64 = 200_000;
/// Between the body and the commit: the moment in which a kill hurts most, made wide enough to be hit.
const COMMIT_DELAY_MS: u64 = 40;
const BATCHES: &str = "max_rows = 500\nlinger = \"200ms\"";

/// Many small loads need a compaction that keeps up.
fn stand(name: &str, model: Model) -> Stand {
    Stand::compacting(kafka::shared(), name, 4, model)
}

/// A process lives for up to so long from its first release on, in ms.
const LIFE_MS_MAX: u64 = 900;

/// Starts the pipeline, lets it live for a random while, kills it, twenty times; then lets the last one finish.
fn live_and_die(stand: &Stand, random: &mut StdRng) {
    let mut pipeline = stand.pipeline().soon_forgotten();
    pipeline.batch = BATCHES.to_owned();
    stand.warehouse.fault(FaultKind::SlowLoad { delay_ms: COMMIT_DELAY_MS });
    let offsets = stand.offsets();
    let released_all = || (offsets.sum() >= RECORDS).then_some(());
    let mut busy = 0;
    for _ in 0..KILLS {
        let before = offsets.sum();
        if before >= RECORDS {
            break;
        }
        let mut tidemill = stand.run(&pipeline);
        // The group has to forget the one before.
        stand.until_released(60, before + 1);
        let life = Duration::from_millis(random.random_range(0..LIFE_MS_MAX));
        busy += u32::from(wait_until(life, released_all).is_err());
        tidemill.kill();
    }
    assert!(
        busy >= KILLS / 4,
        "only {busy} of {KILLS} kills hit a process that was loading: this shows nothing"
    );
    stand.warehouse.clear_faults();
    pipeline.batch = "linger = \"200ms\"".to_owned();
    let mut last = stand.run(&pipeline);
    stand.until_released(120, RECORDS);
    last.drain(30);
}

#[test]
fn twenty_kills_lose_nothing() {
    within(300, || {
        let stand = stand("kills", Model::Duplicate);
        stand.produce(0..RECORDS);
        live_and_die(&stand, &mut chance::seeded());
        stand.judge(RECORDS).must_keep(Promise::AtLeastOnce);
    });
}

#[test]
fn twenty_kills_leave_a_primary_key_table_as_the_source_says() {
    within(300, || {
        const KEYS: u64 = 500;
        let stand = stand("kills_primary", Model::Primary);
        let mut random = chance::seeded();
        let mut expected = BTreeMap::new();
        let records: Vec<Record> = (0..RECORDS)
            .map(|version| {
                let key = random.random_range(0..KEYS);
                expected.insert(key, version);
                let partition = i32::try_from(key % 4).expect("small");
                Record::of(format!(r#"{{"id":{key},"amount":{version},"note":"v{version}"}}"#)).on(partition)
            })
            .collect();
        stand.kafka.produce(&stand.name, records);
        live_and_die(&stand, &mut random);
        assert_eq!(stand.warehouse.amounts(&stand.table), expected, "each key has its last version");
    });
}

#[test]
fn a_frozen_process_comes_back_and_rewinds_nobody() {
    within(180, || {
        let stand = Stand::new("frozen", 2, Model::Duplicate);
        stand.produce(0..10_000);
        let pipeline = stand.pipeline().soon_forgotten();
        let mut frozen = stand.run(&pipeline);
        let rebalances = |metrics: &Metrics| metrics.count("tidemill_rebalances_total", &[]);
        let before = rebalances(&frozen.until_settled(30, 10_000));
        frozen.freeze();
        let mut successor = stand.run(&pipeline);
        stand.produce(10_000..20_000);
        successor.until_settled(60, 10_000);
        stand.until_released(30, 20_000);
        frozen.thaw();
        // The gauge is as it was before it froze until it hears that the group has put it out.
        frozen.until(60, "the thawed process joins again", |metrics| {
            rebalances(metrics) > before && metrics.count("tidemill_partitions", &[]) > 0
        });
        assert_eq!(stand.committed(), 20_000, "a thawed process moves nothing back");
        stand.produce(20_000..20_100);
        stand.until_released(60, 20_100);
        stand.judge(20_100).must_keep(Promise::AtLeastOnce);
    });
}
