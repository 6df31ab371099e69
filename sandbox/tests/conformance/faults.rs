//! Each fault does what its name says, and the rows are where the fault leaves them.

use crate::target::{Target, until};
use crate::wire::{self, Connection, Head};
use std::io;
use std::time::{Duration, Instant};
use tidemill_sandbox::{AnswerFault, ClientFate, ExistingLabel, Fault, FaultKind, Hop, LabelForm, Options};

const ROW: &str = "{\"id\":1}";

async fn with(kind: FaultKind) -> Option<Target> {
    let target = Target::sandbox(Options::default()).await?;
    target.table("t", "DUPLICATE KEY").await;
    target.own().set_fault(Fault::times(kind, 1));
    Some(target)
}

fn fired(target: &Target) -> u64 {
    target.own().faults().iter().map(|report| report.fired).sum()
}

#[tokio::test]
async fn a_load_commits_after_its_client_is_gone() {
    let kind = FaultKind::LateCommit { delay_ms: 5_000, client: ClientFate::Dropped };
    let Some(target) = with(kind).await else { return };
    let sent = target.send(&target.load_head("t", "late"), ROW).await;
    assert!(sent.is_err(), "{sent:?}");
    assert_eq!(target.state("late").await, "PREPARE");
    assert_eq!(target.count("t").await, 0);
    target.until_state("late", "VISIBLE").await;
    assert_eq!(target.count("t").await, 1);
}

#[tokio::test]
async fn a_load_commits_although_its_client_stopped_waiting() {
    let kind = FaultKind::LateCommit { delay_ms: 5_000, client: ClientFate::KeptWaiting };
    let Some(target) = with(kind).await else { return };
    let mut connection = target.begun("t", "left", ROW).await;
    connection.body(ROW.as_bytes()).await.expect("written");
    until("the body has arrived", || async { fired(&target) == 1 }).await;
    drop(connection);
    assert_eq!(target.state("left").await, "PREPARE");
    target.until_state("left", "VISIBLE").await;
    assert_eq!(target.count("t").await, 1);
}

#[tokio::test]
async fn a_load_of_a_dead_client_can_be_cancelled_until_it_commits() {
    let kind = FaultKind::LateCommit { delay_ms: 5_000, client: ClientFate::Dropped };
    let Some(target) = with(kind).await else { return };
    let sent = target.send(&target.load_head("t", "orphan"), ROW).await;
    assert!(sent.is_err(), "{sent:?}");
    assert_eq!(target.state("orphan").await, "PREPARE");
    // Its label is taken meanwhile, as a successor sees it.
    let again = target.load("t", "orphan", ROW).await;
    assert_eq!(again.text("ExistingJobStatus"), "RUNNING", "{again:?}");
    let cancel = Head::new("POST", format!("/api/{}/t/_cancel?label=orphan", target.db)).user("root", "");
    assert_eq!(wire::exchange(&target.fe, &cancel, b"").await.expect("an answer").text("status"), "OK");
    assert_eq!(target.state("orphan").await, "ABORTED");
    // The label is free, and the cancelled load does not commit when its time comes.
    assert_eq!(target.load("t", "orphan", "{\"id\":2}").await.text("Status"), "Success");
    tokio::time::sleep_until((Instant::now() + Duration::from_millis(5_100)).into()).await;
    assert_eq!(target.rows("SELECT id FROM t").await, ["2"]);
}

#[tokio::test]
async fn a_request_begins_long_after_it_was_sent() {
    let kind = FaultKind::LateBegin { delay_ms: 5_000 };
    let Some(target) = with(kind).await else { return };
    let head = target.load_head("t", "zombie").with("Content-Length", ROW.len());
    let (be, path) = target.redirect(&head.clone().without("Content-Length")).await.expect("a redirect");
    let mut connection = Connection::open(&be).await.expect("the BE listens");
    connection.head(&Head { path, ..head }).await.expect("written");
    assert_eq!(target.state("zombie").await, "UNKNOWN", "it has not begun yet");
    assert_eq!(connection.answer().await.expect("an interim answer").status, 100);
    assert_eq!(target.state("zombie").await, "PREPARE");
}

