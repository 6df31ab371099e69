//! Every failpoint once: a process dies there, its successor goes on, and what is left is judged.
//!
//! Random kills are a supplement: they hit what takes long. Here each step is hit, also those that take no time.

use super::{
    flow::{Flow, Standings},
    profile::Profile,
    replica,
    stage::{Stage, armed},
    watch::Watch,
};
use crate::{
    http::Client,
    judge::{Invariant, records::Payload, repeats::Windows},
    kafka::{self, Kafka},
    oracle::Promise,
    pipeline::{Http, Pipeline, Source},
    postgres::Postgres,
};
use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};
use tidemill_sandbox::{AnswerFault, FaultKind, Hop};
use tidemill_test_kafka::{Broker, free_port};

/// Records before the kill, and as many after it.
const RECORDS: u64 = 1_200;
/// Records of two partitions that are no batch yet.
const FEW: u64 = 100;
/// How long the failpoint may take to be passed.
const FIRED_WITHIN: Duration = Duration::from_secs(40);
/// When nothing of what was there has passed the failpoint.
const MORE_AFTER: Duration = Duration::from_secs(2);
/// Long enough for the others to take its partitions first.
const AWAY: Duration = Duration::from_secs(3);
/// How long the successor may take to have loaded all: a transaction that was left open ends after 10 s.
const RELEASED_WITHIN: Duration = Duration::from_secs(60);

/// A failpoint, on the way of one kind of source and delivery.
#[derive(Clone, Debug)]
struct Case {
    point: String,
    way: Way,
}

/// Whose way.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Way {
    Stream(Promise),
    Postgres,
    Http,
}

/// What cases share: brokers take seconds to start.
struct Ground {
    kafka: Kafka,
    // Behind what uses it.
    _broker: Broker,
}

/// Sweeps the failpoints whose names begin with one of `names`, all without any; true if each fired, and each promise was
/// kept.
///
/// # Panics
/// When something around the processes under test cannot be had.
#[must_use]
pub fn run(names: &[String], seed: u64) -> bool {
    let cases = cases(&super::failpoints());
    let wanted = |case: &Case| names.is_empty() || names.iter().any(|name| case.point.starts_with(name));
    let cases: Vec<Case> = cases.into_iter().filter(wanted).collect();
    println!("seed {seed}, commit {}: {} failpoints, each kills once", super::commit(), cases.len());
    let broker = kafka::own_broker(&[]);
    let ground = Ground { kafka: Kafka::of(&broker), _broker: broker };
    let mut failed = 0;
    for case in &cases {
        let begun = Instant::now();
        let mut stage = Stage::new();
        match case.way {
            Way::Stream(promise) => stream(case, promise, &ground.kafka, seed, &mut stage),
            Way::Postgres => slot(case, &mut stage),
            Way::Http => listener(case, &mut stage),
        }
        let fired = stage.tally.points.get(&case.point).copied().unwrap_or(0);
        if fired == 0 {
            stage.wrong(Invariant::Ending, "it did not fire: this has shown nothing".to_owned());
        }
        let tally = stage.finish();
        let violations = &tally.violations;
        let verdict = if violations.is_empty() { "passed" } else { "FAILED" };
        let way = format!("{:?}", case.way);
        println!("{:<24} {way:<20} {:>5.1} s  {verdict}", case.point, begun.elapsed().as_secs_f64());
        violations.iter().for_each(|violation| println!("    VIOLATION {violation}"));
        failed += u32::from(!violations.is_empty());
    }
    println!("{} failpoints, {failed} failed", cases.len());
    failed == 0 && !cases.is_empty()
}

/// Each failpoint on each way that passes it.
fn cases(points: &[String]) -> Vec<Case> {
    let ways = |point: &str| {
        let way = point.split('.').next().unwrap_or_default();
        let passes = |profile: Profile, way| profile.passes(point).then_some(way);
        match way {
            "http" => vec![Way::Http],
            _ => [
                passes(Profile::ExactlyOnce, Way::Stream(Promise::Once)),
                passes(Profile::AtLeastOnce, Way::Stream(Promise::AtLeastOnce)),
                passes(Profile::Postgres, Way::Postgres),
                is_passed_by_requests(point).then_some(Way::Http),
            ]
            .into_iter()
            .flatten()
            .collect(),
        }
    };
    points
        .iter()
        .flat_map(|point| ways(point).into_iter().map(|way| Case { point: point.clone(), way }))
        .collect()
}

