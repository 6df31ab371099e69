//! The transaction interface, `/api/transaction/*`, split between FE and BE as protocol reference §4.2 says.

use http::{HeaderMap, Request};
use hyper::body::Incoming;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::answer::{self, Answer, Handled};
use super::backend::{self, Filtered};
use super::request::{self, Credentials};
use super::{Shared, frontend};
use crate::catalog::Table;
use crate::cluster::{BeginRefused, Cluster, Committed, Load, LoadData};
use crate::fault::{ClientFate, ExistingLabel, FaultKind, Hop};
use crate::ingest::{LoadParams, LoadPlan};
use crate::transaction::TransactionState;

/// How long a commit waits for visibility when the request names no `timeout`.
const COMMIT_WAIT: Duration = Duration::from_secs(20);

/// The transactions that the BE has a context of, by label: begun and not yet prepared.
#[derive(Default)]
pub(crate) struct OpenTransactions {
    by_label: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Context>>>>,
}

/// A transaction on the BE. The lock around it is the one request at a time that a label may have.
struct Context {
    load: Option<Load>,
    data: LoadData,
    filtered: Filtered,
    max_filter_ratio: f64,
    bodies: u64,
    begun: Instant,
}

/// A body whose rows were added to the transaction.
struct Taken {
    bytes: u64,
    /// When its last byte came.
    received: Instant,
}

/// Why a body was not.
enum Untaken {
    Refused(String),
    CutOff(answer::HangUp),
}

impl Context {
    /// What prepare and commit tell of the rows.
    fn fields(&self, load: &Load) -> Value {
        let (loaded, filtered) = (self.data.rows, self.filtered.rows);
        let total_ms = backend::millis(self.begun.elapsed());
        json!({
            "TxnId": load.txn_id, "Label": load.label, "NumberTotalRows": loaded + filtered,
            "NumberLoadedRows": loaded, "NumberFilteredRows": filtered, "NumberUnselectedRows": 0,
            "LoadBytes": self.data.bytes, "LoadTimeMs": total_ms, "StreamLoadPlanTimeMs": 0,
            "ReceivedDataTimeMs": 0, "WriteDataTimeMs": 0, "CommitAndPublishTimeMs": 0,
        })
    }

    /// Why the rows cannot be prepared, if so.
    fn refusal(&self, load: &Load) -> Result<(), String> {
        let total = self.data.rows + self.filtered.rows;
        if self.filtered.rows as f64 > self.max_filter_ratio * total as f64 {
            return Err("too many filtered rows".to_owned());
        }
        load.admit()
    }

    /// Adds a body's rows to those that came before.
    async fn take(
        &mut self,
        cluster: &Cluster,
        table: &Table,
        headers: &HeaderMap,
        body: Incoming,
    ) -> Result<Taken, Untaken> {
        let params = LoadParams::from_headers(headers).map_err(Untaken::Refused)?;
        let length = backend::content_length(headers);
        let total = length.map(|length| length + self.data.bytes);
        let checked = backend::check_size(&params, total, &cluster.options);
        checked.map_err(Untaken::Refused)?;
        self.max_filter_ratio = params.max_filter_ratio;
        let plan = LoadPlan::new(params, &table.schema()).map_err(Untaken::Refused)?;
        let packed = plan.params.compression.is_some();
        let body = backend::receive(cluster, table, body, length, packed).await.map_err(Untaken::CutOff)?;
        let received = Instant::now();
        let read = backend::read(cluster.options.keep, plan, body).await;
        let (data, filtered) = read.map_err(Untaken::Refused)?;
        let bytes = data.bytes;
        self.data.rows += data.rows;
        self.data.bytes += bytes;
        self.data.loads.extend(data.loads);
        self.filtered.rows += filtered.rows;
        self.filtered.reasons.extend(filtered.reasons);
        self.bodies += 1;
        Ok(Taken { bytes, received })
    }

    fn is_undecided(&self, cluster: &Cluster) -> bool {
        let Some(load) = &self.load else { return false };
        let transactions = cluster.transactions();
        let state = transactions.get(load.txn_id).map(|transaction| transaction.state);
        state == Some(TransactionState::Prepare)
    }
}

impl OpenTransactions {
    fn insert(&self, label: &str, context: Context) {
        let mut open = self.by_label.lock().unwrap_or_else(PoisonError::into_inner);
        open.insert(label.to_owned(), Arc::new(tokio::sync::Mutex::new(context)));
    }

