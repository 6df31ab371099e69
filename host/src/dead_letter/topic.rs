//! Dead letters in a Kafka topic: original key and value, everything else in headers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext};

use super::DeadLetter;
use super::kept::Place;
use crate::config::model::Kafka;
use crate::fault::Fault;
use crate::meter::{PipelineMeter, Waiting};
use crate::retry::{Backoff, Pace};
use crate::source::kafka::consumer::secure;

/// How long one round waits for acknowledgements before it says that it waits.
const ROUND: Duration = Duration::from_secs(10);

/// The first of the headers that say what a letter is; those of the record stand before it.
pub(super) const FIRST_HEADER: &str = "tidemill.pipeline";
/// How many they are.
const OUR_HEADERS: usize = 13;
/// The header of a record that marks a letter as replayed: the letter's `partition:offset`.
pub(super) const MARK_HEADER: &str = "tidemill.replayed";
/// What the key of such a record begins with.
const MARK_KEY_STEM: &str = "tidemill.replayed/";

/// A record for the producer.
type Sending<'a> = BaseRecord<'a, [u8], [u8], ()>;

/// Counts what the brokers acknowledged.
#[derive(Debug, Default)]
struct Tally {
    kept: AtomicU64,
    /// The last failure as its code.
    failed: AtomicU64,
    last: std::sync::Mutex<Option<KafkaError>>,
}

impl ClientContext for Tally {}

impl ProducerContext for Tally {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): Self::DeliveryOpaque) {
        match result {
            Ok(_) => {
                self.kept.fetch_add(1, Ordering::Relaxed);
            }
            Err((error, _)) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                *self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error.clone());
            }
        }
    }
}

