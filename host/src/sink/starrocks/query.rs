//! The query port: what StarRocks knows of a table, by its MySQL protocol.

use std::time::Duration;

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Opts, OptsBuilder, Row, Value};
use tokio::time::error::Elapsed;

use super::address::Address;
use super::create_table::made_by_hand;
use crate::config::model::{StarRocks, TableModel};
use crate::fault::Fault;

/// Where a query port is unless the file says otherwise.
const QUERY_PORT: u16 = 9030;
/// Time for the connection, log-in included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for one statement: they only read the catalogue.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);
/// What MySQL clients know as "no such table" and "unknown table", and StarRocks' own number.
const NO_SUCH_TABLE_CODES: [u16; 3] = [1146, 1051, 5502];

/// What a query port says that does not know a statement: StarRocks has had SYNC from its beginnings, a proxy that speaks
/// the protocol in its place may not.
const NOT_KNOWN_WORDS: [&str; 5] =
    ["syntax", "unexpected input", "no viable statement", "not support", "unsupported"];

/// SQLSTATE "invalid authorization": unknown user, wrong password, no right to the database.
const NOT_AUTHORIZED: &str = "28000";

/// A column as `DESC` gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Name, in the spelling that JSON keys must have.
    pub name: String,
    /// Type in lower case, `varchar(64)` say.
    pub sql_type: String,
    /// Whether NULL is allowed.
    pub nullable: bool,
    /// Whether it belongs to the key.
    pub key: bool,
}

/// A connection to the query port. It reads what was written before it was made, whoever wrote it, and what it writes itself:
/// StarRocks promises another session's writes only after SYNC, and a FE that does not lead hears of them late. Closed when dropped, and once a statement was not answered in time: those that follow
/// fail at once.
#[derive(Debug)]
pub struct Query {
    /// None once a statement was not answered in time: its answer may still come, and would be read as the next one's.
    connection: Option<Conn>,
    address: String,
    database: String,
    patience: Duration,
}

