//! What fired, what was recovered from, and what is wrong: counted while a run goes on.

use crate::{judge::Violation, judge::liveness::Usage, judge::records::Counted, metrics::Metrics};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// What is shown of the log of a process that ended as it should not.
const LOG_LINES_SHOWN: usize = 25;

/// A way back from a fault that leaves a line in the log.
struct Trail {
    name: &'static str,
    /// Any of these is in its line.
    texts: &'static [&'static str],
}

/// What is looked for in the logs.
const TRAILS: [Trail; 8] = [
    Trail { name: "assignments", texts: &["assigned pipeline="] },
    Trail { name: "partitions given up", texts: &["giving partitions up"] },
    Trail { name: "partitions lost", texts: &["lost=true"] },
    Trail { name: "decided loads committed by a successor", texts: &["finishing what was decided before"] },
    Trail {
        name: "decisions of unknown outcome",
        texts: &["was not decided: its loads are rolled back", "the answer to a decision did not come"],
    },
    Trail {
        name: "waits for StarRocks",
        texts: &[
            "waiting for StarRocks",
            "StarRocks; waiting and trying again",
            "; waiting and trying again",
        ],
    },
    Trail { name: "waits for Kafka", texts: &["kafka: ", "kafka answers again"] },
    Trail { name: "waits for Postgres", texts: &["replication", "postgres"] },
];

/// Counters of the processes that tell of a way back, and their names in the table.
const COUNTERS: [(&str, &str); 5] = [
    ("tidemill_epochs_rolled_back_total", "epochs rolled back"),
    ("tidemill_epochs_decided_total", "epochs decided"),
    ("tidemill_load_retries_total", "loads tried again"),
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
            ("clock", _) => self.fired("clock jump"),
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
        for Trail { name, texts } in &TRAILS {
            let lines = log.lines().filter(|line| texts.iter().any(|text| line.contains(text)));
            let found = lines.count() as u64;
            if found > 0 {
                *self.recoveries.entry(name).or_default() += found;
            }
        }
    }

    pub(super) fn read_metrics(&mut self, pid: u32, metrics: &Metrics) {
        for (metric, name) in COUNTERS {
            self.counters.insert((pid, name), metrics.count(metric, &[]));
        }
    }

    /// Shows how a process came to a bad end.
    pub(super) fn show_end_of(&self, log: &str) {
        let lines: Vec<&str> = log.lines().collect();
        let shown = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
        if let Some(violation) = self.violations.last() {
            println!("{violation}; its log ends with\n    {}", shown.join("\n    "));
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
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        for line in
            ["epoch.decided kill", "epoch.decided freeze", "letters.before_fsync wait 300", "clock -60"]
        {
            tally.point(line);
        }
        let faults: Vec<(&str, u64)> =
            tally.faults.iter().map(|(kind, count)| (kind.as_str(), *count)).collect();
        assert_eq!(faults, [("clock jump", 1), ("freeze at a failpoint", 1), ("slow disk", 1)]);
        assert_eq!(tally.points.len(), 2);
    }
}
