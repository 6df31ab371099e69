//! `[source.postgres]`, `[source.postgres.tls]`

use std::time::Duration;

use super::kafka::not_empty;
use crate::config::address;
use crate::config::kind::{BytesOrOff, Count, FilePath, Hidden, OneOf, Refusal, Text, Texts, Time};
use crate::config::model::{Snapshot, TlsMode, Truncate};
use crate::config::schema::{Key, Presence, Section};

pub(in crate::config) static SECTION: Section = Section {
    path: &["source", "postgres"],
    repeated: false,
    rare: true,
    doc: "Copies tables of a PostgreSQL database and follows their changes by logical replication. The \
          server needs `wal_level = logical`; `tidemill check --online` says what else is missing, with the \
          SQL that mends it. The tables in StarRocks have to be Primary Key tables.",
    keys: &[
        &HOST,
        &PORT,
        &DATABASE,
        &USER,
        &PASSWORD,
        &TABLES,
        &EXCLUDE,
        &SLOT,
        &PUBLICATION,
        &SNAPSHOT,
        &SNAPSHOT_WORKERS,
        &TRUNCATE,
        &MAX_SLOT_WAL,
        &HEARTBEAT,
    ],
    tables: &[&TLS],
};

pub(in crate::config) static HOST: Key<Text> = Key {
    name: "host",
    kind: Text {
        expected: "a host name, an IP address, or the directory of a Unix socket such as \"/run/postgresql\"",
        parse: address::host,
    },
    presence: Presence::Required("\"localhost\""),
    doc: "The server itself. A pooler such as PgBouncer cannot carry replication.",
};

pub(in crate::config) static PORT: Key<Count> = Key {
    name: "port",
    kind: Count { min: 1, max: 65_535 },
    presence: Presence::Default("5432"),
    doc: "Its port; with a Unix socket, the number in the socket's name.",
};

pub(in crate::config) static DATABASE: Key<Text> = Key {
    name: "database",
    kind: Text { expected: "a database's name such as \"shop\"", parse: name },
    presence: Presence::Required("\"shop\""),
    doc: "The database. A replication slot reads one; for a second database write a second file.",
};

pub(in crate::config) static USER: Key<Text> = Key {
    name: "user",
    kind: Text { expected: "a role's name such as \"tidemill\"", parse: name },
    presence: Presence::Required("\"tidemill\""),
    doc: "A role with the REPLICATION attribute and SELECT on the tables. Unless the publication is there \
          already, the role also needs CREATE on the database and has to own the tables.",
};

pub(in crate::config) static PASSWORD: Key<Hidden> = Key {
    name: "password",
    kind: Hidden,
    presence: Presence::Optional {
        example: "{ env = \"POSTGRES_PASSWORD\" }",
        without: "none is sent, which is enough for `trust`, `peer` and client certificates",
    },
    doc: "The password: better `{ env = \"NAME\" }` or `{ file = \"path\" }` than the text itself.",
};

const PATTERN: Text = Text { expected: PATTERN_EXPECTED, parse: pattern };
const PATTERN_EXPECTED: &str = "`schema.table` such as \"public.orders\" or \"public.*\"";

pub(in crate::config) static TABLES: Key<Texts> = Key {
    name: "tables",
    kind: Texts {
        expected: "`schema.table` or a list of them, such as [\"public.orders\", \"audit.*\"]",
        each: PATTERN,
        may_be_empty: false,
    },
    presence: Presence::Required("[\"public.*\"]"),
    doc: "Tables to read, spelled as Postgres stores them. `*` stands for any characters of a name, `?` for one.",
};

pub(in crate::config) static EXCLUDE: Key<Texts> = Key {
    name: "exclude",
    kind: Texts {
        expected: "a list of `schema.table` such as [\"public.sessions\", \"public.tmp_*\"]",
        each: PATTERN,
        may_be_empty: true,
    },
    presence: Presence::Default("[]"),
    doc: "Tables to leave out of those.",
};

const SLOT_EXPECTED: &str = "1 to 63 of a-z 0-9 _, such as \"tidemill_orders\"";

pub(in crate::config) static SLOT: Key<Text> = Key {
    name: "slot",
    kind: Text { expected: SLOT_EXPECTED, parse: slot },
    presence: Presence::Optional {
        example: "\"tidemill_orders\"",
        without: "`tidemill_` and the pipeline's name in lower case, with `_` for `-`",
    },
    doc: "The replication slot; it is made if it is missing. The server keeps its log for the slot until the \
          pipeline has loaded it, also while the pipeline does not run: drop the slot of a pipeline that is \
          given up.",
};

pub(in crate::config) static PUBLICATION: Key<Text> = Key {
    name: "publication",
    kind: Text { expected: "a publication's name such as \"tidemill_orders\"", parse: name },
    presence: Presence::Optional { example: "\"tidemill_orders\"", without: "the slot's name" },
    doc: "The publication that names the tables; it is made, or tables are added to it, if the role may do that.",
};

pub(in crate::config) static SNAPSHOT: Key<OneOf<Snapshot>> = Key {
    name: "snapshot",
    kind: OneOf {
        words: &[("initial", Snapshot::Initial), ("never", Snapshot::Never), ("only", Snapshot::Only)],
        refused: &[
            ("always", "a table is copied again by `tidemill resync`"),
            ("no_data", "here it is \"never\""),
            ("initial_only", "here it is \"only\""),
        ],
    },
    presence: Presence::Default("\"initial\""),
    doc: "Whether rows that are there already are copied: `initial` copies them once and then follows the \
          changes, `never` follows the changes from the slot's start, `only` copies them and ends.",
};

