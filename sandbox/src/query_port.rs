//! The query port: the MySQL protocol, by way of opensrv-mysql.

use async_trait::async_trait;
use opensrv_mysql::{
    AsyncMysqlIntermediary, AsyncMysqlShim, Column, ColumnFlags, ColumnType, ErrorKind, InitWriter,
    OkResponse, ParamParser, QueryResultWriter, StatementMetaWriter, ValueInner,
};
use sha1::{Digest, Sha1};
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::AsyncWrite;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::cluster::Cluster;
use crate::error::{SqlError, SqlErrorKind};
use crate::sql::{MYSQL_VERSION, Session};
use crate::store::{ResultSet, Value};

/// Accepts clients until the task is aborted, and all sessions end with it.
pub(crate) async fn serve(cluster: Arc<Cluster>, listener: TcpListener) {
    let mut sessions = JoinSet::new();
    let mut next_id = 0_u32;
    loop {
        while sessions.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                next_id = next_id.wrapping_add(1);
                sessions.spawn(session(Arc::clone(&cluster), stream, next_id));
            }
            Err(error) => tracing::warn!(%error, "could not accept a MySQL client"),
        }
    }
}

async fn session(cluster: Arc<Cluster>, stream: TcpStream, id: u32) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "could not set TCP_NODELAY");
    }
    let (reader, writer) = stream.into_split();
    let password = cluster.options.password.clone().unwrap_or_default();
    let client = Client {
        session: Arc::new(Mutex::new(Session::at_the_port(cluster))),
        password,
        id,
        salt: salt(id),
        prepared: HashMap::new(),
        next_prepared: 1,
    };
    if let Err(error) = AsyncMysqlIntermediary::run_on(client, reader, writer).await {
        tracing::debug!(%error, "a MySQL session ended");
    }
}

const SALT_BYTES: usize = 20;

/// Twenty printable bytes that differ from session to session.
fn salt(id: u32) -> [u8; SALT_BYTES] {
    use std::hash::{BuildHasher, RandomState};
    let mut salt = [0; SALT_BYTES];
    let state = RandomState::new();
    for (at, byte) in salt.iter_mut().enumerate() {
        *byte = b'a' + (state.hash_one((id, at)) % 26) as u8;
    }
    salt
}

struct Client {
    /// Shared with the blocking task that runs a statement; never contended.
    session: Arc<Mutex<Session>>,
    password: String,
    id: u32,
    salt: [u8; SALT_BYTES],
    /// Prepared statements: their text in pieces, with a parameter between each two.
    prepared: HashMap<u32, Vec<String>>,
    next_prepared: u32,
}

impl Client {
    async fn run(&self, sql: String) -> Result<ResultSet, SqlError> {
        let session = Arc::clone(&self.session);
        let running = tokio::task::spawn_blocking(move || {
            session.lock().unwrap_or_else(PoisonError::into_inner).execute(&sql)
        });
        match running.await {
            Ok(result) => result,
            Err(error) => {
                Err(SqlError::new(SqlErrorKind::Internal, format!("the statement panicked: {error}")))
            }
        }
    }

    async fn answer<W: AsyncWrite + Send + Unpin>(
        &self,
        sql: String,
        results: QueryResultWriter<'_, W>,
    ) -> io::Result<()> {
        match self.run(sql).await {
            Err(error) => results.error(error_kind(error.kind), error.message.as_bytes()).await,
            Ok(result) if result.columns.is_empty() => {
                results
                    .completed(OkResponse { affected_rows: result.affected, ..OkResponse::default() })
                    .await
            }
            Ok(result) => write(&result, results).await,
        }
    }
}

/// `SHA1(password) XOR SHA1(salt ‖ SHA1(SHA1(password)))`, what mysql_native_password sends.
fn scramble(password: &str, salt: &[u8]) -> Vec<u8> {
    if password.is_empty() {
        return Vec::new();
    }
    let once = Sha1::digest(password.as_bytes());
    let twice = Sha1::digest(once);
    let salted = Sha1::new().chain_update(salt).chain_update(twice).finalize();
    once.iter().zip(salted).map(|(left, right)| left ^ right).collect()
}

