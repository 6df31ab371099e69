//! A bare reader: all partitions forwarded to one queue, a thousand messages a call. The settings are
//! those of the host, the ledger, the offsets and the lanes are left out: this is the limit.

#![expect(
    unsafe_code,
    reason = "rd_kafka_consume_batch_queue has no safe wrapper; the limit must be measured without our own code"
)]

use std::ffi::CString;
use std::slice;

use rdkafka::bindings as native;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

const MESSAGES: usize = 1024;
const WAIT_MS: i32 = 20;

/// Reads a topic from its beginning, without a group.
pub(crate) struct Reader {
    consumer: BaseConsumer,
    queue: *mut native::rd_kafka_queue_t,
    messages: Vec<*mut native::rd_kafka_message_t>,
}

impl Reader {
    pub(crate) fn open(brokers: &str, topic: &str) -> Result<Reader, String> {
        let said = |error: rdkafka::error::KafkaError| format!("cannot read {topic}: {error}");
        let mut settings = ClientConfig::new();
        settings
            .set("bootstrap.servers", brokers)
            .set("group.id", "bench-limit")
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            .set("isolation.level", "read_committed")
            .set("fetch.queue.backoff.ms", "10")
            .set("fetch.wait.max.ms", "200")
            .set("queued.max.messages.kbytes", "8192")
            .set("fetch.max.bytes", "4194304")
            .set("fetch.message.max.bytes", "1048576");
        let consumer: BaseConsumer = settings.create().map_err(said)?;
        let metadata =
            consumer.fetch_metadata(Some(topic), std::time::Duration::from_secs(10)).map_err(said)?;
        let mut assignment = TopicPartitionList::new();
        let name = CString::new(topic).map_err(|error| error.to_string())?;
        // SAFETY: the client lives as long as `consumer`; the queue is destroyed before it, in Drop.
        let queue = unsafe { native::rd_kafka_queue_new(consumer.client().native_ptr()) };
        for partition in metadata.topics().iter().flat_map(rdkafka::metadata::MetadataTopic::partitions) {
            assignment.add_partition_offset(topic, partition.id(), Offset::Beginning).map_err(said)?;
            // SAFETY: valid client and name; the reference is given back after the forward.
            unsafe {
                let from = native::rd_kafka_queue_get_partition(
                    consumer.client().native_ptr(),
                    name.as_ptr(),
                    partition.id(),
                );
                native::rd_kafka_queue_forward(from, queue);
                native::rd_kafka_queue_destroy(from);
            }
        }
        consumer.assign(&assignment).map_err(said)?;
        Ok(Reader { consumer, queue, messages: Vec::with_capacity(MESSAGES) })
    }

    /// Gives up to a thousand values to `each`; returns how many came.
    pub(crate) fn read(&mut self, mut each: impl FnMut(&[u8])) -> usize {
        // Serves the client's own events.
        let _ = self.consumer.poll(std::time::Duration::ZERO);
        // SAFETY: there is room for MESSAGES pointers; each message is ours until destroyed below, and
        // its payload lives as long.
        unsafe {
            let came = native::rd_kafka_consume_batch_queue(
                self.queue,
                WAIT_MS,
                self.messages.as_mut_ptr(),
                MESSAGES,
            );
            self.messages.set_len(usize::try_from(came).unwrap_or(0));
            let mut read = 0;
            for raw in self.messages.drain(..) {
                let message = &*raw;
                if message.err == native::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR
                    && !message.payload.is_null()
                {
                    each(slice::from_raw_parts(message.payload.cast::<u8>(), message.len));
                    read += 1;
                }
                native::rd_kafka_message_destroy(raw);
            }
            read
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // SAFETY: made in `open`, destroyed once, before the consumer.
        unsafe { native::rd_kafka_queue_destroy(self.queue) }
    }
}