pub(in crate::config) static SNAPSHOT_WORKERS: Key<Count> = Key {
    name: "snapshot_workers",
    kind: Count { min: 1, max: 32 },
    presence: Presence::Default("4"),
    doc: "Connections that copy at the same time; large tables are copied in several pieces.",
};

pub(in crate::config) static TRUNCATE: Key<OneOf<Truncate>> = Key {
    name: "truncate",
    kind: OneOf {
        words: &[("halt", Truncate::Halt), ("ignore", Truncate::Ignore), ("apply", Truncate::Apply)],
        refused: &[],
    },
    presence: Presence::Default("\"halt\""),
    doc: "What a TRUNCATE of a source table does: `halt` the pipeline, `ignore` it, or `apply` it, which empties \
          the table in StarRocks and is refused if other pipelines load that table, too.",
};

pub(in crate::config) static MAX_SLOT_WAL: Key<BytesOrOff> = Key {
    name: "max_slot_wal",
    kind: BytesOrOff { min: 1 << 20, below: 1 << 50 },
    presence: Presence::Default("\"10GiB\""),
    doc: "`/ready` turns red when the server keeps more of its log than this for the slot, or `false` for never. \
          The server's own limit is `max_slot_wal_keep_size`; past that one the slot is lost.",
};

pub(in crate::config) static HEARTBEAT: Key<Time> = Key {
    name: "heartbeat",
    kind: Time { min: Duration::from_millis(100), max: Duration::from_secs(3600) },
    presence: Presence::Default("\"10s\""),
    doc: "How often a message is written into the log of a database without changes, so that the slot does not \
          hold the log that other databases of the server fill.",
};

pub(in crate::config) static TLS: Section = Section {
    path: &["source", "postgres", "tls"],
    repeated: false,
    rare: true,
    doc: "How the connections are protected.",
    keys: &[&MODE, &CA, &CERTIFICATE, &KEY],
    tables: &[],
};

pub(in crate::config) static MODE: Key<OneOf<TlsMode>> = Key {
    name: "mode",
    kind: OneOf {
        words: &[
            ("disable", TlsMode::Disable),
            ("prefer", TlsMode::Prefer),
            ("require", TlsMode::Require),
            ("verify-ca", TlsMode::VerifyCa),
            ("verify-full", TlsMode::VerifyFull),
        ],
        refused: &[("allow", "use \"prefer\"")],
    },
    presence: Presence::Optional {
        example: "\"verify-full\"",
        without: "`verify-full` if `ca` is set, or else `prefer`",
    },
    doc: "As libpq's `sslmode`: `prefer` and `require` encrypt but look at no certificate, `verify-ca` wants one \
          of a known authority, `verify-full` one for this host.",
};

pub(in crate::config) static CA: Key<FilePath> = Key {
    name: "ca",
    kind: FilePath { expected: "a PEM file", must_exist: true },
    presence: Presence::Optional { example: "\"ca.pem\"", without: "the system's certificate authorities" },
    doc: "Certificate authorities that the server's certificate is checked against, as PEM.",
};

pub(in crate::config) static CERTIFICATE: Key<FilePath> = Key {
    name: "certificate",
    kind: FilePath { expected: "a PEM file", must_exist: true },
    presence: Presence::Optional { example: "\"client.pem\"", without: "no client certificate is shown" },
    doc: "The client's certificate as PEM. Needs `key`.",
};

pub(in crate::config) static KEY: Key<FilePath> = Key {
    name: "key",
    kind: FilePath { expected: "a PEM file", must_exist: true },
    presence: Presence::Optional { example: "\"client-key.pem\"", without: "no client certificate is shown" },
    doc: "The key of `certificate`, as PEM without a password.",
};

/// Bytes of a name in Postgres, which cuts longer ones without a word.
const NAME_BYTES_MAX: usize = 63;

fn name(text: &str) -> Result<String, Refusal> {
    if text.len() > NAME_BYTES_MAX {
        return Refusal::because(format!("it has {} bytes, more than {NAME_BYTES_MAX}", text.len()));
    }
    if text.chars().any(char::is_control) {
        return Refusal::because("it has a control character in it");
    }
    not_empty(text)
}

fn slot(text: &str) -> Result<String, Refusal> {
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if let Some(bad) = text.chars().find(|c| !valid(*c)) {
        return Refusal::because(format!("{bad:?} cannot be part of a slot's name"));
    }
    name(text)
}

/// The slot of a pipeline whose file names none; a pipeline's name that is too long gives an error.
pub(in crate::config) fn slot_of(pipeline: &str) -> Result<String, String> {
    let slot = format!("tidemill_{}", pipeline.to_ascii_lowercase().replace('-', "_"));
    if slot.len() > NAME_BYTES_MAX {
        // A name that is cut could be another pipeline's, too.
        return Err(format!("{slot:?} is longer than the {NAME_BYTES_MAX} bytes that Postgres keeps"));
    }
    Ok(slot)
}

fn pattern(text: &str) -> Result<String, Refusal> {
    let text = text.trim();
    if text.contains(['"', '(', ')', ',']) || text.contains(char::is_control) {
        return Refusal::because(
            "it is neither quoted nor a regular expression, and a list has several texts",
        );
    }
    match text.split_once('.') {
        None => Refusal::because("the schema is missing"),
        Some((schema, table)) if schema.is_empty() || table.is_empty() => {
            Refusal::because("the schema or the table is missing")
        }
        Some((_, table)) if table.contains('.') => {
            Refusal::because("it has more than one dot; the database is given in `database`")
        }
        Some((schema, table)) if schema.len() > NAME_BYTES_MAX || table.len() > NAME_BYTES_MAX => {
            Refusal::because(format!("a name of Postgres has at most {NAME_BYTES_MAX} bytes"))
        }
        Some(_) => Ok(text.to_owned()),
    }
}
