//! A real PostgreSQL for tests, the demo and benchmarks: Debian's programs, a cluster of its own in a folder of its own,
//! on a free port of 127.0.0.1 and a Unix socket.
//!
//! Where we are root, the server runs as `postgres` or `nobody`, because it refuses root. Like its neighbour for Kafka the
//! crate uses std alone, so that `cargo xtask` is built in seconds on a bare machine.

mod account;
pub mod certificates;
mod client;
mod cluster;
mod processes;
mod programs;
mod server;
mod settings;
mod standby;

pub use client::{Client, Row};
pub use programs::{BIN_VARIABLE, Programs};
pub use server::{Server, Stop};
pub use settings::{Auth, Settings, Tls};
pub use tidemill_test_kafka::{Fault, Late, free_port, wait_until};
