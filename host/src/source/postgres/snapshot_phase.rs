//! The copy of what is there, before changes are followed.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Mutex as AsyncMutex;

use super::PostgresFeed;
use super::begin::Beginning;
use super::catalog;
use super::control::{Control, Cut, SpawnLane};
use super::copy::{CopiedTable, CopyFeed, CopyParts};
use super::facts::Facts;
use super::lsn::Lsn;
use super::position::{Note, Positions};
use super::progress::Progress;
use super::row::Layout;
use super::setup::{Exported, Lifetime, create_slot, export_snapshot};
use super::snapshot::bar::CopyBar;
use super::snapshot::copy::{self, Copying};
use super::snapshot::plan::{CopyPlan, CopyTable};
use super::table::{Column, TableName};
use crate::fault::{Fault, FaultKind};
use crate::meter::Waiting;
use crate::retry::{Backoff, Pace};

/// Rows in flight between the source and the lanes, in bytes.
const IN_FLIGHT_BYTES: usize = 8 << 20;
/// How long a new slot may wait for open transactions before it is told whom it waits for.
const SLOT_PATIENCE: Duration = Duration::from_secs(60);
/// Longest pause between attempts: a stop or a halt waits as long.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(2);
/// How often progress is logged.
const TOLD_EVERY: Duration = Duration::from_secs(10);
/// How long one look takes at least.
const TURN: Duration = Duration::from_millis(20);

/// What comes after the copy.
pub(super) enum Copied {
    /// The stream, from here.
    Follow {
        /// Place in the log.
        from: Lsn,
    },
    /// Nothing: that was all, or the pipeline was asked to stop.
    Ended,
}

/// Copies what is to be copied.
///
/// # Errors
/// Whatever halts the pipeline.
pub(super) fn run(
    control: &mut Control,
    beginning: Beginning,
    positions: &Arc<Positions>,
    spawn_lane: &SpawnLane<'_>,
) -> Result<Copied, Cut> {
    match beginning {
        Beginning::Fresh { copy } => {
            let Some(exported) = retried(control, |control| control.new_slot(Lifetime::Permanent))? else {
                return Ok(Copied::Ended);
            };
            let from = exported.point;
            let rest = copy_tables(control, exported, &copy, from, positions, spawn_lane)?;
            followed(control, rest, from, positions, spawn_lane)
        }
        Beginning::Resume { from, copy } => followed(control, Some(copy), from, positions, spawn_lane),
        Beginning::Only { copy } => {
            let mut left = copy;
            while !left.is_empty() {
                let exported = retried(control, |control| {
                    let exporting = export_snapshot(&control.prepared.connector);
                    control.parts.runtime.block_on(exporting)
                })?;
                let Some(exported) = exported else { return Ok(Copied::Ended) };
                let point = exported.point;
                match copy_tables(control, exported, &left, point, positions, spawn_lane)? {
                    Some(rest) => left = rest,
                    None => return Ok(Copied::Ended),
                }
            }
            Ok(Copied::Ended)
        }
    }
}

/// Copies tables that are left over, each round in a snapshot of its own, and says where the stream begins.
fn followed(
    control: &mut Control,
    left: Option<Vec<TableName>>,
    from: Lsn,
    positions: &Arc<Positions>,
    spawn_lane: &SpawnLane<'_>,
) -> Result<Copied, Cut> {
    let Some(mut left) = left else { return Ok(Copied::Ended) };
    while !left.is_empty() {
        let Some(exported) = retried(control, |control| control.new_slot(Lifetime::Temporary))? else {
            return Ok(Copied::Ended);
        };
        match copy_tables(control, exported, &left, from, positions, spawn_lane)? {
            Some(rest) => left = rest,
            None => return Ok(Copied::Ended),
        }
    }
    let reached = retried(control, |control| control.parts.runtime.block_on(positions.reached(from)))?;
    Ok(if reached.is_some() { Copied::Follow { from } } else { Copied::Ended })
}

