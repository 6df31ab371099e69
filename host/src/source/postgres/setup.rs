//! Carries the plan out: publication, slots, and snapshots for copying.

use std::pin::pin;
use std::time::Duration;

use tokio_postgres::error::SqlState;

use super::catalog;
use super::connect::{Connector, Control};
use super::facts::{Server, Writer};
use super::lsn::Lsn;
use super::preflight::Step;
use super::quote::{friendly, identifier, table};
use super::session::{Session, TextRow};
use super::trouble::Failure;
use crate::fault::Fault;

/// How long the server may take to end a statement that it was told to end.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(10);
/// The first version that takes options in parentheses.
const WITH_OPTIONS_IN_PARENTHESES: u32 = 150_000;

/// What the server says of something that is there: looked up, or found by its index when another session made it meanwhile.
const IS_THERE: [SqlState; 2] = [SqlState::DUPLICATE_OBJECT, SqlState::UNIQUE_VIOLATION];

/// Makes or completes the publication, as far as `steps` say so; slots are made by [`create_slot`]. What is there
/// already is left as it is, so that two processes may do it at once.
///
/// # Errors
/// `Halt` without the right to do it, `Retry` when a table stays locked for 10 seconds.
pub async fn publish(control: &Control, steps: &[Step]) -> Result<(), Fault> {
    for step in steps {
        match step {
            Step::CreatePublication { .. } => {
                run_once(control, &step.sql(), "create the publication").await?;
            }
            // One by one: a table that is in it already fails the statement, and with it the others.
            Step::AddTables { publication, tables } => {
                for name in tables {
                    let add =
                        format!("ALTER PUBLICATION {} ADD TABLE {}", identifier(publication), table(name));
                    run_once(control, &add, &format!("add {name} to the publication")).await?;
                }
            }
            Step::CreateSlot { .. } => {}
        }
    }
    Ok(())
}

async fn run_once(control: &Control, statement: &str, attempted: &str) -> Result<(), Fault> {
    match control.client().batch_execute(statement).await {
        Ok(()) => Ok(()),
        Err(error) if error.code().is_some_and(|code| IS_THERE.contains(code)) => Ok(()),
        Err(error) => Err(control.fault(attempted, error)),
    }
}

/// How long a slot lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// Until it is dropped.
    Permanent,
    /// As long as the connection that made it: for a snapshot with a known place in the log.
    Temporary,
}

/// A snapshot that other connections can take over for as long as this value lives: the server forgets it when
/// the connection that exports it ends. What they copy is all that was committed before `point`.
#[derive(Debug)]
pub struct Exported {
    /// For `SET TRANSACTION SNAPSHOT`.
    pub snapshot: String,
    /// Transactions with a commit at or after this place are not in the snapshot; the slot tells of them.
    pub point: Lsn,
    session: Session,
}

impl Exported {
    /// The server's process that keeps the snapshot.
    pub fn pid(&self) -> i32 {
        self.session.pid()
    }

    /// Ends the export, when every connection that copies has taken the snapshot over. Dropping does it too, but then
    /// the server's log speaks of a client that vanished.
    pub async fn release(self) {
        self.session.close().await;
    }
}

/// What a server says of itself on a replication connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identified {
    /// Names the cluster; copies of it made by file have the same.
    pub system_identifier: u64,
    /// Grows at each promotion of a standby.
    pub timeline: u32,
    /// Up to where its log is written.
    pub written: Lsn,
}

/// Asks which cluster and timeline this is.
///
/// # Errors
/// As [`Connector::replication`].
pub async fn identify(connector: &Connector) -> Result<Identified, Fault> {
    let mut session = connector.replication().await?;
    let attempted = "identify the server";
    let failed = |failure: Failure| failure.fault(attempted, connector.source());
    let rows = session.run("IDENTIFY_SYSTEM").await.map_err(failed)?;
    let identified = rows.first().and_then(|row| {
        let text = |index: usize| row.get(index).and_then(Option::as_deref);
        Some(Identified {
            system_identifier: text(0)?.parse().ok()?,
            timeline: text(1)?.parse().ok()?,
            written: text(2)?.parse().ok()?,
        })
    });
    identified.ok_or_else(|| failed(Failure::Protocol(format!("an unexpected answer: {rows:?}"))))
}

/// Makes a slot and exports the snapshot that belongs to its beginning. The publication has to be there.
///
/// The server waits until every transaction that is writing at that moment has ended. After `patience` it is told
/// to give up, and the fault names whom it waited for.
///
/// # Errors
/// `Retry` when it was held up, `Halt` without the right, the room, or the name for it.
pub async fn create_slot(
    connector: &Connector,
    control: &Control,
    server: &Server,
    slot: &str,
    lifetime: Lifetime,
    patience: Duration,
) -> Result<Exported, Fault> {
    let mut session = connector.replication().await?;
    let pid = session.pid();
    let attempted = format!("create the replication slot {slot}");
    let failed = |failure: Failure| failure.fault(&attempted, connector.source());
    let statement = create_statement(slot, lifetime, server.version);
    let created = {
        let mut running = pin!(session.run(&statement));
        match tokio::time::timeout(patience, running.as_mut()).await {
            Ok(answer) => answer,
            Err(_) => {
                let writers = catalog::holding_up(control, pid).await?;
                cancel(control, pid).await?;
                match tokio::time::timeout(CANCEL_TIMEOUT, running).await {
                    // It was about to be done.
                    Ok(Ok(rows)) => Ok(rows),
                    Ok(Err(_)) | Err(_) => return Err(held_up(&attempted, patience, server, &writers)),
                }
            }
        }
    };
    exported(session, &created.map_err(failed)?).map_err(failed)
}

