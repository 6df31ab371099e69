//! Thousands of connections that do nothing: they cost little, end in time, and are in nobody's way.

use std::time::{Duration, Instant};

use tidemill_tests::{
    http::Client, limit::within, listener::Listener, machine, process::Tidemill, warehouse::row,
};

const IDLE: u64 = 10_000;
/// Half of each connection's two ends is in this process; the rest is for whatever else runs.
const OPEN_FILES: u64 = IDLE + 5_000;
/// What a connection may cost that has said nothing yet.
const SILENT_BYTES_MAX: u64 = 2 << 10;
/// What a connection may cost that has sent a request and may send another one.
const KEPT_BYTES_MAX: u64 = 24 << 10;
const KIBIBYTE: u64 = 1 << 10;
const SOON: Duration = Duration::from_secs(2);
const LATE: Duration = Duration::from_secs(10);

fn open(tidemill: &mut Tidemill, connections: u64) {
    tidemill.until(60, &format!("{connections} connections are open"), |metrics| {
        metrics.count("tidemill_http_connections", &[]) == connections
    });
}

/// Sends a row over a connection that is open, and returns how long the answer took at the longest.
/// Posts rows one after the other, and judges how long their answers take. Clients that are in the way delay every answer, a
/// machine that stands still for a moment delays one.
fn are_answered_soon(active: &mut Client, rows: std::ops::Range<u64>) {
    let answers = rows.map(|id| {
        let began = Instant::now();
        let answer = active.post("/events?ack=queued", "", row(id).as_bytes()).expect("an answer");
        assert_eq!(answer.status, 202, "{answer:?}");
        began.elapsed()
    });
    let mut answers: Vec<Duration> = answers.collect();
    answers.sort_unstable();
    let of_a_hundred = answers[answers.len() * 98 / 100];
    assert!(of_a_hundred < SOON, "{of_a_hundred:?} for an answer");
    let longest = answers.last().expect("one at least");
    assert!(*longest < LATE, "{longest:?} for one answer");
}

#[test]
fn ten_thousand_idle_connections_cost_little_and_are_in_nobodys_way() {
    within(180, || {
        machine::need_open_files(OPEN_FILES);
        let stand = Listener::new();
        let mut pipeline = stand.pipeline("200ms");
        pipeline.source_more = format!("max_connections = {}\nread_timeout = \"2s\"", IDLE + 10);
        let mut tidemill = stand.run(&pipeline);
        let mut active = stand.connect();
        are_answered_soon(&mut active, 0..500);
        let before = tidemill.resident_bytes();
        let mut idle: Vec<Client> = (0..IDLE).map(|_| stand.connect()).collect();
        open(&mut tidemill, IDLE + 1);
        let silent = tidemill.resident_bytes().saturating_sub(before) / IDLE;
        // Each sends one request and then keeps its connection.
        for (id, client) in (1_000..).zip(&mut idle) {
            let answer = client.post("/events?ack=queued", "", row(id).as_bytes()).expect("an answer");
            assert_eq!(answer.status, 202, "{answer:?}");
        }
        let kept = tidemill.resident_bytes().saturating_sub(before) / IDLE;
        println!("{silent} bytes a silent connection, {kept} a kept one, {} KiB without", before / KIBIBYTE);
        assert!(silent <= SILENT_BYTES_MAX, "{silent} bytes a connection that says nothing");
        assert!(kept <= KEPT_BYTES_MAX, "{kept} bytes a connection that is kept");
        are_answered_soon(&mut active, 500..1_000);
        let answer = active.post("/events", "", row(900_000).as_bytes()).expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
        // A second time costs no more: nothing of the first ones is left.
        drop(idle);
        open(&mut tidemill, 1);
        let again: Vec<Client> = (0..IDLE).map(|_| stand.connect()).collect();
        open(&mut tidemill, IDLE + 1);
        let grown = tidemill.resident_bytes().saturating_sub(before) / IDLE;
        assert!(grown <= KEPT_BYTES_MAX, "{grown} bytes a connection the second time");
        drop(again);
        tidemill.drain(30);
        assert_eq!(u64::try_from(stand.ids().len()).expect("64 bits"), 1_000 + IDLE + 1);
    });
}

