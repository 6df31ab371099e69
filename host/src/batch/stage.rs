//! The one thread that owns all open batches of the process.
//!
//! Its inbox is one bounded channel: lanes send with `blocking_send`, tokio tasks with `send().await`.
//! The stage never blocks on anything else, so a full inbox always empties; what it holds is bounded
//! by the byte budget, because every piece carries its permit.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::{Batch, Cut, Fill, Piece, decide};
use crate::budget::Share;
use crate::config::model::BatchLimits;
use crate::fault::Fault;
use crate::position::{Epoch, Partition, Stay};
use crate::sink::Destination;

/// Chunks that may wait in the inbox: enough to keep all lanes busy while the stage is scheduled.
const INBOX_MESSAGES: usize = 256;

/// A pipeline's number within the process.
pub type PipelineId = u32;

/// Index into the destinations that a pipeline registered.
pub type TableIndex = u16;

/// Takes a batch away to be loaded. Must return at once; `done` is finished when the slot is free.
pub trait Outlet: Send + Sync {
    /// Starts the load of `batch`.
    fn start(&self, batch: Batch, done: Done);
}

/// What a pipeline tells the stage about itself.
pub struct Registration {
    /// Its destinations; lanes name them by index.
    pub destinations: Vec<Arc<Destination>>,
    /// When to cut.
    pub limits: BatchLimits,
    /// Loads in flight a table.
    pub in_flight: usize,
    /// To see whether readers wait.
    pub share: Share,
    /// Who loads.
    pub outlet: Arc<dyn Outlet>,
}

enum Message {
    Register { pipeline: PipelineId, registration: Registration },
    Pieces { pipeline: PipelineId, pieces: Vec<(TableIndex, Piece)> },
    Finished { pipeline: PipelineId, table: TableIndex },
    Nudge,
    Forget { pipeline: PipelineId, stays: Vec<Stay>, finish: bool, reply: oneshot::Sender<u64> },
    Drain { pipeline: PipelineId },
    Remove { pipeline: PipelineId },
}

/// The way to the stage; cheap to clone.
#[derive(Debug, Clone)]
pub struct StageHandle {
    inbox: mpsc::Sender<Message>,
}

/// Frees the slot of a table when its load has ended, however it ended.
#[derive(Debug)]
pub struct Done {
    inbox: mpsc::Sender<Message>,
    pipeline: PipelineId,
    table: TableIndex,
}

impl Done {
    /// The slot is free. A stage that is gone needs no telling.
    pub async fn finish(self) {
        let message = Message::Finished { pipeline: self.pipeline, table: self.table };
        let _ = self.inbox.send(message).await;
    }
}

/// Why the stage could not be told: it is gone, so the process is ending.
fn gone() -> Fault {
    Fault::halt(
        "the batching stage has ended",
        "this is a defect of tidemill: see the log above for the thread's panic, and report it",
    )
}

