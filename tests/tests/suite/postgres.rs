//! Postgres CDC, from a real server: copied, followed, and equal in the end.

use tidemill_tests::process::tidemill_output;
use tidemill_tests::replica::Replica;
use tidemill_tests::workload::{self, Workload};

/// A table with rows, and a pipeline that has copied them.
fn started(name: &str) -> (Replica, tidemill_tests::process::Tidemill) {
    let replica = Replica::new(name);
    replica.postgres.run(
        "CREATE TABLE orders (id bigint PRIMARY KEY, customer text, amount numeric(10,2), note text);
         INSERT INTO orders SELECT n, 'c' || n % 7, n / 3.0, repeat('x', (n % 50)::int) FROM generate_series(1, 5000) n",
    );
    let tidemill = replica.run(&replica.pipeline());
    replica.until_equal(60, &["orders"]);
    (replica, tidemill)
}

#[test]
fn what_is_there_is_copied_and_what_comes_is_followed() {
    let (replica, mut tidemill) = started("follow");
    replica.postgres.run(
        "INSERT INTO orders VALUES (10001, 'new', 1.5, NULL);
         UPDATE orders SET amount = amount + 1 WHERE id % 10 = 0;
         UPDATE orders SET id = id + 20000 WHERE id BETWEEN 100 AND 120;
         DELETE FROM orders WHERE id % 13 = 0;
         BEGIN; DELETE FROM orders; ROLLBACK",
    );
    replica.until_equal(60, &["orders"]);
    tidemill.drain(30);
}

#[test]
fn a_restart_goes_on_where_the_last_one_stopped() {
    let (replica, mut tidemill) = started("restart");
    replica.postgres.run("UPDATE orders SET customer = 'first' WHERE id < 100");
    replica.until_equal(60, &["orders"]);
    tidemill.kill();
    replica
        .postgres
        .run("UPDATE orders SET customer = 'second' WHERE id < 50; DELETE FROM orders WHERE id > 4000");
    let _tidemill = replica.run(&replica.pipeline());
    replica.until_equal(60, &["orders"]);
}

#[test]
fn a_workload_ends_equal() {
    let replica = Replica::new("workload");
    let settings = workload::Settings { writers: 4, seed: 7, ..workload::Settings::default() };
    workload::prepare(&replica.postgres, &settings);
    let running = Workload::start(&replica.postgres, &settings);
    running.until_committed(60, 200);
    let _tidemill = replica.run(&replica.pipeline());
    running.until_committed(60, 500);
    let _counts = running.stop();
    replica.until_equal(120, &workload::TABLES);
}

#[test]
fn a_table_is_copied_again_when_somebody_asks_for_it() {
    let (replica, mut tidemill) = started("resync");
    let file = replica.write(&replica.pipeline());
    let resync = || tidemill_output(&["resync", file.to_str().expect("a path"), "public.orders"]);
    let refused = resync();
    assert!(!refused.status.success());
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(told.contains("stop it, and its standbys"), "{told}");
    tidemill.drain(30);
    // Rows that nobody told of: only a copy brings them right.
    replica.warehouse.execute("DELETE FROM shop.orders WHERE id = 7");
    replica.warehouse.execute("INSERT INTO shop.orders (id, customer) VALUES (77777, 'ghost')");
    let done = resync();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let mut tidemill = replica.run(&replica.pipeline());
    replica.postgres.run("DELETE FROM orders WHERE id = 8");
    replica.until_equal(60, &["orders"]);
    tidemill.drain(30);
}
