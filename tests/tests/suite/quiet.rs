//! Partitions that go quiet behind what no reader is given: markers of transactions, and what was aborted.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _},
};
use tidemill_tests::{
    kafka::{self, Record},
    limit::within,
    oracle::Promise,
    pipeline::Pipeline,
    stand::{Model, Stand},
    wait_until,
    warehouse::row,
};

/// Deletes all that a topic of one partition holds, as retention does.
fn delete_all(stand: &Stand) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &stand.kafka.address).create().expect("an admin client");
    let mut all = TopicPartitionList::new();
    all.add_partition_offset(&stand.name, 0, Offset::End).expect("an offset");
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(20)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let answer = runtime.block_on(admin.delete_records(&all, &options)).expect("the broker answers");
    assert!(answer.elements().iter().all(|element| element.error().is_ok()), "{answer:?}");
}

fn records(ids: std::ops::Range<u64>) -> impl Iterator<Item = Record> {
    ids.map(|id| Record::of(row(id)).on(0))
}

/// The last record is followed by a marker, then by a transaction that was aborted. All of it is gone when the pipeline
/// is started again, and nothing is missing.
fn check(stand: &Stand, pipeline: &Pipeline) {
    let mut first = stand.run(pipeline);
    first.until_ready(60);
    stand.kafka.produce_transaction(&stand.name, records(0..10), true);
    // Ten records and their marker.
    stand.until_released(30, 11);
    stand.kafka.produce_transaction(&stand.name, records(1_000..1_020), false);
    stand.until_released(30, 32);
    first.drain(30);
    assert_eq!(stand.committed(), 32);
    delete_all(stand);
    let mut second = stand.run(pipeline);
    second.until(30, "the partition", |metrics| metrics.count("tidemill_partitions", &[]) == 1);
    stand.kafka.produce_transaction(&stand.name, records(10..20), true);
    stand.until_released(30, 43);
    second.drain(30);
    stand.judge(20).must_keep(Promise::Once);
}

#[test]
fn a_quiet_partition_is_read_on_after_retention_has_taken_its_markers() {
    within(120, || {
        let stand = Stand::new("quiet", 1, Model::Duplicate);
        check(&stand, &stand.pipeline());
    });
}

#[test]
fn so_it_is_where_commits_guard_a_primary_key_table() {
    within(120, || {
        let stand = Stand::new("quiet_keys", 1, Model::Primary);
        check(&stand, &stand.pipeline());
    });
}

#[test]
fn so_it_is_with_exactly_once() {
    within(120, || {
        let stand = Stand::compacting(kafka::shared(), "quiet_once", 1, Model::Duplicate);
        let pipeline = Pipeline { delivery: "exactly_once".to_owned(), ..stand.pipeline() };
        check(&stand, &pipeline);
    });
}

/// The offset that the group has for the first partition.
fn committed_of_the_first(stand: &Stand) -> Option<i64> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &stand.kafka.address).set("group.id", &stand.name);
    let consumer: BaseConsumer = config.create().expect("a consumer");
    let mut list = TopicPartitionList::new();
    list.add_partition(&stand.name, 0);
    let answer = consumer.committed_offsets(list, Duration::from_secs(20)).expect("the broker answers");
    answer.elements().first().and_then(|element| element.offset().to_raw())
}

#[test]
fn a_marker_is_passed_after_the_rows_before_it_and_beside_a_busy_partition() {
    const LINGER: Duration = Duration::from_secs(3);
    within(120, || {
        let stand = Stand::new("quiet_beside", 2, Model::Duplicate);
        let slow = Pipeline {
            batch: format!("linger = \"{}s\"", LINGER.as_secs()),
            process: "lanes = 1".to_owned(),
            ..stand.pipeline()
        };
        let mut tidemill = stand.run(&slow);
        tidemill.until_ready(60);
        stand.kafka.produce_transaction(&stand.name, records(0..10), true);
        let is_enough = AtomicBool::new(false);
        let written = std::thread::scope(|scope| {
            let writing = scope.spawn(|| {
                let mut written = 10;
                while !is_enough.load(Ordering::Relaxed) {
                    stand.kafka.produce(&stand.name, [Record::of(row(written)).on(1)]);
                    written += 1;
                }
                written
            });
            let mut loaded_first = true;
            let passed = wait_until(Duration::from_secs(60), || {
                let committed = committed_of_the_first(&stand).filter(|committed| *committed > 0)?;
                loaded_first &= stand.warehouse.stats(&stand.table).rows_loaded >= 10;
                (committed == 11).then_some(())
            });
            is_enough.store(true, Ordering::Relaxed);
            passed.expect("the marker is passed");
            assert!(loaded_first, "nothing is committed before its rows are loaded");
            writing.join().expect("all is written")
        });
        stand.until_released(60, written + 1);
        tidemill.drain(30);
        stand.judge(written).must_keep(Promise::Once);
    });
}
