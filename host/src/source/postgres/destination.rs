//! How the table in StarRocks stands that a source table's rows go to. Only looks; [`super::prepare`] acts.

use super::kind::Types;
use super::position::Known;
use super::shape::as_followed;
use super::table::{Table, TableName};
use super::warehouse_table::{
    Added, Comparison, Difference, Incompatible, Refusal, Remembered, check_key, create_table,
};
use crate::config::model::{Postgres, Snapshot, StarRocks, TableModel};
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

/// What is known of the columns with which a table was followed last.
#[derive(Debug, Clone, Copy)]
pub(super) enum Memory<'a> {
    /// It was not followed, or is copied anew: it counts as it is now.
    Fresh,
    /// It was followed by a version that kept no columns.
    Lost,
    /// These.
    Kept(&'a [Remembered]),
}

impl<'a> Memory<'a> {
    /// What the positions know of `table`.
    pub(super) fn of(table: &TableName, known: &'a Known, source: &Postgres) -> Memory<'a> {
        let name = table.to_string();
        let is_copied = source.snapshot != Snapshot::Never && !known.copied.contains_key(&name);
        match known.columns.get(&name) {
            _ if is_copied => Memory::Fresh,
            Some(columns) => Memory::Kept(columns),
            None if known.stream.is_some() => Memory::Lost,
            None => Memory::Fresh,
        }
    }
}

/// A destination.
#[derive(Debug)]
pub(super) struct Looked {
    /// How it stands, with the table as it was followed last.
    pub(super) standing: Standing,
    /// What will halt the pipeline when the stream tells of it.
    pub(super) pending: Vec<Refusal>,
}

impl From<Standing> for Looked {
    fn from(standing: Standing) -> Self {
        Looked { standing, pending: Vec::new() }
    }
}

/// Looks at `name`, the destination of `table`.
///
/// # Errors
/// If StarRocks cannot be asked.
pub(super) async fn look(
    query: &mut Query,
    sink: &StarRocks,
    table: &Table,
    memory: Memory<'_>,
    types: &Types,
    name: &str,
) -> Result<Looked, Fault> {
    let database = &sink.database;
    let Some(there) = query.columns(name).await? else {
        return Ok(Looked::from(match create_table(table, types, database, name) {
            Ok(create) => Standing::Missing { create },
            Err(refusals) => Standing::Refused(refusals),
        }));
    };
    let model = query.table_model(name).await?.or(sink.table_model);
    if model != Some(TableModel::Primary) {
        return Ok(Standing::Refused(vec![no_primary_key(table, types, database, name)]).into());
    }
    let comparison = Comparison { table, types, database, name, warehouse: &there, before: None };
    let (mut difference, mut refusals, pending) = match memory {
        Memory::Kept(remembered) => {
            let shaped = as_followed(table, remembered, &there);
            let mut difference = shaped.difference(comparison);
            difference.added.retain(|added| shaped.agrees_on(&added.column, table));
            let refusals = key_refusals(&shaped.table, &there);
            let news = Comparison { before: Some(remembered), ..comparison }.difference();
            (difference, refusals, misfits(&news.incompatible, &news.side_by_side))
        }
        Memory::Fresh | Memory::Lost => (comparison.difference(), key_refusals(table, &there), Vec::new()),
    };
    if !refusals.is_empty() {
        // A key column that the source lacks was told of already.
        let key = key_of(&there);
        difference.incompatible.retain(|misfit| !key.contains(&misfit.column));
    }
    refusals.extend(misfits(&difference.incompatible, &difference.side_by_side));
    let may_be_renamed = !difference.added.is_empty() && !difference.unfed.is_empty();
    if matches!(memory, Memory::Lost) && sink.create_tables && may_be_renamed {
        refusals.push(maybe_renamed(table, name, &difference));
    }
    let standing = if !refusals.is_empty() {
        return Ok(Standing::Refused(refusals).into());
    } else if difference.added.is_empty() {
        Standing::Fits(there)
    } else {
        Standing::Narrow { there, added: difference.added }
    };
    Ok(Looked { standing, pending })
}

/// Why a table's rows cannot be told apart by the key that is there.
fn key_refusals(table: &Table, there: &[Column]) -> Vec<Refusal> {
    let key = key_of(there);
    let key: Vec<&str> = key.iter().map(String::as_str).collect();
    check_key(table, &key).err().into_iter().collect()
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

/// Where nobody remembers the columns, one that was renamed while nobody looked seems to be one that is gone and one that
/// is new.
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
