//! The HTTP source: a 200 is a promise, small requests share loads, and what is wrong is told to whoever sent it.

use std::{
    collections::BTreeSet,
    fs,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};
use tidemill_sandbox::FaultKind;
use tidemill_tests::{
    http::{Answer, Client},
    limit::within,
    listener::Listener,
    wait_until,
    warehouse::row,
};

const CLIENTS: u64 = 1_000;

#[test]
fn a_thousand_requests_share_few_loads_and_survive_a_kill() {
    within(120, || {
        let stand = Listener::new();
        let mut tidemill = stand.run(&stand.pipeline("1s"));
        let mut clients: Vec<Client> = (0..CLIENTS).map(|_| stand.connect()).collect();
        for (id, client) in (0..).zip(&mut clients) {
            client.send("/events", "", row(id).as_bytes()).expect("the connection is open");
        }
        for client in &mut clients {
            let answer = client.answer().expect("an answer");
            assert_eq!((answer.status, answer.body["loaded"].as_u64()), (200, Some(1)));
        }
        tidemill.kill();
        assert_eq!(stand.ids(), (0..CLIENTS).collect());
        let loads = stand.warehouse.stats("events").loads;
        assert!(loads <= 10, "{CLIENTS} requests took {loads} loads");
    });
}

#[test]
fn what_was_answered_is_in_the_table_whenever_the_process_is_killed() {
    within(180, || {
        const KILLS: u32 = 5;
        let stand = Listener::new();
        let (promised, next, over) = (Mutex::new(BTreeSet::new()), AtomicU64::new(0), AtomicBool::new(false));
        // Between the body and the commit: the moment in which a kill hurts most, made wide enough to be hit.
        stand.warehouse.fault(FaultKind::SlowLoad { delay_ms: 40 });
        thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        let Ok(mut client) = Client::connect(stand.address) else {
                            // Sixteen that spin would leave the process that starts no processor.
                            thread::park_timeout(Duration::from_millis(5));
                            continue;
                        };
                        loop {
                            let id = next.fetch_add(1, Ordering::Relaxed);
                            let answer = client.post("/events", "", row(id).as_bytes());
                            if !answer.is_ok_and(|answer| answer.status == 200) {
                                break;
                            }
                            promised.lock().expect("no panic").insert(id);
                        }
                    }
                });
            }
            for _ in 0..KILLS {
                let mut tidemill = stand.run(&stand.pipeline("50ms"));
                let before = promised.lock().expect("no panic").len();
                let busy = wait_until(Duration::from_secs(30), || {
                    (promised.lock().expect("no panic").len() > before + 500).then_some(())
                });
                tidemill.kill();
                busy.expect("requests are answered");
            }
            over.store(true, Ordering::Relaxed);
        });
        let (promised, there) = (promised.into_inner().expect("no panic"), stand.ids());
        assert!(promised.len() > 2_000, "only {} requests: this shows nothing", promised.len());
        let missing: Vec<_> = promised.difference(&there).take(10).collect();
        assert!(missing.is_empty(), "answered 200, and not in the table: {missing:?} …");
    });
}

#[test]
fn a_row_that_starrocks_refuses_is_named_to_its_request() {
    within(120, || {
        let stand = Listener::new();
        let _tidemill = stand.run(&stand.pipeline("1s"));
        let (mut bad, mut good) = (stand.connect(), stand.connect());
        let wrong = r#"{"id":"seven","amount":1,"note":"not a number"}"#;
        bad.send("/events", "", format!("{}\n{wrong}\n{}", row(1), row(2)).as_bytes()).expect("open");
        good.send("/events", "", row(3).as_bytes()).expect("open");
        let answer = bad.answer().expect("an answer");
        assert_eq!((answer.status, answer.body["loaded"].as_u64()), (422, Some(2)), "{answer:?}");
        let refused = answer.body["refused"].as_array().expect("a list").clone();
        assert_eq!(
            refused.iter().map(|one| one["record"].as_u64()).collect::<Vec<_>>(),
            [Some(1)],
            "{answer:?}"
        );
        assert_eq!(good.answer().expect("an answer").status, 200);
        assert_eq!(stand.ids(), [1, 2, 3].into());
        // The listener goes on.
        assert_eq!(stand.post("", &row(4)).status, 200);
    });
}

