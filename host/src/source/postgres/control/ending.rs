//! How a pipeline ends: it drains when asked to, and after a halt keeps what has landed.

use std::time::{Duration, Instant};

use super::{Control, Streaming, TURN, join};
use crate::fault::Fault;

/// How long a halted pipeline waits for loads that are on their way.
const HALT_PATIENCE: Duration = Duration::from_secs(10);
/// How long the last position, and then its confirmation, may take.
const FAREWELL_PATIENCE: Duration = Duration::from_secs(3);

impl Control {
    /// Drains if the pipeline was asked to stop, and keeps what has landed if it was halted.
    pub(super) fn end(mut self, ended: Result<(), Fault>) -> Result<(), Fault> {
        let began = Instant::now();
        self.progress.end();
        let patience = self.parts.shutdown_timeout;
        let ended = ended.and_then(|()| self.drain(began + patience));
        if ended.is_err() {
            self.parts.stage.remove(self.parts.pipeline);
            // Loads that StarRocks does not take would otherwise be tried for ever, and keep their bytes.
            self.parts.giving_up.give_up(&self.parts.ledger.stays());
            let left = patience.saturating_sub(began.elapsed()).min(HALT_PATIENCE);
            self.until_quiet(Instant::now() + left);
        }
        self.last_position();
        self.parts.stage.remove(self.parts.pipeline);
        for thread in self.lanes.iter_mut().filter_map(Option::take) {
            if let Err(fault) = join(thread) {
                tracing::warn!(pipeline = %self.parts.meter.name, "a lane ended late: {}", fault.story());
            }
        }
        ended
    }

    /// Lets everything that was read be loaded.
    fn drain(&mut self, deadline: Instant) -> Result<(), Fault> {
        let name = self.parts.meter.name.clone();
        tracing::info!(pipeline = %name, "draining: no further reads, loading what was read");
        while self.lanes.iter().any(Option::is_some) && Instant::now() < deadline {
            self.check_halts()?;
            std::thread::sleep(TURN);
        }
        self.parts.stage.drain(self.parts.pipeline)?;
        while self.parts.ledger.open_spans() > 0 {
            self.check_halts()?;
            if Instant::now() >= deadline {
                return Err(Fault::halt(
                    format!("the drain was not done within {:?}", self.parts.shutdown_timeout),
                    "nothing is lost, the rows are read again at the next start; a longer shutdown_timeout lets slow \
                     loads end",
                ));
            }
            std::thread::sleep(TURN);
        }
        tracing::info!(pipeline = %name, "drained");
        Ok(())
    }

    fn until_quiet(&self, deadline: Instant) {
        while Instant::now() < deadline && self.parts.ledger.open_spans() > 0 {
            std::thread::sleep(TURN);
        }
    }

    /// Writes and confirms what is durable, so that the next start does not load it again.
    fn last_position(&mut self) {
        let (Some(mut streaming), Some(positions)) = (self.streaming.take(), self.positions.clone()) else {
            return;
        };
        let lsn = self.progress.reach(&self.parts.ledger).unwrap_or_default().max(streaming.durable);
        let writing = streaming.writing.take();
        let written = self.parts.runtime.block_on(async {
            let writing = async {
                if let Some((_, task)) = writing {
                    // Its outcome is that of the one behind it.
                    let _ = task.await;
                }
                positions.reached(lsn).await
            };
            tokio::time::timeout(FAREWELL_PATIENCE, writing).await
        });
        match written {
            Ok(Ok(())) => {
                self.meter.positions_written.inc();
            }
            Ok(Err(fault)) => {
                tracing::warn!(pipeline = %self.parts.meter.name, "{}", fault.story());
                return;
            }
            // Nothing is lost: the next start loads a little again.
            Err(_elapsed) => {
                tracing::warn!(pipeline = %self.parts.meter.name, "the last position could not be written in time");
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