#[tokio::test]
async fn answers_are_lost_and_spoiled_with_and_without_a_commit() {
    let Some(target) = Target::sandbox(Options::default()).await else { return };
    target.table("t", "DUPLICATE KEY").await;
    let mut rows = 0;
    let all = [
        AnswerFault::Dropped,
        AnswerFault::Truncated,
        AnswerFault::Empty,
        AnswerFault::Http500,
        AnswerFault::Http502,
    ];
    for (number, how) in all.into_iter().enumerate() {
        for committed in [false, true] {
            let label = format!("lost-{number}-{committed}");
            target
                .own()
                .set_fault(Fault::times(FaultKind::AnswerLost { at: Hop::Backend, how, committed }, 1));
            let answer = target.send(&target.load_head("t", &label), ROW).await;
            match (how, &answer) {
                (AnswerFault::Dropped | AnswerFault::Truncated, Err(error)) => {
                    assert!(matches!(
                        error.kind(),
                        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
                    ));
                }
                (AnswerFault::Empty, Ok(answer)) => {
                    assert_eq!((answer.status, answer.body.as_str()), (200, ""))
                }
                (AnswerFault::Http500, Ok(answer)) => assert_eq!(answer.status, 500),
                (AnswerFault::Http502, Ok(answer)) => {
                    assert_eq!(answer.status, 502);
                    assert!(answer.body.starts_with("<html>"));
                }
                other => panic!("{other:?}"),
            }
            rows += u64::from(committed);
            target.until_state(&label, if committed { "VISIBLE" } else { "ABORTED" }).await;
            assert_eq!(target.count("t").await, rows, "{how:?} {committed}");
        }
    }
}

#[tokio::test]
async fn the_state_of_a_label_may_be_hard_to_learn() {
    let kind = FaultKind::AnswerLost { at: Hop::State, how: AnswerFault::Http500, committed: false };
    let Some(target) = with(kind).await else { return };
    target.load("t", "a", ROW).await;
    assert_eq!(target.state_answer("a").await.expect("an answer").status, 500);
    assert_eq!(target.state("a").await, "VISIBLE");
}

#[tokio::test]
async fn the_be_hangs_up_in_the_middle_of_a_body() {
    let Some(target) = with(FaultKind::DropMidBody { after_bytes: 4 }).await else { return };
    let mut connection = target.begun("t", "cut", ROW).await;
    connection.body(&ROW.as_bytes()[..4]).await.expect("written");
    assert!(connection.is_closed().await);
    target.until_state("cut", "ABORTED").await;
    assert_eq!(target.load("t", "cut", ROW).await.text("Status"), "Success");
}

#[tokio::test]
async fn a_publish_timeout_shows_its_rows_later() {
    let Some(target) = with(FaultKind::PublishTimeout { visible_after_ms: 5_000 }).await else { return };
    let answer = target.load("t", "a", ROW).await;
    assert_eq!(answer.text("Status"), "Publish Timeout");
    assert_eq!(answer.text("Message"), "transaction commit successfully, BUT data will be visible later");
    assert_eq!(target.state("a").await, "COMMITTED");
    assert_eq!(target.count("t").await, 0);
    let second = target.load("t", "a", ROW).await;
    assert_eq!(second.text("ExistingJobStatus"), "FINISHED");
    // The next load waits for its turn, so its rows never show before the first one's.
    assert_eq!(target.load("t", "b", "{\"id\":2}").await.text("Status"), "Success");
    assert_eq!(target.state("a").await, "VISIBLE");
    assert_eq!(target.count("t").await, 2);
}

#[tokio::test]
async fn a_commit_of_unknown_outcome() {
    for committed in [true, false] {
        let Some(target) = with(FaultKind::CommitUnknown { committed }).await else { return };
        let answer = target.load("t", "a", ROW).await;
        assert_eq!(answer.text("Status"), "Fail");
        assert!(answer.text("Message").starts_with("Commit transaction fail cause"), "{answer:?}");
        assert!(
            answer.text("Message").contains("Transaction status unknown, you can retry with same label.")
        );
        assert_eq!(target.state("a").await, if committed { "VISIBLE" } else { "ABORTED" });
        assert_eq!(target.count("t").await, u64::from(committed));
    }
}

