//! Loads of a process that is dead, or was frozen, bring no old rows back over its successor's (delivery.md §2).

use tidemill_sandbox::{ClientFate, FaultKind, Hop, LoadRecord, TransactionState};
use tidemill_tests::metrics::Metrics;
use tidemill_tests::pipeline::Pipeline;
use tidemill_tests::process::{Tidemill, tidemill_output};
use tidemill_tests::replica::Replica;
use tidemill_tests::wait_until;

use std::time::{Duration, Instant};

/// From the last byte of a body to its commit: longer than a successor needs to take over.
const LATE_MS: u64 = 20_000;
/// A frozen process loses its lock after 10 s of silence; the rest is its successor's.
const TAKEN_OVER_WITHIN_S: u64 = 30;

fn followed(name: &str) -> (Replica, Tidemill) {
    let replica = Replica::new(name);
    replica.postgres.run(
        "CREATE TABLE orders (id bigint PRIMARY KEY, note text);
         INSERT INTO orders SELECT n, 'old' FROM generate_series(1, 100) n",
    );
    let tidemill = replica.run(&replica.pipeline());
    replica.until_equal(60, &["orders"]);
    replica.postgres.until_streaming(60, &replica.slot());
    (replica, tidemill)
}

#[test]
fn a_load_that_commits_after_its_process_died_brings_no_old_rows_back() {
    let (replica, mut tidemill) = followed("late");
    let late = FaultKind::LateCommit { delay_ms: LATE_MS, client: ClientFate::KeptWaiting };
    let late = replica.warehouse.fault_times_on("orders", late, 1);
    replica.postgres.run("UPDATE orders SET note = 'dead'");
    replica.warehouse.until_fired(late, 1);
    tidemill.kill();
    replica.postgres.run("UPDATE orders SET note = 'new'");
    let mut successor = replica.run(&replica.pipeline());
    replica.until_equal(60, &["orders"]);
    // The successor ended it before it loaded anything itself.
    let ended = |load: &LoadRecord| load.table == "orders" && load.state == TransactionState::Aborted;
    let loads = replica.warehouse.loads();
    assert!(loads.iter().any(ended), "{loads:?}");
    replica.until_equal(1, &["orders"]);
    successor.drain(30);
}

#[test]
fn a_process_that_thaws_sends_nothing_over_its_successors_rows() {
    let (replica, mut frozen) = followed("thaw");
    // Begun, and its body not yet wanted: there it freezes.
    let held = replica.warehouse.fault_times_on("orders", FaultKind::ContinueWithheld { delay_ms: 2_000 }, 1);
    replica.postgres.run("UPDATE orders SET note = 'frozen'");
    replica.warehouse.until_fired(held, 1);
    frozen.freeze();
    replica.postgres.run("UPDATE orders SET note = 'new'; DELETE FROM orders WHERE id > 50");
    let mut successor = replica.run(&replica.pipeline());
    // The frozen one's connections look alive: the server ends the one of the lock when it stays silent.
    replica.until_equal(TAKEN_OVER_WITHIN_S, &["orders"]);
    frozen.thaw();
    frozen.until_logged(60, "another process has taken slot");
    replica.until_equal(1, &["orders"]);
    successor.drain(30);
}

#[test]
fn a_process_that_was_overtaken_stands_by_and_takes_over_again() {
    let (replica, mut first) = followed("overtaken");
    let mut second = replica.run(&replica.pipeline());
    second.until_logged(30, "standing by");
    // Some rows are on their way, and some wait in its own memory.
    let held = replica.warehouse.fault_times_on("orders", FaultKind::ContinueWithheld { delay_ms: 2_000 }, 1);
    replica.postgres.run("UPDATE orders SET note = 'frozen'");
    replica.warehouse.until_fired(held, 1);
    replica.postgres.run("INSERT INTO orders SELECT n, 'frozen, too' FROM generate_series(200, 5000) n");
    first.freeze();
    let frozen_at = Instant::now();
    replica.postgres.run("UPDATE orders SET note = 'new'; DELETE FROM orders WHERE id > 50");
    replica.until_equal(TAKEN_OVER_WITHIN_S, &["orders"]);
    println!("taken over {:?} after the freeze", frozen_at.elapsed());
    first.thaw();
    first.until_logged(60, "another process has taken slot");
    let stands_by = |log: &str| log.rfind("another process has taken slot") < log.rfind("reads slot");
    let waits = || stands_by(&first.log()).then_some(());
    wait_until(Duration::from_secs(60), waits).unwrap_or_else(|late| panic!("{late}: {}", first.log()));
    let said = first.until_answer(30, "/ready", 200);
    assert!(said.contains("standing by"), "{said}");
    // Nothing of what it had read is left.
    let empty = |name| move |metrics: &Metrics| metrics.has(name) && metrics.count(name, &[]) == 0;
    first.until(30, "no record in flight", empty("tidemill_records_in_flight"));
    first.until(30, "no byte charged", empty("tidemill_budget_used_bytes"));
    replica.until_equal(1, &["orders"]);

    second.kill();
    replica
        .postgres
        .run("UPDATE orders SET note = 'again' WHERE id < 20; INSERT INTO orders VALUES (9000, 'last')");
    replica.until_equal(TAKEN_OVER_WITHIN_S, &["orders"]);
    let leads =
        || first.get("/ready").filter(|(status, said)| *status == 200 && !said.contains("standing by"));
    let led = wait_until(Duration::from_secs(30), leads);
    led.unwrap_or_else(|late| panic!("ready, and no standby: {late}; it says {:?}", first.get("/ready")));
    first.drain(30);
}

