//! The demo's HTTP clients: each posts orders, waits until they are durable, and posts the next ones.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tidemill_plugin_orders::sample;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::fault::Fault;

/// Clients at the same time, each with one connection.
const CLIENTS: usize = 128;
/// Orders of a post.
const POST_ORDERS: u64 = 1_000;
/// How long the listener may take to be there.
const LISTENER_PATIENCE: Duration = Duration::from_secs(10);
/// How long a client waits that was told to come back, or that found no listener.
const COME_BACK_AFTER: Duration = Duration::from_millis(50);
/// How often the clients are looked after.
const TURN: Duration = Duration::from_millis(10);

/// An address that nobody listens on. The pipeline takes it right after: its file has to name one.
pub(super) fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

/// All clients of a run; those that are still at it end when this is dropped.
pub(super) struct Clients(JoinSet<Result<(), Fault>>);

impl Clients {
    /// Starts to post `events` orders.
    pub(super) fn start(runtime: &Handle, address: SocketAddr, events: u64) -> Clients {
        let (next, mut clients) = (Arc::new(AtomicU64::new(0)), JoinSet::new());
        for _ in 0..CLIENTS {
            clients.spawn_on(post_orders(address, Arc::clone(&next), events), runtime);
        }
        Clients(clients)
    }

    /// Waits a moment, and tells if a client cannot go on.
    pub(super) fn turn(&mut self) -> Result<(), Fault> {
        std::thread::sleep(TURN);
        while let Some(ended) = self.0.try_join_next() {
            ended.map_err(|panic| Fault::retry("a client of the demo panicked").caused_by(panic))??;
        }
        Ok(())
    }
}

async fn post_orders(address: SocketAddr, next: Arc<AtomicU64>, events: u64) -> Result<(), Fault> {
    let mut connection = connect(address).await?;
    loop {
        let first = next.fetch_add(POST_ORDERS, Ordering::Relaxed);
        if first >= events {
            return Ok(());
        }
        let body = orders(first, events.min(first + POST_ORDERS));
        loop {
            if connection.ready().await.is_err() {
                connection = connect(address).await?;
            }
            let status = post(&mut connection, address, body.clone()).await?;
            match status {
                StatusCode::OK => break,
                // The byte budget is full.
                StatusCode::SERVICE_UNAVAILABLE => tokio::time::sleep(COME_BACK_AFTER).await,
                other => {
                    return Err(Fault::halt(
                        format!("a post of orders was answered with {other}"),
                        "look at the log with --log-level debug",
                    ));
                }
            }
        }
    }
}

/// The orders as NDJSON.
fn orders(first: u64, end: u64) -> Bytes {
    let mut body = Vec::new();
    for id in first..end {
        sample::write_order(id, &mut body);
        body.push(b'\n');
    }
    body.into()
}

/// Connects as soon as the pipeline listens.
async fn connect(address: SocketAddr) -> Result<SendRequest<Full<Bytes>>, Fault> {
    let deadline = Instant::now() + LISTENER_PATIENCE;
    let cannot = |error: &dyn std::error::Error| {
        Fault::retry(format!("cannot connect to the pipeline at {address}: {error}"))
    };
    let stream = loop {
        match TcpStream::connect(address).await {
            Ok(stream) => break stream,
            Err(_) if Instant::now() < deadline => tokio::time::sleep(COME_BACK_AFTER).await,
            Err(error) => return Err(cannot(&error)),
        }
    };
    let (sender, driver) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| cannot(&error))?;
    // It ends with its sender; what broke it is told to the sender.
    tokio::spawn(driver);
    Ok(sender)
}

async fn post(
    connection: &mut SendRequest<Full<Bytes>>,
    address: SocketAddr,
    body: Bytes,
) -> Result<StatusCode, Fault> {
    let request = Request::post("/orders")
        .header(header::HOST, address.to_string())
        .header(header::CONTENT_TYPE, "application/x-ndjson")
        .body(Full::new(body))
        .map_err(|error| Fault::retry("cannot make a post of orders").caused_by(error))?;
    let broke = |error| Fault::retry("cannot post the demo's orders").caused_by(error);
    let answer = connection.send_request(request).await.map_err(broke)?;
    let status = answer.status();
    // The connection is free for the next post when the answer was read.
    answer.into_body().collect().await.map_err(broke)?;
    Ok(status)
}
