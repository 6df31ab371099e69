//! Which of several processes with the same file reads the slot: the one that holds an advisory lock in the
//! source database. The lock ends with its connection, so a process that dies frees it within moments.
//!
//! The lock is also the fence of its rows (delivery.md §2): between the begin of a load and its body the
//! connection that holds it is asked. Whoever takes over resolves the labels that its predecessor claimed,
//! and every load that begins later, of whoever thinks that it still leads, fails at the fence.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::runtime::Handle;
use tokio::sync::Mutex as AsyncMutex;

use super::connect::{Connector, Control as Connection};
use super::position::{Claim, Claims, Positions};
use crate::fault::Fault;
use crate::position::Stay;
use crate::sink::{Destination, Fence, FenceAnswer};

/// How long the lock's connection may take to answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);
/// How long the lock's connection may be silent before the server ends it: a process that is frozen, whose
/// connection looks alive, then loses the lock.
const SILENCE_MAX: &str = "10s";
/// How often the leader breaks the silence.
const PULSE_EVERY: Duration = Duration::from_secs(2);
/// Labels that are claimed at a time: each claim is a load of its own.
const CLAIMED_AT_A_TIME: u64 = 64;

/// The right to read the slot and to load its rows.
pub(crate) struct Leadership {
    connector: Arc<Connector>,
    key: i64,
    /// The connection that holds the lock.
    holder: AsyncMutex<Option<Connection>>,
    own: AsyncMutex<Option<Own>>,
    /// Numbers of labels that are not decided.
    undecided: Mutex<BTreeSet<u64>>,
    /// It is known that nobody led since this process did: rows may be sent.
    admitted: AtomicBool,
    /// Somebody breaks the silence of the lock's connection.
    is_kept_alive: AtomicBool,
}

/// What this process has claimed.
struct Own {
    positions: Arc<Positions>,
    claim: Claim,
}

impl fmt::Debug for Leadership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leadership").field("key", &self.key).finish_non_exhaustive()
    }
}

/// The lock's number: the same for all processes that would read the slot.
fn key_of(slot: &str) -> i64 {
    let digest = Sha256::digest(format!("tidemill slot {slot}").as_bytes());
    let mut first = [0; 8];
    first.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
    i64::from_be_bytes(first)
}

impl Leadership {
    /// Not held yet.
    pub(super) fn new(connector: &Arc<Connector>) -> Leadership {
        Leadership {
            key: key_of(&connector.source().slot),
            connector: Arc::clone(connector),
            holder: AsyncMutex::default(),
            own: AsyncMutex::default(),
            undecided: Mutex::default(),
            admitted: AtomicBool::new(false),
            is_kept_alive: AtomicBool::new(false),
        }
    }

