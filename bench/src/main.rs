//! End-to-end and stage benchmarks: what Tidemill costs beside its limits, measured in one run.
//!
//! `cargo xtask bench` starts Kafka and calls this. Every contestant is a process of its own, so that
//! its CPU time and peak memory are its own; they run in turn, round after round, because the machine's
//! speed drifts; medians and ratios count. See `bench/RESULTS.md`.

mod checks;
mod contest;
mod latency;
mod native;
mod orders;
mod postgres;
mod proc;
mod reader;
mod report;
mod stages;
mod stand;
mod web;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Benchmarks of Tidemill, each beside its limit.
#[derive(Debug, Parser)]
#[command(name = "tidemill-bench")]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Records in the topic
    #[arg(long, default_value_t = 2_000_000)]
    records: u64,
    /// Rounds; odd, so that there is a median
    #[arg(long, global = true, default_value_t = 3)]
    rounds: usize,
    #[command(flatten)]
    postgres: postgres::Sizes,
    #[command(flatten)]
    web: web::Sizes,
    /// Only these contestants, by the beginning of their name
    #[arg(long, value_name = "NAME", value_delimiter = ';')]
    only: Vec<String>,
    /// Do not write bench/RESULTS.md
    #[arg(long, global = true)]
    dry: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Only the stages, in nanoseconds per record; needs no Kafka
    Stages,
    /// Only PostgreSQL; needs no Kafka
    Postgres,
    /// Only HTTP; needs no Kafka
    Http,
    /// Only how long a record takes to be seen, at_least_once and exactly_once
    Latency,
    /// One contestant, as a child process (used by the benchmark itself)
    #[command(hide = true)]
    Loop(native::Loop),
    /// The empty handler, as a child process (used by the benchmark itself)
    #[command(hide = true)]
    Empty(web::Empty),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match &arguments.command {
        Some(Command::Loop(contestant)) => contestant.run(),
        Some(Command::Empty(handler)) => handler.run(),
        Some(Command::Postgres) => postgres(&arguments),
        Some(Command::Http) => http(&arguments),
        Some(Command::Latency) => latency(&arguments),
        Some(Command::Stages) => measure_stages().map(|stages| print!("{}", report::stages(&stages))),
        None => everything(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}

/// The repository's root: benchmarks are run from it.
fn root() -> PathBuf {
    std::env::current_dir().unwrap_or_default()
}

fn measure_stages() -> Result<Vec<stages::Stage>, String> {
    stages::run(&root().join("target/plugins")).map_err(|fault| fault.story())
}

fn everything(arguments: &Arguments) -> Result<(), String> {
    compare(arguments)?;
    if !arguments.only.is_empty() {
        return Ok(());
    }
    latency(arguments)?;
    postgres(arguments)?;
    http(arguments)
}

fn latency(arguments: &Arguments) -> Result<(), String> {
    let text = latency::run(arguments.rounds)?;
    println!("{text}");
    write(arguments, |before| report::with_section(before, latency::HEADING, &text))
}

fn compare(arguments: &Arguments) -> Result<(), String> {
    let stages = measure_stages()?;
    let contest = contest::Contest::prepare(arguments.records)?;
    let results = contest.run(arguments.rounds, &arguments.only)?;
    let mut text = report::page(&results, &stages, arguments.records, arguments.rounds);
    if arguments.only.is_empty() {
        text.push_str(&checks::run(&contest)?);
    }
    println!("{text}");
    write(arguments, |before| report::with_notes(before, &text))
}

fn postgres(arguments: &Arguments) -> Result<(), String> {
    let text = postgres::run(&arguments.postgres, arguments.rounds)?;
    println!("{text}");
    write(arguments, |before| report::with_section(before, postgres::HEADING, &text))
}

fn http(arguments: &Arguments) -> Result<(), String> {
    let text = web::run(&arguments.web, arguments.rounds)?;
    println!("{text}");
    write(arguments, |before| report::with_section(before, web::HEADING, &text))
}

/// Writes the page, of which `change` makes a new one of what it was.
fn write(arguments: &Arguments, change: impl Fn(&str) -> String) -> Result<(), String> {
    if arguments.dry {
        return Ok(());
    }
    let path = root().join("bench/RESULTS.md");
    let before = std::fs::read_to_string(&path).unwrap_or_default();
    std::fs::write(&path, change(&before))
        .map_err(|error| format!("cannot write {}: {error}", path.display()))
}
