//! How a round ends: it drains before another one or when the pipeline is asked to stop, keeps what has landed after a
//! halt, and drops everything when another process leads.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::leading::standing_by;
use super::{After, Control, Cut, Ended, Streaming, TURN};
use crate::fault::Fault;
use crate::meter::Waiting;
use crate::source::postgres::prepare::{Round, Tables};

/// How long a halted pipeline waits for loads that are on their way.
const HALT_PATIENCE: Duration = Duration::from_secs(10);
/// How long the last position, and then its confirmation, may take.
const FAREWELL_PATIENCE: Duration = Duration::from_secs(3);

impl Control {
    /// Drains if there is nothing more to read for now, and keeps what has landed if the pipeline was halted.
    pub(super) fn end(mut self, ended: Result<After, Cut>) -> Result<Ended, Fault> {
        self.progress.end();
        let mut deadline = None;
        match ended.and_then(|after| self.drain(&mut deadline).map(|()| after)) {
            Ok(After::Stop) => {
                self.finish(false);
                self.retire();
                Ok(Ended::Stopped)
            }
            Ok(After::Tables(tables)) => {
                self.finish(true);
                let leadership = Some(self.prepared.leadership);
                Ok(Ended::Again(Round { tables, leadership, told: self.prepared.told }))
            }
            // A drain copies nothing that could be outdated.
            Err(Cut::Superseded | Cut::Outdated) => self.stand_by(),
            Err(Cut::Fault(fault)) => {
                self.parts.stage.remove(self.parts.pipeline);
                // Loads that StarRocks does not take would otherwise be tried for ever, and keep their bytes.
                self.parts.giving_up.give_up(&self.parts.ledger.stays());
                let now = Instant::now();
                let halted = now + self.parts.shutdown_timeout.min(HALT_PATIENCE);
                self.until_quiet(deadline.map_or(halted, |deadline: Instant| deadline.min(halted)));
                self.finish(false);
                self.retire();
                Err(fault)
            }
        }
    }

    /// Keeps what is durable, and gives lanes and stage up.
    fn finish(&mut self, goes_on: bool) {
        self.last_position(goes_on);
        self.parts.stage.remove(self.parts.pipeline);
        self.join_lanes();
    }

    /// Lets a process that stands by have the slot: this one may live on for its other pipelines.
    fn retire(&self) {
        let leadership = Arc::clone(&self.prepared.leadership);
        let retiring = self.parts.runtime.spawn(async move { leadership.retire().await });
        // It waits for a question that is being asked, or for labels that are being claimed; the lock goes first.
        let patience = async { tokio::time::timeout(FAREWELL_PATIENCE, retiring).await };
        if self.parts.runtime.block_on(patience).is_err() {
            tracing::debug!("giving the lock of the slot up takes longer");
        }
    }

    fn join_lanes(&mut self) {
        for thread in self.lanes.iter_mut().filter_map(Option::take) {
            if let Err(fault) = self.halts.join(thread) {
                tracing::warn!(pipeline = %self.parts.meter.name, "a lane ended late: {}", fault.story());
            }
        }
    }

    /// Lets everything that was read be loaded. Before another round that may take as long as it takes; once the
    /// pipeline is asked to stop, as long as a shutdown may.
    fn drain(&mut self, deadline: &mut Option<Instant>) -> Result<(), Cut> {
        if self.positions.is_none() {
            // Nothing was read.
            return Ok(());
        }
        let name = self.parts.meter.name.clone();
        tracing::info!(pipeline = %name, "draining: no further reads, loading what was read");
        self.halts.drains();
        while self.lanes.iter().any(Option::is_some) && !self.is_late(deadline) {
            self.check_halts()?;
            self.let_go();
            std::thread::sleep(TURN);
        }
        self.parts.stage.drain(self.parts.pipeline)?;
        while self.parts.ledger.open_spans() > 0 {
            self.check_halts()?;
            self.let_go();
            if self.is_late(deadline) {
                return Err(Cut::Fault(Fault::halt(
                    format!("the drain was not done within {:?}", self.parts.shutdown_timeout),
                    "nothing is lost, the rows are read again at the next start; a longer shutdown_timeout lets slow \
                     loads end",
                )));
            }
            std::thread::sleep(TURN);
        }
        tracing::info!(pipeline = %name, "drained");
        Ok(())
    }

    /// Ends a connection that is broken, or that the server waits for. One that shuts down lets nobody in until we have
    /// confirmed what we cannot load without the lock, which has gone with its connection; it is back when the server is.
    fn let_go(&mut self) {
        let Some(fault) = self.progress.take_broken() else { return };
        if let Some(pump) = self.streaming.as_mut().and_then(|streaming| streaming.pump.take()) {
            tracing::warn!(
                pipeline = %self.parts.meter.name,
                "{}; the connection is ended, what was read is still being loaded", fault.story()
            );
            pump.abort();
        }
    }

