//! A transaction that is much larger than the process may ever be.

use std::time::Instant;

use tidemill_tests::{limit::within, replica::Replica};

const MEBIBYTE: u64 = 1 << 20;
/// What the process may have resident, with a budget of 32 MiB.
const RESIDENT_BYTES_MAX: u64 = 256 * MEBIBYTE;
/// Rows of 10 kB, and of 1 MB: 1 GB together. Nothing compresses them on their way: see the table.
const SMALL_ROWS: u64 = 90_000;
const LARGE_ROWS: u64 = 100;

/// Each row says its own number at its beginning and at its end.
const TABLE: &str = "CREATE TABLE large (id bigint PRIMARY KEY, body text);
                     ALTER TABLE large ALTER COLUMN body SET STORAGE EXTERNAL;
                     INSERT INTO large VALUES (0, repeat(lpad('0', 10, '0'), 2))";

#[test]
fn a_transaction_of_a_gigabyte_leaves_memory_bounded() {
    within(300, || {
        let replica = Replica::new("gigabyte");
        replica.postgres.run(TABLE);
        let mut pipeline = replica.pipeline();
        pipeline.batch.push_str("\nmax_bytes = \"8MiB\"");
        pipeline.process = "budget = \"32MiB\"".to_owned();
        let mut tidemill = replica.run(&pipeline);
        replica.until_equal(60, &["large"]);
        tidemill.until_logged(30, "following the slot");
        let began = Instant::now();
        replica.postgres.run(&format!(
            "BEGIN; INSERT INTO large SELECT n, repeat(lpad(n::text, 10, '0'), 1000)
                FROM generate_series(1, {SMALL_ROWS}) n;
             INSERT INTO large SELECT n, repeat(lpad(n::text, 10, '0'), 100000)
                FROM generate_series({SMALL_ROWS} + 1, {SMALL_ROWS} + {LARGE_ROWS}) n; COMMIT"
        ));
        let committed = began.elapsed();
        replica.warehouse.until_rows(200, "large", 1 + SMALL_ROWS + LARGE_ROWS);
        let loaded = began.elapsed();
        let resident = tidemill.resident_bytes_max();
        println!("committed after {committed:.1?}, loaded after {loaded:.1?}, {} MiB", resident / MEBIBYTE);
        assert!(resident < RESIDENT_BYTES_MAX, "{} MiB", resident / MEBIBYTE);
        let sums = "SELECT COUNT(*), SUM(LENGTH(body)), SUM(id) FROM";
        let source = replica.postgres.rows(&format!("{sums} large"));
        assert_eq!(replica.warehouse.execute(&format!("{sums} shop.large")), source);
        assert_eq!(source[0][1].as_deref(), Some("1000000020"));
        let mixed = "SELECT COUNT(*) FROM shop.large WHERE CAST(SUBSTR(body, 1, 10) AS BIGINT) <> id \
                     OR CAST(SUBSTR(body, LENGTH(body) - 9, 10) AS BIGINT) <> id";
        assert_eq!(replica.warehouse.number(mixed), 0, "a value is that of another row");
        // One position for all of it, behind its commit: nothing of it comes again.
        tidemill.drain(30);
        let loads = replica.warehouse.stats("large").loads;
        let mut tidemill = replica.run(&pipeline);
        tidemill.until_logged(30, "following the slot");
        replica.postgres.run("INSERT INTO large VALUES (-1, 'last')");
        replica.warehouse.until_rows(30, "large", 2 + SMALL_ROWS + LARGE_ROWS);
        assert_eq!(replica.warehouse.stats("large").loads, loads + 1, "it was loaded again");
        tidemill.drain(30);
    });
}
