//! Partitions that come and go: what the group asks for is done one rebalance after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::{ASK_AGAIN_AFTER, Control, Held, Lane, READ_PATIENCE, RESTART, exactly, place_of};
use crate::failpoint;
use crate::fault::{Fault, FaultKind};
use crate::planted::{Bug, planted};
use crate::position::{Epoch, Partition, Stay};
use crate::source::kafka::consumer::Rebalance;
use crate::source::kafka::membership::Membership;
use crate::source::kafka::orders::Start;
use crate::source::kafka::start;

/// How long a partition that is revoked may wait for its sent batches: well under the default
/// `max.poll.interval.ms` of 5 minutes, which is also how long the group waits for a member.
const REVOKE_DRAIN_MAX: Duration = Duration::from_secs(60);

/// Partitions on their way out.
pub(super) struct Revocation {
    list: TopicPartitionList,
    stays: Vec<Stay>,
    /// The group has given them to others already: nothing may be committed.
    lost: bool,
    since: Instant,
    /// Of these, loads go on trying.
    trying: Vec<Stay>,
    /// The stage has dropped their unsent rows.
    dropped: bool,
}

impl Control {
    pub(super) fn next_rebalance(&mut self) -> Result<(), Fault> {
        if self.asked_at.is_some_and(|at| at.elapsed() < ASK_AGAIN_AFTER) {
            return Ok(());
        }
        if self.waits_for_epoch()? {
            return Ok(());
        }
        self.assigned_at = None;
        // Tried again by a member that was put out meanwhile, it would undo what its successor has begun.
        if self.joins_again()? {
            return Ok(());
        }
        match self.rebalances.pop_front() {
            None => Ok(()),
            Some(Rebalance::Assigned(list)) => match self.assign(&list) {
                Ok(()) => {
                    self.asked_at = None;
                    Ok(())
                }
                Err(fault) if fault.kind == FaultKind::Retry && !self.is_member() => {
                    // The group has put us out while its assignment waited for our answer. librdkafka joins again
                    // only after that answer.
                    tracing::warn!(pipeline = %self.parts.meter.name, "{}; joining the group again", fault.story());
                    self.join_again()
                }
                Err(fault) if fault.kind == FaultKind::Retry => {
                    self.hear_trouble(false, &fault.story())?;
                    self.rebalances.push_front(Rebalance::Assigned(list));
                    self.asked_at = Some(Instant::now());
                    Ok(())
                }
                Err(fault) => Err(fault),
            },
            Some(Rebalance::Revoked(list)) => {
                self.begin_revocation(&list);
                Ok(())
            }
            Some(Rebalance::Failed(code)) => Err(Fault::halt(
                format!("joining the consumer group failed: {code}"),
                "all members of a group need the same assignment strategy (tidemill: cooperative-sticky); \
                 give the pipeline a group of its own",
            )),
        }
    }

    /// No epoch outlives the assignment that it began under: none begins any more, and the next assignment waits for the
    /// one that runs. True while it does, or when it was answered because the group waits for us no more.
    fn waits_for_epoch(&mut self) -> Result<bool, Fault> {
        let Some(deciding) = self.deciding.as_ref().filter(|_| !self.rebalances.is_empty()) else {
            return Ok(false);
        };
        deciding.close();
        if !deciding.is_busy() || !matches!(self.rebalances.front(), Some(Rebalance::Assigned(_))) {
            return Ok(false);
        }
        if self.assigned_at.get_or_insert_with(Instant::now).elapsed() >= REVOKE_DRAIN_MAX {
            deciding.abandon();
        }
        if self.joins_again()? {
            self.assigned_at = None;
        }
        Ok(true)
    }

    fn assign(&mut self, list: &TopicPartitionList) -> Result<(), Fault> {
        let named: Vec<(String, i32)> =
            list.elements().iter().map(|one| (one.topic().to_owned(), one.partition())).collect();
        // What a read brings that began under an earlier stay of these partitions, and how far it has come, would be taken
        // for the next one's.
        let deadline = Instant::now() + READ_PATIENCE;
        self.lanes.iter().try_for_each(|lane| lane.end_read(deadline))?;
        self.settle_own()?;
        let marker = &self.marker;
        let gone = |topic: &str| marker.has_read(topic).then(|| marker.offsets_gone(topic));
        let starts = start::find(&self.reader, &named, &mut self.rule, gone)?;
        self.claim(&starts)?;
        failpoint::at("kafka.assigned");
        let mut assignment = TopicPartitionList::new();
        // From here on nothing passes by itself: a second try would hold partitions twice.
        for ((topic, partition), found) in &starts {
            self.hold(topic, *partition, found.offset).map_err(Fault::halting)?;
            assignment
                .add_partition_offset(topic, *partition, Offset::Offset(found.offset))
                .map_err(|error| Fault::halt("cannot name a start offset", RESTART).caused_by(error))?;
        }
        self.reader
            .incremental_assign(&assignment)
            .map_err(|error| Fault::halt("cannot assign partitions", RESTART).caused_by(error))?;
        // From here on the group has offsets of these topics.
        let fresh = starts.keys().map(|(topic, _)| topic.clone()).collect::<BTreeSet<_>>();
        let fresh: Vec<_> = fresh.difference(&self.marked).cloned().collect();
        if !fresh.is_empty() {
            self.marked.extend(fresh.iter().cloned());
            self.marker.keep(fresh);
        }
        self.waiting_for_group = None;
        self.trouble = None;
        self.parts.meter.rebalances.inc();
        self.parts.meter.partitions.set(self.held.len() as i64);
        self.parts.meter.health.started();
        let name = &self.parts.meter.name;
        tracing::info!(pipeline = %name, added = starts.len(), partitions = self.held.len(), "assigned");
        Ok(())
    }

