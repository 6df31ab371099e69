//! Killing a server with all its processes at one stroke, as a power cut would.

use crate::{Fault, Late, wait_until};
use std::{fs, path::Path, process::Command, time::Duration};

/// Sends a signal by the shell's own `kill`: the program of that name is not on every machine.
pub(crate) fn signal(name: &str, pids: &[u32]) -> Result<(), Fault> {
    let attempt = format!("send SIG{name} to {pids:?}");
    let mut command = Command::new("sh");
    command.args(["-c", "signal=$1; shift; kill -s \"$signal\" \"$@\"", "sh", name]);
    let status =
        command.args(pids.iter().map(u32::to_string)).status().map_err(Fault::io(attempt.clone()))?;
    if status.success() { Ok(()) } else { Err(Fault::said(attempt, status.to_string())) }
}

/// Kills the postmaster and its children, and waits until none is left.
///
/// The postmaster is halted first: it starts no further child, and it does not reap, so that no id can mean another
/// process by the time of the kill.
pub(crate) fn kill_all(postmaster: u32, limit: Duration) -> Result<(), Fault> {
    signal("STOP", &[postmaster])?;
    let mut pids = children(postmaster);
    pids.push(postmaster);
    signal("KILL", &pids)?;
    let gone = wait_until(limit, || pids.iter().all(|pid| is_gone(*pid)).then_some(()));
    gone.map_err(|Late { waited }| {
        Fault::said("kill a PostgreSQL server", format!("it is still there after {} s", waited.as_secs()))
    })
}

/// All processes of a postmaster are its children.
fn children(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter(|id| status(*id).is_some_and(|(_, its_parent)| its_parent == parent)).collect()
}

/// A zombie that nobody reaps (in a container without `init`) does and holds nothing any more.
fn is_gone(pid: u32) -> bool {
    status(pid).is_none_or(|(state, _)| matches!(state, 'Z' | 'X'))
}

/// State and parent of a process.
fn status(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    // The name in brackets may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}
