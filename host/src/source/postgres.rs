//! Postgres CDC: a snapshot of each table, then the changes of one logical replication slot.

pub mod catalog;
pub mod connect;
pub mod copy_text;
pub mod facts;
mod feed;
mod gather;
pub mod kind;
pub mod link;
pub mod lsn;
pub mod pgoutput;
mod position;
pub mod preflight;
mod progress;
mod pump;
pub mod quote;
pub mod row;
mod scan;
mod schema;
#[cfg(test)]
mod server_tests;
pub mod session;
pub mod setup;
pub mod snapshot;
pub mod table;
pub mod tls;
mod transport;
pub mod trouble;
pub mod value;
pub mod warehouse_table;
