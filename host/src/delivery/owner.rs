//! Whose rows a piece holds: what a load has to know of a pipeline, because pipelines share batches.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Alarm, GivingUp};
use crate::batch::stage::PipelineId;
use crate::budget::Share;
use crate::buffers::Buffers;
use crate::dead_letter::Rejects;
use crate::meter::{PipelineMeter, TableMeter};
use crate::sink::Fence;
use crate::sink::late::LateTables;

/// A pipeline, as its rows know it.
#[derive(Debug)]
pub struct Owner {
    /// Its number at the stage.
    pub pipeline: PipelineId,
    /// Counters and health.
    pub meter: Arc<PipelineMeter>,
    /// Counters of each table.
    pub tables: BTreeMap<String, TableMeter>,
    /// Stays being given up.
    pub giving_up: Arc<GivingUp>,
    /// What halts it.
    pub alarm: Alarm,
    /// Where bad rows go.
    pub rejects: Rejects,
    /// Its bytes in flight.
    pub share: Share,
    /// Its bodies' memory.
    pub buffers: Buffers,
    /// Guards its rows against what comes too late; none for a source that has no such guard.
    pub fence: Option<Arc<dyn Fence>>,
    /// Its tables that were not there when it started.
    pub late: LateTables,
}
