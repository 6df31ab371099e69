//! A bad network between a process under test and a server: a TCP proxy that cuts, refuses, stalls, swallows and slows, and
//! loses a chosen request to Kafka or its answer.

mod requests;
#[cfg(test)]
mod tests;

use requests::{END_TXN, PRODUCE, Requests};
use socket2::SockRef;
use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};
use tidemill_test_kafka::free_port;

/// Between two looks at whether somebody wants to connect.
const ACCEPT_PAUSE: Duration = Duration::from_millis(5);
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
const PIECE_BYTES: usize = 64 * 1024;
/// A slow line gets its bytes in this many pieces a second.
const PIECES_PER_SECOND: u64 = 20;

/// What happens to the bytes of open connections, in both directions.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Traffic {
    /// They pass.
    #[default]
    Flowing,
    /// They pass at this many bytes a second, per connection and direction.
    Slow(u64),
    /// They wait, and pass later: a line without bandwidth.
    Stalled,
    /// They vanish, and so does the end of a connection, while each side believes the other to be there: a firewall that
    /// forgot the connection. Connections that are open now stay like that until they are [cut](Proxy::cut), whatever is
    /// set later.
    Swallowed,
}

/// What is lost of the end of a transaction of Kafka. The connection swallows all that follows, in both directions.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Loss {
    /// The request: for the broker the transaction is open.
    Request,
    /// The answer: the transaction has ended as it was to.
    Answer,
}

/// Listens on a port of 127.0.0.1 and passes connections on to a server. Dropping it cuts them all.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    line: Arc<Line>,
    listener: Option<thread::JoinHandle<()>>,
}

/// Shared between the test, which sets, and the threads, which look after each piece of bytes.
#[derive(Debug, Default)]
struct Line {
    state: Mutex<State>,
    changed: Condvar,
    /// Clients speak Kafka's protocol.
    kafka: bool,
}

#[derive(Debug, Default)]
struct State {
    traffic: Traffic,
    /// What the test wants.
    refusing: bool,
    /// What is.
    listening: bool,
    ended: bool,
    accepted: u64,
    swallowed_bytes: u64,
    losing: Option<Losing>,
    losses: u64,
    open: BTreeMap<u64, Connection>,
}

/// A loss that is still to happen.
#[derive(Clone, Copy, Debug)]
struct Losing {
    what: Loss,
    /// Records have passed, so that the next end is that of a transaction with records.
    produced: bool,
}

#[derive(Debug)]
struct Connection {
    client: TcpStream,
    server: TcpStream,
    swallowed: bool,
}

/// What to do with a piece of bytes that was read.
enum Piece {
    Pass,
    Swallow,
    Drop,
}

impl Proxy {
    /// In front of the server at `upstream`, which need not be there yet.
    ///
    /// # Panics
    /// When there is no free port.
    #[must_use]
    pub fn to(upstream: SocketAddr) -> Self {
        Self::start(upstream, false)
    }

    fn start(upstream: SocketAddr, kafka: bool) -> Self {
        let port = free_port().expect("there is a free port");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let listener = listen(address).expect("the port can be bound");
        let line = Arc::new(Line {
            state: Mutex::new(State { listening: true, ..State::default() }),
            kafka,
            ..Line::default()
        });
        let for_thread = Arc::clone(&line);
        let listener = thread::spawn(move || for_thread.accept(address, listener, upstream));
        Self { address, line, listener: Some(listener) }
    }

    /// In front of a port of 127.0.0.1.
    ///
    /// # Panics
    /// When there is no free port.
    #[must_use]
    pub fn to_port(port: u16) -> Self {
        Self::to(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
    }

    /// In front of a broker on a port of 127.0.0.1, whose clients speak without TLS.
    ///
    /// # Panics
    /// When there is no free port.
    #[must_use]
    pub fn to_kafka(port: u16) -> Self {
        Self::start(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), true)
    }

