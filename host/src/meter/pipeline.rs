//! Metrics of pipelines, whatever their source.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::fence::{FenceFamilies, FenceMeter};
use super::http::HttpFamilies;
use super::postgres::PostgresFamilies;
use super::{Health, HttpMeter, PipelineLabels, PostgresMeter, TableMeter, family, family_gauge};
use crate::batch::Cut;

/// Labels of `tidemill_batches_cut_total`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CutLabels {
    /// `[pipeline] name`.
    pipeline: String,
    /// `rows`, `bytes`, `linger`, `pressure` or `flush`.
    reason: String,
}

pub(super) type PerPipeline = Family<PipelineLabels, Counter>;
pub(super) type PerPipelineGauge = Family<PipelineLabels, Gauge>;

/// All of them, by pipeline.
#[derive(Debug)]
pub(super) struct PipelineFamilies {
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
    possible_duplicate_partitions: PerPipeline,
    row_count_mismatches: PerPipeline,
    fences: FenceFamilies,
    epochs_decided: PerPipeline,
    epochs_rolled_back: PerPipeline,
    chunks_verified: PerPipeline,
    batches_cut: Family<CutLabels, Counter>,
}

impl PipelineFamilies {
    pub(super) fn register(registry: &mut Registry) -> PipelineFamilies {
        PipelineFamilies {
            records_read: family(registry, "records_read", "Records handed to the plugins"),
            bytes_read: family(
                registry,
                "bytes_read",
                "Bytes of their values, and of keys and headers where somebody wants them",
            ),
            records_loaded: family(registry, "records_loaded", "Records whose rows are durable in StarRocks"),
            records_dropped: family(registry, "records_dropped", "Records that a plugin left out"),
            records_dead_lettered: family(
                registry,
                "records_dead_lettered",
                "Records kept as dead letters, durably",
            ),
            records_refused: family(
                registry,
                "records_refused",
                "Records refused to the request they came with",
            ),
            records_given_up: family(
                registry,
                "records_given_up",
                "Records dropped unsent because their partition moved to another process, which reads them again",
            ),
            records_in_flight: family_gauge(
                registry,
                "records_in_flight",
                "Records read and not yet loaded, dropped, dead-lettered, refused or given up",
            ),
            commits: family(registry, "commits", "Commits of offsets that the broker confirmed"),
            commit_failures: family(registry, "commit_failures", "Commits of offsets that failed"),
            rebalances: family(registry, "rebalances", "Assignments and revocations by the consumer group"),
            partitions: family_gauge(registry, "partitions", "Partitions assigned to this process"),
            lag: family_gauge(
                registry,
                "lag_records",
                "Records between the read position and the partition's end",
            ),
            stalled: family_gauge(
                registry,
                "stalled",
                "1 while the watermark does not move although there is lag",
            ),
            load_retries: family(registry, "load_retries", "Attempts to load after the first one of a batch"),
            possible_duplicates: family(
                registry,
                "possible_duplicate_batches",
                "Batches sent again although StarRocks may have had them: their label was forgotten",
            ),
            possible_duplicate_partitions: family(
                registry,
                "possible_duplicate_partitions",
                "Partitions given up with rows on their way, or durable behind the offset that was committed",
            ),
            row_count_mismatches: family(
                registry,
                "row_count_mismatches",
                "Loads of which StarRocks counted more than the rows sent (a value held several documents)",
            ),
            fences: FenceFamilies::register(registry),
            epochs_decided: family(
                registry,
                "epochs_decided",
                "With exactly_once: epochs that were decided in Kafka and committed in StarRocks",
            ),
            epochs_rolled_back: family(
                registry,
                "epochs_rolled_back",
                "With exactly_once: tries of an epoch that were rolled back, for whatever reason",
            ),
            chunks_verified: family(
                registry,
                "chunks_verified",
                "With verify: chunks of which fresh instances of the plugins made the same rows once more",
            ),
            batches_cut: family(registry, "batches_cut", "Batches cut, by reason"),
        }
    }

    pub(super) fn of(&self, name: &str, postgres: PostgresFamilies, http: HttpFamilies) -> PipelineMeter {
        let labels = PipelineLabels { pipeline: name.to_owned() };
        let of = |family: &PerPipeline| family.get_or_create(&labels).clone();
        let gauge_of = |family: &PerPipelineGauge| family.get_or_create(&labels).clone();
        PipelineMeter {
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
            possible_duplicate_partitions: of(&self.possible_duplicate_partitions),
            row_count_mismatches: of(&self.row_count_mismatches),
            fence: self.fences.of(&labels),
            epochs_decided: of(&self.epochs_decided),
            epochs_rolled_back: of(&self.epochs_rolled_back),
            chunks_verified: of(&self.chunks_verified),
            postgres,
            batches_cut: self.batches_cut.clone(),
            http,
            tables: Mutex::default(),
            health: Health::default(),
        }
    }
}

/// One pipeline's counters and health. `read = loaded + dropped + dead_lettered + refused + given_up + in flight`
/// holds at every moment in which no chunk is between two of its additions.
#[derive(Debug)]
#[expect(
    missing_docs,
    reason = "each field is the metric of its name; PipelineFamilies::register has the help texts"
)]
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
    /// Partitions given up of which rows may come twice.
    pub possible_duplicate_partitions: Counter,
    pub row_count_mismatches: Counter,
    pub fence: FenceMeter,
    /// With exactly_once: epochs decided in Kafka and committed in StarRocks.
    pub epochs_decided: Counter,
    /// With exactly_once: tries of an epoch that were rolled back.
    pub epochs_rolled_back: Counter,
    /// With verify: chunks that were processed twice, with the same rows.
    pub chunks_verified: Counter,
    postgres: PostgresFamilies,
    batches_cut: Family<CutLabels, Counter>,
    http: HttpFamilies,
    /// By their names: a source that goes round asks for them again.
    tables: Mutex<BTreeMap<String, TableMeter>>,
    pub health: Health,
}

impl PipelineMeter {
    /// Counts a chunk that was read. Returns how many records were read before it.
    pub fn read(&self, records: u64, bytes: u64) -> u64 {
        self.bytes_read.inc_by(bytes);
        self.records_in_flight.inc_by(records.cast_signed());
        self.records_read.inc_by(records)
    }

    /// Counts records that left the pipeline one way or the other.
    pub fn leave(&self, how: &Counter, records: u64) {
        how.inc_by(records);
        self.records_in_flight.dec_by(records.cast_signed());
    }

    /// Counts a table of its own from now on.
    pub(super) fn adds(&self, name: &str, table: TableMeter) {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), table);
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
    pub fn cut(&self, reason: Cut) {
        let labels = CutLabels { pipeline: self.name.clone(), reason: reason.name().to_owned() };
        self.batches_cut.get_or_create(&labels).inc();
    }
}
