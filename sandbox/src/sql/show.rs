//! SHOW and DESCRIBE.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::SystemTime;

use super::query::VARIABLES;
use super::schema_view;
use super::token::{Cursor, Token};
use crate::catalog::Table;
use crate::cluster::Cluster;
use crate::error::SqlError;
use crate::fault::FaultKind;
use crate::schema_change::{JobState, SchemaJob};
use crate::store::{ResultSet, Value};

/// The id of the sandbox's only BE.
pub(super) const BACKEND_ID: i64 = 10_001;

fn text(value: impl Into<String>) -> Value {
    Value::Text(value.into())
}

fn result(columns: &[&str], rows: Vec<Vec<Value>>) -> ResultSet {
    ResultSet { columns: columns.iter().map(|name| (*name).to_owned()).collect(), rows, affected: 0 }
}

pub(super) fn show(
    cluster: &Cluster,
    database: Option<&str>,
    cursor: &mut Cursor<'_>,
) -> Result<ResultSet, SqlError> {
    cursor.expect_words("SHOW")?;
    let full = cursor.words("FULL");
    let _scope = cursor.words("GLOBAL") || cursor.words("SESSION");
    if cursor.words("DATABASES") || cursor.words("SCHEMAS") {
        return databases(cluster, cursor);
    }
    if cursor.words("TABLES") {
        return tables(cluster, database, cursor, full);
    }
    if cursor.words("CREATE TABLE") {
        let table = table(cluster, database, cursor)?;
        let row = vec![text(&table.name), text(create_table(&table))];
        return Ok(result(&["Table", "Create Table"], vec![row]));
    }
    if cursor.words("COLUMNS") || cursor.words("FIELDS") {
        let _from = cursor.words("FROM") || cursor.words("IN");
        return columns(cluster, database, cursor, full);
    }
    if cursor.words("BACKENDS") {
        return Ok(backends(cluster));
    }
    if cursor.words("FRONTENDS") {
        return Ok(frontends(cluster));
    }
    if cursor.words("TABLETS") || cursor.words("TABLET") {
        cursor.expect_words("FROM")?;
        let table = table(cluster, database, cursor)?;
        let denied = |kind: &FaultKind| matches!(kind, FaultKind::TabletsDenied).then_some(());
        if cluster.faults.fire(&table.db, &table.name, denied).is_some() {
            return Err(SqlError::access_denied("OPERATE", "SYSTEM"));
        }
        return Ok(tablets(&table));
    }
    if cursor.words("VARIABLES") {
        let pattern = like(cursor)?;
        let rows = VARIABLES.iter().filter(|(name, _)| matches(pattern.as_deref(), name));
        let rows = rows.map(|(name, value)| vec![text(*name), text(*value)]).collect();
        return Ok(result(&["Variable_name", "Value"], rows));
    }
    if cursor.words("ALTER TABLE COLUMN") {
        return schema_changes(cluster, database, cursor);
    }
    if cursor.words("PROC") {
        return proc(cluster, cursor);
    }
    empty(cursor)
}

/// What drivers and tools ask for by habit, and are content to find empty.
fn empty(cursor: &mut Cursor<'_>) -> Result<ResultSet, SqlError> {
    let what = cursor.peek().and_then(Token::as_name).unwrap_or_default().to_ascii_uppercase();
    let columns: &[&str] = match what.as_str() {
        "WARNINGS" | "ERRORS" => &["Level", "Code", "Message"],
        "STATUS" => &["Variable_name", "Value"],
        "ENGINES" => &["Engine", "Support", "Comment"],
        "COLLATION" => &["Collation", "Charset", "Id", "Default", "Compiled", "Sortlen"],
        "CHARACTER" | "CHARSET" => &["Charset", "Description", "Default collation", "Maxlen"],
        "INDEX" | "INDEXES" | "KEYS" => &["Table", "Non_unique", "Key_name", "Seq_in_index", "Column_name"],
        "PROCESSLIST" => &["Id", "User", "Host", "Db", "Command", "Time", "State", "Info"],
        "TRIGGERS" | "PLUGINS" | "EVENTS" => &["Name"],
        _ => return Err(SqlError::unsupported(format!("SHOW {what}"))),
    };
    Ok(result(columns, Vec::new()))
}

fn databases(cluster: &Cluster, cursor: &mut Cursor<'_>) -> Result<ResultSet, SqlError> {
    let pattern = like(cursor)?;
    let mut names = cluster.catalog().database_names();
    names.push(schema_view::SCHEMA.to_owned());
    names.sort();
    let rows = names.into_iter().filter(|name| matches(pattern.as_deref(), name));
    Ok(result(&["Database"], rows.map(|name| vec![text(name)]).collect()))
}

