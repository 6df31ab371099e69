//! `[sink.starrocks]`

use std::time::Duration;

use http::{HeaderName, HeaderValue};

use super::kafka::not_empty;
use crate::config::address;
use crate::config::kind::{Count, FilePath, Flag, Hidden, OneOf, Properties, Refusal, Text, Texts, Time};
use crate::config::model::{Compression, PartialUpdate, RowFormat, TableModel};
use crate::config::refused;
use crate::config::schema::{Key, Presence, Section};

pub(in crate::config) static SECTION: Section = Section {
    path: &["sink", "starrocks"],
    repeated: false,
    rare: false,
    doc: "Loads batches into tables of StarRocks by Stream Load, each in one transaction.",
    keys: &[
        &FE,
        &QUERY,
        &DATABASE,
        &TABLE,
        &TABLES,
        &CREATE_TABLES,
        &USER,
        &PASSWORD,
        &TABLE_MODEL,
        &IN_FLIGHT,
        &LOAD_TIMEOUT,
        &PREPARED_TIMEOUT,
        &REDIRECT_HOSTS,
        &CA,
        &FORMAT,
        &PROPERTIES,
        &COLUMNS,
        &PARTIAL_UPDATE,
        &PARTIAL_UPDATE_MODE,
        &COMPRESSION,
    ],
    tables: &[],
};

pub(in crate::config) static FE: Key<Texts> = Key {
    name: "fe",
    kind: Texts {
        expected: "an FE's HTTP address or a list of them, such as [\"http://127.0.0.1:8030\"]",
        each: Text {
            expected: "an FE's HTTP address such as \"http://127.0.0.1:8030\"",
            parse: address::frontend,
        },
        may_be_empty: false,
    },
    presence: Presence::Required("[\"http://127.0.0.1:8030\"]"),
    doc: "HTTP addresses of frontends in order of preference. With several, a dead one is passed over.",
};

pub(in crate::config) static QUERY: Key<Text> = Key {
    name: "query",
    kind: Text {
        expected: "the `host:port` of the MySQL protocol, such as \"127.0.0.1:9030\"",
        parse: address::query,
    },
    presence: Presence::Optional {
        example: "\"127.0.0.1:9030\"",
        without: "the first FE's host and port 9030",
    },
    doc: "Where SQL is spoken: tables and their models are looked up there.",
};

pub(in crate::config) static DATABASE: Key<Text> = Key {
    name: "database",
    kind: Text { expected: "a database's name such as \"shop\"", parse: identifier },
    presence: Presence::Required("\"shop\""),
    doc: "The database.",
};

pub(in crate::config) static TABLE: Key<Text> = Key {
    name: "table",
    kind: Text { expected: TABLE_EXPECTED, parse: table_or_template },
    presence: Presence::Usual {
        example: "\"orders\"",
        without: "a plugin must route every row; with [source.postgres] it is \"{table}\"",
    },
    doc: "The table of rows that no plugin routes elsewhere. With [source.postgres], `{schema}` and `{table}` in it \
          stand for the names of the source table.",
};

const TABLE_EXPECTED: &str = "a table's name such as \"orders\"";

pub(in crate::config) static TABLES: Key<Texts> = Key {
    name: "tables",
    kind: Texts {
        expected: "a list of tables' names such as [\"orders\", \"customers\"]",
        each: Text { expected: TABLE_EXPECTED, parse: identifier },
        may_be_empty: true,
    },
    presence: Presence::Default("[]"),
    doc: "Tables that plugins may route to besides `table`. Empty: all that the plugin declares.",
};

pub(in crate::config) static CREATE_TABLES: Key<Flag> = Key {
    name: "create_tables",
    kind: Flag,
    presence: Presence::Default("false"),
    doc: "Makes tables that are missing, as Primary Key tables with the columns of the source table. Only with \
          [source.postgres]; the user needs CREATE TABLE on the database.",
};

pub(in crate::config) static USER: Key<Text> = Key {
    name: "user",
    kind: Text { expected: "a user name without a colon", parse: user },
    presence: Presence::Required("\"root\""),
    doc: "A user with the INSERT privilege on the tables, and SELECT if their model is to be looked up. With CREATE TABLE \
          on the database it makes the table in which the pipeline remembers how far it is: `tidemill_runs` from \
          Kafka (which runs without it, and says so), `tidemill_positions` from Postgres. If somebody else makes \
          that table, it takes INSERT and SELECT on it. All rights are in docs/operations.md.",
};

