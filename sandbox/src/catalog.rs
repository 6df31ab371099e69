//! Databases, tables and columns: plain data.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::column::{Column, ColumnType};
use crate::error::{SqlError, SqlErrorKind};
use crate::version::Versions;

/// How a table treats rows with equal keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyModel {
    /// Every row is kept.
    Duplicate,
    /// The last row of a key wins; deletes are not possible by load.
    Unique,
    /// The last row of a key wins, and `__op` 1 deletes.
    Primary,
}

impl KeyModel {
    /// The words of `CREATE TABLE`.
    pub(crate) fn clause(self) -> &'static str {
        match self {
            Self::Duplicate => "DUPLICATE KEY",
            Self::Unique => "UNIQUE KEY",
            Self::Primary => "PRIMARY KEY",
        }
    }

    /// The value of `information_schema.tables_config.TABLE_MODEL`.
    pub(crate) fn table_model(self) -> &'static str {
        match self {
            Self::Duplicate => "DUP_KEYS",
            Self::Unique => "UNQ_KEYS",
            Self::Primary => "PRI_KEYS",
        }
    }
}

/// A table's shape. Replaced as a whole when the table is altered.
#[derive(Debug, Clone)]
pub(crate) struct Schema {
    pub(crate) columns: Vec<Column>,
    pub(crate) model: KeyModel,
    /// The first `keys` columns are the key.
    pub(crate) keys: usize,
    /// Hash columns; empty means `DISTRIBUTED BY RANDOM`.
    pub(crate) distributed_by: Vec<String>,
    pub(crate) buckets: u32,
    pub(crate) properties: Vec<(String, String)>,
    pub(crate) comment: Option<String>,
}

impl Schema {
    pub(crate) fn position(&self, column: &str) -> Option<usize> {
        self.columns.iter().position(|have| have.name == column)
    }

    /// The names of the key columns, back-ticked and joined.
    pub(crate) fn key_list(&self) -> String {
        let names: Vec<String> =
            self.columns[..self.keys].iter().map(|column| format!("`{}`", column.name)).collect();
        names.join(", ")
    }
}

/// One table: its shape, its versions and the order in which loads become visible.
pub(crate) struct Table {
    pub(crate) id: i64,
    pub(crate) db: String,
    pub(crate) name: String,
    schema: RwLock<Arc<Schema>>,
    versions: Mutex<Versions>,
    /// Held by a load from its commit until its rows are visible: versions publish in order.
    pub(crate) publishing: Arc<tokio::sync::Mutex<()>>,
}

impl Table {
    pub(crate) fn schema(&self) -> Arc<Schema> {
        Arc::clone(&self.schema.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn replace_schema(&self, schema: Schema) {
        *self.schema.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(schema);
    }

    /// Runs `change` on the table's version counter.
    pub(crate) fn versions<T>(&self, change: impl FnOnce(&mut Versions) -> T) -> T {
        change(&mut self.versions.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The tablet that stands for all of the table's tablets in messages.
    pub(crate) fn first_tablet(&self) -> i64 {
        self.id + 2
    }

    /// The name of the table's rows in SQLite; it contains a dot, so it is always quoted.
    pub(crate) fn storage_name(&self) -> String {
        storage_name(&self.db, &self.name)
    }
}

/// The name under which SQLite keeps the rows of `db.table`.
pub(crate) fn storage_name(db: &str, table: &str) -> String {
    format!("{db}.{table}")
}

/// All databases.
#[derive(Default)]
pub(crate) struct Catalog {
    databases: BTreeMap<String, BTreeMap<String, Arc<Table>>>,
}

/// Gives out the ids of databases, tables and tablets, far enough apart for 100 tablets each.
static NEXT_ID: AtomicI64 = AtomicI64::new(10_100);
const IDS_PER_TABLE: i64 = 100;

impl Catalog {
    pub(crate) fn database_names(&self) -> Vec<String> {
        self.databases.keys().cloned().collect()
    }

    pub(crate) fn has_database(&self, db: &str) -> bool {
        self.databases.contains_key(db)
    }

    pub(crate) fn create_database(&mut self, db: &str, if_absent: bool) -> Result<(), SqlError> {
        if self.has_database(db) {
            if if_absent {
                return Ok(());
            }
            let message = format!("Can't create database '{db}'; database exists");
            return Err(SqlError::new(SqlErrorKind::DatabaseExists, message));
        }
        self.databases.insert(db.to_owned(), BTreeMap::new());
        Ok(())
    }

    /// Removes a database and returns the tables that it had.
    pub(crate) fn drop_database(&mut self, db: &str) -> Option<Vec<Arc<Table>>> {
        self.databases.remove(db).map(|tables| tables.into_values().collect())
    }

    pub(crate) fn tables(&self, db: &str) -> Option<Vec<Arc<Table>>> {
        self.databases.get(db).map(|tables| tables.values().cloned().collect())
    }

    pub(crate) fn all_tables(&self) -> Vec<Arc<Table>> {
        self.databases.values().flat_map(|tables| tables.values().cloned()).collect()
    }

    pub(crate) fn table(&self, db: &str, table: &str) -> Option<Arc<Table>> {
        self.databases.get(db)?.get(table).cloned()
    }

    /// Adds a table; `None` when a table of that name is there already.
    pub(crate) fn create_table(
        &mut self,
        db: &str,
        name: &str,
        schema: Schema,
    ) -> Result<Option<Arc<Table>>, SqlError> {
        let tables = self.databases.get_mut(db).ok_or_else(|| SqlError::unknown_database(db))?;
        if tables.contains_key(name) {
            return Ok(None);
        }
        let table = Arc::new(Table {
            id: NEXT_ID.fetch_add(IDS_PER_TABLE, Ordering::Relaxed),
            db: db.to_owned(),
            name: name.to_owned(),
            schema: RwLock::new(Arc::new(schema)),
            versions: Mutex::new(Versions::default()),
            publishing: Arc::default(),
        });
        tables.insert(name.to_owned(), Arc::clone(&table));
        Ok(Some(table))
    }

    pub(crate) fn drop_table(&mut self, db: &str, name: &str) -> Option<Arc<Table>> {
        self.databases.get_mut(db)?.remove(name)
    }
}

/// Whether a type may be part of a Primary Key (`primary_key_table.md`: no decimals, floats or binaries).
pub(crate) fn fits_primary_key(kind: &ColumnType) -> bool {
    match kind {
        ColumnType::Boolean
        | ColumnType::Int { .. }
        | ColumnType::LargeInt
        | ColumnType::Date
        | ColumnType::DateTime
        | ColumnType::Varchar { .. } => true,
        ColumnType::Float { .. }
        | ColumnType::Decimal { .. }
        | ColumnType::Char { .. }
        | ColumnType::Json
        | ColumnType::Binary
        | ColumnType::Nested { .. } => false,
    }
}
