//! What the control thread does for loads into Primary Key tables (delivery.md §2): it answers their fence by commits,
//! and ends what the members before had open, before it claims their partitions.
//!
//! The commits are Kafka transactions, which carry a generation of the group. A plain commit takes its generation when
//! it is sent, and an empty group takes one of anybody: a claim that a member of before sends late would then stand
//! over its successor's (decision 0028).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::task::JoinSet;

use super::{Control, place_of};
use crate::config::model::{Isolation, Kafka};
use crate::delivery::carry::Carrier;
use crate::delivery::take_over::{Found, end_if_open};
use crate::fault::{Fault, FaultKind};
use crate::meter::PipelineMeter;
use crate::position::Stay;
use crate::retry::{Backoff, Pace};
use crate::sink::starrocks::client::Client;
use crate::sink::{Destination, Fence};
use crate::source::kafka::claim::Claim;
use crate::source::kafka::consumer::Reader;
use crate::source::kafka::decider::{Decider, Purpose, RIGHTS, Written};
use crate::source::kafka::fence::{GroupFence, Question, Questions};
use crate::source::kafka::membership::Membership;
use crate::source::kafka::start::Starts;

/// How long the labels of the members before are asked for at a time; what is open then is asked for again.
const ENDING_PATIENCE: Duration = Duration::from_secs(10);
/// Labels that are asked for at the same time.
const ASKED_AT_A_TIME: usize = 16;
/// How long after a commit that failed the next one is sent.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// Tries to begin transactions, of ten seconds each, after which brokers that answer otherwise are taken to have none:
/// a single broker with the default replication of `__transaction_state` never has.
const BEGINS_MAX: u32 = 3;

/// What the fence of a pipeline needs of the rest of it.
pub(crate) struct Fencing {
    fence: Arc<GroupFence>,
    questions: Questions,
    /// Asks for labels and cancels them.
    carrier: Carrier,
    /// A table of the pipeline: labels are the database's.
    destination: Arc<Destination>,
}

impl Fencing {
    /// For a pipeline that loads `destination`, among others.
    pub(crate) fn new(
        pipeline: &str,
        meter: &Arc<PipelineMeter>,
        carrier: &Carrier,
        destination: &Arc<Destination>,
    ) -> Fencing {
        let (fence, questions) = GroupFence::new(carrier.stem(pipeline), Arc::clone(meter));
        Fencing { fence, questions, carrier: carrier.clone(), destination: Arc::clone(destination) }
    }

    /// What loads ask.
    pub(crate) fn fence(&self) -> Arc<dyn Fence> {
        Arc::clone(&self.fence) as Arc<dyn Fence>
    }
}

/// How offsets are written.
enum Writer {
    /// In transactions, none of which has come through yet: so many tries.
    Untried(Decider, u32),
    Transactions(Decider),
    /// By plain commits: the brokers have no transactions for us.
    Plain,
}

/// Offsets (the next one to read) and the texts beside them.
type Offsets = BTreeMap<(String, i32), (i64, String)>;

/// Its state on the control thread.
pub(super) struct Guarding {
    fence: Arc<GroupFence>,
    /// None when nothing is answered any more.
    questions: Option<Questions>,
    carrier: Carrier,
    destination: Arc<Destination>,
    writer: Writer,
    /// Asked, and not answered yet.
    asked: Vec<Question>,
    failed_at: Option<Instant>,
}

impl Guarding {
    pub(super) fn new(parts: Fencing, kafka: &Kafka, label_stem: &str, meter: &PipelineMeter) -> Guarding {
        let Fencing { fence, questions, carrier, destination } = parts;
        let writer = match kafka.isolation {
            Isolation::ReadCommitted => Writer::Untried(Decider::new(kafka, label_stem, Purpose::Claims), 0),
            // Offsets of a transaction that has not ended would be read past.
            Isolation::ReadUncommitted => {
                warn_of_plain_commits(meter, "isolation = \"read_uncommitted\" reads past transactions");
                Writer::Plain
            }
        };
        Guarding {
            fence,
            questions: Some(questions),
            carrier,
            destination,
            writer,
            asked: Vec::new(),
            failed_at: None,
        }
    }

