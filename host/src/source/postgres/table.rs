//! What is known of a source table: plain data, read from the catalogue or from the stream.

use std::fmt;
use std::sync::Arc;

/// A table's name, as Postgres spells it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableName {
    /// Schema (namespace).
    pub schema: Arc<str>,
    /// Table within the schema.
    pub name: Arc<str>,
}

impl TableName {
    /// A name of its two parts.
    pub fn new(schema: &str, name: &str) -> TableName {
        TableName { schema: schema.into(), name: name.into() }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

/// `REPLICA IDENTITY` of a table: what an UPDATE or DELETE tells of the old row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// The primary key's columns, if there is a primary key.
    Default,
    /// All columns.
    Full,
    /// The columns of one unique index.
    Index,
    /// Nothing: updates and deletes of a published table fail.
    Nothing,
}

/// A source table, with the columns that are published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// `pg_class.oid`, which the stream calls the relation's id.
    pub oid: u32,
    /// Its name.
    pub name: TableName,
    /// `REPLICA IDENTITY`.
    pub identity: Identity,
    /// Published columns, in the order of the table.
    pub columns: Vec<Column>,
}

/// A column of a source table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// `pg_attribute.attnum`: survives a rename. 0 when it is not known (the stream does not tell).
    pub number: i16,
    /// `pg_type.oid`; for a domain the domain's own.
    pub type_oid: u32,
    /// `atttypmod`: length or precision, by type; -1 = none.
    pub type_modifier: i32,
    /// `format_type(atttypid, atttypmod)`, for people: `numeric(10,2)`. Empty when only the stream told of the column.
    pub type_name: String,
    /// `NOT NULL`. False when only the stream told of the column.
    pub not_null: bool,
    /// Place in the primary key, from 0.
    pub primary_key: Option<u16>,
    /// Whether it belongs to the replica identity: an UPDATE or DELETE then tells its old value.
    pub in_identity: bool,
    /// Whether its values may be stored out of line (TOAST), so that an update may leave them out.
    pub may_be_toasted: bool,
}
