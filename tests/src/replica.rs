//! What tests of PostgreSQL begin with: a database, a sandbox that is to follow it, and a pipeline from one to the other.

use crate::{
    comparison::Comparison,
    pipeline::{self, Pipeline, Source},
    postgres::Postgres,
    process::Tidemill,
    warehouse::Warehouse,
};
use std::path::PathBuf;
use tempfile::TempDir;
use tidemill_sandbox::Options;
use tidemill_test_postgres::Settings;

/// A database of PostgreSQL and the StarRocks that is to be its copy.
pub struct Replica {
    /// The source.
    pub postgres: Postgres,
    /// The copy.
    pub warehouse: Warehouse,
    /// For pipeline files, logs and dead letters.
    pub folder: TempDir,
}

impl Replica {
    /// On the shared server.
    ///
    /// # Panics
    /// When something cannot be set up.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self::of(Postgres::shared(name), Options::default())
    }

    /// On a server of the test's own, to stop, kill and start again.
    ///
    /// # Panics
    /// When something cannot be set up.
    #[must_use]
    pub fn own(name: &str, settings: &Settings) -> Self {
        Self::of(Postgres::own(name, settings), Options::default())
    }

    /// Of a given database, with a sandbox of these settings.
    ///
    /// # Panics
    /// When something cannot be set up.
    #[must_use]
    pub fn of(postgres: Postgres, options: Options) -> Self {
        let warehouse = Warehouse::with(options);
        Self { postgres, warehouse, folder: tempfile::tempdir().expect("a folder for the test") }
    }

    /// Name of the pipeline: that of the database, which no other test has.
    #[must_use]
    pub fn name(&self) -> &str {
        self.postgres.database()
    }

    /// Name of the slot and the publication that a pipeline of this name uses unless it is told another.
    #[must_use]
    pub fn slot(&self) -> String {
        format!("tidemill_{}", self.name())
    }

    /// A pipeline that copies the schema `public` as the superuser over TCP, makes the tables that are missing, and loads
    /// batches of a fifth of a second.
    #[must_use]
    pub fn pipeline(&self) -> Pipeline {
        Pipeline {
            name: self.name().to_owned(),
            source: Source::Postgres(pipeline::Postgres::of(&self.postgres)),
            batch: "linger = \"200ms\"".to_owned(),
            fe: vec![self.warehouse.fe()],
            query: self.warehouse.query(),
            sink_more: "create_tables = true".to_owned(),
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

    /// Waits until these tables of `public` equal those of the same name in `shop`, row for row. The source must be at rest.
    ///
    /// # Panics
    /// When one does not within `seconds`.
    pub fn until_equal(&self, seconds: u64, tables: &[&str]) {
        for table in tables {
            let (source, destination) = (format!("public.{table}"), format!("shop.{table}"));
            Comparison::of(&self.postgres, &source, &destination).until_equal(
                seconds,
                &self.postgres,
                &self.warehouse,
            );
        }
    }
}
