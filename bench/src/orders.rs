//! The benchmark's topic: orders of about 240 bytes in four partitions.

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use tidemill_plugin_orders::sample;

/// Partitions of the topic.
pub(crate) const PARTITIONS: i32 = 4;

/// Makes the topic and fills it; returns the number of orders that the `orders` plugin keeps.
pub(crate) fn fill(brokers: &str, topic: &str, partitions: i32, records: u64) -> Result<u64, String> {
    fill_with(brokers, topic, partitions, records, sample::write_order)?;
    Ok((0..records).filter(|id| !sample::is_test(*id)).count() as u64)
}

/// Makes the topic and fills it with values that `write` appends.
pub(crate) fn fill_with(
    brokers: &str,
    topic: &str,
    partitions: i32,
    records: u64,
    write: impl Fn(u64, &mut Vec<u8>),
) -> Result<(), String> {
    let said = |error: KafkaError| format!("cannot fill topic {topic}: {error}");
    let mut settings = ClientConfig::new();
    settings.set("bootstrap.servers", brokers).set("linger.ms", "50").set("acks", "1");
    let admin: AdminClient<DefaultClientContext> = settings.create().map_err(said)?;
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
    let made = runtime.block_on(admin.create_topics([&new], &AdminOptions::new())).map_err(said)?;
    for one in made {
        one.map_err(|(_, code)| said(KafkaError::AdminOp(code)))?;
    }
    let producer: BaseProducer = settings.create().map_err(said)?;
    let (mut value, mut id) = (Vec::new(), 0);
    while id < records {
        value.clear();
        write(id, &mut value);
        let key = id.to_string();
        let partition = (id % u64::from(partitions.unsigned_abs())) as i32;
        match producer.send(BaseRecord::to(topic).partition(partition).key(&key).payload(&value)) {
            Ok(()) => id += 1,
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                producer.poll(Duration::from_millis(50));
            }
            Err((error, _)) => return Err(said(error)),
        }
    }
    producer.flush(Duration::from_secs(120)).map_err(said)
}