    /// Where to connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The port to connect to, of 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Changes what happens to bytes from now on.
    pub fn set(&self, traffic: Traffic) {
        let mut state = self.line.state();
        state.traffic = traffic;
        if traffic == Traffic::Swallowed {
            state.open.values_mut().for_each(|connection| connection.swallowed = true);
        }
        self.line.changed.notify_all();
    }

    /// Closes all connections in both directions; returns how many there were.
    pub fn cut(&self) -> usize {
        let mut state = self.line.state();
        let open = std::mem::take(&mut state.open);
        open.values().for_each(Connection::close);
        self.line.changed.notify_all();
        open.len()
    }

    /// Closes the port: who connects is refused. Open connections stay.
    pub fn refuse(&self) {
        self.listening(true);
    }

    /// Opens the port again.
    pub fn accept(&self) {
        self.listening(false);
    }

    fn listening(&self, refusing: bool) {
        let mut state = self.line.state();
        state.refusing = refusing;
        while state.listening == refusing {
            state = self.line.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Loses what ends the next transaction with records in it, or the answer to that.
    ///
    /// # Panics
    /// When this is no proxy [to Kafka](Self::to_kafka).
    pub fn lose(&self, what: Loss) {
        self.losing(Losing { what, produced: false });
    }

    /// The same of the next transaction, whatever is in it.
    ///
    /// # Panics
    /// As above.
    pub fn lose_next(&self, what: Loss) {
        self.losing(Losing { what, produced: true });
    }

    fn losing(&self, losing: Losing) {
        assert!(self.line.kafka, "only requests to Kafka can be told apart");
        self.line.state().losing = Some(losing);
    }

    /// How often something was [lost](Self::lose).
    #[must_use]
    pub fn losses(&self) -> u64 {
        self.line.state().losses
    }

    /// Connections that were let in so far.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.line.state().accepted
    }

    /// Connections that are open.
    #[must_use]
    pub fn open(&self) -> usize {
        self.line.state().open.len()
    }

    /// Bytes that vanished: a test of a half-open connection shows with it that somebody spoke.
    #[must_use]
    pub fn swallowed_bytes(&self) -> u64 {
        self.line.state().swallowed_bytes
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.line.state().ended = true;
        self.cut();
        if let Some(listener) = self.listener.take() {
            // It cannot panic in a way that matters now.
            drop(listener.join());
        }
    }
}

impl Line {
    fn state(&self) -> MutexGuard<'_, State> {
        // A thread that panicked has failed the test already.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until something changes, at most this long.
    fn wait<'a>(&'a self, state: MutexGuard<'a, State>, limit: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner).0
    }

    /// The life of the listening thread.
    fn accept(self: &Arc<Self>, address: SocketAddr, listener: TcpListener, upstream: SocketAddr) {
        let mut listener = Some(listener);
        loop {
            let state = self.state();
            if state.ended {
                return;
            }
            let refusing = state.refusing;
            drop(state);
            listener = match listener {
                Some(listener) if refusing => {
                    close(&listener);
                    None
                }
                // The port may be in use for a moment by a connection that is just being closed.
                None if !refusing => listen(address).ok(),
                unchanged => unchanged,
            };
            let client = listener.as_ref().and_then(|listener| listener.accept().ok());
            let mut state = self.state();
            if state.listening != listener.is_some() {
                state.listening = listener.is_some();
                self.changed.notify_all();
            }
            match client {
                Some((client, _)) => {
                    drop(state);
                    // A server that is not there ends the connection at once: as near as a proxy comes to refusing it.
                    drop(self.connect(client, upstream));
                }
                None => drop(self.wait(state, ACCEPT_PAUSE)),
            }
        }
    }

    fn connect(self: &Arc<Self>, client: TcpStream, upstream: SocketAddr) -> io::Result<()> {
        client.set_nonblocking(false)?;
        let server = TcpStream::connect_timeout(&upstream, CONNECT_WITHIN)?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let requests = self.kafka.then(Requests::default);
        let ways = [
            (client.try_clone()?, server.try_clone()?, requests),
            (server.try_clone()?, client.try_clone()?, None),
        ];
        let mut state = self.state();
        let id = state.accepted;
        state.accepted += 1;
        let swallowed = state.traffic == Traffic::Swallowed;
        state.open.insert(id, Connection { client, server, swallowed });
        drop(state);
        for (from, into, requests) in ways {
            let line = Arc::clone(self);
            thread::spawn(move || line.pump(id, from, into, requests));
        }
        Ok(())
    }

