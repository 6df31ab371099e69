//! What Postgres refuses, and what to do about it: SQLSTATE and text → a fault with the SQL that mends it.

use std::error::Error;
use std::io;

use pgwire_replication::PgWireError;
use rustls::Error as TlsError;

use super::quote::{friendly, identifier, literal};
use crate::config::model::Postgres;
use crate::fault::{Fault, FaultKind};

/// Why something did not work, whichever client met it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The server said no.
    #[error("{message} (SQLSTATE {code})")]
    Server {
        /// SQLSTATE, five characters.
        code: String,
        /// Its message.
        message: String,
    },
    /// No connection, or it broke: the operating system's words.
    #[error("{0}")]
    Network(String),
    /// The log-in cannot be done as the server wants it.
    #[error("{0}")]
    LogIn(String),
    /// TLS was not agreed.
    #[error("{0}")]
    Tls(String),
    /// What came was not the protocol.
    #[error("{0}")]
    Protocol(String),
    /// No answer in this many seconds.
    #[error("no answer within {0} s")]
    Late(u64),
    /// A message of the server exceeds the limit.
    #[error("a message of {bytes} bytes exceeds the limit of {limit} bytes")]
    TooLong {
        /// Its length in bytes.
        bytes: usize,
        /// The limit in bytes.
        limit: usize,
    },
}

impl Failure {
    /// A server's refusal.
    pub fn server(code: &str, message: &str) -> Failure {
        Failure::Server { code: code.to_owned(), message: message.to_owned() }
    }

    /// The cause at the bottom of an error of connecting.
    pub(super) fn unreached(error: &(dyn Error + 'static)) -> Failure {
        let mut cause = error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        Failure::Network(cause.to_string())
    }

    /// SQLSTATE, if the server spoke.
    pub fn code(&self) -> Option<&str> {
        match self {
            Failure::Server { code, .. } => Some(code),
            Failure::Network(_)
            | Failure::LogIn(_)
            | Failure::Tls(_)
            | Failure::Protocol(_)
            | Failure::Late(_)
            | Failure::TooLong { .. } => None,
        }
    }

    /// The failure as a fault of `source`; `attempted` completes "cannot …".
    pub fn fault(self, attempted: &str, source: &Postgres) -> Fault {
        let place = Place(source);
        let (kind, hint) = match &self {
            Failure::Server { code, message } => verdict(code, message, &place),
            Failure::Network(_) | Failure::Late(_) => (
                FaultKind::Retry,
                Some(format!("check that Postgres runs and can be reached at {}", place.address())),
            ),
            Failure::LogIn(_) => (FaultKind::Halt, Some(place.log_in_hint())),
            Failure::Tls(_) => {
                (FaultKind::Halt, Some("check [source.postgres.tls]: its mode, and `ca`".to_owned()))
            }
            Failure::Protocol(_) => (FaultKind::Retry, None),
            Failure::TooLong { .. } => (
                FaultKind::Halt,
                Some("leave the column with the long values out of the publication".to_owned()),
            ),
        };
        let what = format!("cannot {attempted}");
        let fault = match (kind, hint) {
            (FaultKind::Retry, None) => Fault::retry(what),
            (FaultKind::Retry, Some(hint)) => Fault::retry(what).with_hint(hint),
            (FaultKind::Reject | FaultKind::Halt, hint) => Fault::halt(
                what,
                hint.unwrap_or_else(|| "mend what the server names and start again".to_owned()),
            ),
        };
        fault.caused_by(self)
    }
}

/// What a stream says that ended in the middle.
const CLOSED: &str = "the server closed the connection";

/// A broken connection passes; a certificate that is not accepted does not.
fn of_stream(error: &io::Error) -> Failure {
    if error.get_ref().is_some_and(|inner| inner.is::<TlsError>()) {
        return Failure::Tls(error.to_string());
    }
    let words =
        if error.kind() == io::ErrorKind::UnexpectedEof { CLOSED.to_owned() } else { error.to_string() };
    Failure::Network(words)
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        of_stream(&error)
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        if let Some(said) = error.as_db_error() {
            return Failure::server(said.code().code(), said.message());
        }
        if error.is_closed() {
            return Failure::Network(CLOSED.to_owned());
        }
        let words = match error.source() {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        };
        // The client tells its kinds apart by their text only.
        if words.starts_with("invalid configuration") || words.starts_with("authentication error") {
            return Failure::LogIn(words);
        }
        match error.source().and_then(|cause| cause.downcast_ref::<io::Error>()) {
            Some(cause) => of_stream(cause),
            None => Failure::Protocol(words),
        }
    }
}