    pub(super) fn is_member(&self) -> bool {
        Membership::of(&self.reader).is_some_and(|membership| membership.is_known())
    }

    /// The group has put us out, whatever it has told yet.
    pub(super) fn has_lost_membership(&self) -> bool {
        self.reader.assignment_lost() || !self.is_member()
    }

    /// Pins where reading begins.
    fn claim(&mut self, starts: &start::Starts) -> Result<(), Fault> {
        if self.deciding.is_some() {
            return self.take_over(starts);
        }
        exactly::refuse_undone(starts)?;
        if self.guarding.is_some() {
            return self.take_over_guarded(starts);
        }
        let claims = starts.iter().filter(|(_, found)| found.committed.is_none());
        let claims: BTreeMap<_, _> = claims.map(|(place, found)| (place.clone(), found.offset - 1)).collect();
        self.commit_now(&claims)
    }

    /// Begins a stay: the ledger knows where it starts, the least busy lane reads it.
    fn hold(&mut self, topic: &str, partition: i32, offset: i64) -> Result<(), Fault> {
        self.epochs += 1;
        let number = u32::try_from(partition)
            .map_err(|error| Fault::retry("negative partition number").caused_by(error))?;
        let stay = Stay { partition: Partition { source: topic.into(), number }, epoch: Epoch(self.epochs) };
        let after = offset - 1;
        self.parts.ledger.begin(stay.clone(), after);
        let least = self.lanes.iter().enumerate().min_by_key(|(_, lane)| lane.orders.len());
        let Some((lane, chosen)) = least else { return Err(Fault::retry("no lane to read with")) };
        chosen.give(Start { stay: stay.clone(), after });
        if !chosen.queue.take_partition(topic, partition) {
            return Err(Fault::retry(format!("cannot forward {topic}[{partition}] to its lane")));
        }
        self.held.insert((topic.to_owned(), partition), Held { stay, lane });
        Ok(())
    }

    fn begin_revocation(&mut self, list: &TopicPartitionList) {
        // The answer to an assignment that waited while the group put us out has cleared librdkafka's own mark.
        let lost = self.has_lost_membership();
        let (mut stays, mut given) = (Vec::new(), TopicPartitionList::new());
        for element in list.elements() {
            let place = (element.topic().to_owned(), element.partition());
            // One that was never taken, because the group had put us out before, is not to be given back.
            if let Some(held) = self.held.get(&place) {
                self.lanes[held.lane].take_back(std::slice::from_ref(&held.stay));
                stays.push(held.stay.clone());
                given.add_partition(&place.0, place.1);
            }
        }
        let name = &self.parts.meter.name;
        tracing::info!(pipeline = %name, partitions = stays.len(), lost, "giving partitions up");
        failpoint::at("kafka.revoking");
        if let Some(deciding) = &self.deciding {
            deciding.close();
        }
        let (since, trying) = (Instant::now(), stays.clone());
        self.revoking = Some(Revocation { list: given, stays, lost, since, trying, dropped: false });
    }

    /// Has loads let go of rows that are known not to be loaded: at once, but where the next owner would load again what is
    /// durable behind them, only when there is no more time to try (decision 0034).
    fn let_go(&self, revoking: &mut Revocation, late: bool) {
        let trying = std::mem::take(&mut revoking.trying);
        // An epoch is loaded as a whole or not at all.
        if late || revoking.lost || self.deciding.is_some() {
            return self.parts.giving_up.give_up(&trying);
        }
        let ledger = &self.parts.ledger;
        revoking.trying = self.parts.giving_up.give_up_at_rest(trying, |stay| !ledger.would_repeat(stay));
    }

    /// Tells of partitions that are given up although rows of them are on their way, or durable behind their watermarks.
    fn warn_of_repeats(&self, revoking: &Revocation) {
        let ledger = &self.parts.ledger;
        let decides = self.deciding.is_some();
        let repeats = |stay: &&Stay| !ledger.is_quiet(stay) || (!decides && ledger.would_repeat(stay));
        let partitions = revoking.stays.iter().filter(repeats).count();
        if partitions == 0 {
            return;
        }
        if !decides {
            self.parts.meter.possible_duplicate_partitions.inc_by(partitions as u64);
        }
        tracing::warn!(
            pipeline = %self.parts.meter.name, partitions, lost = revoking.lost,
            waited_s = revoking.since.elapsed().as_secs(),
            "partitions given up while batches of them were on their way{}",
            if decides { "" } else { ": their rows may come twice" }
        );
    }