#[tokio::test]
async fn redirects_go_astray() {
    let authority = "10.255.255.1:8040".to_owned();
    let Some(target) = with(FaultKind::RedirectTo { authority: authority.clone() }).await else { return };
    let head = target.load_head("t", "a");
    assert_eq!(target.redirect(&head).await.expect("a redirect").0, authority);
    target.own().set_fault(Fault::times(FaultKind::RedirectLoop, 1));
    assert_eq!(target.redirect(&head).await.expect("a redirect").0, target.fe);
    target.own().set_fault(Fault::times(FaultKind::SlowRedirect { delay_ms: 150 }, 1));
    let started = Instant::now();
    target.redirect(&head).await.expect("a redirect");
    assert!(started.elapsed() >= Duration::from_millis(150));
    target.own().set_fault(Fault::times(FaultKind::NoBackend, 1));
    let answer = wire::exchange(&target.fe, &head, b"").await.expect("an answer");
    assert!(answer.text("Message").ends_with("No backend alive."), "{answer:?}");
    target.own().set_fault(Fault::times(FaultKind::AccessDenied { at: Hop::Frontend }, 1));
    let answer = wire::exchange(&target.fe, &head, b"").await.expect("an answer");
    assert_eq!(answer.status, 401);
    assert!(answer.text("msg").contains("Access denied"), "{answer:?}");
}

#[tokio::test]
async fn a_be_can_be_registered_as_local() {
    let Some(target) = Target::sandbox(Options::default()).await else { return };
    target.table("t", "DUPLICATE KEY").await;
    let head = target.load_head("t", "a");
    for authority in ["127.0.0.1:8041", "localhost:8041"] {
        let kind = FaultKind::RedirectTo { authority: authority.to_owned() };
        target.own().set_fault(Fault::times(kind, 1));
        // The FE names the BE as it knows it; what to make of that is the client's affair.
        let (named, path) = target.redirect(&head).await.expect("a redirect");
        assert_eq!((named.as_str(), path), (authority, head.path.clone()));
    }
    assert_eq!(target.load("t", "a", ROW).await.text("Status"), "Success", "the faults are spent");
}

#[tokio::test]
async fn three_redirects_lead_to_the_be_and_a_circle_leads_nowhere() {
    let Some(target) = Target::sandbox(Options::default()).await else { return };
    target.table("t", "DUPLICATE KEY").await;
    let (fe, be) = (target.fe.clone(), wire::authority(&target.own().be_url()));
    let head = target.load_head("t", "far");
    target.own().set_fault(Fault::times(FaultKind::RedirectLoop, 2));
    assert_eq!(target.redirects(&head, 3).await.expect("redirects"), [fe.clone(), fe.clone(), be.clone()]);
    let answer = wire::exchange(&be, &head, ROW.as_bytes()).await.expect("an answer");
    assert_eq!(answer.text("Status"), "Success", "{answer:?}");
    let circle = target.own().set_fault(Fault::always(FaultKind::RedirectLoop));
    let head = target.load_head("t", "round");
    assert_eq!(
        target.redirects(&head, 4).await.expect("redirects"),
        [fe.clone(), fe.clone(), fe.clone(), fe]
    );
    assert_eq!(target.state("round").await, "UNKNOWN", "a client that gives up has begun nothing");
    target.own().clear_fault(circle);
    assert_eq!(target.redirects(&head, 3).await.expect("redirects"), [be]);
    assert_eq!(target.count("t").await, 1);
}

#[tokio::test]
async fn the_be_is_down() {
    let Some(target) = with(FaultKind::BackendResets).await else { return };
    let head = target.load_head("t", "a");
    let error = target.send(&head, ROW).await.expect_err("reset");
    assert!(matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof), "{error}");
    let (be, _) = target.redirect(&head).await.expect("a redirect");
    let id = target.own().set_fault(Fault::always(FaultKind::BackendRefuses));
    until("the port is closed", || async {
        let refused = Connection::open(&be).await.err();
        refused.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    })
    .await;
    assert!(target.rows("SHOW BACKENDS").await[0].contains("false"));
    target.own().clear_fault(id);
    until("the port is open", || async { Connection::open(&be).await.is_ok() }).await;
    assert_eq!(target.load("t", "a", ROW).await.text("Status"), "Success");
}

