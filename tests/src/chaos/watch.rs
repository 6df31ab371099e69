//! Judges while a run goes on: nothing is released before it is durable (I5), and no key goes back behind that (I4).

use super::flow::{Flow, Standing, Standings};
use crate::{
    judge::{
        Invariant, Violation,
        records::{gone_back, released_too_early},
        repeats::{Offsets, Timeline},
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
    time::{Duration, SystemTime},
};
use tidemill_sandbox::TransactionState;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(400);
/// Looks at rows that are committed and not visible yet.
const LOOKS_MAX: u32 = 50;
/// Records and loads that are printed of a violation.
const TOLD_MAX: usize = 20;

/// A thread that watches; it ends when it is stopped or dropped.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    released: Arc<AtomicU64>,
    thread: Option<JoinHandle<Seen>>,
}

/// What a watch has seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// What is wrong.
    pub violations: Vec<Violation>,
    /// How far each pipeline was released and acknowledged, in their order.
    pub timelines: Vec<Timeline>,
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
            released: BTreeMap::new(),
            timeline: Timeline::default(),
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
            Seen { violations, timelines: watched.into_iter().map(|one| one.timeline).collect() }
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
    pub fn stop(mut self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            None => Seen::default(),
            Some(Ok(seen)) => seen,
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
    /// The last version of each key that was released.
    released: BTreeMap<u64, u64>,
    timeline: Timeline,
}

impl Watched {
    /// One look; returns the sum of the committed offsets, none if the broker does not say.
    fn look(&mut self, violations: &mut Vec<Violation>) -> Option<u64> {
        self.timeline.acknowledged(SystemTime::now(), self.flow.book.ends());
        // The offsets first: what they release must be there then, whatever comes after.
        let standings = self.standings.look()?;
        let committed: Offsets =
            standings.iter().map(|(partition, standing)| (*partition, standing.offset)).collect();
        self.timeline.released(SystemTime::now(), committed);
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
        if !early.is_empty() {
            self.tell(&early, &safe);
        }
        let what = format!("records of {} were released and are not durable", self.flow.table);
        violations.extend(Violation::of_ids(Invariant::Release, &what, &early));
        self.note_released(&safe);
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

    /// Prints what can be seen at the moment of a violation: afterwards the table says nothing of it any more.
    fn tell(&self, early: &[u64], safe: &BTreeMap<i32, i64>) {
        let payload = &self.flow.book.payload;
        let versions =
            if payload.keys.is_some() { self.warehouse.amounts(&self.flow.table) } else { BTreeMap::new() };
        let places = self.flow.book.between(&self.verified, safe);
        for (place, id) in places.iter().filter(|(_, id)| early.contains(id)).take(TOLD_MAX) {
            let key = payload.key(*id);
            let version = versions.get(&key);
            println!(
                "        not durable: {id} at {place:?}, key {key}, which is at {version:?}; released: {safe:?}"
            );
        }
        let loads = self.warehouse.loads();
        let own: Vec<_> = loads.iter().filter(|load| load.table == self.flow.table).collect();
        let now = SystemTime::now();
        for load in &own[own.len().saturating_sub(TOLD_MAX)..] {
            let ago = now.duration_since(load.at).unwrap_or_default();
            println!("        {ago:>12.3?} ago {:?} {} rows, {}", load.state, load.rows, load.label);
        }
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

    /// No key is behind what was released of it. Behind an earlier look it may be: after a kill what was loaded and not
    /// released is loaded again in order, and passes through older versions on its way. That is told.
    fn look_at_keys(&mut self, violations: &mut Vec<Violation>) {
        if self.flow.book.payload.keys.is_none() {
            return;
        }
        let now = self.warehouse.amounts(&self.flow.table);
        let replayed = gone_back(&self.versions, &now);
        if !replayed.is_empty() {
            println!("        {} keys of {} are behind an earlier look", replayed.len(), self.flow.table);
        }
        let back = gone_back(&self.released, &now);
        violations.extend(Violation::of_ids(
            Invariant::FinalState,
            "keys went back behind what was released of them",
            &back,
        ));
        // Those that went back are told once.
        self.released.retain(|key, _| !back.contains(key));
        self.versions = now;
    }

    /// Takes note of what was released of each key.
    fn note_released(&mut self, safe: &BTreeMap<i32, i64>) {
        let payload = &self.flow.book.payload;
        if payload.keys.is_none() {
            return;
        }
        let released = self.flow.book.between(&self.verified, safe);
        for id in released.into_values().filter(|id| !payload.is_bad(*id)) {
            let version = self.released.entry(payload.key(id)).or_insert(id);
            *version = (*version).max(id);
        }
    }
}
