//! Carries events from the replication connection to the feed's thread, and confirmations back.

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc, watch};

use super::lsn::Lsn;
use super::progress::Progress;
use super::transport::{Event, Transport};

/// Events that may wait for the feed.
pub(super) const EVENTS_WAITING_MAX: usize = 2048;
/// Bytes that may wait for the feed; a larger event passes alone.
const WAITING_BYTES_MAX: usize = 8 << 20;

/// An event, and the room that it takes until it is dropped.
#[derive(Debug)]
pub(super) struct Pumped {
    /// What arrived.
    pub(super) event: Event,
    _room: Option<tokio::sync::OwnedSemaphorePermit>,
}

/// The feed's end of the pump, and the pumps' end of the feed: one of each for all connections of a life.
#[derive(Debug, Clone)]
pub(super) struct Pipe {
    events: mpsc::Sender<Pumped>,
    room: Arc<Semaphore>,
}

impl Pipe {
    /// A pipe, with the end that the feed reads.
    pub(super) fn new() -> (Pipe, mpsc::Receiver<Pumped>) {
        let (events, feed) = mpsc::channel(EVENTS_WAITING_MAX);
        (Pipe { events, room: Arc::new(Semaphore::new(WAITING_BYTES_MAX)) }, feed)
    }

    /// Sends an event; none = the feed has ended.
    async fn send(&self, event: Event) -> Option<()> {
        let room = match event.bytes().min(WAITING_BYTES_MAX) {
            0 => None,
            // At most WAITING_BYTES_MAX, which fits.
            bytes => Some(Arc::clone(&self.room).acquire_many_owned(bytes as u32).await.ok()?),
        };
        self.events.send(Pumped { event, _room: room }).await.ok()
    }
}

/// Pumps until the connection is gone, which `progress` is told, or the feed is.
pub(super) async fn pump<T: Transport>(
    mut transport: T,
    pipe: Pipe,
    mut confirmed: watch::Receiver<Lsn>,
    progress: Progress,
) {
    // A feed that has ended is noticed below.
    let _ = pipe.send(Event::Connected).await;
    loop {
        let event = tokio::select! {
            event = transport.next() => event,
            changed = confirmed.changed() => {
                if changed.is_err() {
                    // Control has ended.
                    return transport.close().await;
                }
                transport.confirm(*confirmed.borrow_and_update());
                continue;
            }
        };
        let event = match event {
            Ok(event) => event,
            Err(fault) => return progress.broke(fault),
        };
        if let Event::Idle { upto, .. } | Event::Commit { end_lsn: upto } = &event {
            progress.received(*upto);
        }
        let sent = tokio::select! {
            sent = pipe.send(event) => sent,
            // While the feed is behind confirmations still go out.
            closed = keep_confirming(&transport, &mut confirmed) => closed,
        };
        if sent.is_none() {
            // The feed has ended: only confirmations are left to pass on.
            let _ = keep_confirming(&transport, &mut confirmed).await;
            return transport.close().await;
        }
    }
}

/// Passes confirmations on until control has ended.
async fn keep_confirming<T: Transport>(transport: &T, confirmed: &mut watch::Receiver<Lsn>) -> Option<()> {
    while confirmed.changed().await.is_ok() {
        transport.confirm(*confirmed.borrow_and_update());
    }
    None
}
