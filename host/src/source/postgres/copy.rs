//! The snapshot's lanes: rows of COPY become the same records as those of the stream.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Mutex as AsyncMutex, mpsc};

use super::copy_data::{CopyData, Unended};
use super::copy_text::CopyText;
use super::gather::{Gathered, Transaction};
use super::lsn::Lsn;
use super::progress::Progress;
use super::row::Layout;
use super::snapshot::copy::{Copied, Room};
use crate::fault::Fault;
use crate::ledger::Ledger;
use crate::meter::PostgresMeter;
use crate::position::{Epoch, Partition, Stay};
use crate::record::Columns;
use crate::source::{Fed, Feed, Gathering};

/// How long a lane waits for rows before it looks around.
const IDLE_WAIT: Duration = Duration::from_millis(50);

/// A table that is copied.
#[derive(Debug)]
pub(super) struct CopiedTable {
    /// How its rows are taken apart.
    pub(super) layout: Layout,
    /// Place of its destination.
    pub(super) destination: u16,
    /// Ranges that are complete.
    ranges_done: AtomicUsize,
    /// Pieces that lanes have taken and not opened in the ledger yet.
    in_hand: AtomicUsize,
    /// Stays that its rows are in: one a lane that has had some.
    stays: Mutex<Vec<Stay>>,
}

impl CopiedTable {
    pub(super) fn new(layout: Layout, destination: u16) -> CopiedTable {
        CopiedTable {
            layout,
            destination,
            ranges_done: AtomicUsize::new(0),
            in_hand: AtomicUsize::new(0),
            stays: Mutex::default(),
        }
    }

    /// Whether all of so many ranges are durable.
    pub(super) fn is_durable(&self, ranges: usize, ledger: &Ledger) -> bool {
        // In this order: a piece is in hand before its range is done, and in the ledger before it is out of hand.
        if self.ranges_done.load(Ordering::Acquire) < ranges || self.in_hand.load(Ordering::Acquire) > 0 {
            return false;
        }
        let stays = self.stays.lock().unwrap_or_else(PoisonError::into_inner);
        stays.iter().all(|stay| ledger.is_quiet(stay))
    }
}

/// What all lanes of a copy share.
pub(super) struct CopyParts {
    /// What workers bring; whole rows, so that any lane may take any piece.
    pub(super) copied: AsyncMutex<mpsc::Receiver<Copied>>,
    /// By their place in the plan.
    pub(super) tables: Vec<CopiedTable>,
    /// To wait.
    pub(super) runtime: Handle,
    /// Where stays begin.
    pub(super) ledger: Ledger,
    /// Name of the slot.
    pub(super) slot: Arc<str>,
    /// What is worth copying.
    pub(super) gathering: Gathering,
    /// Number of stays so far.
    pub(super) stays: AtomicUsize,
    /// Where the copy stands in the log: headers of its rows.
    pub(super) point: Lsn,
    /// Counters.
    pub(super) meter: PostgresMeter,
    /// The first fault of a worker.
    pub(super) failed: Mutex<Option<Fault>>,
    /// Ends the lanes before the copy does.
    pub(super) progress: Progress,
}

/// One lane's part of the copy.
pub(crate) struct CopyFeed {
    parts: Arc<CopyParts>,
    /// The table of the last chunk: out of hand when its rows are in the ledger.
    in_hand: Option<usize>,
    gathered: HashMap<usize, (Gathered, i64)>,
    text: CopyText,
    transaction: Transaction,
    /// A piece of which some rows have still to be read, and from where.
    left: Option<(usize, CopyData, usize, Room)>,
}

impl CopyFeed {
    pub(super) fn new(parts: Arc<CopyParts>) -> CopyFeed {
        let transaction = Transaction::new(parts.point, 0, 0);
        CopyFeed {
            parts,
            in_hand: None,
            gathered: HashMap::new(),
            text: CopyText::new(),
            transaction,
            left: None,
        }
    }

