//! The demo's Kafka producer, and its topics.

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer as _};
use tidemill_plugin_orders::sample;

use crate::fault::Fault;

/// Partitions of the demo's topics.
pub(super) const PARTITIONS: i32 = 8;
/// Records that the producer may be ahead of the pipeline. librdkafka's mock cluster keeps 5 MiB a
/// partition and drops the oldest beyond that without a word: this is far below.
const AHEAD_MAX: u64 = 60_000;
/// How long one turn waits for the brokers.
const TURN: Duration = Duration::from_millis(10);
/// How long the last records may take.
const FLUSH_PATIENCE: Duration = Duration::from_secs(10);

/// Produces the orders of a run.
pub(super) struct Producer {
    kafka: BaseProducer,
    topic: String,
    events: u64,
    sent: u64,
    value: Vec<u8>,
}

fn cannot(error: KafkaError) -> Fault {
    Fault::retry("cannot produce the demo's events").caused_by(error)
}

impl Producer {
    /// Of `events` orders into `topic`.
    pub(super) fn new(brokers: &str, topic: &str, events: u64) -> Result<Producer, Fault> {
        let mut settings = ClientConfig::new();
        settings.set("bootstrap.servers", brokers).set("linger.ms", "20").set("batch.num.messages", "5000");
        let kafka = settings.create().map_err(cannot)?;
        Ok(Producer { kafka, topic: topic.to_owned(), events, sent: 0, value: Vec::new() })
    }

    /// Produces on, paced by the `read` records that the pipeline has read.
    pub(super) fn turn(&mut self, read: u64) -> Result<(), Fault> {
        let until = self.events.min(read + AHEAD_MAX);
        while self.sent < until {
            self.value.clear();
            sample::write_order(self.sent, &mut self.value);
            let partition = (self.sent % PARTITIONS as u64) as i32;
            let key = self.sent.to_string();
            let record = BaseRecord::to(&self.topic).partition(partition).key(&key).payload(&self.value);
            match self.kafka.send(record) {
                Ok(()) => self.sent += 1,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => break,
                Err((error, _)) => return Err(cannot(error)),
            }
        }
        self.kafka.poll(TURN);
        Ok(())
    }

    /// Waits until the brokers have everything.
    pub(super) fn finish(&self) -> Result<(), Fault> {
        self.kafka.flush(FLUSH_PATIENCE).map_err(cannot)
    }
}

/// Makes a topic at real brokers.
pub(super) async fn make_topic(brokers: &str, topic: &str) -> Result<(), Fault> {
    let cannot = |error: KafkaError| {
        Fault::retry(format!("cannot make topic `{topic}` on {brokers}")).caused_by(error)
    };
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", brokers).create().map_err(cannot)?;
    let new = NewTopic::new(topic, PARTITIONS, TopicReplication::Fixed(1));
    let made = admin.create_topics([&new], &AdminOptions::new()).await.map_err(cannot)?;
    for one in made {
        one.map_err(|(_, code)| cannot(KafkaError::AdminOp(code)))?;
    }
    Ok(())
}

/// Brokers within the process.
pub(super) type Mock = rdkafka::mocking::MockCluster<'static, DefaultProducerContext>;