    /// Passes bytes on in one direction until either side is closed; looks for `requests` in them, if there can be any.
    fn pump(&self, id: u64, mut from: TcpStream, mut into: TcpStream, mut requests: Option<Requests>) {
        let mut bytes = vec![0; PIECE_BYTES];
        loop {
            let wanted = self.piece_bytes();
            let Ok(read @ 1..) = from.read(&mut bytes[..wanted]) else { break };
            let kinds = requests.as_mut().map(|requests| requests.kinds(&bytes[..read]));
            let piece = match self.loses(id, &kinds.unwrap_or_default()) {
                Some(Loss::Request) => Piece::Swallow,
                Some(Loss::Answer) => Piece::Pass,
                None => self.judge(id, read),
            };
            match piece {
                Piece::Pass if into.write_all(&bytes[..read]).is_ok() => {}
                Piece::Swallow => {}
                Piece::Pass | Piece::Drop => break,
            }
        }
        // The end of a connection is news, too, and vanishes like all else. Half-closed connections are not passed on:
        // neither PostgreSQL nor HTTP needs them.
        let mut state = self.state();
        if state.open.get(&id).is_some_and(|connection| !connection.swallowed)
            && let Some(connection) = state.open.remove(&id)
        {
            connection.close();
            self.changed.notify_all();
        }
    }

    /// Whether the end of a transaction that is to be lost is among these requests.
    fn loses(&self, id: u64, kinds: &[i16]) -> Option<Loss> {
        let mut state = self.state();
        let losing = state.losing.as_mut()?;
        let is_end = kinds.iter().any(|kind| {
            losing.produced |= *kind == PRODUCE;
            *kind == END_TXN && losing.produced
        });
        let what = is_end.then_some(losing.what)?;
        state.losing = None;
        state.losses += 1;
        if let Some(connection) = state.open.get_mut(&id) {
            connection.swallowed = true;
        }
        Some(what)
    }

    fn piece_bytes(&self) -> usize {
        match self.state().traffic {
            Traffic::Slow(rate) => {
                usize::try_from(rate / PIECES_PER_SECOND).unwrap_or(PIECE_BYTES).clamp(1, PIECE_BYTES)
            }
            Traffic::Flowing | Traffic::Stalled | Traffic::Swallowed => PIECE_BYTES,
        }
    }

    /// Decides about a piece that was read, and holds it for as long as the line is slow or stalled.
    fn judge(&self, id: u64, bytes: usize) -> Piece {
        let bytes = bytes as u64;
        let begun = Instant::now();
        let mut state = self.state();
        loop {
            let Some(connection) = state.open.get(&id) else { return Piece::Drop };
            if connection.swallowed {
                state.swallowed_bytes += bytes;
                return Piece::Swallow;
            }
            let left = match state.traffic {
                Traffic::Flowing | Traffic::Swallowed => return Piece::Pass,
                Traffic::Stalled => Duration::MAX,
                Traffic::Slow(rate) => {
                    Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64).saturating_sub(begun.elapsed())
                }
            };
            if left.is_zero() {
                return Piece::Pass;
            }
            state = match left {
                Duration::MAX => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                left => self.wait(state, left),
            };
        }
    }
}

impl Connection {
    fn close(&self) {
        // Closed by the other side, maybe.
        drop(self.client.shutdown(Shutdown::Both));
        drop(self.server.shutdown(Shutdown::Both));
    }
}

/// From now on who connects is refused. To drop the listener is not enough: a process that is just being started by this one
/// has a copy of it until it executes its program, and the system lets clients in for that copy.
fn close(listener: &TcpListener) {
    SockRef::from(listener).shutdown(Shutdown::Both).expect("a listener can be shut down");
}

/// Not blocking, so that the thread can be told to stop.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
