//! The first start of a group, of several processes at once.

use std::time::Duration;

use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewPartitions},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _},
};
use tidemill_sandbox::Options;
use tidemill_tests::{
    kafka::{self, Kafka, Record},
    limit::within,
    oracle::Promise,
    pipeline::Pipeline,
    process::Tidemill,
    stand::{Model, Stand},
    wait_until,
    warehouse::row,
};

const PARTITIONS: i32 = 4;
/// Records that stand in the topic before anybody reads it, none of which is to be loaded.
const HISTORY: u64 = 400;

/// Waits until the broker knows `count` members of the stand's group, also while they wait for their assignment.
fn until_members(stand: &Stand, count: usize) {
    let config = &mut ClientConfig::new();
    let consumer: BaseConsumer =
        config.set("bootstrap.servers", &stand.kafka.address).create().expect("a client");
    let joined = wait_until(Duration::from_secs(30), || {
        let groups = consumer.fetch_group_list(Some(&stand.name), Duration::from_secs(10)).ok()?;
        groups.groups().iter().any(|group| group.members().len() == count).then_some(())
    });
    joined.unwrap_or_else(|late| panic!("{count} members: {late}"));
}

fn add_partitions(stand: &Stand, count: usize) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &stand.kafka.address).create().expect("an admin client");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let more = NewPartitions::new(&stand.name, count);
    let answers = runtime.block_on(admin.create_partitions([&more], &AdminOptions::new()));
    let answers = answers.expect("the broker answers");
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
}

/// The second process hears of its partitions when the first one has claimed its own.
fn check(name: &str, model: Model, delivery: &str) {
    let broker = kafka::own_broker(&[("group.initial.rebalance.delay.ms", "2000")]);
    let stand = Stand::on(Kafka::of(&broker), name, PARTITIONS, model, Options::default());
    let produce = |ids: std::ops::Range<u64>, partitions: std::ops::Range<i32>| {
        let places = partitions.cycle();
        stand.kafka.produce(&stand.name, ids.zip(places).map(|(id, at)| Record::of(row(id)).on(at)));
    };
    produce(1_000_000..1_000_000 + HISTORY, 0..PARTITIONS);
    let pipeline = Pipeline {
        delivery: delivery.to_owned(),
        source_more: "start = \"latest\"".to_owned(),
        ..stand.pipeline()
    };
    let file = stand.write(&pipeline);
    let mut first = Tidemill::run(&[&file]);
    until_members(&stand, 1);
    let mut second = Tidemill::run(&[&file]);
    until_members(&stand, 2);
    second.freeze();
    first.until(30, "its half", |metrics| metrics.count("tidemill_partitions", &[]) == 2);
    stand.until_released(30, HISTORY / 2);
    // Not skipped, although the partitions of half of them are claimed later.
    produce(0..100, 0..PARTITIONS);
    second.thaw();
    second.until(30, "the other half", |metrics| metrics.count("tidemill_partitions", &[]) == 2);
    produce(100..200, 0..PARTITIONS);
    stand.until_released(60, HISTORY + 200);
    first.drain(30);
    second.drain(30);
    stand.judge(200).must_keep(Promise::Once);
    // Partitions that are added later are read from their beginning.
    add_partitions(&stand, 6);
    produce(200..300, 4..6);
    let mut third = Tidemill::run(&[&file]);
    stand.until_released(60, HISTORY + 300);
    third.drain(30);
    stand.judge(300).must_keep(Promise::Once);
}

#[test]
fn processes_that_start_together_all_begin_where_the_file_says() {
    within(180, || check("first_start", Model::Duplicate, ""));
}

#[test]
fn so_they_do_where_commits_guard_a_primary_key_table() {
    within(180, || check("first_keys", Model::Primary, ""));
}

#[test]
fn so_they_do_with_exactly_once() {
    within(180, || check("first_once", Model::Duplicate, "exactly_once"));
}