    fn get(&self, label: &str) -> Option<Arc<tokio::sync::Mutex<Context>>> {
        self.by_label.lock().unwrap_or_else(PoisonError::into_inner).get(label).cloned()
    }

    /// Whether a label has a context whose transaction is still undecided, in whatever database.
    fn is_live(&self, cluster: &Cluster, label: &str) -> bool {
        let Some(context) = self.get(label) else { return false };
        // In use means live.
        context.try_lock().map_or(true, |context| context.is_undecided(cluster))
    }

    /// Forgets a context and leaves its transaction to its time limit.
    fn lose(&self, label: &str) {
        let lost = self.by_label.lock().unwrap_or_else(PoisonError::into_inner).remove(label);
        // In use: the request that has it ends with what it is about.
        if let Some(load) = lost.as_ref().and_then(|lost| lost.try_lock().ok()?.load.take()) {
            load.abandon();
        }
    }

    fn remove(&self, label: &str) {
        self.by_label.lock().unwrap_or_else(PoisonError::into_inner).remove(label);
    }

    /// Drops the contexts whose transaction was aborted meanwhile: cancelled, or past its time.
    pub(crate) fn drop_decided(&self, cluster: &Cluster) {
        let mut open = self.by_label.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, context| match context.try_lock() {
            // In use: the request that holds it will notice by itself.
            Err(_) => true,
            Ok(context) => context.is_undecided(cluster),
        });
    }
}

/// What every operation names in its headers.
struct Named {
    db: String,
    table: String,
    label: String,
    timeout: Option<Duration>,
    prepared_timeout: Option<Duration>,
}

impl Named {
    fn from_headers(headers: &HeaderMap) -> Result<Self, String> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let seconds = |name: &str| match text(name) {
            "" => Ok(None),
            value => value
                .parse()
                .map(|seconds| Some(Duration::from_secs(seconds)))
                .map_err(|_| format!("Invalid {name} format")),
        };
        if text("transaction_type").eq_ignore_ascii_case("multi") || !text("channel_num").is_empty() {
            return Err("the sandbox does not do this: multi-table and parallel transactions".to_owned());
        }
        if text("label").is_empty() {
            return Err("Empty label.".to_owned());
        }
        if text("db").is_empty() {
            return Err("No database selected.".to_owned());
        }
        Ok(Self {
            db: text("db").to_owned(),
            table: text("table").to_owned(),
            label: text("label").to_owned(),
            timeout: seconds("timeout")?,
            prepared_timeout: seconds("prepared_timeout")?,
        })
    }
}

/// The FE redirects what needs rows, and decides what is PREPARED.
pub(super) async fn at_frontend(shared: &Shared, operation: &str, request: &Request<Incoming>) -> Handled {
    let cluster = &shared.cluster;
    if let Some(refusal) = frontend::refuse_credentials(cluster, request.headers()) {
        return Ok(refusal);
    }
    let named = match Named::from_headers(request.headers()) {
        Ok(named) => named,
        Err(message) => return Ok(fe_exception(&message)),
    };
    if !cluster.catalog().has_database(&named.db) {
        return Ok(fe_exception(&format!("unknown database, database={}", named.db)));
    }
    if operation != "begin" && is_lost_to_a_new_leader(shared, &named) {
        return Ok(fe_exception(&format!(
            "Can't find the transaction with db [{}] and label[{}]. The possible reasons: 1. FE leader is started or \
             switched; 2. The transaction timeouts and is cleaned.",
            named.db, named.label
        )));
    }
    let answer = match operation {
        "begin" | "load" | "prepare" => frontend::redirect(cluster, &named.db, &named.table, request).await,
        "commit" => fe_commit(cluster, &named, request).await?,
        "rollback" => fe_rollback(cluster, &named, request).await,
        other => return Ok(answer::not_found(other)),
    };
    match frontend::lost(cluster, &named.db, &named.table, Hop::Frontend) {
        Some(how) => answer::spoil(answer, how),
        None => Ok(answer),
    }
}

/// Whether the FE does not know where an open transaction is, since it has become the leader after it was begun.
fn is_lost_to_a_new_leader(shared: &Shared, named: &Named) -> bool {
    let is_open = found(&shared.cluster, named).is_some_and(|(_, state)| state == TransactionState::Prepare);
    let changed = |kind: &FaultKind| matches!(kind, FaultKind::LeaderChanged).then_some(());
    let fires = is_open && shared.cluster.faults.fire(&named.db, &named.table, changed).is_some();
    if fires {
        shared.transactions.lose(&named.label);
    }
    fires
}

