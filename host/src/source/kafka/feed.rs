//! A lane's input: reads its queue by the thousand and gathers each partition's records by column.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::bindings::rd_kafka_resp_err_t as NativeError;

use super::orders::{Orders, Start};
use super::queue::{MESSAGES_PER_CALL, Message, Messages, Queue};
use crate::fault::Fault;
use crate::position::{Span, Stay};
use crate::record::{Columns, MARK_DELETE, MARK_KEY, MARK_VALUE};
use crate::source::{Fed, Feed};

/// Records of a chunk: from about a thousand on, a guest call's fixed cost is lost in the noise.
const CHUNK_RECORDS_MAX: usize = 4096;
/// Bytes of a chunk's values, unless one record alone is larger.
const CHUNK_BYTES_MAX: usize = 1 << 20;
/// Bytes that all partitions of a lane may have gathered before the fullest is handed on.
const GATHERED_BYTES_MAX: usize = 4 << 20;
/// How long one read of the queue waits for a full thousand: bounds what a record waits here.
const READ_WAIT: Duration = Duration::from_millis(20);

/// What is worth copying out of a message.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Gathering {
    /// Keys are wanted by a plugin, or kept with dead letters.
    pub(crate) keys: bool,
    /// Headers, likewise.
    pub(crate) headers: bool,
    /// Timestamps, likewise.
    pub(crate) timestamps: bool,
    /// Partition numbers are wanted by a plugin. Offsets are always gathered.
    pub(crate) partitions: bool,
    /// No plugin looks at the values: end each with a line feed, so that the column can be a
    /// segment of the request as it is.
    pub(crate) line_feeds: bool,
}

/// A lane's queue and what it has gathered from it.
pub(crate) struct KafkaFeed {
    messages: Messages,
    /// Behind `messages`: fields are dropped in order, and messages must go before their queue.
    queue: Arc<Queue>,
    orders: Arc<Orders>,
    gathering: Gathering,
    partitions: Vec<Gathered>,
    /// The last message's topic and partition, and its place in `partitions`.
    last: Option<(usize, i32, usize)>,
    /// All that is gathered is handed on before the queue is read again.
    flushing: bool,
    ended: bool,
}

#[derive(Debug)]
struct Gathered {
    start: Start,
    columns: Columns,
    /// End of the last span handed on.
    handed_upto: i64,
    /// The last record gathered.
    upto: i64,
}

impl Gathered {
    fn is_full(&self) -> bool {
        self.columns.len() >= CHUNK_RECORDS_MAX || self.columns.values.data.len() >= CHUNK_BYTES_MAX
    }
}

impl KafkaFeed {
    pub(super) fn new(queue: Arc<Queue>, orders: Arc<Orders>, gathering: Gathering) -> KafkaFeed {
        KafkaFeed {
            messages: Messages::new(),
            queue,
            orders,
            gathering,
            partitions: Vec::new(),
            last: None,
            flushing: false,
            ended: false,
        }
    }

    fn follow_orders(&mut self) {
        let Some(news) = self.orders.news() else { return };
        self.ended = news.ended;
        self.last = None;
        self.partitions.retain(|gathered| news.stays.contains(&gathered.start));
        for start in news.stays {
            if !self.partitions.iter().any(|gathered| gathered.start == start) {
                let after = start.after;
                let columns = Columns::default();
                self.partitions.push(Gathered { start, columns, handed_upto: after, upto: after });
            }
        }
    }

    /// Swaps the gathered columns of `place` for the emptied ones of the lane.
    fn hand_on(&mut self, place: usize, into: &mut Columns) -> Span {
        let gathered = &mut self.partitions[place];
        into.clear();
        std::mem::swap(&mut gathered.columns, into);
        into.source = Some(Arc::clone(&gathered.start.stay.partition.source));
        let span =
            Span { stay: gathered.start.stay.clone(), after: gathered.handed_upto, upto: gathered.upto };
        gathered.handed_upto = gathered.upto;
        span
    }

    /// Gathers the messages read; stops at a chunk that is full and tells its place.
    fn gather(&mut self) -> Result<Option<usize>, Fault> {
        loop {
            let Some(message) = self.messages.next() else { return Ok(None) };
            if let Some((code, text)) = message.error() {
                check_error(&message, code, &text)?;
                continue;
            }
            let known = self.last.filter(|(topic, partition, _)| {
                *topic == message.topic_id() && *partition == message.partition()
            });
            let place = match known {
                Some((_, _, place)) => place,
                None => {
                    let Some(place) = find(&self.partitions, &message) else { continue };
                    self.last = Some((message.topic_id(), message.partition(), place));
                    place
                }
            };
            let gathered = &mut self.partitions[place];
            if message.offset() <= gathered.upto {
                // Nothing that librdkafka should do; the record was read already.
                continue;
            }
            copy(&message, gathered, self.gathering);
            if gathered.is_full() {
                return Ok(Some(place));
            }
        }
    }

