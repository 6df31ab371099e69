//! The control thread: copies what is there, follows the slot, and confirms what is durable.
//!
//! The order of a confirmation is: rows durable → position row visible → LSN confirmed (delivery.md §4).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle as Task;

use super::begin::{Beginning, decide};
use super::connect::Control as Connection;
use super::feed::{FeedParts, StreamFeed};
use super::identity::{check_failover, same_server};
use super::lsn::Lsn;
use super::position::Positions;
use super::prepare::Prepared;
use super::progress::{Barrier, Progress};
use super::pump::{Engine, Pipe, Pumping, pump};
use super::schema::{Schema, recall};
use super::setup::{Identified, identify};
use super::transport::PgWire;
use super::{PostgresFeed, catalog, snapshot_phase, watch as slot_watch};
use crate::config::model::{Postgres, StarRocks};
use crate::delivery::carry::Carrier;
use crate::fault::{Fault, FaultKind};
use crate::meter::{PostgresMeter, Waiting};
use crate::retry::{Backoff, Pace};
use crate::sink::starrocks::query::Query;
use crate::source::Parts;

mod ending;

/// How long one turn takes at least.
const TURN: Duration = Duration::from_millis(20);
/// How often a position is written while the stream moves on: each is a version of a small table.
const POSITION_EVERY: Duration = Duration::from_secs(1);
/// How often a standby asks whether the slot is free, at the longest.
const STANDBY_ASKS_EVERY: Duration = Duration::from_secs(1);
/// How long what is on its way may land after the connection broke, before the stream is read again from the
/// position.
const SETTLE_PATIENCE: Duration = Duration::from_secs(30);
/// How long a dropped ticket waits for the fault of whoever dropped it.
const POISON_PATIENCE: Duration = Duration::from_secs(2);

/// What the control thread needs of the rest of its pipeline.
pub(crate) struct Wiring {
    /// The source, looked at and set up.
    pub(crate) prepared: Prepared,
    /// Where positions are kept.
    pub(crate) sink: Arc<StarRocks>,
    /// Who loads: names the labels.
    pub(crate) carrier: Carrier,
    /// What every source gets.
    pub(crate) parts: Parts,
}

/// A lane's thread.
pub(super) type LaneThread = JoinHandle<Result<(), Fault>>;

/// Starts a lane's thread on its feed.
pub(super) type SpawnLane<'a> = dyn Fn(usize, PostgresFeed) -> std::io::Result<LaneThread> + 'a;

/// Reads until told to stop, or, with `snapshot = "only"`, until everything was copied.
///
/// # Errors
/// Whatever halted the pipeline, or a drain that was not done in time.
pub(crate) fn run(wiring: Wiring, spawn_lane: &SpawnLane<'_>) -> Result<(), Fault> {
    let mut control = Control::new(wiring);
    let ended = control.live(spawn_lane);
    control.end(ended)
}

/// The running stream.
struct Streaming {
    pipe: Pipe,
    confirm: watch::Sender<Lsn>,
    /// The connection's pump.
    pump: Option<Pumping>,
    /// Since when there is no connection, and what is told of it.
    broken: Option<(Instant, Waiting)>,
    /// What is durable and has still to be written as a position.
    durable: Lsn,
    /// What was written.
    written: Lsn,
    writing: Option<(Lsn, Task<Result<(), Fault>>)>,
    written_at: Instant,
}

pub(super) struct Control {
    pub(super) prepared: Prepared,
    pub(super) sink: Arc<StarRocks>,
    carrier: Carrier,
    pub(super) parts: Parts,
    pub(super) meter: PostgresMeter,
    pub(super) progress: Progress,
    pub(super) lanes: Vec<Option<LaneThread>>,
    streaming: Option<Streaming>,
    positions: Option<Arc<Positions>>,
    poisoned_at: Option<Instant>,
    /// When the lock was last asked for.
    led_at: Option<Instant>,
    /// There was a replication connection already.
    has_connected: bool,
}

impl Control {
    fn new(wiring: Wiring) -> Control {
        let Wiring { prepared, sink, carrier, parts } = wiring;
        Control {
            meter: parts.meter.postgres(),
            prepared,
            sink,
            carrier,
            parts,
            progress: Progress::default(),
            lanes: Vec::new(),
            streaming: None,
            positions: None,
            poisoned_at: None,
            led_at: None,
            has_connected: false,
        }
    }