impl StageHandle {
    /// Starts the stage's thread.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(runtime: Handle) -> Result<StageHandle, Fault> {
        let (inbox, messages) = mpsc::channel(INBOX_MESSAGES);
        let stage = Stage { inbox: inbox.downgrade(), pipelines: BTreeMap::new() };
        std::thread::Builder::new()
            .name("stage".into())
            .spawn(move || stage.run(&runtime, messages))
            .map_err(|error| Fault::retry("cannot start the batching stage's thread").caused_by(error))?;
        Ok(StageHandle { inbox })
    }

    fn send(&self, message: Message) -> Result<(), Fault> {
        self.inbox.blocking_send(message).map_err(|_| gone())
    }

    /// Announces a pipeline. Like all calls but [`Done::finish`], from plain threads only.
    ///
    /// # Errors
    /// If the stage has ended.
    pub fn register(&self, pipeline: PipelineId, registration: Registration) -> Result<(), Fault> {
        self.send(Message::Register { pipeline, registration })
    }

    /// Hands the rows of one chunk over; waits while the inbox is full.
    ///
    /// # Errors
    /// If the stage has ended; the pieces' tickets then poison their span.
    pub fn hand_over(&self, pipeline: PipelineId, pieces: Vec<(TableIndex, Piece)>) -> Result<(), Fault> {
        self.send(Message::Pieces { pipeline, pieces })
    }

    /// Tells that a reader waits for the budget.
    pub fn nudge(&self) {
        // A full inbox means that the stage is awake and will look at the budget anyway.
        let _ = self.inbox.try_send(Message::Nudge);
    }

    /// Drops unsent rows of stays that are being given up; returns how many records they were.
    ///
    /// The next owner begins behind the last span that is safe. With `finish`, rows without which it would
    /// load again what was sent already are loaded now: those of a span of which rows were sent, and of
    /// the spans before it.
    ///
    /// # Errors
    /// If the stage has ended.
    pub fn forget(&self, pipeline: PipelineId, stays: Vec<Stay>, finish: bool) -> Result<u64, Fault> {
        let (reply, answer) = oneshot::channel();
        self.send(Message::Forget { pipeline, stays, finish, reply })?;
        answer.blocking_recv().map_err(|_| gone())
    }

    /// From now on the pipeline's batches are loaded as soon as their table is free.
    ///
    /// # Errors
    /// If the stage has ended.
    pub fn drain(&self, pipeline: PipelineId) -> Result<(), Fault> {
        self.send(Message::Drain { pipeline })
    }

    /// Forgets the pipeline and its unsent rows.
    pub fn remove(&self, pipeline: PipelineId) {
        let _ = self.send(Message::Remove { pipeline });
    }
}

struct Stage {
    /// Weak, so that the stage ends when everybody else's handle is gone.
    inbox: mpsc::WeakSender<Message>,
    pipelines: BTreeMap<PipelineId, Pipeline>,
}

struct Pipeline {
    registration: Registration,
    tables: Vec<Table>,
    draining: bool,
    /// The last span of each partition of which rows were sent, by its place in its stay.
    sent: BTreeMap<Partition, (Epoch, u64)>,
}

#[derive(Default)]
struct Table {
    open: Vec<Piece>,
    rows: u64,
    bytes: u64,
    since: Option<Instant>,
    ready: VecDeque<Batch>,
    in_flight: usize,
}

impl Stage {
    fn run(mut self, runtime: &Handle, mut messages: mpsc::Receiver<Message>) {
        loop {
            let deadline = self.next_deadline().map(tokio::time::Instant::from_std);
            let received = runtime.block_on(async {
                match deadline {
                    Some(at) => tokio::time::timeout_at(at, messages.recv()).await,
                    None => Ok(messages.recv().await),
                }
            });
            match received {
                Ok(Some(message)) => self.take(message),
                Ok(None) => return,
                Err(_elapsed) => {}
            }
            // A busy inbox must not keep batches from growing old.
            for _ in 0..INBOX_MESSAGES {
                let Ok(message) = messages.try_recv() else { break };
                self.take(message);
            }
            self.cut_due(Instant::now());
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Register { pipeline, registration } => {
                let tables = registration.destinations.iter().map(|_| Table::default()).collect();
                let fresh = Pipeline { registration, tables, draining: false, sent: BTreeMap::new() };
                self.pipelines.insert(pipeline, fresh);
            }
            Message::Pieces { pipeline: id, pieces } => {
                let now = Instant::now();
                let Some(pipeline) = self.pipelines.get_mut(&id) else {
                    pieces.into_iter().for_each(|(_, piece)| piece.forget());
                    return;
                };
                for (table, piece) in pieces {
                    pipeline.append(table, piece, now);
                    Self::start_loads(&self.inbox, id, pipeline, table);
                }
            }
            Message::Finished { pipeline: id, table } => {
                if let Some(pipeline) = self.pipelines.get_mut(&id) {
                    if let Some(slot) = pipeline.tables.get_mut(usize::from(table)) {
                        slot.in_flight = slot.in_flight.saturating_sub(1);
                    }
                    Self::start_loads(&self.inbox, id, pipeline, table);
                }
            }
            Message::Nudge => {}
            Message::Forget { pipeline: id, stays, finish, reply } => {
                let mut dropped = 0;
                if let Some(pipeline) = self.pipelines.get_mut(&id) {
                    dropped = pipeline.forget(&stays, finish);
                    for table in 0..pipeline.tables.len() {
                        Self::start_loads(&self.inbox, id, pipeline, table as TableIndex);
                    }
                }
                // Whoever asked may have given up waiting; the rows are dropped all the same.
                let _ = reply.send(dropped);
            }
            Message::Drain { pipeline } => {
                if let Some(found) = self.pipelines.get_mut(&pipeline) {
                    found.draining = true;
                }
            }
            Message::Remove { pipeline } => {
                if let Some(found) = self.pipelines.remove(&pipeline) {
                    found.tables.into_iter().for_each(Table::forget_all);
                }
            }
        }
    }

