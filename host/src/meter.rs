//! Every metric, once: its name, its help, its unit. `docs/metrics.md` is generated from here.
//!
//! Counters are resolved once a pipeline; on the hot path a chunk costs a few atomic additions.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::plugin::Stats;

mod health;
mod http;
mod postgres;

pub use health::{Health, Waiting};
use http::HttpFamilies;
pub use http::HttpMeter;
use postgres::PostgresFamilies;
pub use postgres::PostgresMeter;

/// Labels of a pipeline's metrics.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PipelineLabels {
    /// `[pipeline] name`.
    pub pipeline: String,
}

/// Labels of a table's metrics.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TableLabels {
    /// `[pipeline] name`.
    pub pipeline: String,
    /// `database.table`.
    pub table: String,
}

/// Labels of `tidemill_batches_cut_total`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CutLabels {
    /// `[pipeline] name`.
    pub pipeline: String,
    /// `rows`, `bytes`, `linger`, `pressure` or `flush`.
    pub reason: String,
}

/// Labels of a plugin's metrics.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PluginLabels {
    /// `[pipeline] name`.
    pub pipeline: String,
    /// File stem of the component.
    pub plugin: String,
}

/// Counters of a plugin that are shown.
const PLUGIN_COUNTERS: usize = 5;

/// A plugin's own counters, and how much of each the metrics have already. Two plugins of the same name
/// add up.
#[derive(Debug)]
struct WatchedPlugin {
    labels: PluginLabels,
    stats: Arc<Stats>,
    shown: [u64; PLUGIN_COUNTERS],
}

impl WatchedPlugin {
    /// Calls, nanoseconds, failed calls, replaced instances, dropped log lines.
    fn counted(&self) -> [u64; PLUGIN_COUNTERS] {
        let stats = &self.stats;
        let failed = [&stats.traps, &stats.timeouts, &stats.out_of_memory, &stats.invalid_outputs];
        [
            stats.calls.get(),
            stats.guest_ns.get(),
            failed.iter().map(|counter| counter.get()).sum(),
            stats.instances_replaced.get(),
            stats.log_lines_dropped.get(),
        ]
    }
}

type PerPipeline = Family<PipelineLabels, Counter>;
type PerPipelineGauge = Family<PipelineLabels, Gauge>;

/// Upper bounds of the load time's buckets, in seconds.
const LOAD_SECONDS_BUCKETS: [f64; 10] = [0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0, 60.0];

fn load_seconds_histogram() -> Histogram {
    Histogram::new(LOAD_SECONDS_BUCKETS)
}

/// All metrics of the process.
#[derive(Debug)]
pub struct Meter {
    registry: Registry,
    /// `tidemill_budget_used_bytes`.
    pub budget_used: Gauge,
    /// `tidemill_budget_limit_bytes`.
    pub budget_limit: Gauge,
    records_read: PerPipeline,
    bytes_read: PerPipeline,
    records_loaded: PerPipeline,
    records_dropped: PerPipeline,
    records_dead_lettered: PerPipeline,
    records_refused: PerPipeline,
    records_given_up: PerPipeline,
    records_in_flight: PerPipelineGauge,
    commits: PerPipeline,
    commit_failures: PerPipeline,
    rebalances: PerPipeline,
    partitions: PerPipelineGauge,
    lag: PerPipelineGauge,
    stalled: PerPipelineGauge,
    load_retries: PerPipeline,
    possible_duplicates: PerPipeline,
    row_count_mismatches: PerPipeline,
    batches_cut: Family<CutLabels, Counter>,
    loads: Family<TableLabels, Counter>,
    rows_loaded: Family<TableLabels, Counter>,
    bytes_loaded: Family<TableLabels, Counter>,
    load_seconds: Family<TableLabels, Histogram, fn() -> Histogram>,
    versions: Family<TableLabels, Gauge>,
    plugin_calls: Family<PluginLabels, Counter>,
    plugin_nanoseconds: Family<PluginLabels, Counter>,
    plugin_traps: Family<PluginLabels, Counter>,
    plugin_replacements: Family<PluginLabels, Counter>,
    plugin_log_dropped: Family<PluginLabels, Counter>,
    postgres: PostgresFamilies,
    http: HttpFamilies,
    plugins: Mutex<Vec<WatchedPlugin>>,
    pipelines: Mutex<BTreeMap<String, Arc<PipelineMeter>>>,
}

impl Default for Meter {
    fn default() -> Self {
        Self::new()
    }
}

