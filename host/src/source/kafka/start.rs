//! Where a partition begins: its committed offset, or else what `start` says, pinned by a claim.
//!
//! A partition's start is committed right after it was assigned, so that `latest` and partitions
//! that appear later cannot skip what arrives before the first release (delivery.md §1 rule 5).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rdkafka::consumer::{Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::membership::metadata_texts;
use crate::config::model::{Kafka, Start};
use crate::config::pattern;
use crate::fault::Fault;

/// How long one question to the broker may take.
pub(super) const ASK_TIMEOUT: Duration = Duration::from_secs(8);

/// A start that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// Offset of the first record to read.
    pub(super) offset: i64,
    /// The text that the group has beside the offset, if it had one committed; if not, it has to be claimed.
    pub(super) committed: Option<String>,
}

/// Starts by topic and partition.
pub(super) type Starts = BTreeMap<(String, i32), Found>;

fn passing(what: String) -> impl FnOnce(KafkaError) -> Fault {
    move |error| Fault::retry(what).caused_by(error)
}

/// Whether topics may yet come that the pipeline reads.
pub(super) fn may_grow(kafka: &Kafka) -> bool {
    kafka.topics.iter().any(|topic| pattern::is_pattern(topic))
}

/// Where topics begin of which the group has no offset.
///
/// A topic that the file names begins where the file says. So does one that a pattern found when the group
/// read for the first time; one that came later begins at its beginning, or what was written before it was
/// noticed would be skipped.
#[derive(Debug)]
pub(super) struct Rule {
    start: Start,
    /// Topics that were there when this process began.
    found: BTreeSet<String>,
    named: BTreeSet<String>,
    /// Whether the group had no offset of any of `found`; asked once, before this process commits one.
    first: Option<bool>,
}

impl Rule {
    /// For the topics that are `found` now.
    pub(super) fn new(kafka: &Kafka, found: BTreeSet<String>) -> Self {
        let named = kafka.topics.iter().filter(|topic| !pattern::is_pattern(topic)).cloned().collect();
        // Without a pattern it makes no difference, and is not asked.
        let first = if may_grow(kafka) { None } else { Some(true) };
        Self { start: kafka.start, found, named, first }
    }

    /// Learns whether the group reads for the first time, if that makes a difference.
    fn learn<C: ConsumerContext>(
        &mut self,
        consumer: &rdkafka::consumer::BaseConsumer<C>,
    ) -> Result<(), Fault> {
        if self.first.is_none() {
            let mut first = true;
            for found in &self.found {
                first = first && !committed_offsets(consumer, found, &[])?.values().any(Option::is_some);
            }
            self.first = Some(first);
        }
        Ok(())
    }

    fn of(&self, topic: &str) -> Start {
        let from_the_first = self.first == Some(true) && self.found.contains(topic);
        if self.named.contains(topic) || from_the_first { self.start } else { Start::Earliest }
    }
}

/// Finds where each of `partitions` begins. `gone` is asked about a topic of which the group has no
/// offset at all: a fault, if it should have.
///
/// # Errors
/// Retry, if the broker does not answer in time; the fault of `gone`.
pub(super) fn find<C: ConsumerContext>(
    consumer: &rdkafka::consumer::BaseConsumer<C>,
    partitions: &[(String, i32)],
    rule: &mut Rule,
    gone: impl Fn(&str) -> Option<Fault>,
) -> Result<Starts, Fault> {
    rule.learn(consumer)?;
    let topics: BTreeSet<&str> = partitions.iter().map(|(topic, _)| topic.as_str()).collect();
    let mut starts = Starts::new();
    for topic in topics {
        let mine = partitions.iter().filter(|(of, _)| of == topic).map(|(_, partition)| *partition);
        let mine: Vec<i32> = mine.collect();
        let committed = committed_offsets(consumer, topic, &mine)?;
        let known_topic = committed.values().any(Option::is_some);
        if let Some(fault) = if known_topic { None } else { gone(topic) } {
            return Err(fault);
        }
        // The group knows the topic, so a partition without an offset was added later: all of it is new.
        let start = if known_topic { Start::Earliest } else { rule.of(topic) };
        for partition in mine {
            let found = match committed.get(&partition).cloned().flatten() {
                Some((offset, metadata)) => Found { offset, committed: Some(metadata) },
                None => begin(consumer, topic, partition, start)?,
            };
            starts.insert((topic.to_owned(), partition), found);
        }
    }
    Ok(starts)
}