pub(in crate::config) static PASSWORD: Key<Hidden> = Key {
    name: "password",
    kind: Hidden,
    presence: Presence::Optional {
        example: "{ env = \"STARROCKS_PASSWORD\" }",
        without: "an empty one, as a fresh StarRocks has it",
    },
    doc: "The password: better `{ env = \"NAME\" }` or `{ file = \"path\" }` than the text itself.",
};

pub(in crate::config) static TABLE_MODEL: Key<OneOf<TableModel>> = Key {
    name: "table_model",
    kind: OneOf {
        words: &[
            ("duplicate", TableModel::Duplicate),
            ("unique", TableModel::Unique),
            ("aggregate", TableModel::Aggregate),
            ("primary", TableModel::Primary),
        ],
        refused: &[],
    },
    presence: Presence::Optional { example: "\"primary\"", without: "it is looked up at `query`" },
    doc: "The key model of the tables: only a Primary Key table can take deletes.",
};

pub(in crate::config) static IN_FLIGHT: Key<Count> = Key {
    name: "in_flight",
    kind: Count { min: 1, max: 64 },
    presence: Presence::Default("1"),
    doc: "Loads that run at the same time for one table. More than one gives up the order of rows, so \
          it is only taken together with `table_model = \"duplicate\"`.",
};

pub(in crate::config) static LOAD_TIMEOUT: Key<Time> = Key {
    name: "load_timeout",
    kind: Time { min: Duration::from_secs(1), max: Duration::from_secs(259_200) },
    presence: Presence::Default("\"10m\""),
    doc: "How long StarRocks may take for one load; whole seconds.",
};

pub(in crate::config) static PREPARED_TIMEOUT: Key<Time> = Key {
    name: "prepared_timeout",
    kind: Time { min: Duration::from_secs(7200), max: Duration::from_secs(2_592_000) },
    presence: Presence::Default("\"24h\""),
    doc: "With exactly_once: how long StarRocks keeps loads that are decided and not committed, whole seconds. If no \
          process of the pipeline runs for longer, what was decided last is lost, and the next start says so. \
          StarRocks before 3.5.4 takes no such wish: set what its prepared_transaction_default_timeout_second says.",
};

pub(in crate::config) static REDIRECT_HOSTS: Key<Texts> = Key {
    name: "redirect_hosts",
    kind: Texts {
        expected: "a list of `host` or `host:port` such as [\"be1.example.com:8040\"]",
        each: Text { expected: "`host` or `host:port`", parse: address::redirect_host },
        may_be_empty: true,
    },
    presence: Presence::Default("[]"),
    doc: "Backends that an FE may send loads to. Empty: whatever it names, printed once. Data and \
          credentials go there, so name them if the network between is not yours.",
};

pub(in crate::config) static CA: Key<FilePath> = Key {
    name: "ca",
    kind: FilePath { expected: "a PEM file", must_exist: true },
    presence: Presence::Optional { example: "\"ca.pem\"", without: "the system's certificate authorities" },
    doc: "Certificate authorities for `https://` addresses, as PEM.",
};

pub(in crate::config) static FORMAT: Key<OneOf<RowFormat>> = Key {
    name: "format",
    kind: OneOf { words: &[("json", RowFormat::Json), ("csv", RowFormat::Csv)], refused: &[] },
    presence: Presence::Default("\"json\""),
    doc: "How rows are sent: \"json\", one object a line, or \"csv\", the values of `columns`. CSV costs this \
          process a parse of each row and saves StarRocks (from 3.0 on) a dearer one. In CSV a text `\\N` \
          cannot be told from NULL: a row with one is rejected.",
};

pub(in crate::config) static PROPERTIES: Key<Properties> = Key {
    name: "properties",
    kind: Properties {
        expected: "a table of Stream Load headers such as { jsonpaths = \"[\\\"$.id\\\"]\" }",
        refuse: refused::starrocks,
        name: header_name,
        value: header_value,
    },
    presence: Presence::Default("{}"),
    doc: "Any other Stream Load header, such as `jsonpaths`, `merge_condition`, or `columns` with expressions. Those that \
          would break delivery, or that have a key of their own here, are refused with the reason.",
};

