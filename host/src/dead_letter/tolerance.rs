//! How many rejects are an accident, and how many a broken schema: past the limit the pipeline halts, so
//! that a topic is not emptied into the dead letters.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use super::DeadLetter;
use crate::config::model::MaxRejects;
use crate::fault::Fault;

/// Counts rejects among the last records read.
#[derive(Debug)]
pub struct Tolerance {
    max: MaxRejects,
    /// Records read when they were rejected, and how many; oldest first.
    recent: Mutex<VecDeque<(u64, u64)>>,
}

impl Tolerance {
    /// Tolerates `max.limit` rejects among any `max.window` records read in a row.
    pub fn new(max: MaxRejects) -> Tolerance {
        Tolerance { max, recent: Mutex::default() }
    }

    /// Counts `records` more rejects after `read` records were read in all; `last` is told in the fault.
    ///
    /// # Errors
    /// Halt, if they are more than is tolerated.
    pub fn refuse(&self, read: u64, records: u64, last: &DeadLetter) -> Result<(), Fault> {
        // Plain counters: a panic elsewhere leaves them usable.
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.push_back((read, records));
        while recent.front().is_some_and(|(at, _)| at.saturating_add(self.max.window) <= read) {
            recent.pop_front();
        }
        let rejected: u64 = recent.iter().map(|(_, records)| records).sum();
        if rejected <= self.max.limit {
            return Ok(());
        }
        let MaxRejects { window, limit } = self.max;
        Err(Fault::halt(
            format!(
                "{rejected} of the last {window} records were rejected, {limit} are tolerated; the last one: {}",
                last.story()
            ),
            "mend the source, the plugin or the table: what was not kept as a dead letter yet is read again at the next \
             start; [dead_letters] max_rejects sets how many are tolerated",
        ))
    }
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

    #[test]
    fn rejects_are_counted_among_the_last_records_only() {
        let tolerance = Tolerance::new(MaxRejects { window: 100, limit: 2 });
        assert!(tolerance.refuse(10, 1, &letter()).is_ok());
        assert!(tolerance.refuse(90, 1, &letter()).is_ok());
        // The first one is a hundred records ago.
        assert!(tolerance.refuse(110, 1, &letter()).is_ok());
        let fault = tolerance.refuse(111, 1, &letter()).expect_err("three within a hundred");
        assert!(fault.what.starts_with("3 of the last 100 records"), "{}", fault.what);
        assert!(fault.what.contains("t[0] offset 7: syntax: not JSON"), "{}", fault.what);
    }

    #[test]
    fn the_row_that_starrocks_quotes_is_not_told() {
        let log =
            "; its error log says: Error: NULL value in non-nullable column 'id'. Row: [NULL, 'canary', 0]";
        let letter =
            DeadLetter { message: format!("too many filtered rows{log}\nError: x. Row: y"), ..letter() };
        let fault =
            Tolerance::new(MaxRejects { window: 100, limit: 0 }).refuse(1, 1, &letter).expect_err("none");
        assert!(fault.what.ends_with("NULL value in non-nullable column 'id'."), "{}", fault.what);
        let letter = DeadLetter { message: "ü".repeat(5_000), ..letter };
        let fault =
            Tolerance::new(MaxRejects { window: 100, limit: 0 }).refuse(1, 1, &letter).expect_err("none");
        assert!(fault.what.ends_with("ü…") && fault.what.len() < 1_000, "{}", fault.what.len());
    }
}
