//! Wires a pipeline with its dead letters in place of its source.

use std::sync::Arc;

use super::origin::Origin;
use super::{Destinations, Shared, Wiring, load_plugins, share_of, table_models};
use crate::config::model::{Delivery, Pipeline, TableModel};
use crate::dead_letter::Rejects;
use crate::delivery::{Alarm, Stop};
use crate::fault::Fault;
use crate::plugin::Plugin;
use crate::source::replay::Order;

/// The property with which StarRocks itself keeps newer rows.
const MERGE_CONDITION: &str = "merge_condition";

/// Runs letters through the pipeline until all have got through or stay. Blocks. Its own source is not connected to.
///
/// # Errors
/// Whatever halted it, or that newer rows might be overwritten. What got through by then is marked.
pub(crate) fn replay(
    pipeline: &Arc<Pipeline>,
    shared: &Shared,
    stop: &Stop,
    order: Order,
) -> Result<(), Fault> {
    // A letter's offset was released when it was kept: there is none to be decided together with its rows.
    let pipeline =
        &Arc::new(Pipeline { delivery: Delivery::AtLeastOnce, verify: false, ..Pipeline::clone(pipeline) });
    let meter = shared.meter.pipeline(&pipeline.name);
    let sink = Arc::new(pipeline.sink.clone());
    let plugins = load_plugins(pipeline, &shared.engine)?;
    let carrier = shared.carriers.carrier(&sink, &shared.runtime)?;
    shared.runtime.block_on(carrier.client().ping()).map_err(Fault::halting)?;
    if !order.force {
        keep_newer_rows(pipeline, shared, &plugins, &order.followed)?;
    }
    let share = share_of(pipeline, &shared.budget);
    // What is refused again stays where it is: its letter is the answer, and no new one is made.
    let (alarm, rejects) = (Alarm::default(), Rejects::Answer);
    let meter = &meter;
    let wiring =
        Wiring { pipeline, id: 0, shared, stop, meter, sink, plugins, carrier, alarm, rejects, share };
    wiring.run(Origin::Replay(Box::new(order))).map(|_ended| ())
}

/// A letter is older than what came after it: where rows replace one another, it would take newer ones back
/// (delivery.md §2).
fn keep_newer_rows(
    pipeline: &Pipeline,
    shared: &Shared,
    plugins: &[Arc<Plugin>],
    followed: &[String],
) -> Result<(), Fault> {
    if pipeline.sink.properties.contains_key(MERGE_CONDITION) {
        return Ok(());
    }
    let keyed: Vec<_> = followed.iter().map(|table| (table.clone(), Vec::new())).collect();
    let destinations = Destinations::of(pipeline, plugins, &keyed)?;
    let names = destinations.names();
    let models = shared.runtime.block_on(table_models(&pipeline.sink, names))?;
    let replaced = names.iter().zip(&models).find_map(|(table, model)| match model.get()? {
        model @ (TableModel::Primary | TableModel::Unique) => Some((table, model)),
        // What an aggregate makes of an older row its functions say.
        TableModel::Duplicate | TableModel::Aggregate => None,
    });
    let Some((table, model)) = replaced else { return Ok(()) };
    Err(Fault::halt(
        format!(
            "rows of `{}.{table}`, of the {} model, replace one another: letters, which are older, may overwrite newer \
             rows",
            pipeline.sink.database,
            model.name()
        ),
        format!(
            "set the property {MERGE_CONDITION} in {} to a column that only grows (Primary Key tables), or say --force if \
             no newer rows of their keys have come since",
            pipeline.file.display()
        ),
    ))
}
