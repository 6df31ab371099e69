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
    thread,
    time::{Duration, Instant, SystemTime},
};

/// How long a process may take to drain while faults go on.
const DRAINED_WITHIN: Duration = Duration::from_secs(90);
/// Longer than any run.
const NEVER: Duration = Duration::from_secs(24 * 3600);
/// How long a process is left alone that is to fail at a failpoint.
const ARMED_FOR: Duration = Duration::from_secs(10);
/// A freeze that outlasts the transaction of a decision, which the brokers end after 10 s.
pub const UNDECIDED: Duration = Duration::from_secs(11);
/// What a process that was frozen may still take before it hears that its group has put it out.
const HEARD_WITHIN: Duration = Duration::from_secs(1);
/// Between two scrapes of which the first came between two additions: what is between them may be a process without processor.
const BETWEEN_SCRAPES: Duration = Duration::from_millis(10);
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
    /// No later than it froze.
    frozen_at: Option<SystemTime>,
    frozen_for: Duration,
    /// How long it stays frozen if it freezes itself.
    freeze: Duration,
    asked_at: Option<Instant>,
    /// Why the process is away: its successor joins.
    leaves: bool,
    back_at: Option<Instant>,
    begun_at: Option<Instant>,
    scraped_at: Option<Instant>,
    /// Whether its metrics have answered the last time.
    answers: bool,
    /// When nothing had happened to it yet.
    seen_at: Option<SystemTime>,
}

/// The processes.
#[derive(Debug, Default)]
pub struct Members {
    common: Common,
    slots: Vec<Slot>,
    trace_read: usize,
    trace_lines: Vec<(u32, String)>,
    /// The faults are over: who drains has no excuse.
    at_rest: bool,
    /// When the last look began.
    looked_at: Option<SystemTime>,
}

impl Members {
    /// Starts `count` processes.
    #[must_use]
    pub fn start(common: Common, count: usize) -> Self {
        let slots = (0..count).map(|_| Slot { back_at: Some(Instant::now()), ..Slot::default() });
        Self { common, slots: slots.collect(), ..Self::default() }
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
        // One that has ended by itself since the last look is nobody's victim.
        self.look_for_end(slot, Instant::now(), tally);
        let killed_at = SystemTime::now();
        let frozen_at = self.slots[slot].frozen_at;
        if let Some(mut process) = self.slots[slot].process.take() {
            process.kill();
            let code = process.until_ended(1).code;
            let cause = if code.is_none() { Cause::Killed } else { Cause::Nobody };
            if cause == Cause::Killed {
                tally.fired("kill");
            }
            tally.disturbs(frozen_at.unwrap_or(killed_at), SystemTime::now());
            self.bury(&process, cause, code, tally);
        }
        self.slots[slot] = Slot { armed, back_at: Some(Instant::now()), ..Slot::default() };
    }

    /// Stops the process at a place in its tracks.
    pub fn freeze(&mut self, slot: usize, how_long: Duration, tally: &mut Tally) {
        let slot = &mut self.slots[slot];
        if let Some(process) = &slot.process {
            (slot.frozen_at, slot.frozen_for) = (Some(SystemTime::now()), how_long);
            process.freeze();
            slot.frozen_until = Some(Instant::now() + how_long);
            tally.fired("freeze");
        }
    }