fn tables(
    cluster: &Cluster,
    database: Option<&str>,
    cursor: &mut Cursor<'_>,
    full: bool,
) -> Result<ResultSet, SqlError> {
    let db = if cursor.words("FROM") || cursor.words("IN") {
        cursor.name()?
    } else {
        database.ok_or_else(|| SqlError::analysis("No database selected"))?.to_owned()
    };
    let pattern = like(cursor)?;
    let tables = if db.eq_ignore_ascii_case(schema_view::SCHEMA) {
        Vec::new()
    } else {
        cluster.catalog().tables(&db).ok_or_else(|| SqlError::unknown_database(&db))?
    };
    let heading = format!("Tables_in_{db}");
    let rows = tables.iter().filter(|table| matches(pattern.as_deref(), &table.name)).map(|table| {
        let mut row = vec![text(&table.name)];
        if full {
            row.push(text("BASE TABLE"));
        }
        row
    });
    let columns: &[&str] = if full { &[&heading, "Table_type"] } else { &[&heading] };
    Ok(result(columns, rows.collect()))
}

/// `[db.]table [FROM db]`
fn table(cluster: &Cluster, database: Option<&str>, cursor: &mut Cursor<'_>) -> Result<Arc<Table>, SqlError> {
    let first = cursor.name()?;
    let second = if cursor.sign('.') { Some(cursor.name()?) } else { None };
    let from = if cursor.words("FROM") || cursor.words("IN") { Some(cursor.name()?) } else { None };
    let (db, name) = match (second, from, database) {
        (Some(name), _, _) => (first, name),
        (None, Some(db), _) => (db, first),
        (None, None, Some(db)) => (db.to_owned(), first),
        (None, None, None) => return Err(SqlError::analysis("No database selected")),
    };
    if !cluster.catalog().has_database(&db) {
        return Err(SqlError::unknown_database(&db));
    }
    let found = cluster.catalog().table(&db, &name);
    found.ok_or_else(|| SqlError::unknown_table(&db, &name))
}

pub(super) fn describe(
    cluster: &Cluster,
    database: Option<&str>,
    cursor: &mut Cursor<'_>,
) -> Result<ResultSet, SqlError> {
    cursor.next();
    columns(cluster, database, cursor, false)
}

fn columns(
    cluster: &Cluster,
    database: Option<&str>,
    cursor: &mut Cursor<'_>,
    full: bool,
) -> Result<ResultSet, SqlError> {
    let table = table(cluster, database, cursor)?;
    let pattern = like(cursor)?;
    let schema = table.schema();
    let shown = schema.columns.iter().enumerate();
    let rows = shown.filter(|(_, column)| matches(pattern.as_deref(), &column.name)).map(|(at, column)| {
        let mut row = vec![
            text(&column.name),
            text(column.kind.written()),
            text(if column.nullable { "YES" } else { "NO" }),
            text(if at < schema.keys { "true" } else { "false" }),
            column.default.clone().map_or(Value::Null, Value::Text),
            text(""),
        ];
        if full {
            row.insert(2, Value::Null);
            row.push(text("select,insert"));
            row.push(text(column.comment.clone().unwrap_or_default()));
        }
        row
    });
    let names: &[&str] = if full {
        &["Field", "Type", "Collation", "Null", "Key", "Default", "Extra", "Privileges", "Comment"]
    } else {
        &["Field", "Type", "Null", "Key", "Default", "Extra"]
    };
    Ok(result(names, rows.collect()))
}

fn create_table(table: &Table) -> String {
    let schema = table.schema();
    let mut sql = format!("CREATE TABLE `{}` (\n", table.name);
    for (at, column) in schema.columns.iter().enumerate() {
        let null = if column.nullable { "NULL" } else { "NOT NULL" };
        let _ = write!(sql, "  `{}` {} {null}", column.name, column.kind.written());
        if let Some(default) = &column.default {
            let _ = match default.as_str() {
                "CURRENT_TIMESTAMP" => write!(sql, " DEFAULT CURRENT_TIMESTAMP"),
                text => write!(sql, " DEFAULT \"{text}\""),
            };
        }
        if let Some(comment) = &column.comment {
            let _ = write!(sql, " COMMENT \"{comment}\"");
        }
        sql.push_str(if at + 1 < schema.columns.len() { ",\n" } else { "\n" });
    }
    let _ = write!(sql, ") ENGINE=OLAP \n{}({})\n", schema.model.clause(), schema.key_list());
    if let Some(comment) = &schema.comment {
        let _ = writeln!(sql, "COMMENT \"{comment}\"");
    }
    let spread: Vec<String> = schema.distributed_by.iter().map(|name| format!("`{name}`")).collect();
    let _ = match spread.is_empty() {
        true => writeln!(sql, "DISTRIBUTED BY RANDOM BUCKETS {} ", schema.buckets),
        false => writeln!(sql, "DISTRIBUTED BY HASH({}) BUCKETS {} ", spread.join(", "), schema.buckets),
    };
    let mut properties = schema.properties.clone();
    if !properties.iter().any(|(key, _)| key == "replication_num") {
        properties.push(("replication_num".to_owned(), "1".to_owned()));
    }
    let lines: Vec<String> =
        properties.iter().map(|(key, value)| format!("\"{key}\" = \"{value}\"")).collect();
    let _ = write!(sql, "PROPERTIES (\n{}\n);", lines.join(",\n"));
    sql
}

