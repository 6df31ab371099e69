//! The contestants, and one run of each.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::orders;
use crate::proc::used;

/// Tables of the routing check.
pub(crate) const TABLES: usize = 100;
/// How long one run may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often a run is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A batch setting under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) name: &'static str,
    rows: usize,
    bytes: usize,
}

/// 10,000 rows, 10 MiB, 1 s.
pub(crate) const SMALL: Batch = Batch { name: "10,000 rows", rows: 10_000, bytes: 10 << 20 };
/// The defaults: 500,000 rows, 64 MiB, 1 s.
pub(crate) const DEFAULT: Batch = Batch { name: "defaults", rows: 500_000, bytes: 64 << 20 };

/// What is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A bare loop of this program.
    Loop(&'static str),
    /// Tidemill, with this plugin if any.
    Tidemill(Option<&'static str>),
}

/// One contestant with one batch setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Contestant {
    pub(crate) name: &'static str,
    pub(crate) batch: Batch,
    kind: Kind,
}

/// All of them, in the order in which they run.
pub(crate) const CONTESTANTS: [Contestant; 9] = [
    Contestant { name: "limit: read, throw away", batch: SMALL, kind: Kind::Loop("read") },
    Contestant { name: "native loop, no transform", batch: SMALL, kind: Kind::Loop("copy") },
    Contestant { name: "native loop, orders", batch: SMALL, kind: Kind::Loop("orders") },
    Contestant { name: "tidemill, no plugin", batch: SMALL, kind: Kind::Tidemill(None) },
    Contestant { name: "tidemill, passthrough", batch: SMALL, kind: Kind::Tidemill(Some("passthrough")) },
    Contestant { name: "tidemill, orders", batch: SMALL, kind: Kind::Tidemill(Some("orders")) },
    Contestant { name: "native loop, orders", batch: DEFAULT, kind: Kind::Loop("orders") },
    Contestant { name: "tidemill, passthrough", batch: DEFAULT, kind: Kind::Tidemill(Some("passthrough")) },
    Contestant { name: "tidemill, orders", batch: DEFAULT, kind: Kind::Tidemill(Some("orders")) },
];

/// One run's figures.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Run {
    /// From the first record read to the last durable row.
    pub(crate) seconds: f64,
    pub(crate) cpu_s: f64,
    pub(crate) peak_bytes: u64,
    pub(crate) loads: u64,
    pub(crate) rows: u64,
}

/// All runs of one contestant.
#[derive(Debug, Clone)]
pub(crate) struct Results {
    pub(crate) contestant: Contestant,
    pub(crate) runs: Vec<Run>,
}

/// Kafka with the topic, a sandbox that throws rows away, a place for files.
pub(crate) struct Contest {
    brokers: String,
    topic: String,
    records: u64,
    kept: u64,
    sandbox: Child,
    fe: String,
    be: String,
    tidemill: PathBuf,
    folder: tempfile::TempDir,
    http: reqwest::Client,
    runtime: tokio::runtime::Runtime,
}

impl Contest {
    pub(crate) fn prepare(records: u64) -> Result<Contest, String> {
        let variable = |name: &str| {
            std::env::var(name).map_err(|_| format!("{name} is not set: run `cargo xtask bench`"))
        };
        let brokers = variable("TIDEMILL_TEST_KAFKA")?;
        let tidemill = PathBuf::from(variable("TIDEMILL_BIN")?);
        let topic = format!("bench-{:08x}", std::process::id());
        eprintln!("filling topic {topic} with {records} orders");
        let kept = orders::fill(&brokers, &topic, orders::PARTITIONS, records)?;
        let (sandbox, fe, be) = start_sandbox(&tidemill)?;
        let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
        Ok(Contest {
            brokers,
            topic,
            records,
            kept,
            sandbox,
            fe,
            be,
            tidemill,
            folder: tempfile::tempdir().map_err(|error| error.to_string())?,
            http: reqwest::Client::builder().no_proxy().build().map_err(|error| error.to_string())?,
            runtime,
        })
    }

    /// Runs all contestants in turn, `rounds` times.
    pub(crate) fn run(&self, rounds: usize, only: &[String]) -> Result<Vec<Results>, String> {
        let chosen = |one: &&Contestant| {
            only.is_empty() || only.iter().any(|name| one.name.starts_with(name.as_str()))
        };
        let mut all: Vec<Results> = CONTESTANTS
            .iter()
            .filter(chosen)
            .map(|contestant| Results { contestant: *contestant, runs: Vec::new() })
            .collect();
        for round in 0..rounds {
            for results in &mut all {
                let run = self.once(&results.contestant)?;
                eprintln!(
                    "round {}: {} ({}): {:.2} s, {:.2} CPU-s, {} MiB, {} loads",
                    round + 1,
                    results.contestant.name,
                    results.contestant.batch.name,
                    run.seconds,
                    run.cpu_s,
                    run.peak_bytes >> 20,
                    run.loads
                );
                results.runs.push(run);
            }
        }
        Ok(all)
    }

