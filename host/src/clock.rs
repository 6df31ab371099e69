//! The wall clock, for what is written down and read by others: ages of prepared loads, times of dead letters.
//! Whatever waits uses the monotonic clock, which no clock jump moves.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Time since 1970, UTC. With the feature `faults` shifted by the seconds that stand in the file named by
/// `TIDEMILL_CLOCK`, which may change at any moment.
pub(crate) fn since_1970() -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    #[cfg(feature = "faults")]
    let now = shifted(now);
    now
}

#[cfg(feature = "faults")]
fn shifted(now: Duration) -> Duration {
    use std::sync::atomic::{AtomicI64, Ordering};
    static TOLD: AtomicI64 = AtomicI64::new(0);
    let Some(path) = std::env::var_os("TIDEMILL_CLOCK") else { return now };
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let jump_s: i64 = text.trim().parse().unwrap_or(0);
    if TOLD.swap(jump_s, Ordering::Relaxed) != jump_s {
        crate::failpoint::trace(&format!("clock {jump_s}"));
    }
    let jump = Duration::from_secs(jump_s.unsigned_abs());
    if jump_s < 0 { now.saturating_sub(jump) } else { now + jump }
}
