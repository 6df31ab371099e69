//! A connection at the level of messages, for the two things that the client library cannot do: replication
//! commands, and a COPY that is read by blocks. Row by row, as the library has it, a COPY costs more than a µs of
//! CPU each (postgres-cdc.md §1.2); by blocks it was measured at 0.05 to 0.1 µs, and as fast as `psql`.
//!
//! Protocol: PostgreSQL's documentation, "Frontend/Backend Protocol", version 3.0; the simple query cycle.

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::{Buf, BufMut as _, Bytes, BytesMut};
use pgwire_replication::protocol::messages::ErrorFields;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::copy_data::{CopyData, HEAD_BYTES, ROW, head};
use super::link::Link;
use super::trouble::Failure;
use crate::config::model::Postgres;

/// Room for what is read outside a COPY.
const READ_BYTES: usize = 16 << 10;
/// Less room than this is not worth a system call of a COPY.
const COPY_READ_BYTES_MIN: usize = 16 << 10;
/// Most room that a COPY's read is given at once, unless a single row needs more.
const COPY_ROOM_BYTES_MAX: usize = 256 << 10;
/// After so many bytes in a row, more are on their way.
const BYTES_IN_A_ROW: usize = 64 << 10;
/// How long a COPY's thread rests after fewer: the server sends 8 KiB at a time, and each would wake the thread.
const REST: Duration = Duration::from_millis(1);
/// Longest message; of COPY that is one row, which Postgres keeps below 1 GB.
const MESSAGE_BYTES_MAX: usize = 1 << 30;

/// What a session may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// SQL.
    Ordinary,
    /// Replication commands, and SQL.
    Replication,
}

/// A row of an answer: the text of each column, none for NULL.
pub type TextRow = Vec<Option<String>>;

/// A logged-in connection. Closed when dropped.
#[derive(Debug)]
pub struct Session {
    link: Link,
    received: BytesMut,
    /// Bytes of a COPY since the thread rested or waited last.
    came_bytes: usize,
    pid: i32,
}

/// What one call of [`Session::copied`] brought.
#[derive(Debug)]
#[must_use]
pub struct Arrived {
    /// Rows, as they came.
    pub data: CopyData,
    /// Whether the COPY is over.
    pub ended: bool,
}

/// A message of the server.
struct Message {
    tag: u8,
    body: Bytes,
}

impl Session {
    /// Logs in over a fresh link. The caller limits the time.
    ///
    /// # Errors
    /// When the server refuses, or wants a way of logging in that is unknown here (Kerberos, SSPI).
    pub async fn log_in(
        link: Link,
        source: &Postgres,
        mode: Mode,
        application_name: &str,
        options: &str,
    ) -> Result<Session, Failure> {
        let mut session = Session { link, received: BytesMut::new(), came_bytes: 0, pid: 0 };
        let mut parameters = vec![
            ("user", source.user.as_str()),
            ("database", source.database.as_str()),
            ("client_encoding", "UTF8"),
            ("application_name", application_name),
            ("options", options),
        ];
        if mode == Mode::Replication {
            parameters.push(("replication", "database"));
        }
        session.send(|buffer| frontend::startup_message(parameters, buffer)).await?;
        session.authenticate(source).await?;
        loop {
            let Message { tag, mut body } = session.message().await?;
            match tag {
                b'K' if body.len() >= 4 => session.pid = body.get_i32(),
                b'Z' => return Ok(session),
                b'E' => return Err(refusal(&body)),
                // Parameters and notices.
                b'S' | b'N' | b'A' => {}
                tag => return Err(unexpected(tag, "log-in")),
            }
        }
    }

    /// The server's process of this session.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Runs SQL or a replication command that copies nothing, and gives the rows of the last statement that has any.
    ///
    /// # Errors
    /// The server's first refusal; the session can be used again after it, unlike after any other failure.
    pub async fn run(&mut self, statement: &str) -> Result<Vec<TextRow>, Failure> {
        self.send(|buffer| frontend::query(statement, buffer)).await?;
        let mut rows = Vec::new();
        loop {
            let Message { tag, body } = self.message().await?;
            match tag {
                b'T' => rows.clear(),
                b'D' => rows.push(text_row(body)?),
                // Nothing of the statement follows.
                b'E' => return Err(self.after_refusal(refusal(&body)).await),
                b'Z' => return Ok(rows),
                // The statement's end, an empty one, parameters and notices.
                b'C' | b'I' | b'S' | b'N' | b'A' => {}
                tag => return Err(unexpected(tag, "query")),
            }
        }
    }

    /// Says farewell, so that the server's log has no word of a client that vanished.
    pub async fn close(mut self) {
        let farewell = |buffer: &mut BytesMut| {
            frontend::terminate(buffer);
            Ok(())
        };
        // Whoever cannot be told any more is gone already.
        let _ = self.send(farewell).await;
    }