#[tokio::test]
async fn the_continue_is_withheld() {
    let Some(target) = with(FaultKind::ContinueWithheld { delay_ms: 150 }).await else { return };
    let started = Instant::now();
    let answer = target.load("t", "a", ROW).await;
    assert!(started.elapsed() >= Duration::from_millis(150));
    assert_eq!((answer.text("Status"), answer.continued), ("Success".into(), true));
}

#[tokio::test]
async fn a_label_is_forgotten() {
    let Some(target) = with(FaultKind::LabelForgotten).await else { return };
    target.load("t", "a", ROW).await;
    assert_eq!(target.state("a").await, "UNKNOWN");
    assert_eq!(target.load("t", "a", ROW).await.text("Status"), "Success");
    assert_eq!(target.count("t").await, 2, "loaded twice");
}

#[tokio::test]
async fn refusals_on_demand() {
    let Some(target) = Target::sandbox(Options::default()).await else { return };
    target.table("t", "DUPLICATE KEY").await;
    let check = async |kind: FaultKind, status: &str, message: &str| {
        target.own().set_fault(Fault::times(kind.clone(), 1));
        let answer = target.load("t", "a", ROW).await;
        assert_eq!(answer.text("Status"), status, "{kind:?}");
        assert!(answer.text("Message").contains(message), "{kind:?}: {answer:?}");
        let unread = answer.header("connection") == Some("close");
        assert_eq!(unread, !answer.continued, "a connection with an unread body cannot be used again");
        assert_eq!(target.count("t").await, 0);
    };
    check(FaultKind::TooManyVersions, "Fail", "because of too many versions, current/limit: 1001/1000").await;
    check(FaultKind::RunningTxnLimit, "Fail", "is 1000, larger than limit 1000").await;
    check(FaultKind::ShuttingDown, "Fail", "Service is shutting down, please retry later!").await;
    check(FaultKind::AccessDenied { at: Hop::Backend }, "Fail", "Access denied").await;
    check(FaultKind::MemoryLimit, "Fail", "Memory of process exceed limit. ").await;
    check(FaultKind::MemoryLimit, "Fail", "Mem usage has exceed the limit of BE").await;
    check(FaultKind::LoadFails { message: "as told".to_owned() }, "Fail", "as told").await;
    let exists = |existing, form| FaultKind::LabelExists { existing, form };
    let used = "Label [a] has already been used.";
    check(exists(ExistingLabel::Finished, LabelForm::Status), "Label Already Exists", used).await;
    check(exists(ExistingLabel::Running, LabelForm::Status), "Label Already Exists", used).await;
    check(exists(ExistingLabel::Finished, LabelForm::Fail), "Fail", used).await;
    assert_eq!(target.load("t", "a", ROW).await.text("Status"), "Success");
}

#[tokio::test]
async fn an_answer_may_come_as_late_as_the_timeout() {
    const SLOW_MS: u64 = 3000;
    let kind = FaultKind::SlowLoad { delay_ms: SLOW_MS };
    let Some(target) = with(kind.clone()).await else { return };
    let started = Instant::now();
    let answer = target.send(&target.load_head("t", "slow").with("timeout", 10), ROW).await;
    let answer = answer.expect("an answer");
    assert!(started.elapsed() >= Duration::from_millis(SLOW_MS));
    assert_eq!(answer.text("Status"), "Success", "who waits less than the timeout never hears of it");
    assert!(answer.number("LoadTimeMs") >= SLOW_MS as i64, "by the BE's clock too: {answer:?}");
    // Behind the timeout nothing is loaded any more: the label is decided, and nobody need wait longer.
    target.own().set_fault(Fault::times(kind, 1));
    let late = target.load_head("t", "late").with("timeout", 1);
    let (answer, ()) = tokio::join!(target.send(&late, ROW), target.until_state("late", "ABORTED"));
    let answer = answer.expect("an answer");
    assert_eq!(answer.text("Status"), "Fail", "{answer:?}");
    assert_eq!(target.state("late").await, "ABORTED");
    assert_eq!(target.count("t").await, 1);
}