    fn once(&self, contestant: &Contestant) -> Result<Run, String> {
        let before = self.stats()?;
        let run = match contestant.kind {
            Kind::Loop(work) => self.bare_loop(work, contestant.batch)?,
            Kind::Tidemill(plugin) => self.tidemill(&self.topic, plugin, contestant.batch, self.records)?,
        };
        let after = self.stats()?;
        let (loads, rows) = (after.0 - before.0, after.1 - before.1);
        let expected = match contestant.kind {
            Kind::Loop("read") => 0,
            Kind::Loop("orders") | Kind::Tidemill(Some("orders")) => self.kept,
            Kind::Loop(_) | Kind::Tidemill(_) => self.records,
        };
        if rows != expected {
            return Err(format!("{}: {rows} rows arrived, expected {expected}", contestant.name));
        }
        Ok(Run { loads, rows, ..run })
    }

    /// Loads and rows of all tables of the sandbox so far.
    fn stats(&self) -> Result<(u64, u64), String> {
        let asked = async {
            let answer = self.http.get(format!("{}/sandbox/stats", self.fe)).send().await?;
            answer.json::<serde_json::Value>().await
        };
        let stats = self.runtime.block_on(asked).map_err(|error| error.to_string())?;
        let tables = stats.get("tables").and_then(serde_json::Value::as_object);
        let tables = tables.ok_or("the sandbox told of no tables")?;
        let sum = |key: &str| tables.values().filter_map(|table| table.get(key)?.as_u64()).sum();
        Ok((sum("loads"), sum("rows_loaded")))
    }

