//! What the control thread does for `delivery = "exactly_once"`: recovers what was decided before, claims, decides,
//! and stands aside while an epoch runs (delivery.md §3).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rdkafka::consumer::Consumer as _;

use super::{Control, place_of};
use crate::delivery::carry::Carrier;
use crate::delivery::decision::{Decision, UnknownForm, may_decide};
use crate::delivery::epoch::{Epochs, Offer};
use crate::fault::{Fault, FaultKind};
use crate::planted::{Bug, planted};
use crate::position::Stay;
use crate::sink::Destination;
use crate::sink::starrocks::two_phase;
use crate::source::kafka::decider::{Decider, Standings, Written};
use crate::source::kafka::start::{Starts, committed_offsets};

/// How long after an attempt to decide that failed the next one is made.
const DECIDE_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// What exactly_once needs of the rest of its pipeline.
pub(crate) struct Exactly {
    /// What the carrier of epochs hears and says.
    pub(crate) epochs: Epochs,
    /// Asks and commits what was decided.
    pub(crate) carrier: Carrier,
    /// A destination of the pipeline: labels are the database's.
    pub(crate) destination: Arc<Destination>,
}

/// Its state on the control thread.
pub(super) struct Deciding {
    parts: Exactly,
    decider: Decider,
    /// Assignments so far: each has a stem of its own.
    stems: u64,
    /// Offset (the next one to read) that the group has for each partition.
    committed: BTreeMap<(String, i32), i64>,
    /// What stands is a claim, or a decision whose loads are all committed.
    done: bool,
    /// The partitions left have to be claimed before anything begins.
    unclaimed: bool,
    /// Rebalances are not heard any more.
    draining: bool,
    /// Of this decision nobody knows whether it was made.
    unknown: Option<Standings>,
    tried_at: Option<Instant>,
    written_at: Instant,
}

impl Deciding {
    pub(super) fn new(parts: Exactly, decider: Decider) -> Deciding {
        Deciding {
            parts,
            decider,
            stems: 0,
            committed: BTreeMap::new(),
            done: true,
            unclaimed: false,
            draining: false,
            unknown: None,
            tried_at: None,
            written_at: Instant::now(),
        }
    }

    /// Whether an epoch waits for its decision, or may soon.
    pub(super) fn is_busy(&self) -> bool {
        self.parts.epochs.is_running()
    }

    /// No further epoch begins.
    pub(super) fn close(&self) {
        self.parts.epochs.close();
    }

    /// What is not decided is given up, unless nobody knows whether it was.
    pub(super) fn abandon(&self) {
        if self.unknown.is_none() {
            self.parts.epochs.abandon();
        }
    }

    /// Whether an epoch may have been decided.
    pub(super) fn is_unknown(&self) -> bool {
        self.unknown.is_some()
    }

    /// All partitions are another's now: whoever has them finds out what was decided.
    pub(super) fn leave_undecided(&mut self) {
        if self.unknown.take().is_some() {
            self.parts.epochs.leave_undecided();
        }
    }

    /// Nothing begins any more. What is not decided is given up, and what may be is left to the next start.
    pub(super) fn end(&mut self) {
        self.parts.epochs.end();
        self.leave_undecided();
        self.parts.epochs.abandon();
    }

    /// Partitions that are another's now: what is left has to be claimed anew.
    pub(super) fn gave_up(&mut self, stays: &[Stay]) {
        for stay in stays {
            self.committed.remove(&place_of(stay));
        }
        self.unclaimed = !self.committed.is_empty();
        // Nobody is left for whom something could be said.
        self.done |= self.committed.is_empty();
    }

    /// The pipeline drains: what a rebalance closed is opened again, since the rebalance is not waited for any more.
    pub(super) fn drains(&mut self) {
        self.unclaimed |= !self.parts.epochs.is_open() && !self.committed.is_empty();
        self.draining = true;
    }

    fn may_try(&mut self) -> bool {
        let may = self.tried_at.is_none_or(|at| at.elapsed() >= DECIDE_AGAIN_AFTER);
        if may {
            self.tried_at = None;
        }
        may
    }
}

