//! One pipeline of a run: from a topic with a book to a table, and what can be read of both.

use super::book::Book;
use crate::{
    judge::{
        Violation,
        records::{Counted, Evidence, Payload, Place, Row, judge},
        repeats::Windows,
    },
    kafka::Kafka,
    oracle::Promise,
    pipeline::Pipeline,
    warehouse::Warehouse,
};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
};
use std::{collections::BTreeMap, fs, path::Path, sync::Arc, time::Duration};

/// A coordinator that is busy with a transaction that was left open answers late.
const ASK_WITHIN: Duration = Duration::from_secs(2);

/// A topic, a book and a table.
#[derive(Debug)]
pub struct Flow {
    /// What is produced.
    pub book: Arc<Book>,
    /// Name of the table in `shop`.
    pub table: String,
    /// What is promised of the table.
    pub promise: Promise,
}

impl Flow {
    /// Makes the topic and the table; Primary Key if the payload has keys.
    ///
    /// # Panics
    /// When either cannot be made.
    #[must_use]
    pub fn new(
        kafka: &Kafka,
        warehouse: &Warehouse,
        table: &str,
        payload: Payload,
        promise: Promise,
    ) -> Self {
        match payload.keys {
            None => warehouse.duplicate_table(table),
            Some(_) => warehouse.primary_table(table),
        }
        let topic = format!("{}-{:08x}", table.replace('_', "-"), rand::random::<u32>());
        kafka.create_topic(&topic, payload.partitions);
        Self { book: Book::new(kafka, payload, &topic), table: table.to_owned(), promise }
    }

    /// Its pipeline file, with small batches and dead letters in a folder.
    #[must_use]
    pub fn pipeline(&self, kafka: &Kafka, warehouse: &Warehouse, canary: &str, letters: &Path) -> Pipeline {
        Pipeline {
            name: self.book.topic.clone(),
            delivery: match self.promise {
                Promise::Once => "exactly_once".to_owned(),
                Promise::AtLeastOnce => String::new(),
            },
            brokers: kafka.address.clone(),
            topics: vec![self.book.topic.clone()],
            is_soon_forgotten: true,
            batch: "max_rows = 400\nlinger = \"100ms\"".to_owned(),
            fe: vec![warehouse.fe()],
            query: warehouse.query(),
            table: self.table.clone(),
            sink_more: format!("password = {canary:?}"),
            dead_letters: format!("directory = {letters:?}"),
            ..Pipeline::default()
        }
    }

    /// All rows of the table.
    ///
    /// # Panics
    /// When one is not of the table's form.
    #[must_use]
    pub fn rows(&self, warehouse: &Warehouse) -> Vec<Row> {
        let rows = warehouse.execute(&format!("SELECT id, amount, note FROM shop.{}", self.table));
        rows.into_iter().map(row).collect()
    }

    /// Identifiers of records that have a row, of those between `from` and `upto`.
    ///
    /// # Panics
    /// When one is no number.
    #[must_use]
    pub fn present(&self, warehouse: &Warehouse, from: u64, upto: u64) -> Vec<u64> {
        let table = &self.table;
        let sql = format!("SELECT amount FROM shop.{table} WHERE amount >= {from} AND amount <= {upto}");
        warehouse.execute(&sql).into_iter().flatten().map(|cell| number(cell.as_deref())).collect()
    }

    /// Where the dead letters of this pipeline come from, as far as they are kept in this folder.
    #[must_use]
    pub fn letters(&self, folder: &Path) -> Vec<Place> {
        let files = fs::read_dir(folder).into_iter().flatten().flatten();
        let texts = files.filter_map(|file| fs::read_to_string(file.path()).ok());
        texts.flat_map(|text| places(&text, &self.book.topic)).collect()
    }

    /// The evidence at rest, judged.
    #[must_use]
    pub fn judge(
        &self,
        warehouse: &Warehouse,
        folder: &Path,
        repeats: &Windows,
    ) -> (Counted, Vec<Violation>) {
        let (rows, letters, acknowledged) =
            (self.rows(warehouse), self.letters(folder), self.book.acknowledged());
        judge(&Evidence {
            payload: self.book.payload,
            promise: self.promise,
            issued: self.book.issued(),
            acknowledged: &acknowledged,
            rows: &rows,
            letters: &letters,
            given_up: self.book.given_up(),
            repeats,
        })
    }
}

