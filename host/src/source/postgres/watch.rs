//! Looks at the slot now and then: its size is what Postgres has to keep for us. Sends heartbeats, so that the
//! slot of an idle database moves on while others write.

use std::time::Duration;

use tokio::task::AbortHandle;

use super::catalog;
use super::connect::Control as Connection;
use super::facts::Slot;
use super::lsn::Lsn;
use super::prepare::Prepared;
use super::progress::Progress;
use crate::fault::{Fault, FaultKind};
use crate::meter::{PostgresMeter, Waiting};
use crate::source::Parts;

/// How often the slot is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long a question may take: on a line that went dead there is no answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// So often the server must refuse a connection before the stream is given up, too. A server that is told to stop
/// lets nobody in and waits until its readers have confirmed all that it has written; we may be waiting for it, with
/// a question, or for a StarRocks that is away.
const REFUSED_LOOKS: u32 = 2;
/// So often the slot must be seen without a reader before our own connection is taken for dead: one look may fall
/// between the end of a connection and the next one.
const UNREAD_LOOKS: u32 = 2;
/// What heartbeat messages are called.
const HEARTBEAT: &str = "tidemill_heartbeat";

/// Ends the looking when dropped.
pub(super) struct SlotWatch(AbortHandle);

impl Drop for SlotWatch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Starts to look.
pub(super) fn start(
    prepared: &Prepared,
    parts: &Parts,
    progress: &Progress,
    meter: &PostgresMeter,
) -> SlotWatch {
    let (connector, source) = (prepared.connector.clone(), prepared.source.clone());
    let beats = !prepared.facts.server.in_recovery;
    let (pipeline, progress, meter) = (parts.meter.clone(), progress.clone(), meter.clone());
    let task = parts.runtime.spawn(async move {
        let mut every = tokio::time::interval(LOOK_EVERY.min(source.heartbeat.max(Duration::from_secs(1))));
        let mut connection: Option<Connection> = None;
        let mut too_large: Option<Waiting> = None;
        let mut last = progress.newest().0;
        let mut quiet_since = tokio::time::Instant::now();
        let (mut refused_looks, mut unread_looks) = (0, 0);
        loop {
            every.tick().await;
            let open = match connection.take().filter(|open| !open.is_closed()) {
                Some(open) => open,
                None => match connector.control().await {
                    Ok(open) => open,
                    Err(fault) => {
                        refused_looks += 1;
                        let passing = fault.kind == FaultKind::Retry;
                        if passing && refused_looks == REFUSED_LOOKS && progress.is_connected() {
                            progress.broke(fault);
                        }
                        continue;
                    }
                },
            };
            refused_looks = 0;
            let (newest, commit_time_us) = progress.newest();
            if newest != last {
                (last, quiet_since) = (newest, tokio::time::Instant::now());
            } else if beats && quiet_since.elapsed() >= source.heartbeat {
                quiet_since = tokio::time::Instant::now();
                match tokio::time::timeout(ANSWER_MAX, beat(&open)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(fault)) => tracing::debug!("{}", fault.story()),
                    Err(_late) => continue,
                }
            }
            let asked = tokio::time::timeout(ANSWER_MAX, catalog::slot(&open, &source.slot)).await;
            let Ok(Ok(Some(slot))) = asked else { continue };
            connection = Some(open);
            unread_looks = if is_unread(&slot, &progress) { unread_looks + 1 } else { 0 };
            if unread_looks == UNREAD_LOOKS {
                progress.broke(Fault::retry(format!(
                    "slot {} has no reader, though our connection seems to be there: the line went dead",
                    source.slot
                )));
            }
            show(&slot, newest, &meter);
            meter.lag_seconds.set(lag_seconds(commit_time_us, &slot, newest.0));
            let held = slot.held_wal_bytes.unwrap_or(0);
            too_large = match too_large.take() {
                _ if u64::try_from(held).is_ok_and(|held| held <= source.max_slot_wal_bytes) => None,
                Some(waiting) => Some(waiting),
                None => {
                    let what = format!(
                        "slot {} holds {held} bytes of log, more than max_slot_wal = {}",
                        source.slot, source.max_slot_wal_bytes
                    );
                    tracing::warn!(pipeline = %pipeline.name, "{what}");
                    Some(Waiting::begin(&pipeline, what))
                }
            };
        }
    });
    SlotWatch(task.abort_handle())
}

/// The server gives a reader up that does not answer for `wal_sender_timeout`. If the line between is dead, the reader
/// never learns of it.
fn is_unread(slot: &Slot, progress: &Progress) -> bool {
    slot.active_pid.is_none() && progress.is_connected()
}

async fn beat(connection: &Connection) -> Result<(), Fault> {
    let message = format!("SELECT pg_logical_emit_message(false, '{HEARTBEAT}', '')");
    let sent = connection.client().simple_query(&message).await;
    sent.map(|_| ()).map_err(|error| connection.fault("send a heartbeat", error))
}

fn show(slot: &Slot, newest: Lsn, meter: &PostgresMeter) {
    let held = slot.held_wal_bytes.unwrap_or(0);
    meter.slot_held_bytes.set(held);
    let behind = slot.confirmed.map_or(0, |confirmed| newest.0.saturating_sub(confirmed.0));
    meter.lag_bytes.set(i64::try_from(behind).unwrap_or(i64::MAX));
    meter.slot_safe_bytes.set(slot.safe_wal_bytes.unwrap_or(-1));
    meter.slot_wal_status.set(match slot.wal_status.as_deref() {
        Some("extended") => 1,
        Some("unreserved") => 2,
        Some("lost") => 3,
        _ => 0,
    });
}

/// Age of the newest transaction read, while there is something that was not confirmed.
fn lag_seconds(commit_time_us: i64, slot: &Slot, newest: u64) -> i64 {
    let behind = slot.confirmed.is_some_and(|confirmed| confirmed.0 < newest);
    if !behind || commit_time_us == 0 {
        return 0;
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    (i64::try_from(now.as_secs()).unwrap_or(i64::MAX) - commit_time_us / 1_000_000).max(0)
}
