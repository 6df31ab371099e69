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
use crate::clock;
use crate::config::model::{Kafka, Start};
use crate::config::pattern;
use crate::delivery::first_sight::{self, FirstSight};
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

/// Where partitions begin of which the group has no offset.
///
/// A topic that the file names begins where the file says. So does one that a pattern found when the group
/// read for the first time; one that came later begins at its beginning, or what was written before it was
/// noticed would be skipped. So do partitions that were added to a topic later.
///
/// What "the first time" was stands beside the group's offsets: processes that start together do not see it at once, and
/// one of them may have claimed its partitions before another asks for the first time.
#[derive(Debug)]
pub(super) struct Rule {
    start: Start,
    /// Topics that were there when this process began.
    found: BTreeSet<String>,
    named: BTreeSet<String>,
    /// Whether the group reads for the first time, or with the topics that it had then; asked once, before this process
    /// commits an offset.
    first: Option<bool>,
    /// When the group began to read, if others have told, in milliseconds since 1970.
    since_ms: Option<i64>,
    /// How topics stood when the group began to read them.
    sights: BTreeMap<String, FirstSight>,
    /// Patterns are read.
    grows: bool,
}

impl Rule {
    /// For the topics that are `found` now.
    pub(super) fn new(kafka: &Kafka, found: BTreeSet<String>) -> Self {
        let named = kafka.topics.iter().filter(|topic| !pattern::is_pattern(topic)).cloned().collect();
        let grows = may_grow(kafka);
        // Without a pattern it makes no difference, and is not asked.
        let first = if grows { None } else { Some(true) };
        Self { start: kafka.start, found, named, first, since_ms: None, sights: BTreeMap::new(), grows }
    }

    /// How a topic stood when the group began to read it, to be told beside its offsets. None if that was by an older
    /// version, or nothing of it was assigned yet.
    pub(super) fn first_sight(&self, topic: &str) -> Option<FirstSight> {
        self.sights.get(topic).copied()
    }

    /// Learns whether the group reads for the first time, if that makes a difference.
    fn learn<C: ConsumerContext>(
        &mut self,
        consumer: &rdkafka::consumer::BaseConsumer<C>,
    ) -> Result<(), Fault> {
        if self.first.is_some() {
            return Ok(());
        }
        let (mut is_known, mut told) = (false, None);
        for topic in &self.found {
            let committed = committed_offsets(consumer, topic, &[])?;
            is_known |= committed.is_known();
            let first = committed.first_sight(topic, self.found.len())?;
            told = told.into_iter().chain(first).min_by_key(|first| first.at_ms);
        }
        self.first = Some(!is_known || told.is_some_and(|first| first.topics == self.digest()));
        self.since_ms = told.map(|first| first.at_ms);
        Ok(())
    }

    /// Of the topics that were there when this process began, if that makes a difference.
    fn digest(&self) -> Option<u32> {
        self.grows.then(|| first_sight::digest(self.found.iter().map(String::as_str)))
    }

    /// Whether the topic is one that begins where the file says.
    fn follows_the_file(&self, topic: &str) -> bool {
        self.named.contains(topic) || self.first == Some(true) && self.found.contains(topic)
    }

    /// Learns how the topic stood when the group began to read it, which may be now.
    fn see(&mut self, topic: &str, committed: &Committed, missing: usize) -> Result<(), Fault> {
        let told = committed.first_sight(topic, missing)?;
        if told.is_none() && committed.is_known() {
            return Ok(());
        }
        let now = || FirstSight {
            at_ms: i64::try_from(clock::since_1970().as_millis()).unwrap_or(i64::MAX),
            partitions: u32::try_from(committed.offsets.len()).unwrap_or(u32::MAX),
            topics: self.digest().filter(|_| self.follows_the_file(topic)),
        };
        let first = told.unwrap_or_else(now);
        self.sights.insert(topic.to_owned(), first);
        Ok(())
    }

