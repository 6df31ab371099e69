//! I3 with at least once: which records may be there twice, and how often. Not so many, but these: what was on its way when
//! a process was killed, or frozen, or put out by its group. A copy of any other record has no excuse.

use super::records::Place;
use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

/// By partition, the next offset.
pub type Offsets = BTreeMap<i32, i64>;

/// How long a record may be in the topic, and read, before the broker's word about it is in the book.
const IN_THE_BOOK_WITHIN: Duration = Duration::from_secs(1);

/// How far the records of one pipeline were released and acknowledged, looked at again and again.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    released: Vec<(SystemTime, Offsets)>,
    ends: Vec<(SystemTime, Offsets)>,
}

impl Timeline {
    /// Takes down what the group had committed, by an answer that was there at `at`.
    pub fn released(&mut self, at: SystemTime, offsets: Offsets) {
        self.released.push((at, offsets));
    }

    /// Takes down where the topic ended at `at`, as far as the producer had heard.
    pub fn acknowledged(&mut self, at: SystemTime, ends: Offsets) {
        self.ends.push((at, ends));
    }
}

/// Something after which records that were on their way are loaded again.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Disturbance {
    /// No later than it began.
    pub from: SystemTime,
    /// No earlier than it ended: nothing that is read later is concerned.
    pub to: SystemTime,
    /// Of this pipeline only; none = of all.
    pub pipeline: Option<String>,
}

/// Of each disturbance the records that it may have doubled: released by nobody before it, and in the topic by its end.
#[derive(Clone, Debug, Default)]
pub struct Windows(Vec<Window>);

#[derive(Clone, Debug)]
struct Window {
    from: Offsets,
    /// None = nobody has looked since.
    upto: Option<Offsets>,
}

impl Windows {
    /// Those of a pipeline.
    #[must_use]
    pub fn of(pipeline: &str, timeline: &Timeline, disturbances: &[Disturbance]) -> Self {
        let concerns = |one: &&Disturbance| one.pipeline.as_deref().is_none_or(|name| name == pipeline);
        let window = |one: &Disturbance| {
            let before = timeline.released.iter().rev().find(|(at, _)| *at <= one.from);
            let after = timeline.ends.iter().find(|(at, _)| *at >= one.to + IN_THE_BOOK_WITHIN);
            Window {
                from: before.map(|(_, offsets)| offsets.clone()).unwrap_or_default(),
                upto: after.map(|(_, ends)| ends.clone()),
            }
        };
        Self(disturbances.iter().filter(concerns).map(window).collect())
    }

    /// How often this record may be there beyond the once: each disturbance makes one copy.
    #[must_use]
    pub fn over(&self, (partition, offset): Place) -> u64 {
        let holds = |window: &&Window| {
            let begin = window.from.get(&partition).copied().unwrap_or(0);
            let end = match &window.upto {
                Some(ends) => ends.get(&partition).copied().unwrap_or(0),
                None => i64::MAX,
            };
            (begin..end).contains(&offset)
        };
        self.0.iter().filter(holds).count() as u64
    }
}

/// Lines of a log behind which records that were on their way come again, and what stands in them.
const LINES: [(&str, &str); 5] = [
    ("giving partitions up", "lost=true"),
    ("partitions given up while batches of them were on their way", ": their rows may come twice"),
    ("the last commit of revoked partitions failed", ""),
    ("cannot commit the last offsets", ""),
    ("nothing shows that it never began: sending it again may double its rows", ""),
];

/// A process hears of it so much later that its group has put it out: what its successor has released since was on its way
/// here, too.
const HEARD_WITHIN: Duration = Duration::from_secs(4);

/// What a process's log tells of records that come twice.
#[must_use]
pub fn told(log: &str) -> Vec<Disturbance> {
    let tells = |line: &&str| LINES.iter().any(|(text, also)| line.contains(text) && line.contains(also));
    let disturbance = |line: &str| {
        let at = moment(line.split_whitespace().next()?)?;
        let pipeline = line.split_once("pipeline=").and_then(|(_, rest)| rest.split_whitespace().next());
        let pipeline = pipeline.map(|name| name.trim_matches('"').to_owned());
        Some(Disturbance { from: at - HEARD_WITHIN, to: at, pipeline })
    };
    log.lines().filter(tells).filter_map(disturbance).collect()
}