impl From<PgWireError> for Failure {
    fn from(error: PgWireError) -> Self {
        match error {
            PgWireError::Io(error) => of_stream(&error),
            PgWireError::Server(text) => match split_code(&text) {
                Some((message, code)) => Failure::server(code, message),
                None => Failure::Protocol(text),
            },
            PgWireError::Auth(text) => Failure::LogIn(text),
            // A server that goes down during the handshake is told as a failure of TLS, too.
            PgWireError::Tls(text) => {
                let broken = ["handshake eof", "eset by peer", "roken pipe", "timed out"];
                let passing = broken.iter().any(|words| text.contains(words));
                if passing { Failure::Network(text) } else { Failure::Tls(text) }
            }
            PgWireError::MessageTooLarge { payload_bytes, limit_bytes } => {
                Failure::TooLong { bytes: payload_bytes, limit: limit_bytes }
            }
            // Its enum is open; what is left speaks of the exchange: Protocol, Task, Internal.
            other => Failure::Protocol(other.to_string()),
        }
    }
}

/// `… (SQLSTATE 42704)` → message and code.
fn split_code(text: &str) -> Option<(&str, &str)> {
    let (message, rest) = text.rsplit_once(" (SQLSTATE ")?;
    let code = rest.strip_suffix(')')?;
    (code.len() == 5).then_some((message, code))
}

/// The settings that hints name.
struct Place<'a>(&'a Postgres);

impl Place<'_> {
    fn address(&self) -> String {
        format!("{}:{}", self.0.host, self.0.port)
    }

    fn log_in_hint(&self) -> String {
        "check `user` and `password` in [source.postgres]".to_owned()
    }

    fn role(&self) -> String {
        friendly(&self.0.user)
    }

    fn drop_slot(&self) -> String {
        format!("SELECT pg_drop_replication_slot({})", literal(&self.0.slot))
    }

    fn start_over(&self) -> String {
        format!(
            "`{}`, then start again with snapshot = \"initial\": the tables are copied anew",
            self.drop_slot()
        )
    }
}

/// What follows from a refusal: policy, and what to do.
fn verdict(code: &str, message: &str, place: &Place<'_>) -> (FaultKind, Option<String>) {
    use FaultKind::{Halt, Retry};
    match code {
        "28P01" | "28000" | "0P000" => (Halt, Some(log_in(message, place))),
        "3D000" => (Halt, Some("check `database` in [source.postgres]".to_owned())),
        "42501" => (Halt, Some(missing_right(message, place))),
        "55000" => (Halt, Some(wrong_state(message, place))),
        "55006" => {
            let query = format!(
                "SELECT pid, application_name FROM pg_stat_activity WHERE pid = (SELECT active_pid FROM \
                 pg_replication_slots WHERE slot_name = {})",
                literal(&place.0.slot)
            );
            (Retry, Some(format!("another process reads the slot: waiting for it to end; who it is: `{query}`")))
        }
        "42704" => (Halt, Some(missing_object(message, place))),
        "42710" => (Halt, Some(format!("drop what is there already, or name another one in [source.postgres]: `{}`", place.drop_slot()))),
        "42602" => (Halt, Some("slot names are of lower-case letters, digits and underscores: mend `slot` in [source.postgres]".to_owned())),
        "53400" => (Halt, Some("drop a slot that nobody uses, or `ALTER SYSTEM SET max_replication_slots = …` and restart the server".to_owned())),
        "53300" => (Retry, Some(too_many(message).to_owned())),
        "57P04" => (Halt, Some("the database was dropped: check `database` in [source.postgres]".to_owned())),
        "58P01" if message.contains("WAL segment") => (Halt, Some(format!("the slot has lost its place in the log: {}", place.start_over()))),
        "0A000" => (Halt, Some(unsupported(message, place))),
        "25006" => (Halt, Some("the server is a standby: set `host` in [source.postgres] to the primary".to_owned())),
        "42P01" | "42703" => (Halt, Some("the table was changed while it was being read: `tidemill check --online` tells how it stands".to_owned())),
        "22021" | "22P05" => (Halt, Some(not_utf8())),
        "54000" => (Halt, Some("a row is too long to be sent: leave its longest column out of the publication".to_owned())),
        "55P03" => (Retry, Some("somebody holds a lock on a table: `SELECT pid, query FROM pg_stat_activity WHERE pid IN (SELECT pid FROM pg_locks WHERE mode = 'AccessExclusiveLock')`".to_owned())),
        // The snapshot is gone with the session that exported it: a new one is taken.
        "22023" if message.contains("snapshot") => (Retry, None),
        _ if passing(code) => (Retry, None),
        _ if message.contains("pgoutput option") => (Halt, Some("the server is too old: PostgreSQL 14 is the least".to_owned())),
        _ => (Halt, None),
    }
}

