//! The transaction interface.

use crate::target::{Target, random};
use crate::wire::{self, Answer, Head};
use tidemill_sandbox::{Fault, FaultKind, Options};

/// One operation, following redirects; the answer and how many redirects there were.
async fn call(target: &Target, head: &Head, body: &str) -> (Answer, u32) {
    let (mut authority, mut head) = (target.fe.clone(), head.clone());
    for hops in 0..4 {
        let content = if hops == 0 { "" } else { body };
        let sent = if hops == 0 { head.clone().with("Content-Length", 0) } else { head.clone() };
        let answer = wire::exchange(&authority, &sent, content.as_bytes()).await.expect("an answer");
        if answer.status != 307 {
            return (answer, hops);
        }
        let location = answer.header("location").expect("a redirect").to_owned();
        authority = wire::authority(&location);
        head.path = wire::path(&location);
    }
    panic!("redirected for ever");
}

fn head(target: &Target, operation: &str, label: &str) -> Head {
    let method = if operation == "load" { "PUT" } else { "POST" };
    Head::new(method, format!("/api/transaction/{operation}"))
        .user("root", &target.password)
        .with("Expect", "100-continue")
        .with("db", &target.db)
        .with("table", "t")
        .with("label", label)
}

async fn run(target: &Target, operation: &str, label: &str) -> Answer {
    call(target, &head(target, operation, label), "").await.0
}

/// Status, and who answered: 0 the FE itself, 1 the BE that it redirected to.
async fn answered(target: &Target, operation: &str, label: &str) -> (String, u32) {
    let (answer, hops) = call(target, &head(target, operation, label), "").await;
    (answer.text("Status"), hops)
}

fn load_head(target: &Target, label: &str) -> Head {
    head(target, "load", label).with("format", "json").with("strip_outer_array", "true")
}

async fn load(target: &Target, label: &str, body: &str) -> Answer {
    call(target, &load_head(target, label), body).await.0
}

#[tokio::test]
async fn begin_load_prepare_commit() {
    // A BE knows transactions by their label alone, so each test has its own.
    let x = random();
    let x = x.as_str();
    let target = Target::any().await;
    target.table("t", "PRIMARY KEY").await;
    let (begun, hops) = call(&target, &head(&target, "begin", x), "").await;
    assert_eq!((begun.text("Status"), hops), ("OK".into(), 1), "{begun:?}");
    assert_eq!(begun.text("Label"), x);
    assert!(begun.number("TxnId") > 0);
    assert_eq!(target.state(x).await, "PREPARE");
    for body in ["[{\"id\":1},{\"id\":2}]", "[{\"id\":3}]"] {
        let (loaded, hops) = call(&target, &load_head(&target, x), body).await;
        assert_eq!((loaded.text("Status"), hops), ("OK".into(), 1), "{loaded:?}");
        assert_eq!(loaded.number("LoadBytes"), body.len() as i64);
    }
    let (prepared, hops) = call(&target, &head(&target, "prepare", x), "").await;
    assert_eq!((prepared.text("Status"), hops), ("OK".into(), 1), "{prepared:?}");
    assert_eq!(prepared.number("NumberTotalRows"), 3);
    assert_eq!(target.state(x).await, "PREPARED");
    assert_eq!(target.count("t").await, 0, "not visible yet");
    let again = target.load("t", x, "{\"id\":9}").await;
    assert_eq!(again.text("ExistingJobStatus"), "RUNNING");
    let (committed, hops) = call(&target, &head(&target, "commit", x), "").await;
    assert_eq!(
        (committed.text("Status"), hops),
        ("OK".into(), 0),
        "the FE commits what is PREPARED: {committed:?}"
    );
    target.until_count("t", 3).await;
    assert_eq!(target.state(x).await, "VISIBLE");
    let again = run(&target, "commit", x).await;
    assert_eq!(again.text("Status"), "OK");
    assert!(again.text("Message").contains(&format!("has already committed, label is {x}")), "{again:?}");
    let rollback = run(&target, "rollback", x).await;
    assert_eq!(rollback.text("Status"), "FAILED", "{rollback:?}");
}