impl Control {
    /// Commits what the members before had decided about these partitions: safe whoever does it, and however late.
    /// Blocks until StarRocks has answered.
    fn recover(&self, before: &[Decision]) -> Result<(), Fault> {
        let Some(deciding) = &self.deciding else { return Ok(()) };
        let Exactly { carrier, destination, .. } = &deciding.parts;
        let mut worst = Ok(());
        for decision in before.iter().filter(|decision| decision.tables > 0) {
            let name = &self.parts.meter.name;
            tracing::info!(pipeline = %name, %decision, "finishing what was decided before");
            let loads: Vec<_> = decision.labels().map(|label| (Arc::clone(destination), label)).collect();
            let finish = two_phase::commit_all(carrier.client(), &loads, decision);
            // All of them, also when one is lost: the mend takes the decisions away.
            match self.parts.runtime.block_on(finish) {
                Err(fault) if worst.is_ok() || fault.kind == FaultKind::Halt => worst = Err(fault),
                Ok(()) | Err(_) => {}
            }
        }
        worst
    }

    /// Gives up what the members before had begun and not decided. Only after our own claim stands: a member that was
    /// taken for dead may read the claim of its living successor, and what it would roll back then may be decided
    /// by now (decision 0025). Nothing hangs on it, so it is not waited for.
    fn give_up_undecided(&self, before: Vec<Decision>) {
        let Some(deciding) = &self.deciding else { return };
        let (client, destination) =
            (deciding.parts.carrier.client().clone(), Arc::clone(&deciding.parts.destination));
        self.parts.runtime.spawn(async move {
            for decision in before {
                for label in decision.undecided_labels() {
                    if let Err(fault) = two_phase::give_up(&client, &destination, &label).await {
                        // StarRocks gives it up by itself.
                        tracing::debug!(label, "{}", fault.story());
                        return;
                    }
                }
            }
        });
    }

    /// Has the brokers end what a transaction of ours left open, or its offsets could not be read.
    pub(super) fn settle_own(&mut self) -> Result<(), Fault> {
        if let Some(guarding) = &mut self.guarding {
            return guarding.settle(&self.parts.meter);
        }
        self.deciding.as_mut().map_or(Ok(()), |deciding| deciding.decider.settle())
    }

    /// Takes partitions over: finishes what was decided about them, and claims them with all others.
    pub(super) fn take_over(&mut self, starts: &Starts) -> Result<(), Fault> {
        let mut before: Vec<Decision> = Vec::new();
        for (place, start) in starts {
            let Some(decision) = decision_beside(place, start.committed.as_deref())? else { continue };
            self.check_database(place, &decision)?;
            if !before.iter().any(|known| known.is_same_epoch(&decision)) {
                before.push(decision);
            }
        }
        self.recover(&before)?;
        self.claim_all(starts)?;
        // What is our own was rolled back, or is the claim itself, of a try whose answer was lost.
        let own = format!("{}-", self.parts.label_stem);
        before.retain(|decision| !decision.stem.starts_with(&own));
        self.give_up_undecided(before);
        Ok(())
    }

    /// Labels are a database's: another one does not know them.
    fn check_database(&self, (topic, partition): &(String, i32), decision: &Decision) -> Result<(), Fault> {
        let Some(deciding) = &self.deciding else { return Ok(()) };
        let ours = &deciding.parts.epochs.terms.database;
        if decision.tables == 0 || decision.database == *ours {
            return Ok(());
        }
        Err(Fault::halt(
            format!(
                "{decision}, decided at {topic}[{partition}], is of database `{}`, and the file names `{ours}`",
                decision.database
            ),
            "let the pipeline drain with the file as it was, and change the database then",
        ))
    }

