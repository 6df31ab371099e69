//! What the BE answers: it begins the transaction, only then takes the body, and loads it.

use http::{HeaderMap, Request, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::answer::{self, Handled, HangUp, LoadAnswer};
use super::frontend;
use super::request::{self, Credentials};
use crate::catalog::Table;
use crate::cluster::{BeginRefused, Cluster, Committed, Load, LoadData};
use crate::fault::{AnswerFault, ClientFate, ExistingLabel, FaultKind, Hop, LabelForm};
use crate::ingest::{self, Format, LoadParams, LoadPlan, RowCounter};
use crate::options::{Keep, Options};

/// `PUT /api/{db}/{table}/_stream_load`.
///
/// hyper sends `100 Continue` when the body is first asked for, so everything that returns before
/// [`receive`] is an answer that arrives instead of it.
pub(super) async fn stream_load(
    cluster: &Arc<Cluster>,
    db: &str,
    table: &str,
    request: Request<Incoming>,
) -> Handled {
    let started = Instant::now();
    let (parts, body) = request.into_parts();
    let mut answer = match open(cluster, db, table, &parts.headers).await {
        Err(mut refusal) => {
            refusal.load_time_ms = millis(started.elapsed());
            // The body was not taken, so the connection cannot serve another request.
            return Ok(answer::closing(answer::json(&refusal)));
        }
        Ok(open) => {
            let content_length = content_length(&parts.headers);
            match load(open, body, content_length, started).await? {
                Loaded::Answer(answer) => answer,
                Loaded::Spoiled(answer, how) => return answer::spoil(answer::json(&answer), how),
            }
        }
    };
    answer.load_time_ms = millis(started.elapsed());
    Ok(answer::json(&answer))
}

/// A load whose transaction is begun and whose way into the table is planned.
struct Open {
    load: Load,
    plan: LoadPlan,
    timeout: Duration,
    begin_ms: u64,
}

enum Loaded {
    Answer(LoadAnswer),
    Spoiled(LoadAnswer, AnswerFault),
}

/// Everything the BE does between the request's head and its body.
async fn open(
    cluster: &Arc<Cluster>,
    db: &str,
    table: &str,
    headers: &HeaderMap,
) -> Result<Open, Box<LoadAnswer>> {
    let started = Instant::now();
    let label = label_or_random(headers, started);
    let failed = |message: &str| Box::new(LoadAnswer::failed(&label, message));
    match request::credentials(headers, cluster.options.password.as_deref()) {
        Credentials::Valid => {}
        Credentials::Missing => return Err(failed("no valid Basic authorization")),
        Credentials::Wrong { user } => return Err(failed(&format!("Access denied for {user}@127.0.0.1"))),
    }
    let params = LoadParams::from_headers(headers).map_err(|message| failed(&message))?;
    check_size(&params, content_length(headers), &cluster.options).map_err(|message| failed(&message))?;
    if let Some(message) = refused_before_begin(cluster, db, table).await {
        return Err(failed(&message));
    }
    let timeout = params.timeout.unwrap_or(cluster.options.load_timeout);
    let load = Load::begin(cluster, db, table, &label, timeout)
        .map_err(|refused| Box::new(refusal(&label, refused)))?;
    let begin_ms = millis(started.elapsed());
    match LoadPlan::new(params, &load.table.schema()) {
        Ok(plan) => Ok(Open { load, plan, timeout, begin_ms }),
        Err(message) => {
            let txn_id = load.txn_id;
            load.abort(&message);
            Err(Box::new(LoadAnswer {
                txn_id,
                begin_txn_time_ms: begin_ms,
                ..LoadAnswer::failed(&label, message)
            }))
        }
    }
}

/// The label of the request, or a fresh one as the BE makes it up.
fn label_or_random(headers: &HeaderMap, now: Instant) -> String {
    use std::hash::{BuildHasher, RandomState};
    headers.get("label").and_then(|value| value.to_str().ok()).filter(|label| !label.is_empty()).map_or_else(
        || {
            let (high, low) = (RandomState::new().hash_one(now), RandomState::new().hash_one(now));
            format!("{high:016x}-{low:016x}")
        },
        str::to_owned,
    )
}

/// Whether a body of so many bytes is taken (protocol reference §1.6); without a length nobody can tell.
pub(super) fn check_size(params: &LoadParams, bytes: Option<u64>, options: &Options) -> Result<(), String> {
    let limit = options.json_bytes_max;
    match bytes {
        Some(bytes) if bytes > options.body_bytes_max => Err(format!(
            "body size {bytes} exceed limit: {}. You can increase the limit by setting streaming_load_max_mb in \
             be.conf.",
            options.body_bytes_max
        )),
        Some(bytes) if params.format == Format::Json && !params.ignore_json_size && bytes > limit => {
            Err(format!(
                "The size of this batch exceed the max size [{limit}]  of json type data  data [ {bytes} ]. Set \
                 ignore_json_size to skip the check, although it may lead huge memory consuming."
            ))
        }
        Some(_) | None => Ok(()),
    }
}

/// Faults that strike before the transaction exists.
pub(super) async fn refused_before_begin(cluster: &Cluster, db: &str, table: &str) -> Option<String> {
    let delay = cluster.faults.fire(db, table, |kind| match kind {
        FaultKind::LateBegin { delay_ms } => Some(Duration::from_millis(*delay_ms)),
        _ => None,
    });
    if let Some(delay) = delay {
        tokio::time::sleep(delay).await;
    }
    cluster.faults.fire(db, table, |kind| match kind {
        FaultKind::ShuttingDown => Some("Service is shutting down, please retry later!".to_owned()),
        FaultKind::AccessDenied { at: Hop::Backend } => Some(frontend::access_denied(table)),
        _ => None,
    })
}

fn refusal(label: &str, refused: BeginRefused) -> LoadAnswer {
    match refused {
        BeginRefused::LabelUsed { existing, form: LabelForm::Status, message } => LoadAnswer {
            status: "Label Already Exists",
            existing_job_status: Some(match existing {
                ExistingLabel::Finished => "FINISHED",
                ExistingLabel::Running => "RUNNING",
            }),
            ..LoadAnswer::failed(label, message)
        },
        BeginRefused::LabelUsed { form: LabelForm::Fail, message, .. } | BeginRefused::Other(message) => {
            LoadAnswer::failed(label, message)
        }
    }
}

/// What arrived.
pub(super) enum Received {
    Whole(Vec<u8>),
    Counted(RowCounter),
}

impl Received {
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Whole(body) => body.len() as u64,
            Self::Counted(counter) => counter.bytes(),
        }
    }
}

