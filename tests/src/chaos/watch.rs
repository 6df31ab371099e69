//! Judges while a run goes on: nothing is released before it is durable (I5), no key goes back (I4).

use super::flow::{Flow, Standing, Standings};
use crate::{
    judge::{
        Invariant, Violation,
        records::{gone_back, released_too_early},
    },
    kafka::Kafka,
    warehouse::Warehouse,
};
use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};
use tidemill_sandbox::TransactionState;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(400);
/// Looks at rows that are committed and not visible yet.
const LOOKS_MAX: u32 = 50;

/// A thread that watches; it ends when it is stopped or dropped.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    released: Arc<AtomicU64>,
    thread: Option<JoinHandle<Vec<Violation>>>,
}

impl Watch {
    /// Watches these pipelines.
    ///
    /// # Panics
    /// When the system has no threads left.
    #[must_use]
    pub fn start(kafka: &Kafka, warehouse: &Arc<Warehouse>, flows: &[Arc<Flow>], letters: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let released = Arc::new(AtomicU64::new(0));
        let watched = flows.iter().map(|flow| Watched {
            flow: Arc::clone(flow),
            standings: Standings::of(kafka, flow),
            warehouse: Arc::clone(warehouse),
            letters: letters.to_owned(),
            verified: BTreeMap::new(),
            versions: BTreeMap::new(),
        });
        let mut watched: Vec<Watched> = watched.collect();
        let (told, sum) = (Arc::clone(&stop), Arc::clone(&released));
        let thread = thread::Builder::new().name("watch".to_owned()).spawn(move || {
            let mut violations = Vec::new();
            while !told.load(Ordering::Relaxed) {
                let mut offsets = Some(0);
                for one in &mut watched {
                    let look = one.look(&mut violations);
                    offsets = offsets.zip(look).map(|(sum, offsets)| sum + offsets);
                }
                if let Some(offsets) = offsets {
                    sum.store(offsets, Ordering::Relaxed);
                }
                thread::park_timeout(LOOK_EVERY);
            }
            violations
        });
        Self { stop, released, thread: Some(thread.expect("the system has threads left")) }
    }

    /// Records released so far, of all pipelines.
    #[must_use]
    pub fn released(&self) -> u64 {
        self.released.load(Ordering::Relaxed)
    }

    /// Ends it and returns what it has found.
    ///
    /// # Panics
    /// With the panic of its thread.
    pub fn stop(mut self) -> Vec<Violation> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            None => Vec::new(),
            Some(Ok(violations)) => violations,
            Some(Err(cause)) => std::panic::resume_unwind(cause),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// One pipeline, and how far it was looked at.
struct Watched {
    flow: Arc<Flow>,
    standings: Standings,
    warehouse: Arc<Warehouse>,
    letters: PathBuf,
    /// The offset up to which all that was released was found.
    verified: BTreeMap<i32, i64>,
    /// The version of each key at the last look.
    versions: BTreeMap<u64, u64>,
}

impl Watched {
    /// One look; returns the sum of the committed offsets, none if the broker does not say.
    fn look(&mut self, violations: &mut Vec<Violation>) -> Option<u64> {
        // The offsets first: what they release must be there then, whatever comes after.
        let standings = self.standings.look()?;
        self.look_at_keys(violations);
        let safe: BTreeMap<i32, i64> =
            standings.iter().map(|(partition, standing)| (*partition, standing.durable)).collect();
        let back = standings.iter().filter(|(partition, Standing { durable, .. })| {
            self.verified.get(partition).is_some_and(|verified| durable < verified)
        });
        for (partition, standing) in back {
            let verified = self.verified[partition];
            // An epoch that is decided begins where the last one ended, and never before it.
            let what = format!("{}[{partition}]: {standing:?} is behind {verified}", self.flow.book.topic);
            violations.push(Violation::new(Invariant::Release, what));
        }
        let early = self.early(&safe);
        let what = format!("records of {} were released and are not durable", self.flow.table);
        violations.extend(Violation::of_ids(Invariant::Release, &what, &early));
        for (partition, upto) in safe {
            let verified = self.verified.entry(partition).or_insert(0);
            *verified = (*verified).max(upto);
        }
        let offsets = standings.values().map(|standing| u64::try_from(standing.offset).unwrap_or(0));
        Some(offsets.sum())
    }

    /// Records that are released and not there. What is committed may take a while to be visible.
    fn early(&self, safe: &BTreeMap<i32, i64>) -> Vec<u64> {
        let mut early = self.absent(safe);
        for _ in 0..LOOKS_MAX {
            if early.is_empty() || !self.has_invisible() {
                break;
            }
            thread::park_timeout(LOOK_EVERY);
            early = self.absent(safe);
        }
        // What became visible between the two questions is there now.
        if early.is_empty() { early } else { self.absent(safe) }
    }

    fn has_invisible(&self) -> bool {
        let own = |load: &tidemill_sandbox::LoadRecord| load.table == self.flow.table;
        self.warehouse.loads().iter().any(|load| own(load) && load.state == TransactionState::Committed)
    }

    fn absent(&self, safe: &BTreeMap<i32, i64>) -> Vec<u64> {
        let payload = &self.flow.book.payload;
        let owed = self.flow.book.between(&self.verified, safe);
        let bad = owed.values().any(|id| payload.is_bad(*id));
        let kept: HashSet<_> =
            if bad { self.flow.letters(&self.letters).into_iter().collect() } else { HashSet::new() };
        let kept: HashSet<u64> =
            owed.iter().filter(|(place, _)| kept.contains(*place)).map(|(_, id)| *id).collect();
        if payload.keys.is_some() {
            let versions = self.warehouse.amounts(&self.flow.table);
            let there = |id: u64| {
                let version = versions.get(&payload.key(id));
                kept.contains(&id) || version.is_some_and(|version| *version >= id)
            };
            return released_too_early(&owed, &self.verified, safe, there);
        }
        let ids = owed.values().copied();
        let Some((first, last)) = ids.clone().min().zip(ids.max()) else { return Vec::new() };
        let present: HashSet<u64> = self.flow.present(&self.warehouse, first, last).into_iter().collect();
        released_too_early(&owed, &self.verified, safe, |id| present.contains(&id) || kept.contains(&id))
    }

    fn look_at_keys(&mut self, violations: &mut Vec<Violation>) {
        if self.flow.book.payload.keys.is_none() {
            return;
        }
        let now = self.warehouse.amounts(&self.flow.table);
        let back = gone_back(&self.versions, &now);
        violations.extend(Violation::of_ids(
            Invariant::FinalState,
            "keys went back to an older record",
            &back,
        ));
        // Those that went back are told once.
        self.versions = now;
    }
}
