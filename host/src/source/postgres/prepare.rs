//! Before anything is read: the source is looked at and set up, and each table has one to go to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::catalog;
use super::connect::Connector;
use super::destination::{self, Looked, Memory, Standing};
use super::facts::Facts;
use super::feed::NOT_COPIED;
use super::kind::Types;
use super::leadership::Leadership;
use super::position;
use super::preflight;
use super::schema::Followed;
use super::setup;
use super::table::Table;
use super::warehouse_table::{Added, Refusal, Remembered};
use crate::config::model::{Pipeline, Postgres, StarRocks};
use crate::delivery::Stop;
use crate::fault::{Fault, FaultKind};
use crate::meter::{PipelineMeter, Waiting};
use crate::retry::{Backoff, Pace};
use crate::sink::Fence;
use crate::sink::starrocks::query::{Column, Query};

/// How long StarRocks may take to add a column before it is looked at anew.
const ADD_PATIENCE: Duration = Duration::from_secs(600);
/// Refusals of one statement that may pass by themselves.
const REFUSALS_MAX: u32 = 5;

/// A source that is ready to be followed.
pub(crate) struct Prepared {
    pub(super) source: Postgres,
    pub(super) connector: Arc<Connector>,
    pub(super) facts: Facts,
    pub(super) types: Types,
    /// Each source table with its destination.
    pub(super) followed: Vec<Followed>,
    /// The right to read the slot.
    pub(super) leadership: Arc<Leadership>,
}

impl Prepared {
    /// What guards the source's rows.
    pub(crate) fn fence(&self) -> Arc<dyn Fence> {
        Arc::clone(&self.leadership) as Arc<dyn Fence>
    }

    /// Names of the destinations, each once, in the order of [`Followed::destination`], with their key columns.
    pub(crate) fn destinations(&self) -> Vec<(String, Vec<String>)> {
        let mut named: BTreeMap<u16, (String, Vec<String>)> = BTreeMap::new();
        for followed in &self.followed {
            named
                .entry(followed.destination)
                .or_insert_with(|| (followed.warehouse_table.clone(), followed.key.clone()));
        }
        named.into_values().collect()
    }
}

/// Looks at the source, sets it up as far as that is ours to do, and sees that each table has its place in
/// StarRocks. A server that does not answer is waited for.
///
/// # Errors
/// Halt, with every defect and its mend.
pub(crate) async fn prepare(
    source: &Postgres,
    pipeline: &Pipeline,
    meter: &Arc<crate::meter::PipelineMeter>,
    stop: &Stop,
) -> Result<Prepared, Fault> {
    let connector = Arc::new(Connector::new(source, &pipeline.name)?);
    let facts = looked_at(source, &connector, meter, stop).await?;
    let mut types = Types::new();
    facts.types.iter().for_each(|row| types.add(row.clone().into()));
    let followed = destined(&facts, &types, source, pipeline).await?;
    let leadership = Arc::new(Leadership::new(&connector));
    Ok(Prepared { source: source.clone(), connector, facts, types, followed, leadership })
}

/// The facts of a source without defects, after the publication was made.
async fn looked_at(
    source: &Postgres,
    connector: &Connector,
    meter: &Arc<PipelineMeter>,
    stop: &Stop,
) -> Result<Facts, Fault> {
    let mut backoff = Backoff::new(Pace::PASSING);
    let mut waiting = None;
    loop {
        let looked = async {
            let control = connector.control().await?;
            let facts = catalog::facts(&control, source).await?;
            let defects = preflight::defects(&facts, source);
            preflight::verdict(&defects)?;
            for defect in &defects {
                let mends: Vec<String> = defect.mend.iter().map(ToString::to_string).collect();
                tracing::warn!(pipeline = %meter.name, "postgres: {}; {}", defect.what, mends.join("; "));
            }
            let steps = preflight::plan(&facts, source);
            if steps.is_empty() {
                return Ok(facts);
            }
            for step in &steps {
                tracing::info!(pipeline = %meter.name, "postgres: {}", step.sql());
            }
            setup::publish(&control, &steps).await?;
            catalog::facts(&control, source).await
        };
        match looked.await {
            Err(fault) if fault.kind == FaultKind::Retry && !stop.is_requested() => {
                if waiting.is_none() {
                    tracing::warn!(pipeline = %meter.name, "{}; waiting and trying again", fault.story());
                    waiting = Some(Waiting::begin(meter, fault.story()));
                }
                backoff.wait().await;
            }
            looked => return looked,
        }
    }
}