    /// When the next batch with a free slot grows too old.
    fn next_deadline(&self) -> Option<Instant> {
        let due = self.pipelines.values().flat_map(|pipeline| {
            let linger = pipeline.registration.limits.linger;
            let in_flight = pipeline.registration.in_flight;
            let waiting = pipeline.tables.iter().filter(move |table| table.in_flight < in_flight);
            waiting.filter_map(move |table| table.since.map(|since| since + linger))
        });
        due.min()
    }

    fn cut_due(&mut self, now: Instant) {
        for (id, pipeline) in &mut self.pipelines {
            let pressed =
                if pipeline.registration.share.is_waiting() { pipeline.largest_idle() } else { None };
            for table in 0..pipeline.tables.len() {
                let pressure = pressed == Some(table);
                if pipeline.cut(table, now, pressure) {
                    Self::start_loads(&self.inbox, *id, pipeline, table as TableIndex);
                }
            }
        }
    }

    fn start_loads(
        inbox: &mpsc::WeakSender<Message>,
        id: PipelineId,
        pipeline: &mut Pipeline,
        table: TableIndex,
    ) {
        let Pipeline { registration, tables, sent, .. } = pipeline;
        let Some(slot) = tables.get_mut(usize::from(table)) else { return };
        while slot.in_flight < registration.in_flight {
            let Some(inbox) = inbox.upgrade() else { return };
            let Some(batch) = slot.ready.pop_front() else { return };
            slot.in_flight += 1;
            batch.pieces.iter().for_each(|piece| note_sent(sent, piece));
            registration.outlet.start(batch, Done { inbox, pipeline: id, table });
        }
    }
}

impl Pipeline {
    /// Adds a piece to its table's open batch, and cuts as often as the limits ask for.
    fn append(&mut self, table: TableIndex, piece: Piece, now: Instant) {
        let limits = self.registration.limits;
        let index = usize::from(table);
        if index >= self.tables.len() {
            // The lanes only know indexes that were registered; dropping poisons the span, and the
            // pipeline halts instead of losing the rows.
            drop(piece);
            return;
        }
        let mut left = Some(piece);
        while let Some(mut piece) = left {
            let slot = &mut self.tables[index];
            let room_bytes = limits.max_bytes.saturating_sub(slot.bytes);
            if slot.rows > 0 && piece.first_row_bytes() > room_bytes {
                self.seal(index, Cut::Bytes);
                left = Some(piece);
                continue;
            }
            left = piece.split(limits.max_rows.saturating_sub(slot.rows), room_bytes);
            slot.rows += piece.len() as u64;
            slot.bytes += piece.bytes();
            slot.since.get_or_insert(now);
            slot.open.push(piece);
            if left.is_some() {
                let reason = if slot.rows >= limits.max_rows { Cut::Rows } else { Cut::Bytes };
                self.seal(index, reason);
            } else {
                self.cut(index, now, false);
            }
        }
    }

