//! librdkafka's queues, which rdkafka does not expose: the one module with `unsafe` for Kafka.
//!
//! A lane owns one queue; the partitions that it reads are forwarded to it, so that a slow partition
//! blocks its lane only and a thousand messages cost one call (reference: kafka.md, "Reading fast").
//! Everything borrowed from librdkafka keeps the client alive through `Arc<Reader>`.

#![expect(
    unsafe_code,
    reason = "rd_kafka_consume_batch_queue and queue forwarding have no safe wrapper in rdkafka; each block \
              says why it is sound"
)]

use std::ffi::{CStr, CString};
use std::os::raw::c_void;
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::bindings as native;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::topic_partition_list::TopicPartitionList;

use super::consumer::Reader;
use crate::record::HeaderColumn;

/// Messages asked for in one call.
pub(super) const MESSAGES_PER_CALL: usize = 1024;

/// A queue of our own, to which partitions are forwarded.
pub(super) struct Queue {
    native: NonNull<native::rd_kafka_queue_t>,
    /// Destroyed after the queue: fields are dropped in order, and `Drop` below runs first.
    reader: Arc<Reader>,
}

// SAFETY: librdkafka's queues are thread-safe (each has its own lock), and the pointer stays valid as
// long as `reader`, which owns the client, lives.
unsafe impl Send for Queue {}
// SAFETY: as above; `&Queue` only offers calls that librdkafka allows from any thread.
unsafe impl Sync for Queue {}

impl Queue {
    /// Makes an empty queue.
    pub(super) fn new(reader: &Arc<Reader>) -> Option<Queue> {
        // SAFETY: the client pointer is valid while `reader` lives; the queue is destroyed in `Drop`.
        let raw = unsafe { native::rd_kafka_queue_new(reader.client().native_ptr()) };
        Some(Queue { native: NonNull::new(raw)?, reader: Arc::clone(reader) })
    }

    /// Forwards a partition to this queue. Has to be done before every assign of the partition:
    /// librdkafka clears the forward when fetching stops, and forwards to the consumer's queue when
    /// fetching starts unless somebody did it before. False if the topic's name holds a NUL.
    pub(super) fn take_partition(&self, topic: &str, partition: i32) -> bool {
        let Ok(topic) = CString::new(topic) else { return false };
        // SAFETY: client and name are valid for the call; the partition's queue reference that is
        // returned is given back below, after the forward, which keeps its own references.
        unsafe {
            let from = native::rd_kafka_queue_get_partition(
                self.reader.client().native_ptr(),
                topic.as_ptr(),
                partition,
            );
            if from.is_null() {
                return false;
            }
            native::rd_kafka_queue_forward(from, self.native.as_ptr());
            native::rd_kafka_queue_destroy(from);
        }
        true
    }

    /// Waits up to `timeout` for [`MESSAGES_PER_CALL`] messages and returns what came.
    pub(super) fn read(&self, messages: &mut Messages, timeout: Duration) {
        messages.clear();
        self.add(messages, MESSAGES_PER_CALL, timeout);
    }

    /// Waits up to `rest` for a first message, and from then on up to `timeout` for [`MESSAGES_PER_CALL`]: a queue
    /// without messages wakes its lane seldom. Once [woken](Queue::wake), it waits for nothing more.
    pub(super) fn read_after_rest(&self, messages: &mut Messages, rest: Duration, timeout: Duration) {
        messages.clear();
        self.add(messages, 1, rest);
        if messages.came() > 0 {
            self.add(messages, MESSAGES_PER_CALL - 1, timeout);
        }
    }

    /// Fills in how far the application has read each partition of `list`, which is no offset where nothing was read yet:
    /// librdkafka's own note, made when a read returns. It passes over markers of transactions, which no read shows.
    ///
    /// It is behind every record that a read which has returned brought, and beyond none that is still to come, but for one
    /// case: [an error](Message::error) in place of a record counts as a record (rd_kafka_q_serve_rkmessages).
    pub(super) fn positions(&self, list: &TopicPartitionList) -> bool {
        // SAFETY: client and list are valid for the call, which only writes the list's offsets and errors.
        let answer = unsafe { native::rd_kafka_position(self.reader.client().native_ptr(), list.ptr()) };
        answer == native::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR
    }

    /// Ends the wait of the read that is under way, or of the next one.
    pub(super) fn wake(&self) {
        // SAFETY: the queue is valid while `self` lives, and librdkafka allows the call from any thread.
        unsafe { native::rd_kafka_queue_yield(self.native.as_ptr()) }
    }

