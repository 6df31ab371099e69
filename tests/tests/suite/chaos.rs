//! The first half minute of each profile of `cargo xtask chaos`, by fixed seeds. The long runs are that command's.

use std::process::{Command, Stdio};
use tidemill_tests::{chaos, limit::within};

/// Long enough for a few kills, and short enough for a suite.
const MINUTES: &str = "0.4";

/// Each is another half minute.
const SEEDS: [&str; 3] = ["3", "7", "11"];

/// Runs the driver until a run is judged to show what it should: in half a minute it can happen that a process is gone before
/// the fault that it was to meet. What a run shows to be broken fails at once.
fn check(profile: &'static str) {
    within(600, move || {
        let mut said = String::new();
        for seed in SEEDS {
            let (passed, output) = run(profile, seed);
            assert!(!output.contains("VIOLATION"), "{output}");
            if passed {
                assert!(output.contains("verdict: passed"), "{output}");
                return;
            }
            said = output;
        }
        panic!("{said}");
    });
}

/// The driver has a process of its own, because its binary under test is another one: that with failpoints.
fn run(profile: &str, seed: &str) -> (bool, String) {
    let binary = chaos::faults_binary().expect(
        "`cargo build --release -p tidemill --features faults --bin tidemill-faults` makes the binary with failpoints",
    );
    let output = Command::new(env!("CARGO_BIN_EXE_tidemill-chaos"))
        .args(["--seed", seed, "--minutes", MINUTES, "--profile", profile])
        .env("TIDEMILL_BIN", binary)
        .stdin(Stdio::null())
        .output()
        .expect("the driver can be run");
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success(), format!("{said}\n{complained}"))
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
