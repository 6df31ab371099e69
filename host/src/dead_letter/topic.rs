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
use crate::config::model::Kafka;
use crate::fault::Fault;
use crate::meter::{PipelineMeter, Waiting};
use crate::retry::{Backoff, Pace};
use crate::source::kafka::consumer::secure;

/// How long one round waits for acknowledgements before it says that it waits.
const ROUND: Duration = Duration::from_secs(10);

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
        let mut waiting = None;
        let mut backoff = Backoff::new(Pace::PASSING);
        loop {
            match self.send(&letters) {
                Ok(()) => return Ok(()),
                Err(error) if is_final(&error) => {
                    return Err(Fault::halt(
                        format!("cannot keep dead letters in topic `{}`: {error}", self.topic),
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

    fn send(&self, letters: &[&DeadLetter]) -> Result<(), KafkaError> {
        let tally = self.producer.context();
        let before = tally.kept.load(Ordering::Relaxed);
        for letter in letters {
            let mut record: BaseRecord<'_, [u8], [u8], ()> =
                BaseRecord::to(&self.topic).headers(self.headers(letter));
            if let Some(key) = &letter.key {
                record = record.key(key);
            }
            if let Some(value) = &letter.value {
                record = record.payload(value);
            }
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
        if kept == letters.len() as u64 {
            return Ok(());
        }
        let last = tally.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        Err(last.unwrap_or(KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut)))
    }

    /// Original headers first, then ours under `tidemill.`, as Kafka Connect does with its own.
    fn headers(&self, letter: &DeadLetter) -> OwnedHeaders {
        let mut headers = OwnedHeaders::new_with_capacity(letter.headers.len() + 8);
        for (name, content) in &letter.headers {
            let name = String::from_utf8_lossy(name);
            headers = headers.insert(Header { key: &name, value: Some(content) });
        }
        let offset = letter.offset.to_string();
        let partition = letter.partition.number.to_string();
        let ours = [
            ("tidemill.pipeline", self.meter.name.as_str()),
            ("tidemill.stage", letter.stage.name()),
            ("tidemill.plugin", letter.plugin.as_deref().unwrap_or_default()),
            ("tidemill.code", &letter.code),
            ("tidemill.message", &letter.message),
            ("tidemill.source", &letter.partition.source),
            ("tidemill.partition", &partition),
            ("tidemill.offset", &offset),
        ];
        for (key, value) in ours {
            headers = headers.insert(Header { key, value: Some(value) });
        }
        headers
    }
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
