//! The state that all ports share: catalog, transactions, rows, faults, history.

use serde::Serialize;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Instant, SystemTime};
use tokio::sync::watch;

use crate::catalog::{Catalog, Table};
use crate::error::SandboxError;
use crate::fault::{Fault, FaultKind, Faults};
use crate::options::{Options, VersionLimits};
use crate::schema_change::SchemaJobs;
use crate::store::{HeldRows, ResultSet, Store};
use crate::transaction::{Limits, TransactionState, Transactions};

mod load;

pub(crate) use load::{BeginRefused, Committed, Load, LoadData};

/// What happened to a table so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TableStats {
    /// Loads committed, each of which made one version.
    pub loads: u64,
    /// Versions not yet merged by compaction; a new table's empty first version is not counted.
    pub versions_now: u64,
    /// Versions ever made.
    pub versions_total: u64,
    /// Rows of committed loads, filtered ones left out.
    pub rows_loaded: u64,
    /// Body bytes of committed loads.
    pub bytes_loaded: u64,
    /// Loads refused because the table had too many versions.
    pub refused_too_many_versions: u64,
}

/// One transaction that was committed or aborted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadRecord {
    /// The transaction's id.
    pub txn_id: i64,
    /// Its label.
    pub label: String,
    /// Its database.
    pub db: String,
    /// Its table.
    pub table: String,
    /// Rows loaded; 0 when aborted.
    pub rows: u64,
    /// Body bytes received; 0 when aborted.
    pub bytes: u64,
    /// COMMITTED, VISIBLE or ABORTED.
    pub state: TransactionState,
    /// When it was committed or aborted.
    pub at: SystemTime,
}

/// Where the ports are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Addresses {
    pub(crate) fe_http: u16,
    pub(crate) be_http: u16,
    pub(crate) query: u16,
}

/// Error logs kept for `ErrorURL`; the oldest goes first.
const ERROR_LOGS_MAX: usize = 200;

#[derive(Default)]
struct ErrorLogs {
    next: u64,
    files: VecDeque<(String, String)>,
}

pub(crate) struct Cluster {
    pub(crate) options: Options,
    pub(crate) addresses: Addresses,
    pub(crate) faults: Faults,
    pub(crate) store: Store,
    /// What holds of versions now; the compaction waits for changes.
    pub(crate) version_limits: watch::Sender<VersionLimits>,
    catalog: RwLock<Catalog>,
    transactions: Mutex<Transactions>,
    /// Rows of PREPARED transactions, by transaction.
    prepared: Mutex<HashMap<i64, (Arc<Table>, LoadData)>>,
    history: Mutex<VecDeque<LoadRecord>>,
    error_logs: Mutex<ErrorLogs>,
    schema_jobs: Mutex<SchemaJobs>,
    /// What the FE behind the query port knows of the rows, while it lags.
    behind: Mutex<Option<HeldRows>>,
}

impl Cluster {
    pub(crate) fn new(options: Options, addresses: Addresses) -> Result<Self, SandboxError> {
        let limits = Limits {
            finished_max: options.label_keep_max,
            finished_age_max: options.label_keep_time_max,
            running_max: options.running_txn_max,
        };
        let version_limits = watch::Sender::new(VersionLimits {
            tablet_max_versions: options.tablet_max_versions,
            compaction: options.compaction,
            compaction_merge_max: options.compaction_merge_max,
        });
        Ok(Self {
            version_limits,
            store: Store::open()?,
            options,
            addresses,
            faults: Faults::default(),
            catalog: RwLock::default(),
            transactions: Mutex::new(Transactions::new(limits)),
            prepared: Mutex::default(),
            history: Mutex::default(),
            error_logs: Mutex::default(),
            schema_jobs: Mutex::default(),
            behind: Mutex::default(),
        })
    }

    /// Switches a fault on and returns its id.
    pub(crate) fn set_fault(&self, fault: Fault) -> u64 {
        if matches!(fault.kind, FaultKind::FollowerLags { .. }) {
            self.hold_rows();
        }
        self.faults.add(fault)
    }

    /// Switches a fault off, or all of them.
    pub(crate) fn clear_fault(&self, id: Option<u64>) {
        self.faults.clear(id);
        if !self.is_behind() {
            *self.behind() = None;
        }
    }

    fn behind(&self) -> MutexGuard<'_, Option<HeldRows>> {
        self.behind.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_behind(&self) -> bool {
        self.faults.is_set(|kind| matches!(kind, FaultKind::FollowerLags { .. }))
    }

    fn hold_rows(&self) {
        match self.store.hold() {
            Ok(rows) => *self.behind() = Some(rows),
            Err(error) => tracing::error!(%error, "could not hold the rows of a follower that lags"),
        }
    }

    /// The FE behind the query port hears of all that was loaded, if it lags.
    pub(crate) fn catch_up(&self) {
        if self.is_behind() {
            self.hold_rows();
        }
    }