    /// Waits up to `timeout` for `count` more messages, at most as many as there is room for.
    fn add(&self, messages: &mut Messages, count: usize, timeout: Duration) {
        let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        let room = messages.pointers.spare_capacity_mut();
        let count = count.min(room.len());
        // SAFETY: there is room for `count` pointers; librdkafka writes as many as it returns, and each is
        // owned by us until `Messages` destroys it.
        unsafe {
            let came = native::rd_kafka_consume_batch_queue(
                self.native.as_ptr(),
                timeout_ms,
                room.as_mut_ptr().cast(),
                count,
            );
            let came = usize::try_from(came).unwrap_or(0);
            messages.pointers.set_len(messages.pointers.len() + came);
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: made by rd_kafka_queue_new, destroyed once, while the client still lives.
        unsafe { native::rd_kafka_queue_destroy(self.native.as_ptr()) }
    }
}

/// Messages of one call, destroyed when read or dropped. Must be dropped before the consumer: the
/// owner holds it beside its [`Queue`], which keeps the consumer alive.
#[derive(Debug)]
pub(super) struct Messages {
    pointers: Vec<*mut native::rd_kafka_message_t>,
    next: usize,
}

// SAFETY: a message is owned by whoever consumed it and may be used and destroyed on any thread.
unsafe impl Send for Messages {}

impl Messages {
    pub(super) fn new() -> Messages {
        Messages { pointers: Vec::with_capacity(MESSAGES_PER_CALL), next: 0 }
    }

    /// How many the last read brought.
    pub(super) fn came(&self) -> usize {
        self.pointers.len()
    }

    /// The next message, until the call after; its memory is given back then.
    pub(super) fn next(&mut self) -> Option<Message<'_>> {
        let raw = *self.pointers.get(self.next)?;
        self.next += 1;
        Some(Message { raw: NonNull::new(raw)?, _batch: std::marker::PhantomData })
    }

    fn clear(&mut self) {
        for raw in self.pointers.drain(..) {
            // SAFETY: each pointer came from the last read and is destroyed once, here; no `Message`
            // lives, because they borrow `self` mutably.
            unsafe { native::rd_kafka_message_destroy(raw) }
        }
        self.next = 0;
    }
}

impl Drop for Messages {
    fn drop(&mut self) {
        self.clear();
    }
}

/// One message, valid while its batch is.
#[derive(Debug)]
pub(super) struct Message<'a> {
    raw: NonNull<native::rd_kafka_message_t>,
    _batch: std::marker::PhantomData<&'a mut Messages>,
}

impl<'a> Message<'a> {
    fn fields(&self) -> &'a native::rd_kafka_message_t {
        // SAFETY: librdkafka hands out valid messages, which live as long as the batch ('a).
        unsafe { self.raw.as_ref() }
    }

    /// The error that stands in place of a record, with librdkafka's text.
    pub(super) fn error(&self) -> Option<(native::rd_kafka_resp_err_t, String)> {
        let error = self.fields().err;
        if error == native::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return None;
        }
        // SAFETY: returns a NUL-terminated text that belongs to the message or is static, or null.
        let text = unsafe {
            let text = native::rd_kafka_message_errstr(self.raw.as_ptr());
            if text.is_null() { String::new() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
        };
        Some((error, text))
    }

    /// Has librdkafka go on in this partition at `offset`, which is behind all that was read of it.
    ///
    /// For errors: librdkafka notes the position behind one as if a record had been there, and after a rebalance, which
    /// pauses all partitions, it fetches on from its note. The record at which the error came would be left out.
    pub(super) fn go_on_at(&self, offset: i64) {
        let topic = self.fields().rkt;
        if topic.is_null() {
            return;
        }
        // SAFETY: the message keeps its topic alive for the call, which does not wait. It fails for a partition that is not
        // fetched any more: then there is no note either.
        let _ = unsafe { native::rd_kafka_seek(topic, self.partition(), offset, 0) };
    }

    /// Identity of the topic while the consumer lives: cheaper to compare than its name.
    pub(super) fn topic_id(&self) -> usize {
        self.fields().rkt as usize
    }

    /// The topic's name.
    pub(super) fn topic(&self) -> String {
        let topic = self.fields().rkt;
        if topic.is_null() {
            return String::new();
        }
        // SAFETY: a topic's name is a NUL-terminated text that lives as long as the topic object.
        unsafe { CStr::from_ptr(native::rd_kafka_topic_name(topic)).to_string_lossy().into_owned() }
    }

    pub(super) fn partition(&self) -> i32 {
        self.fields().partition
    }

    pub(super) fn offset(&self) -> i64 {
        self.fields().offset
    }

    /// The value; none for a tombstone.
    pub(super) fn value(&self) -> Option<&'a [u8]> {
        let fields = self.fields();
        // SAFETY: payload is null or points to `len` bytes that live as long as the message.
        (!fields.payload.is_null())
            .then(|| unsafe { slice::from_raw_parts(fields.payload.cast::<u8>(), fields.len) })
    }

    /// The key, if there is one.
    pub(super) fn key(&self) -> Option<&'a [u8]> {
        let fields = self.fields();
        // SAFETY: key is null or points to `key_len` bytes that live as long as the message.
        (!fields.key.is_null())
            .then(|| unsafe { slice::from_raw_parts(fields.key.cast::<u8>(), fields.key_len) })
    }

    /// Microseconds since 1970 UTC; 0 if the broker gave no timestamp.
    pub(super) fn timestamp_us(&self) -> i64 {
        let mut kind = native::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: message and out-parameter are valid for the call.
        let millis = unsafe { native::rd_kafka_message_timestamp(self.raw.as_ptr(), &raw mut kind) };
        millis.max(0).saturating_mul(1000)
    }

    /// Appends the headers' pairs to `into`, without ending the record there.
    pub(super) fn headers(&self, into: &mut HeaderColumn) {
        let mut headers: *mut native::rd_kafka_headers_t = std::ptr::null_mut();
        // SAFETY: on success `headers` belongs to the message and lives as long; names are
        // NUL-terminated, contents have `size` bytes or are null.
        unsafe {
            let answer = native::rd_kafka_message_headers(self.raw.as_ptr(), &raw mut headers);
            if answer != native::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                return;
            }
            for index in 0..native::rd_kafka_header_cnt(headers) {
                let mut name = std::ptr::null();
                let mut content: *const c_void = std::ptr::null();
                let mut size = 0;
                let answer = native::rd_kafka_header_get_all(
                    headers,
                    index,
                    &raw mut name,
                    &raw mut content,
                    &raw mut size,
                );
                if answer != native::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                    return;
                }
                into.names.push(CStr::from_ptr(name).to_bytes());
                let content: &[u8] =
                    if content.is_null() { &[] } else { slice::from_raw_parts(content.cast::<u8>(), size) };
                into.contents.push(content);
            }
        }
    }
}

