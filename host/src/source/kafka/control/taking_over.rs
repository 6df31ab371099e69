//! How an exactly_once pipeline takes partitions over: finishes what was decided about them, claims them, and gives up
//! what was not decided (delivery.md §3 rules 5 and 6).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use rdkafka::consumer::Consumer as _;

use super::Control;
use super::deciding::Stands;
use super::exactly::decision_beside;
use crate::delivery::decision::{Decision, Extent, Step, plan};
use crate::failpoint;
use crate::fault::{Fault, FaultKind};
use crate::sink::starrocks::two_phase;
use crate::source::kafka::decider::{Standings, Written};
use crate::source::kafka::start::Starts;

/// Decisions of members before, and the records of each.
type Before = Vec<(Decision, Extent)>;

impl Control {
    /// Takes partitions over: finishes what was decided about them, and claims them with all others.
    pub(super) fn take_over(&mut self, starts: &Starts) -> Result<(), Fault> {
        let mut before = Before::new();
        for (place, start) in starts {
            let Some(decision) = decision_beside(place, start.committed.as_deref())? else { continue };
            self.check_database(place, &decision)?;
            let known = before.iter().position(|(known, _)| known.is_same_epoch(&decision));
            let known = known.unwrap_or(before.len());
            let from = decision.from;
            if known == before.len() {
                before.push((decision, Extent::default()));
            }
            if let Some((_, extent)) = before.get_mut(known) {
                extent.add(&place.0, u32::try_from(place.1).unwrap_or_default(), from, start.offset);
            }
        }
        for step in plan(before.iter().map(|(decision, _)| decision)) {
            match step {
                Step::Finish(places) => {
                    self.recover(places.into_iter().filter_map(|place| before.get(place)))?
                }
                Step::Claim => self.claim_all(starts)?,
                Step::GiveUp(labels) => self.give_up_undecided(labels),
            }
        }
        Ok(())
    }

    /// Labels are a database's: another one does not know them.
    fn check_database(&self, (topic, partition): &(String, i32), decision: &Decision) -> Result<(), Fault> {
        let Some(deciding) = &self.deciding else { return Ok(()) };
        let ours = &deciding.parts.epochs.terms.database;
        if decision.database == *ours {
            return Ok(());
        }
        if decision.tables == 0 {
            tracing::warn!(
                pipeline = %self.parts.meter.name,
                "{topic}[{partition}] was read for database `{}` before, and the file names `{ours}`: processes of one group \
                 that differ in it share the rows out between both; if one of the other still runs, stop it or give it a group",
                decision.database
            );
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
    pub(super) fn claim_all(&mut self, starts: &Starts) -> Result<(), Fault> {
        let Some(deciding) = &mut self.deciding else { return Ok(()) };
        if deciding.is_unknown() {
            return Err(Fault::retry("it is not known yet what the last transaction wrote"));
        }
        // A stem is claimed once: the answer to a try may be lost.
        deciding.stems += 1;
        let stem = format!("{}-{}", self.parts.label_stem, deciding.stems);
        let claim = Decision::empty(&stem, 0, &deciding.parts.epochs.terms).asked_of(deciding.frontends);
        let added = starts.iter().map(|(place, found)| (place.clone(), found.offset));
        let all: BTreeMap<_, _> = deciding.committed.clone().into_iter().chain(added).collect();
        let standing = |(place, offset): (&(String, i32), &i64)| {
            let first = self.rule.first_sight(&place.0);
            (place.clone(), (*offset, claim.beginning_at(*offset).first_seen(first)))
        };
        let standings: Standings = all.iter().map(standing).collect();
        let reader = Arc::clone(&self.reader);
        match deciding.decider.write(&reader, &standings, None, || !reader.assignment_lost()) {
            Written::Yes => {
                deciding.committed = all;
                (deciding.stands, deciding.trouble) = (Stands::Done, None);
                deciding.written_at = Instant::now();
                deciding.parts.epochs.open(stem);
                self.parts.meter.commits.inc();
                Ok(())
            }
            // A claim decides nothing: it may stand, and is written again.
            Written::No(fault) | Written::Unknown(fault) => Err(fault),
        }
    }

    /// Commits what the members before had decided about these partitions. Blocks until StarRocks has answered.
    fn recover<'a>(&self, before: impl Iterator<Item = &'a (Decision, Extent)>) -> Result<(), Fault> {
        let Some(deciding) = &self.deciding else { return Ok(()) };
        let (carrier, destination) = (&deciding.parts.carrier, &deciding.parts.destination);
        let mut worst = Ok(());
        for (decision, extent) in before {
            let name = &self.parts.meter.name;
            tracing::info!(pipeline = %name, %decision, "finishing what was decided before");
            failpoint::at("epoch.recovering");
            let loads: Vec<_> = decision.labels().map(|label| (Arc::clone(destination), label)).collect();
            let is_same_cluster = decision.frontends.is_none_or(|frontends| frontends == deciding.frontends);
            let finish = async {
                if !is_same_cluster {
                    two_phase::must_be_known(carrier.client(), decision, extent).await?;
                }
                two_phase::commit_all(carrier.client(), &loads, decision, extent).await
            };
            // All of them, also when one is lost: the mend takes the decisions away.
            match self.parts.runtime.block_on(finish) {
                Err(fault) if worst.is_ok() || fault.kind == FaultKind::Halt => worst = Err(fault),
                Ok(()) => failpoint::at("epoch.recovered"),
                // The first one, or one that halts, is told.
                Err(_) => {}
            }
        }
        worst
    }

    /// Gives up what the members before had begun and not decided. Nothing hangs on it, so it is not waited for.
    fn give_up_undecided(&self, labels: Vec<String>) {
        let Some(deciding) = &self.deciding else { return };
        let (client, destination) =
            (deciding.parts.carrier.client().clone(), Arc::clone(&deciding.parts.destination));
        self.parts.runtime.spawn(async move {
            for label in labels {
                if let Err(fault) = two_phase::give_up(&client, &destination, &label).await {
                    // StarRocks gives it up by itself.
                    tracing::debug!(label, "{}", fault.story());
                    return;
                }
            }
        });
    }
}