#[test]
fn thousands_of_heads_that_never_end_are_cut_off_while_others_are_served() {
    within(120, || {
        const SLOW: u64 = 2_000;
        machine::need_open_files(OPEN_FILES);
        let stand = Listener::new();
        let mut pipeline = stand.pipeline("200ms");
        pipeline.source_more = "read_timeout = \"2s\"".to_owned();
        let mut tidemill = stand.run(&pipeline);
        let mut active = stand.connect();
        let mut slow: Vec<Client> = (0..SLOW).map(|_| stand.connect()).collect();
        let began = Instant::now();
        for client in &mut slow {
            client.write(b"POST /events HTTP/1.1\r\nhost: x\r\nx-slow: ").expect("open");
        }
        are_answered_soon(&mut active, 0..500);
        // A head that trickles is no faster.
        for client in &mut slow {
            // One that is cut off already is none that this is about.
            let _ = client.write(b"x");
        }
        for client in &mut slow {
            let answer = client.answer().expect("an answer");
            assert_eq!(answer.status, 408, "{answer:?}");
            assert!(client.is_ended(), "it is cut off");
        }
        assert!(began.elapsed() >= Duration::from_secs(2), "cut off after {:?}", began.elapsed());
        open(&mut tidemill, 1);
        assert_eq!(active.post("/events", "", row(900).as_bytes()).expect("an answer").status, 200);
        tidemill.drain(30);
    });
}

#[test]
fn past_the_limit_clients_wait_for_a_place() {
    within(90, || {
        let stand = Listener::new();
        let mut pipeline = stand.pipeline("100ms");
        pipeline.source_more = "max_connections = 100".to_owned();
        let mut tidemill = stand.run(&pipeline);
        let mut idle: Vec<Client> = (0..100).map(|_| stand.connect()).collect();
        open(&mut tidemill, 100);
        let mut waiting: Vec<Client> = (0..50).map(|_| stand.connect()).collect();
        for (id, client) in (0..).zip(&mut waiting) {
            client.send("/events?ack=queued", "", row(id).as_bytes()).expect("the kernel takes it");
        }
        // The others are served meanwhile, and these are not.
        are_answered_soon(&mut idle[0], 1_000..1_100);
        let metrics = tidemill.metrics().expect("metrics");
        assert_eq!(metrics.count("tidemill_http_connections", &[]), 100);
        assert_eq!(metrics.count("tidemill_http_requests_total", &[]), 100);
        drop(idle);
        for client in &mut waiting {
            assert_eq!(client.answer().expect("an answer").status, 202);
        }
        tidemill.drain(30);
        assert_eq!(stand.ids().len(), 150);
    });
}

#[test]
fn clients_never_get_the_open_files_that_loads_need() {
    within(90, || {
        const OPEN_FILES_MAX: u64 = 400;
        let stand = Listener::new();
        let file = stand.write(&stand.pipeline("100ms"));
        let mut tidemill = Tidemill::run_with_open_files(&[&file], OPEN_FILES_MAX);
        tidemill.until_ready(30);
        let log = tidemill.log();
        assert!(log.contains("possible=272") && log.contains("ulimit -Hn"), "{log}");
        let mut active = stand.connect();
        open(&mut tidemill, 1);
        let crowd: Vec<Client> = (0..OPEN_FILES_MAX * 2).map(|_| stand.connect()).collect();
        open(&mut tidemill, 272);
        for id in 0..20 {
            let answer = active.post("/events", "", row(id).as_bytes()).expect("an answer");
            assert_eq!(answer.status, 200, "{answer:?}");
        }
        assert!(!tidemill.log().contains("cannot accept a connection"), "{}", tidemill.log());
        drop(crowd);
        tidemill.drain(30);
        assert_eq!(stand.ids().len(), 20);
    });
}
