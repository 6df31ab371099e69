//! Versions: one for each load, a limit, compaction.

use crate::target::{Target, until};
use std::time::Duration;
use tidemill_sandbox::Options;

#[tokio::test]
async fn each_load_makes_one_version_of_every_tablet() {
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    let version = async || {
        let rows = target.rows("SHOW TABLET FROM t").await;
        // TabletId, ReplicaId, BackendId, SchemaHash, Version
        rows[0].split(',').nth(4).and_then(|text| text.parse::<u64>().ok()).expect("a version")
    };
    let before = version().await;
    for label in ["a", "b", "c"] {
        assert_eq!(target.load("t", label, "{\"id\":1}").await.text("Status"), "Success");
    }
    target.load("t", "bad", "{\"id\":null}").await;
    assert_eq!(version().await, before + 3, "the failed load made none");
}

#[tokio::test]
async fn replicas_tell_how_many_versions_they_have() {
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    let asked = format!(
        "SELECT max(b.NUM_VERSION) FROM information_schema.be_tablets b JOIN information_schema.tables_config c \
         ON b.TABLE_ID = c.TABLE_ID WHERE c.TABLE_SCHEMA = '{}' AND c.TABLE_NAME = 't'",
        target.db
    );
    let live = async || target.rows(&asked).await[0].parse::<u64>().expect("a number");
    let before = live().await;
    for label in ["a", "b", "c"] {
        assert_eq!(target.load("t", label, "{\"id\":1}").await.text("Status"), "Success");
    }
    assert_eq!(live().await, before + 3, "too few for a compaction");
    // What the host reads; a cluster's FE hears of it from the BEs once a minute or so.
    let tablets = target.named_rows("SHOW TABLET FROM t").await;
    let counts: Vec<u64> = tablets.iter().map(|row| row["VersionCount"].parse().expect("a number")).collect();
    assert!(!counts.is_empty() && counts.iter().all(|count| *count >= 1), "{counts:?}");
}

#[tokio::test]
async fn the_limit_and_the_compaction_are_changed_while_it_runs() {
    use crate::wire::{self, Head};
    let options = Options { compaction: None, ..Options::default() };
    let Some(target) = Target::sandbox(options).await else { return };
    target.table("t", "DUPLICATE KEY").await;
    target.load("t", "a", "{\"id\":1}").await;
    let set = async |body: &str| {
        wire::exchange(&target.fe, &Head::new("POST", "/sandbox/versions"), body.as_bytes())
            .await
            .expect("an answer")
    };
    let answer = set("{\"tablet_max_versions\":1}").await;
    assert_eq!((answer.number("tablet_max_versions"), answer.number("compaction_ms")), (1, 0));
    let refused = target.load("t", "b", "{\"id\":2}").await;
    assert!(refused.text("Message").contains("current/limit: 2/1"), "{refused:?}");
    set("{\"tablet_max_versions\":3}").await;
    for label in ["b", "c"] {
        assert_eq!(target.load("t", label, "{\"id\":2}").await.text("Status"), "Success");
    }
    assert_eq!(target.load("t", "d", "{\"id\":2}").await.text("Status"), "Fail");
    set("{\"compaction_ms\":5,\"compaction_merge_max\":10}").await;
    until("the versions are merged", || async {
        target.own().table_stats(&target.db, "t").expect("the table is there").versions_now == 1
    })
    .await;
    assert_eq!(target.load("t", "d", "{\"id\":2}").await.text("Status"), "Success");
    assert_eq!(set("{\"compaction\":5}").await.status, 400);
}