#[tokio::test]
async fn a_slow_load_and_a_busy_transaction() {
    let Some(target) = with(FaultKind::SlowLoad { delay_ms: 150 }).await else { return };
    let started = Instant::now();
    assert_eq!(target.load("t", "a", ROW).await.text("Status"), "Success");
    assert!(started.elapsed() >= Duration::from_millis(150));
    let operation = |name: &str| {
        Head::new("POST", format!("/api/transaction/{name}"))
            .user("root", "")
            .with("db", &target.db)
            .with("table", "t")
            .with("label", "x")
    };
    let be = wire::authority(&target.own().be_url());
    wire::exchange(&be, &operation("begin"), b"").await.expect("an answer");
    target.own().set_fault(Fault::times(FaultKind::TxnInProcessing, 1));
    let load = Head { method: "PUT", ..operation("load") }.with("format", "json");
    let answer = wire::exchange(&be, &load, ROW.as_bytes()).await.expect("an answer");
    assert_eq!(answer.text("Status"), "TXN_IN_PROCESSING");
    let answer = wire::exchange(&be, &load, ROW.as_bytes()).await.expect("an answer");
    assert_eq!(answer.text("Status"), "OK");
}

#[tokio::test]
async fn faults_are_set_over_http() {
    let Some(target) = Target::sandbox(Options::default()).await else { return };
    target.table("t", "DUPLICATE KEY").await;
    let call = async |method: &'static str, path: &str, body: &str| {
        wire::exchange(&target.fe, &Head::new(method, path), body.as_bytes()).await.expect("an answer")
    };
    let body = "{\"fault\":\"load_fails\",\"message\":\"no\",\"table\":\"t\",\"times\":1}";
    let id = call("POST", "/sandbox/faults", body).await.number("id");
    assert_eq!(target.load("t", "a", ROW).await.text("Message"), "no");
    assert_eq!(target.load("t", "a", ROW).await.text("Status"), "Success");
    let listed = call("GET", "/sandbox/faults", "").await.json();
    assert_eq!(listed[0]["fault"], "load_fails");
    assert_eq!((&listed[0]["fired"], &listed[0]["times"]), (&1.into(), &0.into()));
    assert_eq!(call("DELETE", &format!("/sandbox/faults/{id}"), "").await.status, 200);
    assert_eq!(call("GET", "/sandbox/faults", "").await.json(), serde_json::json!([]));
    let wrong = call("POST", "/sandbox/faults", "{\"fault\":\"lood_fails\"}").await;
    assert_eq!(wrong.status, 400);
    assert!(wrong.text("error").contains("lood_fails"), "{wrong:?}");
}

#[tokio::test]
async fn a_transaction_commits_after_its_client_is_gone() {
    for prepares in [true, false] {
        let Some(target) = Target::sandbox(Options::default()).await else { return };
        target.table("t", "DUPLICATE KEY").await;
        let be = wire::authority(&target.own().be_url());
        let operation = |name: &str| {
            Head::new("POST", format!("/api/transaction/{name}"))
                .user("root", "")
                .with("db", &target.db)
                .with("table", "t")
                .with("label", "x")
                .with("format", "json")
        };
        for (name, body) in [("begin", ""), ("load", ROW), ("prepare", "")] {
            if name != "prepare" || prepares {
                let answer = wire::exchange(&be, &operation(name), body.as_bytes()).await.expect("an answer");
                assert_eq!(answer.text("Status"), "OK", "{answer:?}");
            }
        }
        let kind = FaultKind::LateCommit { delay_ms: 5_000, client: ClientFate::Dropped };
        target.own().set_fault(Fault::times(kind, 1));
        let to = if prepares { &target.fe } else { &be };
        assert!(wire::exchange(to, &operation("commit"), b"").await.is_err());
        assert_eq!(target.state("x").await, if prepares { "PREPARED" } else { "PREPARE" });
        target.until_state("x", "VISIBLE").await;
        assert_eq!(target.count("t").await, 1);
    }
}

