//! What is explored: the protocol under several mixes of faults, and the protocol with rules off.

use super::state::Budget;
use super::{Bounds, ExactlyOnce, Rule, Rules};

/// A mix of faults. No mix has all of them at once: the states would be too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mix {
    /// One process dies, one is thought dead; two tables.
    CrashAndFreeze,
    /// Two are thought dead; two tables.
    TwoFreezes,
    /// Two processes die and an answer is lost; two tables, one partition with records.
    TwoCrashes,
    /// One is thought dead, and a request arrives late.
    FreezeAndLate,
    /// One process dies, an answer is lost, Kafka or StarRocks aborts something.
    CrashAndLoss,
    /// Two answers do not come, and their requests may arrive at any time; one partition.
    TwoLate,
    /// Finished labels are forgotten.
    Forgetting,
    /// Time passes, prepared transactions time out, finished labels are forgotten; one process, one partition.
    Time,
    /// Processes die, answers are lost; nothing may stay open. Nobody is wrongly thought dead.
    Tidy,
    /// Only from the command line: one process dies, one is thought dead, an answer is lost.
    DeepLoss,
    /// Only from the command line: two are thought dead, and a request arrives late.
    DeepLate,
}

impl Mix {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::CrashAndFreeze,
        Self::TwoFreezes,
        Self::TwoCrashes,
        Self::FreezeAndLate,
        Self::CrashAndLoss,
        Self::TwoLate,
        Self::Forgetting,
        Self::Time,
        Self::Tidy,
    ];

    /// Those that take minutes.
    pub const DEEP: [Self; 2] = [Self::DeepLoss, Self::DeepLate];

    /// The bounds of this mix.
    #[must_use]
    pub fn bounds(self) -> Bounds {
        let none = Budget { crashes: 0, kicks: 0, lost: 0, late: 0, aborts: 0, forgets: 0, ticks: 0 };
        let base = Bounds {
            members: 2,
            records: [1, 1],
            tables: 1,
            window: 2,
            faults: none,
            prepared_timeout: 0,
            margin: 0,
            done: false,
            tidy: false,
        };
        let faults =
            |crashes, kicks, lost, late, aborts| Budget { crashes, kicks, lost, late, aborts, ..none };
        match self {
            Self::CrashAndFreeze => {
                Bounds { records: [2, 1], tables: 2, faults: faults(1, 1, 0, 0, 0), ..base }
            }
            Self::DeepLoss => Bounds { faults: faults(1, 1, 1, 0, 0), ..base },
            Self::DeepLate => Bounds { faults: faults(0, 2, 0, 1, 0), ..base },
            Self::TwoFreezes => Bounds { records: [2, 1], tables: 2, faults: faults(0, 2, 0, 0, 0), ..base },
            Self::TwoCrashes => {
                Bounds { records: [2, 0], tables: 2, done: true, faults: faults(2, 0, 1, 0, 0), ..base }
            }
            Self::FreezeAndLate => Bounds { faults: faults(0, 1, 0, 1, 0), ..base },
            Self::CrashAndLoss => Bounds { faults: faults(1, 0, 1, 0, 1), ..base },
            Self::TwoLate => Bounds { records: [2, 0], tables: 2, faults: faults(0, 0, 0, 2, 1), ..base },
            Self::Forgetting => {
                Bounds { tables: 2, faults: Budget { forgets: 2, ..faults(1, 0, 0, 0, 0) }, ..base }
            }
            Self::Time => Bounds {
                members: 1,
                records: [2, 0],
                faults: Budget { forgets: 2, ticks: 7, ..faults(1, 0, 1, 0, 0) },
                prepared_timeout: 4,
                margin: 1,
                done: true,
                ..base
            },
            Self::Tidy => {
                Bounds { records: [2, 0], tables: 2, tidy: true, faults: faults(2, 0, 1, 0, 0), ..base }
            }
        }
    }

    /// The protocol under this mix.
    #[must_use]
    pub fn protocol(self) -> ExactlyOnce {
        ExactlyOnce { bounds: self.bounds(), rules: Rules::all() }
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

impl Mutation {
    /// The mutated protocol.
    #[must_use]
    pub fn protocol(&self) -> ExactlyOnce {
        ExactlyOnce { bounds: self.mix.bounds(), rules: Rules::without(self.off) }
    }
}

const fn mutation(name: &'static str, off: &'static [Rule], mix: Mix) -> Mutation {
    Mutation { name, off, mix }
}

/// Mutations of which the model shows what they break.
pub const CAUGHT: &[Mutation] = &[
    mutation("1: offsets read while a transaction on them is open", &[Rule::StableRead], Mix::TwoFreezes),
    mutation("1: labels of a decision not committed", &[Rule::CommitDecided], Mix::CrashAndFreeze),
    mutation(
        "1: a forgotten label of a decision is loaded again",
        &[Rule::UnknownIsCommitted],
        Mix::Forgetting,
    ),
    mutation("1: a forgotten label was committed, however old", &[Rule::OldHalts], Mix::Time),
    mutation("1: what the predecessor has open is left", &[Rule::RollBackNext], Mix::Tidy),
    mutation("1: only its next number is rolled back", &[Rule::Window], Mix::Tidy),
    mutation("1: the claim does not name the predecessor", &[Rule::NameBefore], Mix::Tidy),
    mutation(
        "1: rolled back before the claim, as first written",
        &[Rule::ClaimBeforeRollBack],
        Mix::CrashAndFreeze,
    ),
    mutation("1: a stem for each process, as first written", &[Rule::StemPerAssignment], Mix::CrashAndFreeze),
    mutation("1: age counted from the decision, as first written", &[Rule::AgeFromPrepare], Mix::Time),
    mutation("1: the clock read before the labels", &[Rule::ClockAfterStates], Mix::Time),
    mutation(
        "2+3: the body sent again, rows not counted",
        &[Rule::NoSecondBody, Rule::RowCount],
        Mix::TwoLate,
    ),
    mutation("2: a label that was rolled back is used again", &[Rule::FreshAfterRollback], Mix::TwoLate),
    mutation("3: an unknown prepare taken for done", &[Rule::SeenPrepared], Mix::TwoLate),
    mutation("4: a plain offset commit as decision", &[Rule::KafkaTransaction], Mix::TwoFreezes),
    mutation(
        "4: a plain commit, done for some partitions",
        &[Rule::KafkaTransaction, Rule::AllOrNone],
        Mix::CrashAndLoss,
    ),
    mutation("4: only partitions with rows are named", &[Rule::NameAllOwned], Mix::CrashAndFreeze),
    mutation(
        "4+6: no check under the lock, no rollback",
        &[Rule::CheckUnderLock, Rule::RevokeRollsBack],
        Mix::CrashAndFreeze,
    ),
    mutation(
        "4: the rebalance callback between check and sending",
        &[Rule::CheckUnderLock],
        Mix::CrashAndFreeze,
    ),
    mutation("4: an unclean answer is taken for no", &[Rule::UncleanIsUnknown], Mix::CrashAndLoss),
    mutation("4: no init_transactions after an unclean answer", &[Rule::InitBeforeReading], Mix::TwoLate),
    mutation("5: claimed before the labels are committed", &[Rule::CommitBeforeClaim], Mix::TwoCrashes),
    mutation("5: `done` before the labels are committed", &[Rule::CommitBeforeNext], Mix::CrashAndLoss),
    mutation("5: a claim by a plain commit", &[Rule::TransactionalClaim], Mix::FreezeAndLate),
    mutation("6: what was rolled back is not read again", &[Rule::ReadAgain], Mix::CrashAndLoss),
];

/// Mutations that break nothing in the model; `docs/model.md` says why each rule stays.
pub const HARMLESS: &[Mutation] = &[
    mutation("2: the body sent again, but rows counted", &[Rule::NoSecondBody], Mix::CrashAndLoss),
    mutation("3: rows not counted", &[Rule::RowCount], Mix::CrashAndLoss),
    mutation(
        "4: the generation of the moment of sending, under the lock",
        &[Rule::ExplicitGeneration],
        Mix::TwoFreezes,
    ),
    mutation("4: decided later than half the time-out", &[Rule::HalfTimeout], Mix::Time),
    mutation("6: a partition given up during a decision", &[Rule::RevokeWaits], Mix::TwoFreezes),
    mutation("6: an undecided epoch kept at a revocation", &[Rule::RevokeRollsBack], Mix::TwoFreezes),
    mutation("7: a refused generation ends the epoch", &[Rule::RetryGeneration], Mix::TwoCrashes),
];
