//! I8: a pipeline whose table StarRocks refuses does not slow down another one in the same process.

use super::{flow::Flow, stage::Stage};
use crate::{
    judge::{Invariant, Violation, liveness::sibling_is_at_ease},
    warehouse::Warehouse,
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tidemill_sandbox::FaultKind;

/// Waits that are measured with each state of the neighbour.
const WAITS: u32 = 15;
/// How often waits that are too long are measured again while the fault lasts: a machine that stands still does so once, a
/// neighbour that is blocked stays so.
const ROUNDS: u32 = 3;
/// How long one may take before it is given up.
const THERE_WITHIN: Duration = Duration::from_secs(20);
/// How long the neighbour may take to meet its fault.
const REFUSED_WITHIN: Duration = Duration::from_secs(10);
/// How long all processes may take to be ready, and both pipelines to be at work.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Calm waits that are longer than this show nothing, and excuse nothing.
const CALM_MAX: Duration = Duration::from_millis(2_000);
/// What a busy machine may do to anybody; a neighbour that is blocked waits for as long as the fault lasts.
const FLOOR: Duration = Duration::from_millis(1_500);

/// Measures how long fresh records of `flow` take to its table, with all well and with the table of `other` refused.
pub(super) fn disturb(stage: &mut Stage, flow: &Flow, other: &Flow) -> Option<Violation> {
    if !stage.are_ready(READY_WITHIN) {
        return Some(Violation::new(
            Invariant::Sibling,
            "processes are not ready, and nothing has failed yet",
        ));
    }
    let measured = measure(stage, flow, other);
    // Whatever came of it.
    stage.warehouse.clear_faults();
    measured.err()
}

/// Compares the waits when all is well with those when the neighbour is refused.
fn measure(stage: &mut Stage, flow: &Flow, other: &Flow) -> Result<(), Violation> {
    // Each is at work, and not only one of them.
    for one in [other, flow] {
        wait(stage, one, READY_WITHIN)?;
    }
    let calm = waits(stage, flow)?;
    let warehouse = Arc::clone(&stage.warehouse);
    let fault = warehouse.fault_on(&other.table, FaultKind::TooManyVersions);
    let fired = stage.until(REFUSED_WITHIN, || {
        warehouse.faults().iter().any(|report| report.id == fault && report.fired > 0)
    });
    if !fired {
        return Err(Violation::new(Invariant::Sibling, "the neighbour was not disturbed"));
    }
    let mut found = Ok(());
    for _ in 0..ROUNDS {
        let disturbed = waits(stage, flow)?;
        println!("        a neighbour is refused: {} ms, calm: {} ms", longest(&disturbed), longest(&calm));
        found = sibling_is_at_ease(&calm, &disturbed, FLOOR, CALM_MAX).map_or(Ok(()), Err);
        if found.is_ok() {
            break;
        }
    }
    found
}

fn longest(waits: &[Duration]) -> u128 {
    waits.iter().max().map_or(0, Duration::as_millis)
}

fn waits(stage: &mut Stage, flow: &Flow) -> Result<Vec<Duration>, Violation> {
    (0..WAITS).map(|_| wait(stage, flow, THERE_WITHIN)).collect()
}

/// How long a fresh record takes to its table: one that does not come is no measure.
fn wait(stage: &mut Stage, flow: &Flow, limit: Duration) -> Result<Duration, Violation> {
    let warehouse = Arc::clone(&stage.warehouse);
    let begun = Instant::now();
    let id = flow.book.write_good();
    if stage.until(limit, || is_there(flow, &warehouse, id)) {
        return Ok(begun.elapsed());
    }
    let what = format!("a record of {} is not there after {} s", flow.table, limit.as_secs());
    Err(Violation::new(Invariant::Sibling, what))
}

/// Whether the table has the record, or a newer one of its key.
fn is_there(flow: &Flow, warehouse: &Warehouse, id: u64) -> bool {
    match flow.book.payload.keys {
        None => !flow.present(warehouse, id, id).is_empty(),
        Some(_) => {
            let key = flow.book.payload.key(id);
            warehouse.amounts(&flow.table).get(&key).is_some_and(|version| *version >= id)
        }
    }
}
