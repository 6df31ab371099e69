//! SQL over the MySQL protocol: what drivers, the host and users ask.

use crate::target::Target;
use mysql_async::prelude::Queryable;
use std::process::Stdio;
use tidemill_sandbox::{Fault, FaultKind, Options, Sandbox};

#[tokio::test]
async fn the_table_model_is_told() {
    let target = Target::any().await;
    let models = [
        ("d", "DUPLICATE KEY", "DUP_KEYS"),
        ("u", "UNIQUE KEY", "UNQ_KEYS"),
        ("p", "PRIMARY KEY", "PRI_KEYS"),
    ];
    for (table, key, model) in models {
        target.table(table, key).await;
        let sql = format!(
            "SELECT TABLE_MODEL FROM information_schema.tables_config WHERE TABLE_SCHEMA='{}' AND TABLE_NAME='{table}'",
            target.db
        );
        assert_eq!(target.rows(&sql).await, [model]);
        let shown = target.rows(&format!("SHOW CREATE TABLE {table}")).await.join("");
        assert!(shown.contains(&format!("{key}(`id`)")), "{shown}");
    }
    let sql = format!(
        "SELECT COLUMN_NAME, DATA_TYPE, COLUMN_KEY FROM information_schema.COLUMNS \
         WHERE TABLE_SCHEMA = '{}' AND TABLE_NAME = 'p' ORDER BY ORDINAL_POSITION",
        target.db
    );
    assert_eq!(target.rows(&sql).await, ["id,bigint,PRI", "name,varchar,", "qty,int,"]);
}

#[tokio::test]
async fn queries_with_joins_aliases_and_two_databases() {
    let target = Target::any().await;
    let other = format!("{}_b", target.db);
    target.table("t", "DUPLICATE KEY").await;
    target.sql(&format!("CREATE DATABASE {other}")).await;
    target.table(&format!("{other}.t"), "DUPLICATE KEY").await;
    target.load("t", "a", "{\"id\":1,\"name\":\"a\",\"qty\":2}\n{\"id\":2,\"name\":\"b\",\"qty\":3}").await;
    target.sql(&format!("INSERT INTO {other}.t (id, name, qty) VALUES (2, 'it''s', 9)")).await;
    let sql = format!(
        "SELECT t.id, o.name, if(t.qty > 2, 'many', \"few\") FROM t LEFT JOIN {other}.t o ON t.id = o.id ORDER BY t.id"
    );
    assert_eq!(target.rows(&sql).await, ["1,NULL,few", "2,it's,many"]);
    let db = &target.db;
    let sql = format!("SELECT count(*), sum({db}.t.qty) FROM {db}.t, {other}.t AS o WHERE {db}.t.id <= o.id");
    assert_eq!(target.rows(&sql).await, ["2,5"]);
    let sql = "WITH x AS (SELECT id FROM t WHERE name IN ('a', 'b')) SELECT max(id) FROM (SELECT * FROM x) y";
    assert_eq!(target.rows(sql).await, ["2"]);
}

#[tokio::test]
async fn mistakes_get_the_codes_of_mysql() {
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    let check = async |sql: &str, text: &str| {
        let error = target.error(sql).await;
        assert!(error.message.contains(text), "{sql}: {error}");
        error.code
    };
    check("SELECT * FROM missing", "missing").await;
    check("SELECT * FROM nowhere_at_all.t", "nowhere_at_all").await;
    check("SELECT nothing FROM t", "nothing").await;
    check("CREATE TABLE t (id INT) DUPLICATE KEY(id)", "t").await;
    assert_eq!(check("SELEC 1", "SELEC").await, 1064);
    assert_eq!(check("USE nowhere_at_all", "nowhere_at_all").await, 1049);
}

#[tokio::test]
async fn tables_are_altered_emptied_and_dropped() {
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    target.load("t", "a", "{\"id\":1}").await;
    target.sql("ALTER TABLE t ADD COLUMN added VARCHAR(5) DEFAULT 'new'").await;
    target.load("t", "b", "{\"id\":2,\"added\":\"x\"}").await;
    assert_eq!(target.rows("SELECT id, added FROM t ORDER BY id").await, ["1,new", "2,x"]);
    target.sql("TRUNCATE TABLE t").await;
    assert_eq!(target.count("t").await, 0);
    assert_eq!(target.rows("SHOW TABLES").await, ["t"]);
    target.sql("DROP TABLE t").await;
    assert!(target.rows("SHOW TABLES").await.is_empty());
    target.sql("DROP TABLE IF EXISTS t").await;
}

