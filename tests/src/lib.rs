//! What the end-to-end tests stand on: a real Kafka, the sandbox in the place of StarRocks, the real binary as a child
//! process, and an oracle that knows which rows must be there.
//!
//! The tests themselves are `tests/suite`: one binary, one module a subject. They run by `cargo xtask test`, which
//! starts the Kafka that they share, and also by `cargo test -p tidemill-tests`, where they start it themselves.

pub mod acl;
pub mod chance;
pub mod chaos;
pub mod comparison;
pub mod http;
pub mod judge;
pub mod kafka;
pub mod limit;
pub mod listener;
pub mod machine;
pub mod metrics;
pub mod oracle;
pub mod pipeline;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod replica;
pub mod stand;
pub mod warehouse;
pub mod workload;

pub use tidemill_test_kafka::wait_until;
