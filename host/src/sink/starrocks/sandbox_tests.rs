//! Loads into the sandbox: what counts is what is in the table afterwards.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidemill_sandbox::{AnswerFault, ClientFate, Fault, FaultKind, Hop, Options, Sandbox};

use super::bench::Bench;
use super::client::Client;
use super::deliver::Delivered;
use super::query::{self, Query};
use super::scripted::{Nobody, cluster, load};
use crate::config::model::{Secret, StarRocks, TableModel};
use crate::position::Stay;
use crate::sink::{Destination, Fence, FenceAnswer, Guarded, Load};

const ORDERS: &str = "CREATE TABLE shop.orders (id BIGINT NOT NULL, name VARCHAR(20)) DUPLICATE KEY(id)";

async fn sandbox(options: Options) -> Sandbox {
    let sandbox = Sandbox::start(options).await.expect("free ports");
    sandbox.execute("CREATE DATABASE shop").expect("a database");
    sandbox.execute(ORDERS).expect("a table");
    sandbox
}

fn settings(sandbox: &Sandbox) -> StarRocks {
    let mut file = cluster(&[&sandbox.fe_url()]);
    file.query = Some(format!("127.0.0.1:{}", sandbox.query_port()));
    file.password = Secret::default();
    file
}

fn rows(sandbox: &Sandbox) -> u64 {
    let answer = sandbox.execute("SELECT count(*) FROM shop.orders").expect("a count");
    answer[0][0].as_deref().and_then(|text| text.parse().ok()).expect("a number")
}

fn client(sandbox: &Sandbox) -> Client {
    Client::new(Arc::new(settings(sandbox))).expect("a client")
}

fn test_load(sandbox: &Sandbox, label: &str) -> Load {
    Load { label: label.to_owned(), ..load(settings(sandbox)) }
}