#[test]
fn a_standby_takes_over_within_seconds() {
    let (replica, mut leader) = followed("standby");
    let mut standby = replica.run(&replica.pipeline());
    standby.until_logged(30, "standing by");
    leader.kill();
    replica.postgres.run("INSERT INTO orders VALUES (1000, 'after')");
    replica.until_equal(30, &["orders"]);
    standby.drain(30);
}

#[test]
fn a_pipeline_that_halts_lets_the_slot_go_though_its_process_lives_on() {
    let (replica, mut first) = followed("halted");
    first.drain(30);
    let other = Replica::new("beside_halted");
    other.postgres.run("CREATE TABLE items (id bigint PRIMARY KEY); INSERT INTO items VALUES (1)");
    let mut both = Tidemill::run(&[&replica.write(&replica.pipeline()), &other.write(&other.pipeline())]);
    replica.postgres.until_streaming(60, &replica.slot());
    other.until_equal(60, &["items"]);
    let mut standby = replica.run(&replica.pipeline());
    standby.until_logged(30, "standing by");
    // One load of the leader is refused for good.
    replica.warehouse.fault_times(FaultKind::AccessDenied { at: Hop::Backend }, 1);
    replica.postgres.run("UPDATE orders SET note = 'refused once'; DELETE FROM orders WHERE id > 50");
    replica.until_equal(TAKEN_OVER_WITHIN_S, &["orders"]);
    replica.postgres.run("INSERT INTO orders VALUES (1000, 'after')");
    replica.until_equal(30, &["orders"]);
    standby.drain(30);
    // The other pipeline goes on all the while.
    assert!(both.is_running(), "{}", both.log());
    other.postgres.run("INSERT INTO items VALUES (2)");
    other.until_equal(30, &["items"]);
    both.terminate();
    let ended = both.until_ended(30);
    assert_eq!(ended.code, Some(1), "one of its pipelines was halted: {}", ended.log);
}

/// Changes rows that are loaded, and waits until the slot is confirmed past what a FE knows that lags from before on.
fn confirmed_past_what_is_known(replica: &Replica) {
    let before = replica.postgres.cell("SELECT pg_current_wal_lsn()::text").expect("a place in the log");
    let slot = replica.slot();
    replica.postgres.run("UPDATE orders SET note = 'loaded'");
    replica.until_equal(30, &["orders"]);
    replica.postgres.until(
        60,
        &format!(
            "SELECT confirmed_flush_lsn > '{before}' FROM pg_replication_slots WHERE slot_name = '{slot}'"
        ),
    );
}

#[test]
fn a_successor_whose_fe_lags_goes_on_where_its_predecessor_ended() {
    let (replica, mut first) = followed("lagging");
    let lags = replica.warehouse.fault(FaultKind::FollowerLags { sync: true });
    confirmed_past_what_is_known(&replica);
    first.kill();
    replica.postgres.run("UPDATE orders SET note = 'new'; DELETE FROM orders WHERE id > 50");
    let mut successor = replica.run(&replica.pipeline());
    replica.until_equal(60, &["orders"]);
    assert!(replica.warehouse.fired(lags) > 0, "nothing was read over the query port");
    assert!(!successor.log().contains("was confirmed up to"), "{}", successor.log());
    successor.drain(30);
}

