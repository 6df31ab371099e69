//! The rows, in a temporary SQLite database: one writing connection, any number of reading ones.

use rusqlite::{Connection, OpenFlags, types::ValueRef};
use std::fmt::Write as _;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::catalog::{KeyModel, Schema};
use crate::column::Column;
use crate::error::SandboxError;
use crate::staged::{Cell, Staged, WriteMode};

/// A value that SQLite returned.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Int(i64),
    Real(f64),
    Text(String),
}

/// What a statement returned.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct ResultSet {
    /// Empty for a statement that returns nothing but OK.
    pub(crate) columns: Vec<String>,
    pub(crate) rows: Vec<Vec<Value>>,
    /// Rows changed.
    pub(crate) affected: u64,
}

/// A temporary table that a query sees under this name: an `information_schema` view.
pub(crate) struct View {
    pub(crate) name: String,
    pub(crate) columns: Vec<&'static str>,
    pub(crate) rows: Vec<Vec<Value>>,
}

pub(crate) struct Store {
    writer: Mutex<Connection>,
    readers: Mutex<Vec<Connection>>,
    path: PathBuf,
    // Declared last: the directory is removed after the connections are closed.
    _directory: Directory,
}

/// A temporary directory, and the lock that shows to other sandboxes that it is in use.
struct Directory {
    directory: tempfile::TempDir,
    // Declared last: the lock is held until the directory is gone.
    _lock: File,
}

const DIRECTORY_PREFIX: &str = "tidemill-sandbox-";
const LOCK_NAME: &str = "in-use";

impl Directory {
    fn make() -> std::io::Result<Self> {
        let directory = tempfile::Builder::new().prefix(DIRECTORY_PREFIX).tempdir()?;
        // Locked before it gets its name, so that nobody can find it without its lock.
        let unnamed = directory.path().join("making");
        let lock = File::create(&unnamed)?;
        lock.lock()?;
        std::fs::rename(&unnamed, directory.path().join(LOCK_NAME))?;
        Ok(Self { directory, _lock: lock })
    }

    /// Removes the directories of sandboxes whose process was killed: nobody holds their locks.
    fn sweep() -> std::io::Result<()> {
        for entry in std::fs::read_dir(std::env::temp_dir())? {
            let entry = entry?;
            if !entry.file_name().to_string_lossy().starts_with(DIRECTORY_PREFIX) {
                continue;
            }
            // Without a lock file it is just being made, or none of ours.
            let Ok(lock) = File::open(entry.path().join(LOCK_NAME)) else { continue };
            if lock.try_lock().is_ok() {
                std::fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }
}

/// Statements kept compiled on the writing connection: a few for each table.
const STATEMENTS_MAX: usize = 256;
const READERS_KEPT_MAX: usize = 4;

impl Store {
    pub(crate) fn open() -> Result<Self, SandboxError> {
        if let Err(error) = Directory::sweep() {
            tracing::debug!(%error, "could not tidy up after sandboxes that were killed");
        }
        let directory = Directory::make().map_err(SandboxError::Directory)?;
        let path = directory.directory.path().join("rows.sqlite");
        let writer = Connection::open(&path)?;
        // Nothing outlives the process, so nothing needs to reach the disk.
        writer.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; PRAGMA cache_size = -65536; \
             PRAGMA temp_store = MEMORY; PRAGMA wal_autocheckpoint = 4000;",
        )?;
        writer.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
        Ok(Self { writer: Mutex::new(writer), readers: Mutex::default(), path, _directory: directory })
    }

    fn writer(&self) -> MutexGuard<'_, Connection> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn create_table(&self, name: &str, schema: &Schema) -> rusqlite::Result<()> {
        self.writer().execute_batch(&create_sql(name, schema))
    }

    pub(crate) fn drop_table(&self, name: &str) -> rusqlite::Result<()> {
        self.writer().execute_batch(&format!("DROP TABLE IF EXISTS {}", quoted(name)))
    }

    pub(crate) fn truncate_table(&self, name: &str) -> rusqlite::Result<()> {
        self.writer().execute_batch(&format!("DELETE FROM {}", quoted(name)))
    }