fn error_kind(kind: SqlErrorKind) -> ErrorKind {
    match kind {
        SqlErrorKind::Syntax | SqlErrorKind::Analysis => ErrorKind::ER_PARSE_ERROR,
        SqlErrorKind::UnknownDatabase => ErrorKind::ER_BAD_DB_ERROR,
        SqlErrorKind::DatabaseExists => ErrorKind::ER_DB_CREATE_EXISTS,
        SqlErrorKind::UnknownTable => ErrorKind::ER_NO_SUCH_TABLE,
        SqlErrorKind::TableExists => ErrorKind::ER_TABLE_EXISTS_ERROR,
        SqlErrorKind::AccessDenied => ErrorKind::ER_SPECIFIC_ACCESS_DENIED_ERROR,
        SqlErrorKind::Unsupported => ErrorKind::ER_NOT_SUPPORTED_YET,
        SqlErrorKind::Internal => ErrorKind::ER_UNKNOWN_ERROR,
    }
}

/// The MySQL type of each column, by what is in it.
fn column_types(result: &ResultSet) -> Vec<Column> {
    let kind = |at: usize| {
        let mut values =
            result.rows.iter().map(|row| &row[at]).filter(|value| **value != Value::Null).peekable();
        let some = values.peek().is_some();
        let mut all = values.fold((some, some), |(int, real), value| match value {
            Value::Int(_) => (int, real),
            Value::Real(_) => (false, real),
            Value::Null | Value::Text(_) => (false, false),
        });
        // An empty result has no values to tell by; text is what every client takes.
        all.1 &= !all.0;
        match all {
            (true, _) => ColumnType::MYSQL_TYPE_LONGLONG,
            (false, true) => ColumnType::MYSQL_TYPE_DOUBLE,
            (false, false) => ColumnType::MYSQL_TYPE_VAR_STRING,
        }
    };
    let columns = result.columns.iter().enumerate().map(|(at, name)| Column {
        table: String::new(),
        column: name.clone(),
        coltype: kind(at),
        colflags: ColumnFlags::empty(),
    });
    columns.collect()
}

async fn write<W: AsyncWrite + Send + Unpin>(
    result: &ResultSet,
    results: QueryResultWriter<'_, W>,
) -> io::Result<()> {
    let columns = column_types(result);
    let mut writer = results.start(&columns).await?;
    for row in &result.rows {
        for (value, column) in row.iter().zip(&columns) {
            let double = column.coltype == ColumnType::MYSQL_TYPE_DOUBLE;
            match value {
                Value::Null => writer.write_col(None::<i64>)?,
                Value::Int(number) if double => writer.write_col(*number as f64)?,
                Value::Int(number) if column.coltype == ColumnType::MYSQL_TYPE_LONGLONG => {
                    writer.write_col(*number)?;
                }
                Value::Int(number) => writer.write_col(number.to_string())?,
                Value::Real(number) if double => writer.write_col(*number)?,
                Value::Real(number) => writer.write_col(number.to_string())?,
                Value::Text(text) => writer.write_col(text.as_str())?,
            }
        }
        writer.end_row().await?;
    }
    writer.finish().await
}

/// Splits a statement at its question marks, those in strings and names left alone.
fn pieces(sql: &str) -> Vec<String> {
    let mut pieces = vec![String::new()];
    let mut quote = None;
    for character in sql.chars() {
        match (quote, character) {
            (None, '?') => {
                pieces.push(String::new());
                continue;
            }
            (None, '\'' | '"' | '`') => quote = Some(character),
            (Some(open), _) if open == character => quote = None,
            (None | Some(_), _) => {}
        }
        if let Some(last) = pieces.last_mut() {
            last.push(character);
        }
    }
    pieces
}

