//! Faults that can be switched on while the sandbox runs.
//!
//! Each fault fires a number of times or for ever, for one table or for all, and counts how often it fired.

use serde::{Deserialize, Serialize};
use std::sync::{Mutex, PoisonError};

/// Where an answer comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hop {
    /// The FE's answer to a load: the redirect.
    Frontend,
    /// The BE's answer to a load.
    Backend,
    /// The FE's answer to `get_load_state`.
    State,
}

/// What is wrong with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerFault {
    /// The connection is closed instead.
    Dropped,
    /// Half of the JSON arrives, then the connection is closed.
    Truncated,
    /// Status 200 with no content.
    Empty,
    /// Status 500 with an HTML page.
    Http500,
    /// Status 502 with an HTML page, as a proxy gives it.
    Http502,
}

/// What a client sees of a load that commits late.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientFate {
    /// Its connection is closed as soon as the body is complete.
    Dropped,
    /// It waits, and gets the answer after the commit if it is still there.
    KeptWaiting,
}

/// State of the other transaction in a forced label conflict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ExistingLabel {
    /// The other transaction is durable.
    Finished,
    /// The other transaction is undecided.
    Running,
}

/// How a forced label conflict is worded; versions of StarRocks differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LabelForm {
    /// `Status: Label Already Exists` with `ExistingJobStatus`.
    Status,
    /// `Status: Fail` with the text only.
    Fail,
}

/// A fault. In JSON its name stands in `fault`: `{"fault":"slow_load","delay_ms":500}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "fault", rename_all = "snake_case", deny_unknown_fields)]
pub enum FaultKind {
    /// The body arrives in full, and the load commits this much later, whatever becomes of the client.
    LateCommit {
        /// From the last byte of the body to the commit, in milliseconds.
        delay_ms: u64,
        /// What the client sees.
        client: ClientFate,
    },
    /// The BE holds the request this long before it begins the transaction.
    LateBegin {
        /// Milliseconds.
        delay_ms: u64,
    },
    /// An answer is lost or spoiled.
    AnswerLost {
        /// Whose answer.
        at: Hop,
        /// What happens to it.
        how: AnswerFault,
        /// At the BE: whether the load commits first. Otherwise it is aborted.
        #[serde(default)]
        committed: bool,
    },
    /// The BE closes the connection while the body arrives; the load is aborted.
    DropMidBody {
        /// After this many bytes of the body.
        after_bytes: u64,
    },
    /// The load commits, the answer is `Publish Timeout`, and the rows show later.
    PublishTimeout {
        /// From the commit to visibility, in milliseconds.
        visible_after_ms: u64,
    },
    /// The BE loses the FE while committing: `Fail`, "Transaction status unknown".
    CommitUnknown {
        /// Whether the commit had happened all the same. Otherwise the load is aborted.
        committed: bool,
    },
    /// The FE waits before it redirects.
    SlowRedirect {
        /// Milliseconds.
        delay_ms: u64,
    },
    /// The FE redirects elsewhere.
    RedirectTo {
        /// Host and port of the `Location`.
        authority: String,
    },
    /// The FE redirects to itself.
    RedirectLoop,
    /// The FE finds no BE: "No backend alive."
    NoBackend,
    /// Nobody listens on the BE's port until the fault is cleared. `times` and `table` do not apply. It fires for each client
    /// that the FE sends there: the refusal itself is the operating system's.
    BackendRefuses,
    /// The BE accepts a connection and resets it. `table` does not apply.
    BackendResets,
    /// The BE begins, but says `100 Continue` only after a while.
    ContinueWithheld {
        /// Milliseconds.
        delay_ms: u64,
    },
    /// A finished label is forgotten when it is next asked for or begun.
    LabelForgotten,
    /// All finished labels of a database are forgotten when one of them is next asked for or begun.
    LabelsForgotten,
    /// The transaction interface answers `TXN_IN_PROCESSING`.
    TxnInProcessing,
    /// The load is refused for too many versions.
    TooManyVersions,
    /// The begin is refused for too many running transactions.
    RunningTxnLimit,
    /// The BE is shutting down: "Service is shutting down, please retry later!"
    ShuttingDown,
    /// The user lacks the INSERT privilege: 401 from the FE, `Fail` from the BE.
    AccessDenied {
        /// FE or BE.
        at: Hop,
    },
    /// The user lacks the OPERATE privilege on SYSTEM: `SHOW TABLET` is refused.
    TabletsDenied,
    /// The load takes longer: between the body and the commit.
    SlowLoad {
        /// Milliseconds.
        delay_ms: u64,
    },
    /// The begin is refused as if the label were used.
    LabelExists {
        /// State of the supposed other transaction.
        existing: ExistingLabel,
        /// How it is said.
        form: LabelForm,
    },
    /// The `ErrorURL` of a load with refused rows names a log that is not there: asking for it is a 404.
    ErrorLogLost,
    /// The `ErrorURL` of a load with refused rows names another host, which must not be asked.
    ErrorLogElsewhere {
        /// Its host and port.
        authority: String,
    },
    /// Changes of a table's columns are done only after a while; `SHOW ALTER TABLE COLUMN` tells of them.
    SlowSchemaChange {
        /// Milliseconds.
        delay_ms: u64,
    },
    /// The FE behind the query port is a follower that hears nothing of loads by itself: its sessions read rows as they were when
    /// the fault was set, or when one of them last had it catch up: by SYNC, or by a statement that changes something.
    /// Tables and columns it knows. Fires at each read of a table; `Sandbox::execute` reads from the leader.
    FollowerLags {
        /// Whether the FE knows SYNC; otherwise that is a syntax error.
        #[serde(default = "knows_sync")]
        sync: bool,
    },
    /// A TRUNCATE is taken and takes effect only after a while, whatever becomes of the client.
    SlowTruncate {
        /// Milliseconds.
        delay_ms: u64,
    },
    /// Another FE has become the leader: it does not know which BE has which open transaction, and the BE's context
    /// is gone. Labels survive, and what is PREPARED can be committed. Fires at the next request about a transaction
    /// that is not.
    LeaderChanged,
    /// The BE has no memory left for the load: aborted with `Fail` and the text of its process limit.
    MemoryLimit,
    /// The load is aborted with `Fail` and this message.
    LoadFails {
        /// The `Message`.
        message: String,
    },
}

