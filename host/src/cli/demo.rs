//! `tidemill demo`: what each batch size costs, with nothing installed.

mod clients;
mod producer;

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use tidemill_plugin_orders::sample;
use tidemill_sandbox::{Keep, Options, Sandbox};
use tokio::runtime::Runtime;

use self::clients::Clients;
use self::producer::{Mock, PARTITIONS, Producer};
use super::{EXIT_FAILED, EXIT_OK, EXIT_USAGE};
use crate::config::model::{Kafka, Plan, Source};
use crate::config::{self, Overrides};
use crate::delivery::Stop;
use crate::fault::Fault;
use crate::meter::PipelineMeter;
use crate::pipeline;
use crate::sink::starrocks::query::Query;
use crate::source::kafka;

/// How long a run may make no progress.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a run may drain: only the one that was refused has anything left.
const DRAIN_PATIENCE: Duration = Duration::from_secs(2);
/// Rows of the runs that the first table of the README shows.
const BATCHES: [(&str, Option<u64>); 3] =
    [("1,000 rows", Some(1_000)), ("10,000 rows", Some(10_000)), ("default", None)];
/// Events of the run with batches of one row; it ends at the first refusal.
const SINGLES: u64 = 3_000;
const DATABASE: &str = "tidemill_demo";

/// What brings the orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SourceKind {
    /// A Kafka topic
    Kafka,
    /// Clients that post a thousand orders at a time and wait until they are durable
    Http,
}

#[derive(Debug, Args)]
pub(super) struct Demo {
    /// Where the orders come from
    #[arg(long, value_enum, default_value_t = SourceKind::Kafka)]
    source: SourceKind,
    /// Order events of each run
    #[arg(long, default_value_t = 1_000_000)]
    events: u64,
    /// The plugin; by default the one that `cargo xtask plugins` built beside this binary
    #[arg(long, value_name = "FILE")]
    plugin: Option<PathBuf>,
    /// A real Kafka instead of librdkafka's mock cluster, as host:port,…
    #[arg(long, value_name = "BROKERS")]
    brokers: Option<String>,
    /// A real StarRocks instead of the sandbox, as http://host:8030; makes the database `tidemill_demo`
    #[arg(long, value_name = "URL")]
    fe: Option<String>,
    /// User of that StarRocks
    #[arg(long, default_value = "root")]
    user: String,
    /// Password of that user
    #[arg(long, env = "STARROCKS_PASSWORD", default_value = "", hide_env_values = true)]
    password: String,
}

/// What a run came to.
struct Line {
    batch: &'static str,
    events: u64,
    rows: u64,
    loads: u64,
    rows_per_s: f64,
    cpu_s: f64,
    note: String,
}

/// Where runs load, and what they read.
struct Stands {
    origin: Origin,
    fe: String,
    query: Option<String>,
    sandbox: Option<Sandbox>,
}

/// What brings the orders of all runs.
enum Origin {
    /// Brokers; the mock ones live as long as this.
    Kafka { brokers: String, mock: Option<Mock> },
    /// Clients of the pipeline's own listener.
    Http,
}

/// What brings the orders of one run: the pipeline reads here.
enum Inlet {
    Topic { brokers: String, name: String },
    Listener(SocketAddr),
}

/// Brings the orders of one run.
enum Supplier {
    Producer(Producer),
    Clients(Clients),
}

impl Origin {
    /// A place of its own for a run into `table`.
    async fn inlet(&self, table: &str) -> Result<Inlet, Fault> {
        match self {
            Origin::Kafka { brokers, mock } => {
                let name = format!("{table}_{:08x}", rand::random::<u32>());
                match mock {
                    Some(mock) => mock
                        .create_topic(&name, PARTITIONS, 1)
                        .map_err(|error| Fault::retry("cannot make the demo's topic").caused_by(error))?,
                    None => producer::make_topic(brokers, &name).await?,
                }
                Ok(Inlet::Topic { brokers: brokers.clone(), name })
            }
            Origin::Http => {
                let free = clients::free_address();
                let cannot = |error| Fault::retry("cannot find a free port").caused_by(error);
                Ok(Inlet::Listener(free.map_err(cannot)?))
            }
        }
    }
}

impl Inlet {
    /// The pipeline's source, as its file says it.
    fn text(&self) -> String {
        match self {
            Inlet::Topic { brokers, name } => {
                let brokers: Vec<String> = brokers.split(',').map(quoted).collect();
                let brokers = brokers.join(", ");
                format!("[source.kafka]\nbrokers = [{brokers}]\ntopics = [{}]\n", quoted(name))
            }
            Inlet::Listener(address) => {
                format!("[source.http]\nlisten = {}\n", quoted(&address.to_string()))
            }
        }
    }

