//! `[process]`

use std::time::Duration;

use crate::config::kind::{Bytes, Count, FilePath, Flag, Listen, Time};
use crate::config::schema::{Key, Presence, Section};

pub(in crate::config) static SECTION: Section = Section {
    path: &["process"],
    repeated: false,
    rare: false,
    doc: "What all pipelines of the process share. Of several files, one may have this table. Each of \
          `budget`, `lanes`, `admin`, `cache_dir` and `shutdown_timeout` is also a flag of `tidemill run`, \
          which wins over the file.",
    keys: &[&BUDGET, &LANES, &ADMIN, &ADMIN_PUBLIC, &CACHE_DIR, &SHUTDOWN_TIMEOUT, &STALL_AFTER],
    tables: &[],
};

pub(in crate::config) static BUDGET: Key<Bytes> = Key {
    name: "budget",
    kind: Bytes { min: 1 << 20, below: 1 << 40 },
    presence: Presence::Default("\"144MiB\""),
    doc: "Bytes in flight in the whole process, from reading a record until its batch is durable. When it \
          is used up, reading waits. Each pipeline can always hold one chunk and one batch.",
};

pub(in crate::config) static LANES: Key<Count> = Key {
    name: "lanes",
    kind: Count { min: 1, max: 64 },
    presence: Presence::Optional {
        example: "2",
        without: "as many as there are cores, at most 12 and at most the partitions",
    },
    doc: "Threads a pipeline that read records and call plugins.",
};

pub(in crate::config) static ADMIN: Key<Listen> = Key {
    name: "admin",
    kind: Listen,
    presence: Presence::Default("\"127.0.0.1:9464\""),
    doc: "Where `/health`, `/ready` and `/metrics` listen, or `false` for nowhere. Anybody who reaches it \
          can read it, so an address that other machines can reach also needs `admin_public = true`.",
};

pub(in crate::config) static ADMIN_PUBLIC: Key<Flag> = Key {
    name: "admin_public",
    kind: Flag,
    presence: Presence::Default("false"),
    doc: "Allows an `admin` address that is not a loopback address.",
};

pub(in crate::config) static CACHE_DIR: Key<FilePath> = Key {
    name: "cache_dir",
    kind: FilePath { expected: "a directory such as \"/var/cache/tidemill\"", must_exist: false },
    presence: Presence::Optional {
        example: "\"/var/cache/tidemill\"",
        without: "`$XDG_CACHE_HOME/tidemill` or `~/.cache/tidemill`; `/var/cache/tidemill` for root without a home",
    },
    doc: "Where compiled plugins are kept. Its files are mapped into memory as code, so nobody else may \
          be able to write there.",
};

pub(in crate::config) static SHUTDOWN_TIMEOUT: Key<Time> = Key {
    name: "shutdown_timeout",
    kind: Time { min: Duration::from_millis(100), max: Duration::from_secs(3600) },
    presence: Presence::Default("\"30s\""),
    doc: "How long the end may take after SIGTERM or SIGINT: open batches are loaded and their offsets \
          committed. What is not done by then is read again by the next process.",
};

pub(in crate::config) static STALL_AFTER: Key<Time> = Key {
    name: "stall_after",
    kind: Time { min: Duration::from_secs(1), max: Duration::from_secs(24 * 3600) },
    presence: Presence::Default("\"60s\""),
    doc: "How long nothing may become durable, although there is something to read, until `/ready` turns red.",
};