    fn fullest(&self) -> Option<usize> {
        let filled = self.partitions.iter().enumerate().filter(|(_, gathered)| !gathered.columns.is_empty());
        filled.max_by_key(|(_, gathered)| gathered.columns.bytes()).map(|(place, _)| place)
    }
}

fn find(partitions: &[Gathered], message: &Message<'_>) -> Option<usize> {
    let topic = message.topic();
    let number = u32::try_from(message.partition()).ok()?;
    partitions.iter().position(|gathered| {
        let partition = &gathered.start.stay.partition;
        partition.number == number && *partition.source == *topic
    })
}

/// The one copy between librdkafka's buffer and our columns.
fn copy(message: &Message<'_>, gathered: &mut Gathered, gathering: Gathering) {
    let columns = &mut gathered.columns;
    let mut mark = 0;
    match message.value() {
        Some(value) => {
            mark |= MARK_VALUE;
            columns.values.data.extend_from_slice(value);
        }
        None => mark |= MARK_DELETE,
    }
    if gathering.line_feeds {
        columns.values.data.push(b'\n');
    }
    columns.values.ends.push(columns.values.data.len() as u32);
    let key = message.key();
    if key.is_some() {
        mark |= MARK_KEY;
    }
    if gathering.keys {
        columns.keys.push(key.unwrap_or_default());
    }
    if gathering.headers {
        message.headers(&mut columns.headers);
        columns.headers.end_record();
    }
    columns.marks.push(mark);
    if gathering.timestamps {
        columns.timestamps.push(message.timestamp_us());
    }
    if gathering.partitions {
        columns.partitions.push(gathered.start.stay.partition.number);
    }
    columns.offsets.push(message.offset());
    gathered.upto = message.offset();
}

/// Errors that stand in the queue in place of a record. Passing ones are librdkafka's to get over.
fn check_error(message: &Message<'_>, code: NativeError, text: &str) -> Result<(), Fault> {
    let place = format!("{}[{}]", message.topic(), message.partition());
    match code {
        NativeError::RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET
        | NativeError::RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE => Err(Fault::halt(
            format!("cannot read {place} at offset {}: {text}", message.offset()),
            "records between the committed offset and the oldest one that the broker still has are gone \
             (retention), or the topic was made anew; decide where to go on and set the group's offset \
             with kafka-consumer-groups --reset-offsets",
        )),
        NativeError::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART
        | NativeError::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC
        | NativeError::RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION => Err(Fault::halt(
            format!("cannot read {place}: {text}"),
            "the topic or partition is gone; create it, or take it out of [source.kafka] topics",
        )),
        NativeError::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED
        | NativeError::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED => Err(Fault::halt(
            format!("cannot read {place}: {text}"),
            "grant the user READ and DESCRIBE on the topic and READ on the group",
        )),
        other => {
            tracing::warn!(partition = %place, error = ?other, "kafka: {text}; librdkafka tries again");
            Ok(())
        }
    }
}

impl Feed for KafkaFeed {
    fn next(&mut self, into: &mut Columns) -> Result<Fed, Fault> {
        self.follow_orders();
        if self.ended {
            return Ok(Fed::Ended);
        }
        if self.flushing {
            if let Some(place) = self.fullest() {
                return Ok(Fed::Chunk(self.hand_on(place, into)));
            }
            self.flushing = false;
        }
        loop {
            if let Some(place) = self.gather()? {
                return Ok(Fed::Chunk(self.hand_on(place, into)));
            }
            let bytes: usize = self.partitions.iter().map(|gathered| gathered.columns.bytes()).sum();
            if let Some(place) = self.fullest().filter(|_| bytes >= GATHERED_BYTES_MAX) {
                return Ok(Fed::Chunk(self.hand_on(place, into)));
            }
            self.queue.read(&mut self.messages, READ_WAIT);
            // A partition may have been given while this read waited, and may have delivered into it:
            // its records must not be taken for those of a stranger.
            self.follow_orders();
            if self.ended {
                return Ok(Fed::Ended);
            }
            if self.messages.came() < MESSAGES_PER_CALL {
                // The queue is empty: nothing is gained by waiting for fuller chunks.
                self.flushing = true;
                let full = self.gather()?;
                return Ok(match full.or_else(|| self.fullest()) {
                    Some(place) => Fed::Chunk(self.hand_on(place, into)),
                    None => Fed::Idle,
                });
            }
        }
    }

    fn owns(&mut self, stay: &Stay) -> bool {
        self.follow_orders();
        self.partitions.iter().any(|gathered| gathered.start.stay == *stay)
    }
}
