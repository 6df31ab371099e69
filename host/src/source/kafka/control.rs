//! The control thread: owns the consumer, hears of rebalances and errors, and does all commits.
//!
//! Reading (lanes) and releasing (control) are apart, so that commits flow while reads are blocked.
//! A partition is given up in this order: its lane lets go → the stage drops its unsent rows → what
//! was sent is waited for → its watermark is committed → it is unassigned (delivery.md §1 rule 4).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer as _;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use self::exactly::Deciding;
use self::fencing::Guarding;
use super::claim::Claim;
use super::consumer::{Note, Reader, refusal_hint};
use super::decider::Decider;
use super::membership::Membership;
use super::orders::{Orders, Start};
use super::queue::{Commits, Queue, cached_end};
use super::start;
use super::{KafkaFeed, Wiring};
use crate::config::model::Kafka;
use crate::config::pattern;
use crate::delivery::marker::Marker;
use crate::failpoint;
use crate::fault::{Fault, FaultKind};
use crate::meter::{PipelineMeter, Waiting};
use crate::planted::{Bug, planted};
use crate::position::{Epoch, Partition, Stay};
use crate::source::Parts;
use crate::source::halts::{Halts, LaneThread};

mod committing;
mod deciding;
mod ending;
mod exactly;
mod fencing;

pub(crate) use deciding::Exactly;
pub(crate) use fencing::Fencing;

/// How long one turn waits for the consumer's events.
const POLL_WAIT: Duration = Duration::from_millis(50);
/// Likewise while an epoch or a load waits for an answer of this thread, or may soon.
const DECISION_POLL_WAIT: Duration = Duration::from_millis(5);
/// How long a partition that is revoked may wait for its sent batches: well under the default
/// `max.poll.interval.ms` of 5 minutes, which is also how long the group waits for a member.
const REVOKE_DRAIN_MAX: Duration = Duration::from_secs(60);
/// A lane that does not go round for so long is told of: longer than a plugin's default time-out.
const LANE_PATIENCE: Duration = Duration::from_secs(60);
/// How long a broker in trouble is asked whether it is back.
const TROUBLE_ASK: Duration = Duration::from_millis(300);
/// How often lag and health are looked at.
const OBSERVE_EVERY: Duration = Duration::from_millis(500);
/// How long after a failed question to the broker it is asked again.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// One lane, as control sees it.
struct Lane {
    orders: Arc<Orders>,
    queue: Arc<Queue>,
    thread: Option<LaneThread>,
    /// Turns of its loop, and since when they stand still.
    turns: (u64, Instant),
    stuck: Option<Waiting>,
}

struct Held {
    stay: Stay,
    lane: usize,
}

impl Lane {
    /// Notices a lane that no longer goes round: Kafka cannot, because other queues are polled.
    fn look(&mut self, number: usize, meter: &Arc<PipelineMeter>) {
        let turns = self.orders.turns();
        if turns != self.turns.0 {
            self.turns = (turns, Instant::now());
            self.stuck = None;
        } else if self.thread.is_some() && self.stuck.is_none() && self.turns.1.elapsed() >= LANE_PATIENCE {
            let what = format!("lane {number} does not answer");
            tracing::error!(pipeline = %meter.name, since_s = LANE_PATIENCE.as_secs(), "{what}");
            self.stuck = Some(Waiting::begin(meter, what));
        }
    }
}

/// Partitions on their way out.
struct Revocation {
    list: TopicPartitionList,
    stays: Vec<Stay>,
    /// The group has given them to others already: nothing may be committed.
    lost: bool,
    since: Instant,
    /// The stage has dropped their unsent rows.
    dropped: bool,
}

pub(super) struct Control {
    kafka: Kafka,
    marker: Marker,
    parts: Parts,
    reader: Arc<Reader>,
    commits: Commits,
    claim: Claim,
    rule: start::Rule,
    lanes: Vec<Lane>,
    held: BTreeMap<(String, i32), Held>,
    /// Topics of which StarRocks was told that they are read.
    marked: BTreeSet<String>,
    epochs: u64,
    rebalances: VecDeque<Note>,
    revoking: Option<Revocation>,
    /// Watermarks (inclusive) that have still to be committed.
    uncommitted: BTreeMap<(String, i32), i64>,
    /// What the unanswered commit carries.
    committing: Option<BTreeMap<(String, i32), i64>>,
    committed_at: Instant,
    observed_at: Instant,
    asked_at: Option<Instant>,
    /// The broker is in trouble, since then.
    trouble: Option<Waiting>,
    waiting_for_group: Option<Waiting>,
    halts: Halts,
    /// Since when an assignment waits for an epoch.
    assigned_at: Option<Instant>,
    /// With exactly_once: nothing is committed but by its decisions.
    deciding: Option<Deciding>,
    /// With Primary Key tables, at least once: loads ask before their bodies leave.
    guarding: Option<Guarding>,
}