    /// The next piece; none = nothing for a moment, or nothing ever.
    fn take(&mut self) -> Result<Option<(usize, CopyData, Room)>, Ended> {
        let parts = Arc::clone(&self.parts);
        let waited = self.parts.runtime.block_on(async {
            let next = async {
                let mut copied = parts.copied.lock().await;
                let next = copied.recv().await;
                if let Some(Copied::Rows { table, .. }) = &next
                    && let Some(table) = parts.tables.get(*table)
                {
                    // Before another lane can hear that the range is done.
                    table.in_hand.fetch_add(1, Ordering::AcqRel);
                }
                next
            };
            tokio::time::timeout(IDLE_WAIT, next).await
        });
        match waited {
            Err(_elapsed) => Ok(None),
            Ok(None) => Err(Ended),
            Ok(Some(Copied::Rows { table, data, room, .. })) => Ok(Some((table, data, room))),
            Ok(Some(Copied::RangeDone { table, .. })) => {
                if let Some(table) = self.parts.tables.get(table) {
                    table.ranges_done.fetch_add(1, Ordering::AcqRel);
                }
                Ok(None)
            }
            Ok(Some(Copied::Failed { fault, .. })) => {
                self.parts.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(fault);
                Ok(None)
            }
        }
    }

    /// Reads rows of a piece until a chunk is full; returns how far it got, unless that was to the end.
    fn read(&mut self, table: usize, data: &CopyData, from: usize) -> Result<Option<usize>, Fault> {
        let Some(copied) = self.parts.tables.get(table) else { return Ok(None) };
        let parts = &self.parts;
        let (gathered, place) = self.gathered.entry(table).or_insert_with(|| {
            let number = parts.stays.fetch_add(1, Ordering::Relaxed) as u32;
            let partition = Partition { source: Arc::clone(&parts.slot), number };
            let stay = Stay { partition, epoch: Epoch(0) };
            parts.ledger.begin(stay.clone(), 0);
            copied.stays.lock().unwrap_or_else(PoisonError::into_inner).push(stay.clone());
            let layout = copied.layout.clone();
            (Gathered::new(layout, copied.destination, stay, 0, parts.gathering), 0)
        });
        let mut at = from;
        let unended = |unended: Unended| {
            Fault::halt(
                format!("cannot copy {}", copied.layout.name()),
                "is it really PostgreSQL? the table does not count as copied: start again, and report it if it comes again",
            )
            .caused_by(unended)
        };
        while let Some((line, behind)) = data.row(at).map_err(unended)? {
            if gathered.is_full() {
                return Ok(Some(at));
            }
            *place += 1;
            gathered.copied(*place, &self.text.row(line), &self.transaction)?;
            at = behind;
        }
        Ok(None)
    }
}

/// All rows were copied, or given up.
struct Ended;

impl Feed for CopyFeed {
    fn next(&mut self, into: &mut Columns) -> Result<Fed, Fault> {
        if let Some(table) = self.in_hand.take()
            && self.left.is_none()
            && let Some(table) = self.parts.tables.get(table)
        {
            table.in_hand.fetch_sub(1, Ordering::AcqRel);
        }
        if self.parts.progress.has_ended() {
            return Ok(Fed::Ended);
        }
        let (table, data, from, room) = match self.left.take() {
            Some(left) => left,
            None => match self.take() {
                Ok(None) => return Ok(Fed::Idle),
                Ok(Some((table, data, room))) => (table, data, 0, room),
                Err(Ended) => return Ok(Fed::Ended),
            },
        };
        self.in_hand = Some(table);
        if let Some(at) = self.read(table, &data, from)? {
            self.left = Some((table, data, at, room));
        }
        let Some((gathered, _)) = self.gathered.get_mut(&table).filter(|(gathered, _)| !gathered.is_empty())
        else {
            return Ok(Fed::Idle);
        };
        self.parts.meter.values_nulled.inc_by(std::mem::take(&mut gathered.nulled));
        Ok(Fed::Chunk(gathered.hand_on(into)))
    }

    fn owns(&mut self, _stay: &Stay) -> bool {
        !self.parts.progress.has_ended()
    }
}
