//! What the tests run against: a sandbox of their own, or the cluster that the environment names.

use mysql_async::prelude::Queryable;
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::time::{Duration, Instant};
use tidemill_sandbox::{Options, Sandbox};

use crate::wire::{self, Answer, Connection, Head};

const FE: &str = "TIDEMILL_STARROCKS_FE";
const QUERY: &str = "TIDEMILL_STARROCKS_QUERY";
const PASSWORD: &str = "TIDEMILL_STARROCKS_PASSWORD";

pub(crate) struct Target {
    sandbox: Option<Sandbox>,
    pub(crate) fe: String,
    query: String,
    pub(crate) password: String,
    /// Made for this test alone.
    pub(crate) db: String,
    connection: tokio::sync::Mutex<mysql_async::Conn>,
}

impl Target {
    /// The cluster of the environment, or a new sandbox with default settings.
    pub(crate) async fn any() -> Self {
        match std::env::var(FE) {
            Ok(fe) => {
                let fe = wire::authority(&fe);
                let host = fe.split(':').next().unwrap_or("127.0.0.1").to_owned();
                let query = std::env::var(QUERY).unwrap_or_else(|_| format!("{host}:9030"));
                Self::connect(None, fe, query, std::env::var(PASSWORD).unwrap_or_default()).await
            }
            Err(_) => Self::of(Sandbox::start(Options::default()).await.expect("free ports")).await,
        }
    }

    /// A new sandbox with these settings; `None`, with a line that says so, when the environment names a cluster.
    pub(crate) async fn sandbox(options: Options) -> Option<Self> {
        if std::env::var(FE).is_ok() {
            println!("skipped: needs a sandbox's faults or limits, and {FE} names a cluster");
            return None;
        }
        Some(Self::of(Sandbox::start(options).await.expect("free ports")).await)
    }

    /// As [`Target::any`], if it is of this release or a later one; `None`, with a line that says so, if it is older.
    pub(crate) async fn since(release: [u32; 3]) -> Option<Self> {
        let target = Self::any().await;
        let told = target.rows("SELECT current_version()").await.join("");
        let numbers = told.split(|letter: char| !letter.is_ascii_digit()).map_while(|part| part.parse().ok());
        let has: Vec<u32> = numbers.take(release.len()).collect();
        // A build without a number is of the main branch.
        if !has.is_empty() && has.as_slice() < release.as_slice() {
            println!("skipped: needs a release from {release:?} on, and this is {told}");
            return None;
        }
        Some(target)
    }

    async fn of(sandbox: Sandbox) -> Self {
        let fe = wire::authority(&sandbox.fe_url());
        let query = format!("127.0.0.1:{}", sandbox.query_port());
        Self::connect(Some(sandbox), fe, query, String::new()).await
    }

    async fn connect(sandbox: Option<Sandbox>, fe: String, query: String, password: String) -> Self {
        let (host, port) = query.split_once(':').expect("host:port");
        let options = mysql_async::OptsBuilder::default()
            .ip_or_hostname(host)
            .tcp_port(port.parse().expect("a port"))
            .user(Some("root"))
            .pass(Some(password.clone()).filter(|password| !password.is_empty()))
            .prefer_socket(false);
        let mut connection = mysql_async::Conn::new(options).await.expect("the query port answers");
        let db = format!("conformance_{}", random());
        connection.query_drop(format!("CREATE DATABASE {db}")).await.expect("a new database");
        connection.query_drop(format!("USE {db}")).await.expect("the new database");
        Self { sandbox, fe, query, password, db, connection: tokio::sync::Mutex::new(connection) }
    }

    /// Whether this is a sandbox, whose release is known to the letter.
    pub(crate) fn is_sandbox(&self) -> bool {
        self.sandbox.is_some()
    }

    pub(crate) fn own(&self) -> &Sandbox {
        self.sandbox.as_ref().expect("this test made its sandbox")
    }

    pub(crate) fn query_port(&self) -> (String, u16) {
        let (host, port) = self.query.split_once(':').expect("host:port");
        (host.to_owned(), port.parse().expect("a port"))
    }

    /// Runs a statement in the test's database.
    pub(crate) async fn sql(&self, sql: &str) {
        let mut connection = self.connection.lock().await;
        connection.query_drop(sql).await.unwrap_or_else(|error| panic!("{error} in {sql}"));
    }

