//! Moves one request and its answer over one connection, and says how far it came when that fails.

use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::service::Service;
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::service::TowerToHyperService;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::address::Address;
use super::body::{Gate, HeldBody, Progress};
use crate::fault::Fault;
use crate::planted::{Bug, planted};
use crate::sink::Guarded;

/// Time to reach a host, name resolution and TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Answers are small JSON; what is longer is cut and then does not parse. The error log has this cap too.
pub(super) const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Connections kept for each BE. Loads of one table follow one another, so few are ever idle.
const IDLE_PER_HOST_MAX: usize = 8;

/// What came back, whatever its status.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    /// HTTP status.
    pub(super) status: StatusCode,
    /// `Location`, if there is one that is text.
    pub(super) location: Option<String>,
    /// At most [`ANSWER_BYTES_MAX`].
    pub(super) body: Bytes,
}

/// Why there is no answer. Whether the body left is asked of [`Progress`].
#[derive(Debug, thiserror::Error)]
pub(super) enum TransportError {
    /// Not even a connection.
    #[error("cannot connect to {address}")]
    Connect {
        /// Where to.
        address: Address,
        /// Why.
        source: io::Error,
    },
    /// The connection broke, or what came was no HTTP.
    #[error("the exchange with {address} failed")]
    Exchange {
        /// With whom.
        address: Address,
        /// Why.
        source: hyper::Error,
    },
    /// No whole answer in time.
    #[error("no answer from {address} within {} s", patience.as_secs())]
    Timeout {
        /// From whom.
        address: Address,
        /// How long was waited.
        patience: Duration,
    },
    /// The body was not sent: its rows are not ours to send, or nobody knows.
    #[error("the rows of the load to {address} may not be sent")]
    Fenced {
        /// To whom.
        address: Address,
        /// Why.
        source: Fault,
    },
    /// The request could not be put together.
    #[error("cannot write a request for {address}")]
    Request {
        /// For whom.
        address: Address,
        /// Why.
        source: http::Error,
    },
}

impl TransportError {
    /// The whole chain in one line, for lists of several end points.
    pub(super) fn story(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            let line = error.to_string();
            if !text.ends_with(&line) {
                text.push_str(": ");
                text.push_str(&line);
            }
            cause = error.source();
        }
        text
    }
}

/// One request.
#[derive(Debug)]
pub(super) struct Call<'a> {
    /// To whom.
    pub(super) address: &'a Address,
    /// How.
    pub(super) method: Method,
    /// Path and query.
    pub(super) path: &'a str,
    /// All headers but `Host` and `Content-Length`.
    pub(super) headers: &'a HeaderMap,
    /// The body; empty for none.
    pub(super) segments: &'a [Bytes],
    /// Asked before the body leaves.
    pub(super) fences: &'a [Guarded],
    /// How long the body waits for `100 Continue`.
    pub(super) hold: Duration,
    /// How long the exchange may take once connected. Connecting takes at most [`CONNECT_TIMEOUT`], and
    /// not longer than this either.
    pub(super) patience: Duration,
    /// Whether the connection may come from and return to the idle ones (FEs close theirs anyway).
    pub(super) keep: bool,
}

/// Answer or error, with how far the body came in either case.
#[derive(Debug)]
pub(super) struct Exchange {
    /// What came back.
    pub(super) result: Result<Answer, TransportError>,
    /// Whether the first byte of the body may have left.
    pub(super) body_left: bool,
}

/// One open connection. Dropping it closes the socket at once, also in the middle of a body.
#[derive(Debug)]
struct Connection {
    sender: http1::SendRequest<HeldBody>,
    task: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Connections to one cluster.
#[derive(Debug)]
pub(super) struct Transport {
    connector: TowerToHyperService<HttpsConnector<HttpConnector>>,
    idle: Mutex<HashMap<Address, Vec<Connection>>>,
}

impl Transport {
    /// `ca` replaces the system's roots. Without system roots only `https` end points are an error.
    pub(super) fn new(ca: Option<&Path>, https_wanted: bool) -> Result<Self, Fault> {
        let tls = tls_config(ca, https_wanted)?;
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        Ok(Self { connector: TowerToHyperService::new(connector), idle: Mutex::new(HashMap::new()) })
    }

