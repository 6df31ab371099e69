//! The rules of delivery.md §3, each of which can be switched off.

/// A rule, or a part of one. The number is that of delivery.md §3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Rule {
    /// 1: committed offsets are read only when no transaction on them is open.
    StableRead,
    /// 1: labels of a decision are committed before anything else.
    CommitDecided,
    /// 1: a decided label that is forgotten was committed.
    UnknownIsCommitted,
    /// 1: ... but not when it may have timed out first.
    OldHalts,
    /// 1: what the predecessor has open is rolled back.
    RollBackNext,
    /// 1 (amended): ... after the claim over it was accepted. Off: before the claim is written.
    ClaimBeforeRollBack,
    /// 1 (amended): the claim names what the predecessor may have open, for the case that its writer dies.
    NameBefore,
    /// 1 (amended): ... all numbers that it may have used, not only the next.
    Window,
    /// 1 (amended): a stem ends with the assignment. Off: it lives as long as the process.
    StemPerAssignment,
    /// 1 (amended): the age of a decision counts from its first prepare.
    AgeFromPrepare,
    /// 1 (amended): the clock is read after the states of the labels.
    ClockAfterStates,
    /// 2: after an unknown load, roll back. Off: the body is sent again.
    NoSecondBody,
    /// 2 (amended): after any rollback a fresh number. Off: the same label again.
    FreshAfterRollback,
    /// 3: the number of rows must be right.
    RowCount,
    /// 3: decide only when all were seen PREPARED. Off: an unknown prepare is taken for done.
    SeenPrepared,
    /// 4: the decision is a Kafka transaction. Off: a plain commit, which an empty group accepts from anybody.
    KafkaTransaction,
    /// 4: all partitions or none.
    AllOrNone,
    /// 4 (amended): all owned partitions, also those without rows.
    NameAllOwned,
    /// 4: the generation is that of the moment of the check. Off: that of the moment of sending.
    ExplicitGeneration,
    /// 4: epochs are checked and the decision sent under a lock shared with the rebalance callback.
    CheckUnderLock,
    /// 4: an unclean answer is looked into. Off: it is taken for "not decided".
    UncleanIsUnknown,
    /// 4: ... after `init_transactions`.
    InitBeforeReading,
    /// 4: never later than half the prepared time-out.
    HalfTimeout,
    /// 5: no claim before all decided labels are committed.
    CommitBeforeClaim,
    /// 5: no further decision, and no `done`, before all decided labels are committed.
    CommitBeforeNext,
    /// 5 (amended): claims are written by a Kafka transaction. Off: by a plain commit.
    TransactionalClaim,
    /// 6: a partition is not given up while a decision is running.
    RevokeWaits,
    /// 6: an undecided epoch is rolled back when a partition goes.
    RevokeRollsBack,
    /// 6: what was rolled back is read again.
    ReadAgain,
    /// 7: a refused generation is not the end of an epoch if no partition was lost.
    RetryGeneration,
}

/// Which rules are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules(u32);

impl Rules {
    /// All of them: the protocol.
    #[must_use]
    pub const fn all() -> Self {
        Self(u32::MAX)
    }

    /// All but `rules`.
    #[must_use]
    pub fn without(rules: &[Rule]) -> Self {
        Self(rules.iter().fold(u32::MAX, |on, rule| on & !(1 << *rule as u8)))
    }

    /// Whether `rule` is on.
    #[must_use]
    pub const fn on(self, rule: Rule) -> bool {
        self.0 & (1 << rule as u8) != 0
    }
}
