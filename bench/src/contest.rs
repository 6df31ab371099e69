//! The contestants, and one run of each.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use crate::orders;
use crate::proc::used;
use crate::stand::{self, Run, Stand};

/// Tables of the routing check.
pub(crate) const TABLES: usize = 100;

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
    /// The same with exactly_once.
    Exactly(&'static str),
}

/// What a pipeline promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    AtLeastOnce,
    ExactlyOnce,
}

impl Delivery {
    /// As it stands in a file.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Delivery::AtLeastOnce => "at_least_once",
            Delivery::ExactlyOnce => "exactly_once",
        }
    }
}

/// One contestant with one batch setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Contestant {
    pub(crate) name: &'static str,
    pub(crate) batch: Batch,
    kind: Kind,
}

/// All of them, in the order in which they run.
pub(crate) const CONTESTANTS: [Contestant; 11] = [
    Contestant { name: "limit: read, throw away", batch: SMALL, kind: Kind::Loop("read") },
    Contestant { name: "native loop, no transform", batch: SMALL, kind: Kind::Loop("copy") },
    Contestant { name: "native loop, orders", batch: SMALL, kind: Kind::Loop("orders") },
    Contestant { name: "tidemill, no plugin", batch: SMALL, kind: Kind::Tidemill(None) },
    Contestant { name: "tidemill, passthrough", batch: SMALL, kind: Kind::Tidemill(Some("passthrough")) },
    Contestant { name: "tidemill, orders", batch: SMALL, kind: Kind::Tidemill(Some("orders")) },
    Contestant { name: "native loop, orders", batch: DEFAULT, kind: Kind::Loop("orders") },
    Contestant { name: "tidemill, passthrough", batch: DEFAULT, kind: Kind::Tidemill(Some("passthrough")) },
    Contestant { name: "tidemill, orders", batch: DEFAULT, kind: Kind::Tidemill(Some("orders")) },
    Contestant {
        name: "tidemill, passthrough, exactly_once",
        batch: DEFAULT,
        kind: Kind::Exactly("passthrough"),
    },
    Contestant { name: "tidemill, orders, exactly_once", batch: DEFAULT, kind: Kind::Exactly("orders") },
];

/// All runs of one contestant.
#[derive(Debug, Clone)]
pub(crate) struct Results {
    pub(crate) contestant: Contestant,
    pub(crate) runs: Vec<Run>,
}

/// Kafka with the topic, and a stand to load into.
pub(crate) struct Contest {
    brokers: String,
    topic: String,
    records: u64,
    kept: u64,
    stand: Stand,
}

