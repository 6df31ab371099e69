//! What most tests begin with: a topic, a table of the same name, and a pipeline from one to the other.

use crate::{
    kafka::{self, Kafka, Offsets, Record},
    pipeline::Pipeline,
    process::Tidemill,
    wait_until,
    warehouse::{self, Warehouse},
};
use std::{path::PathBuf, time::Duration};
use tempfile::TempDir;
use tidemill_sandbox::Options;

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

    /// What is in the table, judged against the identifiers `0..expected`.
    #[must_use]
    pub fn judge(&self, expected: u64) -> crate::oracle::Judgement {
        crate::oracle::judge(expected, self.warehouse.ids(&self.table))
    }
}
