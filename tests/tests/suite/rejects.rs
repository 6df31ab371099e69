//! Records and rows that cannot be loaded: kept with their reason before their span may close, or the pipeline halts.

use serde_json::Value;
use std::{collections::BTreeSet, fs, path::Path};
use tidemill_tests::{
    kafka::Record,
    limit::within,
    machine,
    pipeline::{Pipeline, transform},
    replica::Replica,
    stand::{Model, Stand},
    warehouse::row,
};

const REASONLESS: &str = r#"{"id":7,"do":"reject"}"#;
const MALFORMED: &str = r#"{"id":8,"amount":}"#;

/// All dead letters of a directory, in no order.
fn letters(directory: &Path) -> Vec<Value> {
    let files =
        fs::read_dir(directory).expect("the directory is there").map(|entry| entry.expect("an entry").path());
    let files = files.filter(|file| file.extension().is_some_and(|extension| extension == "ndjson"));
    let texts: Vec<String> = files.map(|file| fs::read_to_string(file).expect("a file of text")).collect();
    texts
        .iter()
        .flat_map(|text| text.lines())
        .map(|line| serde_json::from_str(line).expect("a line of JSON"))
        .collect()
}

/// The whole letter as text: tests look for what must be in it wherever it stands.
fn tells(letter: &Value, what: &str) -> bool {
    letter.to_string().contains(what)
}

#[test]
fn a_rejected_record_becomes_a_file_and_its_neighbours_are_loaded() {
    within(90, || {
        let stand = Stand::new("reject_file", 1, Model::Duplicate);
        let directory = stand.folder.path().join("letters");
        stand.kafka.produce(
            &stand.name,
            [Record::of(row(0)), Record::of(REASONLESS).keyed("seven"), Record::of(row(1))],
        );
        let mut pipeline = stand.pipeline();
        pipeline.transforms = transform(&machine::test_plugin(), "{}");
        pipeline.dead_letters = format!("directory = {directory:?}");
        let mut tidemill = stand.run(&pipeline);
        tidemill.until_settled(30, 3);
        tidemill.drain(30);
        assert_eq!(stand.warehouse.ids(&stand.table).len(), 2);
        assert_eq!(stand.committed(), 3);
        let letters = letters(&directory);
        assert_eq!(letters.len(), 1, "{letters:?}");
        for what in
            ["asked", "the record asked to be rejected", "transform", "tidemill_test_plugin", &stand.name]
        {
            assert!(tells(&letters[0], what), "{what} is not in {}", letters[0]);
        }
    });
}

#[test]
fn a_rejected_record_becomes_a_kafka_record_with_its_bytes() {
    within(90, || {
        let stand = Stand::new("reject_topic", 1, Model::Duplicate);
        let topic = format!("{}-dead", stand.name);
        stand.kafka.create_topic(&topic, 1);
        stand.kafka.produce(
            &stand.name,
            [Record::of(row(0)), Record::of(REASONLESS).keyed("seven"), Record::of(row(1))],
        );
        let mut pipeline = stand.pipeline();
        pipeline.transforms = transform(&machine::test_plugin(), "{}");
        pipeline.dead_letters = format!("[dead_letters.kafka]\ntopic = {topic:?}");
        let mut tidemill = stand.run(&pipeline);
        tidemill.until_settled(30, 3);
        let dead = stand.kafka.read(&topic, 1);
        assert_eq!(dead[0].value.as_deref(), Some(REASONLESS.as_bytes()), "the original bytes");
        let headers = format!("{:?}", dead[0].headers);
        assert!(headers.contains("asked"), "the reason is told: {headers}");
        assert!(headers.contains(&stand.name), "the position is told: {headers}");
    });
}

#[test]
fn without_dead_letters_the_first_reject_halts_and_moves_nothing() {
    within(90, || {
        let stand = Stand::new("reject_halts", 1, Model::Duplicate);
        stand.kafka.produce(&stand.name, [Record::of(REASONLESS)]);
        let mut pipeline = stand.pipeline();
        pipeline.transforms = transform(&machine::test_plugin(), "{}");
        let mut tidemill = stand.run(&pipeline);
        let ended = tidemill.until_ended(30);
        assert_eq!(ended.code, Some(1));
        assert!(ended.log.contains("[dead_letters]"), "the hint says what to add: {}", ended.log);
        assert!(!ended.log.contains("\"do\""), "payloads are not logged: {}", ended.log);
        assert_eq!(stand.committed(), 0);
    });
}

#[test]
fn malformed_json_that_no_plugin_saw_is_found_when_starrocks_refuses() {
    within(90, || {
        let stand = Stand::new("malformed", 1, Model::Duplicate);
        let directory = stand.folder.path().join("letters");
        let record = |id: u64| if id == 8 { Record::of(MALFORMED) } else { Record::of(row(id)) };
        stand.kafka.produce(&stand.name, (0..1_000).map(record));
        let mut pipeline = stand.pipeline();
        pipeline.dead_letters = format!("directory = {directory:?}");
        let mut tidemill = stand.run(&pipeline);
        tidemill.until_settled(30, 1_000);
        let ids: BTreeSet<u64> = stand.warehouse.ids(&stand.table).into_iter().collect();
        assert_eq!(ids.len(), 999);
        assert!(!ids.contains(&8));
        let letters = letters(&directory);
        assert_eq!(letters.len(), 1);
        tidemill.drain(30);
        assert_eq!(stand.committed(), 1_000);
    });
}

