//! Kafka: a consumer group read by lanes, released by the control thread.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::config::model::Kafka;
use crate::config::pattern::{self, Pattern};
use crate::delivery::marker::Marker;
use crate::fault::Fault;
use crate::source::Parts;

mod claim;
pub(crate) mod consumer;
mod control;
mod decider;
pub(crate) mod dry_run;
mod feed;
mod fence;
mod membership;
mod orders;
mod queue;
mod rights;
mod start;

pub(crate) use control::{Exactly, Fencing};
pub(crate) use decider::{Purpose, RIGHTS, connect_alike};
pub(crate) use feed::KafkaFeed;
pub(crate) use rights::{Denied, check_transactions};

/// Events of the client that are looked at for why no broker answers.
const EVENTS_LOOKED_AT: usize = 32;

/// What the control thread needs of the rest of its pipeline.
pub(crate) struct Wiring {
    /// `[source.kafka]`.
    pub(crate) kafka: Kafka,
    /// Knows which topics were read before.
    pub(crate) marker: Marker,
    /// What every source gets.
    pub(crate) parts: Parts,
    /// With exactly_once.
    pub(crate) exactly: Option<Exactly>,
    /// With Primary Key tables, at least once.
    pub(crate) fencing: Option<Fencing>,
}

/// Checks that the brokers answer and the topics are there; returns the number of partitions.
///
/// # Errors
/// Halt, within ten seconds, naming brokers and topics.
pub fn check(kafka: &Kafka) -> Result<usize, Fault> {
    let topics = ask_topics(&consumer::connect(kafka)?, kafka)?;
    Ok(topics.values().sum())
}

/// Checks that a broker answers.
///
/// # Errors
/// Halt, within ten seconds, naming the brokers.
pub(crate) fn reach(kafka: &Kafka) -> Result<(), Fault> {
    let reader = consumer::connect(kafka)?;
    let answer = reader.fetch_metadata(None, start::ASK_TIMEOUT);
    answer.map(drop).map_err(|error| unreachable_brokers(&reader, kafka, error))
}

/// The fault of brokers that gave no metadata, in words.
fn unreachable_brokers(reader: &consumer::Reader, kafka: &Kafka, error: KafkaError) -> Fault {
    let cannot = format!("cannot reach Kafka at {}", kafka.brokers.join(", "));
    let hint = "check [source.kafka] brokers, the network, and [source.kafka.tls] and [source.kafka.sasl]";
    let why = why_unreachable(reader).map(|text| consumer::reason(&text));
    // What librdkafka says of any broker that cannot be used; the reason is in the complaints.
    let silent = [
        RDKafkaErrorCode::BrokerTransportFailure,
        RDKafkaErrorCode::OperationTimedOut,
        RDKafkaErrorCode::AllBrokersDown,
    ];
    let silent = error.rdkafka_error_code().is_some_and(|code| silent.contains(&code));
    let waited = start::ASK_TIMEOUT.as_secs();
    match why {
        Some(why) if silent && why == consumer::CONNECTION_REFUSED => Fault::halt(
            format!("{cannot}: no broker answered within {waited} s ({why})"),
            format!("is it running? {hint}"),
        ),
        None if silent => Fault::halt(
            format!("{cannot}: no broker answered within {waited} s"),
            format!("is it running? {hint}"),
        ),
        Some(why) if silent => Fault::halt(format!("{cannot}: {why}"), hint),
        Some(why) => Fault::halt(format!("{cannot} ({why})"), hint).caused_by(error),
        None => Fault::halt(cannot, hint).caused_by(error),
    }
}

/// The topics that are there to be read, each once, with the number of partitions.
fn ask_topics(reader: &consumer::Reader, kafka: &Kafka) -> Result<BTreeMap<String, usize>, Fault> {
    let mut topics = BTreeMap::new();
    for topic in kafka.topics.iter().filter(|topic| !pattern::is_pattern(topic)) {
        let answer = reader.fetch_metadata(Some(topic), start::ASK_TIMEOUT);
        let metadata = answer.map_err(|error| unreachable_brokers(reader, kafka, error))?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        let count = found.map_or(0, |found| found.partitions().len());
        let missing = found.and_then(rdkafka::metadata::MetadataTopic::error);
        if count == 0 {
            return Err(absent_topic(topic, kafka, missing.map(RDKafkaErrorCode::from)));
        }
        topics.insert(topic.clone(), count);
    }
    ask_patterns(reader, kafka, &mut topics)?;
    Ok(topics)
}

