//! A load in two phases, driven to what can be known of it: prepared, committed or given up (delivery.md §3).

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::client::Client;
use super::prepared::{Unprepared, prepare as pack};
use super::state::LabelState;
use crate::clock;
use crate::delivery::decision::{Decision, Extent, Recovery, recover};
use crate::failpoint;
use crate::fault::{Fault, FaultKind};
use crate::planted::{Bug, planted};
use crate::retry::{Backoff, Pace};
use crate::sink::{Destination, Load, Outcome, Receipt, Rejection, Scarce};

/// How often a commit is asked for before somebody hears that it is not made.
const COMMITS_PER_TRY: u32 = 3;
/// How long after all FEs did not know a decided load they are asked once more: an FE that is cut off from the others says what
/// it knew, until it hears that it leads no more.
const UNKNOWN_AGAIN_AFTER: Duration = Duration::from_secs(3);
/// How often a load that nobody will commit is asked to be rolled back. It does no harm where it stands: its
/// label is never used again, and StarRocks gives it up by itself.
const ROLLBACK_TRIES: u32 = 5;

/// What became of the first phase.
#[derive(Debug)]
#[must_use]
pub enum FirstPhase {
    /// StarRocks keeps the rows until it is told.
    Prepared(Receipt),
    /// Nothing will be loaded, because of the rows named.
    BadRows(Rejection),
    /// A person is needed.
    Halt(Fault),
    /// StarRocks takes no more just now.
    Overloaded(Fault, Scarce),
    /// Not done, or not known to be: to be rolled back, and begun under another label.
    Unknown(Fault),
}

/// Begins, loads and prepares, each once.
pub async fn prepare(client: &Client, load: &mut Load, timeout: Duration) -> FirstPhase {
    match pack(load).await {
        Ok(()) => {}
        Err(Unprepared::BadRow(rejection)) => return FirstPhase::BadRows(rejection),
        Err(Unprepared::Halt(fault)) => return FirstPhase::Halt(fault),
    }
    failpoint::at("epoch.before_begin");
    match client.begin(load).await {
        Outcome::Durable(_) => failpoint::at("epoch.begun"),
        failed => return not_taken(failed),
    }
    let mut loaded = client.load_once(load).await;
    if planted(Bug::SecondBody) && matches!(loaded, Outcome::Unsure(_)) {
        loaded = client.load_once(load).await;
    }
    match loaded {
        Outcome::Durable(_) => failpoint::at("epoch.loaded"),
        failed => return not_taken(failed),
    }
    match client.prepare(load, timeout).await {
        Outcome::Durable(receipt) => FirstPhase::Prepared(receipt),
        failed => not_taken(failed),
    }
}

fn not_taken(outcome: Outcome) -> FirstPhase {
    match outcome {
        Outcome::Durable(receipt) => FirstPhase::Prepared(receipt),
        Outcome::BadRows(rejection) => FirstPhase::BadRows(rejection),
        Outcome::Overloaded(fault, scarce) => FirstPhase::Overloaded(fault, scarce),
        // Nothing is decided yet: what may have been taken is rolled back by whoever starts next.
        Outcome::Refused(fault) | Outcome::Unsure(fault) if fault.kind == FaultKind::Halt => {
            FirstPhase::Halt(fault)
        }
        Outcome::Refused(fault) | Outcome::Unsure(fault) => FirstPhase::Unknown(fault),
    }
}

/// Commits all loads of a decision, at once, and returns when they are committed. Safe to do again, whoever did it
/// before.
///
/// # Errors
/// When all have been tried: halt, if rows of one are lost; retry, if one is not committed yet.
pub async fn commit_all(
    client: &Client,
    loads: &[(Arc<Destination>, String)],
    decision: &Decision,
    extent: &Extent,
) -> Result<(), Fault> {
    let mut committing = JoinSet::new();
    for (destination, label) in loads {
        let (client, destination) = (client.clone(), Arc::clone(destination));
        let (decision, extent, label) = (decision.clone(), extent.clone(), label.clone());
        committing.spawn(async move { commit(&client, &destination, (&decision, &extent), &label).await });
    }
    let mut worst: Result<(), Fault> = Ok(());
    while let Some(committed) = committing.join_next().await {
        let committed = committed.unwrap_or_else(|panic| {
            Err(Fault::halt("committing a load panicked", "start again, and report this defect")
                .caused_by(panic))
        });
        match (&worst, &committed) {
            (Err(known), _) if known.kind == FaultKind::Halt => {}
            (_, Err(_)) => worst = committed,
            (_, Ok(())) => {}
        }
    }
    worst
}