/// Does something until it works; none if the pipeline is asked to stop meanwhile.
fn retried<T>(
    control: &mut Control,
    mut attempt: impl FnMut(&mut Control) -> Result<T, Fault>,
) -> Result<Option<T>, Cut> {
    let mut backoff = Backoff::new(Pace { cap: RETRY_PAUSE_MAX, ..Pace::PASSING });
    let mut waiting = None;
    while !control.parts.stop.is_requested() {
        control.check_halts()?;
        match attempt(control) {
            Ok(done) => return Ok(Some(done)),
            Err(fault) if fault.kind == FaultKind::Retry => {
                tracing::warn!(pipeline = %control.parts.meter.name, "{}; trying again", fault.story());
                waiting.get_or_insert_with(|| Waiting::begin(&control.parts.meter, fault.story()));
                control.parts.runtime.block_on(backoff.wait());
            }
            Err(fault) => return Err(fault.into()),
        }
    }
    Ok(None)
}

impl Control {
    fn new_slot(&mut self, lifetime: Lifetime) -> Result<Exported, Fault> {
        let source = &self.prepared.source;
        let temporary =
            format!("{}_copy_{:08x}", &source.slot[..source.slot.len().min(48)], rand::random::<u32>());
        let slot = match lifetime {
            Lifetime::Permanent => &source.slot,
            Lifetime::Temporary => &temporary,
        };
        let connection = self.connection()?;
        let server = &self.prepared.facts.server;
        let created =
            create_slot(&self.prepared.connector, &connection, server, slot, lifetime, SLOT_PATIENCE);
        self.parts.runtime.block_on(created)
    }
}

/// Copies tables in one snapshot; returns those that could not be, or none if the pipeline is asked to stop.
fn copy_tables(
    control: &mut Control,
    exported: Exported,
    tables: &[TableName],
    upto: Lsn,
    positions: &Arc<Positions>,
    spawn_lane: &SpawnLane<'_>,
) -> Result<Option<Vec<TableName>>, Cut> {
    if tables.is_empty() {
        return Ok(Some(Vec::new()));
    }
    let source = control.prepared.source.clone();
    // Sizes and columns as they are now.
    let facts = retried(control, |control| {
        let connection = control.connection()?;
        control.parts.runtime.block_on(catalog::facts(&connection, &source))
    })?;
    let Some(facts) = facts else { return Ok(None) };
    if have_changed(tables, &control.prepared.facts, &facts) {
        return Err(Cut::Outdated);
    }
    let plan = Arc::new(CopyPlan::of(&facts, source.snapshot_workers, |name| tables.contains(name)));
    let runtime = control.parts.runtime.clone();
    let _inside = runtime.enter();
    let copies = copies(control, &plan)?;
    let Copying { copied, progress: copying } = copy::start(
        &control.prepared.connector,
        Arc::clone(&plan),
        &exported.snapshot,
        source.snapshot_workers,
        IN_FLIGHT_BYTES,
    );
    tracing::info!(
        pipeline = %control.parts.meter.name, tables = copies.len(), ranges = plan.ranges.len(),
        rows_expected = plan.rows(), point = %exported.point, "copying what is there"
    );
    let parts = Arc::new(CopyParts {
        copied: AsyncMutex::new(copied),
        tables: copies,
        runtime: runtime.clone(),
        ledger: control.parts.ledger.clone(),
        slot: source.slot.as_str().into(),
        gathering: control.parts.gathering,
        stays: AtomicUsize::new(0),
        point: exported.point,
        meter: control.meter.clone(),
        failed: Mutex::default(),
        progress: Progress::default(),
    });
    let bar = CopyBar::new(&control.parts.meter.name, &plan, &copying);
    let copied = Watched { plan, parts, copying, upto, bar }.run(control, positions, spawn_lane);
    drop(exported);
    control.check_halts()?;
    copied
}

