//! Looks at the slot now and then: its size is what Postgres has to keep for us. Sends heartbeats, so that the
//! slot of an idle database moves on while others write. Looks at the tables, too: whether others have come, and
//! whether those that are followed are still published.

use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::catalog;
use super::connect::{Connector, Control as Connection};
use super::facts::{Server, Slot};
use super::lsn::Lsn;
use super::newcomers::Newcomers;
use super::progress::Progress;
use super::roster::{Drift, Roster};
use super::table::TableName;
use crate::config::model::Postgres;
use crate::fault::{Fault, FaultKind};
use crate::meter::{PostgresMeter, Waiting};

/// How often the slot and the tables are looked at.
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
/// How long new tables may take to be made ready before the slot is looked at again.
const WELCOME_WAIT: Duration = Duration::from_secs(2);
/// What heartbeat messages are called.
const HEARTBEAT: &str = "tidemill_heartbeat";

/// What has become of the tables.
#[derive(Debug)]
pub(super) enum News {
    /// Others are to be followed from now on.
    Changed {
        /// Can be followed, and are not.
        came: Vec<TableName>,
        /// Are not there any more.
        gone: Vec<TableName>,
        /// Where the log ended after that: changes of those that are gone come before.
        written: Lsn,
    },
    /// Changes of tables are lost.
    Lost(Fault),
}

/// Ends the looking when dropped.
pub(super) struct SourceWatch {
    task: AbortHandle,
    news: watch::Receiver<Option<News>>,
}

impl SourceWatch {
    /// What has become of the tables, if anything has. The first news are the last: they end the round.
    pub(super) fn news(&self) -> watch::Ref<'_, Option<News>> {
        self.news.borrow()
    }
}

impl Drop for SourceWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whoever looks.
pub(super) struct Watcher {
    /// The server, as it was at the start.
    pub(super) server: Server,
    /// The tables that are followed.
    pub(super) roster: Roster,
    /// Sees to others.
    pub(super) newcomers: Newcomers,
    /// Shared with control.
    pub(super) progress: Progress,
    /// Told of the slot.
    pub(super) meter: PostgresMeter,
}

impl Watcher {
    /// Starts to look.
    pub(super) fn start(self, runtime: &Handle) -> SourceWatch {
        let (tell, news) = watch::channel(None);
        let last = self.progress.newest().0;
        let looks = Looks {
            watcher: self,
            refused: 0,
            unread: 0,
            last,
            quiet_since: Instant::now(),
            too_large: None,
            welcoming: JoinSet::new(),
            tell,
        };
        SourceWatch { task: runtime.spawn(looks.run()).abort_handle(), news }
    }

    fn connector(&self) -> &Connector {
        &self.newcomers.connector
    }

    fn source(&self) -> &Postgres {
        self.connector().source()
    }
}

/// What is known from one look to the next.
struct Looks {
    watcher: Watcher,
    /// Looks in a row for which the server let us in no more.
    refused: u32,
    /// Looks in a row that saw no reader at the slot.
    unread: u32,
    /// Newest place of the stream, and since when there is no newer one.
    last: Lsn,
    quiet_since: Instant,
    too_large: Option<Waiting>,
    /// Makes new tables ready, one task at a time.
    welcoming: JoinSet<Result<Vec<TableName>, Fault>>,
    tell: watch::Sender<Option<News>>,
}

/// A connection that did not answer: the next look takes another one.
struct Silent;

impl Looks {
    async fn run(mut self) {
        let heartbeat = self.watcher.source().heartbeat.max(Duration::from_secs(1));
        let mut every = tokio::time::interval(LOOK_EVERY.min(heartbeat));
        let mut connection: Option<Connection> = None;
        loop {
            every.tick().await;
            let open = match connection.take().filter(|open| !open.is_closed()) {
                Some(open) => open,
                None => match self.connect().await {
                    Some(open) => open,
                    None => continue,
                },
            };
            connection = self.look(&open).await.ok().map(|()| open);
        }
    }

    async fn connect(&mut self) -> Option<Connection> {
        match self.watcher.connector().control().await {
            Ok(open) => Some(open),
            Err(fault) => {
                self.refused += 1;
                let passing = fault.kind == FaultKind::Retry;
                if passing && self.refused == REFUSED_LOOKS && self.watcher.progress.is_connected() {
                    self.watcher.progress.broke(fault);
                }
                None
            }
        }
    }

    async fn look(&mut self, open: &Connection) -> Result<(), Silent> {
        self.refused = 0;
        self.beat_if_quiet(open).await?;
        let slot = answered(catalog::slot(open, &self.watcher.source().slot)).await?;
        let slot = slot.ok_or(Silent)?;
        self.judge_slot(&slot);
        if self.tell.borrow().is_none() {
            self.look_at_tables(open).await?;
        }
        Ok(())
    }

