use pgwire_replication::ReplicationClient;
use tidemill_test_postgres::{Auth, Server, Settings, Stop};

use super::{PATIENCE, catalog, connector, control, expect, facts, run, source, start};
use crate::config::model::{Postgres, Secret};
use crate::fault::{Fault, FaultKind};
use crate::source::postgres::lsn::Lsn;
use crate::source::postgres::setup::{Lifetime, create_slot, drop_slot};
use crate::source::postgres::trouble::Failure;

const ROLES: &str =
    "CREATE ROLE reader LOGIN REPLICATION PASSWORD 'secret'; CREATE ROLE plain LOGIN PASSWORD 'secret';";

/// Tries to stream, by the replication client.
async fn follow(source: &Postgres) -> Result<ReplicationClient, Fault> {
    let config = connector(source).replication_config(Lsn(0))?;
    let failed = |error| Failure::from(error).fault("follow the changes", source);
    let mut client = ReplicationClient::connect(config).await.map_err(failed)?;
    match tokio::time::timeout(PATIENCE, client.wait_started()).await {
        Ok(started) => started.map(|()| client).map_err(failed),
        Err(_) => panic!("the server neither streams nor refuses"),
    }
}

async fn make_slot(source: &Postgres) -> Result<(), Fault> {
    let (connector, control) = (connector(source), control(source).await);
    let server = facts(source).await.server;
    let made = create_slot(&connector, &control, &server, &source.slot, Lifetime::Permanent, PATIENCE).await;
    made.map(|_| ())
}

