//! Metrics of what keeps Primary Key tables that are loaded from Kafka from going back in time.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::pipeline::{PerPipeline, PerPipelineGauge};
use super::{PipelineLabels, SecondsFamily, family, family_gauge, family_seconds};

/// Upper bounds of the waits' buckets, in seconds: from one commit to brokers that do not answer.
const WAIT_SECONDS_BUCKETS: [f64; 9] = [0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0, 10.0, 20.0];

fn wait_seconds_histogram() -> Histogram {
    Histogram::new(WAIT_SECONDS_BUCKETS)
}

/// All of them, by pipeline.
#[derive(Debug)]
pub(super) struct FenceFamilies {
    refusals: PerPipeline,
    cancelled: PerPipeline,
    unfenced: PerPipelineGauge,
    wait_seconds: SecondsFamily<PipelineLabels>,
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
            wait_seconds: family_seconds(
                registry,
                "fence_wait",
                "Time that a load into a Primary Key table waits between its begin and its body, for a commit of offsets",
                wait_seconds_histogram,
            ),
        }
    }

    pub(super) fn of(&self, labels: &PipelineLabels) -> FenceMeter {
        FenceMeter {
            refusals: self.refusals.get_or_create(labels).clone(),
            cancelled: self.cancelled.get_or_create(labels).clone(),
            unfenced: self.unfenced.get_or_create(labels).clone(),
            wait_seconds: self.wait_seconds.get_or_create(labels).clone(),
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
    /// How long bodies waited for their fence.
    pub wait_seconds: Histogram,
}
