//! What is known of a table's rows before the first one comes.

use crate::source::postgres::kind::{Kind, Types};
use crate::source::postgres::pgoutput::Relation;
use crate::source::postgres::table::{Column, Identity, Table, TableName};
use crate::source::postgres::value::append_str;

/// How rows of a table are taken apart and put together. Made anew for each Relation message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    oid: u32,
    name: TableName,
    identity: Identity,
    columns: Vec<LayoutColumn>,
    /// Columns up to and including the last one of the key; 0 = no key.
    key_end: usize,
}

/// A column of a [`Layout`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayoutColumn {
    /// Its name.
    pub name: String,
    /// What its text means.
    pub kind: Kind,
    /// `pg_type.oid`.
    pub type_oid: u32,
    /// Whether it belongs to the key of the destination.
    pub in_key: bool,
    /// Whether it belongs to the replica identity.
    pub in_identity: bool,
    /// Whether an update may leave it out.
    pub may_be_toasted: bool,
    /// `,"name":`
    pub(super) member: Vec<u8>,
}

/// A key names a column that the table does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{table} has no column {column}")]
pub struct NoSuchColumn {
    /// The source table.
    pub table: TableName,
    /// The column.
    pub column: String,
}

impl Layout {
    /// The layout of rows that follow `relation`. `catalogue` is the table as the catalogue has it, which
    /// may be older or newer: it adds what the stream does not tell.
    pub fn of(relation: &Relation<'_>, catalogue: Option<&Table>, types: &Types) -> Layout {
        Layout::of_table(&table_of(relation, catalogue), types)
    }

    /// The layout of rows of a COPY of `table`'s columns, in their order. The key is that of [`key_columns`].
    pub fn of_table(table: &Table, types: &Types) -> Layout {
        let key = key_columns(table);
        let columns = table.columns.iter().map(|column| LayoutColumn {
            name: column.name.clone(),
            kind: types.kind(column.type_oid),
            type_oid: column.type_oid,
            in_key: key.iter().any(|key| key.name == column.name),
            in_identity: table.identity == Identity::Full || column.in_identity,
            may_be_toasted: column.may_be_toasted,
            member: member(&column.name),
        });
        let columns: Vec<LayoutColumn> = columns.collect();
        let key_end = key_end(&columns);
        Layout { oid: table.oid, name: table.name.clone(), identity: table.identity, columns, key_end }
    }

    /// The same with another key: that of the table in StarRocks.
    ///
    /// # Errors
    /// If the source has no such column.
    pub fn keyed_by(mut self, key: &[&str]) -> Result<Layout, NoSuchColumn> {
        if let Some(lacking) = key.iter().find(|name| self.columns.iter().all(|column| column.name != **name))
        {
            return Err(NoSuchColumn { table: self.name, column: (*lacking).to_owned() });
        }
        for column in &mut self.columns {
            column.in_key = key.contains(&column.name.as_str());
        }
        self.key_end = key_end(&self.columns);
        Ok(self)
    }

    /// `pg_class.oid`.
    pub fn oid(&self) -> u32 {
        self.oid
    }

    /// The source table.
    pub fn name(&self) -> &TableName {
        &self.name
    }

    /// `REPLICA IDENTITY`.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Columns in the order of rows.
    pub fn columns(&self) -> &[LayoutColumn] {
        &self.columns
    }

    /// Whether there are key columns.
    pub fn has_key(&self) -> bool {
        self.key_end > 0
    }

    /// How many columns have to be read for the key.
    pub(super) fn key_end(&self) -> usize {
        self.key_end
    }

    /// Names of the columns that rows have which lack `missing`: the `columns` of a partial load.
    pub fn present<'a>(&'a self, missing: &'a [u16]) -> impl Iterator<Item = &'a str> {
        let told = (0..).zip(&self.columns).filter(|(place, _)| missing.binary_search(place).is_err());
        told.map(|(_, column)| column.name.as_str())
    }
}

fn key_end(columns: &[LayoutColumn]) -> usize {
    columns.iter().rposition(|column| column.in_key).map_or(0, |last| last + 1)
}

fn member(name: &str) -> Vec<u8> {
    let mut member = b",".to_vec();
    append_str(name, &mut member);
    member.push(b':');
    member
}

/// The table that `relation` tells of, with what `catalogue` knows of columns of the same name.
pub fn table_of(relation: &Relation<'_>, catalogue: Option<&Table>) -> Table {
    let known = |name: &str| catalogue?.columns.iter().find(|column| column.name == name);
    let columns = (0..).zip(&relation.columns).map(|(place, told)| {
        let known = known(told.name);
        let same_type =
            |known: &&Column| known.type_oid == told.type_oid && known.type_modifier == told.type_modifier;
        let key_place = known.and_then(|known| known.primary_key);
        Column {
            name: told.name.to_owned(),
            number: known.map_or(0, |known| known.number),
            type_oid: told.type_oid,
            type_modifier: told.type_modifier,
            type_name: known.filter(same_type).map(|known| known.type_name.clone()).unwrap_or_default(),
            not_null: known.is_some_and(|known| known.not_null),
            // The default identity is the primary key, and the stream knows which one it was at the time.
            primary_key: match relation.identity {
                Identity::Default => told.in_identity.then(|| key_place.unwrap_or(place)),
                Identity::Full | Identity::Index | Identity::Nothing => key_place,
            },
            in_identity: told.in_identity,
            may_be_toasted: known.is_none_or(|known| known.may_be_toasted),
        }
    });
    Table {
        oid: relation.id,
        name: TableName::new(relation.schema, relation.name),
        identity: relation.identity,
        columns: columns.collect(),
    }
}

/// The columns by which a row is known, in the order of the key: the primary key, if the replica identity
/// has all of it, else the columns of an identity that is an index. None: rows cannot be told apart.
pub fn key_columns(table: &Table) -> Vec<&Column> {
    let mut primary: Vec<&Column> =
        table.columns.iter().filter(|column| column.primary_key.is_some()).collect();
    primary.sort_by_key(|column| column.primary_key);
    match table.identity {
        Identity::Index if !primary.iter().all(|column| column.in_identity) || primary.is_empty() => {
            table.columns.iter().filter(|column| column.in_identity).collect()
        }
        Identity::Default | Identity::Full | Identity::Index | Identity::Nothing => primary,
    }
}