/// Takes the body; a `packed` one is always kept, since its rows cannot be counted as it comes.
///
/// An error means that the connection is gone or to be closed: there is nobody to answer. A body that ends before its
/// announced length is such an error: a BE's libevent closes then without a word, although the BE has a text for it.
pub(super) async fn receive(
    cluster: &Cluster,
    table: &Table,
    mut body: Incoming,
    content_length: Option<u64>,
    packed: bool,
) -> Result<Received, HangUp> {
    let withheld = cluster.faults.fire(&table.db, &table.name, |kind| match kind {
        FaultKind::ContinueWithheld { delay_ms } => Some(Duration::from_millis(*delay_ms)),
        _ => None,
    });
    if let Some(delay) = withheld {
        tokio::time::sleep(delay).await;
    }
    let bytes_max = cluster.faults.fire(&table.db, &table.name, |kind| match kind {
        FaultKind::DropMidBody { after_bytes } => Some(*after_bytes),
        _ => None,
    });
    let mut received = match cluster.options.keep {
        Keep::None if !packed => Received::Counted(RowCounter::default()),
        Keep::Rows | Keep::None => {
            // A client may announce what it likes; more than the limit is only reserved as it comes.
            let announced = content_length.unwrap_or(0).min(cluster.options.json_bytes_max);
            Received::Whole(Vec::with_capacity(usize::try_from(announced).unwrap_or(0)))
        }
    };
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return Err(HangUp) };
        if let Some(data) = frame.data_ref() {
            match &mut received {
                Received::Whole(body) => body.extend_from_slice(data),
                Received::Counted(counter) => counter.add(data),
            }
        }
        if bytes_max.is_some_and(|bytes_max| received.bytes() >= bytes_max) {
            return Err(HangUp);
        }
    }
    if bytes_max.is_some() {
        return Err(HangUp);
    }
    Ok(received)
}

