//! Says in the log that records are being set aside: often enough to be seen, seldom enough to be read.

use std::time::{Duration, Instant};

use super::DeadLetter;

/// Least time between two lines of a pipeline.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// What is to be said: where the last letter came from, never what it holds, nor its message, which may
/// quote it.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    letters: u64,
    code: String,
    source: String,
    offset: i64,
}

/// Letters since the last line.
#[derive(Debug, Default)]
pub(super) struct Notice {
    pending: Option<Line>,
    told: Option<Instant>,
}

impl Notice {
    /// Counts letters that are durable now, and says so unless it was said less than a minute ago.
    pub(super) fn kept<'a>(&mut self, pipeline: &str, letters: impl Iterator<Item = &'a DeadLetter>) {
        self.count(letters);
        if let Some(line) = self.due(Instant::now()) {
            say(pipeline, &line);
        }
    }

    /// Says what is left to be said.
    pub(super) fn end(&mut self, pipeline: &str) {
        if let Some(line) = self.pending.take() {
            say(pipeline, &line);
        }
    }

    fn count<'a>(&mut self, letters: impl Iterator<Item = &'a DeadLetter>) {
        let before = self.pending.as_ref().map_or(0, |line| line.letters);
        let Some((further, last)) = (1..).zip(letters).last() else { return };
        self.pending = Some(Line {
            letters: before + further,
            code: last.code.clone(),
            source: last.partition.to_string(),
            offset: last.offset,
        });
    }

    fn due(&mut self, now: Instant) -> Option<Line> {
        if self.told.is_some_and(|told| now.duration_since(told) < TELL_EVERY) {
            return None;
        }
        let line = self.pending.take()?;
        self.told = Some(now);
        Some(line)
    }
}

fn say(pipeline: &str, line: &Line) {
    let Line { letters, code, source, offset } = line;
    tracing::warn!(
        pipeline,
        letters,
        last_code = %code,
        last_source = %source,
        last_offset = offset,
        "records are being set aside as dead letters"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letter::Stage;
    use crate::position::Partition;

    fn letter(code: &str, offset: i64) -> DeadLetter {
        DeadLetter {
            stage: Stage::Transform,
            plugin: None,
            code: code.into(),
            message: "not to be told".into(),
            partition: Partition { source: "orders".into(), number: 3 },
            offset,
            timestamp_us: 0,
            key: None,
            value: None,
            headers: Vec::new(),
            content: crate::dead_letter::Content::default(),
        }
    }

    fn line(letters: u64, code: &str, offset: i64) -> Option<Line> {
        Some(Line { letters, code: code.into(), source: "orders[3]".into(), offset })
    }

    #[test]
    fn a_line_a_minute_counts_all_letters_since_the_last_one() {
        let (mut notice, begin) = (Notice::default(), Instant::now());
        assert_eq!(notice.due(begin), None);
        notice.count([letter("parse", 1), letter("amount", 2)].iter());
        assert_eq!(notice.due(begin), line(2, "amount", 2));
        notice.count([letter("parse", 3)].iter());
        assert_eq!(notice.due(begin + TELL_EVERY / 2), None);
        notice.count([letter("parse", 4), letter("parse", 5)].iter());
        assert_eq!(notice.due(begin + TELL_EVERY), line(3, "parse", 5));
        assert_eq!(notice.due(begin + 3 * TELL_EVERY), None, "nothing new");
    }
}
