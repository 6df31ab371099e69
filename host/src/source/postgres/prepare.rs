//! Before anything is read: the source is looked at and set up, and each table has one to go to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::catalog;
use super::connect::{Connector, Control};
use super::destination::{self, Looked, Memory, Standing};
use super::facts::{Facts, Relation};
use super::feed::NOT_COPIED;
use super::kind::Types;
use super::leadership::Leadership;
use super::newcomers::{self, Told};
use super::position::{self, Known};
use super::preflight;
use super::roster;
use super::schema::Followed;
use super::setup;
use super::table::{Table, TableName};
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
    /// The source was looked at while another process may have read it.
    pub(super) may_be_outdated: bool,
    /// The tables that were looked for.
    pub(super) tables: Tables,
    /// What was told of tables that are set aside.
    pub(super) told: Told,
}

impl Prepared {
    /// Whether positions tell of a table that was not looked for.
    pub(super) fn has_missed(&self, known: &Known) -> bool {
        let followed = self.followed.iter().map(|followed| followed.table.name.to_string());
        self.tables.miss(&followed.collect(), known)
    }

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

/// Which of the tables that there are.
#[derive(Debug, Default)]
pub(super) enum Tables {
    /// All: one that cannot be followed halts the pipeline.
    #[default]
    All,
    /// All that can be followed, and these: another process may have begun to follow others, too.
    Fit(BTreeSet<String>),
    /// These: others are seen to while those are followed.
    These(BTreeSet<String>),
}

impl Tables {
    /// Whether the pipeline cannot go on without a table.
    fn need(&self, table: &TableName) -> bool {
        match self {
            Tables::All => true,
            Tables::Fit(names) | Tables::These(names) => names.contains(&table.to_string()),
        }
    }

    /// Whether positions tell of a table that was not looked for, where `followed` is what was found: one that was looked
    /// for and not found is not there any more.
    fn miss(&self, followed: &BTreeSet<String>, known: &Known) -> bool {
        let looked_for = |table: &str| match self {
            Tables::All => false,
            Tables::Fit(names) | Tables::These(names) => names.contains(table),
        };
        known.followed().into_iter().any(|table| !followed.contains(table) && !looked_for(table))
    }

    /// Whether this is the first round of a process.
    fn is_start(&self) -> bool {
        matches!(self, Tables::All)
    }
}

/// What a round of following leaves to the next one of the same process.
#[derive(Default)]
pub(crate) struct Round {
    /// What is followed from now on.
    pub(super) tables: Tables,
    /// The right to read the slot, if it was not lost.
    pub(super) leadership: Option<Arc<Leadership>>,
    /// What was told of tables that are set aside.
    pub(super) told: Told,
}

/// Looks at the source, sets it up as far as that is ours to do, and sees that each table has its place in
/// StarRocks. A server that does not answer is waited for; none if the pipeline is asked to stop meanwhile.
///
/// # Errors
/// Halt, with every defect and its mend.
pub(crate) async fn prepare(
    source: &Postgres,
    pipeline: &Pipeline,
    meter: &Arc<PipelineMeter>,
    stop: &Stop,
    round: Round,
) -> Result<Option<Prepared>, Fault> {
    let leadership = round.leadership.clone();
    let prepared = look_around(source, pipeline, meter, stop, round).await;
    if let (Ok(None) | Err(_), Some(leadership)) = (&prepared, leadership) {
        // A process that stands by may have the slot: this one may live on for its other pipelines.
        leadership.retire().await;
    }
    prepared
}

async fn look_around(
    source: &Postgres,
    pipeline: &Pipeline,
    meter: &Arc<PipelineMeter>,
    stop: &Stop,
    round: Round,
) -> Result<Option<Prepared>, Fault> {
    let connector = Arc::new(Connector::new(source, &pipeline.name)?);
    let looking = Looking { source, pipeline, connector: &connector, tables: &round.tables };
    let facts = patiently(meter, stop, async || looking.look().await).await?;
    let Some(facts) = facts else { return Ok(None) };
    let mut types = Types::new();
    facts.types.iter().for_each(|info| types.add(info.clone()));
    let followed = if round.tables.is_start() {
        // At the start, a StarRocks that does not answer is mostly a mistake in the file.
        Some(looking.destined(&facts, &types).await?)
    } else {
        patiently(meter, stop, async || looking.destined(&facts, &types).await).await?
    };
    let Some(followed) = followed else { return Ok(None) };
    let may_be_outdated = round.leadership.is_none() && !round.tables.is_start();
    let leadership = round.leadership.unwrap_or_else(|| Arc::new(Leadership::new(&connector)));
    let Round { tables, told, .. } = round;
    let source = source.clone();
    Ok(Some(Prepared {
        source,
        connector,
        facts,
        types,
        followed,
        leadership,
        may_be_outdated,
        tables,
        told,
    }))
}

/// Tries until it works; none if the pipeline is asked to stop meanwhile.
async fn patiently<T>(
    meter: &Arc<PipelineMeter>,
    stop: &Stop,
    mut attempt: impl AsyncFnMut() -> Result<T, Fault>,
) -> Result<Option<T>, Fault> {
    let mut backoff = Backoff::new(Pace::PASSING);
    let mut waiting = None;
    while !stop.is_requested() {
        match attempt().await {
            Ok(done) => return Ok(Some(done)),
            Err(fault) if fault.kind == FaultKind::Retry => {
                if waiting.is_none() {
                    tracing::warn!(pipeline = %meter.name, "{}; waiting and trying again", fault.story());
                    waiting = Some(Waiting::begin(meter, fault.story()));
                }
                backoff.wait().await;
            }
            Err(fault) => return Err(fault),
        }
    }
    Ok(None)
}

/// A look at the source before it is followed.
struct Looking<'a> {
    source: &'a Postgres,
    pipeline: &'a Pipeline,
    connector: &'a Connector,
    tables: &'a Tables,
}

