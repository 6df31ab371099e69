//! Writes decisions into Kafka: offsets with what was decided beside them, all or none, in the name of one member
//! and generation (delivery.md §3 rule 4).
//!
//! A plain commit would do neither: its generation is taken when it is sent, partitions can fail one by one, and
//! when its answer is lost nobody knows what was decided. A transaction that ends without an answer is settled by
//! the next producer with the same id.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::Producer as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::claim;
use super::consumer::{Reader, secure};
use super::membership::{Membership, NotSent};
use crate::config::model::Kafka;
use crate::dead_letter::tally::{Producer, RECORD_BYTES_MAX, TOPIC_PATIENCE_MS, Tally};
use crate::dead_letter::{Outbox, Undecided};
use crate::delivery::decision::Decision;
use crate::fault::Fault;

/// How long the brokers keep an open transaction whose producer has died: as long as the group waits for a member.
const TRANSACTION_TIMEOUT_MS: u32 = 10_000;
/// How long one step may take. The control thread waits for it, and the group meanwhile for us.
const STEP_PATIENCE: Duration = Duration::from_secs(10);
/// How long the brokers may take to end a transaction that was left open, when the pipeline ends.
const END_PATIENCE: Duration = Duration::from_secs(3);
/// Settings of `properties` that are of any client.
const CONNECTION_PROPERTIES: [&str; 7] =
    ["ssl.", "sasl.", "socket.", "broker.", "reconnect.", "metadata.", "enable.ssl."];
/// A metadata text that is as long as any of ours: the claim is padded to it, and shows at once whether the brokers
/// take such texts for all partitions together (`offset.metadata.max.bytes`, 4096 by default).
pub(super) const METADATA_BYTES: usize = 384;

/// What transactions take.
pub(crate) const RIGHTS: &str = "WRITE and DESCRIBE on TransactionalId with the pipeline's name as prefix";

/// Offsets (the next one to read) and what stands beside them, by topic and partition.
pub(super) type Standings = BTreeMap<(String, i32), (i64, Decision)>;

/// What became of a decision.
#[derive(Debug)]
#[must_use]
pub(super) enum Written {
    /// It stands.
    Yes,
    /// It does not, and never will.
    No(Fault),
    /// Nobody knows: to be settled before anything else.
    Unknown(Fault),
}

/// What the transactions are for: errors say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// `delivery = "exactly_once"`.
    Decisions,
    /// The fence of Primary Key tables, at least once.
    Claims,
}

impl Purpose {
    /// The most bytes of text that it keeps beside an offset.
    pub(super) fn text_bytes(self) -> usize {
        match self {
            Purpose::Decisions => METADATA_BYTES,
            Purpose::Claims => claim::TEXT_BYTES_MAX,
        }
    }
}

/// The producer of one process for its decisions.
pub(super) struct Decider {
    config: ClientConfig,
    id: String,
    purpose: Purpose,
    producer: Option<Producer>,
    /// A transaction was begun of which the brokers have not said that it has ended.
    open: bool,
}

impl Decider {
    /// A decider whose transactions are those of this life of the process.
    pub(super) fn new(kafka: &Kafka, label_stem: &str, purpose: Purpose) -> Decider {
        Decider {
            config: settings(kafka, label_stem),
            id: label_stem.to_owned(),
            purpose,
            producer: None,
            open: false,
        }
    }

    /// Makes the producer, if there is none, which settles what the last one left open.
    ///
    /// # Errors
    /// Retry, if the brokers do not answer; halt, if they refuse.
    pub(super) fn settle(&mut self) -> Result<(), Fault> {
        if self.producer.is_some() {
            return Ok(());
        }
        self.settle_within(STEP_PATIENCE)
    }

    fn settle_within(&mut self, patience: Duration) -> Result<(), Fault> {
        let producer: Producer =
            self.config.create_with_context(Tally::default()).map_err(|error| not_made(&error))?;
        producer.init_transactions(patience).map_err(|error| denied(&self.id, self.purpose, error))?;
        (self.producer, self.open) = (Some(producer), false);
        Ok(())
    }

    /// Nothing is written any more. A transaction that was left open would keep the next start waiting until the brokers
    /// end it.
    pub(super) fn end(&mut self) {
        if !self.open {
            return;
        }
        self.producer = None;
        if let Err(fault) = self.settle_within(END_PATIENCE) {
            tracing::debug!("{}", fault.story());
        }
    }

    /// Writes all `standings` in one transaction, and letters with them, unless the member is not the one that was given
    /// these partitions: `still_owned` is asked after the membership was taken.
    pub(super) fn write(
        &mut self,
        reader: &Reader,
        standings: &Standings,
        letters: Option<(&Outbox, &[Undecided])>,
        still_owned: impl FnOnce() -> bool,
    ) -> Written {
        match offsets_of(standings) {
            Ok(offsets) => self.write_offsets(reader, &offsets, letters, still_owned),
            Err(error) => {
                let fault = Fault::halt("cannot name the offsets of a decision", "report this defect");
                Written::No(fault.caused_by(error))
            }
        }
    }