/// A parameter as an SQL literal.
fn parameter(value: ValueInner<'_>) -> String {
    match value {
        ValueInner::NULL => "NULL".to_owned(),
        ValueInner::Int(number) => number.to_string(),
        ValueInner::UInt(number) => number.to_string(),
        ValueInner::Double(number) => number.to_string(),
        ValueInner::Bytes(bytes) => {
            crate::store::literal(&String::from_utf8_lossy(bytes)).replace('\\', "\\\\")
        }
        ValueInner::Date(bytes) | ValueInner::Time(bytes) | ValueInner::Datetime(bytes) => {
            crate::store::literal(&binary_moment(bytes))
        }
    }
}

/// Year, month, day and perhaps a time of day in the binary protocol.
fn binary_moment(bytes: &[u8]) -> String {
    let at = |index: usize| bytes.get(index).copied().unwrap_or(0);
    let year = u16::from_le_bytes([at(0), at(1)]);
    let date = format!("{year:04}-{:02}-{:02}", at(2), at(3));
    if bytes.len() <= 4 { date } else { format!("{date} {:02}:{:02}:{:02}", at(4), at(5), at(6)) }
}

#[async_trait]
impl<W: AsyncWrite + Send + Unpin> AsyncMysqlShim<W> for Client {
    type Error = io::Error;

    fn version(&self) -> String {
        MYSQL_VERSION.to_owned()
    }

    fn connect_id(&self) -> u32 {
        self.id
    }

    fn salt(&self) -> [u8; SALT_BYTES] {
        self.salt
    }

    async fn authenticate(&self, _plugin: &str, username: &[u8], salt: &[u8], answer: &[u8]) -> bool {
        username == b"root" && answer == scramble(&self.password, salt)
    }

    async fn on_prepare<'a>(&'a mut self, sql: &'a str, info: StatementMetaWriter<'a, W>) -> io::Result<()> {
        let pieces = pieces(sql);
        let parameter = Column {
            table: String::new(),
            column: "?".to_owned(),
            coltype: ColumnType::MYSQL_TYPE_VAR_STRING,
            colflags: ColumnFlags::empty(),
        };
        let parameters = vec![parameter; pieces.len() - 1];
        let id = self.next_prepared;
        self.next_prepared += 1;
        self.prepared.insert(id, pieces);
        info.reply(id, &parameters, &[]).await
    }

    async fn on_execute<'a>(
        &'a mut self,
        id: u32,
        params: ParamParser<'a>,
        results: QueryResultWriter<'a, W>,
    ) -> io::Result<()> {
        let Some(pieces) = self.prepared.get(&id) else {
            return results.error(ErrorKind::ER_UNKNOWN_STMT_HANDLER, b"unknown prepared statement").await;
        };
        let mut values = params.into_iter().map(|param| parameter(param.value.into_inner()));
        let mut sql = String::new();
        for (at, piece) in pieces.iter().enumerate() {
            if at > 0 {
                sql.push_str(&values.next().unwrap_or_else(|| "NULL".to_owned()));
            }
            sql.push_str(piece);
        }
        self.answer(sql, results).await
    }

    async fn on_close<'a>(&'a mut self, id: u32)
    where
        W: 'async_trait,
    {
        self.prepared.remove(&id);
    }

    async fn on_query<'a>(&'a mut self, sql: &'a str, results: QueryResultWriter<'a, W>) -> io::Result<()> {
        self.answer(sql.to_owned(), results).await
    }

    async fn on_init<'a>(&'a mut self, db: &'a str, writer: InitWriter<'a, W>) -> io::Result<()> {
        let used = self.session.lock().unwrap_or_else(PoisonError::into_inner).use_database(db);
        match used {
            Ok(()) => writer.ok().await,
            Err(error) => writer.error(error_kind(error.kind), error.message.as_bytes()).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::pieces;

    #[test]
    fn question_marks_in_quotes_are_no_parameters() {
        assert_eq!(pieces("SELECT ?, '?', `?` + ?").len(), 3);
    }
}