/// Classes and codes that pass by themselves: connection exceptions, roll-backs, resources, operator's doing, I/O.
fn passing(code: &str) -> bool {
    const CLASSES: [&str; 5] = ["08", "40", "53", "57", "58"];
    CLASSES.iter().any(|class| code.starts_with(class))
        || code == "XX000"
        || code == "25P02"
        || code == "25P03"
}

/// The server checks what it sends against the encoding of the connection, which is UTF-8 but for the stream and the copy of a
/// SQL_ASCII database.
fn not_utf8() -> String {
    "the database holds text that is not UTF-8, or not in its own encoding: mend the values with the bytes that the \
     message names; a change that is in the log already cannot be mended there: drop the slot, and copy the tables anew"
        .to_owned()
}

fn log_in(message: &str, place: &Place<'_>) -> String {
    if message.contains("pg_hba.conf") {
        let kind = if message.contains("for replication connection") { "replication" } else { "all" };
        let row = format!("host {kind} {} <address of this machine> scram-sha-256", place.role());
        return format!(
            "add `{row}` to pg_hba.conf and `SELECT pg_reload_conf()`; where it wants TLS, set mode = \"require\" in \
             [source.postgres.tls]"
        );
    }
    if message.contains("is not permitted to log in") {
        return format!("`ALTER ROLE {} LOGIN`", identifier(&place.0.user));
    }
    place.log_in_hint()
}

fn missing_right(message: &str, place: &Place<'_>) -> String {
    let role = identifier(&place.0.user);
    if ["walsender", "WAL sender", "replication slots", "replication role"]
        .iter()
        .any(|words| message.contains(words))
    {
        return format!("`ALTER ROLE {role} REPLICATION` (Amazon RDS: `GRANT rds_replication TO {role}`)");
    }
    let named = |kind: &str| {
        message.strip_prefix("permission denied for ").and_then(|rest| rest.strip_prefix(kind)).map(str::trim)
    };
    if let Some(schema) = named("schema ") {
        return format!("`GRANT USAGE ON SCHEMA {} TO {role}`", friendly(schema));
    }
    if let Some(table) = named("table ") {
        return format!(
            "`GRANT SELECT ON {} TO {role}`: copying a table needs it, following its changes does not",
            friendly(table)
        );
    }
    if let Some(database) = named("database ") {
        return format!(
            "`GRANT CREATE ON DATABASE {} TO {role}`, or create the publication as its owner",
            friendly(database)
        );
    }
    if message.contains("must be owner") {
        return "run the statements of `tidemill check --online` as the owner of the tables and the publication".to_owned();
    }
    format!("give role {role} the right that the message names")
}

