//! Postgres CDC: a snapshot of each table, then the changes of one logical replication slot.

mod begin;
pub mod catalog;
pub mod connect;
mod control;
mod copy;
pub mod copy_data;
pub mod copy_text;
mod destination;
pub mod facts;
mod feed;
mod gather;
mod identity;
pub mod kind;
mod leadership;
pub mod link;
pub mod lsn;
mod newcomers;
pub mod pgoutput;
mod position;
pub mod preflight;
mod prepare;
mod progress;
mod pump;
pub mod quote;
mod read_back;
mod resync;
mod roster;
pub mod row;
mod scan;
mod schema;
#[cfg(test)]
mod server_tests;
pub mod session;
pub mod setup;
mod shape;
pub mod snapshot;
mod snapshot_phase;
mod survey;
pub mod table;
pub mod tls;
mod transport;
pub mod trouble;
pub mod value;
pub mod warehouse_table;
mod watch;

use crate::fault::Fault;
use crate::position::Stay;
use crate::record::Columns;
use crate::source::{Fed, Feed};

pub(crate) use control::{Ended, Wiring, run};
pub(crate) use prepare::{Prepared, Round, prepare};
pub(crate) use resync::resync;
pub(crate) use survey::Survey;

/// A lane's input: its part of the copy, or the stream.
pub(crate) enum PostgresFeed {
    /// The copy.
    Copy(Box<copy::CopyFeed>),
    /// The stream.
    Stream(Box<feed::StreamFeed>),
}

impl Feed for PostgresFeed {
    fn next(&mut self, into: &mut Columns) -> Result<Fed, Fault> {
        match self {
            PostgresFeed::Copy(feed) => feed.next(into),
            PostgresFeed::Stream(feed) => feed.next(into),
        }
    }

    fn owns(&mut self, stay: &Stay) -> bool {
        match self {
            PostgresFeed::Copy(feed) => feed.owns(stay),
            PostgresFeed::Stream(feed) => feed.owns(stay),
        }
    }
}
