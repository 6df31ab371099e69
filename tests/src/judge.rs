//! What a run under faults has shown: pure functions from what was sent, acknowledged, loaded, kept and measured to what
//! is wrong, for the invariants I1 to I11 of the fault plan.

pub mod confirmed;
pub mod liveness;
pub mod log;
pub mod records;
pub mod repeats;

use std::fmt;

/// What must hold, whatever fails.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Invariant {
    /// I1: what the source has acknowledged is loaded or kept as a dead letter.
    Conservation,
    /// I2: what is loaded is what was sent.
    Integrity,
    /// I3: each record as often as was promised.
    Uniqueness,
    /// I4: each key ends, and at no time goes back behind, its last operation.
    FinalState,
    /// I5: nothing is released before it is durable.
    Release,
    /// I6: after the faults all comes through, also what is sent then.
    Liveness,
    /// I7: memory, files and threads stay under their caps.
    Resources,
    /// I8: a neighbour is not slowed down.
    Sibling,
    /// I9: what was read is accounted for.
    Balance,
    /// I10: no secret in logs, metrics or letters.
    Secrecy,
    /// I11: no panic, no error without a hint, no exit that says something else than what happened.
    Ending,
}

impl Invariant {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 11] = [
        Self::Conservation,
        Self::Integrity,
        Self::Uniqueness,
        Self::FinalState,
        Self::Release,
        Self::Liveness,
        Self::Resources,
        Self::Sibling,
        Self::Balance,
        Self::Secrecy,
        Self::Ending,
    ];

    /// Its number in the fault plan.
    #[must_use]
    pub fn number(self) -> usize {
        1 + Self::ALL.iter().position(|one| *one == self).unwrap_or_default()
    }
}

/// Something that must not be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Violation {
    /// Of what.
    pub invariant: Invariant,
    /// What was found.
    pub what: String,
}

impl Violation {
    /// A violation.
    pub fn new(invariant: Invariant, what: impl Into<String>) -> Self {
        Self { invariant, what: what.into() }
    }

    /// One of several identifiers, none if there are none.
    pub(crate) fn of_ids(invariant: Invariant, what: &str, ids: &[u64]) -> Option<Self> {
        /// What is shown of all that offend.
        const SHOWN: usize = 8;
        let shown = &ids[..ids.len().min(SHOWN)];
        (!ids.is_empty()).then(|| Self::new(invariant, format!("{} {what}, such as {shown:?}", ids.len())))
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "I{} {:?}: {}", self.invariant.number(), self.invariant, self.what)
    }
}
