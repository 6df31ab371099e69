use std::collections::BTreeMap;

use rdkafka::config::ClientConfig;
use rdkafka::consumer::Consumer as _;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::types::RDKafkaApiKey;

use super::*;
use crate::config::model::{self, Isolation, Kafka, KafkaSecurity};
use crate::fault::FaultKind;
use crate::position::{Epoch, Partition};
use crate::source::kafka::consumer;

const PATIENCE: Duration = Duration::from_secs(30);

fn settings(brokers: String) -> Kafka {
    Kafka {
        brokers: vec![brokers],
        topics: vec!["t".into()],
        group: "g".into(),
        start: model::Start::Earliest,
        isolation: Isolation::ReadCommitted,
        commit_interval: Duration::from_secs(1),
        fetch_queue_bytes: 1 << 20,
        security: KafkaSecurity::default(),
        properties: BTreeMap::new(),
    }
}

/// In one batch, so that one read of the queue brings all of them.
fn produce(brokers: &str, records: u8) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        // Longer than any test takes to give it the records; the flush waits for none of it.
        .set("linger.ms", "60000")
        .create()
        .expect("a producer");
    for record in 0..records {
        let record = [record];
        let sent = producer.send(BaseRecord::<[u8], [u8]>::to("t").partition(0).payload(&record[..]));
        sent.map_err(|(error, _)| error).expect("room in the producer's queue");
    }
    producer.flush(PATIENCE).expect("the mock brokers take records");
}

type Cluster = MockCluster<'static, rdkafka::producer::DefaultProducerContext>;

/// A feed that has read `records` records of `t[0]` and was told of no stay so far.
fn feed_after_a_read(records: u8) -> (Cluster, KafkaFeed) {
    let (cluster, _reader, feed) = feed_and_reader_after_a_read(records);
    (cluster, feed)
}

fn feed_and_reader_after_a_read(records: u8) -> (Cluster, Arc<consumer::Reader>, KafkaFeed) {
    let cluster = MockCluster::new(1).expect("mock brokers");
    cluster.create_topic("t", 1, 1).expect("a topic");
    produce(&cluster.bootstrap_servers(), records);
    let reader = Arc::new(consumer::connect(&settings(cluster.bootstrap_servers())).expect("a consumer"));
    let queue = Arc::new(Queue::new(&reader).expect("a queue"));
    assert!(queue.take_partition("t", 0));
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset("t", 0, Offset::Offset(0)).expect("an offset");
    reader.assign(&assignment).expect("assigned");
    let mut feed = KafkaFeed::new(queue, Arc::default(), Ledger::new(), Gathering::default());
    let began = Instant::now();
    while feed.messages.came() < usize::from(records) && began.elapsed() < PATIENCE {
        feed.queue.read(&mut feed.messages, Duration::from_millis(200));
    }
    feed.reads = 1;
    (cluster, reader, feed)
}

/// Longer than any test waits: who is still at rest then was not woken.
const LONG: Duration = Duration::from_secs(60);

#[test]
fn a_lane_at_rest_is_woken_by_a_call_and_by_a_message() {
    let (cluster, mut feed) = feed_after_a_read(3);
    let began = Instant::now();
    feed.queue.wake();
    feed.queue.read_after_rest(&mut feed.messages, LONG, LONG);
    assert_eq!(feed.messages.came(), 0, "a call before the wait ends it, too");
    let queue = Arc::clone(&feed.queue);
    std::thread::scope(|scope| {
        scope.spawn(|| feed.queue.read_after_rest(&mut feed.messages, LONG, LONG));
        queue.wake();
    });
    assert_eq!(feed.messages.came(), 0);
    produce(&cluster.bootstrap_servers(), 1);
    feed.queue.read_after_rest(&mut feed.messages, LONG, Duration::ZERO);
    assert_eq!(feed.messages.came(), 1);
    assert!(began.elapsed() < LONG);
}

#[test]
fn what_comes_with_the_first_message_after_a_rest_is_read_with_it() {
    let (cluster, mut feed) = feed_after_a_read(0);
    produce(&cluster.bootstrap_servers(), 3);
    let mut came = 0;
    while came < 3 {
        feed.queue.read_after_rest(&mut feed.messages, LONG, READ_WAIT);
        assert!(feed.messages.came() > 0);
        let offsets: Vec<i64> =
            std::iter::from_fn(|| feed.messages.next().map(|message| message.offset())).collect();
        let expected: Vec<i64> = (came..).take(offsets.len()).collect();
        assert_eq!(offsets, expected, "in their order, none twice");
        came += i64::try_from(offsets.len()).expect("at most three");
    }
}

fn give(feed: &KafkaFeed) -> Stay {
    let stay = Stay { partition: Partition { source: "t".into(), number: 0 }, epoch: Epoch(2) };
    feed.orders.give(Start { stay: stay.clone(), after: -1 });
    stay
}

#[test]
fn large_keys_fill_a_chunk_as_large_values_do() {
    let stay = Stay { partition: Partition { source: "t".into(), number: 0 }, epoch: Epoch(1) };
    let start = Start { stay, after: -1 };
    let mut gathered = Gathered::of(start, 0);
    assert!(!gathered.is_full());
    gathered.columns.keys.push(&vec![0; CHUNK_BYTES_MAX]);
    assert!(gathered.is_full());
}

