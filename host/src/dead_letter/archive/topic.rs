//! Letters in a topic, read from its beginning to its end without joining a group; marks are records among them.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::Message as _;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::Visit;
use crate::config::model::Kafka;
use crate::dead_letter::envelope::FIRST_HEADER;
use crate::dead_letter::kept::{self, Kept, Place, Unreadable};
use crate::dead_letter::topic::{MARK_HEADER, cluster};
use crate::dead_letter::{Content, DeadLetter, Holds};
use crate::fault::Fault;
use crate::position::Partition;
use crate::source::kafka::consumer::by_hand;

/// How long the brokers may take to answer, and to send the next record.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long one poll waits.
const POLL: Duration = Duration::from_millis(100);
/// The group that is named where the source has none: librdkafka wants one, although it is never joined.
const NO_GROUP: &str = "tidemill-dead-letters";

/// What librdkafka says goes to its own log target.
#[derive(Debug)]
struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, "{reason}");
    }
}

impl ConsumerContext for Quiet {}

type Reader = BaseConsumer<Quiet>;

/// The records of the letters' topic.
#[derive(Debug, Clone)]
pub(super) struct Records {
    topic: String,
    settings: ClientConfig,
}

impl Records {
    pub(super) fn new(topic: &str, brokers: &[String], source: Option<&Kafka>) -> Result<Records, Fault> {
        let mut settings = cluster(brokers, source)?;
        settings.set("group.id", source.map_or(NO_GROUP, |kafka| &kafka.group));
        by_hand(&mut settings);
        settings.set("enable.partition.eof", "true");
        // Letters are written with decisions (delivery.md §3 rule 9): those of one that never was are none.
        settings.set("isolation.level", "read_committed");
        // The end of a partition is told with the answer to a fetch, which the broker otherwise holds back for 500 ms.
        settings.set("fetch.wait.max.ms", "20");
        settings.set("queued.max.messages.kbytes", "16384");
        Ok(Records { topic: topic.to_owned(), settings })
    }

