//! Postgres CDC: a snapshot of each table, then the changes of one logical replication slot.

pub mod lsn;
pub mod table;