impl Control {
    /// Connects, checks that topics are there, and starts the lanes.
    pub(super) fn start<S>(
        wiring: Wiring,
        lane_count: usize,
        rule: start::Rule,
        reader: Arc<Reader>,
        spawn_lane: S,
    ) -> Result<Control, Fault>
    where
        S: Fn(usize, KafkaFeed) -> std::io::Result<LaneThread>,
    {
        let Wiring { kafka, marker, parts, exactly, fencing } = wiring;
        let deciding = exactly.map(|exactly| Deciding::new(exactly, Decider::new(&kafka, &parts.label_stem)));
        let guarding = fencing.map(|fencing| Guarding::new(fencing, &kafka, &parts.label_stem, &parts.meter));
        let mut lanes = Vec::new();
        for number in 0..lane_count {
            let queue = Queue::new(&reader).ok_or_else(|| Fault::retry("cannot make a librdkafka queue"))?;
            let (queue, orders) = (Arc::new(queue), Arc::new(Orders::default()));
            let feed = KafkaFeed::new(Arc::clone(&queue), Arc::clone(&orders), parts.gathering);
            let thread = spawn_lane(number, feed)
                .map_err(|error| Fault::retry("cannot start a lane's thread").caused_by(error))?;
            let turns = (0, Instant::now());
            lanes.push(Lane { orders, queue, thread: Some(thread), turns, stuck: None });
        }
        let now = Instant::now();
        Ok(Control {
            claim: Claim::nothing(&parts.label_stem),
            rule,
            commits: Commits::new(&reader)
                .ok_or_else(|| Fault::retry("cannot make a librdkafka queue for commits"))?,
            reader,
            lanes,
            held: BTreeMap::new(),
            marked: BTreeSet::new(),
            epochs: 0,
            rebalances: VecDeque::new(),
            revoking: None,
            uncommitted: BTreeMap::new(),
            committing: None,
            committed_at: now,
            observed_at: now,
            asked_at: None,
            trouble: None,
            waiting_for_group: None,
            halts: Halts::of(&parts, "nothing was committed past them"),
            assigned_at: None,
            deciding,
            guarding,
            kafka,
            marker,
            parts,
        })
    }

    /// Reads until it is told to stop or something halts the pipeline, then drains.
    pub(super) fn run(mut self) -> Result<(), Fault> {
        let topics = pattern::subscription(&self.kafka.topics);
        let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
        let subscribed = self.reader.subscribe(&topics);
        let subscribed =
            subscribed.map_err(|error| Fault::retry("cannot subscribe to the topics").caused_by(error));
        let group = &self.kafka.group;
        tracing::info!(pipeline = %self.parts.meter.name, %group, ?topics, "waiting for the group");
        self.waiting_for_group = Some(Waiting::begin(&self.parts.meter, format!("consumer group `{group}`")));
        let ended = subscribed.and_then(|()| self.turn_until_stopped());
        self.end(ended)
    }

    fn turn_until_stopped(&mut self) -> Result<(), Fault> {
        while !self.parts.stop.is_requested() {
            self.turn()?;
        }
        Ok(())
    }

    /// One turn: hear, act, commit, look around.
    fn turn(&mut self) -> Result<(), Fault> {
        self.poll(self.poll_wait())?;
        self.check_halts()?;
        if self.revoking.is_none() {
            self.next_rebalance()?;
        }
        self.advance_revocation()?;
        self.release()?;
        self.observe();
        Ok(())
    }

    fn poll_wait(&self) -> Duration {
        let is_awaited = self.is_deciding() || self.guarding.as_ref().is_some_and(Guarding::is_busy);
        if is_awaited { DECISION_POLL_WAIT } else { POLL_WAIT }
    }

    /// An epoch is on its way.
    fn is_deciding(&self) -> bool {
        self.deciding.as_ref().is_some_and(Deciding::is_busy)
    }

    /// Tells the group what is safe, as the pipeline's promise wants it.
    fn release(&mut self) -> Result<(), Fault> {
        if self.deciding.is_some() {
            return self.decide_when_due();
        }
        self.commit_when_due()
    }

