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
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tidemill_sandbox::{AnswerFault, FaultKind, Hop, Options};

/// How long processes may take to be ready when the faults have stopped.
const READY_WITHIN: Duration = Duration::from_secs(180);
/// How long a step waits for a process that nothing is done to yet.
const FREE_WITHIN: Duration = Duration::from_secs(15);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Longer than the latest load: a drain that is not done in time ends with 1, as it should.
const DRAIN_TIMEOUT: &str = "75s";
/// How long the last faults of StarRocks may take to fire.
const FIRED_WITHIN: Duration = Duration::from_secs(40);
/// How long backends are away that nobody asks for.
const AWAY_MAX: Duration = Duration::from_secs(10);
/// What a load that commits late may take beyond its delay.
const LANDED_WITHIN: Duration = Duration::from_secs(10);
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
    /// Something is wrong, and the folder is kept.
    is_wrong: bool,
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
            is_wrong: false,
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
        if let Some((at, fault)) = self.backends_back_at {
            let now = Instant::now();
            let fired =
                || self.warehouse.faults().iter().any(|report| report.id == fault && report.fired > 0);
            // Somebody is to meet closed doors.
            if now >= at + AWAY_MAX || (now >= at && fired()) {
                self.open_backends();
            }
        }
    }

    fn open_backends(&mut self) {
        let Some((_, fault)) = self.backends_back_at.take() else { return };
        if self.warehouse.faults().iter().any(|report| report.id == fault && report.fired > 0) {
            self.tally.fired("backends away");
        }
        self.warehouse.clear_fault(fault);
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
                if let Some(place) = self.found(*slot, Members::running_from) {
                    self.members.freeze(place, Duration::from_millis(*ms), &mut self.tally);
                }
            }
            Action::FreezeAt { slot, point, passes, ms }
            | Action::FreezeUndecided { slot, point, passes, ms } => {
                let freeze = Duration::from_millis(*ms);
                self.drain(*slot, Arms { failpoints: armed(point, *passes, "freeze"), freeze });
            }
            Action::Leave { slot, away_ms } => {
                if let Some(place) = self.found(*slot, Members::listening_from) {
                    self.members.leave(place, Duration::from_millis(*away_ms));
                }
            }
            Action::SlowDisk { slot, ms } => {
                let failpoints = format!("letters.before_fsync=3*return(wait {ms})");
                self.drain(*slot, Arms { failpoints, freeze: Duration::ZERO });
            }
            Action::StarRocks { name, fault, times } => self.set(name, fault.clone(), *times),
            Action::BackendsAway { ms } => {
                if self.backends_back_at.is_none() {
                    let number = self.warehouse.fault(FaultKind::BackendRefuses);
                    self.backends_back_at = Some((Instant::now() + Duration::from_millis(*ms), number));
                }
            }
            Action::Clock { jump_s } => {
                self.tally.jumps(*jump_s);
                fs::write(self.clock(), jump_s.to_string()).expect("the file can be written");
            }
            Action::Broker | Action::Postgres { .. } => return false,
        }
        true
    }

    fn set(&mut self, name: &'static str, fault: FaultKind, times: u64) {
        if fault == FaultKind::LabelsForgotten {
            // Labels are asked for only after an answer was lost.
            let lost = FaultKind::AnswerLost { at: Hop::Backend, how: AnswerFault::Dropped, committed: true };
            self.set("answer lost after it was done", lost, 1);
        }
        let number = self.warehouse.fault_times(fault, times);
        self.names.insert(number, name);
    }

    /// A place that `look` finds from `slot` on, waited for.
    fn found(&mut self, slot: usize, look: impl Fn(&Members, usize) -> Option<usize>) -> Option<usize> {
        let begun = Instant::now();
        let mut found = look(&self.members, slot);
        while found.is_none() && begun.elapsed() < FREE_WITHIN {
            self.rest(LOOK_AGAIN);
            found = look(&self.members, slot);
        }
        match found {
            None => println!("        no process is free: nothing is done"),
            Some(place) if place != slot => println!("        process {slot} is not free: process {place}"),
            Some(_) => {}
        }
        found
    }

    fn kill(&mut self, slot: usize, armed: String) {
        if let Some(place) = self.found(slot, Members::running_from) {
            self.members.kill(place, armed, &mut self.tally);
        }
    }

    fn drain(&mut self, slot: usize, arms: Arms) {
        if let Some(place) = self.found(slot, Members::listening_from) {
            self.members.drain(place, Duration::ZERO, arms);
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

    /// Takes all faults back and waits until all processes are well; returns how long that took.
    pub(super) fn calm(&mut self) -> Duration {
        for report in self.warehouse.faults() {
            if let Some(name) = self.names.remove(&report.id) {
                self.tally.fired_times(name, report.fired);
            }
        }
        self.open_backends();
        self.warehouse.clear_faults();
        // The true time, from now on. It is not there if no clock has jumped.
        drop(fs::remove_file(self.clock()));
        let begun = Instant::now();
        let ready = wait_until(READY_WITHIN, || {
            self.members.calm(&mut self.tally);
            self.members.are_ready().then_some(())
        });
        if let Err(late) = ready {
            self.wrong(Invariant::Liveness, format!("processes are not ready: {late}"));
        }
        begun.elapsed()
    }

    /// Waits until all processes are ready; false if they are not in time.
    pub(super) fn are_ready(&mut self, limit: Duration) -> bool {
        let ready = wait_until(limit, || {
            self.tick();
            self.members.are_ready().then_some(())
        });
        ready.is_ok()
    }

    /// Waits until no load is on its way any more, also none of a process that is dead: what lands later would not be judged.
    /// With `left_open`, what was prepared and never decided may stay: it lands only if somebody commits it.
    pub(super) fn land(&mut self, late_ms_max: u64, left_open: bool) {
        let warehouse = Arc::clone(&self.warehouse);
        let limit = Duration::from_millis(late_ms_max) + LANDED_WITHIN;
        if self.until(limit, || warehouse.open_transactions() == 0) {
            return;
        }
        let open = warehouse.open_transactions();
        if left_open {
            println!("        {open} transactions are left open, {} s after the last fault", limit.as_secs());
        } else {
            let what = format!("{open} loads are open {} s after all was released", limit.as_secs());
            self.wrong(Invariant::Liveness, what);
        }
    }

    /// Looks at all processes, drains them, and looks for the password in what they have kept.
    pub(super) fn end(&mut self) {
        self.members.look_at_all(&mut self.tally);
        let ended = wait_until(ENDED_WITHIN, || self.members.end(&mut self.tally).then_some(()));
        if let Err(late) = ended {
            self.wrong(Invariant::Liveness, format!("processes do not drain: {late}"));
        }
        let files = fs::read_dir(&self.letters).into_iter().flatten().flatten();
        for text in files.filter_map(|file| fs::read_to_string(file.path()).ok()) {
            self.tally.violations.extend(keeps_the_secret("a dead letter", &text, &self.canary));
        }
    }

    /// What was counted. If anything is wrong, the folder with logs and trace is kept.
    pub(super) fn finish(mut self) -> Tally {
        self.is_wrong = !self.tally.violations.is_empty();
        std::mem::take(&mut self.tally)
    }

    /// Something is not as it must be.
    pub(super) fn wrong(&mut self, invariant: Invariant, what: String) {
        self.tally.violations.push(Violation::new(invariant, what));
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if self.is_wrong || thread::panicking() {
            self.folder.disable_cleanup(true);
            println!("        logs, trace and letters are kept in {}", self.folder.path().display());
        }
    }
}

/// `FAILPOINTS` with one point that does something once, after it was passed so often.
pub(super) fn armed(point: &str, passes: u32, action: &str) -> String {
    format!("{point}={passes}*off->1*return({action})")
}
