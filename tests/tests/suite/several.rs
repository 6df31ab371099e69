//! Several pipelines in one process: one that halts leaves the others running, and the exit code says so.

use std::time::Duration;
use tidemill_sandbox::{FaultKind, Hop};
use tidemill_tests::{
    kafka::Record,
    limit::within,
    machine,
    oracle::Promise,
    pipeline::{self, Pipeline, Source, transform},
    postgres::Postgres,
    process::Tidemill,
    stand::{Model, Stand},
    wait_until,
    warehouse::row,
};

#[test]
fn one_pipeline_halts_and_the_other_goes_on() {
    within(120, || {
        let stand = Stand::new("goes_on", 2, Model::Duplicate);
        let bad_topic = format!("{}-bad", stand.name);
        stand.kafka.create_topic(&bad_topic, 1);
        let good = stand.pipeline();
        let bad = Pipeline {
            name: bad_topic.clone(),
            topics: vec![bad_topic.clone()],
            transforms: transform(&machine::test_plugin(), "{}"),
            ..stand.pipeline()
        };
        let files = [stand.write(&good), stand.write(&bad)];
        let mut tidemill = Tidemill::run(&[&files[0], &files[1]]);
        stand.produce(0..100);
        tidemill.until_settled(30, 100);
        // Not what its plugin can read, and no dead letters: it halts.
        stand.kafka.produce(&bad_topic, [Record::of("not json")]);
        let why = tidemill.until_answer(30, "/ready", 503);
        assert!(why.contains(&bad_topic), "the red one is named: {why}");
        stand.produce(100..200);
        tidemill.until_settled(30, 200);
        tidemill.terminate();
        let ended = tidemill.until_ended(30);
        assert_eq!(ended.code, Some(1), "one of the pipelines had failed");
        stand.judge(200).must_keep(Promise::Once);
        assert_eq!(stand.committed(), 200);
        assert_eq!(stand.kafka.offsets(&bad_topic, &bad_topic).sum(), 0);
    });
}

/// Rows of both are in one batch of a Primary Key table, and under a fence each.
#[test]
fn a_load_that_halts_one_pipeline_leaves_the_rows_of_the_one_it_shares_a_batch_with() {
    within(120, || {
        let stand = Stand::new("shared_halt", 1, Model::Primary);
        let other_topic = format!("{}-other", stand.name);
        stand.kafka.create_topic(&other_topic, 1);
        let one = Pipeline { batch: "linger = \"3s\"".to_owned(), ..stand.pipeline() };
        let other = Pipeline { name: other_topic.clone(), topics: vec![other_topic.clone()], ..one.clone() };
        let files = [stand.write(&one), stand.write(&other)];
        let mut tidemill = Tidemill::run(&[&files[0], &files[1]]);
        tidemill.until(30, "each has its partition", |m| m.count("tidemill_partitions", &[]) == 2);
        let denied = FaultKind::AccessDenied { at: Hop::Backend };
        let denied = stand.warehouse.fault_times_on(&stand.table, denied, 1);
        stand.produce(0..100);
        stand.kafka.produce(&other_topic, (100..200).map(|id| Record::of(row(id))));
        stand.warehouse.until_fired(denied, 1);
        let released = || {
            let mut offsets = [stand.committed(), stand.kafka.offsets(&other_topic, &other_topic).sum()];
            offsets.sort_unstable();
            (offsets == [0, 100]).then_some(())
        };
        wait_until(Duration::from_secs(30), released).expect("one halts, the other is acknowledged");
        let why = tidemill.until_answer(30, "/ready", 503);
        assert!(why.contains("halted"), "{why}");
        let batches = tidemill.metrics().expect("metrics").count("tidemill_batches_cut_total", &[]);
        assert_eq!(batches, 1, "they share a batch");
        let found = stand.warehouse.ids(&stand.table);
        assert!(found.len() == 100 && (found[0] < 100) == (found[99] < 100), "rows of one: {found:?}");
        tidemill.terminate();
        assert_eq!(tidemill.until_ended(30).code, Some(1), "one of the pipelines had failed");
    });
}

#[test]
fn two_pipelines_with_one_name_are_refused() {
    within(60, || {
        let stand = Stand::new("same_name", 1, Model::Duplicate);
        let first = stand.write(&stand.pipeline());
        let second = stand.folder.path().join("second.toml");
        std::fs::write(&second, stand.pipeline().toml()).expect("the file can be written");
        let mut tidemill = Tidemill::run(&[&first, &second]);
        let ended = tidemill.until_ended(15);
        assert_eq!(ended.code, Some(2));
        assert!(ended.log.contains(&stand.name), "{}", ended.log);
    });
}

