//! The right to read: standing by for it, keeping it, and what a process begins with that has it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Control, Cut};
use crate::config::model::Postgres;
use crate::fault::{Fault, FaultKind};
use crate::meter::Waiting;
use crate::retry::{Backoff, Pace};
use crate::sink::starrocks::query::Query;
use crate::source::postgres::begin::{Beginning, decide, is_ahead};
use crate::source::postgres::catalog;
use crate::source::postgres::identity::check_failover;
use crate::source::postgres::position::Positions;
use crate::source::postgres::roster::check_same;
use crate::source::postgres::schema::recall;
use crate::source::postgres::setup::{Identified, identify};

/// How often a standby asks whether the slot is free, at the longest.
const STANDBY_ASKS_EVERY: Duration = Duration::from_secs(1);

/// How long a slot may be ahead of the position before that halts the pipeline: StarRocks may show its latest rows late.
const AHEAD_PATIENCE: Duration = Duration::from_secs(30);

/// What a round begins with.
pub(super) enum Begun {
    /// The slot is ours.
    Leading(Beginning, Arc<Positions>),
    /// It is, and the source has to be looked at anew: another process had it, and may have begun to follow more tables
    /// than this one knows of. These have to be followed.
    Outdated(BTreeSet<String>),
    /// The pipeline was asked to stop before it had the slot.
    Stopped,
}

/// What came of asking for the slot.
enum Asked {
    Ours(Begun),
    /// Another process reads.
    Taken,
}

impl Control {
    /// What is known, and what it comes to. Waits for the process that has the slot, and for a server or a StarRocks
    /// that does not answer.
    pub(super) fn begin(&mut self) -> Result<Begun, Fault> {
        // A standby takes over within a second.
        let mut backoff = Backoff::new(Pace { cap: STANDBY_ASKS_EVERY, ..Pace::PASSING });
        let meter = Arc::clone(&self.parts.meter);
        let mut waiting = None;
        while !self.parts.stop.is_requested() {
            match self.parts.runtime.clone().block_on(self.ask_where_to_begin()) {
                Ok(Asked::Ours(begun)) => return Ok(begun),
                Ok(Asked::Taken) => {
                    waiting = None;
                    if meter.health.standing_by().is_none() {
                        let why = standing_by(&self.prepared.source);
                        meter.health.stands_by(why.clone());
                        tracing::info!(pipeline = %meter.name, "{why}");
                    }
                }
                Err(fault) if fault.kind == FaultKind::Retry => {
                    meter.health.starting();
                    if waiting.is_none() {
                        tracing::warn!(pipeline = %meter.name, "{}; waiting and trying again", fault.story());
                        waiting = Some(Waiting::begin(&meter, fault.story()));
                    }
                }
                Err(fault) => return Err(fault),
            }
            self.parts.runtime.block_on(backoff.wait());
        }
        Ok(Begun::Stopped)
    }

