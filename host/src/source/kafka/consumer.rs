//! The consumer itself: its settings, and the callbacks that only take notes.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rdkafka::bindings::rd_kafka_resp_err_t as NativeError;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext as _, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::TopicPartitionList;

use crate::config::model::{Isolation, Kafka, KafkaSecurity};
use crate::config::pattern;
use crate::fault::Fault;

/// The consumer that control and lanes share.
pub(super) type Reader = BaseConsumer<Notes>;

/// A fetch may overshoot the queue limit by this much: librdkafka checks before it asks.
const FETCH_BYTES_MAX: u64 = 4 << 20;

/// What callbacks noted, for the control thread.
#[derive(Debug)]
pub(super) enum Note {
    /// To be answered by control.
    Rebalance(Rebalance),
    /// The client says that something is wrong; fatal errors do not pass.
    Trouble { fatal: bool, text: String, code: Option<RDKafkaErrorCode> },
}

/// What the group asks for.
#[derive(Debug)]
pub(super) enum Rebalance {
    /// The group gave us partitions; fetching starts when control assigns them.
    Assigned(TopicPartitionList),
    /// The group wants partitions back; it waits until control unassigns them.
    Revoked(TopicPartitionList),
    /// The rebalance itself failed.
    Failed(RDKafkaErrorCode),
}

/// Context of the consumer: callbacks run inside `poll` and return at once.
#[derive(Debug, Default)]
pub(super) struct Notes {
    notes: Mutex<VecDeque<Note>>,
    closing: AtomicBool,
}

impl Notes {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Note>> {
        // A queue of plain values: a panic elsewhere leaves it usable.
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The oldest note not yet taken.
    pub(super) fn take(&self) -> Option<Note> {
        self.lock().pop_front()
    }

    /// From now on revocations are agreed to at once: nobody is left to take notes.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }
}

impl ClientContext for Notes {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error
            | RDKafkaLogLevel::Warning => tracing::debug!(target: "librdkafka", facility, "{message}"),
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => {
                tracing::trace!(target: "librdkafka", facility, "{message}");
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code();
        let fatal = code == Some(RDKafkaErrorCode::Fatal);
        self.lock().push_back(Note::Trouble { fatal, text: reason.to_owned(), code });
    }
}

impl ConsumerContext for Notes {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        error: NativeError,
        partitions: &mut TopicPartitionList,
    ) {
        if self.closing.load(Ordering::Acquire) {
            // The consumer's destruction waits until its assignment is empty.
            if let Err(error) = consumer.unassign() {
                tracing::debug!(%error, "unassigning at the end failed");
            }
            return;
        }
        let rebalance = match error {
            NativeError::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => Rebalance::Assigned(partitions.clone()),
            NativeError::RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS => Rebalance::Revoked(partitions.clone()),
            other => Rebalance::Failed(other.into()),
        };
        self.lock().push_back(Note::Rebalance(rebalance));
    }
}

/// Puts TLS and SASL into a client's settings; also for the dead letters' producer.
pub(crate) fn secure(config: &mut ClientConfig, security: &KafkaSecurity) {
    let protocol = match (&security.tls, &security.sasl) {
        (None, None) => "plaintext",
        (Some(_), None) => "ssl",
        (None, Some(_)) => "sasl_plaintext",
        (Some(_), Some(_)) => "sasl_ssl",
    };
    config.set("security.protocol", protocol);
    if let Some(tls) = &security.tls {
        let files = [
            ("ssl.ca.location", &tls.ca),
            ("ssl.certificate.location", &tls.certificate),
            ("ssl.key.location", &tls.key),
        ];
        for (key, file) in files {
            if let Some(file) = file {
                config.set(key, file.display().to_string());
            }
        }
    }
    if let Some(sasl) = &security.sasl {
        config.set("sasl.mechanism", &sasl.mechanism);
        config.set("sasl.username", &sasl.username);
        config.set("sasl.password", sasl.password.reveal());
    }
}

/// What every consumer of ours has: nothing moves by itself, and answers may be large.
pub(crate) fn by_hand(config: &mut ClientConfig) {
    config.set("enable.auto.commit", "false");
    config.set("enable.auto.offset.store", "false");
    // Where to start is always said explicitly; an offset that is gone must not move silently.
    config.set("auto.offset.reset", "error");
    config.set("receive.message.max.bytes", "200000000");
}