    pub(crate) fn add_column(&self, name: &str, column: &Column) -> rusqlite::Result<()> {
        let sql = format!("ALTER TABLE {} ADD COLUMN {}", quoted(name), definition(column));
        self.writer().execute_batch(&sql)
    }

    pub(crate) fn drop_column(&self, name: &str, column: &str) -> rusqlite::Result<()> {
        let sql = format!("ALTER TABLE {} DROP COLUMN {}", quoted(name), quoted(column));
        self.writer().execute_batch(&sql)
    }

    pub(crate) fn rename_column(&self, name: &str, from: &str, to: &str) -> rusqlite::Result<()> {
        let sql = format!("ALTER TABLE {} RENAME COLUMN {} TO {}", quoted(name), quoted(from), quoted(to));
        self.writer().execute_batch(&sql)
    }

    /// Makes the table anew with other columns; what both have is copied, converted by SQLite.
    pub(crate) fn rebuild(&self, name: &str, schema: &Schema, before: &Schema) -> rusqlite::Result<()> {
        let aside = format!("{name}.before");
        let kept: Vec<String> = schema
            .columns
            .iter()
            .filter(|column| before.position(&column.name).is_some())
            .map(|column| quoted(&column.name))
            .collect();
        let kept = kept.join(", ");
        let mut writer = self.writer();
        let transaction = writer.transaction()?;
        transaction.execute_batch(&format!("ALTER TABLE {} RENAME TO {}", quoted(name), quoted(&aside)))?;
        transaction.execute_batch(&create_sql(name, schema))?;
        transaction.execute_batch(&format!(
            "INSERT INTO {} ({kept}) SELECT {kept} FROM {1}; DROP TABLE {1}",
            quoted(name),
            quoted(&aside)
        ))?;
        transaction.commit()
    }

    /// Runs a statement that changes rows; returns how many.
    pub(crate) fn execute(&self, sql: &str) -> rusqlite::Result<u64> {
        self.writer().execute(sql, []).map(|rows| rows as u64)
    }

    /// Writes the rows of one load in one SQLite transaction.
    pub(crate) fn apply(&self, name: &str, schema: &Schema, loads: &[Staged]) -> rusqlite::Result<()> {
        let mut writer = self.writer();
        let transaction = writer.transaction()?;
        for staged in loads {
            write_rows(&transaction, name, schema, staged)?;
        }
        transaction.commit()
    }

    /// Runs a query on a connection of its own, so that loads go on meanwhile.
    pub(crate) fn query(&self, sql: &str, views: &[View]) -> rusqlite::Result<ResultSet> {
        let reader = self.readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let reader = match reader {
            Some(reader) => reader,
            None => self.open_reader()?,
        };
        let outcome = query_with_views(&reader, sql, views);
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        // Views are temporary tables of the connection, so such a connection is not used again.
        if views.is_empty() && readers.len() < READERS_KEPT_MAX {
            readers.push(reader);
        }
        outcome
    }

    /// Rows as they are now, for as long as this is kept.
    pub(crate) fn hold(&self) -> rusqlite::Result<HeldRows> {
        let reader = self.open_reader()?;
        // The first read of a transaction settles what all others see.
        reader.execute_batch("BEGIN; SELECT count(*) FROM sqlite_schema")?;
        Ok(HeldRows(reader))
    }

