//! How long a record takes from the producer until it can be seen in the table, for both promises.

use std::fmt::Write as _;
use std::process::Child;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord};
use tidemill_plugin_orders::sample;

use crate::contest::{Contest, DEFAULT, Delivery, Pipeline};
use crate::orders;
use crate::report::median;
use crate::stand;

/// Heading of the section.
pub(crate) const HEADING: &str = "Time to visibility";

/// Records that are there before: they say when the pipeline reads.
const FIRST: u64 = 10;
/// A group of records each so often.
const GROUP_EVERY: Duration = Duration::from_millis(10);
/// Records of a group.
const GROUP: u64 = 10;
/// Groups of a round.
const GROUPS: u64 = 1_500;
/// How often the table is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// How long may be waited for rows.
const PATIENCE: Duration = Duration::from_secs(60);

/// Of one round, in seconds.
#[derive(Debug, Clone, Copy)]
struct Waits {
    half: f64,
    most: f64,
}

/// Measures both in turn; returns their section of the page.
pub(crate) fn run(rounds: usize) -> Result<String, String> {
    let contest = Contest::prepare(FIRST)?;
    let promises = [Delivery::AtLeastOnce, Delivery::ExactlyOnce];
    let mut all = promises.map(|promise| (promise, Vec::new()));
    for round in 0..rounds {
        for (promise, waits) in &mut all {
            let one = once(&contest, *promise)?;
            eprintln!(
                "round {}: {}: p50 {:.3} s, p99 {:.3} s",
                round + 1,
                promise.name(),
                one.half,
                one.most
            );
            waits.push(one);
        }
    }
    let mut text = format!(
        "From the call of the producer until the row is counted in the table: {} records/s in groups of {GROUP} into one \
         partition, the passthrough plugin, default batches (linger 1 s), the sandbox, which needs no time to load; \
         {rounds} rounds in turn, medians.\n\n| delivery | p50 | p99 |\n|---|---|---|\n",
        GROUP * 1000 / GROUP_EVERY.as_millis() as u64,
    );
    for (promise, waits) in &all {
        let of = |which: fn(&Waits) -> f64| median(waits.iter().map(which).collect());
        let _ = writeln!(
            text,
            "| {} | {:.3} s | {:.3} s |",
            promise.name(),
            of(|waits| waits.half),
            of(|waits| waits.most)
        );
    }
    Ok(text)
}

fn once(contest: &Contest, delivery: Delivery) -> Result<Waits, String> {
    let topic = stand::unique("bench-latency");
    orders::fill(contest.brokers(), &topic, 1, FIRST)?;
    let before = contest.rows()?;
    let pipeline = Pipeline { delivery, ..contest.usual("passthrough", DEFAULT) };
    let (mut child, _admin) = contest.start(&topic, &pipeline)?;
    let measured = watch(contest, &mut child, &topic, before);
    let ended = stand::end(&mut child);
    let waits = measured?;
    ended.map(|()| waits)
}

/// Produces, and sees rows come. Rows of one partition come in its order, so their number says which.
fn watch(contest: &Contest, child: &mut Child, topic: &str, before: u64) -> Result<Waits, String> {
    wait_for(contest, child, before + FIRST)?;
    let settings = [("bootstrap.servers", contest.brokers()), ("linger.ms", "0"), ("acks", "1")];
    let mut config = ClientConfig::new();
    config.extend(settings.map(|(key, value)| (key.to_owned(), value.to_owned())));
    let producer: BaseProducer = config.create().map_err(|error| error.to_string())?;
    let (mut sent, mut waits) = (Vec::<Instant>::new(), Vec::<f64>::new());
    let began = Instant::now();
    let all = (GROUP * GROUPS) as usize;
    while waits.len() < all {
        let due =
            (began.elapsed().as_micros() / GROUP_EVERY.as_micros() + 1).min(u128::from(GROUPS)) as usize;
        while sent.len() < due * GROUP as usize {
            produce(&producer, topic, sent.len() as u64)?;
            sent.push(Instant::now());
        }
        producer.poll(Duration::ZERO);
        std::thread::sleep(LOOK_EVERY);
        let seen = contest.rows()?.saturating_sub(before + FIRST) as usize;
        let now = Instant::now();
        let fresh = sent.get(waits.len()..seen.min(sent.len())).unwrap_or_default();
        waits.extend(fresh.iter().map(|at| now.duration_since(*at).as_secs_f64()));
        if began.elapsed() > PATIENCE || child.try_wait().map_err(|error| error.to_string())?.is_some() {
            return Err(format!("{} of {all} rows came", waits.len()));
        }
    }
    waits.sort_by(f64::total_cmp);
    let at = |part: f64| waits.get((waits.len() as f64 * part) as usize).copied().unwrap_or(f64::NAN);
    Ok(Waits { half: at(0.5), most: at(0.99) })
}

fn produce(producer: &BaseProducer, topic: &str, id: u64) -> Result<(), String> {
    let mut value = Vec::new();
    sample::write_order(id, &mut value);
    let record = BaseRecord::<str, [u8]>::to(topic).partition(0).payload(&value);
    producer.send(record).map_err(|(error, _)| error.to_string())
}

fn wait_for(contest: &Contest, child: &mut Child, rows: u64) -> Result<(), String> {
    let began = Instant::now();
    while contest.rows()? < rows {
        if began.elapsed() > PATIENCE || child.try_wait().map_err(|error| error.to_string())?.is_some() {
            return Err("the first rows did not come".to_owned());
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}
