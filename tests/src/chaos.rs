//! Runs pipelines while everything around them fails, by a schedule that follows from a seed, and judges what is left:
//! `cargo xtask chaos`. docs/chaos.md says how to read it.

pub mod book;
pub mod flow;
pub mod members;
mod neighbour;
pub mod profile;
pub mod replica;
pub mod schedule;
pub mod slot;
mod stage;
pub mod stream;
pub mod sweep;
pub mod tally;
pub mod watch;

use crate::machine;
use profile::Profile;
use std::{
    env,
    fmt::Write as _,
    process::Command,
    time::{Duration, Instant},
};
use tally::Tally;

/// Names the binary with failpoints.
pub const BINARY_VARIABLE: &str = "TIDEMILL_FAULTS_BIN";
/// Steps that are shown before a run begins; each is shown again when it is taken.
const STEPS_SHOWN: usize = 40;
/// A run that has to reach a number goes on for so many times its minutes, and then fails.
const PATIENCE: u32 = 6;

/// A run that has dealt its deck so often must have seen every kind of fault and of recovery.
const DECKS: usize = 2;

/// What to run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Everything random follows from it.
    pub seed: u64,
    /// How long faults go on, each profile.
    pub faults_for: Duration,
    /// What must have happened before the faults stop.
    pub least: Least,
}

/// Numbers that a run must reach.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Least {
    /// Processes killed.
    pub kills: u64,
    /// Assignments by the group.
    pub rebalances: u64,
    /// Answers lost.
    pub lost: u64,
}

impl Least {
    fn is_reached(&self, tally: &Tally) -> bool {
        tally.kills() >= self.kills && tally.rebalances() >= self.rebalances && tally.lost() >= self.lost
    }

    fn unreached(&self, tally: &Tally) -> Vec<String> {
        let found = [
            ("kills", tally.kills(), self.kills),
            ("rebalances", tally.rebalances(), self.rebalances),
            ("lost answers", tally.lost(), self.lost),
        ];
        let short = found.into_iter().filter(|(_, found, least)| found < least);
        short.map(|(what, found, least)| format!("{found} {what} of {least}")).collect()
    }
}

/// How long faults go on.
#[derive(Debug)]
struct Clock {
    began: Instant,
    settings: Settings,
}

impl Clock {
    fn start(settings: &Settings) -> Self {
        Self { began: Instant::now(), settings: settings.clone() }
    }

    /// Whether the next step is still to be taken.
    fn goes_on(&self, tally: &Tally) -> bool {
        let elapsed = self.began.elapsed();
        let for_long = elapsed >= self.settings.faults_for;
        let for_too_long = elapsed >= self.settings.faults_for * PATIENCE;
        !for_long || (!self.settings.least.is_reached(tally) && !for_too_long)
    }

    fn seconds(&self) -> u64 {
        self.began.elapsed().as_secs()
    }
}

/// Runs the profiles one after the other; true if each kept its promises and reached what it should.
///
/// # Panics
/// When something around the processes under test cannot be had: Kafka, Postgres, a binary.
#[must_use]
pub fn run(profiles: &[Profile], settings: &Settings) -> bool {
    println!("seed {}, commit {}, binary {}", settings.seed, commit(), machine::tidemill().display());
    let verdicts: Vec<bool> = profiles
        .iter()
        .map(|profile| {
            println!("\n=== {}: the schedule begins with", profile.name());
            profile.schedule(settings.seed).take(STEPS_SHOWN).enumerate().for_each(|(number, step)| {
                println!("{number:>4} {step}");
            });
            let least = profile.least(settings.least);
            if least != settings.least {
                println!("(nothing is assigned here: --rebalances is not asked of this profile)");
            }
            let settings = Settings { least, ..settings.clone() };
            let began = Instant::now();
            let tally = profile.run(&settings);
            verdict(*profile, &settings, &tally, began.elapsed())
        })
        .collect();
    let kept = verdicts.iter().all(|kept| *kept);
    println!("\nseed {}: {}", settings.seed, if kept { "all promises kept" } else { "FAILED" });
    kept
}

/// Prints the table of a profile and what is wrong.
fn verdict(profile: Profile, settings: &Settings, tally: &Tally, took: Duration) -> bool {
    const SHOWN: usize = 20;
    let mut text =
        format!("\n=== {} after {} s, seed {}\n{tally}", profile.name(), took.as_secs(), settings.seed);
    let is_full = tally.steps >= DECKS * profile.cards();
    let mut faults: Vec<&str> = tally.taken.iter().copied().collect();
    if is_full {
        faults.extend(profile.faults());
        faults.sort_unstable();
        faults.dedup();
    } else {
        let _ =
            writeln!(text, "({} steps: too few to ask for every kind of fault and recovery)", tally.steps);
    }
    let recoveries = if is_full { profile.recoveries() } else { profile.usual() };
    let unreached = tally.unreached(&faults, &recoveries);
    let short = settings.least.unreached(tally);
    let unreached = unreached.iter().map(ToString::to_string).chain(short).collect::<Vec<_>>();
    // Writing to a String cannot fail.
    for violation in tally.violations.iter().take(SHOWN) {
        let _ = writeln!(text, "VIOLATION {violation}");
    }
    if tally.violations.len() > SHOWN {
        let _ = writeln!(text, "and {} more", tally.violations.len() - SHOWN);
    }
    for what in &unreached {
        let _ = writeln!(text, "NOT REACHED {what}: this run has not shown what it should");
    }
    let kept = tally.violations.is_empty() && unreached.is_empty();
    let _ = writeln!(text, "verdict: {}", if kept { "passed" } else { "FAILED" });
    print!("{text}");
    kept
}

/// The commit that the sources are of, for whoever makes the run again.
fn commit() -> String {
    let output =
        Command::new("git").args(["describe", "--always", "--dirty"]).current_dir(machine::root()).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.ok().filter(|text| !text.is_empty()).unwrap_or_else(|| "unknown".to_owned())
}

/// Whether the binary under test has failpoints: what the driver was told, or what is beside the release build.
#[must_use]
pub fn faults_binary() -> Option<std::path::PathBuf> {
    let named = env::var_os(BINARY_VARIABLE).map(std::path::PathBuf::from);
    named.or_else(|| Some(machine::target().join("release/tidemill-faults"))).filter(|path| path.is_file())
}

/// Names of the failpoints that the binary has.
///
/// # Panics
/// When it cannot be run, or has none.
#[must_use]
pub fn failpoints() -> Vec<String> {
    let output = crate::process::tidemill_output(&["failpoints"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let names: Vec<String> =
        text.lines().filter_map(|line| line.split('\t').next()).map(str::to_owned).collect();
    assert!(
        output.status.success() && !names.is_empty(),
        "{} has failpoints: {}",
        machine::tidemill().display(),
        String::from_utf8_lossy(&output.stderr)
    );
    names
}
