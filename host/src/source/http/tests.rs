//! A real listener, real lanes and a real stage; loads are ended by the test.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::HttpFeed;
use super::control::Control;
use crate::batch::Batch;
use crate::batch::stage::fakes::{Shown, destination, owner};
use crate::batch::stage::{Done, Registration, StageHandle};
use crate::budget::{Budget, Share};
use crate::chain::Chain;
use crate::config::model::{BatchLimits, Http, Secret, TableModel};
use crate::dead_letter::Rejects;
use crate::delivery::owner::Owner;
use crate::delivery::{Alarm, Stop};
use crate::fault::Fault;
use crate::lane::{Lane, LaneParts};
use crate::ledger::Ledger;
use crate::rows::{Target, Targets};
use crate::source::{Gathering, Parts};

const SOON: Duration = Duration::from_secs(20);
const LINGER: Duration = Duration::from_millis(200);
const ROW_BYTES_MAX: u64 = 1_000;

/// A pipeline of one table behind a listener.
struct Bench {
    address: SocketAddr,
    started: mpsc::Receiver<(Batch, Done)>,
    share: Share,
    owner: Arc<Owner>,
    ledger: Ledger,
    alarm: Alarm,
    stop: Stop,
    control: Option<std::thread::JoinHandle<Result<(), Fault>>>,
    /// Behind everything that runs on it.
    runtime: tokio::runtime::Runtime,
}

fn settings() -> Http {
    Http {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        tls: None,
        tokens: Vec::new(),
        insecure: false,
        max_body_bytes: 1 << 20,
        max_records: 10_000,
        read_timeout: SOON,
        request_timeout: SOON,
        answer_timeout: SOON,
        max_connections: 1_000,
        idempotency_window: SOON,
        idempotency_keys: 100,
    }
}

impl Bench {
    fn new() -> Bench {
        Bench::with(settings(), 16 << 20)
    }

    fn with(http: Http, budget: u64) -> Bench {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let stage = StageHandle::start(runtime.handle().clone()).expect("a thread");
        let share = Budget::new(budget).share(budget, 0);
        let (shows, started) = mpsc::channel();
        let registration = Registration {
            destinations: vec![destination("orders")],
            limits: BatchLimits { max_rows: 100_000, max_bytes: 64 << 20, linger: LINGER },
            in_flight: 1,
            share: share.clone(),
            outlet: Arc::new(Shown(shows)),
        };
        stage.register(0, registration).expect("the stage lives");
        let (ledger, alarm, stop) = (Ledger::new(), Alarm::default(), Stop::default());
        let owner = Arc::new(owner(0, &share, Rejects::Answer));
        let targets = Targets {
            tables: vec![Target { model: TableModel::Duplicate }],
            own: Some(0),
            row_bytes_max: ROW_BYTES_MAX,
        };
        let lane_parts = LaneParts {
            stage: stage.clone(),
            ledger: ledger.clone(),
            owner: Arc::clone(&owner),
            targets,
            line_feeds: true,
        };
        let parts = Parts {
            lanes: 2,
            gathering: Gathering { line_feeds: true, ..Gathering::default() },
            ledger: ledger.clone(),
            meter: Arc::clone(&owner.meter),
            stage,
            pipeline: 0,
            share: share.clone(),
            runtime: runtime.handle().clone(),
            giving_up: Arc::clone(&owner.giving_up),
            alarm: alarm.clone(),
            stop: stop.clone(),
            shutdown_timeout: SOON,
            stall_after: SOON,
            label_stem: "stem".into(),
        };
        let spawn = |_number: usize, feed: HttpFeed| {
            let parts = lane_parts.clone();
            std::thread::Builder::new().spawn(move || {
                let chain = Chain::start(&[], &|_| Vec::new())?;
                Lane::new(parts, feed, chain).run()
            })
        };
        let control = Control::start(http, parts, spawn).expect("a free port");
        let address = control.address();
        let control = Some(std::thread::spawn(move || control.run()));
        Bench { address, started, share, owner, ledger, alarm, stop, control, runtime }
    }

    fn connect(&self) -> Client {
        let stream = TcpStream::connect(self.address).expect("listening");
        stream.set_read_timeout(Some(SOON)).expect("a time-out");
        Client { stream, read: Vec::new() }
    }

    /// The next load, on its way.
    fn load(&self) -> (Batch, Done) {
        self.started.recv_timeout(SOON).expect("a load")
    }

