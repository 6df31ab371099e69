//! Memory is bounded by the budget, not by the lag and not by how long StarRocks is away.

use tidemill_sandbox::FaultKind;
use tidemill_tests::{
    kafka::Record,
    limit::within,
    metrics::Metrics,
    stand::{Model, Stand},
};

const MIB: u64 = 1 << 20;

#[test]
fn a_lag_that_cannot_be_loaded_does_not_grow_memory() {
    within(180, || {
        // 400 MB that wait, twice the limit on memory.
        const RECORDS: u64 = 1_000_000;
        let stand = Stand::new("lag", 8, Model::Duplicate);
        let note = "x".repeat(360);
        let record = |id: u64| Record::of(format!(r#"{{"id":{id},"amount":1,"note":"{note}"}}"#));
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
        assert!(resident < 160 * MIB, "{} MiB resident with a budget of 48 MiB", resident / MIB);
        stand.warehouse.clear_faults();
        tidemill.until_settled(120, RECORDS / 2);
        let resident = tidemill.resident_bytes_max();
        assert!(resident < 160 * MIB, "{} MiB resident while catching up", resident / MIB);
    });
}
