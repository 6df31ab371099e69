//! The first half minute of each profile of `cargo xtask chaos`, by a fixed seed whose
//! faults all fire in it. The long runs are that command's.

use std::process::{Command, Stdio};
use tidemill_tests::{chaos, limit::within};

/// Long enough for a few kills, and short enough for a suite.
const MINUTES: &str = "0.4";

/// Runs the driver. It has a process of its own, because its binary under test is another one: that with failpoints.
fn check(profile: &'static str, seed: &'static str) {
    within(240, move || {
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
        assert!(output.status.success(), "{said}\n{complained}");
        assert!(said.contains("verdict: passed"), "{said}");
    });
}

#[test]
fn exactly_once_keeps_its_promise_under_faults() {
    check("exactly-once", "3");
}

#[test]
fn at_least_once_keeps_its_promise_under_faults() {
    check("at-least-once", "7");
}

#[test]
fn postgres_is_followed_under_faults() {
    check("postgres", "7");
}
