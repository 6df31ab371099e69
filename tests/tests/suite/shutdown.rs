//! SIGTERM drains; a second signal ends at once; nothing is lost either way.

use tidemill_sandbox::FaultKind;
use tidemill_tests::{
    limit::within,
    oracle::Promise,
    stand::{Model, Stand},
};

const RECORDS: u64 = 50_000;

#[test]
fn sigterm_drains_and_exits_with_0() {
    within(90, || {
        let stand = Stand::new("drain", 4, Model::Duplicate);
        stand.produce(0..RECORDS);
        let mut pipeline = stand.pipeline();
        // Nothing but the drain cuts the last batch.
        pipeline.batch = "max_rows = 7_000\nlinger = \"60s\"".to_owned();
        let mut first = stand.run(&pipeline);
        first
            .until(30, "the first batch is loaded", |metrics| metrics.count("tidemill_loads_total", &[]) > 0);
        first.drain(30);
        let released = stand.committed();
        let rows = stand.warehouse.number(&format!("SELECT COUNT(*) FROM shop.{}", stand.table));
        assert_eq!(rows, released, "a drained process has committed exactly what it has loaded");

        pipeline.batch = "linger = \"200ms\"".to_owned();
        let mut second = stand.run(&pipeline);
        // Before it listens for signals, a SIGTERM just ends it.
        second.until_ready(30);
        second.until_settled(60, RECORDS - released);
        second.drain(30);
        stand.judge(RECORDS).must_keep(Promise::Once);
    });
}

#[test]
fn a_second_signal_ends_at_once_and_loses_nothing() {
    within(120, || {
        let stand = Stand::new("second_signal", 2, Model::Duplicate);
        stand.produce(0..1_000);
        let stuck = stand.warehouse.fault(FaultKind::SlowLoad { delay_ms: 60_000 });
        let mut tidemill = stand.run(&stand.pipeline());
        tidemill.until(30, "a load is in flight", |metrics| {
            metrics.count("tidemill_records_in_flight", &[]) == 1_000 && stand.warehouse.faults_fired() > 0
        });
        tidemill.terminate();
        tidemill.until_logged(10, "drain");
        tidemill.terminate();
        let ended = tidemill.until_ended(20);
        assert_ne!(ended.code, Some(0), "what was not drained is not a success");
        assert_eq!(stand.committed(), 0, "nothing was released");

        assert!(stuck > 0);
        stand.warehouse.clear_faults();
        let mut again = stand.run(&stand.pipeline());
        again.until_settled(60, 1_000);
        again.drain(30);
        stand.judge(1_000).must_keep(Promise::AtLeastOnce);
    });
}

#[test]
fn a_drain_that_takes_too_long_is_given_up() {
    within(60, || {
        let stand = Stand::new("slow_drain", 1, Model::Duplicate);
        stand.produce(0..100);
        stand.warehouse.fault(FaultKind::SlowLoad { delay_ms: 60_000 });
        let mut pipeline = stand.pipeline();
        pipeline.process = "shutdown_timeout = \"2s\"".to_owned();
        let mut tidemill = stand.run(&pipeline);
        tidemill.until(30, "a load is in flight", |_| stand.warehouse.faults_fired() > 0);
        tidemill.terminate();
        let ended = tidemill.until_ended(15);
        assert_ne!(ended.code, Some(0), "it says that not all was drained");
        assert_eq!(stand.committed(), 0);
    });
}