    fn open_reader(&self) -> rusqlite::Result<Connection> {
        let reader = Connection::open_with_flags(&self.path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        reader.busy_timeout(std::time::Duration::from_secs(10))?;
        Ok(reader)
    }
}

/// Rows as they were at a moment: a read transaction that stays open.
pub(crate) struct HeldRows(Connection);

impl HeldRows {
    pub(crate) fn query(&self, sql: &str) -> rusqlite::Result<ResultSet> {
        read_all(&self.0, sql)
    }
}

/// A name as SQLite quotes it.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Text as an SQL literal.
pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn create_sql(name: &str, schema: &Schema) -> String {
    let mut sql = format!("CREATE TABLE {} (", quoted(name));
    for (at, column) in schema.columns.iter().enumerate() {
        if at > 0 {
            sql.push_str(", ");
        }
        let only_key = schema.keys == 1 && at == 0 && schema.model != KeyModel::Duplicate;
        if only_key && column.kind.affinity() == "INTEGER" {
            // An integer key becomes the row id itself, which makes writing it as cheap as appending.
            let _ = write!(sql, "{} INTEGER PRIMARY KEY", quoted(&column.name));
        } else {
            sql.push_str(&definition(column));
        }
    }
    let integer_key = schema.keys == 1 && schema.columns[0].kind.affinity() == "INTEGER";
    if schema.model != KeyModel::Duplicate && !integer_key {
        let keys: Vec<String> =
            schema.columns[..schema.keys].iter().map(|column| quoted(&column.name)).collect();
        let _ = write!(sql, ", PRIMARY KEY ({})) WITHOUT ROWID", keys.join(", "));
    } else {
        sql.push(')');
    }
    sql
}

fn definition(column: &Column) -> String {
    let mut sql = format!("{} {}", quoted(&column.name), column.kind.affinity());
    let default = column.default.as_deref().map(|default| match default {
        "CURRENT_TIMESTAMP" => "CURRENT_TIMESTAMP".to_owned(),
        text => literal(text),
    });
    if let Some(default) = default {
        let _ = write!(sql, " DEFAULT {default}");
    }
    sql
}

fn write_rows(connection: &Connection, name: &str, schema: &Schema, staged: &Staged) -> rusqlite::Result<()> {
    // The values of a column that was dropped meanwhile go with it.
    let kept: Vec<usize> =
        (0..staged.columns.len()).filter(|at| schema.position(&staged.columns[*at]).is_some()).collect();
    let columns: Vec<&str> = kept.iter().map(|at| staged.columns[*at].as_str()).collect();
    let mut insert = connection.prepare_cached(&insert_sql(name, schema, &columns, &staged.mode))?;
    let deletes = staged.deletes.iter().any(|delete| *delete);
    let mut delete = if deletes { Some(connection.prepare_cached(&delete_sql(name, schema))?) } else { None };
    let keys = schema.columns[..schema.keys].iter();
    let keys: Vec<Option<usize>> =
        keys.map(|key| staged.columns.iter().position(|column| *column == key.name)).collect();
    let width = staged.columns.len();
    for row in 0..staged.rows as usize {
        let cells = &staged.cells[row * width..(row + 1) * width];
        match &mut delete {
            Some(delete) if staged.deletes[row] => {
                for (hole, at) in keys.iter().enumerate() {
                    bind(delete, hole + 1, staged, at.map_or(Cell::Null, |at| cells[at]))?;
                }
                delete.raw_execute()?;
            }
            Some(_) | None => {
                for (hole, at) in kept.iter().enumerate() {
                    bind(&mut insert, hole + 1, staged, cells[*at])?;
                }
                insert.raw_execute()?;
            }
        }
    }
    Ok(())
}

fn bind(
    statement: &mut rusqlite::CachedStatement<'_>,
    at: usize,
    staged: &Staged,
    cell: Cell,
) -> rusqlite::Result<()> {
    match cell {
        Cell::Null => statement.raw_bind_parameter(at, rusqlite::types::Null),
        Cell::Int(number) => statement.raw_bind_parameter(at, number),
        Cell::Real(number) => statement.raw_bind_parameter(at, number),
        Cell::Body(..) | Cell::Scratch(..) => statement.raw_bind_parameter(at, staged.text(cell)),
    }
}

fn insert_sql(name: &str, schema: &Schema, columns: &[&str], mode: &WriteMode) -> String {
    let names: Vec<String> = columns.iter().map(|column| quoted(column)).collect();
    let holes = vec!["?"; names.len()].join(", ");
    let target = format!("INTO {} ({}) VALUES ({holes})", quoted(name), names.join(", "));
    if schema.model == KeyModel::Duplicate {
        return format!("INSERT {target}");
    }
    let (condition, all_columns) = match mode {
        WriteMode::Replace => return format!("INSERT OR REPLACE {target}"),
        WriteMode::Partial => (None, false),
        WriteMode::IfNotSmaller(column) => (Some(column), true),
        WriteMode::PartialIfNotSmaller(column) => (Some(column), false),
    };
    let keys: Vec<String> = schema.columns[..schema.keys].iter().map(|key| quoted(&key.name)).collect();
    let changed: Vec<String> = schema.columns[schema.keys..]
        .iter()
        .filter(|column| all_columns || columns.contains(&column.name.as_str()))
        .map(|column| format!("{0} = excluded.{0}", quoted(&column.name)))
        .collect();
    if changed.is_empty() {
        return format!("INSERT OR IGNORE {target}");
    }
    let mut sql =
        format!("INSERT {target} ON CONFLICT ({}) DO UPDATE SET {}", keys.join(", "), changed.join(", "));
    if let Some(column) = condition {
        let column = quoted(column);
        let _ = write!(sql, " WHERE excluded.{column} >= {}.{column}", quoted(name));
    }
    sql
}

fn delete_sql(name: &str, schema: &Schema) -> String {
    let keys: Vec<String> =
        schema.columns[..schema.keys].iter().map(|key| format!("{} = ?", quoted(&key.name))).collect();
    format!("DELETE FROM {} WHERE {}", quoted(name), keys.join(" AND "))
}

fn query_with_views(reader: &Connection, sql: &str, views: &[View]) -> rusqlite::Result<ResultSet> {
    for view in views {
        let columns: Vec<String> = view.columns.iter().map(|column| quoted(column)).collect();
        let name = quoted(&view.name);
        reader.execute_batch(&format!("CREATE TEMP TABLE {name} ({})", columns.join(", ")))?;
        let holes = vec!["?"; columns.len()].join(", ");
        let mut insert = reader.prepare(&format!("INSERT INTO temp.{name} VALUES ({holes})"))?;
        for row in &view.rows {
            for (at, value) in row.iter().enumerate() {
                match value {
                    Value::Null => insert.raw_bind_parameter(at + 1, rusqlite::types::Null)?,
                    Value::Int(number) => insert.raw_bind_parameter(at + 1, number)?,
                    Value::Real(number) => insert.raw_bind_parameter(at + 1, number)?,
                    Value::Text(text) => insert.raw_bind_parameter(at + 1, text)?,
                }
            }
            insert.raw_execute()?;
        }
    }
    read_all(reader, sql)
}

fn read_all(reader: &Connection, sql: &str) -> rusqlite::Result<ResultSet> {
    let mut statement = reader.prepare(sql)?;
    let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
    let width = columns.len();
    let mut rows = Vec::new();
    let mut cursor = statement.query([])?;
    while let Some(row) = cursor.next()? {
        let mut values = Vec::with_capacity(width);
        for at in 0..width {
            values.push(match row.get_ref(at)? {
                ValueRef::Null => Value::Null,
                ValueRef::Integer(number) => Value::Int(number),
                ValueRef::Real(number) => Value::Real(number),
                ValueRef::Text(bytes) | ValueRef::Blob(bytes) => {
                    Value::Text(String::from_utf8_lossy(bytes).into_owned())
                }
            });
        }
        rows.push(values);
    }
    Ok(ResultSet { columns, rows, affected: 0 })
}

#[cfg(test)]
mod tests {
    use super::{DIRECTORY_PREFIX, LOCK_NAME, Store};

    #[test]
    fn removes_what_killed_sandboxes_left_and_nothing_else() {
        let running = Store::open().expect("a temporary directory");
        let left = tempfile::Builder::new().prefix(DIRECTORY_PREFIX).tempdir().expect("a directory").keep();
        std::fs::write(left.join("rows.sqlite"), "rows").expect("written");
        std::fs::write(left.join(LOCK_NAME), "").expect("written");
        let next = Store::open().expect("a temporary directory");
        assert!(!left.exists());
        let path = next.path.clone();
        assert!(running.path.exists() && path.exists());
        drop(next);
        assert!(!path.exists());
    }
}
