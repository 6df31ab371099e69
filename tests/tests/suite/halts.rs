//! What a pipeline that halts leaves behind in a process that goes on: nothing.

use tidemill_sandbox::FaultKind;
use tidemill_tests::{
    http::Client,
    limit::within,
    listener::Listener,
    machine,
    metrics::Metrics,
    pipeline::{Source, transform},
    process::Tidemill,
    replica::Replica,
    warehouse::row,
};

/// Follows `orders`, makes StarRocks refuse everything, halts the pipeline with rows on their way, and expects
/// that its bytes are free while StarRocks still refuses, and that another pipeline then has all of it.
fn leaves_nothing(name: &str, fault: FaultKind, label_is_claimed: bool) {
    let replica = Replica::new(name);
    replica.postgres.run("CREATE TABLE orders (id bigint PRIMARY KEY, note text, amount int)");
    replica.warehouse.duplicate_table("events");
    let mut pipeline = replica.pipeline();
    pipeline.transforms = transform(&machine::plugin("hostile"), "{}");
    let file = replica.write(&pipeline);
    // Listens beside it; its own database is the same.
    let mut listener = Listener::new().pipeline("100ms");
    listener.fe = vec![replica.warehouse.fe()];
    listener.query = replica.warehouse.query();
    let Source::Http(http) = &listener.source else { panic!("it is one of HTTP") };
    let address = http.listen.parse().expect("an address");
    let listener = listener.write(&replica.folder);
    let mut tidemill = Tidemill::run(&[&file, &listener]);
    tidemill.until_logged(60, "following the slot");
    if label_is_claimed {
        replica.postgres.run("INSERT INTO orders VALUES (1, 'first', 1)");
        replica.warehouse.until_rows(30, "orders", 1);
    }
    replica.warehouse.fault(fault);
    replica
        .postgres
        .run("INSERT INTO orders SELECT n, repeat('x', 1000), n FROM generate_series(10, 1000) n");
    let used = |metrics: &Metrics| metrics.count("tidemill_budget_used_bytes", &[]);
    tidemill.until(30, "rows are on their way", |metrics| used(metrics) > 900_000);
    tidemill.until_answer(30, "/ready", 503);
    replica.postgres.run("INSERT INTO orders VALUES (2000, '#hostile:fatal', 2)");
    tidemill.until_logged(30, "asked to fail for ever");
    tidemill.until(30, "its bytes are free", |metrics| used(metrics) == 0);
    replica.warehouse.clear_faults();
    let mut client = Client::connect(address).expect("the other one still listens");
    let answer = client.post("/events", "", row(1).as_bytes()).expect("an answer");
    assert_eq!((answer.status, answer.body["loaded"].as_u64()), (200, Some(1)), "{answer:?}");
    let rows = replica.warehouse.number("SELECT COUNT(*) FROM shop.orders");
    assert_eq!(rows, u64::from(label_is_claimed), "what was given up is not loaded later");
    tidemill.terminate();
    assert_eq!(tidemill.until_ended(30).code, Some(1), "one of the pipelines had failed");
}

#[test]
fn loads_that_are_refused_end_with_their_halted_pipeline() {
    within(120, || leaves_nothing("halt_refused", FaultKind::TooManyVersions, true));
}

#[test]
fn loads_that_cannot_begin_end_with_their_halted_pipeline() {
    within(120, || leaves_nothing("halt_unclaimed", FaultKind::BackendRefuses, false));
}