    /// Name of the pipeline that reads here and loads `table`; also its Kafka group.
    fn pipeline<'a>(&'a self, table: &'a str) -> &'a str {
        match self {
            Inlet::Topic { name, .. } => name,
            Inlet::Listener(_) => table,
        }
    }

    /// Starts to bring `events` orders.
    fn supplier(&self, runtime: &Runtime, events: u64) -> Result<Supplier, Fault> {
        match self {
            Inlet::Topic { brokers, name } => Producer::new(brokers, name, events).map(Supplier::Producer),
            Inlet::Listener(address) => {
                Ok(Supplier::Clients(Clients::start(runtime.handle(), *address, events)))
            }
        }
    }
}

impl Supplier {
    /// Goes on for a moment; `read` = what the pipeline has read so far.
    fn turn(&mut self, read: u64) -> Result<(), Fault> {
        match self {
            Supplier::Producer(producer) => producer.turn(read),
            Supplier::Clients(clients) => clients.turn(),
        }
    }

    fn finish(self) -> Result<(), Fault> {
        match self {
            Supplier::Producer(producer) => producer.finish(),
            Supplier::Clients(_) => Ok(()),
        }
    }
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

impl Demo {
    pub(super) fn execute(self) -> u8 {
        if let Some(named) = self.plugin.as_ref().filter(|named| !named.is_file()) {
            eprintln!("error: plugin {} is not there", named.display());
            return EXIT_USAGE;
        }
        if self.source == SourceKind::Http && self.brokers.is_some() {
            eprintln!("error: --brokers goes with --source kafka");
            return EXIT_USAGE;
        }
        let Some(plugin) = self.find_plugin() else {
            eprintln!(
                "error: the orders plugin is not built; run `cargo xtask demo`, or name it with --plugin"
            );
            return EXIT_USAGE;
        };
        match self.run(&plugin) {
            Ok(()) => EXIT_OK,
            Err(fault) => {
                super::say(&fault);
                EXIT_FAILED
            }
        }
    }

    fn find_plugin(&self) -> Option<PathBuf> {
        let built = || {
            let binary = std::env::current_exe().ok()?;
            Some(binary.parent()?.parent()?.join("plugins").join("orders.wasm"))
        };
        self.plugin.clone().or_else(built).filter(|path| path.is_file())
    }

    fn run(&self, plugin: &Path) -> Result<(), Fault> {
        let runtime =
            Runtime::new().map_err(|error| Fault::retry("cannot start the runtime").caused_by(error))?;
        let stands = runtime.block_on(self.stand())?;
        let within = match &stands.origin {
            Origin::Kafka { brokers, mock } => {
                if mock.is_none() {
                    let kafka = self.kafka_of(&stands, brokers, plugin)?;
                    kafka::reach(&kafka)
                        .map_err(|fault| fault.with_hint("is it running? check --brokers"))?;
                }
                println!("Kafka at {brokers}, StarRocks at {}", stands.fe);
                "brokers"
            }
            Origin::Http => {
                println!("orders by HTTP POST, StarRocks at {}", stands.fe);
                "HTTP clients"
            }
        };
        if stands.sandbox.is_some() {
            println!("(the sandbox and the {within} run in this process: CPU-s are those of all of them)");
        }
        let mut lines = Vec::new();
        for (place, (batch, rows)) in BATCHES.iter().enumerate() {
            let table = format!("orders_{place}");
            lines.push(self.measure(&runtime, &stands, plugin, &table, batch, *rows, self.events)?);
        }
        lines.push(self.measure(&runtime, &stands, plugin, "orders_single", "1 row", Some(1), SINGLES)?);
        print_table(&lines);
        Ok(())
    }

