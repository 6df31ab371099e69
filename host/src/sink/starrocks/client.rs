//! One cluster, spoken to: one attempt of a load, the state of a label, a cancel, a ping.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, Method, StatusCode};
use tokio::io::AsyncReadExt;

use super::address::Address;
use super::frontends::Frontends;
use super::outcome::{self, Seen, classify};
use super::redirect::{REDIRECTS_MAX, Redirects};
use super::request::{add_load_headers, cancel_path, credentials, load_headers, load_path, state_path};
use super::state::LabelState;
use super::transport::{Answer, BodyMark, Call, Transport, TransportError};
use crate::config::model::StarRocks;
use crate::fault::{Fault, FaultKind};
use crate::sink::{Load, Outcome};

mod transaction;

/// How long an FE may take for its hop.
const FE_PATIENCE: Duration = Duration::from_secs(30);
/// How long the body waits for a BE's `100 Continue`. A BE always sends one; a proxy may not.
const BODY_HOLD: Duration = Duration::from_secs(1);
/// Time on top of StarRocks' own load time-out, so that its answer comes before ours.
const LOAD_GRACE: Duration = Duration::from_secs(30);
/// How long an error log may take.
const ERROR_LOG_PATIENCE: Duration = Duration::from_secs(10);
/// How often one attempt asks for another BE after a dead one.
const BE_TRIES_MAX: usize = 3;
/// How long `ping` may ask, shared out among the FEs so that a silent one leaves time for the next.
const PING_LIMIT: Duration = Duration::from_secs(8);
/// How long `ping` looks for a query port given by mistake, once no FE has answered.
const GREETING_LIMIT: Duration = Duration::from_millis(1_500);
/// A MySQL server greets at once with protocol version 10 behind a 4-byte packet head.
const MYSQL_PROTOCOL: u8 = 10;

/// A client of one cluster. Cheap to clone: all clones share connections and what is known of the FEs.
#[derive(Debug, Clone)]
pub struct Client(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    cluster: Arc<StarRocks>,
    transport: Transport,
    frontends: Frontends,
    redirects: Redirects,
    credentials: HeaderMap,
    load_headers: HeaderMap,
    /// [`BODY_HOLD`], but in tests.
    body_hold: Duration,
}

/// Where an attempt stands after the FE's word.
struct Hop {
    from: Address,
    answer: Answer,
}

impl Client {
    /// Checks addresses, headers and TLS files; nothing is sent.
    pub fn new(cluster: Arc<StarRocks>) -> Result<Self, Fault> {
        Self::holding(cluster, BODY_HOLD)
    }

    /// The same for a body that waits up to `body_hold` for a BE's `100 Continue`.
    fn holding(cluster: Arc<StarRocks>, body_hold: Duration) -> Result<Self, Fault> {
        let mut addresses = Vec::new();
        for fe in &cluster.fe {
            let Some((address, _)) = Address::split(fe).filter(|(_, path)| path == "/") else {
                return Err(Fault::halt(
                    "an entry of `fe` is no HTTP address",
                    "write `fe = [\"http://host:8030\"]`, without user, password and path",
                ));
            };
            addresses.push(address);
        }
        if addresses.is_empty() {
            return Err(Fault::halt("`fe` is empty", "write `fe = [\"http://host:8030\"]`"));
        }
        let https_wanted = addresses.iter().any(|address| address.https);
        let shared = Shared {
            transport: Transport::new(cluster.ca.as_deref(), https_wanted)?,
            redirects: Redirects::new(&addresses, &cluster.redirect_hosts),
            frontends: Frontends::new(addresses),
            credentials: credentials(&cluster)?,
            load_headers: load_headers(&cluster)?,
            body_hold,
            cluster,
        };
        Ok(Self(Arc::new(shared)))
    }

    /// The cluster that this client was made for.
    pub fn cluster(&self) -> &StarRocks {
        &self.0.cluster
    }

    /// One attempt under `load.label`: FE, up to three redirects, BE. Sets `load.body_sent` when the
    /// first body byte may have left, also if this future is dropped half-way.
    pub async fn attempt(&self, load: &mut Load) -> Outcome {
        let mut flight = Flight::new(load);
        let (outcome, error_url) = self.0.attempt(&mut flight).await;
        self.with_error_log(outcome, error_url).await
    }

    async fn with_error_log(&self, outcome: Outcome, error_url: ErrorUrl) -> Outcome {
        match (outcome, error_url) {
            (Outcome::BadRows(mut rejection), Some((from, url))) => {
                rejection.error_log = self.0.error_log(&from, &url).await;
                Outcome::BadRows(rejection)
            }
            (outcome, _) => outcome,
        }
    }