    /// Whether a load is on its way, and may ask at any moment.
    pub(super) fn is_busy(&self) -> bool {
        self.fence.is_busy()
    }

    /// Nothing is answered any more.
    pub(super) fn end(&mut self) {
        self.questions = None;
        self.asked.clear();
    }

    /// Has the brokers end what was left open, for whoever comes next.
    pub(super) fn end_transactions(&mut self) {
        match &mut self.writer {
            Writer::Untried(decider, _) | Writer::Transactions(decider) => decider.end(),
            Writer::Plain => {}
        }
    }

    /// Has the brokers end what a transaction of ours left open, or its offsets could not be read. Finds out whether
    /// there are transactions for us.
    pub(super) fn settle(&mut self, meter: &PipelineMeter) -> Result<(), Fault> {
        let fault = match &mut self.writer {
            Writer::Plain => return Ok(()),
            Writer::Transactions(decider) => return decider.settle(),
            Writer::Untried(decider, tries) => match decider.settle() {
                Ok(()) => None,
                Err(fault) if fault.kind == FaultKind::Retry && *tries + 1 < BEGINS_MAX => {
                    *tries += 1;
                    return Err(fault);
                }
                Err(fault) => Some(fault),
            },
        };
        let writer = std::mem::replace(&mut self.writer, Writer::Plain);
        match (fault, writer) {
            (None, Writer::Untried(decider, _)) => self.writer = Writer::Transactions(decider),
            (Some(fault), _) => warn_of_plain_commits(meter, &fault.retold().what),
            (None, Writer::Transactions(_) | Writer::Plain) => {}
        }
        Ok(())
    }

    fn write(&mut self, reader: &Arc<Reader>, offsets: &Offsets) -> Written {
        let list = match list_of(offsets) {
            Ok(list) => list,
            Err(error) => {
                let fault = Fault::halt("cannot name the offsets of a commit", "report this defect");
                return Written::No(fault.caused_by(error));
            }
        };
        match &mut self.writer {
            Writer::Untried(decider, _) | Writer::Transactions(decider) => {
                decider.write_offsets(reader, &list, None, || !reader.assignment_lost())
            }
            Writer::Plain => write_plainly(reader, &list),
        }
    }
}

fn warn_of_plain_commits(meter: &PipelineMeter, why: &str) {
    meter.fence.unfenced.set(1);
    tracing::warn!(
        pipeline = %meter.name, why,
        "Primary Key tables are guarded by plain commits: one case is open in which old rows come back \
         (docs/guarantees.md); grant {RIGHTS}"
    );
}

/// A plain commit. Its generation is looked at before and after: the same member of the same generation has sent it.
fn write_plainly(reader: &Reader, list: &TopicPartitionList) -> Written {
    let not_ours = || Fault::retry("this process is no member of its group just now");
    let member = || Membership::of(reader).filter(Membership::is_known).map(|found| found.identity());
    let Some(before) = member().filter(|_| !reader.assignment_lost()) else { return Written::No(not_ours()) };
    match reader.commit(list, CommitMode::Sync) {
        Ok(()) if member().as_ref() == Some(&before) && !reader.assignment_lost() => Written::Yes,
        Ok(()) => Written::Unknown(not_ours()),
        Err(error) => Written::Unknown(Fault::retry("cannot commit offsets").caused_by(error)),
    }
}

fn list_of(offsets: &Offsets) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::new();
    for ((topic, partition), (offset, text)) in offsets {
        let mut element = list.add_partition(topic, *partition);
        element.set_offset(Offset::Offset(*offset))?;
        element.set_metadata(text);
    }
    Ok(list)
}