    /// Whether a shutdown takes too long; it begins when this is first asked after the request.
    fn is_late(&self, deadline: &mut Option<Instant>) -> bool {
        let stops = self.parts.stop.is_requested();
        let deadline =
            stops.then(|| *deadline.get_or_insert_with(|| Instant::now() + self.parts.shutdown_timeout));
        deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// Another process leads, and reads everything from the last position: drops what was read here, and makes sure that
    /// nothing of it is on its way when this process leads again.
    fn stand_by(mut self) -> Result<Ended, Fault> {
        let meter = self.parts.meter.clone();
        let source = &self.prepared.source;
        tracing::warn!(
            pipeline = %meter.name,
            "another process has taken slot {} over while this one could not reach the source: standing by",
            source.slot
        );
        meter.health.starting();
        let lands = "; first, loads and dead letters of what was read before have to end";
        let _waiting = Waiting::begin(&meter, standing_by(source) + lands);
        if let Some(Streaming { pump, writing, .. }) = self.streaming.take() {
            if let Some(pump) = pump {
                pump.abort();
            }
            if let Some((_, writing)) = writing {
                writing.abort();
            }
        }
        self.join_lanes();
        let stays = self.parts.ledger.stays();
        self.parts.giving_up.give_up(&stays);
        let dropped = self.parts.stage.forget(self.parts.pipeline, stays, false)?;
        meter.leave(&meter.records_given_up, dropped);
        self.parts.stage.remove(self.parts.pipeline);
        let mut deadline = None;
        while self.parts.ledger.open_spans() > 0 && !self.is_late(&mut deadline) {
            if let Some(fault) = self.parts.alarm.take() {
                return Err(fault);
            }
            std::thread::sleep(TURN);
        }
        self.parts.runtime.block_on(self.prepared.leadership.retire());
        meter.partitions.set(0);
        Ok(Ended::Again(Round {
            tables: Tables::Fit(self.followed().collect()),
            leadership: None,
            told: self.prepared.told,
        }))
    }

    fn until_quiet(&self, deadline: Instant) {
        while Instant::now() < deadline && self.parts.ledger.open_spans() > 0 {
            std::thread::sleep(TURN);
        }
    }

    /// Writes and confirms what is durable, so that the next start does not load it again. `goes_on`: there is another round.
    fn last_position(&mut self, goes_on: bool) {
        let (Some(mut streaming), Some(positions)) = (self.streaming.take(), self.positions.clone()) else {
            return;
        };
        let lsn = self.progress.reach(&self.parts.ledger).unwrap_or_default().max(streaming.durable);
        let writing = streaming.writing.take();
        // A task: given up half-way, its label would stay undecided, and be claimed, for as long as this process lives.
        let mut writing = self.parts.runtime.spawn(async move {
            if let Some((_, task)) = writing {
                // Its outcome is that of the one behind it.
                let _ = task.await;
            }
            positions.reached(lsn).await
        });
        let written = loop {
            let patience = async { tokio::time::timeout(FAREWELL_PATIENCE, &mut writing).await };
            match self.parts.runtime.block_on(patience) {
                Ok(written) => break written,
                // The next round would read from the position before: one that is visible later would be past what is
                // loaded again by then.
                Err(_elapsed) if goes_on && !self.parts.stop.is_requested() => {}
                // Nothing is lost: the next start loads a little again.
                Err(_elapsed) => {
                    tracing::warn!(pipeline = %self.parts.meter.name, "the last position could not be written in time");
                    return;
                }
            }
        };
        match written {
            Ok(Ok(())) => {
                self.meter.positions_written.inc();
            }
            Ok(Err(fault)) => {
                tracing::warn!(pipeline = %self.parts.meter.name, "{}", fault.story());
                return;
            }
            Err(panic) => {
                tracing::error!(pipeline = %self.parts.meter.name, %panic, "writing the last position panicked");
                return;
            }
        }
        streaming.confirm.send_replace(lsn.max(streaming.written));
        let Streaming { confirm, pump, .. } = streaming;
        // The pump passes the last confirmation on, and then says farewell to the server.
        drop(confirm);
        if let Some(pump) = pump {
            let waited = self
                .parts
                .runtime
                .block_on(async { tokio::time::timeout(FAREWELL_PATIENCE, pump.ended).await });
            if waited.is_err() {
                tracing::debug!("the replication connection did not end in time");
            }
        }
    }
}
