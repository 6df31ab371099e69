//! Tidemill loads StarRocks from streams: sources → WebAssembly plugins → one shared batching stage →
//! Stream Load. `host/README.md` is the map; `pipeline` wires everything in the order in which data flows.

pub mod config;
pub mod fault;
pub mod position;
pub mod record;
pub mod sink;
pub mod budget;
pub mod ledger;
pub mod batch;
pub mod meter;
pub mod retry;
pub mod plugin;
pub mod buffers;
pub mod chain;
pub mod dead_letter;
pub mod delivery;
pub mod lane;
pub mod rows;
pub mod source;
pub mod pipeline;
pub mod admin;
pub mod cli;
