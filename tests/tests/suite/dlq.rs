//! `tidemill dlq`: letters of both kinds are listed, shown, and replayed once their cause is mended; each gets through once.

use std::{path::Path, process::Output};

use serde_json::Value;
use tidemill_tests::{
    kafka::Record,
    limit::within,
    machine,
    pipeline::{Http, Pipeline, Postgres, Source, transform},
    process::tidemill_output,
    stand::{Model, Stand},
    warehouse::row,
};

const REJECTED: [&str; 2] =
    [r#"{"id":7,"amount":70,"do":"reject"}"#, r#"{"id":8,"amount":80,"do":"reject"}"#];
/// What the plugin takes and StarRocks refuses: no BIGINT is so large.
const REFUSED: &str = r#"{"id":18446744073709551615,"amount":1}"#;

/// Runs `tidemill dlq` on a pipeline's file.
fn dlq(command: &str, file: &Path, more: &[&str]) -> Output {
    let file = file.to_str().expect("a path of text");
    tidemill_output(&[&["dlq", command, file], more].concat())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Standard output of a command that ends with 0.
fn told(command: &str, file: &Path, more: &[&str]) -> String {
    let output = dlq(command, file, more);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{command} {more:?}: {}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// Lines of JSON.
fn lines(command: &str, file: &Path, more: &[&str]) -> Vec<Value> {
    let text = told(command, file, &[more, &["--json"]].concat());
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

fn sorted_ids(stand: &Stand) -> Vec<u64> {
    let mut ids = stand.warehouse.ids(&stand.table);
    ids.sort_unstable();
    ids
}

/// Loads two good rows, two that the plugin rejects, and one that StarRocks refuses. Returns the file.
fn with_letters(stand: &Stand, pipeline: &Pipeline) -> std::path::PathBuf {
    stand.kafka.produce(
        &stand.name,
        [
            Record::of(row(0)),
            Record {
                headers: vec![("trace".to_owned(), "t7".to_owned())],
                ..Record::of(REJECTED[0]).keyed("seven")
            },
            Record::of(REFUSED),
            Record::of(REJECTED[1]),
            Record::of(row(1)),
        ],
    );
    let mut tidemill = stand.run(pipeline);
    tidemill.until_settled(60, 5);
    tidemill.drain(30);
    assert_eq!(sorted_ids(stand), [0, 1]);
    stand.write(pipeline)
}

/// The whole way of letters of either kind: list, show, mend, replay, and nothing twice.
fn letters_get_through_once(stand: &Stand, pipeline: &Pipeline) {
    let file = with_letters(stand, pipeline);

    // Listed by reason, and what a filter names.
    let groups = lines("list", &file, &[]);
    let counts: Vec<_> =
        groups.iter().map(|group| (&group["stage"], &group["code"], &group["letters"])).collect();
    assert_eq!(groups.len(), 2, "{counts:?}");
    assert_eq!((groups[0]["code"].as_str(), groups[0]["letters"].as_u64()), (Some("asked"), Some(2)));
    assert_eq!((groups[1]["code"].as_str(), groups[1]["stage"].as_str()), (Some("refused"), Some("load")));
    assert_eq!(lines("list", &file, &["--stage", "load"]).len(), 1);
    assert_eq!(lines("list", &file, &["--plugin", "nobody"]).len(), 0);
    assert_eq!(lines("list", &file, &["--since", "1h"]).len(), 2);
    assert_eq!(lines("list", &file, &["--until", "1h"]).len(), 0);
    assert!(told("list", &file, &[]).contains("3 dead letters that were not replayed"));

    // Shown with all that is known.
    let shown = lines("show", &file, &["--code", "asked"]);
    assert_eq!(shown.len(), 2);
    let seven = shown.iter().find(|letter| letter["key"] == "seven").expect("the letter with a key");
    assert_eq!((seven["offset"].as_i64(), seven["value"].as_str()), (Some(1), Some(REJECTED[0])));
    assert_eq!(seven["headers"][0]["name"], "trace");
    let place = seven["place"].as_str().expect("a place");
    assert_eq!(told("show", &file, &["--letter", place, "--raw"]), REJECTED[0]);
    let row = &lines("show", &file, &["--stage", "load"])[0];
    assert_eq!((row["holds"].as_str(), row["table"].as_str()), (Some("row"), Some(stand.table.as_str())));

    // Not mended: all stay, none becomes a second letter.
    let again = dlq("replay", &file, &[]);
    assert_eq!(again.status.code(), Some(1), "{}", text(&again.stderr));
    let said = text(&again.stdout);
    assert!(said.contains("0 of 3 letters replayed and marked, 3 stay"), "{said}");
    assert!(said.contains("asked") && said.contains("refused") && said.contains("offset 2"), "{said}");
    assert_eq!(lines("show", &file, &["--all"]).len(), 3);
    assert_eq!(sorted_ids(stand), [0, 1]);

    // Mended: without the plugin, the two records are rows.
    let mended = Pipeline { transforms: String::new(), ..pipeline.clone() };
    let file = stand.write(&mended);
    let dry = told("replay", &file, &["--code", "asked", "--dry-run"]);
    assert_eq!(dry.lines().count(), 2, "{dry}");
    assert!(dry.contains(r#"{"id":7,"amount":70"#), "{dry}");
    assert_eq!(sorted_ids(stand), [0, 1], "a dry run loads nothing");
    let said = told("replay", &file, &["--code", "asked"]);
    assert!(said.contains("2 of 2 letters replayed and marked, 0 stay"), "{said}");
    assert_eq!(sorted_ids(stand), [0, 1, 7, 8]);

    // Marked: a second replay does nothing, and the list leaves them out.
    let said = told("replay", &file, &["--code", "asked"]);
    assert!(said.contains("no letter to be replayed"), "{said}");
    assert_eq!(sorted_ids(stand), [0, 1, 7, 8]);
    assert_eq!(lines("list", &file, &[]).len(), 1);
    let all = lines("list", &file, &["--all", "--code", "asked"]);
    assert_eq!(all[0]["replayed"], 2);
}

#[test]
fn letters_in_a_directory_get_through_once() {
    within(120, || {
        let stand = Stand::new("dlq_directory", 1, Model::Duplicate);
        let mut pipeline = stand.pipeline();
        pipeline.transforms = transform(&machine::test_plugin(), "{}");
        pipeline.dead_letters = format!("directory = {:?}", stand.folder.path().join("letters"));
        letters_get_through_once(&stand, &pipeline);
    });
}

#[test]
fn letters_in_a_topic_get_through_once() {
    within(180, || {
        let stand = Stand::new("dlq_topic", 1, Model::Duplicate);
        let topic = format!("{}-dead", stand.name);
        stand.kafka.create_topic(&topic, 2);
        let mut pipeline = stand.pipeline();
        pipeline.transforms = transform(&machine::test_plugin(), "{}");
        pipeline.dead_letters = format!("[dead_letters.kafka]\ntopic = {topic:?}");
        letters_get_through_once(&stand, &pipeline);
        // Two marks behind three letters.
        let records = stand.kafka.read(&topic, 5);
        let marks = records.iter().filter(|record| record.headers[0].0 == "tidemill.replayed");
        assert_eq!(marks.count(), 2);
    });
}

#[test]
fn a_row_goes_past_the_plugins_when_its_table_is_mended() {
    within(120, || {
        let stand = Stand::new("dlq_row", 1, Model::Duplicate);
        // The plugin gives each record a second row; the refused row must not be doubled by another pass.
        stand.kafka.produce(&stand.name, [Record::of(r#"{"id":1,"amount":"much","do":"twice"}"#)]);
        stand.warehouse.execute(&format!("DROP TABLE shop.{}", stand.table));
        stand.warehouse.execute(&format!(
            "CREATE TABLE shop.{} (id BIGINT NOT NULL, amount BIGINT NOT NULL) DUPLICATE KEY(id) DISTRIBUTED BY HASH(id)",
            stand.table
        ));
        let mut pipeline = stand.pipeline();
        pipeline.transforms = transform(&machine::test_plugin(), "{}");
        pipeline.dead_letters = format!("directory = {:?}", stand.folder.path().join("letters"));
        let mut tidemill = stand.run(&pipeline);
        tidemill.until_settled(60, 1);
        tidemill.drain(30);
        let file = stand.write(&pipeline);
        let letters = lines("show", &file, &[]);
        assert!(letters.iter().all(|letter| letter["holds"] == "row"), "{letters:?}");
        assert_eq!(stand.warehouse.ids(&stand.table).len() + letters.len(), 2, "{letters:?}");
        stand.warehouse.execute(&format!("DROP TABLE shop.{}", stand.table));
        stand.warehouse.execute(&format!(
            "CREATE TABLE shop.{} (id BIGINT NOT NULL, amount VARCHAR(20)) DUPLICATE KEY(id) DISTRIBUTED BY HASH(id)",
            stand.table
        ));
        let said = told("replay", &file, &[]);
        assert!(said.contains(&format!("{} of {0} letters replayed", letters.len())), "{said}");
        assert_eq!(stand.warehouse.ids(&stand.table).len(), letters.len());
    });
}

#[test]
fn newer_rows_of_a_primary_key_table_are_not_overwritten_unless_forced() {
    within(120, || {
        let stand = Stand::new("dlq_primary", 1, Model::Primary);
        let mut pipeline = stand.pipeline();
        pipeline.transforms = transform(&machine::test_plugin(), "{}");
        pipeline.dead_letters = format!("directory = {:?}", stand.folder.path().join("letters"));
        stand.kafka.produce(&stand.name, [Record::of(REJECTED[0]), Record::of(r#"{"id":7,"amount":71}"#)]);
        let mut tidemill = stand.run(&pipeline);
        tidemill.until_settled(60, 2);
        tidemill.drain(30);
        let file = stand.write(&Pipeline { transforms: String::new(), ..pipeline });
        let refused = dlq("replay", &file, &[]);
        assert_eq!(refused.status.code(), Some(1));
        let said = text(&refused.stderr);
        assert!(said.contains("merge_condition") && said.contains("--force"), "{said}");
        assert!(said.contains(&format!("shop.{}", stand.table)), "{said}");
        assert_eq!(stand.warehouse.amounts(&stand.table)[&7], 71);
        assert_eq!(lines("show", &file, &[]).len(), 1, "it is not marked");
        told("replay", &file, &["--force"]);
        assert_eq!(stand.warehouse.amounts(&stand.table)[&7], 70);
    });
}

#[test]
fn a_replay_that_halts_marks_nothing() {
    within(120, || {
        let stand = Stand::new("dlq_halted", 1, Model::Duplicate);
        let mut pipeline = stand.pipeline();
        pipeline.transforms = transform(&machine::test_plugin(), "{}");
        pipeline.dead_letters = format!("directory = {:?}", stand.folder.path().join("letters"));
        stand.kafka.produce(&stand.name, REJECTED.map(Record::of));
        let mut tidemill = stand.run(&pipeline);
        tidemill.until_settled(60, 2);
        tidemill.drain(30);
        let file = stand.write(&Pipeline { transforms: String::new(), ..pipeline });
        stand.warehouse.execute(&format!("DROP TABLE shop.{}", stand.table));
        let halted = dlq("replay", &file, &[]);
        let said = text_of(&halted);
        assert_eq!(halted.status.code(), Some(1), "{said}");
        assert!(said.contains("0 of 2 letters replayed") && said.contains("2 are as they were"), "{said}");
        assert!(said.contains("error: "), "the reason is told: {said}");
        stand.warehouse.duplicate_table(&stand.table);
        told("replay", &file, &[]);
        assert_eq!(sorted_ids(&stand), [7, 8]);
    });
}

#[test]
fn letters_of_an_http_pipeline_need_no_listener() {
    within(120, || {
        let stand = Stand::new("dlq_http", 1, Model::Duplicate);
        // A port that somebody has: a replay that listened would end with it.
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let directory = stand.folder.path().join("letters");
        std::fs::create_dir(&directory).expect("a folder");
        let letter = |value: &str, offset: u32| {
            serde_json::json!({
                "pipeline": stand.name, "stage": "load", "code": "refused", "message": "no", "source": "/orders",
                "partition": 0, "offset": offset, "timestamp_us": 0, "holds": "record", "key": null, "value": value,
            })
            .to_string()
        };
        // Two requests: their records have the same place, and are two records all the same.
        let text = [letter(&row(1), 0), letter(&row(2), 0)].map(|line| line + "\n").concat();
        std::fs::write(directory.join(format!("{}-00000001-0000.ndjson", stand.name)), text).expect("a file");
        let listen = taken.local_addr().expect("an address").to_string();
        let mut pipeline = stand.pipeline();
        pipeline.source = Source::Http(Http { listen, tokens: Vec::new() });
        pipeline.dead_letters = format!("directory = {directory:?}");
        let said = told("replay", &stand.write(&pipeline), &[]);
        assert!(said.contains("2 of 2 letters replayed"), "{said}");
        assert_eq!(sorted_ids(&stand), [1, 2]);
    });
}

#[test]
fn a_pipeline_without_dead_letters_and_a_broken_letter_are_named() {
    within(60, || {
        let stand = Stand::new("dlq_wrong", 1, Model::Duplicate);
        let mut pipeline = stand.pipeline();
        let none = dlq("list", &stand.write(&pipeline), &[]);
        assert_eq!(none.status.code(), Some(2));
        assert!(text(&none.stderr).contains("[dead_letters]"), "{}", text(&none.stderr));
        let directory = stand.folder.path().join("letters");
        std::fs::create_dir(&directory).expect("a folder");
        let name = format!("{}-00000001-0000.ndjson", stand.name);
        std::fs::write(directory.join(&name), "{\"pipeline\":\"p\",\"stage\":\"read\"}\n").expect("a file");
        pipeline.dead_letters = format!("directory = {directory:?}");
        let broken = dlq("list", &stand.write(&pipeline), &[]);
        assert_eq!(broken.status.code(), Some(1));
        let said = text(&broken.stderr);
        assert!(said.contains(&name) && said.contains("line 1") && said.contains("`code`"), "{said}");
        let time = dlq("list", &stand.write(&pipeline), &["--since", "yesterday"]);
        assert_eq!(time.status.code(), Some(2));
    });
}

#[test]
fn letters_of_a_postgres_pipeline_need_no_server() {
    within(120, || {
        let stand = Stand::new("dlq_postgres", 1, Model::Primary);
        stand.warehouse.execute(&format!("INSERT INTO shop.{} VALUES (3, 30, 'there')", stand.table));
        let directory = stand.folder.path().join("letters");
        std::fs::create_dir(&directory).expect("a folder");
        let letter = |value: Value, more: Value| {
            let mut letter = serde_json::json!({
                "pipeline": stand.name, "stage": "transform", "plugin": "gone", "code": "trap", "message": "no",
                "source": "public.orders", "partition": 0, "offset": 5, "timestamp_us": 0, "holds": "record",
                "table": stand.table, "key": null, "value": value,
            });
            letter.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            letter.to_string() + "\n"
        };
        let none = serde_json::json!({});
        let content = letter(row(1).into(), none.clone())
            + &letter(row(2).into(), serde_json::json!({ "partial": true }))
            + &letter(r#"{"id":3}"#.into(), serde_json::json!({ "delete": true }))
            + &letter(Value::Null, none);
        std::fs::write(directory.join(format!("{}-00000001-0000.ndjson", stand.name)), content)
            .expect("a file");
        let mut pipeline = stand.pipeline();
        // Nobody listens there.
        pipeline.source = Source::Postgres(Postgres {
            host: "127.0.0.1".to_owned(),
            port: 1,
            database: "shop".to_owned(),
            user: "tidemill".to_owned(),
            tables: vec!["public.*".to_owned()],
            ..Postgres::default()
        });
        pipeline.table = String::new();
        pipeline.dead_letters = format!("directory = {directory:?}");
        let file = stand.write(&pipeline);
        let output = dlq("replay", &file, &["--force"]);
        let said = text_of(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("2 of 4 letters replayed and marked, 2 stay"), "{said}");
        assert!(said.contains("only the columns that changed"), "{said}");
        assert!(said.contains("could not make a row"), "{said}");
        assert_eq!(sorted_ids(&stand), [1]);
        assert_eq!(lines("show", &file, &[]).len(), 2);
    });
}

fn text_of(output: &Output) -> String {
    text(&output.stdout) + &text(&output.stderr)
}
