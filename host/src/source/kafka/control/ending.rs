//! How a pipeline ends: it drains when asked to, and after a halt keeps what has landed.

use std::time::{Duration, Instant};

use super::{ASK_AGAIN_AFTER, Control, Lane, POLL_WAIT};
use crate::fault::Fault;
use crate::position::Stay;
use crate::source::kafka::consumer::{Rebalance, leave};

/// How long a halted pipeline waits for loads that are on their way: what they load would be loaded again
/// at the next start.
const HALT_PATIENCE: Duration = Duration::from_secs(10);
/// How long the last commit may take.
const LAST_COMMIT_PATIENCE: Duration = Duration::from_secs(5);

impl Control {
    /// Drains if the pipeline was asked to stop, and keeps what has landed if it was halted.
    pub(super) fn end(mut self, ended: Result<(), Fault>) -> Result<(), Fault> {
        let began = Instant::now();
        let ended = ended.and_then(|()| self.drain());
        if ended.is_err() {
            let left = self.parts.shutdown_timeout.saturating_sub(began.elapsed());
            self.wind_up(left.min(HALT_PATIENCE));
        }
        self.close();
        ended
    }

    /// Stops reading, lets everything that was read be loaded, commits it.
    fn drain(&mut self) -> Result<(), Fault> {
        let name = self.parts.meter.name.clone();
        tracing::info!(pipeline = %name, "draining: no further reads, loading what was read");
        let deadline = Instant::now() + self.parts.shutdown_timeout;
        self.halts.drains();
        self.lanes.iter().for_each(Lane::end);
        if let Some(deciding) = &mut self.deciding {
            deciding.drains();
        }
        let mut flushing = false;
        while Instant::now() < deadline {
            self.poll(self.poll_wait())?;
            self.check_halts()?;
            self.hear_of_a_loss()?;
            self.advance_revocation()?;
            self.release()?;
            let reading = self.lanes.iter().any(|lane| lane.thread.is_some());
            if !reading && !flushing {
                self.parts.stage.drain(self.parts.pipeline)?;
                flushing = true;
            }
            if flushing && self.parts.ledger.open_spans() == 0 && self.revoking.is_none() {
                if self.deciding.is_none() {
                    self.commit_all()?;
                } else if !self.say_all_is_done()? {
                    continue;
                }
                tracing::info!(pipeline = %name, "drained");
                return Ok(());
            }
        }
        let open = self.parts.ledger.open_spans();
        Err(Fault::halt(
            format!(
                "the drain was not done within {:?}: {open} spans are still open",
                self.parts.shutdown_timeout
            ),
            "nothing is lost, their records are read again at the next start; a longer shutdown_timeout lets \
             slow loads end",
        ))
    }

    /// A pipeline that was put out of its group while it drains can decide nothing any more, nor load Primary Key tables.
    fn hear_of_a_loss(&mut self) -> Result<(), Fault> {
        let hears = self.deciding.is_some() || self.guarding.is_some();
        if !hears || self.revoking.is_some() {
            return Ok(());
        }
        match self.rebalances.front() {
            Some(Rebalance::Revoked(_)) if self.has_lost_membership() => self.next_rebalance(),
            Some(Rebalance::Assigned(_)) => self.joins_again().map(drop),
            Some(Rebalance::Revoked(_) | Rebalance::Failed(_)) | None => Ok(()),
        }
    }

    /// After a halt nothing more is sent; what is on its way may still land, and what has landed is
    /// committed, so that the next start does not load it again.
    fn wind_up(&mut self, patience: Duration) {
        let deadline = Instant::now() + patience;
        self.lanes.iter().for_each(Lane::end);
        self.parts.stage.remove(self.parts.pipeline);
        let stays: Vec<Stay> = self.held.values().map(|held| held.stay.clone()).collect();
        self.parts.giving_up.give_up(&stays);
        if let Some(deciding) = &mut self.deciding {
            deciding.end();
        }
        if let Some(guarding) = &mut self.guarding {
            guarding.end();
        }
        while Instant::now() < deadline && self.parts.ledger.open_spans() > 0 {
            if let Err(fault) = self.poll(POLL_WAIT) {
                tracing::debug!("while halting: {}", fault.story());
            }
        }
        if self.deciding.is_some() {
            // What was decided is told to whoever comes next.
            return;
        }
        if let Err(fault) = self.commit_all() {
            tracing::warn!(pipeline = %self.parts.meter.name, "{}", fault.story());
        }
    }

    /// Commits all watermarks and waits for the answer, but not for ever.
    fn commit_all(&mut self) -> Result<(), Fault> {
        if self.guarding.is_some() {
            return self.commit_all_guarded();
        }
        for (place, held) in &self.held {
            if let Some(watermark) = self.parts.ledger.watermark(&held.stay) {
                self.uncommitted.insert(place.clone(), watermark.upto);
            }
        }
        let deadline = Instant::now() + LAST_COMMIT_PATIENCE;
        self.send_commit();
        while !self.uncommitted.is_empty() || self.committing.is_some() {
            if self.has_lost_membership() || Instant::now() >= deadline {
                return Err(not_committed());
            }
            self.poll(POLL_WAIT)?;
            if self.committed_at.elapsed() >= ASK_AGAIN_AFTER {
                self.send_commit();
            }
        }
        Ok(())
    }

    /// The same by the commits that guard Primary Key tables.
    fn commit_all_guarded(&mut self) -> Result<(), Fault> {
        let deadline = Instant::now() + LAST_COMMIT_PATIENCE;
        while !self.write_all_at_the_end()? {
            if self.has_lost_membership() || Instant::now() >= deadline {
                return Err(not_committed());
            }
            self.poll(POLL_WAIT)?;
        }
        Ok(())
    }

    /// Lanes, queues and messages go before the consumer: its destruction waits for them.
    fn close(mut self) {
        if let Some(deciding) = &mut self.deciding {
            deciding.end();
            deciding.decider.end();
        }
        if let Some(guarding) = &mut self.guarding {
            guarding.end();
            guarding.end_transactions();
        }
        self.parts.stage.remove(self.parts.pipeline);
        self.lanes.iter().for_each(Lane::end);
        for lane in &mut self.lanes {
            if let Some(thread) = lane.thread.take()
                && let Err(fault) = self.halts.join(thread)
            {
                tracing::warn!(pipeline = %self.parts.meter.name, "a lane ended late: {}", fault.story());
            }
        }
        self.lanes.clear();
        leave(&self.reader);
    }
}

fn not_committed() -> Fault {
    Fault::halt("cannot commit the last offsets", "their records will be loaded again at the next start")
}
