//! Postgres CDC: a snapshot of each table, then the changes of one logical replication slot.

pub mod copy_text;
pub mod kind;
pub mod lsn;
mod progress;
mod pump;
pub mod pgoutput;
pub mod row;
pub mod table;
mod transport;
pub mod value;

mod scan;
