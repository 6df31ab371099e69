//! The life of a load: begin, commit, publish, abort.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::{Cluster, LoadRecord};
use crate::catalog::Table;
use crate::fault::{ExistingLabel, FaultKind, LabelForm};
use crate::options::Keep;
use crate::staged::Staged;
use crate::transaction::{BeginRefusal, StateRefusal, TransactionState};

/// A transaction that was begun and is aborted when this is dropped before it was decided.
pub(crate) struct Load {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) table: Arc<Table>,
    pub(crate) txn_id: i64,
    pub(crate) label: String,
    undecided: bool,
}

/// Rows on their way into a table.
#[derive(Debug, Default)]
pub(crate) struct LoadData {
    /// Empty when rows are only counted.
    pub(crate) loads: Vec<Staged>,
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
}

/// How a commit ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Committed {
    Visible,
    /// Durable; visible later.
    PublishTimeout,
}

/// Why a load was not begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BeginRefused {
    /// The label belongs to another transaction.
    LabelUsed {
        existing: ExistingLabel,
        form: LabelForm,
        message: String,
    },
    Other(String),
}

const LABEL_BYTES_MAX: usize = 128;

impl Load {
    /// Begins a transaction, as the FE does on behalf of a BE.
    pub(crate) fn begin(
        cluster: &Arc<Cluster>,
        db: &str,
        table: &str,
        label: &str,
        timeout: Duration,
    ) -> Result<Self, BeginRefused> {
        let other = |message: String| Err(BeginRefused::Other(message));
        if !cluster.catalog().has_database(db) {
            return other(format!("unknown database, database={db}"));
        }
        let Some(found) = cluster.catalog().table(db, table) else {
            return other(format!("unknown table \"{db}.{table}\""));
        };
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if label.is_empty() || label.len() > LABEL_BYTES_MAX || !label.bytes().all(allowed) {
            return other(format!("Label format error. regex: ^[-\\w]{{1,128}}$, label: {label}"));
        }
        forced_refusal(cluster, db, table, label)?;
        cluster.forget_if_told(db, label);
        let begun = cluster.transactions().begin((db, table), label, timeout, Instant::now());
        match begun {
            Ok(txn_id) => Ok(Self {
                cluster: Arc::clone(cluster),
                table: found,
                txn_id,
                label: label.to_owned(),
                undecided: true,
            }),
            Err(BeginRefusal::LabelUsed { existing }) => Err(label_used(label, existing)),
            Err(BeginRefusal::TooManyRunning { running, limit }) => other(running_limit(db, running, limit)),
        }
    }

    /// Refuses the load when its table has too many versions.
    pub(crate) fn admit(&self) -> Result<(), String> {
        let limit = self.cluster.version_limits.borrow().tablet_max_versions;
        let forced = |kind: &FaultKind| matches!(kind, FaultKind::TooManyVersions).then_some(());
        let forced = self.cluster.faults.fire(&self.table.db, &self.table.name, forced).is_some();
        let count = self.table.versions(|versions| match versions.admit(limit) {
            Ok(()) if forced => {
                versions.refused_too_many += 1;
                Err(u64::from(limit) + 1)
            }
            admitted => admitted,
        });
        count.map_err(|count| {
            format!(
                "Failed to load data into tablet {}, because of too many versions, current/limit: {count}/{limit}. \
                 You can reduce the loading job concurrency, or increase loading data batch size. If you are \
                 loading data with Routine Load, you can increase FE configs routine_load_task_consume_second and \
                 max_routine_load_batch_size,:  be:127.0.0.1",
                self.table.first_tablet()
            )
        })
    }

    /// Makes the rows durable and then visible. Run it in a task of its own: it is not to be cancelled.
    ///
    /// # Errors
    /// The message, when the transaction is no longer there to be committed.
    pub(crate) async fn commit(mut self, data: LoadData, patience: Duration) -> Result<Committed, String> {
        self.undecided = false;
        self.cluster.commit(self.txn_id, &self.table, data, patience).await
    }

