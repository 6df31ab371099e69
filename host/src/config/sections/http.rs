//! `[source.http]`, `[source.http.tls]`

use std::time::Duration;

use crate::config::kind::{Address, Bytes, Count, FilePath, Flag, HiddenList, Time};
use crate::config::schema::{Key, Presence, Section};

pub(in crate::config) static SECTION: Section = Section {
    path: &["source", "http"],
    repeated: false,
    rare: true,
    doc: "Takes records by `POST /{path}`: one JSON object, an array of them, or NDJSON. The answer is `200` when \
          the rows are durable in StarRocks.",
    keys: &[
        &LISTEN,
        &TOKENS,
        &INSECURE,
        &MAX_BODY,
        &MAX_RECORDS,
        &READ_TIMEOUT,
        &REQUEST_TIMEOUT,
        &ANSWER_TIMEOUT,
        &MAX_CONNECTIONS,
        &IDEMPOTENCY_WINDOW,
        &IDEMPOTENCY_KEYS,
    ],
    tables: &[&TLS],
};

pub(in crate::config) static LISTEN: Key<Address> = Key {
    name: "listen",
    kind: Address { expected: "an address such as \"127.0.0.1:8080\" or \"[::]:8080\"" },
    presence: Presence::Default("\"127.0.0.1:8080\""),
    doc: "Where requests are taken. An address that other machines can reach needs [source.http.tls] and either \
          `tokens` or `client_ca`, or else `insecure = true`.",
};

pub(in crate::config) static TOKENS: Key<HiddenList> = Key {
    name: "tokens",
    kind: HiddenList {
        expected: "a list such as [{ env = \"TIDEMILL_TOKEN\" }] of texts without blanks",
        valid: is_token,
    },
    presence: Presence::Default("[]"),
    doc: "Bearer tokens: a request needs one of them as `Authorization: Bearer …`. Several make it possible to \
          change one without a gap. Empty: no token is asked for.",
};

pub(in crate::config) static INSECURE: Key<Flag> = Key {
    name: "insecure",
    kind: Flag,
    presence: Presence::Default("false"),
    doc: "Allows a `listen` address that other machines can reach without authentication or TLS: anybody who \
          reaches it can then write rows, or read them on their way. Right behind a proxy that sees to both.",
};

/// Bodies of this length and more would need other ends of columns than 32 bits, and another budget.
const BODY_BYTES_BELOW: u64 = 1 << 30;

pub(in crate::config) static MAX_BODY: Key<Bytes> = Key {
    name: "max_body",
    kind: Bytes { min: 1 << 10, below: BODY_BYTES_BELOW },
    presence: Presence::Default("\"16MiB\""),
    doc: "Bytes of a body, as it is sent and as it is unpacked; a longer one is answered with 413.",
};

pub(in crate::config) static MAX_RECORDS: Key<Count> = Key {
    name: "max_records",
    kind: Count { min: 1, max: 10_000_000 },
    presence: Presence::Default("100_000"),
    doc: "Records of one request; more are answered with 413.",
};

pub(in crate::config) static READ_TIMEOUT: Key<Time> = Key {
    name: "read_timeout",
    kind: Time { min: Duration::from_millis(100), max: Duration::from_secs(3600) },
    presence: Presence::Default("\"10s\""),
    doc: "Time for a TLS handshake, for the head of a request, and for any silent moment within its body; \
          then the connection is closed, after an answer of 408 where there is a request.",
};

pub(in crate::config) static REQUEST_TIMEOUT: Key<Time> = Key {
    name: "request_timeout",
    kind: Time { min: Duration::from_millis(100), max: Duration::from_secs(3600) },
    presence: Presence::Default("\"60s\""),
    doc: "Time for a whole request to arrive, however steadily it trickles; then it is answered with 408.",
};

pub(in crate::config) static ANSWER_TIMEOUT: Key<Time> = Key {
    name: "answer_timeout",
    kind: Time { min: Duration::from_secs(1), max: Duration::from_secs(24 * 3600) },
    presence: Presence::Default("\"5m\""),
    doc: "How long a request waits for its rows to be durable; then it is answered with 504. The rows are still \
          being loaded, so a client that sends them again should have named an `Idempotency-Key`.",
};

pub(in crate::config) static MAX_CONNECTIONS: Key<Count> = Key {
    name: "max_connections",
    kind: Count { min: 1, max: 100_000 },
    presence: Presence::Default("10_000"),
    doc: "Open connections; further ones wait to be accepted. Idle ones are closed after a minute. Each needs an open \
          file: `ulimit -n` is raised as far as `ulimit -Hn` lets it, and 128 files are kept for everything else.",
};

pub(in crate::config) static IDEMPOTENCY_WINDOW: Key<Time> = Key {
    name: "idempotency_window",
    kind: Time { min: Duration::from_secs(1), max: Duration::from_secs(24 * 3600) },
    presence: Presence::Default("\"10m\""),
    doc: "How long the answer to a request with an `Idempotency-Key` is kept for repetitions of it. It is kept in \
          memory: a restart forgets it.",
};

pub(in crate::config) static IDEMPOTENCY_KEYS: Key<Count> = Key {
    name: "idempotency_keys",
    kind: Count { min: 1, max: 10_000_000 },
    presence: Presence::Default("100_000"),
    doc: "How many such answers are kept; the oldest go first.",
};

pub(in crate::config) static TLS: Section = Section {
    path: &["source", "http", "tls"],
    repeated: false,
    rare: true,
    doc: "Takes HTTPS instead of HTTP.",
    keys: &[&CERTIFICATE, &KEY, &CLIENT_CA],
    tables: &[],
};

pub(in crate::config) static CERTIFICATE: Key<FilePath> = Key {
    name: "certificate",
    kind: FilePath { expected: "a PEM file", must_exist: true },
    presence: Presence::Required("\"server.pem\""),
    doc: "The server's certificate and those between it and its authority, as PEM.",
};

pub(in crate::config) static KEY: Key<FilePath> = Key {
    name: "key",
    kind: FilePath { expected: "a PEM file", must_exist: true },
    presence: Presence::Required("\"server-key.pem\""),
    doc: "The key of `certificate`, as PEM without a password.",
};

pub(in crate::config) static CLIENT_CA: Key<FilePath> = Key {
    name: "client_ca",
    kind: FilePath { expected: "a PEM file", must_exist: true },
    presence: Presence::Optional { example: "\"clients.pem\"", without: "clients need no certificate" },
    doc: "Authorities of client certificates, as PEM: a client without a certificate of theirs is refused.",
};

/// What an `Authorization` header can carry behind `Bearer ` (RFC 6750, 2.1, and a little more).
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}