fn backends(cluster: &Cluster) -> ResultSet {
    let columns = [
        "BackendId",
        "IP",
        "HeartbeatPort",
        "BePort",
        "HttpPort",
        "BrpcPort",
        "Alive",
        "SystemDecommissioned",
        "ClusterDecommissioned",
        "TabletNum",
        "ErrMsg",
        "Version",
    ];
    let tablets: u32 = cluster.catalog().all_tables().iter().map(|table| table.schema().buckets).sum();
    let alive = !*cluster.faults.backend_refuses.borrow();
    let row = vec![
        Value::Int(BACKEND_ID),
        text("127.0.0.1"),
        Value::Int(9050),
        Value::Int(9060),
        Value::Int(i64::from(cluster.addresses.be_http)),
        Value::Int(8060),
        text(if alive { "true" } else { "false" }),
        text("false"),
        text("false"),
        Value::Int(i64::from(tablets)),
        text(""),
        text(super::query::CURRENT_VERSION),
    ];
    result(&columns, vec![row])
}

fn frontends(cluster: &Cluster) -> ResultSet {
    let columns =
        ["Name", "IP", "EditLogPort", "HttpPort", "QueryPort", "RpcPort", "Role", "Alive", "Version"];
    let row = vec![
        text("127.0.0.1_9010"),
        text("127.0.0.1"),
        Value::Int(9010),
        Value::Int(i64::from(cluster.addresses.fe_http)),
        Value::Int(i64::from(cluster.addresses.query)),
        Value::Int(9020),
        text("LEADER"),
        text("true"),
        text(super::query::CURRENT_VERSION),
    ];
    result(&columns, vec![row])
}

/// The columns of `SHOW TABLET FROM`, as StarRocks 3 has them.
const TABLET_COLUMNS: [&str; 20] = [
    "TabletId",
    "ReplicaId",
    "BackendId",
    "SchemaHash",
    "Version",
    "VersionHash",
    "LstSuccessVersion",
    "LstSuccessVersionHash",
    "LstFailedVersion",
    "LstFailedVersionHash",
    "LstFailedTime",
    "DataSize",
    "RowCount",
    "State",
    "LstConsistencyCheckTime",
    "CheckVersion",
    "CheckVersionHash",
    "VersionCount",
    "PathHash",
    "IsErrorState",
];

fn tablets(table: &Table) -> ResultSet {
    let versions = table.versions(|versions| *versions);
    let number = |number: u64| Value::Int(i64::try_from(number).unwrap_or(i64::MAX));
    let none = || Value::Int(-1);
    let buckets = u64::from(table.schema().buckets.max(1));
    let version = versions.total + 1;
    let rows = (0..buckets).map(|bucket| {
        let tablet = table.first_tablet().unsigned_abs() + bucket;
        vec![
            number(tablet),
            number(tablet + 1_000_000),
            Value::Int(BACKEND_ID),
            none(),
            number(version),
            Value::Int(0),
            number(version),
            Value::Int(0),
            none(),
            Value::Int(0),
            Value::Null,
            number(versions.bytes_loaded / buckets),
            number(versions.rows_loaded / buckets),
            text("NORMAL"),
            Value::Null,
            none(),
            none(),
            number(versions.tablet_count()),
            none(),
            text("false"),
        ]
    });
    result(&TABLET_COLUMNS, rows.collect())
}

/// `SHOW ALTER TABLE COLUMN [FROM db] [WHERE TableName = 't'] [ORDER BY …] [LIMIT n]`, newest first.
fn schema_changes(
    cluster: &Cluster,
    database: Option<&str>,
    cursor: &mut Cursor<'_>,
) -> Result<ResultSet, SqlError> {
    let db = if cursor.words("FROM") || cursor.words("IN") { Some(cursor.name()?) } else { None };
    let db = db.as_deref().or(database).ok_or_else(|| SqlError::analysis("No database selected"))?;
    if !cluster.catalog().has_database(db) {
        return Err(SqlError::unknown_database(db));
    }
    let table = like(cursor)?;
    let mut newest_first = true;
    if cursor.words("ORDER BY") {
        cursor.name()?;
        newest_first = cursor.words("DESC");
        let _ascending = cursor.words("ASC");
    }
    let limit = if cursor.words("LIMIT") { cursor.number()? } else { usize::MAX };
    cursor.expect_end()?;
    let jobs = cluster.schema_jobs();
    let mut rows: Vec<Vec<Value>> = jobs
        .of(db)
        .filter(|job| table.as_deref().is_none_or(|name| job.table.name == name))
        .map(job_row)
        .collect();
    if !newest_first {
        rows.reverse();
    }
    rows.truncate(limit);
    Ok(result(&JOB_COLUMNS, rows))
}

