//! Tidemill loads StarRocks from streams: sources → WebAssembly plugins → one shared batching stage →
//! Stream Load. `host/README.md` is the map; `pipeline` wires everything in the order in which data flows.

pub mod admin;
pub mod batch;
pub mod budget;
pub mod buffers;
pub mod chain;
pub mod cli;
mod clock;
pub mod config;
pub mod dead_letter;
pub mod delivery;
pub mod failpoint;
pub mod fault;
pub mod lane;
pub mod ledger;
pub mod meter;
pub mod pipeline;
mod planted;
pub mod plugin;
pub mod position;
pub mod record;
pub mod retry;
pub mod rows;
pub mod sink;
pub mod source;

#[cfg(test)]
mod test_corpus;
