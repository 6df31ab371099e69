//! What ends a pipeline from within, whatever its source: a fault of any of its parts, a lane that is gone, a lost ticket.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Parts;
use crate::delivery::Alarm;
use crate::fault::Fault;
use crate::ledger::Ledger;

/// How long a dropped ticket waits for the fault of whoever dropped it, which is the better one to tell.
const POISON_PATIENCE: Duration = Duration::from_secs(2);

/// A lane's thread.
pub(crate) type LaneThread = JoinHandle<Result<(), Fault>>;

/// Looked at by the source's control, turn by turn.
pub(crate) struct Halts {
    alarm: Alarm,
    ledger: Ledger,
    /// What the source has not told anybody of rows that are lost on the way.
    untold: &'static str,
    poisoned_at: Option<Instant>,
}

impl Halts {
    /// `untold` says what does not happen for rows that are lost on the way: "nothing was committed past them".
    pub(crate) fn of(parts: &Parts, untold: &'static str) -> Halts {
        Halts { alarm: parts.alarm.clone(), ledger: parts.ledger.clone(), untold, poisoned_at: None }
    }

    /// Takes the threads of lanes that have ended.
    ///
    /// # Errors
    /// Halt, if something in the pipeline cannot go on: the first fault that was raised, that of a lane, or a lost
    /// ticket.
    pub(crate) fn check<'a>(
        &mut self,
        lanes: impl IntoIterator<Item = &'a mut Option<LaneThread>>,
    ) -> Result<(), Fault> {
        if let Some(fault) = self.alarm.take() {
            return Err(fault);
        }
        for lane in lanes {
            if lane.as_ref().is_some_and(JoinHandle::is_finished)
                && let Some(thread) = lane.take()
            {
                self.join(thread)?;
            }
        }
        let Some(span) = self.ledger.poisoned() else { return Ok(()) };
        if self.poisoned_at.get_or_insert_with(Instant::now).elapsed() < POISON_PATIENCE {
            return Ok(());
        }
        Err(Fault::halt(
            format!("rows of {span} were dropped inside tidemill before they were durable"),
            format!("{}: restart, and report this defect", self.untold),
        ))
    }

    /// Waits for a lane to end.
    ///
    /// # Errors
    /// Whatever ended it.
    pub(crate) fn join(&self, thread: LaneThread) -> Result<(), Fault> {
        thread.join().unwrap_or_else(|_panic| {
            Err(Fault::halt(
                "a lane's thread panicked",
                format!("{}: see the log above for the panic, restart, and report it", self.untold),
            ))
        })
    }
}
