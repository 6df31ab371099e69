//! Metrics of the tables that are loaded.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::{SecondsFamily, family, family_gauge, family_seconds};
use crate::batch::stretch::Cause;

/// Labels of a table's metrics.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TableLabels {
    /// `[pipeline] name`.
    pipeline: String,
    /// `database.table`.
    table: String,
}

/// Labels of the signs of version pressure.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SignLabels {
    /// `[pipeline] name`.
    pipeline: String,
    /// `database.table`.
    table: String,
    /// `too_many_versions`, `publish_timeout`, `slow_loads` or `versions`.
    cause: String,
}

/// Upper bounds of the load time's buckets, in seconds.
const LOAD_SECONDS_BUCKETS: [f64; 10] = [0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0, 60.0];

fn load_seconds_histogram() -> Histogram {
    Histogram::new(LOAD_SECONDS_BUCKETS)
}

/// All of them, by pipeline and table.
#[derive(Debug)]
pub(super) struct TableFamilies {
    loads: Family<TableLabels, Counter>,
    rows_loaded: Family<TableLabels, Counter>,
    bytes_loaded: Family<TableLabels, Counter>,
    load_seconds: SecondsFamily<TableLabels>,
    versions: Family<TableLabels, Gauge>,
    stretch: Family<TableLabels, Gauge>,
    signs: Family<SignLabels, Counter>,
}

impl TableFamilies {
    pub(super) fn register(registry: &mut Registry) -> TableFamilies {
        TableFamilies {
            loads: family(registry, "loads", "Durable loads: each is one new version of the table"),
            rows_loaded: family(registry, "rows_loaded", "Rows in those loads"),
            bytes_loaded: family(registry, "bytes_loaded", "Bytes of the bodies of those loads"),
            load_seconds: family_seconds(
                registry,
                "load",
                "Time from the first attempt to the durable answer",
                load_seconds_histogram,
            ),
            versions: family_gauge(
                registry,
                "table_versions",
                "Versions of the fullest tablet, where rights allow; 0 = not known",
            ),
            stretch: family_gauge(
                registry,
                "batch_stretch",
                "How many times as large as configured batches may become, as far as [batch.stretch] allows: more than 1 \
                 while StarRocks is under version pressure",
            ),
            signs: family(registry, "version_pressure", "Signs of version pressure, by cause"),
        }
    }

    pub(super) fn of(&self, pipeline: &str, table: &str) -> TableMeter {
        let labels = TableLabels { pipeline: pipeline.to_owned(), table: table.to_owned() };
        TableMeter {
            loads: self.loads.get_or_create(&labels).clone(),
            rows_loaded: self.rows_loaded.get_or_create(&labels).clone(),
            bytes_loaded: self.bytes_loaded.get_or_create(&labels).clone(),
            load_seconds: self.load_seconds.get_or_create(&labels).clone(),
            versions: self.versions.get_or_create(&labels).clone(),
            stretch: self.stretch.get_or_create(&labels).clone(),
            signs: Cause::ALL.map(|cause| {
                let TableLabels { pipeline, table } = labels.clone();
                let labels = SignLabels { pipeline, table, cause: cause.name().to_owned() };
                (cause, self.signs.get_or_create(&labels).clone())
            }),
        }
    }
}

/// One table's counters.
#[derive(Debug, Clone)]
#[expect(
    missing_docs,
    reason = "each field is the metric of its name; TableFamilies::register has the help texts"
)]
pub struct TableMeter {
    pub loads: Counter,
    pub rows_loaded: Counter,
    pub bytes_loaded: Counter,
    pub load_seconds: Histogram,
    pub versions: Gauge,
    pub stretch: Gauge,
    signs: [(Cause, Counter); Cause::ALL.len()],
}

impl TableMeter {
    /// Counts a sign of version pressure.
    pub fn sign_of_pressure(&self, cause: Cause) {
        for (_, counter) in self.signs.iter().filter(|(of, _)| *of == cause) {
            counter.inc();
        }
    }
}
