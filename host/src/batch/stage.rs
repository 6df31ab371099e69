//! The one thread that owns all open batches of the process.
//!
//! Its inbox is one bounded channel: lanes send with `blocking_send`, tokio tasks with `send().await`.
//! The stage never blocks on anything else, so a full inbox always empties; what it holds is bounded
//! by the byte budget, because every piece carries its permit.
//!
//! Pipelines whose destination is equal in everything that shapes a load share its open batch. Each
//! piece knows its owner, so that one of them can drain, give rows up or end without the others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use self::epoch::Gathering;
use self::table::{Sent, Table};
use super::stretch::Sign;
use super::{Batch, Piece};
use crate::budget::Share;
use crate::config::model::BatchLimits;
use crate::fault::Fault;
use crate::meter::TableMeter;
use crate::position::Stay;
use crate::sink::Destination;

mod epoch;
mod strain;
mod table;

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

/// Takes the batches of all tables of a pipeline away that were cut at one point. Must return at once; `done` is
/// finished when the next ones may come.
pub trait EpochOutlet: Send + Sync {
    /// Starts the loads of `batches`, one a table.
    fn start(&self, batches: Vec<Batch>, done: Done);
}

/// What a pipeline tells the stage about itself.
pub struct Registration {
    /// Its destinations; lanes name them by index. Those that another pipeline has, too, are shared.
    pub destinations: Vec<Arc<Destination>>,
    /// When to cut.
    pub limits: BatchLimits,
    /// Loads in flight a table.
    pub in_flight: usize,
    /// To see whether readers wait.
    pub share: Share,
    /// Counters of the destinations, in their order.
    pub meters: Vec<TableMeter>,
    /// Who loads. Destinations that are equal are loaded by that of the pipeline that came first.
    pub outlet: Arc<dyn Outlet>,
    /// Who loads, if all tables are cut at one point and loaded together. Such a pipeline shares batches with
    /// nobody.
    pub epochs: Option<Arc<dyn EpochOutlet>>,
}

enum Message {
    Register { pipeline: PipelineId, registration: Registration },
    Pieces { pipeline: PipelineId, pieces: Vec<(TableIndex, Piece)> },
    Finished(Slot),
    Seen { slot: Slot, destination: Arc<Destination>, sign: Sign },
    Versions { pipeline: PipelineId, table: TableIndex, versions: u64 },
    Nudge,
    Forget { pipeline: PipelineId, stays: Vec<Stay>, finish: bool, reply: oneshot::Sender<u64> },
    Drain { pipeline: PipelineId },
    Remove { pipeline: PipelineId },
    End,
}

/// The way to the stage; cheap to clone.
#[derive(Debug, Clone)]
pub struct StageHandle {
    inbox: mpsc::Sender<Message>,
}

/// What may load one thing at a time, or few.
#[derive(Debug, Clone, Copy)]
enum Slot {
    /// A table, by its place.
    Table(usize),
    /// A pipeline whose tables are loaded together.
    Epochs(PipelineId),
}

/// Frees a slot when its load has ended, however it ended.
#[derive(Debug)]
pub struct Done {
    inbox: mpsc::Sender<Message>,
    slot: Slot,
}

/// Tells the stage how the loads of a slot fare, so that its batches grow while StarRocks is under pressure.
#[derive(Debug, Clone)]
pub struct Signs {
    inbox: mpsc::Sender<Message>,
    slot: Slot,
}

impl Signs {
    /// Shows what was seen of a table. Never waits: a sign that finds the inbox full is left out, and if pressure
    /// lasts another one follows.
    pub fn show(&self, destination: &Arc<Destination>, sign: Sign) {
        let (slot, destination) = (self.slot, Arc::clone(destination));
        let _ = self.inbox.try_send(Message::Seen { slot, destination, sign });
    }
}

impl Done {
    /// A way to tell how the load fares.
    pub fn signs(&self) -> Signs {
        Signs { inbox: self.inbox.clone(), slot: self.slot }
    }

