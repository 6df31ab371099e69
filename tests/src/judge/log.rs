//! I10 and I11: what a process has written, and how it ended.

use super::{Invariant, Violation};

/// How a process was brought to its end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cause {
    /// SIGKILL, by us or at a failpoint.
    Killed,
    /// SIGTERM: it drains.
    Asked,
    /// Nobody did anything: it should not have ended.
    Nobody,
}

/// How a process ended: its exit code, none for a signal.
pub type Code = Option<i32>;

/// I11, of the exit code: 0 after a drain, a signal after a kill. Nothing in a run of passing faults halts a pipeline.
#[must_use]
pub fn ends_as_it_should(cause: Cause, code: Code) -> Option<Violation> {
    let fits = match (cause, code) {
        (Cause::Killed, None) | (Cause::Asked, Some(0)) => true,
        (Cause::Killed | Cause::Asked | Cause::Nobody, _) => false,
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
            assert_eq!(ends_as_it_should(cause, code).is_none(), fits, "{cause:?} {code:?}");
        };
        check(Cause::Killed, None, true);
        check(Cause::Killed, Some(1), false);
        check(Cause::Asked, Some(0), true);
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