    /// Begins a `COPY … TO STDOUT`; its rows follow by [`copied`](Self::copied).
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn copy_out(&mut self, statement: &str) -> Result<(), Failure> {
        self.send(|buffer| frontend::query(statement, buffer)).await?;
        loop {
            let Message { tag, body } = self.message().await?;
            match tag {
                b'H' => return Ok(()),
                b'E' => return Err(self.after_refusal(refusal(&body)).await),
                b'S' | b'N' | b'A' => {}
                tag => return Err(unexpected(tag, "COPY")),
            }
        }
    }

    /// The next whole rows of the running COPY: not many more than `enough_bytes`, unless a single row has more; fewer
    /// when the COPY has ended. Lets the thread rest between reads, so call it where no other task has to run.
    ///
    /// # Errors
    /// When the COPY fails. Rows that were given before then are of no use.
    pub async fn copied(&mut self, enough_bytes: usize) -> Result<Arrived, Failure> {
        let (mut whole_bytes, mut rows) = (0, 0);
        loop {
            let needed = match self.rows_so_far(&mut whole_bytes, &mut rows) {
                Progress::Starved(needed) => needed,
                Progress::Other => {
                    let data = self.take_data(whole_bytes, rows);
                    self.end_copy().await?;
                    return Ok(Arrived { data, ended: true });
                }
            };
            let room = enough_bytes.saturating_sub(self.received.len());
            let fits = whole_bytes + needed <= enough_bytes && room >= COPY_READ_BYTES_MIN;
            if whole_bytes > 0 && !fits {
                return Ok(Arrived { data: self.take_data(whole_bytes, rows), ended: false });
            }
            if needed > MESSAGE_BYTES_MAX {
                return Err(Failure::TooLong { bytes: needed, limit: MESSAGE_BYTES_MAX });
            }
            let lacks = (whole_bytes + needed).saturating_sub(self.received.len());
            self.read_on(lacks.max(room.min(COPY_ROOM_BYTES_MAX))).await?;
        }
    }

    /// Counts what is there already; the server sends each row as a message of its own.
    fn rows_so_far(&self, whole_bytes: &mut usize, rows: &mut u64) -> Progress {
        loop {
            let rest = self.received.get(*whole_bytes..).unwrap_or_default();
            let Some((tag, length)) = head(rest) else { return Progress::Starved(HEAD_BYTES) };
            // A length that cannot be is for the slow path to refuse; notices and parameters may come in between.
            if !matches!(tag, ROW | b'N' | b'S' | b'A') || length < HEAD_BYTES - 1 {
                return Progress::Other;
            }
            if rest.len() <= length {
                return Progress::Starved(1 + length);
            }
            *whole_bytes += 1 + length;
            *rows += u64::from(tag == ROW);
        }
    }

    /// Takes the first bytes, which are whole messages.
    fn take_data(&mut self, bytes: usize, rows: u64) -> CopyData {
        CopyData::new(self.received.split_to(bytes).freeze(), rows)
    }

    /// Reads what comes behind the last row.
    async fn end_copy(&mut self) -> Result<(), Failure> {
        loop {
            match self.message().await? {
                Message { tag: b'E', body } => return Err(self.after_refusal(refusal(&body)).await),
                Message { tag: b'Z', .. } => return Ok(()),
                // The end of the data, of the statement, parameters and notices.
                Message { tag: b'c' | b'C' | b'S' | b'N' | b'A', .. } => {}
                Message { tag, .. } => return Err(unexpected(tag, "COPY")),
            }
        }
    }

    /// Reads at most `room` more bytes of a COPY. With nothing there, the thread rests after few bytes.
    async fn read_on(&mut self, room: usize) -> Result<(), Failure> {
        let Session { link, received, came_bytes, .. } = self;
        received.reserve(room);
        let mut received = received.limit(room);
        let mut reading = pin!(link.read_buf(&mut received));
        let read = match poll_fn(|context| Poll::Ready(reading.as_mut().poll(context))).await {
            Poll::Ready(read) => read?,
            Poll::Pending => {
                if (1..BYTES_IN_A_ROW).contains(&std::mem::take(came_bytes)) {
                    std::thread::sleep(REST);
                }
                reading.await?
            }
        };
        *came_bytes = came_bytes.saturating_add(read);
        if read == 0 { Err(closed()) } else { Ok(()) }
    }

    /// After a refusal the server says when it is ready; if it does not, it has closed.
    async fn after_refusal(&mut self, refusal: Failure) -> Failure {
        loop {
            match self.message().await {
                Ok(Message { tag: b'Z', .. }) | Err(_) => return refusal,
                Ok(_) => {}
            }
        }
    }

