//! How many rejects are an accident, and how many a broken schema: past the limit the pipeline halts, so
//! that a topic is not emptied into the dead letters.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::DeadLetter;
use crate::config::model::MaxRejects;
use crate::fault::Fault;

/// Rejects of so many records are remembered, and of a whole window if that is larger: far more than there are between one
/// that is late and the others of its window.
const REMEMBERED: usize = 100_000;

/// Counts rejects among records that were read in a row. What counts is when a record was read: the rejects of a whole batch
/// come at once, when reading has gone on.
#[derive(Debug)]
pub struct Tolerance {
    max: MaxRejects,
    /// How many records were rejected of those before which so many were read.
    recent: Mutex<BTreeMap<u64, u64>>,
}

impl Tolerance {
    /// Tolerates `max.limit` rejects among any `max.window` records read in a row.
    pub fn new(max: MaxRejects) -> Tolerance {
        Tolerance { max, recent: Mutex::default() }
    }

    /// Counts rejects of records of which is told how many were read before each; `last` is told in the fault.
    ///
    /// # Errors
    /// Halt, if they are more than is tolerated.
    pub fn refuse(&self, read_before: impl Iterator<Item = u64>, last: &DeadLetter) -> Result<(), Fault> {
        // Plain counters: a panic elsewhere leaves them usable.
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut first, mut behind) = (u64::MAX, 0);
        for place in read_before {
            *recent.entry(place).or_default() += 1;
            (first, behind) = (first.min(place), behind.max(place.saturating_add(1)));
        }
        let MaxRejects { window, limit } = self.max;
        // Only windows with one of the new ones can have become too full.
        let range = first.saturating_sub(window)..behind.saturating_add(window);
        let rejected = if first < behind { fullest(&recent, range, window) } else { 0 };
        let remembered = usize::try_from(window).unwrap_or(usize::MAX).max(REMEMBERED);
        while recent.len() > remembered {
            recent.pop_first();
        }
        if rejected <= limit {
            return Ok(());
        }
        Err(Fault::halt(
            format!(
                "{rejected} of {window} records in a row were rejected, {limit} are tolerated; the last one: {}",
                last.story()
            ),
            "mend the source, the plugin or the table: what was not kept as a dead letter yet is read again at the next \
             start; [dead_letters] max_rejects sets how many are tolerated",
        ))
    }
}

/// The most rejects in any window of the range.
fn fullest(recent: &BTreeMap<u64, u64>, range: std::ops::Range<u64>, window: u64) -> u64 {
    let mut begin = recent.range(range.clone()).peekable();
    let (mut sum, mut most) = (0, 0);
    for (place, records) in recent.range(range) {
        sum += records;
        while let Some((_, gone)) = begin.next_if(|(first, _)| **first + window <= *place) {
            sum -= gone;
        }
        most = most.max(sum);
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letter::Stage;
    use crate::position::Partition;

    fn letter() -> DeadLetter {
        DeadLetter {
            stage: Stage::Load,
            plugin: None,
            code: "syntax".into(),
            message: "not JSON".into(),
            partition: Partition { source: "t".into(), number: 0 },
            offset: 7,
            timestamp_us: 0,
            key: None,
            value: None,
            headers: Vec::new(),
            content: crate::dead_letter::Content::default(),
        }
    }

    fn refuse(tolerance: &Tolerance, places: impl IntoIterator<Item = u64>) -> Result<(), String> {
        tolerance.refuse(places.into_iter(), &letter()).map_err(|fault| fault.what)
    }

    #[test]
    fn rejects_are_counted_among_records_in_a_row() {
        let tolerance = Tolerance::new(MaxRejects { window: 100, limit: 2 });
        assert_eq!(
            refuse(&tolerance, [10, 90, 110]),
            Ok(()),
            "the first one is a hundred records before the last"
        );
        let what = refuse(&tolerance, [111]).expect_err("three within a hundred");
        assert!(what.starts_with("3 of 100 records in a row"), "{what}");
        assert!(what.contains("t[0] offset 7: syntax: not JSON"), "{what}");
    }

    /// A batch of a hundred thousand records tells of all its rejects at once.
    #[test]
    fn rejects_that_are_told_at_once_are_as_far_apart_as_their_records() {
        let tolerance = Tolerance::new(MaxRejects { window: 1_000, limit: 50 });
        assert_eq!(refuse(&tolerance, (0..100_000).step_by(21)), Ok(()), "48 of each thousand");
        // Of another lane's batch, which was read meanwhile.
        assert_eq!(refuse(&tolerance, (100_007..200_000).step_by(40)), Ok(()));
        assert_eq!(refuse(&tolerance, (100_000..200_000).step_by(50)), Ok(()), "45 of each thousand");
        assert!(refuse(&tolerance, (150_000..150_006).map(|place| place + 1)).is_err(), "51 of one");
    }

    #[test]
    fn a_topic_that_is_all_bad_halts_at_once() {
        let tolerance = Tolerance::new(MaxRejects { window: 1_000, limit: 50 });
        assert_eq!(refuse(&tolerance, 0..50), Ok(()));
        assert!(refuse(&tolerance, [50]).is_err());
        let fresh = Tolerance::new(MaxRejects { window: 1_000, limit: 50 });
        assert!(refuse(&fresh, 0..100_000).is_err_and(|what| what.starts_with("1000 of 1000")));
        assert_eq!(refuse(&fresh, []), Ok(()), "letters of no record");
        let broad = Tolerance::new(MaxRejects { window: 1_000_000, limit: 150_000 });
        let chunk = |number: u64| refuse(&broad, number * 2_000..(number + 1) * 2_000);
        assert!(
            (0..75).all(|number| chunk(number).is_ok()) && chunk(75).is_err(),
            "150,000 and one chunk more"
        );
        assert!((76..1_000).all(|number| chunk(number).is_err()));
        assert_eq!(broad.recent.lock().expect("no panic").len(), 1_000_000);
    }

    #[test]
    fn the_row_that_starrocks_quotes_is_not_told() {
        let log =
            "; its error log says: Error: NULL value in non-nullable column 'id'. Row: [NULL, 'canary', 0]";
        let letter =
            DeadLetter { message: format!("too many filtered rows{log}\nError: x. Row: y"), ..letter() };
        let fault = Tolerance::new(MaxRejects { window: 100, limit: 0 })
            .refuse([1].into_iter(), &letter)
            .expect_err("none");
        assert!(fault.what.ends_with("NULL value in non-nullable column 'id'."), "{}", fault.what);
        let letter = DeadLetter { message: "ü".repeat(5_000), ..letter };
        let fault = Tolerance::new(MaxRejects { window: 100, limit: 0 })
            .refuse([1].into_iter(), &letter)
            .expect_err("none");
        assert!(fault.what.ends_with("ü…") && fault.what.len() < 1_000, "{}", fault.what.len());
    }
}
