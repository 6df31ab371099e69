//! One load until its outcome is known: same label on every attempt (delivery.md §1 rules 1 and 2).

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::client::Client;
use super::outcome::foreign_label;
use super::prepared::{Unprepared, prepare};
use super::state::LabelState;
use crate::failpoint;
use crate::fault::{Fault, FaultKind};
use crate::planted::{Bug, planted};
use crate::retry::{Backoff, Pace, Waited};
use crate::sink::{Load, Outcome, Receipt, Rejection};

/// A wait that lasts is logged this often.
const LOG_WAIT_EVERY: Duration = Duration::from_secs(30);

/// What became of a load.
#[derive(Debug)]
#[must_use]
pub enum Delivered {
    /// Committed. Its tickets may be settled.
    Durable(Receipt),
    /// A person is needed; nothing of the load counts as loaded.
    Halt(Fault),
    /// Nothing was loaded, because of the rows named.
    BadRows(Rejection),
    /// Told to give up, and nothing was loaded.
    Released,
}

/// Whoever has to know how a load fares: `/ready`, metrics.
pub trait Observer: Send + Sync {
    /// Attempt `number` (from 1) under `label` begins.
    fn attempting(&self, label: &str, number: u32);
    /// An attempt ended so after this time, of which waits for fences are no part.
    fn answered(&self, _outcome: &Outcome, _took: Duration) {}
    /// The load is known not to be loaded, and rests before its next attempt.
    fn resting(&self, _label: &str) {}
    /// Waits since `since`, because of `why`. Called at each further failure, with the same `since`.
    fn waiting(&self, label: &str, since: Instant, why: &Fault);
    /// What was waited for has come, or the load was given up.
    fn resumed(&self, label: &str, waited: Duration);
    /// The load is sent again although an earlier attempt may have been committed and forgotten.
    fn possible_duplicate(&self, label: &str);
}

/// The newest label that was settled in this life of the process, for one database.
///
/// StarRocks forgets finished transactions oldest first. While one that finished before a load began is
/// still known, a load that is not known has never begun.
#[derive(Debug, Default)]
pub struct Witness(Mutex<Option<String>>);

impl Witness {
    /// Nothing settled so far.
    pub fn new() -> Self {
        Self::default()
    }

    /// `label` is visible: its transaction is finished for good.
    pub fn settled(&self, label: &str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(label.to_owned());
    }

    /// The label settled last.
    pub fn latest(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// How long to wait for what.
#[derive(Debug, Clone, Copy)]
pub struct Paces {
    /// After failures that pass by themselves.
    pub passing: Pace,
    /// After back-pressure.
    pub overloaded: Pace,
    /// Between questions for a label's state.
    pub polling: Pace,
}

impl Default for Paces {
    fn default() -> Self {
        Self { passing: Pace::PASSING, overloaded: Pace::OVERLOADED, polling: Pace::POLLING }
    }
}

/// What a delivery shares with the rest of its pipeline.
#[derive(Clone)]
pub struct DeliverContext {
    /// Told how it goes.
    pub observer: Arc<dyn Observer>,
    /// One for each cluster and database.
    pub witness: Arc<Witness>,
    /// True = give up as soon as the load is known not to be loaded (the end of a shutdown, a partition
    /// that is taken away), but not before the first attempt. A transaction that is open at StarRocks is then cancelled, not waited for.
    pub stop: watch::Receiver<bool>,
    /// How long to wait for what.
    pub paces: Paces,
}

impl fmt::Debug for DeliverContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeliverContext").field("witness", &self.witness).field("paces", &self.paces).finish()
    }
}