#[test]
fn a_record_larger_than_a_batch_is_a_dead_letter_and_nothing_is_stuck() {
    within(90, || {
        let stand = Stand::new("oversize", 1, Model::Duplicate);
        let directory = stand.folder.path().join("letters");
        let huge = format!(r#"{{"id":1,"note":"{}"}}"#, "x".repeat(300_000));
        stand.kafka.produce(&stand.name, [Record::of(row(0)), Record::of(huge), Record::of(row(2))]);
        let mut pipeline = stand.pipeline();
        pipeline.batch = "max_bytes = \"64KiB\"\nlinger = \"200ms\"".to_owned();
        pipeline.dead_letters = format!("directory = {directory:?}");
        let mut tidemill = stand.run(&pipeline);
        let metrics = tidemill.until_settled(30, 3);
        assert_eq!(metrics.count("tidemill_records_dead_lettered_total", &[]), 1);
        let mut ids = stand.warehouse.ids(&stand.table);
        ids.sort_unstable();
        assert_eq!(ids, [0, 2]);
        let letters = letters(&directory);
        assert_eq!(letters.len(), 1);
        assert!(letters[0].to_string().len() > 300_000, "the original bytes are kept");
    });
}

#[test]
fn a_row_that_starrocks_refuses_for_its_data_halts_with_the_reason() {
    within(90, || {
        let stand = Stand::new("bad_row", 1, Model::Duplicate);
        stand.kafka.produce(&stand.name, [Record::of(row(0)), Record::of(r#"{"id":null,"amount":1}"#)]);
        let mut tidemill = stand.run(&stand.pipeline());
        let ended = tidemill.until_ended(30);
        assert_eq!(ended.code, Some(1));
        assert!(ended.log.contains("too many filtered rows"), "StarRocks' own words: {}", ended.log);
        assert!(ended.log.contains("NULL"), "and its error log: {}", ended.log);
        assert_eq!(stand.committed(), 0);
    });
}

/// The rejects of a batch come at once: they were taken for those of the last thousand records, and halted a pipeline that
/// catches up for good. Of a transaction nobody counts the rows that were filtered: its bad rows were looked for by halves.
#[test]
fn a_backlog_with_few_bad_rows_is_loaded_and_each_of_them_is_a_letter_of_its_own() {
    const RECORDS: u64 = 30_000;
    const BAD_EVERY: u64 = 100;
    within(200, || {
        for delivery in ["at_least_once", "exactly_once"] {
            let stand = Stand::new("bad_backlog", 3, Model::Duplicate);
            let directory = stand.folder.path().join("letters");
            let record = |id: u64| match id % BAD_EVERY {
                7 => format!(r#"{{"id":"bad {id}","amount":{id}}}"#),
                _ => row(id),
            };
            stand.kafka.produce(&stand.name, (0..RECORDS).map(|id| Record::of(record(id))));
            let pipeline = Pipeline {
                delivery: delivery.to_owned(),
                dead_letters: format!("directory = {directory:?}"),
                ..stand.pipeline()
            };
            let mut tidemill = stand.run(&pipeline);
            tidemill.until_settled(120, RECORDS);
            tidemill.drain(60);
            let bad = RECORDS / BAD_EVERY;
            assert_eq!(stand.warehouse.ids(&stand.table).len() as u64, RECORDS - bad, "{delivery}");
            let letters = letters(&directory);
            assert_eq!(letters.len() as u64, bad, "{delivery}");
            for letter in &letters {
                let (value, message) = (letter["value"].as_str(), letter["message"].as_str());
                let (value, message) = value.zip(message).expect("texts");
                let id = value.split('"').nth(3).expect("an id");
                assert!(message.contains(id) && message.matches("bad ").count() == 1, "{delivery}: {letter}");
            }
        }
    });
}

/// One load of a table with a key brings the last state of each key. If StarRocks does not take it, the state before it
/// counts, as it would had they come apart.
#[test]
fn a_row_whose_update_in_the_same_transaction_is_refused_stays() {
    within(90, || {
        let replica = Replica::new("refused_update");
        replica.postgres.run("CREATE TABLE notes (id bigint PRIMARY KEY, note text)");
        // Its owner holds short notes to be enough.
        replica.warehouse.execute(
            "CREATE TABLE shop.notes (id BIGINT NOT NULL, note VARCHAR(20)) PRIMARY KEY(id) DISTRIBUTED BY HASH(id)",
        );
        let directory = replica.folder.path().join("letters");
        let mut pipeline = replica.pipeline();
        pipeline.dead_letters = format!("directory = {directory:?}");
        let mut tidemill = replica.run(&pipeline);
        tidemill.until_logged(60, "following the slot");
        replica.postgres.run(
            "BEGIN; INSERT INTO notes VALUES (1, 'short'), (2, 'other');
             UPDATE notes SET note = repeat('long', 10) WHERE id = 1; COMMIT",
        );
        tidemill.until_settled(30, 3);
        let note = |id: u64| {
            replica
                .warehouse
                .number(&format!("SELECT COUNT(*) FROM shop.notes WHERE id = {id} AND note = 'short'"))
        };
        assert_eq!((replica.warehouse.number("SELECT COUNT(*) FROM shop.notes"), note(1)), (2, 1));
        let letters = letters(&directory);
        assert_eq!(letters.len(), 1, "{letters:?}");
        assert!(tells(&letters[0], &"long".repeat(10)), "the update: {}", letters[0]);
        // The next update of the key is behind both.
        replica.postgres.run("UPDATE notes SET note = 'mended' WHERE id = 1");
        replica.until_equal(60, &["notes"]);
        tidemill.drain(30);
    });
}
