//! Attempts against a server that does, byte by byte, what a script says.

use super::*;
use crate::clock;
use crate::delivery::decision::{Decision, Extent, Terms};
use crate::fault::FaultKind;
use crate::sink::starrocks::scripted::{
    Nobody, Scripted, Step, answering, cluster, json, load, redirect, response,
};
use crate::sink::starrocks::two_phase::{self, FirstPhase};

const CONTINUE: &str = "HTTP/1.1 100 Continue\r\n\r\n";
const SUCCESS: &str =
    r#"{"TxnId":5,"Status":"Success","Message":"OK","NumberTotalRows":3,"NumberLoadedRows":3}"#;

/// A client that holds a body back for as long as any test takes: what its server does meanwhile is not told apart by
/// how busy the machine is.
fn client(urls: &[&str]) -> Client {
    Client::holding(Arc::new(cluster(urls)), Duration::from_secs(3600)).expect("a client")
}

/// A client as pipelines have it.
fn usual_client(urls: &[&str]) -> Client {
    Client::new(Arc::new(cluster(urls))).expect("a client")
}

fn test_load() -> Load {
    load(cluster(&["http://127.0.0.1:1"]))
}

fn be_url(be: &Scripted) -> String {
    format!("{}/api/shop/orders/_stream_load", be.url)
}

/// Takes the body only after a while, then says `answer`.
fn patient_be(answer: String) -> Vec<Step> {
    vec![Step::Head, Step::Silence, Step::Say(CONTINUE.into()), Step::Body, Step::Say(answer)]
}

#[tokio::test]
async fn the_body_goes_to_the_be_and_waits_for_its_100() {
    let be = Scripted::start(vec![patient_be(json(SUCCESS))]).await;
    let fe = Scripted::start(vec![answering(redirect(&be_url(&be)))]).await;
    let mut load = test_load();
    let outcome = client(&[&fe.url]).attempt(&mut load).await;
    assert!(matches!(&outcome, Outcome::Durable(receipt) if receipt.txn == Some(5)), "{outcome:?}");
    assert!(load.body_sent);
    let asked_fe = fe.finish().await;
    let asked_be = be.finish().await;
    assert!(
        asked_fe[0].head.starts_with("PUT /api/shop/orders/_stream_load HTTP/1.1\r\n"),
        "{:?}",
        asked_fe[0]
    );
    assert_eq!(asked_fe[0].header("content-length"), Some("0"));
    assert_eq!(asked_be[0].body, load.segments.concat());
    for asked in [&asked_fe[0], &asked_be[0]] {
        assert_eq!(asked.header("authorization"), Some("Basic cm9vdDpjYW5hcnk="));
        assert_eq!(asked.header("expect"), Some("100-continue"));
        assert_eq!(asked.header("label"), Some("orders-0-7"));
        assert_eq!(asked.header("format"), Some("json"));
        assert_eq!(asked.header("strict_mode"), Some("true"));
        assert_eq!(asked.header("max_filter_ratio"), Some("0"));
        assert_eq!(asked.header("timeout"), Some("600"));
    }
    assert_eq!(asked_be[0].header("content-length"), Some(load.bytes.to_string().as_str()));
}

#[tokio::test]
async fn a_server_that_never_says_100_gets_the_body_after_a_second() {
    let be =
        Scripted::start(vec![vec![Step::Head, Step::Silence, Step::Body, Step::Say(json(SUCCESS))]]).await;
    let fe = Scripted::start(vec![answering(redirect(&be_url(&be)))]).await;
    let mut load = test_load();
    let outcome = usual_client(&[&fe.url]).attempt(&mut load).await;
    assert!(matches!(outcome, Outcome::Durable(_)), "{outcome:?}");
    assert_eq!(be.finish().await[0].body, load.segments.concat());
}

#[tokio::test]
async fn an_early_refusal_is_understood_and_the_body_stays_here() {
    let early = json(
        r#"{"Status":"Fail","Message":"Too many versions. tablet_id: 1, version_count: 1001, limit: 1000"}"#,
    );
    let be = Scripted::start(vec![vec![Step::Head, Step::Say(early), Step::Hang]]).await;
    let fe = Scripted::start(vec![answering(redirect(&be_url(&be)))]).await;
    let mut load = test_load();
    let client = client(&[&fe.url]);
    let outcome = client.attempt(&mut load).await;
    assert!(matches!(outcome, Outcome::Overloaded(..)), "{outcome:?}");
    assert!(!load.body_sent);
    assert!(be.finish().await[0].body.is_empty(), "the connection closed without a byte of the body");
}