/// Sends `load` until its outcome is known. Waits as long as it takes unless told to stop. The body is
/// written as CSV and compressed here, if the file says so: once for all attempts.
pub async fn deliver(client: &Client, load: &mut Load, context: &DeliverContext) -> Delivered {
    match prepare(load).await {
        Ok(()) => {}
        Err(Unprepared::BadRow(rejection)) => return Delivered::BadRows(rejection),
        Err(Unprepared::Halt(fault)) => return Delivered::Halt(fault),
    }
    let mut delivery = Delivery {
        client,
        context,
        stop: context.stop.clone(),
        witness: context.witness.latest(),
        wait: Wait {
            observer: context.observer.as_ref(),
            label: load.label.clone(),
            began: None,
            logged: None,
        },
    };
    let delivered = delivery.run(load).await;
    failpoint::at("load.answered");
    delivery.wait.end();
    if let Delivered::Durable(Receipt { visible: true, .. }) = &delivered {
        context.witness.settled(&load.label);
    }
    delivered
}

/// What asking for the state of a label came to.
enum Resolved {
    Durable(Receipt),
    NotLoaded,
    Halt(Fault),
}

/// One delivery under way.
struct Delivery<'a> {
    client: &'a Client,
    context: &'a DeliverContext,
    stop: watch::Receiver<bool>,
    /// Settled before this load began.
    witness: Option<String>,
    wait: Wait<'a>,
}