    pub(super) fn each(&self, visit: &mut Visit<'_>) -> Result<(), Fault> {
        let reader: Reader =
            self.settings.create_with_context(Quiet).map_err(|error| self.unreadable(&error.to_string()))?;
        // Marks stand behind their letters: they are read first.
        let mut marks = HashSet::new();
        self.read(&reader, &mut |message| {
            if let Some(place) = marked(message) {
                marks.insert(place);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        self.read(&reader, &mut |message| {
            if marked(message).is_some() {
                return Ok(ControlFlow::Continue(()));
            }
            let place = place(message);
            let told = place.to_string();
            let mut kept = letter(message, place).map_err(|why| {
                Fault::halt(
                    format!("record {told} of topic `{}` is no dead letter: {why}", self.topic),
                    "give the dead letters a topic of their own: [dead_letters.kafka] topic",
                )
            })?;
            kept.replayed = marks.contains(&kept.place);
            visit(kept)
        })
    }

    fn unreadable(&self, why: &str) -> Fault {
        Fault::halt(
            format!("cannot read dead letters from topic `{}`: {why}", self.topic),
            "mend [dead_letters.kafka], start the brokers, or grant the user READ and DESCRIBE on the topic",
        )
    }

    /// All records from the beginning of each partition to its end.
    fn read(
        &self,
        reader: &Reader,
        each: &mut dyn FnMut(&BorrowedMessage<'_>) -> Result<ControlFlow<()>, Fault>,
    ) -> Result<(), Fault> {
        let mut open = self.assign(reader)?;
        let mut last = Instant::now();
        while !open.is_empty() {
            let message = match reader.poll(POLL) {
                None if last.elapsed() < PATIENCE => continue,
                None => return Err(self.unreadable("the brokers send nothing")),
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    open.remove(&partition);
                    continue;
                }
                Some(Err(error)) => match error.rdkafka_error_code() {
                    // librdkafka connects again by itself; `PATIENCE` bounds how long.
                    Some(RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::AllBrokersDown)
                        if last.elapsed() < PATIENCE =>
                    {
                        continue;
                    }
                    _final_or_late => return Err(self.unreadable(&error.to_string())),
                },
                Some(Ok(message)) => message,
            };
            if each(&message)?.is_break() {
                return Ok(());
            }
            // The visitor may have taken its time.
            last = Instant::now();
        }
        Ok(())
    }

    /// Assigns all partitions from their beginning; returns those that have something.
    fn assign(&self, reader: &Reader) -> Result<HashSet<i32>, Fault> {
        let failed = |error: KafkaError| self.unreadable(&error.to_string());
        let metadata = reader.fetch_metadata(Some(&self.topic), PATIENCE).map_err(failed)?;
        let Some(topic) = metadata.topics().iter().find(|topic| topic.name() == self.topic) else {
            return Err(self.unreadable("there is no such topic"));
        };
        if let Some(error) = topic.error() {
            return Err(self.unreadable(&KafkaError::MetadataFetch(error.into()).to_string()));
        }
        let (mut assignment, mut open) = (TopicPartitionList::new(), HashSet::new());
        for partition in topic.partitions() {
            assignment
                .add_partition_offset(&self.topic, partition.id(), Offset::Beginning)
                .map_err(failed)?;
            open.insert(partition.id());
        }
        if open.is_empty() {
            return Err(self.unreadable("there is no such topic"));
        }
        reader.assign(&assignment).map_err(failed)?;
        Ok(open)
    }
}

fn place(message: &BorrowedMessage<'_>) -> Place {
    Place { within: message.partition().to_string().into(), at: message.offset() }
}

/// The letter that the record marks, if it is a mark.
fn marked(message: &BorrowedMessage<'_>) -> Option<Place> {
    // A letter may hold a record with a header of that name: its own come behind it.
    let header = message.headers()?.iter().next().filter(|header| header.key == MARK_HEADER)?;
    if message.headers()?.iter().any(|header| header.key == "tidemill.stage") {
        return None;
    }
    let (partition, offset) = std::str::from_utf8(header.value?).ok()?.split_once(':')?;
    Some(Place { within: partition.into(), at: offset.parse().ok()? })
}

/// The record as a letter.
fn letter(message: &BorrowedMessage<'_>, place: Place) -> Result<Kept, Unreadable> {
    let headers: Vec<(&str, &[u8])> = message
        .headers()
        .into_iter()
        .flat_map(|headers| headers.iter().map(|header| (header.key, header.value.unwrap_or_default())))
        .collect();
    let kept_us = message.timestamp().to_millis().unwrap_or(0).saturating_mul(1000);
    from_record(&headers, message.key(), message.payload(), kept_us, place)
}

/// A letter from what the record holds. Ours are the last headers: those of the record that died may have our names, too.
fn from_record(
    headers: &[(&str, &[u8])],
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    kept_us: i64,
    place: Place,
) -> Result<Kept, Unreadable> {
    let first = headers.iter().rposition(|(name, _)| *name == FIRST_HEADER);
    let missing = |field: &'static str| Unreadable::Json(format!("it has no header `{field}`"));
    let (theirs, ours) = headers.split_at(first.ok_or_else(|| missing(FIRST_HEADER))?);
    let text = |field: &'static str| -> Result<String, Unreadable> {
        let found = ours.iter().find(|(name, _)| *name == field).ok_or_else(|| missing(field))?;
        Ok(String::from_utf8_lossy(found.1).into_owned())
    };
    let optional = |field| text(field).ok().filter(|text| !text.is_empty());
    let flag = |field| optional(field).is_some_and(|text| text == "true");
    let number = |field: &'static str| -> Result<i64, Unreadable> {
        let text = text(field)?;
        text.parse().map_err(|_| Unreadable::Field { field, found: text.chars().take(20).collect() })
    };
    let partition = number("tidemill.partition")?;
    let number_of = u32::try_from(partition)
        .map_err(|_| Unreadable::Field { field: "tidemill.partition", found: partition.to_string() })?;
    let letter = DeadLetter {
        stage: kept::stage(&text("tidemill.stage")?)?,
        plugin: optional("tidemill.plugin").map(Into::into),
        code: text("tidemill.code")?,
        message: text("tidemill.message")?,
        partition: Partition { source: text("tidemill.source")?.into(), number: number_of },
        offset: number("tidemill.offset")?,
        timestamp_us: number("tidemill.timestamp_us").unwrap_or(0),
        key: key.map(<[u8]>::to_vec),
        value: value.map(<[u8]>::to_vec),
        headers: theirs.iter().map(|(name, content)| (name.as_bytes().to_vec(), content.to_vec())).collect(),
        content: Content {
            holds: kept::holds(optional("tidemill.holds").as_deref().unwrap_or(Holds::Record.name()))?,
            table: optional("tidemill.table").map(|table| Arc::from(table.as_str())),
            delete: flag("tidemill.delete"),
            partial: flag("tidemill.partial"),
        },
    };
    Ok(Kept { letter, place, pipeline: text(FIRST_HEADER)?, kept_us, replayed: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letter::Stage;

    const OURS: [(&str, &[u8]); 13] = [
        ("tidemill.pipeline", b"shop"),
        ("tidemill.stage", b"load"),
        ("tidemill.plugin", b""),
        ("tidemill.code", b"refused"),
        ("tidemill.message", b"no"),
        ("tidemill.source", b"orders"),
        ("tidemill.partition", b"3"),
        ("tidemill.offset", b"42"),
        ("tidemill.timestamp_us", b"7"),
        ("tidemill.holds", b"row"),
        ("tidemill.table", b"sales"),
        ("tidemill.delete", b"false"),
        ("tidemill.partial", b"true"),
    ];

    fn place() -> Place {
        Place { within: "0".into(), at: 9 }
    }

    #[test]
    fn the_record_that_died_gets_its_own_headers_back() {
        let mut headers: Vec<(&str, &[u8])> = vec![("trace", b"t"), ("tidemill.pipeline", b"upstream")];
        headers.extend(OURS);
        let kept = from_record(&headers, None, Some(b"{}"), 5, place()).unwrap();
        let letter = kept.letter;
        assert_eq!(kept.pipeline, "shop");
        assert_eq!(
            letter.headers,
            [(b"trace".to_vec(), b"t".to_vec()), (b"tidemill.pipeline".to_vec(), b"upstream".to_vec()),]
        );
        assert_eq!(
            (letter.stage, letter.plugin, letter.offset, letter.timestamp_us),
            (Stage::Load, None, 42, 7)
        );
        assert_eq!((letter.partition.to_string().as_str(), letter.key), ("orders[3]", None));
        let content =
            Content { holds: Holds::Row, table: Some("sales".into()), delete: false, partial: true };
        assert_eq!(letter.content, content);
    }

    #[test]
    fn a_record_of_somebody_else_is_no_letter() {
        let error = from_record(&[("trace", b"t")], None, None, 0, place()).unwrap_err();
        assert_eq!(error.to_string(), "it has no header `tidemill.pipeline`");
        let mut headers = OURS.to_vec();
        headers[7].1 = b"many";
        let error = from_record(&headers, None, None, 0, place()).unwrap_err();
        assert_eq!(error.to_string(), "`tidemill.offset` is \"many\"");
    }
}
