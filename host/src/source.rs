//! Where records come from: reading and releasing, nothing else.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use crate::batch::stage::{PipelineId, StageHandle};
use crate::budget::{Permit, Share};
use crate::delivery::{Alarm, GivingUp, Stop};
use crate::fault::Fault;
use crate::ledger::Ledger;
use crate::meter::PipelineMeter;
use crate::position::{Span, Stay};
use crate::record::Columns;

mod halts;
pub mod http;
pub mod kafka;
pub mod postgres;
pub mod replay;

/// What a source needs of the rest of its pipeline.
#[derive(Clone)]
pub struct Parts {
    /// Number of lanes, at most.
    pub lanes: usize,
    /// What lanes copy.
    pub gathering: Gathering,
    /// The pipeline's ledger.
    pub ledger: Ledger,
    /// The pipeline's counters and health.
    pub meter: Arc<PipelineMeter>,
    /// The batching stage.
    pub stage: StageHandle,
    /// The pipeline's number there.
    pub pipeline: PipelineId,
    /// The pipeline's bytes in flight.
    pub share: Share,
    /// Where network and timers live.
    pub runtime: Handle,
    /// Tells loads which stays are being given up.
    pub giving_up: Arc<GivingUp>,
    /// What halts the pipeline.
    pub alarm: Alarm,
    /// Asks the pipeline to drain and end.
    pub stop: Stop,
    /// How long the drain may take.
    pub shutdown_timeout: Duration,
    /// Time without progress that counts as a stall.
    pub stall_after: Duration,
    /// Begin of all labels of this life: goes into the claim.
    pub label_stem: String,
}

/// What is worth copying out of a message.
#[derive(Debug, Clone, Copy, Default)]
pub struct Gathering {
    /// Keys are wanted by a plugin, or kept with dead letters.
    pub keys: bool,
    /// Headers, likewise.
    pub headers: bool,
    /// Timestamps, likewise.
    pub timestamps: bool,
    /// Partition numbers are wanted by a plugin. Offsets are always gathered.
    pub partitions: bool,
    /// No plugin looks at the values: end each with a line feed, so that the column can be a
    /// segment of the request as it is.
    pub line_feeds: bool,
}

/// What a lane got from its feed.
#[derive(Debug)]
pub enum Fed {
    /// The columns hold the records of this span.
    Chunk(Span),
    /// Likewise, and the source has charged their bytes already.
    Charged(Span, Permit),
    /// Nothing arrived for a moment.
    Idle,
    /// Nothing will arrive any more.
    Ended,
}

/// A lane's input. The lane alone calls it, from its own thread.
pub trait Feed {
    /// Fills `into` (which it clears first) with the next chunk of one partition.
    ///
    /// # Errors
    /// Whatever the source says that it cannot get over by itself.
    fn next(&mut self, into: &mut Columns) -> Result<Fed, Fault>;

    /// Whether records of `stay` should still be used: false once it is being given up.
    fn owns(&mut self, stay: &Stay) -> bool;
}
