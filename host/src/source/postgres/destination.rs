//! How the table in StarRocks stands that a source table's rows go to. Only looks; [`super::prepare`] acts.

use super::kind::Types;
use super::table::Table;
use super::warehouse_table::{Added, Comparison, Difference, Incompatible, Refusal, check_key, create_table};
use crate::config::model::{StarRocks, TableModel};
use crate::fault::Fault;
use crate::sink::starrocks::query::{Column, Query};

/// The name of the destination of rows that no plugin routes, unless the file says another one.
const TEMPLATE: &str = "{table}";

/// How a destination stands.
#[derive(Debug)]
pub(super) enum Standing {
    /// It has a place for every column of the source. These are its own.
    Fits(Vec<Column>),
    /// It is there and can be loaded, but lacks columns.
    Narrow {
        /// Its columns.
        there: Vec<Column>,
        /// Those that it lacks.
        added: Vec<Added>,
    },
    /// There is no such table.
    Missing {
        /// The statement that makes it.
        create: String,
    },
    /// It cannot take the rows.
    Refused(Vec<Refusal>),
}

/// The name of a source table's destination.
pub(super) fn name_of(table: &Table, sink: &StarRocks) -> String {
    let template = sink.table.as_deref().unwrap_or(TEMPLATE);
    template.replace("{schema}", &table.name.schema).replace("{table}", &table.name.name)
}

/// Key columns of a destination, in order.
pub(super) fn key_of(columns: &[Column]) -> Vec<String> {
    columns.iter().filter(|column| column.key).map(|column| column.name.clone()).collect()
}

/// Looks at `name`, the destination of `table`.
///
/// # Errors
/// If StarRocks cannot be asked.
pub(super) async fn look(
    query: &mut Query,
    sink: &StarRocks,
    table: &Table,
    types: &Types,
    name: &str,
) -> Result<Standing, Fault> {
    let database = &sink.database;
    let Some(there) = query.columns(name).await? else {
        return Ok(match create_table(table, types, database, name) {
            Ok(create) => Standing::Missing { create },
            Err(refusals) => Standing::Refused(refusals),
        });
    };
    let model = query.table_model(name).await?.or(sink.table_model);
    if model != Some(TableModel::Primary) {
        return Ok(Standing::Refused(vec![no_primary_key(table, types, database, name)]));
    }
    let mut refusals = Vec::new();
    let key = key_of(&there);
    let key: Vec<&str> = key.iter().map(String::as_str).collect();
    refusals.extend(check_key(table, &key).err());
    let comparison = Comparison { table, types, database, name, warehouse: &there, before: None };
    let mut difference = comparison.difference();
    if !refusals.is_empty() {
        // A key column that the source lacks was told of already.
        difference.incompatible.retain(|misfit| !key.contains(&misfit.column.as_str()));
    }
    refusals.extend(misfits(&difference.incompatible, &difference.side_by_side));
    if sink.create_tables && !difference.added.is_empty() && !difference.unfed.is_empty() {
        refusals.push(maybe_renamed(table, name, &difference));
    }
    Ok(if !refusals.is_empty() {
        Standing::Refused(refusals)
    } else if difference.added.is_empty() {
        Standing::Fits(there)
    } else {
        Standing::Narrow { there, added: difference.added }
    })
}

/// What keeps a table from being loaded, with both tables side by side below the last of it.
pub(super) fn misfits(incompatible: &[Incompatible], side_by_side: &str) -> Vec<Refusal> {
    let mut refusals: Vec<Refusal> = incompatible
        .iter()
        .map(|misfit| Refusal { what: misfit.what.clone(), hint: misfit.hint.clone() })
        .collect();
    if let Some(last) = refusals.last_mut() {
        last.what = format!("{}\n{side_by_side}", last.what);
    }
    refusals
}

/// A column that was renamed while nobody looked seems to be one that is gone and one that is new.
fn maybe_renamed(table: &Table, name: &str, difference: &Difference) -> Refusal {
    let added: Vec<&str> = difference.added.iter().map(|added| added.column.as_str()).collect();
    let statements: Vec<&str> = difference.added.iter().map(|added| added.sql.as_str()).collect();
    Refusal {
        what: format!(
            "{} has columns that {name} lacks ({}), and {name} has some that the source lacks ({}): were they renamed?\n{}",
            table.name,
            added.join(", "),
            difference.unfed.join(", "),
            difference.side_by_side
        ),
        hint: format!(
            "if so: ALTER TABLE `{name}` RENAME COLUMN <old> TO <new>; if not: {}",
            statements.join("; ")
        ),
    }
}

fn no_primary_key(table: &Table, types: &Types, database: &str, name: &str) -> Refusal {
    let anew = match create_table(table, types, database, name) {
        Ok(create) => format!("drop it and run: {create}"),
        Err(_refusals) => "make it anew with a PRIMARY KEY".to_owned(),
    };
    Refusal {
        what: format!(
            "table {database}.{name} is no Primary Key table, so it cannot take the updates of {}",
            table.name
        ),
        hint: format!("{anew}; or give it another name, and let create_tables = true make a new one"),
    }
}
