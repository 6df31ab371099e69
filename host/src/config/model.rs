//! The validated pipeline: what the rest of the program is given. Every value has its unit type,
//! every path is absolute, every secret is resolved and prints as `<redacted>`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Everything that one `tidemill run` does.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Settings of the process, from the one file that has `[process]`, overridden by flags.
    pub process: Process,
    /// One entry a file.
    pub pipelines: Vec<Arc<Pipeline>>,
}

/// `[process]`: settings that all pipelines of the process share.
#[derive(Debug, Clone)]
pub struct Process {
    /// Bytes in flight in the whole process.
    pub budget_bytes: u64,
    /// Lanes a pipeline; none = as many as cores, at most 12 and at most the partitions.
    pub lanes: Option<usize>,
    /// Where `/health`, `/ready` and `/metrics` listen; none = nowhere.
    pub admin: Option<SocketAddr>,
    /// Where compiled plugins are kept.
    pub cache_dir: PathBuf,
    /// How long a drain may take.
    pub shutdown_timeout: Duration,
    /// How long without progress although there is lag until `/ready` turns red.
    pub stall_after: Duration,
}

/// One pipeline file.
#[derive(Debug, Clone)]
pub struct Pipeline {
    /// `[pipeline] name`: label prefix and, by default, the Kafka group. `[A-Za-z0-9_-]{1,64}`.
    pub name: String,
    /// The file it came from, for messages.
    pub file: PathBuf,
    /// What is promised.
    pub delivery: Delivery,
    /// Plugins have to make the rows of some chunks twice; with exactly_once only.
    pub verify: bool,
    /// Where records come from.
    pub source: Source,
    /// The chain of plugins, in order; may be empty.
    pub transforms: Vec<Transform>,
    /// When to cut.
    pub batch: BatchLimits,
    /// Where rows go.
    pub sink: StarRocks,
    /// Where rejects go; none = the first reject halts.
    pub dead_letters: Option<DeadLetters>,
    /// Past how many rejects the pipeline halts; none = never. Without `dead_letters` it means nothing.
    pub max_rejects: Option<MaxRejects>,
}

/// `[pipeline] delivery`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Nothing lost; duplicates only after a crash, an undrained rebalance or a forgotten label.
    AtLeastOnce,
    /// Every record's rows once, from Kafka.
    ExactlyOnce,
}

/// The one source of a pipeline.
#[derive(Debug, Clone)]
pub enum Source {
    /// `[source.kafka]`
    Kafka(Kafka),
    /// `[source.postgres]`
    Postgres(Postgres),
    /// `[source.http]`
    Http(Http),
}

impl Source {
    /// What the file calls it: `kafka`, `postgres`, `http`.
    pub fn name(&self) -> &'static str {
        match self {
            Source::Kafka(_) => "kafka",
            Source::Postgres(_) => "postgres",
            Source::Http(_) => "http",
        }
    }
}

/// `[source.postgres]`.
#[derive(Debug, Clone)]
pub struct Postgres {
    /// Host name, IP address, or the directory of a Unix socket.
    pub host: String,
    /// Port; 5432 by default.
    pub port: u16,
    /// Database: one slot reads one database.
    pub database: String,
    /// A role with `REPLICATION`, and `SELECT` on the tables.
    pub user: String,
    /// Its password; `None` = none is sent.
    pub password: Option<Secret>,
    /// How the connection is protected.
    pub tls: PostgresTls,
    /// Tables as `schema.table`, each with `*` and `?` as wildcards.
    pub tables: Vec<String>,
    /// Tables left out of those, likewise.
    pub exclude: Vec<String>,
    /// Replication slot; `tidemill_` and the pipeline's name by default, `-` written as `_`, in lower case.
    pub slot: String,
    /// Publication; named like the slot by default.
    pub publication: String,
    /// Whether what is there already is copied first.
    pub snapshot: Snapshot,
    /// Connections that copy tables at the same time.
    pub snapshot_workers: usize,
    /// What a TRUNCATE of a source table does.
    pub truncate: Truncate,
    /// Slot size in bytes past which `/ready` turns red; `u64::MAX` = never.
    pub max_slot_wal_bytes: u64,
    /// How often a heartbeat message is sent through the slot of an idle database.
    pub heartbeat: Duration,
}