impl Meter {
    /// Registers everything.
    pub fn new() -> Self {
        let mut r = Registry::with_prefix("tidemill");
        Self {
            budget_used: gauge(&mut r, "budget_used", "Bytes in flight", Some(Unit::Bytes)),
            budget_limit: gauge(&mut r, "budget_limit", "Limit of the bytes in flight", Some(Unit::Bytes)),
            records_read: family(&mut r, "records_read", "Records handed to the plugins"),
            bytes_read: family(
                &mut r,
                "bytes_read",
                "Bytes of their values, and of keys and headers where somebody wants them",
            ),
            records_loaded: family(&mut r, "records_loaded", "Records whose rows are durable in StarRocks"),
            records_dropped: family(&mut r, "records_dropped", "Records that a plugin left out"),
            records_dead_lettered: family(
                &mut r,
                "records_dead_lettered",
                "Records kept as dead letters, durably",
            ),
            records_refused: family(
                &mut r,
                "records_refused",
                "Records refused to the request they came with",
            ),
            records_given_up: family(
                &mut r,
                "records_given_up",
                "Records dropped unsent because their partition moved to another process, which reads them again",
            ),
            records_in_flight: family_gauge(
                &mut r,
                "records_in_flight",
                "Records read and not yet loaded, dropped, dead-lettered or given up",
            ),
            commits: family(&mut r, "commits", "Commits of offsets that the broker confirmed"),
            commit_failures: family(&mut r, "commit_failures", "Commits of offsets that failed"),
            rebalances: family(&mut r, "rebalances", "Assignments and revocations by the consumer group"),
            partitions: family_gauge(&mut r, "partitions", "Partitions assigned to this process"),
            lag: family_gauge(
                &mut r,
                "lag_records",
                "Records between the read position and the partition's end",
            ),
            stalled: family_gauge(
                &mut r,
                "stalled",
                "1 while the watermark does not move although there is lag",
            ),
            load_retries: family(&mut r, "load_retries", "Attempts to load after the first one of a batch"),
            possible_duplicates: family(
                &mut r,
                "possible_duplicate_batches",
                "Batches sent again although StarRocks may have had them: their label was forgotten",
            ),
            row_count_mismatches: family(
                &mut r,
                "row_count_mismatches",
                "Loads of which StarRocks counted more than the rows sent (a value held several documents)",
            ),
            batches_cut: family(&mut r, "batches_cut", "Batches cut, by reason"),
            loads: family(&mut r, "loads", "Durable loads: each is one new version of the table"),
            rows_loaded: family(&mut r, "rows_loaded", "Rows in those loads"),
            bytes_loaded: family(&mut r, "bytes_loaded", "Bytes of the bodies of those loads"),
            load_seconds: {
                let metric: Family<TableLabels, Histogram, fn() -> Histogram> =
                    Family::new_with_constructor(load_seconds_histogram);
                r.register_with_unit(
                    "load",
                    "Time from the first attempt to the durable answer",
                    Unit::Seconds,
                    metric.clone(),
                );
                metric
            },
            versions: family_gauge(
                &mut r,
                "table_versions",
                "Versions of the fullest tablet, where rights allow",
            ),
            plugin_calls: family(&mut r, "plugin_calls", "Calls of process"),
            plugin_nanoseconds: family(&mut r, "plugin_nanoseconds", "Time in the guest"),
            plugin_traps: family(
                &mut r,
                "plugin_traps",
                "Calls that trapped, timed out, wanted too much memory or broke the contract",
            ),
            plugin_replacements: family(&mut r, "plugin_replacements", "Instances replaced"),
            plugin_log_dropped: family(&mut r, "plugin_log_lines_dropped", "Log lines over the limit"),
            postgres: PostgresFamilies::register(&mut r),
            http: HttpFamilies::register(&mut r),
            plugins: Mutex::default(),
            pipelines: Mutex::default(),
            registry: r,
        }
    }

    /// Shows a plugin's own counters from now on.
    pub fn watch_plugin(&self, pipeline: &str, plugin: &str, stats: &Arc<Stats>) {
        let labels = PluginLabels { pipeline: pipeline.to_owned(), plugin: plugin.to_owned() };
        let mut plugins = self.plugins.lock().unwrap_or_else(PoisonError::into_inner);
        plugins.push(WatchedPlugin { labels, stats: Arc::clone(stats), shown: [0; PLUGIN_COUNTERS] });
    }