/// An idempotent producer with `acks=all`.
pub(super) struct Topic {
    producer: BaseProducer<Tally>,
    topic: String,
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
        config.set("message.max.bytes", "100000000");
        let producer = config.create_with_context(Tally::default()).map_err(|error| {
            Fault::halt(
                format!("cannot make a producer for the dead letters: {error}"),
                "mend [dead_letters.kafka]",
            )
        })?;
        Ok(Topic { producer, topic: topic.to_owned(), meter: Arc::clone(meter) })
    }

    /// Sends until all letters are acknowledged. What was acknowledged before a failure comes again:
    /// dead letters are at least once, keyed by position.
    pub(super) fn keep(&mut self, letters: &mut dyn Iterator<Item = &DeadLetter>) -> Result<(), Fault> {
        let letters: Vec<&DeadLetter> = letters.collect();
        self.persist("keep dead letters", || letters.iter().map(|letter| self.record(letter)))
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
                    .insert(Header { key: "tidemill.pipeline", value: Some(&self.meter.name) });
                BaseRecord::to(&self.topic)
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
        let mut waiting = None;
        let mut backoff = Backoff::new(Pace::PASSING);
        loop {
            match self.send(records()) {
                Ok(()) => return Ok(()),
                Err(error) if is_final(&error) => {
                    return Err(Fault::halt(
                        format!("cannot {what} in topic `{}`: {error}", self.topic),
                        "create the topic, grant WRITE on it, or raise its max.message.bytes; nothing was \
                         committed past these records",
                    ));
                }
                Err(error) => {
                    if waiting.is_none() {
                        tracing::warn!(topic = %self.topic, %error, "dead letters wait for their topic");
                        let what = format!("dead-letter topic `{}`: {error}", self.topic);
                        waiting = Some(Waiting::begin(&self.meter, what));
                    }
                    // Some refusals come at once, without librdkafka's own patience.
                    std::thread::sleep(backoff.next_pause(rand::random()));
                }
            }
        }
    }

    fn record<'a>(&'a self, letter: &'a DeadLetter) -> Sending<'a> {
        let mut record = BaseRecord::to(&self.topic).headers(self.headers(letter));
        record.key = letter.key.as_deref();
        record.payload = letter.value.as_deref();
        record
    }

    fn send<'a>(&self, records: impl Iterator<Item = Sending<'a>>) -> Result<(), KafkaError> {
        let tally = self.producer.context();
        let before = tally.kept.load(Ordering::Relaxed);
        let mut sent = 0;
        for record in records {
            sent += 1;
            let mut left = Some(record);
            while let Some(record) = left.take() {
                match self.producer.send(record) {
                    Ok(()) => {}
                    Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), record)) => {
                        self.producer.poll(Duration::from_millis(100));
                        left = Some(record);
                    }
                    Err((error, _)) => return Err(error),
                }
            }
        }
        loop {
            match self.producer.flush(ROUND) {
                Ok(()) => break,
                // Messages end by themselves, acknowledged or failed, after message.timeout.ms.
                Err(KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut)) => {}
                Err(error) => return Err(error),
            }
        }
        let kept = tally.kept.load(Ordering::Relaxed) - before;
        if kept == sent {
            return Ok(());
        }
        let last = tally.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        Err(last.unwrap_or(KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut)))
    }

    /// Original headers first, then ours under `tidemill.`, as Kafka Connect does with its own.
    fn headers(&self, letter: &DeadLetter) -> OwnedHeaders {
        let mut headers = OwnedHeaders::new_with_capacity(letter.headers.len() + OUR_HEADERS);
        for (name, content) in &letter.headers {
            let name = String::from_utf8_lossy(name);
            headers = headers.insert(Header { key: &name, value: Some(content) });
        }
        let offset = letter.offset.to_string();
        let partition = letter.partition.number.to_string();
        let timestamp_us = letter.timestamp_us.to_string();
        let content = &letter.content;
        let flag = |is: bool| if is { "true" } else { "false" };
        let ours: [(&str, &str); OUR_HEADERS] = [
            // The first of ours: what stands before it are the record's own.
            (FIRST_HEADER, &self.meter.name),
            ("tidemill.stage", letter.stage.name()),
            ("tidemill.plugin", letter.plugin.as_deref().unwrap_or_default()),
            ("tidemill.code", &letter.code),
            ("tidemill.message", &letter.message),
            ("tidemill.source", &letter.partition.source),
            ("tidemill.partition", &partition),
            ("tidemill.offset", &offset),
            ("tidemill.timestamp_us", &timestamp_us),
            ("tidemill.holds", content.holds.name()),
            ("tidemill.table", content.table.as_deref().unwrap_or_default()),
            ("tidemill.delete", flag(content.delete)),
            ("tidemill.partial", flag(content.partial)),
        ];
        for (key, value) in ours {
            headers = headers.insert(Header { key, value: Some(value) });
        }
        headers
    }
}

/// The settings of a client of the letters' cluster.
pub(super) fn cluster(brokers: &[String], source: Option<&Kafka>) -> Result<ClientConfig, Fault> {
    let mut config = ClientConfig::new();
    match (brokers, source) {
        ([], Some(source)) => {
            // The source's cluster, with its security.
            secure(&mut config, &source.security);
            config.set("bootstrap.servers", source.brokers.join(","));
        }
        ([], None) => {
            return Err(Fault::halt(
                "[dead_letters.kafka] names no brokers, and the source is not Kafka",
                "add `brokers` to [dead_letters.kafka]",
            ));
        }
        (brokers, _) => {
            config.set("bootstrap.servers", brokers.join(","));
        }
    }
    config.set("client.id", "tidemill-dead-letters");
    Ok(config)
}

/// Whether sending again cannot help.
fn is_final(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::MessageSizeTooLarge
                | RDKafkaErrorCode::InvalidMessageSize
                | RDKafkaErrorCode::InvalidRecord
                | RDKafkaErrorCode::PolicyViolation
                | RDKafkaErrorCode::ClusterAuthorizationFailed
                | RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::InvalidTopic
                | RDKafkaErrorCode::Fatal
        )
    )
}
