//! Asks the source for a row whose key changed while large values of it did not, and which the stream therefore does not tell
//! whole. The source answers as of now: its table may have been changed since, or be gone.

use tokio_postgres::SimpleQueryMessage;
use tokio_postgres::error::SqlState;

use super::connect::Control;
use super::pgoutput::{Field, Update};
use super::quote;
use super::row::Layout;
use super::schema::{Followed, unfit};
use super::table::{Column, Table, TableName};
use super::warehouse_table::Comparison;
use crate::fault::Fault;
use crate::source::postgres::kind::Types;

/// A row: the text of each column of the layout, none for NULL.
pub(super) type Fields = Vec<Option<Vec<u8>>>;

/// The table's name and the number and name of each of its columns, by its oid: both may have been renamed, and another table
/// may have its name.
const TABLE_SQL: &str = "SELECT n.nspname::text, c.relname::text, a.attnum, a.attname::text \
     FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
     JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
     WHERE c.oid = $1 ORDER BY a.attnum";

/// A table as the source has it now.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Source {
    name: TableName,
    /// Number and name.
    columns: Vec<(i16, String)>,
}

/// The row that `update` is about; none if there is no such row any more.
///
/// # Errors
/// Retry, if the source cannot be asked; Halt, if a column that StarRocks has is gone from it.
pub(super) async fn row(
    control: &Control,
    followed: &Followed,
    database: &str,
    layout: &Layout,
    update: &Update<'_>,
) -> Result<Option<Fields>, Fault> {
    let attempted = "read back a row whose key changed";
    let rows = control.client().query(TABLE_SQL, &[&layout.oid()]).await;
    let rows = rows.map_err(|error| control.fault(attempted, error))?;
    // The row went with its table.
    let Some(first) = rows.first() else { return Ok(None) };
    let source = Source {
        name: TableName::new(first.get(0), first.get(1)),
        columns: rows.iter().map(|row| (row.get(2), row.get(3))).collect(),
    };
    let names =
        names_now(&source, followed, layout).map_err(|gone| lost(gone, &source, followed, database))?;
    let statement = statement(&source, &names, layout, update);
    let answer = match control.client().simple_query(&statement).await {
        Ok(answer) => answer,
        Err(error)
            if [Some(&SqlState::UNDEFINED_COLUMN), Some(&SqlState::UNDEFINED_TABLE)]
                .contains(&error.code()) =>
        {
            return Err(Fault::retry(format!(
                "the table {} was changed while a row was read back",
                source.name
            )));
        }
        Err(error) => return Err(control.fault(attempted, error)),
    };
    let row = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    Ok(row.map(|row| {
        let mut fields = (0..row.len()).map(|place| row.get(place).map(|text| text.as_bytes().to_vec()));
        // What is gone and nobody needs is NULL.
        names.iter().map(|name| name.as_ref().and_then(|_| fields.next().flatten())).collect()
    }))
}

/// The names that the layout's columns have in the source now; none for one that is gone, and that StarRocks does not have
/// either.
fn names_now<'a>(
    source: &'a Source,
    followed: &'a Followed,
    layout: &Layout,
) -> Result<Vec<Option<&'a str>>, &'a Column> {
    let columns = followed.table.columns.iter().zip(layout.columns());
    let name = |(column, laid_out): (&'a Column, &super::row::LayoutColumn)| {
        let found = source.columns.iter().find(|(number, name)| match column.number {
            0 => *name == column.name,
            known => *number == known,
        });
        let is_needed = laid_out.in_key
            || followed.warehouse.iter().any(|there| there.name == column.name)
                && followed.remembered.iter().any(|known| known.name == column.name);
        match found {
            Some((_, name)) => Ok(Some(name.as_str())),
            None if is_needed => Err(column),
            None => Ok(None),
        }
    };
    columns.map(name).collect()
}

fn statement(source: &Source, names: &[Option<&str>], layout: &Layout, update: &Update<'_>) -> String {
    let columns: Vec<String> = names.iter().flatten().map(|name| quote::identifier(name)).collect();
    let key =
        layout.columns().iter().zip(names).zip(update.new.columns()).filter_map(|((column, name), field)| {
            let name = name.filter(|_| column.in_key)?;
            Some(match field {
                Field::Text(text) => {
                    let value = quote::literal(&String::from_utf8_lossy(text));
                    format!("{} = {value}", quote::identifier(name))
                }
                Field::Null | Field::Unchanged => "false".to_owned(),
            })
        });
    let conditions: Vec<String> = key.collect();
    format!(
        "SELECT {} FROM {} WHERE {}",
        columns.join(", "),
        quote::table(&source.name),
        conditions.join(" AND ")
    )
}

/// The value that the row had cannot be known any more, and StarRocks has a place for it.
fn lost(gone: &Column, source: &Source, followed: &Followed, database: &str) -> Fault {
    // Side by side with the source as it is now.
    let mut table = Table { name: source.name.clone(), columns: Vec::new(), ..followed.table.clone() };
    for (number, name) in &source.columns {
        let known = followed.table.columns.iter().find(|column| column.number == *number);
        let known = known.or_else(|| followed.table.columns.iter().find(|column| column.name == *name));
        table.columns.extend(known.map(|known| Column { name: name.clone(), ..known.clone() }));
    }
    let types = Types::new();
    let comparison = Comparison {
        table: &table,
        types: &types,
        database,
        name: &followed.warehouse_table,
        warehouse: &followed.warehouse,
        before: None,
    };
    let what = format!(
        "the key of a row of {} was changed, and its {}, which such a change leaves out, cannot be read back: the column was \
         dropped since",
        followed.table.name, gone.name
    );
    let resync = format!("copy the table anew: tidemill resync <file> {}", followed.table.name);
    let hint = if followed.key.contains(&gone.name) {
        format!("make table {} anew with the source's key, and {resync}", followed.warehouse_table)
    } else {
        format!("{}; or {resync}", comparison.drop_or_keep(&gone.name))
    };
    unfit(&what, &hint, &comparison.side_by_side())
}

#[cfg(test)]
mod tests;
