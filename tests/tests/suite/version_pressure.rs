//! Version pressure: batches grow while StarRocks cannot keep up with the versions that loads make, and return after.

use std::time::Duration;

use tidemill_sandbox::{FaultKind, Options};
use tidemill_tests::{
    kafka::{self, Record},
    limit::within,
    metrics::Metrics,
    oracle::Promise,
    stand::{Model, Stand},
};

const STRETCH: &str = "tidemill_batch_stretch";

fn signs(metrics: &Metrics, cause: &str) -> u64 {
    metrics.count("tidemill_version_pressure_total", &[("cause", cause)])
}

/// Rows of each load that was made, oldest first.
fn loads(stand: &Stand) -> Vec<u64> {
    stand.warehouse.loads().iter().map(|load| load.rows).filter(|rows| *rows > 0).collect()
}

#[test]
fn batches_grow_while_there_are_too_many_versions_and_return_after() {
    within(150, || {
        const BEFORE: u64 = 8_000;
        let options = Options { tablet_max_versions: 4, compaction: None, ..Options::default() };
        let stand = Stand::on(kafka::shared(), "version_pressure", 1, Model::Duplicate, options);
        let mut pipeline = stand.pipeline();
        pipeline.batch = "max_rows = 100\nlinger = \"50ms\"\n[batch.stretch]\nlinger = \"2s\"\n\
                          max_rows = 1_600\ncalm = \"5s\""
            .to_owned();
        stand.produce(0..BEFORE);
        let mut tidemill = stand.run(&pipeline);
        // It is refused, again and again: the second time it is stretched twice.
        let metrics = tidemill.until(60, "two steps", |metrics| metrics.count(STRETCH, &[]) >= 4);
        assert!(signs(&metrics, "too_many_versions") >= 2, "{metrics:?}");
        tidemill.until_logged(10, "version pressure: batches of this table wait longer and grow");
        let small = loads(&stand);
        assert!(!small.is_empty() && small.iter().all(|rows| *rows <= 100), "{small:?}");

        stand.warehouse.compact_every(Duration::from_millis(20));
        tidemill.until_settled(60, BEFORE);
        let large = loads(&stand).split_off(small.len());
        assert!(large.iter().any(|rows| *rows > 100), "larger: {large:?}");
        assert!(large.iter().all(|rows| *rows <= 1_600), "within the bound: {large:?}");
        let as_configured = (BEFORE - small.iter().sum::<u64>()).div_ceil(100);
        assert!((large.len() as u64) < as_configured / 2, "and fewer: {large:?}, not {as_configured}");

        tidemill.until(30, "no stretch", |metrics| metrics.count(STRETCH, &[]) == 1);
        tidemill.until_logged(10, "version pressure is over");
        stand.warehouse.allow_versions(1_000);
        let before = loads(&stand).len();
        stand.produce(BEFORE..BEFORE + 2_000);
        tidemill.until_settled(60, BEFORE + 2_000);
        let after = loads(&stand).split_off(before);
        assert!(after.len() >= 20 && after.iter().all(|rows| *rows <= 100), "as configured: {after:?}");
        let said = tidemill.log().matches("version pressure").count();
        assert_eq!(said, 2, "one line on entering, one on leaving");
        stand.until_released(30, BEFORE + 2_000);
        stand.judge(BEFORE + 2_000).must_keep(Promise::Once);
    });
}

#[test]
fn many_versions_are_seen_before_any_load_is_refused() {
    within(90, || {
        let options = Options { compaction: None, ..Options::default() };
        let stand = Stand::on(kafka::shared(), "many_versions", 1, Model::Duplicate, options);
        for id in 0..8 {
            stand.warehouse.execute(&format!("INSERT INTO shop.{} (id) VALUES ({id})", stand.table));
        }
        let mut pipeline = stand.pipeline();
        pipeline.batch = "linger = \"50ms\"\n[batch.stretch]\nversions = 8".to_owned();
        let mut tidemill = stand.run(&pipeline);
        let metrics = tidemill.until(30, "the early sign", |metrics| signs(metrics, "versions") >= 1);
        assert_eq!(metrics.count("tidemill_table_versions", &[]), 9, "{metrics:?}");
        tidemill.until(10, "a stretch", |metrics| metrics.count(STRETCH, &[]) == 2);
        stand.produce(8..100);
        tidemill.until_settled(30, 92);
        stand.judge(100).must_keep(Promise::Once);
        assert_eq!(stand.warehouse.stats(&stand.table).refused_too_many_versions, 0);
    });
}