fn fe_exception(message: &str) -> Answer {
    answer::fe_failed(&format!("class com.starrocks.common.UserException: {message}"))
}

fn found(cluster: &Cluster, named: &Named) -> Option<(i64, TransactionState)> {
    cluster.transactions().by_label(&named.db, &named.label).map(|found| (found.id, found.state))
}

async fn fe_commit(cluster: &Arc<Cluster>, named: &Named, request: &Request<Incoming>) -> Handled {
    let label = &named.label;
    let Some((id, state)) = found(cluster, named) else {
        return Ok(fe_exception(&format!("No transaction found by label {label}")));
    };
    let ok = |message: String| {
        answer::json(&json!({ "Status": "OK", "Message": message, "TxnId": id, "Label": label }))
    };
    match state {
        TransactionState::Prepare => Ok(frontend::redirect(cluster, &named.db, &named.table, request).await),
        TransactionState::Committed | TransactionState::Visible => {
            Ok(ok(format!("Transaction {id} has already committed, label is {label}")))
        }
        TransactionState::Aborted => {
            Ok(fe_exception(&format!("Can not commit ABORTED transaction {id}, label is {label}")))
        }
        TransactionState::Prepared => {
            let patience = named.timeout.unwrap_or(COMMIT_WAIT);
            let (owned, delay) = (Arc::clone(cluster), late_commit(cluster, named));
            let committing = async move {
                tokio::time::sleep(delay.map_or(Duration::ZERO, |(delay, _)| delay)).await;
                let outcome = owned.commit_prepared(id, patience).await;
                outcome.unwrap_or_else(|| Err(format!("transaction [{id}] is not PREPARED any more")))
            };
            Ok(match detached(committing, delay).await? {
                Ok(Committed::Visible) => ok(String::new()),
                Ok(Committed::PublishTimeout) => fe_exception(
                    "transaction commit successfully, BUT data will be visible later: publish timeout",
                ),
                Err(message) => fe_exception(&message),
            })
        }
    }
}

/// The fault that makes a commit late, and what the client sees of it.
fn late_commit(cluster: &Cluster, named: &Named) -> Option<(Duration, ClientFate)> {
    cluster.faults.fire(&named.db, &named.table, |kind| match kind {
        FaultKind::LateCommit { delay_ms, client } => Some((Duration::from_millis(*delay_ms), *client)),
        _ => None,
    })
}

/// Runs a commit to its end whatever becomes of the client, and hangs up on the client if a fault says so.
async fn detached(
    committing: impl Future<Output = Result<Committed, String>> + Send + 'static,
    late: Option<(Duration, ClientFate)>,
) -> Result<Result<Committed, String>, answer::HangUp> {
    let task = tokio::spawn(committing);
    if let Some((_, ClientFate::Dropped)) = late {
        return Err(answer::HangUp);
    }
    task.await.map_err(|error| {
        tracing::error!(%error, "a commit panicked");
        answer::HangUp
    })
}

async fn fe_rollback(cluster: &Arc<Cluster>, named: &Named, request: &Request<Incoming>) -> Answer {
    let label = &named.label;
    let Some((id, state)) = found(cluster, named) else {
        return fe_exception(&format!("No transaction found by label {label}"));
    };
    let ok = |message: String| {
        answer::json(&json!({ "Status": "OK", "Message": message, "TxnId": id, "Label": label }))
    };
    match state {
        TransactionState::Prepare => frontend::redirect(cluster, &named.db, &named.table, request).await,
        TransactionState::Prepared if cluster.abort(id, "User Aborted") => ok(String::new()),
        TransactionState::Aborted => ok(format!("Transaction {id} has already aborted, label is {label}")),
        TransactionState::Prepared | TransactionState::Committed | TransactionState::Visible => {
            fe_exception(&format!("Can not abort {} transaction {id}, label is {label}", state.name()))
        }
    }
}

/// An answer of the BE: a status, a message, and more fields when all is well.
struct BeAnswer {
    status: &'static str,
    message: String,
    fields: Map<String, Value>,
}

impl BeAnswer {
    fn ok(fields: Value) -> Self {
        let fields = if let Value::Object(fields) = fields { fields } else { Map::new() };
        Self { status: "OK", message: "OK".to_owned(), fields }
    }

    fn failed(status: &'static str, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), fields: Map::new() }
    }

    fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.fields.insert(name.to_owned(), value.into());
        self
    }

    fn into_answer(self) -> Answer {
        let mut document = Map::new();
        document.insert("Status".to_owned(), self.status.into());
        document.insert("Message".to_owned(), self.message.into());
        document.extend(self.fields);
        answer::json(&document)
    }
}