    /// What became of the newest transaction under `label`.
    ///
    /// # Errors
    /// `Retry` when no FE gives a state; `Halt` for wrong credentials or a missing database.
    pub async fn label_state(&self, database: &str, label: &str) -> Result<LabelState, Fault> {
        let path = state_path(database, label);
        let answer = self.0.ask_frontends(Method::GET, &path, &self.0.credentials, FE_PATIENCE).await?;
        self.0.read_state(database, label, &answer)
    }

    /// What the FEs of the file say of `label`, each asked for itself.
    ///
    /// # Errors
    /// `Retry` unless more than half of them give a state; `Halt` as [`Client::label_state`].
    pub async fn label_states(&self, database: &str, label: &str) -> Result<Vec<LabelState>, Fault> {
        let path = state_path(database, label);
        let addresses = self.0.cluster_addresses();
        let mut states = Vec::new();
        let mut failures = Vec::new();
        for address in &addresses {
            let first = self.0.bodyless(Method::GET, address, &path, &self.0.credentials, FE_PATIENCE).await;
            let asked = match first {
                Ok(answer) => {
                    let hop = Hop { from: address.clone(), answer };
                    let answer = self.0.to_leader(hop, Method::GET, &self.0.credentials, FE_PATIENCE).await;
                    answer.and_then(|answer| self.0.read_state(database, label, &answer))
                }
                Err(error) => Err(Fault::retry(format!("cannot ask {address}")).caused_by(error)),
            };
            match asked {
                Ok(state) => states.push(state),
                Err(fault) if fault.kind == FaultKind::Halt => return Err(fault),
                Err(fault) => failures.push(fault.story()),
            }
        }
        if states.len() * 2 > addresses.len() {
            return Ok(states);
        }
        Err(Fault::retry(format!("too few FEs say what became of load {label}: {}", failures.join("; "))))
    }

    /// Asks for the transaction of `label` to be aborted. That it was asked says nothing: a transaction
    /// may have been committed meanwhile, so look at [`Client::label_state`] afterwards.
    ///
    /// # Errors
    /// `Retry` when no FE answers.
    pub async fn cancel(&self, database: &str, table: &str, label: &str) -> Result<(), Fault> {
        let path = cancel_path(database, table, label);
        self.0.ask_frontends(Method::POST, &path, &self.0.credentials, FE_PATIENCE).await.map(drop)
    }

    /// Whether an FE answers and takes the credentials; at most 10 seconds.
    ///
    /// # Errors
    /// `Retry` naming each FE and why it does not answer; `Halt` for wrong credentials, a missing
    /// database, and for a query port (9030) given as `fe`.
    pub async fn ping(&self) -> Result<(), Fault> {
        let database = &self.0.cluster.database;
        let label = format!("ping-{:016x}", rand::random::<u64>());
        let path = state_path(database, &label);
        let addresses = self.0.cluster_addresses();
        let share = PING_LIMIT / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
        let asked = tokio::time::timeout(
            PING_LIMIT,
            self.0.ask_frontends(Method::GET, &path, &self.0.credentials, share),
        );
        let silence = match asked.await {
            Ok(Ok(answer)) => return self.0.read_state(database, &label, &answer).map(drop),
            Ok(Err(fault)) => fault,
            Err(_) => {
                let list: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                let waited = PING_LIMIT.as_secs();
                Fault::retry(format!("no FE answered within {waited} s: {}", list.join(", ")))
                    .with_hint("check `fe` under [sink.starrocks], and that this machine may reach it")
            }
        };
        let greeting = tokio::time::timeout(GREETING_LIMIT, query_port_given(&addresses)).await;
        Err(greeting.ok().flatten().unwrap_or(silence))
    }
}

/// An attempt under way; on drop it tells the load whether a body left.
struct Flight<'a> {
    load: &'a mut Load,
    mark: BodyMark,
    sent_before: bool,
    /// The transaction was refused before it began: the body that left in this attempt is nowhere.
    begin_refused: bool,
}

impl<'a> Flight<'a> {
    fn new(load: &'a mut Load) -> Self {
        let sent_before = load.body_sent;
        Self { load, mark: BodyMark::default(), sent_before, begin_refused: false }
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        if self.mark.has_left() && !self.begin_refused {
            self.load.body_sent = true;
        }
    }
}

type ErrorUrl = Option<(Address, String)>;

impl Shared {
    async fn attempt(&self, flight: &mut Flight<'_>) -> (Outcome, ErrorUrl) {
        let mut headers = self.load_headers.clone();
        if let Err(fault) = add_load_headers(&mut headers, flight.load) {
            return (Outcome::Refused(fault), None);
        }
        let path = load_path(&flight.load.destination.cluster.database, &flight.load.destination.table);
        self.send_body(flight, &path, &headers).await
    }