#[tokio::test]
async fn an_answer_lost_after_the_body_leaves_the_outcome_open() {
    let be = Scripted::start(vec![vec![Step::Head, Step::Say(CONTINUE.into()), Step::Body]]).await;
    let fe = Scripted::start(vec![answering(redirect(&be_url(&be)))]).await;
    let mut load = test_load();
    let outcome = client(&[&fe.url]).attempt(&mut load).await;
    assert!(matches!(outcome, Outcome::Unsure(_)), "{outcome:?}");
    assert!(load.body_sent);
}

#[tokio::test]
async fn a_begin_refused_for_its_label_does_not_count_as_a_body_sent() {
    let refused = r#"{"Status":"Label Already Exists","ExistingJobStatus":"RUNNING","Message":"used"}"#;
    let be = Scripted::start(vec![vec![Step::Head, Step::Body, Step::Say(json(refused))]]).await;
    let fe = Scripted::start(vec![answering(redirect(&be_url(&be)))]).await;
    let mut load = test_load();
    let outcome = usual_client(&[&fe.url]).attempt(&mut load).await;
    assert!(matches!(outcome, Outcome::Unsure(_)), "{outcome:?}");
    assert!(!load.body_sent, "the label belongs to another transaction");
}

#[tokio::test]
async fn a_dropped_attempt_still_knows_that_the_body_left() {
    let be =
        Scripted::start(vec![vec![Step::Head, Step::Say(CONTINUE.into()), Step::Body, Step::Hang]]).await;
    let fe = Scripted::start(vec![answering(redirect(&be_url(&be)))]).await;
    let mut load = test_load();
    let client = client(&[&fe.url]);
    tokio::select! {
        outcome = client.attempt(&mut load) => panic!("the server never answers, and yet: {outcome:?}"),
        () = be.has_body() => {}
    }
    assert!(load.body_sent);
    // The connection closed with the attempt, or the server would hang for ever.
    be.finish().await;
}

#[tokio::test]
async fn a_connection_is_used_again_and_a_stale_one_replaced() {
    let turn = || [Step::Head, Step::Say(CONTINUE.into()), Step::Body, Step::Say(json(SUCCESS))];
    let be = Scripted::start(vec![[turn(), turn()].concat(), turn().to_vec()]).await;
    let to_be = || answering(redirect(&be_url(&be)));
    let fe = Scripted::start(vec![to_be(), to_be(), to_be()]).await;
    let client = client(&[&fe.url]);
    for _ in 0..3 {
        let mut load = test_load();
        let outcome = client.attempt(&mut load).await;
        assert!(matches!(outcome, Outcome::Durable(_)), "{outcome:?}");
    }
    assert_eq!(be.finish().await.len(), 3, "three loads over two connections");
}

#[tokio::test]
async fn the_leader_hop_is_followed_without_a_body() {
    let be = Scripted::start(vec![patient_be(json(SUCCESS))]).await;
    let leader = Scripted::start(vec![answering(redirect(&be_url(&be)))]).await;
    let follower =
        Scripted::start(vec![answering(redirect(&format!("{}/api/shop/orders/_stream_load", leader.url)))])
            .await;
    let mut load = test_load();
    let outcome = client(&[&follower.url, &leader.url]).attempt(&mut load).await;
    assert!(matches!(outcome, Outcome::Durable(_)), "{outcome:?}");
    assert_eq!(leader.finish().await[0].header("content-length"), Some("0"));
}

#[tokio::test]
async fn an_unlisted_leader_redirects_before_it_gets_the_body() {
    let be = Scripted::start(vec![patient_be(json(SUCCESS))]).await;
    let leader = Scripted::start(vec![vec![Step::Head, Step::Say(redirect(&be_url(&be)))]]).await;
    let follower =
        Scripted::start(vec![answering(redirect(&format!("{}/api/shop/orders/_stream_load", leader.url)))])
            .await;
    let mut load = test_load();
    let outcome = client(&[&follower.url]).attempt(&mut load).await;
    assert!(matches!(outcome, Outcome::Durable(_)), "{outcome:?}");
    assert!(leader.finish().await[0].body.is_empty());
}