fn wrong_state(message: &str, place: &Place<'_>) -> String {
    if message.contains("wal_level") {
        return "`ALTER SYSTEM SET wal_level = 'logical'` and restart the server (Amazon RDS: rds.logical_replication = 1 \
                in the parameter group)"
            .to_owned();
    }
    if message.contains("was not created in this database") {
        return format!(
            "the slot belongs to another database: name another one as `slot` in [source.postgres], or drop it: `{}`",
            place.drop_slot()
        );
    }
    // Up to 15 the reason is in the detail, which the replication client does not tell.
    let lost = [
        "cannot read from logical replication slot",
        "exceeded the maximum reserved size",
        "can no longer",
        "invalidated",
    ];
    if lost.iter().any(|words| message.contains(words)) {
        return format!(
            "the slot fell behind max_slot_wal_keep_size and the log it needs is gone: {}; a larger \
             max_slot_wal_keep_size keeps it from happening again",
            place.start_over()
        );
    }
    "mend what the server names and start again".to_owned()
}

fn missing_object(message: &str, place: &Place<'_>) -> String {
    if message.contains("publication") {
        return format!(
            "publication {} was dropped, or made after the slot, whose place in the log knows nothing of it: {}",
            place.0.publication,
            place.start_over()
        );
    }
    if message.contains("replication slot") {
        return "the slot was dropped, and with it the place up to which changes were read: start again with \
                snapshot = \"initial\""
            .to_owned();
    }
    if message.contains("role") {
        return place.log_in_hint();
    }
    "`tidemill check --online` tells what is missing".to_owned()
}

fn too_many(message: &str) -> &'static str {
    if message.contains("max_wal_senders") {
        return "another reader has to end, or `ALTER SYSTEM SET max_wal_senders = …` and restart the server";
    }
    "another client has to end, or `ALTER SYSTEM SET max_connections = …` and restart the server"
}

