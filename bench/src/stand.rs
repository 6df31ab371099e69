//! What every contest needs: Tidemill's binary, a sandbox that throws rows away, and ways to look at both.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::proc::used;

/// How long one run may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often a run is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

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

/// A sandbox that throws rows away, a place for files.
pub(crate) struct Stand {
    sandbox: Child,
    fe: String,
    be: String,
    query: String,
    tidemill: PathBuf,
    folder: tempfile::TempDir,
    http: reqwest::Client,
    runtime: tokio::runtime::Runtime,
}

impl Stand {
    /// With the database `bench` and what `statements` make.
    pub(crate) fn start(statements: &[String]) -> Result<Stand, String> {
        let tidemill = PathBuf::from(variable("TIDEMILL_BIN")?);
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let http = reqwest::Client::builder().no_proxy().build().map_err(|error| error.to_string())?;
        let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
        let (fe, be, query) = (free_port()?, free_port()?, free_port()?);
        let sandbox = start_sandbox(&tidemill, [fe, be, query], statements)?;
        let (fe, be) = (format!("http://127.0.0.1:{fe}"), format!("127.0.0.1:{be}"));
        let query = format!("127.0.0.1:{query}");
        Ok(Stand { sandbox, fe, be, query, tidemill, folder, http, runtime })
    }

    /// Address of the FE, as a URL.
    pub(crate) fn fe(&self) -> &str {
        &self.fe
    }

    /// Address of the BE, `host:port`.
    pub(crate) fn be(&self) -> &str {
        &self.be
    }

    /// The lines that every `[sink.starrocks]` begins with.
    pub(crate) fn sink(&self) -> String {
        let Stand { fe, query, .. } = self;
        format!(
            "[sink.starrocks]\nfe = [\"{fe}\"]\nquery = \"{query}\"\ndatabase = \"bench\"\nuser = \"root\"\n"
        )
    }

    /// Loads and rows of all tables of the sandbox so far.
    pub(crate) fn stats(&self) -> Result<(u64, u64), String> {
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

    /// Runs a pipeline until all of its records are through.
    pub(crate) fn measure(&self, name: &str, pipeline: &str, records: u64) -> Result<Run, String> {
        let before = self.stats()?;
        let (mut child, admin) = self.run(name, pipeline)?;
        let done = self.wait(&mut child, &admin, records);
        let measured = used(child.id()).unwrap_or_default();
        let ended = end(&mut child);
        let seconds = done?;
        ended?;
        let after = self.stats()?;
        let (loads, rows) = (after.0 - before.0, after.1 - before.1);
        Ok(Run { seconds, cpu_s: measured.cpu_s, peak_bytes: measured.peak_bytes, loads, rows })
    }

    /// Starts Tidemill with a pipeline; returns it with the address of its admin endpoint.
    pub(crate) fn run(&self, name: &str, pipeline: &str) -> Result<(Child, String), String> {
        let file = self.folder.path().join(format!("{name}.toml"));
        std::fs::write(&file, pipeline).map_err(|error| error.to_string())?;
        let admin = format!("127.0.0.1:{}", free_port()?);
        let child = Command::new(&self.tidemill)
            .args(["--log-level", "warn", "run"])
            .arg(&file)
            .args(["--admin", &admin])
            .spawn()
            .map_err(|error| error.to_string())?;
        Ok((child, admin))
    }

    /// A file beside the pipelines'.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<PathBuf, String> {
        let file = self.folder.path().join(name);
        std::fs::write(&file, text).map_err(|error| error.to_string())?;
        Ok(file)
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
}

impl Drop for Stand {
    fn drop(&mut self) {
        // Ours, by its handle; that it is gone already is fine.
        let _ = self.sandbox.kill();
        let _ = self.sandbox.wait();
    }
}

/// Asks a process to end (SIGTERM) and waits until it has, in success.
pub(crate) fn end(child: &mut Child) -> Result<(), String> {
    let stopped = Command::new("kill").arg(child.id().to_string()).status();
    stopped.map_err(|error| error.to_string())?;
    let ended = child.wait().map_err(|error| error.to_string())?;
    if ended.success() { Ok(()) } else { Err(format!("tidemill ended with {ended}")) }
}

/// Sum of a metric over all its labels.
pub(crate) fn sum(text: &str, metric: &str) -> u64 {
    let lines = text.lines().filter(|line| line.starts_with(metric));
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
}

/// The `[[transform]]` table of one of the example plugins.
pub(crate) fn transform(plugin: &str, config: &str) -> String {
    let plugins = crate::root().join("target/plugins");
    format!("[[transform]]\nplugin = \"{}/{plugin}.wasm\"\nconfig = {{ {config} }}\n", plugins.display())
}

/// What `cargo xtask bench` has put into the environment.
pub(crate) fn variable(name: &str) -> Result<String, String> {
    std::env::var(name).map_err(|_| format!("{name} is not set: run `cargo xtask bench`"))
}

fn start_sandbox(tidemill: &PathBuf, ports: [u16; 3], statements: &[String]) -> Result<Child, String> {
    let [fe, be, query] = ports.map(|port| port.to_string());
    let mut child = Command::new(tidemill)
        .args(["sandbox", "--keep", "none", "--max-versions", "1000000"])
        .args(["--fe-port", &fe, "--be-port", &be, "--query-port", &query])
        .args(["--execute", "CREATE DATABASE bench"])
        .args(statements.iter().flat_map(|statement| ["--execute", statement]))
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
    Ok(child)
}

pub(crate) fn free_port() -> Result<u16, String> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    listener.local_addr().map(|address| address.port()).map_err(|error| error.to_string())
}

/// A name that differs from run to run within one process.
pub(crate) fn unique(stem: &str) -> String {
    use std::hash::{BuildHasher as _, Hasher as _};
    let id = std::collections::hash_map::RandomState::new().build_hasher().finish() as u32;
    format!("{stem}_{id:08x}")
}
