//! A producer that knows what became of each record: sent until all are acknowledged, or one is not.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, Producer as _, ProducerContext};

use super::envelope::Sending;

/// How long one round waits for acknowledgements before it looks again.
const ROUND: Duration = Duration::from_secs(10);
/// How long a topic may be unknown: one that the brokers create by themselves is there within a second or two.
pub(crate) const TOPIC_PATIENCE_MS: u32 = 8_000;
/// The largest record that a letter may become before the brokers are asked, in bytes: they have a limit of their own.
pub(crate) const RECORD_BYTES_MAX: &str = "100000000";

/// Counts what the brokers acknowledged.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    kept: AtomicU64,
    /// The first failure of the records that are being sent: what fails behind it often fails because of it.
    failed: Mutex<Option<KafkaError>>,
}

/// A producer that counts.
pub(crate) type Producer = BaseProducer<Tally>;

impl Tally {
    fn lock(&self) -> MutexGuard<'_, Option<KafkaError>> {
        // A plain value: a panic elsewhere leaves it usable.
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
                self.lock().get_or_insert_with(|| error.clone());
            }
        }
    }
}

/// Sends records and waits until each is acknowledged or has failed, which it has after `message.timeout.ms`.
///
/// # Errors
/// The first failure, if one was not acknowledged.
pub(super) fn send<'a>(
    producer: &Producer,
    records: impl Iterator<Item = Sending<'a>>,
) -> Result<(), KafkaError> {
    let tally = producer.context();
    let before = tally.kept.load(Ordering::Relaxed);
    *tally.lock() = None;
    let mut sent = 0;
    for record in records {
        sent += 1;
        let mut left = Some(record);
        while let Some(record) = left.take() {
            match producer.send(record) {
                Ok(()) => {}
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), record)) => {
                    producer.poll(Duration::from_millis(100));
                    left = Some(record);
                }
                Err((error, _)) => return Err(error),
            }
        }
    }
    loop {
        match producer.flush(ROUND) {
            Ok(()) => break,
            // Messages end by themselves, acknowledged or failed.
            Err(KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut)) => {}
            Err(error) => return Err(error),
        }
    }
    let kept = tally.kept.load(Ordering::Relaxed) - before;
    if kept == sent {
        return Ok(());
    }
    let failed = tally.lock().take();
    Err(failed.unwrap_or(KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut)))
}

/// Whether sending again cannot help.
pub(super) fn is_final(error: &KafkaError) -> bool {
    error.rdkafka_error_code().is_some_and(never_passes)
}

/// Whether a failure with this code comes again.
pub(super) fn never_passes(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
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
}
