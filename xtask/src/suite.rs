//! `cargo xtask test`: everything, in the order in which a mistake is cheapest to find.

use crate::{
    chaos, chore,
    command::{self, Failure},
    plugins::{self, Platform},
    setup,
    tally::Tally,
};
use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};
use tidemill_test_kafka::{BROKER_VARIABLE, Broker, Distribution, LIB_VARIABLE};

/// Each test binary runs under coreutils' `timeout`, so that even a hung unit test ends the run. The tests that talk to
/// Kafka have shorter limits of their own, each by name.
const BINARY_LIMIT: &str =
    r#"target."cfg(unix)".runner = ["timeout", "--foreground", "--verbose", "--kill-after=10", "3000"]"#;

/// Installs what is missing, checks, builds, starts Kafka, runs the tests and ends with the count.
pub(crate) fn run(filters: &[String]) -> Result<(), Failure> {
    setup::for_testing()?;
    let distribution = Distribution::resolve(&command::target())?;
    command::run(&mut command::cargo(&["fmt", "--all", "--check"]))?;
    plugins::build(Platform::Unknown)?;
    plugins::build(Platform::Wasip2)?;
    command::run(
        command::cargo(&["clippy", "--release", "--workspace", "--all-targets"])
            .args(["--", "-D", "warnings"]),
    )?;
    check_fuzz_targets()?;
    command::run(&mut command::cargo(&["build", "--release", "--package", "tidemill"]))?;
    command::run(&mut command::cargo(&["test", "--release", "--workspace", "--no-run"]))?;
    chaos::build_faults()?;
    deny_if_there()?;

    let broker = Broker::start(&distribution, &command::target(), &[])?;
    println!("\nApache Kafka listens on {}", broker.address());
    let mut tests =
        command::cargo(&["test", "--config", BINARY_LIMIT, "--release", "--workspace", "--no-fail-fast"]);
    tests
        .arg("--")
        .args(filters)
        .env(BROKER_VARIABLE, broker.address())
        .env(LIB_VARIABLE, distribution.lib())
        .env("TIDEMILL_BIN", command::built("tidemill"))
        .env(chaos::FAULTS_VARIABLE, command::built("tidemill-faults"));
    let (tally, outcome) = counted(&mut tests)?;
    drop(broker);
    // The count is the last line of the run, also of one that failed: whoever reads it needs nothing else.
    let outcome = outcome.map_err(|failure| {
        eprintln!("error: {failure}");
        Failure::told()
    });
    println!("\n{tally}");
    outcome
}

/// They are a workspace of their own, and need nightly to run; a type that moved in the host breaks them unseen. Into our own
/// target folder: a minute at first, seconds after that.
fn check_fuzz_targets() -> Result<(), Failure> {
    let mut check = command::cargo(&["check", "--release", "--manifest-path", "fuzz/Cargo.toml"]);
    check.arg("--target-dir").arg(command::target());
    // Nothing is linked here, so libFuzzer itself, which takes a C++ compiler half a minute, need not be built.
    check.env("CUSTOM_LIBFUZZER_PATH", command::target().join("libfuzzer.a"));
    command::run(&mut check)
}

fn deny_if_there() -> Result<(), Failure> {
    if setup::on_path("cargo-deny") {
        return chore::deny();
    }
    println!("\ncargo-deny is not installed: licences and advisories are not checked here");
    Ok(())
}

/// Runs the tests, shows what they print and counts it.
fn counted(tests: &mut Command) -> Result<(Tally, Result<(), Failure>), Failure> {
    let name = command::announce(tests);
    let failed_to = |what: &str, cause| Failure::new(format!("{what} `{name}`: {cause}"));
    let mut child = tests.stdout(Stdio::piped()).spawn().map_err(|cause| failed_to("run", cause))?;
    let mut tally = Tally::default();
    let mut slow = BTreeSet::new();
    for line in child.stdout.take().into_iter().flat_map(|output| BufReader::new(output).lines()) {
        let line = line.map_err(|cause| failed_to("read what is printed by", cause))?;
        println!("{line}");
        tally.add(&line);
        note_slow(&mut slow, &line);
    }
    let status = child.wait().map_err(|cause| failed_to("wait for", cause))?;
    if status.success() {
        return Ok((tally, Ok(())));
    }
    // A binary that was killed prints no result: what it was busy with did not pass.
    tally.failed = tally.failed.max(1);
    let mut sentence = format!("`{name}` failed with {status}");
    if !slow.is_empty() {
        let names: Vec<&str> = slow.iter().map(String::as_str).collect();
        sentence.push_str("; these tests did not end: ");
        sentence.push_str(&names.join(", "));
    }
    Ok((tally, Err(Failure::new(sentence))))
}

/// libtest names a test that takes over a minute, and names it again when it ends.
fn note_slow(slow: &mut BTreeSet<String>, line: &str) {
    let Some(rest) = line.strip_prefix("test ") else { return };
    if let Some((name, _)) = rest.split_once(" has been running for over") {
        slow.insert(name.to_owned());
    } else if let Some((name, _)) = rest.split_once(" ... ") {
        slow.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::note_slow;
    use std::collections::BTreeSet;

    #[test]
    fn a_hung_test_is_known_by_name() {
        let mut slow = BTreeSet::new();
        for line in [
            "test suite::a has been running for over 60 seconds",
            "test suite::b has been running for over 60 seconds",
            "test suite::a ... ok",
        ] {
            note_slow(&mut slow, line);
        }
        assert_eq!(slow.into_iter().collect::<Vec<_>>(), ["suite::b"]);
    }
}
