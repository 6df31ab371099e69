//! `[dead_letters]`

use super::kafka::{self, BROKER, TOPIC_EXPECTED};
use crate::config::kind::{FilePath, Rejects, Text, Texts};
use crate::config::schema::{Key, Presence, Section};

pub(in crate::config) static SECTION: Section = Section {
    path: &["dead_letters"],
    repeated: false,
    rare: true,
    doc: "Where records go that cannot be loaded: original bytes, reason, stage, plugin and position, \
          written durably before their offset is committed. Exactly one of `directory` and `kafka`. \
          Without this table the first such record halts the pipeline.",
    keys: &[&DIRECTORY, &MAX_REJECTS],
    tables: &[&KAFKA],
};

pub(in crate::config) static DIRECTORY: Key<FilePath> = Key {
    name: "directory",
    kind: FilePath { expected: "a directory such as \"dead-letters\"", must_exist: false },
    presence: Presence::Optional { example: "\"dead-letters\"", without: "they go to `kafka`" },
    doc: "A directory for NDJSON files; it is made if it is missing.",
};

pub(in crate::config) static MAX_REJECTS: Key<Rejects> = Key {
    name: "max_rejects",
    kind: Rejects { window_max: 1_000_000 },
    presence: Presence::Default("{ window = 1000, limit = 50 }"),
    doc: "The pipeline halts when more than `limit` of `window` records in a row were rejected, so that a \
          mistake in a schema or plugin does not empty a whole topic into the dead letters. `false`: it never \
          halts for that.",
};

pub(in crate::config) static KAFKA: Section = Section {
    path: &["dead_letters", "kafka"],
    repeated: false,
    rare: true,
    doc: "Dead letters go to a Kafka topic.",
    keys: &[&TOPIC, &BROKERS],
    tables: &[],
};

pub(in crate::config) static TOPIC: Key<Text> = Key {
    name: "topic",
    kind: Text { expected: TOPIC_EXPECTED, parse: kafka::topic },
    presence: Presence::Required("\"orders-dead\""),
    doc: "The topic; it must not be one that the pipeline reads.",
};

pub(in crate::config) static BROKERS: Key<Texts> = Key {
    name: "brokers",
    kind: Texts { expected: kafka::BROKERS_EXPECTED, each: BROKER, may_be_empty: false },
    presence: Presence::Optional {
        example: "[\"localhost:9092\"]",
        without: "those of [source.kafka], with its TLS and SASL settings",
    },
    doc: "Brokers, `host:port` each. Must be set if the source is another than [source.kafka].",
};