    pub(super) fn advance_revocation(&mut self) -> Result<(), Fault> {
        let Some(mut revoking) = self.revoking.take() else { return Ok(()) };
        // The group may put us out while we give them up in order, which librdkafka does not tell: nobody waits then.
        if !revoking.lost && self.has_lost_membership() {
            revoking.lost = true;
            let name = &self.parts.meter.name;
            tracing::info!(
                pipeline = %name, partitions = revoking.stays.len(), lost = true, "giving partitions up that are lost meanwhile"
            );
        }
        let late = revoking.since.elapsed() >= REVOKE_DRAIN_MAX;
        self.let_go(&mut revoking, late);
        if let Some(deciding) = self.deciding.as_mut().filter(|_| late || revoking.lost) {
            if deciding.may_have_decided() && !revoking.lost {
                return Err(Fault::halt(
                    "partitions have to be given up, and the brokers do not say whether the last epoch was decided",
                    "nothing is lost or doubled: whoever gets them finds out; start again",
                ));
            }
            deciding.leave_undecided();
            deciding.abandon();
        }
        if !revoking.dropped {
            // A lane that has ended looks at no orders, and reads nothing.
            let seen = |lane: &Lane| lane.thread.is_none() || lane.orders.are_seen();
            if !late && !self.lanes.iter().all(seen) {
                self.revoking = Some(revoking);
                return Ok(());
            }
            // Nobody waits for the rows of partitions that are lost, or that took too long.
            let finish = !revoking.lost && !late;
            let dropped = self.parts.stage.forget(self.parts.pipeline, revoking.stays.clone(), finish)?;
            self.parts.meter.leave(&self.parts.meter.records_given_up, dropped);
            revoking.dropped = true;
        }
        if let Some(deciding) = &self.deciding {
            deciding.forget_letters(&revoking.stays);
        }
        let quiet = revoking.stays.iter().all(|stay| self.parts.ledger.is_quiet(stay));
        // A commit that is not answered might be sent again by librdkafka, over the next owner's.
        let unfinished = !quiet || self.committing.is_some() || self.is_deciding();
        if unfinished && !late && !revoking.lost {
            self.revoking = Some(revoking);
            return Ok(());
        }
        self.warn_of_repeats(&revoking);
        self.end_stays(&revoking);
        failpoint::at("kafka.given_up");
        self.reader
            .incremental_unassign(&revoking.list)
            .map_err(|error| Fault::retry("cannot unassign partitions").caused_by(error))?;
        self.parts.meter.rebalances.inc();
        self.parts.meter.partitions.set(self.held.len() as i64);
        Ok(())
    }

    /// Commits the last watermarks, unless the partitions were lost, and forgets the stays.
    fn end_stays(&mut self, revoking: &Revocation) {
        if planted(Bug::RevokedStillCommitted) {
            revoking.stays.iter().for_each(|stay| drop(self.held.remove(&place_of(stay))));
            return self.parts.giving_up.done(&revoking.stays);
        }
        let mut last = BTreeMap::new();
        let written = if revoking.lost { Ok(()) } else { self.write_last(&revoking.stays) };
        for stay in &revoking.stays {
            let place = place_of(stay);
            if let Some(ended) = self.parts.ledger.end(stay) {
                last.insert(place.clone(), ended.watermark.upto);
            }
            self.held.remove(&place);
            self.uncommitted.remove(&place);
            if let Some(committing) = &mut self.committing {
                committing.remove(&place);
            }
        }
        self.parts.giving_up.done(&revoking.stays);
        if let Some(deciding) = &mut self.deciding {
            // What was decided stands in Kafka already.
            deciding.gave_up(&revoking.stays);
            return;
        }
        if revoking.lost {
            return;
        }
        let committed = if self.guarding.is_some() { written } else { self.commit_now(&last) };
        if let Err(fault) = committed {
            self.parts.meter.commit_failures.inc();
            let name = &self.parts.meter.name;
            tracing::warn!(pipeline = %name, "the last commit of revoked partitions failed: {}", fault.story());
        }
    }

    /// Answers the assignment that is next if the group has put us out while it waited: librdkafka tells of the loss,
    /// and joins again, only behind that answer. True if it did.
    pub(super) fn joins_again(&mut self) -> Result<bool, Fault> {
        let is_over = matches!(self.rebalances.front(), Some(Rebalance::Assigned(_))) && !self.is_member();
        if is_over {
            self.rebalances.pop_front();
            tracing::warn!(
                pipeline = %self.parts.meter.name,
                "put out of the group while an assignment waited for its answer; joining again"
            );
            self.join_again()?;
        }
        Ok(is_over)
    }

    /// Answers an assignment of a membership that is over: nothing of it is taken.
    fn join_again(&self) -> Result<(), Fault> {
        self.reader
            .incremental_assign(&TopicPartitionList::new())
            .map_err(|error| Fault::halt("cannot assign partitions", RESTART).caused_by(error))
    }
}
