//! `[[transform]]`

use std::time::Duration;

use crate::config::kind::{Bytes, Count, FilePath, Json, OneOf, Time};
use crate::config::model::Wasi;
use crate::config::schema::{Key, Presence, Section};

pub(in crate::config) static SECTION: Section = Section {
    path: &["transform"],
    repeated: true,
    rare: false,
    doc: "A plugin: a WebAssembly component that drops, rewrites or routes records. Several are called \
          one behind the other, in the order of the file. Without any, values are loaded as they come.",
    keys: &[
        &PLUGIN,
        &CONFIG,
        &WASI,
        &MEMORY,
        &TIMEOUT,
        &MAX_OUTPUT,
        &LOG_LINES_PER_SECOND,
        &FAILURES_IN_A_ROW,
    ],
    tables: &[],
};

pub(in crate::config) static PLUGIN: Key<FilePath> = Key {
    name: "plugin",
    kind: FilePath { expected: "the path of a component, relative to this file", must_exist: false },
    presence: Presence::Required("\"../target/plugins/passthrough.wasm\""),
    doc: "The component's file, relative to the pipeline file.",
};

pub(in crate::config) static CONFIG: Key<Json> = Key {
    name: "config",
    kind: Json,
    presence: Presence::Default("{}"),
    doc: "Any TOML value; the plugin gets it as JSON, with dates as strings. Nothing in it is substituted.",
};

pub(in crate::config) static WASI: Key<OneOf<Wasi>> = Key {
    name: "wasi",
    kind: OneOf { words: &[("none", Wasi::None), ("minimal", Wasi::Minimal)], refused: &[] },
    presence: Presence::Default("\"none\""),
    doc: "What is granted beyond logging. `none`: a plugin is a function of its input, and a call of the \
          system traps. `minimal`: clocks, random numbers and a stdio that goes nowhere, for languages \
          whose runtime needs them.",
};

/// What 32-bit linear memory can address.
const WASM32_BYTES: u64 = 1 << 32;

pub(in crate::config) static MEMORY: Key<Bytes> = Key {
    name: "memory",
    kind: Bytes { min: 1 << 20, below: WASM32_BYTES },
    presence: Presence::Default("\"64MiB\""),
    doc: "Linear memory of one instance; there is one instance per lane.",
};

pub(in crate::config) static TIMEOUT: Key<Time> = Key {
    name: "timeout",
    kind: Time { min: Duration::from_millis(10), max: Duration::from_secs(3600) },
    presence: Presence::Default("\"10s\""),
    doc: "Time that one call may take, measured in steps of 10 ms. A call gets a whole chunk of records.",
};

pub(in crate::config) static MAX_OUTPUT: Key<Bytes> = Key {
    name: "max_output",
    kind: Bytes { min: 1 << 10, below: WASM32_BYTES },
    presence: Presence::Default("\"64MiB\""),
    doc: "Bytes that one call may return.",
};

pub(in crate::config) static LOG_LINES_PER_SECOND: Key<Count> = Key {
    name: "log_lines_per_second",
    kind: Count { min: 0, max: 1_000_000 },
    presence: Presence::Default("100"),
    doc: "Lines that the plugin may log a second; what is more is counted and left out.",
};

pub(in crate::config) static FAILURES_IN_A_ROW: Key<Count> = Key {
    name: "failures_in_a_row",
    kind: Count { min: 1, max: 1_000_000_000 },
    presence: Presence::Default("100"),
    doc: "Records on which the plugin may fail one after the other until the pipeline halts: a record \
          can be broken, but so many at once mean that the plugin is.",
};
