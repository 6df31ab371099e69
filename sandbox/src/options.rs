//! How a sandbox is set up.

use std::time::Duration;

/// What becomes of the rows of a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Keep {
    /// Rows are checked against the table and kept in SQLite, so that they can be selected.
    #[default]
    Rows,
    /// Rows are counted by their line feeds and thrown away, nothing is parsed: for benchmarks.
    None,
}

/// Settings of one sandbox; the defaults are those of a small StarRocks.
#[derive(Debug, Clone)]
pub struct Options {
    /// Port of the FE's HTTP interface on 127.0.0.1; 0 takes any free one.
    pub fe_http_port: u16,
    /// Port of the BE's HTTP interface on 127.0.0.1; 0 takes any free one.
    pub be_http_port: u16,
    /// Port of the MySQL protocol on 127.0.0.1; 0 takes any free one.
    pub query_port: u16,
    /// Whether rows are kept.
    pub keep: Keep,
    /// Password of the user `root`, the only user; `None` is the empty password of a fresh cluster.
    pub password: Option<String>,
    /// Versions a tablet may have before loads into it are refused (BE `tablet_max_versions`). This and the pace of
    /// the compaction can be changed while it runs: [`crate::Sandbox::set_version_limits`].
    pub tablet_max_versions: u32,
    /// How often the background compaction visits every table; `None` never compacts.
    pub compaction: Option<Duration>,
    /// How many versions of a table one visit of the compaction merges into one.
    pub compaction_merge_max: u32,
    /// Finished transactions, and so labels, remembered per database (FE `label_keep_max_num`).
    pub label_keep_max: usize,
    /// Finished transactions older than this are forgotten (FE `label_keep_max_second`).
    pub label_keep_time_max: Duration,
    /// Unfinished transactions allowed per database (FE `max_running_txn_num_per_db`).
    pub running_txn_max: usize,
    /// How long a load may run when it names no `timeout` (FE `stream_load_default_timeout_second`).
    pub load_timeout: Duration,
    /// How long a PREPARED transaction waits for its commit when the request does not say
    /// (FE `prepared_transaction_default_timeout_second`).
    pub prepared_timeout: Duration,
    /// Largest JSON body in bytes (BE `streaming_load_max_batch_size_mb`).
    pub json_bytes_max: u64,
    /// Largest body of any format in bytes (BE `streaming_load_max_mb`).
    pub body_bytes_max: u64,
    /// How many loads [`crate::Sandbox::loads`] remembers; older ones are forgotten first.
    pub history_max: usize,
}

/// How many versions there may be, and how fast they are merged: the part of [`Options`] that can change later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VersionLimits {
    /// As [`Options::tablet_max_versions`].
    pub tablet_max_versions: u32,
    /// As [`Options::compaction`].
    pub compaction: Option<Duration>,
    /// As [`Options::compaction_merge_max`].
    pub compaction_merge_max: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            fe_http_port: 0,
            be_http_port: 0,
            query_port: 0,
            keep: Keep::Rows,
            password: None,
            tablet_max_versions: 1000,
            // Together about ten loads a second per table for ever, which is what the Primary Key
            // compaction of a StarRocks with default settings sustains.
            compaction: Some(Duration::from_secs(10)),
            compaction_merge_max: 100,
            label_keep_max: 1000,
            label_keep_time_max: Duration::from_secs(3 * 24 * 3600),
            running_txn_max: 1000,
            load_timeout: Duration::from_secs(600),
            prepared_timeout: Duration::from_secs(86_400),
            json_bytes_max: 100 * 1024 * 1024,
            body_bytes_max: 102_400 * 1024 * 1024,
            history_max: 200_000,
        }
    }
}