    /// Claims all partitions, those of `starts` included, under a stem of their own: what begins under it is found
    /// by whoever comes next. Blocks until the group has answered.
    fn claim_all(&mut self, starts: &Starts) -> Result<(), Fault> {
        let Some(deciding) = &mut self.deciding else { return Ok(()) };
        // A stem is claimed once: the answer to a try may be lost.
        deciding.stems += 1;
        let stem = format!("{}-{}", self.parts.label_stem, deciding.stems);
        let claim = Decision::empty(&stem, 0, &deciding.parts.epochs.terms);
        let added = starts.iter().map(|(place, found)| (place.clone(), found.offset));
        let all: BTreeMap<_, _> = deciding.committed.clone().into_iter().chain(added).collect();
        let standing =
            |(place, offset): (&(String, i32), &i64)| (place.clone(), (*offset, claim.beginning_at(*offset)));
        let standings: Standings = all.iter().map(standing).collect();
        let reader = Arc::clone(&self.reader);
        match deciding.decider.write(&reader, &standings, || !reader.assignment_lost()) {
            Written::Yes => {
                deciding.committed = all;
                (deciding.done, deciding.unclaimed) = (true, false);
                deciding.written_at = Instant::now();
                deciding.parts.epochs.open(stem);
                self.parts.meter.commits.inc();
                Ok(())
            }
            // A claim decides nothing: it may stand, and is written again.
            Written::No(fault) | Written::Unknown(fault) => Err(fault),
        }
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
        if deciding.unknown.is_some() {
            return self.settle_unknown();
        }
        if let Some(offer) = deciding.parts.epochs.offered() {
            return self.decide(&offer);
        }
        if deciding.is_busy() && !planted(Bug::DecisionOverwritten) {
            // Until its loads are committed, their decision must stand.
            return Ok(());
        }
        if deciding.unclaimed && settled_down {
            return self.claim_all(&Starts::new()).or_else(|fault| self.hear_of_no_decision(fault));
        }
        self.write_standing(deciding_is_due)
    }

    fn hear_of_no_decision(&mut self, fault: Fault) -> Result<(), Fault> {
        if fault.kind != FaultKind::Retry {
            return Err(fault);
        }
        self.parts.meter.commit_failures.inc();
        tracing::warn!(pipeline = %self.parts.meter.name, "{}; trying again", fault.story());
        if let Some(deciding) = &mut self.deciding {
            deciding.tried_at = Some(Instant::now());
        }
        Ok(())
    }

    /// Decides the epoch on offer, once everything before the end of its records is safe.
    fn decide(&mut self, offer: &Offer) -> Result<(), Fault> {
        let is_member = self.is_member();
        let Some(deciding) = &mut self.deciding else { return Ok(()) };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let age = now.saturating_sub(Duration::from_secs(offer.decision.prepared_at_s));
        let known: BTreeSet<Stay> = self.parts.ledger.stays().into_iter().collect();
        let gone = offer.tickets.keys().any(|(stay, _)| !known.contains(stay));
        // Put out of the group, it loses its partitions once what waits for this epoch is answered.
        if gone
            || !is_member
            || !may_decide(age, deciding.parts.epochs.terms.prepared_timeout)
            || self.reader.assignment_lost()
        {
            deciding.parts.epochs.abandon();
            return Ok(());
        }
        // Not before its dead letters are durable.
        let Some(safe) = self.parts.ledger.safe_with(&offer.tickets) else { return Ok(()) };
        let mut standings = Standings::new();
        for (place, held) in &self.held {
            let Some(upto) = safe.get(&held.stay) else { continue };
            let from = deciding.committed.get(place).copied().unwrap_or(*upto + 1);
            standings.insert(place.clone(), (upto + 1, offer.decision.beginning_at(from)));
        }
        let reader = Arc::clone(&self.reader);
        match deciding.decider.write(&reader, &standings, || !reader.assignment_lost()) {
            Written::Yes => {
                self.hear_decided(standings);
                Ok(())
            }
            Written::No(fault) => self.hear_of_no_decision(fault),
            Written::Unknown(fault) => {
                deciding.unknown = Some(standings);
                self.hear_of_no_decision(fault)
            }
        }
    }

    fn hear_decided(&mut self, standings: Standings) {
        let Some(deciding) = &mut self.deciding else { return };
        for (place, (offset, _)) in standings.into_iter().filter(|(place, _)| self.held.contains_key(place)) {
            deciding.committed.insert(place, offset);
        }
        deciding.done = false;
        deciding.unknown = None;
        deciding.written_at = Instant::now();
        deciding.parts.epochs.decided();
        self.parts.meter.commits.inc();
        self.trouble = None;
    }

