//! The replication stream, behind a small trait: pgwire-replication carries it, and tests play it from memory.
//!
//! Corner cases of the crate that this module keeps to itself (reference/postgres-cdc.md §1.3): its LSN of a
//! keepalive is what the server has sent, `XLogData.wal_end` means nothing, and feedback is sent by its own
//! task whether or not anybody reads.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use pgwire_replication::{PgWireError, ReplicationClient, ReplicationEvent};

use super::connect::{Connector, RAW_TEXT_SQL};
use super::lsn::Lsn;
use super::trouble::Failure;
use crate::fault::Fault;

/// How long the stream may take to begin, connecting included.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// Microseconds between 1970, from where Tidemill counts, and 2000, from where Postgres does.
const EPOCH_DISTANCE_US: i64 = 946_684_800_000_000;

/// After so many events in a row, more are on their way.
const EVENTS_IN_A_ROW: u32 = 64;
/// How long the connection's thread rests after fewer: what the server sends meanwhile is read at once.
const REST: Duration = Duration::from_millis(1);

/// What arrives on the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// A connection was made: a transaction that was only begun comes again.
    Connected {
        /// Its number.
        session: u64,
    },
    /// A transaction begins.
    Begin {
        /// LSN of its commit record.
        final_lsn: Lsn,
        /// Its id.
        xid: u32,
        /// When it was committed, microseconds since 1970 UTC.
        commit_time_us: i64,
    },
    /// A pgoutput message within it.
    Change(Bytes),
    /// It ends.
    Commit {
        /// LSN behind it: what may be confirmed once all of it is durable.
        end_lsn: Lsn,
    },
    /// The server has sent all that there is up to here.
    Idle {
        /// LSN behind it.
        upto: Lsn,
        /// The server waits for our answer: it may be shutting down.
        urgent: bool,
    },
}

impl Event {
    /// Bytes that it holds.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Event::Change(data) => data.len(),
            Event::Connected { .. } | Event::Begin { .. } | Event::Commit { .. } | Event::Idle { .. } => 0,
        }
    }
}

/// A replication connection that has started.
pub(super) trait Transport: Send {
    /// The next event; waits for it, and may let the thread rest before. May be dropped and called again.
    ///
    /// # Errors
    /// When the connection is gone.
    fn next(&mut self) -> impl Future<Output = Result<Event, Fault>> + Send;

    /// Everything up to `lsn` is durable. Returns at once; what goes back is ignored.
    fn confirm(&self, lsn: Lsn);

    /// Tells the server the last confirmation, and says farewell.
    fn close(self) -> impl Future<Output = ()> + Send;
}

/// The real one.
pub(super) struct PgWire {
    client: ReplicationClient,
    connector: Arc<Connector>,
    /// Events since the thread rested or waited last.
    came: u32,
}

impl PgWire {
    /// Starts replication from `from`; done when the slot is ours.
    ///
    /// # Errors
    /// What the server says.
    pub(super) async fn start(connector: &Arc<Connector>, from: Lsn) -> Result<PgWire, Fault> {
        let connector = Arc::clone(connector);
        let config = connector.replication_config(from)?;
        let failed = |error: PgWireError| trouble(error, &connector);
        let started = async {
            let mut client = ReplicationClient::connect_gated(config).await?;
            client.simple_query(RAW_TEXT_SQL).await?;
            client.start().await?;
            client.wait_started().await.map(|()| client)
        };
        // The client has no limit of its own.
        let client = match tokio::time::timeout(START_PATIENCE, started).await {
            Ok(started) => started.map_err(failed)?,
            Err(_) => {
                let waited = START_PATIENCE.as_secs();
                return Err(Fault::retry(format!("the replication stream did not begin within {waited} s")));
            }
        };
        Ok(PgWire { client, connector, came: 0 })
    }
}

impl PgWire {
    /// What the crate has for us. With nothing there, it rests after few events: the server sends each row by itself, and
    /// each would wake the thread.
    async fn received(&mut self) -> Result<Option<ReplicationEvent>, PgWireError> {
        let PgWire { client, came, .. } = self;
        let mut receiving = pin!(client.recv());
        // Not dropped in between: what it hears of the connection's end, it hears once.
        let event = match poll_fn(|context| Poll::Ready(receiving.as_mut().poll(context))).await {
            Poll::Ready(event) => event,
            Poll::Pending => {
                if (1..EVENTS_IN_A_ROW).contains(&std::mem::take(came)) {
                    std::thread::sleep(REST);
                }
                receiving.await
            }
        };
        *came = came.saturating_add(1);
        event
    }
}

fn trouble(error: PgWireError, connector: &Connector) -> Fault {
    Failure::from(error).fault(&format!("follow slot {}", connector.source().slot), connector.source())
}

impl Transport for PgWire {
    async fn next(&mut self) -> Result<Event, Fault> {
        loop {
            let event = match self.received().await {
                Ok(Some(event)) => event,
                Ok(None) => return Err(Fault::retry("the server has ended the replication stream")),
                Err(error) => return Err(trouble(error, &self.connector)),
            };
            return Ok(match event {
                ReplicationEvent::XLogData { data, .. } => Event::Change(data),
                ReplicationEvent::Begin { final_lsn, xid, commit_time_micros } => Event::Begin {
                    final_lsn: Lsn(final_lsn.as_u64()),
                    xid,
                    commit_time_us: commit_time_micros.saturating_add(EPOCH_DISTANCE_US),
                },
                ReplicationEvent::Commit { end_lsn, .. } => Event::Commit { end_lsn: Lsn(end_lsn.as_u64()) },
                ReplicationEvent::KeepAlive { wal_end, reply_requested, .. } => {
                    Event::Idle { upto: Lsn(wal_end.as_u64()), urgent: reply_requested }
                }
                // Ours are heartbeats: that they made the log go on is all they are for.
                ReplicationEvent::Message { .. } => continue,
                ReplicationEvent::StoppedAt { .. } => {
                    return Err(Fault::retry("the replication stream stopped, which nobody asked for"));
                }
            });
        }
    }

    fn confirm(&self, lsn: Lsn) {
        self.client.update_applied_lsn(pgwire_replication::Lsn::from_u64(lsn.0));
    }

    async fn close(mut self) {
        // It tells the server the last confirmation; a server that is gone needs none.
        let _ = self.client.shutdown().await;
    }
}
