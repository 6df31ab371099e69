//! `run --dry-run`: the first records of each partition, read without joining the group.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::Message as _;
use rdkafka::consumer::Consumer as _;
use rdkafka::message::Headers as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::{consumer, start};
use crate::config::model::Kafka;
use crate::fault::Fault;
use crate::record::{Columns, MARK_DELETE, MARK_KEY, MARK_VALUE};

/// How long to wait for further records.
const PATIENCE: Duration = Duration::from_secs(5);

/// Reads up to `records` records from where the pipeline would go on. Nothing is committed.
/// Returns one chunk a partition and topic that had any.
///
/// # Errors
/// If the brokers do not answer or refuse.
pub(crate) fn read(kafka: &Kafka, records: usize) -> Result<Vec<Columns>, Fault> {
    let reader = consumer::connect(kafka)?;
    let topics = super::ask_topics(&reader, kafka)?;
    let mut named = Vec::new();
    for topic in topics.keys() {
        let metadata = reader
            .fetch_metadata(Some(topic), start::ASK_TIMEOUT)
            .map_err(|error| Fault::retry("cannot ask for the topic's partitions").caused_by(error))?;
        let partitions = metadata.topics().iter().flat_map(rdkafka::metadata::MetadataTopic::partitions);
        named.extend(partitions.map(|partition| (topic.clone(), partition.id())));
    }
    let mut rule = start::Rule::new(kafka, topics.into_keys().collect());
    let failed = |error| Fault::retry("cannot assign partitions").caused_by(error);
    let mut assignment = TopicPartitionList::new();
    for ((topic, partition), found) in start::find(&reader, &named, &mut rule, |_| None)? {
        assignment.add_partition_offset(&topic, partition, Offset::Offset(found.offset)).map_err(failed)?;
    }
    reader.assign(&assignment).map_err(failed)?;
    gather(&reader, records)
}

fn gather(reader: &consumer::Reader, records: usize) -> Result<Vec<Columns>, Fault> {
    let mut chunks: Vec<((String, i32), Columns)> = Vec::new();
    let (mut came, mut last) = (0, Instant::now());
    while came < records && last.elapsed() < PATIENCE {
        let message = match reader.poll(Duration::from_millis(100)) {
            None => continue,
            Some(Ok(message)) => message,
            Some(Err(error)) => return Err(Fault::retry("cannot read from Kafka").caused_by(error)),
        };
        came += 1;
        last = Instant::now();
        let place = (message.topic().to_owned(), message.partition());
        let index = chunks.iter().position(|(at, _)| *at == place).unwrap_or_else(|| {
            let source: Arc<str> = place.0.as_str().into();
            chunks.push((place, Columns { source: Some(source), ..Columns::default() }));
            chunks.len() - 1
        });
        append(&message, &mut chunks[index].1);
    }
    Ok(chunks.into_iter().map(|(_, columns)| columns).collect())
}

fn append(message: &rdkafka::message::BorrowedMessage<'_>, columns: &mut Columns) {
    let mut mark = if message.payload().is_some() { MARK_VALUE } else { MARK_DELETE };
    if message.key().is_some() {
        mark |= MARK_KEY;
    }
    columns.values.push(message.payload().unwrap_or_default());
    columns.keys.push(message.key().unwrap_or_default());
    if let Some(headers) = message.headers() {
        for header in headers.iter() {
            columns.headers.names.push(header.key.as_bytes());
            columns.headers.contents.push(header.value.unwrap_or_default());
        }
    }
    columns.headers.end_record();
    columns.marks.push(mark);
    columns.timestamps.push(message.timestamp().to_millis().unwrap_or(0).saturating_mul(1000));
    columns.partitions.push(u32::try_from(message.partition()).unwrap_or(0));
    columns.offsets.push(message.offset());
}