/// `[source.postgres.tls]`.
#[derive(Debug, Clone, Default)]
pub struct PostgresTls {
    /// As libpq's `sslmode`.
    pub mode: TlsMode,
    /// Certificate authorities and client certificate.
    pub files: Tls,
}

/// libpq's `sslmode`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TlsMode {
    /// No TLS.
    Disable,
    /// TLS if the server has it.
    #[default]
    Prefer,
    /// TLS; the certificate is not looked at.
    Require,
    /// TLS, with a certificate of a known authority.
    VerifyCa,
    /// TLS, with a certificate of a known authority for this host.
    VerifyFull,
}

/// `[source.postgres] snapshot`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Snapshot {
    /// Copy what is there, then follow the changes.
    Initial,
    /// Follow the changes from the slot's start.
    Never,
    /// Copy what is there, then end.
    Only,
}

/// `[source.postgres] truncate`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Truncate {
    /// The pipeline halts.
    Halt,
    /// The rows stay in StarRocks.
    Ignore,
    /// The table is truncated in StarRocks.
    Apply,
}

/// `[source.http]`.
#[derive(Debug, Clone)]
pub struct Http {
    /// Where requests are taken.
    pub listen: SocketAddr,
    /// Certificate and key of the server, and authorities of client certificates; none = plain HTTP.
    pub tls: Option<HttpTls>,
    /// Bearer tokens, any of which is enough; empty = anybody.
    pub tokens: Vec<Secret>,
    /// The file says that anybody may reach a listener without tokens or TLS.
    pub insecure: bool,
    /// Longest body as sent and as unpacked, in bytes.
    pub max_body_bytes: u64,
    /// Records of one request.
    pub max_records: u64,
    /// Time for the head of a request, and for a silent moment within its body.
    pub read_timeout: Duration,
    /// Time for a whole request to arrive.
    pub request_timeout: Duration,
    /// Time from the whole request to its answer; then 504, and the rows may still be loaded.
    pub answer_timeout: Duration,
    /// Open connections; more wait to be accepted.
    pub max_connections: usize,
    /// How long the answer to an `Idempotency-Key` is kept.
    pub idempotency_window: Duration,
    /// How many of them.
    pub idempotency_keys: usize,
}

/// `[source.http.tls]`, PEM each.
#[derive(Debug, Clone)]
pub struct HttpTls {
    /// The server's certificate chain.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Authorities of client certificates; present = a client must have one.
    pub client_ca: Option<PathBuf>,
}

/// `[source.kafka]`.
#[derive(Debug, Clone)]
pub struct Kafka {
    /// `host:port` each.
    pub brokers: Vec<String>,
    /// Topics by name, or by a POSIX extended regular expression that begins with `^`.
    pub topics: Vec<String>,
    /// Consumer group; the pipeline's name by default.
    pub group: String,
    /// Where to start a partition that has no committed offset.
    pub start: Start,
    /// Records of aborted transactions are left out by default.
    pub isolation: Isolation,
    /// How often watermarks are committed.
    pub commit_interval: Duration,
    /// Memory of librdkafka's own queue.
    pub fetch_queue_bytes: u64,
    /// `security.protocol` and what belongs to it.
    pub security: KafkaSecurity,
    /// Any other librdkafka setting, checked against those that would break delivery.
    pub properties: BTreeMap<String, String>,
}

/// `[source.kafka] start`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The oldest record that the broker has.
    Earliest,
    /// Only what arrives from now on.
    Latest,
    /// The first record not older than this, in milliseconds since 1970 UTC.
    TimestampMs(i64),
}

/// `[source.kafka] isolation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// Records of open and aborted transactions are not seen.
    ReadCommitted,
    /// Everything is seen.
    ReadUncommitted,
}

