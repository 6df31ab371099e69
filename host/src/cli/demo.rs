//! `tidemill demo`: what each batch size costs, with nothing installed.

use std::net::ToSocketAddrs as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer as _};
use tidemill_plugin_orders::sample;
use tidemill_sandbox::{Keep, Options, Sandbox};

use super::{EXIT_FAILED, EXIT_OK, EXIT_USAGE};
use crate::config::model::{Kafka, Plan, Source};
use crate::config::{self, Overrides};
use crate::delivery::Stop;
use crate::fault::Fault;
use crate::meter::PipelineMeter;
use crate::pipeline;
use crate::sink::starrocks::query::Query;
use crate::source::kafka;

/// Partitions of the demo's topics.
const PARTITIONS: i32 = 8;
/// Records that the producer may be ahead of the pipeline. librdkafka's mock cluster keeps 5 MiB a
/// partition and drops the oldest beyond that without a word: this is far below.
const AHEAD_MAX: u64 = 60_000;
/// How long a run may make no progress.
const PATIENCE: Duration = Duration::from_secs(60);
/// Rows of the runs that the first table of the README shows.
const BATCHES: [(&str, Option<u64>); 3] =
    [("1,000 rows", Some(1_000)), ("10,000 rows", Some(10_000)), ("default", None)];
/// Events of the run with batches of one row; it ends at the first refusal.
const SINGLES: u64 = 3_000;
const DATABASE: &str = "tidemill_demo";

