//! What the control thread does for `delivery = "exactly_once"` between rebalances: decides, writes that all is done, and
//! stands aside while an epoch runs (delivery.md §3).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer as _;

use super::Control;
pub(super) use super::deciding::Deciding;
use super::deciding::{Asked, Stands};
use crate::clock;
use crate::dead_letter::Outbox;
use crate::delivery::decision::{Decision, UnknownForm, may_decide};
use crate::delivery::epoch::Offer;
use crate::failpoint;
use crate::fault::{Fault, FaultKind};
use crate::ledger::{Reach, Tickets};
use crate::meter::Waiting;
use crate::planted::{Bug, planted};
use crate::position::Stay;
use crate::source::kafka::decider::{Standings, Written};
use crate::source::kafka::start::{Starts, committed_offsets};

impl Control {
    /// Has the brokers end what a transaction of ours left open, or its offsets could not be read.
    pub(super) fn settle_own(&mut self) -> Result<(), Fault> {
        if let Some(guarding) = &mut self.guarding {
            return guarding.settle(&self.parts.meter);
        }
        self.deciding.as_mut().map_or(Ok(()), |deciding| deciding.decider.settle())
    }

    /// One turn of deciding: claims what is left after a revocation, decides what is offered, and writes over what is
    /// done.
    pub(super) fn decide_when_due(&mut self) -> Result<(), Fault> {
        if !self.parts.ledger.progress().is_empty() {
            self.parts.meter.health.progress();
        }
        let quiet = self.rebalances.is_empty();
        let Some(deciding) = &mut self.deciding else { return Ok(()) };
        let settled_down = self.revoking.is_none() && (quiet || deciding.draining);
        if !deciding.may_try() {
            return Ok(());
        }
        if deciding.is_unknown() {
            return self.settle_unknown();
        }
        if let Some(offer) = deciding.parts.epochs.offered() {
            return self.decide(&offer);
        }
        if deciding.is_busy() && !planted(Bug::DecisionOverwritten) {
            // Until its loads are committed, their decision must stand.
            return Ok(());
        }
        if settled_down && deciding.is_unclaimed() {
            return self.claim_all(&Starts::new()).or_else(|fault| self.hear_of_no_decision(fault));
        }
        self.write_standing(is_due)
    }

    fn hear_of_no_decision(&mut self, fault: Fault) -> Result<(), Fault> {
        if fault.kind != FaultKind::Retry {
            return Err(fault);
        }
        self.parts.meter.commit_failures.inc();
        let Some(deciding) = &mut self.deciding else { return Ok(()) };
        deciding.tried_at = Some(Instant::now());
        if deciding.trouble.is_none() {
            let story = fault.story();
            tracing::warn!(pipeline = %self.parts.meter.name, "{story}; waiting and trying again");
            deciding.trouble = Some(Waiting::begin(&self.parts.meter, story));
        } else {
            tracing::debug!(pipeline = %self.parts.meter.name, "{}", fault.story());
        }
        Ok(())
    }

    /// How far all is safe once an epoch is decided whose tickets these are, and with it the letters that it reaches;
    /// none while something else holds one of its spans.
    fn reach_with(&self, tickets: &Tickets) -> Option<BTreeMap<Stay, Reach>> {
        let letters = self.deciding.as_ref().and_then(|deciding| deciding.parts.letters.as_ref());
        let letters = letters.map(Outbox::tickets).unwrap_or_default();
        self.parts.ledger.safe_with(tickets, &letters)
    }

    /// Decides the epoch on offer, once everything before the end of its records is safe.
    fn decide(&mut self, offer: &Offer) -> Result<(), Fault> {
        let is_out = self.has_lost_membership();
        let Some(deciding) = &self.deciding else { return Ok(()) };
        let age = clock::since_1970().saturating_sub(Duration::from_secs(offer.decision.prepared_at_s));
        let known: BTreeSet<Stay> = self.parts.ledger.stays().into_iter().collect();
        let gone = offer.tickets.keys().any(|(stay, _)| !known.contains(stay));
        // Put out of the group, it loses its partitions once what waits for this epoch is answered.
        if gone || is_out || !may_decide(age, deciding.parts.epochs.terms.prepared_timeout) {
            deciding.parts.epochs.abandon();
            return Ok(());
        }
        // Not before its dead letters are durable, or can be with it.
        let Some(reach) = self.reach_with(&offer.tickets) else { return Ok(()) };
        failpoint::at("epoch.before_decision");
        let mut standings = Standings::new();
        for (place, held) in &self.held {
            let Some(Reach { upto, .. }) = reach.get(&held.stay) else { continue };
            let from = deciding.committed.get(place).copied().unwrap_or(*upto + 1);
            let decision = offer.decision.beginning_at(from).asked_of(deciding.frontends);
            let decision = decision.first_seen(self.rule.first_sight(&place.0));
            standings.insert(place.clone(), (upto + 1, decision));
        }
        let letters = deciding.take_letters(&reach);
        self.write(Asked { standings, letters, epoch: true })
    }