impl Query {
    /// Connects and logs in, in at most 5 seconds, and waits until the FE has heard of all that was written so far.
    ///
    /// # Errors
    /// `Halt` when the credentials are refused, `Retry` when nobody answers, or the FE cannot ask the leading one.
    pub async fn connect(cluster: &StarRocks) -> Result<Self, Fault> {
        let (host, port) = query_address(cluster)?;
        let address = format!("{host}:{port}");
        let options: Opts = OptsBuilder::default()
            .ip_or_hostname(host)
            .tcp_port(port)
            .user(Some(cluster.user.clone()))
            .pass(Some(cluster.password.reveal()))
            // StarRocks tells of a socket that is not for clients.
            .prefer_socket(false)
            .into();
        let connection = match tokio::time::timeout(CONNECT_TIMEOUT, Conn::new(options)).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return Err(refused(&address, &cluster.user, error)),
            Err(_) => {
                let waited = CONNECT_TIMEOUT.as_secs();
                return Err(Fault::retry(format!("no log-in to the query port {address} within {waited} s"))
                    .with_hint("check `query` under [sink.starrocks] (9030 on the FE by default)"));
            }
        };
        let (connection, database) = (Some(connection), cluster.database.clone());
        let mut query = Self { connection, address, database, patience: STATEMENT_TIMEOUT };
        query.sync().await?;
        Ok(query)
    }

    /// Has what follows read all that other sessions wrote before. Needs no privilege.
    async fn sync(&mut self) -> Result<(), Fault> {
        match self.rows("SYNC").await {
            Ok(_none) => Ok(()),
            Err(failure) if failure.not_known() => {
                tracing::debug!(
                    query = %self.address, why = %self.fault(failure, "run SYNC").story(),
                    "SYNC is not known here: what other sessions wrote a moment ago may be read as it was before"
                );
                Ok(())
            }
            Err(failure) => Err(self.fault(failure, "wait for what other sessions wrote (SYNC)")),
        }
    }

    /// Whether the table is there.
    ///
    /// # Errors
    /// `Retry` when the statement fails for another reason.
    pub async fn table_exists(&mut self, table: &str) -> Result<bool, Fault> {
        self.table_model(table).await.map(|model| model.is_some())
    }

    /// The table's key model; none if there is no such table.
    ///
    /// # Errors
    /// `Retry` when the statement fails, `Halt` for what is no table of StarRocks' own.
    pub async fn table_model(&mut self, table: &str) -> Result<Option<TableModel>, Fault> {
        let name = self.name(table);
        let rows = match self.rows(&format!("SHOW CREATE TABLE {name}")).await {
            Ok(rows) => rows,
            Err(failure) if failure.no_such_table() => return Ok(None),
            Err(failure) => return Err(self.fault(failure, &format!("read the definition of {name}"))),
        };
        let statement = rows.first().and_then(|row| cell(row, 1));
        let Some(statement) = statement else {
            return Err(Fault::retry(format!("{} gave no definition of {name}", self.address)));
        };
        match model_of(&statement) {
            Some(model) => Ok(Some(model)),
            None => Err(Fault::halt(
                format!("{name} has no key model: it is a view or an external table"),
                "load into a Duplicate, Unique, Aggregate or Primary Key table",
            )),
        }
    }

    /// The table's columns in order; none if there is no such table.
    ///
    /// # Errors
    /// `Retry` when the statement fails.
    pub async fn columns(&mut self, table: &str) -> Result<Option<Vec<Column>>, Fault> {
        let name = self.name(table);
        let rows = match self.rows(&format!("DESC {name}")).await {
            Ok(rows) => rows,
            Err(failure) if failure.no_such_table() => return Ok(None),
            Err(failure) => return Err(self.fault(failure, &format!("read the columns of {name}"))),
        };
        let column = |row: &Row| {
            let yes = |text: String| matches!(text.to_ascii_lowercase().as_str(), "yes" | "true");
            Some(Column {
                name: named_cell(row, "Field")?,
                sql_type: named_cell(row, "Type")?.to_ascii_lowercase(),
                nullable: named_cell(row, "Null").is_some_and(yes),
                key: named_cell(row, "Key")
                    .is_some_and(|text| yes(text.clone()) || text.eq_ignore_ascii_case("pri")),
            })
        };
        Ok(Some(rows.iter().filter_map(column).collect()))
    }

    /// The most versions that any replica of a tablet of the table has, as the BEs last told the FE, which they do
    /// about once a minute. From StarRocks 3.0 on it takes the OPERATE privilege on SYSTEM and SELECT on the table.
    ///
    /// # Errors
    /// `Retry` when the statement fails, for lack of rights too, or tells of no versions: with shared data there is
    /// no such column.
    pub async fn versions(&mut self, table: &str) -> Result<u64, Fault> {
        let name = self.name(table);
        // A row a tablet, of which a table may have a hundred thousand: none of them is kept.
        let most = |most: Option<u64>, row: Row| {
            most.max(named_cell(&row, "VersionCount").and_then(|count| count.parse().ok()))
        };
        let most = match &mut self.connection {
            Some(connection) => {
                let asked = connection.query_fold(format!("SHOW TABLET FROM {name}"), None, most);
                let answered = tokio::time::timeout(self.patience, asked).await;
                self.answered(answered)
            }
            None => Err(Failure::Closed),
        };
        match most {
            Ok(Some(versions)) => Ok(versions),
            Ok(None) => Err(Fault::retry(format!("SHOW TABLET FROM {name} tells of no versions"))),
            Err(failure) => Err(self.fault(failure, &format!("read the versions of {name}"))),
        }
    }

    /// Runs a statement and gives its cells as text, NULL as none.
    ///
    /// # Errors
    /// `Retry` with StarRocks' own message.
    pub async fn execute(&mut self, statement: &str) -> Result<Vec<Vec<Option<String>>>, Fault> {
        match self.rows(statement).await {
            Ok(rows) => {
                Ok(rows.iter().map(|row| (0..row.len()).map(|index| cell(row, index)).collect()).collect())
            }
            Err(failure) => Err(self.fault(failure, "run a statement")),
        }
    }

    /// Whether a further statement can be answered.
    pub fn is_open(&self) -> bool {
        self.connection.is_some()
    }

    /// Runs a statement that makes a table.
    ///
    /// # Errors
    /// Halt, if StarRocks has refused it; retry, if it has not answered: the table may be there by now.
    pub async fn create_table(&mut self, statement: &str) -> Result<(), Fault> {
        let Err(failure) = self.rows(statement).await else { return Ok(()) };
        let is_refused = matches!(&failure, Failure::Refused(mysql_async::Error::Server(_)));
        let fault = self.fault(failure, "make a table");
        if !is_refused {
            return Err(fault);
        }
        let hint = made_by_hand(statement, &fault);
        Err(fault.with_hint(hint).halting())
    }

    fn name(&self, table: &str) -> String {
        format!("{}.{}", quoted(&self.database), quoted(table))
    }

    async fn rows(&mut self, statement: &str) -> Result<Vec<Row>, Failure> {
        let Some(connection) = &mut self.connection else { return Err(Failure::Closed) };
        let answered = tokio::time::timeout(self.patience, connection.query(statement)).await;
        self.answered(answered)
    }

    fn answered<T>(&mut self, answered: Result<mysql_async::Result<T>, Elapsed>) -> Result<T, Failure> {
        match answered {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                if matches!(error, mysql_async::Error::Io(_)) {
                    self.connection = None;
                }
                Err(Failure::Refused(error))
            }
            Err(_) => {
                self.connection = None;
                Err(Failure::Late)
            }
        }
    }

    fn fault(&self, failure: Failure, attempted: &str) -> Fault {
        match failure {
            Failure::Refused(error) => {
                Fault::retry(format!("cannot {attempted} over the query port {}", self.address))
                    .caused_by(error)
            }
            Failure::Late => Fault::retry(format!(
                "cannot {attempted} over the query port {} within {} s",
                self.address,
                self.patience.as_secs()
            )),
            Failure::Closed => Fault::retry(format!(
                "cannot {attempted}: the query port {} has left an earlier statement without an answer",
                self.address
            )),
        }
    }
}