impl Delivery<'_> {
    async fn run(&mut self, load: &mut Load) -> Delivered {
        let mut passing = Backoff::new(self.context.paces.passing);
        let mut overloaded = Backoff::new(self.context.paces.overloaded);
        let mut attempts = 0u32;
        loop {
            // Here, and only here, the load is known not to be loaded. One attempt is made in any case:
            // a partition that is given up may have its last rows here.
            if attempts > 0 && *self.stop.borrow() {
                return Delivered::Released;
            }
            attempts = attempts.saturating_add(1);
            self.context.observer.attempting(&load.label, attempts);
            failpoint::at("load.before_begin");
            let (began, fenced) = (Instant::now(), load.fenced_for());
            let outcome = self.client.attempt(load).await;
            // What the group or the leadership took to answer is no pressure on StarRocks.
            let took = began.elapsed().saturating_sub(load.fenced_for().saturating_sub(fenced));
            self.context.observer.answered(&outcome, took);
            let (fault, backoff) = match outcome {
                Outcome::Durable(Receipt { visible: false, .. }) if planted(Bug::PublishTimeoutIsFailure) => {
                    (load.label, load.body_sent) = (format!("{}_{attempts}", load.label), false);
                    (Fault::retry("publish timeout"), &mut passing)
                }
                Outcome::Unsure(fault) if planted(Bug::NewLabelPerRetry) => {
                    (load.label, load.body_sent) = (format!("{}_{attempts}", load.label), false);
                    (fault, &mut passing)
                }
                Outcome::Durable(receipt) => return Delivered::Durable(receipt),
                Outcome::BadRows(rejection) => return Delivered::BadRows(rejection),
                Outcome::Refused(fault) => match fault.kind {
                    FaultKind::Halt | FaultKind::Reject => return Delivered::Halt(fault),
                    FaultKind::Retry => (fault, &mut passing),
                },
                Outcome::Overloaded(fault, _) => (fault, &mut overloaded),
                Outcome::Unsure(fault) => {
                    match self.resolve(load, &fault).await {
                        Resolved::Durable(receipt) => return Delivered::Durable(receipt),
                        Resolved::Halt(fault) => return Delivered::Halt(fault),
                        Resolved::NotLoaded => {}
                    }
                    (fault, &mut passing)
                }
            };
            self.wait.note(&fault);
            self.context.observer.resting(&load.label);
            match backoff.wait_unless(&mut self.stop).await {
                Waited::Elapsed => {}
                Waited::Stopped => return Delivered::Released,
            }
        }
    }

    /// Asks for the label's state until that says what became of the load.
    async fn resolve(&mut self, load: &Load, doubt: &Fault) -> Resolved {
        let mut polling = Backoff::new(self.context.paces.polling);
        let began = Instant::now();
        let destination = &load.destination;
        let (database, table) = (&destination.cluster.database, &destination.table);
        let mut cancelled = false;
        loop {
            match self.client.label_state(database, &load.label).await {
                Ok(state @ (LabelState::Visible | LabelState::Committed)) if load.body_sent => {
                    let visible = state == LabelState::Visible;
                    return Resolved::Durable(Receipt { txn: None, loaded_rows: None, visible });
                }
                Ok(LabelState::Visible | LabelState::Committed) => {
                    return Resolved::Halt(foreign_label(&load.label));
                }
                Ok(LabelState::Aborted) => return Resolved::NotLoaded,
                Ok(LabelState::Unknown) if planted(Bug::UnknownIsLoaded) => {
                    return Resolved::Durable(Receipt::default());
                }
                Ok(LabelState::Unknown) => {
                    if let Some(resolved) = self.never_began_or_forgotten(load).await {
                        return resolved;
                    }
                }
                Ok(LabelState::Prepare | LabelState::Prepared) => {
                    self.wait.note(doubt);
                    // Without a body there is nothing to wait for: the answer to a begin was lost.
                    let give_up = !load.body_sent
                        || *self.stop.borrow()
                        || began.elapsed() >= destination.cluster.load_timeout;
                    if give_up && !cancelled {
                        tracing::warn!(label = %load.label, "cancelling a load that is open without an end in sight");
                        match self.client.cancel(database, table, &load.label).await {
                            Ok(()) => cancelled = true,
                            Err(fault) => self.wait.note(&fault),
                        }
                    }
                }
                Err(fault) => match fault.kind {
                    FaultKind::Halt | FaultKind::Reject => return Resolved::Halt(fault),
                    FaultKind::Retry => self.wait.note(&fault),
                },
            }
            polling.wait().await;
        }
    }

    /// The witness rule (delivery.md §1 rule 2). None if the witness could not be asked.
    async fn never_began_or_forgotten(&mut self, load: &Load) -> Option<Resolved> {
        if !load.body_sent {
            return Some(Resolved::NotLoaded);
        }
        if let Some(witness) = &self.witness {
            match self.client.label_state(&load.destination.cluster.database, witness).await {
                Ok(LabelState::Unknown) => {}
                Ok(_known) => return Some(Resolved::NotLoaded),
                Err(fault) => match fault.kind {
                    FaultKind::Halt | FaultKind::Reject => return Some(Resolved::Halt(fault)),
                    FaultKind::Retry => {
                        self.wait.note(&fault);
                        return None;
                    }
                },
            }
        }
        tracing::warn!(
            label = %load.label,
            rows = load.rows,
            "StarRocks does not know this load, and nothing shows that it never began: sending it again may double its rows"
        );
        self.context.observer.possible_duplicate(&load.label);
        Some(Resolved::NotLoaded)
    }
}

/// A wait as others see it: logged when it begins, every half minute, and when it ends.
struct Wait<'a> {
    observer: &'a dyn Observer,
    label: String,
    began: Option<Instant>,
    logged: Option<Instant>,
}

impl Wait<'_> {
    fn note(&mut self, why: &Fault) {
        let now = Instant::now();
        let since = *self.began.get_or_insert(now);
        self.observer.waiting(&self.label, since, why);
        if self.logged.is_none_or(|logged| now.duration_since(logged) >= LOG_WAIT_EVERY) {
            self.logged = Some(now);
            let waited_s = now.duration_since(since).as_secs();
            tracing::warn!(label = %self.label, waited_s, why = %why.story(), "waiting for StarRocks");
        }
    }

    fn end(&mut self) {
        if let Some(began) = self.began.take() {
            let waited = began.elapsed();
            self.observer.resumed(&self.label, waited);
            tracing::info!(label = %self.label, waited_s = waited.as_secs(), "no longer waiting for StarRocks");
        }
    }
}

#[cfg(test)]
#[path = "deliver_tests.rs"]
mod tests;
