//! `cargo xtask plants`: plants a bug into the host, one after another, and expects that a test notices.
//!
//! The bugs are in `host/src/planted.rs`, all in one binary; `docs/sensitivity.md` says who made them first.

use crate::{
    command::{self, Failure},
    plugins::{self, Platform},
    setup,
    tally::Tally,
};
use std::{
    fmt,
    process::{Command, Output},
    time::{Duration, Instant},
};
use tidemill_test_kafka::{BROKER_VARIABLE, Broker, Distribution, LIB_VARIABLE};

/// Names the bug to the host.
const PLANT_VARIABLE: &str = "TIDEMILL_PLANT";
/// The host with the bugs in it.
const BINARY: &str = "tidemill-faults";
/// What the table shows of a panic's message.
const SHOWN_CHARS_MAX: usize = 96;
/// What is shown of the output of a test that did not do what was expected.
const OUTPUT_LINES_SHOWN: usize = 60;

/// A bug, and the cheapest test that notices it.
struct Plant {
    bug: &'static str,
    test: &'static str,
    /// What the test's panic says: the promise that is broken, so that a process which could not start counts for nothing.
    says: &'static [&'static str],
    /// What the process under test must have logged besides, where the promise is that it does not halt.
    logs: &'static str,
}

impl Plant {
    const fn new(bug: &'static str, test: &'static str, says: &'static [&'static str]) -> Self {
        Self { bug, test, says, logs: "" }
    }

    const fn logging(self, logs: &'static str) -> Self {
        Self { logs, ..self }
    }
}

const PLANTS: [Plant; 14] = [
    Plant::new(
        "release-before-durable",
        "starrocks_faults::a_backend_that_is_down_is_waited_for",
        &["left: 1000", "right: 0"],
    ),
    Plant::new(
        "non-contiguous-release",
        "sensitivity::nothing_is_released_past_rows_that_another_table_does_not_take",
        &["AtLeastOnce is broken", "missing 500"],
    ),
    Plant::new(
        "dropped-ticket-settles",
        "plugins::a_fatal_answer_halts_with_the_plugins_sentence",
        &["left: 10", "right: 0"],
    ),
    Plant::new(
        "new-label-per-retry",
        "starrocks_faults::an_answer_lost_after_the_commit_loads_nothing_twice",
        &["Once is broken", "missing 0", "repeated"],
    ),
    Plant::new(
        "label-exists-is-success",
        "starrocks_faults::a_label_that_another_load_seems_to_have_is_not_taken_for_loaded",
        &["Once is broken", "missing", "repeated 0"],
    ),
    Plant::new(
        "publish-timeout-is-failure",
        "starrocks_faults::publish_timeout_is_durable_and_not_sent_again",
        &["Once is broken", "missing 0", "repeated"],
    ),
    Plant::new(
        "unknown-is-loaded",
        "starrocks_faults::a_load_that_was_cut_off_and_forgotten_is_sent_again",
        &["Once is broken", "missing", "repeated 0"],
    ),
    Plant::new(
        "second-body",
        "sensitivity::a_body_whose_answer_was_lost_counts_once",
        &["Once is broken", "missing 0", "repeated 1000"],
    ),
    Plant::new(
        "position-after-acknowledgement",
        "sensitivity::no_place_in_the_log_is_confirmed_before_its_position_row_is_visible",
        &["is confirmed, the position row says"],
    ),
    Plant::new(
        "dead-letter-before-durable",
        "sensitivity::a_dead_letter_that_cannot_be_kept_releases_nothing",
        &["records released, and kept nowhere", "left: 1", "right: 0"],
    ),
    Plant::new(
        "guest-reused-after-trap",
        "plugins::a_trap_is_isolated",
        &["1000 records settled: tidemill ended with"],
    )
    .logging("records in a row"),
    Plant::new(
        "revoked-still-committed",
        "sensitivity::what_lands_after_its_partition_was_taken_moves_no_offset_back",
        &["of 2000 records that were released only"],
    ),
    Plant::new(
        "decision-overwritten",
        "sensitivity::a_decision_stands_until_its_loads_are_committed",
        &["Once is broken", "missing 1000", "repeated 0"],
    ),
    Plant::new(
        "body-without-validation",
        "sensitivity::a_load_that_begins_after_its_process_was_overtaken_is_not_sent",
        &["shop.orders differs from public.orders"],
    ),
];