/// `[source.kafka.tls]` and `[source.kafka.sasl]`.
#[derive(Debug, Clone, Default)]
pub struct KafkaSecurity {
    /// Present = TLS.
    pub tls: Option<Tls>,
    /// Present = SASL.
    pub sasl: Option<Sasl>,
}

/// TLS files, PEM each.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// Certificate authorities; none = the system's.
    pub ca: Option<PathBuf>,
    /// Client certificate.
    pub certificate: Option<PathBuf>,
    /// Client key.
    pub key: Option<PathBuf>,
}

/// SASL credentials.
#[derive(Debug, Clone)]
pub struct Sasl {
    /// `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`.
    pub mechanism: String,
    /// User.
    pub username: String,
    /// Password.
    pub password: Secret,
}

/// One `[[transform]]`.
#[derive(Debug, Clone)]
pub struct Transform {
    /// The component's file.
    pub plugin: PathBuf,
    /// Its configuration, as the JSON text that `configure` gets.
    pub config_json: String,
    /// What is granted beyond `log`.
    pub wasi: Wasi,
    /// Linear memory of one instance.
    pub memory_bytes: u64,
    /// Wall time of one call, to the next 10 ms tick.
    pub timeout: Duration,
    /// Bytes that one call may return.
    pub output_bytes: u64,
    /// Log lines a second that are passed on; the rest is counted.
    pub log_lines_per_second: u32,
    /// Failing records in a row after which the pipeline halts.
    pub failures_in_a_row: u32,
}

/// `[[transform]] wasi`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wasi {
    /// Nothing: an import of `wasi:*` traps when it is called.
    None,
    /// Clocks, random numbers and a stdio that goes nowhere.
    Minimal,
}

/// `[batch]`: limits of one batch, a table each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// Rows.
    pub max_rows: u64,
    /// Bytes of the request body.
    pub max_bytes: u64,
    /// Time since the first row.
    pub linger: Duration,
    /// How far they may grow while StarRocks cannot keep up; none = not at all.
    pub stretch: Option<StretchBounds>,
}

/// `[batch.stretch]`: bounds of what batches grow to under version pressure. One below its limit leaves that as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StretchBounds {
    /// Rows.
    pub max_rows: u64,
    /// Bytes of the request body.
    pub max_bytes: u64,
    /// Time since the first row.
    pub linger: Duration,
    /// Versions of a replica from which on loads come too fast.
    pub versions: u64,
    /// Time without a sign of pressure after which batches get smaller by a half.
    pub calm: Duration,
}

/// `[sink.starrocks]`.
#[derive(Debug, Clone)]
pub struct StarRocks {
    /// FE HTTP addresses, `http://host:port` each, in order of preference.
    pub fe: Vec<String>,
    /// MySQL protocol address `host:port`; none = the first FE's host and 9030.
    pub query: Option<String>,
    /// Database.
    pub database: String,
    /// The pipeline's own table; none = every row is routed by a plugin. With a Postgres source, where it is
    /// never none, `{schema}` and `{table}` in it stand for the names of the source table.
    pub table: Option<String>,
    /// Tables that plugins may route to, besides `table`; empty = whatever the plugin declares.
    pub tables: Vec<String>,
    /// Missing tables are made from the source's schema; only with a Postgres source.
    pub create_tables: bool,
    /// User.
    pub user: String,
    /// Password; a fresh StarRocks has none.
    pub password: Secret,
    /// Key model of the tables; none = read over the query port.
    pub table_model: Option<TableModel>,
    /// Loads in flight a table; 1 keeps order.
    pub in_flight: usize,
    /// StarRocks' own time-out of a load.
    pub load_timeout: Duration,
    /// How long StarRocks keeps a prepared load of an exactly_once pipeline that nobody commits.
    pub prepared_timeout: Duration,
    /// Redirect targets `host` or `host:port`; empty = whatever the FE names is accepted, printed once.
    pub redirect_hosts: Vec<String>,
    /// Certificate authority for `https://`, PEM; none = the system's.
    pub ca: Option<PathBuf>,
    /// Any other Stream Load header.
    pub properties: BTreeMap<String, String>,
    /// How rows are sent.
    pub format: RowFormat,
    /// Columns that rows bring, for all tables; empty = all that a row names.
    pub columns: Vec<String>,
    /// Whether only `columns` are updated, with the others as they were.
    pub partial_update: bool,
    /// How partial updates are written, also those of a source whose rows bring columns of their own.
    pub partial_update_mode: PartialUpdate,
    /// How bodies are compressed.
    pub compression: Compression,
}

