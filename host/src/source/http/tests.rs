//! A real listener, real lanes and a real stage; loads are ended by the test.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject as _;

use crate::config::model::{Http, HttpTls, Secret};
use crate::fault::Fault;

mod bad_input;
mod bench;
mod hostile;

use bench::{Bench, Client, ROW_BYTES_MAX, SOON, gzip, rows, settings, wait_until};

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
    let mut landed = Vec::new();
    while landed.len() < 2 {
        landed.extend(bench.land());
    }
    assert_eq!(landed, ["{\"n\":1}", "{\"n\":2}"]);
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
fn a_client_that_asks_whether_to_send_its_body_is_told_before_it_does() {
    let bench = Bench::new();
    let head = |length: usize| {
        format!("POST /e HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\r\n")
    };
    assert_eq!(bench.connect().write(head(2 << 20)).said().status, 413);
    let mut client = bench.connect();
    client.write(head(2));
    while !client.read.ends_with(b"\r\n\r\n") {
        assert!(client.more() > 0, "closed");
    }
    assert!(client.read.starts_with(b"HTTP/1.1 100 "));
    client.read.clear();
    client.write("{}");
    assert_eq!(bench.land(), ["{}"]);
    assert_eq!(client.said().status, 200);
}

#[test]
fn a_request_larger_than_the_budget_passes_alone() {
    let bench = Bench::with(settings(), 2_000);
    let body = "{}\n".repeat(1_000);
    let mut client = bench.connect();
    client.post("/e", "", body);
    assert_eq!(bench.land().len(), 1_000);
    assert_eq!(client.said().status, 200);
}

#[test]
fn https_is_spoken_where_there_is_a_certificate() {
    let fixture =
        |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("src/sink/starrocks/fixtures").join(name);
    let files = |client_ca: Option<PathBuf>| {
        let tls = HttpTls { certificate: fixture("localhost.pem"), key: fixture("localhost.key"), client_ca };
        Http { tls: Some(tls), read_timeout: Duration::from_secs(2), ..settings() }
    };
    let speak = |bench: &Bench| {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        let authority = rustls::pki_types::CertificateDer::from_pem_file(fixture("localhost.pem"));
        roots.add(authority.expect("a certificate")).expect("an authority");
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = "127.0.0.1".try_into().expect("a name");
        let connection = rustls::ClientConnection::new(Arc::new(config), name).expect("a client");
        let mut stream = rustls::StreamOwned::new(connection, bench.connect().stream);
        let sent = stream.write_all(b"POST /e?ack=queued HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}");
        let mut said = [0; 12];
        sent.and_then(|()| stream.read_exact(&mut said)).map(|()| said)
    };
    let bench = Bench::with(files(None), 16 << 20);
    assert_eq!(speak(&bench).expect("an answer"), *b"HTTP/1.1 202");
    let mut plain = bench.connect();
    plain.post("/e", "", "{}");
    assert!(plain.is_closed() || plain.is_closed(), "spoken to without TLS");
    let asks = Bench::with(files(Some(fixture("localhost.pem"))), 16 << 20);
    assert!(speak(&asks).is_err(), "taken without a client certificate");
}

#[test]
fn slow_clients_are_cut_off() {
    let (silence, whole) = (Duration::from_secs(2), Duration::from_secs(3));
    let bench = Bench::with(Http { read_timeout: silence, request_timeout: whole, ..settings() }, 16 << 20);
    let head = "POST /e HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n";

    let mut silent = bench.connect();
    let said = silent.write(head).write("{").said();
    assert_eq!(
        (said.status, said.body["error"].as_str()),
        (408, Some("nothing of the body arrived within 2s"))
    );
    assert!(silent.is_closed());

    let mut trickling = bench.connect();
    trickling.write(head);
    let mut stream = trickling.stream.try_clone().expect("a second handle");
    let trickle = std::thread::spawn(move || {
        while stream.write_all(b" ").is_ok() {
            // Far from a silence, even on a machine that is busy with other things.
            std::thread::park_timeout(Duration::from_millis(100));
        }
    });
    let said = trickling.said();
    assert_eq!(
        (said.status, said.body["error"].as_str()),
        (408, Some("the request did not arrive within 3s"))
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
    // As a client does: it asks until it is told. The load may have taken longer than this question waited, too.
    let deadline = Instant::now() + SOON;
    let status = loop {
        let status = client.said().status;
        if status != 504 || Instant::now() >= deadline {
            break status;
        }
        client.post("/e", "idempotency-key: k\r\n", "{\"a\":1}");
    };
    assert_eq!((status, bench.owner.meter.records_read.get()), (200, 1));
    assert!(bench.started.try_recv().is_err(), "loaded a second time");
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
    waiting.stream.set_read_timeout(Some(Duration::from_millis(200))).expect("a time-out");
    assert!(waiting.stream.read(&mut [0]).is_err(), "answered beside as many as there may be");
    waiting.stream.set_read_timeout(Some(SOON)).expect("a time-out");
    assert_eq!((bench.owner.meter.http().connections.get(), bench.answered(202)), (200, 1));
    drop(idle);
    assert_eq!(waiting.said().status, 202);
}

#[test]
fn a_drain_answers_what_was_taken_and_takes_no_more() {
    let mut bench = Bench::new();
    let (mut taken, mut late, mut idle) = (bench.connect(), bench.connect(), bench.connect());
    late.write("POST /e HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{");
    // What a request announces is charged as soon as its head is read.
    wait_until("its head is read", || bench.share.used() > 0);
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
