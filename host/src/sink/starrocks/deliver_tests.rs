//! A load's life against scripted servers: every way to an outcome.

use super::*;
use crate::sink::starrocks::bench::Bench;
use crate::sink::starrocks::scripted::{Scripted, Step, answering, cluster, json, load, redirect};

const CONTINUE: &str = "HTTP/1.1 100 Continue\r\n\r\n";
const SUCCESS: &str = r#"{"TxnId":5,"Status":"Success","NumberTotalRows":3,"NumberLoadedRows":3}"#;
const OVERLOADED: &str =
    r#"{"Status":"Fail","Message":"because of too many versions, current/limit: 1001/1000"}"#;

fn test_load() -> Load {
    load(cluster(&["http://127.0.0.1:1"]))
}

fn takes_body(answer: Option<&str>) -> Vec<Step> {
    let mut steps = vec![Step::Head, Step::Say(CONTINUE.into()), Step::Body];
    steps.extend(answer.map(|answer| Step::Say(json(answer))));
    steps
}

fn refuses_early(answer: &str) -> Vec<Step> {
    vec![Step::Head, Step::Say(json(answer))]
}

fn state(state: &str) -> Vec<Step> {
    answering(json(&format!(r#"{{"state":"{state}","status":"OK","msg":"Success"}}"#)))
}

async fn servers(be: Vec<Vec<Step>>, fe: impl FnOnce(Vec<Step>) -> Vec<Vec<Step>>) -> (Scripted, Scripted) {
    let be = Scripted::start(be).await;
    let to_be = answering(redirect(&format!("{}/api/shop/orders/_stream_load", be.url)));
    let fe = Scripted::start(fe(to_be)).await;
    (be, fe)
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_and_not_sent_again() {
    let (be, fe) =
        servers(vec![takes_body(None)], |to_be| vec![to_be, state("PREPARE"), state("VISIBLE")]).await;
    let (bench, mut load) = (Bench::new(), test_load());
    let delivered = bench.deliver(&fe.url, &mut load).await;
    assert!(matches!(&delivered, Delivered::Durable(receipt) if receipt.visible), "{delivered:?}");
    assert_eq!((bench.attempts(), bench.duplicates()), (1, 0));
    assert_eq!(bench.context.witness.latest().as_deref(), Some("orders-0-7"));
    assert_eq!(be.finish().await.len(), 1);
    fe.finish().await;
}

#[tokio::test]
async fn an_aborted_load_is_sent_again_under_its_label() {
    let (be, fe) = servers(vec![takes_body(None), takes_body(Some(SUCCESS))], |to_be| {
        vec![to_be.clone(), state("ABORTED"), to_be]
    })
    .await;
    let (bench, mut load) = (Bench::new(), test_load());
    let delivered = bench.deliver(&fe.url, &mut load).await;
    assert!(matches!(delivered, Delivered::Durable(_)), "{delivered:?}");
    let asked = be.finish().await;
    assert_eq!(asked.len(), 2);
    assert!(asked.iter().all(|asked| asked.header("label") == Some("orders-0-7")));
    assert_eq!(asked[0].body, asked[1].body);
    assert_eq!(bench.duplicates(), 0);
}

#[tokio::test]
async fn back_pressure_is_waited_out() {
    let (be, fe) = servers(
        vec![refuses_early(OVERLOADED), refuses_early(OVERLOADED), takes_body(Some(SUCCESS))],
        |to_be| vec![to_be.clone(), to_be.clone(), to_be],
    )
    .await;
    let (bench, mut load) = (Bench::new(), test_load());
    let delivered = bench.deliver(&fe.url, &mut load).await;
    assert!(matches!(delivered, Delivered::Durable(_)), "{delivered:?}");
    assert_eq!(*bench.counter.attempts.lock().expect("no panic"), [1, 2, 3]);
    let waits = bench.counter.waits.lock().expect("no panic").clone();
    assert_eq!(waits.len(), 2);
    assert!(waits.iter().all(|why| why.contains("too many versions")), "{waits:?}");
    assert_eq!(*bench.counter.resumed.lock().expect("no panic"), 1);
    be.finish().await;
}

#[tokio::test]
async fn an_unknown_label_never_began_while_the_witness_is_known() {
    let (be, fe) = servers(vec![takes_body(None), takes_body(Some(SUCCESS))], |to_be| {
        vec![to_be.clone(), state("UNKNOWN"), state("VISIBLE"), to_be]
    })
    .await;
    let (bench, mut load) = (Bench::new(), test_load());
    bench.context.witness.settled("orders-0-6");
    let delivered = bench.deliver(&fe.url, &mut load).await;
    assert!(matches!(delivered, Delivered::Durable(_)), "{delivered:?}");
    assert_eq!(bench.duplicates(), 0);
    let asked = fe.finish().await;
    assert!(asked[2].head.contains("label=orders-0-6"), "{}", asked[2].head);
    be.finish().await;
}

#[tokio::test]
async fn an_unknown_label_without_a_witness_is_sent_again_and_counted() {
    for witness in [None, Some("orders-0-6")] {
        let (be, fe) = servers(vec![takes_body(None), takes_body(Some(SUCCESS))], |to_be| {
            let mut script = vec![to_be.clone(), state("UNKNOWN")];
            script.extend(witness.map(|_| state("UNKNOWN")));
            script.push(to_be);
            script
        })
        .await;
        let (bench, mut load) = (Bench::new(), test_load());
        if let Some(witness) = witness {
            bench.context.witness.settled(witness);
        }
        let delivered = bench.deliver(&fe.url, &mut load).await;
        assert!(matches!(delivered, Delivered::Durable(_)), "{delivered:?}");
        assert_eq!(bench.duplicates(), 1, "{witness:?}");
        be.finish().await;
    }
}

#[tokio::test]
async fn a_load_open_for_too_long_is_cancelled_and_looked_at_again() {
    let cancelled = || answering(json(r#"{"status":"OK","msg":"Success"}"#));
    let (be, fe) = servers(vec![takes_body(None), takes_body(Some(SUCCESS))], |to_be| {
        vec![to_be.clone(), state("PREPARE"), cancelled(), state("ABORTED"), to_be]
    })
    .await;
    let (bench, mut load) = (Bench::new(), test_load());
    let mut impatient = cluster(&[&fe.url]);
    impatient.load_timeout = Duration::ZERO;
    load.destination = crate::sink::starrocks::scripted::load(impatient).destination;
    let delivered = bench.deliver(&fe.url, &mut load).await;
    assert!(matches!(delivered, Delivered::Durable(_)), "{delivered:?}");
    let asked = fe.finish().await;
    assert!(
        asked[2].head.starts_with("POST /api/shop/orders/_cancel?label=orders-0-7 "),
        "{}",
        asked[2].head
    );
    be.finish().await;
}

#[tokio::test]
async fn a_finished_load_that_was_not_ours_halts() {
    let finished = r#"{"Status":"Label Already Exists","ExistingJobStatus":"FINISHED","Message":"used"}"#;
    let (be, fe) = servers(vec![refuses_early(finished)], |to_be| vec![to_be]).await;
    let (bench, mut load) = (Bench::new(), test_load());
    let delivered = bench.deliver(&fe.url, &mut load).await;
    assert!(matches!(&delivered, Delivered::Halt(fault) if fault.hint.is_some()), "{delivered:?}");
    be.finish().await;

    // An older wording names no state: the state says that it is finished, and nothing of ours was sent.
    let used = r#"{"Status":"Fail","Message":"Label [orders-0-7] has already been used."}"#;
    let (be, fe) = servers(vec![refuses_early(used)], |to_be| vec![to_be, state("VISIBLE")]).await;
    let delivered = Bench::new().deliver(&fe.url, &mut test_load()).await;
    assert!(matches!(&delivered, Delivered::Halt(fault) if fault.hint.is_some()), "{delivered:?}");
    be.finish().await;
}

#[tokio::test]
async fn a_load_is_released_only_while_it_is_known_not_to_be_loaded() {
    // Overloaded: nothing is loaded.
    let (be, fe) = servers(vec![refuses_early(OVERLOADED)], |to_be| vec![to_be]).await;
    let mut bench = Bench::new();
    bench.context.paces.overloaded.base = Duration::from_secs(3600);
    bench.context.paces.overloaded.cap = Duration::from_secs(3600);
    let stop = bench.stop.clone();
    let counter = Arc::clone(&bench.counter);
    let stopping = tokio::spawn(async move {
        while counter.waits.lock().expect("no panic").is_empty() {
            tokio::task::yield_now().await;
        }
        stop.send(true).expect("the delivery lives");
    });
    let delivered = bench.deliver(&fe.url, &mut test_load()).await;
    assert!(matches!(delivered, Delivered::Released), "{delivered:?}");
    stopping.await.expect("no panic");
    be.finish().await;

    // Unknown: the state decides, and a load that is open is cancelled at once.
    let cancelled = answering(json(r#"{"status":"OK","msg":"Success"}"#));
    let (be, fe) =
        servers(vec![takes_body(None)], |to_be| vec![to_be, state("PREPARE"), cancelled, state("COMMITTED")])
            .await;
    let bench = Bench::new();
    let counter = Arc::clone(&bench.counter);
    let stop = bench.stop.clone();
    let stopping = tokio::spawn(async move {
        while counter.attempts.lock().expect("no panic").is_empty() {
            tokio::task::yield_now().await;
        }
        stop.send(true).expect("the delivery lives");
    });
    let delivered = bench.deliver(&fe.url, &mut test_load()).await;
    assert!(matches!(&delivered, Delivered::Durable(receipt) if !receipt.visible), "{delivered:?}");
    stopping.await.expect("no panic");
    assert_eq!(bench.context.witness.latest(), None, "committed is not finished");
    be.finish().await;
    fe.finish().await;
}

#[tokio::test]
async fn a_load_told_to_stop_before_it_began_is_tried_once() {
    let bench = Bench::new();
    bench.stop.send(true).expect("the context lives");
    let delivered = bench.deliver("http://127.0.0.1:1", &mut test_load()).await;
    assert!(matches!(delivered, Delivered::Released), "{delivered:?}");
    assert_eq!(bench.attempts(), 1);
}
