//! A lane's input: reads its queue by the thousand and gathers each partition's records by column.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::bindings::rd_kafka_resp_err_t as NativeError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::orders::{Orders, Start};
use super::queue::{MESSAGES_PER_CALL, Message, Messages, Queue};
use crate::fault::Fault;
use crate::ledger::Ledger;
use crate::position::{Span, Stay};
use crate::record::{Columns, MARK_DELETE, MARK_KEY, MARK_VALUE};
use crate::source::{Fed, Feed, Gathering};

/// Records of a chunk: from about a thousand on, a guest call's fixed cost is lost in the noise.
const CHUNK_RECORDS_MAX: usize = 2048;
/// Bytes of a chunk's values, keys and headers, unless one record alone is larger.
const CHUNK_BYTES_MAX: usize = 512 << 10;
/// Bytes that all partitions of a lane may have gathered before the fullest is handed on.
const GATHERED_BYTES_MAX: usize = 4 << 20;
/// How long one read of the queue waits for a full thousand: bounds what a record waits here.
const READ_WAIT: Duration = Duration::from_millis(20);
/// How long a lane whose last read brought nothing waits for a message before it goes round once more. New orders
/// [wake](Queue::wake) it, so this costs nobody time: it is only there in case that a call is missed.
const REST: Duration = Duration::from_millis(500);

/// How often it is looked for places that were read over: markers of transactions, and what was aborted.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A lane's queue and what it has gathered from it.
pub(crate) struct KafkaFeed {
    messages: Messages,
    /// Behind `messages`: fields are dropped in order, and messages must go before their queue.
    queue: Arc<Queue>,
    orders: Arc<Orders>,
    /// Told of places without records, which nobody opens a span for.
    ledger: Ledger,
    gathering: Gathering,
    partitions: Vec<Gathered>,
    /// When it was last looked for such places.
    looked_at: Instant,
    /// The last message's topic and partition, and its place in `partitions`.
    last: Option<(usize, i32, usize)>,
    /// Reads of the queue so far: the number of the one that `messages` came from.
    reads: u64,
    /// All that is gathered is handed on before the queue is read again.
    flushing: bool,
    /// The last read brought nothing.
    resting: bool,
    ended: bool,
}

#[derive(Debug)]
struct Gathered {
    start: Start,
    /// The first read that may have brought records of this stay. What is left of an earlier one belongs
    /// to an earlier stay of the same partition, and lies behind the place where this one begins.
    first_read: u64,
    columns: Columns,
    /// End of the last span handed on.
    handed_upto: i64,
    /// The last record gathered, or the end of the last place that was read over.
    upto: i64,
    /// Of the last place that was read over: what it lies behind, and its end.
    read_over: (i64, i64),
    /// Until the position is beyond it, an error may be taken for a record there.
    doubtful: i64,
}

impl Gathered {
    fn of(start: Start, first_read: u64) -> Gathered {
        let after = start.after;
        Gathered {
            start,
            first_read,
            columns: Columns::default(),
            handed_upto: after,
            upto: after,
            read_over: (after, after),
            doubtful: i64::MIN,
        }
    }

    /// Something came that is not behind what came last. librdkafka reads again what a pause interrupted; but where it had
    /// read on without a record there can be none.
    fn check_repeated(&self, offset: i64) -> Result<(), Fault> {
        let (after, upto) = self.read_over;
        if offset <= after || offset > upto {
            return Ok(());
        }
        Err(Fault::halt(
            format!(
                "a record of {} at offset {offset} came after its place was passed",
                self.start.stay.partition
            ),
            format!(
                "this is a defect of tidemill: report it, set the group's offset of the partition back to {offset} with \
                 kafka-consumer-groups --reset-offsets, and start again"
            ),
        ))
    }

    /// Tells the ledger that there is no record before `position`, if it is beyond all that was read, and handed on.
    fn read_on(&mut self, position: i64, ledger: &Ledger) {
        if position < self.doubtful {
            // librdkafka's note was made anew since.
            self.doubtful = i64::MIN;
        }
        let upto = position.saturating_sub(1);
        if position <= self.doubtful || upto <= self.upto || !self.columns.is_empty() {
            return;
        }
        let span = Span { stay: self.start.stay.clone(), after: self.handed_upto, upto };
        if ledger.advance(&span) {
            let after = if self.read_over.1 == self.upto { self.read_over.0 } else { self.upto };
            self.read_over = (after, upto);
            (self.handed_upto, self.upto) = (upto, upto);
        }
    }

    fn is_full(&self) -> bool {
        let Columns { values, keys, headers, .. } = &self.columns;
        let bytes = values.data.len() + keys.data.len() + headers.contents.data.len();
        self.columns.len() >= CHUNK_RECORDS_MAX || bytes >= CHUNK_BYTES_MAX
    }
}

impl KafkaFeed {
    pub(super) fn new(
        queue: Arc<Queue>,
        orders: Arc<Orders>,
        ledger: Ledger,
        gathering: Gathering,
    ) -> KafkaFeed {
        KafkaFeed {
            messages: Messages::new(),
            queue,
            orders,
            ledger,
            gathering,
            partitions: Vec::new(),
            looked_at: Instant::now(),
            last: None,
            reads: 0,
            flushing: false,
            resting: false,
            ended: false,
        }
    }

