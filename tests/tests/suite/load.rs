//! The main path: records become rows, batches become versions, and the numbers agree everywhere.

use std::process::Command;
use tidemill_plugin_orders::sample::{CREATE_TABLE, is_test, write_order};
use tidemill_tests::{
    kafka::Record,
    limit::within,
    machine,
    metrics::Metrics,
    oracle::Promise,
    pipeline::transform,
    stand::{Model, Stand},
    warehouse::{amount, row},
};

#[test]
fn every_record_is_loaded_once_and_every_load_is_one_version() {
    within(120, || {
        const RECORDS: u64 = 100_000;
        let stand = Stand::new("every_record", 4, Model::Duplicate);
        stand.produce(0..RECORDS);
        let mut pipeline = stand.pipeline();
        pipeline.batch = "max_rows = 10_000\nlinger = \"1s\"".to_owned();
        let mut tidemill = stand.run(&pipeline);
        let metrics = tidemill.until_settled(60, RECORDS);
        stand.judge(RECORDS).must_keep(Promise::Once);

        let stats = stand.warehouse.stats(&stand.table);
        let loads = metrics.count("tidemill_loads_total", &[]);
        assert_eq!(stats.loads, loads, "the sandbox counts the loads that the metrics tell");
        assert_eq!(stats.rows_loaded, RECORDS);
        assert_eq!(stats.versions_total, loads, "every load is one version");
        assert!(
            (10..=20).contains(&loads),
            "100,000 rows by 10,000 are 10 loads and a few tails, not {loads}"
        );

        let wrong = format!(
            "SELECT COUNT(*) FROM shop.{} WHERE id = 77777 AND amount = {}",
            stand.table,
            amount(77_777)
        );
        assert_eq!(stand.warehouse.number(&wrong), 1, "rows arrive with their columns");
        tidemill.drain(30);
        assert_eq!(stand.committed(), RECORDS);
    });
}

#[test]
fn orders_become_typed_rows() {
    within(120, || {
        const ORDERS: u64 = 60_000;
        let stand = Stand::new("orders", 4, Model::Duplicate);
        stand.warehouse.execute(&format!("DROP TABLE shop.{}", stand.table));
        stand.warehouse.execute(&CREATE_TABLE.replacen("TABLE orders", "TABLE shop.orders", 1));
        let order = |id: u64| {
            let mut event = Vec::new();
            write_order(id, &mut event);
            Record::of(event)
        };
        stand.kafka.produce(&stand.name, (0..ORDERS).map(order));
        let mut pipeline = stand.pipeline();
        pipeline.transforms = transform(&machine::plugin("orders"), "{ currency = \"EUR\" }");
        let mut tidemill = stand.run(&pipeline);
        let metrics = tidemill.until_settled(60, ORDERS);
        let tests = (0..ORDERS).filter(|id| is_test(*id)).count() as u64;
        assert_eq!(
            metrics.count("tidemill_records_dropped_total", &[]),
            tests,
            "orders that are tests are left out"
        );
        let ids = stand.warehouse.execute("SELECT order_id FROM shop.orders");
        let mut ids: Vec<u64> =
            ids.iter().map(|row| row[0].as_deref().expect("an id").parse().expect("a number")).collect();
        ids.sort_unstable();
        assert!(
            ids.into_iter().eq((0..ORDERS).filter(|id| !is_test(*id))),
            "every other order is there, once"
        );
        let sum = "SELECT SUM(total_cents) FROM shop.orders WHERE currency = 'EUR'";
        assert!(stand.warehouse.number(sum) > 0, "and computed");
    });
}

#[test]
fn a_stock_mysql_client_counts_the_rows() {
    within(60, || {
        let stand = Stand::new("stock_client", 1, Model::Duplicate);
        stand.produce(0..1_000);
        let mut tidemill = stand.run(&stand.pipeline());
        tidemill.until_settled(30, 1_000);
        let (host, port) =
            stand.warehouse.query().rsplit_once(':').map(|(h, p)| (h.to_owned(), p.to_owned())).unwrap();
        let output = Command::new("mysql")
            .args([
                "--host",
                &host,
                "--port",
                &port,
                "--user",
                "root",
                "--batch",
                "--skip-column-names",
                "--execute",
            ])
            .arg(format!("SELECT count(*) FROM shop.{}", stand.table))
            .output()
            .expect("`mysql` runs; `cargo xtask test` installs default-mysql-client");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "1000");
    });
}