/// The BE begins, takes bodies, prepares, and commits in one phase what is still PREPARE.
pub(super) async fn at_backend(shared: &Shared, operation: &str, request: Request<Incoming>) -> Handled {
    let cluster = &shared.cluster;
    let (parts, body) = request.into_parts();
    let failed = |status, message: &str| Ok(BeAnswer::failed(status, message).into_answer());
    match request::credentials(&parts.headers, cluster.options.password.as_deref()) {
        Credentials::Valid => {}
        Credentials::Missing => return failed("INTERNAL_ERROR", "no valid Basic authorization"),
        Credentials::Wrong { user } => {
            return failed("INTERNAL_ERROR", &format!("Access denied for {user}@127.0.0.1"));
        }
    }
    let named = match Named::from_headers(&parts.headers) {
        Ok(named) => named,
        Err(message) => return failed("INVALID_ARGUMENT", &message),
    };
    let lost = cluster.faults.fire(&named.db, &named.table, |kind| match kind {
        FaultKind::AnswerLost { at: Hop::Backend, how, committed } => Some((*how, *committed)),
        _ => None,
    });
    if let Some((how, false)) = lost {
        return answer::spoil(BeAnswer::failed("INTERNAL_ERROR", "lost").into_answer(), how);
    }
    let answer = match operation {
        "begin" => begin(shared, &named).await,
        "load" => load(shared, &named, &parts.headers, body).await?,
        "prepare" | "commit" => finish(shared, &named, operation == "commit").await?,
        "rollback" => rollback(shared, &named).await,
        other => return Ok(answer::not_found(other)),
    };
    // A body that was refused may not have been taken, so the connection cannot serve another request.
    let closes = operation == "load" && answer.status != "OK";
    let answer = if closes { answer::closing(answer.into_answer()) } else { answer.into_answer() };
    match lost {
        Some((how, _)) => answer::spoil(answer, how),
        None => Ok(answer),
    }
}

async fn begin(shared: &Shared, named: &Named) -> BeAnswer {
    let started = Instant::now();
    let cluster = &shared.cluster;
    if named.table.is_empty() {
        return BeAnswer::failed("INVALID_ARGUMENT", "No table selected.");
    }
    if let Some(message) = backend::refused_before_begin(cluster, &named.db, &named.table).await {
        return BeAnswer::failed("SERVICE_UNAVAILABLE", message);
    }
    // A BE knows its contexts by label alone, so the same label of another database is in the way too.
    if shared.transactions.is_live(cluster, &named.label) {
        let message = format!("Label [{}] has already been used.", named.label);
        return BeAnswer::failed("LABEL_ALREADY_EXISTS", message).with("ExistingJobStatus", "RUNNING");
    }
    let timeout = named.timeout.unwrap_or(cluster.options.load_timeout);
    let load = match Load::begin(cluster, &named.db, &named.table, &named.label, timeout) {
        Ok(load) => load,
        Err(BeginRefused::Other(message)) => return BeAnswer::failed("INTERNAL_ERROR", message),
        Err(BeginRefused::LabelUsed { existing, message, .. }) => {
            let existing = match existing {
                ExistingLabel::Finished => "FINISHED",
                ExistingLabel::Running => "RUNNING",
            };
            return BeAnswer::failed("LABEL_ALREADY_EXISTS", message).with("ExistingJobStatus", existing);
        }
    };
    let txn_id = load.txn_id;
    let context = Context {
        load: Some(load),
        data: LoadData::default(),
        filtered: Filtered::default(),
        max_filter_ratio: 0.0,
        bodies: 0,
        begun: started,
    };
    shared.transactions.insert(&named.label, context);
    let begin_ms = backend::millis(started.elapsed());
    BeAnswer::ok(json!({ "Label": named.label, "TxnId": txn_id, "BeginTxnTimeMs": begin_ms }))
}

/// Why there is no context to work on.
fn missing(named: &Named) -> BeAnswer {
    BeAnswer::failed("TXN_NOT_EXISTS", format!("Transaction with label {} not exists", named.label))
}

fn in_processing(named: &Named) -> BeAnswer {
    BeAnswer::failed("TXN_IN_PROCESSING", "Transaction in processing, please retry later")
        .with("Label", named.label.as_str())
}

fn forced_in_processing(cluster: &Cluster, named: &Named) -> bool {
    let told = |kind: &FaultKind| matches!(kind, FaultKind::TxnInProcessing).then_some(());
    cluster.faults.fire(&named.db, &named.table, told).is_some()
}

