//! Targets that are no contest: loads by partitions, a hundred tables, the first load, idling.

use std::fmt::Write as _;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use crate::contest::{Contest, DEFAULT, Delivery, Pipeline, SMALL, TABLES};
use crate::orders;
use crate::proc::used;
use crate::stand::{Run, sum};

/// Records of each check.
const RECORDS: u64 = 500_000;
/// How long an idle process is watched.
const IDLE: Duration = Duration::from_secs(10);

/// Runs all checks; returns their section of the page.
pub(crate) fn run(contest: &Contest) -> Result<String, String> {
    let mut text = String::from("\n## Checks\n\n| check | result | target |\n|---|---|---|\n");
    let mut loads = Vec::new();
    for partitions in [1, 4, 32] {
        let topic = format!("bench-p{partitions}-{:08x}", std::process::id());
        let kept = orders::fill(contest.brokers(), &topic, partitions, RECORDS)?;
        let run = contest.tidemill(&topic, Some("orders"), SMALL, RECORDS)?;
        eprintln!("{partitions} partitions: {kept} rows in {} loads", run.loads);
        loads.push(format!("{partitions}: {}", run.loads));
    }
    row(
        &mut text,
        "loads of 500,000 orders at 10,000 rows, by partitions",
        &loads.join(", "),
        "the same within 10 %",
    );
    let many = hundred_tables(contest)?;
    let shown = format!("{} loads, {} MiB", many.loads, many.peak_bytes >> 20);
    row(&mut text, "100 tables from one topic, default batches: peak RSS", &shown, "256 MiB");
    let topic = format!("bench-few-{:08x}", std::process::id());
    orders::fill(contest.brokers(), &topic, 4, 100)?;
    let (first, idle) = first_and_idle(contest, &topic)?;
    row(&mut text, "first load after the assignment, linger 1 s", &format!("{first:.2} s"), "1.3 s");
    row(&mut text, "CPU of an idle process", &format!("{:.2} % of a core", idle * 100.0), "under 1 %");
    Ok(text)
}

fn row(text: &mut String, check: &str, result: &str, target: &str) {
    let _ = writeln!(text, "| {check} | {result} | {target} |");
}

/// One topic whose records name their table.
fn hundred_tables(contest: &Contest) -> Result<Run, String> {
    let topic = format!("bench-tables-{:08x}", std::process::id());
    orders::fill_with(contest.brokers(), &topic, 4, RECORDS, |id, value| {
        use std::io::Write as _;
        let table = id % TABLES as u64;
        // Writing to a vector does not fail.
        let _ = write!(value, "{{\"order_id\":{id},\"kind\":\"t{table}\",\"note\":\"{:>180}\"}}", id);
    })?;
    let names: Vec<String> = (0..TABLES).map(|table| format!("t{table} = \"t{table}\"")).collect();
    let config = format!("field = \"kind\", tables = {{ {} }}", names.join(", "));
    let plugin = Some(("route", config.as_str()));
    contest.measure(&topic, &Pipeline { plugin, batch: DEFAULT, delivery: Delivery::AtLeastOnce }, RECORDS)
}

/// Seconds from the assignment to the first load, and the CPU share of the process once it is idle.
fn first_and_idle(contest: &Contest, topic: &str) -> Result<(f64, f64), String> {
    let (mut child, admin) = contest.start(topic, &contest.usual("orders", SMALL))?;
    let measured = watch(contest, &mut child, &admin);
    let _ = Command::new("kill").arg(child.id().to_string()).status();
    let _ = child.wait();
    measured
}

fn watch(contest: &Contest, child: &mut Child, admin: &str) -> Result<(f64, f64), String> {
    let (mut assigned, started) = (None, Instant::now());
    let first = loop {
        if started.elapsed() > Duration::from_secs(60) {
            return Err("no load within a minute".to_owned());
        }
        std::thread::sleep(Duration::from_millis(5));
        let Some(text) = contest.metrics(admin) else { continue };
        if assigned.is_none() && sum(&text, "tidemill_partitions") > 0 {
            assigned = Some(Instant::now());
        }
        if let Some(at) = assigned.filter(|_| sum(&text, "tidemill_records_loaded_total") > 0) {
            break at.elapsed().as_secs_f64();
        }
    };
    let before = used(child.id()).ok_or("the process is gone")?;
    std::thread::sleep(IDLE);
    let after = used(child.id()).ok_or("the process is gone")?;
    Ok((first, (after.cpu_s - before.cpu_s) / IDLE.as_secs_f64()))
}