#[tokio::test]
async fn a_load_outlives_changes_of_its_table() {
    let target = Target::sandbox(tidemill_sandbox::Options::default()).await;
    let Some(target) = target else { return };
    target.table("t", "DUPLICATE KEY").await;
    let body = "{\"id\":1,\"name\":\"a\",\"qty\":5}";
    let mut connection = target.begun("t", "altered", body).await;
    target.sql("ALTER TABLE t DROP COLUMN name").await;
    connection.body(body.as_bytes()).await.expect("written");
    assert_eq!(connection.answer().await.expect("an answer").text("Status"), "Success");
    assert_eq!(target.rows("SELECT * FROM t").await, ["1,5"]);
    let mut connection = target.begun("t", "dropped", body).await;
    target.sql("DROP TABLE t").await;
    target.table("t", "DUPLICATE KEY").await;
    connection.body(body.as_bytes()).await.expect("written");
    assert_eq!(connection.answer().await.expect("an answer").text("Status"), "Fail");
    assert_eq!(target.state("dropped").await, "ABORTED");
    assert_eq!(target.count("t").await, 0, "the new table of that name is another table");
}

#[tokio::test]
async fn tablets_are_shown_to_those_who_may_operate() {
    let Some(target) = Target::sandbox(Options::default()).await else { return };
    target.table("t", "DUPLICATE KEY").await;
    target.own().set_fault(Fault::times(FaultKind::TabletsDenied, 1));
    let error = target.error("SHOW TABLET FROM t").await;
    assert!(error.message.contains("OPERATE privilege(s) on SYSTEM"), "{error}");
    assert_eq!(target.rows("SHOW TABLET FROM t").await.len(), 1);
}

/// Variables that Connector/J 5.1.49 reads of a server when it connects, in its order; which name of the isolation
/// level depends on the version that the server tells.
const CONNECTOR_J_READS: [&str; 21] = [
    "character_set_client",
    "character_set_connection",
    "character_set_results",
    "character_set_server",
    "collation_server",
    "collation_connection",
    "init_connect",
    "interactive_timeout",
    "license",
    "lower_case_table_names",
    "max_allowed_packet",
    "net_buffer_length",
    "net_write_timeout",
    "query_cache_size",
    "query_cache_type",
    "sql_mode",
    "system_time_zone",
    "time_zone",
    "tx_isolation",
    "transaction_isolation",
    "wait_timeout",
];

#[tokio::test]
async fn what_drivers_ask_when_they_connect() {
    let target = Target::any().await;
    // Each under its own name, which is how the driver reads them.
    let items: Vec<String> = CONNECTOR_J_READS.iter().map(|name| format!("@@{name} AS {name}")).collect();
    let asked = format!(
        "/* mysql-connector-java-5.1.49 */SELECT  @@session.auto_increment_increment AS auto_increment_increment, {}",
        items.join(", ")
    );
    let told = target.named_rows(&asked).await;
    let [told] = told.as_slice() else { panic!("not one row: {told:?}") };
    assert_eq!(told["auto_increment_increment"], "1");
    for name in CONNECTOR_J_READS {
        assert!(told.contains_key(name), "{name} in {told:?}");
    }
    // It cannot do without these: the limit of its packets, its isolation level, how bytes become letters.
    for number in ["max_allowed_packet", "net_buffer_length", "wait_timeout"] {
        assert!(told[number].parse::<u64>().is_ok_and(|number| number > 0), "{number} in {told:?}");
    }
    for isolation in ["tx_isolation", "transaction_isolation"] {
        assert_eq!(told[isolation], "REPEATABLE-READ");
    }
    for letters in ["character_set_client", "character_set_server", "collation_server"] {
        assert!(told[letters].starts_with("utf8"), "{letters} in {told:?}");
    }
    for sql in ["SET character_set_results = NULL", "SET autocommit=1", "SET sql_mode='STRICT_TRANS_TABLES'"]
    {
        target.sql(sql).await;
    }
}

