//! Has one table copied again: empties its destination and forgets that it was copied.

use std::sync::Arc;

use super::catalog;
use super::connect::Connector;
use super::destination;
use super::leadership::Leadership;
use super::position;
use crate::config::model::{Pipeline, Postgres};
use crate::fault::Fault;
use crate::sink::starrocks::query::Query;

/// Prepares `table` (`schema.table`) to be copied at the next start; returns its destination.
///
/// The lock of the slot is held meanwhile: a running process would go on loading the table.
///
/// # Errors
/// Halt, if a process runs, if the pipeline does not follow the table, or if others are loaded into its
/// destination, too: emptying it would lose their rows.
pub(crate) async fn resync(source: &Postgres, pipeline: &Pipeline, table: &str) -> Result<String, Fault> {
    let connector = Arc::new(Connector::new(source, &pipeline.name)?);
    let leadership = Leadership::new(&connector);
    if !leadership.acquire().await? {
        return Err(Fault::halt(
            format!("a process reads slot {}", source.slot),
            "stop it, and its standbys, before a table is copied again",
        ));
    }
    let control = connector.control().await?;
    let tables = catalog::facts(&control, source).await?.tables();
    let Some(wanted) = tables.iter().find(|known| known.name.to_string() == table) else {
        let known: Vec<String> = tables.iter().map(|known| known.name.to_string()).collect();
        return Err(Fault::halt(
            format!("the pipeline does not follow a table {table}"),
            format!("it follows {}", known.join(", ")),
        ));
    };
    let name = destination::name_of(wanted, &pipeline.sink);
    let others = tables.iter().filter(|other| other.oid != wanted.oid);
    if let Some(other) = others.into_iter().find(|other| destination::name_of(other, &pipeline.sink) == name)
    {
        return Err(Fault::halt(
            format!("{} is loaded into {name}, too", other.name),
            format!("delete the rows of {table} there by hand, and start with a pipeline of its own"),
        ));
    }
    let mut query = Query::connect(&pipeline.sink).await?;
    // In this order: if the second does not come to be, the table is copied over what is there.
    position::forget(&mut query, &pipeline.sink.database, &pipeline.name, &source.slot, table).await?;
    query.execute(&format!("TRUNCATE TABLE `{}`.`{name}`", pipeline.sink.database)).await?;
    Ok(name)
}
