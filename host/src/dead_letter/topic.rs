//! Dead letters in a Kafka topic, written by a producer of their own: at least once, keyed by position.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::metadata::MetadataTopic;
use rdkafka::producer::BaseRecord;

use super::DeadLetter;
use super::envelope::{Envelope, FIRST_HEADER, Sending};
use super::kept::Place;
use super::tally::{Producer, RECORD_BYTES_MAX, TOPIC_PATIENCE_MS, Tally, is_final, send};
use crate::config::model::Kafka;
use crate::fault::Fault;
use crate::meter::{PipelineMeter, Waiting};
use crate::retry::{Backoff, Pace};
use crate::source::kafka::connect_alike;

/// The header of a record that marks a letter as replayed: the letter's `partition:offset`.
pub(super) const MARK_HEADER: &str = "tidemill.replayed";
/// What the key of such a record begins with.
const MARK_KEY_STEM: &str = "tidemill.replayed/";

/// How long the letters' brokers may take to say what they know of the topic.
const ASK_PATIENCE: Duration = Duration::from_secs(10);

/// An idempotent producer with `acks=all`.
pub(super) struct Topic {
    producer: Producer,
    envelope: Envelope,
    meter: Arc<PipelineMeter>,
}

impl Topic {
    pub(super) fn open(
        topic: &str,
        brokers: &[String],
        source: Option<&Kafka>,
        meter: &Arc<PipelineMeter>,
    ) -> Result<Topic, Fault> {
        let mut config = cluster(brokers, source)?;
        config.set("acks", "all");
        config.set("enable.idempotence", "true");
        config.set("linger.ms", "5");
        config.set("message.timeout.ms", "30000");
        config.set("topic.metadata.propagation.max.ms", TOPIC_PATIENCE_MS.to_string());
        config.set("message.max.bytes", RECORD_BYTES_MAX);
        let producer = config.create_with_context(Tally::default()).map_err(|error| {
            Fault::halt(
                format!("cannot make a producer for the dead letters: {error}"),
                "mend [dead_letters.kafka]",
            )
        })?;
        let envelope = Envelope { topic: topic.to_owned(), pipeline: meter.name.clone() };
        Ok(Topic { producer, envelope, meter: Arc::clone(meter) })
    }

    /// Sends until all letters are acknowledged. What was acknowledged before a failure comes again:
    /// dead letters are at least once, keyed by position.
    pub(super) fn keep(&mut self, letters: &mut dyn Iterator<Item = &DeadLetter>) -> Result<(), Fault> {
        let letters: Vec<&DeadLetter> = letters.collect();
        self.persist("keep dead letters", || letters.iter().map(|letter| self.envelope.record(letter)))
    }

    /// Marks the letters at these places as replayed: a record each, in the partition of the letter. Its key is its own,
    /// so that compaction takes no letter away for a mark.
    pub(super) fn mark(&self, places: &[&Place]) -> Result<(), Fault> {
        let marks: Vec<(i32, String)> = places
            .iter()
            .map(|place| (place.within.parse().unwrap_or(0), format!("{MARK_KEY_STEM}{place}")))
            .collect();
        self.persist("mark replayed letters", || {
            places.iter().zip(&marks).map(|(place, (partition, key))| {
                let place = place.to_string();
                let headers = OwnedHeaders::new()
                    .insert(Header { key: MARK_HEADER, value: Some(&place) })
                    .insert(Header { key: FIRST_HEADER, value: Some(&self.meter.name) });
                BaseRecord::to(&self.envelope.topic)
                    .partition(*partition)
                    .key(key.as_bytes())
                    .payload(&b""[..])
                    .headers(headers)
            })
        })
    }

    /// Sends records, made anew for each round, until all of a round are acknowledged.
    fn persist<'a, I>(&'a self, what: &str, records: impl Fn() -> I) -> Result<(), Fault>
    where
        I: Iterator<Item = Sending<'a>>,
    {
        let topic = &self.envelope.topic;
        let mut waiting = None;
        let mut backoff = Backoff::new(Pace::PASSING);
        loop {
            match send(&self.producer, records()) {
                Ok(()) => return Ok(()),
                Err(error) if is_final(&error) => return Err(refused(what, topic, &error)),
                Err(error) => {
                    if waiting.is_none() {
                        tracing::warn!(%topic, %error, "dead letters wait for their topic");
                        let what = format!("dead-letter topic `{topic}`: {error}");
                        waiting = Some(Waiting::begin(&self.meter, what));
                    }
                    // Some refusals come at once, without librdkafka's own patience.
                    std::thread::sleep(backoff.next_pause(rand::random()));
                }
            }
        }
    }
}

/// A topic that will not take letters however often they are sent.
pub(super) fn refused(what: &str, topic: &str, error: &dyn std::fmt::Display) -> Fault {
    Fault::halt(
        format!("cannot {what} in topic `{topic}`: {error}"),
        "create the topic, grant WRITE on it, or raise its max.message.bytes; nothing was committed past these records",
    )
}

/// Whether letters that go to `brokers` are on the cluster of `source`.
pub(super) fn is_on_cluster_of(source: &Kafka, brokers: &[String]) -> bool {
    brokers.is_empty() || brokers.iter().any(|broker| source.brokers.contains(broker))
}

/// Looks for the topic, and makes none. Says what is wrong with it; none = it is there.
///
/// # Errors
/// Halt, if the settings make no client; retry, if no broker answers within ten seconds.
pub(super) fn lacking(
    topic: &str,
    brokers: &[String],
    source: Option<&Kafka>,
) -> Result<Option<String>, Fault> {
    let cannot =
        |error| Fault::retry(format!("cannot ask for the dead letters' topic `{topic}`")).caused_by(error);
    let mut config = cluster(brokers, source)?;
    config.set("allow.auto.create.topics", "false");
    let client: BaseConsumer = config.create().map_err(cannot)?;
    let metadata = client.fetch_metadata(Some(topic), ASK_PATIENCE).map_err(cannot)?;
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    let why = found.and_then(MetadataTopic::error).map(RDKafkaErrorCode::from);
    Ok(match why {
        None if found.is_some_and(|found| !found.partitions().is_empty()) => None,
        None | Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
            Some(format!(
                "the dead letters' topic `{topic}` is not there: create it, unless the brokers make topics by themselves"
            ))
        }
        Some(code @ RDKafkaErrorCode::TopicAuthorizationFailed) => Some(format!(
            "the dead letters' topic `{topic}` cannot be used ({code}): grant WRITE and DESCRIBE on it"
        )),
        Some(code) => Some(format!(
            "the dead letters' topic `{topic}` cannot be used just now ({code}): see that its brokers are well, and try again"
        )),
    })
}

/// The settings of a client of the letters' cluster.
pub(super) fn cluster(brokers: &[String], source: Option<&Kafka>) -> Result<ClientConfig, Fault> {
    let mut config = ClientConfig::new();
    match source.filter(|source| is_on_cluster_of(source, brokers)) {
        // With its security.
        Some(source) => {
            connect_alike(&mut config, source);
            let brokers = if brokers.is_empty() { source.brokers.as_slice() } else { brokers };
            config.set("bootstrap.servers", brokers.join(","));
        }
        None if brokers.is_empty() => {
            return Err(Fault::halt(
                "[dead_letters.kafka] names no brokers, and the source is not Kafka",
                "add `brokers` to [dead_letters.kafka]",
            ));
        }
        None => {
            config.set("bootstrap.servers", brokers.join(","));
        }
    }
    config.set("client.id", "tidemill-dead-letters");
    Ok(config)
}