    /// The slot is free. A stage that is gone needs no telling.
    pub async fn finish(self) {
        let _ = self.inbox.send(Message::Finished(self.slot)).await;
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
        let stage = Stage {
            inbox: inbox.downgrade(),
            pipelines: BTreeMap::new(),
            draining: BTreeSet::new(),
            tables: Vec::new(),
            epochs: BTreeMap::new(),
        };
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

    /// Tells how many versions the fullest replica of a table has. Never waits, as [`Signs::show`].
    pub fn show_versions(&self, pipeline: PipelineId, table: TableIndex, versions: u64) {
        let _ = self.inbox.try_send(Message::Versions { pipeline, table, versions });
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

    /// Ends the stage, and returns when it uses the runtime no more: a runtime that goes under a thread's timer is a
    /// panic of that thread. Nothing may be on its way.
    pub async fn end(&self) {
        // One that has ended already hears nothing, and needs not.
        let _ = self.inbox.send(Message::End).await;
        self.inbox.closed().await;
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
    /// Pipelines whose rows wait for no limit any more.
    draining: BTreeSet<PipelineId>,
    /// Every destination once. Places are for good: loads in flight name them.
    tables: Vec<Table>,
    /// Pipelines whose tables are cut together.
    epochs: BTreeMap<PipelineId, Gathering>,
}

struct Pipeline {
    /// Places of its destinations, by the index that its lanes use.
    tables: Vec<usize>,
    share: Share,
    sent: Sent,
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
                Ok(Some(Message::End) | None) => return,
                Ok(Some(message)) => self.take(message),
                Err(_elapsed) => {}
            }
            // A busy inbox must not keep batches from growing old.
            for _ in 0..INBOX_MESSAGES {
                match messages.try_recv() {
                    Ok(Message::End) => return,
                    Ok(message) => self.take(message),
                    Err(_empty) => break,
                }
            }
            self.cut_due(Instant::now());
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Register { pipeline, registration } => self.register(pipeline, &registration),
            Message::Pieces { pipeline, pieces } => self.append(pipeline, pieces),
            Message::Finished(Slot::Table(table)) => {
                if let Some(found) = self.tables.get_mut(table) {
                    found.finished();
                }
                self.start_loads(table);
            }
            Message::Finished(Slot::Epochs(pipeline)) => {
                if let Some(found) = self.epochs.get_mut(&pipeline) {
                    found.finished();
                }
                self.start_epoch(pipeline);
            }
            Message::Seen { slot, destination, sign } => self.see(slot, &destination, sign),
            Message::Versions { pipeline, table, versions } => self.see_versions(pipeline, table, versions),
            Message::Nudge => {}
            Message::Forget { pipeline, stays, finish, reply } => {
                // Whoever asked may have given up waiting; the rows are dropped all the same.
                let _ = reply.send(self.forget(pipeline, &stays, finish));
            }
            Message::Drain { pipeline } => {
                self.draining.insert(pipeline);
            }
            Message::Remove { pipeline } => self.remove(pipeline),
            // The loop's own.
            Message::End => {}
        }
    }

    fn register(&mut self, id: PipelineId, registration: &Registration) {
        let Registration { destinations, meters, limits, in_flight, share, outlet, epochs } = registration;
        if let Some(outlet) = epochs {
            let mut gathering =
                Gathering::new(destinations.clone(), *limits, share.clone(), Arc::clone(outlet));
            gathering.shown_by(id, meters);
            self.epochs.insert(id, gathering);
            return;
        }
        let places = destinations.iter().map(|destination| {
            let fits = |table: &Table| table.is_for(destination, limits, *in_flight);
            match self.tables.iter().position(fits) {
                Some(place) => {
                    self.tables[place].welcome(destination);
                    place
                }
                None => {
                    let (destination, outlet) = (Arc::clone(destination), Arc::clone(outlet));
                    self.tables.push(Table::new(destination, *limits, *in_flight, outlet));
                    self.tables.len() - 1
                }
            }
        });
        let tables: Vec<usize> = places.collect();
        for (place, meter) in tables.iter().zip(meters) {
            self.tables[*place].strain.shown_by(id, meter);
        }
        self.pipelines.insert(id, Pipeline { tables, share: share.clone(), sent: Sent::default() });
        self.widen_shares();
    }

    /// A load fares so: the limits of its table, or of its pipeline's epochs, may be others from now on.
    fn see(&mut self, slot: Slot, destination: &Destination, sign: Sign) {
        let now = Instant::now();
        let changed = match slot {
            Slot::Table(place) => self.tables.get_mut(place).is_some_and(|table| table.see(sign, now)),
            Slot::Epochs(pipeline) => {
                if let Some(gathering) = self.epochs.get_mut(&pipeline) {
                    gathering.see(&destination.table, sign, now);
                }
                false
            }
        };
        if changed {
            self.widen_shares();
        }
    }

    fn see_versions(&mut self, id: PipelineId, index: TableIndex, versions: u64) {
        let index = usize::from(index);
        if let Some(place) = self.pipelines.get(&id).and_then(|pipeline| pipeline.tables.get(index)) {
            if self.tables[*place].see(Sign::Versions(versions), Instant::now()) {
                self.widen_shares();
            }
        } else if let Some(gathering) = self.epochs.get_mut(&id) {
            gathering.see_versions(index, versions, Instant::now());
        }
    }

    /// Stretched batches need room: the budget as a whole stays the limit.
    fn widen_shares(&self) {
        for pipeline in self.pipelines.values() {
            let extra = pipeline.tables.iter().map(|place| self.tables[*place].bytes_stretched());
            pipeline.share.widen(extra.fold(0, u64::saturating_add));
        }
    }