fn unsupported(message: &str, place: &Place<'_>) -> String {
    if message.contains("different column lists") {
        return format!("give the table one column list in publication {}", place.0.publication);
    }
    if message.contains("recovery") {
        return "the server is a standby, which can decode only from PostgreSQL 16 on: set `host` to the primary".to_owned();
    }
    if message.contains("physical replication slot") {
        return format!(
            "the slot is a physical one: name another one as `slot`, or drop it: `{}`",
            place.drop_slot()
        );
    }
    "the server is too old: PostgreSQL 14 is the least".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::postgres::preflight::fixtures::source;

    fn check(code: &str, message: &str, kind: FaultKind, hint: &str) {
        let fault = Failure::server(code, message).fault("do it", &source());
        assert_eq!(fault.kind, kind, "{code} {message}");
        assert!(fault.story().contains(hint), "{code} {message}: {}", fault.story());
        assert!(fault.story().contains(message), "{}", fault.story());
    }

    #[test]
    fn refusals_that_need_a_person_name_the_mend() {
        for (code, message, hint) in [
            ("55000", "logical decoding requires wal_level >= logical", "SET wal_level = 'logical'"),
            (
                "42501",
                "must be superuser or replication role to start walsender",
                "ALTER ROLE \"reader\" REPLICATION",
            ),
            ("42501", "permission denied to start WAL sender", "ALTER ROLE \"reader\" REPLICATION"),
            ("42501", "permission denied for table orders", "GRANT SELECT ON orders TO \"reader\""),
            ("42501", "permission denied for schema Shop", "GRANT USAGE ON SCHEMA \"Shop\" TO \"reader\""),
            ("42501", "permission denied for database shop", "GRANT CREATE ON DATABASE shop TO"),
            ("42501", "must be owner of table orders", "as the owner"),
            ("28P01", "password authentication failed for user \"reader\"", "check `user` and `password`"),
            (
                "28000",
                "no pg_hba.conf entry for replication connection from host \"10.0.0.1\", user \"reader\", no encryption",
                "host replication reader",
            ),
            ("3D000", "database \"nowhere\" does not exist", "check `database`"),
            ("53400", "all replication slots are in use", "max_replication_slots"),
            ("42704", "replication slot \"tidemill_shop\" does not exist", "snapshot = \"initial\""),
            ("42704", "publication \"tidemill_shop\" does not exist", "made after the slot"),
            (
                "55000",
                "replication slot \"tidemill_shop\" was not created in this database",
                "another database",
            ),
            (
                "42710",
                "replication slot \"tidemill_shop\" already exists",
                "pg_drop_replication_slot('tidemill_shop')",
            ),
            ("42602", "replication slot name \"A\" contains invalid character", "lower-case letters"),
            ("55000", "cannot read from logical replication slot \"tidemill_shop\"", "copied anew"),
            (
                "55000",
                "This slot has been invalidated because it exceeded the maximum reserved size.",
                "max_slot_wal_keep_size",
            ),
            (
                "58P01",
                "requested WAL segment 000000010000000000000001 has already been removed",
                "lost its place",
            ),
            ("0A000", "client sent proto_version=4 but we only support protocol 3 or lower", "PostgreSQL 14"),
            ("0A000", "cannot use different column lists for table \"public.t\"", "one column list"),
            ("25006", "cannot execute CREATE PUBLICATION in a read-only transaction", "primary"),
            ("42601", "streaming requires a Boolean value", "mend what the server names"),
        ] {
            check(code, message, FaultKind::Halt, hint);
        }
    }

    #[test]
    fn what_passes_is_tried_again() {
        for (code, message, hint) in [
            ("57P01", "terminating connection due to administrator command", ""),
            ("57P02", "terminating connection because of crash of another server process", ""),
            ("57P03", "the database system is starting up", ""),
            ("08006", "connection failure", ""),
            (
                "53300",
                "number of requested standby connections exceeds max_wal_senders (currently 10)",
                "max_wal_senders",
            ),
            ("53300", "sorry, too many clients already", "max_connections"),
            ("55006", "replication slot \"tidemill_shop\" is active for PID 7", "active_pid"),
            ("55P03", "canceling statement due to lock timeout", "pg_locks"),
            ("22023", "invalid snapshot identifier: \"00000003-00000002-1\"", ""),
            ("40001", "canceling statement due to conflict with recovery", ""),
            ("53100", "could not write to file: No space left on device", ""),
        ] {
            check(code, message, FaultKind::Retry, hint);
        }
    }

    #[test]
    fn the_replication_client_tells_the_code_in_its_text() {
        let said = PgWireError::Server("replication slot \"x\" does not exist (SQLSTATE 42704)".to_owned());
        assert_eq!(Failure::from(said), Failure::server("42704", "replication slot \"x\" does not exist"));
        let unknown = PgWireError::Server("unknown server error".to_owned());
        assert_eq!(Failure::from(unknown), Failure::Protocol("unknown server error".to_owned()));
        let fault = Failure::from(PgWireError::Auth("no".to_owned())).fault("follow the changes", &source());
        assert_eq!(fault.kind, FaultKind::Halt);
        let large = PgWireError::MessageTooLarge { payload_bytes: 70 << 20, limit_bytes: 64 << 20 };
        assert_eq!(Failure::from(large).fault("read", &source()).kind, FaultKind::Halt);
    }

    #[test]
    fn a_handshake_that_breaks_passes_and_one_that_is_refused_does_not() {
        let kind = |failure: Failure| failure.fault("connect", &source()).kind;
        let refused = TlsError::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let refused = io::Error::new(io::ErrorKind::InvalidData, refused);
        assert_eq!(kind(Failure::from(refused)), FaultKind::Halt);
        let eof = io::Error::new(io::ErrorKind::UnexpectedEof, "tls handshake eof");
        assert_eq!(kind(Failure::from(eof)), FaultKind::Retry);
        let told = |text: &str| Failure::from(PgWireError::Tls(text.to_owned()));
        assert_eq!(kind(told("TLS handshake failed: tls handshake eof")), FaultKind::Retry);
        let refused = "TLS handshake failed: invalid peer certificate: UnknownIssuer";
        assert_eq!(kind(told(refused)), FaultKind::Halt);
    }

    #[test]
    fn an_unreachable_server_is_tried_again_and_named() {
        let refused = Failure::from(io::Error::from(io::ErrorKind::ConnectionRefused));
        let fault = refused.fault("connect to Postgres", &source());
        assert_eq!(fault.kind, FaultKind::Retry);
        assert_eq!(
            fault.story(),
            "cannot connect to Postgres: connection refused; check that Postgres runs and can be reached at \
             db.example.com:5432"
        );
    }
}