    /// What the FE behind the query port answers if it lags; none if it does not, for none of these tables.
    pub(crate) fn query_behind(
        &self,
        sql: &str,
        tables: &[Arc<Table>],
    ) -> Option<rusqlite::Result<ResultSet>> {
        let lags = |kind: &FaultKind| matches!(kind, FaultKind::FollowerLags { .. }).then_some(());
        tables.iter().find_map(|table| self.faults.fire(&table.db, &table.name, lags))?;
        self.behind().as_ref().map(|rows| rows.query(sql))
    }

    pub(crate) fn catalog(&self) -> RwLockReadGuard<'_, Catalog> {
        self.catalog.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn catalog_mut(&self) -> RwLockWriteGuard<'_, Catalog> {
        self.catalog.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn transactions(&self) -> MutexGuard<'_, Transactions> {
        self.transactions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn schema_jobs(&self) -> MutexGuard<'_, SchemaJobs> {
        self.schema_jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn history(&self) -> MutexGuard<'_, VecDeque<LoadRecord>> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn prepared(&self) -> MutexGuard<'_, HashMap<i64, (Arc<Table>, LoadData)>> {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state of a label as `get_load_state` tells it; `None` is UNKNOWN.
    pub(crate) fn label_state(&self, db: &str, label: &str) -> Option<(TransactionState, Option<String>)> {
        self.forget_if_told(db, label);
        let transactions = self.transactions();
        let found = transactions.by_label(db, label)?;
        Some((found.state, found.reason.clone()))
    }

    /// Forgets a finished label when a fault says so.
    fn forget_if_told(&self, db: &str, label: &str) {
        let table = {
            let transactions = self.transactions();
            match transactions.by_label(db, label) {
                Some(found)
                    if matches!(found.state, TransactionState::Visible | TransactionState::Aborted) =>
                {
                    found.table.clone()
                }
                Some(_) | None => return,
            }
        };
        let told = |kind: &FaultKind| match kind {
            FaultKind::LabelForgotten => Some(false),
            FaultKind::LabelsForgotten => Some(true),
            _ => None,
        };
        match self.faults.fire(db, &table, told) {
            Some(true) => self.transactions().forget_finished(db),
            Some(false) => {
                self.transactions().forget(db, label);
            }
            None => {}
        }
    }

    pub(crate) fn loads(&self) -> Vec<LoadRecord> {
        self.history().iter().cloned().collect()
    }

    fn record(&self, record: LoadRecord) {
        let mut history = self.history();
        if history.len() >= self.options.history_max {
            history.pop_front();
        }
        history.push_back(record);
    }

    fn record_visible(&self, txn_id: i64) {
        // The record is recent, so the search from the back is short.
        if let Some(found) = self.history().iter_mut().rev().find(|record| record.txn_id == txn_id) {
            found.state = TransactionState::Visible;
        }
    }

    pub(crate) fn table_stats(&self, db: &str, table: &str) -> Option<TableStats> {
        let table = self.catalog().table(db, table)?;
        Some(stats(&table))
    }

    /// The counters of all tables, by `db.table`.
    pub(crate) fn all_stats(&self) -> Vec<(String, TableStats)> {
        self.catalog().all_tables().iter().map(|table| (table.storage_name(), stats(table))).collect()
    }

    /// Sets all counters to zero; rows and labels stay.
    pub(crate) fn reset_stats(&self) {
        for table in self.catalog().all_tables() {
            table.versions(|versions| *versions = crate::version::Versions::default());
        }
        self.history().clear();
    }

    /// One visit of the background compaction.
    pub(crate) fn compact(&self) {
        let merge_max = self.version_limits.borrow().compaction_merge_max;
        for table in self.catalog().all_tables() {
            table.versions(|versions| versions.compact(merge_max));
        }
    }

    /// Aborts overdue transactions, forgets old ones, and makes the changes of columns that are due.
    pub(crate) fn expire(&self, now: Instant) {
        self.schema_jobs().advance(&self.store, now);
        let expired = self.transactions().expire(now);
        for id in expired {
            self.prepared().remove(&id);
            self.record_aborted(id);
        }
    }

    /// Keeps the reasons of filtered rows and returns the `ErrorURL` that serves them.
    pub(crate) fn keep_error_log(&self, lines: &[String]) -> String {
        let mut logs = self.error_logs.lock().unwrap_or_else(PoisonError::into_inner);
        logs.next += 1;
        let file = format!("error_log_{:016x}", logs.next);
        if logs.files.len() >= ERROR_LOGS_MAX {
            logs.files.pop_front();
        }
        let mut content = lines.join("\n");
        content.push('\n');
        logs.files.push_back((file.clone(), content));
        format!("http://127.0.0.1:{}/api/_load_error_log?file={file}", self.addresses.be_http)
    }

    pub(crate) fn error_log(&self, file: &str) -> Option<String> {
        let logs = self.error_logs.lock().unwrap_or_else(PoisonError::into_inner);
        logs.files.iter().find(|(name, _)| name == file).map(|(_, content)| content.clone())
    }
}

fn stats(table: &Table) -> TableStats {
    table.versions(|versions| TableStats {
        loads: versions.total,
        versions_now: versions.now,
        versions_total: versions.total,
        rows_loaded: versions.rows_loaded,
        bytes_loaded: versions.bytes_loaded,
        refused_too_many_versions: versions.refused_too_many,
    })
}