    /// The next load becomes durable; returns its rows.
    fn land(&self) -> Vec<String> {
        let (batch, done) = self.load();
        let rows = rows(&batch);
        batch.pieces.into_iter().for_each(|piece| drop(piece.settle()));
        self.runtime.block_on(done.finish());
        rows
    }

    fn answered(&self, status: u16) -> u64 {
        self.owner.meter.http().answered_with(status)
    }

    fn end(&mut self) -> Result<(), Fault> {
        self.stop.request();
        self.control.take().expect("not ended yet").join().expect("no panic")
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop.request();
        if let Some(control) = self.control.take() {
            // What it was asked to do is another thing than what the test is about.
            self.alarm.raise(Fault::retry("the test has ended"));
            let _ = control.join();
        }
    }
}

fn rows(batch: &Batch) -> Vec<String> {
    let rows = batch.pieces.iter().flat_map(|piece| (0..piece.len()).map(|place| piece.row(place).to_vec()));
    rows.map(|row| String::from_utf8(row).expect("text").trim_end().to_owned()).collect()
}

#[track_caller]
fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

/// A client that writes bytes.
struct Client {
    stream: TcpStream,
    read: Vec<u8>,
}

#[derive(Debug)]
struct Said {
    status: u16,
    head: String,
    body: serde_json::Value,
}

impl Client {
    fn write(&mut self, bytes: impl AsRef<[u8]>) -> &mut Client {
        self.stream.write_all(bytes.as_ref()).expect("the connection is open");
        self
    }

    fn post(&mut self, path: &str, headers: &str, body: impl AsRef<[u8]>) -> &mut Client {
        let body = body.as_ref();
        let head =
            format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
        self.write([head.as_bytes(), body].concat())
    }

    /// The next answer.
    fn said(&mut self) -> Said {
        let end = loop {
            if let Some(end) = find(&self.read, b"\r\n\r\n") {
                break end + 4;
            }
            assert!(self.more() > 0, "closed without an answer: {:?}", String::from_utf8_lossy(&self.read));
        };
        let head = String::from_utf8(self.read.drain(..end).collect()).expect("text").to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.map_or(0, |text| text.parse().expect("a number"));
        while self.read.len() < length {
            assert!(self.more() > 0, "closed within an answer");
        }
        let body: Vec<u8> = self.read.drain(..length).collect();
        let status = head.split(' ').nth(1).expect("a status").parse().expect("a number");
        let body = serde_json::from_slice(&body).expect("JSON");
        Said { status, head, body }
    }

    fn more(&mut self) -> usize {
        let mut buffer = [0; 4096];
        let read = self.stream.read(&mut buffer).expect("an answer in time");
        self.read.extend_from_slice(&buffer[..read]);
        read
    }

    fn is_closed(&mut self) -> bool {
        let mut buffer = [0; 16];
        matches!(self.stream.read(&mut buffer), Ok(0) | Err(_))
    }
}

fn find(within: &[u8], what: &[u8]) -> Option<usize> {
    within.windows(what.len()).position(|window| window == what)
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(body).expect("a vector takes everything");
    encoder.finish().expect("a vector takes everything")
}

