//! Metrics of Postgres sources.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::{PipelineLabels, family, family_gauge};

/// All of them, by pipeline.
#[derive(Debug, Clone)]
pub(super) struct PostgresFamilies {
    values_nulled: Family<PipelineLabels, Counter>,
    rows_read_back: Family<PipelineLabels, Counter>,
    reconnects: Family<PipelineLabels, Counter>,
    positions_written: Family<PipelineLabels, Counter>,
    lag_bytes: Family<PipelineLabels, Gauge>,
    lag_seconds: Family<PipelineLabels, Gauge>,
    slot_held_bytes: Family<PipelineLabels, Gauge>,
    slot_safe_bytes: Family<PipelineLabels, Gauge>,
    slot_wal_status: Family<PipelineLabels, Gauge>,
    snapshot_rows: Family<PipelineLabels, Gauge>,
    snapshot_rows_expected: Family<PipelineLabels, Gauge>,
    snapshot_ranges: Family<PipelineLabels, Gauge>,
    snapshot_ranges_expected: Family<PipelineLabels, Gauge>,
}

impl PostgresFamilies {
    pub(super) fn register(registry: &mut Registry) -> PostgresFamilies {
        let mut gauge = |name: &str, help: &str| family_gauge(registry, name, help);
        let lag_bytes = gauge("postgres_lag_bytes", "Bytes of the server's log that are not confirmed yet");
        let lag_seconds =
            gauge("postgres_lag_seconds", "Age of the newest transaction read; 0 while there is none newer");
        let slot_held_bytes =
            gauge("postgres_slot_held_bytes", "Bytes of log that the server keeps for the slot");
        let slot_safe_bytes = gauge(
            "postgres_slot_safe_bytes",
            "Bytes that may still be written until the slot is in danger; -1 without a limit",
        );
        let slot_wal_status = gauge(
            "postgres_slot_wal_status",
            "State of the slot: 0 reserved, 1 extended, 2 unreserved, 3 lost",
        );
        let snapshot_rows = gauge("postgres_snapshot_rows", "Rows copied by the snapshot so far");
        let snapshot_rows_expected = gauge(
            "postgres_snapshot_rows_expected",
            "Rows that the snapshot will copy, by the server's estimate",
        );
        let snapshot_ranges =
            gauge("postgres_snapshot_ranges", "Ranges of tables copied by the snapshot so far");
        let snapshot_ranges_expected =
            gauge("postgres_snapshot_ranges_expected", "Ranges that the snapshot will copy");
        PostgresFamilies {
            lag_bytes,
            lag_seconds,
            slot_held_bytes,
            slot_safe_bytes,
            slot_wal_status,
            snapshot_rows,
            snapshot_rows_expected,
            snapshot_ranges,
            snapshot_ranges_expected,
            values_nulled: family(
                registry,
                "postgres_values_nulled",
                "Values that became NULL because StarRocks cannot hold them (NaN, infinity, far years)",
            ),
            rows_read_back: family(
                registry,
                "postgres_rows_read_back",
                "Rows asked of the source again: their key changed, and large values of them were not told",
            ),
            reconnects: family(
                registry,
                "postgres_reconnects",
                "Replication connections after the first one",
            ),
            positions_written: family(registry, "postgres_positions", "Positions written to StarRocks"),
        }
    }

    pub(super) fn of(&self, pipeline: &str) -> PostgresMeter {
        let labels = PipelineLabels { pipeline: pipeline.to_owned() };
        let counter = |family: &Family<PipelineLabels, Counter>| family.get_or_create(&labels).clone();
        let gauge = |family: &Family<PipelineLabels, Gauge>| family.get_or_create(&labels).clone();
        PostgresMeter {
            values_nulled: counter(&self.values_nulled),
            rows_read_back: counter(&self.rows_read_back),
            reconnects: counter(&self.reconnects),
            positions_written: counter(&self.positions_written),
            lag_bytes: gauge(&self.lag_bytes),
            lag_seconds: gauge(&self.lag_seconds),
            slot_held_bytes: gauge(&self.slot_held_bytes),
            slot_safe_bytes: gauge(&self.slot_safe_bytes),
            slot_wal_status: gauge(&self.slot_wal_status),
            snapshot_rows: gauge(&self.snapshot_rows),
            snapshot_rows_expected: gauge(&self.snapshot_rows_expected),
            snapshot_ranges: gauge(&self.snapshot_ranges),
            snapshot_ranges_expected: gauge(&self.snapshot_ranges_expected),
        }
    }
}

/// The counters of one Postgres source.
#[derive(Debug, Clone)]
#[expect(
    missing_docs,
    reason = "each field is the metric of its name; PostgresFamilies::register has the help texts"
)]
pub struct PostgresMeter {
    pub values_nulled: Counter,
    pub rows_read_back: Counter,
    pub reconnects: Counter,
    pub positions_written: Counter,
    pub lag_bytes: Gauge,
    pub lag_seconds: Gauge,
    pub slot_held_bytes: Gauge,
    pub slot_safe_bytes: Gauge,
    pub slot_wal_status: Gauge,
    pub snapshot_rows: Gauge,
    pub snapshot_rows_expected: Gauge,
    pub snapshot_ranges: Gauge,
    pub snapshot_ranges_expected: Gauge,
}
