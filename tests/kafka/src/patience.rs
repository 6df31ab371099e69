use std::{
    fmt, thread,
    time::{Duration, Instant},
};

/// Between two looks at a condition that nobody announces.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A condition did not come true in time.
#[derive(Debug)]
pub struct Late {
    /// How long was waited.
    pub waited: Duration,
}

impl fmt::Display for Late {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "nothing after {:.1} s", self.waited.as_secs_f64())
    }
}

/// Looks at a condition until it yields a value or `limit` has passed; it is looked at once more at the very end.
/// The one place where tests wait.
pub fn wait_until<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Result<T, Late> {
    let begun = Instant::now();
    loop {
        let last = begun.elapsed() >= limit;
        if let Some(value) = look() {
            return Ok(value);
        }
        if last {
            return Err(Late { waited: begun.elapsed() });
        }
        thread::park_timeout(LOOK_AGAIN);
    }
}
