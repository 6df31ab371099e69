//! The real Kafka that tests share, or one of their own that they may kill.

use crate::{machine, proxy::Proxy};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    message::{BorrowedMessage, Header, Headers, Message, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer},
};
use std::{env, sync::OnceLock, time::Duration};
use tidemill_test_kafka::{BROKER_VARIABLE, Broker, Distribution, free_port};

/// Calls to a broker that is up and idle.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// The address of the broker that all tests share: each uses topics and groups of its own.
///
/// # Panics
/// When none is given and none can be started.
#[must_use]
pub fn shared() -> Kafka {
    static STARTED: OnceLock<Broker> = OnceLock::new();
    let address =
        env::var(BROKER_VARIABLE).unwrap_or_else(|_| STARTED.get_or_init(|| own_broker(&[])).address());
    Kafka { address, login: None }
}

/// A broker of the test's own, to kill, freeze and start again.
///
/// # Panics
/// When it cannot be started.
#[must_use]
pub fn own_broker(settings: &[(&str, &str)]) -> Broker {
    let distribution = Distribution::find(&machine::target()).expect("Kafka's jars are there");
    Broker::start(&distribution, &machine::target(), settings).expect("a broker starts")
}

/// A broker of the test's own, and a proxy in front of it: who connects to the proxy is sent there again by the broker.
///
/// # Panics
/// When it cannot be started.
#[must_use]
pub fn own_broker_behind_a_proxy() -> (Broker, Proxy) {
    let port = free_port().expect("there is a free port");
    let proxy = Proxy::to_kafka(port);
    let listeners = format!(
        "PLAINTEXT://127.0.0.1:{{port}},FAR://127.0.0.1:{port},CONTROLLER://127.0.0.1:{{controller_port}}"
    );
    let advertised = format!("PLAINTEXT://127.0.0.1:{{port}},FAR://127.0.0.1:{}", proxy.port());
    let broker = own_broker(&[
        ("listeners", &listeners),
        ("advertised.listeners", &advertised),
        ("listener.security.protocol.map", "PLAINTEXT:PLAINTEXT,FAR:PLAINTEXT,CONTROLLER:PLAINTEXT"),
        ("inter.broker.listener.name", "PLAINTEXT"),
    ]);
    (broker, proxy)
}

/// A broker as its clients see it.
#[derive(Clone, Debug)]
pub struct Kafka {
    /// `host:port`.
    pub address: String,
    /// User and password for SASL PLAIN.
    login: Option<(String, String)>,
}

/// What to produce.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Which partition; none lets the client choose by key.
    pub partition: Option<i32>,
    /// The key.
    pub key: Option<String>,
    /// The value; none is a tombstone.
    pub value: Option<Vec<u8>>,
    /// Milliseconds since 1970; none is now.
    pub timestamp_ms: Option<i64>,
    /// Headers in order.
    pub headers: Vec<(String, String)>,
}

impl Record {
    /// A record without a key.
    #[must_use]
    pub fn of(value: impl Into<Vec<u8>>) -> Self {
        Self { value: Some(value.into()), ..Self::default() }
    }

    /// Keeps to one partition, so that order holds.
    #[must_use]
    pub fn on(self, partition: i32) -> Self {
        Self { partition: Some(partition), ..self }
    }

    /// With a key.
    #[must_use]
    pub fn keyed(self, key: impl Into<String>) -> Self {
        Self { key: Some(key.into()), ..self }
    }
}

/// Looks at the offsets that a group has committed; it is no member of the group.
pub struct Offsets {
    consumer: BaseConsumer,
    partitions: TopicPartitionList,
}

impl Offsets {
    /// The sum over all partitions: how many records are released. 0 while the coordinator does not answer.
    #[must_use]
    pub fn sum(&self) -> u64 {
        let Ok(committed) = self.consumer.committed_offsets(self.partitions.clone(), ANSWER_WITHIN) else {
            return 0;
        };
        let offset = |offset: Offset| match offset {
            Offset::Offset(offset) => u64::try_from(offset).unwrap_or(0),
            Offset::Beginning | Offset::End | Offset::Stored | Offset::Invalid | Offset::OffsetTail(_) => 0,
        };
        committed.elements().iter().map(|element| offset(element.offset())).sum()
    }
}

impl Kafka {
    /// The clients' view of a broker of one's own.
    #[must_use]
    pub fn of(broker: &Broker) -> Self {
        Self { address: broker.address(), login: None }
    }

    /// The view of a client that must log in, by SASL PLAIN without TLS.
    #[must_use]
    pub fn with_plain_login(broker: &Broker, user: &str, password: &str) -> Self {
        Self { address: broker.address(), login: Some((user.to_owned(), password.to_owned())) }
    }