/// A name of StarRocks, or one with placeholders for those of a source table.
fn table_or_template(text: &str) -> Result<String, Refusal> {
    let plain = text.replace("{schema}", "").replace("{table}", "");
    if plain.contains(['{', '}']) {
        return Refusal::because("there is no placeholder but {schema} and {table}");
    }
    // What placeholders stand for is checked when it is known.
    if !text.is_empty() && plain.is_empty() {
        return Ok(text.to_owned());
    }
    identifier(&plain).map(|_| text.to_owned())
}

pub(in crate::config) static COLUMNS: Key<Texts> = Key {
    name: "columns",
    kind: Texts {
        expected: "a list of columns' names such as [\"id\", \"amount\"]",
        each: Text { expected: "a column's name such as \"id\"", parse: column },
        may_be_empty: true,
    },
    presence: Presence::Default("[]"),
    doc: "Columns that rows bring, the same for all tables of the pipeline; a row that lacks one of them \
          brings NULL. Columns of the table that are not named get their default. Empty: all columns.",
};

pub(in crate::config) static PARTIAL_UPDATE: Key<Flag> = Key {
    name: "partial_update",
    kind: Flag,
    presence: Presence::Default("false"),
    doc: "Update `columns` only: the other columns of a row that is there keep their values. The key must \
          be among `columns`. For Primary Key tables.",
};

pub(in crate::config) static PARTIAL_UPDATE_MODE: Key<OneOf<PartialUpdate>> = Key {
    name: "partial_update_mode",
    kind: OneOf {
        words: &[
            ("row", PartialUpdate::Row),
            ("column", PartialUpdate::Column),
            ("auto", PartialUpdate::Auto),
        ],
        refused: &[],
    },
    presence: Presence::Default("\"row\""),
    doc: "How StarRocks writes a partial update: \"row\" for many columns of few rows, \"column\" for few \
          columns of many rows, \"auto\" to leave it to StarRocks.",
};

pub(in crate::config) static COMPRESSION: Key<OneOf<Compression>> = Key {
    name: "compression",
    kind: OneOf {
        words: &[
            ("none", Compression::None),
            ("lz4", Compression::Lz4),
            ("gzip", Compression::Gzip),
            ("zstd", Compression::Zstd),
        ],
        refused: &[],
    },
    presence: Presence::Default("\"none\""),
    doc: "How bodies of loads are compressed. JSON needs StarRocks 3.2.7. `max_bytes` of [batch] counts bytes \
          before; the compressed copy of a load is held beside it while it is sent.",
};

fn column(text: &str) -> Result<String, Refusal> {
    // The op of a row goes by this name; StarRocks takes no column of either.
    if ["__op", "__row"].iter().any(|reserved| text.eq_ignore_ascii_case(reserved)) {
        return Refusal::because("StarRocks keeps this name for itself");
    }
    identifier(text)
}

/// A name of StarRocks: letters of any language are fine, what ends a path or a name is not.
fn identifier(text: &str) -> Result<String, Refusal> {
    const NAME_BYTES_MAX: usize = 256;
    if text.is_empty() {
        return Refusal::because("it is empty");
    }
    if text.contains('.') {
        return Refusal::because("database and table are given apart, in `database` and `table`");
    }
    let bad = |c: &char| c.is_whitespace() || c.is_control() || "/\\`'\"?#%:;,".contains(*c);
    if let Some(bad) = text.chars().find(bad) {
        return Refusal::because(format!("{bad:?} cannot be part of a name"));
    }
    if text.len() > NAME_BYTES_MAX {
        return Refusal::because(format!("it has {} bytes, more than {NAME_BYTES_MAX}", text.len()));
    }
    Ok(text.to_owned())
}

/// HTTP's Basic authentication ends the user at the first colon.
fn user(text: &str) -> Result<String, Refusal> {
    if text.contains(':') || text.chars().any(char::is_control) {
        return Refusal::because("HTTP authentication cannot carry it");
    }
    not_empty(text)
}

fn header_name(written: &str) -> Result<String, String> {
    let name = HeaderName::from_bytes(written.as_bytes());
    name.map(|name| name.as_str().to_owned())
        .map_err(|_| "it cannot be the name of an HTTP header".to_owned())
}

fn header_value(value: &str) -> Result<(), String> {
    HeaderValue::from_bytes(value.as_bytes())
        .map(|_| ())
        .map_err(|_| "cannot be sent in an HTTP header, which is a single line".to_owned())
}