    async fn stand(&self) -> Result<Stands, Fault> {
        let cannot = |what: &str, error: String| Fault::retry(format!("cannot start {what}: {error}"));
        let origin = match (self.source, &self.brokers) {
            (SourceKind::Http, _) => Origin::Http,
            (SourceKind::Kafka, Some(brokers)) => Origin::Kafka { brokers: brokers.clone(), mock: None },
            (SourceKind::Kafka, None) => {
                let mock = Mock::new(1).map_err(|error| cannot("the mock brokers", error.to_string()))?;
                Origin::Kafka { brokers: mock.bootstrap_servers(), mock: Some(mock) }
            }
        };
        if let Some(fe) = &self.fe {
            let query = query_of(fe);
            return Ok(Stands { origin, fe: fe.clone(), query, sandbox: None });
        }
        // No compaction: every load stays a version, so that versions can be counted.
        let options = Options { keep: Keep::None, compaction: None, ..Options::default() };
        let sandbox = Sandbox::start(options).await;
        let sandbox = sandbox.map_err(|error| cannot("the sandbox", error.to_string()))?;
        let query = Some(format!("127.0.0.1:{}", sandbox.query_port()));
        Ok(Stands { origin, fe: sandbox.fe_url(), query, sandbox: Some(sandbox) })
    }

    /// The source that all runs have, but for its topic.
    fn kafka_of(&self, stands: &Stands, brokers: &str, plugin: &Path) -> Result<Kafka, Fault> {
        let inlet = Inlet::Topic { brokers: brokers.to_owned(), name: "orders".to_owned() };
        let plan = plan_of(&self.pipeline_text(stands, plugin, &inlet, "orders", None))?;
        let pipeline = plan.pipelines.first().ok_or_else(|| Fault::retry("no pipeline in the file"))?;
        match &pipeline.source {
            Source::Kafka(kafka) => Ok(kafka.clone()),
            Source::Postgres(_) | Source::Http(_) => Err(Fault::retry("the demo's file has another source")),
        }
    }

    fn pipeline_text(
        &self,
        stands: &Stands,
        plugin: &Path,
        inlet: &Inlet,
        table: &str,
        rows: Option<u64>,
    ) -> String {
        let batch = rows.map_or_else(String::new, |rows| format!("[batch]\nmax_rows = {rows}\n"));
        let query =
            stands.query.as_ref().map_or_else(String::new, |query| format!("query = {}\n", quoted(query)));
        format!(
            "[pipeline]\nname = {}\n[process]\nadmin = false\nshutdown_timeout = \"{}s\"\n{}[[transform]]\nplugin = {}\nconfig = {{ currency = \"EUR\" }}\n{batch}\
             [sink.starrocks]\nfe = [{}]\n{query}database = \"{DATABASE}\"\ntable = {}\nuser = {}\npassword = {}\n",
            quoted(inlet.pipeline(table)),
            DRAIN_PATIENCE.as_secs(),
            inlet.text(),
            quoted(&plugin.display().to_string()),
            quoted(&stands.fe),
            quoted(table),
            quoted(&self.user),
            quoted(&self.password),
        )
    }

    #[expect(clippy::too_many_arguments, reason = "one call site, which reads as a table")]
    fn measure(
        &self,
        runtime: &Runtime,
        stands: &Stands,
        plugin: &Path,
        table: &str,
        batch: &'static str,
        rows: Option<u64>,
        events: u64,
    ) -> Result<Line, Fault> {
        let inlet = runtime.block_on(stands.origin.inlet(table))?;
        let plan = plan_of(&self.pipeline_text(stands, plugin, &inlet, table, rows))?;
        let Some(pipeline) = plan.pipelines.first() else {
            return Err(Fault::retry("no pipeline in the file"));
        };
        runtime.block_on(make_table(&pipeline.sink, table))?;
        let (inner, shared) = super::run::start(&plan)?;
        let meter = shared.meter.pipeline(&pipeline.name);
        let stop = Stop::default();
        let thread = {
            let (pipeline, stop) = (Arc::clone(pipeline), stop.clone());
            std::thread::spawn(move || pipeline::run(&pipeline, 0, &shared, &stop))
        };
        // StarRocks' own words, whichever StarRocks it is.
        let refused = || {
            let waits = meter.health.waiting_for();
            waits.is_some_and(|(what, _)| what.to_lowercase().contains("too many versions"))
        };
        let watch = Watch { batch, events, meter: &meter, refused: &refused };
        let supplier = inlet.supplier(runtime, events)?;
        let outcome = watch.run(supplier, &|| thread.is_finished());
        let versions_full = refused();
        stop.request();
        let ended = thread.join().unwrap_or_else(|_panic| Err(Fault::retry("a pipeline's thread panicked")));
        // What was refused for its versions would not have been loaded, however long the drain.
        let ended = if versions_full { Ok(()) } else { ended };
        inner.shutdown_timeout(Duration::from_millis(100));
        let measured = match (ended, outcome) {
            (Err(fault), _) | (Ok(()), Err(fault)) => return Err(fault),
            (Ok(()), Ok(measured)) => measured,
        };
        let note = if versions_full { "refused: too many versions" } else { "" };
        Ok(Line { note: note.to_owned(), ..measured })
    }
}

/// Reads a pipeline's text.
fn plan_of(text: &str) -> Result<Plan, Fault> {
    let file = std::env::current_dir().unwrap_or_default().join("demo.toml");
    config::load_texts(&[(&file, text)], &Overrides::default()).map_err(|problems| {
        Fault::halt(problems.to_string(), "the demo's own file is wrong: check --brokers and --fe")
    })
}

/// A run under watch.
struct Watch<'a> {
    batch: &'static str,
    events: u64,
    meter: &'a PipelineMeter,
    refused: &'a dyn Fn() -> bool,
}