    /// Adds what the plugins have counted since the last time: before each scrape.
    pub fn read_plugins(&self) {
        let families = [
            &self.plugin_calls,
            &self.plugin_nanoseconds,
            &self.plugin_traps,
            &self.plugin_replacements,
            &self.plugin_log_dropped,
        ];
        for plugin in self.plugins.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
            let counted = plugin.counted();
            let shown = std::mem::replace(&mut plugin.shown, counted);
            for ((family, now), before) in families.iter().zip(counted).zip(shown) {
                family.get_or_create(&plugin.labels).inc_by(now.saturating_sub(before));
            }
        }
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
        Arc::clone(pipelines.entry(name.to_owned()).or_insert_with(|| self.new_pipeline(name)))
    }

    fn new_pipeline(&self, name: &str) -> Arc<PipelineMeter> {
        let labels = PipelineLabels { pipeline: name.to_owned() };
        let of = |family: &PerPipeline| family.get_or_create(&labels).clone();
        let gauge_of = |family: &PerPipelineGauge| family.get_or_create(&labels).clone();
        Arc::new(PipelineMeter {
            name: name.to_owned(),
            records_read: of(&self.records_read),
            bytes_read: of(&self.bytes_read),
            records_loaded: of(&self.records_loaded),
            records_dropped: of(&self.records_dropped),
            records_dead_lettered: of(&self.records_dead_lettered),
            records_refused: of(&self.records_refused),
            records_given_up: of(&self.records_given_up),
            records_in_flight: gauge_of(&self.records_in_flight),
            commits: of(&self.commits),
            commit_failures: of(&self.commit_failures),
            rebalances: of(&self.rebalances),
            partitions: gauge_of(&self.partitions),
            lag: gauge_of(&self.lag),
            stalled: gauge_of(&self.stalled),
            load_retries: of(&self.load_retries),
            possible_duplicates: of(&self.possible_duplicates),
            row_count_mismatches: of(&self.row_count_mismatches),
            postgres: self.postgres.clone(),
            batches_cut: self.batches_cut.clone(),
            http: self.http.clone(),
            tables: Mutex::default(),
            health: Health::default(),
        })
    }

    /// The counters of one table of a pipeline.
    pub fn table(&self, pipeline: &str, table: &str) -> TableMeter {
        let labels = TableLabels { pipeline: pipeline.to_owned(), table: table.to_owned() };
        let counters = TableMeter {
            loads: self.loads.get_or_create(&labels).clone(),
            rows_loaded: self.rows_loaded.get_or_create(&labels).clone(),
            bytes_loaded: self.bytes_loaded.get_or_create(&labels).clone(),
            load_seconds: self.load_seconds.get_or_create(&labels).clone(),
            versions: self.versions.get_or_create(&labels).clone(),
        };
        let pipeline = self.pipeline(pipeline);
        let mut tables = pipeline.tables.lock().unwrap_or_else(PoisonError::into_inner);
        tables.insert(labels.table, counters.clone());
        counters
    }
}

fn gauge(registry: &mut Registry, name: &str, help: &str, unit: Option<Unit>) -> Gauge {
    let metric = Gauge::default();
    match unit {
        Some(unit) => registry.register_with_unit(name, help, unit, metric.clone()),
        None => registry.register(name, help, metric.clone()),
    }
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

/// One pipeline's counters and health. `read = loaded + dropped + dead_lettered + given_up + in flight`
/// holds at every moment in which no chunk is between two of its additions.
#[derive(Debug)]
#[expect(missing_docs, reason = "each field is the metric of its name; Meter::new has the help texts")]
pub struct PipelineMeter {
    pub name: String,
    pub records_read: Counter,
    pub bytes_read: Counter,
    pub records_loaded: Counter,
    pub records_dropped: Counter,
    pub records_dead_lettered: Counter,
    /// Records refused to the request that they came with.
    pub records_refused: Counter,
    pub records_given_up: Counter,
    pub records_in_flight: Gauge,
    pub commits: Counter,
    pub commit_failures: Counter,
    pub rebalances: Counter,
    pub partitions: Gauge,
    pub lag: Gauge,
    pub stalled: Gauge,
    pub load_retries: Counter,
    pub possible_duplicates: Counter,
    pub row_count_mismatches: Counter,
    postgres: PostgresFamilies,
    batches_cut: Family<CutLabels, Counter>,
    http: HttpFamilies,
    /// By their names: a source that goes round asks for them again.
    tables: Mutex<BTreeMap<String, TableMeter>>,
    pub health: Health,
}

impl PipelineMeter {
    /// Counts a chunk that was read.
    pub fn read(&self, records: u64, bytes: u64) {
        self.records_read.inc_by(records);
        self.bytes_read.inc_by(bytes);
        self.records_in_flight.inc_by(records.cast_signed());
    }

    /// Counts records that left the pipeline one way or the other.
    pub fn leave(&self, how: &Counter, records: u64) {
        how.inc_by(records);
        self.records_in_flight.dec_by(records.cast_signed());
    }

    fn sum(&self, of: impl Fn(&TableMeter) -> u64) -> u64 {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner).values().map(of).sum()
    }

    /// Rows loaded into all tables.
    pub fn rows_loaded(&self) -> u64 {
        self.sum(|table| table.rows_loaded.get())
    }

    /// Durable loads into all tables.
    pub fn loads(&self) -> u64 {
        self.sum(|table| table.loads.get())
    }

    /// Versions of the fullest table, as last read; none if none could be read.
    pub fn versions(&self) -> Option<i64> {
        let tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        tables.values().map(|table| table.versions.get()).max().filter(|versions| *versions > 0)
    }

    /// The counters of its Postgres source.
    pub fn postgres(&self) -> PostgresMeter {
        self.postgres.of(&self.name)
    }

    /// The counters of the pipeline's HTTP source; without one they are not shown.
    pub fn http(&self) -> HttpMeter {
        self.http.of(&self.name)
    }

    /// Counts a cut.
    pub fn cut(&self, reason: crate::batch::Cut) {
        let labels = CutLabels { pipeline: self.name.clone(), reason: reason.name().to_owned() };
        self.batches_cut.get_or_create(&labels).inc();
    }
}

