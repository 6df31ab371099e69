//! Progress bars below the log, where a person watches: on a terminal that shows the log as text.
//!
//! The terminal is the process's, and so are the bars on it: every line of the log goes through [`Beside`], which
//! takes them away, writes, and draws them again.

use std::io::{self, Write};
use std::sync::OnceLock;

use indicatif::{MultiProgress, ProgressBar};
use tracing_subscriber::fmt::MakeWriter;

/// What is drawn on stderr; empty where nobody watches.
static BARS: OnceLock<MultiProgress> = OnceLock::new();

/// From now on bars are drawn on stderr: for a terminal, to which the log goes by [`Beside`] and nothing else is
/// written.
pub fn draw_on_stderr() {
    let _ = BARS.set(MultiProgress::new());
}

/// A place for a bar below the log and the other bars; none where nobody watches.
pub fn place(bar: ProgressBar) -> Option<ProgressBar> {
    BARS.get().map(|bars| bars.add(bar))
}

/// Writes the log to stderr, line by line, with the bars out of the way.
#[derive(Debug, Clone, Copy, Default)]
pub struct Beside;

impl<'a> MakeWriter<'a> for Beside {
    type Writer = Beside;

    fn make_writer(&'a self) -> Beside {
        Beside
    }
}

impl Write for Beside {
    /// Takes whole lines, as the log's formatter hands them over.
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        let write = || io::stderr().lock().write_all(lines).map(|()| lines.len());
        match BARS.get() {
            None => write(),
            Some(bars) => bars.suspend(write),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
