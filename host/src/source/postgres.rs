//! Postgres CDC: a snapshot of each table, then the changes of one logical replication slot.

pub mod catalog;
pub mod connect;
pub mod facts;
pub mod link;
pub mod lsn;
pub mod preflight;
pub mod quote;
#[cfg(test)]
mod server_tests;
pub mod session;
pub mod setup;
pub mod snapshot;
pub mod table;
pub mod tls;
pub mod trouble;
