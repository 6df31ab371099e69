//! I10 and I11: what a process has written, and how it ended.

use super::{Invariant, Violation};

/// How a process was brought to its end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cause {
    /// SIGKILL, by us or at a failpoint.
    Killed,
    /// SIGTERM while faults go on: it drains.
    Asked,
    /// SIGTERM when all is well: it drains, and nothing excuses it.
    AskedAtRest,
    /// Nobody did anything: it should not have ended.
    Nobody,
}

/// How a process ended: its exit code, none for a signal.
pub type Code = Option<i32>;

/// What a drain says that had nobody to tell its last offsets to: the broker was away, or the group had put it out. Its
/// records come again, and the exit code says so (docs/guarantees.md).
pub(crate) const NOT_HEARD: &str = "cannot commit the last offsets";
/// What each kind of source says when it has begun.
pub(crate) const BEGUN: [&str; 4] =
    ["waiting for the group", "following the slot", "standing by", "listening on"];

/// Whether a pipeline halted for that reason.
fn says_why(log: &str, reason: &str) -> bool {
    log.lines().any(|line| line.contains("halted: ") && line.contains(reason))
}

/// The pipeline that a line is about.
fn pipeline_of(line: &str) -> Option<&str> {
    line.split_whitespace().find_map(|word| word.strip_prefix("pipeline="))
}

/// Whether a pipeline did not begin because StarRocks did not answer: what is asked at the start has no patience, since it
/// is mostly a mistake in the file. Whoever supervises the process starts it again. Its neighbour may have begun.
#[must_use]
pub fn did_not_begin(log: &str) -> bool {
    let begins = |line: &str| BEGUN.iter().any(|text| line.contains(text));
    let begun = |pipeline: Option<&str>| {
        let is_its = |line: &str| pipeline_of(line).is_none() || pipeline_of(line) == pipeline;
        log.lines().any(|line| begins(line) && is_its(line))
    };
    let silent = |line: &&str| line.contains("halted: ") && line.contains("no FE can be used");
    log.lines().filter(silent).any(|line| !begun(pipeline_of(line)))
}

/// I11, of the exit code: 0 after a drain, or, while faults go on, 1 if its last offsets were not heard; a signal after a
/// kill; 1 if it [did not begin](did_not_begin). Nothing else in a run of passing faults halts a pipeline.
#[must_use]
pub fn ends_as_it_should(cause: Cause, code: Code, log: &str) -> Option<Violation> {
    let fits = match (cause, code) {
        (Cause::Killed, None) | (Cause::Asked | Cause::AskedAtRest, Some(0)) => true,
        (Cause::Asked, Some(1)) => says_why(log, NOT_HEARD) || did_not_begin(log),
        (Cause::Nobody, Some(1)) => did_not_begin(log),
        (Cause::Killed | Cause::Asked | Cause::AskedAtRest | Cause::Nobody, _) => false,
    };
    (!fits).then(|| {
        Violation::new(Invariant::Ending, format!("a process ended with {code:?}, cause: {cause:?}"))
    })
}

/// I11, of the log: no panic, and no ERROR that leaves its reader without a word what to do.
#[must_use]
pub fn tells_what_to_do(log: &str) -> Vec<Violation> {
    let is_bare = |line: &&str| is_error(line) && !line.contains("; ");
    let panics = log.lines().filter(|line| line.contains("panicked at"));
    let panics = panics.map(|line| Violation::new(Invariant::Ending, format!("a panic: {line}")));
    let bare = log.lines().filter(is_bare);
    let bare = bare.map(|line| Violation::new(Invariant::Ending, format!("an error without a hint: {line}")));
    panics.chain(bare).collect()
}

/// Whether it is a line of level ERROR, as the log's own format has it.
fn is_error(line: &str) -> bool {
    line.split_whitespace().nth(1) == Some("ERROR")
}

/// I10: the canary is nowhere in what was written under `name`.
#[must_use]
pub fn keeps_the_secret(name: &str, text: &str, canary: &str) -> Option<Violation> {
    text.contains(canary)
        .then(|| Violation::new(Invariant::Secrecy, format!("the password stands in {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_says_something_else_is_seen() {
        let check = |cause, code, fits: bool| {
            assert_eq!(ends_as_it_should(cause, code, "all is well").is_none(), fits, "{cause:?} {code:?}");
        };
        let unheard = "12:00 ERROR halted: cannot commit the last offsets; their records come again";
        assert_eq!(ends_as_it_should(Cause::Asked, Some(1), unheard), None);
        assert!(ends_as_it_should(Cause::Nobody, Some(1), unheard).is_some());
        let silence = "12:00 ERROR halted: no FE can be used: it answered HTTP 500; check `fe`";
        assert_eq!(ends_as_it_should(Cause::Nobody, Some(1), silence), None);
        for begun in [
            "waiting for the group",
            "following the slot slot=a",
            "another reads slot a: standing by; waiting",
        ] {
            let later = format!("12:00 INFO {begun}\n{silence}");
            assert!(ends_as_it_should(Cause::Nobody, Some(1), &later).is_some(), "it had begun: {begun}");
        }
        let neighbour = format!("12:00 INFO waiting for the group pipeline=a group=a\n{silence} pipeline=b");
        assert_eq!(ends_as_it_should(Cause::Asked, Some(1), &neighbour), None, "one of two had begun");
        let both = format!("12:00 INFO waiting for the group pipeline=b group=b\n{neighbour}");
        assert!(ends_as_it_should(Cause::Asked, Some(1), &both).is_some(), "it had begun");
        for excuse in [unheard, silence] {
            assert!(
                ends_as_it_should(Cause::AskedAtRest, Some(1), excuse).is_some(),
                "all was well: {excuse}"
            );
        }
        check(Cause::Killed, None, true);
        check(Cause::Killed, Some(1), false);
        check(Cause::Asked, Some(0), true);
        check(Cause::AskedAtRest, Some(0), true);
        check(Cause::AskedAtRest, Some(1), false);
        check(Cause::Asked, Some(1), false);
        check(Cause::Asked, None, false);
        check(Cause::Nobody, Some(0), false);
        check(Cause::Nobody, None, false);
    }

    #[test]
    fn panics_and_errors_without_a_hint_are_seen() {
        let fine = "2026-11-21T08:00:00Z  INFO loading rows=3\n\
                    2026-11-21T08:00:01Z ERROR halted: the table is gone; create it\n\
                    2026-11-21T08:00:02Z  WARN what comes after ERROR in a text is no level\n";
        assert_eq!(tells_what_to_do(fine), []);
        let panic = "thread 'lane-0' panicked at host/src/lane.rs:1:1:\n";
        assert_eq!(tells_what_to_do(panic).len(), 1);
        assert_eq!(tells_what_to_do("2026-11-21T08:00:01Z ERROR it is broken\n").len(), 1);
    }

    #[test]
    fn a_secret_that_was_written_is_seen() {
        assert_eq!(keeps_the_secret("the log", "user root", "canary"), None);
        assert!(keeps_the_secret("the log", "root:canary", "canary").is_some());
    }
}
