//! What the stream's feed cannot go past before it was done.

use super::Control;
use crate::fault::{Fault, FaultKind};
use crate::sink::starrocks::query::Query;
use crate::source::postgres::position::Note;
use crate::source::postgres::prepare::add_columns;
use crate::source::postgres::progress::Barrier;
use crate::source::postgres::table::TableName;

impl Control {
    /// Does what the feed waits for, when everything before it is durable.
    pub(super) fn pass_barrier(&mut self) -> Result<(), Fault> {
        let Some(barrier) = self.progress.barrier() else { return Ok(()) };
        if self.parts.ledger.open_spans() > 0 {
            return Ok(());
        }
        if let Barrier::Halt { what, hint } = barrier {
            return Err(Fault::halt(what, hint));
        }
        match self.parts.runtime.clone().block_on(self.do_what_is_asked(&barrier)) {
            Ok(()) => {
                self.progress.pass();
                Ok(())
            }
            Err(fault) if fault.kind == FaultKind::Retry => {
                tracing::warn!(pipeline = %self.parts.meter.name, "{}; trying again", fault.story());
                Ok(())
            }
            Err(fault) => Err(fault),
        }
    }

    async fn do_what_is_asked(&mut self, barrier: &Barrier) -> Result<(), Fault> {
        let mut query = Query::connect(&self.sink).await?;
        let find = |name: &TableName| self.prepared.followed.iter().find(|one| one.table.name == *name);
        let warehouse =
            |name: &TableName| find(name).map(|one| (one.warehouse_table.clone(), one.destination));
        match barrier {
            // Told before.
            Barrier::Halt { .. } => Ok(()),
            Barrier::Reshape { table, add, columns, at } => {
                let Some(followed) = find(table) else { return Ok(()) };
                let note = Note { columns: columns.clone(), ..followed.note() };
                // First: a column that was dropped and added anew would otherwise be told apart from the new one no more.
                if let Some(positions) = &self.positions {
                    positions.remember(&[note], *at).await?;
                }
                self.prepared.leadership.ask().await?;
                add_columns(&mut query, &followed.warehouse_table, add).await
            }
            Barrier::Truncate(tables) => {
                for table in tables {
                    let Some((name, destination)) = warehouse(table) else { continue };
                    let shared =
                        self.prepared.followed.iter().filter(|other| other.destination == destination);
                    if shared.count() > 1 {
                        return Err(Fault::halt(
                            format!("{table} was truncated, but other tables are loaded into {name}, too"),
                            "delete its rows there by hand, and set truncate = \"ignore\" in [source.postgres]",
                        ));
                    }
                    tracing::warn!(table = %name, "emptying it: the source table {table} was truncated");
                    let statement = format!("TRUNCATE TABLE `{}`.`{name}`", self.sink.database);
                    // Done twice it would empty what was loaded in between, by a successor even.
                    self.prepared.leadership.ask().await?;
                    let emptied = query.execute(&statement).await;
                    // No fence stands between begin and end of a statement: it may have been on its way for longer than
                    // the lock was ours.
                    if let Err(why) = self.prepared.leadership.ask().await {
                        return Err(self.emptied_behind(table, &name, &why));
                    }
                    emptied?;
                }
                Ok(())
            }
        }
    }

    /// Another process may have loaded rows before the statement took effect.
    fn emptied_behind(&self, table: &TableName, name: &str, why: &Fault) -> Fault {
        let (database, pipeline) = (&self.sink.database, &self.parts.meter.name);
        Fault::halt(
            format!(
                "{database}.{name} may have been emptied behind its new reader: pipeline {pipeline} sent its TRUNCATE, and \
                 then could not be sure any more that it leads ({})",
                why.story()
            ),
            format!(
                "if another process has led since, rows of {table} may be missing: end all processes of the pipeline, and \
                 `tidemill resync <file> {table}`"
            ),
        )
    }
}
