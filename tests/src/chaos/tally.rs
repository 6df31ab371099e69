//! What fired, what was recovered from, and what is wrong: counted while a run goes on.

use crate::{
    judge::{
        Violation,
        liveness::Usage,
        records::Counted,
        repeats::{self, Disturbance},
    },
    machine,
    metrics::Metrics,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    time::SystemTime,
};

/// What is shown of the log of a process that ended as it should not.
const LOG_LINES_SHOWN: usize = 25;

/// A way back from a fault that leaves a line in the log.
struct Trail {
    name: &'static str,
    /// Stands in the line, and in the host's source.
    text: &'static str,
    /// Stands in the line, too: what tells it from others with the same text.
    also: Also,
}

/// What tells a line from others with the same text.
enum Also {
    Nothing,
    /// A level, or a field.
    Beside(&'static str),
    /// A line before it, of the same process.
    Behind(&'static str),
}

const fn trail(name: &'static str, text: &'static str, also: Also) -> Trail {
    Trail { name, text, also }
}

/// What is looked for in the logs.
const TRAILS: [Trail; 13] = [
    trail("assignments", "assigned", Also::Beside(" assigned pipeline=")),
    trail("partitions given up", "giving partitions up", Also::Nothing),
    trail("partitions lost", "giving partitions up", Also::Beside("lost=true")),
    trail("decided loads committed by a successor", "finishing what was decided before", Also::Nothing),
    trail("decisions of unknown outcome", "the answer to a decision did not come", Also::Nothing),
    trail("decisions found unwritten", "was not written: its loads, if any, are rolled back", Also::Nothing),
    trail("waits for StarRocks", "waiting for StarRocks", Also::Beside(" WARN waiting for StarRocks")),
    trail("waits for Kafka", "kafka answers again", Also::Nothing),
    trail(
        "drains whose last offsets were not heard",
        "cannot commit the last offsets",
        Also::Beside("halted: "),
    ),
    trail("starts that StarRocks did not answer", "no FE can be used", Also::Beside("halted: ")),
    trail("waits for Postgres", "; connecting again", Also::Nothing),
    trail("loads of the process before cancelled", "a load of the process before is open", Also::Nothing),
    trail("take-overs by a standby", "following the slot", Also::Behind("standing by")),
];

impl Trail {
    /// How often it is in a log.
    fn count(&self, log: &str) -> u64 {
        let has = |line: &&str| line.contains(self.text);
        let count = match self.also {
            Also::Nothing => log.lines().filter(has).count(),
            Also::Beside(also) => log.lines().filter(has).filter(|line| line.contains(also)).count(),
            // The first one behind each: what comes then is no way back from that.
            Also::Behind(before) => {
                let mut is_behind = false;
                let mut found = 0;
                for line in log.lines() {
                    if line.contains(before) {
                        is_behind = true;
                    } else if is_behind && line.contains(self.text) {
                        (is_behind, found) = (false, found + 1);
                    }
                }
                found
            }
        };
        count as u64
    }
}

/// Counters of the processes that tell of a way back, and their names in the table.
const COUNTERS: [(&str, &str); 7] = [
    ("tidemill_epochs_rolled_back_total", "epochs rolled back"),
    ("tidemill_epochs_decided_total", "epochs decided"),
    ("tidemill_load_retries_total", "loads tried again"),
    ("tidemill_fence_refusals_total", "loads refused by their fence"),
    ("tidemill_labels_cancelled_total", "loads of a predecessor cancelled"),
    ("tidemill_possible_duplicate_batches_total", "labels forgotten"),
    ("tidemill_records_given_up_total", "records given up unsent"),
];

/// Everything that is counted of one profile.
#[derive(Debug, Default)]
pub struct Tally {
    /// Faults that fired, by kind.
    pub faults: BTreeMap<String, u64>,
    /// Failpoints that fired, by name.
    pub points: BTreeMap<String, u64>,
    /// Ways back that ran.
    pub recoveries: BTreeMap<&'static str, u64>,
    /// The newest value of each counter, by process: what a killed one had counted since is not known.
    counters: BTreeMap<(u32, &'static str), u64>,
    /// Kinds of steps that were taken: each must have fired.
    pub taken: BTreeSet<&'static str>,
    /// Steps taken.
    pub steps: usize,
    /// Processes started.
    pub lives: u64,
    /// The most that one process has used.
    pub most: Usage,
    /// After what records that were on their way are loaded again.
    pub disturbances: Vec<Disturbance>,
    /// Records that processes have told to have read, by pipeline.
    pub read: BTreeMap<String, u64>,
    /// Jumps of the clock that no process has noticed yet, in seconds from the true time.
    jumps: BTreeSet<i64>,
    /// What became of the records, by table.
    pub records: BTreeMap<String, Counted>,
    /// What is wrong.
    pub violations: Vec<Violation>,
}

impl Tally {
    /// A fault of this kind fired.
    pub fn fired(&mut self, kind: &str) {
        self.fired_times(kind, 1);
    }

    /// A step of this kind is taken.
    pub fn takes(&mut self, kind: &'static str) {
        self.taken.insert(kind);
        self.steps += 1;
    }

    /// A fault of this kind fired so often.
    pub fn fired_times(&mut self, kind: &str, times: u64) {
        if times > 0 {
            *self.faults.entry(kind.to_owned()).or_default() += times;
        }
    }

    /// Something is done, or was, after which what was on its way at that time is loaded again.
    pub fn disturbs(&mut self, from: SystemTime, to: SystemTime) {
        self.disturbances.push(Disturbance { from, to, pipeline: None });
    }

    /// The clock is made to jump: it has, once a process has seen that.
    pub fn jumps(&mut self, jump_s: i64) {
        self.jumps.insert(jump_s);
    }

    /// How often faults of these kinds fired.
    #[must_use]
    pub fn count(&self, kinds: impl Fn(&str) -> bool) -> u64 {
        self.faults.iter().filter(|(kind, _)| kinds(kind)).map(|(_, times)| times).sum()
    }

    /// Processes that were killed.
    #[must_use]
    pub fn kills(&self) -> u64 {
        self.count(|kind| kind.starts_with("kill"))
    }

    /// Answers that did not come whole.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.count(|kind| kind.starts_with("answer ") || kind.contains("lost") || kind.contains("not told"))
    }

    /// Assignments by the group that processes have heard of.
    #[must_use]
    pub fn rebalances(&self) -> u64 {
        self.recovered("assignments")
    }

    /// How often a way back ran.
    #[must_use]
    pub fn recovered(&self, name: &str) -> u64 {
        let counted =
            self.counters.iter().filter(|((_, counter), _)| *counter == name).map(|(_, count)| count);
        self.recoveries.get(name).copied().unwrap_or(0) + counted.sum::<u64>()
    }

    /// A line of the trace: what a failpoint did.
    pub(super) fn point(&mut self, what: &str) {
        let (name, action) = what.split_once(' ').unwrap_or((what, ""));
        match (name, action.split(' ').next().unwrap_or_default()) {
            // Each process tells of each jump: the first one counts.
            ("clock", jump_s) if jump_s.parse().is_ok_and(|jump_s: i64| self.jumps.remove(&jump_s)) => {
                self.fired("clock jump");
            }
            (_, "freeze") => self.fired("freeze at a failpoint"),
            ("letters.before_fsync", "wait") => self.fired("slow disk"),
            _ => {}
        }
        if name != "clock" {
            *self.points.entry(name.to_owned()).or_default() += 1;
        }
    }

    /// Takes up what a log tells of ways back.
    pub(super) fn read_log(&mut self, log: &str) {
        self.disturbances.extend(repeats::told(log));
        for trail in &TRAILS {
            let found = trail.count(log);
            if found > 0 {
                *self.recoveries.entry(trail.name).or_default() += found;
            }
        }
    }

    pub(super) fn read_metrics(&mut self, pid: u32, metrics: &Metrics) {
        for (metric, name) in COUNTERS {
            self.counters.insert((pid, name), metrics.count(metric, &[]));
        }
    }

    /// Keeps the log of a process that the last violation is about, and shows its end.
    pub(super) fn keep(&self, pid: u32, log: &str) {
        let lines: Vec<&str> = log.lines().collect();
        let shown = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
        let folder = machine::target().join("chaos");
        let file = folder.join(format!("process-{pid}.log"));
        let kept = fs::create_dir_all(&folder).and_then(|()| fs::write(&file, log));
        let kept = kept.map_or_else(|error| error.to_string(), |()| file.display().to_string());
        if let Some(violation) = self.violations.last() {
            println!("{violation}; its log ({kept}) ends with\n    {}", shown.join("\n    "));
        }
    }

    /// Names of `expected` that never fired or ran.
    #[must_use]
    pub fn unreached<'a>(&self, faults: &[&'a str], recoveries: &[&'a str]) -> Vec<&'a str> {
        let faults = faults.iter().filter(|kind| self.count(|fired| fired == **kind) == 0);
        faults.chain(recoveries.iter().filter(|name| self.recovered(name) == 0)).copied().collect()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line =
            |out: &mut fmt::Formatter<'_>, name: &str, count: u64| writeln!(out, "  {name:<44} {count:>9}");
        writeln!(out, "faults fired")?;
        self.faults.iter().try_for_each(|(kind, count)| line(out, kind, *count))?;
        line(out, "(different failpoints that fired)", self.points.len() as u64)?;
        writeln!(out, "recoveries")?;
        let names = TRAILS.iter().map(|trail| trail.name).chain(COUNTERS.iter().map(|(_, name)| *name));
        for name in names.filter(|name| self.recovered(name) > 0) {
            line(out, name, self.recovered(name))?;
        }
        writeln!(out, "processes\n  {:<44} {:>9}", "lives", self.lives)?;
        line(out, "memory at most, MiB", self.most.resident_bytes >> 20)?;
        for (table, counted) in &self.records {
            writeln!(out, "records of {table}")?;
            line(out, "in", counted.acknowledged)?;
            line(out, "loaded", counted.loaded)?;
            line(out, "dead-lettered", counted.dead_lettered)?;
            line(out, "missing", counted.missing)?;
            line(out, "duplicated", counted.repeated)?;
            line(out, "dead letters too many", counted.letters_repeated)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::log;
    use std::path::Path;

    #[test]
    fn what_did_not_fire_and_what_did_not_run_is_named() {
        let mut tally = Tally::default();
        tally.fired("kill");
        tally.fired_times("answer cut", 0);
        tally.read_log("12:00 INFO giving partitions up pipeline=a partitions=2 lost=false\n");
        tally.read_metrics(1, &Metrics::parse("tidemill_epochs_rolled_back_total 0\n"));
        let unreached = tally.unreached(
            &["kill", "answer cut"],
            &["partitions given up", "partitions lost", "epochs rolled back"],
        );
        assert_eq!(unreached, ["answer cut", "partitions lost", "epochs rolled back"]);
        tally.read_metrics(1, &Metrics::parse("tidemill_epochs_rolled_back_total 2\n"));
        tally.read_metrics(2, &Metrics::parse("tidemill_epochs_rolled_back_total 3\n"));
        assert_eq!(tally.recovered("epochs rolled back"), 5);
        assert_eq!((tally.kills(), tally.lost()), (1, 0));
    }

    #[test]
    fn failpoints_that_fired_are_counted_by_what_they_did() {
        let mut tally = Tally::default();
        tally.jumps(-60);
        tally.jumps(90);
        for line in [
            "epoch.decided kill",
            "epoch.decided freeze",
            "letters.before_fsync wait 300",
            "clock -60",
            // Another process, the same jump; and the true time again.
            "clock -60",
            "clock 0",
        ] {
            tally.point(line);
        }
        let faults: Vec<(&str, u64)> =
            tally.faults.iter().map(|(kind, count)| (kind.as_str(), *count)).collect();
        assert_eq!(faults, [("clock jump", 1), ("freeze at a failpoint", 1), ("slow disk", 1)]);
        assert_eq!(tally.points.len(), 2);
    }

    #[test]
    fn each_way_back_is_told_from_others() {
        let count = |name: &str, log: &str| {
            let trail = TRAILS.iter().find(|trail| trail.name == name).expect("it is looked for");
            trail.count(log)
        };
        let waits = "1 WARN waiting for StarRocks label=a\n2 INFO no longer waiting for StarRocks label=a\n\
                     3 WARN postgres: no answer; waiting and trying again\n";
        assert_eq!(count("waits for StarRocks", waits), 1);
        assert_eq!(count("waits for Postgres", "1 INFO postgres: CREATE PUBLICATION p\n"), 0);
        assert_eq!(count("waits for Postgres", "1 WARN the stream broke; connecting again pipeline=a\n"), 1);
        assert_eq!(count("assignments", "1 INFO assigned pipeline=a\n2 INFO nothing assigned\n"), 1);
        let leads = "1 INFO following the slot slot=a\n2 INFO following the slot slot=a\n";
        assert_eq!(count("take-overs by a standby", leads), 0);
        let takes_over = format!("1 WARN another process reads slot a: standing by; waiting\n{leads}");
        assert_eq!(count("take-overs by a standby", &takes_over), 1);
    }

    /// A text that is nowhere matches nothing, or something else.
    #[test]
    fn what_is_looked_for_in_logs_stands_in_the_source() {
        fn sources(folder: &Path, into: &mut String) {
            for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path())
            {
                if entry.is_dir() {
                    sources(&entry, into);
                } else if entry.extension().is_some_and(|kind| kind == "rs") {
                    into.push_str(&fs::read_to_string(&entry).expect("a source"));
                }
            }
        }
        let mut host = String::new();
        sources(&machine::root().join("host/src"), &mut host);
        let behind = TRAILS.iter().filter_map(|trail| match trail.also {
            Also::Behind(text) => Some(text),
            Also::Nothing | Also::Beside(_) => None,
        });
        let logged = TRAILS.iter().map(|trail| trail.text).chain(behind).chain(repeats::texts());
        for text in logged.chain(log::BEGUN).chain([log::NOT_HEARD]) {
            assert!(host.contains(text), "{text:?} stands nowhere in host/src");
        }
        for (metric, name) in COUNTERS {
            let bare = metric.trim_start_matches("tidemill_").trim_end_matches("_total");
            assert!(host.contains(&format!("\"{bare}\"")), "nothing counts {name}: {metric}");
        }
    }
}