#[tokio::test]
async fn loads_are_refused_past_the_limit_and_taken_again_after_compaction() {
    let options = Options { tablet_max_versions: 4, compaction: None, ..Options::default() };
    let Some(target) = Target::sandbox(options).await else { return };
    target.table("t", "DUPLICATE KEY").await;
    for number in 0..4 {
        let answer = target.load("t", &format!("l{number}"), "{\"id\":1}").await;
        assert_eq!(answer.text("Status"), "Success");
    }
    let answer = target.load("t", "over", "{\"id\":1}").await;
    assert_eq!(answer.text("Status"), "Fail");
    let message = answer.text("Message");
    assert!(message.starts_with("Failed to load data into tablet "), "{message}");
    let text = ", because of too many versions, current/limit: 5/4. You can reduce the loading job concurrency, or \
                increase loading data batch size. If you are loading data with Routine Load, you can increase FE \
                configs routine_load_task_consume_second and max_routine_load_batch_size,";
    assert!(message.contains(text), "{message}");
    assert_eq!(target.state("over").await, "ABORTED");
    let stats = target.own().table_stats(&target.db, "t").expect("the table is there");
    assert_eq!((stats.loads, stats.versions_now, stats.refused_too_many_versions), (4, 4, 1));
    target.own().compact();
    assert_eq!(target.load("t", "over", "{\"id\":1}").await.text("Status"), "Success");
    let stats = target.own().table_stats(&target.db, "t").expect("the table is there");
    assert_eq!((stats.versions_now, stats.versions_total), (2, 5));
    assert_eq!(target.count("t").await, 5);
}

#[tokio::test]
async fn compaction_runs_in_the_background() {
    let options = Options {
        compaction: Some(Duration::from_millis(10)),
        compaction_merge_max: 2,
        ..Options::default()
    };
    let Some(target) = Target::sandbox(options).await else { return };
    target.table("t", "DUPLICATE KEY").await;
    for number in 0..5 {
        target.load("t", &format!("l{number}"), "{\"id\":1}").await;
    }
    let now = || target.own().table_stats(&target.db, "t").expect("the table is there").versions_now;
    until("the versions are merged", || async { now() == 1 }).await;
}

#[tokio::test]
async fn the_counters_are_served_and_reset() {
    use crate::wire::{self, Head};
    let Some(target) = Target::sandbox(Options::default()).await else { return };
    target.table("t", "DUPLICATE KEY").await;
    target.load("t", "a", "{\"id\":1}\n{\"id\":2}\n").await;
    let get = Head::new("GET", "/sandbox/stats");
    let stats = wire::exchange(&target.fe, &get, b"").await.expect("an answer").json();
    let name = format!("{}.t", target.db);
    assert_eq!(stats["tables"][&name]["rows_loaded"], 2);
    assert_eq!(stats["tables"][&name]["versions_now"], 1);
    wire::exchange(&target.fe, &Head::new("POST", "/sandbox/stats/reset"), b"").await.expect("an answer");
    let stats = wire::exchange(&target.fe, &get, b"").await.expect("an answer").json();
    assert_eq!(stats["tables"][&name]["rows_loaded"], 0);
    assert_eq!(target.count("t").await, 2, "rows stay");
}

#[tokio::test]
async fn loads_in_parallel_are_all_counted() {
    let target = Target::any().await;
    let tables = ["p1", "p2"];
    for table in tables {
        target.table(table, "PRIMARY KEY").await;
    }
    let load = async |table: &str, number: u64| {
        let rows: Vec<String> = (0..20).map(|row| format!("{{\"id\":{}}}", number * 10 + row)).collect();
        let answer = target.load(table, &format!("{table}-{number}"), &rows.join("\n")).await;
        assert_eq!(answer.text("Status"), "Success", "{answer:?}");
    };
    // Four clients, two to a table; the ranges of neighbouring loads overlap by half.
    let client = async |table: &str, parity: u64| {
        for number in 0..10 {
            load(table, number * 2 + parity).await;
        }
    };
    tokio::join!(client("p1", 0), client("p1", 1), client("p2", 0), client("p2", 1));
    for table in tables {
        assert_eq!(target.rows(&format!("SELECT count(*), max(id) FROM {table}")).await, ["210,209"]);
        let tablets = target.rows(&format!("SHOW TABLET FROM {table}")).await;
        assert_eq!(tablets[0].split(',').nth(4), Some("21"), "{tablets:?}");
    }
}
