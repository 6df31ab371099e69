//! Changes of a table's columns: jobs, as StarRocks runs them. One at a time for a table; at once, or after
//! the delay of a fault.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use crate::catalog::{KeyModel, Schema, Table};
use crate::column::Column;
use crate::error::SqlError;
use crate::store::Store;

/// One clause of an `ALTER TABLE`.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    Add { column: Column, place: Place },
    Drop { name: String },
    Modify { column: Column },
    Rename { from: String, to: String },
}

/// Where an added column goes.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    Last,
    /// The first column behind the key: keys cannot be added.
    First,
    After(String),
}

/// One job.
pub(crate) struct SchemaJob {
    pub(crate) id: i64,
    pub(crate) table: Arc<Table>,
    pub(crate) created: SystemTime,
    pub(crate) state: JobState,
    changes: Vec<Change>,
    due: Instant,
}

/// How far a job is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum JobState {
    Running,
    Finished { at: SystemTime },
    Cancelled { at: SystemTime, why: String },
}

/// Jobs remembered for `SHOW ALTER TABLE COLUMN`.
const JOBS_MAX: usize = 1000;

/// All jobs, oldest first.
#[derive(Default)]
pub(crate) struct SchemaJobs {
    jobs: VecDeque<SchemaJob>,
    next: i64,
}

impl SchemaJobs {
    /// Takes a statement's changes; they are made by [`SchemaJobs::advance`] once they are `due`.
    ///
    /// # Errors
    /// The refusal of a change that is impossible, or of a second job for the table.
    pub(crate) fn submit(
        &mut self,
        table: &Arc<Table>,
        changes: Vec<Change>,
        due: Instant,
    ) -> Result<(), SqlError> {
        let busy = |job: &SchemaJob| Arc::ptr_eq(&job.table, table) && job.state == JobState::Running;
        if self.jobs.iter().any(busy) {
            let message =
                format!("Table[{}]'s state is not NORMAL. Do not allow doing ALTER ops", table.name);
            return Err(SqlError::analysis(message));
        }
        let mut schema = Schema::clone(&table.schema());
        for change in &changes {
            change.apply(&mut schema)?;
        }
        if self.jobs.len() >= JOBS_MAX {
            self.jobs.pop_front();
        }
        self.next += 1;
        let (table, created) = (Arc::clone(table), SystemTime::now());
        let id = 20_000 + self.next;
        self.jobs.push_back(SchemaJob { id, table, created, state: JobState::Running, changes, due });
        Ok(())
    }

    /// Makes the changes that are due.
    pub(crate) fn advance(&mut self, store: &Store, now: Instant) {
        let due = |job: &&mut SchemaJob| job.state == JobState::Running && job.due <= now;
        for job in self.jobs.iter_mut().filter(due) {
            let made = job.changes.iter().try_for_each(|change| change.make(&job.table, store));
            let at = SystemTime::now();
            job.state = match made {
                Ok(()) => JobState::Finished { at },
                Err(error) => JobState::Cancelled { at, why: error.message },
            };
        }
    }

    /// Jobs on tables of `db`, newest first.
    pub(crate) fn of(&self, db: &str) -> impl Iterator<Item = &SchemaJob> {
        self.jobs.iter().rev().filter(move |job| job.table.db == db)
    }
}

impl Change {
    /// The schema after the change.
    fn apply(&self, schema: &mut Schema) -> Result<(), SqlError> {
        match self {
            Self::Add { column, place } => add(schema, column, place),
            Self::Drop { name } => {
                let at = place_of(schema, name)?;
                if at < schema.keys {
                    let model = match schema.model {
                        KeyModel::Primary => "primary key",
                        KeyModel::Unique | KeyModel::Duplicate => "key",
                    };
                    return Err(SqlError::analysis(format!("Can not drop {model} column {name}")));
                }
                schema.columns.remove(at);
                Ok(())
            }
            Self::Modify { column } => {
                let at = place_of(schema, &column.name)?;
                if at < schema.keys && schema.model == KeyModel::Primary {
                    return Err(SqlError::analysis("Can not modify key column of primary key table"));
                }
                let now = &mut schema.columns[at];
                if now.nullable && !column.nullable {
                    let name = &column.name;
                    return Err(SqlError::analysis(format!(
                        "Can not change from nullable to non-nullable: {name}"
                    )));
                }
                *now = column.clone();
                Ok(())
            }
            Self::Rename { from, to } => {
                let at = place_of(schema, from)?;
                if schema.position(to).is_some() {
                    return Err(SqlError::analysis(format!("Column name[{to}] is already used")));
                }
                schema.columns[at].name.clone_from(to);
                for name in schema.distributed_by.iter_mut().filter(|name| *name == from) {
                    name.clone_from(to);
                }
                Ok(())
            }
        }
    }

    /// Changes the table and its rows.
    fn make(&self, table: &Table, store: &Store) -> Result<(), SqlError> {
        let mut schema = Schema::clone(&table.schema());
        self.apply(&mut schema)?;
        let rows = table.storage_name();
        match self {
            Self::Add { column, place: Place::Last } => store.add_column(&rows, column)?,
            Self::Drop { name } => store.drop_column(&rows, name)?,
            Self::Rename { from, to } => store.rename_column(&rows, from, to)?,
            // SQLite can neither put a column between others nor change its type.
            Self::Add { .. } | Self::Modify { .. } => store.rebuild(&rows, &schema, &table.schema())?,
        }
        table.replace_schema(schema);
        Ok(())
    }
}

fn place_of(schema: &Schema, column: &str) -> Result<usize, SqlError> {
    schema.position(column).ok_or_else(|| SqlError::analysis(format!("Column does not exists: {column}")))
}

fn add(schema: &mut Schema, column: &Column, place: &Place) -> Result<(), SqlError> {
    let name = &column.name;
    if schema.columns.iter().any(|have| have.name.eq_ignore_ascii_case(name)) {
        let message = format!("Can not add column which already exists in base table: {name}");
        return Err(SqlError::analysis(message));
    }
    if !column.nullable && column.default.is_none() {
        return Err(SqlError::analysis(format!("Column {name} must be nullable or have a default value")));
    }
    let at = match place {
        Place::Last => schema.columns.len(),
        Place::First => schema.keys,
        Place::After(before) => (place_of(schema, before)? + 1).max(schema.keys),
    };
    schema.columns.insert(at, column.clone());
    Ok(())
}