/// The key model of `table`, over a connection of its own; none if there is no such table.
///
/// # Errors
/// As [`Query::connect`] and [`Query::table_model`].
pub async fn table_model(cluster: &StarRocks, table: &str) -> Result<Option<TableModel>, Fault> {
    Query::connect(cluster).await?.table_model(table).await
}

/// Why a statement has no rows.
enum Failure {
    Refused(mysql_async::Error),
    Late,
    /// An earlier one was late.
    Closed,
}

impl Failure {
    fn not_known(&self) -> bool {
        match self {
            Self::Refused(mysql_async::Error::Server(error)) => {
                let message = error.message.to_ascii_lowercase();
                NOT_KNOWN_WORDS.iter().any(|words| message.contains(words))
            }
            Self::Refused(_) | Self::Late | Self::Closed => false,
        }
    }

    fn no_such_table(&self) -> bool {
        match self {
            Self::Refused(mysql_async::Error::Server(error)) => {
                let message = error.message.to_ascii_lowercase();
                NO_SUCH_TABLE_CODES.contains(&error.code)
                    || message.contains("unknown table")
                    || message.contains("unknown database")
            }
            Self::Refused(_) | Self::Late | Self::Closed => false,
        }
    }
}

fn query_address(cluster: &StarRocks) -> Result<(String, u16), Fault> {
    let hint = "write `query = \"host:9030\"` under [sink.starrocks]";
    let unusable = || Fault::halt("the query port's address cannot be read", hint);
    let bare = |host: &str| host.trim_start_matches('[').trim_end_matches(']').to_owned();
    match &cluster.query {
        Some(query) => {
            let (host, port) = query.rsplit_once(':').ok_or_else(unusable)?;
            Ok((bare(host), port.parse().map_err(|_| unusable())?))
        }
        None => {
            let (fe, _) = cluster.fe.first().and_then(|fe| Address::split(fe)).ok_or_else(unusable)?;
            Ok((bare(&fe.host), QUERY_PORT))
        }
    }
}

