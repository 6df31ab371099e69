//! What the followed tables look like, in the source and in StarRocks, while the stream goes on.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::catalog;
use super::connect::{Connector, Control};
use super::feed::NOT_COPIED;
use super::kind::Types;
use super::lsn::Lsn;
use super::pgoutput::{Field, Relation, Update};
use super::quote;
use super::row::{Layout, table_of};
use super::table::{Column, Table, TableName};
use super::warehouse_table::{Added, Comparison, Remembered};
use crate::fault::Fault;
use crate::sink::starrocks::query::Column as WarehouseColumn;

/// Name, number, type and the type's name for people, of the columns that a publication does not leave out by a
/// column list, which only servers from 15 on have.
const COLUMNS_SQL: &str = "SELECT a.attname::text, a.attnum, a.atttypid, format_type(a.atttypid, a.atttypmod) \
     FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped AND NOT EXISTS \
     (SELECT FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid \
      WHERE p.pubname = $2 AND r.prrelid = a.attrelid AND jsonb_typeof(to_jsonb(r) -> 'prattrs') = 'array' \
      AND NOT (to_jsonb(r) -> 'prattrs') @> to_jsonb(a.attnum))";

/// A source table and where its rows go.
#[derive(Debug, Clone)]
pub(super) struct Followed {
    /// The table, as the catalogue had it.
    pub(super) table: Table,
    /// Place of its destination among the pipeline's.
    pub(super) destination: u16,
    /// Name of that destination.
    pub(super) warehouse_table: String,
    /// Its columns.
    pub(super) warehouse: Vec<WarehouseColumn>,
    /// Key columns of the destination.
    pub(super) key: Vec<String>,
    /// Changes before it are in the table's copy.
    pub(super) copied_upto: Lsn,
}

/// What a Relation message came to.
#[derive(Debug)]
pub(super) enum Change {
    /// The pipeline does not follow the table.
    NotFollowed,
    /// Its rows have a place for all their columns.
    Same {
        /// How to take them apart.
        layout: Layout,
        /// Where they go.
        destination: u16,
    },
    /// The destination lacks columns.
    Grown {
        /// How to take rows apart.
        layout: Layout,
        /// Where they go.
        destination: u16,
        /// The columns to add.
        columns: Vec<Added>,
    },
}

/// The fault of a table that no longer fits.
pub(super) fn unfit(what: &str, hint: &str, side_by_side: &str) -> Fault {
    Fault::halt(format!("{what}\n{side_by_side}"), hint)
}

/// All followed tables.
pub(super) struct Schema {
    connector: Arc<Connector>,
    control: Option<Control>,
    types: Types,
    followed: HashMap<TableName, Followed>,
    database: String,
    /// Whether columns that StarRocks lacks are added there; otherwise their values are left out.
    grows: bool,
}

impl Schema {
    pub(super) fn new(
        connector: Arc<Connector>,
        types: Types,
        followed: &[Followed],
        database: &str,
        grows: bool,
    ) -> Schema {
        let followed = followed.iter().map(|one| (one.table.name.clone(), one.clone()));
        Schema {
            connector,
            control: None,
            types,
            followed: followed.collect(),
            database: database.to_owned(),
            grows,
        }
    }

    /// Changes of a table before this place in the log are in its copy.
    pub(super) fn copied_upto(&self, table: &TableName) -> Lsn {
        self.followed.get(table).map_or(NOT_COPIED, |followed| followed.copied_upto)
    }