    /// As [`drain`](Self::drain), of a process that leaves its group and whose successor joins it.
    pub fn leave(&mut self, slot: usize, away: Duration) {
        self.drain(slot, away, Arms::default());
        self.slots[slot].leaves = true;
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
            self.thaw(place, tally);
            let slot = &mut self.slots[place];
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

    /// Drains all of them; true when none runs any more. The faults are over: each has to end well.
    pub fn end(&mut self, tally: &mut Tally) -> bool {
        self.at_rest = true;
        for place in 0..self.slots.len() {
            if self.slots[place].asked_at.is_none() && self.slots[place].process.is_some() {
                self.drain(place, NEVER, Arms::default());
            }
        }
        self.tick(tally);
        self.slots.iter().all(|slot| slot.process.is_none())
    }

    /// Looks at the metrics of all processes, which are well: each answers, and its records add up.
    pub fn look_at_all(&mut self, tally: &mut Tally) {
        for place in 0..self.slots.len() {
            (self.slots[place].scraped_at, self.slots[place].answers) = (None, false);
            self.scrape(place, Instant::now(), tally);
            let slot = &self.slots[place];
            if slot.process.is_some() && !slot.answers {
                let what = "a process that is well does not tell its metrics".to_owned();
                tally.violations.push(Violation::new(Invariant::Balance, what));
            }
        }
        tally.violations.extend(liveness::something_was_counted(&tally.read, &self.common.pipelines));
    }

    /// Does what is due: wakes, buries, starts, looks.
    pub fn tick(&mut self, tally: &mut Tally) {
        // Before the trace: of what it does not tell by now nothing had happened at this time.
        self.looked_at = Some(SystemTime::now());
        self.read_trace(tally);
        let now = Instant::now();
        for place in 0..self.slots.len() {
            self.look_for_freeze(place);
            if self.slots[place].frozen_until.is_some_and(|until| now >= until) {
                if self.slots[place].frozen_for >= UNDECIDED {
                    tally.fired("freeze inside a decision");
                }
                self.thaw(place, tally);
            }
            self.look_for_end(place, now, tally);
            let slot = &mut self.slots[place];
            if slot.process.is_none() && slot.back_at.is_some_and(|at| now >= at) {
                slot.back_at = None;
                slot.asked_at = None;
                slot.begun_at = Some(now);
                slot.seen_at = Some(SystemTime::now());
                slot.process = Some(begin(&self.common, &slot.armed));
                tally.lives += 1;
                if std::mem::take(&mut slot.leaves) {
                    tally.fired("leave and join");
                }
            }
            self.scrape(place, now, tally);
        }
    }

    /// Lets a process go on that is frozen.
    fn thaw(&mut self, place: usize, tally: &mut Tally) {
        let slot = &mut self.slots[place];
        if slot.frozen_until.take().is_none() {
            return;
        }
        if let Some(process) = &slot.process {
            process.thaw();
        }
        let now = SystemTime::now();
        tally.disturbs(slot.frozen_at.take().unwrap_or(now), now + HEARD_WITHIN);
    }

    fn look_for_freeze(&mut self, place: usize) {
        let slot = &mut self.slots[place];
        let Some(process) = slot.process.as_ref().filter(|_| slot.frozen_until.is_none()) else { return };
        let own = |(pid, what): &(u32, String)| *pid == process.pid() && what.ends_with(" freeze");
        if let Some(found) = self.trace_lines.iter().position(own) {
            self.trace_lines.remove(found);
            (slot.frozen_at, slot.frozen_for) = (slot.seen_at, slot.freeze);
            slot.frozen_until = Some(Instant::now() + slot.freeze);
            slot.armed.clear();
        }
    }

    fn look_for_end(&mut self, place: usize, now: Instant, tally: &mut Tally) {
        let slot = &mut self.slots[place];
        let Some(process) = &mut slot.process else { return };
        if process.is_running() {
            // While it is frozen it does nothing: what it does at the end was on its way before.
            if slot.frozen_until.is_none() {
                slot.seen_at = self.looked_at.or(slot.seen_at);
            }
            let late = slot.asked_at.is_some_and(|at| now.duration_since(at) > DRAINED_WITHIN);
            if late && slot.frozen_until.is_none() {
                slot.asked_at = None;
                let what = format!("a process did not drain within {} s", DRAINED_WITHIN.as_secs());
                tally.violations.push(Violation::new(Invariant::Liveness, what));
                tally.keep(process.pid(), &process.log());
                self.kill(place, String::new(), tally);
            }
            return;
        }
        // It may have ended since the trace was read, and left its line there before.
        self.read_trace(tally);
        let slot = &mut self.slots[place];
        let Some(mut process) = slot.process.take() else { return };
        let pid = process.pid();
        let killed = self.trace_lines.iter().position(|(id, what)| *id == pid && what.ends_with(" kill"));
        let asked = slot.asked_at.take().is_some();
        let seen_at = slot.frozen_at.take().or(slot.seen_at).unwrap_or_else(SystemTime::now);
        let code = process.until_ended(1).code;
        let cause = match killed {
            Some(found) => {
                self.trace_lines.remove(found);
                tally.fired("kill at a failpoint");
                tally.disturbs(seen_at, SystemTime::now());
                Cause::Killed
            }
            None if asked && self.at_rest => Cause::AskedAtRest,
            None if asked => Cause::Asked,
            None => Cause::Nobody,
        };
        let slot = &mut self.slots[place];
        if !asked || cause == Cause::Killed {
            // What killed this one does not kill the next.
            let mut later = std::mem::take(&mut slot.later);
            let armed = later.pop_front().unwrap_or_default();
            *slot = Slot { armed, later, back_at: Some(now), ..Slot::default() };
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
        // What it uses it uses whether it answers or not.
        if let Some(usage) = usage(process.pid()) {
            tally.most = tally.most.max(usage);
            tally.violations.extend(liveness::stays_small(&usage, &USAGE_MAX));
        }
        let Some((200, text)) = process.get("/metrics") else { return };
        slot.answers = true;
        tally.violations.extend(keeps_the_secret("the metrics", &text, &self.common.canary));
        tally.read_metrics(process.pid(), &Metrics::parse(&text));
        for pipeline in &self.common.pipelines {
            let mut balance = Balance::default();
            for _ in 0..SCRAPES_MAX {
                let Some(metrics) = process.metrics() else { return };
                balance = Balance::of(&metrics, pipeline);
                if balance.is_even() {
                    break;
                }
                thread::park_timeout(BETWEEN_SCRAPES);
            }
            let read = tally.read.entry(pipeline.clone()).or_default();
            *read = (*read).max(balance.read);
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
