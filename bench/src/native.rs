//! The limits as processes: read and throw away; read, transform natively, PUT.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use clap::{Args, ValueEnum};
use tidemill_plugin_orders::{Config, Kept, transform};

use crate::reader::Reader;

/// What a loop does with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Work {
    /// Throws it away.
    Read,
    /// Appends it to the body as it is.
    Copy,
    /// Transforms it as the `orders` plugin does.
    Orders,
}

/// A bare loop: no ledger, no offsets, no retries.
#[derive(Debug, Args)]
pub(crate) struct Loop {
    #[arg(long, value_enum)]
    work: Work,
    #[arg(long)]
    brokers: String,
    #[arg(long)]
    topic: String,
    /// Ends after so many records
    #[arg(long)]
    records: u64,
    /// The BE's address, host:port
    #[arg(long)]
    be: String,
    #[arg(long)]
    max_rows: usize,
    #[arg(long)]
    max_bytes: usize,
}

impl Loop {
    /// Runs to the end and then waits for standard input to be closed, so that it can be looked at.
    pub(crate) fn run(&self) -> Result<(), String> {
        let (batches, taken) = sync_channel(1);
        // Bodies come back to be filled again: fresh memory costs more than filling it.
        let (back, spare) = sync_channel(4);
        let sender = (self.work != Work::Read).then(|| {
            let (be, topic) = (self.be.clone(), self.topic.clone());
            std::thread::spawn(move || send(&be, &topic, &taken, &back))
        });
        let mut reader = Reader::open(&self.brokers, &self.topic)?;
        let config = Config::new("EUR")?;
        let (mut read, mut rows, mut body) = (0, 0, Vec::new());
        let mut full = Vec::new();
        while read < self.records {
            let before = read;
            read += reader.read(|value| {
                match self.work {
                    Work::Read => return,
                    Work::Copy => {
                        body.extend_from_slice(value);
                        body.push(b'\n');
                        rows += 1;
                    }
                    Work::Orders => rows += usize::from(append(value, &config, &mut body)),
                }
                if rows >= self.max_rows || body.len() >= self.max_bytes {
                    full.push(std::mem::replace(&mut body, spare.try_recv().unwrap_or_default()));
                    rows = 0;
                }
            }) as u64;
            if before == 0 && read > 0 {
                println!("first");
            }
            for batch in full.drain(..) {
                batches.send(batch).map_err(|_| "the sender has ended")?;
            }
        }
        if !body.is_empty() {
            batches.send(body).map_err(|_| "the sender has ended")?;
        }
        drop(batches);
        if let Some(sender) = sender {
            sender.join().map_err(|_| "the sender panicked")??;
        }
        println!("done");
        let _ = std::io::stdin().read(&mut [0]);
        Ok(())
    }
}

/// Appends the row of one order; false if there is none.
fn append(value: &[u8], config: &Config, body: &mut Vec<u8>) -> bool {
    match transform(value, config, body) {
        Ok(Kept::No) | Err(_) => false,
        Ok(Kept::Yes) => {
            if body.last() != Some(&b'\n') {
                body.push(b'\n');
            }
            true
        }
    }
}

/// PUTs each batch to the BE over one connection; the answers must say `Success`.
fn send(
    be: &str,
    topic: &str,
    batches: &Receiver<Vec<u8>>,
    back: &SyncSender<Vec<u8>>,
) -> Result<(), String> {
    let said = |error: std::io::Error| format!("cannot load: {error}");
    let mut stream = TcpStream::connect(be).map_err(said)?;
    let mut answers = BufReader::new(stream.try_clone().map_err(said)?);
    for (number, mut body) in batches.iter().enumerate() {
        let head = format!(
            "PUT /api/bench/orders/_stream_load HTTP/1.1\r\nHost: {be}\r\nAuthorization: Basic cm9vdDo=\r\n\
             label: {topic}-{}-{number}\r\nformat: json\r\nContent-Length: {}\r\n\r\n",
            std::process::id(),
            body.len()
        );
        stream.write_all(head.as_bytes()).map_err(said)?;
        stream.write_all(&body).map_err(said)?;
        let mut length = 0;
        let mut line = String::new();
        while answers.read_line(&mut line).map_err(said)? > 2 {
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
            line.clear();
        }
        let mut answer = vec![0; length];
        answers.read_exact(&mut answer).map_err(said)?;
        let answer = String::from_utf8_lossy(&answer);
        if !answer.contains("Success") {
            return Err(format!("the load was refused: {answer}"));
        }
        body.clear();
        // Nobody needs it any more at the end.
        let _ = back.try_send(body);
    }
    Ok(())
}
