//! Loads that are packed, written as CSV or bring some columns only, into the sandbox; and rows that it
//! refuses, found by its error log.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tidemill_sandbox::{ClientFate, Fault, FaultKind, Options, Sandbox};

use super::bench::Bench;
use super::client::Client;
use super::deliver::Delivered;
use super::error_log::{Keys, complaints, culprits};
use super::scripted::cluster;
use crate::config::model::{Compression, PartialUpdate, RowFormat, Secret, StarRocks, TableModel};
use crate::sink::{Destination, Load, Rejection};

const TABLE: &str = "CREATE TABLE shop.orders (id BIGINT NOT NULL, name VARCHAR(20) DEFAULT 'none', \
                     price DECIMAL(6,2), day DATE, doc JSON) PRIMARY KEY(id)";

async fn sandbox() -> Sandbox {
    let sandbox = Sandbox::start(Options::default()).await.expect("free ports");
    sandbox.execute("CREATE DATABASE shop").expect("a database");
    sandbox.execute(TABLE).expect("a table");
    sandbox
}

fn settings(sandbox: &Sandbox) -> StarRocks {
    StarRocks { password: Secret::default(), ..cluster(&[&sandbox.fe_url()]) }
}

fn load_of(cluster: StarRocks, label: &str, rows: &[&[u8]]) -> Load {
    let body: Vec<u8> = rows.iter().flat_map(|row| [*row, b"\n"].concat()).collect();
    let destination = Destination {
        table: "orders".into(),
        cluster: Arc::new(cluster),
        model: TableModel::Primary,
        key: Vec::new(),
    };
    Load {
        destination: Arc::new(destination),
        label: label.into(),
        bytes: body.len() as u64,
        segments: vec![Bytes::from(body)],
        rows: rows.len() as u64,
        columns: None,
        packed: None,
        fences: Vec::new(),
        body_sent: false,
    }
}

async fn deliver(load: &mut Load) -> Delivered {
    let client = Client::new(Arc::clone(&load.destination.cluster)).expect("a client");
    Bench::new().deliver_with(&client, load).await
}

async fn delivered(mut load: Load) {
    let delivered = deliver(&mut load).await;
    assert!(matches!(delivered, Delivered::Durable(_)), "{}: {delivered:?}", load.label);
}

