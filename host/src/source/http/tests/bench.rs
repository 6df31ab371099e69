//! A pipeline behind a listener, and a client that writes bytes.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::batch::Batch;
use crate::batch::stage::fakes::{Shown, destination, owner};
use crate::batch::stage::{Done, Registration, StageHandle};
use crate::budget::{Budget, Share};
use crate::chain::Chain;
use crate::config::model::{BatchLimits, Http, TableModel};
use crate::dead_letter::Rejects;
use crate::delivery::owner::Owner;
use crate::delivery::{Alarm, Stop};
use crate::fault::Fault;
use crate::lane::{Lane, LaneParts};
use crate::ledger::Ledger;
use crate::rows::{Target, Targets};
use crate::source::http::HttpFeed;
use crate::source::http::control::Control;
use crate::source::{Gathering, Parts};

pub(super) const SOON: Duration = Duration::from_secs(20);
pub(super) const LINGER: Duration = Duration::from_millis(200);
pub(super) const ROW_BYTES_MAX: u64 = 1_000;

/// A pipeline of one table behind a listener.
pub(super) struct Bench {
    pub(super) address: SocketAddr,
    pub(super) started: mpsc::Receiver<(Batch, Done)>,
    pub(super) share: Share,
    pub(super) owner: Arc<Owner>,
    pub(super) ledger: Ledger,
    pub(super) alarm: Alarm,
    pub(super) stop: Stop,
    pub(super) control: Option<std::thread::JoinHandle<Result<(), Fault>>>,
    /// Behind everything that runs on it.
    pub(super) runtime: tokio::runtime::Runtime,
}

pub(super) fn settings() -> Http {
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
    pub(super) fn new() -> Bench {
        Bench::with(settings(), 16 << 20)
    }

    pub(super) fn with(http: Http, budget: u64) -> Bench {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let stage = StageHandle::start(runtime.handle().clone()).expect("a thread");
        let share = Budget::new(budget).share(budget, 0);
        let (shows, started) = mpsc::channel();
        let registration = Registration {
            destinations: vec![destination("orders")],
            limits: BatchLimits { max_rows: 100_000, max_bytes: 64 << 20, linger: LINGER, stretch: None },
            in_flight: 1,
            share: share.clone(),
            meters: Vec::new(),
            outlet: Arc::new(Shown(shows)),
            epochs: None,
        };
        stage.register(0, registration).expect("the stage lives");
        let (ledger, alarm, stop) = (Ledger::new(), Alarm::default(), Stop::default());
        let owner = Arc::new(owner(0, &share, Rejects::Answer));
        let targets = Targets {
            names: std::sync::Arc::default(),
            tables: vec![Target { model: TableModel::Duplicate.into() }],
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

    pub(super) fn connect(&self) -> Client {
        let stream = TcpStream::connect(self.address).expect("listening");
        stream.set_read_timeout(Some(SOON)).expect("a time-out");
        Client { stream, read: Vec::new() }
    }

    /// The next load, on its way.
    pub(super) fn load(&self) -> (Batch, Done) {
        self.started.recv_timeout(SOON).expect("a load")
    }

    /// The next load becomes durable; returns its rows.
    pub(super) fn land(&self) -> Vec<String> {
        let (batch, done) = self.load();
        let rows = rows(&batch);
        batch.pieces.into_iter().for_each(|piece| drop(piece.settle()));
        self.runtime.block_on(done.finish());
        rows
    }

    pub(super) fn answered(&self, status: u16) -> u64 {
        self.owner.meter.http().answered_with(status)
    }

    pub(super) fn end(&mut self) -> Result<(), Fault> {
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

pub(super) fn rows(batch: &Batch) -> Vec<String> {
    let rows = batch.pieces.iter().flat_map(|piece| (0..piece.len()).map(|place| piece.row(place).to_vec()));
    rows.map(|row| String::from_utf8(row).expect("text").trim_end().to_owned()).collect()
}

#[track_caller]
pub(super) fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

/// A client that writes bytes.
pub(super) struct Client {
    pub(super) stream: TcpStream,
    pub(super) read: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Said {
    pub(super) status: u16,
    pub(super) head: String,
    pub(super) body: serde_json::Value,
}

impl Client {
    pub(super) fn write(&mut self, bytes: impl AsRef<[u8]>) -> &mut Client {
        self.stream.write_all(bytes.as_ref()).expect("the connection is open");
        self
    }

    pub(super) fn post(&mut self, path: &str, headers: &str, body: impl AsRef<[u8]>) -> &mut Client {
        let body = body.as_ref();
        let head =
            format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
        self.write([head.as_bytes(), body].concat())
    }

    /// The head of the next answer, in lower case.
    pub(super) fn head(&mut self) -> String {
        let end = loop {
            if let Some(end) = find(&self.read, b"\r\n\r\n") {
                break end + 4;
            }
            assert!(self.more() > 0, "closed without an answer: {:?}", String::from_utf8_lossy(&self.read));
        };
        String::from_utf8(self.read.drain(..end).collect()).expect("text").to_ascii_lowercase()
    }

    /// The next answer.
    pub(super) fn said(&mut self) -> Said {
        let head = self.head();
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

    pub(super) fn more(&mut self) -> usize {
        let mut buffer = [0; 4096];
        let read = self.stream.read(&mut buffer).expect("an answer in time");
        self.read.extend_from_slice(&buffer[..read]);
        read
    }

    pub(super) fn is_closed(&mut self) -> bool {
        let mut buffer = [0; 16];
        match self.stream.read(&mut buffer) {
            Ok(read) => read == 0,
            // A time-out says that it is open, and nothing else.
            Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        }
    }
}

pub(super) fn find(within: &[u8], what: &[u8]) -> Option<usize> {
    within.windows(what.len()).position(|window| window == what)
}

pub(super) fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(body).expect("a vector takes everything");
    encoder.finish().expect("a vector takes everything")
}