/// All settings of the consumer: ours last, so that `properties` cannot undo them.
fn settings(kafka: &Kafka) -> ClientConfig {
    let mut config = ClientConfig::new();
    // Defaults that `properties` may change.
    config.set("client.id", "tidemill");
    config.set("session.timeout.ms", "10000");
    config.set("heartbeat.interval.ms", "2000");
    config.set("topic.metadata.refresh.interval.ms", "30000");
    // A full queue rests only this long instead of a second (reference: kafka.md, "Reading fast").
    config.set("fetch.queue.backoff.ms", "10");
    config.set("fetch.wait.max.ms", "200");
    for (key, value) in &kafka.properties {
        config.set(key, value);
    }
    secure(&mut config, &kafka.security);
    config.set("bootstrap.servers", kafka.brokers.join(","));
    config.set("group.id", &kafka.group);
    // Only a pattern could mean them.
    config.set("topic.blacklist", pattern::INTERNAL_TOPICS);
    config.set("partition.assignment.strategy", "cooperative-sticky");
    config.set("enable.partition.eof", "false");
    by_hand(&mut config);
    config.set(
        "isolation.level",
        match kafka.isolation {
            Isolation::ReadCommitted => "read_committed",
            Isolation::ReadUncommitted => "read_uncommitted",
        },
    );
    let queue_bytes = kafka.fetch_queue_bytes;
    config.set("queued.max.messages.kbytes", (queue_bytes / 1024).max(1).to_string());
    config.set("queued.min.messages", "100000");
    let fetch = queue_bytes.clamp(64 << 10, FETCH_BYTES_MAX);
    config.set("fetch.max.bytes", fetch.to_string());
    config.set("fetch.message.max.bytes", (fetch / 4).clamp(64 << 10, 1 << 20).to_string());
    config.set_log_level(RDKafkaLogLevel::Info);
    config
}

/// Makes the consumer. Nothing is sent before it subscribes or is asked something.
///
/// # Errors
/// If librdkafka refuses a setting: the message names it.
pub(super) fn connect(kafka: &Kafka) -> Result<Reader, Fault> {
    BaseConsumer::from_config_and_context(&settings(kafka), Notes::default()).map_err(|error| {
        Fault::halt(
            format!("cannot make a Kafka consumer: {error}"),
            "mend the setting that the message names, in [source.kafka] or its properties",
        )
    })
}

/// Leaves the group at once, which spares it the session time-out. Its lanes have ended; what is left is to drop it.
///
/// A rebalance that was noted and not answered is answered here. librdkafka closes a consumer whose rebalance callback has
/// run only after an answer, and calls no second time: whoever drops the consumer would wait for ever. An answer about
/// no partition is never refused.
pub(super) fn leave(reader: &Reader) {
    reader.context().close();
    let none = TopicPartitionList::new();
    for answered in [reader.incremental_assign(&none), reader.incremental_unassign(&none)] {
        if let Err(error) = answered {
            // A fatal error: then closing waits for no answer.
            tracing::debug!(%error, "answering the last rebalance failed");
        }
    }
    reader.unsubscribe();
}

/// The reason of a connection to a port at which nobody listens.
pub(super) const CONNECTION_REFUSED: &str = "connection refused";

/// The reason in what librdkafka says of a connection, such as `connection refused` in
/// `host:9092/bootstrap: Connect to ipv4#127.0.0.1:9092 failed: Connection refused (after 0ms in state CONNECT)`.
pub(super) fn reason(text: &str) -> String {
    let text = text.split(" (after ").next().unwrap_or(text);
    let text =
        text.split_once(": ").filter(|(broker, _)| !broker.contains(' ')).map_or(text, |(_, rest)| rest);
    let Some((what, why)) = text.rsplit_once(" failed: ") else { return text.to_owned() };
    // Only of a connection the reason alone says enough.
    if what.starts_with("Connect to ") { why.to_lowercase() } else { text.to_owned() }
}

