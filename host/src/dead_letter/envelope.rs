//! A letter as a Kafka record: original key and value, everything else in headers.

use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::BaseRecord;

use super::DeadLetter;

/// The first of the headers that say what a letter is; those of the record stand before it.
pub(super) const FIRST_HEADER: &str = "tidemill.pipeline";
/// How many they are.
const OUR_HEADERS: usize = 13;

/// A record for the producer.
pub(super) type Sending<'a> = BaseRecord<'a, [u8], [u8], ()>;

/// What the letters of a pipeline have in common: where they go, and whose they are.
#[derive(Debug, Clone)]
pub(super) struct Envelope {
    pub(super) topic: String,
    pub(super) pipeline: String,
}

impl Envelope {
    /// The record of a letter.
    pub(super) fn record<'a>(&'a self, letter: &'a DeadLetter) -> Sending<'a> {
        let mut record = BaseRecord::to(&self.topic).headers(self.headers(letter));
        record.key = letter.key.as_deref();
        record.payload = letter.value.as_deref();
        record
    }

    /// Original headers first, then ours under `tidemill.`, as Kafka Connect does with its own.
    fn headers(&self, letter: &DeadLetter) -> OwnedHeaders {
        let mut headers = OwnedHeaders::new_with_capacity(letter.headers.len() + OUR_HEADERS);
        for (name, content) in &letter.headers {
            let name = String::from_utf8_lossy(name);
            headers = headers.insert(Header { key: &name, value: Some(content) });
        }
        let offset = letter.offset.to_string();
        let partition = letter.partition.number.to_string();
        let timestamp_us = letter.timestamp_us.to_string();
        let content = &letter.content;
        let flag = |is: bool| if is { "true" } else { "false" };
        let ours: [(&str, &str); OUR_HEADERS] = [
            // The first of ours: what stands before it are the record's own.
            (FIRST_HEADER, &self.pipeline),
            ("tidemill.stage", letter.stage.name()),
            ("tidemill.plugin", letter.plugin.as_deref().unwrap_or_default()),
            ("tidemill.code", &letter.code),
            ("tidemill.message", &letter.message),
            ("tidemill.source", &letter.partition.source),
            ("tidemill.partition", &partition),
            ("tidemill.offset", &offset),
            ("tidemill.timestamp_us", &timestamp_us),
            ("tidemill.holds", content.holds.name()),
            ("tidemill.table", content.table.as_deref().unwrap_or_default()),
            ("tidemill.delete", flag(content.delete)),
            ("tidemill.partial", flag(content.partial)),
        ];
        for (key, value) in ours {
            headers = headers.insert(Header { key, value: Some(value) });
        }
        headers
    }
}
