//! The tables that a pipeline loads.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::batch::stage::TableIndex;
use crate::config::model::{Pipeline, StarRocks, TableModel};
use crate::fault::Fault;
use crate::plugin::Plugin;
use crate::rows::{Target, Targets};
use crate::sink::Destination;
use crate::sink::late::Model;

/// Destinations of a pipeline; indexes have 16 bits and the last one means "none".
const DESTINATIONS_MAX: usize = 4096;

/// Where a pipeline's rows go, by index.
pub(crate) struct Destinations {
    names: Vec<String>,
    own: Option<TableIndex>,
    /// Key columns of those that a source of tables has, which come first.
    keys: Vec<Vec<String>>,
}

impl Destinations {
    /// The pipeline's own table and those that it allows, or else those that its plugins declare. A source
    /// of tables, `followed`, has one for each instead.
    pub(crate) fn of(
        pipeline: &Pipeline,
        plugins: &[Arc<Plugin>],
        followed: &[(String, Vec<String>)],
    ) -> Result<Destinations, Fault> {
        let sink = &pipeline.sink;
        let own = sink.table.as_ref().filter(|_| followed.is_empty());
        let mut names: Vec<String> =
            own.into_iter().chain(followed.iter().map(|(name, _)| name)).cloned().collect();
        let declared = plugins.iter().flat_map(|plugin| {
            plugin.descriptor.tables.iter().filter(|name| !name.is_empty()).map(move |name| (plugin, name))
        });
        let allowed: BTreeSet<String> = names.iter().chain(&sink.tables).cloned().collect();
        for (plugin, name) in declared {
            if !sink.tables.is_empty() && !allowed.contains(name) {
                return Err(Fault::halt(
                    format!(
                        "plugin `{}` routes to table `{name}`, which the file does not allow",
                        plugin.name
                    ),
                    "add it to [sink.starrocks] tables, or take it out of the plugin's configuration",
                ));
            }
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        if names.is_empty() || names.len() > DESTINATIONS_MAX {
            return Err(Fault::halt(
                format!("the pipeline has {} tables to load", names.len()),
                format!("set [sink.starrocks] table, or let a plugin declare 1 to {DESTINATIONS_MAX} tables"),
            ));
        }
        let own = own.map(|_| 0);
        Ok(Destinations { names, own, keys: followed.iter().map(|(_, key)| key.clone()).collect() })
    }

    /// Key columns of a destination whose rows know their key; none of others.
    fn key(&self, place: usize) -> Vec<String> {
        self.keys.get(place).cloned().unwrap_or_default()
    }

    /// The destination of each table that a plugin declares; none = the pipeline's own.
    pub(crate) fn of_plugin(&self, plugin: &Plugin) -> Vec<Option<TableIndex>> {
        let declared = plugin.descriptor.tables.iter();
        let index = |name: &String| {
            let place = self.names.iter().position(|known| known == name)?;
            TableIndex::try_from(place).ok()
        };
        declared.map(|name| if name.is_empty() { self.own } else { index(name) }).collect()
    }

    /// Their tables.
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    /// What a load has to know of each. One whose model is not known is loaded as if it only took rows.
    pub(super) fn shapes(&self, cluster: &Arc<StarRocks>, models: &[Model]) -> Vec<Arc<Destination>> {
        let shapes = self.names.iter().zip(models).enumerate().map(|(place, (table, model))| {
            let (cluster, table, key) = (Arc::clone(cluster), table.clone(), self.key(place));
            let model = model.get().unwrap_or(TableModel::Duplicate);
            Arc::new(Destination { cluster, table, model, key })
        });
        shapes.collect()
    }

    /// What lanes have to know of each.
    pub(crate) fn targets(&self, models: &[Model], pipeline: &Pipeline) -> Targets {
        Targets {
            tables: models.iter().map(|model| Target { model: model.clone() }).collect(),
            own: self.own,
            row_bytes_max: pipeline.batch.max_bytes,
            names: self.names.iter().map(|name| name.as_str().into()).collect(),
        }
    }
}