#[track_caller]
fn durable(delivered: &Delivered) {
    assert!(matches!(delivered, Delivered::Durable(_)), "{delivered:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_is_one_version_and_the_catalogue_is_readable() {
    let sandbox = sandbox(Options::default()).await;
    let bench = Bench::new();
    let client = client(&sandbox);
    client.ping().await.expect("an FE");
    for label in ["a-1", "a-2"] {
        durable(&bench.deliver_with(&client, &mut test_load(&sandbox, label)).await);
    }
    assert_eq!(rows(&sandbox), 6);
    let stats = sandbox.table_stats("shop", "orders").expect("the table");
    assert_eq!((stats.loads, stats.versions_total), (2, 2));

    let settings = settings(&sandbox);
    for (name, key, model) in [
        ("p", "PRIMARY", TableModel::Primary),
        ("u", "UNIQUE", TableModel::Unique),
        ("d", "DUPLICATE", TableModel::Duplicate),
    ] {
        let sql = format!("CREATE TABLE shop.{name} (id BIGINT NOT NULL, n INT) {key} KEY(id)");
        sandbox.execute(&sql).expect("a table");
        assert_eq!(query::table_model(&settings, name).await.expect("an answer"), Some(model));
    }
    let mut query = Query::connect(&settings).await.expect("a query port");
    assert_eq!(query.table_model("nothing").await.expect("an answer"), None);
    assert!(query.table_exists("orders").await.expect("an answer"));
    let columns = query.columns("orders").await.expect("an answer").expect("columns");
    assert_eq!(columns[0].name, "id");
    assert!(columns[0].sql_type.starts_with("bigint"), "{}", columns[0].sql_type);
    assert_eq!((columns[0].nullable, columns[0].key), (false, true));
    assert_eq!((columns[1].nullable, columns[1].key), (true, false));
    assert_eq!(query.columns("nothing").await.expect("an answer"), None);
    assert!(query.versions("orders").await.is_ok_and(|versions| versions >= 2));
    assert!(query.versions("nothing").await.is_err());
    let counted = query.execute("SELECT count(*) FROM shop.orders").await.expect("an answer");
    assert_eq!(counted, [[Some("6".to_owned())]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_there_once_whatever_happens_to_the_answer() {
    let spoiled = [
        AnswerFault::Dropped,
        AnswerFault::Truncated,
        AnswerFault::Empty,
        AnswerFault::Http500,
        AnswerFault::Http502,
    ];
    let mut faults = vec![
        FaultKind::CommitUnknown { committed: true },
        FaultKind::CommitUnknown { committed: false },
        FaultKind::LateCommit { delay_ms: 700, client: ClientFate::Dropped },
        FaultKind::LateCommit { delay_ms: 300, client: ClientFate::KeptWaiting },
        FaultKind::DropMidBody { after_bytes: 10 },
        FaultKind::PublishTimeout { visible_after_ms: 50 },
        FaultKind::ContinueWithheld { delay_ms: 1_300 },
        FaultKind::LateBegin { delay_ms: 1_300 },
        FaultKind::SlowRedirect { delay_ms: 200 },
        FaultKind::BackendResets,
        FaultKind::NoBackend,
        FaultKind::TooManyVersions,
        FaultKind::RunningTxnLimit,
        FaultKind::ShuttingDown,
        FaultKind::LoadFails { message: "Memory of process exceed limit".into() },
        FaultKind::LoadFails { message: "something that nobody has seen before".into() },
    ];
    for how in spoiled {
        faults.push(FaultKind::AnswerLost { at: Hop::Frontend, how, committed: false });
        faults.push(FaultKind::AnswerLost { at: Hop::State, how, committed: false });
        for committed in [true, false] {
            faults.push(FaultKind::AnswerLost { at: Hop::Backend, how, committed });
        }
    }
    let sandbox = sandbox(Options::default()).await;
    let bench = Bench::new();
    for (number, kind) in faults.into_iter().enumerate() {
        let before = rows(&sandbox);
        // A client of its own: some faults only strike new connections.
        let client = client(&sandbox);
        let id = sandbox.set_fault(Fault::times(kind.clone(), 1));
        // A fault of the state's answer shows only when the state is asked for.
        let asks = matches!(kind, FaultKind::AnswerLost { at: Hop::State, .. });
        let lost = FaultKind::AnswerLost { at: Hop::Backend, how: AnswerFault::Dropped, committed: true };
        let second = asks.then(|| sandbox.set_fault(Fault::times(lost, 1)));
        let delivered = bench.deliver_with(&client, &mut test_load(&sandbox, &format!("b-{number}"))).await;
        assert!(matches!(delivered, Delivered::Durable(_)), "{kind:?}: {delivered:?}");
        let fired = sandbox.faults().iter().find(|report| report.id == id).map(|report| report.fired);
        assert_eq!(fired, Some(1), "{kind:?} happened");
        sandbox.clear_fault(id);
        second.into_iter().for_each(|id| sandbox.clear_fault(id));
        Bench::until(|| rows(&sandbox) >= before + 3).await;
        assert_eq!(rows(&sandbox), before + 3, "{kind:?}");
    }
    assert_eq!(bench.duplicates(), 0, "{:?}", bench.counter.duplicates);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_versions_are_waited_out_until_the_compaction_comes() {
    let options = Options { tablet_max_versions: 3, compaction: None, ..Options::default() };
    let sandbox = sandbox(options).await;
    let client = client(&sandbox);
    let bench = Bench::new();
    let mut number = 0;
    while sandbox.table_stats("shop", "orders").expect("the table").refused_too_many_versions == 0 {
        number += 1;
        let mut load = test_load(&sandbox, &format!("c-{number}"));
        let compacting = Bench::until(|| {
            let refused =
                sandbox.table_stats("shop", "orders").is_some_and(|s| s.refused_too_many_versions > 1);
            if refused {
                sandbox.compact();
            }
            refused
        });
        let delivering = bench.deliver_with(&client, &mut load);
        tokio::pin!(compacting, delivering);
        let delivered = tokio::select! {
            delivered = &mut delivering => delivered,
            () = &mut compacting => delivering.await,
        };
        durable(&delivered);
        assert!(number < 20, "the limit is never reached");
    }
    assert_eq!(rows(&sandbox), number * 3);
    assert!(bench.attempts() as u64 > number);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forgotten_label_is_sent_again_and_counted() {
    let sandbox = sandbox(Options::default()).await;
    sandbox.set_fault(Fault::times(
        FaultKind::AnswerLost { at: Hop::Backend, how: AnswerFault::Dropped, committed: true },
        1,
    ));
    sandbox.set_fault(Fault::times(FaultKind::LabelForgotten, 1));
    let bench = Bench::new();
    durable(&bench.deliver_with(&client(&sandbox), &mut test_load(&sandbox, "d-1")).await);
    assert_eq!((bench.duplicates(), rows(&sandbox)), (1, 6), "doubled, and said so");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_rows_come_back_with_their_reason_and_nothing_is_loaded() {
    let sandbox = sandbox(Options::default()).await;
    let client = client(&sandbox);
    let check = async |label: &str, body: &'static [u8], syntax: bool| {
        let mut load = test_load(&sandbox, label);
        load.segments = vec![Bytes::from_static(body)];
        load.bytes = body.len() as u64;
        load.rows = 2;
        let delivered = Bench::new().deliver_with(&client, &mut load).await;
        let Delivered::BadRows(rejection) = delivered else { panic!("{delivered:?}") };
        assert_eq!(rejection.syntax, syntax, "{rejection:?}");
        rejection
    };
    let filtered = check("e-1", b"{\"id\":1}\n{\"id\":null,\"name\":\"x\"}\n", false).await;
    assert_eq!(filtered.filtered_rows, Some(1));
    assert!(filtered.error_log.is_some_and(|log| log.contains("id")), "the reason names the column");
    check("e-2", b"{\"id\":1}\n{\"id\":2,\n", true).await;
    assert_eq!(rows(&sandbox), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_table_halts_with_a_statement_that_works() {
    let sandbox = sandbox(Options::default()).await;
    sandbox.execute("DROP TABLE shop.orders").expect("dropped");
    let client = client(&sandbox);
    let delivered = Bench::new().deliver_with(&client, &mut test_load(&sandbox, "f-1")).await;
    let Delivered::Halt(fault) = delivered else { panic!("{delivered:?}") };
    let hint = fault.hint.expect("a hint");
    let statement = &hint[hint.find("CREATE TABLE").expect("a statement")..];
    sandbox.execute(statement).expect("StarRocks takes the statement");
    durable(&Bench::new().deliver_with(&client, &mut test_load(&sandbox, "f-2")).await);
    assert_eq!(rows(&sandbox), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_credentials_and_lost_grants_halt() {
    let sandbox = sandbox(Options { password: Some("right".into()), ..Options::default() }).await;
    let with_password = |password: &str| {
        let mut file = settings(&sandbox);
        file.password = Secret::new(password);
        Client::new(Arc::new(file)).expect("a client")
    };
    let wrong = with_password("wrong");
    let fault = wrong.ping().await.expect_err("refused");
    assert_eq!(fault.kind, crate::fault::FaultKind::Halt, "{fault:?}");
    let delivered = Bench::new().deliver_with(&wrong, &mut test_load(&sandbox, "g-1")).await;
    assert!(matches!(delivered, Delivered::Halt(_)), "{delivered:?}");
    let mut file = settings(&sandbox);
    file.password = Secret::new("wrong");
    let fault = Query::connect(&file).await.expect_err("refused");
    assert_eq!(fault.kind, crate::fault::FaultKind::Halt, "{fault:?}");

    let right = with_password("right");
    right.ping().await.expect("an FE");
    for at in [Hop::Frontend, Hop::Backend] {
        sandbox.set_fault(Fault::times(FaultKind::AccessDenied { at }, 1));
        let delivered = Bench::new().deliver_with(&right, &mut test_load(&sandbox, "g-2")).await;
        assert!(matches!(&delivered, Delivered::Halt(f) if f.hint.is_some()), "{at:?}: {delivered:?}");
    }
    assert_eq!(rows(&sandbox), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_comes_back_gets_the_load() {
    let sandbox = sandbox(Options::default()).await;
    let dead = Nobody::new();
    let mut file = settings(&sandbox);
    file.fe.insert(0, dead.url.clone());
    let client = Client::new(Arc::new(file)).expect("a client");
    client.ping().await.expect("the second FE");
    let down = sandbox.set_fault(Fault::always(FaultKind::BackendRefuses));
    let bench = Bench::new();
    let mut load = test_load(&sandbox, "h-1");
    let repairing = async {
        Bench::until(|| bench.attempts() >= 3).await;
        sandbox.clear_fault(down);
    };
    let (delivered, ()) = tokio::join!(bench.deliver_with(&client, &mut load), repairing);
    durable(&delivered);
    assert_eq!(rows(&sandbox), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_redirect_halts_or_waits_but_never_leaks() {
    let sandbox = sandbox(Options::default()).await;
    let mut strict = settings(&sandbox);
    strict.redirect_hosts = vec!["127.0.0.1".into()];
    let client = Client::new(Arc::new(strict)).expect("a client");
    sandbox.set_fault(Fault::times(FaultKind::RedirectTo { authority: "evil.invalid:8040".into() }, 1));
    let delivered = Bench::new().deliver_with(&client, &mut test_load(&sandbox, "i-1")).await;
    assert!(matches!(&delivered, Delivered::Halt(f) if f.what.contains("evil.invalid")), "{delivered:?}");
    sandbox.set_fault(Fault::times(FaultKind::RedirectLoop, 4));
    durable(&Bench::new().deliver_with(&client, &mut test_load(&sandbox, "i-2")).await);
    assert_eq!(rows(&sandbox), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_body_arrives_whole() {
    let sandbox = sandbox(Options::default()).await;
    let row = format!("{{\"id\":1,\"name\":\"{}\"}}\n", "x".repeat(20));
    let segment = Bytes::from(row.repeat(1_000));
    let segments = vec![segment; 250];
    let destination = Destination {
        cluster: Arc::new(settings(&sandbox)),
        table: "orders".into(),
        model: TableModel::Duplicate,
        key: Vec::new(),
    };
    let mut load = Load {
        destination: Arc::new(destination),
        label: "j-1".into(),
        bytes: segments.iter().map(|segment| segment.len() as u64).sum(),
        segments,
        rows: 250_000,
        columns: None,
        packed: None,
        fences: Vec::new(),
        body_sent: false,
    };
    durable(&Bench::new().deliver_with(&client(&sandbox), &mut load).await);
    assert_eq!(rows(&sandbox), 250_000);
    let stats = sandbox.table_stats("shop", "orders").expect("the table");
    assert_eq!(stats.bytes_loaded, load.bytes);
}

/// Takes its time to answer.
#[derive(Debug)]
struct Slow(Duration);

impl Fence for Slow {
    fn guards(&self, _destination: &Destination) -> bool {
        true
    }

    fn announce<'a>(&'a self, _number: u64, _stays: &'a [Stay]) -> FenceAnswer<'a> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn holds(&self, _number: u64) -> FenceAnswer<'_> {
        let wait = tokio::time::sleep(self.0);
        Box::pin(async move {
            wait.await;
            Ok(())
        })
    }

    fn settled(&self, _number: u64) {}
}

/// A coordinator that answers late would stretch the batches of every Primary Key table.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fence_that_answers_late_does_not_count_as_a_slow_load() {
    let sandbox = sandbox(Options::default()).await;
    let late = Duration::from_millis(400);
    let mut load = test_load(&sandbox, "k-1");
    load.fences.push(Guarded::new(Arc::new(Slow(late)), 1));
    let (bench, began) = (Bench::new(), Instant::now());
    durable(&bench.deliver_with(&client(&sandbox), &mut load).await);
    let whole = began.elapsed();
    let took = bench.counter.took.lock().expect("no panic").clone();
    assert!(took.len() == 1 && took[0] + late <= whole, "{took:?} of {whole:?}");
}
