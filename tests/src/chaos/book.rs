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
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Between two handfuls of records.
const BEAT: Duration = Duration::from_millis(20);
/// Between two questions whether an answer has come.
const POLL: Duration = Duration::from_millis(10);
/// A broker that is away is waited for: a record that is given up may be there all the same.
const GIVEN_UP_AFTER: &str = "300000";
/// How long the last records may take.
const FLUSHED_WITHIN: Duration = Duration::from_secs(120);

/// What was sent, and what came of it. All records go through one producer: within a partition their identifiers rise, so
/// that the newest record of a key is the one with the highest.
pub struct Book {
    /// What records say.
    pub payload: Payload,
    /// Where they go.
    pub topic: String,
    pages: Arc<Mutex<Pages>>,
    producer: BaseProducer<Scribe>,
    /// The next identifier: held until its record is with the client.
    next: Mutex<u64>,
}

impl fmt::Debug for Book {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Book").field("topic", &self.topic).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Pages {
    acknowledged: BTreeMap<Place, u64>,
    given_up: u64,
}

/// Each change of what they guard is one insertion or one addition: a panic elsewhere leaves it usable.
fn lock<T>(guarded: &Mutex<T>) -> MutexGuard<'_, T> {
    guarded.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Book {
    /// An empty one, and its producer.
    ///
    /// # Panics
    /// When no producer can be made.
    #[must_use]
    pub fn new(kafka: &Kafka, payload: Payload, topic: &str) -> Arc<Self> {
        let pages = Arc::default();
        let producer = producer(kafka, &pages);
        Arc::new(Self { payload, topic: topic.to_owned(), pages, producer, next: Mutex::new(0) })
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        lock(&self.pages)
    }

    /// Identifiers that were handed to the client: `0..issued`.
    #[must_use]
    pub fn issued(&self) -> u64 {
        *lock(&self.next)
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

    /// How many records it is known of what became of them.
    #[must_use]
    pub fn answers(&self) -> u64 {
        let pages = self.pages();
        pages.acknowledged.len() as u64 + pages.given_up
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

    /// Sends `count` records and waits until the broker has answered for all that were sent.
    ///
    /// # Panics
    /// When it does not.
    pub fn write(&self, count: u64) {
        self.send(count);
        self.flush();
    }

    /// Sends records until one was among them that can be loaded, waits until the broker has it, and returns its identifier.
    ///
    /// # Panics
    /// When the broker does not answer.
    #[must_use]
    pub fn write_good(&self) -> u64 {
        let id = loop {
            let id = self.send_one();
            if !self.payload.is_bad(id) {
                break id;
            }
        };
        let partition = self.payload.partition(id);
        let whole = (partition, i64::MIN)..=(partition, i64::MAX);
        let begun = Instant::now();
        while self.pages().acknowledged.range(whole.clone()).next_back().is_none_or(|(_, last)| *last < id) {
            assert!(begun.elapsed() < FLUSHED_WITHIN, "the broker does not answer for a record");
            self.producer.poll(POLL);
        }
        id
    }

    fn send(&self, count: u64) {
        for _ in 0..count {
            self.send_one();
        }
    }

    /// Hands the next record to the client, and returns its identifier.
    fn send_one(&self) -> u64 {
        let mut next = lock(&self.next);
        let id = *next;
        let value = self.payload.value(id);
        let mut record = BaseRecord::<(), String, Box<u64>>::with_opaque_to(&self.topic, Box::new(id))
            .partition(self.payload.partition(id))
            .payload(&value);
        while let Err((error, unsent)) = self.producer.send(record) {
            let full = KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull);
            assert_eq!(error, full, "produce into {}", self.topic);
            self.producer.poll(POLL);
            record = unsent;
        }
        *next += 1;
        id
    }

    /// One beat long. A poll serves one answer, and a broker gives one for each partition and request: with a poll a beat
    /// the book would fall ever further behind the topic, and the judge would take what is late in it for done late.
    fn listen(&self) {
        let begun = Instant::now();
        while let Some(left) = BEAT.checked_sub(begun.elapsed()) {
            self.producer.poll(left);
        }
    }

    fn flush(&self) {
        self.producer.flush(FLUSHED_WITHIN).expect("the broker answers for all records");
    }
}

/// Writes into the book what the broker says.
struct Scribe(Arc<Mutex<Pages>>);

impl ClientContext for Scribe {}

impl ProducerContext for Scribe {
    type DeliveryOpaque = Box<u64>;

    fn delivery(&self, result: &DeliveryResult<'_>, id: Self::DeliveryOpaque) {
        let mut pages = lock(&self.0);
        match result {
            Ok(message) => drop(pages.acknowledged.insert((message.partition(), message.offset()), *id)),
            Err(_) => pages.given_up += 1,
        }
    }
}

/// Idempotent: what the client sends again is in the topic once, and in its place.
fn producer(kafka: &Kafka, pages: &Arc<Mutex<Pages>>) -> BaseProducer<Scribe> {
    ClientConfig::new()
        .set("bootstrap.servers", &kafka.address)
        .set("enable.idempotence", "true")
        .set("message.timeout.ms", GIVEN_UP_AFTER)
        .set("linger.ms", "5")
        // Whoever waits for a broker that comes back does not wait for ten seconds more.
        .set("reconnect.backoff.max.ms", "1000")
        .create_with_context(Scribe(Arc::clone(pages)))
        .expect("a producer")
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
    /// When the system has no threads left.
    #[must_use]
    pub fn start(book: &Arc<Book>, per_second: u64) -> Self {
        let (stop, book) = (Arc::new(AtomicBool::new(false)), Arc::clone(book));
        let told = Arc::clone(&stop);
        let thread = thread::Builder::new().name("author".to_owned()).spawn(move || {
            let began = Instant::now();
            let mut sent = 0;
            while !told.load(Ordering::Relaxed) {
                let elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                let due = elapsed_ms * per_second / 1000;
                // Behind a broker that was away not all is sent at once.
                book.send(due.saturating_sub(sent).min(per_second));
                sent = due;
                book.listen();
            }
            book.flush();
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
