//! Runs pipelines under faults and judges them: what `cargo xtask chaos` builds and calls. See docs/chaos.md.

use clap::Parser;
use std::{process::ExitCode, time::Duration};
use tidemill_tests::chaos::{self, Least, Settings, profile::Profile};

/// Runs pipelines while everything around them fails, and judges what is left
#[derive(Debug, Parser)]
#[command(name = "cargo xtask chaos")]
struct Arguments {
    /// Everything random follows from it; by default another one each time, which is printed
    #[arg(long)]
    seed: Option<u64>,
    /// How long faults go on, all profiles together
    #[arg(long, default_value_t = 6.0)]
    minutes: f64,
    /// `exactly-once`, `at-least-once` or `postgres`; by default all
    #[arg(long, value_name = "NAME", value_parser = profile)]
    profile: Vec<Profile>,
    /// Go on until so many processes were killed, each profile
    #[arg(long, default_value_t = 0)]
    kills: u64,
    /// Go on until processes have heard of so many assignments by their group; not asked of `postgres`, which has none
    #[arg(long, default_value_t = 0)]
    rebalances: u64,
    /// Go on until so many answers were lost
    #[arg(long, default_value_t = 0)]
    lost: u64,
    /// Instead: every failpoint once, or those whose names begin so
    #[arg(long, value_name = "POINT", num_args = 0..)]
    sweep: Option<Vec<String>>,
}

fn profile(name: &str) -> Result<Profile, String> {
    let names = Profile::ALL.map(Profile::name).join(", ");
    Profile::ALL
        .into_iter()
        .find(|profile| profile.name() == name)
        .ok_or_else(|| format!("the profiles are {names}"))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(rand::random);
    let profiles = if arguments.profile.is_empty() { Profile::ALL.to_vec() } else { arguments.profile };
    // At most a few profiles: the number is exact.
    let share = profiles.len() as f64;
    let settings = Settings {
        seed,
        faults_for: Duration::from_secs_f64((arguments.minutes * 60.0 / share).clamp(1.0, 1e6)),
        least: Least { kills: arguments.kills, rebalances: arguments.rebalances, lost: arguments.lost },
    };
    let kept = match arguments.sweep {
        Some(points) => chaos::sweep::run(&points, seed),
        None => chaos::run(&profiles, &settings),
    };
    if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