#[tokio::test]
async fn what_tools_ask_when_they_connect() {
    let target = Target::any().await;
    assert_eq!(target.rows("SELECT DATABASE()").await, std::slice::from_ref(&target.db));
    let comment = target.named_rows("select @@version_comment limit 1").await;
    assert!(!comment[0]["@@version_comment"].is_empty(), "{comment:?}");
    let backends = target.named_rows("SHOW BACKENDS").await;
    assert!(backends.iter().any(|backend| backend["Alive"] == "true"), "{backends:?}");
    assert!(target.rows("SHOW DATABASES").await.contains(&target.db));
    let variables = target.rows("SHOW VARIABLES LIKE 'lower_case_%'").await;
    assert!(variables.iter().any(|row| row.starts_with("lower_case_table_names,")), "{variables:?}");
}

#[tokio::test]
async fn prepared_statements() {
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    target.load("t", "a", "{\"id\":1,\"name\":\"o'x\",\"qty\":4}\n{\"id\":2}").await;
    let (host, port) = target.query_port();
    let options = mysql_async::OptsBuilder::default()
        .ip_or_hostname(host)
        .tcp_port(port)
        .user(Some("root"))
        .pass(Some(target.password.clone()))
        .db_name(Some(target.db.clone()))
        .prefer_socket(false);
    let mut connection = mysql_async::Conn::new(options).await.expect("the query port answers");
    let found: Option<(i64, String, i64)> = connection
        .exec_first("SELECT id, name, qty FROM t WHERE name = ? AND id < ?", ("o'x", 2))
        .await
        .expect("a row");
    assert_eq!(found, Some((1, "o'x".to_owned(), 4)));
    connection.disconnect().await.expect("said goodbye");
}

#[tokio::test]
async fn the_password_is_checked() {
    if std::env::var("TIDEMILL_STARROCKS_FE").is_ok() {
        println!("skipped: needs a sandbox with a password of its own");
        return;
    }
    let options = Options { password: Some("geheim".to_owned()), ..Options::default() };
    let sandbox = Sandbox::start(options).await.expect("free ports");
    let connect = async |user: &'static str, password: &'static str| {
        let options = mysql_async::OptsBuilder::default()
            .ip_or_hostname("127.0.0.1")
            .tcp_port(sandbox.query_port())
            .user(Some(user))
            .pass(Some(password))
            .prefer_socket(false);
        mysql_async::Conn::new(options).await.is_ok()
    };
    assert!(connect("root", "geheim").await);
    assert!(!connect("root", "falsch").await);
    assert!(!connect("root", "").await);
    assert!(!connect("nobody", "geheim").await);
    sandbox.stop().await;
}

/// Debian's `default-mysql-client`; `cargo xtask test` installs it.
#[tokio::test]
async fn the_stock_client_counts_rows() {
    let target = Target::any().await;
    target.table("t", "DUPLICATE KEY").await;
    target.load("t", "a", "{\"id\":1,\"name\":\"a\"}\n{\"id\":2}").await;
    let (host, port) = target.query_port();
    let script =
        format!("USE {}; SHOW TABLES; SELECT count(*) FROM t; SELECT id, name FROM t ORDER BY id", target.db);
    let run = tokio::process::Command::new("mysql")
        .args(["-h", &host, "-P", &port.to_string(), "-u", "root", "--batch", "-e", &script])
        .env("MYSQL_PWD", &target.password)
        .stdin(Stdio::null())
        .output()
        .await;
    let output = match run {
        Ok(output) => output,
        Err(error) => {
            println!("skipped: no mysql client in PATH: {error}");
            return;
        }
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8_lossy(&output.stdout);
    let heading = format!("Tables_in_{}", target.db);
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines, [heading.as_str(), "t", "count(*)", "2", "id\tname", "1\ta", "2\tNULL"]);
}

#[tokio::test]
async fn sync_shows_what_other_sessions_wrote() {
    let target = Target::any().await;
    target.table("t", "PRIMARY KEY").await;
    target.load("t", "a", "{\"id\":1}\n{\"id\":2}").await;
    target.sql("SYNC").await;
    assert_eq!(target.count("t").await, 2);
    let error = target.error("SYNC everything").await;
    assert!(error.message.to_lowercase().contains("input 'everything'"), "{error}");
}
