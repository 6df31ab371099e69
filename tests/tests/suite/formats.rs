//! Rows that are sent otherwise than as whole rows of plain JSON.

use std::{fs, path::Path};

use tidemill_sandbox::{ClientFate, FaultKind};
use tidemill_tests::{
    kafka::Record,
    limit::within,
    oracle::Promise,
    stand::{Model, Stand},
    warehouse::amount,
};

const CSV: &str = "format = \"csv\"\ncolumns = [\"note\", \"id\", \"amount\"]";

/// All dead letters in a folder, one a line.
fn letters(folder: &Path) -> Vec<serde_json::Value> {
    let files = fs::read_dir(folder).expect("the folder for dead letters");
    let texts = files.map(|file| fs::read_to_string(file.expect("a file").path()).expect("a text"));
    let lines: Vec<String> =
        texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
    lines.iter().map(|line| serde_json::from_str(line).expect("a letter")).collect()
}

#[test]
fn packed_csv_arrives_whole_although_loads_fail_and_the_process_dies() {
    within(150, || {
        const RECORDS: u64 = 30_000;
        let stand = Stand::new("packed_csv", 3, Model::Primary);
        stand.warehouse.fault_times(FaultKind::DropMidBody { after_bytes: 100 }, 2);
        let late = FaultKind::LateCommit { delay_ms: 300, client: ClientFate::Dropped };
        stand.warehouse.fault_times(late, 2);
        stand.produce(0..RECORDS);
        let mut pipeline = stand.pipeline().soon_forgotten();
        pipeline.batch = "max_rows = 4_000\nlinger = \"200ms\"".to_owned();
        pipeline.sink_more = format!("{CSV}\ncompression = \"zstd\"");
        let mut killed = stand.run(&pipeline);
        stand.until_released(60, RECORDS / 5);
        killed.kill();
        let mut tidemill = stand.run(&pipeline);
        stand.until_released(60, RECORDS);
        tidemill.drain(60);
        stand.judge(RECORDS).must_keep(Promise::Once);
        let amounts = stand.warehouse.amounts(&stand.table);
        assert!(amounts.iter().all(|(id, found)| *found == amount(*id)));
        let notes = format!("SELECT count(*) FROM shop.{} WHERE note = 'order 7'", stand.table);
        assert_eq!(stand.warehouse.number(&notes), 1);
    });
}

#[test]
fn a_row_that_cannot_be_csv_is_a_dead_letter_as_it_was() {
    within(120, || {
        let stand = Stand::new("not_csv", 1, Model::Duplicate);
        let folder = stand.folder.path().join("letters");
        let odd = [
            r#"{"id":100,"note":"\\N"}"#,
            r#"{"id":101,"note":"a \"b\",\u0001\n"}"#,
            r#"[102]"#,
            r#"{"id":"none"}"#,
            r#"{"amount":103}"#,
        ];
        stand.produce(0..50);
        stand.kafka.produce(&stand.name, odd.map(Record::of));
        stand.produce(50..100);
        let mut pipeline = stand.pipeline();
        pipeline.sink_more = CSV.to_owned();
        pipeline.dead_letters = format!("directory = {folder:?}");
        let mut tidemill = stand.run(&pipeline);
        let metrics = tidemill.until_settled(60, 105);
        assert_eq!(metrics.count("tidemill_records_dead_lettered_total", &[]), 4);
        tidemill.drain(60);
        let mut ids = stand.warehouse.ids(&stand.table);
        ids.sort_unstable();
        let expected: Vec<u64> = (0..100).chain([101]).collect();
        assert_eq!(ids, expected);
        let letters = letters(&folder);
        assert_eq!(letters.len(), 4, "{letters:#?}");
        let text = serde_json::to_string(&letters).expect("JSON");
        assert!(text.contains("means NULL in CSV"), "{text}");
    });
}

#[test]
fn a_partial_update_leaves_the_other_columns_alone() {
    within(90, || {
        let stand = Stand::new("partial", 2, Model::Primary);
        let table = &stand.table;
        stand
            .warehouse
            .execute(&format!("INSERT INTO shop.{table} VALUES (1, 5, 'kept'), (2, 6, 'kept, too')"));
        let rows = [r#"{"id":1,"amount":50,"note":"not listed"}"#, r#"{"id":3,"amount":70}"#, r#"{"id":2}"#];
        stand.kafka.produce(&stand.name, rows.map(Record::of));
        let mut pipeline = stand.pipeline();
        pipeline.sink_more =
            "columns = [\"id\", \"amount\"]\npartial_update = true\ncompression = \"lz4\"".to_owned();
        let mut tidemill = stand.run(&pipeline);
        tidemill.until_settled(30, 3);
        tidemill.drain(30);
        let found =
            stand.warehouse.execute(&format!("SELECT id, amount, note FROM shop.{table} ORDER BY id"));
        let found: Vec<String> = found
            .into_iter()
            .map(|row| {
                row.into_iter().map(|value| value.unwrap_or("NULL".to_owned())).collect::<Vec<_>>().join("|")
            })
            .collect();
        assert_eq!(found, ["1|50|kept", "2|NULL|kept, too", "3|70|NULL"]);
    });
}