#[tokio::test]
async fn a_commit_without_prepare_goes_to_the_be() {
    // A BE knows transactions by their label alone, so each test has its own.
    let x = random();
    let x = x.as_str();
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    run(&target, "begin", x).await;
    load(&target, x, "[{\"id\":1}]").await;
    let (committed, hops) = call(&target, &head(&target, "commit", x), "").await;
    assert_eq!((committed.text("Status"), hops), ("OK".into(), 1), "{committed:?}");
    assert_eq!(committed.number("NumberLoadedRows"), 1);
    target.until_count("t", 1).await;
}

#[tokio::test]
async fn a_rollback_frees_the_label() {
    // A BE knows transactions by their label alone, so each test has its own.
    let x = random();
    let x = x.as_str();
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    for prepare in [false, true] {
        assert_eq!(run(&target, "begin", x).await.text("Status"), "OK", "an aborted label is begun again");
        load(&target, x, "[{\"id\":1}]").await;
        if prepare {
            assert_eq!(run(&target, "prepare", x).await.text("Status"), "OK");
        }
        // The BE undoes what is open there, the FE what is PREPARED.
        let hops = if prepare { 0 } else { 1 };
        assert_eq!(answered(&target, "rollback", x).await, ("OK".into(), hops), "prepared: {prepare}");
        assert_eq!(target.state(x).await, "ABORTED");
    }
    let (again, hops) = call(&target, &head(&target, "rollback", x), "").await;
    assert_eq!((again.text("Status"), hops), ("OK".into(), 0));
    assert!(again.text("Message").contains("already aborted"), "{again:?}");
    let commit = run(&target, "commit", x).await;
    assert_eq!(commit.text("Status"), "FAILED");
    assert!(commit.text("Message").contains("Can not commit ABORTED transaction"), "{commit:?}");
    assert_eq!(target.count("t").await, 0);
}

#[tokio::test]
async fn requests_that_do_not_fit_are_told_so() {
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    let probe = Head::new("POST", "/api/transaction/begin").user("root", &target.password);
    let answer = call(&target, &probe, "").await.0;
    assert_eq!(answer.text("Status"), "FAILED");
    assert!(answer.text("Message").contains("Empty label."), "{answer:?}");
    assert_eq!(load(&target, "never-begun", "[{\"id\":1}]").await.text("Status"), "TXN_NOT_EXISTS");
    let empty = random();
    run(&target, "begin", &empty).await;
    let answer = run(&target, "prepare", &empty).await;
    assert_ne!(answer.text("Status"), "OK");
    assert!(answer.text("Message").contains("hasn't send any data yet"), "{answer:?}");
    // Whether a refused prepare undoes the transaction, and what a second begin is told then, differ by release.
    if target.is_sandbox() {
        let answer = run(&target, "begin", &empty).await;
        assert_eq!(answer.text("Status"), "LABEL_ALREADY_EXISTS", "{answer:?}");
    }
}

#[tokio::test]
async fn a_transaction_has_one_request_at_a_time() {
    let x = random();
    let x = x.as_str();
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    run(&target, "begin", x).await;
    let body = "[{\"id\":1}]";
    let first = load_head(&target, x);
    let (be, path) = target.redirect(&first).await.expect("a redirect");
    let mut connection = wire::Connection::open(&be).await.expect("the BE listens");
    connection.head(&Head { path, ..first }.with("Content-Length", body.len())).await.expect("written");
    assert_eq!(connection.answer().await.expect("an interim answer").status, 100);
    let second = load(&target, x, "[{\"id\":2}]").await;
    assert_eq!(second.text("Status"), "TXN_IN_PROCESSING", "{second:?}");
    connection.body(body.as_bytes()).await.expect("written");
    assert_eq!(connection.answer().await.expect("an answer").text("Status"), "OK");
    // Nothing of the second one was taken, and it may be sent again.
    assert_eq!(load(&target, x, "[{\"id\":3}]").await.text("Status"), "OK");
    assert_eq!(run(&target, "prepare", x).await.number("NumberTotalRows"), 2);
    assert_eq!(run(&target, "commit", x).await.text("Status"), "OK");
    target.until_count("t", 2).await;
}

