//! All tables and keys of a pipeline file. Adding one here makes it known to the reader, to the error
//! messages and to the reference.

use super::schema::Section;

pub(super) mod batch;
pub(super) mod dead_letters;
pub(super) mod http;
pub(super) mod kafka;
pub(super) mod pipeline;
pub(super) mod postgres;
pub(super) mod process;
pub(super) mod starrocks;
pub(super) mod transform;

/// The file itself.
pub(super) static ROOT: Section = Section {
    path: &[],
    repeated: false,
    rare: false,
    doc: "",
    keys: &[],
    tables: &[
        &pipeline::SECTION,
        &process::SECTION,
        &SOURCE,
        &transform::SECTION,
        &batch::SECTION,
        &SINK,
        &dead_letters::SECTION,
    ],
};

/// `[source]`: exactly one table within.
pub(super) static SOURCE: Section = Section {
    path: &["source"],
    repeated: false,
    rare: false,
    doc: "Where records come from. Exactly one table within says which kind of source it is.",
    keys: &[],
    tables: &[&kafka::SECTION, &postgres::SECTION, &http::SECTION],
};

/// `[sink]`: exactly one table within.
pub(super) static SINK: Section = Section {
    path: &["sink"],
    repeated: false,
    rare: false,
    doc: "Where rows go.",
    keys: &[],
    tables: &[&starrocks::SECTION],
};

/// Names that other tools have for keys of one table: the table, their name, and ours. Names stand
/// without case and separators.
pub(super) const ELSEWHERE_IN: [(&str, &str, &str); 24] = [
    // Debezium, Flink CDC
    ("postgres", "hostname", "`host`"),
    ("postgres", "databasehostname", "`host`"),
    ("postgres", "databaseport", "`port`"),
    ("postgres", "databasename", "`database`"),
    ("postgres", "databasedbname", "`database`"),
    ("postgres", "dbname", "`database`"),
    ("postgres", "username", "`user`"),
    ("postgres", "databaseuser", "`user`"),
    ("postgres", "databasepassword", "`password`"),
    ("postgres", "databasesslmode", "`mode` in [source.postgres.tls]"),
    ("postgres", "sslmode", "`mode` in [source.postgres.tls]"),
    ("postgres", "schemalist", "`tables`, such as \"public.*\""),
    ("postgres", "schemaincludelist", "`tables`, such as \"public.*\""),
    ("postgres", "tablelist", "`tables`"),
    ("postgres", "tableincludelist", "`tables`"),
    ("postgres", "tableexcludelist", "`exclude`"),
    ("postgres", "slotname", "`slot`"),
    ("postgres", "publicationname", "`publication`"),
    ("postgres", "pluginname", "not needed: the server's own pgoutput is used"),
    ("postgres", "decodingpluginname", "not needed: the server's own pgoutput is used"),
    // Vector's http_server
    ("http", "address", "`listen`"),
    ("http", "path", "not needed: requests to every path are taken, and plugins see it as the source"),
    ("http", "encoding", "not needed: the Content-Type of a request says it"),
    ("http", "auth", "`tokens`"),
];

/// Other tools' names and where the same thing is said here. They stand without case and separators,
/// without `sink` or `starrocks` before them and `ms` behind.
pub(super) const ELSEWHERE: [(&str, &str); 25] = [
    ("type", "the name of the table: [source.kafka], [source.postgres], [source.http], [sink.starrocks]"),
    (
        "connector",
        "the name of the table: [source.kafka], [source.postgres], [source.http], [sink.starrocks]",
    ),
    ("bootstrapservers", "`brokers` in [source.kafka]"),
    ("groupid", "`group` in [source.kafka]"),
    ("topic", "`topics` in [source.kafka]"),
    ("autooffsetreset", "`start` in [source.kafka]"),
    ("isolationlevel", "`isolation` in [source.kafka]"),
    ("loadurl", "`fe` in [sink.starrocks]"),
    ("jdbcurl", "`query` in [sink.starrocks]"),
    ("httpurl", "`fe` in [sink.starrocks]"),
    ("username", "`user` in [sink.starrocks]"),
    ("databasename", "`database` in [sink.starrocks]"),
    ("tablename", "`table` in [sink.starrocks]"),
    ("batchsize", "`max_rows` in [batch]"),
    ("writebatchsize", "`max_rows` in [batch]"),
    ("writebufferrows", "`max_rows` in [batch]"),
    ("writebuffersize", "`max_bytes` in [batch]"),
    ("writeflushinterval", "`linger` in [batch]"),
    ("batchbytes", "`max_bytes` in [batch]"),
    ("linger", "`linger` in [batch]"),
    ("flushdelay", "`linger` in [batch]"),
    ("flushinterval", "`linger` in [batch]"),
    ("bufferflushmaxrows", "`max_rows` in [batch]"),
    ("bufferflushmaxbytes", "`max_bytes` in [batch]"),
    ("bufferflushinterval", "`linger` in [batch]"),
];
