//! HTTP: records come by `POST /{path}`, and a request is answered when its rows are durable (delivery.md §5).
//!
//! Every request is a stay of its own in the ledger; its place in the request is a record's offset. The
//! listener's tasks read requests and hand chunks to the lanes; control is the thread that calls [`run`]: it
//! looks after lanes and health, and ends the listener.

use std::thread::JoinHandle;

use super::Parts;
use crate::config::model::Http;
use crate::fault::Fault;

mod answer;
mod auth;
mod body;
mod coding;
mod control;
mod feed;
#[cfg(test)]
mod fuzzed;
mod idempotency;
mod intake;
mod listener;
mod open_files;
mod paced;
mod records;
mod request;
mod tls;
mod voyage;

pub(crate) use feed::HttpFeed;

/// Whether requests are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// They are.
    Open,
    /// Only those go on that were taken.
    Draining,
    /// Nobody waits any more for what has become of them.
    Closed,
}

/// Checks that the TLS files can be used and the address can be taken, unless it is already.
///
/// # Errors
/// Halt, naming the address or the file.
pub async fn check(http: &Http) -> Result<(), Fault> {
    if let Some(settings) = &http.tls {
        tls::acceptor(settings)?;
    }
    listener::check(http.listen).await
}

/// Takes requests until told to stop. `spawn` starts a lane's thread on its feed.
///
/// # Errors
/// Whatever halted the pipeline, or a drain that was not done in time.
pub(crate) fn run<S>(http: Http, parts: Parts, spawn: S) -> Result<(), Fault>
where
    S: Fn(usize, HttpFeed) -> std::io::Result<JoinHandle<Result<(), Fault>>>,
{
    control::Control::start(http, parts, spawn)?.run()
}

#[cfg(test)]
mod tests;