async fn load(
    open: Open,
    body: Incoming,
    content_length: Option<u64>,
    started: Instant,
) -> Result<Loaded, HangUp> {
    let (cluster, table) = (Arc::clone(&open.load.cluster), Arc::clone(&open.load.table));
    let packed = open.plan.params.compression.is_some();
    let received = receive(&cluster, &table, body, content_length, packed).await?;
    let late = cluster.faults.fire(&table.db, &table.name, |kind| match kind {
        FaultKind::LateCommit { delay_ms, client } => Some((Duration::from_millis(*delay_ms), *client)),
        _ => None,
    });
    let lost = cluster.faults.fire(&table.db, &table.name, |kind| match kind {
        FaultKind::AnswerLost { at: Hop::Backend, how, committed } => Some((*how, *committed)),
        _ => None,
    });
    let aborts = lost.is_some_and(|(_, committed)| !committed);
    // From here on the load goes its way whatever becomes of the client, as on a BE.
    let finishing = tokio::spawn(finish(open, received, late.map(|(delay, _)| delay), aborts, started));
    if let Some((_, ClientFate::Dropped)) = late {
        return Err(HangUp);
    }
    let answer = finishing.await.map_err(|error| {
        tracing::error!(%error, "a load panicked");
        HangUp
    })?;
    Ok(match lost {
        Some((how, _)) => Loaded::Spoiled(answer, how),
        None => Loaded::Answer(answer),
    })
}

/// From the complete body to the decided transaction.
async fn finish(
    open: Open,
    received: Received,
    late: Option<Duration>,
    aborts: bool,
    started: Instant,
) -> LoadAnswer {
    let Open { load, plan, timeout, begin_ms } = open;
    let read_ms = millis(started.elapsed()).saturating_sub(begin_ms);
    let mut answer = LoadAnswer {
        txn_id: load.txn_id,
        load_bytes: received.bytes(),
        begin_txn_time_ms: begin_ms,
        read_data_time_ms: read_ms,
        ..LoadAnswer::failed(&load.label, "")
    };
    let writing = Instant::now();
    let checked = check(&load, plan, received, &mut answer).await;
    let slow = load.cluster.faults.fire(&load.table.db, &load.table.name, |kind| match kind {
        FaultKind::SlowLoad { delay_ms } => Some(Duration::from_millis(*delay_ms)),
        _ => None,
    });
    tokio::time::sleep(slow.unwrap_or_default() + late.unwrap_or_default()).await;
    answer.write_data_time_ms = millis(writing.elapsed());
    let data = match checked {
        Ok(_) if aborts => Err("the backend lost the request".to_owned()),
        other => other,
    };
    match data {
        Err(message) => {
            load.abort(&message);
            answer.message = message;
        }
        Ok(data) => decide(load, data, timeout, &mut answer).await,
    }
    answer
}

/// Commits, or meets the fault that makes the commit's outcome unknown.
async fn decide(load: Load, data: LoadData, timeout: Duration, answer: &mut LoadAnswer) {
    let unknown = load.cluster.faults.fire(&load.table.db, &load.table.name, |kind| match kind {
        FaultKind::CommitUnknown { committed } => Some(*committed),
        _ => None,
    });
    let lost_fe = format!(
        "Commit transaction fail cause rpc timeout, FE address 127.0.0.1:{}, Transaction status unknown, you can \
         retry with same label.",
        load.cluster.addresses.fe_http
    );
    if unknown == Some(false) {
        load.abort("the commit did not reach the FE");
        answer.message = lost_fe;
        return;
    }
    let committing = Instant::now();
    let outcome = load.commit(data, timeout).await;
    answer.commit_and_publish_time_ms = millis(committing.elapsed());
    match outcome {
        Ok(_) if unknown.is_some() => answer.message = lost_fe,
        Ok(Committed::Visible) => {
            answer.status = "Success";
            answer.message = "OK".to_owned();
        }
        Ok(Committed::PublishTimeout) => {
            answer.status = "Publish Timeout";
            answer.message = "transaction commit successfully, BUT data will be visible later".to_owned();
        }
        Err(message) => answer.message = message,
    }
}