    fn poll(&mut self, wait: Duration) -> Result<(), Fault> {
        match self.reader.poll(wait) {
            // An error is among the notes, too, with its text.
            None | Some(Err(_)) => {}
            Some(Ok(message)) => {
                use rdkafka::Message as _;
                return Err(Fault::halt(
                    format!(
                        "a record of {}[{}] came past the lanes' queues",
                        message.topic(),
                        message.partition()
                    ),
                    "this is a defect of tidemill, nothing was lost: restart, and report it",
                ));
            }
        }
        while let Some(failed) = self.commits.answer() {
            self.hear_commit(failed);
        }
        while let Some(note) = self.reader.context().take() {
            match note {
                Note::Assigned(_) | Note::Revoked(_) | Note::RebalanceFailed(_) => {
                    self.rebalances.push_back(note);
                }
                Note::Trouble { fatal, text, code } => {
                    if let Some(hint) = code.and_then(refusal_hint) {
                        return Err(Fault::halt(format!("kafka: {text}"), hint));
                    }
                    let gone = code == Some(RDKafkaErrorCode::AllBrokersDown);
                    if fatal || gone || !self.is_assigned() {
                        self.hear_trouble(fatal, &text)?;
                    } else {
                        tracing::debug!("kafka: {text}");
                    }
                }
            }
        }
        Ok(())
    }

    fn is_assigned(&self) -> bool {
        !self.held.is_empty()
    }

    fn hear_trouble(&mut self, fatal: bool, text: &str) -> Result<(), Fault> {
        if fatal {
            return Err(Fault::halt(
                format!("kafka: {text}"),
                "the client cannot go on: restart the pipeline, and if it comes again look at the brokers' log",
            ));
        }
        if self.trouble.is_none() {
            tracing::warn!(pipeline = %self.parts.meter.name, "kafka: {text}; waiting and trying again");
            self.trouble = Some(Waiting::begin(&self.parts.meter, format!("kafka: {text}")));
        }
        Ok(())
    }

    /// Anything in the pipeline that cannot go on ends it: lanes, loads, dead letters, a lost ticket.
    fn check_halts(&mut self) -> Result<(), Fault> {
        self.halts.check(self.lanes.iter_mut().map(|lane| &mut lane.thread))
    }

    fn next_rebalance(&mut self) -> Result<(), Fault> {
        if self.asked_at.is_some_and(|at| at.elapsed() < ASK_AGAIN_AFTER) {
            return Ok(());
        }
        if let Some(deciding) = self.deciding.as_ref().filter(|_| !self.rebalances.is_empty()) {
            // No epoch outlives the assignment that it began under.
            deciding.close();
            if deciding.is_busy() && matches!(self.rebalances.front(), Some(Note::Assigned(_))) {
                if self.assigned_at.get_or_insert_with(Instant::now).elapsed() >= REVOKE_DRAIN_MAX {
                    deciding.abandon();
                }
                return Ok(());
            }
        }
        self.assigned_at = None;
        match self.rebalances.pop_front() {
            None => Ok(()),
            Some(Note::Assigned(list)) => match self.assign(&list) {
                Ok(()) => {
                    self.asked_at = None;
                    Ok(())
                }
                Err(fault) if fault.kind == FaultKind::Retry && !self.is_member() => {
                    // The group has put us out while its assignment waited for our answer. librdkafka joins again
                    // only after that answer.
                    tracing::warn!(pipeline = %self.parts.meter.name, "{}; joining the group again", fault.story());
                    self.reader
                        .incremental_assign(&TopicPartitionList::new())
                        .map_err(|error| Fault::halt("cannot assign partitions", RESTART).caused_by(error))
                }
                Err(fault) if fault.kind == FaultKind::Retry => {
                    self.hear_trouble(false, &fault.story())?;
                    self.rebalances.push_front(Note::Assigned(list));
                    self.asked_at = Some(Instant::now());
                    Ok(())
                }
                Err(fault) => Err(fault),
            },
            Some(Note::Revoked(list)) => {
                self.begin_revocation(&list);
                Ok(())
            }
            Some(Note::RebalanceFailed(code)) => Err(Fault::halt(
                format!("joining the consumer group failed: {code}"),
                "all members of a group need the same assignment strategy (tidemill: cooperative-sticky); \
                 give the pipeline a group of its own",
            )),
            Some(Note::Trouble { .. }) => Ok(()),
        }
    }