    fn append(&mut self, id: PipelineId, pieces: Vec<(TableIndex, Piece)>) {
        let now = Instant::now();
        if let Some(gathering) = self.epochs.get_mut(&id) {
            gathering.append(pieces, now);
            self.start_epoch(id);
            return;
        }
        for (index, piece) in pieces {
            let Some(pipeline) = self.pipelines.get(&id) else {
                // It has ended: its records are read again.
                piece.forget();
                continue;
            };
            let Some(place) = pipeline.tables.get(usize::from(index)).copied() else {
                // The lanes only know indexes that were registered; dropping poisons the span, and the
                // pipeline halts instead of losing the rows.
                drop(piece);
                continue;
            };
            self.tables[place].append(piece, now, &self.draining);
            self.start_loads(place);
        }
    }

    /// When the next batch with a free slot grows too old.
    fn next_deadline(&self) -> Option<Instant> {
        let tables = self.tables.iter().flat_map(|table| [table.deadline(), table.strain.rests_at()]);
        let epochs = self.epochs.values().flat_map(|found| [found.deadline(), found.rests_at()]);
        tables.chain(epochs).flatten().min()
    }

    fn cut_due(&mut self, now: Instant) {
        let rested = self.tables.iter_mut().filter_map(|table| table.rest(now).then_some(())).count();
        if rested > 0 {
            self.widen_shares();
        }
        self.epochs.values_mut().for_each(|gathering| gathering.rest(now));
        let pressed: BTreeSet<usize> =
            self.pipelines.iter().filter_map(|(id, pipeline)| self.pressed(*id, pipeline)).collect();
        for place in 0..self.tables.len() {
            if self.tables[place].cut(now, pressed.contains(&place), &self.draining) {
                self.start_loads(place);
            }
        }
        let gathering: Vec<PipelineId> = self.epochs.keys().copied().collect();
        for id in gathering {
            let drains = self.draining.contains(&id);
            if self.epochs.get_mut(&id).is_some_and(|found| found.cut(now, drains)) {
                self.start_epoch(id);
            }
        }
    }

    fn start_epoch(&mut self, id: PipelineId) {
        let Some(gathering) = self.epochs.get_mut(&id) else { return };
        let Some(inbox) = self.inbox.upgrade() else { return };
        let Some(batches) = gathering.next() else { return };
        gathering.outlet().start(batches, Done { inbox, slot: Slot::Epochs(id) });
    }

    /// The table to cut because a reader of the pipeline waits for the budget: the one with most bytes
    /// among those that hold rows of it and whose load could start at once.
    fn pressed(&self, id: PipelineId, pipeline: &Pipeline) -> Option<usize> {
        if !pipeline.share.is_waiting() {
            return None;
        }
        let idle = pipeline.tables.iter().copied();
        let idle = idle.filter(|place| self.tables[*place].could_relieve(id));
        idle.max_by_key(|place| self.tables[*place].bytes())
    }

    fn start_loads(&mut self, place: usize) {
        while let Some(table) = self.tables.get_mut(place) {
            let Some(inbox) = self.inbox.upgrade() else { return };
            let Some(batch) = table.next_load() else { return };
            for piece in &batch.pieces {
                if let Some(owner) = self.pipelines.get_mut(&piece.owner().pipeline) {
                    owner.sent.note(piece);
                }
            }
            table.outlet().start(batch, Done { inbox, slot: Slot::Table(place) });
        }
    }

    fn forget(&mut self, id: PipelineId, stays: &[Stay], finish: bool) -> u64 {
        if let Some(gathering) = self.epochs.get_mut(&id) {
            // Nothing of a span is sent before all of it is: there is nothing to finish.
            return gathering.forget(stays);
        }
        let Some(pipeline) = self.pipelines.get(&id) else { return 0 };
        let places = pipeline.tables.clone();
        let mut dropped = 0;
        for place in &places {
            let sent = &pipeline.sent;
            dropped += self.tables[*place].forget(id, stays, |piece| finish && sent.is_begun(piece));
        }
        places.into_iter().for_each(|place| self.start_loads(place));
        dropped
    }

    fn remove(&mut self, id: PipelineId) {
        self.draining.remove(&id);
        if let Some(gathering) = self.epochs.remove(&id) {
            gathering.forget_all(id);
        }
        let Some(pipeline) = self.pipelines.remove(&id) else { return };
        for place in pipeline.tables {
            self.tables[place].forget_all_of(id);
            self.tables[place].strain.forget(id);
        }
    }
}

/// Drops the unsent pieces that are gone; returns how many records they were.
fn forget_where(pieces: &mut Vec<Piece>, is_gone: impl Fn(&Piece) -> bool) -> u64 {
    let (gone, kept): (Vec<_>, Vec<_>) = std::mem::take(pieces).into_iter().partition(is_gone);
    *pieces = kept;
    let dropped = gone.iter().map(Piece::records).sum();
    gone.into_iter().for_each(Piece::forget);
    dropped
}

#[cfg(test)]
pub(crate) mod fakes;
#[cfg(test)]
mod machine;
#[cfg(test)]
mod tests;