#[tokio::test]
async fn redirects_in_circles_end() {
    let circle = || answering(redirect("/api/shop/orders/_stream_load"));
    let fe = Scripted::start(vec![circle(), circle(), circle(), circle()]).await;
    let outcome = client(&[&fe.url]).attempt(&mut test_load()).await;
    assert!(matches!(&outcome, Outcome::Refused(fault) if fault.what.contains("circles")), "{outcome:?}");
    assert_eq!(fe.finish().await.len(), 1 + REDIRECTS_MAX);
}

#[tokio::test]
async fn a_host_that_is_not_on_the_list_gets_nothing() {
    let fe = Scripted::start(vec![answering(redirect("http://evil.invalid:8040/x"))]).await;
    let mut strict = cluster(&[&fe.url]);
    strict.redirect_hosts = vec!["be1".into()];
    let client = Client::new(Arc::new(strict)).expect("a client");
    let outcome = client.attempt(&mut test_load()).await;
    let Outcome::Refused(fault) = outcome else { panic!("{outcome:?}") };
    assert_eq!(fault.kind, FaultKind::Halt);
}

#[tokio::test]
async fn an_answer_that_quotes_the_request_is_not_quoted_with_its_credentials() {
    // `root:canary` in base64, as it was sent.
    let quoting = json(
        r#"{"Status":"Fail","Message":"bad request: authorization: Basic cm9vdDpjYW5hcnk=, Basic cm9vdDpjYW5hcnk=."}"#,
    );
    let fe = Scripted::start(vec![answering(quoting)]).await;
    let Outcome::Refused(fault) = client(&[&fe.url]).attempt(&mut test_load()).await else {
        panic!("refused")
    };
    assert!(fault.what.ends_with("authorization: Basic <redacted>, Basic <redacted>."), "{}", fault.what);
}

#[tokio::test]
async fn a_foreign_host_gets_neither_a_load_nor_a_question() {
    let foreign = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let elsewhere = format!("http://{}/x", foreign.local_addr().expect("bound"));
    let fe = Scripted::start((0..6).map(|_| answering(redirect(&elsewhere))).collect()).await;
    let mut strict = cluster(&[&fe.url]);
    strict.redirect_hosts = vec!["be1".into()];
    let client = Client::new(Arc::new(strict)).expect("a client");
    let mut load = test_load();
    let halted = |fault: Fault| assert!(fault.what.contains("not in `redirect_hosts`"), "{}", fault.what);
    for outcome in [client.attempt(&mut load).await, client.load_once(&mut load).await] {
        let Outcome::Refused(fault) = outcome else { panic!("{outcome:?}") };
        halted(fault);
    }
    assert!(!load.body_sent);
    halted(client.label_state("shop", "l").await.expect_err("refused"));
    halted(client.cancel("shop", "orders", "l").await.expect_err("refused"));
    let Outcome::Unsure(fault) = client.begin(&load).await else { panic!("nothing is known") };
    halted(fault);
    // Asking again would change nothing: the pipeline of an epoch halts, too.
    let phase = two_phase::prepare(&client, &mut load, Duration::from_secs(60)).await;
    let FirstPhase::Halt(fault) = phase else { panic!("{phase:?}") };
    halted(fault);
    fe.finish().await;
    let asked = tokio::time::timeout(Duration::from_millis(100), foreign.accept()).await;
    assert!(asked.is_err(), "the foreign host was asked");
}

#[tokio::test]
async fn a_dead_be_is_asked_for_again_and_a_dead_fe_passed_over() {
    let dead = Nobody::new();
    let be = Scripted::start(vec![patient_be(json(SUCCESS))]).await;
    let fe = Scripted::start(vec![
        answering(redirect(&format!("{}/api/shop/orders/_stream_load", dead.url))),
        answering(redirect(&be_url(&be))),
    ])
    .await;
    let broken = Scripted::start(vec![answering(response("503 Service Unavailable", "", "busy"))]).await;
    let mut load = test_load();
    let outcome = client(&[&dead.url, &broken.url, &fe.url]).attempt(&mut load).await;
    assert!(matches!(outcome, Outcome::Durable(_)), "{outcome:?}");
    assert_eq!(broken.finish().await.len(), 1, "left alone after its failure");
    assert_eq!(fe.finish().await.len(), 2);
}