    fn assign(&mut self, list: &TopicPartitionList) -> Result<(), Fault> {
        let named: Vec<(String, i32)> =
            list.elements().iter().map(|one| (one.topic().to_owned(), one.partition())).collect();
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

    fn is_member(&self) -> bool {
        Membership::of(&self.reader).is_some_and(|membership| membership.is_known())
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
        chosen.orders.give(Start { stay: stay.clone(), after });
        if !chosen.queue.take_partition(topic, partition) {
            return Err(Fault::retry(format!("cannot forward {topic}[{partition}] to its lane")));
        }
        self.held.insert((topic.to_owned(), partition), Held { stay, lane });
        Ok(())
    }

    fn begin_revocation(&mut self, list: &TopicPartitionList) {
        // The answer to an assignment that waited while the group put us out has cleared librdkafka's own mark.
        let lost = self.reader.assignment_lost() || !self.is_member();
        let (mut stays, mut given) = (Vec::new(), TopicPartitionList::new());
        for element in list.elements() {
            let place = (element.topic().to_owned(), element.partition());
            // One that was never taken, because the group had put us out before, is not to be given back.
            if let Some(held) = self.held.get(&place) {
                self.lanes[held.lane].orders.take_back(std::slice::from_ref(&held.stay));
                stays.push(held.stay.clone());
                given.add_partition(&place.0, place.1);
            }
        }
        let name = &self.parts.meter.name;
        tracing::info!(pipeline = %name, partitions = stays.len(), lost, "giving partitions up");
        failpoint::at("kafka.revoking");
        self.parts.giving_up.give_up(&stays);
        if let Some(deciding) = &self.deciding {
            deciding.close();
        }
        self.revoking = Some(Revocation { list: given, stays, lost, since: Instant::now(), dropped: false });
    }

    fn advance_revocation(&mut self) -> Result<(), Fault> {
        let Some(mut revoking) = self.revoking.take() else { return Ok(()) };
        let late = revoking.since.elapsed() >= REVOKE_DRAIN_MAX;
        if let Some(deciding) = self.deciding.as_mut().filter(|_| late || revoking.lost) {
            if deciding.is_unknown() && !revoking.lost {
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
        if !quiet {
            let name = &self.parts.meter.name;
            tracing::warn!(
                pipeline = %name, lost = revoking.lost, waited_s = revoking.since.elapsed().as_secs(),
                "partitions given up while batches of them were on their way{}",
                if self.deciding.is_some() { "" } else { ": their rows may come twice" }
            );
        }
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

    /// Lag from the read position, not from the high watermark: control records of transactional
    /// topics keep a gap there (delivery.md §1 rule 8).
    fn lag(&self) -> i64 {
        let Ok(positions) = self.reader.position() else { return 0 };
        let lags = positions.elements().into_iter().filter_map(|element| {
            let place = (element.topic().to_owned(), element.partition());
            let start = self.parts.ledger.opened_upto(&self.held.get(&place)?.stay)? + 1;
            let position = element.offset().to_raw().unwrap_or(-1).max(start);
            let end = cached_end(&self.reader, element.topic(), element.partition())?;
            Some((end - position).max(0))
        });
        lags.sum()
    }

    /// Librdkafka tells when brokers go, not when they come back, and an idle pipeline has no commit
    /// that would show it.
    fn look_for_the_end_of_trouble(&mut self) {
        if self.trouble.is_none() || !self.rebalances.is_empty() {
            return;
        }
        let topic = self.kafka.topics.iter().find(|topic| !pattern::is_pattern(topic));
        let topic = topic.map(String::as_str);
        if self.reader.fetch_metadata(topic, TROUBLE_ASK).is_ok() {
            tracing::info!(pipeline = %self.parts.meter.name, "kafka answers again");
            self.trouble = None;
        }
    }

    fn observe(&mut self) {
        if self.observed_at.elapsed() < OBSERVE_EVERY {
            return;
        }
        self.observed_at = Instant::now();
        self.look_for_the_end_of_trouble();
        let lag = self.lag();
        let meter = &self.parts.meter;
        meter.lag.set(lag);
        if lag == 0 && self.parts.ledger.open_spans() == 0 {
            meter.health.progress();
        }
        let stalled = self.is_assigned() && meter.health.since_progress() >= self.parts.stall_after;
        meter.stalled.set(i64::from(stalled));
        for (number, lane) in self.lanes.iter_mut().enumerate() {
            lane.look(number, &self.parts.meter);
        }
    }
}

const RESTART: &str = "this is a defect of tidemill, nothing was lost: restart, and report it";

fn place_of(stay: &Stay) -> (String, i32) {
    (stay.partition.source.to_string(), i32::try_from(stay.partition.number).unwrap_or(i32::MAX))
}
