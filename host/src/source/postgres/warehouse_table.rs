//! The StarRocks table that fits a source table: the statement that creates it, the rule for its key, and
//! what is different once both have lived for a while. Pure: the statements are run elsewhere.

use std::collections::HashMap;

use super::kind::Types;
use super::row::key_columns;
use super::table::{Column, Identity, Table, TableName};
use crate::sink::starrocks::create_table::quoted;

mod column_type;
mod difference;
mod fit;
#[cfg(test)]
mod tests;

pub use column_type::{ColumnType, column_type};
pub use difference::{Added, Comparison, Difference, Incompatible, Remembered};

/// Names that StarRocks keeps for itself. A row says by `__op` whether it is a delete.
const RESERVED_NAMES: [&str; 2] = ["__op", "__row"];

/// Why a source table cannot be loaded into a Primary Key table, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What is wrong.
    pub what: String,
    /// What to do, with the SQL if there is any.
    pub hint: String,
}

/// `CREATE TABLE` for a Primary Key table that fits `table`: key columns first, all others NULL, so that a
/// delete may tell the key only and a partial row may lack any of them. Buckets, replicas and the place of
/// the index are StarRocks' to choose.
///
/// # Errors
/// All reasons why there can be no such table.
pub fn create_table(
    table: &Table,
    types: &Types,
    database: &str,
    name: &str,
) -> Result<String, Vec<Refusal>> {
    let key = key_columns(table);
    let key_names: Vec<&str> = key.iter().map(|column| column.name.as_str()).collect();
    let mut refusals = unusable_names(table);
    refusals.extend(check_key(table, &key_names).err());
    let mut columns = Vec::new();
    for column in &key {
        match column_type(column, types, true) {
            Ok(sql_type) => columns.push(format!("{} {sql_type} NOT NULL", quoted(&column.name))),
            Err(why) => refusals.push(Refusal {
                what: format!(
                    "key column {} of {} is {}: {why}",
                    column.name,
                    table.name,
                    type_name(column)
                ),
                hint: format!(
                    "choose another key: a unique index of NOT NULL columns and ALTER TABLE {} REPLICA IDENTITY \
                     USING INDEX <index>; or leave the table out",
                    source_name(&table.name)
                ),
            }),
        }
    }
    if !refusals.is_empty() {
        return Err(refusals);
    }
    for column in table.columns.iter().filter(|column| !key_names.contains(&column.name.as_str())) {
        let sql_type = ColumnType::of_value(column, types);
        columns.push(format!("{} {sql_type} NULL", quoted(&column.name)));
    }
    let key = key_names.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ");
    Ok(format!(
        "CREATE TABLE IF NOT EXISTS {} ({}) PRIMARY KEY({key}) DISTRIBUTED BY HASH({key})",
        warehouse_name(database, name),
        columns.join(", ")
    ))
}

/// Whether the stream tells the old value of each column of StarRocks' key: without it a changed key or a
/// delete would go unseen, and the old row would stay.
///
/// # Errors
/// If it does not.
pub fn check_key(table: &Table, key: &[&str]) -> Result<(), Refusal> {
    let source = source_name(&table.name);
    if key.is_empty() {
        return Err(Refusal {
            what: format!("{} has no key by which its rows could be told apart", table.name),
            hint: format!("ALTER TABLE {source} ADD PRIMARY KEY (<columns>); or leave the table out"),
        });
    }
    let column = |name: &str| table.columns.iter().find(|column| column.name == name);
    if let Some(lacking) = key.iter().find(|name| column(name).is_none()) {
        return Err(Refusal {
            what: format!("StarRocks' key column {lacking} is no published column of {}", table.name),
            hint: "create the StarRocks table with a key of columns that the source has".to_owned(),
        });
    }
    if table.identity == Identity::Full {
        return Ok(());
    }
    let is_primary = key.iter().all(|name| column(name).is_some_and(|column| column.primary_key.is_some()));
    let mend = if is_primary { "DEFAULT" } else { "FULL" };
    let hint = format!("ALTER TABLE {source} REPLICA IDENTITY {mend}");
    if table.identity == Identity::Nothing {
        let what = format!("{} has REPLICA IDENTITY NOTHING, so its updates and deletes fail", table.name);
        return Err(Refusal { what, hint });
    }
    let untold = key.iter().find(|name| !column(name).is_some_and(|column| column.in_identity));
    match untold {
        None => Ok(()),
        Some(name) => Err(Refusal {
            what: format!(
                "StarRocks' key column {name} is not in the replica identity of {} ({}), so a change of it is not told",
                table.name,
                identity_columns(table)
            ),
            hint: format!("{hint}; or create the StarRocks table with a key of the identity's columns"),
        }),
    }
}

fn identity_columns(table: &Table) -> String {
    let names: Vec<&str> =
        table.columns.iter().filter(|column| column.in_identity).map(|column| column.name.as_str()).collect();
    if names.is_empty() { "which has no columns".to_owned() } else { names.join(", ") }
}

/// Columns that StarRocks cannot have side by side, or not at all.
fn unusable_names(table: &Table) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    let mut seen: HashMap<String, &str> = HashMap::new();
    let hint = |name: &str| {
        format!(
            "ALTER TABLE {} RENAME COLUMN {} TO <name>; or publish the table with a column list without it",
            source_name(&table.name),
            source_quoted(name)
        )
    };
    for column in &table.columns {
        let lower = column.name.to_lowercase();
        if RESERVED_NAMES.contains(&lower.as_str()) {
            let what = format!("column {} of {} has a name that StarRocks reserves", column.name, table.name);
            refusals.push(Refusal { what, hint: hint(&column.name) });
        }
        if let Some(other) = seen.insert(lower, &column.name) {
            let what = format!(
                "columns {other} and {} of {} are one name to StarRocks, which ignores case",
                column.name, table.name
            );
            refusals.push(Refusal { what, hint: hint(&column.name) });
        }
    }
    refusals
}

/// A column's type for people.
fn type_name(column: &Column) -> String {
    if column.type_name.is_empty() {
        format!("of type {}", column.type_oid)
    } else {
        column.type_name.clone()
    }
}

fn warehouse_name(database: &str, name: &str) -> String {
    format!("{}.{}", quoted(database), quoted(name))
}

/// A name as Postgres reads it.
fn source_quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn source_name(name: &TableName) -> String {
    format!("{}.{}", source_quoted(&name.schema), source_quoted(&name.name))
}