fn refused(address: &str, user: &str, error: mysql_async::Error) -> Fault {
    let denied = matches!(&error, mysql_async::Error::Server(server) if server.state == NOT_AUTHORIZED);
    if denied {
        let what = format!("the query port {address} refused the log-in of user {user}");
        return Fault::halt(what, "check `user` and `password` under [sink.starrocks]").caused_by(error);
    }
    let fault = Fault::retry(format!("cannot connect to the query port {address}"))
        .with_hint("check `query` under [sink.starrocks] (9030 on the FE by default)");
    match error {
        // The operating system's own words, without the two layers of the client around them.
        mysql_async::Error::Io(mysql_async::IoError::Io(error)) => fault.caused_by(error),
        error => fault.caused_by(error),
    }
}

/// The model in a `CREATE TABLE` statement: a line of its own, `PRIMARY KEY(…)` or the like.
fn model_of(statement: &str) -> Option<TableModel> {
    let models = [
        ("PRIMARY KEY", TableModel::Primary),
        ("UNIQUE KEY", TableModel::Unique),
        ("AGGREGATE KEY", TableModel::Aggregate),
        ("DUPLICATE KEY", TableModel::Duplicate),
    ];
    // Behind the columns: a comment of a column may say anything, the table's own comment comes later.
    let lines = statement.lines().map(|line| line.trim().trim_start_matches(')').trim().to_ascii_uppercase());
    for line in lines {
        if let Some((_, model)) = models.iter().find(|(words, _)| {
            line.strip_prefix(words).is_some_and(|rest| rest.trim_start().starts_with('('))
        }) {
            return Some(*model);
        }
    }
    // Tables by default: a definition without a key clause is a Duplicate Key table.
    let upper = statement.trim_start().to_ascii_uppercase();
    (upper.starts_with("CREATE TABLE") && upper.contains("DISTRIBUTED BY")).then_some(TableModel::Duplicate)
}

