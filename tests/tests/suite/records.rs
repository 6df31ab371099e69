//! What Kafka hands over besides values: keys, headers, timestamps, tombstones, transactions, and where to start.

use std::time::Duration;

use serde_json::{Value, json};
use tidemill_test_kafka::wait_until;
use tidemill_tests::{
    kafka::Record,
    limit::within,
    machine,
    oracle::Promise,
    pipeline::{Pipeline, transform},
    stand::{Model, Stand},
    warehouse::row,
};

fn with_test_plugin(stand: &Stand) -> Pipeline {
    let plugin = machine::test_plugin();
    Pipeline { transforms: transform(&plugin, "{}"), ..stand.pipeline() }
}

#[test]
fn a_plugin_sees_key_headers_timestamp_and_position() {
    within(90, || {
        let stand = Stand::new("seen", 2, Model::Duplicate);
        let record = |id: u64| Record {
            partition: Some(1),
            key: Some(format!("key-{id}")),
            value: Some(format!(r#"{{"id":{id},"do":"inspect"}}"#).into_bytes()),
            timestamp_ms: Some(1_767_225_600_000 + i64::try_from(id).expect("small")),
            headers: vec![("trace".to_owned(), format!("t{id}")), ("trace".to_owned(), String::new())],
        };
        stand.kafka.produce(&stand.name, (0..3).map(record));
        let mut tidemill = stand.run(&with_test_plugin(&stand));
        tidemill.until_settled(30, 3);
        let notes = stand.warehouse.execute(&format!("SELECT note FROM shop.{} ORDER BY id", stand.table));
        let notes: Vec<Value> = notes
            .into_iter()
            .map(|row| serde_json::from_str(row[0].as_deref().expect("a note")).expect("JSON"))
            .collect();
        let expected = |id: u64| {
            json!({
                "source": stand.name, "op": "upsert", "key": format!("key-{id}"), "timestamp_us": (1_767_225_600_000 + id) * 1_000,
                "partition": 1, "offset": id, "headers": [["trace", format!("t{id}")], ["trace", ""]],
            })
        };
        assert_eq!(notes, [expected(0), expected(1), expected(2)]);
    });
}

#[test]
fn tombstones_and_deletes_remove_rows_of_a_primary_key_table() {
    within(90, || {
        let stand = Stand::new("tombstones", 1, Model::Primary);
        let keyed = |id: u64, value: Option<String>| Record {
            key: Some(id.to_string()),
            value: value.map(String::into_bytes),
            ..Record::default()
        };
        stand.kafka.produce(&stand.name, (0..10).map(|id| keyed(id, Some(row(id)))));
        // 3 goes, 4 goes and comes back, 5 is deleted by its value; all in one batch with the inserts
        stand.kafka.produce(&stand.name, [3, 4].map(|id| keyed(id, None)));
        stand.kafka.produce(
            &stand.name,
            [keyed(4, Some(row(4))), keyed(5, Some(r#"{"id":5,"do":"delete"}"#.to_owned()))],
        );
        let mut tidemill = stand.run(&with_test_plugin(&stand));
        tidemill.until_settled(30, 14);
        let mut ids = stand.warehouse.ids(&stand.table);
        ids.sort_unstable();
        assert_eq!(ids, [0, 1, 2, 4, 6, 7, 8, 9]);
    });
}

#[test]
fn a_tombstone_that_no_plugin_turned_into_a_row_is_a_dead_letter() {
    within(90, || {
        let stand = Stand::new("bare_tombstone", 1, Model::Primary);
        let letters = stand.folder.path().join("letters");
        let tombstone = Record { key: Some("1".to_owned()), ..Record::default() };
        stand.kafka.produce(&stand.name, [Record::of(row(1)), tombstone, Record::of(row(2))]);
        let mut pipeline = stand.pipeline();
        pipeline.dead_letters = format!("directory = {letters:?}");
        let mut tidemill = stand.run(&pipeline);
        let metrics = tidemill.until_settled(30, 3);
        assert_eq!(metrics.count("tidemill_records_dead_lettered_total", &[]), 1);
        let mut ids = stand.warehouse.ids(&stand.table);
        ids.sort_unstable();
        assert_eq!(ids, [1, 2]);
    });
}

#[test]
fn a_delete_into_a_duplicate_key_table_is_a_dead_letter() {
    within(90, || {
        let stand = Stand::new("delete_duplicate", 1, Model::Duplicate);
        let letters = stand.folder.path().join("letters");
        stand.kafka.produce(&stand.name, [Record::of(row(1)), Record::of(r#"{"id":1,"do":"delete"}"#)]);
        let mut pipeline = with_test_plugin(&stand);
        pipeline.dead_letters = format!("directory = {letters:?}");
        let mut tidemill = stand.run(&pipeline);
        let metrics = tidemill.until_settled(30, 2);
        assert_eq!(metrics.count("tidemill_records_dead_lettered_total", &[]), 1);
        assert_eq!(stand.warehouse.ids(&stand.table), [1]);
    });
}

#[test]
fn latest_skips_what_was_there_and_nothing_that_comes() {
    within(120, || {
        let stand = Stand::new("latest", 2, Model::Duplicate);
        stand.produce(1_000_000..1_000_500);
        let mut pipeline = stand.pipeline().soon_forgotten();
        pipeline.source_more = "start = \"latest\"".to_owned();
        let mut first = stand.run(&pipeline);
        first
            .until(30, "the group has assigned the partitions", |m| m.count("tidemill_partitions", &[]) == 2);
        first.until_ready(30);
        // It is killed before it has released anything: its claim says where the next one begins.
        first.kill();
        stand.produce(0..500);
        let mut second = stand.run(&pipeline);
        second.until_settled(60, 500);
        stand.judge(500).must_keep(Promise::Once);
    });
}

#[test]
fn a_timestamp_says_where_to_start() {
    within(90, || {
        const MIDNIGHT_MS: i64 = 1_767_225_600_000;
        let stand = Stand::new("timestamp", 1, Model::Duplicate);
        let at = |id: u64, ms: i64| Record { timestamp_ms: Some(ms), ..Record::of(row(id)) };
        stand.kafka.produce(&stand.name, [at(900, MIDNIGHT_MS - 2), at(901, MIDNIGHT_MS - 1)]);
        stand.kafka.produce(&stand.name, [at(0, MIDNIGHT_MS), at(1, MIDNIGHT_MS + 1)]);
        let mut pipeline = stand.pipeline();
        pipeline.source_more = "start = { timestamp = \"2026-01-01T00:00:00Z\" }".to_owned();
        let mut tidemill = stand.run(&pipeline);
        tidemill.until_settled(30, 2);
        tidemill.drain(30);
        stand.judge(2).must_keep(Promise::Once);
    });
}

#[test]
fn aborted_transactions_are_not_loaded_and_do_not_count_as_lag() {
    within(90, || {
        let stand = Stand::new("transactions", 1, Model::Duplicate);
        let rows = |ids: std::ops::Range<u64>| ids.map(|id| Record::of(row(id)));
        stand.kafka.produce_transaction(&stand.name, rows(0..100), true);
        stand.kafka.produce_transaction(&stand.name, rows(500..600), false);
        stand.kafka.produce_transaction(&stand.name, rows(100..200), true);
        let mut tidemill = stand.run(&stand.pipeline());
        tidemill.until_settled(30, 200);
        tidemill.until(30, "control records leave no lag", |metrics| {
            metrics.count("tidemill_lag_records", &[]) == 0
        });
        tidemill.drain(30);
        stand.judge(200).must_keep(Promise::Once);
    });
}

#[test]
fn several_topics_go_into_one_table() {
    within(90, || {
        let stand = Stand::new("topics", 2, Model::Duplicate);
        let other = format!("{}-other", stand.name);
        stand.kafka.create_topic(&other, 3);
        stand.produce(0..500);
        stand.kafka.produce(&other, (500..1_000).map(|id| Record::of(row(id))));
        let mut pipeline = stand.pipeline();
        pipeline.topics.push(other);
        let mut tidemill = stand.run(&pipeline);
        tidemill.until_settled(30, 1_000);
        stand.judge(1_000).must_keep(Promise::Once);
    });
}

#[test]
fn a_restart_goes_on_where_the_last_one_stopped() {
    within(120, || {
        let stand = Stand::new("restart", 3, Model::Duplicate);
        for run in 0..3 {
            stand.produce(run * 1_000..(run + 1) * 1_000);
            let mut tidemill = stand.run(&stand.pipeline());
            tidemill.until_settled(30, 1_000);
            tidemill.drain(30);
        }
        stand.judge(3_000).must_keep(Promise::Once);
    });
}

#[test]
fn offsets_are_committed_again_and_again_while_it_runs() {
    within(300, || {
        let stand = Stand::new("commits", 2, Model::Duplicate);
        let _tidemill = stand.run(&stand.pipeline());
        for round in 0..4 {
            stand.produce(round * 100..(round + 1) * 100);
            stand.until_released(60, (round + 1) * 100);
        }
        stand.judge(400).must_keep(Promise::Once);
    });
}

#[test]
fn records_that_arrive_at_the_very_moment_of_the_assignment_are_read() {
    within(300, || {
        // Partitions are given to a lane while it waits for messages: what that one read brings must not be lost.
        for round in 0..8 {
            let stand = Stand::new(&format!("at_assignment_{round}"), 1, Model::Duplicate);
            stand.produce(0..50);
            let mut tidemill = stand.run(&stand.pipeline());
            tidemill.until_settled(60, 50);
            stand.judge(50).must_keep(Promise::Once);
        }
    });
}

#[test]
fn offsets_that_are_gone_halt_a_pipeline_that_has_read_before() {
    within(120, || {
        let stand = Stand::new("offsets_gone", 1, Model::Duplicate);
        stand.produce(0..100);
        let pipeline = stand.pipeline();
        let mut first = stand.run(&pipeline);
        first.until_settled(30, 100);
        // The marker is written beside the loads.
        let known =
            "SELECT count(*) FROM information_schema.tables_config WHERE TABLE_NAME = 'tidemill_runs'";
        let marked = "SELECT count(*) FROM shop.tidemill_runs";
        let is_marked =
            || (stand.warehouse.number(known) == 1 && stand.warehouse.number(marked) == 1).then_some(());
        wait_until(Duration::from_secs(15), is_marked).expect("the pipeline marks its topic");
        first.drain(30);
        stand.kafka.delete_group(&pipeline.name);
        let mut second = stand.run(&pipeline);
        let ended = second.until_ended(30);
        assert_eq!(ended.code, Some(1));
        assert!(ended.log.contains("has no committed offsets for topic"), "{}", ended.log);
        assert!(ended.log.contains("DELETE FROM shop.tidemill_runs"), "it says what to do: {}", ended.log);
        stand.judge(100).must_keep(Promise::Once);
    });
}
