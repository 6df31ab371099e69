//! I6 to I9: what was measured while the run went on and when it had come to rest.

use super::{Invariant, Violation};
use crate::metrics::Metrics;
use std::{collections::BTreeMap, time::Duration};

/// After the faults have stopped.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rest {
    /// Until all that was acknowledged was released; none = it was not.
    pub drained: Option<Duration>,
    /// Until fresh records were in the table; none = they were not.
    pub probe: Option<Duration>,
}

/// How long a run may take to come to rest.
pub const DRAINED_WITHIN: Duration = Duration::from_secs(120);
/// How long fresh records may take then.
pub const PROBE_WITHIN: Duration = Duration::from_secs(30);

/// I6.
#[must_use]
pub fn comes_to_rest(rest: &Rest) -> Vec<Violation> {
    let late = |what: &str, took: Option<Duration>, limit: Duration| {
        let what = match took {
            Some(took) if took <= limit => return None,
            Some(took) => {
                format!("{what} after {:.1} s, {} s are allowed", took.as_secs_f64(), limit.as_secs())
            }
            None => format!("{what} not within {} s", limit.as_secs()),
        };
        Some(Violation::new(Invariant::Liveness, what))
    };
    let found = [
        late("lag was gone", rest.drained, DRAINED_WITHIN),
        late("fresh records were there", rest.probe, PROBE_WITHIN),
    ];
    found.into_iter().flatten().collect()
}

/// What a process uses, or may use.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Usage {
    /// Memory that is resident.
    pub resident_bytes: u64,
    /// Open files.
    pub files: u64,
    /// Threads.
    pub threads: u64,
}

impl Usage {
    /// The larger of each.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            resident_bytes: self.resident_bytes.max(other.resident_bytes),
            files: self.files.max(other.files),
            threads: self.threads.max(other.threads),
        }
    }
}

/// I7.
#[must_use]
pub fn stays_small(most: &Usage, cap: &Usage) -> Vec<Violation> {
    let over = |what: &str, found: u64, cap: u64| {
        (found > cap)
            .then(|| Violation::new(Invariant::Resources, format!("{found} {what}, {cap} are allowed")))
    };
    let found = [
        over("bytes resident", most.resident_bytes, cap.resident_bytes),
        over("open files", most.files, cap.files),
        over("threads", most.threads, cap.threads),
    ];
    found.into_iter().flatten().collect()
}

/// I8: the 99th of a hundred waits of a neighbour under faults is no more than twice that of calm times, or than `floor`,
/// below which nobody would notice. Calm times that are worse than `calm_max` excuse nothing: they count as `calm_max`.
/// Without enough waits nothing is judged, and that is a violation, too.
#[must_use]
pub fn sibling_is_at_ease(
    calm: &[Duration],
    under_faults: &[Duration],
    floor: Duration,
    calm_max: Duration,
) -> Option<Violation> {
    let ninety_ninth = |waits: &[Duration]| {
        let mut sorted = waits.to_vec();
        sorted.sort_unstable();
        sorted.get((sorted.len() * 99).div_ceil(100).saturating_sub(1)).copied()
    };
    let (Some(calm), Some(found)) = (ninety_ninth(calm), ninety_ninth(under_faults)) else {
        return Some(Violation::new(Invariant::Sibling, "nothing of the neighbour was measured"));
    };
    let allowed = (2 * calm.min(calm_max)).max(floor);
    (found > allowed).then(|| {
        Violation::new(
            Invariant::Sibling,
            format!("a neighbour waits {} ms, {} ms are allowed", found.as_millis(), allowed.as_millis()),
        )
    })
}

/// What one pipeline of one process says of its records.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Balance {
    /// Records read.
    pub read: u64,
    /// Records of which it is known what became of them.
    pub left: u64,
    /// Records on their way.
    pub in_flight: u64,
}

impl Balance {
    /// Reads it off the metrics of `pipeline`.
    #[must_use]
    pub fn of(metrics: &Metrics, pipeline: &str) -> Self {
        let count =
            |name: &str| metrics.count(&format!("tidemill_records_{name}"), &[("pipeline", pipeline)]);
        let ways =
            ["loaded_total", "dropped_total", "dead_lettered_total", "refused_total", "given_up_total"];
        Self {
            read: count("read_total"),
            left: ways.iter().map(|way| count(way)).sum(),
            in_flight: count("in_flight"),
        }
    }

