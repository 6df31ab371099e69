//! Loads of a process that is dead, or was frozen, bring no old rows back over its successor's (delivery.md §2).

use tidemill_sandbox::{ClientFate, FaultKind, LoadRecord, TransactionState};
use tidemill_tests::process::Tidemill;
use tidemill_tests::replica::Replica;
use tidemill_tests::wait_until;

use std::time::Duration;

/// From the last byte of a body to its commit: longer than a successor needs to take over.
const LATE_MS: u64 = 6_000;

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

fn until_fired(replica: &Replica) {
    let fired = || (replica.warehouse.faults_fired() > 0).then_some(());
    wait_until(Duration::from_secs(30), fired).expect("a load meets the fault");
}

#[test]
fn a_load_that_commits_after_its_process_died_brings_no_old_rows_back() {
    let (replica, mut tidemill) = followed("late");
    let late = FaultKind::LateCommit { delay_ms: LATE_MS, client: ClientFate::KeptWaiting };
    replica.warehouse.fault_times(late, 1);
    replica.postgres.run("UPDATE orders SET note = 'dead'");
    until_fired(&replica);
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
    replica.warehouse.fault_times(FaultKind::ContinueWithheld { delay_ms: 2_000 }, 1);
    replica.postgres.run("UPDATE orders SET note = 'frozen'");
    until_fired(&replica);
    frozen.freeze();
    replica.postgres.run("UPDATE orders SET note = 'new'; DELETE FROM orders WHERE id > 50");
    let mut successor = replica.run(&replica.pipeline());
    // The frozen one's connections look alive: the server ends the one of the lock when it stays silent.
    replica.until_equal(90, &["orders"]);
    frozen.thaw();
    let ended = frozen.until_ended(60);
    assert!(ended.log.contains("another process has taken slot"), "{}", ended.log);
    replica.until_equal(1, &["orders"]);
    successor.drain(30);
}

#[test]
fn a_standby_takes_over_within_seconds() {
    let (replica, mut leader) = followed("standby");
    let mut standby = replica.run(&replica.pipeline());
    standby.until_logged(30, "standing by");
    leader.kill();
    replica.postgres.run("INSERT INTO orders VALUES (1000, 'after')");
    replica.until_equal(10, &["orders"]);
    standby.drain(30);
}
