//! Reads the ranges of a plan by several connections that share one snapshot.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::plan::{CopyPlan, Range};
use crate::fault::Fault;
use crate::source::postgres::connect::Connector;
use crate::source::postgres::copy_data::CopyData;
use crate::source::postgres::quote::literal;
use crate::source::postgres::session::Session;
use crate::source::postgres::trouble::Failure;

/// Bytes of one piece, unless it is a single longer row.
const PIECE_BYTES: usize = 256 << 10;
/// Unit in which bytes in flight are counted, for the semaphore counts in 32 bits.
const UNIT_BYTES: usize = 1 << 10;
/// Pieces in the channel; bytes are limited besides.
const PIECES_WAITING_MAX: usize = 64;

/// What comes out of a copy.
#[derive(Debug)]
pub enum Copied {
    /// Whole rows of a range, in COPY's text format.
    Rows {
        /// Place of the table in [`CopyPlan::tables`].
        table: usize,
        /// Place of the range in [`CopyPlan::ranges`].
        range: usize,
        /// The rows, as they came.
        data: CopyData,
        /// Their share of the bytes in flight, given back when it is dropped.
        room: Room,
    },
    /// A range is complete: all its rows went before.
    RangeDone {
        /// As above.
        table: usize,
        /// As above.
        range: usize,
        /// Rows of the range.
        rows: u64,
    },
    /// A table cannot be completed in this snapshot, told once: what came of it, and the little that may still come,
    /// is to be copied again, in a new snapshot. Other tables go on.
    Failed {
        /// As above.
        table: usize,
        /// Why.
        fault: Fault,
    },
}

/// A share of the bytes in flight.
#[derive(Debug)]
pub struct Room {
    _permit: OwnedSemaphorePermit,
}

/// How far a copy is. The estimates stem from the plan.
#[derive(Debug, Default)]
pub struct Progress {
    ranges_done: AtomicUsize,
    rows_done: AtomicU64,
    bytes_done: AtomicU64,
    rows_expected: u64,
    ranges_expected: usize,
    /// The range that each worker reads, from 1; 0 = none.
    reading: Vec<AtomicUsize>,
    /// Table of each range.
    tables: Vec<usize>,
}

/// How far a copy was at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    /// Complete ranges.
    pub ranges: usize,
    /// Of so many.
    pub ranges_expected: usize,
    /// Rows read.
    pub rows: u64,
    /// Of so many; an estimate.
    pub rows_expected: u64,
    /// Bytes read.
    pub bytes: u64,
}

impl Progress {
    /// How far it is now.
    pub fn reached(&self) -> Reached {
        Reached {
            ranges: self.ranges_done.load(Ordering::Relaxed),
            ranges_expected: self.ranges_expected,
            rows: self.rows_done.load(Ordering::Relaxed),
            rows_expected: self.rows_expected,
            bytes: self.bytes_done.load(Ordering::Relaxed),
        }
    }

    /// Places in the plan of the tables that are being read, ascending.
    pub fn tables(&self) -> Vec<usize> {
        let ranges = self.reading.iter().filter_map(|range| range.load(Ordering::Relaxed).checked_sub(1));
        let mut tables: Vec<usize> = ranges.filter_map(|range| self.tables.get(range).copied()).collect();
        tables.sort_unstable();
        tables.dedup();
        tables
    }
}

/// A running copy. Dropping the receiver ends it.
#[derive(Debug)]
pub struct Copying {
    /// What comes; it ends when every range is complete or given up.
    pub copied: mpsc::Receiver<Copied>,
    /// How far it is.
    pub progress: Arc<Progress>,
}

/// Starts `workers` connections that copy the plan's ranges in the exported snapshot, with at most `in_flight_bytes`
/// read and not yet dropped by the receiver, besides the piece of 256 KiB (or one longer row) that each worker holds.
///
/// The exporting connection has to live until each of them has begun: keep it until the channel ends.
pub fn start(
    connector: &Connector,
    plan: Arc<CopyPlan>,
    snapshot: &str,
    workers: usize,
    in_flight_bytes: usize,
) -> Copying {
    let (sender, copied) = mpsc::channel(PIECES_WAITING_MAX);
    let workers = workers.max(1).min(plan.ranges.len());
    let progress = Arc::new(Progress {
        rows_expected: plan.rows(),
        ranges_expected: plan.ranges.len(),
        reading: (0..workers).map(|_| AtomicUsize::new(0)).collect(),
        tables: plan.ranges.iter().map(|range| range.table).collect(),
        ..Progress::default()
    });
    let units = units(in_flight_bytes).max(units(PIECE_BYTES));
    let shared = Arc::new(Shared {
        next: AtomicUsize::new(0),
        given_up: plan.tables.iter().map(|_| AtomicBool::new(false)).collect(),
        room: Arc::new(Semaphore::new(units as usize)),
        units,
        begin: format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}",
            literal(snapshot)
        ),
        connector: connector.clone(),
        progress: Arc::clone(&progress),
        plan,
    });
    for number in 0..workers {
        let worker = Worker { number, shared: Arc::clone(&shared), sender: sender.clone(), session: None };
        tokio::task::spawn_blocking(|| worker.work());
    }
    Copying { copied, progress }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX).min(Semaphore::MAX_PERMITS as u32)
}

