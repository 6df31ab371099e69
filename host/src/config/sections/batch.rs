//! `[batch]`

use std::time::Duration;

use crate::config::kind::{Bytes, Count, Time};
use crate::config::schema::{Key, Presence, Section};

pub(in crate::config) mod stretch;

pub(in crate::config) static SECTION: Section = Section {
    path: &["batch"],
    repeated: false,
    rare: false,
    doc: "When a batch is cut: at the first limit that is reached. Limits are per table. Every batch is \
          one load, and every load one more version on each tablet that it touches, so larger batches \
          are what keeps StarRocks fast.",
    keys: &[&MAX_ROWS, &MAX_BYTES, &LINGER],
    tables: &[&stretch::SECTION],
};

pub(in crate::config) static MAX_ROWS: Key<Count> = Key {
    name: "max_rows",
    kind: Count { min: 1, max: 1_000_000_000 },
    presence: Presence::Default("500_000"),
    doc: "Rows of a batch.",
};

/// StarRocks refuses larger JSON bodies.
pub(super) const JSON_BODY_BYTES_BELOW: u64 = 100_000_000;

pub(in crate::config) static MAX_BYTES: Key<Bytes> = Key {
    name: "max_bytes",
    kind: Bytes { min: 1 << 10, below: JSON_BODY_BYTES_BELOW },
    presence: Presence::Default("\"64MiB\""),
    doc: "Bytes of a batch. StarRocks takes at most 100 MB of JSON in one load; a single row that is \
          larger than this limit becomes a dead letter.",
};

pub(in crate::config) static LINGER: Key<Time> = Key {
    name: "linger",
    kind: Time { min: Duration::from_millis(1), max: Duration::from_secs(3600) },
    presence: Presence::Default("\"1s\""),
    doc: "Time since the first row of a batch: how long a quiet stream waits for more rows.",
};
