//! The stretch of one table at the stage: what changes is shown in the metrics and told in the log.

use std::collections::BTreeMap;
use std::time::Instant;

use super::PipelineId;
use crate::batch::stretch::{Cause, Sign, Step, Stretch};
use crate::config::model::BatchLimits;
use crate::meter::TableMeter;
use crate::sink::Destination;

/// A table's stretch, and whose metrics show it.
pub(super) struct Strain {
    stretch: Stretch,
    meters: BTreeMap<PipelineId, TableMeter>,
}

impl Strain {
    pub(super) fn new(limits: BatchLimits) -> Strain {
        Strain { stretch: Stretch::new(limits), meters: BTreeMap::new() }
    }

    /// The metrics of `pipeline` show it from now on.
    pub(super) fn shown_by(&mut self, pipeline: PipelineId, meter: &TableMeter) {
        meter.stretch.set(i64::from(self.stretch.factor()));
        self.meters.insert(pipeline, meter.clone());
    }

    /// The pipeline has ended.
    pub(super) fn forget(&mut self, pipeline: PipelineId) {
        if let Some(meter) = self.meters.remove(&pipeline) {
            meter.stretch.set(1);
        }
    }

    /// How many times as large as configured batches may become.
    pub(super) fn factor(&self) -> u32 {
        self.stretch.factor()
    }

    /// The limits of a batch now.
    pub(super) fn limits(&self) -> BatchLimits {
        self.stretch.limits()
    }

    /// When it changes by itself.
    pub(super) fn rests_at(&self) -> Option<Instant> {
        self.stretch.rests_at()
    }

    /// Takes a sign in; whether the limits are others now.
    pub(super) fn see(&mut self, table: &Destination, sign: Sign, now: Instant) -> bool {
        let (cause, step) = self.stretch.see(sign, now);
        if let Some(cause) = cause {
            self.meters.values().for_each(|meter| meter.sign_of_pressure(cause));
        }
        self.tell(table, step, cause)
    }

    /// Steps back if that is due; whether the limits are others now.
    pub(super) fn rest(&mut self, table: &Destination, now: Instant) -> bool {
        let step = self.stretch.rest(now);
        self.tell(table, step, None)
    }

    fn tell(&self, destination: &Destination, step: Option<Step>, cause: Option<Cause>) -> bool {
        let Some(step) = step else { return false };
        for meter in self.meters.values() {
            meter.stretch.set(i64::from(step.to));
        }
        let (database, table) = (&destination.cluster.database, &destination.table);
        let BatchLimits { max_rows, max_bytes, linger, .. } = self.stretch.limits();
        let linger_ms = u64::try_from(linger.as_millis()).unwrap_or(u64::MAX);
        let why = cause.map_or("calm", Cause::name);
        if step.begins() {
            tracing::warn!(
                database,
                table,
                why,
                linger_ms,
                max_rows,
                max_bytes,
                "version pressure: batches of this table wait longer and grow until it is over"
            );
        } else if step.ends() {
            tracing::info!(
                database,
                table,
                linger_ms,
                max_rows,
                max_bytes,
                "version pressure is over: batches of this table are as configured"
            );
        } else {
            tracing::debug!(
                database,
                table,
                why,
                linger_ms,
                max_rows,
                max_bytes,
                from = step.from,
                to = step.to,
                "batches of this table are stretched otherwise"
            );
        }
        true
    }
}