/// A broker that does not let the user see a topic says so, whether the topic is there or not.
fn absent_topic(topic: &str, kafka: &Kafka, why: Option<RDKafkaErrorCode>) -> Fault {
    let brokers = kafka.brokers.join(", ");
    if let Some((code, hint)) = why.and_then(|code| Some((code, consumer::refusal_hint(code)?))) {
        return Fault::halt(format!("topic `{topic}` cannot be read from {brokers} ({code})"), hint);
    }
    let why = why.map_or_else(String::new, |code| format!(" ({code})"));
    Fault::halt(
        format!("topic `{topic}` is not on {brokers}{why}"),
        "create it, or mend the name in [source.kafka] topics",
    )
}

/// Adds the topics that match a pattern. That there are none yet is told, and is no fault.
fn ask_patterns(
    reader: &consumer::Reader,
    kafka: &Kafka,
    topics: &mut BTreeMap<String, usize>,
) -> Result<(), Fault> {
    let patterns: Vec<&String> = kafka.topics.iter().filter(|topic| pattern::is_pattern(topic)).collect();
    if patterns.is_empty() {
        return Ok(());
    }
    let answer = reader.fetch_metadata(None, start::ASK_TIMEOUT);
    let metadata = answer.map_err(|error| unreachable_brokers(reader, kafka, error))?;
    for text in patterns {
        let pattern = Pattern::new(text).map_err(|why| {
            let hint = "mend it in [source.kafka] topics";
            Fault::halt(format!("`{text}` is not a regular expression: {why}"), hint)
        })?;
        let found = metadata.topics().iter().filter(|found| pattern.matches(found.name()));
        let mut count = 0;
        for found in found {
            count += 1;
            topics.insert(found.name().to_owned(), found.partitions().len());
        }
        if count == 0 {
            tracing::warn!(
                pattern = text, brokers = %kafka.brokers.join(", "),
                "no topic matches yet, or none that the user may DESCRIBE; it is read once it is there"
            );
        }
    }
    Ok(())
}

/// What librdkafka says of its connections; the first complaint tells most, those after it that brokers
/// are down.
fn why_unreachable(reader: &consumer::Reader) -> Option<String> {
    // One event a call; those that are no errors come in between.
    for _ in 0..EVENTS_LOOKED_AT {
        let _ = reader.poll(Duration::ZERO);
    }
    let notes = std::iter::from_fn(|| reader.context().take());
    let mut texts = notes.filter_map(|note| match note {
        consumer::Note::Trouble { text, .. } => Some(text),
        consumer::Note::Rebalance(_) => None,
    });
    texts.next()
}

/// Reads until told to stop. `spawn_lane` starts a lane's thread on its feed.
///
/// # Errors
/// Whatever halted the pipeline, or a drain that was not done in time.
pub(crate) fn run<S>(wiring: Wiring, spawn_lane: S) -> Result<(), Fault>
where
    S: Fn(usize, KafkaFeed) -> std::io::Result<JoinHandle<Result<(), Fault>>>,
{
    let reader = Arc::new(consumer::connect(&wiring.kafka)?);
    let topics = ask_topics(&reader, &wiring.kafka)?;
    let partitions: usize = topics.values().sum();
    // Topics of a pattern may yet come, so their number limits nothing.
    let lanes = match start::may_grow(&wiring.kafka) {
        true => wiring.parts.lanes,
        false => wiring.parts.lanes.min(partitions),
    };
    let rule = start::Rule::new(&wiring.kafka, topics.into_keys().collect());
    control::Control::start(wiring, lanes.max(1), rule, reader, spawn_lane)?.run()
}