/// What the workers of one copy have in common.
struct Shared {
    plan: Arc<CopyPlan>,
    /// The next range that nobody has begun.
    next: AtomicUsize,
    /// Tables that cannot be completed, by their place in the plan.
    given_up: Vec<AtomicBool>,
    room: Arc<Semaphore>,
    /// All of the room.
    units: u32,
    begin: String,
    connector: Connector,
    progress: Arc<Progress>,
}

impl Shared {
    /// A share for so many bytes; for more than there is altogether, all of it.
    async fn room(&self, bytes: usize) -> Result<Room, Stopped> {
        let share = units(bytes).min(self.units);
        match Arc::clone(&self.room).acquire_many_owned(share).await {
            Ok(permit) => Ok(Room { _permit: permit }),
            // Nobody closes it, so nobody can be listening either.
            Err(_) => Err(Stopped::Unheard),
        }
    }
}

/// A short piece in memory of its own length: a range's last piece must not hold a whole buffer.
fn fitted(data: CopyData) -> CopyData {
    if data.bytes() < PIECE_BYTES / 2 { data.fitted() } else { data }
}

/// One connection, on a thread of its own, which may rest while rows gather in the socket. A failed one is made anew for
/// the next range: the snapshot may still be there.
struct Worker {
    number: usize,
    shared: Arc<Shared>,
    sender: mpsc::Sender<Copied>,
    session: Option<Session>,
}

/// Why a worker stops in the middle of a range.
enum Stopped {
    /// Nobody listens any more.
    Unheard,
    /// The table is given up.
    Failed(Fault),
}

impl From<mpsc::error::SendError<Copied>> for Stopped {
    fn from(_: mpsc::error::SendError<Copied>) -> Self {
        Stopped::Unheard
    }
}

impl Worker {
    fn work(self) {
        match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => {
                let unheard = self.sender.clone();
                runtime.block_on(async {
                    tokio::select! {
                        () = self.run() => {}
                        () = unheard.closed() => {}
                    }
                });
            }
            // The other workers do its part; without any, the copy ends incomplete, and is made again.
            Err(error) => tracing::warn!(%error, "cannot start a runtime for a connection that copies"),
        }
    }

    async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        loop {
            let index = shared.next.fetch_add(1, Ordering::Relaxed);
            let Some(range) = shared.plan.ranges.get(index) else { break };
            let given_up = shared.given_up.get(range.table);
            if given_up.is_none_or(|given_up| given_up.load(Ordering::Relaxed)) {
                continue;
            }
            self.reads(index + 1);
            let copied = self.copy(&shared, index, range).await;
            self.reads(0);
            match copied {
                Ok(()) => {}
                Err(Stopped::Unheard) => return,
                Err(Stopped::Failed(fault)) => {
                    self.session = None;
                    let told = given_up.is_some_and(|given_up| given_up.swap(true, Ordering::Relaxed));
                    let failed = Copied::Failed { table: range.table, fault };
                    if !told && self.sender.send(failed).await.is_err() {
                        return;
                    }
                }
            }
        }
        if let Some(session) = self.session {
            session.close().await;
        }
    }

    /// Says which range it reads, from 1; 0 = none.
    fn reads(&self, range: usize) {
        if let Some(reading) = self.shared.progress.reading.get(self.number) {
            reading.store(range, Ordering::Relaxed);
        }
    }

    async fn copy(&mut self, shared: &Shared, index: usize, range: &Range) -> Result<(), Stopped> {
        let (Some(statement), Some(copied)) =
            (shared.plan.statement(range), shared.plan.tables.get(range.table))
        else {
            return Ok(());
        };
        let attempted = format!("copy {}", copied.table.name);
        let failed = |failure: Failure| Stopped::Failed(failure.fault(&attempted, shared.connector.source()));
        let session = match &mut self.session {
            Some(session) => session,
            none => {
                let mut session = shared.connector.copying().await.map_err(Stopped::Failed)?;
                session.run(&shared.begin).await.map_err(failed)?;
                none.insert(session)
            }
        };
        session.copy_out(&statement).await.map_err(failed)?;
        let table = range.table;
        let mut rows_of_range = 0;
        let mut ended = false;
        while !ended {
            let arrived = session.copied(PIECE_BYTES).await.map_err(failed)?;
            ended = arrived.ended;
            let data = fitted(arrived.data);
            if data.rows() == 0 {
                continue;
            }
            // Taken for what is there already: a share taken before, and added to, could wait for itself.
            let room = shared.room(data.bytes()).await?;
            rows_of_range += data.rows();
            shared.progress.rows_done.fetch_add(data.rows(), Ordering::Relaxed);
            shared.progress.bytes_done.fetch_add(data.bytes() as u64, Ordering::Relaxed);
            let piece = Copied::Rows { table, range: index, data, room };
            self.sender.send(piece).await?;
        }
        shared.progress.ranges_done.fetch_add(1, Ordering::Relaxed);
        self.sender.send(Copied::RangeDone { table, range: index, rows: rows_of_range }).await?;
        Ok(())
    }
}