    fn live(&mut self, spawn_lane: &SpawnLane<'_>) -> Result<(), Fault> {
        let (beginning, positions) = self.begin()?;
        self.positions = Some(Arc::clone(&positions));
        self.parts.meter.partitions.set(1);
        self.parts.meter.health.started();
        let from = match snapshot_phase::run(self, beginning, &positions, spawn_lane)? {
            snapshot_phase::Copied::Follow { from } => from,
            snapshot_phase::Copied::Ended => return Ok(()),
        };
        self.follow(from, &positions, spawn_lane)
    }

    /// What is known, and what it comes to. Waits for a server or a StarRocks that does not answer.
    fn begin(&mut self) -> Result<(Beginning, Arc<Positions>), Fault> {
        // A standby takes over within a second.
        let mut backoff = Backoff::new(Pace { cap: STANDBY_ASKS_EVERY, ..Pace::PASSING });
        let mut waiting = None;
        loop {
            match self.parts.runtime.clone().block_on(self.ask_where_to_begin()) {
                Err(fault) if fault.kind == FaultKind::Retry && !self.parts.stop.is_requested() => {
                    if waiting.is_none() {
                        tracing::warn!(pipeline = %self.parts.meter.name, "{}; waiting and trying again", fault.story());
                        waiting = Some(Waiting::begin(&self.parts.meter, fault.story()));
                    }
                    self.parts.runtime.block_on(backoff.wait());
                }
                asked => return asked,
            }
        }
    }

    async fn ask_where_to_begin(&mut self) -> Result<(Beginning, Arc<Positions>), Fault> {
        let source = &self.prepared.source;
        if !self.prepared.leadership.acquire().await? {
            return Err(standing_by(source));
        }
        let identified = identify(&self.prepared.connector).await?;
        let Identified { system_identifier, timeline, .. } = identified;
        tracing::debug!(system_identifier, timeline, "postgres identified itself");
        let system = system_identifier.to_string();
        let fence = Arc::clone(&self.prepared.leadership);
        let positions =
            Positions::open(&self.sink, &self.parts.meter.name, &source.slot, &system, &self.carrier, fence);
        let positions = Arc::new(positions.await?);
        let before = positions.read().await?;
        let leadership = &self.prepared.leadership;
        if !leadership.take_over(&positions, before.claim.as_ref(), &self.parts.label_stem).await? {
            return Err(Fault::retry("a load of the process before is still open"));
        }
        leadership.keep_alive(&self.parts.runtime);
        // What the process before had under way is decided now, its last position included.
        let known = positions.read().await?;
        let connection = self.prepared.connector.control().await?;
        let slot = catalog::slot(&connection, &source.slot).await?;
        let tables: Vec<_> =
            self.prepared.followed.iter().map(|followed| followed.table.name.clone()).collect();
        check_failover(&self.prepared.connector, &identified, &known, slot.as_ref()).await?;
        let beginning = decide(source, &known, slot.as_ref(), Some(system_identifier), &tables)?;
        if let Some(timeline) = known.timeline {
            positions.follow_timeline(timeline);
        }
        let followed_before: BTreeSet<&String> = known.copied.keys().chain(known.columns.keys()).collect();
        for left in followed_before {
            if tables.iter().any(|table| table.to_string() == *left) {
                continue;
            }
            // Its changes pass by from now on: should it come back, it has to be copied anew.
            positions.forget_table(left).await?;
        }
        let mut query = Query::connect(&self.sink).await?;
        let unknown = recall(&mut self.prepared.followed, &known, &beginning, &mut query).await?;
        positions.remember(&unknown, beginning.from().unwrap_or_default()).await?;
        for followed in &mut self.prepared.followed {
            if let Some(copied) = known.copied.get(&followed.table.name.to_string()) {
                followed.copied_upto = *copied;
            }
        }
        Ok((beginning, positions))
    }