fn create_statement(slot: &str, lifetime: Lifetime, version: u32) -> String {
    let temporary = match lifetime {
        Lifetime::Permanent => "",
        Lifetime::Temporary => " TEMPORARY",
    };
    let options =
        if version >= WITH_OPTIONS_IN_PARENTHESES { "(SNAPSHOT 'export')" } else { "EXPORT_SNAPSHOT" };
    format!("CREATE_REPLICATION_SLOT {}{temporary} LOGICAL pgoutput {options}", identifier(slot))
}

/// Slot, consistent point, snapshot and plugin.
fn exported(session: Session, rows: &[TextRow]) -> Result<Exported, Failure> {
    let text = |index: usize| rows.first()?.get(index)?.as_deref();
    match (text(1).and_then(|point| point.parse().ok()), text(2)) {
        (Some(point), Some(snapshot)) => Ok(Exported { snapshot: snapshot.to_owned(), point, session }),
        _ => Err(Failure::Protocol(format!("an unexpected answer: {rows:?}"))),
    }
}

/// A connection that is merely closed would go on waiting in the server, and leave a slot that nobody knows.
async fn cancel(control: &Control, pid: i32) -> Result<(), Fault> {
    let cancelled = control.client().execute("SELECT pg_cancel_backend($1)", &[&pid]).await;
    cancelled.map(|_| ()).map_err(|error| control.fault("cancel the creation of a slot", error))
}

fn held_up(attempted: &str, patience: Duration, server: &Server, writers: &[Writer]) -> Fault {
    let named: Vec<String> = writers.iter().map(ToString::to_string).collect();
    let (why, hint) = match named.as_slice() {
        [] if server.in_recovery => (
            "the standby has seen no snapshot of running transactions".to_owned(),
            "on the primary: `SELECT pg_log_standby_snapshot()`",
        ),
        [] => ("it is not known why".to_owned(), "`SELECT pid, wait_event FROM pg_stat_activity` tells more"),
        named => (
            format!("it waits for open transactions: {}", named.join(", ")),
            "have them committed, or end them: `SELECT pg_terminate_backend(<pid>)`",
        ),
    };
    Fault::retry(format!("cannot {attempted} within {} s: {why}", patience.as_secs_f32())).with_hint(hint)
}

/// Drops a slot; it need not be there.
///
/// # Errors
/// `Retry` while somebody reads it.
pub async fn drop_slot(control: &Control, slot: &str) -> Result<(), Fault> {
    let drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1";
    let dropped = control.client().execute(drop, &[&slot]).await;
    dropped
        .map(|_| ())
        .map_err(|error| control.fault(&format!("drop the replication slot {}", friendly(slot)), error))
}

/// Exports a snapshot without a slot: for a copy after which nothing is followed.
///
/// # Errors
/// As [`Connector::copying`].
pub async fn export_snapshot(connector: &Connector) -> Result<Exported, Fault> {
    let mut session = connector.copying().await?;
    let failed = |failure: Failure| failure.fault("export a snapshot", connector.source());
    session.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await.map_err(failed)?;
    let ask = "SELECT '', CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, \
               pg_export_snapshot()";
    let rows = session.run(ask).await.map_err(failed)?;
    exported(session, &rows).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_made_in_the_words_of_the_server() {
        assert_eq!(
            create_statement("tidemill_shop", Lifetime::Permanent, 150_018),
            "CREATE_REPLICATION_SLOT \"tidemill_shop\" LOGICAL pgoutput (SNAPSHOT 'export')"
        );
        assert_eq!(
            create_statement("tidemill_shop", Lifetime::Temporary, 140_000),
            "CREATE_REPLICATION_SLOT \"tidemill_shop\" TEMPORARY LOGICAL pgoutput EXPORT_SNAPSHOT"
        );
    }

    #[test]
    fn who_holds_a_slot_up_is_named() {
        let writers = [Writer { pid: Some(5), name: "psql".to_owned(), age_s: Some(61.0) }];
        let fault = held_up("create it", Duration::from_secs(30), &Server::default(), &writers);
        assert_eq!(
            fault.story(),
            "cannot create it within 30 s: it waits for open transactions: pid 5 (\"psql\", 61 s old); have them \
             committed, or end them: `SELECT pg_terminate_backend(<pid>)`"
        );
        let standby = Server { in_recovery: true, ..Server::default() };
        assert!(
            held_up("create it", Duration::from_secs(30), &standby, &[])
                .story()
                .contains("pg_log_standby_snapshot")
        );
    }
}