    async fn ask_where_to_begin(&mut self) -> Result<Asked, Fault> {
        let leadership = Arc::clone(&self.prepared.leadership);
        if !leadership.acquire().await? {
            self.prepared.may_be_outdated = true;
            return Ok(Asked::Taken);
        }
        // From here on it answers for the work, though it does not do it yet.
        self.parts.meter.health.starting();
        let source = &self.prepared.source;
        let identified = identify(&self.prepared.connector).await?;
        let Identified { system_identifier, timeline, .. } = identified;
        tracing::debug!(system_identifier, timeline, "postgres identified itself");
        let system = system_identifier.to_string();
        let name = &self.parts.meter.name;
        let positions = Positions::open(&self.sink, name, &source.slot, &system, &self.carrier, &leadership);
        let positions = Arc::new(positions.await?);
        let before = positions.read().await?;
        let has_led = leadership.is_newest(&before.claims).await;
        if has_led {
            // In the round before.
            leadership.admit();
        } else if !leadership.take_over(&positions, &before.claims, &self.parts.label_stem).await? {
            return Err(Fault::retry("a load of the process before is still open"));
        }
        leadership.keep_alive(&self.parts.runtime);
        // What the process before had under way is decided now, its last position included.
        let known = positions.read().await?;
        // Whoever led until now may have begun to follow tables after they were looked at here.
        if self.prepared.may_be_outdated || !has_led && self.prepared.has_missed(&known) {
            let own = self.followed().filter(|table| !known.has_left(table));
            let tables = own.chain(known.followed().into_iter().cloned()).collect();
            return Ok(Asked::Ours(Begun::Outdated(tables)));
        }
        let connection = self.prepared.connector.control().await?;
        self.free_slot(&connection).await;
        let slot = catalog::slot(&connection, &source.slot).await?;
        let tables: Vec<_> =
            self.prepared.followed.iter().map(|followed| followed.table.name.clone()).collect();
        let followed = self.prepared.followed.iter();
        check_same(&known, followed.map(|one| (&one.table.name, one.table.oid)))?;
        check_failover(&self.prepared.connector, &identified, &known, slot.as_ref()).await?;
        let ahead_since =
            is_ahead(&known, slot.as_ref()).then(|| self.ahead_since.unwrap_or_else(Instant::now));
        self.ahead_since = ahead_since;
        let may_pass = ahead_since.is_some_and(|since| since.elapsed() < AHEAD_PATIENCE);
        let beginning = decide(source, &known, slot.as_ref(), Some(system_identifier), &tables, may_pass)?;
        if let Some(timeline) = known.timeline {
            positions.follow_timeline(timeline);
        }
        let from = beginning.from().unwrap_or_default();
        for left in known.followed() {
            if !tables.iter().any(|table| table.to_string() == *left) {
                positions.left(left, &known, from).await?;
            }
        }
        let mut query = Query::connect(&self.sink).await?;
        let unknown = recall(&mut self.prepared.followed, &known, &beginning, &mut query).await?;
        positions.remember(&unknown, from).await?;
        for followed in &mut self.prepared.followed {
            if let Some(copied) = known.copied.get(&followed.table.name.to_string()) {
                followed.copied_upto = *copied;
            }
        }
        Ok(Asked::Ours(Begun::Leading(beginning, positions)))
    }

    /// Ends the reader that a process of ours has left at the slot. One that is frozen or whose line went dead would
    /// keep it until the server gives it up. Whoever calls has the lock: none of ours reads rightfully.
    pub(super) async fn free_slot(&self, connection: &super::Connection) {
        let connector = &self.prepared.connector;
        let slot = &self.prepared.source.slot;
        match catalog::end_reader(connection, slot, connector.application_name()).await {
            Ok(None) => {}
            Ok(Some(pid)) => {
                tracing::info!(pipeline = %self.parts.meter.name, slot, pid, "ended the reader that was left at the slot");
            }
            Err(fault) => {
                tracing::warn!(pipeline = %self.parts.meter.name, "{}; waiting for it to end", fault.story());
            }
        }
    }

    /// The same for a process that reads already and has lost its connection, as long as it leads.
    pub(super) async fn free_own_slot(&self) {
        if self.prepared.leadership.ask().await.is_err() {
            return;
        }
        // A server that lets nobody in has no reader either.
        if let Ok(connection) = self.prepared.connector.control().await {
            self.free_slot(&connection).await;
        }
    }

    /// Gets the lock again if its connection broke. Loads wait meanwhile.
    pub(super) fn lead(&mut self) -> Result<(), Cut> {
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
            Ok::<_, Fault>((held, leadership.is_newest(&known.claims).await))
        });
        match regained {
            // Somebody else led meanwhile, and read what we have read and not loaded.
            Ok((_, false)) => Err(Cut::Superseded),
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
            Err(fault) => Err(fault.into()),
        }
    }
}

pub(super) fn standing_by(source: &Postgres) -> String {
    format!("another process reads slot {}: standing by", source.slot)
}