/// Whether what comes by HTTP passes a failpoint: nothing fences its loads, bad rows are told to who sent them, and one
/// request after the other makes bodies of one part.
fn is_passed_by_requests(point: &str) -> bool {
    let way = point.split('.').next().unwrap_or_default();
    ["http", "lane"].contains(&way) || (way == "load" && !is_of_fence(point) && point != "load.mid_body")
}

/// Whether only loads pass it that are fenced: those into Primary Key tables.
fn is_of_fence(point: &str) -> bool {
    ["load.begun", "load.validated"].contains(&point)
}

impl Case {
    /// Whether the answer has to be held back, or it is there before the failpoint is passed.
    fn holds_answers_back(&self) -> bool {
        self.point == "load.body_sent"
    }

    /// `FAILPOINTS` of the lives that die.
    fn arms(&self) -> Vec<String> {
        let kill = |point: &str| armed(point, 0, "kill");
        if self.point.starts_with("epoch.recover") {
            // There is something to recover only after this.
            return vec![kill("epoch.before_commit"), kill(&self.point)];
        }
        vec![kill(&self.point)]
    }

    /// A rebalance is needed for partitions to be given up.
    fn processes(&self) -> usize {
        if ["kafka.revoking", "kafka.given_up"].contains(&self.point.as_str()) { 2 } else { 1 }
    }
}

fn stream(case: &Case, promise: Promise, kafka: &Kafka, seed: u64, stage: &mut Stage) {
    let keys = is_of_fence(&case.point).then_some(200);
    let payload = Payload { seed, keys, partitions: 2, bad_every: 97 };
    let flow = Arc::new(Flow::new(kafka, &stage.warehouse, "swept", payload, promise));
    let pipeline = flow.pipeline(kafka, &stage.warehouse, &stage.canary, &stage.letters);
    if case.point.contains("rollback") || case.point.contains("rolled_back") {
        let lost = FaultKind::AnswerLost { at: Hop::Backend, how: AnswerFault::Dropped, committed: false };
        stage.warehouse.fault_times(lost, 1);
    }
    hold_answers_back(case, stage);
    let watch = Watch::start(kafka, &stage.warehouse, &[Arc::clone(&flow)], &stage.letters);
    flow.book.write(RECORDS);
    stage.begin(&[pipeline], case.processes());
    stage.members.arm(&case.arms());
    let mut left = false;
    until_fired(case, stage, |stage| {
        // A body has several parts when several partitions have a few records at once: an epoch ends with the chunk that
        // fills it.
        flow.book.write(FEW);
        if case.processes() > 1 && !left {
            // Both came at once, and neither had to give anything up: the successor of one of them takes from the other.
            let leaves = stage.members.listening_from(1);
            left = leaves.is_some();
            leaves.into_iter().for_each(|slot| stage.members.leave(slot, AWAY));
        }
    });
    stage.calm();
    flow.book.write(RECORDS);
    let standings = Standings::of(kafka, &flow);
    let released = stage.until(RELEASED_WITHIN, || {
        let found = standings.look().unwrap_or_default();
        flow.book.ends().iter().all(|(place, end)| found.get(place).is_some_and(|now| now.offset >= *end))
    });
    if !released {
        stage.wrong(Invariant::Liveness, "not all is released".to_owned());
    }
    stage.land(0, promise == Promise::Once);
    stage.end();
    let seen = watch.stop();
    stage.tally.violations.extend(seen.violations);
    let timeline = seen.timelines.first().cloned().unwrap_or_default();
    let repeats = Windows::of(&flow.book.topic, &timeline, &stage.tally.disturbances);
    let (_, violations) = flow.judge(&stage.warehouse, &stage.letters, &repeats);
    stage.tally.violations.extend(violations);
}

fn hold_answers_back(case: &Case, stage: &Stage) {
    if case.holds_answers_back() {
        stage.warehouse.fault_times(FaultKind::SlowLoad { delay_ms: 300 }, 2);
    }
}