#[tokio::test]
async fn a_new_leader_knows_labels_and_no_open_transactions() {
    let Some(target) = Target::sandbox(Options::default()).await else { return };
    target.table("t", "DUPLICATE KEY").await;
    let operation = |name: &str, label: &str| {
        let method = if name == "load" { "PUT" } else { "POST" };
        Head::new(method, format!("/api/transaction/{name}"))
            .user("root", "")
            .with("db", &target.db)
            .with("table", "t")
            .with("label", label)
            .with("format", "json")
    };
    assert_eq!(target.load("t", "done", ROW).await.text("Status"), "Success");
    let be = wire::authority(&target.own().be_url());
    for (name, label, body) in
        [("begin", "open", ""), ("begin", "ready", ""), ("load", "ready", ROW), ("prepare", "ready", "")]
    {
        let answer = wire::exchange(&be, &operation(name, label), body.as_bytes()).await.expect("an answer");
        assert_eq!(answer.text("Status"), "OK", "{answer:?}");
    }
    target.own().set_fault(Fault::times(FaultKind::LeaderChanged, 1));
    let lost = wire::exchange(&target.fe, &operation("load", "open"), b"").await.expect("an answer");
    assert_eq!(lost.text("Status"), "FAILED");
    assert!(lost.text("Message").contains("FE leader is started or switched"), "{lost:?}");
    let load = operation("load", "open");
    let gone = wire::exchange(&be, &load, ROW.as_bytes()).await.expect("an answer");
    assert_eq!(gone.text("Status"), "TXN_NOT_EXISTS");
    for (label, state) in [("open", "PREPARE"), ("ready", "PREPARED"), ("done", "VISIBLE")] {
        assert_eq!(target.state(label).await, state, "{label}");
    }
    let again = target.load("t", "done", ROW).await;
    assert_eq!(again.text("ExistingJobStatus"), "FINISHED", "the new leader knows it as used: {again:?}");
    let commit = wire::exchange(&target.fe, &operation("commit", "ready"), b"").await.expect("an answer");
    assert_eq!(commit.text("Status"), "OK", "what is prepared is not concerned: {commit:?}");
    assert_eq!(target.count("t").await, 2);
}

#[tokio::test]
async fn a_follower_lags_until_a_session_says_sync() {
    let Some(target) = Target::sandbox(Options::default()).await else { return };
    target.table("t", "PRIMARY KEY").await;
    target.load("t", "a", ROW).await;
    let lags = target.own().set_fault(Fault::always(FaultKind::FollowerLags { sync: true }).on("t"));
    target.load("t", "b", "{\"id\":2}").await;
    assert_eq!(target.count("t").await, 1, "it has not heard of the second load");
    let sql = format!("SELECT count(*) FROM {}.t", target.db);
    let at_the_leader = target.own().execute(&sql).expect("a query");
    assert_eq!(at_the_leader[0][0].as_deref(), Some("2"));
    target.sql("SYNC").await;
    assert_eq!(target.count("t").await, 2);
    target.load("t", "c", "{\"id\":3}").await;
    assert_eq!(target.count("t").await, 2, "SYNC is about what was there");
    target.sql("DELETE FROM t WHERE id = 2").await;
    assert_eq!(target.count("t").await, 2, "a session reads what it wrote: the first row and the third");
    target.own().clear_fault(lags);
    target.load("t", "d", "{\"id\":4}").await;
    assert_eq!(target.count("t").await, 3);
    target.own().set_fault(Fault::always(FaultKind::FollowerLags { sync: false }));
    target.load("t", "e", "{\"id\":5}").await;
    assert_eq!(target.error("SYNC").await.code, 1064);
    assert_eq!(target.count("t").await, 3);
}

#[tokio::test]
async fn a_truncate_may_take_effect_late() {
    let Some(target) = Target::sandbox(Options::default()).await else { return };
    target.table("t", "PRIMARY KEY").await;
    target.own().set_fault(Fault::times(FaultKind::SlowTruncate { delay_ms: 300 }, 1).on("t"));
    let began = Instant::now();
    target.sql("TRUNCATE TABLE t").await;
    assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
}
