//! Points on a record's way at which a test can make the process die, freeze or wait (feature `faults`; nothing otherwise).
//!
//! `FAILPOINTS="epoch.prepared=2*off->1*return(kill)"` in the environment arms them, in the language of the `fail` crate:
//! here the third pass kills. Actions of ours are `return(kill)` (SIGKILL), `return(freeze)` (SIGSTOP, until somebody
//! sends SIGCONT) and `return(wait 300)` (milliseconds, on the thread that passes). Each leaves a line in the file named
//! by `TIDEMILL_FAULT_TRACE` before it is done, so that whoever armed a point knows that it fired.
//!
//! A point is passed once a chunk, batch, load, epoch or request, never once a record.

/// A place at which the process can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// Its name in `FAILPOINTS`; what stands before the full stop is whose way it is on.
    pub name: &'static str,
    /// What has happened when it is passed.
    pub meaning: &'static str,
}

const fn point(name: &'static str, meaning: &'static str) -> Point {
    Point { name, meaning }
}

/// All of them, in the order in which a record passes them. Each stands in the source once.
pub const POINTS: &[Point] = &[
    point("kafka.assigned", "start positions are claimed, reading has not begun"),
    point("lane.read", "a chunk is read, and its span is not open"),
    point("lane.before_plugins", "its span is open"),
    point("lane.after_plugins", "the plugins have answered, and nothing was handed on"),
    point("lane.handed_over", "its rows are in the stage"),
    point("letters.before_write", "dead letters wait to be written"),
    point("letters.before_fsync", "dead letters are written to the file, and not synced"),
    point("letters.kept", "dead letters are durable, and their spans open"),
    point("letters.settled", "the spans of dead letters are settled"),
    point("load.before_begin", "a load has its label, and StarRocks has not heard of it"),
    point("load.begun", "StarRocks has begun a load that is fenced, and its fence was not asked"),
    point("load.validated", "the fence of a load holds, and nothing of its body has left"),
    point("load.mid_body", "a part of a body has left"),
    point("load.body_sent", "all of a body has left, some milliseconds ago: its answer may have come"),
    point("load.answered", "the outcome of a load is known"),
    point("load.settled", "the rows of a load are durable, and their spans settled"),
    point("epoch.before_begin", "an epoch has its labels, and StarRocks has not heard of them"),
    point("epoch.begun", "a load of an epoch has begun"),
    point("epoch.loaded", "the rows of a load of an epoch are there"),
    point("epoch.prepared", "a load of an epoch is prepared"),
    point("epoch.before_decision", "all loads of an epoch are prepared, and its decision is due"),
    point("epoch.offsets_sent", "the decision's offsets are in a transaction that is open"),
    point("epoch.decided", "the decision stands in Kafka"),
    point("epoch.before_commit", "an epoch is decided, and none of its loads committed"),
    point("epoch.committed", "all loads of an epoch are committed, and their spans open"),
    point("epoch.settled", "the spans of an epoch are settled"),
    point("epoch.before_rollback", "an epoch is given up, and its loads are open"),
    point("epoch.rolled_back", "the loads of an epoch were asked to be rolled back, whatever came of it"),
    point("epoch.before_done", "a standing without loads is about to be written over the last decision"),
    point("epoch.done", "that standing is written"),
    point("epoch.recovering", "a predecessor's decision is known, and its loads are not looked at"),
    point("epoch.recovered", "a predecessor's loads are committed, and its partitions not claimed"),
    point("kafka.before_release", "offsets are safe and about to be committed"),
    point("kafka.released", "offsets are committed"),
    point("kafka.revoking", "partitions are to be given up"),
    point("kafka.given_up", "partitions are given up, and the last of them is committed"),
    point("postgres.before_position", "changes are durable, and the position row is about to be written"),
    point("postgres.position_written", "the position row is visible, and the LSN not confirmed"),
    point("postgres.confirmed", "the LSN is handed to the stream to be confirmed"),
    point("http.taken", "a request is read, and none of its records handed on"),
    point("http.before_answer", "what became of a request is known, and not told"),
];

/// Passes the point `name`.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub(crate) fn at(_name: &'static str) {}

/// Passes the point `name` in a moment: what was handed to a connection has left by then.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub(crate) fn soon(_name: &'static str) {}

#[cfg(feature = "faults")]
pub use armed::arm;
#[cfg(feature = "faults")]
pub(crate) use armed::{at, soon, trace};

#[cfg(feature = "faults")]
mod armed {
    use std::fs::OpenOptions;
    use std::io::Write as _;
    use std::time::Duration;

    /// What a connection needs to write what it was given, on a machine that is busy with other things.
    const A_MOMENT: Duration = Duration::from_millis(5);

    /// Arms what the environment names, for as long as the scenario lives.
    pub fn arm() -> fail::FailScenario<'static> {
        fail::FailScenario::setup()
    }

    pub(crate) fn at(name: &'static str) {
        fail::fail_point!(name, |action| act(name, action.as_deref().unwrap_or_default()));
    }

    pub(crate) fn soon(name: &'static str) {
        // Outside of the runtime is only a test that looks at a body by itself.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            tokio::time::sleep(A_MOMENT).await;
            at(name);
        });
    }

    fn act(name: &str, action: &str) {
        trace(&format!("{name} {action}"));
        match action.split_once(' ').unwrap_or((action, "")) {
            ("kill", _) => signal_ourselves(libc::SIGKILL),
            ("freeze", _) => signal_ourselves(libc::SIGSTOP),
            ("wait", ms) => std::thread::sleep(Duration::from_millis(ms.parse().unwrap_or(0))),
            _unknown => tracing::warn!("failpoint {name}: nothing is known of the action `{action}`"),
        }
    }

    fn signal_ourselves(signal: libc::c_int) {
        #[expect(unsafe_code, reason = "std cannot signal its own process")]
        // SAFETY: both calls touch no memory.
        let _ = unsafe { libc::kill(libc::getpid(), signal) };
    }

    /// Leaves a line in the trace file, if there is one. It is in the file when this returns.
    pub(crate) fn trace(what: &str) {
        let Some(path) = std::env::var_os("TIDEMILL_FAULT_TRACE") else { return };
        let line = format!("{} {what}\n", std::process::id());
        let file = OpenOptions::new().create(true).append(true).open(path);
        // One write each, so that lines of several processes do not mix.
        if let Err(error) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
            tracing::warn!(%error, "cannot write the trace of failpoints");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;

    fn sources(folder: &Path, into: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path())
        {
            if entry.is_dir() {
                sources(&entry, into);
            } else if entry.extension().is_some_and(|kind| kind == "rs") && !entry.ends_with("failpoint.rs") {
                into.push(std::fs::read_to_string(&entry).expect("a source"));
            }
        }
    }

    #[test]
    fn each_point_stands_in_the_source_once() {
        let mut texts = Vec::new();
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut texts);
        let mut found: BTreeMap<&str, usize> = BTreeMap::new();
        for call in texts.iter().flat_map(|text| text.split("failpoint::").skip(1)) {
            let call = call.strip_prefix("at(\"").or_else(|| call.strip_prefix("soon(\""));
            if let Some(name) = call.and_then(|rest| rest.split('"').next()) {
                *found.entry(name).or_default() += 1;
            }
        }
        let named: BTreeMap<&str, usize> = POINTS.iter().map(|point| (point.name, 1)).collect();
        assert_eq!(found, named);
        assert_eq!(named.len(), POINTS.len(), "no name is there twice");
    }
}