/// `[sink.starrocks] format`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum RowFormat {
    /// One JSON object a line.
    #[default]
    Json,
    /// The values of `columns`, a row a line.
    Csv,
}

/// `[sink.starrocks] partial_update_mode`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum PartialUpdate {
    /// Whole rows are read and written again: for many columns and few rows.
    #[default]
    Row,
    /// Only the columns are written: for few columns and many rows.
    Column,
    /// StarRocks decides.
    Auto,
}

impl PartialUpdate {
    /// The value of the header `partial_update_mode`.
    pub fn name(self) -> &'static str {
        match self {
            PartialUpdate::Row => "row",
            PartialUpdate::Column => "column",
            PartialUpdate::Auto => "auto",
        }
    }
}

/// `[sink.starrocks] compression`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Bodies are sent as they are.
    #[default]
    None,
    /// LZ4 frames: the cheapest to unpack.
    Lz4,
    /// gzip.
    Gzip,
    /// zstd at its lowest level: the smallest, and the fastest to pack here.
    Zstd,
}

impl StarRocks {
    /// Whether loads by this section and by `other` are the same requests, apart from their table: then
    /// rows of both may be in one load (delivery.md §1 rule 9). Taken apart, so that a new key has to be
    /// decided about here.
    pub fn shapes_loads_as(&self, other: &StarRocks) -> bool {
        let StarRocks {
            fe,
            query: _,
            database,
            table: _,
            tables: _,
            create_tables: _,
            user,
            password,
            table_model: _,
            in_flight: _,
            load_timeout,
            prepared_timeout: _,
            redirect_hosts,
            ca,
            properties,
            format,
            columns,
            partial_update,
            partial_update_mode,
            compression,
        } = self;
        *fe == other.fe
            && *database == other.database
            && *user == other.user
            && *password == other.password
            && *load_timeout == other.load_timeout
            && *redirect_hosts == other.redirect_hosts
            && *ca == other.ca
            && *properties == other.properties
            && *format == other.format
            && *columns == other.columns
            && *partial_update == other.partial_update
            && *partial_update_mode == other.partial_update_mode
            && *compression == other.compression
    }
}

/// Key model of a StarRocks table: what a delete may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TableModel {
    /// Duplicate Key: rows are only added.
    Duplicate,
    /// Unique Key: the last row of a key wins.
    Unique,
    /// Aggregate Key: rows of a key are folded.
    Aggregate,
    /// Primary Key: upserts and deletes.
    Primary,
}

impl TableModel {
    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            TableModel::Duplicate => "Duplicate Key",
            TableModel::Unique => "Unique Key",
            TableModel::Aggregate => "Aggregate Key",
            TableModel::Primary => "Primary Key",
        }
    }
}

/// `[dead_letters]`.
#[derive(Debug, Clone)]
pub enum DeadLetters {
    /// Files `*.ndjson` in a directory, fsynced.
    Directory(PathBuf),
    /// A Kafka topic on the brokers given, or on those of the source.
    Kafka {
        /// Topic.
        topic: String,
        /// Brokers; empty = the source's, with its security.
        brokers: Vec<String>,
    },
}

/// `[dead_letters] max_rejects`: the pipeline halts when more than `limit` of `window` records in a row were
/// rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaxRejects {
    /// Records looked at.
    pub window: u64,
    /// Rejects among them that are still fine; less than `window`.
    pub limit: u64,
}

/// A value that must never be printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value, for the one call that sends it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}