const JOB_COLUMNS: [&str; 13] = [
    "JobId",
    "TableName",
    "CreateTime",
    "FinishTime",
    "IndexName",
    "IndexId",
    "OriginIndexId",
    "SchemaVersion",
    "TransactionId",
    "State",
    "Msg",
    "Progress",
    "Timeout",
];

/// Seconds that a change of columns may take (FE `alter_table_timeout_second`).
const ALTER_TIMEOUT_S: i64 = 86_400;

fn job_row(job: &SchemaJob) -> Vec<Value> {
    let (state, finished, why) = match &job.state {
        JobState::Running => ("RUNNING", Value::Null, ""),
        JobState::Finished { at } => ("FINISHED", text(moment(*at)), ""),
        JobState::Cancelled { at, why } => ("CANCELLED", text(moment(*at)), why.as_str()),
    };
    vec![
        Value::Int(job.id),
        text(&job.table.name),
        text(moment(job.created)),
        finished,
        text(&job.table.name),
        Value::Int(job.table.id),
        Value::Int(job.table.id),
        text("0:0"),
        Value::Int(job.id),
        text(state),
        text(why),
        Value::Null,
        Value::Int(ALTER_TIMEOUT_S),
    ]
}

/// `YYYY-MM-DD HH:MM:SS` in UTC.
fn moment(at: SystemTime) -> String {
    let seconds = at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", time / 3600, time / 60 % 60, time % 60)
}

/// Year, month and day of the days since 1970, by the proleptic Gregorian calendar: the usual shift of the
/// year's beginning to March puts the leap day at its end.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year + era * 400 + u64::from(month <= 2), month, day)
}

/// `SHOW PROC '/transactions/<db>/running'` and `…/finished`.
fn proc(cluster: &Cluster, cursor: &mut Cursor<'_>) -> Result<ResultSet, SqlError> {
    let path = cursor.text()?;
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let (db, running) = match parts.as_slice() {
        ["transactions", db, "running"] => (*db, true),
        ["transactions", db, "finished"] => (*db, false),
        _ => return Err(SqlError::unsupported(format!("SHOW PROC '{path}'"))),
    };
    use crate::transaction::TransactionState::{Aborted, Visible};
    let listed = cluster.transactions().list(db);
    let rows =
        listed.into_iter().filter(|one| running != matches!(one.state, Visible | Aborted)).map(|one| {
            let reason = one.reason.unwrap_or_default();
            vec![Value::Int(one.id), text(one.label), text(one.table), text(one.state.name()), text(reason)]
        });
    let columns = ["TransactionId", "Label", "Table", "TransactionStatus", "Reason"];
    Ok(result(&columns, rows.collect()))
}

/// `LIKE 'pattern'` or `WHERE name = 'value'`, if it stands here.
fn like(cursor: &mut Cursor<'_>) -> Result<Option<String>, SqlError> {
    if cursor.words("LIKE") {
        return cursor.text().map(Some);
    }
    if cursor.words("WHERE") {
        cursor.name()?;
        if !cursor.words("LIKE") {
            cursor.expect_sign('=')?;
        }
        return cursor.text().map(Some);
    }
    Ok(None)
}

/// MySQL's LIKE, without regard to case.
fn matches(pattern: Option<&str>, name: &str) -> bool {
    let Some(pattern) = pattern else { return true };
    let (pattern, name): (Vec<char>, Vec<char>) =
        (pattern.to_lowercase().chars().collect(), name.to_lowercase().chars().collect());
    fn fits(pattern: &[char], name: &[char]) -> bool {
        match pattern.split_first() {
            None => name.is_empty(),
            Some(('%', rest)) => (0..=name.len()).any(|at| fits(rest, &name[at..])),
            Some(('_', rest)) => !name.is_empty() && fits(rest, &name[1..]),
            Some(('\\', rest)) if !rest.is_empty() => {
                name.first() == rest.first() && fits(&rest[1..], &name[1..])
            }
            Some((character, rest)) => name.first() == Some(character) && fits(rest, &name[1..]),
        }
    }
    fits(&pattern, &name)
}
