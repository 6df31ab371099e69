//! `tidemill dlq`: dead letters are listed, shown, and run through their pipeline again.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};

use super::{EXIT_FAILED, EXIT_OK, EXIT_USAGE};
use crate::config::Overrides;
use crate::config::model::{Pipeline, Plan};
use crate::dead_letter::Stage;
use crate::dead_letter::kept::Filter;
use crate::fault::Fault;

mod list;
mod replay;
mod show;

#[derive(Debug, Subcommand)]
pub(super) enum DlqCommand {
    /// How many there are, by stage, plugin and code
    List(list::List),
    /// The letters themselves: what was read, where it came from, and why it was rejected
    Show(show::Show),
    /// Run them through the pipeline again; what gets through is marked, and the letters stay
    Replay(replay::Replay),
}

impl DlqCommand {
    pub(super) fn execute(self) -> u8 {
        match self {
            DlqCommand::List(list) => list.execute(),
            DlqCommand::Show(show) => show.execute(),
            DlqCommand::Replay(replay) => replay.execute(),
        }
    }
}

/// Which letters.
#[derive(Debug, Args)]
struct Choice {
    /// Only those that died there
    #[arg(long, value_enum, value_name = "STAGE")]
    stage: Option<Stage>,
    /// Only those with this reason, such as `refused`
    #[arg(long, value_name = "CODE")]
    code: Option<String>,
    /// Only those of this plugin
    #[arg(long, value_name = "PLUGIN")]
    plugin: Option<String>,
    /// Only those kept then or later: `2026-01-31T12:00:00Z` or, counted back from now, `2h`
    #[arg(long, value_name = "TIME", value_parser = point_in_time)]
    since: Option<i64>,
    /// Only those kept before that
    #[arg(long, value_name = "TIME", value_parser = point_in_time)]
    until: Option<i64>,
    /// Only this one: its place as `dlq show` tells it, `FILE:LINE` or `PARTITION:OFFSET`
    #[arg(long, value_name = "PLACE")]
    letter: Option<String>,
}

impl Choice {
    fn filter(self, replayed: bool) -> Filter {
        Filter {
            stage: self.stage,
            code: self.code,
            plugin: self.plugin,
            since_us: self.since,
            until_us: self.until,
            place: self.letter,
            replayed,
        }
    }
}

/// Microseconds since 1970 UTC of a point in time, or of one so long ago.
fn point_in_time(text: &str) -> Result<i64, String> {
    let wanted =
        "it is neither a time, such as 2026-01-31T12:00:00Z, nor a time ago, such as 90s, 15m, 2h or 7d";
    let time = match humantime::parse_rfc3339_weak(text) {
        Ok(time) => Some(time),
        Err(_) => {
            let ago: Duration = humantime::parse_duration(text).map_err(|_| wanted.to_owned())?;
            SystemTime::now().checked_sub(ago)
        }
    };
    let since_1970 = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since_1970.and_then(|since| i64::try_from(since.as_micros()).ok()).ok_or_else(|| wanted.to_owned())
}

/// Loads the file and does `work` with its pipeline.
fn with_pipeline(file: PathBuf, work: impl FnOnce(&Plan, &Arc<Pipeline>) -> Result<u8, Fault>) -> u8 {
    let plan = match super::load(&[file], &Overrides::default()) {
        Ok(plan) => plan,
        Err(code) => return code,
    };
    let Some(pipeline) = plan.pipelines.first() else { return EXIT_USAGE };
    if pipeline.dead_letters.is_none() {
        eprintln!(
            "error: {}: the pipeline keeps no dead letters; add [dead_letters] with `directory`, or \
             [dead_letters.kafka] with `topic`",
            pipeline.file.display()
        );
        return EXIT_USAGE;
    }
    work(&plan, pipeline).unwrap_or_else(|fault| {
        super::say(&fault);
        EXIT_FAILED
    })
}

/// Writes to standard output. A reader that has seen enough (`| head`) ends the command well.
fn print(bytes: &[u8]) -> Result<Printed, Fault> {
    use std::io::Write as _;
    match std::io::stdout().lock().write_all(bytes) {
        Ok(()) => Ok(Printed::Whole),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(Printed::NobodyReads),
        Err(error) => Err(Fault::retry("cannot print").caused_by(error)),
    }
}

/// What became of a [`print`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Printed {
    Whole,
    NobodyReads,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_date_or_so_long_ago() {
        assert_eq!(point_in_time("2026-01-01T00:00:00Z"), Ok(1_767_225_600_000_000));
        assert_eq!(point_in_time("2026-01-01 00:00:00"), Ok(1_767_225_600_000_000));
        let now = crate::dead_letter::kept::now_us();
        let hour_ago = point_in_time("1h").expect("a duration");
        assert!((now - 3_600_000_000 - hour_ago).abs() < 60_000_000, "{hour_ago}");
        for text in ["yesterday", "", "1969-01-01T00:00:00Z", "2h ago"] {
            assert!(point_in_time(text).is_err(), "{text}");
        }
    }
}