    /// The stream told of a table.
    ///
    /// # Errors
    /// Halt, if its rows no longer fit their destination.
    pub(super) async fn told(&mut self, relation: &Relation<'_>) -> Result<Change, Fault> {
        let name = TableName::new(relation.schema, relation.name);
        if !self.followed.contains_key(&name) {
            return Ok(Change::NotFollowed);
        }
        let unknown = self.types.unknown(relation.columns.iter().map(|column| column.type_oid));
        self.learn(unknown).await?;
        let mut table = table_of(relation, self.followed.get(&name).map(|followed| &followed.table));
        let mut before =
            self.followed.get(&name).map_or_else(Vec::new, |followed| Remembered::of(&followed.table));
        let told = |name: &str| relation.columns.iter().any(|column| column.name == name);
        let changed = table.columns.iter().any(|column| column.number == 0 || column.type_name.is_empty())
            || before.iter().any(|column| !told(&column.name));
        let there = if changed { Some(self.identify_columns(&mut table).await?) } else { None };
        // The stream may be read again from an older form of the table: what was added later is not dropped, and what
        // was dropped later is not added.
        let is_there = |name: &str| there.as_ref().is_none_or(|there| there.contains(name));
        before.retain(|column| told(&column.name) || !is_there(&column.name));
        let (types, grows, database) = (&self.types, self.grows, &self.database);
        let Some(followed) = self.followed.get_mut(&name) else { return Ok(Change::NotFollowed) };
        let key: Vec<&str> = followed.key.iter().map(String::as_str).collect();
        let layout = Layout::of_table(&table, types).keyed_by(&key).map_err(|error| {
            Fault::halt(
                format!("the key of {} no longer fits StarRocks: {error}", table.name),
                format!(
                    "make table {} anew with the source's key, and copy it again: tidemill resync <file> {}",
                    followed.warehouse_table, table.name
                ),
            )
        })?;
        let destination = followed.destination;
        let difference = Comparison {
            table: &table,
            types,
            database,
            name: &followed.warehouse_table,
            warehouse: &followed.warehouse,
            before: Some(&before),
        }
        .difference();
        if let Some(first) = difference.incompatible.first() {
            return Err(unfit(&first.what, &first.hint, &difference.side_by_side));
        }
        let mut columns = Vec::new();
        for added in difference.added.into_iter().filter(|added| is_there(&added.column)) {
            followed.warehouse.push(WarehouseColumn {
                name: added.column.clone(),
                sql_type: String::new(),
                nullable: true,
                key: false,
            });
            columns.extend(grows.then_some(added));
        }
        followed.table = table;
        Ok(if columns.is_empty() {
            Change::Same { layout, destination }
        } else {
            Change::Grown { layout, destination, columns }
        })
    }

    async fn control(&mut self) -> Result<&Control, Fault> {
        match self.control.take().filter(|control| !control.is_closed()) {
            Some(control) => Ok(self.control.insert(control)),
            None => Ok(self.control.insert(self.connector.control().await?)),
        }
    }

    /// Asks the catalogue for types.
    async fn learn(&mut self, unknown: BTreeSet<u32>) -> Result<(), Fault> {
        if unknown.is_empty() {
            return Ok(());
        }
        let oids: Vec<u32> = unknown.into_iter().collect();
        let found = catalog::types(self.control().await?, &oids).await?;
        // What the catalogue does not know either stays text.
        found.into_iter().for_each(|info| self.types.add(info));
        Ok(())
    }

    /// Asks the catalogue which columns these are: the stream tells names only, and a number survives a rename. The
    /// catalogue tells of now and the stream of then, so only a column of the same name and type is the same one.
    /// Returns the names of all columns that are published now.
    async fn identify_columns(&mut self, table: &mut Table) -> Result<BTreeSet<String>, Fault> {
        let publication = self.connector.source().publication.clone();
        let control = self.control().await?;
        let rows = control.client().query(COLUMNS_SQL, &[&table.oid, &publication]).await;
        let rows =
            rows.map_err(|error| control.fault("read the columns of a table that has changed", error))?;
        let mut names = BTreeSet::new();
        for row in rows {
            let (name, number, type_oid): (&str, i16, u32) = (row.get(0), row.get(1), row.get(2));
            names.insert(name.to_owned());
            let same = |column: &&mut Column| column.name == name && column.type_oid == type_oid;
            if let Some(column) = table.columns.iter_mut().find(same) {
                column.number = number;
                column.type_name = row.get(3);
            }
        }
        Ok(names)
    }

    /// All columns of the row that `update` is about, as they are now; none if there is no such row.
    ///
    /// # Errors
    /// Retry, if the source cannot be asked.
    pub(super) async fn read_back(
        &mut self,
        layout: &Layout,
        update: &Update<'_>,
    ) -> Result<Option<Vec<Option<Vec<u8>>>>, Fault> {
        let columns: Vec<String> =
            layout.columns().iter().map(|column| quote::identifier(&column.name)).collect();
        let key = layout.columns().iter().zip(update.new.columns()).filter(|(column, _)| column.in_key);
        let conditions: Vec<String> = key
            .map(|(column, field)| match field {
                Field::Text(text) => {
                    let value = quote::literal(&String::from_utf8_lossy(text));
                    format!("{} = {value}", quote::identifier(&column.name))
                }
                Field::Null | Field::Unchanged => "false".to_owned(),
            })
            .collect();
        let statement = format!(
            "SELECT {} FROM {} WHERE {}",
            columns.join(", "),
            quote::table(layout.name()),
            conditions.join(" AND ")
        );
        let control = self.control().await?;
        let answer = control.client().simple_query(&statement).await;
        let answer = answer.map_err(|error| control.fault("read back a row whose key changed", error))?;
        let row = answer.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        Ok(row.map(|row| {
            (0..row.len()).map(|place| row.get(place).map(|text| text.as_bytes().to_vec())).collect()
        }))
    }
}
