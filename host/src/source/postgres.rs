//! Postgres CDC: a snapshot of each table, then the changes of one logical replication slot.

pub mod copy_text;
pub mod kind;
pub mod lsn;
pub mod pgoutput;
pub mod row;
pub mod table;
pub mod value;
pub mod warehouse_table;

mod scan;
