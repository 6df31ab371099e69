//! What a BE writes of the rows that it refuses, and where that may be read.

use crate::target::Target;
use crate::wire::{self, Head};
use tidemill_sandbox::{Fault, FaultKind, Options};

pub(crate) async fn error_log(target: &Target, url: &str) -> String {
    let head = Head::new("GET", wire::path(url)).user("root", &target.password);
    wire::exchange(&wire::authority(url), &head, b"").await.expect("an answer").body
}

async fn lines(target: &Target, table: &str, label: &str, body: &str) -> Vec<String> {
    let head = target.load_head(table, label).with("strict_mode", "true");
    let answer = target.send(&head, body).await.expect("an answer");
    assert_eq!(answer.text("Message"), "too many filtered rows", "{answer:?}");
    error_log(target, &answer.text("ErrorURL")).await.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn what_the_scanner_refuses_is_shown_as_it_was_sent() {
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    let rows = [
        "{\"id\": 1, \"name\": \"123456789012345678901\"}",
        "{\"id\":2,\"qty\":3000000000}",
        "{\"id\":3,\"qty\":\"many\"}",
    ];
    let log = lines(&target, "t", "sent", &rows.join("\n")).await.join("\n");
    for (value, column) in [("123456789012345678901", "name"), ("3000000000", "qty"), ("many", "qty")] {
        let found = log.lines().any(|line| line.contains(value) && line.contains(column));
        assert!(found, "{value} of {column}: {log}");
    }
    // Which reason in which words, and the row beside it, differ by release.
    if target.is_sandbox() {
        for (row, reason) in
            rows.iter().zip(["column=name, capacity=20", "Value is overflow. column=qty", "many"])
        {
            let found =
                log.lines().any(|line| line.contains(reason) && line.contains(&format!("Row: {row}")));
            assert!(found, "{reason}: {log}");
        }
    }
}

#[tokio::test]
async fn what_is_refused_behind_the_scanner_is_shown_as_values() {
    let target = Target::any().await;
    target
        .sql(
            "CREATE TABLE t (id BIGINT NOT NULL, day DATE, name VARCHAR(9) NOT NULL) PRIMARY KEY(id) \
             DISTRIBUTED BY HASH(id) BUCKETS 1 PROPERTIES ('replication_num' = '1')",
        )
        .await;
    let log = lines(&target, "t", "cast", "{\"id\":1,\"day\":\"2026-02-30\",\"name\":\"a\"}").await;
    assert!(log[0].contains("2026-02-30") && log[0].contains("day"), "{log:?}");
    let null = lines(&target, "t", "null", "{\"id\":2,\"day\":\"2026-02-03\"}").await;
    assert!(null[0].contains("NULL value in non-nullable column 'name'"), "{null:?}");
    // The rest of the words, and how a row is shown, differ by release.
    if target.is_sandbox() {
        let reason = "Error: Value ''2026-02-30'' is out of range. The type of 'day' is DATE";
        assert!(log[0].starts_with(reason), "{log:?}");
        assert!(log[0].ends_with(". Row: [1, '2026-02-30', 'a', 0]"), "{log:?}");
        assert_eq!(null, ["Error: NULL value in non-nullable column 'name'. Row: [2, 2026-02-03, NULL, 0]"]);
    }
}

#[tokio::test]
async fn the_log_ends_after_some_fifty_lines() {
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    let body: String = (0..200).map(|row| format!("{{\"id\":{row},\"qty\":\"x\"}}\n")).collect();
    let count = lines(&target, "t", "many", &body).await.len();
    assert!((50..=51).contains(&count), "{count} lines");
}

#[tokio::test]
async fn a_log_can_be_gone_or_elsewhere() {
    let Some(target) = Target::sandbox(Options::default()).await else { return };
    target.table("t", "DUPLICATE KEY").await;
    target.own().set_fault(Fault::times(FaultKind::ErrorLogLost, 1));
    let authority = "evil.example:8040".to_owned();
    target.own().set_fault(Fault::times(FaultKind::ErrorLogElsewhere { authority }, 1));
    let bad = "{\"id\":null}";
    let url = target.load("t", "lost", bad).await.text("ErrorURL");
    let head = Head::new("GET", wire::path(&url)).user("root", "");
    let answer = wire::exchange(&wire::authority(&url), &head, b"").await.expect("an answer");
    assert_eq!(answer.status, 404);
    let url = target.load("t", "elsewhere", bad).await.text("ErrorURL");
    assert!(url.starts_with("http://evil.example:8040/api/_load_error_log?file="), "{url}");
    let url = target.load("t", "usual", bad).await.text("ErrorURL");
    assert!(error_log(&target, &url).await.contains("NULL value"), "the faults are spent");
}