/// What to do about an answer of the brokers that waiting does not change; none for one that passes.
pub(super) fn refusal_hint(code: RDKafkaErrorCode) -> Option<&'static str> {
    match code {
        RDKafkaErrorCode::InvalidSessionTimeout => Some(
            "set \"session.timeout.ms\" in [source.kafka] properties between the brokers' \
             group.min.session.timeout.ms (6000 by default) and group.max.session.timeout.ms",
        ),
        RDKafkaErrorCode::InconsistentGroupProtocol => Some(
            "another member of the group uses another assignment strategy (tidemill: cooperative-sticky): give the \
             pipeline a group of its own",
        ),
        RDKafkaErrorCode::GroupAuthorizationFailed | RDKafkaErrorCode::TopicAuthorizationFailed => {
            Some("grant the user READ on the group, and READ and DESCRIBE on the topics")
        }
        _passing => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::DefaultProducerContext;

    use super::*;
    use crate::config::model;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn cluster() -> MockCluster<'static, DefaultProducerContext> {
        let cluster = MockCluster::new(1).expect("mock brokers");
        cluster.create_topic("t", 4, 1).expect("a topic");
        cluster
    }

    fn member(cluster: &MockCluster<'static, DefaultProducerContext>) -> Reader {
        let kafka = Kafka {
            brokers: vec![cluster.bootstrap_servers()],
            topics: vec!["t".into()],
            group: "g".into(),
            start: model::Start::Earliest,
            isolation: Isolation::ReadCommitted,
            commit_interval: Duration::from_secs(1),
            fetch_queue_bytes: 1 << 20,
            security: KafkaSecurity::default(),
            properties: BTreeMap::new(),
        };
        let reader = connect(&kafka).expect("a consumer");
        reader.subscribe(&["t"]).expect("subscribed");
        reader
    }

    /// Polls `readers` until the first one has noted what `wanted` looks for. The others answer at once.
    fn until_noted<T>(readers: &[&Reader], wanted: impl Fn(&Rebalance) -> Option<T>) -> T {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            for (place, reader) in readers.iter().enumerate() {
                let _ = reader.poll(Duration::from_millis(20));
                while let Some(note) = reader.context().take() {
                    let Note::Rebalance(rebalance) = note else { continue };
                    match (place, wanted(&rebalance), rebalance) {
                        (0, Some(found), _) => return found,
                        (_, _, Rebalance::Assigned(list)) => {
                            reader.incremental_assign(&list).expect("assigned")
                        }
                        (_, _, Rebalance::Revoked(list)) => {
                            reader.incremental_unassign(&list).expect("unassigned")
                        }
                        (_, _, Rebalance::Failed(_)) => {}
                    }
                }
            }
        }
        // Those that hold back an answer would not be dropped otherwise.
        readers.iter().for_each(|reader| leave(reader));
        panic!("the group does not come to it within {PATIENCE:?}");
    }

    /// Each on a thread of its own: a test that fails leaves behind what hangs.
    fn must_close<const READERS: usize>(readers: [Reader; READERS]) {
        let (done, closed) = mpsc::channel();
        for reader in readers {
            let done = done.clone();
            std::thread::spawn(move || {
                leave(&reader);
                drop(reader);
                // A test that has failed listens no more.
                let _ = done.send(());
            });
        }
        for _ in 0..READERS {
            closed.recv_timeout(PATIENCE).expect("closing the consumers ends");
        }
    }

    fn assigned(rebalance: &Rebalance) -> Option<TopicPartitionList> {
        match rebalance {
            Rebalance::Assigned(list) => Some(list.clone()),
            Rebalance::Revoked(_) | Rebalance::Failed(_) => None,
        }
    }

    #[test]
    fn a_consumer_closes_whose_assignment_was_never_answered() {
        let cluster = cluster();
        let reader = member(&cluster);
        until_noted(&[&reader], assigned);
        must_close([reader]);
    }

    #[test]
    fn a_consumer_closes_whose_revocation_could_not_be_answered() {
        let cluster = cluster();
        let first = member(&cluster);
        let list = until_noted(&[&first], assigned);
        first.incremental_assign(&list).expect("assigned");
        let second = member(&cluster);
        let revoked = until_noted(&[&first, &second], |rebalance| match rebalance {
            Rebalance::Revoked(list) => Some(list.clone()),
            Rebalance::Assigned(_) | Rebalance::Failed(_) => None,
        });
        let mut more = revoked;
        more.add_partition("never taken", 0);
        let unassigned = first.incremental_unassign(&more);
        must_close([first, second]);
        assert!(unassigned.is_err(), "one of them was never assigned");
    }

    #[test]
    fn the_reason_is_told_without_what_librdkafka_puts_around_it() {
        let refused = "127.0.0.1:1/bootstrap: Connect to ipv4#127.0.0.1:1 failed: Connection refused \
                       (after 0ms in state CONNECT)";
        assert_eq!(reason(refused), CONNECTION_REFUSED);
        let unknown = "nowhere:9092/bootstrap: Failed to resolve 'nowhere:9092': Name or service not known \
                       (after 2ms in state CONNECT)";
        assert_eq!(reason(unknown), "Failed to resolve 'nowhere:9092': Name or service not known");
        let sasl = "sasl_ssl://b:9093/1: SASL authentication failed: wrong password";
        assert_eq!(reason(sasl), "SASL authentication failed: wrong password");
        assert_eq!(reason("something else"), "something else");
    }
}