#[test]
fn the_number_of_loads_does_not_grow_with_partitions() {
    within(180, || {
        const RECORDS: u64 = 64_000;
        let loads = |name: &str, partitions: i32| {
            let stand = Stand::new(name, partitions, Model::Duplicate);
            stand.produce(0..RECORDS);
            let mut pipeline = stand.pipeline();
            pipeline.batch = "max_rows = 2_000\nlinger = \"5s\"".to_owned();
            let mut tidemill = stand.run(&pipeline);
            let metrics = tidemill.until_settled(60, RECORDS);
            metrics.count("tidemill_loads_total", &[])
        };
        let counts = [loads("one_partition", 1), loads("four_partitions", 4), loads("many_partitions", 32)];
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        assert!(*least >= RECORDS / 2_000, "{counts:?}");
        assert!(*most * 10 <= *least * 11, "1, 4 and 32 partitions differ by more than a tenth: {counts:?}");
    });
}

#[test]
fn metrics_account_for_every_record() {
    within(120, || {
        const RECORDS: u64 = 20_000;
        let stand = Stand::new("account", 4, Model::Duplicate);
        let letters = stand.folder.path().join("letters");
        let mut pipeline = stand.pipeline();
        let plugin = machine::test_plugin();
        pipeline.transforms = transform(&plugin, "{}");
        pipeline.dead_letters = format!("directory = {letters:?}\nmax_rejects = false");
        let record = |id: u64| match id % 10 {
            3 => format!(r#"{{"id":{id},"do":"drop"}}"#),
            7 => format!(r#"{{"id":{id},"do":"reject"}}"#),
            _ => row(id),
        };
        let records = (0..RECORDS).map(|id| Record::of(record(id)));
        stand.kafka.produce(&stand.name, records);
        let mut tidemill = stand.run(&pipeline);
        // At every moment, not only at the end: what was read is somewhere. The scrape is no snapshot, so a chunk may
        // be between two of its additions; it never is for long.
        let balanced = |metrics: &Metrics| {
            let of = |name: &str| metrics.count(&format!("tidemill_records_{name}"), &[]);
            of("read_total")
                == of("loaded_total")
                    + of("dropped_total")
                    + of("dead_lettered_total")
                    + of("given_up_total")
                    + of("in_flight")
        };
        tidemill.until(30, "the first records are read", |metrics| {
            metrics.count("tidemill_records_read_total", &[]) > 0
        });
        tidemill.until(10, "read = loaded + dropped + dead-lettered + given up + in flight", balanced);
        tidemill.until_settled(60, RECORDS);
        // The scrape that first says so may be one between two additions, too.
        let metrics = tidemill.until(10, "nothing is in flight, and all is accounted for", |metrics| {
            metrics.count("tidemill_records_in_flight", &[]) == 0 && balanced(metrics)
        });
        let of = |name: &str| metrics.count(&format!("tidemill_records_{name}_total"), &[]);
        let counted = [of("read"), of("loaded"), of("dropped"), of("dead_lettered")];
        assert_eq!(counted, [RECORDS, RECORDS / 10 * 8, RECORDS / 10, RECORDS / 10]);
    });
}

/// How long the first record after an assignment takes to its table, in seconds.
fn first_load(name: &str) -> f64 {
    let stand = Stand::new(name, 4, Model::Duplicate);
    let mut pipeline = stand.pipeline();
    pipeline.batch = "linger = \"200ms\"".to_owned();
    let mut tidemill = stand.run(&pipeline);
    tidemill.until(30, "the group has assigned the partitions", |m| m.count("tidemill_partitions", &[]) == 4);
    stand.produce(0..1);
    let begun = std::time::Instant::now();
    stand.warehouse.until_rows(10, &stand.table, 1);
    begun.elapsed().as_secs_f64()
}

#[test]
fn the_first_load_comes_soon_after_the_assignment() {
    within(180, || {
        // A busy machine may keep one of them waiting, a mistake all.
        let mut waited = Vec::new();
        while waited.len() < 3 && waited.iter().all(|waited| *waited >= 2.0) {
            waited.push(first_load(&format!("first_load_{}", waited.len())));
        }
        assert!(
            waited.iter().any(|waited| *waited < 2.0),
            "one record with a linger of 0.2 s took {waited:.2?} s on a busy test machine"
        );
    });
}

#[test]
fn health_readiness_and_metrics_answer() {
    within(60, || {
        let stand = Stand::new("admin", 1, Model::Duplicate);
        let mut tidemill = stand.run(&stand.pipeline());
        tidemill.until_ready(30);
        assert_eq!(tidemill.get("/health").map(|(status, _)| status), Some(200));
        assert_eq!(tidemill.get("/nothing").map(|(status, _)| status), Some(404));
        let metrics = tidemill.metrics().expect("metrics answer");
        assert!(metrics.has("tidemill_budget_limit_bytes"), "{metrics:?}");
    });
}