/// Whether tables have other columns than when their destinations were looked at, which have no place for them, or are
/// others. Making a slot may have taken long.
fn have_changed(tables: &[TableName], before: &Facts, now: &Facts) -> bool {
    let shapes = |facts: &Facts| -> BTreeMap<TableName, (u32, Vec<Column>)> {
        let tables = facts.tables().into_iter().filter(|table| tables.contains(&table.name));
        tables.map(|table| (table.name, (table.oid, table.columns))).collect()
    };
    let (before, now) = (shapes(before), shapes(now));
    now.iter().any(|(name, shape)| before.get(name).is_some_and(|before| before != shape))
}

/// How the rows of each table are taken apart, and where they go.
fn copies(control: &Control, plan: &CopyPlan) -> Result<Vec<CopiedTable>, Fault> {
    let copy_of = |table: &CopyTable| {
        let name = &table.table.name;
        let followed = control.prepared.followed.iter().find(|followed| followed.table.name == *name);
        let Some(followed) = followed else {
            return Err(Fault::halt(
                format!("table {name} has come since the pipeline began"),
                "start again: it will then be copied, too",
            ));
        };
        let key: Vec<&str> = followed.key.iter().map(String::as_str).collect();
        let layout = Layout::of_table(&table.table, &control.prepared.types).keyed_by(&key);
        let layout = layout.map_err(|error| Fault::halt(error.to_string(), "start again"))?;
        Ok(CopiedTable::new(layout, followed.destination))
    };
    plan.tables.iter().map(copy_of).collect()
}

/// A running copy.
struct Watched {
    plan: Arc<CopyPlan>,
    parts: Arc<CopyParts>,
    copying: Arc<copy::Progress>,
    /// Place in the log that finished tables are remembered with.
    upto: Lsn,
    bar: CopyBar,
}

impl Watched {
    /// Copies by lanes of its own.
    fn run(
        &self,
        control: &mut Control,
        positions: &Arc<Positions>,
        spawn_lane: &SpawnLane<'_>,
    ) -> Result<Option<Vec<TableName>>, Cut> {
        let first = control.lanes.len();
        for number in 0..control.parts.lanes {
            let feed = PostgresFeed::Copy(Box::new(CopyFeed::new(Arc::clone(&self.parts))));
            let lane = spawn_lane(number, feed)
                .map_err(|error| Fault::retry("cannot start a lane's thread").caused_by(error));
            match lane {
                Ok(lane) => control.lanes.push(Some(lane)),
                Err(fault) => {
                    self.parts.progress.end();
                    return Err(fault.into());
                }
            }
        }
        let copied = self.until_durable(control, positions);
        self.parts.progress.end();
        for thread in control.lanes.drain(first..).flatten() {
            // A fault of a lane was told by the watch, or comes with its ticket.
            if let Ok(Err(fault)) = thread.join() {
                control.parts.alarm.raise(fault);
            }
        }
        copied
    }

    /// Waits until each table is durable or given up, and remembers the durable ones.
    fn until_durable(
        &self,
        control: &mut Control,
        positions: &Arc<Positions>,
    ) -> Result<Option<Vec<TableName>>, Cut> {
        let mut left: Vec<usize> = (0..self.plan.tables.len()).collect();
        let mut told = Instant::now();
        while !left.is_empty() {
            if control.parts.stop.is_requested() {
                return Ok(None);
            }
            control.check_halts()?;
            self.count(control);
            self.bar.show();
            if told.elapsed() >= TOLD_EVERY && !self.bar.is_drawn() {
                told = Instant::now();
                self.tell(control);
            }
            // Looked at first: what ends while tables are remembered is looked at in the next round.
            let all_ended =
                control.lanes.iter().all(Option::is_none) && control.parts.ledger.open_spans() == 0;
            let (done, not): (Vec<usize>, Vec<usize>) =
                left.into_iter().partition(|table| self.is_durable(control, *table));
            left = not;
            for table in done {
                self.remember(control, positions, table)?;
            }
            if all_ended && !left.is_empty() {
                return Ok(self.given_up(control, &left)?);
            }
            std::thread::sleep(TURN);
        }
        self.count(control);
        self.tell(control);
        Ok(Some(Vec::new()))
    }