#[tokio::test]
async fn a_body_that_fails_undoes_the_transaction() {
    // A BE knows transactions by their label alone, so each test has its own.
    let x = random();
    let x = x.as_str();
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    run(&target, "begin", x).await;
    load(&target, x, "[{\"id\":1}]").await;
    assert_ne!(load(&target, x, "[{\"id\":").await.text("Status"), "OK");
    target.until_state(x, "ABORTED").await;
    assert_eq!(target.count("t").await, 0);
}

#[tokio::test]
async fn the_be_checks_the_password_too() {
    let label = random();
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    let right = head(&target, "begin", &label).without("Expect");
    let (be, path) = target.redirect(&right).await.expect("a redirect");
    let head = Head { path, ..right };
    for (wrong, told) in [
        (head.clone().without("Authorization"), "no valid Basic authorization"),
        (head.user("root", "no such password"), "Access denied"),
    ] {
        let answer = wire::exchange(&be, &wrong, b"").await.expect("an answer");
        assert_eq!(answer.status, 200);
        assert_ne!(answer.text("Status"), "OK");
        assert!(answer.text("Message").contains(told), "{answer:?}");
    }
    assert_eq!(target.state(&label).await, "UNKNOWN", "nothing was begun");
}

/// A sandbox has one FE: redirected once to itself, it is follower first and leader then.
#[tokio::test]
async fn a_follower_sends_to_the_leader_and_that_to_the_be() {
    let label = random();
    let Some(target) = Target::sandbox(Options::default()).await else { return };
    target.table("t", "DUPLICATE KEY").await;
    let follows = || target.own().set_fault(Fault::times(FaultKind::RedirectLoop, 1));
    follows();
    let begin = head(&target, "begin", &label);
    let first = wire::exchange(&target.fe, &begin, b"").await.expect("an answer");
    assert_eq!(first.status, 307);
    assert_eq!(wire::authority(first.header("location").expect("a redirect")), target.fe);
    // The leader wants to know too who asks.
    let bare = begin.clone().without("Authorization");
    assert_eq!(wire::exchange(&target.fe, &bare, b"").await.expect("an answer").status, 401);
    follows();
    assert_eq!(answered(&target, "begin", &label).await, ("OK".into(), 2));
    follows();
    let (loaded, hops) = call(&target, &load_head(&target, &label), "[{\"id\":1}]").await;
    assert_eq!((loaded.text("Status"), hops), ("OK".into(), 2), "{loaded:?}");
    follows();
    assert_eq!(answered(&target, "prepare", &label).await, ("OK".into(), 2));
    assert_eq!(answered(&target, "commit", &label).await, ("OK".into(), 0));
    target.until_count("t", 1).await;
}

#[tokio::test]
async fn a_prepared_transaction_has_a_time_limit() {
    // A BE knows transactions by their label alone, so each test has its own.
    let x = random();
    let x = x.as_str();
    let Some(target) = Target::sandbox(Options::default()).await else { return };
    target.table("t", "DUPLICATE KEY").await;
    run(&target, "begin", x).await;
    load(&target, x, "[{\"id\":1}]").await;
    let prepare = head(&target, "prepare", x).with("prepared_timeout", 1);
    assert_eq!(call(&target, &prepare, "").await.0.text("Status"), "OK");
    target.until_state(x, "ABORTED").await;
    let reason = target.state_answer(x).await.expect("an answer").text("reason");
    assert_eq!(reason, "transaction is aborted by timeout.");
    assert_eq!(run(&target, "commit", x).await.text("Status"), "FAILED");
    assert_eq!(target.count("t").await, 0);
}
