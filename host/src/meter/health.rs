//! What `/ready` says of a pipeline: running, standing by, halted, or waiting for something outside.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::PipelineMeter;

/// What `/ready` says of one pipeline.
#[derive(Debug, Default)]
pub struct Health {
    state: Mutex<HealthState>,
}

#[derive(Debug, Default)]
struct HealthState {
    phase: Phase,
    halted: Option<String>,
    /// What is being waited for, and since when: the oldest one is told.
    waiting: Vec<(u64, String, Instant)>,
    next_wait: u64,
    progress_at: Option<Instant>,
}

#[derive(Debug, Default)]
enum Phase {
    #[default]
    Starting,
    /// Another process does the work, and this one takes over when that one ends; says which work.
    StandingBy(String),
    Running,
}

/// A step that waits for something outside; over when dropped.
#[derive(Debug)]
pub struct Waiting {
    meter: Arc<PipelineMeter>,
    id: u64,
}

impl Health {
    fn with<T>(&self, act: impl FnOnce(&mut HealthState) -> T) -> T {
        // Plain data: a panic in between leaves it usable.
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The pipeline reads.
    pub fn started(&self) {
        self.with(|state| {
            state.phase = Phase::Running;
            state.progress_at = Some(Instant::now());
        });
    }

    /// The pipeline does not read yet, nor can it take over at once.
    pub fn starting(&self) {
        self.with(|state| state.phase = Phase::Starting);
    }

    /// The pipeline is fit to read, and another process does; `why` names it.
    pub fn stands_by(&self, why: String) {
        self.with(|state| state.phase = Phase::StandingBy(why));
    }

    /// Why another process does the work of this one, if that is so.
    pub fn standing_by(&self) -> Option<String> {
        self.with(|state| match &state.phase {
            Phase::StandingBy(why) => Some(why.clone()),
            Phase::Starting | Phase::Running => None,
        })
    }

    /// The pipeline has ended; `halted` says why if it was not asked to.
    pub fn ended(&self, halted: Option<String>) {
        self.with(|state| {
            state.phase = Phase::Starting;
            state.halted = halted;
        });
    }

    /// A watermark moved, or there is nothing to do.
    pub fn progress(&self) {
        self.with(|state| state.progress_at = Some(Instant::now()));
    }

    /// Time since the last progress.
    pub fn since_progress(&self) -> Duration {
        self.with(|state| state.progress_at.map_or(Duration::ZERO, |at| at.elapsed()))
    }

    /// What is being waited for, longest first.
    pub fn waiting_for(&self) -> Option<(String, Duration)> {
        self.with(|state| {
            let oldest = state.waiting.iter().min_by_key(|(_, _, since)| *since)?;
            Some((oldest.1.clone(), oldest.2.elapsed()))
        })
    }

    /// Why the pipeline is not ready; none if it is, which one is that stands by. Waiting counts after `patience`.
    pub fn unready(&self, stalled: bool, patience: Duration) -> Option<String> {
        if let Some(why) = self.with(|state| state.halted.clone()) {
            return Some(format!("halted: {why}"));
        }
        let waiting = self.waiting_for().filter(|(_, since)| *since >= patience);
        let waiting = waiting.map(|(what, since)| format!("waiting for {} s: {what}", since.as_secs()));
        if self.with(|state| matches!(state.phase, Phase::Starting)) {
            return Some(waiting.map_or_else(|| "starting".to_owned(), |what| format!("starting, {what}")));
        }
        if waiting.is_some() {
            return waiting;
        }
        stalled.then(|| format!("stalled: nothing released for {} s", self.since_progress().as_secs()))
    }
}

impl Waiting {
    /// Begins to wait for `what`.
    pub fn begin(meter: &Arc<PipelineMeter>, what: impl Into<String>) -> Waiting {
        let id = meter.health.with(|state| {
            state.next_wait += 1;
            state.waiting.push((state.next_wait, what.into(), Instant::now()));
            state.next_wait
        });
        Waiting { meter: Arc::clone(meter), id }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.meter.health.with(|state| state.waiting.retain(|(id, _, _)| *id != self.id));
    }
}