/// Ends what is open of `labels`; done when all are decided.
async fn end_all(
    (client, destination): (&Client, &Arc<Destination>),
    labels: BTreeSet<String>,
    meter: &Arc<PipelineMeter>,
) -> Result<(), Fault> {
    let mut labels = labels.into_iter();
    let mut ending = JoinSet::new();
    loop {
        while ending.len() < ASKED_AT_A_TIME
            && let Some(label) = labels.next()
        {
            ending.spawn(end(client.clone(), Arc::clone(destination), label, Arc::clone(meter)));
        }
        match ending.join_next().await {
            None => return Ok(()),
            Some(Ok(ended)) => ended?,
            Some(Err(panic)) => return Err(Fault::retry("asking for a label panicked").caused_by(panic)),
        }
    }
}

async fn end(
    client: Client,
    destination: Arc<Destination>,
    label: String,
    meter: Arc<PipelineMeter>,
) -> Result<(), Fault> {
    let mut polling = Backoff::new(Pace { base: Duration::from_millis(50), ..Pace::POLLING });
    let mut was_open = false;
    loop {
        match end_if_open(&client, &destination.cluster.database, &destination.table, &label).await? {
            Found::Decided => return Ok(()),
            Found::Open if was_open => {}
            Found::Open => {
                tracing::warn!(pipeline = %meter.name, label, "a load of the member before is open: it is cancelled");
                meter.fence.cancelled.inc();
                was_open = true;
            }
        }
        polling.wait().await;
    }
}

impl Control {
    /// Takes partitions over: ends what the members before have open, then claims them together with those held.
    /// In this order: of a member that claims and dies before it has cancelled, nobody would know what was there.
    pub(super) fn take_over_guarded(&mut self, starts: &Starts) -> Result<(), Fault> {
        let Some(guarding) = &mut self.guarding else { return Ok(()) };
        let texts = starts.values().filter_map(|found| found.committed.as_deref());
        let claims = texts.filter_map(Claim::read);
        // What is our own we know better: what we lost with loads on their way, and got back.
        let others = claims.filter(|claim| claim.stem != guarding.fence.stem());
        let mut labels: BTreeSet<String> =
            others.flat_map(|claim| claim.labels().collect::<Vec<_>>()).collect();
        labels.extend(guarding.fence.open_labels(|stay| starts.contains_key(&place_of(stay))));
        let count = labels.len();
        let at = (guarding.carrier.client(), &guarding.destination);
        let ending = end_all(at, labels, &self.parts.meter);
        let ended =
            self.parts.runtime.block_on(async { tokio::time::timeout(ENDING_PATIENCE, ending).await });
        ended.unwrap_or_else(|_| {
            let waited = ENDING_PATIENCE.as_secs();
            Err(Fault::retry(format!("loads of the members before are open after {waited} s of cancelling")))
        })?;
        tracing::info!(
            pipeline = %self.parts.meter.name, labels = count, partitions = starts.len(),
            "nothing of the members before is open"
        );
        self.write_all(starts, false)
    }

    /// Writes how far all partitions are, those of `starts` included, and what may be open of them. `last` = nothing
    /// begins any more.
    fn write_all(&mut self, starts: &Starts, last: bool) -> Result<(), Fault> {
        let Some(guarding) = &mut self.guarding else { return Ok(()) };
        let claim = guarding.fence.claim(last);
        let mut offsets = BTreeMap::new();
        for (place, held) in &self.held {
            let Some(watermark) = self.parts.ledger.watermark(&held.stay) else { continue };
            offsets.insert(place.clone(), watermark.upto + 1);
        }
        offsets.extend(starts.iter().map(|(place, found)| (place.clone(), found.offset)));
        let text = |topic: &str| claim.text(self.rule.first_sight(topic));
        let offsets: Offsets =
            offsets.into_iter().map(|(place, next)| (place.clone(), (next, text(&place.0)))).collect();
        if offsets.is_empty() {
            // A rebalance may leave us without any, and there is nothing to say.
            return Ok(());
        }
        let reader = Arc::clone(&self.reader);
        match guarding.write(&reader, &offsets) {
            Written::Yes => {
                guarding.fence.claimed(Some(claim));
                self.uncommitted
                    .retain(|place, upto| offsets.get(place).is_none_or(|(next, _)| *next <= *upto));
                self.committed_at = Instant::now();
                self.parts.meter.commits.inc();
                self.trouble = None;
                Ok(())
            }
            Written::No(fault) => Err(fault),
            Written::Unknown(fault) => {
                // The claim that stands may be this one or the one before it.
                guarding.fence.claimed(None);
                Err(fault)
            }
        }
    }

