//! Whether the brokers let an exactly_once pipeline do what it has to: a transaction like those of its decisions, which
//! is then taken back (delivery.md §3 rule 10).

use std::time::Duration;

use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError;
use rdkafka::producer::Producer as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::consumer::{self, Reader};
use super::decider::{Purpose, denied, not_made, not_taken, padded, settings};
use super::membership::NotSent;
use super::start;
use crate::config::model::Kafka;
use crate::dead_letter::tally::{Producer, Tally};
use crate::fault::Fault;

/// How long one step may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Tries the rights to transactions whose id begins with the pipeline's name, to the group, and to offsets of all
/// partitions with as much text beside them as a decision has. Nothing is changed: the transaction is aborted.
///
/// While it lasts, some milliseconds, members of the group that ask for their offsets wait for its end.
///
/// # Errors
/// Halt, naming what has to be granted or raised; retry, if the brokers do not answer.
pub(crate) fn check_transactions(kafka: &Kafka, pipeline: &str) -> Result<(), Fault> {
    let reader = consumer::connect(kafka)?;
    let offsets = offsets_of_all(&reader, kafka)?;
    let id = format!("{pipeline}-check-{:08x}", rand::random::<u32>());
    let producer: Producer =
        settings(kafka, &id).create_with_context(Tally::default()).map_err(|error| not_made(&error))?;
    producer.init_transactions(PATIENCE).map_err(|error| denied(&id, Purpose::Decisions, error))?;
    producer.begin_transaction().map_err(|error| denied(&id, Purpose::Decisions, error))?;
    let sent = send(&producer, &reader, &offsets, &id);
    let aborted = producer.abort_transaction(PATIENCE);
    sent?;
    aborted.map_err(|error| Fault::retry("cannot take a transaction back in Kafka").caused_by(error))
}

fn send(producer: &Producer, reader: &Reader, offsets: &TopicPartitionList, id: &str) -> Result<(), Fault> {
    let group = reader.group_metadata().ok_or_else(|| Fault::retry("the consumer has no group"))?;
    producer.send_offsets_to_transaction(offsets, &group, PATIENCE).map_err(|error| match &error {
        KafkaError::Transaction(refused) => {
            not_taken(&NotSent { text: refused.to_string(), code: refused.code() }, Purpose::Decisions)
        }
        _other => denied(id, Purpose::Decisions, error),
    })
}

/// Some offset of each partition, and beside it a text as long as any of ours.
fn offsets_of_all(reader: &Reader, kafka: &Kafka) -> Result<TopicPartitionList, Fault> {
    let unknown = |error: KafkaError| Fault::retry("cannot ask for the topics' partitions").caused_by(error);
    let mut offsets = TopicPartitionList::new();
    for topic in super::ask_topics(reader, kafka)?.keys() {
        let metadata = reader.fetch_metadata(Some(topic), start::ASK_TIMEOUT).map_err(unknown)?;
        for partition in metadata.topics().iter().flat_map(rdkafka::metadata::MetadataTopic::partitions) {
            let mut element = offsets.add_partition(topic, partition.id());
            element.set_offset(Offset::Offset(0)).map_err(unknown)?;
            element.set_metadata(padded(""));
        }
    }
    Ok(offsets)
}
