//! The one import of a plugin: lines for our log, limited in number and length.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::excerpt::truncated;
use super::stats::Stats;
use super::wit::Level;

/// Bytes of one line; the rest is cut off.
const LOG_LINE_BYTES_MAX: usize = 2_048;

/// Decides which lines of a plugin reach the log: so many a second over all of its instances.
#[derive(Debug)]
pub(super) struct LogGate {
    plugin: String,
    lines_per_second: u32,
    started: Instant,
    /// The running second in the upper half, lines passed in it in the lower half: one atomic, no lock.
    window: AtomicU64,
    /// Dropped since the last line that told of it.
    untold: AtomicU64,
    stats: Arc<Stats>,
}

impl LogGate {
    pub(super) fn new(plugin: String, lines_per_second: u32, stats: Arc<Stats>) -> Self {
        Self {
            plugin,
            lines_per_second,
            started: Instant::now(),
            window: AtomicU64::new(0),
            untold: AtomicU64::new(0),
            stats,
        }
    }

    /// Passes one line on, or counts it as dropped.
    pub(super) fn line(&self, level: Level, message: &str) {
        // A line that nobody would see must not use up the limit of those that somebody would.
        if !enabled(level) {
            return;
        }
        if !self.admit(self.started.elapsed().as_secs() as u32) {
            self.untold.fetch_add(1, Ordering::Relaxed);
            self.stats.log_lines_dropped.add(1);
            return;
        }
        let untold = self.untold.swap(0, Ordering::Relaxed);
        if untold > 0 {
            tracing::warn!(
                plugin = self.plugin,
                dropped = untold,
                limit_per_second = self.lines_per_second,
                "dropped log lines of a plugin above its limit"
            );
        }
        let message = printable(message);
        match level {
            Level::Debug => tracing::debug!(plugin = self.plugin, "{message}"),
            Level::Info => tracing::info!(plugin = self.plugin, "{message}"),
            Level::Warn => tracing::warn!(plugin = self.plugin, "{message}"),
            Level::Error => tracing::error!(plugin = self.plugin, "{message}"),
        }
    }

    /// Whether one more line fits into the second `now`, counted from the gate's start.
    fn admit(&self, now: u32) -> bool {
        self.window
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |window| {
                let (second, passed) = ((window >> 32) as u32, window as u32);
                let passed = if second == now { passed } else { 0 };
                (passed < self.lines_per_second).then(|| u64::from(now) << 32 | u64::from(passed + 1))
            })
            .is_ok()
    }
}

fn enabled(level: Level) -> bool {
    match level {
        Level::Debug => tracing::enabled!(tracing::Level::DEBUG),
        Level::Info => tracing::enabled!(tracing::Level::INFO),
        Level::Warn => tracing::enabled!(tracing::Level::WARN),
        Level::Error => tracing::enabled!(tracing::Level::ERROR),
    }
}

/// The line cut to its length, without characters that would forge lines or colours.
pub(super) fn printable(message: &str) -> String {
    let cut = truncated(message, LOG_LINE_BYTES_MAX);
    let mut line: String = cut.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if cut.len() < message.len() {
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_admits_its_limit_and_the_next_one_begins_afresh() {
        let stats = Arc::new(Stats::default());
        let gate = LogGate::new("orders".into(), 2, stats);
        assert_eq!([0, 0, 0, 0].map(|now| gate.admit(now)), [true, true, false, false]);
        assert_eq!([1, 1, 1].map(|now| gate.admit(now)), [true, true, false]);
    }

    #[test]
    fn a_limit_of_nothing_admits_nothing() {
        let gate = LogGate::new("orders".into(), 0, Arc::new(Stats::default()));
        assert!(!gate.admit(0));
    }

    #[test]
    fn control_characters_and_long_lines_are_tamed() {
        assert_eq!(printable("a\nb\u{1b}[31mc\0"), "a b [31mc ");
        let long = "é".repeat(LOG_LINE_BYTES_MAX);
        let line = printable(&long);
        assert!(line.ends_with('…') && line.len() <= LOG_LINE_BYTES_MAX + '…'.len_utf8());
    }
}
