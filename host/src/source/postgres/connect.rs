//! Connections of one pipeline to its source: for questions, for copying, for replication.

use std::fmt;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use pgwire_replication::{Lsn as WireLsn, ReplicationConfig};
use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, Config, NoTls};

use super::link::Link;
use super::lsn::Lsn;
use super::quote::identifier;
use super::session::{Mode, Session};
use super::tls::TlsPolicy;
use super::trouble::Failure;
use crate::config::model::Postgres;
use crate::fault::Fault;

/// Time to reach the server, TLS and log-in included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a question may wait for a table that somebody has locked.
const LOCK_TIMEOUT_MS: u32 = 10_000;
/// How long the server waits for a sign of life of its reader. Ours to choose, so that a server's own short one
/// does not cut off a reader that is busy.
const WAL_SENDER_TIMEOUT_MS: u32 = 60_000;
/// How often the reader tells how far it is: three times within the server's patience.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);
/// Longest message that is read: one row. Postgres itself ends at 1 GB.
const MESSAGE_BYTES_MAX: usize = 256 << 20;
/// Events that the replication client holds; its channel counts events and not bytes, so few.
const BUFFER_EVENTS: usize = 256;

/// Settings that change how values are written. They are pinned on every connection, because a role or a
/// database may have others and the snapshot must be written like the stream (postgres-cdc.md §2.15).
const PINNED: [(&str, &str); 10] = [
    ("datestyle", "ISO"),
    ("timezone", "UTC"),
    ("intervalstyle", "iso_8601"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("lc_monetary", "C"),
    ("statement_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("default_transaction_isolation", "read\\ committed"),
    ("search_path", "pg_catalog"),
];

/// Has text sent as it is where the server does not know its encoding. It would otherwise end the stream, or the COPY, at the
/// first value that is not UTF-8: we can keep such a row as a dead letter, and go on.
pub(super) const RAW_TEXT_SQL: &str = "SELECT pg_catalog.set_config('client_encoding', 'SQL_ASCII', false) \
     WHERE pg_catalog.current_setting('server_encoding') = 'SQL_ASCII'";

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Questions,
    Copy,
    Replication,
}

fn options(purpose: Purpose) -> String {
    let own: &[(&str, String)] = &match purpose {
        Purpose::Questions => [("lock_timeout", LOCK_TIMEOUT_MS.to_string())],
        // A policy that hides rows fails the copy, instead of copying fewer rows.
        Purpose::Copy => [("row_security", "off".to_owned())],
        Purpose::Replication => [("wal_sender_timeout", WAL_SENDER_TIMEOUT_MS.to_string())],
    };
    let pinned = PINNED.iter().map(|(name, value)| format!("-c {name}={value}"));
    let own = own.iter().map(|(name, value)| format!("-c {name}={value}"));
    pinned.chain(own).collect::<Vec<_>>().join(" ")
}

/// Opens the connections of one pipeline.
#[derive(Debug, Clone)]
pub struct Connector {
    source: Arc<Postgres>,
    application_name: String,
    tls: Option<TlsPolicy>,
}

impl Connector {
    /// Reads the TLS files. Nothing is sent yet. The connections call themselves `tidemill <pipeline>`.
    ///
    /// # Errors
    /// `Halt` for TLS settings that cannot be used.
    pub fn new(source: &Postgres, pipeline: &str) -> Result<Connector, Fault> {
        let tls = if source.host.starts_with('/') { None } else { TlsPolicy::new(&source.tls)? };
        Ok(Connector { source: Arc::new(source.clone()), application_name: application_name(pipeline), tls })
    }

    /// The settings.
    pub fn source(&self) -> &Postgres {
        &self.source
    }

    /// What the connections call themselves.
    pub fn application_name(&self) -> &str {
        &self.application_name
    }

    /// A connection for questions and statements.
    ///
    /// # Errors
    /// `Halt` when the log-in or TLS is refused, `Retry` when the server cannot be reached within 10 seconds.
    pub async fn control(&self) -> Result<Control, Fault> {
        let opening = async {
            let link = self.link().await?;
            let mut config = Config::new();
            // TLS is in the link already.
            config
                .ssl_mode(SslMode::Disable)
                .user(&self.source.user)
                .dbname(&self.source.database)
                .application_name(&self.application_name)
                .options(options(Purpose::Questions));
            if let Some(password) = &self.source.password {
                config.password(password.reveal());
            }
            config.connect_raw(link, NoTls).await.map_err(Failure::from)
        };
        let (client, connection) = self.in_time(opening).await.map_err(|failure| self.unopened(failure))?;
        let end = Arc::new(OnceLock::new());
        let kept = Arc::clone(&end);
        // Ends by itself, with a farewell to the server, when the client is dropped.
        tokio::spawn(async move {
            let mut connection = pin!(connection);
            // Kept before the connection is dropped, which is when its client learns of the end.
            if let Err(error) = connection.as_mut().await {
                let _ = kept.set(Failure::from(error));
            }
        });
        Ok(Control { client, end, source: Arc::clone(&self.source) })
    }

    /// A connection that copies.
    ///
    /// # Errors
    /// As [`control`](Self::control).
    pub async fn copying(&self) -> Result<Session, Fault> {
        self.session(Mode::Ordinary, Purpose::Copy).await
    }

    /// A connection that knows replication commands: `IDENTIFY_SYSTEM`, `CREATE_REPLICATION_SLOT`, and SQL.
    ///
    /// # Errors
    /// As [`control`](Self::control); the role needs `REPLICATION`.
    pub async fn replication(&self) -> Result<Session, Fault> {
        self.session(Mode::Replication, Purpose::Replication).await
    }

    async fn session(&self, mode: Mode, purpose: Purpose) -> Result<Session, Fault> {
        let opening = async {
            let link = self.link().await?;
            let mut session =
                Session::log_in(link, &self.source, mode, &self.application_name, &options(purpose)).await?;
            if purpose == Purpose::Copy {
                session.run(RAW_TEXT_SQL).await?;
            }
            Ok(session)
        };
        self.in_time(opening).await.map_err(|failure| self.unopened(failure))
    }

    async fn link(&self) -> Result<Link, Failure> {
        Link::open(&self.source.host, self.source.port, self.tls.as_ref()).await
    }

    async fn in_time<T>(&self, opening: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        match tokio::time::timeout(CONNECT_TIMEOUT, opening).await {
            Ok(opened) => opened,
            Err(_) => Err(Failure::Late(CONNECT_TIMEOUT.as_secs())),
        }
    }

    fn unopened(&self, failure: Failure) -> Fault {
        let Postgres { host, port, database, user, .. } = &*self.source;
        failure.fault(
            &format!("connect to Postgres at {host}:{port}, database {database}, as {user}"),
            &self.source,
        )
    }

    /// Settings of the replication client, which is to stream from `start`.
    ///
    /// Open a connection of ours first: with `verify-ca` it learns the name that this client needs.
    ///
    /// # Errors
    /// `Halt` for a certificate that this client cannot accept.
    pub fn replication_config(&self, start: Lsn) -> Result<ReplicationConfig, Fault> {
        let source = &self.source;
        let password = source.password.as_ref().map_or("", |password| password.reveal());
        // The name goes into a list of identifiers: without quotes the server would fold its case.
        let publication = identifier(&source.publication);
        let mut config = ReplicationConfig::new(
            &source.host,
            &source.user,
            password,
            &source.database,
            &source.slot,
            publication,
        )
        .with_port(source.port)
        .with_start_lsn(WireLsn::from_u64(start.0))
        .with_status_interval(STATUS_INTERVAL)
        .with_buffer_size(BUFFER_EVENTS)
        .with_max_message_size(MESSAGE_BYTES_MAX)
        .with_options(options(Purpose::Replication))
        .with_application_name(&self.application_name);
        if let Some(policy) = &self.tls {
            config = config.with_tls(policy.for_replication(&source.host)?);
        }
        Ok(config)
    }
}

/// Postgres cuts names at 63 bytes, and makes `?` of what is not ASCII.
fn application_name(pipeline: &str) -> String {
    let mut name = format!("tidemill {pipeline}");
    name.truncate((0..=63).rev().find(|at| name.is_char_boundary(*at)).unwrap_or(0));
    name
}

/// A connection for questions and statements. Closed when dropped.
pub struct Control {
    client: Client,
    end: Arc<OnceLock<Failure>>,
    source: Arc<Postgres>,
}

impl Control {
    /// The client, for statements of one's own; [`fault`](Self::fault) explains its errors.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// An error of the client as a fault; `attempted` completes "cannot …".
    ///
    /// Of a closed connection the client says no more than that; why was told to the connection.
    pub fn fault(&self, attempted: &str, error: tokio_postgres::Error) -> Fault {
        let failure = match self.end.get() {
            Some(why) if error.is_closed() => why.clone(),
            Some(_) | None => Failure::from(error),
        };
        failure.fault(attempted, &self.source)
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control").field("end", &self.end).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::postgres::preflight::fixtures::source;

    #[test]
    fn values_are_written_alike_on_every_connection() {
        for purpose in [Purpose::Questions, Purpose::Copy, Purpose::Replication] {
            let options = options(purpose);
            assert!(
                options.starts_with("-c datestyle=ISO -c timezone=UTC -c intervalstyle=iso_8601"),
                "{options}"
            );
            assert!(
                options.contains("-c extra_float_digits=3 -c bytea_output=hex -c lc_monetary=C"),
                "{options}"
            );
        }
        assert!(options(Purpose::Replication).ends_with("-c wal_sender_timeout=60000"));
        assert!(options(Purpose::Copy).ends_with("-c row_security=off"));
    }

    #[test]
    fn the_replication_client_gets_the_same_settings() {
        let mut source = source();
        source.publication = "Mixed\"Case".to_owned();
        let connector = Connector::new(&source, "shop").expect("no files are needed");
        let config = connector.replication_config(Lsn(0x1_0000_0010)).expect("no certificate is looked at");
        assert_eq!(config.publication.names(), ["\"Mixed\"\"Case\""]);
        assert_eq!(config.start_lsn.to_string(), "1/10");
        assert_eq!(config.application_name.as_deref(), Some("tidemill shop"));
        assert_eq!((config.host.as_str(), config.port), ("db.example.com", 5432));
        assert!(config.options.expect("pinned").contains("bytea_output=hex"));
    }

    #[test]
    fn a_long_pipeline_name_is_cut_where_postgres_would() {
        assert_eq!(application_name(&"x".repeat(100)).len(), 63);
        assert!(application_name(&"ä".repeat(40)).len() <= 63);
    }
}