#[tokio::test]
async fn without_any_fe_the_load_is_refused_and_each_is_named() {
    let (one, two) = (Nobody::new(), Nobody::new());
    let mut load = test_load();
    let outcome = client(&[&one.url, &two.url]).attempt(&mut load).await;
    let Outcome::Refused(fault) = outcome else { panic!("{outcome:?}") };
    assert_eq!(fault.kind, FaultKind::Retry);
    assert!(fault.what.contains(&one.url) && fault.what.contains(&two.url), "{}", fault.what);
    assert!(!load.body_sent);
}

#[tokio::test]
async fn the_error_log_is_fetched_without_credentials_and_cut() {
    let log = "Reason: NULL value in non-nullable column 'name'. Row: [3, NULL]\n".repeat(3000);
    let logs = Scripted::start(vec![answering(response("200 OK", "", &log))]).await;
    let body = format!(
        r#"{{"Status":"Fail","Message":"too many filtered rows","NumberFilteredRows":1,"ErrorURL":"{}/api/_load_error_log?file=e"}}"#,
        logs.url
    );
    let be = Scripted::start(vec![patient_be(json(&body))]).await;
    let fe = Scripted::start(vec![answering(redirect(&be_url(&be)))]).await;
    let outcome = client(&[&fe.url]).attempt(&mut test_load()).await;
    let Outcome::BadRows(rejection) = outcome else { panic!("{outcome:?}") };
    assert_eq!((rejection.filtered_rows, rejection.syntax), (Some(1), false));
    let kept = rejection.error_log.expect("the log");
    assert_eq!(kept.len(), crate::sink::starrocks::transport::ANSWER_BYTES_MAX);
    let asked = logs.finish().await;
    assert!(asked[0].head.starts_with("GET /api/_load_error_log?file=e "), "{:?}", asked[0].head);
    assert_eq!(asked[0].header("authorization"), None);
}