fn number(cell: Option<&str>) -> u64 {
    cell.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{cell:?} is no number"))
}

fn row(cells: Vec<Option<String>>) -> Row {
    match <[Option<String>; 3]>::try_from(cells) {
        Ok([id, amount, note]) => Row {
            id: number(id.as_deref()),
            amount: number(amount.as_deref()),
            note: note.unwrap_or_default(),
        },
        Err(other) => panic!("a row of three columns, not {other:?}"),
    }
}

/// Positions of the letters of a topic. The last line may be half there: its writer was killed.
fn places(text: &str, topic: &str) -> Vec<Place> {
    let place = |line: &str| -> Option<Place> {
        let letter: serde_json::Value = serde_json::from_str(line).ok()?;
        let partition = i32::try_from(letter.get("partition")?.as_i64()?).ok()?;
        let offset = letter.get("offset")?.as_i64()?;
        (letter.get("source")?.as_str()? == topic).then_some((partition, offset))
    };
    text.lines().filter_map(place).collect()
}

/// How far a partition is released.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Standing {
    /// The committed offset: the next one to read.
    pub offset: i64,
    /// Everything below is durable, if what stands beside the offset is true: a decided epoch need not be committed yet.
    pub durable: i64,
}

/// Looks at what a group has committed; it is no member.
pub struct Standings {
    consumer: BaseConsumer,
    partitions: TopicPartitionList,
}

impl Standings {
    /// Of the group that has the topic's name.
    ///
    /// # Panics
    /// When no client can be made.
    #[must_use]
    pub fn of(kafka: &Kafka, flow: &Flow) -> Self {
        let (topic, payload) = (&flow.book.topic, flow.book.payload);
        let consumer = ClientConfig::new()
            .set("bootstrap.servers", &kafka.address)
            .set("group.id", topic)
            .create()
            .expect("a consumer");
        let mut partitions = TopicPartitionList::new();
        for partition in 0..payload.partitions {
            partitions.add_partition(topic, partition);
        }
        Self { consumer, partitions }
    }

    /// What stands there now, by partition; none while the broker does not say.
    #[must_use]
    pub fn look(&self) -> Option<BTreeMap<i32, Standing>> {
        let committed = self.consumer.committed_offsets(self.partitions.clone(), ASK_WITHIN).ok()?;
        let standing = |element: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| {
            element.error().ok()?;
            let Offset::Offset(offset) = element.offset() else { return None };
            Some((element.partition(), Standing { offset, durable: durable(offset, element.metadata()) }))
        };
        Some(committed.elements().iter().filter_map(standing).collect())
    }
}

/// The offset below which all is durable, by the decision beside the committed one (`docs/decisions/0025`).
fn durable(offset: i64, metadata: &str) -> i64 {
    let decision: Option<serde_json::Value> = serde_json::from_str(metadata).ok();
    let number = |name: &str| decision.as_ref()?.get(name)?.as_i64();
    match (number("n"), number("from")) {
        (Some(tables), Some(from)) if tables > 0 => from.min(offset),
        _ => offset,
    }
}

#[cfg(test)]
mod tests {
    use super::{durable, places};

    #[test]
    fn what_a_decision_does_not_say_to_be_committed_is_not_taken_for_durable() {
        assert_eq!(durable(9, r#"{"v":2,"stem":"a-1","seq":3,"n":1,"from":4}   "#), 4);
        assert_eq!(durable(9, r#"{"v":2,"stem":"a-1","seq":3,"n":0,"from":9}"#), 9);
        assert_eq!(durable(9, r#"{"v":1,"stem":"a","from":0}"#), 9);
        assert_eq!(durable(9, ""), 9);
    }

    #[test]
    fn letters_are_known_by_their_place() {
        let text = "{\"source\":\"a\",\"partition\":1,\"offset\":7}\n{\"source\":\"b\",\"partition\":1,\"offset\":8}\n\
                    {\"source\":\"a\",\"parti";
        assert_eq!(places(text, "a"), [(1, 7)]);
    }
}
