//! Every metric, once: its name, its help, its unit. `docs/metrics.md` is generated from here.
//!
//! Counters are resolved once a pipeline; on the hot path a chunk costs a few atomic additions.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::plugin::Stats;

pub mod bars;
mod fence;
mod health;
mod http;
mod pipeline;
mod plugin;
mod postgres;
mod reference;
mod table;

pub use fence::FenceMeter;
pub use health::{Health, Waiting};
use http::HttpFamilies;
pub use http::HttpMeter;
use pipeline::PipelineFamilies;
pub use pipeline::PipelineMeter;
use plugin::PluginFamilies;
use postgres::PostgresFamilies;
pub use postgres::PostgresMeter;
pub use reference::reference_markdown;
use table::TableFamilies;
pub use table::TableMeter;

/// Labels of a pipeline's metrics.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PipelineLabels {
    /// `[pipeline] name`.
    pub pipeline: String,
}

/// All metrics of the process.
#[derive(Debug)]
pub struct Meter {
    registry: Registry,
    /// `tidemill_budget_used_bytes`.
    pub budget_used: Gauge,
    /// `tidemill_budget_limit_bytes`.
    pub budget_limit: Gauge,
    of_pipelines: PipelineFamilies,
    of_tables: TableFamilies,
    of_plugins: PluginFamilies,
    of_postgres: PostgresFamilies,
    of_http: HttpFamilies,
    pipelines: Mutex<BTreeMap<String, Arc<PipelineMeter>>>,
}

impl Default for Meter {
    fn default() -> Self {
        Self::new()
    }
}

impl Meter {
    /// Registers everything, in the order in which it is shown.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("tidemill");
        Self {
            budget_used: gauge_bytes(&mut registry, "budget_used", "Bytes in flight"),
            budget_limit: gauge_bytes(&mut registry, "budget_limit", "Limit of the bytes in flight"),
            of_pipelines: PipelineFamilies::register(&mut registry),
            of_tables: TableFamilies::register(&mut registry),
            of_plugins: PluginFamilies::register(&mut registry),
            of_postgres: PostgresFamilies::register(&mut registry),
            of_http: HttpFamilies::register(&mut registry),
            pipelines: Mutex::default(),
            registry,
        }
    }

    /// Shows a plugin's own counters from now on.
    pub fn watch_plugin(&self, pipeline: &str, plugin: &str, stats: &Arc<Stats>) {
        self.of_plugins.watch(pipeline, plugin, stats);
    }

    /// Adds what the plugins have counted since the last time: before each scrape.
    pub fn read_plugins(&self) {
        self.of_plugins.read();
    }

    /// The text of `/metrics`.
    ///
    /// # Errors
    /// Never in practice: writing to a string does not fail.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// The counters of one pipeline: the same ones for the same name.
    pub fn pipeline(&self, name: &str) -> Arc<PipelineMeter> {
        let mut pipelines = self.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        let made = || Arc::new(self.of_pipelines.of(name, self.of_postgres.clone(), self.of_http.clone()));
        Arc::clone(pipelines.entry(name.to_owned()).or_insert_with(made))
    }

    /// The counters of one table of a pipeline.
    pub fn table(&self, pipeline: &str, table: &str) -> TableMeter {
        let counters = self.of_tables.of(pipeline, table);
        self.pipeline(pipeline).adds(table, counters.clone());
        counters
    }
}

/// A family of times in seconds.
type SecondsFamily<L> = Family<L, Histogram, fn() -> Histogram>;

fn gauge_bytes(registry: &mut Registry, name: &str, help: &str) -> Gauge {
    let metric = Gauge::default();
    registry.register_with_unit(name, help, Unit::Bytes, metric.clone());
    metric
}

fn family<L>(registry: &mut Registry, name: &str, help: &str) -> Family<L, Counter>
where
    L: EncodeLabelSet + Clone + std::hash::Hash + Eq + std::fmt::Debug + Send + Sync + 'static,
{
    let metric = Family::default();
    registry.register(name, help, metric.clone());
    metric
}

fn family_gauge<L>(registry: &mut Registry, name: &str, help: &str) -> Family<L, Gauge>
where
    L: EncodeLabelSet + Clone + std::hash::Hash + Eq + std::fmt::Debug + Send + Sync + 'static,
{
    let metric = Family::default();
    registry.register(name, help, metric.clone());
    metric
}

fn family_seconds<L>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    buckets: fn() -> Histogram,
) -> SecondsFamily<L>
where
    L: EncodeLabelSet + Clone + std::hash::Hash + Eq + std::fmt::Debug + Send + Sync + 'static,
{
    let metric: SecondsFamily<L> = Family::new_with_constructor(buckets);
    registry.register_with_unit(name, help, Unit::Seconds, metric.clone());
    metric
}
