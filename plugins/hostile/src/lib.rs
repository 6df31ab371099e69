//! A plugin that misbehaves on request, to test that the host holds its limits.
//!
//! A record whose value contains `#hostile:<name>` asks for the misdeed of that name (see [`Misdeed`]); of several in a
//! batch the first counts, and a name that does not exist counts as none. Batches without a mark are kept as they are, so that a host that
//! isolates the record can be seen to load its neighbours. Two settings misbehave without a mark:
//!
//! ```toml
//! config = { always = "spin" }        # in every batch
//! config = { configure = "trap" }     # when the plugin is configured
//! ```
//!
//! It is built on the bare bindings and not on the SDK's rows, which could not be brought to do any of this.

#[cfg(target_family = "wasm")]
mod component;
mod misdeed;

pub use misdeed::{Misdeed, marked};

use serde::Deserialize;

/// The plugin's part of the pipeline's file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The misdeed of every batch.
    #[serde(default)]
    pub always: Option<Misdeed>,
    /// The misdeed of the configuration: one that needs no batch, or `fatal` for an error.
    #[serde(default)]
    pub configure: Option<Misdeed>,
    /// The tables to declare. `table_beyond` points behind the last of them.
    #[serde(default)]
    pub tables: Vec<String>,
}