/// Each table with its destination, which is made if the file says so.
async fn destined(
    facts: &Facts,
    types: &Types,
    source: &Postgres,
    pipeline: &Pipeline,
) -> Result<Vec<Followed>, Fault> {
    let sink = &pipeline.sink;
    let tables = facts.tables();
    if tables.is_empty() {
        return Err(Fault::halt(
            "no table of the database is named by [source.postgres] tables",
            "mend `tables` and `exclude`: patterns are `schema.table` with * and ?",
        ));
    }
    let mut query = Query::connect(sink).await?;
    let known = position::known(sink, &pipeline.name, &source.slot).await?.unwrap_or_default();
    let mut names: Vec<String> = Vec::new();
    let (mut followed, mut refusals) = (Vec::new(), Vec::new());
    for table in tables {
        let name = destination::name_of(&table, sink);
        let place = names.iter().position(|known| *known == name).unwrap_or_else(|| {
            names.push(name.clone());
            names.len() - 1
        });
        let memory = Memory::of(&table.name, &known, source);
        match made_ready(&mut query, sink, &table, memory, types, &name).await? {
            Ok(warehouse) => {
                let key = destination::key_of(&warehouse);
                let destination = u16::try_from(place).unwrap_or(u16::MAX);
                let warehouse_table = name;
                let remembered = match memory {
                    Memory::Kept(columns) => columns.to_vec(),
                    Memory::Fresh | Memory::Lost => Remembered::of(&table),
                };
                followed.push(Followed {
                    table,
                    remembered,
                    destination,
                    warehouse_table,
                    warehouse,
                    key,
                    copied_upto: NOT_COPIED,
                });
            }
            Err(refused) => refusals.extend(refused),
        }
    }
    if refusals.is_empty() { Ok(followed) } else { Err(refused(&refusals)) }
}

fn refused(refusals: &[Refusal]) -> Fault {
    let noun = if refusals.len() == 1 { "reason" } else { "reasons" };
    let mut what = format!("tables cannot be loaded into StarRocks for {} {noun}:", refusals.len());
    for Refusal { what: why, hint } in refusals {
        what.push_str(&format!("\n  - {why}\n      {hint}"));
    }
    Fault::halt(what, "mend them, or leave the tables out by `exclude` in [source.postgres]")
}

/// The columns of a destination, which is made or grown if the file says so.
async fn made_ready(
    query: &mut Query,
    sink: &StarRocks,
    table: &Table,
    memory: Memory<'_>,
    types: &Types,
    name: &str,
) -> Result<Result<Vec<Column>, Vec<Refusal>>, Fault> {
    let Looked { standing, pending } = destination::look(query, sink, table, memory, types, name).await?;
    for Refusal { what, hint } in pending {
        tracing::warn!(
            table = name,
            "changed since it was followed last: {what}; the stream will halt there: {hint}"
        );
    }
    match standing {
        Standing::Fits(there) => Ok(Ok(there)),
        Standing::Refused(refusals) => Ok(Err(refusals)),
        Standing::Missing { create } if sink.create_tables => {
            tracing::info!(table = name, "starrocks: {create}");
            query.execute(&create).await.map_err(Fault::halting)?;
            Ok(Ok(query.columns(name).await?.unwrap_or_default()))
        }
        Standing::Missing { create } => Ok(Err(vec![Refusal {
            what: format!("there is no table {}.{name} for the rows of {}", sink.database, table.name),
            hint: format!("set create_tables = true in [sink.starrocks], or run: {create}"),
        }])),
        Standing::Narrow { added, .. } if sink.create_tables => {
            add_columns(query, name, &added).await?;
            Ok(Ok(query.columns(name).await?.unwrap_or_default()))
        }
        Standing::Narrow { there, added } => {
            let names: Vec<&str> = added.iter().map(|added| added.column.as_str()).collect();
            tracing::warn!(
                table = name,
                "StarRocks lacks columns of {}, whose values are left out: {}",
                table.name,
                names.join(", ")
            );
            Ok(Ok(there))
        }
    }
}

/// Adds columns that the table lacks, and waits until each is there: StarRocks changes a table in the background.
///
/// # Errors
/// Halt, with StarRocks' reason; Retry, if it could not be asked or takes very long.
pub(super) async fn add_columns(query: &mut Query, table: &str, columns: &[Added]) -> Result<(), Fault> {
    for Added { column, sql } in columns {
        let (began, mut refusals, mut accepted) = (Instant::now(), 0, false);
        let mut backoff = Backoff::new(Pace::POLLING);
        // Somebody else, or this process in an earlier life, may have asked for it.
        while !query.columns(table).await?.is_some_and(|there| there.iter().any(|one| one.name == *column)) {
            if began.elapsed() >= ADD_PATIENCE {
                return Err(Fault::retry(format!("column {column} of {table} is still not there")));
            }
            if !accepted {
                tracing::info!(table, "starrocks: {sql}");
                match query.execute(sql).await {
                    Ok(_) => accepted = true,
                    // One change of a table at a time: another one may still be running.
                    Err(fault) if fault.story().to_ascii_lowercase().contains("schema change") => {}
                    Err(fault) if refusals < REFUSALS_MAX => {
                        refusals += 1;
                        tracing::warn!(table, "{}; trying again", fault.story());
                    }
                    Err(fault) => {
                        return Err(fault
                            .halting()
                            .with_hint(format!("run it by hand, and start again: {sql}")));
                    }
                }
            }
            backoff.wait().await;
        }
    }
    Ok(())
}