    /// The rows of a query, values joined by commas.
    pub(crate) async fn rows(&self, sql: &str) -> Vec<String> {
        let mut connection = self.connection.lock().await;
        let rows: Vec<mysql_async::Row> =
            connection.query(sql).await.unwrap_or_else(|error| panic!("{error} in {sql}"));
        rows.into_iter()
            .map(|row| {
                let values = row.unwrap().into_iter().map(|value| match value {
                    mysql_async::Value::NULL => "NULL".to_owned(),
                    mysql_async::Value::Bytes(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                    other => other.as_sql(true),
                });
                values.collect::<Vec<_>>().join(",")
            })
            .collect()
    }

    /// The rows of a query, values by the names of their columns; NULL is left out.
    pub(crate) async fn named_rows(&self, sql: &str) -> Vec<BTreeMap<String, String>> {
        let mut connection = self.connection.lock().await;
        let rows: Vec<mysql_async::Row> =
            connection.query(sql).await.unwrap_or_else(|error| panic!("{error} in {sql}"));
        let named = |row: mysql_async::Row| {
            let names: Vec<String> =
                row.columns_ref().iter().map(|column| column.name_str().into()).collect();
            let values = names.into_iter().zip(row.unwrap()).filter_map(|(name, value)| match value {
                mysql_async::Value::NULL => None,
                mysql_async::Value::Bytes(bytes) => {
                    Some((name, String::from_utf8_lossy(&bytes).into_owned()))
                }
                other => Some((name, other.as_sql(true))),
            });
            values.collect()
        };
        rows.into_iter().map(named).collect()
    }

    pub(crate) async fn error(&self, sql: &str) -> mysql_async::ServerError {
        let mut connection = self.connection.lock().await;
        match connection.query_drop(sql).await {
            Err(mysql_async::Error::Server(error)) => error,
            other => panic!("{sql} was to be refused, but: {other:?}"),
        }
    }

    pub(crate) async fn count(&self, table: &str) -> u64 {
        let rows = self.rows(&format!("SELECT count(*) FROM {table}")).await;
        rows[0].parse().expect("a number")
    }

    /// `id BIGINT, name VARCHAR(20), qty INT` with the given key clause.
    pub(crate) async fn table(&self, name: &str, key: &str) {
        self.sql(&format!(
            "CREATE TABLE {name} (id BIGINT NOT NULL, name VARCHAR(20) DEFAULT 'none', qty INT) {key}(id) \
             DISTRIBUTED BY HASH(id) BUCKETS 1 PROPERTIES ('replication_num' = '1')"
        ))
        .await;
    }

    /// The head of a JSON load, as clients send it.
    pub(crate) fn load_head(&self, table: &str, label: &str) -> Head {
        Head::new("PUT", format!("/api/{}/{table}/_stream_load", self.db))
            .user("root", &self.password)
            .with("Expect", "100-continue")
            .with("label", label)
            .with("format", "json")
            .with("timeout", 60)
    }

    /// Asks the FE where to load; the BE's authority and path.
    pub(crate) async fn redirect(&self, head: &Head) -> io::Result<(String, String)> {
        let answer = wire::exchange(&self.fe, &head.clone().with("Content-Length", 0), b"").await?;
        assert_eq!(answer.status, 307, "{answer:?}");
        let location = answer.header("location").expect("a redirect names its target");
        Ok((wire::authority(location), wire::path(location)))
    }

    /// Follows the redirects of a request without its body, `max` at most: the authorities that were named, in their
    /// order, up to the first that is not the FE's.
    pub(crate) async fn redirects(&self, head: &Head, max: usize) -> io::Result<Vec<String>> {
        let mut named = Vec::new();
        while named.len() < max && named.last().is_none_or(|last| *last == self.fe) {
            named.push(self.redirect(head).await?.0);
        }
        Ok(named)
    }

    /// A whole load: FE, redirect, BE.
    pub(crate) async fn send(&self, head: &Head, body: &str) -> io::Result<Answer> {
        self.send_bytes(head, body.as_bytes()).await
    }

    /// The same with a body that need not be text.
    pub(crate) async fn send_bytes(&self, head: &Head, body: &[u8]) -> io::Result<Answer> {
        let (be, path) = self.redirect(head).await?;
        wire::exchange(&be, &Head { path, ..head.clone() }, body).await
    }

    /// A load that is to be answered.
    pub(crate) async fn load(&self, table: &str, label: &str, body: &str) -> Answer {
        self.send(&self.load_head(table, label), body).await.expect("an answer")
    }

    /// A load up to the BE's `100 Continue`, with its body announced and withheld.
    pub(crate) async fn begun(&self, table: &str, label: &str, body: &str) -> Connection {
        let head = self.load_head(table, label);
        let (be, path) = self.redirect(&head).await.expect("a redirect");
        let mut connection = Connection::open(&be).await.expect("the BE listens");
        connection.head(&Head { path, ..head }.with("Content-Length", body.len())).await.expect("written");
        assert_eq!(connection.answer().await.expect("an interim answer").status, 100);
        connection
    }

    pub(crate) async fn state(&self, label: &str) -> String {
        self.state_answer(label).await.expect("an answer").text("state")
    }

    pub(crate) async fn state_answer(&self, label: &str) -> io::Result<Answer> {
        let path = format!("/api/{}/get_load_state?label={label}", self.db);
        wire::exchange(&self.fe, &Head::new("GET", path).user("root", &self.password), b"").await
    }

    /// Waits until a label has this state.
    pub(crate) async fn until_state(&self, label: &str, state: &str) {
        until(&format!("{label} is {state}"), || async { self.state(label).await == state }).await;
    }

    /// Waits until a table has so many rows.
    pub(crate) async fn until_count(&self, table: &str, count: u64) {
        until(&format!("{table} has {count} rows"), || async { self.count(table).await == count }).await;
    }
}

/// Something that no other test uses.
pub(crate) fn random() -> String {
    use std::hash::{BuildHasher, RandomState};
    format!("{:016x}", RandomState::new().hash_one(Instant::now()))
}

/// Waits for a condition, for ten seconds at most.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition().await {
        assert!(Instant::now() < deadline, "ten seconds passed, and it is not so that {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