#[test]
fn a_dry_run_prints_rows_and_commits_nothing() {
    within(60, || {
        let stand = Stand::new("dry_run", 1, Model::Duplicate);
        stand.produce(0..20);
        let file = stand.write(&stand.pipeline());
        let file = file.to_str().expect("a path of text");
        let output = tidemill_tests::process::tidemill_output(&["run", "--dry-run", "5", file]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let printed = String::from_utf8_lossy(&output.stdout);
        for id in 0..5 {
            assert!(printed.contains(&row(id)), "row {id} is not in {printed}");
        }
        assert!(!printed.contains(&row(5)), "five were asked for: {printed}");
        assert_eq!(stand.committed(), 0);
        assert_eq!(stand.warehouse.stats(&stand.table).loads, 0);
    });
}

#[test]
fn one_topic_goes_into_several_tables() {
    within(90, || {
        let stand = Stand::new("routed", 3, Model::Duplicate);
        let record = |id: u64| {
            let kind = if id.is_multiple_of(3) { "click" } else { "view" };
            Record::of(format!(r#"{{"id":{id},"kind":"{kind}","amount":1}}"#))
        };
        stand.kafka.produce(&stand.name, (0..3_000).map(record));
        let mut pipeline = stand.pipeline();
        stand.routed(&mut pipeline);
        let mut tidemill = stand.run(&pipeline);
        tidemill.until_settled(30, 3_000);
        assert_eq!(stand.warehouse.ids("clicks").len(), 1_000);
        assert_eq!(stand.warehouse.ids("views").len(), 2_000);
        stand.judge_routed(3_000).must_keep(Promise::Once);
    });
}

/// As pipelines/kafka-and-postgres.*.toml.
#[test]
fn a_topic_and_a_postgres_table_fill_one_table() {
    within(120, || {
        let stand = Stand::new("joined", 1, Model::Primary);
        let postgres = Postgres::shared("joined");
        stand.warehouse.execute(
            "CREATE TABLE shop.customers (id BIGINT NOT NULL, amount BIGINT, note VARCHAR(100000)) PRIMARY KEY(id) \
             DISTRIBUTED BY HASH(id)",
        );
        postgres.run(
            "CREATE TABLE customers (id bigint PRIMARY KEY, amount bigint, note text);
             ALTER TABLE customers ALTER COLUMN note SET STORAGE EXTERNAL;
             INSERT INTO customers SELECT n, n, repeat('note', 2000) FROM generate_series(100001, 100200) n",
        );
        stand.produce(0..500);
        let kafka = Pipeline { table: "customers".to_owned(), ..stand.pipeline() };
        let copied = Pipeline {
            name: postgres.database().to_owned(),
            source: Source::Postgres(pipeline::Postgres::of(&postgres)),
            ..kafka.clone()
        };
        let files = [stand.write(&kafka), stand.write(&copied)];
        let mut tidemill = Tidemill::run(&[&files[0], &files[1]]);
        stand.warehouse.until_rows(60, "customers", 700);
        postgres.until_streaming(30, &format!("tidemill_{}", postgres.database()));
        // Partial rows, deletes and new keys beside the topic's rows.
        stand.produce(500..1_000);
        postgres.run(
            "UPDATE customers SET amount = 7 WHERE id % 2 = 0; DELETE FROM customers WHERE id % 5 = 0;
             UPDATE customers SET id = id + 1000 WHERE id < 100010",
        );
        let comparison = |id: &str| format!("SELECT {id}, amount, note FROM");
        let expected = {
            let mut rows = postgres.rows(&format!("{} customers", comparison("id")));
            rows.sort();
            rows
        };
        let found = || {
            let mut rows =
                stand.warehouse.execute(&format!("{} shop.customers WHERE id > 100000", comparison("id")));
            rows.sort();
            rows
        };
        let equal = wait_until(Duration::from_secs(60), || (found() == expected).then_some(()));
        equal.unwrap_or_else(|late| panic!("{} rows and not {}: {late}", found().len(), expected.len()));
        let topic = "SELECT COUNT(*) FROM shop.customers WHERE id < 100000";
        let all =
            wait_until(Duration::from_secs(30), || (stand.warehouse.number(topic) == 1_000).then_some(()));
        all.unwrap_or_else(|late| panic!("{} rows of the topic: {late}", stand.warehouse.number(topic)));
        tidemill.drain(30);
        assert_eq!(stand.committed(), 1_000);
    });
}