fn table(sandbox: &Sandbox) -> Vec<String> {
    let rows = sandbox.execute("SELECT id, name, price, day, doc FROM shop.orders ORDER BY id");
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "NULL".to_owned());
    rows.expect("rows").iter().map(|row| row.iter().map(text).collect::<Vec<_>>().join("|")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compressed_bodies_are_sent_again_as_they_were() {
    let sandbox = sandbox().await;
    let row = format!("{{\"id\":1,\"name\":\"{}\"}}", "x".repeat(20));
    for (label, compression) in [("a", Compression::Lz4), ("b", Compression::Gzip), ("c", Compression::Zstd)]
    {
        // The first attempt is lost with its body, and so is the answer to the second.
        sandbox.set_fault(Fault::times(FaultKind::DropMidBody { after_bytes: 1 }, 1));
        let late = FaultKind::LateCommit { delay_ms: 50, client: ClientFate::Dropped };
        sandbox.set_fault(Fault::times(late, 1));
        let mut load =
            load_of(StarRocks { compression, ..settings(&sandbox) }, label, &[row.as_bytes(); 5_000]);
        let delivered = deliver(&mut load).await;
        assert!(matches!(delivered, Delivered::Durable(_)), "{compression:?}: {delivered:?}");
        let packed = load.packed.as_ref().expect("a packed body");
        assert!(packed.bytes * 5 < load.bytes, "{compression:?}: {} of {}", packed.bytes, load.bytes);
        let last = sandbox.loads().pop().expect("a load");
        assert_eq!((last.rows, last.bytes), (5_000, packed.bytes), "{compression:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn csv_arrives_as_json_does() {
    let rows: [&[u8]; 4] = [
        br#"{"id":1,"name":"a \"b\"\n\u0001","price":1.50,"day":"2026-11-21","doc":{"x": [1, "y z"]}}"#,
        br#"{"doc":[],"id":2,"name":"","unknown":1}"#,
        br#"{"id":3,"name":12,"price":"3","day":null,"doc":true}"#,
        br#"{"id":4,"name":"gone"}"#,
    ];
    let (json, csv) = (sandbox().await, sandbox().await);
    delivered(load_of(settings(&json), "a", &rows)).await;
    delivered(load_of(settings(&json), "b", &[br#"{"id":4,"__op":1}"#])).await;
    let columns = ["day", "id", "name", "price", "doc"].map(str::to_owned).to_vec();
    for (round, compression) in [Compression::None, Compression::Lz4].into_iter().enumerate() {
        let file =
            StarRocks { format: RowFormat::Csv, compression, columns: columns.clone(), ..settings(&csv) };
        delivered(load_of(file.clone(), &format!("{round}-a"), &rows)).await;
        delivered(load_of(file, &format!("{round}-b"), &[br#"{"id":4,"__op":1}"#])).await;
    }
    let mut expected = table(&json);
    // JSON's `true` is 1 wherever it goes as text.
    expected[2] = expected[2].replace("|true", "|1");
    assert_eq!(table(&csv), expected);
    assert_eq!(expected.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partial_rows_go_as_csv_too_and_rows_that_cannot_are_told() {
    let sandbox = sandbox().await;
    let columns = ["id", "name", "price", "day"].map(str::to_owned).to_vec();
    let file = StarRocks { format: RowFormat::Csv, columns, ..settings(&sandbox) };
    delivered(load_of(file.clone(), "a", &[br#"{"id":1,"name":"a","price":1}"#])).await;
    let mut part = load_of(file.clone(), "b", &[br#"{"price":9,"id":1}"#, br#"{"id":2,"price":3,"__op":0}"#]);
    part.columns = Some(["id".to_owned(), "price".to_owned()].into());
    delivered(part).await;
    assert_eq!(table(&sandbox), ["1|a|9.00|NULL|NULL", "2|none|3.00|NULL|NULL"]);
    let rows: [&[u8]; 2] = [br#"{"id":3}"#, br#"{"id":4,"name":"\\N"}"#];
    match deliver(&mut load_of(file.clone(), "c", &rows)).await {
        Delivered::BadRows(rejection) => assert!(rejection.message.contains("`name`"), "{rejection:?}"),
        other => panic!("{other:?}"),
    }
    let rows: [&[u8]; 3] = [br#"{"id":5,"price":"x"}"#, br#"{"id":6}"#, br#"{"name":"no key"}"#];
    let rejection = match deliver(&mut load_of(file, "d", &rows)).await {
        Delivered::BadRows(rejection) => rejection,
        other => panic!("{other:?}"),
    };
    let complaints = complaints(rejection.error_log.as_deref().expect("a log"));
    let found = culprits(rows, &complaints, Keys::AreColumns, rejection.filtered_rows);
    assert_eq!(found.keys().copied().collect::<Vec<_>>(), [0, 2], "{found:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_client_sends_whole_and_partial_loads() {
    let sandbox = sandbox().await;
    let whole = |label: &str, rows: &[&[u8]]| load_of(settings(&sandbox), label, rows);
    delivered(whole("a", &[br#"{"id":1,"name":"a","price":1}"#, br#"{"id":2,"name":"b","price":2}"#])).await;
    let mut part = whole("b", &[br#"{"id":1,"price":9}"#, br#"{"id":2,"__op":1}"#, br#"{"id":3,"price":3}"#]);
    part.columns = Some(["id".to_owned(), "price".to_owned()].into());
    delivered(part).await;
    assert_eq!(table(&sandbox), ["1|a|9.00|NULL|NULL", "3|none|3.00|NULL|NULL"]);
    delivered(whole("c", &[br#"{"id":1,"price":8}"#])).await;
    assert_eq!(table(&sandbox)[0], "1|NULL|8.00|NULL|NULL", "a whole row replaces all columns");
    let file = StarRocks {
        columns: vec!["id".into(), "day".into()],
        partial_update: true,
        partial_update_mode: PartialUpdate::Column,
        ..settings(&sandbox)
    };
    delivered(load_of(file, "d", &[br#"{"id":1,"day":"2026-11-21","price":7}"#])).await;
    assert_eq!(table(&sandbox)[0], "1|NULL|8.00|2026-11-21|NULL");
}

async fn refused(sandbox: &Sandbox, label: &str, rows: &[&[u8]]) -> Rejection {
    match deliver(&mut load_of(settings(sandbox), label, rows)).await {
        Delivered::BadRows(rejection) => rejection,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_rows_are_found_by_the_error_log() {
    let sandbox = sandbox().await;
    let rows: [&[u8]; 8] = [
        br#"{"id":1,"name":"good","price":1,"day":"2026-11-21"}"#,
        br#"{"id":null,"name":"no key"}"#,
        br#"{"id":"many"}"#,
        br#"{"id":4,"name":"longer than twenty bytes"}"#,
        br#"{"id":5,"price":123456.7}"#,
        br#"{"id":6,"day":"2026-02-30"}"#,
        br#"{"name":"no key either"}"#,
        br#"{"id":8,"name":"good"}"#,
    ];
    let rejection = refused(&sandbox, "a", &rows).await;
    assert_eq!((rejection.filtered_rows, rejection.syntax), (Some(6), false));
    let complaints = complaints(rejection.error_log.as_deref().expect("a log"));
    let found = culprits(rows, &complaints, Keys::AreColumns, rejection.filtered_rows);
    assert_eq!(found.keys().copied().collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6], "{found:#?}");
    assert!(found[&3].contains("capacity=20"), "{found:#?}");
    let good: Vec<&[u8]> =
        rows.iter().enumerate().filter(|(at, _)| !found.contains_key(at)).map(|(_, row)| *row).collect();
    delivered(load_of(settings(&sandbox), "b", &good)).await;
    assert_eq!(table(&sandbox).len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_cut_off_names_more_rows_than_it_has_lines() {
    let sandbox = sandbox().await;
    let rows: Vec<String> = (0..300)
        .map(|row| format!("{{\"id\":{}}}", if row % 3 == 0 { "null".to_owned() } else { row.to_string() }))
        .collect();
    let rows: Vec<&[u8]> = rows.iter().map(String::as_bytes).collect();
    let rejection = refused(&sandbox, "a", &rows).await;
    let log = rejection.error_log.expect("a log");
    assert!(log.lines().count() <= 51);
    let found: BTreeMap<usize, String> =
        culprits(rows.iter().copied(), &complaints(&log), Keys::AreColumns, rejection.filtered_rows);
    assert_eq!(found.len(), 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_log_is_read_from_the_cluster_only() {
    let sandbox = sandbox().await;
    let bad: [&[u8]; 1] = [br#"{"id":null}"#];
    // Somebody listens there, and hears nothing.
    let elsewhere = tokio::net::TcpListener::bind("127.0.0.2:0").await.expect("a free port");
    let authority = elsewhere.local_addr().expect("an address").to_string();
    for (label, kind) in [("a", FaultKind::ErrorLogLost), ("b", FaultKind::ErrorLogElsewhere { authority })] {
        sandbox.set_fault(Fault::times(kind.clone(), 1));
        let rejection = refused(&sandbox, label, &bad).await;
        assert_eq!(rejection.error_log, None, "{kind:?}");
        assert_eq!(rejection.filtered_rows, Some(1));
    }
    let heard = tokio::time::timeout(std::time::Duration::from_millis(100), elsewhere.accept()).await;
    assert!(heard.is_err(), "{heard:?}");
    assert!(refused(&sandbox, "c", &bad).await.error_log.is_some(), "the faults are spent");
}
