//! Accepts connections and serves HTTP/1.1 on each: as many as there may be, none of them for ever.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use super::Standing;
use super::intake::Intake;
use super::paced::{Paced, Phase};
use crate::fault::Fault;

/// How long a connection may be idle between requests.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Connections that the kernel completes before they are accepted.
const BACKLOG: u32 = 1024;
/// Bytes of a request's head, and of what hyper reads ahead of a body.
const BUFFER_BYTES_MAX: usize = 64 << 10;
/// After an accept that failed: mostly no more files may be open, and some have to be closed first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often a listener that cannot accept says so.
const ACCEPT_TELL_EVERY: Duration = Duration::from_secs(30);

/// Takes the address.
///
/// # Errors
/// Halt, if it is another's or not of this machine.
pub(super) async fn bind(address: SocketAddr) -> Result<TcpListener, Fault> {
    open(address).map_err(|error| {
        let hint = "set another `listen` in [source.http], or end what uses the address";
        Fault::halt(format!("cannot listen on {address}"), hint).caused_by(error)
    })
}

/// Whether the address could be taken. One that is in use may be so by the very pipeline that is checked.
///
/// # Errors
/// Halt, if it is not of this machine, or this user may not take it.
pub(super) async fn check(address: SocketAddr) -> Result<(), Fault> {
    match open(address) {
        Ok(_closed_again) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(()),
        Err(error) => {
            let hint = "set `listen` in [source.http] to an address of this machine that its user may take";
            Err(Fault::halt(format!("cannot listen on {address}"), hint).caused_by(error))
        }
    }
}

/// From within a runtime only.
fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // The connections of a process that has just ended do not keep its address.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves until the listener is to drain; running requests go on by themselves.
pub(super) async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    intake: Arc<Intake>,
    mut standing: watch::Receiver<Standing>,
) {
    let slots = Arc::new(Semaphore::new(intake.settings().max_connections));
    let mut told: Option<Instant> = None;
    for number in 0_usize.. {
        let accepted = tokio::select! {
            biased;
            () = no_longer_open(&mut standing) => return,
            accepted = accept(&listener, &slots) => accepted,
        };
        let (stream, slot) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                if told.is_none_or(|at| at.elapsed() >= ACCEPT_TELL_EVERY) {
                    tracing::warn!(%error, "cannot accept a connection; with \"too many open files\", raise `ulimit -n`");
                    told = Some(Instant::now());
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (tls, intake, standing) = (tls.clone(), Arc::clone(&intake), standing.clone());
        tokio::spawn(async move {
            let open = intake.meter().connections.clone();
            open.inc();
            connection(stream, tls, intake, standing, number).await;
            open.dec();
            drop(slot);
        });
    }
}

/// Waits until the listener is to drain. A control that is gone is no reason to go on.
async fn no_longer_open(standing: &mut watch::Receiver<Standing>) {
    let _ = standing.wait_for(|standing| *standing != Standing::Open).await;
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> io::Result<(TcpStream, Option<tokio::sync::OwnedSemaphorePermit>)> {
    // The semaphore is never closed; further connections wait in the kernel's queue.
    let slot = Arc::clone(slots).acquire_owned().await.ok();
    let (stream, _peer) = listener.accept().await?;
    Ok((stream, slot))
}

/// One connection, to its end. What ends it early is the client's affair and not worth a line.
async fn connection(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    intake: Arc<Intake>,
    mut standing: watch::Receiver<Standing>,
    number: usize,
) {
    // A connection that says nothing costs no buffer. A new one counts as readable until somebody has looked.
    let mut first = [0];
    let speaks = tokio::select! {
        biased;
        () = no_longer_open(&mut standing) => return,
        speaks = tokio::time::timeout(IDLE_MAX, stream.peek(&mut first)) => speaks,
    };
    // Answers are one write each: waiting for more of them only delays.
    if !matches!(speaks, Ok(Ok(1))) || stream.set_nodelay(true).is_err() {
        return;
    }
    // Apart, or one that is silent would have the memory of a TLS handshake, too.
    Box::pin(converse(stream, tls, intake, standing, number)).await;
}

/// A connection of which something was heard.
async fn converse(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    intake: Arc<Intake>,
    standing: watch::Receiver<Standing>,
    number: usize,
) {
    match tls {
        None => serve_requests(stream, intake, standing, number).await,
        Some(tls) => match tokio::time::timeout(intake.settings().read_timeout, tls.accept(stream)).await {
            Ok(Ok(stream)) => serve_requests(stream, intake, standing, number).await,
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            Err(_elapsed) => tracing::debug!("a TLS handshake took too long"),
        },
    }
}

async fn serve_requests<S>(
    stream: S,
    intake: Arc<Intake>,
    mut standing: watch::Receiver<Standing>,
    number: usize,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let phase = Phase::default();
    let stream = Paced::new(stream, phase.clone(), IDLE_MAX, intake.settings().read_timeout);
    let service = service_fn(move |request: Request<Incoming>| {
        let (intake, phase) = (Arc::clone(&intake), phase.clone());
        phase.request();
        async move {
            let answer = intake.answer(number, request).await;
            phase.between();
            Ok::<Response<Full<Bytes>>, std::convert::Infallible>(answer.response())
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // `Paced` keeps the time, for a head and for the pause before it apart.
        .header_read_timeout(None)
        // A client may close its side behind its request and still read the answer.
        .half_close(true)
        .max_buf_size(BUFFER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = no_longer_open(&mut standing) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}