    /// Sends `call` and reads its answer. `mark` learns that the body left, also when this future is
    /// dropped half-way.
    pub(super) async fn send(&self, call: &Call<'_>, mark: &BodyMark) -> Exchange {
        while let Some(connection) = call.keep.then(|| self.take_idle(call.address)).flatten() {
            let exchange = self.exchange(call, connection, mark).await;
            // The server may close an idle connection at any moment: as long as nothing of the body has
            // left, and it was no time-out, a fresh connection is the same request.
            let stale =
                matches!(exchange.result, Err(TransportError::Exchange { .. })) && !exchange.body_left;
            if !stale {
                return exchange;
            }
        }
        match self.connect(call.address, call.patience.min(CONNECT_TIMEOUT)).await {
            Ok(connection) => self.exchange(call, connection, mark).await,
            Err(error) => Exchange { result: Err(error), body_left: false },
        }
    }

    async fn exchange(&self, call: &Call<'_>, mut connection: Connection, mark: &BodyMark) -> Exchange {
        let (request, progress, guard) = match prepare(call) {
            Ok(prepared) => prepared,
            Err(source) => {
                let address = call.address.clone();
                return Exchange {
                    result: Err(TransportError::Request { address, source }),
                    body_left: false,
                };
            }
        };
        mark.watch(progress.clone());
        let talk = async {
            let failed = |source| TransportError::Exchange { address: call.address.clone(), source };
            connection.sender.ready().await.map_err(failed)?;
            let response = connection.sender.send_request(request).await.map_err(failed)?;
            let (head, incoming) = response.into_parts();
            let (body, whole) = read_capped(incoming).await.map_err(failed)?;
            let body = without_credentials(body, call.headers);
            let location = head.headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
            Ok((Answer { status: head.status, location: location.map(str::to_owned), body }, whole))
        };
        let talked = tokio::select! {
            talked = tokio::time::timeout(call.patience, talk) => talked,
            fault = refused_by_fence(call, guard) => {
                Ok(Err(TransportError::Fenced { address: call.address.clone(), source: fault }))
            }
        };
        let result = match talked {
            Ok(Ok((answer, whole))) => {
                if call.keep && whole && progress.has_ended() {
                    self.put_idle(call.address, connection);
                }
                Ok(answer)
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(TransportError::Timeout { address: call.address.clone(), patience: call.patience }),
        };
        Exchange { result, body_left: progress.has_left() }
    }

    async fn connect(&self, address: &Address, patience: Duration) -> Result<Connection, TransportError> {
        let refused = |source| TransportError::Connect { address: address.clone(), source };
        let uri = address.uri().map_err(|error| refused(io::Error::other(error)))?;
        let stream = match tokio::time::timeout(patience, self.connector.call(uri)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(refused(io::Error::other(error))),
            Err(_) => return Err(refused(io::Error::from(io::ErrorKind::TimedOut))),
        };
        let (sender, driver) = http1::handshake(stream)
            .await
            .map_err(|source| TransportError::Exchange { address: address.clone(), source })?;
        // Its errors reach whoever waits for the answer on this connection.
        let task = tokio::spawn(async move { drop(driver.await) });
        Ok(Connection { sender, task: task.abort_handle() })
    }

    fn take_idle(&self, address: &Address) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let connections = idle.get_mut(address)?;
        connections.retain(|connection| !connection.sender.is_closed());
        connections.pop()
    }

    fn put_idle(&self, address: &Address, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let connections = idle.entry(address.clone()).or_default();
        if connections.len() < IDLE_PER_HOST_MAX {
            connections.push(connection);
        }
    }
}

/// Remembers over all hops of an attempt whether a body left, also for a future that is dropped.
#[derive(Debug, Default)]
pub(super) struct BodyMark(Mutex<Vec<Progress>>);

impl BodyMark {
    fn watch(&self, progress: Progress) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(progress);
    }

    /// Whether any body of the attempt may have left.
    pub(super) fn has_left(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().any(Progress::has_left)
    }
}

/// What opens the body of a load that is fenced.
struct Guard {
    /// The server has said 100.
    continued: oneshot::Receiver<()>,
    gate: Gate,
}

/// Asks the fences when the server wants the body, and opens it if they hold. Ends only if they do not.
async fn refused_by_fence(call: &Call<'_>, guard: Option<Guard>) -> Fault {
    if let Some(Guard { continued, gate }) = guard {
        // Without the server's word the body does not leave: it would be read by a begin that comes late, after a
        // successor has looked for the label and not found it.
        if matches!(continued.await, Ok(())) {
            crate::failpoint::at("load.begun");
            for fence in call.fences.iter().filter(|_| !planted(Bug::BodyWithoutValidation)) {
                if let Err(fault) = fence.holds().await {
                    return fault;
                }
            }
            crate::failpoint::at("load.validated");
            gate.open();
        }
    }
    std::future::pending().await
}

type Prepared = (Request<HeldBody>, Progress, Option<Guard>);

