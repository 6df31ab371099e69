//! Dead letters of an exactly_once pipeline on its source's cluster: each once, with the decision about its record.

use std::{ops::Range, time::Duration};

use serde_json::Value;
use tidemill_sandbox::FaultKind;
use tidemill_tests::{
    kafka::{self, Kafka, Record},
    limit::within,
    machine,
    oracle::{self, Promise},
    pipeline::{Pipeline, transform},
    process::tidemill_output,
    proxy::Loss,
    stand::{Model, Stand},
    wait_until, warehouse,
};

/// A stand with a topic for letters, and a pipeline with the plugin that rejects what asks for it.
fn stand_with_letters(name: &str, partitions: i32, batch: &str) -> (Stand, Pipeline, String) {
    with_letters(Stand::compacting(kafka::shared(), name, partitions, Model::Duplicate), batch)
}

fn with_letters(stand: Stand, batch: &str) -> (Stand, Pipeline, String) {
    let letters = format!("{}-dead", stand.name);
    stand.kafka.create_topic(&letters, 1);
    let pipeline = Pipeline {
        delivery: "exactly_once".to_owned(),
        batch: batch.to_owned(),
        transforms: transform(&machine::test_plugin(), "{}"),
        dead_letters: format!("max_rejects = false\n[dead_letters.kafka]\ntopic = {letters:?}"),
        ..stand.pipeline()
    };
    (stand, pipeline, letters)
}

