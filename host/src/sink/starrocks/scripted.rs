//! A server for tests that does, byte by byte, what its script says; and the things that tests load.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;

use crate::config::model::{Compression, PartialUpdate, RowFormat, Secret, StarRocks, TableModel};
use crate::sink::{Destination, Load};

/// What waits for a condition gives up after this time.
const PATIENCE: Duration = Duration::from_secs(20);

/// A settings table as a file would give it.
pub(crate) fn cluster(fe: &[&str]) -> StarRocks {
    StarRocks {
        fe: fe.iter().map(|url| (*url).to_owned()).collect(),
        query: None,
        database: "shop".into(),
        table: Some("orders".into()),
        tables: Vec::new(),
        create_tables: false,
        user: "root".into(),
        password: Secret::new("canary"),
        table_model: None,
        in_flight: 1,
        load_timeout: Duration::from_secs(600),
        prepared_timeout: Duration::from_secs(86_400),
        redirect_hosts: Vec::new(),
        ca: None,
        properties: BTreeMap::new(),
        format: RowFormat::Json,
        columns: Vec::new(),
        partial_update: false,
        partial_update_mode: PartialUpdate::Row,
        compression: Compression::None,
    }
}

/// Three rows in two segments.
pub(super) fn load(cluster: StarRocks) -> Load {
    let segments = vec![
        Bytes::from_static(b"{\"id\":1,\"name\":\"a\"}\n{\"id\":2,\"name\":\"b\"}\n"),
        Bytes::from_static(b"{\"id\":3,\"name\":null}\n"),
    ];
    let destination = Destination {
        table: cluster.table.clone().unwrap_or_default(),
        cluster: Arc::new(cluster),
        model: TableModel::Duplicate,
        key: Vec::new(),
    };
    Load {
        destination: Arc::new(destination),
        label: "orders-0-7".into(),
        bytes: segments.iter().map(|segment| segment.len() as u64).sum(),
        segments,
        rows: 3,
        columns: None,
        packed: None,
        fences: Vec::new(),
        body_sent: false,
    }
}

/// What the server does next on a connection. At the end of its script it closes.
#[derive(Debug, Clone)]
pub(super) enum Step {
    /// Reads a request's head.
    Head,
    /// Reads as much body as the last head announced.
    Body,
    /// Fails the test if anything comes within 150 ms.
    Silence,
    /// Sends this.
    Say(String),
    /// Reads until the client closes; what comes counts as body.
    Hang,
}

/// `Head`, then an answer that closes.
pub(super) fn answering(answer: String) -> Vec<Step> {
    vec![Step::Head, Step::Say(answer)]
}

/// An HTTP answer with a body.
pub(super) fn json(body: &str) -> String {
    response("200 OK", "", body)
}

/// A redirect to `location`.
pub(super) fn redirect(location: &str) -> String {
    response("307 Temporary Redirect", &format!("Location: {location}\r\n"), "")
}

/// Any answer; `headers` end with a line break each.
pub(super) fn response(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())
}

/// One request as it came.
#[derive(Debug, Clone, Default)]
pub(super) struct Asked {
    pub(super) head: String,
    pub(super) body: Vec<u8>,
}

impl Asked {
    /// A header's value, by lower-case name.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find_map(|(key, value)| key.eq_ignore_ascii_case(name).then(|| value.trim()))
    }
}

/// A server on a free port. Each connection plays the next script; after the last one the port closes.
#[derive(Debug)]
pub(super) struct Scripted {
    pub(super) url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    task: JoinHandle<Vec<String>>,
}

impl Scripted {
    pub(super) async fn start(scripts: Vec<Vec<Step>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let task = tokio::spawn(play(listener, scripts, Arc::clone(&asked)));
        Self { url, asked, task }
    }

    /// Waits until the newest request has its whole body.
    pub(super) async fn has_body(&self) {
        let deadline = Instant::now() + PATIENCE;
        let is_there = || {
            let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            asked.last().is_some_and(|asked| !asked.body.is_empty())
        };
        while !is_there() {
            assert!(Instant::now() < deadline, "no whole body came within {PATIENCE:?}");
            tokio::task::yield_now().await;
        }
    }

    /// Waits for all scripts to be played and gives the requests in the order of their heads.
    pub(super) async fn finish(self) -> Vec<Asked> {
        let complaints = tokio::time::timeout(PATIENCE, self.task)
            .await
            .expect("all scripts are played in time")
            .expect("the server does not panic");
        assert!(complaints.is_empty(), "{complaints:?}");
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.clone()
    }
}

/// An address that refuses connections for as long as this lives: its port is taken, and nobody listens on it.
#[derive(Debug)]
pub(super) struct Nobody {
    pub(super) url: String,
    _bound: TcpSocket,
}

impl Nobody {
    pub(super) fn new() -> Self {
        let bound = TcpSocket::new_v4().expect("a socket");
        bound.bind(([127, 0, 0, 1], 0).into()).expect("a free port");
        Self { url: format!("http://{}", bound.local_addr().expect("bound")), _bound: bound }
    }
}

async fn play(listener: TcpListener, scripts: Vec<Vec<Step>>, asked: Arc<Mutex<Vec<Asked>>>) -> Vec<String> {
    let mut connections = Vec::new();
    for script in scripts {
        match listener.accept().await {
            Ok((stream, _)) => connections.push(tokio::spawn(converse(stream, script, Arc::clone(&asked)))),
            Err(error) => return vec![error.to_string()],
        }
    }
    drop(listener);
    let mut complaints = Vec::new();
    for connection in connections {
        match connection.await {
            Ok(complaint) => complaints.extend(complaint),
            Err(error) => complaints.push(error.to_string()),
        }
    }
    complaints
}

async fn converse(mut stream: TcpStream, script: Vec<Step>, asked: Arc<Mutex<Vec<Asked>>>) -> Option<String> {
    let mut buffer = Vec::new();
    let mut place = None;
    for step in script {
        match step {
            Step::Head => {
                let end = loop {
                    if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                        break end + 4;
                    }
                    if stream.read_buf(&mut buffer).await.is_ok_and(|read| read > 0) {
                        continue;
                    }
                    return Some("the client closed before a whole head came".into());
                };
                let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
                buffer.drain(..end);
                let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
                asked.push(Asked { head, body: Vec::new() });
                place = Some(asked.len() - 1);
            }
            Step::Body => {
                let Some(place) = place else { return Some("a script wants a body before a head".into()) };
                let length = {
                    let asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
                    asked[place].header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0)
                };
                while buffer.len() < length {
                    if !stream.read_buf(&mut buffer).await.is_ok_and(|read| read > 0) {
                        return Some(format!(
                            "the client closed after {} of {length} body bytes",
                            buffer.len()
                        ));
                    }
                }
                let body = buffer.drain(..length).collect();
                asked.lock().unwrap_or_else(PoisonError::into_inner)[place].body = body;
            }
            Step::Silence => {
                let window =
                    tokio::time::timeout(Duration::from_millis(150), stream.read_buf(&mut buffer)).await;
                if window.is_ok() || !buffer.is_empty() {
                    return Some("the client spoke where it should have waited".into());
                }
            }
            Step::Say(text) => {
                if stream.write_all(text.as_bytes()).await.is_err() {
                    return Some("the client closed before the answer".into());
                }
            }
            Step::Hang => {
                while stream.read_buf(&mut buffer).await.is_ok_and(|read| read > 0) {}
                if let Some(place) = place {
                    let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
                    asked[place].body.append(&mut buffer);
                }
            }
        }
    }
    None
}