    async fn authenticate(&mut self, source: &Postgres) -> Result<(), Failure> {
        let password = source.password.as_ref().map(|password| password.reveal().as_bytes());
        let needed = || Failure::LogIn("the server wants a password and none is given".to_owned());
        loop {
            let mut body = match self.message().await? {
                Message { tag: b'R', body } if body.len() >= 4 => body,
                Message { tag: b'E', body } => return Err(refusal(&body)),
                // Which version of the protocol the server speaks.
                Message { tag: b'N' | b'v', .. } => continue,
                Message { tag, .. } => return Err(unexpected(tag, "log-in")),
            };
            match body.get_i32() {
                0 => return Ok(()),
                3 => {
                    let password = password.ok_or_else(needed)?;
                    self.send(|buffer| frontend::password_message(password, buffer)).await?;
                }
                5 => {
                    let salt = <[u8; 4]>::try_from(&body[..])
                        .map_err(|_| Failure::Protocol("the salt has not four bytes".to_owned()))?;
                    let hash = md5_hash(source.user.as_bytes(), password.ok_or_else(needed)?, salt);
                    self.send(|buffer| frontend::password_message(hash.as_bytes(), buffer)).await?;
                }
                10 => self.scram(&body, password.ok_or_else(needed)?).await?,
                kind => {
                    return Err(Failure::LogIn(format!(
                        "the server wants a log-in of kind {kind}, and only passwords and certificates are known"
                    )));
                }
            }
        }
    }

    async fn scram(&mut self, mechanisms: &[u8], password: &[u8]) -> Result<(), Failure> {
        if !mechanisms.split(|byte| *byte == 0).any(|name| name == SCRAM_SHA_256.as_bytes()) {
            return Err(Failure::LogIn(format!("the server does not offer {SCRAM_SHA_256}")));
        }
        let mut scram = ScramSha256::new(password, ChannelBinding::unsupported());
        self.send(|buffer| frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), buffer)).await?;
        let challenge = self.sasl(11).await?;
        let unusable = |error: std::io::Error| Failure::LogIn(error.to_string());
        scram.update(&challenge).map_err(unusable)?;
        self.send(|buffer| frontend::sasl_response(scram.message(), buffer)).await?;
        let proof = self.sasl(12).await?;
        scram.finish(&proof).map_err(unusable)
    }

    async fn sasl(&mut self, step: i32) -> Result<Bytes, Failure> {
        match self.message().await? {
            Message { tag: b'R', body } if body.starts_with(&step.to_be_bytes()) => Ok(body.slice(4..)),
            Message { tag: b'E', body } => Err(refusal(&body)),
            Message { tag, .. } => Err(unexpected(tag, "log-in")),
        }
    }

    async fn send(
        &mut self,
        write: impl FnOnce(&mut BytesMut) -> std::io::Result<()>,
    ) -> Result<(), Failure> {
        let mut message = BytesMut::new();
        write(&mut message).map_err(|error| Failure::Protocol(error.to_string()))?;
        self.link.write_all(&message).await?;
        self.link.flush().await?;
        Ok(())
    }

    async fn message(&mut self) -> Result<Message, Failure> {
        loop {
            let needed = match head(&self.received) {
                None => HEAD_BYTES,
                Some((_, length)) if length < 4 => {
                    return Err(Failure::Protocol(format!("a message of the length {length}")));
                }
                Some((_, length)) if length > MESSAGE_BYTES_MAX => {
                    return Err(Failure::TooLong { bytes: length, limit: MESSAGE_BYTES_MAX });
                }
                Some((tag, length)) if self.received.len() > length => {
                    let mut message = self.received.split_to(1 + length);
                    message.advance(HEAD_BYTES);
                    return Ok(Message { tag, body: message.freeze() });
                }
                Some((_, length)) => 1 + length,
            };
            self.fill(needed).await?;
        }
    }

    /// Reads until `needed` bytes are there: once, usually.
    async fn fill(&mut self, needed: usize) -> Result<(), Failure> {
        if needed > MESSAGE_BYTES_MAX {
            return Err(Failure::TooLong { bytes: needed, limit: MESSAGE_BYTES_MAX });
        }
        while self.received.len() < needed {
            self.received.reserve(READ_BYTES.max(needed - self.received.len()));
            if self.link.read_buf(&mut self.received).await? == 0 {
                return Err(closed());
            }
        }
        Ok(())
    }
}

/// How far the rows that were there already went.
enum Progress {
    /// The next message needs so many bytes.
    Starved(usize),
    /// A message other than a row is next.
    Other,
}

fn closed() -> Failure {
    Failure::Network("the server closed the connection".to_owned())
}

fn text_row(mut body: Bytes) -> Result<TextRow, Failure> {
    let malformed = || Failure::Protocol("a row is cut off".to_owned());
    let columns = body.try_get_i16().map_err(|_| malformed())?;
    let column = |_| {
        let Ok(length) = usize::try_from(body.try_get_i32().map_err(|_| malformed())?) else {
            return Ok(None);
        };
        if body.len() < length {
            return Err(malformed());
        }
        Ok(Some(String::from_utf8_lossy(&body.split_to(length)).into_owned()))
    };
    (0..columns).map(column).collect()
}

fn refusal(body: &[u8]) -> Failure {
    let fields = ErrorFields::parse(body);
    let message = match (fields.message, fields.detail) {
        (Some(message), Some(detail)) => format!("{message}: {detail}"),
        (message, detail) => message.or(detail).unwrap_or_default(),
    };
    Failure::server(fields.code.as_deref().unwrap_or("XX000"), &message)
}

fn unexpected(tag: u8, during: &str) -> Failure {
    Failure::Protocol(format!("the server sent an unexpected message {:?} during {during}", char::from(tag)))
}

#[cfg(test)]
mod tests;