/// What becomes of a record: most are rows.
fn record(id: u64) -> String {
    match id {
        // Of a row that StarRocks refuses: no BIGINT is so large.
        refused if refused % 9_001 == 5_000 => format!(r#"{{"id":{refused},"amount":18446744073709551616}}"#),
        rejected if rejected % 20 == 3 => format!(r#"{{"id":{rejected},"amount":1,"do":"reject"}}"#),
        loaded => warehouse::row(loaded),
    }
}

/// How many of the first so many records are rows.
fn rows(records: u64) -> u64 {
    (0..records).filter(|id| record(*id) == warehouse::row(*id)).count() as u64
}

fn produce(stand: &Stand, ids: Range<u64>) {
    stand.kafka.produce(&stand.name, ids.map(|id| Record::of(record(id))));
}

/// Rows and letters together are all records, each once.
fn must_be_once(stand: &Stand, topic: &str, records: u64) {
    let letters = ids(&stand.kafka.read_all(topic));
    assert_eq!(letters.len() as u64, records - rows(records), "letters");
    let all = stand.warehouse.ids(&stand.table).into_iter().chain(letters);
    oracle::judge(records, all).must_keep(Promise::Once);
}

/// The `id`s of letters: of the record, or of the row that it became.
fn ids(letters: &[Record]) -> Vec<u64> {
    let id = |letter: &Record| {
        let value: Value = serde_json::from_slice(letter.value.as_deref().expect("a value")).expect("JSON");
        value["id"].as_u64().expect("a number")
    };
    letters.iter().map(id).collect()
}

#[test]
fn kills_in_the_midst_of_epochs_with_rejects_keep_each_letter_once() {
    const KILLS: u32 = 8;
    const EACH: u64 = 40_000;
    within(420, || {
        let (stand, pipeline, topic) =
            stand_with_letters("once_letters", 3, "max_rows = 500\nlinger = \"200ms\"");
        let pipeline = pipeline.soon_forgotten();
        // Each step of an epoch takes a while, so that kills come between them.
        stand.warehouse.fault(FaultKind::SlowRedirect { delay_ms: 20 });
        let sent = stand.killed_in_epochs(&pipeline, KILLS, EACH, |ids| produce(&stand, ids));
        stand.warehouse.clear_faults();
        let mut last = stand.run(&pipeline);
        stand.until_released(180, sent);
        last.drain(30);
        must_be_once(&stand, &topic, sent);
    });
}

/// What ends the transaction of a decision is lost on its way to Kafka, or Kafka's answer is: the process cannot know what
/// was decided about rows and letters, until it asks.
#[test]
fn decisions_of_unknown_outcome_keep_each_row_and_letter_once() {
    const EACH: u64 = 200;
    const UNKNOWN: &str = "the answer to a decision did not come";
    within(240, || {
        let (broker, proxy) = kafka::own_broker_behind_a_proxy();
        let stand = Stand::compacting(Kafka::of(&broker), "once_unknown", 2, Model::Duplicate);
        let (stand, pipeline, topic) = with_letters(stand, "linger = \"200ms\"");
        let far = Pipeline { brokers: proxy.address().to_string(), ..pipeline };
        let mut tidemill = stand.run(&far);
        let mut sent = 0;
        for (losses, loss) in (1..).zip([Loss::Request, Loss::Answer]) {
            proxy.lose(loss);
            produce(&stand, sent..sent + EACH);
            sent += EACH;
            let lost = wait_until(Duration::from_secs(60), || (proxy.losses() == losses).then_some(()));
            lost.unwrap_or_else(|late| panic!("{loss:?} is to be lost: {late}"));
            // By other connections: those that swallow stay as they are.
            stand.until_released(60, sent);
            stand.warehouse.until_rows(60, &stand.table, rows(sent));
            let log = tidemill.log();
            let waits = |line: &&str| line.contains(UNKNOWN) && line.contains("waiting and trying again");
            assert_eq!(log.lines().filter(waits).count() as u64, losses, "{log}");
            // An answer that is lost changes nothing; without the request nothing was decided.
            assert_eq!(log.matches("was not written: its loads").count(), 1, "{log}");
        }
        tidemill.drain(30);
        must_be_once(&stand, &topic, sent);
    });
}

#[test]
fn a_letter_is_seen_only_once_its_epoch_is_decided() {
    within(120, || {
        let (stand, pipeline, topic) = stand_with_letters("once_unseen", 1, "linger = \"100ms\"");
        // Nothing can be prepared.
        stand.warehouse.fault(FaultKind::NoBackend);
        produce(&stand, 0..100);
        let mut tidemill = stand.run(&pipeline);
        tidemill.until(60, "an epoch is tried", |metrics| {
            metrics.count("tidemill_records_read_total", &[]) == 100
                && metrics.count("tidemill_epochs_rolled_back_total", &[]) > 0
        });
        assert!(stand.kafka.read_all(&topic).is_empty(), "nothing is decided");
        assert_eq!(stand.committed(), 0);
        stand.warehouse.clear_faults();
        stand.until_released(90, 100);
        tidemill.drain(30);
        let letters = stand.kafka.read_all(&topic);
        assert_eq!(ids(&letters), [3, 23, 43, 63, 83]);
        let offset = letters[0].headers.iter().find(|(name, _)| name == "tidemill.offset");
        assert_eq!(offset.map(|(_, text)| text.as_str()), Some("3"));
    });
}

#[test]
fn letters_alone_are_decided_by_themselves_and_listed() {
    within(120, || {
        let (stand, pipeline, topic) = stand_with_letters("once_alone", 2, "linger = \"100ms\"");
        let rejected = |id: u64| Record::of(format!(r#"{{"id":{id},"do":"reject"}}"#));
        stand.kafka.produce(&stand.name, (0..50).map(rejected));
        let mut tidemill = stand.run(&pipeline);
        stand.until_released(60, 50);
        stand.kafka.produce(&stand.name, (50..60).map(rejected));
        // The last ones go with the drain, if they do not before.
        tidemill.until_settled(30, 60);
        tidemill.drain(30);
        assert_eq!(stand.committed(), 60);
        oracle::judge(60, ids(&stand.kafka.read_all(&topic))).must_keep(Promise::Once);
        assert_eq!(stand.warehouse.stats(&stand.table).loads, 0);
    });
}

#[test]
fn letters_are_listed_and_replayed_by_what_was_decided() {
    within(120, || {
        let (stand, pipeline, _) = stand_with_letters("once_replay", 1, "linger = \"100ms\"");
        produce(&stand, 0..40);
        let mut tidemill = stand.run(&pipeline);
        stand.until_released(60, 40);
        tidemill.drain(30);
        // Mended: without the plugin the records are rows.
        let mended = Pipeline { transforms: String::new(), ..pipeline };
        let file = stand.write(&mended);
        let dlq = |command: &str, more: &[&str]| {
            let file = file.to_str().expect("a path of text");
            let output = tidemill_output(&[&["dlq", command, file], more].concat());
            assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let told = dlq("list", &[]);
        assert!(told.contains("2 dead letters that were not replayed"), "{told}");
        let told = dlq("replay", &[]);
        assert!(told.contains("2 of 2 letters replayed and marked"), "{told}");
        assert!(dlq("replay", &[]).contains("no letter to be replayed"));
        stand.judge(40).must_keep(Promise::Once);
    });
}

#[test]
fn a_letter_that_its_topic_does_not_take_halts_and_nothing_is_decided() {
    within(90, || {
        let (stand, pipeline, topic) = stand_with_letters("once_large", 1, "linger = \"100ms\"");
        // As long as the broker takes; the letter has some hundred bytes of headers more.
        let note = "x".repeat(1_048_576 - 200);
        stand
            .kafka
            .produce(&stand.name, [Record::of(format!(r#"{{"id":0,"do":"reject","note":"{note}"}}"#))]);
        let mut tidemill = stand.run(&pipeline);
        let ended = tidemill.until_ended(60);
        assert_eq!(ended.code, Some(1), "{}", ended.log);
        assert!(ended.log.contains(&format!("cannot keep dead letters in topic `{topic}`")), "{}", ended.log);
        assert!(ended.log.contains("raise its max.message.bytes"), "{}", ended.log);
        assert_eq!(stand.committed(), 0);
        assert!(stand.kafka.read_all(&topic).is_empty());
    });
}
