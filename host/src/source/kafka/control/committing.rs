//! Plain commits of offsets, for at_least_once: what is safe, now and then, by this thread alone.

use std::collections::BTreeMap;
use std::time::Instant;

use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::{Control, Held, place_of};
use crate::fault::Fault;
use crate::planted::{Bug, planted};
use crate::position::Watermark;

impl Control {
    fn list_of(&self, watermarks: &BTreeMap<(String, i32), i64>) -> Result<TopicPartitionList, KafkaError> {
        let mut list = TopicPartitionList::new();
        for ((topic, partition), upto) in watermarks {
            let mut element = list.add_partition(topic, *partition);
            element.set_offset(Offset::Offset(upto + 1))?;
            element.set_metadata(self.claim.text(self.rule.first_sight(topic)));
        }
        Ok(list)
    }

    /// Commits and waits for the answer.
    pub(super) fn commit_now(&self, watermarks: &BTreeMap<(String, i32), i64>) -> Result<(), Fault> {
        if watermarks.is_empty() {
            return Ok(());
        }
        let failed = |error| Fault::retry("cannot commit offsets").caused_by(error);
        let list = self.list_of(watermarks).map_err(failed)?;
        self.reader.commit(&list, CommitMode::Sync).map_err(failed)?;
        self.parts.meter.commits.inc();
        Ok(())
    }

    pub(super) fn commit_when_due(&mut self) -> Result<(), Fault> {
        for Watermark { stay, upto } in self.parts.ledger.progress() {
            self.parts.meter.health.progress();
            let place = place_of(&stay);
            let is_held = self.held.get(&place).is_some_and(|held| held.stay == stay);
            if is_held || planted(Bug::RevokedStillCommitted) {
                self.uncommitted.insert(place, upto);
            }
        }
        if planted(Bug::ReleaseBeforeDurable) {
            let ledger = &self.parts.ledger;
            let read = |(place, held): (&(String, i32), &Held)| {
                Some((place.clone(), ledger.opened_upto(&held.stay)?))
            };
            self.uncommitted.extend(self.held.iter().filter_map(read));
        }
        if self.guarding.is_some() {
            return self.commit_guarded();
        }
        if self.committed_at.elapsed() >= self.kafka.commit_interval {
            self.send_commit();
        }
        Ok(())
    }

    /// Sends what is to be committed, unless a commit is on its way or the partitions are another's.
    pub(super) fn send_commit(&mut self) {
        if self.uncommitted.is_empty() || self.committing.is_some() || self.reader.assignment_lost() {
            return;
        }
        self.committed_at = Instant::now();
        let watermarks = std::mem::take(&mut self.uncommitted);
        let list = self.list_of(&watermarks).map_err(|error| error.to_string());
        crate::failpoint::at("kafka.before_release");
        let sent = list.and_then(|list| self.commits.send(&list));
        self.committing = Some(watermarks);
        if let Err(error) = sent {
            self.hear_commit(Some(error));
        }
    }

    pub(super) fn hear_commit(&mut self, failed: Option<String>) {
        let Some(committing) = self.committing.take() else { return };
        match failed {
            None => {
                crate::failpoint::at("kafka.released");
                self.parts.meter.commits.inc();
                self.trouble = None;
            }
            Some(text) => {
                self.parts.meter.commit_failures.inc();
                let name = &self.parts.meter.name;
                tracing::warn!(pipeline = %name, "a commit of offsets failed and will be sent again: {text}");
                for (place, upto) in committing {
                    let newest = self.uncommitted.entry(place).or_insert(upto);
                    *newest = (*newest).max(upto);
                }
            }
        }
    }
}
