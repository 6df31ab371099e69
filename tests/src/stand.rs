//! What most tests begin with: a topic, a table of the same name, and a pipeline from one to the other.

use crate::{
    chance,
    kafka::{self, Kafka, Offsets, Record},
    machine,
    oracle::{self, Judgement},
    pipeline::{Pipeline, transform},
    process::Tidemill,
    wait_until,
    warehouse::{self, Warehouse},
};
use rand::RngExt as _;
use std::{ops::Range, path::PathBuf, time::Duration};
use tempfile::TempDir;
use tidemill_sandbox::Options;

/// Compaction that keeps up with many small loads, or epochs.
const COMPACTED_EVERY: Duration = Duration::from_secs(1);
/// The longest life, in milliseconds, of a process that is killed in the midst of its epochs: a few of them.
const LIFE_MS_MAX: u64 = 900;
/// Where records go by their field `kind`, `click` or `view`.
const ROUTED: [&str; 2] = ["clicks", "views"];

/// The key model of the stand's table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Model {
    /// Rows are only added.
    Duplicate,
    /// Upserts and deletes.
    Primary,
}

/// A topic, a sandbox with one table, and a folder for files.
pub struct Stand {
    /// Where the topic is.
    pub kafka: Kafka,
    /// Where the table is.
    pub warehouse: Warehouse,
    /// For pipeline files, logs and dead letters.
    pub folder: TempDir,
    /// Name of the topic, of the pipeline and so of the group: unlike that of any other run.
    pub name: String,
    /// Name of the table in `shop`.
    pub table: String,
}

impl Stand {
    /// On the shared broker.
    ///
    /// # Panics
    /// When something cannot be set up.
    #[must_use]
    pub fn new(name: &str, partitions: i32, model: Model) -> Self {
        Self::on(kafka::shared(), name, partitions, model, Options::default())
    }

    /// On a given broker, with a sandbox of these settings.
    ///
    /// # Panics
    /// When something cannot be set up.
    #[must_use]
    pub fn on(kafka: Kafka, name: &str, partitions: i32, model: Model, options: Options) -> Self {
        let warehouse = Warehouse::with(options);
        match model {
            Model::Duplicate => warehouse.duplicate_table(name),
            Model::Primary => warehouse.primary_table(name),
        }
        let unique = format!("{name}-{:08x}", rand::random::<u32>());
        kafka.create_topic(&unique, partitions);
        Self {
            kafka,
            warehouse,
            folder: tempfile::tempdir().expect("a folder for the test"),
            name: unique,
            table: name.to_owned(),
        }
    }

    /// On a given broker, with a compaction that keeps up with many small loads.
    ///
    /// # Panics
    /// When something cannot be set up.
    #[must_use]
    pub fn compacting(kafka: Kafka, name: &str, partitions: i32, model: Model) -> Self {
        let options = Options { compaction: Some(COMPACTED_EVERY), ..Options::default() };
        Self::on(kafka, name, partitions, model, options)
    }

    /// A pipeline from the topic to the table, with batches of half a second.
    #[must_use]
    pub fn pipeline(&self) -> Pipeline {
        Pipeline {
            name: self.name.clone(),
            brokers: self.kafka.address.clone(),
            topics: vec![self.name.clone()],
            batch: "linger = \"500ms\"".to_owned(),
            fe: vec![self.warehouse.fe()],
            query: self.warehouse.query(),
            table: self.table.clone(),
            ..Pipeline::default()
        }
    }

    /// Has the pipeline load records into the tables `clicks` and `views`, which are made, by their field `kind`: `click` or
    /// `view`.
    pub fn routed(&self, pipeline: &mut Pipeline) {
        ROUTED.iter().for_each(|table| self.warehouse.duplicate_table(table));
        pipeline.transforms = transform(
            &machine::plugin("route"),
            r#"{ field = "kind", tables = { click = "clicks", view = "views" } }"#,
        );
        pipeline.sink_more = format!("tables = {ROUTED:?}");
    }

    /// Writes the pipeline's file and runs it.
    #[must_use]
    pub fn run(&self, pipeline: &Pipeline) -> Tidemill {
        Tidemill::run(&[&self.write(pipeline)])
    }

    /// Writes the pipeline's file.
    #[must_use]
    pub fn write(&self, pipeline: &Pipeline) -> PathBuf {
        pipeline.write(&self.folder)
    }

    /// Produces the rows of these identifiers, without keys.
    pub fn produce(&self, ids: impl IntoIterator<Item = u64>) {
        self.kafka.produce(&self.name, ids.into_iter().map(|id| Record::of(warehouse::row(id))));
    }

    /// How many records the group has committed.
    #[must_use]
    pub fn committed(&self) -> u64 {
        self.offsets().sum()
    }

    /// Follows what the group commits.
    #[must_use]
    pub fn offsets(&self) -> Offsets {
        self.kafka.offsets(&self.name, &self.name)
    }

    /// Waits until the group has committed this many records.
    ///
    /// # Panics
    /// When it has not within `seconds`.
    pub fn until_released(&self, seconds: u64, records: u64) {
        let offsets = self.offsets();
        let mut last = 0;
        let outcome = wait_until(Duration::from_secs(seconds), || {
            last = offsets.sum();
            (last >= records).then_some(())
        });
        outcome.unwrap_or_else(|late| panic!("{last} of {records} records released: {late}"));
    }

    /// Kills processes of an exactly_once pipeline in the midst of their epochs, one after the other. Each finds `each`
    /// records more, which `produce` makes, and lives for a random while from its first release on. Returns how many
    /// records there are.
    ///
    /// # Panics
    /// When a process releases nothing, or everything before it is killed: that would show nothing.
    #[must_use]
    pub fn killed_in_epochs(
        &self,
        pipeline: &Pipeline,
        kills: u32,
        each: u64,
        produce: impl Fn(Range<u64>),
    ) -> u64 {
        let mut random = chance::seeded();
        let offsets = self.offsets();
        let mut sent = 0;
        for kill in 1..=kills {
            produce(sent..sent + each);
            sent += each;
            let before = offsets.sum();
            let mut tidemill = self.run(pipeline);
            // What the one before left open in Kafka is waited for first.
            self.until_released(60, before + 1);
            let life = Duration::from_millis(random.random_range(0..LIFE_MS_MAX));
            let _ = wait_until(life, || (offsets.sum() >= sent).then_some(()));
            assert!(offsets.sum() < sent, "kill {kill} of {kills} hits a process that is loading");
            tidemill.kill();
        }
        sent
    }

    /// What is in the table, judged against the identifiers `0..expected`.
    #[must_use]
    pub fn judge(&self, expected: u64) -> Judgement {
        oracle::judge(expected, self.warehouse.ids(&self.table))
    }

    /// What is in the tables that a [routed](Self::routed) pipeline loads, all together, judged in the same way.
    #[must_use]
    pub fn judge_routed(&self, expected: u64) -> Judgement {
        oracle::judge(expected, ROUTED.iter().flat_map(|table| self.warehouse.ids(table)))
    }
}