async fn load(
    shared: &Shared,
    named: &Named,
    headers: &HeaderMap,
    body: Incoming,
) -> Result<BeAnswer, answer::HangUp> {
    let started = Instant::now();
    let cluster = &shared.cluster;
    let Some(context) = shared.transactions.get(&named.label) else { return Ok(missing(named)) };
    let Ok(mut context) = context.try_lock() else { return Ok(in_processing(named)) };
    if forced_in_processing(cluster, named) {
        return Ok(in_processing(named));
    }
    let Some((txn_id, table)) = context.load.as_ref().map(|load| (load.txn_id, Arc::clone(&load.table)))
    else {
        return Ok(missing(named));
    };
    if named.db != table.db {
        let message = format!("Request database {} not equal transaction database {}", named.db, table.db);
        return Ok(BeAnswer::failed("INVALID_ARGUMENT", message));
    }
    let (message, hang_up) = match context.take(cluster, &table, headers, body).await {
        Ok(Taken { bytes, received }) => {
            return Ok(BeAnswer::ok(json!({
                "TxnId": txn_id,
                "Label": named.label,
                "LoadBytes": bytes,
                "StreamLoadPlanTimeMs": 0,
                "ReceivedDataTimeMs": backend::millis(received - started),
            })));
        }
        Err(Untaken::Refused(message)) => (message, None),
        Err(Untaken::CutOff(hang_up)) => ("the client closed the connection".to_owned(), Some(hang_up)),
    };
    // Half a body cannot be taken back: one that fails undoes the whole transaction.
    if let Some(load) = context.load.take() {
        load.abort(&message);
    }
    shared.transactions.remove(&named.label);
    hang_up.map_or_else(|| Ok(BeAnswer::failed("INTERNAL_ERROR", message)), Err)
}

/// Prepares, or commits in one phase.
async fn finish(shared: &Shared, named: &Named, commit: bool) -> Result<BeAnswer, answer::HangUp> {
    let cluster = &shared.cluster;
    let Some(context) = shared.transactions.get(&named.label) else { return Ok(missing(named)) };
    let Ok(mut context) = context.try_lock() else { return Ok(in_processing(named)) };
    if forced_in_processing(cluster, named) {
        return Ok(in_processing(named));
    }
    if context.bodies == 0 {
        let message = format!("transaction with label {} hasn't send any data yet", named.label);
        return Ok(BeAnswer::failed("INTERNAL_ERROR", message));
    }
    let Some(load) = context.load.take() else { return Ok(missing(named)) };
    shared.transactions.remove(&named.label);
    let fields = context.fields(&load);
    if let Err(message) = context.refusal(&load) {
        let answer = BeAnswer::failed("INTERNAL_ERROR", message.clone());
        load.abort(&message);
        if context.filtered.rows == 0 {
            return Ok(answer);
        }
        return Ok(answer.with("ErrorURL", cluster.keep_error_log(&context.filtered.reasons)));
    }
    let data = std::mem::take(&mut context.data);
    if !commit {
        let timeout = named.prepared_timeout.unwrap_or(cluster.options.prepared_timeout);
        return Ok(match load.prepare(data, timeout) {
            Ok(()) => BeAnswer::ok(fields),
            Err(message) => BeAnswer::failed("INTERNAL_ERROR", message),
        });
    }
    let patience = named.timeout.unwrap_or(COMMIT_WAIT);
    let late = late_commit(cluster, named);
    let committing = async move {
        tokio::time::sleep(late.map_or(Duration::ZERO, |(delay, _)| delay)).await;
        load.commit(data, patience).await
    };
    Ok(match detached(committing, late).await? {
        Ok(Committed::Visible) => BeAnswer::ok(fields),
        Ok(Committed::PublishTimeout) => BeAnswer::failed(
            "PUBLISH_TIMEOUT",
            "transaction commit successfully, BUT data will be visible later",
        ),
        Err(message) => BeAnswer::failed("INTERNAL_ERROR", message),
    })
}

async fn rollback(shared: &Shared, named: &Named) -> BeAnswer {
    let Some(context) = shared.transactions.get(&named.label) else { return missing(named) };
    let Ok(mut context) = context.try_lock() else { return in_processing(named) };
    shared.transactions.remove(&named.label);
    let Some(load) = context.load.take() else { return missing(named) };
    let txn_id = load.txn_id;
    load.abort("User Aborted");
    BeAnswer::ok(json!({ "TxnId": txn_id, "Label": named.label }))
}