fn knows_sync() -> bool {
    true
}

/// A fault with its scope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// What happens.
    #[serde(flatten)]
    pub kind: FaultKind,
    /// Only for this table: `table` or `db.table`. `None` is every table.
    pub table: Option<String>,
    /// How often it still fires; `None` is for ever.
    pub times: Option<u64>,
}

impl Fault {
    /// A fault for every table, until it is cleared.
    pub fn always(kind: FaultKind) -> Self {
        Self { kind, table: None, times: None }
    }

    /// A fault for every table that fires `times` times.
    pub fn times(kind: FaultKind, times: u64) -> Self {
        Self { kind, table: None, times: Some(times) }
    }

    /// The same fault for one table only: `table` or `db.table`.
    #[must_use]
    pub fn on(self, table: impl Into<String>) -> Self {
        Self { table: Some(table.into()), ..self }
    }

    /// Reads the JSON form: the fields of the kind, and `table` and `times` beside them.
    ///
    /// # Errors
    /// A sentence that says what was not understood.
    pub(crate) fn from_json(body: &[u8]) -> Result<Self, String> {
        let mut fields: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(body).map_err(|error| format!("not a JSON object: {error}"))?;
        let table = match fields.shift_remove("table") {
            None | Some(serde_json::Value::Null) => None,
            Some(serde_json::Value::String(table)) => Some(table),
            Some(other) => return Err(format!("table must be a string, not {other}")),
        };
        let times = match fields.shift_remove("times") {
            None | Some(serde_json::Value::Null) => None,
            Some(number) => {
                Some(number.as_u64().ok_or_else(|| format!("times must be a number, not {number}"))?)
            }
        };
        let kind = serde_json::from_value(fields.into()).map_err(|error| error.to_string())?;
        Ok(Self { kind, table, times })
    }
}

/// A fault that was set, and how often it fired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FaultReport {
    /// Given when it was set.
    pub id: u64,
    /// The fault; its `times` counts down.
    #[serde(flatten)]
    pub fault: Fault,
    /// How often it fired.
    pub fired: u64,
}

/// The faults that are set.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    set: Mutex<Set>,
    /// Whether the BE's port is to be closed; its accept loop waits for changes.
    pub(crate) backend_refuses: tokio::sync::watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Set {
    next_id: u64,
    reports: Vec<FaultReport>,
}

