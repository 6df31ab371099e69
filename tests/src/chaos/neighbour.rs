//! I8: a pipeline whose table StarRocks refuses does not slow down another one in the same process.

use super::{book, flow::Flow, stage::Stage};
use crate::{
    judge::{Invariant, Violation, liveness::sibling_is_at_ease},
    kafka::Kafka,
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tidemill_sandbox::FaultKind;

/// Waits that are measured with each state of the neighbour.
const WAITS: u32 = 15;
/// How long one may take before it is given up.
const THERE_WITHIN: Duration = Duration::from_secs(20);
/// How long the neighbour may take to meet its fault.
const REFUSED_WITHIN: Duration = Duration::from_secs(10);
/// Below this nobody would notice: a few lingers.
const FLOOR: Duration = Duration::from_millis(600);

/// Measures how long fresh records of `flow` take to its table, with all well and with the table of `other` refused.
pub(super) fn disturb(stage: &mut Stage, kafka: &Kafka, flow: &Flow, other: &Flow) -> Option<Violation> {
    let calm = waits(stage, kafka, flow);
    let warehouse = Arc::clone(&stage.warehouse);
    let fault = warehouse.fault_on(&other.table, FaultKind::TooManyVersions);
    let fired = stage.until(REFUSED_WITHIN, || {
        warehouse.faults().iter().any(|report| report.id == fault && report.fired > 0)
    });
    if !fired {
        return Some(Violation::new(Invariant::Sibling, "the neighbour was not disturbed"));
    }
    let disturbed = waits(stage, kafka, flow);
    stage.warehouse.clear_fault(fault);
    println!("        a neighbour is refused: {} ms, calm: {} ms", longest(&disturbed), longest(&calm));
    sibling_is_at_ease(&calm, &disturbed, FLOOR)
}

fn longest(waits: &[Duration]) -> u128 {
    waits.iter().max().map_or(0, Duration::as_millis)
}

fn waits(stage: &mut Stage, kafka: &Kafka, flow: &Flow) -> Vec<Duration> {
    let warehouse = Arc::clone(&stage.warehouse);
    (0..WAITS)
        .map(|_| {
            let id = book::write_good(kafka, &flow.book);
            let begun = Instant::now();
            stage.until(THERE_WITHIN, || !flow.present(&warehouse, id, id).is_empty());
            begun.elapsed()
        })
        .collect()
}
