//! The control thread: copies what is there, follows the slot, and confirms what is durable.
//!
//! It goes round: a round ends when the tables to follow are others, or when another process leads. The next one begins
//! as a process does: it looks at source and destinations, copies what was never copied, and follows from the position.
//!
//! The order of a confirmation is: rows durable → position row visible → LSN confirmed (delivery.md §4).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle as Task;

use super::connect::Control as Connection;
use super::feed::{FeedParts, StreamFeed};
use super::identity::same_server;
use super::lsn::Lsn;
use super::newcomers::Newcomers;
use super::position::Positions;
use super::prepare::{Prepared, Round, Tables};
use super::progress::Progress;
use super::pump::{Engine, Pipe, Pumping, pump};
use super::roster::Roster;
use super::schema::Schema;
use super::table::TableName;
use super::transport::PgWire;
use super::watch::{News, SourceWatch, Watcher};
use super::{PostgresFeed, snapshot_phase};
use crate::config::model::StarRocks;
use crate::delivery::carry::Carrier;
use crate::failpoint;
use crate::fault::{Fault, FaultKind};
use crate::meter::{PostgresMeter, Waiting};
use crate::planted::{Bug, planted};
use crate::retry::{Backoff, Pace};
use crate::source::Parts;
use crate::source::halts::{Halts, LaneThread};

mod barriers;
mod ending;
mod leading;

use leading::Begun;

/// How long one turn takes at least.
const TURN: Duration = Duration::from_millis(20);
/// How often a position is written while the stream moves on: each is a version of a small table.
const POSITION_EVERY: Duration = Duration::from_secs(1);
/// How long what is on its way may land after the connection broke, before the stream is read again from the
/// position.
const SETTLE_PATIENCE: Duration = Duration::from_secs(30);
/// How long the stream may stand still before the last changes of tables that are gone are given up.
const GONE_PATIENCE: Duration = Duration::from_secs(60);

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

/// Changes that are written and have not come yet.
#[derive(Debug, Clone, Copy)]
struct Coming {
    /// How far they have come, and since when.
    upto: Lsn,
    moved_at: Instant,
}

impl Coming {
    /// Whether they are worth waiting for: the stream has moved on lately, is being loaded, or is being mended.
    fn goes_on(&mut self, upto: Lsn, is_busy: bool, now: Instant) -> bool {
        if is_busy || upto > self.upto {
            *self = Coming { upto, moved_at: now };
        }
        now.duration_since(self.moved_at) < GONE_PATIENCE
    }
}

/// Starts a lane's thread on its feed.
pub(super) type SpawnLane<'a> = dyn Fn(usize, PostgresFeed) -> std::io::Result<LaneThread> + 'a;

/// How a round has ended.
pub(crate) enum Ended {
    /// The pipeline was asked to stop, or everything was copied and nothing is followed.
    Stopped,
    /// There is another round to come.
    Again(Round),
}

/// What comes after following.
pub(super) enum After {
    /// Nothing: the pipeline was asked to stop, or that was all.
    Stop,
    /// A round with these tables.
    Tables(Tables),
}

/// Why a round is cut short.
pub(super) enum Cut {
    /// The pipeline halts.
    Fault(Fault),
    /// Another process leads, and reads what was read here and not loaded.
    Superseded,
    /// Tables have changed since their destinations were looked at.
    Outdated,
}

impl From<Fault> for Cut {
    fn from(fault: Fault) -> Cut {
        Cut::Fault(fault)
    }
}

/// Reads for a round: until told to stop, until the tables to follow are others, until another process leads, or, with
/// `snapshot = "only"`, until everything was copied.
///
/// # Errors
/// Whatever halted the pipeline, or a drain that was not done in time.
pub(crate) fn run(wiring: Wiring, spawn_lane: &SpawnLane<'_>) -> Result<Ended, Fault> {
    let mut control = Control::new(wiring);
    let ended = match control.live(spawn_lane) {
        Err(Cut::Outdated) => Ok(After::Tables(Tables::These(control.followed().collect()))),
        ended => ended,
    };
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
    halts: Halts,
    /// Since other tables are to be followed: whether the changes before are still coming.
    coming: Option<Coming>,
    /// When the lock was last asked for.
    led_at: Option<Instant>,
    /// Since when the slot is ahead of the position.
    ahead_since: Option<Instant>,
    /// There was a replication connection already.
    has_connected: bool,
}

