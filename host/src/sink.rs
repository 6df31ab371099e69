//! Where batches go. One kind of sink today; what a load can end in is a value.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::config::model::{StarRocks, TableModel};
use crate::fault::Fault;
use crate::position::Stay;

pub mod late;
pub mod starrocks;

/// Everything that shapes a load request: rows may share a batch only if all of it is equal
/// (delivery.md §1 rule 9).
#[derive(Debug)]
pub struct Destination {
    /// Cluster, database, user, headers.
    pub cluster: Arc<StarRocks>,
    /// Table within `cluster.database`.
    pub table: String,
    /// Its key model.
    pub model: TableModel,
    /// Columns of the primary key, of tables whose rows know their key; empty for others.
    pub key: Vec<String>,
}

impl Destination {
    /// Whether rows for `other` may be in one load with rows for this one. Those that know another key must not:
    /// folded by it, rows of different keys would become one.
    pub fn takes_the_same_loads(&self, other: &Destination) -> bool {
        let one_key = self.key.is_empty() || other.key.is_empty() || self.key == other.key;
        let one_table = self.table == other.table && self.model == other.model;
        one_key && one_table && self.cluster.shapes_loads_as(&other.cluster)
    }
}

/// What a [`Fence`] says, when it has found out.
pub type FenceAnswer<'a> = Pin<Box<dyn Future<Output = Result<(), Fault>> + Send + 'a>>;

/// Guards the rows of a pipeline that another process may have taken over: a load of a process that is dead,
/// or was frozen, must not bring old rows back over its successor's (delivery.md §2).
pub trait Fence: fmt::Debug + Send + Sync {
    /// Whether loads into `destination` need it.
    fn guards(&self, destination: &Destination) -> bool;

    /// Before a load with rows of `stays` begins: a successor will know that the label with this number may be open.
    ///
    /// # Errors
    /// Retry, if that cannot be told just now.
    fn announce<'a>(&'a self, number: u64, stays: &'a [Stay]) -> FenceAnswer<'a>;

    /// After the load with this number has begun, before its body leaves: the rows are still ours to send.
    ///
    /// # Errors
    /// Retry, if that is not so, or not known just now.
    fn holds(&self, number: u64) -> FenceAnswer<'_>;

    /// The load with this number is decided, for good.
    fn settled(&self, number: u64);
}

/// A load under a fence.
#[derive(Debug, Clone)]
pub struct Guarded {
    fence: Arc<dyn Fence>,
    number: u64,
    /// Microseconds that all attempts have waited for the fence's answers.
    waited_us: Arc<AtomicU64>,
}

impl Guarded {
    /// The load with this number at `fence`.
    pub fn new(fence: Arc<dyn Fence>, number: u64) -> Guarded {
        Guarded { fence, number, waited_us: Arc::default() }
    }

    /// Asks whether the body may leave.
    ///
    /// # Errors
    /// As [`Fence::holds`].
    pub async fn holds(&self) -> Result<(), Fault> {
        let began = Instant::now();
        let held = self.fence.holds(self.number).await;
        let took_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        // Of one load's attempts, which follow each other.
        self.waited_us.fetch_add(took_us, Ordering::Relaxed);
        held
    }
}

/// The body and name of one load; immutable once it was sent under its label.
#[derive(Debug, Clone)]
pub struct Load {
    /// Where to.
    pub destination: Arc<Destination>,
    /// The idempotency key; kept for every attempt until the outcome is known.
    pub label: String,
    /// NDJSON in pieces; each piece ends with a line feed.
    pub segments: Vec<Bytes>,
    /// Sum of the segments' lengths.
    pub bytes: u64,
    /// Rows in all segments.
    pub rows: u64,
    /// The columns that the rows bring, if they are an update of exactly these: the others keep their
    /// values, and a row that is new gets their defaults. None = whole rows, or what the file's
    /// `columns` say. All rows of a load have one set of columns.
    pub columns: Option<Arc<[String]>>,
    /// The body as it is sent, if that is CSV or compressed; made once, for all attempts.
    pub packed: Option<Packed>,
    /// Asked between begin and body.
    pub fences: Vec<Guarded>,
    /// Whether a body was ever sent under this label: "already exists" is only then about us.
    pub body_sent: bool,
}

/// A body that is not the rows as they are.
#[derive(Debug, Clone)]
pub struct Packed {
    /// CSV, or one compressed frame, in pieces.
    pub segments: Vec<Bytes>,
    /// Sum of the pieces' lengths.
    pub bytes: u64,
}

impl Load {
    /// What is sent.
    pub fn body(&self) -> &[Bytes] {
        self.packed.as_ref().map_or(&self.segments, |packed| &packed.segments)
    }

    /// How long all attempts so far have waited for fences: no work of StarRocks'.
    pub fn fenced_for(&self) -> Duration {
        let waits = self.fences.iter().map(|fence| fence.waited_us.load(Ordering::Relaxed));
        Duration::from_micros(waits.sum())
    }
}

/// What is known after an attempt.
#[derive(Debug)]
#[must_use]
pub enum Outcome {
    /// Committed: visible, or visible soon.
    Durable(Receipt),
    /// Nothing of it was or will be committed under this attempt: the same label may be sent again.
    /// The fault says whether waiting helps.
    Refused(Fault),
    /// Refused because StarRocks takes no more just now (too many versions, transactions or memory):
    /// nothing was committed, the same label may be sent again, after a long pause.
    Overloaded(Fault, Scarce),
    /// It may have been committed, or may yet be: ask for the label's state before anything else.
    Unsure(Fault),
    /// StarRocks refused rows for their data; nothing was committed.
    BadRows(Rejection),
}

/// What StarRocks has too little of to take a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scarce {
    /// Versions of a tablet: fewer and larger loads would help.
    Versions,
    /// Transactions or memory: a pause helps.
    Other,
}

/// Proof of a durable load.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Receipt {
    /// Transaction id, if the answer had one.
    pub txn: Option<i64>,
    /// Rows that StarRocks says it loaded; none if the state was only asked for by label.
    pub loaded_rows: Option<u64>,
    /// False after "Publish Timeout": committed, not yet visible.
    pub visible: bool,
}

/// Rows refused for their data.
#[derive(Debug)]
pub struct Rejection {
    /// StarRocks' own message.
    pub message: String,
    /// Rows it counted as filtered: 0 for a syntax error, which fails the whole body. None for a transaction, whose answer
    /// does not say.
    pub filtered_rows: Option<u64>,
    /// True when the body could not be parsed as JSON (a row's syntax), false for filtered rows.
    pub syntax: bool,
    /// What the error log said, at most 64 KiB.
    pub error_log: Option<String>,
}