    /// Learns whether a decision was made whose answer did not come. The next producer with the same id has the
    /// brokers end the last one's transaction, and only then is what the group has looked at.
    fn settle_unknown(&mut self) -> Result<(), Fault> {
        let Some(deciding) = &mut self.deciding else { return Ok(()) };
        let Some(standings) = deciding.unknown.clone() else { return Ok(()) };
        if let Err(fault) = deciding.decider.settle() {
            return self.hear_of_no_decision(fault);
        }
        let Some(((topic, partition), (_, decided))) = standings.iter().next() else { return Ok(()) };
        let committed = match committed_offsets(&self.reader, topic, &[*partition]) {
            Ok(committed) => committed,
            Err(fault) => return self.hear_of_no_decision(fault),
        };
        let text = committed.get(partition).cloned().flatten().map(|(_, text)| text);
        let stands = decision_beside(&(topic.clone(), *partition), text.as_deref())?;
        match stands {
            Some(stands) if stands.is_same_epoch(decided) => self.hear_decided(standings),
            Some(stands) if stands.stem == decided.stem => {
                tracing::info!(pipeline = %self.parts.meter.name, %decided, "was not decided: its loads are rolled back");
                deciding.unknown = None;
                deciding.parts.epochs.abandon();
            }
            Some(_) | None => {
                let what = format!("another process has taken {topic}[{partition}] over");
                return self.hear_of_no_decision(Fault::retry(what));
            }
        }
        Ok(())
    }

    /// Writes that all is done, and how far what needed no load has come, when that is due.
    fn write_standing(
        &mut self,
        is_due: impl FnOnce(&Deciding, Duration, bool) -> bool,
    ) -> Result<(), Fault> {
        let interval = self.kafka.commit_interval;
        let Some(deciding) = &mut self.deciding else { return Ok(()) };
        let Some(standing) = deciding.parts.epochs.standing() else { return Ok(()) };
        let mut standings = Standings::new();
        let mut moved = false;
        for (place, held) in &self.held {
            let Some(watermark) = self.parts.ledger.watermark(&held.stay) else { continue };
            // Never back: a decided epoch counts before its rows are settled.
            let known = deciding.committed.get(place).copied().unwrap_or(0);
            let offset = known.max(watermark.upto + 1);
            moved |= deciding.committed.get(place).is_none_or(|known| *known < offset);
            standings.insert(place.clone(), (offset, standing.beginning_at(offset)));
        }
        if standings.is_empty() || !is_due(deciding, interval, moved) {
            return Ok(());
        }
        let reader = Arc::clone(&self.reader);
        match deciding.decider.write(&reader, &standings, || !reader.assignment_lost()) {
            Written::Yes => {
                for (place, (offset, _)) in standings {
                    deciding.committed.insert(place, offset);
                }
                deciding.done = true;
                deciding.written_at = Instant::now();
                deciding.parts.epochs.stands(&standing);
                self.parts.meter.commits.inc();
                self.trouble = None;
                Ok(())
            }
            // It decides nothing: whether it stands or not, it is written again.
            Written::No(fault) | Written::Unknown(fault) => self.hear_of_no_decision(fault),
        }
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
        self.write_standing(|deciding, _, moved| !deciding.done || moved)?;
        let left = self.held.iter().any(|(place, held)| {
            let upto = self.parts.ledger.watermark(&held.stay).map(|watermark| watermark.upto + 1);
            let deciding = self.deciding.as_ref();
            deciding.is_some_and(|deciding| upto > deciding.committed.get(place).copied())
        });
        Ok(!left && self.deciding.as_ref().is_none_or(|deciding| deciding.done))
    }
}

/// What was decided about a partition, as it stands beside its offset.
fn decision_beside(
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

/// An idle moment is long enough, or nothing can begin before.
fn deciding_is_due(deciding: &Deciding, interval: Duration, moved: bool) -> bool {
    let idle = deciding.written_at.elapsed() >= interval && (!deciding.done || moved);
    idle || deciding.parts.epochs.is_exhausted()
}
