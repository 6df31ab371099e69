//! ALTER TABLE: changes of columns, each statement one job.

use std::time::{Duration, Instant};

use super::ddl;
use super::token::{Cursor, Token};
use crate::cluster::Cluster;
use crate::error::SqlError;
use crate::fault::FaultKind;
use crate::schema_change::{Change, Place};

/// Takes the changes of `table clause, clause …`; without a fault they are made when this returns.
pub(super) fn run(
    cluster: &Cluster,
    database: Option<&str>,
    cursor: &mut Cursor<'_>,
) -> Result<(), SqlError> {
    let (db, name) = cursor.table_name(database)?;
    if !cluster.catalog().has_database(&db) {
        return Err(SqlError::unknown_database(&db));
    }
    let table = cluster.catalog().table(&db, &name);
    let table = table.ok_or_else(|| SqlError::unknown_table(&db, &name))?;
    let mut changes = Vec::new();
    loop {
        clause(cursor, &mut changes)?;
        if cursor.words("PROPERTIES") {
            ddl::properties(cursor)?;
        }
        if !cursor.sign(',') {
            break;
        }
    }
    cursor.expect_end()?;
    let delay = cluster.faults.fire(&db, &name, |kind| match kind {
        FaultKind::SlowSchemaChange { delay_ms } => Some(Duration::from_millis(*delay_ms)),
        _ => None,
    });
    let now = Instant::now();
    let mut jobs = cluster.schema_jobs();
    jobs.submit(&table, changes, now + delay.unwrap_or_default())?;
    jobs.advance(&cluster.store, now);
    Ok(())
}

fn clause(cursor: &mut Cursor<'_>, changes: &mut Vec<Change>) -> Result<(), SqlError> {
    if cursor.words("ADD COLUMN") || cursor.words("ADD") {
        if !cursor.sign('(') {
            let column = ddl::column(cursor)?;
            changes.push(Change::Add { column, place: place(cursor)? });
            return Ok(());
        }
        loop {
            changes.push(Change::Add { column: ddl::column(cursor)?, place: Place::Last });
            if !cursor.sign(',') {
                return cursor.expect_sign(')');
            }
        }
    }
    if cursor.words("DROP COLUMN") {
        changes.push(Change::Drop { name: cursor.name()? });
        return Ok(());
    }
    if cursor.words("MODIFY COLUMN") {
        changes.push(Change::Modify { column: ddl::column(cursor)? });
        return Ok(());
    }
    if cursor.words("RENAME COLUMN") {
        let from = cursor.name()?;
        cursor.expect_words("TO")?;
        changes.push(Change::Rename { from, to: cursor.name()? });
        return Ok(());
    }
    let what = cursor.peek().and_then(Token::as_name).unwrap_or_default().to_uppercase();
    Err(SqlError::unsupported(format!("ALTER TABLE … {what}")))
}

fn place(cursor: &mut Cursor<'_>) -> Result<Place, SqlError> {
    if cursor.words("FIRST") {
        return Ok(Place::First);
    }
    if cursor.words("AFTER") {
        return Ok(Place::After(cursor.name()?));
    }
    Ok(Place::Last)
}
