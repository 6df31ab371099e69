//! Topics by regular expression: those that are there, and those that come.

use std::{fs, path::PathBuf};

use tidemill_tests::{
    kafka::Record,
    limit::within,
    oracle::Promise,
    process::Tidemill,
    stand::{Model, Stand},
    warehouse::row,
};

/// A pipeline file that reads `topics` and looks for new ones twice a second.
fn file(stand: &Stand, topics: &[&str], source_more: &str) -> PathBuf {
    let mut pipeline = stand.pipeline();
    pipeline.topics = topics.iter().map(|topic| (*topic).to_owned()).collect();
    pipeline.source_more = source_more.to_owned();
    let path = stand.write(&pipeline);
    let text = fs::read_to_string(&path).expect("the file was written");
    let often = "properties = { \"topic.metadata.refresh.interval.ms\" = \"500\", ";
    let changed = text.replace("properties = { ", often);
    assert_ne!(changed, text);
    fs::write(&path, changed).expect("the folder is there");
    path
}

fn produce(stand: &Stand, topic: &str, ids: std::ops::Range<u64>) {
    stand.kafka.produce(topic, ids.map(|id| Record::of(row(id))));
}

#[test]
fn topics_that_come_later_are_read_from_their_beginning() {
    within(180, || {
        let stand = Stand::new("pattern", 2, Model::Duplicate);
        let pattern = format!("^{}", stand.name);
        // Was there before: `latest` leaves it out.
        produce(&stand, &stand.name, 1_000_000..1_000_010);
        let file = file(&stand, &[&pattern], "start = \"latest\"");
        let mut tidemill = Tidemill::run(&[&file]);
        tidemill.until_ready(60);
        produce(&stand, &stand.name, 0..100);
        tidemill.until_settled(60, 100);
        let later = format!("{}.later", stand.name);
        stand.kafka.create_topic(&later, 3);
        produce(&stand, &later, 100..200);
        tidemill.until_settled(60, 200);
        tidemill.drain(60);
        let meanwhile = format!("{}-meanwhile", stand.name);
        stand.kafka.create_topic(&meanwhile, 1);
        produce(&stand, &meanwhile, 200..300);
        // Not one of ours, although its name holds ours.
        let other = format!("other-{}", stand.name);
        stand.kafka.create_topic(&other, 1);
        produce(&stand, &other, 300..310);
        let mut again = Tidemill::run(&[&file]);
        again.until_settled(60, 100);
        produce(&stand, &stand.name, 300..400);
        again.until_settled(60, 200);
        again.drain(60);
        stand.judge(400).must_keep(Promise::Once);
    });
}

#[test]
fn a_topic_that_is_named_and_matched_is_read_once_and_none_need_be_there() {
    within(120, || {
        let stand = Stand::new("named", 1, Model::Duplicate);
        let pattern = format!("^{}$|^{}.new", stand.name, stand.name);
        produce(&stand, &stand.name, 0..50);
        let mut twice = Tidemill::run(&[&file(&stand, &[&stand.name, &pattern], "")]);
        twice.until_settled(60, 50);
        twice.drain(60);
        let waiting = file(&stand, &[&format!("^{}.new", stand.name)], "group = \"waiting\"");
        let mut waiting = Tidemill::run(&[&waiting]);
        waiting.until_logged(30, "no topic matches yet");
        let new = format!("{}.new", stand.name);
        stand.kafka.create_topic(&new, 1);
        produce(&stand, &new, 50..100);
        waiting.until_settled(60, 50);
        waiting.drain(60);
        stand.judge(100).must_keep(Promise::Once);
    });
}