/// Waits until the failpoint has fired, which the verdict asks for; does `more` again and again until then.
fn until_fired(case: &Case, stage: &mut Stage, mut more: impl FnMut(&mut Stage)) {
    let (begun, mut done) = (Instant::now(), Instant::now());
    while begun.elapsed() < FIRED_WITHIN && !stage.tally.points.contains_key(&case.point) {
        stage.rest(Duration::from_millis(40));
        if done.elapsed() >= MORE_AFTER {
            more(stage);
            done = Instant::now();
        }
    }
}

fn slot(case: &Case, stage: &mut Stage) {
    let postgres = Postgres::shared("swept");
    postgres.run("CREATE TABLE item (id bigint PRIMARY KEY, note text)");
    let insert = |from: u64| {
        let to = from + RECORDS - 1;
        postgres.run(&format!("INSERT INTO item SELECT id, 'n' || id FROM generate_series({from}, {to}) id"));
        postgres.run(&format!("DELETE FROM item WHERE id BETWEEN {from} AND {to} AND id % 10 = 0"));
    };
    insert(1);
    let pipeline = replica::pipeline(&postgres, stage);
    stage.begin(&[pipeline], 1);
    stage.members.arm(&case.arms());
    // The stream has something to confirm only after the copy.
    stage.rest(Duration::from_secs(2));
    hold_answers_back(case, stage);
    insert(1 + RECORDS);
    until_fired(case, stage, |_| {});
    stage.calm();
    insert(1 + 2 * RECORDS);
    let begun = Instant::now();
    let mut differing = replica::differing(stage, &postgres, &["item"]);
    while !differing.is_empty() && begun.elapsed() < RELEASED_WITHIN {
        stage.rest(Duration::from_millis(200));
        differing = replica::differing(stage, &postgres, &["item"]);
    }
    for difference in differing {
        stage.wrong(Invariant::FinalState, difference);
    }
    stage.end();
}

fn listener(case: &Case, stage: &mut Stage) {
    let port = free_port().expect("there is a free port");
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    stage.warehouse.primary_table("swept");
    let pipeline = Pipeline {
        name: "swept".to_owned(),
        source: Source::Http(Http { listen: address.to_string(), tokens: Vec::new() }),
        batch: "linger = \"50ms\"".to_owned(),
        fe: vec![stage.warehouse.fe()],
        query: stage.warehouse.query(),
        table: "swept".to_owned(),
        sink_more: format!("password = {:?}", stage.canary),
        ..Pipeline::default()
    };
    hold_answers_back(case, stage);
    stage.begin(&[pipeline], 1);
    stage.members.arm(&case.arms());
    let mut durable = BTreeSet::new();
    let begun = Instant::now();
    // One that is not answered is sent again, to whoever listens then.
    let mut id = 0;
    while id < 40 && begun.elapsed() < RELEASED_WITHIN {
        stage.rest(Duration::from_millis(20));
        let body = crate::warehouse::row(id);
        let answer =
            Client::connect(address).and_then(|mut client| client.post("/swept", "", body.as_bytes()));
        if answer.is_ok_and(|answer| answer.status == 200) {
            durable.insert(id);
            id += 1;
        }
    }
    stage.calm();
    let rows: BTreeSet<u64> = stage.warehouse.ids("swept").into_iter().collect();
    if rows != durable || durable.len() < 40 {
        let what =
            format!("{} requests were answered with 200, {} rows are there", durable.len(), rows.len());
        stage.wrong(Invariant::Conservation, what);
    }
    stage.end();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failpoint_is_on_a_way() {
        let points = [
            "lane.read",
            "epoch.decided",
            "load.answered",
            "postgres.confirmed",
            "http.taken",
            "kafka.released",
        ];
        let points = points.map(str::to_owned);
        let cases = cases(&points);
        for point in &points {
            assert!(cases.iter().any(|case| case.point == *point), "{point}");
        }
        let of = |point: &str| cases.iter().filter(|case| case.point == point).count();
        assert_eq!((of("lane.read"), of("epoch.decided"), of("kafka.released")), (4, 1, 1));
        assert_eq!((of("load.answered"), of("postgres.confirmed"), of("http.taken")), (3, 1, 1));
    }
}
