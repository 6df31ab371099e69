//! Stages measured alone, in nanoseconds per record: what crossing into a plugin costs, and what a plugin costs.
//!
//! Each stage runs several rounds, in turn with the others, and its median counts: the machine's slow phases then
//! hit all of them. Nothing here needs Kafka or StarRocks.

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use tidemill::chain::Transformed;
use tidemill::config::model::{TableModel, Transform, Wasi};
use tidemill::fault::Fault;
use tidemill::plugin::{Engine, Guest};
use tidemill::record::{Columns, MARK_VALUE};
use tidemill::rows::{self, Target, Targets};
use tidemill_plugin_orders as orders;

/// Records of one chunk, as lanes gather them under load.
const CHUNK_RECORDS: [u64; 2] = [1_000, 10_000];
/// Records of one round of a stage.
const ROUND_RECORDS: u64 = 200_000;
/// Rounds of each stage; odd, so that there is a median.
const ROUNDS: usize = 9;

/// What a stage costs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stage {
    /// Its name in the results.
    pub name: &'static str,
    /// Records of one chunk.
    pub chunk_records: u64,
    /// Median of the rounds, in nanoseconds per record.
    pub ns_per_record: f64,
    /// Fastest and slowest round, in nanoseconds per record.
    pub spread: (f64, f64),
}

/// What a stage does with a chunk.
enum Work {
    /// Values, marks and offsets into the lane's columns: the copy out of librdkafka's buffer.
    Gather(Box<Columns>),
    /// Kept values into a segment of the request's body, with the index of its rows.
    Append { chunk: Box<Columns>, spare: Vec<u8> },
    /// One call of a plugin, its answer checked and dropped.
    Plugin(Guest),
    /// The `orders` transform as Rust, into a buffer that is used again.
    Native { config: orders::Config, rows: Vec<u8> },
}

/// A stage in the making.
struct Runner<'a> {
    name: &'static str,
    chunk: &'a Columns,
    work: Work,
    /// Nanoseconds per record of each round.
    rounds: Vec<f64>,
}

/// Measures the stages `cross` (a plugin that keeps every record as it is: the cost of going in and out), `plugin`
/// (the `orders` plugin) and `native` (the same transform as Rust, without a plugin).
///
/// `plugins` is where `cargo xtask plugins` leaves them.
///
/// # Errors
///
/// If a plugin cannot be loaded or fails.
pub(crate) fn run(plugins: &Path) -> Result<Vec<Stage>, Fault> {
    let cache = std::env::temp_dir().join(format!("tidemill-bench-{}", std::process::id()));
    let measured = measure(plugins, &cache);
    // What is left of a cache harms nobody, and the measurement is what counts.
    let _ = std::fs::remove_dir_all(&cache);
    measured
}

fn measure(plugins: &Path, cache: &Path) -> Result<Vec<Stage>, Fault> {
    let engine = Engine::new(2 * CHUNK_RECORDS.len(), transform(plugins, "").memory_bytes, cache)?;
    let passthrough = engine.load(&transform(plugins.join("passthrough.wasm"), "{}"))?;
    let plugin = engine.load(&transform(plugins.join("orders.wasm"), r#"{"currency":"EUR"}"#))?;
    let config = orders::Config::new("EUR").map_err(|what| Fault::halt(what, "correct the benchmark"))?;
    let chunks = CHUNK_RECORDS.map(chunk);
    let mut runners = Vec::new();
    for chunk in &chunks {
        let native = Work::Native { config: config.clone(), rows: Vec::new() };
        let append = Work::Append { chunk: Box::new(chunk.clone()), spare: Vec::new() };
        for (name, work) in [
            ("gather", Work::Gather(Box::default())),
            ("append", append),
            ("cross", Work::Plugin(Guest::new(passthrough.clone())?)),
            ("plugin", Work::Plugin(Guest::new(plugin.clone())?)),
            ("native", native),
        ] {
            runners.push(Runner { name, chunk, work, rounds: Vec::with_capacity(ROUNDS) });
        }
    }
    for round in 0..=ROUNDS {
        for runner in &mut runners {
            let ns = runner.round()?;
            // The first round fills caches and buffers.
            if round > 0 {
                runner.rounds.push(ns);
            }
        }
    }
    Ok(runners.into_iter().map(Runner::stage).collect())
}

impl Work {
    fn once(&mut self, chunk: &Columns) -> Result<(), Fault> {
        match self {
            Self::Plugin(guest) => {
                let answer = guest.process(chunk);
                black_box(answer.map_err(|error| Fault::halt(error.to_string(), "correct the plugin"))?);
            }
            Self::Gather(into) => {
                into.clear();
                for (place, value) in chunk.values.iter().enumerate() {
                    into.values.push(value);
                    into.marks.push(MARK_VALUE);
                    into.offsets.push(place as i64);
                }
                black_box(into);
            }
            Self::Append { chunk, spare } => {
                let inputs = (0..chunk.len() as u32).collect();
                let mut kept = Transformed { inputs: Some(inputs), ..Transformed::default() };
                let own = Target { model: TableModel::Duplicate.into() };
                let names = ["orders".into()].into();
                let targets = Targets { tables: vec![own], own: Some(0), row_bytes_max: 10 << 20, names };
                let mut built = rows::build(chunk, &mut kept, &targets, false, spare);
                black_box(&built);
                // The body comes back, as it does from a durable batch.
                *spare = built.segments.pop().map(|segment| segment.body).unwrap_or_default();
            }
            Self::Native { config, rows } => {
                rows.clear();
                for value in chunk.values.iter() {
                    // A sample order is right or a test, never wrong.
                    black_box(orders::transform(value, config, rows).is_ok());
                }
                black_box(rows);
            }
        }
        Ok(())
    }
}

impl Runner<'_> {
    /// One round, in nanoseconds per record.
    fn round(&mut self) -> Result<f64, Fault> {
        let records = self.chunk.len() as u64;
        let calls = ROUND_RECORDS / records;
        let began = Instant::now();
        for _ in 0..calls {
            self.work.once(self.chunk)?;
        }
        Ok(began.elapsed().as_nanos() as f64 / (calls * records) as f64)
    }

    fn stage(mut self) -> Stage {
        self.rounds.sort_by(f64::total_cmp);
        let at = |index: usize| self.rounds.get(index).copied().unwrap_or(f64::NAN);
        Stage {
            name: self.name,
            chunk_records: self.chunk.len() as u64,
            ns_per_record: at(self.rounds.len() / 2),
            spread: (at(0), at(self.rounds.len().saturating_sub(1))),
        }
    }
}

/// Orders as a source gives them.
fn chunk(records: u64) -> Columns {
    let mut chunk = Columns { source: Some("orders".into()), ..Columns::default() };
    let mut value = Vec::new();
    for id in 0..records {
        value.clear();
        orders::sample::write_order(id, &mut value);
        chunk.values.push(&value);
        chunk.marks.push(MARK_VALUE);
        chunk.keys.push(b"");
        chunk.timestamps.push(0);
        chunk.partitions.push(0);
        chunk.offsets.push(id as i64);
        chunk.headers.end_record();
    }
    chunk
}

fn transform(plugin: impl AsRef<Path>, config_json: &str) -> Transform {
    Transform {
        plugin: plugin.as_ref().to_owned(),
        config_json: config_json.to_owned(),
        wasi: Wasi::None,
        memory_bytes: 64 << 20,
        timeout: Duration::from_secs(10),
        output_bytes: 64 << 20,
        log_lines_per_second: 10,
        failures_in_a_row: 10,
    }
}