    /// Keeps the rows for a later commit.
    pub(crate) fn prepare(mut self, data: LoadData, timeout: Duration) -> Result<(), String> {
        // The rows are put down first: a commit may arrive as soon as the state says PREPARED.
        self.cluster.prepared().insert(self.txn_id, (Arc::clone(&self.table), data));
        let prepared = self.cluster.transactions().prepare(self.txn_id, timeout, Instant::now());
        if let Err(refusal) = prepared {
            self.cluster.prepared().remove(&self.txn_id);
            return Err(refused(self.txn_id, refusal));
        }
        self.undecided = false;
        Ok(())
    }

    /// Makes a load visible whose rows were written by an SQL statement already.
    pub(crate) fn committed_by_statement(mut self, rows: u64) -> Result<(), String> {
        self.undecided = false;
        let cluster = &self.cluster;
        let committed = cluster.transactions().commit(self.txn_id);
        committed.map_err(|refusal| refused(self.txn_id, refusal))?;
        self.table.versions(|versions| versions.commit(rows, 0));
        cluster.record_committed(self.txn_id, &LoadData { rows, ..LoadData::default() });
        let published = cluster.transactions().publish(self.txn_id, Instant::now());
        published.map_err(|refusal| refused(self.txn_id, refusal))?;
        cluster.record_visible(self.txn_id);
        Ok(())
    }

    /// Leaves the transaction as it is, for its time limit to end: whoever had it in hand has forgotten it.
    pub(crate) fn abandon(mut self) {
        self.undecided = false;
    }

    pub(crate) fn abort(mut self, reason: &str) {
        self.undecided = false;
        self.cluster.abort(self.txn_id, reason);
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if self.undecided {
            self.cluster.abort(self.txn_id, "the client closed the connection");
        }
    }
}

impl Cluster {
    /// Commits a transaction that may be PREPARE or PREPARED.
    pub(crate) async fn commit(
        self: &Arc<Self>,
        txn_id: i64,
        table: &Arc<Table>,
        data: LoadData,
        patience: Duration,
    ) -> Result<Committed, String> {
        if !self.is_current(table) {
            let message = format!("unknown table \"{}.{}\"", table.db, table.name);
            self.abort(txn_id, &message);
            return Err(message);
        }
        let committed = self.transactions().commit(txn_id);
        committed.map_err(|refusal| refused(txn_id, refusal))?;
        table.versions(|versions| versions.commit(data.rows, data.bytes));
        self.record_committed(txn_id, &data);
        let delayed = self.faults.fire(&table.db, &table.name, |kind| match kind {
            FaultKind::PublishTimeout { visible_after_ms } => Some(Duration::from_millis(*visible_after_ms)),
            _ => None,
        });
        let mut turn = Box::pin(Arc::clone(&table.publishing).lock_owned());
        let waited = tokio::time::timeout(patience, &mut turn).await;
        let (cluster, table) = (Arc::clone(self), Arc::clone(table));
        match (waited, delayed) {
            (Ok(_turn), None) => {
                let visible = cluster.publish(txn_id, &table, data).await;
                Ok(if visible { Committed::Visible } else { Committed::PublishTimeout })
            }
            (Ok(turn), Some(delay)) => {
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    cluster.publish(txn_id, &table, data).await;
                    drop(turn);
                });
                Ok(Committed::PublishTimeout)
            }
            (Err(_), delay) => {
                tokio::spawn(async move {
                    let _turn = turn.await;
                    tokio::time::sleep(delay.unwrap_or_default()).await;
                    cluster.publish(txn_id, &table, data).await;
                });
                Ok(Committed::PublishTimeout)
            }
        }
    }

    /// Commits a PREPARED transaction; `None` when it is not PREPARED any more.
    pub(crate) async fn commit_prepared(
        self: &Arc<Self>,
        txn_id: i64,
        patience: Duration,
    ) -> Option<Result<Committed, String>> {
        let (table, data) = self.prepared().remove(&txn_id)?;
        Some(self.commit(txn_id, &table, data, patience).await)
    }

    /// Whether this is still the table of that name: it may have been dropped, and made anew.
    fn is_current(&self, table: &Arc<Table>) -> bool {
        self.catalog().table(&table.db, &table.name).is_some_and(|now| Arc::ptr_eq(&now, table))
    }

    /// Writes the rows of a committed load where queries see them; false when that could not be done.
    async fn publish(self: &Arc<Self>, txn_id: i64, table: &Arc<Table>, data: LoadData) -> bool {
        // The rows of a table that was dropped since the commit go with it.
        if self.options.keep == Keep::Rows && self.is_current(table) {
            let (cluster, table) = (Arc::clone(self), Arc::clone(table));
            let written = tokio::task::spawn_blocking(move || {
                cluster.store.apply(&table.storage_name(), &table.schema(), &data.loads)
            });
            match written.await {
                Ok(Ok(())) => {}
                // Such as a full disk: the transaction stays COMMITTED for ever.
                Ok(Err(error)) => {
                    tracing::error!(txn_id, %error, "could not write the rows of a committed load");
                    return false;
                }
                Err(error) => {
                    tracing::error!(txn_id, %error, "writing the rows of a committed load panicked");
                    return false;
                }
            }
        }
        if let Err(refusal) = self.transactions().publish(txn_id, Instant::now()) {
            // Only a dropped database forgets a committed transaction.
            tracing::warn!(txn_id, ?refusal, "a committed load was gone before it became visible");
            return false;
        }
        self.record_visible(txn_id);
        true
    }

    /// Aborts an undecided transaction; decided ones stay as they are.
    pub(crate) fn abort(&self, txn_id: i64, reason: &str) -> bool {
        let aborted = self.transactions().abort(txn_id, reason, Instant::now()).is_ok();
        if aborted {
            self.prepared().remove(&txn_id);
            self.record_aborted(txn_id);
        }
        aborted
    }

    fn record_committed(&self, txn_id: i64, data: &LoadData) {
        self.record_as(txn_id, TransactionState::Committed, (data.rows, data.bytes));
    }

    pub(super) fn record_aborted(&self, txn_id: i64) {
        self.record_as(txn_id, TransactionState::Aborted, (0, 0));
    }

    fn record_as(&self, txn_id: i64, state: TransactionState, (rows, bytes): (u64, u64)) {
        let Some(transaction) = self.transactions().get(txn_id).cloned() else { return };
        let (label, db, table) = (transaction.label, transaction.db, transaction.table);
        self.record(LoadRecord { txn_id, label, db, table, rows, bytes, state, at: SystemTime::now() });
    }
}

