//! Reads how many versions the tables have: shown in a metric, and an early sign of version pressure.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use super::Destinations;
use crate::batch::stage::{PipelineId, StageHandle, TableIndex};
use crate::config::model::StarRocks;
use crate::fault::Fault;
use crate::meter::TableMeter;
use crate::sink::starrocks::query::Query;

/// How often they are read. The FE itself hears of them from the BEs about once a minute, and lists every tablet of a
/// table for the question.
const VERSIONS_EVERY: Duration = Duration::from_secs(30);

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
            let mut told = false;
            loop {
                every.tick().await;
                if let Err(fault) = self.read().await {
                    // Once: without the rights it is so for good, and nothing depends on it.
                    if !std::mem::replace(&mut told, true) {
                        tracing::debug!("{}; going on without the versions of tables", fault.story());
                    }
                }
            }
        });
        Watching(task.abort_handle())
    }

    async fn read(&self) -> Result<(), Fault> {
        let mut query = Query::connect(&self.sink).await?;
        let mut failed = Ok(());
        for (place, (table, meter)) in self.destinations.names().iter().zip(&self.meters).enumerate() {
            match query.versions(table).await {
                Ok(versions) => {
                    meter.versions.set(i64::try_from(versions).unwrap_or(i64::MAX));
                    // There are no more destinations than an index can name.
                    if let Ok(index) = TableIndex::try_from(place) {
                        self.stage.show_versions(self.pipeline, index, versions);
                    }
                }
                Err(fault) => failed = Err(fault),
            }
        }
        failed
    }
}

/// Ends a background task when dropped.
pub(super) struct Watching(tokio::task::AbortHandle);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.abort();
    }
}