    /// Gets the lock again if its connection broke. Loads wait meanwhile.
    fn lead(&mut self) -> Result<(), Fault> {
        let Some(positions) = self.positions.clone() else { return Ok(()) };
        let asked_lately = self.led_at.is_some_and(|at| at.elapsed() < STANDBY_ASKS_EVERY / 2);
        if asked_lately || !self.prepared.leadership.is_lost() {
            return Ok(());
        }
        self.led_at = Some(Instant::now());
        let leadership = Arc::clone(&self.prepared.leadership);
        let regained = self.parts.runtime.block_on(async {
            let held = leadership.acquire().await?;
            let known = positions.read().await?;
            Ok::<_, Fault>((held, leadership.is_newest(known.claim.as_ref()).await))
        });
        match regained {
            // Somebody else led meanwhile, and read what we have read and not loaded.
            Ok((_, false)) => Err(superseded(&self.prepared.source)),
            Ok((true, true)) => {
                self.prepared.leadership.admit();
                Ok(())
            }
            // Our own connection of before, which the server has not given up yet, or a process that stands by.
            Ok((false, true)) => Ok(()),
            Err(fault) if fault.kind == FaultKind::Retry => {
                // A server that shuts down lets nobody in, and waits until its readers have confirmed what they
                // cannot load without the lock.
                if self.streaming.as_ref().is_some_and(|streaming| streaming.pump.is_some()) {
                    self.progress.broke(fault);
                }
                Ok(())
            }
            Err(fault) => Err(fault),
        }
    }

    /// Anything in the pipeline that cannot go on ends it: lanes, loads, dead letters, a lost ticket.
    pub(super) fn check_halts(&mut self) -> Result<(), Fault> {
        if let Some(fault) = self.parts.alarm.take() {
            return Err(fault);
        }
        self.lead()?;
        for lane in &mut self.lanes {
            if lane.as_ref().is_some_and(JoinHandle::is_finished)
                && let Some(thread) = lane.take()
            {
                join(thread)?;
            }
        }
        let poisoned = self.parts.ledger.poisoned();
        let poisoned = poisoned
            .filter(|_| self.poisoned_at.get_or_insert_with(Instant::now).elapsed() >= POISON_PATIENCE);
        match poisoned {
            Some(span) => Err(Fault::halt(
                format!("rows of {span} were dropped inside tidemill before they were durable"),
                "nothing was confirmed past them: restart to read them again, and report this defect",
            )),
            None => Ok(()),
        }
    }

    /// Follows the slot from `from` until told to stop.
    fn follow(
        &mut self,
        from: Lsn,
        positions: &Arc<Positions>,
        spawn_lane: &SpawnLane<'_>,
    ) -> Result<(), Fault> {
        let (pipe, events) = Pipe::new();
        let connector = Arc::clone(&self.prepared.connector);
        let schema = Schema::new(
            Arc::clone(&connector),
            self.prepared.types.clone(),
            &self.prepared.followed,
            &self.sink.database,
            self.sink.create_tables,
        );
        let feed = StreamFeed::new(FeedParts {
            events,
            runtime: self.parts.runtime.clone(),
            progress: self.progress.clone(),
            ledger: self.parts.ledger.clone(),
            schema,
            slot: self.prepared.source.slot.as_str().into(),
            gathering: self.parts.gathering,
            truncate: self.prepared.source.truncate,
            meter: self.meter.clone(),
        });
        let lane = spawn_lane(self.lanes.len(), PostgresFeed::Stream(Box::new(feed)));
        self.lanes
            .push(Some(lane.map_err(|error| Fault::retry("cannot start a lane's thread").caused_by(error))?));
        let (confirm, _) = watch::channel(from);
        self.streaming = Some(Streaming {
            pipe,
            confirm,
            pump: None,
            broken: None,
            durable: from,
            written: from,
            writing: None,
            written_at: Instant::now(),
        });
        let _watch = slot_watch::start(&self.prepared, &self.parts, &self.progress, &self.meter);
        self.connect(positions)?;
        while !self.parts.stop.is_requested() {
            self.turn(positions)?;
            std::thread::sleep(TURN);
        }
        Ok(())
    }

    fn turn(&mut self, positions: &Arc<Positions>) -> Result<(), Fault> {
        self.check_halts()?;
        self.pass_barrier()?;
        self.advance(positions)?;
        self.mend(positions)
    }

