//! Carries events from the replication connection to the feed's thread, and confirmations back.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle};

use super::lsn::Lsn;
use super::progress::Progress;
use super::transport::{Event, Transport};
use crate::fault::Fault;

/// Events that may wait for the feed.
pub(super) const EVENTS_WAITING_MAX: usize = 2048;
/// Bytes that may wait for the feed; a larger event passes alone.
const WAITING_BYTES_MAX: usize = 8 << 20;

/// A server that shuts down asks again and again, and waits until everything is confirmed. What is behind by
/// then may take long: after so many questions without a change in between, and so long, it is let go.
const URGENT_EVENTS_MAX: u32 = 5;
/// See [`URGENT_EVENTS_MAX`].
const URGENT_PATIENCE: Duration = Duration::from_secs(5);

/// Notices a server that shuts down.
#[derive(Default)]
struct Urgency(Option<(Instant, u32)>);

impl Urgency {
    /// Whether the server has waited long enough.
    fn is_over(&mut self, event: &Event) -> bool {
        match event {
            Event::Idle { urgent: true, .. } => {
                let (since, count) = self.0.get_or_insert_with(|| (Instant::now(), 0));
                *count += 1;
                *count >= URGENT_EVENTS_MAX && since.elapsed() >= URGENT_PATIENCE
            }
            Event::Idle { urgent: false, .. }
            | Event::Connected { .. }
            | Event::Begin { .. }
            | Event::Change(_)
            | Event::Commit { .. } => {
                self.0 = None;
                false
            }
        }
    }
}

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

/// Where a connection and its pump run: on one thread, by themselves. The server sends each row by itself, and a
/// thread that is woken for each does little else; this one may rest until there are some ([`Transport::next`]),
/// which threads that others share may not.
pub(super) struct Engine(Runtime);

impl Engine {
    /// # Errors
    /// If the system has no more files.
    pub(super) fn new() -> Result<Engine, Fault> {
        let runtime = Builder::new_current_thread().enable_all().build();
        runtime
            .map(Engine)
            .map_err(|error| Fault::retry("cannot start a connection's runtime").caused_by(error))
    }

    /// Makes the connection; it stands still until it is pumped.
    pub(super) fn block_on<T>(&self, connecting: impl Future<Output = T>) -> T {
        self.0.block_on(connecting)
    }

    /// Runs the pump on a thread of `threads` until it ends or is told to.
    pub(super) fn run(self, pump: impl Future<Output = ()> + Send + 'static, threads: &Handle) -> Pumping {
        let Engine(runtime) = self;
        let pumping = runtime.spawn(pump);
        let abort = pumping.abort_handle();
        let ended = threads.spawn_blocking(move || {
            if let Err(panic) = runtime.block_on(pumping)
                && panic.is_panic()
            {
                tracing::error!(%panic, "the replication stream's pump panicked");
            }
        });
        Pumping { ended, abort }
    }
}

/// A pump that runs.
pub(super) struct Pumping {
    /// Done when it has ended.
    pub(super) ended: JoinHandle<()>,
    abort: AbortHandle,
}

impl Pumping {
    /// Ends it without a word to the server.
    pub(super) fn abort(&self) {
        self.abort.abort();
    }
}

/// Pumps until the connection is gone, which `progress` is told, or the feed is.
pub(super) async fn pump<T: Transport>(
    mut transport: T,
    session: u64,
    pipe: Pipe,
    mut confirmed: watch::Receiver<Lsn>,
    progress: Progress,
) {
    // A feed that has ended is noticed below.
    let _ = pipe.send(Event::Connected { session }).await;
    let mut urgency = Urgency::default();
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
        if urgency.is_over(&event) {
            return progress
                .broke(Fault::retry("the server waits for confirmations, as it does when it shuts down"));
        }
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

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use bytes::Bytes;

    use super::*;

    /// How long something that has to happen may take.
    const SOON: Duration = Duration::from_secs(20);

    /// Gives its events, and then nothing; remembers what was confirmed.
    struct Canned {
        events: VecDeque<Event>,
        confirmed: Arc<Mutex<Vec<Lsn>>>,
    }

    impl Transport for Canned {
        async fn next(&mut self) -> Result<Event, Fault> {
            match self.events.pop_front() {
                Some(event) => Ok(event),
                None => std::future::pending().await,
            }
        }

        fn confirm(&self, lsn: Lsn) {
            self.confirmed.lock().expect("nobody panics").push(lsn);
        }

        async fn close(self) {}
    }

    #[tokio::test]
    async fn confirmations_go_out_while_the_feed_is_behind() {
        let (pipe, mut feed) = Pipe::new();
        let (confirm, hears) = watch::channel(Lsn(0));
        let confirmed = Arc::new(Mutex::new(Vec::new()));
        let events = (1..=2 * EVENTS_WAITING_MAX as u64).map(|lsn| Event::Commit { end_lsn: Lsn(lsn) });
        let transport = Canned { events: events.collect(), confirmed: Arc::clone(&confirmed) };
        let progress = Progress::default();
        let pumping = tokio::spawn(pump(transport, 1, pipe, hears, progress.clone()));
        let full = async {
            while feed.len() < EVENTS_WAITING_MAX {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(SOON, full).await.expect("the pump fills the pipe");
        confirm.send_replace(Lsn(7));
        let told = async {
            while confirmed.lock().expect("nobody panics").is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(SOON, told).await.expect("the server is told although nobody reads");
        let first = feed.recv().await.map(|pumped| pumped.event);
        assert_eq!(first, Some(Event::Connected { session: 1 }));
        let second = feed.recv().await.map(|pumped| pumped.event);
        assert_eq!(second, Some(Event::Commit { end_lsn: Lsn(1) }));
        assert_eq!(*confirmed.lock().expect("nobody panics"), [Lsn(7)]);
        drop(confirm);
        tokio::time::timeout(SOON, pumping).await.expect("it ends with control").expect("no panic");
    }

    #[tokio::test]
    async fn what_waits_is_limited_by_its_bytes() {
        let (pipe, mut feed) = Pipe::new();
        let large = || Event::Change(Bytes::from(vec![0; WAITING_BYTES_MAX]));
        pipe.send(large()).await.expect("the feed is there");
        let mut second = std::pin::pin!(pipe.send(large()));
        assert!(
            std::future::poll_fn(|cx| std::task::Poll::Ready(second.as_mut().poll(cx))).await.is_pending()
        );
        // Its room comes free when the feed is done with it, and not when it takes it.
        let first = feed.recv().await.expect("an event");
        assert!(
            std::future::poll_fn(|cx| std::task::Poll::Ready(second.as_mut().poll(cx))).await.is_pending()
        );
        drop(first);
        tokio::time::timeout(SOON, second).await.expect("there is room").expect("the feed is there");
    }

    #[test]
    fn a_server_that_asks_again_and_again_is_let_go() {
        let asks = Event::Idle { upto: Lsn(1), urgent: true };
        let long_ago = Instant::now().checked_sub(URGENT_PATIENCE).expect("the clock has run for seconds");
        let mut urgency = Urgency(Some((long_ago, URGENT_EVENTS_MAX - 2)));
        assert!(!urgency.is_over(&asks));
        assert!(urgency.is_over(&asks));
        // Whoever still sends changes is not waiting.
        assert!(!urgency.is_over(&Event::Commit { end_lsn: Lsn(1) }));
        assert!(!urgency.is_over(&asks));
    }
}