/// Committed offsets of all partitions of a topic and the text beside each, whoever owns them. Of those that are not
/// `mine` it is enough that there is one: a transaction of their owner may be about to move it.
pub(super) fn committed_offsets<C: ConsumerContext>(
    consumer: &rdkafka::consumer::BaseConsumer<C>,
    topic: &str,
    mine: &[i32],
) -> Result<BTreeMap<i32, Option<(i64, String)>>, Fault> {
    let failed = || passing(format!("cannot look up the committed offsets of topic `{topic}`"));
    let metadata = consumer.fetch_metadata(Some(topic), ASK_TIMEOUT).map_err(failed())?;
    let mut list = TopicPartitionList::new();
    for found in metadata.topics().iter().filter(|found| found.name() == topic) {
        for partition in found.partitions() {
            list.add_partition(topic, partition.id());
        }
    }
    // A broker that has just begun may not know the topic yet. What it does not say is not that there is no offset.
    if let Some(unknown) = mine.iter().find(|partition| list.find_partition(topic, **partition).is_none()) {
        return Err(Fault::retry(format!(
            "the brokers do not name partition {unknown} of topic `{topic}` just now"
        )));
    }
    let answer = consumer.committed_offsets(list, ASK_TIMEOUT).map_err(failed())?;
    let mut committed = BTreeMap::new();
    for (element, metadata) in answer.elements().iter().zip(metadata_texts(&answer)) {
        match element.error() {
            Err(KafkaError::OffsetFetch(RDKafkaErrorCode::UnstableOffsetCommit))
                if !mine.contains(&element.partition()) =>
            {
                committed.insert(element.partition(), Some((0, String::new())));
                continue;
            }
            answered => answered.map_err(failed())?,
        }
        let offset = match element.offset() {
            Offset::Offset(offset) => Some((offset, metadata)),
            Offset::Invalid | Offset::Beginning | Offset::End | Offset::Stored | Offset::OffsetTail(_) => {
                None
            }
        };
        committed.insert(element.partition(), offset);
    }
    Ok(committed)
}

/// The explicit offset that `start` means for a partition now.
fn begin<C: ConsumerContext>(
    consumer: &rdkafka::consumer::BaseConsumer<C>,
    topic: &str,
    partition: i32,
    start: Start,
) -> Result<Found, Fault> {
    let failed = || passing(format!("cannot look up where {topic}[{partition}] begins"));
    let watermarks = || consumer.fetch_watermarks(topic, partition, ASK_TIMEOUT);
    let offset = match start {
        Start::Earliest => watermarks().map_err(failed())?.0,
        Start::Latest => watermarks().map_err(failed())?.1,
        Start::TimestampMs(at) => match offset_at(consumer, topic, partition, at).map_err(failed())? {
            Some(offset) => offset,
            // Nothing as young as that yet: what comes from now on is.
            None => watermarks().map_err(failed())?.1,
        },
    };
    Ok(Found { offset: offset.max(0), committed: None })
}

fn offset_at<C: ConsumerContext>(
    consumer: &rdkafka::consumer::BaseConsumer<C>,
    topic: &str,
    partition: i32,
    at_ms: i64,
) -> KafkaResult<Option<i64>> {
    let mut question = TopicPartitionList::new();
    question.add_partition_offset(topic, partition, Offset::Offset(at_ms))?;
    let answer = consumer.offsets_for_times(question, ASK_TIMEOUT)?;
    for element in answer.elements() {
        element.error()?;
        if let Offset::Offset(offset) = element.offset() {
            return Ok(Some(offset));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::{Isolation, KafkaSecurity};

    #[test]
    fn what_a_pattern_finds_later_is_read_from_its_beginning() {
        let kafka = Kafka {
            brokers: Vec::new(),
            topics: vec!["named".into(), "^shop".into()],
            group: "g".into(),
            start: Start::Latest,
            isolation: Isolation::ReadCommitted,
            commit_interval: Duration::from_secs(1),
            fetch_queue_bytes: 1 << 20,
            security: KafkaSecurity::default(),
            properties: BTreeMap::new(),
        };
        let check = |first: bool, topic: &str, expected: Start| {
            let found = BTreeSet::from(["named".to_owned(), "shop.a".to_owned()]);
            let rule = Rule { first: Some(first), ..Rule::new(&kafka, found) };
            assert_eq!(rule.of(topic), expected, "{topic}");
        };
        check(true, "shop.a", Start::Latest);
        check(true, "shop.later", Start::Earliest);
        check(false, "shop.a", Start::Earliest);
        check(false, "named", Start::Latest);
    }
}