    /// `PUT`s the rows to `path`: FE, redirects, BE.
    async fn send_body(
        &self,
        flight: &mut Flight<'_>,
        path: &str,
        headers: &HeaderMap,
    ) -> (Outcome, ErrorUrl) {
        let mut dead_be = None;
        for _ in 0..BE_TRIES_MAX {
            let first = match self.first_hop(Method::PUT, path, headers, FE_PATIENCE).await {
                Ok(hop) => hop,
                Err(fault) => return (Outcome::Refused(fault), None),
            };
            match self.follow(first, headers, flight).await {
                Followed::Answered { from, answer, body_left } => {
                    return conclude(flight, from, &answer, body_left);
                }
                Followed::Known(outcome) => return (outcome, None),
                // A dead BE: the FE names them in turn.
                Followed::Dead(fault) => dead_be = Some(fault),
            }
        }
        let fault = dead_be.unwrap_or_else(|| Fault::retry("no BE takes the load"));
        (Outcome::Refused(fault), None)
    }

    /// From the FE's answer to the one that decides: redirects, and the body to the BE.
    async fn follow(&self, first: Hop, headers: &HeaderMap, flight: &Flight<'_>) -> Followed {
        let Hop { mut from, mut answer } = first;
        let frontend = from.clone();
        let mut body_left = false;
        for _ in 0..REDIRECTS_MAX {
            if !answer.status.is_redirection() {
                return Followed::Answered { from, answer, body_left };
            }
            let (target, path) = match self.redirects.follow(&from, answer.location.as_deref()) {
                Ok(next) => next,
                Err(fault) => return Followed::Known(Outcome::Refused(fault)),
            };
            // Another FE (the leader) gets no body either. BEs have a port of their own.
            let is_frontend = self.redirects.is_frontend(&target) || target.port == frontend.port;
            let call = Call {
                address: &target,
                method: Method::PUT,
                path: &path,
                headers,
                segments: if is_frontend { &[] } else { flight.load.body() },
                fences: if is_frontend { &[] } else { &flight.load.fences },
                hold: self.body_hold,
                patience: if is_frontend {
                    FE_PATIENCE
                } else {
                    flight.load.destination.cluster.load_timeout + LOAD_GRACE
                },
                keep: !is_frontend,
            };
            let exchange = self.transport.send(&call, &flight.mark).await;
            answer = match exchange.result {
                Ok(next) => next,
                Err(error) if exchange.body_left => {
                    let fault =
                        Fault::retry(format!("the outcome of load {} is not known", flight.load.label));
                    return Followed::Known(Outcome::Unsure(fault.caused_by(error)));
                }
                Err(TransportError::Fenced { source, .. }) => {
                    return Followed::Known(Outcome::Refused(source));
                }
                Err(error) => {
                    return Followed::Dead(Fault::retry("the load did not reach a BE").caused_by(error));
                }
            };
            body_left = exchange.body_left;
            from = target;
        }
        if answer.status.is_redirection() {
            return Followed::Known(Outcome::Refused(Fault::retry(format!(
                "{frontend} and whoever it names redirect in circles, more than {REDIRECTS_MAX} times"
            ))));
        }
        Followed::Answered { from, answer, body_left }
    }

    /// The first answer that an FE gives: those that cannot be reached or answer 5xx are passed over.
    async fn first_hop(
        &self,
        method: Method,
        path: &str,
        headers: &HeaderMap,
        patience: Duration,
    ) -> Result<Hop, Fault> {
        let mut failures = Vec::new();
        for (index, address) in self.frontends.in_order(Instant::now()) {
            match self.bodyless(method.clone(), address, path, headers, patience).await {
                Ok(answer) if answer.status.is_server_error() => {
                    failures.push(format!("{address} answered HTTP {}", answer.status.as_u16()));
                    self.frontends.failed(index, Instant::now());
                }
                Ok(answer) => {
                    self.frontends.answered(index);
                    return Ok(Hop { from: address.clone(), answer });
                }
                Err(error) => {
                    failures.push(error.story());
                    self.frontends.failed(index, Instant::now());
                }
            }
        }
        Err(Fault::retry(format!("no FE can be used: {}", failures.join("; "))).with_hint(
            "check `fe` under [sink.starrocks] (the HTTP port, 8030 by default), and that StarRocks runs",
        ))
    }

    /// A request without body to the FEs, followed to the leader if need be.
    async fn ask_frontends(
        &self,
        method: Method,
        path: &str,
        headers: &HeaderMap,
        patience: Duration,
    ) -> Result<Answer, Fault> {
        let hop = self.first_hop(method.clone(), path, headers, patience).await?;
        self.to_leader(hop, method, headers, patience).await
    }