/// Of a decision that was made with other FEs an unknown label proves nothing: it may be another cluster that is asked now.
///
/// # Errors
/// Halt, if StarRocks does not know a label; retry, if it cannot be asked.
pub async fn must_be_known(client: &Client, decision: &Decision, extent: &Extent) -> Result<(), Fault> {
    for label in decision.labels() {
        if client.label_state(&decision.database, &label).await? == LabelState::Unknown {
            return Err(Fault::halt(
                format!(
                    "load {label} of decided epoch {decision}, with the rows of {extent}, is not known at StarRocks, and `fe` was another \
                     list when it was decided"
                ),
                "if it names another cluster now: start with the former `fe` until the pipeline has drained, and change it then. If it \
                 names the same cluster, start once with the former list, too",
            ));
        }
    }
    Ok(())
}

/// Commits a decided load, and returns when it is committed.
async fn commit(
    client: &Client,
    destination: &Destination,
    (decision, extent): (&Decision, &Extent),
    label: &str,
) -> Result<(), Fault> {
    let prepared_timeout = Duration::from_secs(decision.prepared_timeout_s);
    let mut backoff = Backoff::new(Pace::POLLING);
    let mut told = String::new();
    for asked in 0..=COMMITS_PER_TRY {
        let state = state_of_decided(client, &destination.cluster.database, label).await?;
        // Read after the state, or a load that was given up in between would be too young.
        let age = clock::since_1970().saturating_sub(Duration::from_secs(decision.prepared_at_s));
        match recover(state, age, prepared_timeout) {
            Recovery::Done => return Ok(()),
            Recovery::Lost => return Err(lost(decision, extent, label, state)),
            Recovery::Commit => {}
        }
        if asked > 0 {
            backoff.wait().await;
        }
        told = client.commit(destination, label).await?;
    }
    Err(Fault::retry(format!("StarRocks does not commit decided load {label}: {told}")))
}

/// The state of a load that was decided. That it is unknown has to be said by most FEs, by none otherwise, and twice: it is
/// taken for proof that the load is committed.
async fn state_of_decided(client: &Client, database: &str, label: &str) -> Result<LabelState, Fault> {
    let state = client.label_state(database, label).await?;
    if state != LabelState::Unknown {
        return Ok(state);
    }
    for wait in [Duration::ZERO, UNKNOWN_AGAIN_AFTER] {
        tokio::time::sleep(wait).await;
        let states = client.label_states(database, label).await?;
        if let Some(known) = states.into_iter().find(|state| *state != LabelState::Unknown) {
            return Ok(known);
        }
    }
    Ok(LabelState::Unknown)
}

fn lost(decision: &Decision, extent: &Extent, label: &str, state: LabelState) -> Fault {
    Fault::halt(
        format!(
            "load {label} of decided epoch {decision} is {state:?} at StarRocks: its rows, of {extent}, are not in the table"
        ),
        format!(
            "somebody rolled it back, or no process ran for longer than StarRocks keeps prepared loads ({} s). Its other \
             tables are committed. Set the group's offsets of all these partitions with kafka-consumer-groups.sh: to the \
             first ones named, which loads the epoch again into all its tables, or to where they stand, which goes on \
             without it; either takes the decision away",
            decision.prepared_timeout_s
        ),
    )
}

/// Gives up what a process before may have prepared and never decided, if there is such a load. It would do no harm
/// but count against StarRocks' limit of open transactions.
///
/// # Errors
/// Retry, if nobody can be asked.
pub async fn give_up(client: &Client, destination: &Destination, label: &str) -> Result<(), Fault> {
    match client.label_state(&destination.cluster.database, label).await? {
        LabelState::Prepare | LabelState::Prepared => client.rollback(destination, label).await,
        LabelState::Unknown | LabelState::Aborted | LabelState::Committed | LabelState::Visible => Ok(()),
    }
}

/// Gives up what nobody will commit. Best effort, since nothing hangs on it.
pub async fn roll_back(client: &Client, destination: &Destination, label: &str) {
    let mut backoff = Backoff::new(Pace::PASSING);
    for _ in 0..ROLLBACK_TRIES {
        match client.rollback(destination, label).await {
            Ok(()) => match client.label_state(&destination.cluster.database, label).await {
                Ok(LabelState::Aborted | LabelState::Unknown) => return,
                Ok(state @ (LabelState::Committed | LabelState::Visible)) => {
                    // Said aloud, since it must not happen: it was not decided.
                    tracing::error!(label, ?state, "a load that was not decided is committed");
                    return;
                }
                Ok(LabelState::Prepare | LabelState::Prepared) => {}
                Err(fault) => tracing::debug!(label, "{}", fault.story()),
            },
            Err(fault) => tracing::debug!(label, "{}", fault.story()),
        }
        backoff.wait().await;
    }
    tracing::warn!(
        label,
        "a load that will not be committed could not be rolled back: StarRocks gives it up by itself"
    );
}