    /// Lets go of stays that were taken back, and takes up new ones: `first_read` is the first read that
    /// can have brought records of those.
    fn follow_orders(&mut self, first_read: u64) {
        let Some(news) = self.orders.news() else { return };
        self.ended = news.ended;
        self.last = None;
        self.partitions.retain(|gathered| news.stays.contains(&gathered.start));
        for start in news.stays {
            if !self.partitions.iter().any(|gathered| gathered.start == start) {
                self.partitions.push(Gathered::of(start, first_read));
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
                let place = format!("{}[{}]", message.topic(), message.partition());
                check_error(&place, message.offset(), code, &text)?;
                if let Some(place) = find(&self.partitions, self.reads, &message) {
                    let gathered = &mut self.partitions[place];
                    gathered.doubtful = gathered.doubtful.max(message.offset().saturating_add(1));
                    message.go_on_at(gathered.upto.saturating_add(1));
                }
                continue;
            }
            let known = self.last.filter(|(topic, partition, _)| {
                *topic == message.topic_id() && *partition == message.partition()
            });
            let place = match known {
                Some((_, _, place)) => place,
                None => {
                    let Some(place) = find(&self.partitions, self.reads, &message) else { continue };
                    self.last = Some((message.topic_id(), message.partition(), place));
                    place
                }
            };
            let gathered = &mut self.partitions[place];
            if message.offset() <= gathered.upto {
                gathered.check_repeated(message.offset())?;
                continue;
            }
            copy(&message, gathered, self.gathering);
            if gathered.is_full() {
                return Ok(Some(place));
            }
        }
    }

    /// Reads the queue, and follows what was ordered meanwhile: a partition may have been given while the read waited, and
    /// may have delivered into it. Its records must not be taken for those of a stranger.
    fn read(&mut self) {
        self.orders.begin_read();
        if self.resting {
            self.queue.read_after_rest(&mut self.messages, REST, READ_WAIT);
        } else {
            self.queue.read(&mut self.messages, READ_WAIT);
        }
        self.resting = self.messages.came() == 0;
        self.reads += 1;
        self.follow_orders(self.reads);
        self.orders.end_read();
    }

    /// Now and then, when all that was read is gathered: has the ledger follow the position where no record was, or a
    /// partition that is quiet from then on would be read again from before its last marker, which retention may have
    /// taken away by then.
    fn look_for_places_read_over(&mut self) {
        if self.looked_at.elapsed() < LOOK_EVERY {
            return;
        }
        self.looked_at = Instant::now();
        let at_rest =
            || self.partitions.iter().enumerate().filter(|(_, gathered)| gathered.columns.is_empty());
        let mut list = TopicPartitionList::with_capacity(self.partitions.len());
        let mut places = Vec::with_capacity(self.partitions.len());
        for (place, gathered) in at_rest() {
            let partition = &gathered.start.stay.partition;
            let Ok(number) = i32::try_from(partition.number) else { continue };
            list.add_partition(&partition.source, number);
            places.push(place);
        }
        if places.is_empty() || !self.queue.positions(&list) {
            return;
        }
        for (element, place) in list.elements().into_iter().zip(places) {
            if let Offset::Offset(position) = element.offset() {
                self.partitions[place].read_on(position, &self.ledger);
            }
        }
    }

    fn fullest(&self) -> Option<usize> {
        let filled = self.partitions.iter().enumerate().filter(|(_, gathered)| !gathered.columns.is_empty());
        filled.max_by_key(|(_, gathered)| gathered.columns.bytes()).map(|(place, _)| place)
    }
}

/// The stay that a message of read number `read` belongs to.
fn find(partitions: &[Gathered], read: u64, message: &Message<'_>) -> Option<usize> {
    let topic = message.topic();
    let number = u32::try_from(message.partition()).ok()?;
    partitions.iter().position(|gathered| {
        let partition = &gathered.start.stay.partition;
        partition.number == number && *partition.source == *topic && gathered.first_read <= read
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
fn check_error(place: &str, offset: i64, code: NativeError, text: &str) -> Result<(), Fault> {
    match code {
        NativeError::RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET
        | NativeError::RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE => Err(Fault::halt(
            format!("cannot read {place} at offset {offset}: {text}"),
            "records between the committed offset and the oldest one that the broker still has are gone \
             (retention), or the topic was made anew; decide where to go on and set the group's offset \
             with kafka-consumer-groups --reset-offsets",
        )),
        // librdkafka goes on behind these records, which would be left out.
        NativeError::RD_KAFKA_RESP_ERR__BAD_MSG | NativeError::RD_KAFKA_RESP_ERR__NOT_IMPLEMENTED => {
            Err(Fault::halt(
                format!("cannot read {place} at offset {offset}: {text}"),
                "the records there are damaged, or of a format that nobody writes any more: mend the partition, or set the \
                 group's offset behind them with kafka-consumer-groups --reset-offsets",
            ))
        }
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
        self.follow_orders(self.reads + 1);
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
            self.look_for_places_read_over();
            self.read();
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
        self.follow_orders(self.reads + 1);
        self.partitions.iter().any(|gathered| gathered.start.stay == *stay)
    }
}

#[cfg(test)]
mod tests;