/// Waits until nobody reads the slot: the server notices some time after its client that the connection has ended.
async fn until_free(source: &Postgres) {
    let control = control(source).await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let slot = || catalog::slot(&control, &source.slot);
    while slot().await.expect("an answer").is_some_and(|slot| slot.active_pid.is_some()) {
        assert!(tokio::time::Instant::now() < deadline, "the slot is read by a client that has gone");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_refused_log_in_says_what_to_check() {
    let server = start(&Settings { auth: Auth::Scram, ..Settings::default() });
    run(&server, ROLES);
    let good = source(&server, "reader", &["public.*"]);
    connector(&good).control().await.expect("the right password");
    connector(&good).copying().await.expect("the right password");
    follow(&good).await.map(|_| ()).expect_err("there is no slot");
    let mut wrong = good.clone();
    wrong.password = Some(Secret::new("wrong secret"));
    let words = ["password authentication failed for user \"reader\"", "check `user` and `password`"];
    expect(connector(&wrong).control().await, FaultKind::Halt, &words);
    expect(connector(&wrong).copying().await, FaultKind::Halt, &words);
    expect(follow(&wrong).await, FaultKind::Halt, &words);
    wrong.password = None;
    expect(connector(&wrong).control().await, FaultKind::Halt, &["password", "check `user` and `password`"]);
    expect(
        connector(&wrong).copying().await,
        FaultKind::Halt,
        &["none is given", "check `user` and `password`"],
    );
    let mut nowhere = good.clone();
    nowhere.database = "nowhere".to_owned();
    expect(
        connector(&nowhere).control().await,
        FaultKind::Halt,
        &["\"nowhere\" does not exist", "`database`"],
    );
    let plain = source(&server, "plain", &["public.*"]);
    let words = ["replication role", "ALTER ROLE \"plain\" REPLICATION"];
    expect(connector(&plain).replication().await, FaultKind::Halt, &words);
    expect(follow(&plain).await, FaultKind::Halt, &words);
}

#[tokio::test]
async fn md5_passwords_are_known_too() {
    let server = start(&Settings { auth: Auth::Md5, ..Settings::default() });
    run(&server, &format!("SET password_encryption = 'md5'; {ROLES}"));
    let mut source = source(&server, "reader", &["public.*"]);
    connector(&source).control().await.expect("the right password");
    connector(&source).replication().await.expect("the right password");
    source.password = Some(Secret::new("wrong"));
    expect(connector(&source).copying().await, FaultKind::Halt, &["password authentication failed"]);
}

#[tokio::test]
async fn a_slot_that_cannot_be_read_says_why() {
    let server = start(&Settings { max_replication_slots: 3, ..Settings::default() });
    run(&server, &format!("{ROLES} CREATE DATABASE other; CREATE PUBLICATION tidemill_shop FOR ALL TABLES;"));
    let mut source = source(&server, "reader", &["public.*"]);
    expect(
        follow(&source).await,
        FaultKind::Halt,
        &["\"tidemill_shop\" does not exist", "snapshot = \"initial\""],
    );
    make_slot(&source).await.expect("a slot");
    expect(make_slot(&source).await, FaultKind::Halt, &["already exists", "pg_drop_replication_slot"]);
    let first = follow(&source).await.expect("it streams");
    expect(
        follow(&source).await,
        FaultKind::Retry,
        &["is active for PID", "waiting for it to end", "active_pid"],
    );
    expect(drop_slot(&control(&source).await, &source.slot).await, FaultKind::Retry, &["is active for PID"]);
    drop(first);
    until_free(&source).await;
    let mut elsewhere = source.clone();
    elsewhere.database = "other".to_owned();
    expect(
        follow(&elsewhere).await,
        FaultKind::Halt,
        &["was not created in this database", "another database"],
    );
    source.slot = "Bad-Name".to_owned();
    expect(make_slot(&source).await, FaultKind::Halt, &["invalid character", "lower-case letters"]);
    run(&server, "SELECT pg_create_physical_replication_slot(n) FROM unnest(ARRAY['physical', 'third']) n");
    source.slot = "physical".to_owned();
    expect(follow(&source).await, FaultKind::Halt, &["physical"]);
    source.slot = "fourth".to_owned();
    expect(
        make_slot(&source).await,
        FaultKind::Halt,
        &["all replication slots are in use", "max_replication_slots"],
    );
}

#[tokio::test]
async fn a_lost_slot_and_a_wrong_wal_level_are_told() {
    let settings = Settings { max_slot_wal_keep_size: Some("1MB".to_owned()), ..Settings::default() };
    let mut server = start(&settings.with("min_wal_size", "32MB").with("max_wal_size", "32MB"));
    run(&server, &format!("{ROLES} CREATE PUBLICATION tidemill_shop; CREATE TABLE filler (v text);"));
    let source = source(&server, "reader", &["public.*"]);
    make_slot(&source).await.expect("a slot");
    for _ in 0..5 {
        run(&server, "INSERT INTO filler VALUES ('x'); SELECT pg_switch_wal()");
    }
    run(&server, "CHECKPOINT");
    let slot = facts(&source).await.slot.expect("it is still named");
    assert!(slot.is_lost(), "{slot:?}");
    expect(follow(&source).await, FaultKind::Halt, &["tidemill_shop", "copied anew"]);
    drop_slot(&control(&source).await, &source.slot).await.expect("a lost one can be dropped");
    drop_slot(&control(&source).await, &source.slot).await.expect("and need not be there");
    run(&server, "ALTER SYSTEM SET wal_level = 'replica'");
    server.restart(Stop::Fast).expect("it restarts");
    expect(
        make_slot(&source).await,
        FaultKind::Halt,
        &["wal_level", "ALTER SYSTEM SET wal_level = 'logical'"],
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_senders_and_a_stopped_server_pass() {
    let mut server: Server = start(&Settings { max_wal_senders: 1, ..Settings::default() });
    run(&server, ROLES);
    let source = source(&server, "reader", &["public.*"]);
    let first = connector(&source).replication().await.expect("the only one");
    expect(connector(&source).replication().await, FaultKind::Retry, &["max_wal_senders"]);
    drop(first);
    let control = control(&source).await;
    let mut session = connector(&source).copying().await.expect("a connection");
    let pid = session.pid();
    run(&server, &format!("SELECT pg_terminate_backend({pid})"));
    let killed = session.run("SELECT 1").await.map_err(|failure| failure.fault("ask", &source));
    expect(killed, FaultKind::Retry, &["terminating connection due to administrator command"]);
    server.stop(Stop::Fast).expect("it stops");
    let closed = control.client().batch_execute("SELECT 1").await;
    expect(
        closed.map_err(|error| control.fault("ask", error)),
        FaultKind::Retry,
        &["cannot ask: terminating connection"],
    );
    expect(
        connector(&source).control().await,
        FaultKind::Retry,
        &["onnection refused", "check that Postgres runs"],
    );
    expect(connector(&source).copying().await, FaultKind::Retry, &["onnection refused", "127.0.0.1"]);
}