#[tokio::test]
async fn label_states_and_cancels_are_asked_of_the_leader() {
    let leader = Scripted::start(vec![
        answering(json(r#"{"state":"COMMITTED","status":"OK","msg":"Success"}"#)),
        answering(json(r#"{"status":"OK","msg":"Success"}"#)),
    ])
    .await;
    let follower = Scripted::start(vec![
        answering(redirect(&format!("{}/api/shop/get_load_state?label=a", leader.url))),
        answering(redirect(&format!("{}/api/shop/orders/_cancel?label=a", leader.url))),
    ])
    .await;
    let client = client(&[&follower.url]);
    assert_eq!(client.label_state("shop", "a").await.expect("a state"), LabelState::Committed);
    client.cancel("shop", "orders", "a").await.expect("cancelled");
    let asked = leader.finish().await;
    assert!(asked[0].head.starts_with("GET /api/shop/get_load_state?label=a "));
    assert!(asked[1].head.starts_with("POST /api/shop/orders/_cancel?label=a "));
    assert!(asked.iter().all(|asked| asked.header("authorization").is_some()));
}

fn state(state: &str) -> Vec<Step> {
    answering(json(&format!(r#"{{"state":"{state}","status":"OK","msg":"Success"}}"#)))
}

fn decided_just_now() -> Decision {
    let terms =
        Terms { tables_max: 1, prepared_timeout: Duration::from_secs(86_400), database: "shop".into() };
    Decision::of_epoch("orders-0", 7, 1, clock::since_1970().as_secs(), &terms)
}

async fn commit_decided(fes: &[&str]) -> Result<(), Fault> {
    let loads = [(Arc::clone(&test_load().destination), "orders-0-7-0".to_owned())];
    two_phase::commit_all(&client(fes), &loads, &decided_just_now(), &Extent::default()).await
}

#[tokio::test]
async fn what_another_cluster_does_not_know_is_not_taken_for_forgotten() {
    let fe = Scripted::start(vec![state("PREPARED"), state("UNKNOWN")]).await;
    let client = client(&[&fe.url]);
    let ask = || async { two_phase::must_be_known(&client, &decided_just_now(), &Extent::default()).await };
    ask().await.expect("it knows the load");
    let fault = ask().await.expect_err("it does not");
    assert_eq!(fault.kind, FaultKind::Halt);
    assert!(fault.what.contains("orders-0-7-0"), "{}", fault.what);
    assert_eq!(fe.finish().await.len(), 2);
}

/// One that is cut off from the others has not heard that the load was prepared.
#[tokio::test]
async fn a_decided_load_that_one_fe_does_not_know_is_asked_of_all() {
    let cut_off = Scripted::start(vec![
        state("UNKNOWN"),
        state("UNKNOWN"),
        answering(json(r#"{"Status":"OK","Message":""}"#)),
        state("COMMITTED"),
    ])
    .await;
    let other = Scripted::start(vec![state("PREPARED")]).await;
    commit_decided(&[&cut_off.url, &other.url]).await.expect("it is committed");
    assert!(cut_off.finish().await[2].head.starts_with("POST /api/transaction/commit "));
    assert_eq!(other.finish().await.len(), 1);
}

#[tokio::test]
async fn a_decided_load_is_taken_for_forgotten_when_most_fes_have_not_known_it_twice() {
    let unknown = |times| std::iter::repeat_with(|| state("UNKNOWN")).take(times).collect();
    let (one, two) = (Scripted::start(unknown(3)).await, Scripted::start(unknown(2)).await);
    let dead = Nobody::new();
    commit_decided(&[&one.url, &two.url, &dead.url]).await.expect("it is done");
    assert_eq!((one.finish().await.len(), two.finish().await.len()), (3, 2));
    let alone = Scripted::start(unknown(2)).await;
    let fault = commit_decided(&[&alone.url, &dead.url]).await.expect_err("half of them do not say");
    assert_eq!(fault.kind, FaultKind::Retry);
    assert_eq!(alone.finish().await.len(), 2);
}

#[tokio::test]
async fn ping_tells_what_is_wrong() {
    let check = async |answer: String, kind: FaultKind, hint: &str| {
        let fe = Scripted::start(vec![answering(answer.clone())]).await;
        let fault = client(&[&fe.url]).ping().await.expect_err("something is wrong");
        assert_eq!(fault.kind, kind, "{answer}");
        assert!(fault.hint.as_deref().unwrap_or_default().contains(hint), "{fault:?}");
        assert!(!fault.story().contains("canary"));
    };
    let denied = r#"{"status":"FAILED","msg":"Access denied for root@127.0.0.1"}"#;
    check(
        response("401 Unauthorized", "WWW-Authenticate: Basic realm=\"\"\r\n", denied),
        FaultKind::Halt,
        "password",
    )
    .await;
    check(
        json(r#"{"status":"FAILED","msg":"unknown database, database=shop"}"#),
        FaultKind::Halt,
        "CREATE DATABASE",
    )
    .await;
    check(response("500 Internal Server Error", "", ""), FaultKind::Retry, "`fe`").await;
    let fe =
        Scripted::start(vec![answering(json(r#"{"state":"UNKNOWN","status":"OK","msg":"Success"}"#))]).await;
    client(&[&fe.url]).ping().await.expect("all is well");
}

#[tokio::test]
async fn ping_recognises_the_query_port_and_an_empty_one() {
    // The head of MySQL's greeting: length, number 0, protocol 10.
    let greeting = || vec![Step::Say("\u{4a}\0\0\0\u{0a}5.1.0\0".into()), Step::Hang];
    let query_port = Scripted::start(vec![greeting(), greeting()]).await;
    let fault = client(&[&query_port.url]).ping().await.expect_err("no HTTP");
    assert_eq!(fault.kind, FaultKind::Halt, "{fault:?}");
    assert!(fault.what.contains("MySQL") && fault.what.contains(&query_port.url), "{}", fault.what);

    let nobody = Nobody::new();
    let fault = client(&[&nobody.url]).ping().await.expect_err("nobody listens");
    assert_eq!(fault.kind, FaultKind::Retry);
    assert!(fault.what.contains(&nobody.url), "{}", fault.what);
}

#[test]
fn addresses_with_a_path_or_without_a_scheme_are_refused() {
    for bad in ["fe:8030", "http://fe:8030/api", ""] {
        let fault = Client::new(Arc::new(cluster(&[bad]))).expect_err(bad);
        assert_eq!(fault.kind, FaultKind::Halt, "{bad}");
    }
    assert!(Client::new(Arc::new(cluster(&[]))).is_err());
}
