//! An embedded stand-in for a StarRocks cluster, as a client sees it.
//!
//! It speaks Stream Load and the transaction interface over HTTP (an FE port that redirects and a BE
//! port that loads), and the MySQL protocol on a query port. It keeps labels, transactions and table
//! versions the way StarRocks does, stores rows in SQLite, and has switches for the faults that a
//! loader must survive. What it answers, and what it leaves out, is in `sandbox/README.md`.
//!
//! ```no_run
//! # async fn example() -> Result<(), tidemill_sandbox::SandboxError> {
//! use tidemill_sandbox::{Options, Sandbox};
//! let sandbox = Sandbox::start(Options::default()).await?;
//! sandbox.execute("CREATE DATABASE shop")?;
//! sandbox.execute("CREATE TABLE shop.orders (id BIGINT NOT NULL, note VARCHAR(20)) PRIMARY KEY(id)")?;
//! println!("{}", sandbox.banner());
//! sandbox.stop().await;
//! # Ok(()) }
//! ```

mod catalog;
mod cluster;
mod column;
mod error;
mod fault;
mod http;
mod ingest;
mod json_token;
mod options;
mod query_port;
mod sandbox;
mod schema_change;
mod sql;
mod staged;
mod store;
mod transaction;
mod version;

pub use crate::catalog::KeyModel;
pub use crate::cluster::{LoadRecord, TableStats};
pub use crate::error::{SandboxError, SqlError, SqlErrorKind};
pub use crate::fault::{
    AnswerFault, ClientFate, ExistingLabel, Fault, FaultKind, FaultReport, Hop, LabelForm,
};
pub use crate::options::{Keep, Options, VersionLimits};
pub use crate::sandbox::Sandbox;
pub use crate::transaction::TransactionState;
