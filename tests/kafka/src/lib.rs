//! A real Apache Kafka for tests and benchmarks: jars from Maven, one KRaft process on free ports of 127.0.0.1.
//!
//! `xtask` starts one broker for the whole run; tests start brokers of their own where they want to kill them.
//! The crate uses std alone, so that `cargo xtask` is built in seconds on a bare machine.

mod broker;
mod distribution;
mod fault;
mod patience;
mod probe;

pub use broker::{Broker, free_port};
pub use distribution::{Distribution, KAFKA_VERSION};
pub use fault::Fault;
pub use patience::{Late, wait_until};

/// Names the broker that a test run shares, as `host:port`. When it is absent the tests start one themselves.
pub const BROKER_VARIABLE: &str = "TIDEMILL_TEST_KAFKA";

/// Names the folder with Kafka's jars, so that tests can start brokers of their own.
pub const LIB_VARIABLE: &str = "TIDEMILL_TEST_KAFKA_LIB";
