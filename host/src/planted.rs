//! Bugs planted on purpose, to see whether the tests would catch them (feature `faults`; never there otherwise).
//!
//! `TIDEMILL_PLANT=<name>` in the environment chooses one, `cargo xtask plants` runs them all, and `docs/sensitivity.md`
//! says who made each of them. A hook is `if planted(Bug::…)` at the place where the mistake would be made: without the
//! feature it is `if false`, and the compiler takes it out.

/// A mistake that others of our trade have made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    /// What was read is committed, whether it is loaded or not.
    ReleaseBeforeDurable,
    /// The end of the span that was loaded last is committed, whether those before it are open or not.
    NonContiguousRelease,
    /// A ticket that nobody settles counts as delivered.
    DroppedTicketSettles,
    /// After an attempt of unknown outcome the batch goes under another label.
    NewLabelPerRetry,
    /// A label that exists is taken for this batch, loaded.
    LabelExistsIsSuccess,
    /// "Publish Timeout" is taken for a failed load, and the batch is loaded anew.
    PublishTimeoutIsFailure,
    /// A label that StarRocks does not know is taken for loaded and forgotten.
    UnknownIsLoaded,
    /// A body whose answer was lost is sent again inside its transaction.
    SecondBody,
    /// The server is told of a place in its log before the position row is written.
    PositionAfterAcknowledgement,
    /// A dead letter's ticket is settled when it is handed to its writer.
    DeadLetterBeforeDurable,
    /// An instance that trapped is called again.
    GuestReusedAfterTrap,
    /// What settles after its partition was given up is committed all the same.
    RevokedStillCommitted,
    /// "All is done" is written over a decision whose loads are not committed yet.
    DecisionOverwritten,
    /// A fenced body leaves without asking whether its rows are still ours to send.
    BodyWithoutValidation,
}

/// Whether this process was started with `bug`: never, in a build that users run.
#[cfg(not(feature = "faults"))]
pub(crate) const fn planted(_bug: Bug) -> bool {
    false
}

/// Whether this process was started with `bug`.
#[cfg(feature = "faults")]
pub(crate) fn planted(bug: Bug) -> bool {
    static CHOSEN: std::sync::LazyLock<Option<Bug>> = std::sync::LazyLock::new(Bug::chosen);
    *CHOSEN == Some(bug)
}

#[cfg(feature = "faults")]
impl Bug {
    const ALL: [Bug; 14] = [
        Bug::ReleaseBeforeDurable,
        Bug::NonContiguousRelease,
        Bug::DroppedTicketSettles,
        Bug::NewLabelPerRetry,
        Bug::LabelExistsIsSuccess,
        Bug::PublishTimeoutIsFailure,
        Bug::UnknownIsLoaded,
        Bug::SecondBody,
        Bug::PositionAfterAcknowledgement,
        Bug::DeadLetterBeforeDurable,
        Bug::GuestReusedAfterTrap,
        Bug::RevokedStillCommitted,
        Bug::DecisionOverwritten,
        Bug::BodyWithoutValidation,
    ];

    /// Its name in the environment.
    fn name(self) -> &'static str {
        match self {
            Bug::ReleaseBeforeDurable => "release-before-durable",
            Bug::NonContiguousRelease => "non-contiguous-release",
            Bug::DroppedTicketSettles => "dropped-ticket-settles",
            Bug::NewLabelPerRetry => "new-label-per-retry",
            Bug::LabelExistsIsSuccess => "label-exists-is-success",
            Bug::PublishTimeoutIsFailure => "publish-timeout-is-failure",
            Bug::UnknownIsLoaded => "unknown-is-loaded",
            Bug::SecondBody => "second-body",
            Bug::PositionAfterAcknowledgement => "position-after-acknowledgement",
            Bug::DeadLetterBeforeDurable => "dead-letter-before-durable",
            Bug::GuestReusedAfterTrap => "guest-reused-after-trap",
            Bug::RevokedStillCommitted => "revoked-still-committed",
            Bug::DecisionOverwritten => "decision-overwritten",
            Bug::BodyWithoutValidation => "body-without-validation",
        }
    }

    fn chosen() -> Option<Bug> {
        let name = std::env::var("TIDEMILL_PLANT").ok()?;
        let bug = Bug::ALL.into_iter().find(|bug| bug.name() == name);
        match bug {
            Some(_) => tracing::warn!(bug = %name, "this process has a bug that was planted on purpose"),
            // A name that is misspelt would look like a bug that no test catches.
            None => {
                eprintln!("TIDEMILL_PLANT={name}: no such bug; see host/src/planted.rs");
                std::process::exit(2);
            }
        }
        bug
    }
}

#[cfg(all(test, feature = "faults"))]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_planted_unless_it_is_asked_for_by_a_name_of_its_own() {
        let mut names: Vec<_> = Bug::ALL.iter().map(|bug| bug.name()).collect();
        assert!(!Bug::ALL.into_iter().any(planted));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Bug::ALL.len());
    }
}