#[test]
fn without_the_right_to_see_versions_everything_else_goes_on() {
    within(90, || {
        let stand = Stand::new("no_versions", 1, Model::Duplicate);
        stand.warehouse.fault(FaultKind::TabletsDenied);
        stand.warehouse.fault_on(&stand.table, FaultKind::TooManyVersions);
        stand.produce(0..1_000);
        let mut tidemill = stand.run(&stand.pipeline());
        let metrics = tidemill.until(30, "the sign, and what it leads to", |metrics| {
            signs(metrics, "too_many_versions") >= 1 && metrics.count(STRETCH, &[]) >= 2
        });
        assert_eq!(metrics.count("tidemill_table_versions", &[]), 0, "it was asked, and refused");
        stand.warehouse.clear_faults();
        tidemill.until_settled(60, 1_000);
        stand.judge(1_000).must_keep(Promise::Once);
    });
}

#[test]
fn without_stretching_refusals_are_waited_out_and_batches_stay_as_they_are() {
    within(90, || {
        let stand = Stand::new("unstretched", 1, Model::Duplicate);
        let mut pipeline = stand.pipeline();
        pipeline.batch = "max_rows = 100\nlinger = \"50ms\"\n[batch.stretch]\nenabled = false".to_owned();
        stand.warehouse.fault_on(&stand.table, FaultKind::TooManyVersions);
        stand.produce(0..1_000);
        let mut tidemill = stand.run(&pipeline);
        let refused = || stand.warehouse.stats(&stand.table).refused_too_many_versions;
        tidemill.until(30, "a refusal", |_| refused() >= 1);
        stand.warehouse.clear_faults();
        let metrics = tidemill.until_settled(60, 1_000);
        assert_eq!(metrics.count(STRETCH, &[]), 1);
        assert!(loads(&stand).iter().all(|rows| *rows <= 100));
        stand.judge(1_000).must_keep(Promise::Once);
    });
}

#[test]
fn the_table_under_pressure_stretches_the_epoch_and_nothing_comes_twice() {
    within(150, || {
        const RECORDS: u64 = 9_000;
        let stand = Stand::compacting(kafka::shared(), "epoch_pressure", 1, Model::Duplicate);
        let mut pipeline = stand.pipeline();
        stand.routed(&mut pipeline);
        stand.warehouse.fault_on("clicks", FaultKind::TooManyVersions);
        let record = |id: u64| {
            let kind = if id.is_multiple_of(2) { "click" } else { "view" };
            Record::of(format!(r#"{{"id":{id},"amount":1,"note":"n","kind":"{kind}"}}"#))
        };
        stand.kafka.produce(&stand.name, (0..RECORDS).map(record));
        pipeline.delivery = "exactly_once".to_owned();
        pipeline.batch = "max_rows = 100\nlinger = \"50ms\"\n[batch.stretch]\ncalm = \"1s\"".to_owned();
        let mut tidemill = stand.run(&pipeline);
        let of = |metrics: &Metrics, table: &str| metrics.count(STRETCH, &[("table", table)]);
        let metrics = tidemill.until(60, "a stretched epoch", |metrics| of(metrics, "shop.clicks") >= 2);
        assert_eq!(of(&metrics, "shop.views"), 1, "only the table that is pressed says so");
        stand.warehouse.clear_faults();
        stand.until_released(90, RECORDS);
        tidemill.until(30, "no stretch", |metrics| of(metrics, "shop.clicks") == 1);
        tidemill.drain(30);
        stand.judge_routed(RECORDS).must_keep(Promise::Once);
    });
}