    /// Has the brokers write something, and does what follows from their answer.
    fn write(&mut self, asked: Asked) -> Result<(), Fault> {
        let reader = Arc::clone(&self.reader);
        let Some(deciding) = &mut self.deciding else { return Ok(()) };
        let letters = deciding.parts.letters.as_ref().filter(|_| !asked.letters.is_empty());
        let letters = letters.map(|outbox| (outbox, asked.letters.as_slice()));
        match deciding.decider.write(&reader, &asked.standings, letters, || !reader.assignment_lost()) {
            Written::Yes => {
                if asked.epoch {
                    failpoint::at("epoch.decided");
                } else {
                    failpoint::at("epoch.done");
                }
                self.hear_written(asked);
                Ok(())
            }
            Written::No(fault) => {
                deciding.give_letters_back(asked.letters);
                self.hear_of_no_decision(fault)
            }
            // Also of what decides nothing: by how far the offsets are it is told later whether the next one was written.
            Written::Unknown(fault) => {
                deciding.stands = Stands::Unknown(asked);
                self.hear_of_no_decision(fault)
            }
        }
    }

    fn hear_written(&mut self, asked: Asked) {
        let Some(deciding) = &mut self.deciding else { return };
        let Asked { standings, letters, epoch } = asked;
        if epoch {
            deciding.parts.epochs.decided();
        } else if let Some((_, standing)) = standings.values().next() {
            deciding.parts.epochs.stands(standing);
        }
        for (place, (offset, _)) in standings.into_iter().filter(|(place, _)| self.held.contains_key(place)) {
            deciding.committed.insert(place, offset);
        }
        deciding.letters_are_kept(letters);
        deciding.stands = if epoch { Stands::Decided } else { Stands::Done };
        (deciding.written_at, deciding.trouble) = (Instant::now(), None);
        self.parts.meter.commits.inc();
        self.trouble = None;
    }

    /// Learns whether something was written of which the answer did not come. The next producer with the same id has the
    /// brokers end the last one's transaction, and only then is what the group has looked at.
    fn settle_unknown(&mut self) -> Result<(), Fault> {
        let Some(deciding) = &mut self.deciding else { return Ok(()) };
        let Stands::Unknown(asked) = &deciding.stands else { return Ok(()) };
        if let Err(fault) = deciding.decider.settle() {
            return self.hear_of_no_decision(fault);
        }
        let Some((place, (offset, decided))) = asked.telling(&deciding.committed) else { return Ok(()) };
        let (topic, partition) = place;
        let committed = match committed_offsets(&self.reader, topic, &[*partition]) {
            Ok(committed) => committed.of(*partition),
            Err(fault) => return self.hear_of_no_decision(fault),
        };
        let found = committed.as_ref().map(|(found, _)| *found);
        let stands = decision_beside(place, committed.as_ref().map(|(_, text)| text.as_str()))?;
        match stands {
            Some(stands) if stands.is_same_epoch(decided) && found == Some(*offset) => {
                if let Some(asked) = deciding.take_unknown() {
                    self.hear_written(asked);
                }
            }
            Some(stands) if stands.stem == decided.stem => {
                tracing::info!(pipeline = %self.parts.meter.name, %decided, "was not written: its loads, if any, are rolled back");
                deciding.trouble = None;
                let Some(asked) = deciding.take_unknown() else { return Ok(()) };
                deciding.give_letters_back(asked.letters);
                if asked.epoch {
                    deciding.parts.epochs.abandon();
                }
            }
            Some(_) => {
                let what = format!("another process has taken {topic}[{partition}] over");
                return self.hear_of_no_decision(Fault::retry(what));
            }
            None => return Err(erased(place)),
        }
        Ok(())
    }

