//! What it costs to wait: memory is bounded by the budget and not by the lag, and an idle process rests.

use std::time::Duration;
use tidemill_sandbox::FaultKind;
use tidemill_tests::{
    kafka::Record,
    limit::within,
    metrics::Metrics,
    stand::{Model, Stand},
    wait_until,
};

const MIB: u64 = 1 << 20;

/// 352 digits that LZ4 cannot shorten: librdkafka bounds what it fetches before it unpacks it.
fn noise(id: u64) -> String {
    let step = |state: &mut u64| {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        Some(*state)
    };
    let words = std::iter::successors(Some(id.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1), |state| {
        step(&mut { *state })
    });
    words.skip(4).take(22).map(|word| format!("{word:016x}")).collect()
}

#[test]
fn a_lag_that_cannot_be_loaded_does_not_grow_memory() {
    within(180, || {
        // 400 MB that wait, half as much again as the process may have.
        const RECORDS: u64 = 1_000_000;
        let stand = Stand::new("lag", 8, Model::Duplicate);
        let record = |id: u64| Record::of(format!(r#"{{"id":{id},"amount":1,"note":"{}"}}"#, noise(id)));
        stand.kafka.produce(&stand.name, (0..RECORDS).map(record));
        stand.warehouse.fault(FaultKind::BackendRefuses);
        let mut pipeline = stand.pipeline();
        pipeline.batch = "max_rows = 10_000\nmax_bytes = \"10MiB\"\nlinger = \"1s\"".to_owned();
        pipeline.process = "budget = \"48MiB\"".to_owned();
        let mut tidemill = stand.run(&pipeline);
        // Full: the budget is used up and nothing more is read.
        let full = |metrics: &Metrics| {
            metrics.count("tidemill_budget_used_bytes", &[]) * 10
                >= metrics.count("tidemill_budget_limit_bytes", &[]) * 8
        };
        tidemill.until(60, "the budget is used up", full);
        let resident = tidemill.resident_bytes_max();
        assert!(resident < 256 * MIB, "{} MiB resident with a budget of 48 MiB", resident / MIB);
        stand.warehouse.clear_faults();
        tidemill.until_settled(120, RECORDS / 2);
        let resident = tidemill.resident_bytes_max();
        assert!(resident < 256 * MIB, "{} MiB resident while catching up", resident / MIB);
    });
}

#[test]
fn an_idle_process_rests() {
    within(90, || {
        const WATCHED: Duration = Duration::from_secs(10);
        // Two thirds of it today. One more thread that looks fifty times a second is too many.
        const WAKINGS_MAX: u64 = 1_000;
        let stand = Stand::new("idle", 4, Model::Duplicate);
        stand.produce(0..100);
        let mut tidemill = stand.run(&stand.pipeline());
        tidemill.until_settled(30, 100);
        stand.until_released(30, 100);
        let (before, slept) = (tidemill.processor_ms(), tidemill.sleeps());
        let ended = wait_until(WATCHED, || (!tidemill.is_running()).then_some(()));
        assert!(ended.is_err(), "it runs all the while");
        let (used, slept) = (tidemill.processor_ms() - before, tidemill.sleeps().saturating_sub(slept));
        assert!(slept <= WAKINGS_MAX, "woken {slept} times in {} s", WATCHED.as_secs());
        assert!(
            used <= 100,
            "{used} ms of processor time in {} s are more than 1 % of a core",
            WATCHED.as_secs()
        );
    });
}