/// What became of a planted bug.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// The test failed, and said that a promise is broken.
    Caught(String),
    /// The test failed for another reason, which shows nothing.
    Beside(String),
    /// The test passed.
    Missed,
    /// There is no test of that name.
    NotRun,
}

impl fmt::Display for Verdict {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Caught(how) => out.write_str(how),
            Self::Beside(how) => write!(out, "NOT CAUGHT, failed for another reason: {how}"),
            Self::Missed => out.write_str("NOT CAUGHT, the test passed"),
            Self::NotRun => out.write_str("NOT CAUGHT, there is no such test"),
        }
    }
}

/// Builds, runs the tests without a bug, then each with its own, and prints what caught what.
pub(crate) fn run(bugs: &[String]) -> Result<(), Failure> {
    if let Some(unknown) = bugs.iter().find(|bug| PLANTS.iter().all(|plant| plant.bug != **bug)) {
        let known: Vec<_> = PLANTS.iter().map(|plant| plant.bug).collect();
        return Err(Failure::new(format!("there is no bug `{unknown}`, but {}", known.join(", "))));
    }
    let plants: Vec<&Plant> =
        PLANTS.iter().filter(|plant| bugs.is_empty() || bugs.iter().any(|bug| bug == plant.bug)).collect();
    setup::for_testing()?;
    let distribution = Distribution::resolve(&command::target())?;
    plugins::build(Platform::Unknown)?;
    let host = ["build", "--release", "--package", "tidemill", "--features", "faults", "--bin", BINARY];
    command::run(&mut command::cargo(&host))?;
    command::run(command::cargo(&SUITE).arg("--no-run"))?;
    let broker = Broker::start(&distribution, &command::target(), &[])?;
    let suite = |tests: &[&str]| {
        let mut suite = command::cargo(&SUITE);
        suite.args(["--", "--exact"]).args(tests);
        suite.env(BROKER_VARIABLE, broker.address()).env(LIB_VARIABLE, distribution.lib());
        suite.env("TIDEMILL_BIN", command::built(BINARY)).env_remove(PLANT_VARIABLE);
        suite
    };
    let mut tests: Vec<&str> = plants.iter().map(|plant| plant.test).collect();
    tests.sort_unstable();
    tests.dedup();
    control(&mut suite(&tests), tests.len())?;
    let mut rows = Vec::new();
    for plant in plants {
        let mut planted = suite(&[plant.test]);
        let (verdict, took) = catch(planted.env(PLANT_VARIABLE, plant.bug), plant)?;
        println!("{}: {verdict} ({:.0} s)", plant.bug, took.as_secs_f64());
        rows.push((plant, verdict, took));
    }
    tell(&rows)
}

const SUITE: [&str; 6] = ["test", "--release", "--package", "tidemill-tests", "--test", "suite"];

fn output(command: &mut Command) -> Result<(String, Output), Failure> {
    let output = command.output().map_err(|cause| Failure::new(format!("run the tests: {cause}")))?;
    Ok((String::from_utf8_lossy(&output.stdout).into_owned(), output))
}

fn show_end_of(printed: &str) {
    let lines: Vec<&str> = printed.lines().collect();
    println!("{}", lines[lines.len().saturating_sub(OUTPUT_LINES_SHOWN)..].join("\n"));
}

fn tally_of(printed: &str) -> Tally {
    let mut tally = Tally::default();
    printed.lines().for_each(|line| tally.add(line));
    tally
}

/// The same tests with the same binary and no bug: all of them have to pass, or their failures show nothing.
fn control(suite: &mut Command, tests: usize) -> Result<(), Failure> {
    command::announce(suite);
    let began = Instant::now();
    let (printed, output) = output(suite)?;
    let tally = tally_of(&printed);
    if output.status.success() && tally.passed == tests as u64 {
        println!("control, nothing planted: {tally} ({:.0} s)", began.elapsed().as_secs_f64());
        return Ok(());
    }
    show_end_of(&printed);
    show_end_of(&String::from_utf8_lossy(&output.stderr));
    Err(Failure::new(format!("{tests} tests are to pass with nothing planted: {tally}")))
}

fn catch(planted: &mut Command, plant: &Plant) -> Result<(Verdict, Duration), Failure> {
    let began = Instant::now();
    let (printed, output) = output(planted)?;
    let verdict = verdict(plant, &printed, output.status.success());
    if !matches!(verdict, Verdict::Caught(_)) {
        show_end_of(&printed);
        show_end_of(&String::from_utf8_lossy(&output.stderr));
    }
    Ok((verdict, began.elapsed()))
}