    /// Writes that all is done, and how far what needed no load has come, when that is due.
    fn write_standing(
        &mut self,
        is_due: impl FnOnce(&Deciding, Duration, Progress) -> bool,
    ) -> Result<(), Fault> {
        let Some(deciding) = &self.deciding else { return Ok(()) };
        let Some(standing) = deciding.parts.epochs.standing() else { return Ok(()) };
        let Some(reach) = self.reach_with(&Tickets::new()) else { return Ok(()) };
        let mut standings = Standings::new();
        let mut moved = false;
        for (place, held) in &self.held {
            let Some(Reach { upto, .. }) = reach.get(&held.stay) else { continue };
            // Never back: a decided epoch counts before its rows are settled.
            let known = deciding.committed.get(place).copied().unwrap_or(0);
            let offset = known.max(upto + 1);
            moved |= deciding.committed.get(place).is_none_or(|known| *known < offset);
            let standing = standing.beginning_at(offset).asked_of(deciding.frontends);
            let standing = standing.first_seen(self.rule.first_sight(&place.0));
            standings.insert(place.clone(), (offset, standing));
        }
        let progress = Progress { moved, is_waited_for: self.parts.share.is_waiting() };
        if standings.is_empty() || !is_due(deciding, self.kafka.commit_interval, progress) {
            return Ok(());
        }
        failpoint::at("epoch.before_done");
        let letters = deciding.take_letters(&reach);
        self.write(Asked { standings, letters, epoch: false })
    }

    /// The last words of a drained pipeline: all is done. True when nothing is left to say, or nobody would hear it:
    /// whoever comes next then finds the last epoch's loads committed.
    pub(super) fn say_all_is_done(&mut self) -> Result<bool, Fault> {
        if !self.is_member() {
            return Ok(!self.is_deciding());
        }
        let Some(deciding) = &mut self.deciding else { return Ok(true) };
        if deciding.is_busy() || !deciding.may_try() {
            return Ok(false);
        }
        self.write_standing(|deciding, _, progress| !deciding.is_done() || progress.moved)?;
        let left = self.held.iter().any(|(place, held)| {
            let upto = self.parts.ledger.watermark(&held.stay).map(|watermark| watermark.upto + 1);
            let deciding = self.deciding.as_ref();
            deciding.is_some_and(|deciding| upto > deciding.committed.get(place).copied())
        });
        Ok(!left && self.deciding.as_ref().is_none_or(Deciding::is_done))
    }
}

/// Somebody has set or deleted the group's offset while it was not known what was written beside it.
fn erased((topic, partition): &(String, i32)) -> Fault {
    Fault::halt(
        format!("what this pipeline had written beside the group's offset of {topic}[{partition}] is gone"),
        "something else has committed or deleted offsets of this group, and an epoch may have been decided there: stop \
         that, compare the table with the topic from that offset on, set the offset, and start again",
    )
}

/// What was decided about a partition, as it stands beside its offset.
pub(super) fn decision_beside(
    (topic, partition): &(String, i32),
    text: Option<&str>,
) -> Result<Option<Decision>, Fault> {
    Decision::read(text.unwrap_or_default()).map_err(|UnknownForm(text)| {
        Fault::halt(
            format!("beside the offset of {topic}[{partition}] stands a decision that this version cannot read: {}", text.trim_end()),
            "a newer tidemill has written it: let that one drain the pipeline first",
        )
    })
}

/// An at_least_once pipeline does not commit what an exactly_once one has decided: the loads would be lost.
pub(super) fn refuse_undone(starts: &Starts) -> Result<(), Fault> {
    for (place, start) in starts {
        let (topic, partition) = place;
        let Some(decision) = decision_beside(place, start.committed.as_deref())? else { continue };
        if decision.tables > 0 {
            return Err(Fault::halt(
                format!(
                    "{topic}[{partition}] was read with delivery = \"exactly_once\", and {decision} was decided there and may \
                     not be committed in StarRocks"
                ),
                "run the pipeline once more with delivery = \"exactly_once\" until it has drained, and change it then",
            ));
        }
    }
    Ok(())
}

/// What a standing would say that is new.
#[derive(Debug, Clone, Copy)]
struct Progress {
    /// An offset moves.
    moved: bool,
    /// A reader waits for the budget, of which letters hold a part.
    is_waited_for: bool,
}

/// An idle moment is long enough, nothing can begin before, or letters wait that somebody waits for.
fn is_due(deciding: &Deciding, interval: Duration, progress: Progress) -> bool {
    let Progress { moved, is_waited_for } = progress;
    let idle = deciding.written_at.elapsed() >= interval && (!deciding.is_done() || moved);
    let letters = deciding.parts.letters.as_ref().filter(|letters| moved && !letters.is_empty());
    let pressing = letters.is_some_and(|letters| deciding.draining || is_waited_for || letters.is_full());
    idle || pressing || deciding.parts.epochs.is_exhausted()
}