#[test]
fn a_request_is_answered_when_its_rows_are_durable() {
    let bench = Bench::new();
    let mut client = bench.connect();
    client.post("/events", "content-type: application/json\r\n", "[{\"a\":1},{\"a\":\n2}]");
    let (batch, done) = bench.load();
    assert_eq!(rows(&batch), ["{\"a\":1}", "{\"a\":2}"]);
    assert_eq!(bench.owner.meter.http().in_flight.get(), 1);
    client.stream.set_read_timeout(Some(Duration::from_millis(100))).expect("a time-out");
    assert!(client.stream.read(&mut [0]).is_err(), "answered before the load has ended");
    client.stream.set_read_timeout(Some(SOON)).expect("a time-out");
    batch.pieces.into_iter().for_each(|piece| drop(piece.settle()));
    bench.runtime.block_on(done.finish());
    let said = client.said();
    assert_eq!(
        (said.status, said.body.to_string()),
        (200, r#"{"accepted":2,"loaded":2,"dead_lettered":0}"#.into())
    );
    wait_until("all bytes come back", || bench.share.used() == 0);
    assert_eq!((bench.ledger.stays().len(), bench.owner.meter.http().in_flight.get()), (0, 0));
}

#[test]
fn many_small_requests_share_a_load() {
    let bench = Bench::new();
    let mut clients: Vec<Client> = (0..300).map(|_| bench.connect()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.post("/events", "", format!("{{\"n\":{number}}}"));
    }
    wait_until("all are taken", || bench.owner.meter.records_read.get() == 300);
    let (mut loads, mut loaded) = (0, 0);
    while loaded < 300 {
        loads += 1;
        loaded += bench.land().len();
    }
    assert!(loads <= 5, "{loads} loads");
    for client in &mut clients {
        assert_eq!(client.said().status, 200);
    }
}

#[test]
fn a_large_body_in_many_frames_arrives_whole_and_in_order() {
    let bench = Bench::new();
    let lines: Vec<String> =
        (0..9_000).map(|number| format!("{{\"number\":{number},\"text\":\"é\"}}")).collect();
    let body = lines.join("\r\n");
    for (headers, body) in
        [("", body.clone().into_bytes()), ("content-encoding: gzip\r\n", gzip(body.as_bytes()))]
    {
        let mut client = bench.connect();
        let kind = format!("content-type: application/x-ndjson\r\n{headers}");
        let head = format!("POST /e HTTP/1.1\r\nhost: x\r\n{kind}transfer-encoding: chunked\r\n\r\n");
        client.write(head);
        for piece in body.chunks(50_000) {
            client.write([format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat());
        }
        client.write("0\r\n\r\n");
        let mut landed = Vec::new();
        while landed.len() < lines.len() {
            landed.extend(bench.land());
        }
        assert!(landed == lines);
        assert_eq!(client.said().body["loaded"], 9_000);
    }
}

#[test]
fn a_connection_is_kept_and_requests_may_be_sent_ahead() {
    let bench = Bench::new();
    let mut client = bench.connect();
    client.post("/a?ack=queued", "", "{\"n\":1}").post("/a?ack=queued", "", "{\"n\":2}");
    client.write("GET /health HTTP/1.1\r\nhost: x\r\n\r\n");
    for expected in ["{\"accepted\":1}", "{\"accepted\":1}", "{\"status\":\"ok\"}"] {
        assert_eq!(client.said().body.to_string(), expected);
    }
    assert_eq!(bench.land(), ["{\"n\":1}", "{\"n\":2}"]);
    wait_until("stays end", || bench.ledger.stays().is_empty());
}

#[test]
fn bad_requests_are_answered_as_people_expect() {
    let bench = Bench::with(Http { max_records: 3, ..settings() }, 16 << 20);
    let bomb = gzip(&vec![b' '; 64 << 20]);
    let deep = format!("{{\"a\":{}", "[".repeat(200_000));
    let json = "content-type: application/json\r\n";
    let zipped = "content-encoding: gzip\r\n";
    let many = "{}\n".repeat(4);
    let cases: [(&str, &str, &[u8], u16, &str); 13] = [
        ("/e", json, b"{\"a\":NaN}", 400, "expected value"),
        ("/e", json, b"{\"a\":1}\n{\"a\":2}", 400, "trailing characters"),
        ("/e", json, deep.as_bytes(), 400, "EOF while parsing"),
        ("/e", "", b"[1]", 400, "a record is a number and not an object"),
        ("/e", "", b"", 400, "the body is empty"),
        ("/e", zipped, &gzip(b"{\"a\":1}")[..20], 400, "the body cannot be unpacked: it ends too early"),
        ("/e", zipped, &bomb, 413, "the unpacked body is longer than 1048576 bytes"),
        ("/e", "", many.as_bytes(), 413, "the request has more than 3 records"),
        ("/e", "", &vec![b' '; (1 << 20) + 1], 413, "the body is longer than 1048576 bytes"),
        ("/e", "content-type: text/csv\r\n", b"1,2", 415, "the content type \"text/csv\" is not JSON"),
        ("/e", "content-encoding: br\r\n", b"x", 415, "the content encoding \"br\" is not known"),
        ("/", "", b"{}", 404, "the path names nothing"),
        ("/e?ack=no", "", b"{}", 400, "the parameter `ack` is not known"),
    ];
    for (path, headers, body, status, error) in cases {
        let said = bench.connect().post(path, headers, body).said();
        assert_eq!(said.status, status, "{error}: {said:?}");
        assert!(said.body["error"].as_str().is_some_and(|said| said.starts_with(error)), "{error}: {said:?}");
    }
    let said = bench.connect().post("/e", json, "[{},\n{\"a\":}]").said();
    assert_eq!((&said.body["line"], &said.body["byte"]), (&2.into(), &10.into()));
    let said = bench.connect().write("PUT /e HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n").said();
    assert_eq!(said.status, 405);
    assert!(said.head.contains("allow: post"), "{}", said.head);
    assert_eq!(bench.owner.meter.records_read.get(), 0);
    wait_until("all bytes come back", || bench.share.used() == 0);
}

#[test]
fn without_a_token_nothing_is_read() {
    let bench = Bench::with(Http { tokens: vec![Secret::new("hunter2")], ..settings() }, 16 << 20);
    let said = bench.connect().post("/e", "", "{}").said();
    assert_eq!(said.status, 401);
    assert!(said.head.contains("www-authenticate: bearer"), "{}", said.head);
    assert_eq!(bench.connect().post("/e", "authorization: Bearer hunter3\r\n", "{}").said().status, 401);
    let said = bench.connect().post("/e?ack=queued", "authorization: Bearer hunter2\r\n", "{}").said();
    assert_eq!(said.status, 202);
    assert_eq!(bench.connect().write("GET /health HTTP/1.1\r\nhost: x\r\n\r\n").said().status, 200);
}

#[test]
fn slow_clients_are_cut_off() {
    let (silence, whole) = (Duration::from_millis(400), Duration::from_millis(1_200));
    let bench = Bench::with(Http { read_timeout: silence, request_timeout: whole, ..settings() }, 16 << 20);
    let head = "POST /e HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n";

    let mut silent = bench.connect();
    let said = silent.write(head).write("{").said();
    assert_eq!(
        (said.status, said.body["error"].as_str()),
        (408, Some("nothing of the body arrived within 400ms"))
    );
    assert!(silent.is_closed());

    let mut trickling = bench.connect();
    trickling.write(head);
    let mut stream = trickling.stream.try_clone().expect("a second handle");
    let trickle = std::thread::spawn(move || {
        while stream.write_all(b" ").is_ok() {
            std::thread::park_timeout(silence / 4);
        }
    });
    let said = trickling.said();
    assert_eq!(
        (said.status, said.body["error"].as_str()),
        (408, Some("the request did not arrive within 1.2s"))
    );
    trickling.stream.shutdown(Shutdown::Both).expect("open");
    trickle.join().expect("no panic");

    let mut headless = bench.connect();
    assert_eq!(headless.write("POST /e HTT").said().status, 408);
    assert!(headless.is_closed());
    wait_until("all bytes come back", || bench.share.used() == 0);
}

#[test]
fn a_body_that_is_shorter_than_announced_is_not_used() {
    let bench = Bench::new();
    let mut client = bench.connect();
    client.write("POST /e HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{\"a\":1}");
    client.stream.shutdown(Shutdown::Write).expect("open");
    let said = client.said();
    assert_eq!((said.status, bench.owner.meter.records_read.get()), (400, 0));
    // A client that ends its side behind a whole request still reads the answer.
    let mut client = bench.connect();
    client.post("/e", "", "{\"a\":1}");
    client.stream.shutdown(Shutdown::Write).expect("open");
    assert_eq!(bench.land(), ["{\"a\":1}"]);
    assert_eq!(client.said().status, 200);
}

#[test]
fn a_client_that_hangs_up_changes_nothing() {
    let bench = Bench::new();
    bench.connect().post("/e", "idempotency-key: k\r\n", "{\"a\":1}");
    assert_eq!(bench.land(), ["{\"a\":1}"]);
    let said = bench.connect().post("/e", "idempotency-key: k\r\n", "{\"a\":1}").said();
    assert_eq!((said.status, said.body["loaded"].as_u64()), (200, Some(1)));
    assert_eq!(bench.owner.meter.records_read.get(), 1);
}

#[test]
fn a_repeated_key_is_answered_once_for_all() {
    let bench = Bench::new();
    let mut clients: Vec<Client> = (0..5).map(|_| bench.connect()).collect();
    for client in &mut clients {
        client.post("/e", "idempotency-key: k\r\n", "{\"a\":1}");
    }
    let (batch, done) = bench.load();
    assert_eq!(rows(&batch), ["{\"a\":1}"]);
    let other = bench.connect().post("/e", "idempotency-key: k\r\n", "{\"a\":2}").said();
    assert_eq!((other.status, bench.answered(200)), (422, 0));
    batch.pieces.into_iter().for_each(|piece| drop(piece.settle()));
    bench.runtime.block_on(done.finish());
    for client in &mut clients {
        assert_eq!(client.said().body.to_string(), r#"{"accepted":1,"loaded":1,"dead_lettered":0}"#);
    }
    assert_eq!(bench.connect().post("/f", "idempotency-key: k\r\n", "{\"a\":1}").said().status, 422);
    // What was refused has loaded nothing, so its key is free again.
    assert_eq!(bench.connect().post("/e", "idempotency-key: l\r\n", "{").said().status, 400);
    assert_eq!(bench.connect().post("/e?ack=queued", "idempotency-key: l\r\n", "{}").said().status, 202);
}

#[test]
fn a_refused_row_is_told_to_its_own_request() {
    let bench = Bench::new();
    let (mut bad, mut good) = (bench.connect(), bench.connect());
    let long = format!("{{\"a\":\"{}\"}}", "x".repeat(ROW_BYTES_MAX as usize));
    bad.post("/e", "", format!("{{\"a\":1}}\n{long}\n{{\"a\":3}}"));
    good.post("/e", "", "{\"a\":4}");
    let mut landed = Vec::new();
    while landed.len() < 3 {
        landed.extend(bench.land());
    }
    let said = bad.said();
    assert_eq!((said.status, said.body["loaded"].as_u64()), (422, Some(2)));
    assert_eq!(
        (&said.body["refused"][0]["record"], said.body["refused"].as_array().map(Vec::len)),
        (&1.into(), Some(1))
    );
    assert_eq!(good.said().status, 200);
}

#[test]
fn a_full_budget_is_told_with_a_time_to_come_back() {
    let bench = Bench::with(settings(), 10_000);
    let all = bench.share.overdraft(10_000);
    let said = bench.connect().post("/e", "", "{\"a\":1}").said();
    assert_eq!((said.status, said.body["error"].as_str()), (503, Some("too many bytes are in flight")));
    assert!(said.head.contains("retry-after: 1"), "{}", said.head);
    drop(all);
    let mut client = bench.connect();
    client.post("/e", "", "{\"a\":1}");
    assert_eq!(bench.land(), ["{\"a\":1}"]);
    assert_eq!(client.said().status, 200);
}

#[test]
fn an_outcome_that_is_not_known_in_time_can_be_asked_for_again() {
    let http = Http { answer_timeout: Duration::from_millis(300), ..settings() };
    let bench = Bench::with(http, 16 << 20);
    let mut client = bench.connect();
    let said = client.post("/e", "idempotency-key: k\r\n", "{\"a\":1}").said();
    assert_eq!(said.status, 504);
    client.post("/e", "idempotency-key: k\r\n", "{\"a\":1}");
    assert_eq!(bench.land(), ["{\"a\":1}"]);
    assert_eq!(client.said().status, 200);
}

#[test]
fn as_many_connections_as_there_may_be_are_served_and_idle_ones_are_in_nobodys_way() {
    let bench = Bench::with(Http { max_connections: 200, ..settings() }, 16 << 20);
    let idle: Vec<Client> = (0..199).map(|_| bench.connect()).collect();
    let mut last = bench.connect();
    assert_eq!(last.post("/e?ack=queued", "", "{}").said().status, 202);
    // The next one waits until another one goes.
    let mut waiting = bench.connect();
    waiting.post("/e?ack=queued", "", "{}");
    wait_until("all are open", || bench.owner.meter.http().connections.get() == 200);
    assert_eq!(bench.answered(202), 1);
    drop(idle);
    assert_eq!(waiting.said().status, 202);
}

#[test]
fn a_drain_answers_what_was_taken_and_takes_no_more() {
    let mut bench = Bench::new();
    let (mut taken, mut late, mut idle) = (bench.connect(), bench.connect(), bench.connect());
    late.write("POST /e HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{");
    taken.post("/e", "", "{\"a\":1}");
    wait_until("it is taken", || bench.owner.meter.records_read.get() == 1);
    bench.stop.request();
    assert!(idle.is_closed());
    late.write("}");
    assert_eq!(late.said().status, 503);
    assert_eq!(bench.land(), ["{\"a\":1}"]);
    assert_eq!(taken.said().status, 200);
    bench.end().expect("drained");
    assert!(TcpStream::connect(bench.address).is_err());
}

#[test]
fn a_halt_promises_nothing() {
    let mut bench = Bench::new();
    let mut taken = bench.connect();
    taken.post("/e", "", "{\"a\":1}");
    let (batch, done) = bench.load();
    bench.alarm.raise(Fault::halt("nothing works", "mend it"));
    batch.pieces.into_iter().for_each(crate::batch::Piece::forget);
    bench.runtime.block_on(done.finish());
    let said = taken.said();
    assert_eq!(
        (said.status, said.body["error"].as_str()),
        (503, Some("the pipeline ended before all records were durable"))
    );
    assert_eq!(bench.end().expect_err("halted").what, "nothing works");
    assert!(bench.ledger.stays().is_empty());
}
