//! Whether the brokers let a pipeline do what it has to: a transaction like those of its decisions, or of its claims, which
//! is then taken back (delivery.md §3 rule 10).

use std::time::Duration;

use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError;
use rdkafka::producer::Producer as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::consumer::{self, Reader};
use super::decider::{Purpose, denied, not_made, not_taken, settings};
use super::membership::NotSent;
use super::start;
use crate::config::model::Kafka;
use crate::dead_letter::tally::{Producer, Tally};
use crate::fault::Fault;

/// How long one step may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the brokers do not let the user do. Each is a halt that names what has to be granted or raised, or a retry if the
/// brokers do not answer.
#[derive(Debug)]
pub(crate) enum Denied {
    /// To begin transactions at all: a pipeline that only guards its tables by them runs without.
    Transactions(Fault),
    /// To write its offsets: it would halt.
    Offsets(Fault),
}

impl Denied {
    /// What was denied, whichever it is.
    pub(crate) fn into_fault(self) -> Fault {
        match self {
            Denied::Transactions(fault) | Denied::Offsets(fault) => fault,
        }
    }
}

/// Tries the rights to transactions whose id begins with the pipeline's name, to the group, and to offsets of all
/// partitions with as much text beside them as what the transactions are for. Nothing is changed: the transaction is
/// aborted.
///
/// While it lasts, some milliseconds, members of the group that ask for their offsets wait for its end.
///
/// # Errors
/// What is denied.
pub(crate) fn check_transactions(kafka: &Kafka, pipeline: &str, purpose: Purpose) -> Result<(), Denied> {
    let reader = consumer::connect(kafka).map_err(Denied::Offsets)?;
    let offsets = offsets_of_all(&reader, kafka, purpose).map_err(Denied::Offsets)?;
    let id = format!("{pipeline}-check-{:08x}", rand::random::<u32>());
    let refused = |error| Denied::Transactions(denied(&id, purpose, error));
    let producer: Producer = settings(kafka, &id)
        .create_with_context(Tally::default())
        .map_err(|error| Denied::Offsets(not_made(&error)))?;
    producer.init_transactions(PATIENCE).map_err(refused)?;
    producer.begin_transaction().map_err(refused)?;
    let sent = send(&producer, &reader, &offsets, (&id, purpose));
    let aborted = producer.abort_transaction(PATIENCE);
    sent.map_err(Denied::Offsets)?;
    aborted.map_err(|error| {
        Denied::Offsets(Fault::retry("cannot take a transaction back in Kafka").caused_by(error))
    })
}

fn send(
    producer: &Producer,
    reader: &Reader,
    offsets: &TopicPartitionList,
    (id, purpose): (&str, Purpose),
) -> Result<(), Fault> {
    let group = reader.group_metadata().ok_or_else(|| Fault::retry("the consumer has no group"))?;
    producer.send_offsets_to_transaction(offsets, &group, PATIENCE).map_err(|error| match &error {
        KafkaError::Transaction(refused) => {
            not_taken(&NotSent { text: refused.to_string(), code: refused.code() }, purpose)
        }
        _other => denied(id, purpose, error),
    })
}

/// Some offset of each partition, and beside it a text as long as any of ours.
fn offsets_of_all(reader: &Reader, kafka: &Kafka, purpose: Purpose) -> Result<TopicPartitionList, Fault> {
    // White space is as good as any other text.
    let text = " ".repeat(purpose.text_bytes());
    let unknown = |error: KafkaError| Fault::retry("cannot ask for the topics' partitions").caused_by(error);
    let mut offsets = TopicPartitionList::new();
    for topic in super::ask_topics(reader, kafka)?.keys() {
        let metadata = reader.fetch_metadata(Some(topic), start::ASK_TIMEOUT).map_err(unknown)?;
        for partition in metadata.topics().iter().flat_map(rdkafka::metadata::MetadataTopic::partitions) {
            let mut element = offsets.add_partition(topic, partition.id());
            element.set_offset(Offset::Offset(0)).map_err(unknown)?;
            element.set_metadata(&text);
        }
    }
    Ok(offsets)
}