/// What a BE says whose process is at its memory limit (`MemTracker::err_msg`).
const PROCESS_LIMIT: &str = "Memory of process exceed limit.  Backend: 127.0.0.1, Used: 8589934592, Limit: \
                             8589934592. Mem usage has exceed the limit of BE";

/// Reads the rows and fills the counters of the answer; an error aborts the load.
async fn check(
    load: &Load,
    plan: LoadPlan,
    received: Received,
    answer: &mut LoadAnswer,
) -> Result<LoadData, String> {
    let told = |kind: &FaultKind| match kind {
        FaultKind::LoadFails { message } => Some(message.clone()),
        FaultKind::MemoryLimit => Some(PROCESS_LIMIT.to_owned()),
        _ => None,
    };
    if let Some(message) = load.cluster.faults.fire(&load.table.db, &load.table.name, told) {
        return Err(message);
    }
    load.admit()?;
    let ratio_max = plan.params.max_filter_ratio;
    let (data, filtered) = read(load.cluster.options.keep, plan, received).await?;
    let loaded = data.rows;
    answer.number_total_rows = loaded + filtered.rows;
    answer.number_loaded_rows = loaded;
    answer.number_filtered_rows = filtered.rows;
    if filtered.rows > 0 {
        answer.error_url = Some(error_url(load, &filtered.reasons));
    }
    if filtered.rows as f64 > ratio_max * answer.number_total_rows as f64 {
        return Err("too many filtered rows".to_owned());
    }
    if loaded == 0 {
        return Err("No rows were imported from upstream".to_owned());
    }
    Ok(data)
}

/// Rows left out, and why.
#[derive(Debug, Default)]
pub(super) struct Filtered {
    pub(super) rows: u64,
    pub(super) reasons: Vec<String>,
}

/// Reads a body under its plan, off the runtime.
pub(super) async fn read(
    keep: Keep,
    plan: LoadPlan,
    received: Received,
) -> Result<(LoadData, Filtered), String> {
    let body = match received {
        Received::Counted(counter) => return Ok(counted(&counter, counter.bytes())),
        Received::Whole(body) => body,
    };
    let reading = tokio::task::spawn_blocking(move || match keep {
        Keep::Rows => {
            let mut staged = ingest::read(body, &plan)?;
            let filtered = Filtered { rows: staged.filtered, reasons: std::mem::take(&mut staged.reasons) };
            Ok((LoadData { rows: staged.rows, bytes: staged.bytes, loads: vec![staged] }, filtered))
        }
        Keep::None => {
            let bytes = body.len() as u64;
            let mut counter = RowCounter::default();
            counter.add(&ingest::unpacked(body, &plan.params)?);
            Ok(counted(&counter, bytes))
        }
    });
    reading.await.map_err(|error| format!("reading the body panicked: {error}"))?
}

fn counted(counter: &RowCounter, bytes: u64) -> (LoadData, Filtered) {
    (LoadData { loads: Vec::new(), rows: counter.rows(), bytes }, Filtered::default())
}

/// Keeps the reasons of a load and returns their `ErrorURL`, or the one that a fault puts in its place.
fn error_url(load: &Load, reasons: &[String]) -> String {
    let url = load.cluster.keep_error_log(reasons);
    let elsewhere = load.cluster.faults.fire(&load.table.db, &load.table.name, |kind| match kind {
        FaultKind::ErrorLogElsewhere { authority } => Some(Some(authority.clone())),
        FaultKind::ErrorLogLost => Some(None),
        _ => None,
    });
    match elsewhere {
        None => url,
        // The name of a log that nobody keeps: whoever asks for it is told 404.
        Some(None) => format!("{url}_gone"),
        Some(Some(authority)) => {
            let own = format!("127.0.0.1:{}", load.cluster.addresses.be_http);
            url.replacen(&own, &authority, 1)
        }
    }
}

/// `GET /api/_load_error_log?file=`.
pub(super) fn error_log(cluster: &Cluster, request: &Request<Incoming>) -> Handled {
    let file = request::parameter(request.uri(), "file").unwrap_or_default();
    Ok(match cluster.error_log(&file) {
        Some(content) => answer::with_body(http::StatusCode::OK, "text/plain", content),
        None => answer::not_found(&file),
    })
}

pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
