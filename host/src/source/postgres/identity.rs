//! Whether the server that answers is the one that was followed so far, and has the same past: a standby that was promoted
//! has its primary's past up to the place where its own timeline begins.

use super::begin::start_over;
use super::connect::Connector;
use super::facts::Slot;
use super::lsn::Lsn;
use super::position::{Known, Positions};
use super::setup::{Identified, identify};
use super::trouble::Failure;
use crate::config::model::Postgres;
use crate::fault::Fault;

/// How a server's timeline stands to the one that was followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lineage {
    /// It is the same, or nobody knows which one was followed.
    Same,
    /// A standby was promoted, and has everything that was followed.
    Promoted {
        /// Timeline that was followed.
        before: u32,
        /// Timeline of the server.
        now: u32,
        /// Where the server's past parts from the one that was followed.
        at: Lsn,
    },
}

/// The server is the one whose changes were followed so far, and still has them.
///
/// # Errors
/// Halt, if it is another one or lacks changes; Retry, if it cannot be asked.
pub(super) async fn same_server(
    connector: &Connector,
    positions: &Positions,
    from: Lsn,
) -> Result<(), Fault> {
    let found = identify(connector).await?;
    if found.system_identifier.to_string() != positions.system() {
        return Err(Fault::halt(
            format!("another server answers now (system identifier {})", found.system_identifier),
            "mend `host` and `port` in [source.postgres], or what they lead to",
        ));
    }
    let lineage = lineage(connector, &found, positions.timeline(), from).await?;
    if found.written < from {
        return Err(Fault::halt(
            format!(
                "the server's log ends at {}, before {from} up to which its changes are in StarRocks: changes that \
                 were loaded are not in the source any more",
                found.written
            ),
            format!(
                "a standby was promoted before it had all changes, or a backup was restored; {}",
                start_over(connector.source())
            ),
        ));
    }
    if let Lineage::Promoted { before, now, at } = lineage {
        tracing::info!(
            pipeline = positions.pipeline(), %from,
            "a standby was promoted (timeline {before} → {now} at {at}); it has everything up to the position: going on"
        );
    }
    positions.follow_timeline(found.timeline);
    Ok(())
}

/// Whether what is known of a slot can be gone on with on this server: asked before anything is decided.
///
/// # Errors
/// Halt, if changes were lost in a failover, or the slot; Retry, if the server cannot be asked.
pub(super) async fn check_failover(
    connector: &Connector,
    found: &Identified,
    known: &Known,
    slot: Option<&Slot>,
) -> Result<(), Fault> {
    let same_system = known.system.as_ref() == Some(&found.system_identifier.to_string());
    let Some(from) = known.stream.filter(|_| same_system) else { return Ok(()) };
    match lineage(connector, found, known.timeline, from).await? {
        Lineage::Promoted { before, now, at } if slot.is_none() => {
            Err(slot_left_behind(connector.source(), before, now, at, from))
        }
        Lineage::Promoted { .. } | Lineage::Same => Ok(()),
    }
}

fn slot_left_behind(source: &Postgres, before: u32, now: u32, at: Lsn, from: Lsn) -> Fault {
    let name = &source.slot;
    Fault::halt(
        format!(
            "a standby was promoted (timeline {before} → {now} at {at}), and it has no replication slot {name}: changes \
             since {from} cannot be read any more"
        ),
        format!(
            "before version 17 slots do not go along with a failover; from then on make the slot anew with `failover`, and \
             set sync_replication_slots = on at the standby; {}",
            start_over(source)
        ),
    )
}

async fn lineage(
    connector: &Connector,
    found: &Identified,
    before: Option<u32>,
    from: Lsn,
) -> Result<Lineage, Fault> {
    let Some(before) = before.filter(|before| *before != found.timeline) else { return Ok(Lineage::Same) };
    // The first one has no history.
    let history = if found.timeline > 1 { history(connector, found.timeline).await? } else { Vec::new() };
    judge(before, found.timeline, &history, from)
        .map_err(|what| Fault::halt(what, start_over(connector.source())))
}