    /// I9. A scrape may come between two additions: only one that is repeated shows something.
    #[must_use]
    pub fn is_even(&self) -> bool {
        self.read == self.left + self.in_flight
    }
}

/// I9 at the end: of each pipeline some records were counted, all its processes together. Where names do not match, nothing is
/// even with nothing.
#[must_use]
pub fn something_was_counted(read: &BTreeMap<String, u64>, pipelines: &[String]) -> Vec<Violation> {
    let silent = pipelines.iter().filter(|name| read.get(*name).is_none_or(|read| *read == 0));
    let tell = |name: &String| {
        Violation::new(Invariant::Balance, format!("no process has told of a record that {name} has read"))
    };
    silent.map(tell).collect()
}

/// I9, of scrapes that were repeated until they were even, or often enough.
#[must_use]
pub fn adds_up(pipeline: &str, balance: &Balance) -> Option<Violation> {
    let Balance { read, left, in_flight } = balance;
    (!balance.is_even()).then(|| {
        let what = format!("{pipeline}: {read} records read, {left} accounted for, {in_flight} in flight");
        Violation::new(Invariant::Balance, what)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_does_not_come_to_rest_is_seen() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let check = |drained, probe, expected| {
            assert_eq!(comes_to_rest(&Rest { drained, probe }).len(), expected, "{drained:?} {probe:?}");
        };
        check(seconds(119), seconds(29), 0);
        check(seconds(121), seconds(29), 1);
        check(seconds(3), None, 1);
        check(None, None, 2);
    }

    #[test]
    fn each_cap_is_seen() {
        let cap = Usage { resident_bytes: 100, files: 10, threads: 5 };
        assert_eq!(stays_small(&cap, &cap), []);
        for most in
            [Usage { resident_bytes: 101, ..cap }, Usage { files: 11, ..cap }, Usage { threads: 6, ..cap }]
        {
            assert_eq!(stays_small(&most, &cap).len(), 1, "{most:?}");
        }
        assert_eq!(cap.max(Usage { files: 20, ..Usage::default() }), Usage { files: 20, ..cap });
    }

    #[test]
    fn a_neighbour_that_waits_is_seen() {
        let waits = |ms: u64| vec![Duration::from_millis(ms); 100];
        let (floor, calm_max) = (Duration::from_millis(50), Duration::from_millis(400));
        let check = |found: &[Duration], expected: bool| {
            assert_eq!(sibling_is_at_ease(&waits(100), found, floor, calm_max).is_some(), expected);
        };
        check(&waits(200), false);
        check(&waits(201), true);
        check(&[], true);
        let mut one_late = waits(100);
        one_late.push(Duration::from_secs(9));
        check(&one_late, false);
        assert!(sibling_is_at_ease(&waits(1), &waits(50), floor, calm_max).is_none(), "nobody notices");
        let one_hung = [waits(100), vec![Duration::from_secs(20); 5]].concat();
        assert!(
            sibling_is_at_ease(&one_hung, &waits(801), floor, calm_max).is_some(),
            "a slow calm excuses nothing"
        );
    }

    #[test]
    fn records_that_are_not_accounted_for_are_seen() {
        let metrics = |read: u64| {
            Metrics::parse(&format!(
                "tidemill_records_read_total{{pipeline=\"a\"}} {read}\n\
                 tidemill_records_loaded_total{{pipeline=\"a\"}} 4\n\
                 tidemill_records_dead_lettered_total{{pipeline=\"a\"}} 2\n\
                 tidemill_records_given_up_total{{pipeline=\"a\"}} 1\n\
                 tidemill_records_in_flight{{pipeline=\"a\"}} 3\n\
                 tidemill_records_loaded_total{{pipeline=\"b\"}} 99\n"
            ))
        };
        assert_eq!(adds_up("a", &Balance::of(&metrics(10), "a")), None);
        for read in [9, 11] {
            assert!(adds_up("a", &Balance::of(&metrics(read), "a")).is_some(), "{read}");
        }
        let pipelines = ["a".to_owned(), "b".to_owned()];
        let read = |b: u64| BTreeMap::from([("a".to_owned(), 3), ("b".to_owned(), b)]);
        assert_eq!(something_was_counted(&read(1), &pipelines), []);
        assert_eq!(something_was_counted(&read(0), &pipelines).len(), 1);
        assert_eq!(something_was_counted(&BTreeMap::new(), &pipelines).len(), 2);
    }
}