fn prepare(call: &Call<'_>) -> Result<Prepared, http::Error> {
    let length: u64 = call.segments.iter().map(|segment| segment.len() as u64).sum();
    let mut request = Request::builder().method(call.method.clone()).uri(call.path);
    if let Some(headers) = request.headers_mut() {
        headers.extend(call.headers.iter().map(|(name, value)| (name.clone(), value.clone())));
        headers.insert(header::HOST, HeaderValue::from_str(&call.address.authority())?);
        if length > 0 || call.method != Method::GET {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
    }
    if length == 0 {
        let (body, progress) = HeldBody::empty();
        return Ok((request.body(body)?, progress, None));
    }
    if call.fences.is_empty() {
        let (body, gate, progress) = HeldBody::held(call.segments.to_vec(), Some(call.hold));
        let mut request = request.body(body)?;
        hyper::ext::on_informational(&mut request, move |answer| {
            if answer.status() == StatusCode::CONTINUE {
                gate.open();
            }
        });
        return Ok((request, progress, None));
    }
    let (body, gate, progress) = HeldBody::held(call.segments.to_vec(), None);
    let mut request = request.body(body)?;
    let (tell, continued) = oneshot::channel();
    let tell = Mutex::new(Some(tell));
    hyper::ext::on_informational(&mut request, move |answer| {
        let first = tell.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(first) = first.filter(|_| answer.status() == StatusCode::CONTINUE) {
            // Whoever listened has given up.
            let _ = first.send(());
        }
    });
    Ok((request, progress, Some(Guard { continued, gate })))
}

/// The body up to [`ANSWER_BYTES_MAX`], and whether that was all of it.
async fn read_capped(mut incoming: Incoming) -> Result<(Bytes, bool), hyper::Error> {
    let mut body = Vec::new();
    while let Some(frame) = incoming.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        let room = ANSWER_BYTES_MAX - body.len();
        body.extend_from_slice(data.get(..room.min(data.len())).unwrap_or_default());
        if data.len() > room {
            return Ok((body.into(), false));
        }
    }
    Ok((body.into(), true))
}

/// The answer of somebody who says back what was sent to him, as some proxies do: messages quote answers.
fn without_credentials(body: Bytes, headers: &HeaderMap) -> Bytes {
    let sent = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    let token = sent.and_then(|value| value.splitn(2, |byte| *byte == b' ').nth(1)).unwrap_or_default();
    // JSON may write a slash of base64 with a backslash before it.
    let escaped: Vec<u8> =
        token.iter().flat_map(|byte| (*byte == b'/').then_some(b'\\').into_iter().chain([*byte])).collect();
    let body = without(body, token);
    if escaped == token { body } else { without(body, &escaped) }
}

fn without(body: Bytes, token: &[u8]) -> Bytes {
    let told = |body: &[u8]| body.windows(token.len()).position(|window| window == token);
    let Some(mut at) = (!token.is_empty()).then(|| told(&body)).flatten() else { return body };
    let (mut kept, mut rest) = (Vec::with_capacity(body.len()), &body[..]);
    loop {
        kept.extend_from_slice(&rest[..at]);
        kept.extend_from_slice(b"<redacted>");
        rest = &rest[at + token.len()..];
        match told(rest) {
            Some(next) => at = next,
            None => break,
        }
    }
    kept.extend_from_slice(rest);
    kept.into()
}

fn tls_config(ca: Option<&Path>, https_wanted: bool) -> Result<rustls::ClientConfig, Fault> {
    let hint = "set `ca` under [sink.starrocks] to a PEM file with the certificate authority";
    let builder = || {
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| Fault::halt("cannot set up TLS", hint).caused_by(error))
    };
    let Some(path) = ca else {
        return match builder()?.with_native_roots() {
            Ok(config) => Ok(config.with_no_client_auth()),
            Err(error) if https_wanted => {
                Err(Fault::halt("cannot load the system's certificate authorities", hint).caused_by(error))
            }
            // No root is trusted then: an `https` redirect fails, plain HTTP works.
            Err(_) => {
                Ok(builder()?.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth())
            }
        };
    };
    let mut roots = rustls::RootCertStore::empty();
    let unreadable = || format!("cannot read the certificate authority {}", path.display());
    let certificates = CertificateDer::pem_file_iter(path)
        .map_err(|error| Fault::halt(unreadable(), hint).caused_by(error))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| Fault::halt(unreadable(), hint).caused_by(error))?;
        roots.add(certificate).map_err(|error| Fault::halt(unreadable(), hint).caused_by(error))?;
    }
    if roots.is_empty() {
        return Err(Fault::halt(format!("no certificate in {}", path.display()), hint));
    }
    Ok(builder()?.with_root_certificates(roots).with_no_client_auth())
}