    /// Answers what loads have asked, by one commit that is sent after they did; commits also when that is due.
    pub(super) fn commit_guarded(&mut self) -> Result<(), Fault> {
        let Some(guarding) = &mut self.guarding else { return Ok(()) };
        while let Some(question) = guarding.questions.as_ref().and_then(Questions::next) {
            guarding.asked.push(question);
        }
        guarding.asked.retain(Question::is_waited_for);
        let held: BTreeSet<&Stay> = self.held.values().map(|held| &held.stay).collect();
        // A stay that has ended never comes back.
        for question in
            guarding.asked.extract_if(.., |question| !question.is_about(|stay| held.contains(stay)))
        {
            question.refuse(&Fault::retry("its partitions are ours no more"));
        }
        let is_asked = !guarding.asked.is_empty();
        let is_due =
            !self.uncommitted.is_empty() && self.committed_at.elapsed() >= self.kafka.commit_interval;
        let failed_lately = guarding.failed_at.is_some_and(|at| at.elapsed() < AGAIN_AFTER);
        if !is_asked && !is_due || failed_lately {
            return Ok(());
        }
        guarding.failed_at = None;
        match self.write_all(&Starts::new(), false) {
            Ok(()) => {
                // This thread alone ends stays: they are those of before the commit.
                if let Some(guarding) = &mut self.guarding {
                    guarding.asked.drain(..).for_each(Question::holds);
                }
                Ok(())
            }
            Err(fault) => self.hear_of_no_commit(fault),
        }
    }

    /// Loads wait for another try while the partitions may still be ours.
    fn hear_of_no_commit(&mut self, fault: Fault) -> Result<(), Fault> {
        let is_ours = !self.has_lost_membership();
        if let Some(guarding) = &mut self.guarding {
            guarding.failed_at = Some(Instant::now());
            if !is_ours || fault.kind != FaultKind::Retry {
                guarding.asked.drain(..).for_each(|question| question.refuse(&fault));
            }
        }
        if fault.kind != FaultKind::Retry {
            return Err(fault);
        }
        self.parts.meter.commit_failures.inc();
        if is_ours {
            return self.hear_trouble(false, &fault.story());
        }
        tracing::debug!(pipeline = %self.parts.meter.name, "{}", fault.story());
        Ok(())
    }

    /// The last commit of partitions that are given up, before their stays end. Of those that no load concerns a
    /// successor need not look for anything.
    pub(super) fn write_last(&mut self, stays: &[Stay]) -> Result<(), Fault> {
        let Some(guarding) = &mut self.guarding else { return Ok(()) };
        let mut offsets = Offsets::new();
        for stay in stays {
            let Some(watermark) = self.parts.ledger.watermark(stay) else { continue };
            let is_clear = guarding.fence.open_labels(|open| open == stay).is_empty();
            let nothing = Claim::nothing(guarding.fence.stem());
            let claim = if is_clear { nothing } else { guarding.fence.claim(true) };
            let place = place_of(stay);
            let text = claim.text(self.rule.first_sight(&place.0));
            offsets.insert(place, (watermark.upto + 1, text));
        }
        if offsets.is_empty() {
            return Ok(());
        }
        let reader = Arc::clone(&self.reader);
        match guarding.write(&reader, &offsets) {
            Written::Yes => {
                self.parts.meter.commits.inc();
                Ok(())
            }
            Written::No(fault) | Written::Unknown(fault) => Err(fault),
        }
    }

    /// The last words of a pipeline that ends: true when they stand, or there is nobody to hear them.
    pub(super) fn write_all_at_the_end(&mut self) -> Result<bool, Fault> {
        if self.held.is_empty() {
            return Ok(true);
        }
        match self.write_all(&Starts::new(), true) {
            Ok(()) => Ok(true),
            Err(fault) if fault.kind == FaultKind::Retry => Ok(false),
            Err(fault) => Err(fault),
        }
    }
}