fn verdict(plant: &Plant, printed: &str, passed: bool) -> Verdict {
    let tally = tally_of(printed);
    if passed && tally.passed == 0 {
        return Verdict::NotRun;
    }
    if passed {
        return Verdict::Missed;
    }
    let message = panic_of(printed).unwrap_or_else(|| "no panic".to_owned());
    let says = plant.says.iter().all(|part| message.contains(part)) && printed.contains(plant.logs);
    let shown: String = message.chars().take(SHOWN_CHARS_MAX).collect();
    if says && tally.failed > 0 { Verdict::Caught(shown) } else { Verdict::Beside(shown) }
}

/// The message of the first panic, on one line.
fn panic_of(printed: &str) -> Option<String> {
    let mut lines = printed.lines().skip_while(|line| !line.contains(" panicked at "));
    lines.next()?;
    let ends = |line: &&str| {
        line.is_empty() || ["note: ", "stack backtrace:", "---"].iter().any(|end| line.starts_with(end))
    };
    let message: Vec<&str> = lines.take_while(|line| !ends(line)).map(str::trim).collect();
    Some(message.join(" "))
}

fn tell(rows: &[(&Plant, Verdict, Duration)]) -> Result<(), Failure> {
    let widest = |of: fn(&Plant) -> &str| rows.iter().map(|(plant, ..)| of(plant).len()).max().unwrap_or(0);
    let (bugs, tests) = (widest(|plant| plant.bug), widest(|plant| plant.test));
    println!("\n{:bugs$}  {:tests$}  {:>4}  how it showed", "bug", "caught by", "s");
    for (Plant { bug, test, .. }, verdict, took) in rows {
        println!("{bug:bugs$}  {test:tests$}  {:4.0}  {verdict}", took.as_secs_f64());
    }
    let caught = rows.iter().filter(|(_, verdict, _)| matches!(verdict, Verdict::Caught(_))).count();
    println!("\n{caught} of {}", rows.len());
    if caught == rows.len() { Ok(()) } else { Err(Failure::told()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_bug_of_the_host_has_a_test_that_is_there() {
        let host = include_str!("../../host/src/planted.rs");
        let named = host.lines().filter_map(|line| line.trim().strip_prefix("Bug::")?.split_once(" => \""));
        let named: BTreeSet<_> = named.filter_map(|(_, name)| name.strip_suffix("\",")).collect();
        assert_eq!(named, PLANTS.iter().map(|plant| plant.bug).collect());
        for plant in PLANTS {
            let (module, test) = plant.test.split_once("::").expect("a module and a test");
            let file = command::root().join("tests/tests/suite").join(module).with_extension("rs");
            let text = std::fs::read_to_string(file).expect("the module is there");
            assert!(text.contains(&format!("fn {test}()")), "{}", plant.test);
        }
    }

    const FAILED: &str = "running 1 test
test a::b ... FAILED

---- a::b stdout ----

thread 'a::b' (77) panicked at tests/src/oracle.rs:57:9:
Once is broken: missing 0 [], repeated 3 [1, 2, 3], foreign 0 []
note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace
--- end of the log of process 12
WARN waiting
---

test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 7 filtered out; finished in 1.20s
";

    #[test]
    fn only_a_broken_promise_counts() {
        let plant = |says| Plant::new("bug", "a::b", says);
        let message = "Once is broken: missing 0 [], repeated 3 [1, 2, 3], foreign 0 []".to_owned();
        let check = |plant: Plant, printed: &str, passed: bool, expected: Verdict| {
            assert_eq!(verdict(&plant, printed, passed), expected);
        };
        check(plant(&["Once is broken", "repeated 3"]), FAILED, false, Verdict::Caught(message.clone()));
        check(plant(&["missing 3"]), FAILED, false, Verdict::Beside(message.clone()));
        check(plant(&["Once"]).logging("WARN"), FAILED, false, Verdict::Caught(message.clone()));
        check(plant(&["Once"]).logging("ERROR"), FAILED, false, Verdict::Beside(message));
        check(plant(&[]), "error: cannot compile", false, Verdict::Beside("no panic".to_owned()));
        let result = |passed: u64| format!("test result: ok. {passed} passed; 0 failed; 0 ignored");
        check(plant(&[]), &result(1), true, Verdict::Missed);
        check(plant(&[]), &result(0), true, Verdict::NotRun);
    }
}