    /// From an FE's answer to that of the one it names.
    async fn to_leader(
        &self,
        Hop { mut from, mut answer }: Hop,
        method: Method,
        headers: &HeaderMap,
        patience: Duration,
    ) -> Result<Answer, Fault> {
        for _ in 0..REDIRECTS_MAX {
            if !answer.status.is_redirection() {
                return Ok(answer);
            }
            let (target, path) = self.redirects.follow(&from, answer.location.as_deref())?;
            answer = self
                .bodyless(method.clone(), &target, &path, headers, patience)
                .await
                .map_err(|error| Fault::retry(format!("cannot ask {target}")).caused_by(error))?;
            from = target;
        }
        Ok(answer)
    }

    async fn bodyless(
        &self,
        method: Method,
        address: &Address,
        path: &str,
        headers: &HeaderMap,
        patience: Duration,
    ) -> Result<Answer, TransportError> {
        let call = Call {
            address,
            method,
            path,
            headers,
            segments: &[],
            fences: &[],
            hold: self.body_hold,
            patience,
            keep: false,
        };
        self.transport.send(&call, &BodyMark::default()).await.result
    }

    fn read_state(&self, database: &str, label: &str, answer: &Answer) -> Result<LabelState, Fault> {
        let message = match LabelState::read(&answer.body) {
            Ok(state) if answer.status != StatusCode::UNAUTHORIZED => return Ok(state),
            Ok(_) => "not authorized".to_owned(),
            Err(message) => message,
        };
        let what = format!(
            "cannot ask for the state of label {label}: HTTP {}, {}",
            answer.status.as_u16(),
            outcome::clipped(&message)
        );
        let lower = message.to_ascii_lowercase();
        let denied = answer.status == StatusCode::UNAUTHORIZED || answer.status == StatusCode::FORBIDDEN;
        if denied || lower.contains("access denied") {
            return Err(Fault::halt(
                what,
                format!("check `user` and `password` (user {})", self.cluster.user),
            ));
        }
        if lower.contains("unknown database") || lower.contains("unknown db") {
            let what = format!("database {database} is not there: {}", outcome::clipped(&message));
            return Err(Fault::halt(what, format!("create the database: CREATE DATABASE `{database}`")));
        }
        Err(Fault::retry(what))
    }

    /// The reasons behind refused rows; none if they cannot be had from a host of the cluster.
    async fn error_log(&self, from: &Address, url: &str) -> Option<String> {
        let (address, path) = self.redirects.error_log(from, url)?;
        let answer = self
            .bodyless(Method::GET, &address, &path, &HeaderMap::new(), ERROR_LOG_PATIENCE)
            .await
            .inspect_err(|error| tracing::warn!(error = %error.story(), "cannot read StarRocks' error log"))
            .ok()?;
        answer.status.is_success().then(|| String::from_utf8_lossy(&answer.body).into_owned())
    }

    fn cluster_addresses(&self) -> Vec<Address> {
        self.frontends.in_order(Instant::now()).into_iter().map(|(_, address)| address.clone()).collect()
    }
}

/// What following the redirects came to.
enum Followed {
    /// An answer to be read.
    Answered { from: Address, answer: Answer, body_left: bool },
    /// The outcome is clear without an answer.
    Known(Outcome),
    /// The BE was not reached and got nothing.
    Dead(Fault),
}

fn conclude(flight: &mut Flight<'_>, from: Address, answer: &Answer, body_left: bool) -> (Outcome, ErrorUrl) {
    let classified = classify(&Seen {
        status: answer.status.as_u16(),
        body: &answer.body,
        body_left,
        sent_before: flight.sent_before,
        load: flight.load,
    });
    flight.begin_refused = classified.begin_refused;
    (classified.outcome, classified.error_url.map(|url| (from, url)))
}

/// Whether one of the FE addresses is a query port, which speaks MySQL's protocol.
async fn query_port_given(addresses: &[Address]) -> Option<Fault> {
    for address in addresses {
        if greets_like_mysql(address).await.is_some_and(|greets| greets) {
            return Some(Fault::halt(
                format!("{address} speaks the MySQL protocol, not HTTP"),
                "`fe` wants the FE's HTTP port (8030 by default); the query port (9030) belongs into `query`",
            ));
        }
    }
    None
}

/// Reads what a server says unasked: an HTTP server says nothing.
async fn greets_like_mysql(address: &Address) -> Option<bool> {
    let host = address.host.trim_start_matches('[').trim_end_matches(']');
    let mut stream = tokio::net::TcpStream::connect((host, address.port)).await.ok()?;
    let mut head = [0u8; 5];
    stream.read_exact(&mut head).await.ok()?;
    Some(head[4] == MYSQL_PROTOCOL)
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