/// One table's counters.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "each field is the metric of its name; Meter::new has the help texts")]
pub struct TableMeter {
    pub loads: Counter,
    pub rows_loaded: Counter,
    pub bytes_loaded: Counter,
    pub load_seconds: Histogram,
    pub versions: Gauge,
}

/// `docs/metrics.md`: every metric with its kind, labels and meaning, read off the registry itself.
pub fn reference_markdown() -> String {
    let meter = Meter::new();
    // A family without a member is not shown.
    let pipeline = meter.pipeline("orders");
    pipeline.cut(crate::batch::Cut::Rows);
    pipeline.http().answered(200, Duration::ZERO);
    let _made = pipeline.postgres();
    meter.table("orders", "shop.orders");
    meter.watch_plugin("orders", "orders", &Arc::default());
    meter.read_plugins();
    let text = meter.text().unwrap_or_default();
    let mut page = METRICS_PAGE.to_owned();
    let mut help = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), Some(name), Some(says)) => {
                help.insert(name, says.trim_end_matches('.'));
            }
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                let shown = if kind == "counter" { format!("{name}_total") } else { name.to_owned() };
                let sample = text.lines().find(|sample| !sample.starts_with('#') && sample.starts_with(name));
                let labels = sample.and_then(|sample| Some(sample.split_once('{')?.1.split_once('}')?.0));
                let names =
                    labels.unwrap_or_default().split(',').filter_map(|pair| Some(pair.split_once('=')?.0));
                let labels: Vec<&str> = names.filter(|label| *label != "le").collect();
                let says = help.get(name).copied().unwrap_or_default();
                page.push_str(&format!("| `{shown}` | {kind} | {} | {says} |\n", labels.join(", ")));
            }
            _ => {}
        }
    }
    page
}

const METRICS_PAGE: &str = "\
# Metrics

Generated from `host/src/meter.rs` by `cargo xtask docs`; do not edit.

`GET /metrics` on the admin address answers in the OpenMetrics text format, which Prometheus reads.
At rest, and up to the chunks that are being counted at the moment of the scrape,
`records_read = records_loaded + records_dropped + records_dead_lettered + records_refused + records_given_up + records_in_flight`.

`GET /health` answers 200 while the process lives. `GET /ready` answers 503 with one line for each pipeline
that is starting, halted, waiting for something outside for 5 s or more, or stalled.

| metric | kind | labels | meaning |
|---|---|---|---|
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_the_metrics_of_every_source() {
        let page = reference_markdown();
        for name in ["rebalances_total", "postgres_slot_wal_status", "http_requests_total"] {
            assert!(page.contains(&format!("| `tidemill_{name}` |")), "{name}");
        }
    }

    #[test]
    fn plugins_are_counted_once_however_often_they_are_scraped() {
        let meter = Meter::new();
        let (one, other) = (Arc::<Stats>::default(), Arc::<Stats>::default());
        meter.watch_plugin("orders", "route", &one);
        meter.watch_plugin("orders", "route", &other);
        one.calls.add(3);
        one.timeouts.add(1);
        other.calls.add(4);
        other.traps.add(1);
        for further in [0, 5] {
            one.calls.add(further);
            meter.read_plugins();
            meter.read_plugins();
            let text = meter.text().unwrap();
            let labels = "{pipeline=\"orders\",plugin=\"route\"}";
            assert!(
                text.contains(&format!("tidemill_plugin_calls_total{labels} {}\n", 7 + further)),
                "{text}"
            );
            assert!(text.contains(&format!("tidemill_plugin_traps_total{labels} 2\n")), "{text}");
        }
    }
}