impl Control {
    fn new(wiring: Wiring) -> Control {
        let Wiring { prepared, sink, carrier, parts } = wiring;
        let halts = Halts::of(&parts, "nothing was confirmed past them");
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
            halts,
            coming: None,
            led_at: None,
            ahead_since: None,
            has_connected: false,
        }
    }

    /// Names of the tables that are followed.
    fn followed(&self) -> impl Iterator<Item = String> {
        self.prepared.followed.iter().map(|followed| followed.table.name.to_string())
    }

    fn live(&mut self, spawn_lane: &SpawnLane<'_>) -> Result<After, Cut> {
        let (beginning, positions) = match self.begin()? {
            Begun::Leading(beginning, positions) => (beginning, positions),
            Begun::Outdated(tables) => return Ok(After::Tables(Tables::Fit(tables))),
            Begun::Stopped => return Ok(After::Stop),
        };
        self.positions = Some(Arc::clone(&positions));
        self.parts.meter.partitions.set(1);
        self.parts.meter.health.started();
        let from = match snapshot_phase::run(self, beginning, &positions, spawn_lane)? {
            snapshot_phase::Copied::Follow { from } => from,
            snapshot_phase::Copied::Ended => return Ok(After::Stop),
        };
        self.follow(from, &positions, spawn_lane)
    }

    /// Anything in the pipeline that cannot go on ends it: lanes, loads, dead letters, a lost ticket.
    pub(super) fn check_halts(&mut self) -> Result<(), Cut> {
        self.halts.check(&mut self.lanes)?;
        self.lead()
    }

    /// Follows the slot from `from` until told to stop, or until the tables to follow are others.
    fn follow(
        &mut self,
        from: Lsn,
        positions: &Arc<Positions>,
        spawn_lane: &SpawnLane<'_>,
    ) -> Result<After, Cut> {
        self.start_stream(from, spawn_lane)?;
        let watch = self.watch();
        self.connect(positions)?;
        while !self.parts.stop.is_requested() {
            self.turn(positions)?;
            if let Some(tables) = self.heard(&watch)? {
                return Ok(After::Tables(Tables::These(tables)));
            }
            std::thread::sleep(TURN);
        }
        Ok(After::Stop)
    }

    /// Starts the stream's lane, which waits for a connection.
    fn start_stream(&mut self, from: Lsn, spawn_lane: &SpawnLane<'_>) -> Result<(), Fault> {
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
        Ok(())
    }

    /// Starts to look at the source from outside of the stream.
    fn watch(&self) -> SourceWatch {
        let Prepared { connector, facts, told, .. } = &self.prepared;
        let roster = Roster::of(&self.prepared);
        let newcomers = Newcomers {
            connector: Arc::clone(connector),
            sink: Arc::clone(&self.sink),
            meter: Arc::clone(&self.parts.meter),
            followed: roster.names(),
            told: told.clone(),
        };
        let (progress, meter) = (self.progress.clone(), self.meter.clone());
        let watcher = Watcher { server: facts.server.clone(), roster, newcomers, progress, meter };
        watcher.start(&self.parts.runtime)
    }

    /// The tables to follow from now on, when they are others and the round can end.
    fn heard(&mut self, watch: &SourceWatch) -> Result<Option<BTreeSet<String>>, Fault> {
        let news = watch.news();
        let (came, gone, written) = match &*news {
            None => return Ok(None),
            Some(News::Lost(fault)) => return Err(fault.retold()),
            Some(News::Changed { came, gone, written }) => (came, gone, written),
        };
        let listed = |tables: &[TableName]| tables.iter().map(ToString::to_string).collect::<Vec<_>>();
        let (came, gone) = (listed(came), listed(gone));
        let now = Instant::now();
        let mut coming = self.coming.take().unwrap_or_else(|| {
            if !came.is_empty() {
                tracing::info!(pipeline = %self.parts.meter.name, tables = came.join(", "), "following new tables");
            }
            if !gone.is_empty() {
                tracing::warn!(
                    pipeline = %self.parts.meter.name, tables = gone.join(", "),
                    "followed tables are gone from the source: their rows stay in StarRocks"
                );
            }
            Coming { upto: Lsn::default(), moved_at: now }
        });
        // What was written before they went comes first.
        if let Some(Streaming { durable, pump, .. }) = self.streaming.as_ref().filter(|_| !gone.is_empty()) {
            let is_busy = pump.is_none() || self.parts.ledger.open_spans() > 0;
            if *durable < *written && coming.goes_on(*durable, is_busy, now) {
                self.coming = Some(coming);
                return Ok(None);
            }
            if *durable < *written {
                tracing::warn!(
                    pipeline = %self.parts.meter.name, tables = gone.join(", "), read = %durable, written = %written,
                    "the stream stands still before the place where followed tables went: their last changes between \
                     these places, if there are any, are skipped"
                );
            }
        }
        Ok(Some(self.followed().filter(|table| !gone.contains(table)).chain(came).collect()))
    }

    fn turn(&mut self, positions: &Arc<Positions>) -> Result<(), Cut> {
        self.check_halts()?;
        self.pass_barrier()?;
        self.advance(positions)?;
        self.mend(positions)
    }

    /// Connects and starts the pump; waits while the server is away or somebody else reads the slot.
    fn connect(&mut self, positions: &Arc<Positions>) -> Result<(), Cut> {
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
                    self.parts.runtime.clone().block_on(async {
                        self.free_own_slot().await;
                        backoff.wait().await;
                    });
                }
                Err(fault) => return Err(fault.into()),
            }
        }
        Ok(())
    }

    /// Notices a broken connection, lets what is on its way land, and connects again.
    fn mend(&mut self, positions: &Arc<Positions>) -> Result<(), Cut> {
        if let Some(fault) = self.progress.take_broken() {
            if fault.kind != FaultKind::Retry {
                return Err(fault.into());
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
            if planted(Bug::PositionAfterAcknowledgement) {
                streaming.confirm.send_replace(lsn);
            }
        }
        if streaming.writing.as_ref().is_some_and(|(_, task)| task.is_finished()) {
            self.finish_writing()?;
        }
        let Some(streaming) = &mut self.streaming else { return Ok(()) };
        let due = streaming.durable > streaming.written
            && streaming.writing.is_none()
            && streaming.written_at.elapsed() >= POSITION_EVERY;
        if due {
            failpoint::at("postgres.before_position");
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
                failpoint::at("postgres.position_written");
                streaming.written = lsn;
                self.meter.positions_written.inc();
                self.parts.meter.health.progress();
                streaming.confirm.send_replace(lsn);
                failpoint::at("postgres.confirmed");
                Ok(())
            }
            Err(fault) if fault.kind == FaultKind::Retry => {
                tracing::warn!(pipeline = %self.parts.meter.name, "{}; trying again", fault.story());
                Ok(())
            }
            Err(fault) => Err(fault),
        }
    }

    /// A connection for statements.
    pub(super) fn connection(&self) -> Result<Connection, Fault> {
        self.parts.runtime.block_on(self.prepared.connector.control())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_of_tables_that_are_gone_are_waited_for_while_the_stream_moves() {
        let began = Instant::now();
        let mut coming = Coming { upto: Lsn(0), moved_at: began };
        let mut after = |seconds: u64, upto, is_busy| {
            coming.goes_on(Lsn(upto), is_busy, began + Duration::from_secs(seconds))
        };
        assert!(after(50, 10, false), "it has moved");
        assert!(after(100, 20, false), "and again, though it is long ago that they went");
        assert!(after(150, 20, true), "a large transaction is being loaded, or the line is being mended");
        assert!(after(209, 20, false));
        assert!(!after(210, 20, false), "it stands still");
    }
}