    fn is_durable(&self, control: &Control, table: usize) -> bool {
        let ranges = self.plan.ranges.iter().filter(|range| range.table == table).count();
        self.parts.tables.get(table).is_some_and(|copied| copied.is_durable(ranges, &control.parts.ledger))
    }

    fn remember(&self, control: &mut Control, positions: &Positions, table: usize) -> Result<(), Cut> {
        let Some(copied) = self.plan.tables.get(table) else { return Ok(()) };
        let name = &copied.table.name;
        let upto = self.upto;
        let followed = control.prepared.followed.iter().find(|followed| followed.table.name == *name);
        let columns = followed.map(|followed| followed.remembered.clone()).unwrap_or_default();
        let note = Note { table: name.clone(), oid: copied.table.oid, columns };
        let written =
            retried(control, |control| control.parts.runtime.block_on(positions.copied(&note, upto)))?;
        if written.is_none() {
            return Ok(());
        }
        for followed in control.prepared.followed.iter_mut().filter(|followed| followed.table.name == *name) {
            followed.copied_upto = upto;
        }
        control.parts.meter.health.progress();
        tracing::info!(pipeline = %control.parts.meter.name, table = %name, "copied");
        Ok(())
    }

    /// Tables that could not be copied in this snapshot.
    fn given_up(&self, control: &Control, left: &[usize]) -> Result<Option<Vec<TableName>>, Fault> {
        let fault = self.parts.failed.lock().unwrap_or_else(PoisonError::into_inner).take();
        let fault = fault.unwrap_or_else(|| Fault::retry("the copy ended before all tables were complete"));
        if fault.kind != FaultKind::Retry {
            return Err(fault);
        }
        tracing::warn!(pipeline = %control.parts.meter.name, "{}; copying again what is not complete", fault.story());
        let tables = left.iter().filter_map(|table| self.plan.tables.get(*table));
        Ok(Some(tables.map(|table| table.table.name.clone()).collect()))
    }

    fn count(&self, control: &Control) {
        let reached = self.copying.reached();
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        control.meter.snapshot_rows.set(gauge(reached.rows));
        control.meter.snapshot_rows_expected.set(gauge(reached.rows_expected));
        control.meter.snapshot_ranges.set(gauge(reached.ranges as u64));
        control.meter.snapshot_ranges_expected.set(gauge(reached.ranges_expected as u64));
    }

    fn tell(&self, control: &Control) {
        let reached = self.copying.reached();
        tracing::info!(
            pipeline = %control.parts.meter.name, rows = reached.rows, rows_expected = reached.rows_expected,
            ranges = reached.ranges, of = reached.ranges_expected, "snapshot"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::postgres::preflight::fixtures::{add, attribute, change, facts, relation};

    #[test]
    fn a_column_that_came_after_the_look_is_noticed() {
        let mut before = facts();
        add(&mut before, [relation(2, "public.items")]);
        let mut now = before.clone();
        let orders = [TableName::new("public", "orders")];
        assert!(!have_changed(&orders, &before, &now));
        change(&mut now, 2).columns.push(attribute(3, "extra", 20, false));
        assert!(!have_changed(&orders, &before, &now), "of a table that is not copied");
        let items = [TableName::new("public", "items")];
        assert!(have_changed(&items, &before, &now));
        now.relations.remove(&2);
        assert!(!have_changed(&items, &before, &now), "it is gone");
        add(&mut now, [relation(9, "public.items")]);
        assert!(have_changed(&items, &before, &now), "it is another one");
    }
}