impl Contest {
    pub(crate) fn prepare(records: u64) -> Result<Contest, String> {
        let brokers = stand::variable("TIDEMILL_TEST_KAFKA")?;
        let topic = stand::unique("bench-orders");
        eprintln!("filling topic {topic} with {records} orders");
        let kept = orders::fill(&brokers, &topic, orders::PARTITIONS, records)?;
        let stand = Stand::start(&tables())?;
        Ok(Contest { brokers, topic, records, kept, stand })
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
        let before = self.stand.stats()?;
        let run = match contestant.kind {
            Kind::Loop(work) => self.bare_loop(work, contestant.batch)?,
            Kind::Tidemill(plugin) => self.tidemill(&self.topic, plugin, contestant.batch, self.records)?,
            Kind::Exactly(plugin) => {
                let pipeline =
                    Pipeline { delivery: Delivery::ExactlyOnce, ..self.usual(plugin, contestant.batch) };
                self.measure(&self.topic, &pipeline, self.records)?
            }
        };
        let after = self.stand.stats()?;
        let (loads, rows) = (after.0 - before.0, after.1 - before.1);
        let expected = match contestant.kind {
            Kind::Loop("read") => 0,
            Kind::Loop("orders") | Kind::Tidemill(Some("orders")) | Kind::Exactly("orders") => self.kept,
            Kind::Loop(_) | Kind::Tidemill(_) | Kind::Exactly(_) => self.records,
        };
        if rows != expected {
            return Err(format!("{}: {rows} rows arrived, expected {expected}", contestant.name));
        }
        Ok(Run { loads, rows, ..run })
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
                self.stand.be(),
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

    /// One of the plugins with its usual configuration.
    pub(crate) fn usual<'a>(&self, plugin: &'a str, batch: Batch) -> Pipeline<'a> {
        let config = if plugin == "orders" { "currency = \"EUR\"" } else { "" };
        Pipeline { plugin: Some((plugin, config)), batch, delivery: Delivery::AtLeastOnce }
    }

    /// Runs Tidemill over a topic with one of the plugins and its usual configuration.
    pub(crate) fn tidemill(
        &self,
        topic: &str,
        plugin: Option<&str>,
        batch: Batch,
        records: u64,
    ) -> Result<Run, String> {
        let bare = Pipeline { plugin: None, batch, delivery: Delivery::AtLeastOnce };
        self.measure(topic, &plugin.map_or(bare, |plugin| self.usual(plugin, batch)), records)
    }

    /// Runs a pipeline until all of its records are through.
    pub(crate) fn measure(&self, topic: &str, pipeline: &Pipeline<'_>, records: u64) -> Result<Run, String> {
        let name = stand::unique("bench");
        self.stand.measure(&name, &self.pipeline(&name, topic, pipeline), records)
    }

    /// Starts Tidemill; returns it with the address of its admin endpoint.
    pub(crate) fn start(&self, topic: &str, pipeline: &Pipeline<'_>) -> Result<(Child, String), String> {
        let name = stand::unique("bench");
        self.stand.run(&name, &self.pipeline(&name, topic, pipeline))
    }

    /// Rows that can be seen in all tables so far.
    pub(crate) fn rows(&self) -> Result<u64, String> {
        Ok(self.stand.stats()?.1)
    }

    /// The text of `/metrics`, if the process answers.
    pub(crate) fn metrics(&self, admin: &str) -> Option<String> {
        self.stand.metrics(admin)
    }

    fn pipeline(&self, name: &str, topic: &str, pipeline: &Pipeline<'_>) -> String {
        let Pipeline { plugin, batch, delivery } = pipeline;
        let transform = plugin.map_or_else(String::new, |(plugin, config)| stand::transform(plugin, config));
        // A plugin that routes names the tables itself.
        let table =
            if plugin.is_some_and(|(plugin, _)| plugin == "route") { "" } else { "table = \"orders\"\n" };
        format!(
            "[pipeline]\nname = \"{name}\"\ndelivery = \"{}\"\n[source.kafka]\nbrokers = [\"{}\"]\ntopics = [\"{}\"]\n\
             {transform}[batch]\nmax_rows = {}\nmax_bytes = \"{}B\"\nlinger = \"1s\"\n\
             [sink.starrocks]\nfe = [\"{}\"]\ndatabase = \"bench\"\n{table}user = \"root\"\n\
             table_model = \"duplicate\"\n",
            delivery.name(),
            self.brokers,
            topic,
            batch.rows,
            batch.bytes,
            self.stand.fe()
        )
    }
}

/// What is run, over a topic of the contest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pipeline<'a> {
    /// A plugin and its configuration.
    pub(crate) plugin: Option<(&'a str, &'a str)>,
    pub(crate) batch: Batch,
    pub(crate) delivery: Delivery,
}

/// The statements that make the tables which records are loaded into.
fn tables() -> Vec<String> {
    let orders =
        tidemill_plugin_orders::sample::CREATE_TABLE.replacen("TABLE orders", "TABLE bench.orders", 1);
    let routed = (0..TABLES).map(|table| {
        format!(
            "CREATE TABLE bench.t{table} (order_id BIGINT NOT NULL, kind VARCHAR(16), note VARCHAR(256)) \
             DUPLICATE KEY (order_id) DISTRIBUTED BY HASH (order_id) BUCKETS 1"
        )
    });
    std::iter::once(orders).chain(routed).collect()
}
