//! Requests as the official connectors send them (reference/peers-measured.md, "What official clients send").

use crate::target::{Target, random};
use crate::wire::{self, Answer, Connection, Head};
use std::io::Write;

/// A plain load's head as the Java SDK writes it: database and table also as headers.
fn plain(target: &Target, label: &str) -> Head {
    target
        .load_head("t", label)
        .with("db", &target.db)
        .with("table", "t")
        .with("timeout", 600)
        .with("strip_outer_array", "true")
}

/// A request whose body is awaited at the FE, and which is redirected without it.
async fn redirected(target: &Target, head: &Head) -> (String, Head) {
    let mut connection = Connection::open(&target.fe).await.expect("the FE listens");
    connection.head(head).await.expect("written");
    let answer = connection.answer().await.expect("an answer");
    assert_eq!(answer.status, 307, "{answer:?}");
    let location = answer.header("location").expect("a redirect names its target");
    (wire::authority(location), Head { path: wire::path(location), ..head.clone() })
}

#[tokio::test]
async fn a_plain_load_is_an_array_with_its_length() {
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    let body = "[{\"id\":1,\"name\":\"a\"},{\"id\":2}]";
    let head = plain(&target, "plain").with("Content-Length", body.len());
    let (be, head) = redirected(&target, &head).await;
    let answer = wire::exchange(&be, &head, body.as_bytes()).await.expect("an answer");
    assert_eq!((answer.text("Status"), answer.continued), ("Success".into(), true), "{answer:?}");
    assert_eq!(answer.number("NumberLoadedRows"), 2);
    assert_eq!(target.rows("SELECT id, name FROM t ORDER BY id").await, ["1,a", "2,NULL"]);
}

#[tokio::test]
async fn a_packed_load_comes_in_chunks() {
    let Some(target) = Target::since([3, 2, 7]).await else { return };
    target.table("t", "DUPLICATE KEY").await;
    let mut packer = lz4_flex::frame::FrameEncoder::new(Vec::new());
    packer.write_all(b"[{\"id\":1},{\"id\":2}]").expect("memory takes all");
    let body = packer.finish().expect("memory takes all");
    let head = plain(&target, "packed").with("compression", "lz4_frame").with("Transfer-Encoding", "chunked");
    let (be, head) = redirected(&target, &head).await;
    let mut connection = Connection::open(&be).await.expect("the BE listens");
    connection.head(&head).await.expect("written");
    assert_eq!(connection.answer().await.expect("an interim answer").status, 100);
    for chunk in body.chunks(10) {
        connection.body(format!("{:x}\r\n", chunk.len()).as_bytes()).await.expect("written");
        connection.body(chunk).await.expect("written");
        connection.body(b"\r\n").await.expect("written");
    }
    connection.body(b"0\r\n\r\n").await.expect("written");
    let answer = connection.answer().await.expect("an answer");
    assert_eq!(answer.text("Status"), "Success", "{answer:?}");
    assert_eq!(target.count("t").await, 2);
}

#[tokio::test]
async fn csv_bodies_end_with_one_delimiter() {
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    let head = target.load_head("t", "csv").with("format", "csv").with("column_separator", "\\x01");
    let answer = target.send(&head, "1\u{1}a\u{1}5\n2\u{1}\\N\u{1}6\n").await.expect("an answer");
    assert_eq!(answer.text("Status"), "Success", "{answer:?}");
    assert_eq!(answer.number("NumberTotalRows"), 2, "the last delimiter begins no row");
    assert_eq!(target.rows("SELECT id, name, qty FROM t ORDER BY id").await, ["1,a,5", "2,NULL,6"]);
}

fn operation(target: &Target, method: &'static str, name: &str, label: &str) -> Head {
    Head::new(method, format!("/api/transaction/{name}"))
        .user("root", &target.password)
        .with("db", &target.db)
        .with("table", "t")
        .with("label", label)
}

/// A POST without a length, which is what a redirected one of theirs is.
async fn post(authority: &str, head: &Head) -> Answer {
    let mut connection = Connection::open(authority).await.expect("somebody listens");
    connection.head(head).await.expect("written");
    connection.answer().await.expect("an answer")
}

/// Follows the FE's redirect if there is one.
async fn followed(target: &Target, head: &Head) -> (Answer, bool) {
    let answer = post(&target.fe, &head.clone().with("Content-Length", 0)).await;
    if answer.status != 307 {
        return (answer, false);
    }
    let location = answer.header("location").expect("a redirect names its target");
    (post(&wire::authority(location), &Head { path: wire::path(location), ..head.clone() }).await, true)
}

