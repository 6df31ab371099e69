//! WebAssembly plugins: what they may use, how they are called, and what happens when they fail.
//!
//! [`Engine`] compiles a component and refuses what is no transform; [`Guest`] is one running instance, owned by
//! one lane; [`process_isolated`] is the policy around a call: a record that makes the plugin fail is found by
//! halving and becomes a reject, its neighbours are loaded.

mod cache;
mod clock;
mod engine;
mod excerpt;
#[cfg(test)]
mod fuzzed;
mod guest;
mod inspect;
mod instance;
mod isolate;
mod limits;
mod log;
mod merge;
mod refusal;
mod stats;
mod validate;
mod wasi;
mod wit;

pub use engine::{CacheState, Descriptor, Engine, Plugin, Wants};
pub use guest::{CallError, Guest};
pub use inspect::{Inspection, check, inspect};
pub use isolate::process_isolated;
pub use merge::TABLE_UNROUTED;
pub use stats::{Counter, Stats};

#[cfg(test)]
mod tests;