    /// For a partition of which the group has no offset; `is_known` = it has one of the topic.
    fn of(&self, topic: &str, partition: i32, is_known: bool) -> Start {
        let sight = self.first_sight(topic).filter(|_| is_known);
        // Older versions did not say how many there were: it may have been added, and then all of it is new.
        let was_there = match sight {
            Some(first) => u32::try_from(partition).is_ok_and(|partition| partition < first.partitions),
            None => !is_known,
        };
        if !was_there || !self.follows_the_file(topic) {
            return Start::Earliest;
        }
        match (self.start, sight.map(|first| first.at_ms).or(self.since_ms)) {
            // What has come since the group began to read is not to be skipped, however long nobody claimed it.
            (Start::Latest, Some(at_ms)) => Start::TimestampMs(at_ms),
            (start, _) => start,
        }
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
        let mut committed = committed_offsets(consumer, topic, &mine)?;
        if let Some(fault) = if committed.is_known() { None } else { gone(topic) } {
            // Who has read it may be a process that started together with this one, and has claimed its part meanwhile.
            committed = committed_offsets(consumer, topic, &mine)?;
            if !committed.is_known() {
                return Err(fault);
            }
        }
        let missing = mine.iter().filter(|partition| committed.of(**partition).is_none()).count();
        rule.see(topic, &committed, missing)?;
        for partition in mine {
            let found = match committed.of(partition) {
                Some((offset, metadata)) => Found { offset, committed: Some(metadata) },
                None => begin(consumer, topic, partition, rule.of(topic, partition, committed.is_known()))?,
            };
            starts.insert((topic.to_owned(), partition), found);
        }
    }
    Ok(starts)
}

/// What a group has committed for a topic.
#[derive(Debug, Default)]
pub(super) struct Committed {
    /// Of each partition, whoever owns it: the offset and the text beside it.
    offsets: BTreeMap<i32, Option<(i64, String)>>,
    /// Another member's transaction is about to move the offsets of some.
    is_moving: bool,
}

impl Committed {
    /// The offset of a partition, and the text beside it.
    pub(super) fn of(&self, partition: i32) -> Option<(i64, String)> {
        self.offsets.get(&partition).cloned().flatten()
    }

    /// Whether the group has an offset of the topic.
    fn is_known(&self) -> bool {
        self.is_moving || self.offsets.values().any(Option::is_some)
    }

    /// How the topic stood when the group began to read it, if that is told; it matters for `missing` partitions or topics.
    ///
    /// # Errors
    /// Retry, if it matters and may be told in a moment.
    fn first_sight(&self, topic: &str, missing: usize) -> Result<Option<FirstSight>, Fault> {
        let mut texts = self.offsets.values().flatten().map(|(_, text)| text).peekable();
        let is_first_move = self.is_moving && texts.peek().is_none();
        if is_first_move && missing > 0 {
            let what =
                format!("another process of the group is just claiming its partitions of topic `{topic}`");
            return Err(Fault::retry(what));
        }
        // Members that began at the same time may each have seen it for the first time.
        Ok(texts.filter_map(|text| FirstSight::read(text)).min_by_key(|first| first.at_ms))
    }
}

