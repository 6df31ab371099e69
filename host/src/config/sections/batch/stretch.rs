//! `[batch.stretch]`

use std::time::Duration;

use super::JSON_BODY_BYTES_BELOW;
use crate::config::kind::{Bytes, Count, Flag, Time};
use crate::config::schema::{Key, Presence, Section};

pub(in crate::config) static SECTION: Section = Section {
    path: &["batch", "stretch"],
    repeated: false,
    rare: false,
    doc: "How far batches grow while StarRocks cannot keep up with the versions that loads make: it refuses loads for \
          too many versions, shows them late, takes long for each, or a replica has many versions. Each sign doubles \
          `linger`, `max_rows` and `max_bytes` of [batch] for the table, up to the bounds here. With exactly_once all \
          tables of the pipeline are stretched together. A bound below the limit itself leaves that limit as it is.",
    keys: &[&ENABLED, &LINGER, &MAX_ROWS, &MAX_BYTES, &VERSIONS, &CALM],
    tables: &[],
};

pub(in crate::config) static ENABLED: Key<Flag> = Key {
    name: "enabled",
    kind: Flag,
    presence: Presence::Default("true"),
    doc: "`false`: batches never grow; loads that are refused are tried again all the same.",
};

pub(in crate::config) static LINGER: Key<Time> = Key {
    name: "linger",
    kind: Time { min: Duration::from_millis(1), max: Duration::from_secs(3600) },
    presence: Presence::Default("\"10s\""),
    doc: "Longest `linger` under pressure: how late rows may become then, and answers to HTTP requests.",
};

pub(in crate::config) static MAX_ROWS: Key<Count> = Key {
    name: "max_rows",
    kind: Count { min: 1, max: 1_000_000_000 },
    presence: Presence::Default("5_000_000"),
    doc: "Most rows of a batch under pressure.",
};

pub(in crate::config) static MAX_BYTES: Key<Bytes> = Key {
    name: "max_bytes",
    kind: Bytes { min: 1 << 10, below: JSON_BODY_BYTES_BELOW },
    presence: Presence::Default("\"90MiB\""),
    doc: "Most bytes of a batch under pressure; `budget` of [process] is a limit, too.",
};

pub(in crate::config) static VERSIONS: Key<Count> = Key {
    name: "versions",
    kind: Count { min: 2, max: 1_000_000 },
    presence: Presence::Default("500"),
    doc: "Versions of a replica from which on batches grow before StarRocks refuses any; they stay large as long as \
          there are half as many. Half of the BE's `tablet_max_versions` (1000) is a good value. They are read every \
          30 s over the query port, which takes the privilege OPERATE on SYSTEM; without it only the other signs \
          count.",
};

pub(in crate::config) static CALM: Key<Time> = Key {
    name: "calm",
    kind: Time { min: Duration::from_millis(100), max: Duration::from_secs(3600) },
    presence: Presence::Default("\"60s\""),
    doc: "After so long without a sign batches get smaller by a step, by a half or more, and after at most five steps they are as configured.",
};
