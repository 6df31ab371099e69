//! The run's own count, summed over what each test binary prints.

use std::fmt;

/// Tests by how they ended.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Tally {
    /// Adds a line such as `test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; …`; other lines change nothing.
    pub(crate) fn add(&mut self, line: &str) {
        let Some(counts) = line.trim_start().strip_prefix("test result:") else { return };
        // "ok. 12 passed", " 0 failed", … : the number is the last word but one
        for part in counts.split(';') {
            let mut words = part.split_whitespace().rev();
            let (Some(what), Some(Ok(number))) = (words.next(), words.next().map(str::parse::<u64>)) else {
                continue;
            };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.skipped += number,
                // "measured", "filtered out", "finished in 0.1s" count no test that ran
                _ => {}
            }
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 { write!(out, ", {} skipped", self.skipped) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::Tally;

    fn check(lines: &[&str], expected: &str) {
        let mut tally = Tally::default();
        lines.iter().for_each(|line| tally.add(line));
        assert_eq!(tally.to_string(), expected);
    }

    #[test]
    fn sums_what_the_binaries_print() {
        check(
            &[
                "running 3 tests",
                "test broker::restart ... ok",
                "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.02s",
                "test result: FAILED. 10 passed; 2 failed; 0 ignored; 0 measured; 7 filtered out; finished in 1.20s",
            ],
            "13 passed, 2 failed",
        );
    }

    #[test]
    fn names_skipped_tests_when_there_are_any() {
        check(
            &["test result: ok. 1 passed; 0 failed; 4 ignored; 0 measured; 0 filtered out"],
            "1 passed, 0 failed, 4 skipped",
        );
    }

    #[test]
    fn counts_nothing_in_other_lines() {
        check(&["5 passed; 5 failed", "thread 'x' panicked at test result", ""], "0 passed, 0 failed");
    }
}