/// Committed offsets of all partitions of a topic and the text beside each, whoever owns them. Of those that are not
/// `mine` it is enough that there is one: a transaction of their owner may be about to move it.
pub(super) fn committed_offsets<C: ConsumerContext>(
    consumer: &rdkafka::consumer::BaseConsumer<C>,
    topic: &str,
    mine: &[i32],
) -> Result<Committed, Fault> {
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
    let mut committed = Committed::default();
    for (element, metadata) in answer.elements().iter().zip(metadata_texts(&answer)) {
        match element.error() {
            Err(KafkaError::OffsetFetch(RDKafkaErrorCode::UnstableOffsetCommit))
                if !mine.contains(&element.partition()) =>
            {
                committed.is_moving = true;
                committed.offsets.insert(element.partition(), None);
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
        committed.offsets.insert(element.partition(), offset);
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
    use rdkafka::consumer::CommitMode;
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer as _};

    use super::*;
    use crate::config::model::{Isolation, KafkaSecurity};
    use crate::source::kafka::claim::Claim;
    use crate::source::kafka::consumer::{Reader, connect};

    const RECORDS: i64 = 3;

    fn kafka(brokers: String, topics: &[&str]) -> Kafka {
        Kafka {
            brokers: vec![brokers],
            topics: topics.iter().map(|topic| (*topic).to_owned()).collect(),
            group: "g".into(),
            start: Start::Latest,
            isolation: Isolation::ReadCommitted,
            commit_interval: Duration::from_secs(1),
            fetch_queue_bytes: 1 << 20,
            security: KafkaSecurity::default(),
            properties: BTreeMap::new(),
        }
    }

    /// Brokers with two topics of three partitions with some records each.
    fn brokers() -> MockCluster<'static, DefaultProducerContext> {
        let cluster = MockCluster::new(1).expect("mock brokers");
        let config = &mut rdkafka::ClientConfig::new();
        let producer: BaseProducer =
            config.set("bootstrap.servers", cluster.bootstrap_servers()).create().expect("a producer");
        for topic in ["a", "b"] {
            cluster.create_topic(topic, 3, 1).expect("a topic");
            for place in 0..3 * RECORDS {
                let partition = i32::try_from(place % 3).expect("small");
                let record = BaseRecord::<[u8], [u8]>::to(topic).partition(partition).payload(b"x");
                producer.send(record).map_err(|(error, _)| error).expect("room in the producer's queue");
            }
        }
        producer.flush(Duration::from_secs(30)).expect("the mock brokers take records");
        cluster
    }

    fn commit(reader: &Reader, topic: &str, partition: i32, first: Option<FirstSight>) {
        let mut list = TopicPartitionList::new();
        let mut element = list.add_partition(topic, partition);
        element.set_offset(Offset::Offset(RECORDS)).expect("an offset");
        element.set_metadata(Claim::nothing("s").text(first));
        reader.commit(&list, CommitMode::Sync).expect("committed");
    }

    fn first(partitions: u32) -> FirstSight {
        let at_ms = i64::try_from(clock::since_1970().as_millis()).expect("soon");
        FirstSight { at_ms, partitions, topics: None }
    }

    fn begins(reader: &Reader, rule: &mut Rule, topic: &str, partition: i32) -> i64 {
        let place = (topic.to_owned(), partition);
        let starts = find(reader, std::slice::from_ref(&place), rule, |_| None).expect("the brokers answer");
        starts.get(&place).expect("it was asked for").offset
    }

    /// Processes that start together: the first has claimed its part when the second one asks.
    #[test]
    fn a_partition_nobody_has_claimed_yet_begins_where_the_file_says_and_one_added_later_at_its_beginning() {
        let cluster = brokers();
        let kafka = kafka(cluster.bootstrap_servers(), &["a"]);
        let reader = connect(&kafka).expect("a consumer");
        let rule = || Rule::new(&kafka, BTreeSet::from(["a".to_owned()]));
        let mut one = rule();
        assert_eq!(begins(&reader, &mut one, "a", 0), RECORDS, "nobody has read it before");
        let seen = one.first_sight("a").expect("it was seen");
        assert_eq!((seen.partitions, seen.topics), (3, None));
        commit(&reader, "a", 0, Some(FirstSight { partitions: 2, ..seen }));
        let mut other = rule();
        assert_eq!(begins(&reader, &mut other, "a", 1), RECORDS, "it was there when the group began to read");
        assert_eq!(other.first_sight("a"), Some(FirstSight { partitions: 2, ..seen }), "and it says so, too");
        assert_eq!(begins(&reader, &mut other, "a", 2), 0, "it was added later");
        commit(&reader, "a", 0, None);
        let mut other = rule();
        assert_eq!(begins(&reader, &mut other, "a", 1), 0, "an older version did not say what was there");
        assert_eq!(other.first_sight("a"), None);
    }

    #[test]
    fn with_a_pattern_it_counts_which_topics_were_there() {
        let cluster = brokers();
        let kafka = kafka(cluster.bootstrap_servers(), &["^a$|^b$"]);
        let reader = connect(&kafka).expect("a consumer");
        let rule =
            |found: &[&str]| Rule::new(&kafka, found.iter().map(|topic| (*topic).to_owned()).collect());
        let mut one = rule(&["a", "b"]);
        assert_eq!(begins(&reader, &mut one, "a", 0), RECORDS);
        commit(&reader, "a", 0, one.first_sight("a"));
        assert_eq!(
            begins(&reader, &mut rule(&["a", "b"]), "b", 0),
            RECORDS,
            "found together with the other one"
        );
        assert_eq!(begins(&reader, &mut rule(&["a", "b"]), "a", 1), RECORDS);
        assert_eq!(begins(&reader, &mut rule(&["a", "b", "c"]), "b", 0), 0, "topics have come meanwhile");
        assert_eq!(begins(&reader, &mut rule(&["a"]), "b", 0), 0, "this one did");
        commit(&reader, "a", 0, Some(first(3)));
        assert_eq!(begins(&reader, &mut rule(&["a", "b"]), "b", 0), 0, "nobody said that it was there");
    }

    /// The other process has claimed its part, and told StarRocks, between our question for offsets and that whether the
    /// topic was read before.
    #[test]
    fn offsets_are_looked_for_again_before_they_are_called_gone() {
        let cluster = brokers();
        let kafka = kafka(cluster.bootstrap_servers(), &["a"]);
        let reader = connect(&kafka).expect("a consumer");
        let mut rule = Rule::new(&kafka, BTreeSet::from(["a".to_owned()]));
        let mine = [("a".to_owned(), 1)];
        let gone = |_: &str| Some(Fault::halt("no offsets", "look for them"));
        assert!(find(&reader, &mine, &mut rule, gone).is_err());
        let claimed = |topic: &str| {
            commit(&reader, topic, 0, Some(first(3)));
            gone(topic)
        };
        let starts = find(&reader, &mine, &mut rule, claimed).expect("they are there");
        assert_eq!(starts.values().map(|found| found.offset).collect::<Vec<_>>(), [RECORDS]);
    }

    #[test]
    fn what_another_process_is_just_claiming_is_waited_for_where_it_matters() {
        let offsets = BTreeMap::from([(0, None), (1, None)]);
        let mut committed = Committed { offsets, is_moving: true };
        assert!(committed.is_known());
        assert!(committed.first_sight("a", 1).is_err());
        assert_eq!(committed.first_sight("a", 0).expect("nothing is missing"), None);
        let text = Claim::nothing("s").text(Some(first(2)));
        committed.offsets.insert(1, Some((7, text)));
        assert_eq!(committed.first_sight("a", 1).expect("it is told").map(|first| first.partitions), Some(2));
    }

    #[test]
    fn what_a_pattern_finds_later_is_read_from_its_beginning() {
        let kafka = kafka(String::new(), &["named", "^shop"]);
        let check = |first: bool, topic: &str, expected: Start| {
            let found = BTreeSet::from(["named".to_owned(), "shop.a".to_owned()]);
            let rule = Rule { first: Some(first), ..Rule::new(&kafka, found) };
            assert_eq!(rule.of(topic, 0, false), expected, "{topic}");
        };
        check(true, "shop.a", Start::Latest);
        check(true, "shop.later", Start::Earliest);
        check(false, "shop.a", Start::Earliest);
        check(false, "named", Start::Latest);
    }
}