#[tokio::test]
async fn a_transaction_is_begun_loaded_prepared_and_committed() {
    let label = random();
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    let (begun, by_be) = followed(&target, &operation(&target, "POST", "begin", &label)).await;
    assert_eq!((begun.text("Status"), by_be), ("OK".into(), true), "{begun:?}");
    let body = "[{\"id\":1},{\"id\":2}]";
    let load = operation(&target, "PUT", "load", &label)
        .with("Expect", "100-continue")
        .with("format", "json")
        .with("strip_outer_array", "true")
        .with("Content-Length", body.len());
    let (be, load) = redirected(&target, &load).await;
    let loaded = wire::exchange(&be, &load, body.as_bytes()).await.expect("an answer");
    assert_eq!(loaded.text("Status"), "OK", "{loaded:?}");
    // As the Kafka connector does. That it is taken is all that shows here: releases before 3.5.4 do not read it.
    let prepare = operation(&target, "POST", "prepare", &label).with("prepared_timeout", 180);
    let (prepared, by_be) = followed(&target, &prepare).await;
    assert_eq!((prepared.text("Status"), by_be), ("OK".into(), true), "{prepared:?}");
    assert_eq!(prepared.number("NumberTotalRows"), 2);
    assert_eq!(target.state(&label).await, "PREPARED");
    let (committed, by_be) = followed(&target, &operation(&target, "POST", "commit", &label)).await;
    assert_eq!((committed.text("Status"), by_be), ("OK".into(), false), "{committed:?}");
    target.until_count("t", 2).await;
}

#[tokio::test]
async fn the_feature_probe_is_a_begin_that_names_nothing() {
    let target = Target::any().await;
    let probe = Head::new("POST", "/api/transaction/begin").user("root", &target.password);
    let (answer, _) = followed(&target, &probe).await;
    // Anything but a 404: whoever has the interface says what is missing.
    assert_eq!((answer.status, answer.text("Status")), (200, "FAILED".into()), "{answer:?}");
    assert!(answer.text("Message").contains("Empty label."), "{answer:?}");
}

#[tokio::test]
async fn a_connection_without_a_request_does_no_harm() {
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    for _ in 0..3 {
        drop(Connection::open(&target.fe).await.expect("the FE listens"));
    }
    assert_eq!(target.load("t", "after", "{\"id\":1}").await.text("Status"), "Success");
}

#[tokio::test]
async fn their_questions_to_the_query_port() {
    let target = Target::any().await;
    let version = target.named_rows("select current_version() as ver;").await;
    assert_eq!(version.len(), 1);
    assert!(version[0]["ver"].starts_with(|first: char| first.is_ascii_digit()), "{version:?}");
    target
        .sql(
            "CREATE TABLE priced (id BIGINT NOT NULL, at INT NOT NULL, name VARCHAR(20), code CHAR(3), \
             price DECIMAL(12,2), ratio DOUBLE, ok BOOLEAN, big LARGEINT, day DATE) PRIMARY KEY(id, at) \
             DISTRIBUTED BY HASH(id) BUCKETS 1 PROPERTIES ('replication_num' = '1')",
        )
        .await;
    // By name, and in no order of theirs.
    let asked = format!(
        "select `COLUMN_NAME`, `COLUMN_KEY`, `DATA_TYPE`, `COLUMN_SIZE`, `DECIMAL_DIGITS` from \
         `information_schema`.`COLUMNS` where `TABLE_SCHEMA`='{}' and `TABLE_NAME`='priced';",
        target.db
    );
    let mut told = target.rows(&asked).await;
    told.sort();
    let expected = [
        "at,PRI,int,10,0",
        "big,,bigint unsigned,39,NULL",
        "code,,char,3,NULL",
        "day,,date,NULL,NULL",
        "id,PRI,bigint,19,0",
        "name,,varchar,20,NULL",
        "ok,,tinyint,NULL,0",
        "price,,decimal,12,2",
        "ratio,,double,15,15",
    ];
    assert_eq!(told, expected);
    let all = format!(
        "select * from information_schema.COLUMNS where TABLE_SCHEMA = '{}' and TABLE_NAME = 'priced' \
         order by ORDINAL_POSITION;",
        target.db
    );
    let all = target.named_rows(&all).await;
    assert_eq!(all.len(), expected.len());
    let name = &all[2];
    assert_eq!((name["COLUMN_NAME"].as_str(), name["CHARACTER_MAXIMUM_LENGTH"].as_str()), ("name", "20"));
    let price = &all[4];
    assert_eq!((price["NUMERIC_PRECISION"].as_str(), price["NUMERIC_SCALE"].as_str()), ("12", "2"));
}
