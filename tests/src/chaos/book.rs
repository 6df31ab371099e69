//! The producer and its book: which records were sent, and which of them the broker has acknowledged.

use crate::{
    judge::records::{Payload, Place},
    kafka::Kafka,
};
use rdkafka::{
    ClientConfig, ClientContext, Message as _,
    error::{KafkaError, RDKafkaErrorCode},
    message::DeliveryResult,
    producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext},
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Between two handfuls of records.
const BEAT: Duration = Duration::from_millis(20);
/// A broker that is away is waited for: a record that is given up may be there all the same.
const GIVEN_UP_AFTER: &str = "300000";
/// How long the last records may take.
const FLUSHED_WITHIN: Duration = Duration::from_secs(120);

/// What was sent, and what came of it.
#[derive(Debug)]
pub struct Book {
    /// What records say.
    pub payload: Payload,
    /// Where they go.
    pub topic: String,
    pages: Mutex<Pages>,
}

#[derive(Debug, Default)]
struct Pages {
    issued: u64,
    acknowledged: BTreeMap<Place, u64>,
    given_up: u64,
}

impl Book {
    /// An empty one.
    #[must_use]
    pub fn new(payload: Payload, topic: &str) -> Arc<Self> {
        Arc::new(Self { payload, topic: topic.to_owned(), pages: Mutex::default() })
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        // Each change is one insertion: a panic elsewhere leaves it usable.
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Identifiers that were handed to the client: `0..issued`.
    #[must_use]
    pub fn issued(&self) -> u64 {
        self.pages().issued
    }

    /// The obligations so far.
    #[must_use]
    pub fn acknowledged(&self) -> BTreeMap<Place, u64> {
        self.pages().acknowledged.clone()
    }

    /// How many obligations there are.
    #[must_use]
    pub fn obligations(&self) -> u64 {
        self.pages().acknowledged.len() as u64
    }

    /// Records of which the client does not know whether the broker has them.
    #[must_use]
    pub fn given_up(&self) -> u64 {
        self.pages().given_up
    }

    /// Obligations from `from` on and below `upto`, by partition.
    #[must_use]
    pub fn between(&self, from: &BTreeMap<i32, i64>, upto: &BTreeMap<i32, i64>) -> BTreeMap<Place, u64> {
        let pages = self.pages();
        let ranges = upto.iter().map(|(partition, upto)| {
            let begin = from.get(partition).copied().unwrap_or(0);
            (*partition, begin)..(*partition, (*upto).max(begin))
        });
        ranges.flat_map(|range| pages.acknowledged.range(range)).map(|(place, id)| (*place, *id)).collect()
    }

    /// The offset behind the last obligation of each partition.
    #[must_use]
    pub fn ends(&self) -> BTreeMap<i32, i64> {
        self.pages().acknowledged.keys().map(|(partition, offset)| (*partition, offset + 1)).collect()
    }

    fn issue(&self) -> u64 {
        let mut pages = self.pages();
        pages.issued += 1;
        pages.issued - 1
    }
}

/// Writes into the book what the broker says.
struct Scribe(Arc<Book>);

impl ClientContext for Scribe {}

impl ProducerContext for Scribe {
    type DeliveryOpaque = Box<u64>;

    fn delivery(&self, result: &DeliveryResult<'_>, id: Self::DeliveryOpaque) {
        let mut pages = self.0.pages();
        match result {
            Ok(message) => drop(pages.acknowledged.insert((message.partition(), message.offset()), *id)),
            Err(_) => pages.given_up += 1,
        }
    }
}

/// A thread that sends records at an even pace, until it is stopped or dropped.
#[derive(Debug)]
pub struct Author {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Author {
    /// Starts to send `per_second` records.
    ///
    /// # Panics
    /// When no producer can be made.
    #[must_use]
    pub fn start(kafka: &Kafka, book: &Arc<Book>, per_second: u64) -> Self {
        let (stop, book) = (Arc::new(AtomicBool::new(false)), Arc::clone(book));
        let producer = producer(kafka, &book);
        let told = Arc::clone(&stop);
        let thread = thread::Builder::new().name("author".to_owned()).spawn(move || {
            let began = Instant::now();
            let mut sent = 0;
            while !told.load(Ordering::Relaxed) {
                let elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                let due = elapsed_ms * per_second / 1000;
                // Behind a broker that was away not all is sent at once.
                send(&producer, &book, due.saturating_sub(sent).min(per_second));
                sent = due;
                producer.poll(Duration::ZERO);
                thread::park_timeout(BEAT);
            }
            flush(&producer);
        });
        Self { stop, thread: Some(thread.expect("the system has threads left")) }
    }

    /// Sends no more, and waits until the broker has answered for all.
    ///
    /// # Panics
    /// With the panic of the thread: the broker did not answer.
    pub fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && let Err(cause) = thread.join()
        {
            std::panic::resume_unwind(cause);
        }
    }
}

impl Drop for Author {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Sends `count` records and waits until the broker has answered for all.
///
/// # Panics
/// When it does not.
pub fn write(kafka: &Kafka, book: &Arc<Book>, count: u64) {
    let producer = producer(kafka, book);
    send(&producer, book, count);
    flush(&producer);
}

/// Sends records until one was among them that can be loaded, waits until the broker has it, and returns its identifier.
///
/// # Panics
/// When the broker does not answer.
pub fn write_good(kafka: &Kafka, book: &Arc<Book>) -> u64 {
    let producer = producer(kafka, book);
    let id = loop {
        let id = book.issue();
        send_one(&producer, book, id);
        if !book.payload.is_bad(id) {
            break id;
        }
    };
    flush(&producer);
    id
}

fn flush(producer: &BaseProducer<Scribe>) {
    producer.flush(FLUSHED_WITHIN).expect("the broker answers for all records");
}

/// Idempotent: what the client sends again is in the topic once.
fn producer(kafka: &Kafka, book: &Arc<Book>) -> BaseProducer<Scribe> {
    ClientConfig::new()
        .set("bootstrap.servers", &kafka.address)
        .set("enable.idempotence", "true")
        .set("message.timeout.ms", GIVEN_UP_AFTER)
        .set("linger.ms", "5")
        .create_with_context(Scribe(Arc::clone(book)))
        .expect("a producer")
}

fn send(producer: &BaseProducer<Scribe>, book: &Arc<Book>, count: u64) {
    for _ in 0..count {
        send_one(producer, book, book.issue());
    }
}

fn send_one(producer: &BaseProducer<Scribe>, book: &Arc<Book>, id: u64) {
    let value = book.payload.value(id);
    let mut record = BaseRecord::<(), String, Box<u64>>::with_opaque_to(&book.topic, Box::new(id))
        .partition(book.payload.partition(id))
        .payload(&value);
    while let Err((error, unsent)) = producer.send(record) {
        let full = KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull);
        assert_eq!(error, full, "produce into {}", book.topic);
        producer.poll(Duration::from_millis(10));
        record = unsent;
    }
}
