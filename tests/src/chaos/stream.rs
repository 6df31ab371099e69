//! The profiles that read Kafka: a group of processes on a broker that may die, a sandbox that may do what StarRocks may,
//! producers that go on all the while.

use super::{
    Clock, Settings,
    book::Author,
    flow::{Flow, Standings},
    neighbour,
    profile::Profile,
    schedule::Action,
    stage::Stage,
    tally::Tally,
    watch::Watch,
};
use crate::{
    judge::{
        liveness::{DRAINED_WITHIN, PROBE_WITHIN, Rest, comes_to_rest},
        records::Payload,
        repeats::{Timeline, Windows},
    },
    kafka::{self, Kafka},
    oracle::Promise,
    warehouse::Warehouse,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tidemill_test_kafka::Broker;

/// Records a second into each topic: every batch has some, and the judge can hold them all.
const RECORDS_PER_S: u64 = 300;
const MEMBERS: usize = 3;
const PARTITIONS: i32 = 6;
const KEYS: u64 = 400;
/// One record in so many cannot be loaded.
const BAD_EVERY: u64 = 499;
/// Records sent when all is calm again.
const PROBES: u64 = 120;
/// How long a step waits for rows to move since the last one, before it is taken all the same.
const PROGRESS_WITHIN: Duration = Duration::from_secs(8);
/// After a restart of the broker producers hear of records that it had before, and groups form anew.
const BROKER_IS_BACK: Duration = Duration::from_secs(5);

/// How long producers may take to hear from a broker that is back.
const HEARD_WITHIN: Duration = Duration::from_secs(30);

/// Everything of one run.
struct Stream {
    // Processes end before their broker.
    stage: Stage,
    broker: Broker,
    kafka: Kafka,
    flows: Vec<Arc<Flow>>,
}

/// Runs a profile.
///
/// # Panics
/// When Kafka or a producer cannot be had.
pub(super) fn run(profile: Profile, settings: &Settings) -> Tally {
    let mut run = Stream::start(profile, settings.seed);
    let authors: Vec<Author> =
        run.flows.iter().map(|flow| Author::start(&flow.book, RECORDS_PER_S)).collect();
    let watch = Watch::start(&run.kafka, &run.stage.warehouse, &run.flows, &run.stage.letters);
    if let [flow, other] = &run.flows[..] {
        let found = neighbour::disturb(&mut run.stage, flow, other);
        run.stage.tally.violations.extend(found);
    }
    let clock = Clock::start(settings);
    let mut released = 0;
    let mut steps = profile.schedule(settings.seed).enumerate();
    while clock.goes_on(&run.stage.tally) {
        let Some((number, step)) = steps.next() else { break };
        run.stage.rest(Duration::from_millis(step.pause_ms));
        if step.action.wants_progress() {
            run.stage.until(PROGRESS_WITHIN, || watch.released() > released);
            released = watch.released();
        }
        println!("{:>5} s {number:>4} {step}", clock.seconds());
        if !run.stage.take(&step) && step.action == Action::Broker {
            let away_from = SystemTime::now();
            run.broker.start_again().expect("the broker starts again");
            run.stage.tally.fired("broker restart");
            run.hear();
            run.stage.tally.disturbs(away_from, SystemTime::now() + BROKER_IS_BACK);
        }
        run.stage.count_fired();
    }
    run.stage.await_faults();
    println!("{:>5} s the faults stop", clock.seconds());
    println!("        all processes are ready after {} s", run.stage.calm().as_secs());
    authors.into_iter().for_each(Author::stop);
    let rest = run.come_to_rest();
    run.stage.tally.violations.extend(comes_to_rest(&rest));
    // With exactly_once nothing lands by itself: what a dead process had prepared waits for a commit that nobody sends.
    run.stage.land(profile.late_ms_max(), profile == Profile::ExactlyOnce);
    run.stage.end();
    let seen = watch.stop();
    run.stage.tally.violations.extend(seen.violations);
    run.judge(&seen.timelines);
    run.stage.finish()
}

impl Stream {
    /// Waits until the books know of all that was sent before: the judge takes what is not in them for read later.
    fn hear(&mut self) {
        let sent: Vec<u64> = self.flows.iter().map(|flow| flow.book.issued()).collect();
        let flows = &self.flows;
        let heard = || flows.iter().zip(&sent).all(|(flow, sent)| flow.book.answers() >= *sent);
        self.stage.until(HEARD_WITHIN, heard);
    }

    fn start(profile: Profile, seed: u64) -> Self {
        let broker = kafka::own_broker(&[]);
        let kafka = Kafka::of(&broker);
        let mut stage = Stage::new();
        let payload = Payload { seed, keys: None, partitions: PARTITIONS, bad_every: BAD_EVERY };
        let keyed = Payload { keys: Some(KEYS), ..payload };
        let flow = |table: &str, payload, promise| {
            Arc::new(Flow::new(&kafka, &stage.warehouse, table, payload, promise))
        };
        let flows = match profile {
            Profile::ExactlyOnce => vec![flow("chaos_once", payload, Promise::Once)],
            Profile::AtLeastOnce | Profile::Postgres => vec![
                flow("chaos_added", payload, Promise::AtLeastOnce),
                flow("chaos_keyed", keyed, Promise::AtLeastOnce),
            ],
        };
        let of = |flow: &Arc<Flow>| flow.pipeline(&kafka, &stage.warehouse, &stage.canary, &stage.letters);
        let pipelines: Vec<_> = flows.iter().map(of).collect();
        stage.begin(&pipelines, MEMBERS);
        Self { stage, broker, kafka, flows }
    }

    /// Waits until all is released, and sends fresh records then.
    fn come_to_rest(&mut self) -> Rest {
        let standings: Vec<Standings> =
            self.flows.iter().map(|flow| Standings::of(&self.kafka, flow)).collect();
        let drained = self.drained(&standings);
        println!("        lag is gone: {drained:?}");
        let begun = Instant::now();
        for flow in &self.flows {
            flow.book.write(PROBES);
        }
        let (flows, warehouse) = (self.flows.clone(), Arc::clone(&self.stage.warehouse));
        let letters = self.stage.letters.clone();
        let landed = self
            .stage
            .until(PROBE_WITHIN, || flows.iter().all(|flow| probe_is_there(flow, &warehouse, &letters)));
        let probe = landed.then(|| begun.elapsed());
        println!("        fresh records are there: {probe:?}");
        // They are judged with the others.
        let settled = self.drained(&standings);
        Rest { drained: drained.filter(|_| settled.is_some()), probe }
    }

    /// Waits until every obligation is released.
    fn drained(&mut self, standings: &[Standings]) -> Option<Duration> {
        let begun = Instant::now();
        let flows = self.flows.clone();
        let is_released = |(flow, standings): (&Arc<Flow>, &Standings)| {
            let Some(found) = standings.look() else { return false };
            let ends: BTreeMap<i32, i64> = flow.book.ends();
            ends.iter().all(|(place, end)| found.get(place).is_some_and(|standing| standing.offset >= *end))
        };
        let done = self.stage.until(DRAINED_WITHIN, || flows.iter().zip(standings).all(is_released));
        done.then(|| begun.elapsed())
    }

    fn judge(&mut self, timelines: &[Timeline]) {
        let tally = &mut self.stage.tally;
        for (flow, timeline) in self.flows.iter().zip(timelines) {
            let repeats = Windows::of(&flow.book.topic, timeline, &tally.disturbances);
            let (counted, violations) = flow.judge(&self.stage.warehouse, &self.stage.letters, &repeats);
            println!("        {}: {counted:?}, {} given up by the client", flow.table, flow.book.given_up());
            tally.records.insert(flow.table.clone(), counted);
            tally.violations.extend(violations);
        }
    }
}

/// Whether the records that were sent last have come through.
fn probe_is_there(flow: &Flow, warehouse: &Warehouse, letters: &Path) -> bool {
    let payload = &flow.book.payload;
    let issued = flow.book.issued();
    let (bad, good): (Vec<u64>, Vec<u64>) = (issued - PROBES..issued).partition(|id| payload.is_bad(*id));
    let present: BTreeSet<u64> = flow.present(warehouse, issued - PROBES, issued).into_iter().collect();
    // Of a key only the last record has a row.
    let last: BTreeMap<u64, u64> = good.into_iter().map(|id| (payload.key(id), id)).collect();
    let kept = || -> BTreeSet<u64> {
        let acknowledged = flow.book.acknowledged();
        flow.letters(letters).iter().filter_map(|place| acknowledged.get(place)).copied().collect()
    };
    last.values().all(|id| present.contains(id))
        && (bad.is_empty() || bad.iter().all(|id| kept().contains(id)))
}