/// Decides; `history` has the ancestors of timeline `now`, with their ends.
fn judge(before: u32, now: u32, history: &[(u32, Lsn)], from: Lsn) -> Result<Lineage, String> {
    match history.iter().find(|(ancestor, _)| *ancestor == before) {
        Some((_, at)) if from <= *at => Ok(Lineage::Promoted { before, now, at: *at }),
        Some((_, at)) => Err(format!(
            "a standby was promoted at {at} (timeline {before} → {now}), but StarRocks has the changes of the server before it \
             up to {from}: whatever was committed in between was lost in the failover, and stands in StarRocks nevertheless"
        )),
        None => Err(format!(
            "the server is on timeline {now}, which does not come from timeline {before} that was followed up to {from}: \
             another standby was promoted, an old primary is back, or a backup was restored"
        )),
    }
}

/// Asks for the ancestors of a timeline, with the places where they end.
async fn history(connector: &Connector, timeline: u32) -> Result<Vec<(u32, Lsn)>, Fault> {
    let attempted = "read the history of the server's timeline";
    let failed = |failure: Failure| failure.fault(attempted, connector.source());
    let mut session = connector.replication().await?;
    let rows = session.run(&format!("TIMELINE_HISTORY {timeline}")).await.map_err(failed)?;
    let content = rows.first().and_then(|row| row.get(1)).and_then(Option::as_deref);
    content
        .and_then(ancestors)
        .ok_or_else(|| failed(Failure::Protocol(format!("an unexpected answer: {rows:?}"))))
}

/// A history file: a line an ancestor, with its number, its end, and why; comments begin with `#`.
fn ancestors(content: &str) -> Option<Vec<(u32, Lsn)>> {
    let lines = content.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_is_read_as_the_server_writes_it() {
        let content = "1\t0/3000148\tno recovery target specified\n\n2\t0/A0000000\tbefore 2026-01-01 00:00:00+00\n# end\n";
        assert_eq!(ancestors(content), Some(vec![(1, Lsn(0x300_0148)), (2, Lsn(0xA000_0000))]));
        assert_eq!(ancestors("1\n"), None);
        assert_eq!(ancestors(""), Some(Vec::new()));
    }

    #[test]
    fn a_promoted_standby_is_followed_if_it_has_all_that_was_loaded() {
        let history = [(1, Lsn(100)), (2, Lsn(200))];
        let promoted = |before, at| Ok(Lineage::Promoted { before, now: 3, at: Lsn(at) });
        assert_eq!(judge(1, 3, &history, Lsn(100)), promoted(1, 100));
        assert_eq!(judge(2, 3, &history, Lsn(150)), promoted(2, 200));
    }

    #[test]
    fn what_a_failover_lost_is_told() {
        let history = [(1, Lsn(100)), (2, Lsn(200))];
        let lost = judge(1, 3, &history, Lsn(101)).expect_err("101 is past the end of timeline 1");
        assert!(lost.contains("promoted at 0/64 (timeline 1 → 3)") && lost.contains("up to 0/65"), "{lost}");
        // An old primary that is back, or a sister.
        for (before, now, history) in [(3, 1, &[][..]), (4, 3, &history[..])] {
            let other = judge(before, now, history, Lsn(50)).expect_err("no common past");
            assert!(
                other.contains(&format!("timeline {now}, which does not come from timeline {before}")),
                "{other}"
            );
        }
    }

    #[test]
    fn a_slot_that_stayed_with_the_old_primary_is_told_as_such() {
        let source = crate::source::postgres::preflight::fixtures::source();
        let story = slot_left_behind(&source, 1, 2, Lsn(0x500), Lsn(0x400)).story();
        for words in
            ["a standby was promoted (timeline 1 → 2 at 0/500)", "since 0/400", "failover", "DELETE FROM"]
        {
            assert!(story.contains(words), "{words}: {story}");
        }
    }
}