fn next_chunk(feed: &mut KafkaFeed, into: &mut Columns, until: impl Fn(&KafkaFeed) -> bool) -> Option<Span> {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        if let Fed::Chunk(span) = feed.next(into).expect("nothing halts") {
            return Some(span);
        }
        if until(feed) {
            return None;
        }
    }
    panic!("nothing came within {PATIENCE:?}");
}

/// librdkafka counts an error as a record that was read, and fetches on behind it when a rebalance has paused the
/// partition.
#[test]
fn a_record_is_read_although_an_error_came_in_its_place_before() {
    let (cluster, reader, mut feed) = feed_and_reader_after_a_read(1);
    give(&feed);
    feed.follow_orders(feed.reads);
    let mut columns = Columns::default();
    let first = next_chunk(&mut feed, &mut columns, |_| false);
    assert_eq!(first.map(|span| span.upto), Some(0));
    cluster.request_errors(RDKafkaApiKey::Fetch, &[NativeError::RD_KAFKA_RESP_ERR_INVALID_MSG]);
    let second = next_chunk(&mut feed, &mut columns, |feed| feed.partitions[0].doubtful == 2);
    assert_eq!(second, None);
    let assignment = reader.assignment().expect("an assignment");
    reader.pause(&assignment).expect("paused");
    reader.resume(&assignment).expect("resumed");
    produce(&cluster.bootstrap_servers(), 1);
    let second = next_chunk(&mut feed, &mut columns, |_| false);
    assert_eq!(second.map(|span| (span.after, span.upto)), Some((0, 1)));
}

#[test]
fn errors_halt_where_librdkafka_would_leave_records_out_and_pass_where_it_tries_again() {
    let check = |code, expected: Option<FaultKind>| {
        let checked = check_error("t[0]", 7, code, "a text");
        assert_eq!(checked.as_ref().err().map(|fault| fault.kind), expected, "{code:?}");
        assert!(checked.err().is_none_or(|fault| fault.what == "cannot read t[0] at offset 7: a text"));
    };
    check(NativeError::RD_KAFKA_RESP_ERR__BAD_MSG, Some(FaultKind::Halt));
    check(NativeError::RD_KAFKA_RESP_ERR__NOT_IMPLEMENTED, Some(FaultKind::Halt));
    check(NativeError::RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE, Some(FaultKind::Halt));
    check(NativeError::RD_KAFKA_RESP_ERR_INVALID_MSG, None);
    check(NativeError::RD_KAFKA_RESP_ERR_UNKNOWN, None);
}

#[test]
fn the_position_is_followed_behind_all_that_was_handed_on_and_not_behind_errors() {
    let stay = Stay { partition: Partition { source: "t".into(), number: 0 }, epoch: Epoch(1) };
    let ledger = Ledger::new();
    ledger.begin(stay.clone(), -1);
    let mut gathered = Gathered::of(Start { stay: stay.clone(), after: -1 }, 0);
    let mut check = |change: &dyn Fn(&mut Gathered), position, upto: i64| {
        change(&mut gathered);
        gathered.read_on(position, &ledger);
        assert_eq!(ledger.watermark(&stay).map(|watermark| watermark.upto), Some(upto), "{position}");
        assert_eq!((gathered.upto, gathered.handed_upto), (upto, upto));
        [upto - 1, upto, upto + 1].map(|offset| gathered.check_repeated(offset).is_ok())
    };
    assert_eq!(check(&|_| (), 0, -1), [true; 3]);
    assert_eq!(check(&|_| (), 5, 4), [false, false, true], "no record can be there");
    assert_eq!(check(&|_| (), 6, 5), [false, false, true]);
    assert_eq!(check(&|gathered| gathered.columns.marks.push(0), 7, 5), [false, false, true]);
    assert_eq!(check(&|gathered| gathered.columns.clear(), 6, 5), [false, false, true]);
    assert_eq!(check(&|gathered| gathered.doubtful = 7, 7, 5), [false, false, true]);
    assert_eq!(check(&|_| (), 8, 7), [false, false, true]);
}

#[test]
fn a_stay_given_during_a_read_takes_what_the_read_brought() {
    let (_cluster, mut feed) = feed_after_a_read(3);
    give(&feed);
    feed.follow_orders(feed.reads);
    assert_eq!(feed.gather().expect("no error in the queue"), None);
    assert_eq!(feed.partitions[0].upto, 2);
}

/// The lane waits for the budget in the middle of what it read, while the partition is taken back,
/// given to another process and returned: what is left of the read lies past the new start, and
/// taking it would skip everything before it.
#[test]
fn a_stay_given_after_a_read_takes_nothing_of_it() {
    let (_cluster, mut feed) = feed_after_a_read(3);
    let stay = give(&feed);
    assert!(feed.owns(&stay));
    assert_eq!(feed.gather().expect("no error in the queue"), None);
    assert_eq!(feed.partitions[0].upto, -1);
}