/// Commits that do not wait, and their answers. rdkafka's own asynchronous commit is never answered:
/// librdkafka tells its result to a queue or to a callback, and rdkafka names neither.
pub(super) struct Commits {
    answers: Queue,
}

impl Commits {
    pub(super) fn new(reader: &Arc<Reader>) -> Option<Commits> {
        Some(Commits { answers: Queue::new(reader)? })
    }

    /// Sends a commit; its answer comes from [`Commits::answer`].
    pub(super) fn send(&self, list: &TopicPartitionList) -> Result<(), String> {
        // SAFETY: client, list and queue are valid for the call, which copies the list; without a
        // callback the answer becomes an event on the queue.
        let sent = unsafe {
            native::rd_kafka_commit_queue(
                self.answers.reader.client().native_ptr(),
                list.ptr(),
                self.answers.native.as_ptr(),
                None,
                std::ptr::null_mut(),
            )
        };
        if sent == native::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            Ok(())
        } else {
            Err(RDKafkaErrorCode::from(sent).to_string())
        }
    }

    /// The next answer, if one has come: what failed, or none if all partitions are committed.
    pub(super) fn answer(&self) -> Option<Option<String>> {
        // SAFETY: the event is ours until destroyed; the list in it belongs to the event and is read
        // before that.
        unsafe {
            let event = native::rd_kafka_queue_poll(self.answers.native.as_ptr(), 0);
            if event.is_null() {
                return None;
            }
            let error = native::rd_kafka_event_error(event);
            let list = native::rd_kafka_event_topic_partition_list(event);
            let failed = failed_commit(error, list.as_ref());
            native::rd_kafka_event_destroy(event);
            Some(failed)
        }
    }
}

/// What failed of a commit, as one text.
///
/// # Safety
/// `list`, if there is one, must be a valid list of librdkafka.
unsafe fn failed_commit(
    error: native::rd_kafka_resp_err_t,
    list: Option<&native::rd_kafka_topic_partition_list_t>,
) -> Option<String> {
    if error != native::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
        return Some(RDKafkaErrorCode::from(error).to_string());
    }
    let list = list.filter(|list| !list.elems.is_null())?;
    // SAFETY: `cnt` elements stand behind `elems`; topics are NUL-terminated.
    let elements = unsafe { slice::from_raw_parts(list.elems, usize::try_from(list.cnt).unwrap_or(0)) };
    let failed =
        elements.iter().filter(|one| one.err != native::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR);
    let failed = failed.map(|one| {
        // SAFETY: as above.
        let topic = unsafe { CStr::from_ptr(one.topic) }.to_string_lossy();
        format!("{topic}[{}]: {}", one.partition, RDKafkaErrorCode::from(one.err))
    });
    failed.reduce(|all, one| all + ", " + &one)
}

/// The end of a partition as the last fetch saw it: the last stable offset for read_committed.
/// None before the first fetch.
pub(super) fn cached_end(reader: &Reader, topic: &str, partition: i32) -> Option<i64> {
    let topic = CString::new(topic).ok()?;
    let (mut low, mut high) = (-1, -1);
    // SAFETY: all pointers are valid for the call, which only reads a cache.
    let answer = unsafe {
        native::rd_kafka_get_watermark_offsets(
            reader.client().native_ptr(),
            topic.as_ptr(),
            partition,
            &raw mut low,
            &raw mut high,
        )
    };
    (answer == native::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR && high >= 0).then_some(high)
}