    pub(crate) fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.address);
        if let Some((user, password)) = &self.login {
            config.set("security.protocol", "sasl_plaintext").set("sasl.mechanism", "PLAIN");
            config.set("sasl.username", user).set("sasl.password", password);
        }
        config
    }

    /// Creates a topic.
    ///
    /// # Panics
    /// When the broker refuses.
    pub fn create_topic(&self, name: &str, partitions: i32) {
        let admin: AdminClient<DefaultClientContext> = self.config().create().expect("an admin client");
        let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        let options =
            AdminOptions::new().operation_timeout(Some(ANSWER_WITHIN)).request_timeout(Some(ANSWER_WITHIN));
        let answers = block_on(admin.create_topics([&topic], &options)).expect("the broker answers");
        assert!(answers.iter().all(Result::is_ok), "create topic {name}: {answers:?}");
    }

    /// Deletes a group and its offsets, as somebody does who tidies up, or as the broker does after
    /// `offsets.retention.minutes`.
    ///
    /// # Panics
    /// When the broker refuses: the group still has members.
    pub fn delete_group(&self, group: &str) {
        let admin: AdminClient<DefaultClientContext> = self.config().create().expect("an admin client");
        let options =
            AdminOptions::new().operation_timeout(Some(ANSWER_WITHIN)).request_timeout(Some(ANSWER_WITHIN));
        let answers = block_on(admin.delete_groups(&[group], &options)).expect("the broker answers");
        assert!(answers.iter().all(Result::is_ok), "delete group {group}: {answers:?}");
    }

    /// Produces records and waits until the broker has them all.
    ///
    /// # Panics
    /// When the broker does not take one.
    pub fn produce(&self, topic: &str, records: impl IntoIterator<Item = Record>) {
        let producer: BaseProducer = self
            .config()
            .set("linger.ms", "20")
            .set("batch.num.messages", "10000")
            .set("compression.type", "lz4")
            .set("queue.buffering.max.messages", "200000")
            .set("message.max.bytes", "20000000")
            .create()
            .expect("a producer");
        for record in records {
            send(&producer, topic, &record);
        }
        producer.flush(Duration::from_secs(60)).expect("the broker takes all records");
    }

    /// Produces records in one transaction, which is then committed or aborted.
    ///
    /// # Panics
    /// When the broker refuses.
    pub fn produce_transaction(&self, topic: &str, records: impl IntoIterator<Item = Record>, commit: bool) {
        let producer: BaseProducer =
            self.config().set("transactional.id", format!("{topic}-writer")).create().expect("a producer");
        producer.init_transactions(ANSWER_WITHIN).expect("transactions begin");
        producer.begin_transaction().expect("a transaction begins");
        for record in records {
            send(&producer, topic, &record);
        }
        producer.flush(ANSWER_WITHIN).expect("the broker takes all records");
        if commit {
            producer.commit_transaction(ANSWER_WITHIN).expect("the transaction is committed");
        } else {
            producer.abort_transaction(ANSWER_WITHIN).expect("the transaction is aborted");
        }
    }

    /// Follows the offsets that a group commits for a topic.
    ///
    /// # Panics
    /// When the broker does not answer.
    #[must_use]
    pub fn offsets(&self, group: &str, topic: &str) -> Offsets {
        let consumer: BaseConsumer = self.config().set("group.id", group).create().expect("a consumer");
        let metadata = consumer.fetch_metadata(Some(topic), ANSWER_WITHIN).expect("the broker answers");
        let mut partitions = TopicPartitionList::new();
        for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
            partitions.add_partition(topic, partition.id());
        }
        Offsets { consumer, partitions }
    }

    /// Reads a topic from its beginning until `count` records have come. What was aborted does not come.
    ///
    /// # Panics
    /// When fewer come within a minute.
    #[must_use]
    pub fn read(&self, topic: &str, count: usize) -> Vec<Record> {
        self.read_until(topic, |records| records.len() >= count)
    }

    /// As [`read`](Self::read), until `is_all` says that all have come.
    ///
    /// # Panics
    /// When they have not within a minute.
    #[must_use]
    pub fn read_until(&self, topic: &str, is_all: impl Fn(&[Record]) -> bool) -> Vec<Record> {
        let consumer: BaseConsumer = self
            .config()
            .set("group.id", format!("{topic}-reader"))
            .set("auto.offset.reset", "earliest")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .create()
            .expect("a consumer");
        consumer.subscribe(&[topic]).expect("the topic can be read");
        let mut records = Vec::new();
        let outcome = crate::wait_until(Duration::from_secs(60), || {
            while let Some(message) = consumer.poll(Duration::from_millis(50)) {
                records.push(owned(&message.expect("the broker delivers")));
            }
            is_all(&records).then_some(())
        });
        outcome.unwrap_or_else(|late| panic!("{} records in {topic}: {late}", records.len()));
        records
    }

    /// All that stands in a topic of one partition now and is not aborted: a record is put behind it and read up to.
    ///
    /// # Panics
    /// When it cannot be read within a minute.
    #[must_use]
    pub fn read_all(&self, topic: &str) -> Vec<Record> {
        let end = format!("the end {:08x}", rand::random::<u32>());
        self.produce(topic, [Record::of(end.as_str())]);
        let is_end = |record: &Record| record.value.as_deref() == Some(end.as_bytes());
        let mut records = self.read_until(topic, |records| records.iter().any(is_end));
        records.retain(|record| record.value.as_deref().is_none_or(|value| !value.starts_with(b"the end ")));
        records
    }
}

fn owned(message: &BorrowedMessage<'_>) -> Record {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let headers = message.headers().into_iter().flat_map(Headers::iter);
    Record {
        partition: Some(message.partition()),
        key: message.key().map(text),
        value: message.payload().map(<[u8]>::to_vec),
        timestamp_ms: message.timestamp().to_millis(),
        headers: headers
            .map(|header| (header.key.to_owned(), header.value.map(text).unwrap_or_default()))
            .collect(),
    }
}

fn send(producer: &BaseProducer, topic: &str, record: &Record) {
    let mut message = BaseRecord::<String, Vec<u8>>::to(topic);
    message.partition = record.partition;
    message.key = record.key.as_ref();
    message.payload = record.value.as_ref();
    message.timestamp = record.timestamp_ms;
    if !record.headers.is_empty() {
        message =
            message.headers(record.headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
                headers.insert(Header { key, value: Some(value) })
            }));
    }
    while let Err((error, unsent)) = producer.send(message) {
        assert_eq!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), "produce into {topic}");
        producer.poll(Duration::from_millis(10));
        message = unsent;
    }
    producer.poll(Duration::ZERO);
}

/// librdkafka's own threads complete its futures: any executor will do.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}