fn cell(row: &Row, index: usize) -> Option<String> {
    match row.as_ref(index)? {
        Value::NULL => None,
        Value::Bytes(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        other => Some(other.as_sql(true).trim_matches('\'').to_owned()),
    }
}

fn named_cell(row: &Row, name: &str) -> Option<String> {
    let index = row.columns_ref().iter().position(|column| column.name_str().eq_ignore_ascii_case(name))?;
    cell(row, index)
}

fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

#[cfg(test)]
mod tests {
    use tidemill_sandbox::{Fault as Lags, FaultKind, Options, Sandbox};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::watch;

    use super::*;
    use crate::config::model::Secret;
    use crate::sink::starrocks::scripted::{Nobody, cluster};

    #[test]
    fn the_model_is_read_from_the_definition() {
        let check = |tail: &str, model: Option<TableModel>| {
            let statement = format!(
                "CREATE TABLE `orders` (\n  `id` bigint NOT NULL COMMENT \"PRIMARY KEY(no)\"\n) {tail}"
            );
            assert_eq!(model_of(&statement), model, "{tail}");
        };
        let distributed =
            "\nCOMMENT \"x\"\nDISTRIBUTED BY HASH(`id`)\nPROPERTIES (\n\"replication_num\" = \"1\"\n);";
        check(&format!("ENGINE=OLAP \nPRIMARY KEY(`id`){distributed}"), Some(TableModel::Primary));
        check(&format!("ENGINE=OLAP\nUNIQUE KEY (`id`){distributed}"), Some(TableModel::Unique));
        check(&format!("ENGINE=OLAP\nAGGREGATE KEY(`id`){distributed}"), Some(TableModel::Aggregate));
        check(&format!("DUPLICATE KEY(`id`){distributed}"), Some(TableModel::Duplicate));
        check(&format!("ENGINE=OLAP {distributed}"), Some(TableModel::Duplicate));
        check("ENGINE=MYSQL\nPROPERTIES (\"host\" = \"h\")", None);
        assert_eq!(model_of("CREATE VIEW `v` AS SELECT 1"), None);
    }

    #[test]
    fn the_query_port_follows_the_first_fe_unless_it_is_given() {
        let check = |fe: &str, query: Option<&str>, host: &str, port: u16| {
            let mut file = cluster(&[fe]);
            file.query = query.map(str::to_owned);
            assert_eq!(query_address(&file).expect("an address"), (host.to_owned(), port), "{fe} {query:?}");
        };
        check("http://fe1:8030", None, "fe1", 9030);
        check("http://[::1]:8030", None, "::1", 9030);
        check("http://fe1:8030", Some("other:19030"), "other", 19030);
        let mut file = cluster(&["http://fe1:8030"]);
        file.query = Some("other".into());
        assert!(query_address(&file).is_err_and(|fault| fault.hint.is_some()));
    }

    #[tokio::test]
    async fn a_query_port_that_nobody_listens_on_is_a_passing_failure_with_a_hint() {
        let mut file = cluster(&["http://127.0.0.1:8030"]);
        let nobody = Nobody::new();
        file.query = Some(nobody.url.trim_start_matches("http://").to_owned());
        let fault = Query::connect(&file).await.expect_err("nobody listens");
        assert_eq!(fault.kind, crate::fault::FaultKind::Retry);
        assert!(fault.hint.as_ref().is_some_and(|hint| hint.contains("query")));
        assert_eq!(fault.story().matches("refused").count(), 1, "{}", fault.story());
        assert!(!fault.story().contains("Input/output"), "{}", fault.story());
    }

    /// A line to a query port, for one connection: what the server says waits while it is held.
    async fn line_to(port: u16, mut held: watch::Receiver<bool>) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let this = listener.local_addr().expect("bound").port();
        tokio::spawn(async move {
            let (client, _) = listener.accept().await.expect("a client");
            let server = TcpStream::connect(("127.0.0.1", port)).await.expect("a server");
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = server.into_split();
            tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
            let mut said = vec![0; 1 << 16];
            while let Ok(length @ 1..) = from_server.read(&mut said).await {
                let let_go = held.wait_for(|held| !held).await.is_ok();
                if !let_go || to_client.write_all(&said[..length]).await.is_err() {
                    return;
                }
            }
        });
        this
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_late_answer_is_nobodys() {
        let sandbox = Sandbox::start(Options::default()).await.expect("free ports");
        sandbox.execute("CREATE DATABASE shop").expect("a database");
        sandbox.execute("CREATE TABLE shop.orders (id BIGINT) DUPLICATE KEY(id)").expect("a table");
        let (hold, held) = watch::channel(false);
        let mut file = cluster(&[&sandbox.fe_url()]);
        file.query = Some(format!("127.0.0.1:{}", line_to(sandbox.query_port(), held).await));
        file.password = Secret::default();
        let query = Query::connect(&file).await.expect("a query port");
        let mut query = Query { patience: Duration::from_millis(100), ..query };
        hold.send(true).expect("the line stands");
        let late = query.versions("orders").await.expect_err("nothing comes through");
        assert!(late.what.contains("within"), "{}", late.what);
        hold.send(false).expect("the line stands");
        // What comes now is what was asked first.
        query.patience = STATEMENT_TIMEOUT;
        let refused = query.table_exists("nothing").await.expect_err("it would be read as this one's");
        assert!(refused.what.contains("earlier statement"), "{}", refused.what);
        assert!(query.versions("orders").await.is_err());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_connection_reads_what_others_wrote_before_it() {
        let sandbox = Sandbox::start(Options::default()).await.expect("free ports");
        for sql in [
            "CREATE DATABASE shop",
            "CREATE TABLE shop.orders (id BIGINT) PRIMARY KEY(id)",
            "INSERT INTO shop.orders (id) VALUES (1)",
        ] {
            sandbox.execute(sql).expect("well-formed");
        }
        let mut file = cluster(&[&sandbox.fe_url()]);
        file.query = Some(format!("127.0.0.1:{}", sandbox.query_port()));
        file.password = Secret::default();
        let count = async || {
            let mut query = Query::connect(&file).await.expect("a query port");
            query.execute("SELECT count(*) FROM shop.orders").await.expect("a table")[0][0].clone()
        };
        let lags = |sync| sandbox.set_fault(Lags::always(FaultKind::FollowerLags { sync }));
        lags(true);
        sandbox.execute("INSERT INTO shop.orders (id) VALUES (2)").expect("a row");
        assert_eq!(count().await.as_deref(), Some("2"));
        sandbox.clear_faults();
        // A port that does not know the word is used all the same.
        lags(false);
        sandbox.execute("INSERT INTO shop.orders (id) VALUES (3)").expect("a row");
        assert_eq!(count().await.as_deref(), Some("2"));
    }
}
