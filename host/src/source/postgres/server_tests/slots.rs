use std::time::Duration;

use tidemill_test_postgres::Settings;

use super::{PATIENCE, connector, control, expect, facts, run, source, start};
use crate::fault::FaultKind;
use crate::source::postgres::setup::{Lifetime, create_slot, export_snapshot, identify};
use crate::source::postgres::{catalog, preflight};

#[tokio::test]
async fn a_slot_that_is_held_up_names_who_holds_it_and_leaves_nothing_behind() {
    let server = start(&Settings::default());
    run(&server, "CREATE TABLE t (id int PRIMARY KEY)");
    let source = source(&server, "postgres", &["public.*"]);
    let (connector, control) = (connector(&source), control(&source).await);
    let forgetful = super::control(&source).await;
    forgetful
        .client()
        .batch_execute("BEGIN; INSERT INTO public.t VALUES (1)")
        .await
        .expect("an open transaction");
    let pid: i32 = forgetful.client().query_one("SELECT pg_backend_pid()", &[]).await.expect("a pid").get(0);
    let seen = facts(&source).await;
    assert_eq!(seen.writers.iter().map(|writer| writer.pid).collect::<Vec<_>>(), [Some(pid)]);
    let create = |patience| {
        create_slot(&connector, &control, &seen.server, "tidemill_shop", Lifetime::Permanent, patience)
    };
    let words = [
        &format!("waits for open transactions: pid {pid} (\"tidemill shop\"") as &str,
        "pg_terminate_backend",
    ];
    expect(create(Duration::from_millis(300)).await, FaultKind::Retry, &words);
    assert_eq!(run(&server, "SELECT slot_name FROM pg_replication_slots"), "");
    forgetful.client().batch_execute("COMMIT").await.expect("it ends");
    let made = create(PATIENCE).await.unwrap_or_else(|fault| panic!("{}", fault.story()));
    let slot = catalog::slot(&control, "tidemill_shop").await.expect("an answer").expect("it is there");
    assert_eq!((slot.plugin.as_deref(), slot.database.as_deref()), (Some("pgoutput"), Some("postgres")));
    assert_eq!(
        (slot.confirmed, slot.active_pid, slot.wal_status.as_deref()),
        (Some(made.point), None, Some("reserved"))
    );
    assert!(slot.held_wal_bytes.is_some_and(|bytes| bytes >= 0));
}

#[tokio::test]
async fn a_publication_that_is_younger_than_the_slot_is_noticed() {
    let server = start(&Settings::default());
    let source = source(&server, "postgres", &["public.*"]);
    let slot = "SELECT pg_create_logical_replication_slot('tidemill_shop', 'pgoutput')";
    let publication = "CREATE PUBLICATION tidemill_shop";
    let newer = async || facts(&source).await.publication.map(|publication| publication.newer_than_slot);
    run(&server, publication);
    run(&server, slot);
    assert_eq!(newer().await, Some(false));
    run(&server, "DROP PUBLICATION tidemill_shop");
    assert_eq!(newer().await, None);
    run(&server, publication);
    assert_eq!(newer().await, Some(true));
}

#[tokio::test]
async fn a_temporary_slot_goes_with_its_connection() {
    let server = start(&Settings::default());
    let source = source(&server, "postgres", &["public.*"]);
    let (connector, control) = (connector(&source), control(&source).await);
    let seen = facts(&source).await;
    let made =
        create_slot(&connector, &control, &seen.server, "passing", Lifetime::Temporary, PATIENCE).await;
    let made = made.unwrap_or_else(|fault| panic!("{}", fault.story()));
    let identified = identify(&connector).await.expect("an answer");
    assert_eq!(Some(identified.system_identifier), seen.server.system_identifier);
    assert!(identified.written >= made.point && identified.timeline == 1);
    assert_eq!(run(&server, "SELECT temporary FROM pg_replication_slots").trim(), "t");
    drop(made);
    let gone = || catalog::slot(&control, "passing");
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while gone().await.expect("an answer").is_some() {
        assert!(tokio::time::Instant::now() < deadline, "the slot outlives its connection");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_snapshot_can_be_shared_without_a_slot() {
    let server = start(&Settings { wal_level: "minimal".to_owned(), ..Settings::default() });
    run(&server, "CREATE TABLE t AS SELECT 1 AS id; ALTER TABLE t ADD PRIMARY KEY (id)");
    let mut source = source(&server, "postgres", &["public.*"]);
    source.snapshot = crate::config::model::Snapshot::Only;
    assert_eq!(preflight::defects(&facts(&source).await, &source), []);
    let connector = connector(&source);
    let exported = export_snapshot(&connector).await.unwrap_or_else(|fault| panic!("{}", fault.story()));
    run(&server, "INSERT INTO t VALUES (2)");
    let mut session = connector.copying().await.expect("a connection");
    let begin =
        format!("BEGIN ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT '{}'", exported.snapshot);
    session.run(&begin).await.expect("the snapshot is there");
    let rows = session.run("SELECT id FROM public.t").await.expect("rows");
    assert_eq!(rows, [[Some("1".to_owned())]]);
    drop(exported);
}