    /// Connects and starts the pump; waits while the server is away or somebody else reads the slot.
    fn connect(&mut self, positions: &Arc<Positions>) -> Result<(), Fault> {
        let mut backoff = Backoff::new(Pace { cap: Duration::from_secs(1), ..Pace::PASSING });
        let mut waiting = None;
        while !self.parts.stop.is_requested() {
            self.finish_writing()?;
            let Some(streaming) = &mut self.streaming else { return Ok(()) };
            // What is durable behind it comes again, and may be taken back on the way.
            streaming.durable = streaming.written;
            let from = streaming.written;
            let connector = Arc::clone(&self.prepared.connector);
            let engine = Engine::new()?;
            let started = engine.block_on(async {
                same_server(&connector, positions, from).await?;
                PgWire::start(&connector, from).await
            });
            let started = started.and_then(|transport| {
                // Another process may have had the slot until now: what it wrote counts.
                Ok((transport, self.parts.runtime.block_on(positions.read())?))
            });
            match started {
                Ok((transport, known)) => {
                    // Each connection that the server has seen, also one that is let go again below.
                    if self.has_connected {
                        self.meter.reconnects.inc();
                    }
                    self.has_connected = true;
                    let newest = known.stream.unwrap_or(from);
                    let Some(streaming) = &mut self.streaming else { return Ok(()) };
                    if newest != from {
                        tracing::info!(pipeline = %self.parts.meter.name, %from, %newest, "the position has moved on: connecting again");
                        streaming.written = newest;
                        streaming.durable = newest;
                        continue;
                    }
                    tracing::info!(pipeline = %self.parts.meter.name, slot = %self.prepared.source.slot, %from, "following the slot");
                    let session = self.progress.connected();
                    let pumping = pump(
                        transport,
                        session,
                        streaming.pipe.clone(),
                        streaming.confirm.subscribe(),
                        self.progress.clone(),
                    );
                    streaming.pump = Some(engine.run(pumping, &self.parts.runtime));
                    streaming.broken = None;
                    return Ok(());
                }
                Err(fault) if fault.kind == FaultKind::Retry => {
                    if waiting.is_none() {
                        tracing::warn!(pipeline = %self.parts.meter.name, "{}; waiting and trying again", fault.story());
                        waiting = Some(Waiting::begin(&self.parts.meter, fault.story()));
                    }
                    self.check_halts()?;
                    self.parts.runtime.block_on(backoff.wait());
                }
                Err(fault) => return Err(fault),
            }
        }
        Ok(())
    }

    /// Notices a broken connection, lets what is on its way land, and connects again.
    fn mend(&mut self, positions: &Arc<Positions>) -> Result<(), Fault> {
        if let Some(fault) = self.progress.take_broken() {
            if fault.kind != FaultKind::Retry {
                return Err(fault);
            }
            tracing::warn!(pipeline = %self.parts.meter.name, "{}; connecting again", fault.story());
            let waiting = Waiting::begin(&self.parts.meter, fault.story());
            if let Some(streaming) = &mut self.streaming {
                if let Some(pump) = streaming.pump.take() {
                    // It may not have noticed; on a line that went dead it would wait for ever.
                    pump.abort();
                }
                streaming.broken = Some((Instant::now(), waiting));
            }
        }
        let open = self.parts.ledger.open_spans() > 0;
        let Some(streaming) = &self.streaming else { return Ok(()) };
        let Some((since, _)) = &streaming.broken else { return Ok(()) };
        let settled = !open && streaming.writing.is_none() && streaming.durable == streaming.written;
        if settled || since.elapsed() >= SETTLE_PATIENCE {
            self.connect(positions)?;
        }
        Ok(())
    }

    /// Moves the position and the confirmation behind what is durable.
    fn advance(&mut self, positions: &Arc<Positions>) -> Result<(), Fault> {
        let reached = self.progress.reach(&self.parts.ledger);
        let Some(streaming) = &mut self.streaming else { return Ok(()) };
        if let Some(lsn) = reached.filter(|lsn| *lsn > streaming.durable) {
            streaming.durable = lsn;
        }
        if streaming.writing.as_ref().is_some_and(|(_, task)| task.is_finished()) {
            self.finish_writing()?;
        }
        let Some(streaming) = &mut self.streaming else { return Ok(()) };
        let due = streaming.durable > streaming.written
            && streaming.writing.is_none()
            && streaming.written_at.elapsed() >= POSITION_EVERY;
        if due {
            let (lsn, positions) = (streaming.durable, Arc::clone(positions));
            let task = self.parts.runtime.spawn(async move { positions.reached(lsn).await });
            streaming.writing = Some((lsn, task));
            streaming.written_at = Instant::now();
        }
        Ok(())
    }

