//! The consumer's membership of its group at one moment, which a decision carries with it: rdkafka shows neither its
//! generation nor its member id. And the texts beside committed offsets, which may be anybody's.

#![expect(
    unsafe_code,
    reason = "the accessors of rd_kafka_consumer_group_metadata_t have no safe wrapper in rdkafka; each block says \
              why it is sound"
)]

use std::ffi::CStr;
use std::ptr::NonNull;
use std::slice;
use std::time::Duration;

use rdkafka::bindings as native;
use rdkafka::client::ClientContext;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::producer::{BaseProducer, Producer as _, ProducerContext};
use rdkafka::topic_partition_list::TopicPartitionList;

use super::consumer::Reader;

/// Group, generation and member, as librdkafka knew them when it was asked.
pub(super) struct Membership(NonNull<native::rd_kafka_consumer_group_metadata_t>);

/// What an attempt to send offsets came to, if it failed.
#[derive(Debug)]
pub(super) struct NotSent {
    /// librdkafka's text.
    pub(super) text: String,
    /// Its code.
    pub(super) code: RDKafkaErrorCode,
}

impl Membership {
    /// Asks librdkafka; none before the consumer has a group.
    pub(super) fn of(reader: &Reader) -> Option<Membership> {
        // SAFETY: the client lives as long as `reader`; what is returned is ours, or null.
        let raw = unsafe { native::rd_kafka_consumer_group_metadata(reader.client().native_ptr()) };
        NonNull::new(raw).map(Membership)
    }

    /// Whether the group knows this member: without generation or id a broker would take the offsets of anybody
    /// while the group is empty.
    pub(super) fn is_known(&self) -> bool {
        // SAFETY: the metadata is valid until dropped; the member id is NUL-terminated and belongs to it.
        unsafe {
            let generation = native::rd_kafka_consumer_group_metadata_generation_id(self.0.as_ptr());
            let member = native::rd_kafka_consumer_group_metadata_member_id(self.0.as_ptr());
            generation >= 0 && !member.is_null() && !CStr::from_ptr(member).to_bytes().is_empty()
        }
    }

    /// Generation and member id: equal ones are the same membership.
    pub(super) fn identity(&self) -> (i32, Vec<u8>) {
        // SAFETY: as above.
        unsafe {
            let generation = native::rd_kafka_consumer_group_metadata_generation_id(self.0.as_ptr());
            let member = native::rd_kafka_consumer_group_metadata_member_id(self.0.as_ptr());
            let member =
                if member.is_null() { Vec::new() } else { CStr::from_ptr(member).to_bytes().to_vec() };
            (generation, member)
        }
    }

    /// Sends offsets into the open transaction of `producer`, in the name of this member and generation.
    pub(super) fn send_offsets<C: ClientContext + ProducerContext>(
        &self,
        producer: &BaseProducer<C>,
        offsets: &TopicPartitionList,
        patience: Duration,
    ) -> Result<(), NotSent> {
        let timeout_ms = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: producer, list and metadata are valid for the call, which blocks and keeps none of them; the
        // error it returns is ours and is destroyed after it was read.
        unsafe {
            let error = native::rd_kafka_send_offsets_to_transaction(
                producer.client().native_ptr(),
                offsets.ptr(),
                self.0.as_ptr(),
                timeout_ms,
            );
            if error.is_null() {
                return Ok(());
            }
            let text = CStr::from_ptr(native::rd_kafka_error_string(error)).to_string_lossy().into_owned();
            let code = RDKafkaErrorCode::from(native::rd_kafka_error_code(error));
            native::rd_kafka_error_destroy(error);
            Err(NotSent { text, code })
        }
    }
}

/// The text beside each offset of a list, in its order. rdkafka's own way to them panics at one that is no UTF-8,
/// and another program may have left one.
pub(super) fn metadata_texts(list: &TopicPartitionList) -> Vec<String> {
    // SAFETY: the list is valid while borrowed; `cnt` elements stand behind `elems`.
    let elements = unsafe {
        let list = &*list.ptr();
        if list.elems.is_null() {
            return Vec::new();
        }
        slice::from_raw_parts(list.elems, usize::try_from(list.cnt).unwrap_or(0))
    };
    let texts = elements.iter().map(|element| {
        if element.metadata.is_null() {
            return String::new();
        }
        // SAFETY: `metadata_size` bytes that belong to the element.
        let bytes = unsafe { slice::from_raw_parts(element.metadata.cast::<u8>(), element.metadata_size) };
        String::from_utf8_lossy(bytes).into_owned()
    });
    texts.collect()
}

impl Drop for Membership {
    fn drop(&mut self) {
        // SAFETY: made by librdkafka for us, destroyed once.
        unsafe { native::rd_kafka_consumer_group_metadata_destroy(self.0.as_ptr()) }
    }
}
