//! StarRocks over Stream Load. The way of one load through the files here:
//!
//! [`deliver`] sends one batch until its outcome is known · [`client`] makes one attempt: FE, redirect, BE ·
//! `redirect` says where a redirect may lead · `transport` moves bytes and holds the body back until the
//! BE wants it · [`outcome`] turns an answer into an [`Outcome`](crate::sink::Outcome) · [`state`] reads
//! what a label's transaction came to · [`label`] names loads. Beside it, [`query`] speaks to the query
//! port (models, columns, versions), [`create_table`] writes the statement for a missing table,
//! `prepared` makes the body that is sent, by [`csv`] and [`compress`], and [`error_log`] finds refused rows.
//!
//! All requests go through `transport`, also those that a library client could make: there is then one
//! set of TLS roots, one connect time-out and one rule for where credentials may go.

pub mod client;
pub mod compress;
pub mod create_table;
pub mod csv;
pub mod deliver;
pub mod error_log;
pub mod label;
pub mod outcome;
pub mod query;
pub mod state;
pub mod two_phase;

mod address;
mod body;
mod frontends;
mod prepared;
mod redirect;
mod request;
mod transport;

#[cfg(test)]
mod bench;
#[cfg(test)]
mod formats_tests;
#[cfg(test)]
mod fuzzed;
#[cfg(test)]
mod sandbox_tests;
#[cfg(test)]
pub(crate) mod scripted;
#[cfg(test)]
mod tls_tests;
