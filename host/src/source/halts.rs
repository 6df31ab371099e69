//! What ends a pipeline from within, whatever its source: a fault of any of its parts, a lane that is gone, a lost ticket.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Parts;
use crate::delivery::{Alarm, GivingUp};
use crate::fault::Fault;
use crate::ledger::Ledger;
use crate::position::{Span, Stay};

/// How long a dropped ticket waits for the fault of whoever dropped it, which is the better one to tell.
const POISON_PATIENCE: Duration = Duration::from_secs(2);

/// How long rows of a stay may have been given up before the stay is: a partition that is revoked ends within 60 s.
const STANDSTILL_PATIENCE: Duration = Duration::from_secs(120);

/// A lane's thread.
pub(crate) type LaneThread = JoinHandle<Result<(), Fault>>;

/// Looked at by the source's control, turn by turn.
pub(crate) struct Halts {
    alarm: Alarm,
    ledger: Ledger,
    giving_up: Arc<GivingUp>,
    /// What the source has not told anybody of rows that are lost on the way.
    untold: &'static str,
    poisoned_at: Option<Instant>,
    /// Stays that stand still, and since when that is known.
    still: BTreeMap<Stay, Instant>,
    /// Lanes give up what they have not handed over, and the stays end soon.
    draining: bool,
}

impl Halts {
    /// `untold` says what does not happen for rows that are lost on the way: "nothing was committed past them".
    pub(crate) fn of(parts: &Parts, untold: &'static str) -> Halts {
        Halts {
            alarm: parts.alarm.clone(),
            ledger: parts.ledger.clone(),
            giving_up: Arc::clone(&parts.giving_up),
            untold,
            poisoned_at: None,
            still: BTreeMap::new(),
            draining: false,
        }
    }

    /// The pipeline reads nothing more.
    pub(crate) fn drains(&mut self) {
        self.draining = true;
    }

    /// Takes the threads of lanes that have ended.
    ///
    /// # Errors
    /// Halt, if something in the pipeline cannot go on: the first fault that was raised, that of a lane, a lost
    /// ticket, or rows that were given up in a stay that nobody gives up.
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
        if let Some(span) = self.stands_still(Instant::now()) {
            return Err(Fault::halt(
                format!("rows of {span} were given up, and nothing reads them again while the pipeline runs"),
                format!("{}: restart, which reads them again, and report this defect", self.untold),
            ));
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

    /// A span that the watermark of its stay never passes, although the stay is to go on: without a word the pipeline would
    /// load for ever what is never acknowledged. Whoever gives rows up halts the pipeline or ends their stay, so this finds
    /// defects only.
    fn stands_still(&mut self, now: Instant) -> Option<Span> {
        let mut lost = if self.draining { Vec::new() } else { self.ledger.lost() };
        lost.retain(|span| !self.giving_up.concerns(&span.stay));
        self.still.retain(|stay, _| lost.iter().any(|span| span.stay == *stay));
        lost.into_iter().find(|span| {
            let since = *self.still.entry(span.stay.clone()).or_insert(now);
            now.duration_since(since) >= STANDSTILL_PATIENCE
        })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::{Epoch, Partition};

    fn stay(number: u32) -> Stay {
        Stay { partition: Partition { source: "orders".into(), number }, epoch: Epoch(1) }
    }

    /// Two stays, of each of which a span was given up.
    fn given_up() -> (Halts, Arc<GivingUp>) {
        let (ledger, giving_up) = (Ledger::new(), Arc::<GivingUp>::default());
        for number in [0, 1] {
            ledger.begin(stay(number), -1);
            let span = |after, upto| Span { stay: stay(number), after, upto };
            ledger.open(&span(-1, 9)).expect("it has begun").forget();
            let _ = ledger.open(&span(9, 19)).expect("it has begun").settle();
        }
        let halts = Halts {
            alarm: Alarm::default(),
            ledger,
            giving_up: Arc::clone(&giving_up),
            untold: "nothing was committed past them",
            poisoned_at: None,
            still: BTreeMap::new(),
            draining: false,
        };
        (halts, giving_up)
    }

    #[test]
    fn a_stay_that_stands_still_and_is_not_given_up_halts() {
        let (mut halts, giving_up) = given_up();
        giving_up.give_up(&[stay(0)]);
        let now = Instant::now();
        let late = now + STANDSTILL_PATIENCE;
        assert_eq!(halts.stands_still(now), None, "its source may be about to give it up");
        assert_eq!(halts.stands_still(late).map(|span| span.to_string()), Some("orders[1](-1, 9]".into()));
        assert_eq!(halts.ledger.open_spans(), 0, "nothing else shows it");
        giving_up.give_up(&[stay(1)]);
        assert_eq!(halts.stands_still(late), None);
        giving_up.done(&[stay(1)]);
        assert_eq!(halts.stands_still(late), None, "it counts from now on");
        halts.ledger.end(&stay(1));
        assert_eq!(halts.stands_still(late + STANDSTILL_PATIENCE), None);
    }

    #[test]
    fn what_lanes_give_up_while_the_pipeline_drains_halts_nothing() {
        let (mut halts, _giving_up) = given_up();
        let now = Instant::now();
        assert_eq!(halts.stands_still(now), None);
        halts.drains();
        assert_eq!(halts.stands_still(now + STANDSTILL_PATIENCE), None);
    }

    #[test]
    fn the_message_says_that_it_is_a_defect_and_what_a_restart_does() {
        let (mut halts, _giving_up) = given_up();
        let past = Instant::now().checked_sub(STANDSTILL_PATIENCE).expect("up for minutes");
        assert_eq!(halts.stands_still(past), None);
        let fault = halts.check([]).expect_err("it stands still");
        let story = fault.story();
        assert!(story.contains("orders[0]") && story.contains("restart, which reads them again"), "{story}");
        assert!(story.contains("report this defect"), "{story}");
    }
}
