//! A small HTTP/1.1 client that shows what other clients hide: `100 Continue`, closed connections, half answers.

use base64::Engine as _;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long the other side may take to close a connection that it is done with.
const CLOSE_WITHIN: Duration = Duration::from_secs(10);

/// A request's head.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    pub(crate) method: &'static str,
    pub(crate) path: String,
    pub(crate) version: &'static str,
    pub(crate) headers: Vec<(String, String)>,
}

impl Head {
    pub(crate) fn new(method: &'static str, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), version: "HTTP/1.1", headers: Vec::new() }
    }

    pub(crate) fn with(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.headers.retain(|(have, _)| !have.eq_ignore_ascii_case(name));
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(have, _)| !have.eq_ignore_ascii_case(name));
        self
    }

    pub(crate) fn user(self, user: &str, password: &str) -> Self {
        let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        self.with("Authorization", format!("Basic {pair}"))
    }

    fn written(&self, authority: &str) -> String {
        let Self { method, path, version, headers } = self;
        let mut text = format!("{method} {path} {version}\r\nHost: {authority}\r\n");
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        text
    }
}

/// An answer, or the interim one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
    /// Whether `100 Continue` came before it.
    pub(crate) continued: bool,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// A text field of the JSON body.
    pub(crate) fn text(&self, field: &str) -> String {
        self.json()[field].as_str().unwrap_or_else(|| panic!("no text {field} in {}", self.body)).to_owned()
    }

    /// Status and message of an FE's refusal, as newer releases spell the two fields or as older ones do.
    pub(crate) fn refusal(&self) -> (String, String) {
        let document = self.json();
        let text = |names: [&str; 2]| {
            let found = names.iter().find_map(|name| document[*name].as_str());
            found.unwrap_or_else(|| panic!("none of {names:?} in {}", self.body)).to_owned()
        };
        (text(["Status", "status"]), text(["Message", "msg"]))
    }

    pub(crate) fn number(&self, field: &str) -> i64 {
        self.json()[field].as_i64().unwrap_or_else(|| panic!("no number {field} in {}", self.body))
    }
}

/// One connection.
pub(crate) struct Connection {
    stream: TcpStream,
    authority: String,
    read: Vec<u8>,
}

impl Connection {
    pub(crate) async fn open(authority: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(authority).await?;
        Ok(Self { stream, authority: authority.to_owned(), read: Vec::new() })
    }

    pub(crate) async fn head(&mut self, head: &Head) -> io::Result<()> {
        self.stream.write_all(head.written(&self.authority).as_bytes()).await
    }

    pub(crate) async fn body(&mut self, body: &[u8]) -> io::Result<()> {
        self.stream.write_all(body).await
    }

    /// Reads one answer; an interim `100` comes back as such, without a body.
    pub(crate) async fn answer(&mut self) -> io::Result<Answer> {
        let end = loop {
            if let Some(at) = self.read.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            self.more().await?;
        };
        let head = String::from_utf8_lossy(&self.read[..end]).into_owned();
        self.read.drain(..end);
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        let mut answer =
            Answer { status: status.ok_or(io::ErrorKind::InvalidData)?, headers, ..Answer::default() };
        if answer.status == 100 {
            return Ok(answer);
        }
        let length: usize = answer.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        while self.read.len() < length {
            self.more().await?;
        }
        answer.body = String::from_utf8_lossy(&self.read[..length]).into_owned();
        self.read.drain(..length);
        Ok(answer)
    }

    async fn more(&mut self) -> io::Result<()> {
        match self.stream.read_buf(&mut self.read).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// Ends what this side has to say; the other side can still answer.
    pub(crate) async fn end(&mut self) -> io::Result<()> {
        self.stream.shutdown().await
    }

    /// Whether the other side closes without another byte, and soon.
    pub(crate) async fn is_closed(&mut self) -> bool {
        let more = tokio::time::timeout(CLOSE_WITHIN, self.more()).await;
        matches!(more, Ok(Err(_))) && self.read.is_empty()
    }
}

/// One request on a connection of its own; a body goes out after `100 Continue` when the head expects one.
pub(crate) async fn exchange(authority: &str, head: &Head, body: &[u8]) -> io::Result<Answer> {
    let mut connection = Connection::open(authority).await?;
    let head = if body.is_empty() && head.method == "GET" {
        head.clone()
    } else {
        match head.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
            true => head.clone(),
            false => head.clone().with("Content-Length", body.len()),
        }
    };
    connection.head(&head).await?;
    let expects = head.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("expect"));
    if !expects || body.is_empty() {
        connection.body(body).await?;
        let answer = connection.answer().await?;
        if answer.status != 100 {
            return Ok(answer);
        }
        return connection.answer().await.map(|answer| Answer { continued: true, ..answer });
    }
    let first = connection.answer().await?;
    if first.status != 100 {
        return Ok(first);
    }
    connection.body(body).await?;
    connection.answer().await.map(|answer| Answer { continued: true, ..answer })
}

/// Host and port of an `http://` address.
pub(crate) fn authority(url: &str) -> String {
    let rest = url.strip_prefix("http://").unwrap_or(url);
    rest.split('/').next().unwrap_or(rest).to_owned()
}

/// Path and query of an `http://` address.
pub(crate) fn path(url: &str) -> String {
    let rest = url.strip_prefix("http://").unwrap_or(url);
    rest.find('/').map_or_else(|| "/".to_owned(), |at| rest[at..].to_owned())
}