    fn bare_loop(&self, work: &str, batch: Batch) -> Result<Run, String> {
        let own = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut command = Command::new(own);
        command
            .args([
                "loop",
                "--work",
                work,
                "--brokers",
                &self.brokers,
                "--topic",
                &self.topic,
                "--be",
                &self.be,
            ])
            .args(["--records", &self.records.to_string()])
            .args(["--max-rows", &batch.rows.to_string(), "--max-bytes", &batch.bytes.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|error| error.to_string())?;
        let (mut line, mut began) = (String::new(), Instant::now());
        if let Some(out) = child.stdout.take() {
            let mut lines = BufReader::new(out);
            lines.read_line(&mut line).map_err(|error| error.to_string())?;
            began = Instant::now();
            line.clear();
            lines.read_line(&mut line).map_err(|error| error.to_string())?;
        }
        let seconds = began.elapsed().as_secs_f64();
        let used = used(child.id()).unwrap_or_default();
        drop(child.stdin.take());
        let ended = child.wait().map_err(|error| error.to_string())?;
        if line.trim() != "done" || !ended.success() {
            return Err(format!("the loop `{work}` failed"));
        }
        Ok(Run { seconds, cpu_s: used.cpu_s, peak_bytes: used.peak_bytes, ..Run::default() })
    }

    /// The brokers' address.
    pub(crate) fn brokers(&self) -> &str {
        &self.brokers
    }

    /// Runs Tidemill over a topic with one of the plugins and its usual configuration.
    pub(crate) fn tidemill(
        &self,
        topic: &str,
        plugin: Option<&str>,
        batch: Batch,
        records: u64,
    ) -> Result<Run, String> {
        let config = |plugin| if plugin == "orders" { "currency = \"EUR\"" } else { "" };
        self.tidemill_with(topic, plugin.map(|plugin| (plugin, config(plugin))), batch, records)
    }

    /// The same with a configuration given.
    pub(crate) fn tidemill_with(
        &self,
        topic: &str,
        plugin: Option<(&str, &str)>,
        batch: Batch,
        records: u64,
    ) -> Result<Run, String> {
        let before = self.stats()?;
        let (mut child, admin) = self.start(topic, plugin, batch)?;
        let done = self.wait(&mut child, &admin, records);
        let measured = used(child.id()).unwrap_or_default();
        let stopped = Command::new("kill").arg(child.id().to_string()).status();
        stopped.map_err(|error| error.to_string())?;
        let ended = child.wait().map_err(|error| error.to_string())?;
        let seconds = done?;
        if !ended.success() {
            return Err(format!("tidemill ended with {ended}"));
        }
        let after = self.stats()?;
        let (loads, rows) = (after.0 - before.0, after.1 - before.1);
        Ok(Run { seconds, cpu_s: measured.cpu_s, peak_bytes: measured.peak_bytes, loads, rows })
    }

    /// Starts Tidemill; returns it with the address of its admin endpoint.
    pub(crate) fn start(
        &self,
        topic: &str,
        plugin: Option<(&str, &str)>,
        batch: Batch,
    ) -> Result<(Child, String), String> {
        let name = format!("bench_{:08x}", rand_id());
        let file = self.folder.path().join(format!("{name}.toml"));
        std::fs::write(&file, self.pipeline(&name, topic, plugin, batch))
            .map_err(|error| error.to_string())?;
        let admin = format!("127.0.0.1:{}", free_port()?);
        let child = Command::new(&self.tidemill)
            .args(["--log-level", "warn", "run"])
            .arg(&file)
            .args(["--admin", &admin])
            .spawn()
            .map_err(|error| error.to_string())?;
        Ok((child, admin))
    }

    /// The text of `/metrics`, if the process answers.
    pub(crate) fn metrics(&self, admin: &str) -> Option<String> {
        let asked = async { self.http.get(format!("http://{admin}/metrics")).send().await?.text().await };
        self.runtime.block_on(asked).ok()
    }

    /// Waits until all records are through; returns the seconds from the first one seen to be read on, at the
    /// rate of all batches but the last.
    fn wait(&self, child: &mut Child, admin: &str, records: u64) -> Result<f64, String> {
        let (started, mut first) = (Instant::now(), None);
        let (mut before_last, mut last) = ((0.0, 0), (0.0, 0));
        while started.elapsed() < PATIENCE {
            std::thread::sleep(LOOK_EVERY);
            if let Some(ended) = child.try_wait().map_err(|error| error.to_string())? {
                return Err(format!("tidemill ended early with {ended}"));
            }
            let Some(text) = self.metrics(admin) else { continue };
            if first.is_none() && sum(&text, "tidemill_records_read_total") > 0 {
                // It was read between the last look and this one.
                first = Some(Instant::now() - LOOK_EVERY);
            }
            let out =
                sum(&text, "tidemill_records_loaded_total") + sum(&text, "tidemill_records_dropped_total");
            let Some(first) = first else { continue };
            if out > last.1 {
                before_last = last;
                last = (first.elapsed().as_secs_f64(), out);
            }
            if out >= records {
                // The last batch is not full and lingers, which a bare loop's does not: the rate is
                // that of the others.
                let (seconds, through) = if before_last.1 > 0 { before_last } else { last };
                return Ok(seconds * records as f64 / through as f64);
            }
        }
        Err(format!("not done within {} s", PATIENCE.as_secs()))
    }

    fn pipeline(&self, name: &str, topic: &str, plugin: Option<(&str, &str)>, batch: Batch) -> String {
        let plugins = crate::root().join("target/plugins");
        let transform = plugin.map_or_else(String::new, |(plugin, config)| {
            format!(
                "[[transform]]\nplugin = \"{}/{plugin}.wasm\"\nconfig = {{ {config} }}\n",
                plugins.display()
            )
        });
        // A plugin that routes names the tables itself.
        let table =
            if plugin.is_some_and(|(plugin, _)| plugin == "route") { "" } else { "table = \"orders\"\n" };
        format!(
            "[pipeline]\nname = \"{name}\"\n[source.kafka]\nbrokers = [\"{}\"]\ntopics = [\"{}\"]\n{transform}\
             [batch]\nmax_rows = {}\nmax_bytes = \"{}B\"\nlinger = \"1s\"\n\
             [sink.starrocks]\nfe = [\"{}\"]\ndatabase = \"bench\"\n{table}user = \"root\"\n\
             table_model = \"duplicate\"\n",
            self.brokers, topic, batch.rows, batch.bytes, self.fe
        )
    }
}

impl Drop for Contest {
    fn drop(&mut self) {
        // Ours, by its handle; that it is gone already is fine.
        let _ = self.sandbox.kill();
        let _ = self.sandbox.wait();
    }
}

/// Sum of a metric over all its labels.
pub(crate) fn sum(text: &str, metric: &str) -> u64 {
    let lines = text.lines().filter(|line| line.starts_with(metric));
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
}

fn start_sandbox(tidemill: &PathBuf) -> Result<(Child, String, String), String> {
    let (fe, be, query) = (free_port()?, free_port()?, free_port()?);
    let table =
        tidemill_plugin_orders::sample::CREATE_TABLE.replacen("TABLE orders", "TABLE bench.orders", 1);
    let mut child = Command::new(tidemill)
        .args(["sandbox", "--keep", "none", "--max-versions", "1000000"])
        .args(["--fe-port", &fe.to_string(), "--be-port", &be.to_string()])
        .args(["--query-port", &query.to_string()])
        .args(["--execute", "CREATE DATABASE bench", "--execute", &table])
        .args((0..TABLES).flat_map(|table| {
            let statement = format!(
                "CREATE TABLE bench.t{table} (order_id BIGINT NOT NULL, kind VARCHAR(16), note VARCHAR(256)) \
                 DUPLICATE KEY (order_id) DISTRIBUTED BY HASH (order_id) BUCKETS 1"
            );
            ["--execute".to_owned(), statement]
        }))
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot start the sandbox: {error}"))?;
    let mut line = String::new();
    if let Some(out) = child.stdout.take() {
        let mut reader = BufReader::new(out);
        reader.read_line(&mut line).map_err(|error| error.to_string())?;
        // The sandbox prints on; a closed pipe would end it.
        child.stdout = Some(reader.into_inner());
    }
    if line.is_empty() {
        return Err("the sandbox did not start".to_owned());
    }
    Ok((child, format!("http://127.0.0.1:{fe}"), format!("127.0.0.1:{be}")))
}

fn free_port() -> Result<u16, String> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    listener.local_addr().map(|address| address.port()).map_err(|error| error.to_string())
}

/// Differs from run to run within one process.
fn rand_id() -> u32 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::collections::hash_map::RandomState::new().build_hasher().finish() as u32
}
