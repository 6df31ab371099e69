//! `[source.kafka]`, `[source.kafka.tls]`, `[source.kafka.sasl]`

use std::time::Duration;

use crate::config::address;
use crate::config::kind::{Bytes, FilePath, Hidden, OneOf, Properties, Refusal, StartAt, Text, Texts, Time};
use crate::config::model::Isolation;
use crate::config::pattern::{self, Pattern};
use crate::config::refused;
use crate::config::schema::{Key, Presence, Section};

pub(in crate::config) static SECTION: Section = Section {
    path: &["source", "kafka"],
    repeated: false,
    rare: false,
    doc: "Reads topics of Apache Kafka, or of anything that speaks its protocol, as a consumer group.",
    keys: &[&BROKERS, &TOPICS, &GROUP, &START, &ISOLATION, &COMMIT_INTERVAL, &FETCH_QUEUE, &PROPERTIES],
    tables: &[&TLS, &SASL],
};

pub(super) const BROKERS_EXPECTED: &str = "`host:port` or a list of them, such as [\"localhost:9092\"]";
pub(super) const BROKER: Text = Text { expected: "`host:port` such as \"localhost:9092\"", parse: broker };

pub(in crate::config) static BROKERS: Key<Texts> = Key {
    name: "brokers",
    kind: Texts { expected: BROKERS_EXPECTED, each: BROKER, may_be_empty: false },
    presence: Presence::Required("[\"localhost:9092\"]"),
    doc: "Brokers to begin with, `host:port` each; the others are learned from them.",
};

pub(super) const TOPIC_EXPECTED: &str = "a topic's name: 1 to 249 of A-Z a-z 0-9 . _ -";

pub(in crate::config) static TOPICS: Key<Texts> = Key {
    name: "topics",
    kind: Texts {
        expected: "a topic's name or a list of them, such as [\"orders\"]",
        each: Text { expected: TOPIC_OR_PATTERN, parse: topic_or_pattern },
        may_be_empty: false,
    },
    presence: Presence::Required("[\"orders\"]"),
    doc: "Topics by name, or by a regular expression that begins with `^`, such as \"^shop\\\\..*\" (POSIX \
          extended, matched anywhere behind the `^`: end it with `$` for whole names). New topics that match \
          are read from their beginning, half a minute after they were made. Rows of all topics share the \
          pipeline's batches.",
};

const TOPIC_OR_PATTERN: &str =
    "a topic's name (1 to 249 of A-Z a-z 0-9 . _ -) or a regular expression that begins with ^";

pub(in crate::config) static GROUP: Key<Text> = Key {
    name: "group",
    kind: Text { expected: "the name of a consumer group", parse: group },
    presence: Presence::Optional { example: "\"tidemill-orders\"", without: "the pipeline's name" },
    doc: "The consumer group: its committed offsets are the pipeline's progress.",
};

pub(in crate::config) static START: Key<StartAt> = Key {
    name: "start",
    kind: StartAt,
    presence: Presence::Default("\"earliest\""),
    doc: "Where to start a partition that the group has no offset for. With a timestamp: at the first \
          record that is not older. It is looked at once; afterwards the committed offset counts, and \
          a lost one halts the pipeline.",
};

pub(in crate::config) static ISOLATION: Key<OneOf<Isolation>> = Key {
    name: "isolation",
    kind: OneOf {
        words: &[
            ("read_committed", Isolation::ReadCommitted),
            ("read_uncommitted", Isolation::ReadUncommitted),
        ],
        refused: &[],
    },
    presence: Presence::Default("\"read_committed\""),
    doc: "Whether records of transactions that are open or were aborted are left out (`read_committed`) \
          or read (`read_uncommitted`).",
};

pub(in crate::config) static COMMIT_INTERVAL: Key<Time> = Key {
    name: "commit_interval",
    kind: Time { min: Duration::from_millis(10), max: Duration::from_secs(3600) },
    presence: Presence::Default("\"1s\""),
    doc: "How often offsets of durable batches are committed. After a crash, what was loaded since the \
          last commit is loaded again.",
};

/// librdkafka counts its queue in KiB, at most 2,097,151 of them.
const FETCH_QUEUE_BYTES_BELOW: u64 = 1 << 31;

pub(in crate::config) static FETCH_QUEUE: Key<Bytes> = Key {
    name: "fetch_queue",
    kind: Bytes { min: 1 << 20, below: FETCH_QUEUE_BYTES_BELOW },
    presence: Presence::Default("\"8MiB\""),
    doc: "Bytes of records that were fetched ahead and not read yet. librdkafka keeps some 300 bytes more for each of them.",
};

pub(in crate::config) static PROPERTIES: Key<Properties> = Key {
    name: "properties",
    kind: Properties {
        expected: "a table of librdkafka settings such as { \"session.timeout.ms\" = 45000 }",
        refuse: refused::kafka,
        name: property_name,
        value: property_value,
    },
    presence: Presence::Default("{}"),
    doc: "Any other setting of librdkafka, by its own name. Those that would break delivery, or that \
          have a key of their own here, are refused with the reason.",
};

