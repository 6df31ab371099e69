//! What is explored: the protocol under several mixes of faults, and the protocol with rules off.

use super::state::Budget;
use super::{PrimaryKey, Rule, Rules};

/// A mix of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mix {
    /// One process dies, one is thought dead.
    CrashAndFreeze,
    /// Two are thought dead.
    TwoFreezes,
    /// One is thought dead, and a request arrives late.
    FreezeAndLate,
    /// Two processes die, and a request arrives late.
    TwoCrashesAndLate,
}

impl Mix {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::CrashAndFreeze, Self::TwoFreezes, Self::FreezeAndLate, Self::TwoCrashesAndLate];

    /// The protocol under this mix, without the rules `off`.
    #[must_use]
    pub fn protocol(self, off: &[Rule]) -> PrimaryKey {
        let (records, crashes, kicks, late) = match self {
            Self::CrashAndFreeze => ([2, 1], 1, 1, 0),
            Self::TwoFreezes => ([2, 1], 0, 2, 0),
            Self::FreezeAndLate => ([1, 1], 0, 1, 1),
            Self::TwoCrashesAndLate => ([2, 0], 2, 0, 1),
        };
        PrimaryKey { records, window: 1, faults: Budget { crashes, kicks, late }, rules: Rules::without(off) }
    }
}

/// Rules that are off, and the mix that shows what they are for.
#[derive(Debug, Clone, Copy)]
pub struct Mutation {
    /// What is done instead.
    pub name: &'static str,
    /// The rules.
    pub off: &'static [Rule],
    /// Where it is explored.
    pub mix: Mix,
}

const fn mutation(name: &'static str, off: &'static [Rule], mix: Mix) -> Mutation {
    Mutation { name, off, mix }
}

/// Mutations of which the model shows what they break.
pub const CAUGHT: &[Mutation] = &[
    mutation("begin: validated before the transaction exists", &[Rule::BeginFirst], Mix::TwoFreezes),
    mutation("validate: not at all", &[Rule::Validate], Mix::TwoFreezes),
    mutation(
        "validate: by a commit that an empty group takes of anybody",
        &[Rule::FencedCommits, Rule::GenerationChecked],
        Mix::TwoFreezes,
    ),
    mutation("take over: nothing is cancelled", &[Rule::TakeOver], Mix::CrashAndFreeze),
    mutation("take over: not from oneself, as first written", &[Rule::OwnToo], Mix::CrashAndFreeze),
    mutation("take over: claimed before it is cancelled", &[Rule::CancelBeforeClaim], Mix::TwoFreezes),
    mutation("take over: a cancel without an answer is let be", &[Rule::PollToFinal], Mix::FreezeAndLate),
    mutation("claim: numbers beyond it are used", &[Rule::ExtendClaim], Mix::CrashAndFreeze),
    mutation("body: sent to whatever has its label (transaction API)", &[Rule::BodyTied], Mix::FreezeAndLate),
    mutation(
        "commit: plain, as first written; an empty group takes it of anybody",
        &[Rule::FencedCommits],
        Mix::TwoFreezes,
    ),
    mutation(
        "commit: an older one of the same sender arrives later",
        &[Rule::CommitsInOrder],
        Mix::TwoCrashesAndLate,
    ),
];

/// Mutations that break nothing in the model; `docs/model.md` says why each rule stays.
pub const HARMLESS: &[Mutation] = &[
    mutation(
        "validate: the generation not looked at, where commits are fenced",
        &[Rule::GenerationChecked],
        Mix::TwoFreezes,
    ),
    mutation("§1.4: given up with a load on its way", &[Rule::SettleBeforeGiving], Mix::TwoFreezes),
];
