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

use self::exactly::Deciding;
use self::fencing::Guarding;
use self::rebalancing::Revocation;
use super::claim::Claim;
use super::consumer::{Note, Reader, Rebalance, refusal_hint};
use super::decider::{Decider, Purpose};
use super::orders::{Orders, Start};
use super::queue::{Commits, Queue, cached_end};
use super::start;
use super::{KafkaFeed, Wiring};
use crate::config::model::Kafka;
use crate::config::pattern;
use crate::delivery::marker::Marker;
use crate::fault::Fault;
use crate::meter::{PipelineMeter, Waiting};
use crate::position::Stay;
use crate::source::Parts;
use crate::source::halts::{Halts, LaneThread};

mod committing;
mod deciding;
mod ending;
mod exactly;
mod fencing;
mod rebalancing;
mod taking_over;

pub(crate) use deciding::Exactly;
pub(crate) use fencing::Fencing;

/// How long one turn waits for the consumer's events.
const POLL_WAIT: Duration = Duration::from_millis(50);
/// Likewise while an epoch or a load waits for an answer of this thread, or may soon.
const DECISION_POLL_WAIT: Duration = Duration::from_millis(5);
/// A lane that does not go round for so long is told of: longer than a plugin's default time-out.
const LANE_PATIENCE: Duration = Duration::from_secs(60);
/// How long a read of a lane that was called may take to end: it ends at once, on a machine that has time for it.
const READ_PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked whether it has.
const READ_POLL: Duration = Duration::from_millis(1);
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

impl Lane {
    /// Has it read one more partition, whose queue the caller forwards to it afterwards.
    fn give(&self, start: Start) {
        self.orders.give(start);
        self.queue.wake();
    }

    /// Has it let go of stays; [`Orders::are_seen`] tells when it has.
    fn take_back(&self, stays: &[Stay]) {
        self.orders.take_back(stays);
        self.queue.wake();
    }

    /// Waits until the read is over that it is within, if it is.
    ///
    /// # Errors
    /// Retry, if it is not over by `deadline`.
    fn end_read(&self, deadline: Instant) -> Result<(), Fault> {
        let Some(read) = self.orders.read_under_way() else { return Ok(()) };
        self.queue.wake();
        while self.orders.read_under_way() == Some(read) {
            if Instant::now() >= deadline {
                return Err(Fault::retry("a lane does not come back from a read"));
            }
            std::thread::sleep(READ_POLL);
        }
        Ok(())
    }

    /// Has it end.
    fn end(&self) {
        self.orders.end();
        self.queue.wake();
    }
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
    rebalances: VecDeque<Rebalance>,
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
        let deciding = exactly.map(|exactly| {
            Deciding::new(exactly, Decider::new(&kafka, &parts.label_stem, Purpose::Decisions))
        });
        let guarding = fencing.map(|fencing| Guarding::new(fencing, &kafka, &parts.label_stem, &parts.meter));
        let mut lanes = Vec::new();
        for number in 0..lane_count {
            let queue = Queue::new(&reader).ok_or_else(|| Fault::retry("cannot make a librdkafka queue"))?;
            let (queue, orders) = (Arc::new(queue), Arc::new(Orders::default()));
            let feed = KafkaFeed::new(
                Arc::clone(&queue),
                Arc::clone(&orders),
                parts.ledger.clone(),
                parts.gathering,
            );
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
                Note::Rebalance(rebalance) => self.rebalances.push_back(rebalance),
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
