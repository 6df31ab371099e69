//! Answers to transactions of an exactly_once pipeline that are lost: what comes next must not guess at what was written.

use std::{collections::BTreeSet, ops::Range, time::Duration};

use tidemill_test_kafka::Broker;
use tidemill_tests::{
    kafka::{self, Kafka, Record},
    limit::within,
    machine,
    pipeline::{Pipeline, transform},
    process::Tidemill,
    proxy::{Loss, Proxy},
    stand::{Model, Stand},
    wait_until,
};

const UNKNOWN: &str = "the answer to a decision did not come";
/// Each makes a letter, and no row.
const EACH: u64 = 100;

/// A pipeline whose records are rejected or dropped, so that its transactions have letters only, or nothing. The first
/// process reaches Kafka by way of the proxy, the second one does not.
struct Case {
    _broker: Broker,
    proxy: Proxy,
    stand: Stand,
    letters: String,
    near: Pipeline,
    first: Tidemill,
    sent: u64,
}

impl Case {
    fn new(name: &str, partitions: i32) -> Case {
        let (broker, proxy) = kafka::own_broker_behind_a_proxy();
        let stand = Stand::compacting(Kafka::of(&broker), name, partitions, Model::Duplicate);
        let letters = format!("{}-dead", stand.name);
        stand.kafka.create_topic(&letters, 1);
        let near = Pipeline {
            delivery: "exactly_once".to_owned(),
            batch: "linger = \"200ms\"".to_owned(),
            transforms: transform(&machine::test_plugin(), "{}"),
            dead_letters: format!("max_rejects = false\n[dead_letters.kafka]\ntopic = {letters:?}"),
            ..stand.pipeline().soon_forgotten()
        };
        let far = Pipeline { brokers: proxy.address().to_string(), ..near.clone() };
        let first = stand.run(&far);
        Case { _broker: broker, proxy, stand, letters, near, first, sent: 0 }
    }

    fn produce(&mut self) {
        let ids: Range<u64> = self.sent..self.sent + EACH;
        self.sent = ids.end;
        let rejected = ids.map(|id| Record::of(format!(r#"{{"id":{id},"amount":1,"do":"reject"}}"#)));
        self.stand.kafka.produce(&self.stand.name, rejected);
    }

    fn produce_to(&self, partition: i32, ids: Range<u64>, deed: &str) {
        let records =
            ids.map(|id| Record::of(format!(r#"{{"id":{id},"amount":1,"do":{deed:?}}}"#)).on(partition));
        self.stand.kafka.produce(&self.stand.name, records);
    }

    fn until_lost(&self, losses: u64) {
        let lost = wait_until(Duration::from_secs(60), || (self.proxy.losses() >= losses).then_some(()));
        lost.unwrap_or_else(|late| panic!("answer {losses} is to be lost: {late}: {}", self.first.log()));
    }

    /// The answer to the first process's transaction is lost, and a second process joins before the first one gives
    /// the answer up. Returns the second one, and whether that was in time.
    fn joined_while_unknown(&mut self) -> (Tidemill, bool) {
        let before = self.proxy.losses();
        let told = self.first.log().matches(UNKNOWN).count();
        self.proxy.lose(Loss::Answer);
        self.produce();
        self.until_lost(before + 1);
        let mut second = self.stand.run(&self.near);
        second.until_logged(60, "assigned");
        let in_time = self.first.log().matches(UNKNOWN).count() == told;
        (second, in_time)
    }

    fn must_have_each_letter_once(&self) {
        let text = |letter: Record| String::from_utf8_lossy(&letter.value.unwrap_or_default()).into_owned();
        let read = || self.stand.kafka.read_all(&self.letters).into_iter().map(text).collect::<Vec<_>>();
        let all = || Some(read()).filter(|letters| letters.len() as u64 >= self.sent);
        let letters = wait_until(Duration::from_secs(60), all);
        let letters = letters.unwrap_or_else(|late| panic!("{late}: {}", self.first.log()));
        let different: BTreeSet<&String> = letters.iter().collect();
        let found = (letters.len() as u64, different.len() as u64);
        assert_eq!(found, (self.sent, self.sent), "each once: {}", self.first.log());
    }
}

/// It was claimed over what nobody knew: the tickets of its letters were lost, and the pipeline halted.
#[test]
fn an_assignment_waits_until_it_is_known_what_was_written() {
    const ROUNDS: u32 = 3;
    within(300, || {
        let mut case = Case::new("once_rebalanced", 1);
        let mut in_time = 0;
        for _ in 0..ROUNDS {
            let (mut second, was_in_time) = case.joined_while_unknown();
            in_time += u32::from(was_in_time);
            case.stand.until_released(60, case.sent);
            case.must_have_each_letter_once();
            second.drain(60);
        }
        assert!(
            in_time > 0,
            "the second process never joined before the answer was given up: this shows nothing"
        );
        case.first.drain(60);
        case.must_have_each_letter_once();
    });
}

/// librdkafka tells of the loss only behind the answer to the assignment, and that waited for what the brokers say of a
/// partition which is another's by now: for ever.
#[test]
fn a_process_put_out_while_an_assignment_waits_joins_again() {
    within(300, || {
        let mut case = Case::new("once_put_out", 1);
        let mut tries = 0;
        let mut second = loop {
            let (mut second, in_time) = case.joined_while_unknown();
            if in_time {
                break second;
            }
            tries += 1;
            assert!(tries < 3, "the second process always joined too late: this shows nothing");
            case.stand.until_released(60, case.sent);
            second.drain(60);
        };
        case.first.freeze();
        second.until(90, "the partition", |metrics| metrics.count("tidemill_partitions", &[]) == 1);
        case.first.thaw();
        case.first.until_logged(60, "put out of the group while an assignment waited");
        case.produce();
        case.stand.until_released(60, case.sent);
        second.kill();
        case.produce();
        case.stand.until_released(90, case.sent);
        case.must_have_each_letter_once();
        case.first.drain(60);
    });
}

/// Whether the second one was written was told by an offset that the first one had moved: its letters counted as kept, and
/// were nowhere.
#[test]
fn two_answers_that_are_lost_in_a_row_are_told_apart() {
    within(200, || {
        let mut case = Case::new("once_unheard", 2);
        for partition in [0, 1] {
            case.produce_to(partition, case.sent..case.sent + EACH, "reject");
            case.sent += EACH;
        }
        case.stand.until_released(60, case.sent);
        case.proxy.lose_next(Loss::Answer);
        case.produce_to(0, 0..EACH, "drop");
        case.until_lost(1);
        case.proxy.lose(Loss::Request);
        case.produce_to(1, case.sent..case.sent + EACH, "reject");
        case.sent += EACH;
        case.until_lost(2);
        case.stand.until_released(90, case.sent + EACH);
        case.must_have_each_letter_once();
        case.first.drain(60);
        case.must_have_each_letter_once();
    });
}