/// Texts that are looked for in logs: they must stand in the host's source.
#[must_use]
pub fn texts() -> Vec<&'static str> {
    LINES.iter().map(|(text, _)| *text).collect()
}

/// A time as the log has it: `2026-11-21T08:00:00.123456Z`.
fn moment(text: &str) -> Option<SystemTime> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let number = |text: Option<&str>| text?.parse::<u64>().ok();
    let mut parts = date.split('-');
    let (year, month, day) = (number(parts.next())?, number(parts.next())?, number(parts.next())?);
    let mut parts = time.split(':');
    let (hour, minute) = (number(parts.next())?, number(parts.next())?);
    let second: f64 = parts.next()?.parse().ok()?;
    // Days since 1970 of the proleptic Gregorian calendar; years begin in March, so that leap days come last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day;
    let seconds = days.checked_sub(719_469)? * 86_400 + hour * 3_600 + minute * 60;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + Duration::try_from_secs_f64(second).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// Ten records a second, released two seconds later, looked at each second.
    fn timeline() -> Timeline {
        let mut timeline = Timeline::default();
        for second in 0..100_u64 {
            let end = i64::try_from(second * 10).expect("small");
            timeline.released(at(second), Offsets::from([(0, (end - 20).max(0))]));
            timeline.acknowledged(at(second), Offsets::from([(0, end)]));
        }
        timeline
    }

    fn disturbed(from: u64, to: u64) -> Disturbance {
        Disturbance { from: at(from), to: at(to), pipeline: None }
    }

    #[test]
    fn what_was_on_its_way_may_come_twice_and_nothing_else() {
        let windows = Windows::of("a", &timeline(), &[disturbed(50, 50)]);
        let check = |offset, expected| assert_eq!(windows.over((0, offset)), expected, "{offset}");
        check(479, 0);
        check(480, 1);
        check(509, 1);
        check(510, 0);
        assert_eq!(windows.over((1, 0)), 0, "nothing ended in that partition");
    }

    #[test]
    fn each_disturbance_makes_one_copy() {
        let windows = Windows::of("a", &timeline(), &[disturbed(50, 50), disturbed(49, 51)]);
        assert_eq!((windows.over((0, 475)), windows.over((0, 485)), windows.over((0, 515))), (1, 2, 1));
        let other = Disturbance { pipeline: Some("b".to_owned()), ..disturbed(50, 50) };
        assert_eq!(Windows::of("a", &timeline(), &[other]).over((0, 485)), 0);
        assert_eq!(Windows::default().over((0, 485)), 0);
    }

    #[test]
    fn where_nobody_looked_more_is_allowed_and_not_less() {
        let windows = Windows::of("a", &Timeline::default(), &[disturbed(50, 50)]);
        assert_eq!((windows.over((0, 0)), windows.over((3, 1 << 40))), (1, 1));
    }

    #[test]
    fn logs_tell_when_records_come_twice() {
        let log = "2026-11-21T10:59:22.500000Z  INFO giving partitions up pipeline=a partitions=2 lost=false\n\
                   2026-11-21T10:59:23.500000Z  INFO giving partitions up pipeline=a partitions=2 lost=true\n\
                   2026-11-21T10:59:24.000000Z ERROR halted: cannot commit the last offsets; start it pipeline=\"b\"\n\
                   2026-11-21T10:59:25.000000Z  INFO assigned pipeline=a\n";
        let told = told(log);
        let (first, second) = (at(1_795_258_763) + Duration::from_millis(500), at(1_795_258_764));
        let expected =
            |at, name: &str| Disturbance { from: at - HEARD_WITHIN, to: at, pipeline: Some(name.to_owned()) };
        assert_eq!(told, [expected(first, "a"), expected(second, "b")]);
    }

    #[test]
    fn moments_are_read_as_the_log_writes_them() {
        assert_eq!(moment("1970-01-01T00:00:00Z"), Some(at(0)));
        assert_eq!(moment("2000-02-29T12:00:01.000000Z"), Some(at(951_825_601)));
        assert_eq!(moment("thread"), None);
    }
}