#[test]
fn a_refused_row_is_kept_where_there_is_a_place_for_it() {
    within(120, || {
        let stand = Listener::new();
        let letters = stand.folder.path().join("dead");
        let mut pipeline = stand.pipeline("200ms");
        pipeline.dead_letters = format!("directory = {letters:?}");
        let _tidemill = stand.run(&pipeline);
        let answer = stand.post("", &format!("[{},{{\"id\":\"seven\"}}]", row(1)));
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.body.to_string(), r#"{"accepted":2,"loaded":1,"dead_lettered":1}"#);
        assert_eq!(stand.ids(), [1].into());
        let files = fs::read_dir(&letters).expect("a folder");
        let kept: String =
            files.map(|file| fs::read_to_string(file.expect("a file").path()).expect("text")).collect();
        assert!(kept.contains("seven") && kept.lines().count() == 1, "{kept}");
    });
}

#[test]
fn a_full_budget_is_answered_with_a_time_to_come_back() {
    within(120, || {
        let stand = Listener::new();
        let mut pipeline = stand.pipeline("100ms");
        pipeline.process = "budget = \"1MiB\"".to_owned();
        let mut tidemill = stand.run(&pipeline);
        stand.warehouse.fault(FaultKind::SlowLoad { delay_ms: 8_000 });
        let mut waiting = Vec::new();
        let refused = loop {
            assert!(waiting.len() < 200, "never refused");
            let mut client = stand.connect();
            let first = waiting.len() as u64 * 100;
            let body: Vec<String> = (first..first + 100)
                .map(|id| format!(r#"{{"id":{id},"amount":1,"note":"{}"}}"#, "x".repeat(900)))
                .collect();
            client.send("/events", "", body.join("\n").as_bytes()).expect("open");
            // A request that is taken has no answer while the load lasts; one that is refused has it at once.
            let seen = tidemill
                .metrics()
                .map_or(0, |metrics| metrics.count("tidemill_http_requests_total", &[("status", "503")]));
            if seen > 0 {
                break client;
            }
            waiting.push(client);
        };
        // The refusal was that of this client or of one before it.
        waiting.push(refused);
        stand.warehouse.clear_faults();
        let answers: Vec<Answer> =
            waiting.iter_mut().map(|client| client.answer().expect("an answer")).collect();
        let refused: Vec<&Answer> = answers.iter().filter(|answer| answer.status == 503).collect();
        assert!(!refused.is_empty() && refused.iter().all(|answer| answer.head.contains("retry-after: ")));
        let taken = answers.iter().filter(|answer| answer.status == 200).count();
        assert_eq!(taken + refused.len(), answers.len(), "{answers:?}");
        assert_eq!(stand.ids().len(), taken * 100);
        assert_eq!(stand.post("", &row(1_000_000)).status, 200);
        tidemill.drain(30);
    });
}

#[test]
fn sigterm_answers_what_was_taken() {
    within(60, || {
        let stand = Listener::new();
        let mut tidemill = stand.run(&stand.pipeline("1h"));
        let mut client = stand.connect();
        client.send("/events", "", row(1).as_bytes()).expect("open");
        tidemill.until(20, "the request is taken", |metrics| {
            metrics.count("tidemill_http_requests_in_flight", &[]) == 1
        });
        tidemill.terminate();
        assert_eq!(client.answer().expect("an answer").status, 200);
        assert_eq!(tidemill.until_ended(30).code, Some(0));
        assert_eq!(stand.ids(), [1].into());
    });
}

#[test]
fn ten_thousand_queued_rows_arrive() {
    within(60, || {
        let stand = Listener::new();
        let mut tidemill = stand.run(&stand.pipeline("200ms"));
        let mut client = stand.connect();
        for id in 0..10_000 {
            let answer = client.post("/events?ack=queued", "", row(id).as_bytes()).expect("an answer");
            assert_eq!(answer.status, 202);
        }
        tidemill.drain(30);
        assert_eq!(stand.ids().len(), 10_000);
    });
}