    /// The same for any offsets and texts.
    pub(super) fn write_offsets(
        &mut self,
        reader: &Reader,
        offsets: &TopicPartitionList,
        letters: Option<(&Outbox, &[Undecided])>,
        still_owned: impl FnOnce() -> bool,
    ) -> Written {
        if let Err(fault) = self.settle() {
            return Written::No(fault);
        }
        let Some(producer) = &self.producer else { return Written::No(Fault::retry("no producer")) };
        let membership = Membership::of(reader).filter(Membership::is_known);
        let Some(membership) = membership.filter(|_| still_owned()) else {
            return Written::No(Fault::retry("this process is no member of its group just now"));
        };
        if let Err(error) = producer.begin_transaction() {
            self.producer = None;
            return Written::No(Fault::retry("cannot begin a transaction").caused_by(error));
        }
        self.open = true;
        // After whatever does not go well the next producer begins, and has the brokers end this transaction: a try
        // that is still on its way must not join the next one.
        if let Some((outbox, letters)) = letters
            && let Err(error) = outbox.write(producer, letters)
        {
            // A transaction that has failed says why. Of one that has not, no end will be sent.
            let ended = membership.send_offsets(producer, offsets, STEP_PATIENCE).err();
            self.producer = None;
            return Written::No(
                outbox.not_written(error, ended.as_ref().map(|why| (why.code, why.text.as_str()))),
            );
        }
        if let Err(refused) = membership.send_offsets(producer, offsets, STEP_PATIENCE) {
            self.producer = None;
            // No end was sent, so the brokers can only abort it.
            return Written::No(not_taken(&refused, self.purpose));
        }
        crate::failpoint::at("epoch.offsets_sent");
        match producer.commit_transaction(STEP_PATIENCE) {
            Ok(()) => {
                self.open = false;
                Written::Yes
            }
            Err(error) => {
                self.producer = None;
                Written::Unknown(Fault::retry("the answer to a decision did not come").caused_by(error))
            }
        }
    }
}

/// Sets what concerns connections as the source has it; the rest of its properties is a consumer's.
pub(crate) fn connect_alike(config: &mut ClientConfig, kafka: &Kafka) {
    let shared = |key: &str| CONNECTION_PROPERTIES.iter().any(|prefix| key.starts_with(prefix));
    for (key, value) in kafka.properties.iter().filter(|(key, _)| shared(key)) {
        config.set(key, value);
    }
    secure(config, &kafka.security);
}

/// The settings of a producer of transactions under that id.
pub(super) fn settings(kafka: &Kafka, transactional_id: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    connect_alike(&mut config, kafka);
    config.set("bootstrap.servers", kafka.brokers.join(","));
    config.set("client.id", "tidemill-decisions");
    config.set("transactional.id", transactional_id);
    config.set("transaction.timeout.ms", TRANSACTION_TIMEOUT_MS.to_string());
    config.set("message.max.bytes", RECORD_BYTES_MAX);
    // Before a letter's time is over (the transaction's), or a topic that is missing would look like a slow one.
    config.set("topic.metadata.propagation.max.ms", TOPIC_PATIENCE_MS.to_string());
    config
}

/// The fault of a producer that librdkafka does not make.
pub(super) fn not_made(error: &KafkaError) -> Fault {
    let hint = "mend the setting that the message names, in [source.kafka]";
    Fault::halt(format!("cannot make a producer for decisions: {error}"), hint)
}

/// The brokers' answer to a producer that wants to begin transactions as `id`.
pub(super) fn denied(id: &str, purpose: Purpose, error: KafkaError) -> Fault {
    let denied =
        [RDKafkaErrorCode::TransactionalIdAuthorizationFailed, RDKafkaErrorCode::ClusterAuthorizationFailed];
    if error.rdkafka_error_code().is_some_and(|code| denied.contains(&code)) {
        let hint = match purpose {
            Purpose::Decisions => {
                format!("exactly_once needs it: grant {RIGHTS}, or set delivery = \"at_least_once\"")
            }
            Purpose::Claims => format!(
                "the fence of Primary Key tables needs it: grant {RIGHTS}; a start without that right goes on with plain commits"
            ),
        };
        return Fault::halt(format!("kafka does not let this user write transactions as `{id}`"), hint);
    }
    Fault::retry("cannot begin transactions in Kafka").caused_by(error)
}

/// The group's answer to offsets in a transaction.
pub(super) fn not_taken(refused: &NotSent, purpose: Purpose) -> Fault {
    let what = format!("the group did not take the offsets: {}", refused.text);
    match refused.code {
        RDKafkaErrorCode::GroupAuthorizationFailed | RDKafkaErrorCode::TopicAuthorizationFailed => {
            Fault::halt(what, "grant the user READ on the group and on the topics")
        }
        RDKafkaErrorCode::OffsetMetadataTooLarge => {
            let whose = match purpose {
                Purpose::Decisions => "exactly_once",
                Purpose::Claims => "the fence of Primary Key tables",
            };
            let bytes = purpose.text_bytes();
            let hint = format!(
                "{whose} keeps up to {bytes} bytes beside an offset: raise the brokers' offset.metadata.max.bytes"
            );
            Fault::halt(what, hint)
        }
        RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize => Fault::halt(
            what,
            "one process has too many partitions for one commit: run more processes, or raise the brokers' message.max.bytes",
        ),
        _passing => Fault::retry(what),
    }
}

fn offsets_of(standings: &Standings) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::new();
    for ((topic, partition), (offset, decision)) in standings {
        let mut element = list.add_partition(topic, *partition);
        element.set_offset(Offset::Offset(*offset))?;
        // White space behind a JSON document means nothing.
        element.set_metadata(padded(&decision.to_metadata()));
    }
    Ok(list)
}

/// A text as long as any of ours.
pub(super) fn padded(text: &str) -> String {
    format!("{text:<METADATA_BYTES$}")
}
