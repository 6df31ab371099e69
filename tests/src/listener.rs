//! What tests of HTTP begin with: a free address, a sandbox with the table `shop.events`, and a pipeline between them.

use crate::{
    http::{Answer, Client},
    pipeline::{Http, Pipeline, Source},
    process::Tidemill,
    warehouse::Warehouse,
};
use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};
use tempfile::TempDir;
use tidemill_test_kafka::free_port;

/// A listener before the table `shop.events`.
pub struct Listener {
    /// Where the table is.
    pub warehouse: Warehouse,
    /// For pipeline files, logs and dead letters.
    pub folder: TempDir,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Listener {
    /// Before a Duplicate Key table.
    ///
    /// # Panics
    /// When something cannot be set up.
    #[must_use]
    pub fn new() -> Self {
        let listener = Self::without_table();
        listener.warehouse.duplicate_table("events");
        listener
    }

    /// Before a Primary Key table.
    ///
    /// # Panics
    /// When something cannot be set up.
    #[must_use]
    pub fn with_keys() -> Self {
        let listener = Self::without_table();
        listener.warehouse.primary_table("events");
        listener
    }

    fn without_table() -> Self {
        let port = free_port().expect("there is a free port");
        let folder = tempfile::tempdir().expect("a folder for the test");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Self { warehouse: Warehouse::start(), folder, address }
    }

    /// A pipeline with batches of this age.
    #[must_use]
    pub fn pipeline(&self, linger: &str) -> Pipeline {
        Pipeline {
            name: "events".to_owned(),
            source: Source::Http(Http { listen: self.address.to_string(), tokens: Vec::new() }),
            batch: format!("linger = {linger:?}"),
            fe: vec![self.warehouse.fe()],
            query: self.warehouse.query(),
            table: "events".to_owned(),
            ..Pipeline::default()
        }
    }

    /// Writes the pipeline's file.
    #[must_use]
    pub fn write(&self, pipeline: &Pipeline) -> PathBuf {
        pipeline.write(&self.folder)
    }

    /// Starts a process and waits until it listens.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn run(&self, pipeline: &Pipeline) -> Tidemill {
        let mut tidemill = Tidemill::run(&[&self.write(pipeline)]);
        tidemill.until_ready(30);
        tidemill
    }

    /// A new connection.
    ///
    /// # Panics
    /// When nobody listens.
    #[must_use]
    pub fn connect(&self) -> Client {
        Client::connect(self.address).expect("somebody listens")
    }

    /// Sends a request over a connection of its own and waits for the answer; `headers` are whole lines.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn post(&self, headers: &str, body: &str) -> Answer {
        self.connect().post("/events", headers, body.as_bytes()).expect("an answer")
    }

    /// Identifiers of the rows in the table.
    ///
    /// # Panics
    /// When one is there twice.
    #[must_use]
    pub fn ids(&self) -> BTreeSet<u64> {
        let ids = self.warehouse.ids("events");
        let different: BTreeSet<u64> = ids.iter().copied().collect();
        assert_eq!(different.len(), ids.len(), "a row is there twice");
        different
    }
}

impl Default for Listener {
    fn default() -> Self {
        Self::new()
    }
}