    async fn beat_if_quiet(&mut self, open: &Connection) -> Result<(), Silent> {
        let newest = self.watcher.progress.newest().0;
        let beats = !self.watcher.server.in_recovery;
        if newest != self.last {
            (self.last, self.quiet_since) = (newest, Instant::now());
        } else if beats && self.quiet_since.elapsed() >= self.watcher.source().heartbeat {
            self.quiet_since = Instant::now();
            match tokio::time::timeout(ANSWER_MAX, beat(open)).await {
                Ok(Ok(())) => {}
                Ok(Err(fault)) => tracing::debug!("{}", fault.story()),
                Err(_late) => return Err(Silent),
            }
        }
        Ok(())
    }

    fn judge_slot(&mut self, slot: &Slot) {
        let Watcher { progress, meter, newcomers, .. } = &self.watcher;
        let source = newcomers.connector.source();
        self.unread = if is_unread(slot, progress) { self.unread + 1 } else { 0 };
        if self.unread == UNREAD_LOOKS {
            progress.broke(Fault::retry(format!(
                "slot {} has no reader, though our connection seems to be there: the line went dead",
                source.slot
            )));
        }
        let (newest, commit_time_us) = progress.newest();
        show(slot, newest, meter);
        meter.lag_seconds.set(lag_seconds(commit_time_us, slot, newest.0));
        let held = slot.held_wal_bytes.unwrap_or(0);
        self.too_large = match self.too_large.take() {
            _ if u64::try_from(held).is_ok_and(|held| held <= source.max_slot_wal_bytes) => None,
            Some(waiting) => Some(waiting),
            None => {
                let what = format!(
                    "slot {} holds {held} bytes of log, more than max_slot_wal = {}",
                    source.slot, source.max_slot_wal_bytes
                );
                tracing::warn!(pipeline = %newcomers.meter.name, "{what}");
                Some(Waiting::begin(&newcomers.meter, what))
            }
        };
    }

    /// Compares the tables with those that are followed.
    async fn look_at_tables(&mut self, open: &Connection) -> Result<(), Silent> {
        let drift = self.drift(open).await?;
        // The catalogue was asked for tables first and for the publication then: a table that was dropped in between
        // has not left the publication. Seen twice, it has.
        if drift.lost(self.watcher.source()).is_some()
            && let Some(fault) = self.drift(open).await?.lost(self.watcher.source())
        {
            self.tell.send_replace(Some(News::Lost(fault)));
            return Ok(());
        }
        let came = self.welcome(!drift.came.is_empty()).await;
        if !came.is_empty() || !drift.gone.is_empty() {
            let written = answered(catalog::written(open)).await?;
            self.tell.send_replace(Some(News::Changed { came, gone: drift.gone, written }));
        }
        Ok(())
    }

    async fn drift(&self, open: &Connection) -> Result<Drift, Silent> {
        let outline = catalog::outline(open, self.watcher.source(), &self.watcher.server);
        Ok(self.watcher.roster.drift(&answered(outline).await?))
    }

    /// Has new tables made ready, which may take long; returns those that are by now.
    async fn welcome(&mut self, have_come: bool) -> Vec<TableName> {
        if have_come && self.welcoming.is_empty() {
            let newcomers = self.watcher.newcomers.clone();
            self.welcoming.spawn(async move { newcomers.welcome().await });
        }
        match tokio::time::timeout(WELCOME_WAIT, self.welcoming.join_next()).await {
            Ok(Some(Ok(Ok(ready)))) => ready,
            Ok(Some(Ok(Err(fault)))) => {
                tracing::debug!("{}; looking at new tables again", fault.story());
                Vec::new()
            }
            Ok(Some(Err(panic))) => {
                tracing::error!(%panic, "looking at new tables panicked");
                Vec::new()
            }
            // None is new, or they take long.
            Ok(None) | Err(_) => Vec::new(),
        }
    }
}

/// The answer, if there is one in time.
async fn answered<T>(asked: impl Future<Output = Result<T, Fault>>) -> Result<T, Silent> {
    match tokio::time::timeout(ANSWER_MAX, asked).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(fault)) => {
            tracing::debug!("{}; asking again", fault.story());
            Err(Silent)
        }
        Err(_late) => Err(Silent),
    }
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
    let now = crate::clock::since_1970();
    (i64::try_from(now.as_secs()).unwrap_or(i64::MAX) - commit_time_us / 1_000_000).max(0)
}