#[test]
fn a_slot_that_seems_ahead_is_waited_for_where_nobody_knows_sync() {
    let (replica, mut first) = followed("seems_ahead");
    let lags = replica.warehouse.fault(FaultKind::FollowerLags { sync: false });
    confirmed_past_what_is_known(&replica);
    first.kill();
    replica.postgres.run("UPDATE orders SET note = 'new'");
    let mut successor = replica.run(&replica.pipeline());
    successor.until_logged(30, "as far as it shows; waiting and trying again");
    replica.warehouse.clear_fault(lags);
    replica.until_equal(30, &["orders"]);
    successor.drain(30);
}

#[test]
fn a_successor_whose_fe_lags_finds_the_loads_that_are_open() {
    let (replica, mut first) = followed("lagging_claim");
    first.drain(30);
    // What it hears of is the first one's claim.
    let lags = replica.warehouse.fault(FaultKind::FollowerLags { sync: true });
    let mut second = replica.run(&replica.pipeline());
    replica.postgres.until_streaming(60, &replica.slot());
    let late = FaultKind::LateCommit { delay_ms: LATE_MS, client: ClientFate::KeptWaiting };
    let late = replica.warehouse.fault_times_on("orders", late, 1);
    replica.postgres.run("UPDATE orders SET note = 'dead'");
    replica.warehouse.until_fired(late, 1);
    second.kill();
    replica.postgres.run("UPDATE orders SET note = 'new'");
    let mut third = replica.run(&replica.pipeline());
    replica.until_equal(60, &["orders"]);
    assert!(replica.warehouse.fired(lags) > 0, "nothing was read over the query port");
    let ended = |load: &LoadRecord| load.table == "orders" && load.state == TransactionState::Aborted;
    let loads = replica.warehouse.loads();
    assert!(loads.iter().any(ended), "{loads:?}");
    replica.until_equal(1, &["orders"]);
    third.drain(30);
}

#[test]
fn a_leader_that_gets_its_lock_back_reads_who_led_meanwhile() {
    let (replica, mut first) = followed("lagging_lock");
    let held = replica.warehouse.fault_times_on("orders", FaultKind::ContinueWithheld { delay_ms: 2_000 }, 1);
    replica.postgres.run("UPDATE orders SET note = 'frozen'");
    replica.warehouse.until_fired(held, 1);
    first.freeze();
    replica.warehouse.fault(FaultKind::FollowerLags { sync: true });
    replica.postgres.run("UPDATE orders SET note = 'new'; DELETE FROM orders WHERE id > 50");
    let mut second = replica.run(&replica.pipeline());
    replica.until_equal(TAKEN_OVER_WITHIN_S, &["orders"]);
    second.kill();
    first.thaw();
    // The lock is free, and it was not always its own.
    first.until_logged(60, "another process has taken slot");
    replica.postgres.run("INSERT INTO orders VALUES (1000, 'after')");
    replica.until_equal(60, &["orders"]);
    first.drain(30);
}

#[test]
fn a_truncate_that_takes_effect_behind_a_successor_halts_and_says_so() {
    let replica = Replica::new("late_truncate");
    replica.postgres.run(
        "CREATE TABLE orders (id bigint PRIMARY KEY, note text);
         INSERT INTO orders SELECT n, 'old' FROM generate_series(1, 100) n",
    );
    let pipeline = Pipeline { source_more: "truncate = \"apply\"".to_owned(), ..replica.pipeline() };
    let mut first = replica.run(&pipeline);
    replica.until_equal(60, &["orders"]);
    replica.postgres.until_streaming(60, &replica.slot());
    let mut second = replica.run(&pipeline);
    second.until_logged(30, "standing by");
    // As if it were frozen behind its question, or its line were slow.
    let slow = FaultKind::SlowTruncate { delay_ms: LATE_MS };
    let slow = replica.warehouse.fault_times_on("orders", slow, 1);
    replica.postgres.run("TRUNCATE orders; INSERT INTO orders VALUES (1, 'after')");
    replica.warehouse.until_fired(slow, 1);
    replica.postgres.run(
        "SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_stat_activity USING (pid)
         WHERE locktype = 'advisory' AND granted AND datname = current_database()",
    );
    let ended = first.until_ended(60);
    assert_eq!(ended.code, Some(1), "{}", ended.log);
    for words in ["may have been emptied behind its new reader", "`tidemill resync <file> public.orders`"] {
        assert!(ended.log.contains(words), "{words:?} is not in {}", ended.log);
    }
    // What it says to do brings the rows back.
    second.drain(60);
    let file = replica.write(&pipeline);
    let resync = tidemill_output(&["resync", file.to_str().expect("a path of letters"), "public.orders"]);
    assert!(resync.status.success(), "{resync:?}");
    let mut third = replica.run(&pipeline);
    replica.until_equal(60, &["orders"]);
    third.drain(30);
}