    /// Waits for the position that is being written, if one is, and confirms it.
    fn finish_writing(&mut self) -> Result<(), Fault> {
        let Some(streaming) = &mut self.streaming else { return Ok(()) };
        let Some((lsn, task)) = streaming.writing.take() else { return Ok(()) };
        let written = self.parts.runtime.block_on(task).map_err(|panic| {
            Fault::halt("writing a position panicked", "report this defect").caused_by(panic)
        })?;
        match written {
            Ok(()) => {
                streaming.written = lsn;
                self.meter.positions_written.inc();
                self.parts.meter.health.progress();
                streaming.confirm.send_replace(lsn);
                Ok(())
            }
            Err(fault) if fault.kind == FaultKind::Retry => {
                tracing::warn!(pipeline = %self.parts.meter.name, "{}; trying again", fault.story());
                Ok(())
            }
            Err(fault) => Err(fault),
        }
    }

    /// Does what the feed waits for, when everything before it is durable.
    fn pass_barrier(&mut self) -> Result<(), Fault> {
        let Some(barrier) = self.progress.barrier() else { return Ok(()) };
        if self.parts.ledger.open_spans() > 0 {
            return Ok(());
        }
        if let Barrier::Halt { what, hint } = barrier {
            return Err(Fault::halt(what, hint));
        }
        match self.parts.runtime.clone().block_on(self.do_what_is_asked(&barrier)) {
            Ok(()) => {
                self.progress.pass();
                Ok(())
            }
            Err(fault) if fault.kind == FaultKind::Retry => {
                tracing::warn!(pipeline = %self.parts.meter.name, "{}; trying again", fault.story());
                Ok(())
            }
            Err(fault) => Err(fault),
        }
    }

    async fn do_what_is_asked(&mut self, barrier: &Barrier) -> Result<(), Fault> {
        let mut query = Query::connect(&self.sink).await?;
        let warehouse = |name: &super::table::TableName| {
            let followed = self.prepared.followed.iter().find(|followed| followed.table.name == *name);
            followed.map(|followed| (followed.warehouse_table.clone(), followed.destination))
        };
        match barrier {
            // Told before.
            Barrier::Halt { .. } => Ok(()),
            Barrier::Reshape { table, add, columns, at } => {
                let Some((name, _)) = warehouse(table) else { return Ok(()) };
                // First: a column that was dropped and added anew would otherwise be told apart from the new one no more.
                if let Some(positions) = &self.positions {
                    positions.remember(&[(table.clone(), columns.clone())], *at).await?;
                }
                self.prepared.leadership.ask().await?;
                super::prepare::add_columns(&mut query, &name, add).await
            }
            Barrier::Truncate(tables) => {
                for table in tables {
                    let Some((name, destination)) = warehouse(table) else { continue };
                    let shared =
                        self.prepared.followed.iter().filter(|other| other.destination == destination);
                    if shared.count() > 1 {
                        return Err(Fault::halt(
                            format!("{table} was truncated, but other tables are loaded into {name}, too"),
                            "delete its rows there by hand, and set truncate = \"ignore\" in [source.postgres]",
                        ));
                    }
                    tracing::warn!(table = %name, "emptying it: the source table {table} was truncated");
                    let statement = format!("TRUNCATE TABLE `{}`.`{name}`", self.sink.database);
                    // Done twice it would empty what was loaded in between, by a successor even.
                    self.prepared.leadership.ask().await?;
                    query.execute(&statement).await?;
                }
                Ok(())
            }
        }
    }

    /// A connection for statements.
    pub(super) fn connection(&self) -> Result<Connection, Fault> {
        self.parts.runtime.block_on(self.prepared.connector.control())
    }
}

fn standing_by(source: &Postgres) -> Fault {
    Fault::retry(format!("another process reads slot {}: standing by", source.slot))
}

fn superseded(source: &Postgres) -> Fault {
    Fault::halt(
        format!(
            "another process has taken slot {} over while this one could not reach the source",
            source.slot
        ),
        "nothing is lost: the other one goes on from the last position; start this one again to stand by",
    )
}

fn join(thread: LaneThread) -> Result<(), Fault> {
    match thread.join() {
        Ok(ended) => ended,
        Err(_panic) => Err(Fault::halt(
            "a lane's thread panicked",
            "nothing was confirmed past its rows: see the log above for the panic, restart, and report it",
        )),
    }
}