    fn cut(&mut self, table: usize, now: Instant, pressure: bool) -> bool {
        let slot = &self.tables[table];
        let fill = Fill {
            rows: slot.rows,
            bytes: slot.bytes,
            age: slot.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since)),
            slot_free: slot.in_flight + slot.ready.len() < self.registration.in_flight,
            pressure,
            draining: self.draining,
        };
        let reason = decide(&fill, &self.registration.limits);
        if let Some(reason) = reason {
            self.seal(table, reason);
        }
        reason.is_some()
    }

    fn seal(&mut self, table: usize, reason: Cut) {
        let slot = &mut self.tables[table];
        let since = slot.since.take().unwrap_or_else(Instant::now);
        let pieces = std::mem::take(&mut slot.open);
        (slot.rows, slot.bytes) = (0, 0);
        let destination = Arc::clone(&self.registration.destinations[table]);
        slot.ready.push_back(Batch { destination, pieces, reason, since });
    }

    /// The table with the most bytes among those whose load could start at once.
    fn largest_idle(&self) -> Option<usize> {
        let in_flight = self.registration.in_flight;
        let idle = self.tables.iter().enumerate();
        let idle =
            idle.filter(|(_, table)| table.in_flight + table.ready.len() < in_flight && table.rows > 0);
        idle.max_by_key(|(_, table)| table.bytes).map(|(index, _)| index)
    }

    /// Drops unsent pieces of `stays` and cuts the batches of those that are to be finished; returns the
    /// number of records dropped.
    fn forget(&mut self, stays: &[Stay], finish: bool) -> u64 {
        let mut dropped = 0;
        let sent = &self.sent;
        let given_up = |piece: &Piece| stays.contains(piece.ticket().stay());
        let is_gone = |piece: &Piece| given_up(piece) && !(finish && is_begun(sent, piece));
        let mut keep = |pieces: &mut Vec<Piece>| {
            let (gone, kept): (Vec<_>, Vec<_>) = std::mem::take(pieces).into_iter().partition(is_gone);
            *pieces = kept;
            for piece in gone {
                dropped += piece.records();
                piece.forget();
            }
        };
        let mut unfinished = Vec::new();
        for (index, table) in self.tables.iter_mut().enumerate() {
            keep(&mut table.open);
            if table.open.iter().any(given_up) {
                unfinished.push(index);
            }
            table.ready.iter_mut().for_each(|batch| keep(&mut batch.pieces));
            table.ready.retain(|batch| !batch.pieces.is_empty());
            table.rows = table.open.iter().map(|piece| piece.len() as u64).sum();
            table.bytes = table.open.iter().map(Piece::bytes).sum();
            if table.rows == 0 {
                table.since = None;
            }
        }
        unfinished.into_iter().for_each(|table| self.seal(table, Cut::Flush));
        dropped
    }
}

fn note_sent(sent: &mut BTreeMap<Partition, (Epoch, u64)>, piece: &Piece) {
    let Stay { partition, epoch } = piece.ticket().stay();
    let this = (*epoch, piece.ticket().place());
    match sent.get_mut(partition) {
        Some(last) => *last = this.max(*last),
        None => {
            sent.insert(partition.clone(), this);
        }
    }
}

/// Whether rows of the piece's span, or of a later one of its stay, were sent.
fn is_begun(sent: &BTreeMap<Partition, (Epoch, u64)>, piece: &Piece) -> bool {
    let Stay { partition, epoch } = piece.ticket().stay();
    let last = sent.get(partition).filter(|(of, _)| of == epoch);
    last.is_some_and(|(_, place)| piece.ticket().place() <= *place)
}

impl Table {
    fn forget_all(self) {
        let ready = self.ready.into_iter().flat_map(|batch| batch.pieces);
        self.open.into_iter().chain(ready).for_each(Piece::forget);
    }
}

#[cfg(test)]
pub(crate) mod fakes;
#[cfg(test)]
mod tests;
