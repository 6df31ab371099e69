//! Reads how many versions the tables have: shown in a metric, and an early sign of version pressure.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::time::MissedTickBehavior;

use super::Destinations;
use crate::batch::stage::{PipelineId, StageHandle, TableIndex};
use crate::batch::stretch::VERSIONS_EVERY;
use crate::config::model::StarRocks;
use crate::fault::Fault;
use crate::meter::TableMeter;
use crate::sink::starrocks::query::Query;

/// What the metric shows of a table whose versions could not be read.
const UNKNOWN: i64 = 0;

/// What is read, and who is told.
pub(super) struct VersionWatch {
    pub(super) sink: Arc<StarRocks>,
    pub(super) pipeline: PipelineId,
    pub(super) destinations: Arc<Destinations>,
    /// Of each destination, in their order.
    pub(super) meters: Vec<TableMeter>,
    pub(super) stage: StageHandle,
}

impl VersionWatch {
    /// Reads them now and then, where the query port and rights allow; ends when the handle is dropped.
    pub(super) fn start(self, runtime: &Handle) -> Watching {
        let task = runtime.spawn(async move {
            let mut every = tokio::time::interval(VERSIONS_EVERY);
            // What a slow FE has held up is not made up for: it would be asked again and again, at once.
            every.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut told = false;
            loop {
                every.tick().await;
                let tables = self.destinations.names().iter().zip(&self.meters);
                let show = |table, versions| self.stage.show_versions(self.pipeline, table, versions);
                if let Err(fault) = read(&self.sink, tables, show).await {
                    // Once: without the rights it is so for good, and nothing depends on it.
                    if !std::mem::replace(&mut told, true) {
                        tracing::debug!("{}; going on without the versions of tables", fault.story());
                    }
                }
            }
        });
        Watching(task.abort_handle())
    }
}

/// Tables of one round that may answer late, each after ten seconds.
const LATE_MAX: u32 = 3;

/// One round over `tables`. The first failure is told of; whatever was not read is shown as unknown, and not as it was.
async fn read<'a>(
    sink: &StarRocks,
    tables: impl Iterator<Item = (&'a String, &'a TableMeter)>,
    show: impl Fn(TableIndex, u64),
) -> Result<(), Fault> {
    let mut query = Query::connect(sink).await;
    let (mut failed, mut late) = (Ok(()), 0);
    for (place, (table, meter)) in tables.enumerate() {
        let read = match &mut query {
            Ok(open) => open.versions(table).await,
            Err(_) => {
                meter.versions.set(UNKNOWN);
                continue;
            }
        };
        match read {
            Ok(versions) => {
                meter.versions.set(i64::try_from(versions).unwrap_or(i64::MAX));
                // There are no more destinations than an index can name.
                if let Ok(index) = TableIndex::try_from(place) {
                    show(index, versions);
                }
            }
            Err(fault) => {
                meter.versions.set(UNKNOWN);
                failed = failed.and(Err(fault));
                // One that answered late is closed. The tables behind it are asked for over another one, a few times a
                // round: the others go without, and are not shown as they were.
                if query.as_ref().is_ok_and(|open| !open.is_open()) && late < LATE_MAX {
                    late += 1;
                    query = Query::connect(sink).await;
                }
            }
        }
    }
    query.and(failed)
}

/// Ends a background task when dropped.
pub(super) struct Watching(tokio::task::AbortHandle);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tidemill_sandbox::{Fault as SandboxFault, FaultKind, Options, Sandbox};

    use super::*;
    use crate::batch::stage::fakes::cluster;
    use crate::meter::Meter;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_can_no_longer_be_read_is_no_longer_shown() {
        let sandbox = Sandbox::start(Options::default()).await.expect("free ports");
        sandbox.execute("CREATE DATABASE shop").expect("a database");
        for table in ["orders", "events"] {
            let sql = format!("CREATE TABLE shop.{table} (id BIGINT NOT NULL) DUPLICATE KEY(id)");
            sandbox.execute(&sql).expect("a table");
        }
        let mut sink = cluster(vec![sandbox.fe_url()]);
        sink.query = Some(format!("127.0.0.1:{}", sandbox.query_port()));
        let (meter, names) = (Meter::new(), ["orders", "nothing", "events"].map(str::to_owned));
        let meters = names.each_ref().map(|name| meter.table("p", name));
        let shown = Mutex::new(Vec::new());
        let round = async || {
            let show = |table, _| shown.lock().expect("no panic").push(table);
            let read = read(&sink, names.iter().zip(&meters), show).await;
            (read.is_ok(), meters.each_ref().map(|meter| meter.versions.get() > 0))
        };
        assert_eq!(round().await, (false, [true, false, true]), "there is no second table");
        assert_eq!(*shown.lock().expect("no panic"), [0, 2]);
        let denied = sandbox.set_fault(SandboxFault::always(FaultKind::TabletsDenied));
        assert_eq!(round().await, (false, [false; 3]));
        sandbox.clear_fault(denied);
        assert_eq!(round().await, (false, [true, false, true]));
        sandbox.stop().await;
        assert_eq!(round().await, (false, [false; 3]), "nobody is there to ask");
    }
}