impl Watch<'_> {
    /// Brings orders until all are loaded or StarRocks refuses.
    fn run(&self, mut supplier: Supplier, ended: &dyn Fn() -> bool) -> Result<Line, Fault> {
        let bar = bar(self.batch, self.events);
        let mut progress = (0, Instant::now());
        let mut began: Option<(Instant, f64)> = None;
        loop {
            let read = self.meter.records_read.get();
            if read > 0 && began.is_none() {
                began = Some((Instant::now(), cpu_seconds()));
            }
            let out = self.meter.records_loaded.get() + self.meter.records_dropped.get();
            bar.set_position(out);
            if out > progress.0 {
                progress = (out, Instant::now());
            }
            if out >= self.events || (self.refused)() || ended() {
                break;
            }
            if progress.1.elapsed() > PATIENCE {
                return Err(Fault::halt(
                    format!("no progress for {} s: {read} read, {out} done", PATIENCE.as_secs()),
                    "look at the log with --log-level debug",
                ));
            }
            supplier.turn(read)?;
        }
        supplier.finish()?;
        bar.finish_and_clear();
        let (began, cpu_before) = began.unwrap_or_else(|| (Instant::now(), cpu_seconds()));
        let rows = self.meter.rows_loaded();
        Ok(Line {
            batch: self.batch,
            events: self.meter.records_read.get(),
            rows,
            loads: self.meter.loads(),
            rows_per_s: rows as f64 / began.elapsed().as_secs_f64().max(0.001),
            cpu_s: cpu_seconds() - cpu_before,
            note: String::new(),
        })
    }
}

fn bar(batch: &str, events: u64) -> ProgressBar {
    let bar = ProgressBar::new(events);
    let style = ProgressStyle::with_template("{prefix:>12} {wide_bar} {human_pos}/{human_len} {per_sec}");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar.set_prefix(batch.to_owned());
    bar
}

/// User and system time of this process so far, in seconds.
fn cpu_seconds() -> f64 {
    // utime and stime are the 14th and 15th field; the 2nd may hold blanks but ends with `)`.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    // Linux shows these in hundredths of a second on every architecture that we run on.
    ticks as f64 / 100.0
}

/// The query port beside a real FE: 9030 on its host.
fn query_of(fe: &str) -> Option<String> {
    let host = fe.split("://").nth(1)?.split(['/', ':']).next()?;
    let address = format!("{host}:9030");
    address.to_socket_addrs().ok().map(|_| address)
}

async fn make_table(sink: &config::model::StarRocks, table: &str) -> Result<(), Fault> {
    let mut query = Query::connect(sink).await?;
    query.execute(&format!("CREATE DATABASE IF NOT EXISTS {DATABASE}")).await?;
    query.execute(&format!("DROP TABLE IF EXISTS {DATABASE}.{table}")).await?;
    let statement = sample::CREATE_TABLE.replacen("TABLE orders", &format!("TABLE {DATABASE}.{table}"), 1);
    query.execute(&statement).await?;
    Ok(())
}

fn print_table(lines: &[Line]) {
    println!(
        "\n{:<12} {:>10} {:>10} {:>16} {:>12} {:>8}",
        "batch", "events", "rows", "loads = versions", "rows/s", "CPU-s"
    );
    for line in lines {
        println!(
            "{:<12} {:>10} {:>10} {:>16} {:>12.0} {:>8.1}  {}",
            line.batch, line.events, line.rows, line.loads, line.rows_per_s, line.cpu_s, line.note
        );
    }
    println!(
        "\nEach load is one transaction and one new version of the table; StarRocks refuses loads past 1000 versions."
    );
}