#[derive(Debug, Args)]
pub(super) struct Demo {
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

/// Where a run reads and loads.
struct Stands {
    brokers: String,
    fe: String,
    query: Option<String>,
    sandbox: Option<Sandbox>,
    /// Keeps the in-process brokers alive.
    mock: Option<MockCluster<'static, DefaultProducerContext>>,
}

impl Demo {
    pub(super) fn execute(self) -> u8 {
        if let Some(named) = self.plugin.as_ref().filter(|named| !named.is_file()) {
            eprintln!("error: plugin {} is not there", named.display());
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
        let runtime = tokio::runtime::Runtime::new()
            .map_err(|error| Fault::retry("cannot start the runtime").caused_by(error))?;
        let stands = runtime.block_on(self.stand())?;
        if self.brokers.is_some() {
            let kafka = self.kafka_of(&stands, plugin)?;
            kafka::reach(&kafka).map_err(|fault| fault.with_hint("is it running? check --brokers"))?;
        }
        println!("Kafka at {}, StarRocks at {}", stands.brokers, stands.fe);
        if stands.sandbox.is_some() {
            println!("(the sandbox and the brokers run in this process: CPU-s are those of all of them)");
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
        let (brokers, mock) = match &self.brokers {
            Some(brokers) => (brokers.clone(), None),
            None => {
                let mock =
                    MockCluster::new(1).map_err(|error| cannot("the mock brokers", error.to_string()))?;
                (mock.bootstrap_servers(), Some(mock))
            }
        };
        if let Some(fe) = &self.fe {
            let query = query_of(fe);
            return Ok(Stands { brokers, fe: fe.clone(), query, sandbox: None, mock });
        }
        // No compaction: every load stays a version, so that versions can be counted.
        let options = Options { keep: Keep::None, compaction: None, ..Options::default() };
        let sandbox = Sandbox::start(options).await;
        let sandbox = sandbox.map_err(|error| cannot("the sandbox", error.to_string()))?;
        let query = Some(format!("127.0.0.1:{}", sandbox.query_port()));
        Ok(Stands { brokers, fe: sandbox.fe_url(), query, sandbox: Some(sandbox), mock })
    }

    /// The source that all runs have, but for its topic.
    fn kafka_of(&self, stands: &Stands, plugin: &Path) -> Result<Kafka, Fault> {
        let plan = plan_of(&self.pipeline_text(stands, plugin, "orders", "orders", None))?;
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
        topic: &str,
        table: &str,
        rows: Option<u64>,
    ) -> String {
        let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
        let brokers: Vec<String> = stands.brokers.split(',').map(quoted).collect();
        let batch = rows.map_or_else(String::new, |rows| format!("[batch]\nmax_rows = {rows}\n"));
        let query =
            stands.query.as_ref().map_or_else(String::new, |query| format!("query = {}\n", quoted(query)));
        format!(
            "[pipeline]\nname = {topic}\n[process]\nadmin = false\n\
             [source.kafka]\nbrokers = [{}]\ntopics = [{topic}]\n\
             [[transform]]\nplugin = {}\nconfig = {{ currency = \"EUR\" }}\n{batch}\
             [sink.starrocks]\nfe = [{}]\n{query}database = \"{DATABASE}\"\ntable = {}\nuser = {}\npassword = {}\n",
            brokers.join(", "),
            quoted(&plugin.display().to_string()),
            quoted(&stands.fe),
            quoted(table),
            quoted(&self.user),
            quoted(&self.password),
            topic = quoted(topic),
        )
    }

    #[expect(clippy::too_many_arguments, reason = "one call site, which reads as a table")]
    fn measure(
        &self,
        runtime: &tokio::runtime::Runtime,
        stands: &Stands,
        plugin: &Path,
        table: &str,
        batch: &'static str,
        rows: Option<u64>,
        events: u64,
    ) -> Result<Line, Fault> {
        let topic = format!("{table}_{:08x}", rand::random::<u32>());
        let plan = plan_of(&self.pipeline_text(stands, plugin, &topic, table, rows))?;
        let Some(pipeline) = plan.pipelines.first() else {
            return Err(Fault::retry("no pipeline in the file"));
        };
        runtime.block_on(make_table(&pipeline.sink, table))?;
        match &stands.mock {
            Some(mock) => mock
                .create_topic(&topic, PARTITIONS, 1)
                .map_err(|error| Fault::retry("cannot make the demo's topic").caused_by(error))?,
            None => runtime.block_on(make_topic(&stands.brokers, &topic))?,
        }
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
        let outcome = watch.run(&stands.brokers, &topic, &|| thread.is_finished());
        let versions_full = refused();
        stop.request();
        // After a refusal nothing would end the drain but its time-out: the run is over.
        let ended = if versions_full {
            Ok(())
        } else {
            thread.join().unwrap_or_else(|_| Err(Fault::retry("a thread panicked")))
        };
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
    /// Produces, paced by what the pipeline has read, until all is loaded or StarRocks refuses.
    fn run(&self, brokers: &str, topic: &str, ended: &dyn Fn() -> bool) -> Result<Line, Fault> {
        let cannot = |error: KafkaError| Fault::retry("cannot produce the demo's events").caused_by(error);
        let mut settings = ClientConfig::new();
        settings.set("bootstrap.servers", brokers).set("linger.ms", "20").set("batch.num.messages", "5000");
        let producer: BaseProducer = settings.create().map_err(cannot)?;
        let bar = bar(self.batch, self.events);
        let (mut sent, mut value) = (0, Vec::new());
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
                    format!("no progress for {} s: {sent} sent, {read} read, {out} done", PATIENCE.as_secs()),
                    "look at the log with --log-level debug",
                ));
            }
            let until = self.events.min(read + AHEAD_MAX);
            while sent < until {
                value.clear();
                sample::write_order(sent, &mut value);
                let partition = (sent % PARTITIONS as u64) as i32;
                let key = sent.to_string();
                let record = BaseRecord::to(topic).partition(partition).key(&key).payload(&value);
                match producer.send(record) {
                    Ok(()) => sent += 1,
                    Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => break,
                    Err((error, _)) => return Err(cannot(error)),
                }
            }
            producer.poll(Duration::from_millis(10));
        }
        producer.flush(Duration::from_secs(10)).map_err(cannot)?;
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

async fn make_topic(brokers: &str, topic: &str) -> Result<(), Fault> {
    let cannot = |error: KafkaError| {
        Fault::retry(format!("cannot make topic `{topic}` on {brokers}")).caused_by(error)
    };
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", brokers).create().map_err(cannot)?;
    let new = NewTopic::new(topic, PARTITIONS, TopicReplication::Fixed(1));
    let made = admin.create_topics([&new], &AdminOptions::new()).await.map_err(cannot)?;
    for one in made {
        one.map_err(|(_, code)| cannot(KafkaError::AdminOp(code)))?;
    }
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