pub(in crate::config) static TLS: Section = Section {
    path: &["source", "kafka", "tls"],
    repeated: false,
    rare: true,
    doc: "Encrypts the connection. The table is enough, even if it is empty: then the system's \
          certificate authorities are trusted.",
    keys: &[&CA, &CERTIFICATE, &KEY],
    tables: &[],
};

pub(in crate::config) static CA: Key<FilePath> = Key {
    name: "ca",
    kind: FilePath { expected: "a PEM file", must_exist: true },
    presence: Presence::Optional { example: "\"ca.pem\"", without: "the system's certificate authorities" },
    doc: "Certificate authorities that the brokers' certificates are checked against, as PEM.",
};

pub(in crate::config) static CERTIFICATE: Key<FilePath> = Key {
    name: "certificate",
    kind: FilePath { expected: "a PEM file", must_exist: true },
    presence: Presence::Optional { example: "\"client.pem\"", without: "no client certificate is shown" },
    doc: "The client's certificate as PEM, for brokers that ask for one. Needs `key`.",
};

pub(in crate::config) static KEY: Key<FilePath> = Key {
    name: "key",
    kind: FilePath { expected: "a PEM file", must_exist: true },
    presence: Presence::Optional { example: "\"client-key.pem\"", without: "no client certificate is shown" },
    doc: "The key of `certificate`, as PEM. For one with a password, set the property `ssl.key.password`.",
};

pub(in crate::config) static SASL: Section = Section {
    path: &["source", "kafka", "sasl"],
    repeated: false,
    rare: true,
    doc: "Logs in. Combine it with [source.kafka.tls], or the password crosses the network in the clear.",
    keys: &[&MECHANISM, &USERNAME, &PASSWORD],
    tables: &[],
};

pub(in crate::config) static MECHANISM: Key<OneOf<&'static str>> = Key {
    name: "mechanism",
    kind: OneOf {
        words: &[("PLAIN", "PLAIN"), ("SCRAM-SHA-256", "SCRAM-SHA-256"), ("SCRAM-SHA-512", "SCRAM-SHA-512")],
        refused: &[
            ("GSSAPI", "this build has no Kerberos"),
            ("OAUTHBEARER", "this version does not have it yet"),
        ],
    },
    presence: Presence::Required("\"SCRAM-SHA-512\""),
    doc: "How the password is proven.",
};

pub(in crate::config) static USERNAME: Key<Text> = Key {
    name: "username",
    kind: Text { expected: "a user name", parse: not_empty },
    presence: Presence::Required("\"tidemill\""),
    doc: "The user.",
};

pub(in crate::config) static PASSWORD: Key<Hidden> = Key {
    name: "password",
    kind: Hidden,
    presence: Presence::Required("{ env = \"KAFKA_PASSWORD\" }"),
    doc: "The password: better `{ env = \"NAME\" }` or `{ file = \"path\" }` than the text itself.",
};

/// Any text with a character in it.
pub(super) fn not_empty(text: &str) -> Result<String, Refusal> {
    if text.trim().is_empty() { Refusal::because("it is empty") } else { Ok(text.to_owned()) }
}

/// A topic's name, or a pattern that librdkafka will take.
fn topic_or_pattern(text: &str) -> Result<String, Refusal> {
    if !pattern::is_pattern(text) {
        return topic(text);
    }
    match Pattern::new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(why) => Refusal::because(format!("not a regular expression: {why}")),
    }
}

/// A topic's name by Kafka's own rule; a regular expression is not one.
pub(super) fn topic(text: &str) -> Result<String, Refusal> {
    const TOPIC_CHARS_MAX: usize = 249;
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '_' || c == '-';
    if let Some(bad) = text.chars().find(|c| !valid(*c)) {
        return Refusal::because(format!("{bad:?} cannot be part of a topic's name"));
    }
    if text.is_empty() || text == "." || text == ".." || text.len() > TOPIC_CHARS_MAX {
        return Refusal::because("no topic can have this name");
    }
    Ok(text.to_owned())
}

fn group(text: &str) -> Result<String, Refusal> {
    const GROUP_BYTES_MAX: usize = 249;
    if text.is_empty() || text.len() > GROUP_BYTES_MAX || text.chars().any(char::is_control) {
        return Refusal::because(format!("no group can have this name, of {} bytes", text.len()));
    }
    Ok(text.to_owned())
}

fn broker(text: &str) -> Result<String, Refusal> {
    let text = text.trim();
    if text.contains(',') {
        return Refusal::because("several brokers are a list");
    }
    // librdkafka knows `SSL://host:port`; whether TLS is used is said by [source.kafka.tls].
    if text.contains("://") {
        return Refusal::because("a broker has no scheme; [source.kafka.tls] turns TLS on");
    }
    address::host_port(text)
}

fn property_name(written: &str) -> Result<String, String> {
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.' || c == '_';
    if written.is_empty() || !written.chars().all(valid) {
        return Err("librdkafka's names have a-z 0-9 . _".to_owned());
    }
    Ok(written.to_owned())
}

fn property_value(value: &str) -> Result<(), String> {
    if value.contains('\0') { Err("has a zero byte in it".to_owned()) } else { Ok(()) }
}
