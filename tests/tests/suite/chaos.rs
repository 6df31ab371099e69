//! The first half minute of each profile of `cargo xtask chaos`, by fixed seeds. The long runs are that command's.

use std::process::{Command, Output, Stdio};
use tidemill_tests::{chaos, limit::within, process::dies_with_us};

/// Long enough for a few kills, and short enough for a suite.
const MINUTES: &str = "0.4";

/// Each is another half minute.
const SEEDS: [&str; 3] = ["3", "7", "11"];

/// How a run of the driver ended.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Passed,
    /// Nothing is wrong, and not all was shown that should have been.
    Unreached,
    /// A promise was broken, or the driver came to no verdict.
    Broken,
}

/// By its exit code and what it has printed: only its own words for a run that has not shown enough are taken for that.
fn verdict(code: Option<i32>, printed: &str) -> Verdict {
    let judged = |line: &str| printed.lines().any(|found| found == line);
    let unreached = printed.lines().any(|line| line.starts_with("NOT REACHED "));
    let violated = printed.lines().any(|line| line.starts_with("VIOLATION "));
    match code {
        Some(0) if judged("verdict: passed") && !violated && !unreached => Verdict::Passed,
        Some(1) if judged("verdict: FAILED") && !violated && unreached => Verdict::Unreached,
        Some(_) | None => Verdict::Broken,
    }
}

/// Runs the driver until a run is judged to show what it should: in half a minute it can happen that a process is gone before
/// the fault that it was to meet. What a run shows to be broken fails at once, and so does a driver that comes to no verdict.
fn check(profile: &'static str) {
    within(600, move || {
        let mut said = String::new();
        for seed in SEEDS {
            let output = run(profile, seed);
            let printed = String::from_utf8_lossy(&output.stdout);
            let complained = String::from_utf8_lossy(&output.stderr);
            said = format!("{}\n{printed}\n{complained}", output.status);
            match verdict(output.status.code(), &printed) {
                Verdict::Passed => return,
                Verdict::Unreached => {}
                Verdict::Broken => panic!("{said}"),
            }
        }
        panic!("{said}");
    });
}

/// The driver has a process of its own, because its binary under test is another one: that with failpoints.
fn run(profile: &str, seed: &str) -> Output {
    let binary = chaos::faults_binary().expect(
        "`cargo build --release -p tidemill --features faults --bin tidemill-faults` makes the binary with failpoints",
    );
    let mut driver = Command::new(env!("CARGO_BIN_EXE_tidemill-chaos"));
    driver.args(["--seed", seed, "--minutes", MINUTES, "--profile", profile]);
    driver.env("TIDEMILL_BIN", binary).stdin(Stdio::null());
    // With it end its processes and its broker.
    dies_with_us(&mut driver);
    driver.output().expect("the driver can be run")
}

#[test]
fn only_a_run_that_has_not_shown_enough_is_made_again() {
    let unreached =
        "NOT REACHED kill: this run has not shown what it should\nverdict: FAILED\n\nseed 3: FAILED\n";
    assert_eq!(verdict(Some(0), "verdict: passed\n\nseed 3: all promises kept\n"), Verdict::Passed);
    assert_eq!(verdict(Some(1), unreached), Verdict::Unreached);
    assert_eq!(verdict(Some(1), &format!("VIOLATION I1\n{unreached}")), Verdict::Broken);
    // A driver that panics, that was killed, or that has nothing to say.
    assert_eq!(verdict(Some(101), "NOT REACHED kill\n"), Verdict::Broken);
    assert_eq!(verdict(Some(101), unreached), Verdict::Broken);
    assert_eq!(verdict(None, unreached), Verdict::Broken);
    assert_eq!(verdict(Some(1), "verdict: FAILED\n"), Verdict::Broken);
    assert_eq!(verdict(Some(0), ""), Verdict::Broken);
}

#[test]
fn exactly_once_keeps_its_promise_under_faults() {
    check("exactly-once");
}

#[test]
fn at_least_once_keeps_its_promise_under_faults() {
    check("at-least-once");
}

#[test]
fn postgres_is_followed_under_faults() {
    check("postgres");
}