    fn undecided(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        // Single insertions and removals: a panic elsewhere leaves it usable.
        self.undecided.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the lock's connection from falling silent, whatever else the process is busy with.
    pub(super) fn keep_alive(self: &Arc<Self>, runtime: &Handle) {
        if self.is_kept_alive.swap(true, Ordering::AcqRel) {
            return;
        }
        let weak = Arc::downgrade(self);
        runtime.spawn(async move {
            let mut every = tokio::time::interval(PULSE_EVERY);
            loop {
                every.tick().await;
                let Some(leadership) = weak.upgrade() else { return };
                leadership.pulse().await;
            }
        });
    }

    /// Rows may be sent: nobody else has led since the claim was written.
    pub(super) fn admit(&self) {
        self.admitted.store(true, Ordering::Release);
    }

    /// Tries to get the lock, if it is not held already; false while another process has it. After that it has
    /// to be [admitted](Leadership::admit).
    ///
    /// # Errors
    /// If the source cannot be asked.
    pub(super) async fn acquire(&self) -> Result<bool, Fault> {
        let mut holder = self.holder.lock().await;
        if holder.as_ref().is_some_and(|connection| !connection.is_closed()) {
            return Ok(true);
        }
        *holder = None;
        self.admitted.store(false, Ordering::Release);
        let connection = self.connector.control().await?;
        let asked = connection.client().query_one("SELECT pg_try_advisory_lock($1)", &[&self.key]).await;
        let asked = asked.and_then(|row| row.try_get::<_, bool>(0));
        let held = asked.map_err(|error| connection.fault("ask for the lock of the slot", error))?;
        if held {
            let limit = format!("SET idle_session_timeout = '{SILENCE_MAX}'");
            let limited = connection.client().batch_execute(&limit).await;
            limited.map_err(|error| connection.fault("limit the silence of the lock's connection", error))?;
            *holder = Some(connection);
        }
        Ok(held)
    }

    /// Whether the lock's connection is gone, as far as is known without asking.
    pub(super) fn is_lost(&self) -> bool {
        self.holder.try_lock().is_ok_and(|holder| holder.as_ref().is_none_or(Connection::is_closed))
    }

    /// Gives the lock up, for good: whatever still holds this value sends nothing any more.
    pub(super) async fn retire(&self) {
        self.admitted.store(false, Ordering::Release);
        *self.holder.lock().await = None;
        *self.own.lock().await = None;
    }

    /// Resolves what processes before may have left open, and claims what comes for this process, whose labels
    /// begin with `stem`. True once that is done; false if a label is still open.
    ///
    /// # Errors
    /// If StarRocks cannot be asked.
    pub(super) async fn take_over(
        &self,
        positions: &Arc<Positions>,
        before: &Claims,
        stem: &str,
    ) -> Result<bool, Fault> {
        let mut own = self.own.lock().await;
        for claim in before.values() {
            for number in claim.first..claim.end {
                let label = format!("{}-{number}", claim.stem);
                if !positions.resolve(&label).await? {
                    tracing::info!(%label, "a load of the process before is open: it is cancelled");
                    return Ok(false);
                }
            }
        }
        let claim = Claim::after(before, stem);
        positions.claimed(&claim).await?;
        *own = Some(Own { positions: Arc::clone(positions), claim });
        self.admit();
        // The next one to take over looks at what is left, and tidies up in its turn.
        if let Err(fault) = positions.tidied(before).await {
            tracing::debug!("{}; claims of processes before stay for now", fault.story());
        }
        Ok(true)
    }

    /// Whether this process took over, and nobody has since.
    pub(super) async fn is_newest(&self, found: &Claims) -> bool {
        self.own.lock().await.as_ref().is_some_and(|Own { claim, .. }| claim.is_newest(found))
    }

    async fn claim(&self, number: u64) -> Result<(), Fault> {
        let mut own = self.own.lock().await;
        let Some(Own { positions, claim }) = own.as_mut() else {
            return Err(Fault::retry("the slot was not taken over yet"));
        };
        self.undecided().insert(number);
        // Numbers are announced in any order: one before the claim's begin has to be claimed, too.
        if (claim.first..claim.end).contains(&number) {
            return Ok(());
        }
        let first = self.undecided().first().copied().unwrap_or(number);
        // Also for one that was given up, and may land yet.
        claim.revision += 1;
        let longer = Claim { first, end: claim.end.max(number + CLAIMED_AT_A_TIME), ..claim.clone() };
        positions.claimed(&longer).await?;
        *claim = longer;
        Ok(())
    }

    /// Keeps the lock's connection from falling silent. That it is gone is noticed by [`Leadership::is_lost`].
    async fn pulse(&self) {
        let mut holder = self.holder.lock().await;
        let Some(connection) = holder.as_ref() else { return };
        let asked = connection.client().simple_query("SELECT 1");
        match tokio::time::timeout(ANSWER_PATIENCE, asked).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the connection of the slot's lock has ended"),
            // On a line that went dead it never will. The server ends its side after `SILENCE_MAX`.
            Err(_) => *holder = None,
        }
    }

    /// Asks the server whether the lock is still held, and rows may be sent.
    ///
    /// # Errors
    /// Retry, if not, or if that is not known.
    pub(super) async fn ask(&self) -> Result<(), Fault> {
        if !self.admitted.load(Ordering::Acquire) {
            return Err(Fault::retry("it is not known yet whether another process has read the slot"));
        }
        let mut holder = self.holder.lock().await;
        let Some(connection) = holder.as_ref() else {
            return Err(Fault::retry("the lock of the slot is not held at the moment"));
        };
        match tokio::time::timeout(ANSWER_PATIENCE, connection.client().simple_query("SELECT 1")).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(connection.fault("ask whether the slot is still ours", error)),
            Err(_) => {
                *holder = None;
                Err(Fault::retry(format!(
                    "the connection that holds the lock of the slot did not answer within {} s",
                    ANSWER_PATIENCE.as_secs()
                )))
            }
        }
    }
}

impl Fence for Leadership {
    /// Every load of the process, whatever its table: one slot has one reader.
    fn guards(&self, _destination: &Destination) -> bool {
        true
    }

    fn announce<'a>(&'a self, number: u64, _stays: &'a [Stay]) -> FenceAnswer<'a> {
        Box::pin(self.claim(number))
    }

    fn holds(&self, _number: u64) -> FenceAnswer<'_> {
        Box::pin(self.ask())
    }

    fn settled(&self, number: u64) {
        self.undecided().remove(&number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_has_one_key_for_all_processes() {
        assert_eq!(key_of("tidemill_orders"), key_of("tidemill_orders"));
        assert_ne!(key_of("tidemill_orders"), key_of("tidemill_events"));
    }
}
