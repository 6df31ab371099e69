//! The processes of a run: started, killed, frozen, drained, and read when they have ended.

use super::tally::Tally;
use crate::{
    judge::{
        Invariant, Violation,
        liveness::{self, Balance, Usage},
        log::{Cause, ends_as_it_should, keeps_the_secret, tells_what_to_do},
    },
    metrics::Metrics,
    process::Tidemill,
};
use std::{
    collections::VecDeque,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// How long a process may take to drain while faults go on.
const DRAINED_WITHIN: Duration = Duration::from_secs(90);
/// Longer than any run.
const NEVER: Duration = Duration::from_secs(24 * 3600);
/// How long a process is left alone that is to fail at a failpoint.
const ARMED_FOR: Duration = Duration::from_secs(10);
/// Between two looks at the metrics of a process.
const SCRAPE_EVERY: Duration = Duration::from_secs(2);
/// Scrapes of one look: they may come between two additions.
const SCRAPES_MAX: u32 = 25;
/// What each process may use: a tenth of the default budget for rows, and what the runtime, librdkafka and TLS take.
const USAGE_MAX: Usage = Usage { resident_bytes: 400 << 20, files: 400, threads: 80 };

/// What all processes of a run have in common.
#[derive(Clone, Debug, Default)]
pub struct Common {
    /// Pipeline files.
    pub files: Vec<PathBuf>,
    /// Names of their pipelines.
    pub pipelines: Vec<String>,
    /// Where failpoints leave a line when they fire.
    pub trace: PathBuf,
    /// Where processes look for a shift of their wall clock.
    pub clock: PathBuf,
    /// The password that must not be written anywhere.
    pub canary: String,
}

/// What a process is to do to itself.
#[derive(Clone, Debug, Default)]
pub struct Arms {
    /// `FAILPOINTS`.
    pub failpoints: String,
    /// How long it stays frozen if it freezes itself.
    pub freeze: Duration,
}

/// A place for a process: one after the other lives there.
#[derive(Debug, Default)]
struct Slot {
    process: Option<Tidemill>,
    /// `FAILPOINTS` of the process, or of the next one.
    armed: String,
    /// Those of the ones after it, each for one that is killed.
    later: VecDeque<String>,
    frozen_until: Option<Instant>,
    /// How long it stays frozen if it freezes itself.
    freeze: Duration,
    asked_at: Option<Instant>,
    back_at: Option<Instant>,
    begun_at: Option<Instant>,
    scraped_at: Option<Instant>,
}

/// The processes.
#[derive(Debug, Default)]
pub struct Members {
    common: Common,
    slots: Vec<Slot>,
    trace_read: usize,
    trace_lines: Vec<(u32, String)>,
}

impl Members {
    /// Starts `count` processes.
    #[must_use]
    pub fn start(common: Common, count: usize) -> Self {
        let slots = (0..count).map(|_| Slot { back_at: Some(Instant::now()), ..Slot::default() });
        Self { common, slots: slots.collect(), trace_read: 0, trace_lines: Vec::new() }
    }

    /// Before the first tick: the first processes of each place begin with these failpoints, one after the other.
    pub fn arm(&mut self, lives: &[String]) {
        for slot in &mut self.slots {
            slot.later = lives.iter().cloned().collect();
            slot.armed = slot.later.pop_front().unwrap_or_default();
        }
    }

    /// As [`running_from`](Self::running_from), of processes that listen for signals by now.
    #[must_use]
    pub fn listening_from(&self, slot: usize) -> Option<usize> {
        let mut places = (0..self.slots.len()).map(|step| (slot + step) % self.slots.len());
        places.find(|place| {
            let listens = |process: &Tidemill| process.get("/health").is_some();
            self.may_be_touched(*place) && self.slots[*place].process.as_ref().is_some_and(listens)
        })
    }

    /// The place itself if a process runs there that something may be done to, else the next one. One that has a
    /// failpoint before it is left alone for a while.
    #[must_use]
    pub fn running_from(&self, slot: usize) -> Option<usize> {
        let mut places = (0..self.slots.len()).map(|step| (slot + step) % self.slots.len());
        places.find(|place| self.may_be_touched(*place))
    }

    fn may_be_touched(&self, place: usize) -> bool {
        let slot = &self.slots[place];
        let waits_for_it = !slot.armed.is_empty() && slot.begun_at.is_none_or(|at| at.elapsed() < ARMED_FOR);
        let runs = slot.process.is_some() && slot.asked_at.is_none() && slot.frozen_until.is_none();
        runs && !waits_for_it
    }

    /// Kills the process at a place; its successor begins at once, with these failpoints.
    pub fn kill(&mut self, slot: usize, armed: String, tally: &mut Tally) {
        if let Some(mut process) = self.slots[slot].process.take() {
            process.kill();
            tally.fired("kill");
            self.bury(&process, Cause::Killed, None, tally);
        }
        self.slots[slot] = Slot { armed, back_at: Some(Instant::now()), ..Slot::default() };
    }

    /// Stops the process at a place in its tracks.
    pub fn freeze(&mut self, slot: usize, how_long: Duration, tally: &mut Tally) {
        let slot = &mut self.slots[slot];
        if let Some(process) = &slot.process {
            process.freeze();
            slot.frozen_until = Some(Instant::now() + how_long);
            tally.fired("freeze");
        }
    }

    /// Asks the process at a place to drain; its successor begins `away` later, with these failpoints.
    pub fn drain(&mut self, slot: usize, away: Duration, arms: Arms) {
        let slot = &mut self.slots[slot];
        if let Some(process) = &slot.process {
            process.terminate();
            let now = Instant::now();
            (slot.asked_at, slot.back_at) = (Some(now), Some(now + away));
            (slot.armed, slot.freeze) = (arms.failpoints, arms.freeze);
        }
    }

    /// Takes all failpoints and freezes back, and starts what is not running.
    pub fn calm(&mut self, tally: &mut Tally) {
        for place in 0..self.slots.len() {
            let slot = &mut self.slots[place];
            if slot.frozen_until.take().is_some()
                && let Some(process) = &slot.process
            {
                process.thaw();
            }
            slot.later.clear();
            let armed = !std::mem::take(&mut slot.armed).is_empty();
            if armed && slot.process.is_some() && slot.asked_at.is_none() {
                // What it was armed with may not have fired: only another process is free of it.
                self.kill(place, String::new(), tally);
            }
        }
        self.tick(tally);
    }

    /// Whether all run and say that they are ready; of readers of a slot one is, and the others say that they stand by.
    #[must_use]
    pub fn are_ready(&self) -> bool {
        let said =
            self.slots.iter().map(|slot| slot.process.as_ref().and_then(|process| process.get("/ready")));
        let mut some_reads = false;
        for answer in said {
            let Some((200, text)) = answer else { return false };
            some_reads |= !text.contains("standing by");
        }
        some_reads
    }

    /// Drains all of them; true when none runs any more.
    pub fn end(&mut self, tally: &mut Tally) -> bool {
        for place in 0..self.slots.len() {
            if self.slots[place].asked_at.is_none() && self.slots[place].process.is_some() {
                self.drain(place, NEVER, Arms::default());
            }
        }
        self.tick(tally);
        self.slots.iter().all(|slot| slot.process.is_none())
    }

    /// Does what is due: wakes, buries, starts, looks.
    pub fn tick(&mut self, tally: &mut Tally) {
        self.read_trace(tally);
        let now = Instant::now();
        for place in 0..self.slots.len() {
            self.look_for_freeze(place);
            let slot = &mut self.slots[place];
            if slot.frozen_until.is_some_and(|until| now >= until) {
                slot.frozen_until = None;
                if let Some(process) = &slot.process {
                    process.thaw();
                }
            }
            self.look_for_end(place, now, tally);
            let slot = &mut self.slots[place];
            if slot.process.is_none() && slot.back_at.is_some_and(|at| now >= at) {
                slot.back_at = None;
                slot.asked_at = None;
                slot.begun_at = Some(now);
                slot.process = Some(begin(&self.common, &slot.armed));
                tally.lives += 1;
            }
            self.scrape(place, now, tally);
        }
    }

    fn look_for_freeze(&mut self, place: usize) {
        let slot = &mut self.slots[place];
        let Some(process) = slot.process.as_ref().filter(|_| slot.frozen_until.is_none()) else { return };
        let own = |(pid, what): &(u32, String)| *pid == process.pid() && what.ends_with(" freeze");
        if let Some(found) = self.trace_lines.iter().position(own) {
            self.trace_lines.remove(found);
            slot.frozen_until = Some(Instant::now() + slot.freeze);
            slot.armed.clear();
        }
    }

    fn look_for_end(&mut self, place: usize, now: Instant, tally: &mut Tally) {
        let slot = &mut self.slots[place];
        let Some(process) = &mut slot.process else { return };
        if process.is_running() {
            let late = slot.asked_at.is_some_and(|at| now.duration_since(at) > DRAINED_WITHIN);
            if late && slot.frozen_until.is_none() {
                let what = format!("a process did not drain within {} s", DRAINED_WITHIN.as_secs());
                tally.violations.push(Violation::new(Invariant::Liveness, what));
                tally.keep(process.pid(), &process.log());
                self.kill(place, String::new(), tally);
            }
            return;
        }
        let Some(mut process) = slot.process.take() else { return };
        let pid = process.pid();
        let killed = self.trace_lines.iter().position(|(id, what)| *id == pid && what.ends_with(" kill"));
        let asked = slot.asked_at.take().is_some();
        let code = process.until_ended(1).code;
        let cause = match killed {
            Some(found) => {
                self.trace_lines.remove(found);
                tally.fired("kill at a failpoint");
                Cause::Killed
            }
            None if asked => Cause::Asked,
            None => Cause::Nobody,
        };
        let slot = &mut self.slots[place];
        if cause != Cause::Asked {
            // What killed this one does not kill the next.
            let mut later = std::mem::take(&mut slot.later);
            let armed = later.pop_front().unwrap_or_default();
            *slot = Slot { armed, later, back_at: Some(now), ..Slot::default() };
        } else {
            tally.fired("leave and join");
        }
        self.bury(&process, cause, code, tally);
    }

    fn bury(&self, process: &Tidemill, cause: Cause, code: Option<i32>, tally: &mut Tally) {
        let log = process.log();
        let found = ends_as_it_should(cause, code, &log).into_iter();
        let found = found.chain(tells_what_to_do(&log));
        let found = found.chain(keeps_the_secret("a log", &log, &self.common.canary));
        let before = tally.violations.len();
        tally.violations.extend(found);
        if tally.violations.len() > before {
            tally.keep(process.pid(), &log);
        }
        tally.read_log(&log);
    }

    /// Looks at a process's metrics and at what it uses.
    fn scrape(&mut self, place: usize, now: Instant, tally: &mut Tally) {
        let slot = &mut self.slots[place];
        let due = slot.scraped_at.is_none_or(|at| now.duration_since(at) >= SCRAPE_EVERY);
        let Some(process) = slot.process.as_ref().filter(|_| due && slot.frozen_until.is_none()) else {
            return;
        };
        slot.scraped_at = Some(now);
        let Some((200, text)) = process.get("/metrics") else { return };
        tally.violations.extend(keeps_the_secret("the metrics", &text, &self.common.canary));
        tally.read_metrics(process.pid(), &Metrics::parse(&text));
        if let Some(usage) = usage(process.pid()) {
            tally.most = tally.most.max(usage);
            tally.violations.extend(liveness::stays_small(&usage, &USAGE_MAX));
        }
        for pipeline in &self.common.pipelines {
            let mut balance = Balance::default();
            for _ in 0..SCRAPES_MAX {
                let Some(metrics) = process.metrics() else { return };
                balance = Balance::of(&metrics, pipeline);
                if balance.is_even() {
                    break;
                }
            }
            tally.violations.extend(liveness::adds_up(pipeline, &balance));
        }
    }

    /// Takes up what failpoints have written since the last look.
    fn read_trace(&mut self, tally: &mut Tally) {
        let text = fs::read_to_string(&self.common.trace).unwrap_or_default();
        let new = text.get(self.trace_read..).unwrap_or_default();
        // The last line may be half there.
        let Some(end) = new.rfind('\n') else { return };
        self.trace_read += end + 1;
        for line in new[..end].lines() {
            let Some((pid, what)) = line.split_once(' ') else { continue };
            let Ok(pid) = pid.parse() else { continue };
            tally.point(what);
            self.trace_lines.push((pid, what.to_owned()));
        }
    }
}

fn begin(common: &Common, armed: &str) -> Tidemill {
    let files: Vec<&Path> = common.files.iter().map(PathBuf::as_path).collect();
    Tidemill::run_in(
        &files,
        &[
            ("FAILPOINTS", armed.as_ref()),
            ("TIDEMILL_FAULT_TRACE", common.trace.as_os_str()),
            ("TIDEMILL_CLOCK", common.clock.as_os_str()),
        ],
    )
}

/// What a process uses, as Linux tells; none when it has just ended.
fn usage(pid: u32) -> Option<Usage> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let number = |name: &str| -> Option<u64> {
        status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
    };
    let files = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
    Some(Usage {
        resident_bytes: number("VmRSS:")? * 1024,
        files: u64::try_from(files).ok()?,
        threads: number("Threads:")?,
    })
}
