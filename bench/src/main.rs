//! End-to-end and stage benchmarks: what Tidemill costs beside its limits, measured in one run.
//!
//! `cargo xtask bench` starts Kafka and calls this. Every contestant is a process of its own, so that
//! its CPU time and peak memory are its own; they run in turn, round after round, because the machine's
//! speed drifts; medians and ratios count. See `bench/RESULTS.md`.

mod checks;
mod contest;
mod native;
mod orders;
mod proc;
mod reader;
mod report;
mod stages;

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
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only these contestants, by the beginning of their name
    #[arg(long, value_name = "NAME", value_delimiter = ';')]
    only: Vec<String>,
    /// Do not write bench/RESULTS.md
    #[arg(long)]
    dry: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Only the stages, in nanoseconds per record; needs no Kafka
    Stages,
    /// One contestant, as a child process (used by the benchmark itself)
    #[command(hide = true)]
    Loop(native::Loop),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments.command {
        Some(Command::Loop(contestant)) => contestant.run(),
        Some(Command::Stages) => measure_stages().map(|stages| print!("{}", report::stages(&stages))),
        None => compare(&arguments),
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

fn compare(arguments: &Arguments) -> Result<(), String> {
    let stages = measure_stages()?;
    let contest = contest::Contest::prepare(arguments.records)?;
    let results = contest.run(arguments.rounds, &arguments.only)?;
    let mut text = report::page(&results, &stages, arguments.records, arguments.rounds);
    if arguments.only.is_empty() {
        text.push_str(&checks::run(&contest)?);
    }
    println!("{text}");
    if !arguments.dry {
        let path = root().join("bench/RESULTS.md");
        let kept = report::with_notes(&path, &text);
        std::fs::write(&path, kept).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    Ok(())
}