impl Looking<'_> {
    /// The facts of a source without defects, after the publication was made.
    async fn look(&self) -> Result<Facts, Fault> {
        let control = self.connector.control().await?;
        let facts = self.facts(&control).await?;
        self.check_published(&facts).await?;
        self.judge(&facts)?;
        let pipeline = &self.pipeline.name;
        let steps = preflight::plan(&facts, self.source);
        if steps.is_empty() {
            return Ok(facts);
        }
        for step in &steps {
            tracing::info!(%pipeline, "postgres: {}", step.sql());
        }
        setup::publish(&control, &steps).await?;
        self.facts(&control).await
    }

    /// A server that was fit at the start is: should it have no room at the moment, that passes.
    fn judge(&self, facts: &Facts) -> Result<(), Fault> {
        if !self.tables.is_start() {
            return preflight::verdict(&preflight::defects_of_tables(facts, self.source));
        }
        let defects = preflight::defects(facts, self.source);
        preflight::verdict(&defects)?;
        for defect in &defects {
            let mends: Vec<String> = defect.mend.iter().map(ToString::to_string).collect();
            let mends = mends.iter().map(|mend| mend.trim_end_matches(';')).collect::<Vec<_>>().join("; ");
            tracing::warn!(pipeline = %self.pipeline.name, "postgres: {}; {mends}", defect.what);
        }
        Ok(())
    }

    async fn facts(&self, control: &Control) -> Result<Facts, Fault> {
        let facts = catalog::facts(control, self.source).await?;
        let others = facts.chosen().into_iter().map(|relation| relation.name.clone());
        let others = others.filter(|name| !self.tables.need(name));
        let left_out: BTreeSet<TableName> = match self.tables {
            Tables::All => return Ok(facts),
            Tables::These(_) => others.collect(),
            Tables::Fit(_) => {
                let others: BTreeSet<TableName> = others.collect();
                let known = self.known().await?;
                // The process that leads has set them aside.
                let chosen = facts.chosen().into_iter().map(|relation| relation.name.clone());
                let back = chosen.filter(|name| known.has_left(&name.to_string()));
                let unfit = newcomers::unfit(&facts, self.source, &others);
                unfit.into_iter().chain(back).collect()
            }
        };
        Ok(facts.without(&left_out))
    }

    /// A table that was copied, and that the publication lacks, was taken out of it: put back without a word, it would
    /// miss the changes in between.
    async fn check_published(&self, facts: &Facts) -> Result<(), Fault> {
        let is_missing = |relation: &&Relation| !preflight::is_listed(facts, relation);
        let missing: Vec<&Relation> = facts.chosen().into_iter().filter(is_missing).collect();
        if missing.is_empty() || facts.publication.is_none() || !preflight::follows(self.source) {
            return Ok(());
        }
        let known = self.known().await?;
        // Another table of the name was never in it, and one that was not followed meanwhile need not be.
        roster::check_same(&known, missing.iter().map(|relation| (&relation.name, relation.oid)))?;
        let missing = missing.into_iter().map(|relation| relation.name.clone());
        let missing: Vec<TableName> =
            missing.filter(|table| known.copied.contains_key(&table.to_string())).collect();
        if missing.is_empty() { Ok(()) } else { Err(roster::unpublished(&missing, self.source)) }
    }

    /// What is known from before. At the start, a StarRocks that does not answer is mostly a mistake in the file.
    async fn known(&self) -> Result<Known, Fault> {
        let known = position::known(&self.pipeline.sink, &self.pipeline.name, &self.source.slot).await;
        let known = if self.tables.is_start() { known.map_err(Fault::halting) } else { known };
        Ok(known?.unwrap_or_default())
    }

    /// Each table with its destination, which is made if the file says so.
    async fn destined(&self, facts: &Facts, types: &Types) -> Result<Vec<Followed>, Fault> {
        let sink = &self.pipeline.sink;
        let tables = facts.tables();
        if tables.is_empty() {
            return Err(Fault::halt(
                "no table of the database is named by [source.postgres] tables",
                "mend `tables` and `exclude`: patterns are `schema.table` with * and ?",
            ));
        }
        let mut query = Query::connect(sink).await?;
        let known = self.known().await?;
        // First: what else is wrong with such a table is told by comparing it with another one.
        let needed = tables.iter().filter(|table| self.tables.need(&table.name));
        roster::check_same(&known, needed.map(|table| (&table.name, table.oid)))?;
        let mut names: Vec<String> = Vec::new();
        let (mut followed, mut refusals) = (Vec::new(), Vec::new());
        for table in tables {
            let name = destination::name_of(&table, sink);
            let memory = Memory::of(&table.name, &known, self.source);
            match placed(&mut query, sink, &table, memory, types).await? {
                // Told of while the others are followed.
                Err(_refusals) if !self.tables.need(&table.name) => {}
                Ok(warehouse) => {
                    let place = names.iter().position(|known| *known == name).unwrap_or_else(|| {
                        names.push(name.clone());
                        names.len() - 1
                    });
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
}

fn refused(refusals: &[Refusal]) -> Fault {
    let noun = if refusals.len() == 1 { "reason" } else { "reasons" };
    let mut what = format!("tables cannot be loaded into StarRocks for {} {noun}:", refusals.len());
    for Refusal { what: why, hint } in refusals {
        what.push_str(&format!("\n  - {why}\n      {hint}"));
    }
    Fault::halt(what, "mend them, or leave the tables out by `exclude` in [source.postgres]")
}

/// The columns of a table's destination, which is made or grown if the file says so; or why it cannot take the rows.
///
/// # Errors
/// If StarRocks cannot be asked, or will not make the table.
pub(super) async fn placed(
    query: &mut Query,
    sink: &StarRocks,
    table: &Table,
    memory: Memory<'_>,
    types: &Types,
) -> Result<Result<Vec<Column>, Vec<Refusal>>, Fault> {
    let name = &destination::name_of(table, sink);
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
            query.create_table(&create).await?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::postgres::lsn::Lsn;
    use crate::source::postgres::position::Trace;

    #[test]
    fn a_table_that_was_looked_for_and_not_found_is_not_looked_for_again() {
        let names =
            |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<String>>();
        let left = Trace { oid: Some(3), has_left: true, at: Lsn(1) };
        let known = Known {
            copied: ["a", "b", "left"].map(|table| (table.to_owned(), Lsn(1))).into(),
            traces: [("left".to_owned(), left)].into(),
            ..Known::default()
        };
        for (tables, followed, misses) in [
            (Tables::All, ["a"].as_slice(), true),
            (Tables::All, &["a", "b", "c"], false),
            (Tables::Fit(names(&["a", "b"])), &["a"], false),
            (Tables::These(names(&["a"])), &["a"], true),
        ] {
            assert_eq!(tables.miss(&names(followed), &known), misses, "{tables:?} found {followed:?}");
        }
    }
}
