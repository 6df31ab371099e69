//! A client of the HTTP source: requests as bytes, so that a test can also send what no library would.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// One connection, kept between requests.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    read: Vec<u8>,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The head in lower case.
    pub head: String,
    /// The JSON of the body.
    pub body: serde_json::Value,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn connect(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        Ok(Self { stream, read: Vec::new() })
    }

    /// Sends bytes, whatever they are.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends a request; `headers` are whole lines.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn send(&mut self, path: &str, headers: &str, body: &[u8]) -> std::io::Result<()> {
        let length = body.len();
        let head = format!("POST {path} HTTP/1.1\r\nhost: test\r\ncontent-length: {length}\r\n{headers}\r\n");
        self.write(&[head.as_bytes(), body].concat())
    }

    /// Reads the next answer.
    ///
    /// # Errors
    /// When the connection ends before, or the answer does not come in time.
    pub fn answer(&mut self) -> std::io::Result<Answer> {
        let end = loop {
            match self.read.windows(4).position(|window| window == b"\r\n\r\n") {
                Some(place) => break place + 4,
                None => self.more()?,
            }
        };
        let head = String::from_utf8_lossy(&self.read[..end]).to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        let whole = end + length.unwrap_or(0_usize);
        while self.read.len() < whole {
            self.more()?;
        }
        let body = serde_json::from_slice(&self.read[end..whole]).map_err(std::io::Error::other)?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        self.read.drain(..whole);
        Ok(Answer { status, head, body })
    }

    /// Sends a request and reads its answer.
    ///
    /// # Errors
    /// As [`send`](Self::send) and [`answer`](Self::answer).
    pub fn post(&mut self, path: &str, headers: &str, body: &[u8]) -> std::io::Result<Answer> {
        self.send(path, headers, body)?;
        self.answer()
    }

    /// Whether the other side ends the connection, without a further word, before an answer would have to be there.
    pub fn is_ended(&mut self) -> bool {
        self.read.is_empty() && self.more().is_err_and(|error| error.kind() != std::io::ErrorKind::WouldBlock)
    }

    fn more(&mut self) -> std::io::Result<()> {
        let mut buffer = [0; 4096];
        match self.stream.read(&mut buffer)? {
            0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
            read => {
                self.read.extend_from_slice(&buffer[..read]);
                Ok(())
            }
        }
    }
}
