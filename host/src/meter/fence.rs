//! Metrics of what keeps Primary Key tables that are loaded from Kafka from going back in time.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::pipeline::{PerPipeline, PerPipelineGauge};
use super::{PipelineLabels, family, family_gauge};

/// All of them, by pipeline.
#[derive(Debug)]
pub(super) struct FenceFamilies {
    refusals: PerPipeline,
    cancelled: PerPipeline,
    unfenced: PerPipelineGauge,
}

impl FenceFamilies {
    pub(super) fn register(registry: &mut Registry) -> FenceFamilies {
        FenceFamilies {
            refusals: family(
                registry,
                "fence_refusals",
                "Loads into Primary Key tables whose rows stayed here because their partitions were not known to be ours",
            ),
            cancelled: family(
                registry,
                "labels_cancelled",
                "Open loads of members before that were cancelled when their partitions were taken over",
            ),
            unfenced: family_gauge(
                registry,
                "claims_unfenced",
                "1 while Primary Key tables are guarded by plain commits because there are no transactions in Kafka",
            ),
        }
    }

    pub(super) fn of(&self, labels: &PipelineLabels) -> FenceMeter {
        FenceMeter {
            refusals: self.refusals.get_or_create(labels).clone(),
            cancelled: self.cancelled.get_or_create(labels).clone(),
            unfenced: self.unfenced.get_or_create(labels).clone(),
        }
    }
}

/// Those of one pipeline.
#[derive(Debug)]
pub struct FenceMeter {
    /// Loads whose bodies stayed here.
    pub refusals: Counter,
    /// Open loads of members before that were cancelled.
    pub cancelled: Counter,
    /// 1 while claims are plain commits.
    pub unfenced: Gauge,
}