/// The refusal of a label that belongs to another transaction.
fn label_used(label: &str, existing: TransactionState) -> BeginRefused {
    let existing = match existing {
        TransactionState::Committed | TransactionState::Visible => ExistingLabel::Finished,
        TransactionState::Prepare | TransactionState::Prepared | TransactionState::Aborted => {
            ExistingLabel::Running
        }
    };
    let message = format!("Label [{label}] has already been used.");
    BeginRefused::LabelUsed { existing, form: LabelForm::Status, message }
}

fn running_limit(db: &str, running: usize, limit: usize) -> String {
    format!("current running txns on db {db} is {running}, larger than limit {limit}")
}

fn forced_refusal(cluster: &Cluster, db: &str, table: &str, label: &str) -> Result<(), BeginRefused> {
    let forced = cluster.faults.fire(db, table, |kind| match kind {
        FaultKind::RunningTxnLimit => {
            let limit = cluster.options.running_txn_max;
            Some(BeginRefused::Other(running_limit(db, limit, limit)))
        }
        FaultKind::LabelExists { existing, form } => Some(BeginRefused::LabelUsed {
            existing: *existing,
            form: *form,
            message: format!("Label [{label}] has already been used."),
        }),
        _ => None,
    });
    forced.map_or(Ok(()), Err)
}

fn refused(txn_id: i64, refusal: StateRefusal) -> String {
    match refusal {
        StateRefusal::Unknown => format!("transaction [{txn_id}] not found"),
        StateRefusal::Is(TransactionState::Aborted) => {
            format!("transaction [{txn_id}] is already aborted. abort reason: transaction was aborted")
        }
        StateRefusal::Is(state) => {
            format!("transaction [{txn_id}] is already {}, not pre-committed.", state.name())
        }
    }
}
