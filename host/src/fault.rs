//! What can go wrong, and the only three things that anybody does about it.

use std::error::Error;
use std::fmt;

/// The policy of a fault: the only thing that code branches on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// Passing: the same step may work later. Waits, and `/ready` says so.
    Retry,
    /// One record or row cannot be used, its neighbours can: it becomes a dead letter.
    Reject,
    /// The pipeline stops, nothing moves, and a person has to do something: the hint says what.
    Halt,
}

/// A failure with its policy.
///
/// `what` says what was attempted, lowercase and without a full stop; `hint` says what to do about it.
#[derive(Debug)]
pub struct Fault {
    /// What happens next.
    pub kind: FaultKind,
    /// What was attempted and how it failed.
    pub what: String,
    /// What the reader should do. Always present on [`FaultKind::Halt`].
    pub hint: Option<String>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl Fault {
    /// A passing failure: try again later.
    pub fn retry(what: impl Into<String>) -> Self {
        Self { kind: FaultKind::Retry, what: what.into(), hint: None, source: None }
    }

    /// A failure of one record or row.
    pub fn reject(what: impl Into<String>) -> Self {
        Self { kind: FaultKind::Reject, what: what.into(), hint: None, source: None }
    }

    /// A failure that needs a person; `hint` tells that person what to do.
    pub fn halt(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { kind: FaultKind::Halt, what: what.into(), hint: Some(hint.into()), source: None }
    }

    /// The same, but nobody waits for it to pass: at the start it is mostly a mistake.
    #[must_use]
    pub fn halting(mut self) -> Self {
        self.kind = FaultKind::Halt;
        self
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Keeps the cause, to be printed behind the fault.
    #[must_use]
    pub fn caused_by(mut self, source: impl Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }

    /// The same for another pipeline; causes become part of the text.
    #[must_use]
    pub fn retold(&self) -> Self {
        Self { kind: self.kind, what: self.causes(), hint: self.hint.clone(), source: None }
    }

    /// The whole story on one line: what, causes, and the hint.
    pub fn story(&self) -> String {
        let mut text = self.causes();
        if let Some(hint) = &self.hint {
            text.push_str("; ");
            text.push_str(hint);
        }
        text
    }

    fn causes(&self) -> String {
        let mut text = self.what.clone();
        let mut cause = self.source();
        while let Some(error) = cause {
            let said = error.to_string();
            // Many errors quote their cause and name it besides.
            if !text.contains(&said) {
                text.push_str(": ");
                text.push_str(&said);
            }
            cause = error.source();
        }
        text
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl Error for Fault {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|source| source.as_ref() as &(dyn Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_story_has_the_cause_and_the_hint() {
        let cause = std::io::Error::other("connection refused");
        let fault = Fault::halt("cannot reach the FE at 127.0.0.1:1", "start it").caused_by(cause);
        assert_eq!(fault.story(), "cannot reach the FE at 127.0.0.1:1: connection refused; start it");
        assert_eq!(fault.kind, FaultKind::Halt);
    }

    #[test]
    fn a_cause_that_is_quoted_already_is_told_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("fetch error: {0}")]
        struct Quoting(#[source] std::io::Error);
        let cause = Quoting(std::io::Error::other("timed out"));
        assert_eq!(Fault::retry("cannot ask").caused_by(cause).story(), "cannot ask: fetch error: timed out");
    }
}