impl Faults {
    pub(crate) fn add(&self, fault: Fault) -> u64 {
        let mut set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        set.next_id += 1;
        let id = set.next_id;
        set.reports.push(FaultReport { id, fault, fired: 0 });
        self.tell_backend(&set);
        id
    }

    pub(crate) fn clear(&self, id: Option<u64>) {
        let mut set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        set.reports.retain(|report| id.is_some_and(|id| report.id != id));
        self.tell_backend(&set);
    }

    fn tell_backend(&self, set: &Set) {
        let refuses = set.reports.iter().any(|report| report.fault.kind == FaultKind::BackendRefuses);
        self.backend_refuses.send_replace(refuses);
    }

    /// A client is sent to the BE: if nobody listens there, that fault has fired.
    pub(crate) fn sends_to_backend(&self) {
        let mut set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        let refusing = |report: &&mut FaultReport| report.fault.kind == FaultKind::BackendRefuses;
        set.reports.iter_mut().filter(refusing).for_each(|report| report.fired += 1);
    }

    pub(crate) fn reports(&self) -> Vec<FaultReport> {
        self.set.lock().unwrap_or_else(PoisonError::into_inner).reports.clone()
    }

    /// Whether a fault that `wanted` recognises is set and not spent, whatever its table.
    pub(crate) fn is_set(&self, wanted: impl Fn(&FaultKind) -> bool) -> bool {
        let set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        let mut faults = set.reports.iter().map(|report| &report.fault);
        faults.any(|fault| fault.times != Some(0) && wanted(&fault.kind))
    }

    /// Fires the first fault that `wanted` recognises and whose scope holds; spent faults stay listed.
    pub(crate) fn fire<T>(
        &self,
        db: &str,
        table: &str,
        wanted: impl Fn(&FaultKind) -> Option<T>,
    ) -> Option<T> {
        let mut set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        for report in &mut set.reports {
            let in_scope = report.fault.table.as_deref().is_none_or(|scope| match scope.split_once('.') {
                Some((scope_db, scope_table)) => scope_db == db && scope_table == table,
                None => scope == table,
            });
            if !in_scope || report.fault.times == Some(0) {
                continue;
            }
            let Some(found) = wanted(&report.fault.kind) else { continue };
            report.fired += 1;
            report.fault.times = report.fault.times.map(|times| times - 1);
            return Some(found);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::{Fault, FaultKind, Faults};

    #[test]
    fn fires_within_its_scope_and_count() {
        let faults = Faults::default();
        faults.add(Fault::times(FaultKind::TooManyVersions, 1).on("shop.orders"));
        let fire = |db: &str, table: &str| {
            faults.fire(db, table, |kind| matches!(kind, FaultKind::TooManyVersions).then_some(())).is_some()
        };
        assert!(!fire("shop", "other"));
        assert!(!fire("other", "orders"));
        assert!(fire("shop", "orders"));
        assert!(!fire("shop", "orders"));
        assert_eq!(faults.reports()[0].fired, 1);
    }

    #[test]
    fn closed_doors_count_who_is_sent_there() {
        let faults = Faults::default();
        faults.sends_to_backend();
        faults.add(Fault::always(FaultKind::TooManyVersions));
        faults.add(Fault::always(FaultKind::BackendRefuses));
        faults.sends_to_backend();
        let fired: Vec<u64> = faults.reports().iter().map(|report| report.fired).collect();
        assert_eq!(fired, [0, 1]);
    }

    #[test]
    fn json_form() {
        let body =
            br#"{"fault":"late_commit","delay_ms":3000,"client":"dropped","table":"orders","times":2}"#;
        let fault = Fault::from_json(body).expect("well-formed");
        let expected =
            Fault::times(FaultKind::LateCommit { delay_ms: 3000, client: super::ClientFate::Dropped }, 2);
        assert_eq!(fault, expected.on("orders"));
        let unknown = Fault::from_json(br#"{"fault":"late_comit"}"#).expect_err("misspelt");
        assert!(unknown.contains("late_comit"), "{unknown}");
        assert!(Fault::from_json(br#"{"fault":"slow_load","delay_ms":1,"dealy":2}"#).is_err());
    }
}
