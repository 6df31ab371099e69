//! What all profiles stand on: processes, the sandbox in the place of StarRocks, and the steps that concern both.

use super::{
    members::{Arms, Common, Members},
    schedule::{Action, Step},
    tally::Tally,
};
use crate::{
    judge::{Invariant, Violation, log::keeps_the_secret},
    pipeline::Pipeline,
    wait_until,
    warehouse::Warehouse,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tidemill_sandbox::{FaultKind, Options};

/// How long processes may take to be ready when the faults have stopped.
const READY_WITHIN: Duration = Duration::from_secs(180);
/// How long a step waits for a process that nothing is done to yet.
const FREE_WITHIN: Duration = Duration::from_secs(15);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Longer than the latest load: a drain that is not done in time ends with 1, as it should.
const DRAIN_TIMEOUT: &str = "75s";
/// How long the last faults of StarRocks may take to fire.
const FIRED_WITHIN: Duration = Duration::from_secs(20);
/// How long they may take to drain then.
const ENDED_WITHIN: Duration = Duration::from_secs(80);

/// Processes, and what they load into.
pub(super) struct Stage {
    /// Where the tables are.
    pub(super) warehouse: Arc<Warehouse>,
    /// The processes; none before [`Stage::begin`].
    pub(super) members: Members,
    /// Where dead letters are kept.
    pub(super) letters: PathBuf,
    /// For pipeline files and logs.
    pub(super) folder: TempDir,
    /// StarRocks' password.
    pub(super) canary: String,
    /// What is counted.
    pub(super) tally: Tally,
    /// Names of StarRocks' faults, by their numbers there.
    names: BTreeMap<u64, &'static str>,
    backends_back_at: Option<(Instant, u64)>,
}

impl Stage {
    /// An empty one, with the sandbox's password.
    ///
    /// # Panics
    /// When the sandbox cannot be started.
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder for the run");
        let canary = format!("canary-{:016x}", rand::random::<u64>());
        let options = Options {
            // Many small loads need a compaction that keeps up.
            compaction: Some(Duration::from_secs(1)),
            password: Some(canary.clone()),
            ..Options::default()
        };
        let letters = folder.path().join("letters");
        fs::create_dir(&letters).expect("a folder for dead letters");
        Self {
            warehouse: Arc::new(Warehouse::with(options)),
            members: Members::default(),
            letters,
            folder,
            canary,
            tally: Tally::default(),
            names: BTreeMap::new(),
            backends_back_at: None,
        }
    }

    /// Starts the processes, each with all of these pipelines.
    pub(super) fn begin(&mut self, pipelines: &[Pipeline], processes: usize) {
        let write = |(number, pipeline): (usize, &Pipeline)| {
            // Of the process, so one file says it.
            let process =
                if number == 0 { format!("shutdown_timeout = {DRAIN_TIMEOUT:?}") } else { String::new() };
            Pipeline { process, ..pipeline.clone() }.write(&self.folder)
        };
        let common = Common {
            files: pipelines.iter().enumerate().map(write).collect(),
            pipelines: pipelines.iter().map(|pipeline| pipeline.name.clone()).collect(),
            trace: self.folder.path().join("trace"),
            clock: self.clock(),
            canary: self.canary.clone(),
        };
        self.members = Members::start(common, processes);
    }

    fn clock(&self) -> PathBuf {
        self.folder.path().join("clock")
    }

    fn tick(&mut self) {
        self.members.tick(&mut self.tally);
        if let Some((at, fault)) = self.backends_back_at
            && Instant::now() >= at
        {
            self.backends_back_at = None;
            self.warehouse.clear_fault(fault);
        }
    }

    /// Does nothing but what is due.
    pub(super) fn rest(&mut self, how_long: Duration) {
        self.until(how_long, || false);
    }

    /// Waits until `holds`, as long as `limit`, and does what is due meanwhile.
    pub(super) fn until(&mut self, limit: Duration, holds: impl Fn() -> bool) -> bool {
        wait_until(limit, || {
            self.tick();
            holds().then_some(())
        })
        .is_ok()
    }

    /// Takes a step that concerns processes or StarRocks; false if it is somebody else's.
    pub(super) fn take(&mut self, step: &Step) -> bool {
        self.tally.takes(step.action.name());
        match &step.action {
            Action::Kill { slot } => self.kill(*slot, String::new()),
            Action::KillAt { slot, point, passes } => {
                self.kill(*slot, armed(point, *passes, "kill"));
            }
            Action::Freeze { slot, ms } => {
                if let Some(place) = self.running_from(*slot) {
                    self.members.freeze(place, Duration::from_millis(*ms), &mut self.tally);
                }
            }
            Action::FreezeAt { slot, point, passes, ms } => {
                let freeze = Duration::from_millis(*ms);
                let arms = Arms { failpoints: armed(point, *passes, "freeze"), freeze };
                self.drain(*slot, Duration::ZERO, arms);
            }
            Action::Leave { slot, away_ms } => {
                self.drain(*slot, Duration::from_millis(*away_ms), Arms::default());
            }
            Action::SlowDisk { slot, ms } => {
                let failpoints = format!("letters.before_fsync=3*return(wait {ms})");
                self.drain(*slot, Duration::ZERO, Arms { failpoints, freeze: Duration::ZERO });
            }
            Action::StarRocks { name, fault, times } => {
                let number = self.warehouse.fault_times(fault.clone(), *times);
                self.names.insert(number, name);
            }
            Action::BackendsAway { ms } => {
                if self.backends_back_at.is_none() {
                    let number = self.warehouse.fault(FaultKind::BackendRefuses);
                    let back = Instant::now() + Duration::from_millis(*ms);
                    self.backends_back_at = Some((back, number));
                    self.tally.fired("backends away");
                }
            }
            Action::Clock { jump_s } => {
                fs::write(self.clock(), jump_s.to_string()).expect("the file can be written");
            }
            Action::Broker | Action::Postgres { .. } => return false,
        }
        true
    }

    /// A place with a process that something may be done to, waited for.
    fn running_from(&mut self, slot: usize) -> Option<usize> {
        let begun = Instant::now();
        let mut found = self.members.running_from(slot);
        while found.is_none() && begun.elapsed() < FREE_WITHIN {
            self.rest(LOOK_AGAIN);
            found = self.members.running_from(slot);
        }
        found
    }

    fn kill(&mut self, slot: usize, armed: String) {
        if let Some(place) = self.running_from(slot) {
            self.members.kill(place, armed, &mut self.tally);
        }
    }

    fn drain(&mut self, slot: usize, away: Duration, arms: Arms) {
        if let Some(place) = self.running_from(slot) {
            self.members.drain(place, away, arms);
        }
    }

    /// Counts the faults of StarRocks that have fired since the last time, and forgets those that are spent.
    pub(super) fn count_fired(&mut self) {
        for report in self.warehouse.faults() {
            if report.fault.times == Some(0)
                && let Some(name) = self.names.remove(&report.id)
            {
                self.tally.fired_times(name, report.fired);
                self.warehouse.clear_fault(report.id);
            }
        }
    }

    /// Waits until what was set and armed has fired, each kind at least once: taken back before, it would show nothing.
    pub(super) fn await_faults(&mut self) {
        let begun = Instant::now();
        let waits = |stage: &Self| {
            let starrocks = stage.warehouse.faults().iter().any(|report| report.fired == 0);
            let counted_at_rest: BTreeSet<&str> = stage.names.values().copied().collect();
            let mut taken = stage.tally.taken.iter().filter(|kind| !counted_at_rest.contains(*kind));
            starrocks || taken.any(|kind| stage.tally.count(|fired| fired == *kind) == 0)
        };
        while waits(self) && begun.elapsed() < FIRED_WITHIN {
            self.rest(LOOK_AGAIN);
        }
    }

    /// Takes all faults back and waits until all processes are well.
    pub(super) fn calm(&mut self) {
        for report in self.warehouse.faults() {
            if let Some(name) = self.names.remove(&report.id) {
                self.tally.fired_times(name, report.fired);
            }
        }
        self.backends_back_at = None;
        self.warehouse.clear_faults();
        // The true time, from now on. It is not there if no clock has jumped.
        drop(fs::remove_file(self.clock()));
        let begun = Instant::now();
        let ready = wait_until(READY_WITHIN, || {
            self.members.calm(&mut self.tally);
            self.members.are_ready().then_some(())
        });
        match ready {
            Ok(()) => println!("        all processes are ready after {} s", begun.elapsed().as_secs()),
            Err(late) => self.wrong(Invariant::Liveness, format!("processes are not ready: {late}")),
        }
    }

    /// Drains all processes, and looks for the password in what they have kept.
    pub(super) fn end(&mut self) {
        let ended = wait_until(ENDED_WITHIN, || self.members.end(&mut self.tally).then_some(()));
        if let Err(late) = ended {
            self.wrong(Invariant::Liveness, format!("processes do not drain: {late}"));
        }
        let files = fs::read_dir(&self.letters).into_iter().flatten().flatten();
        for text in files.filter_map(|file| fs::read_to_string(file.path()).ok()) {
            self.tally.violations.extend(keeps_the_secret("a dead letter", &text, &self.canary));
        }
    }

    /// Something is not as it must be.
    pub(super) fn wrong(&mut self, invariant: Invariant, what: String) {
        self.tally.violations.push(Violation::new(invariant, what));
    }
}

/// `FAILPOINTS` with one point that does something once, after it was passed so often.
pub(super) fn armed(point: &str, passes: u32, action: &str) -> String {
    format!("{point}={passes}*off->1*return({action})")
}
