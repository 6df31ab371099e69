//! SELECT: rewritten from StarRocks' dialect to SQLite's, token by token.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::token::Token;
use super::{Reads, schema_view};
use crate::catalog::{Table, storage_name};
use crate::cluster::Cluster;
use crate::column::{ColumnType, print_decimal};
use crate::error::SqlError;
use crate::options::Keep;
use crate::store::{ResultSet, Value, literal, quoted};

/// The StarRocks whose behaviour is imitated.
pub(crate) const CURRENT_VERSION: &str = "3.3.5-tidemill-sandbox";
/// The MySQL version that a StarRocks tells its clients.
pub(crate) const MYSQL_VERSION: &str = "8.0.33";

/// Variables that drivers read at their start.
pub(super) const VARIABLES: [(&str, &str); 28] = [
    ("auto_increment_increment", "1"),
    ("autocommit", "1"),
    ("character_set_client", "utf8"),
    ("character_set_connection", "utf8"),
    ("character_set_results", "utf8"),
    ("character_set_server", "utf8"),
    ("collation_connection", "utf8_general_ci"),
    ("collation_database", "utf8_general_ci"),
    ("collation_server", "utf8_general_ci"),
    ("init_connect", ""),
    ("interactive_timeout", "3600"),
    ("language", "/starrocks/share/english/"),
    ("license", "Apache License 2.0"),
    ("lower_case_table_names", "0"),
    ("max_allowed_packet", "33554432"),
    ("net_buffer_length", "16384"),
    ("net_write_timeout", "60"),
    ("performance_schema", "0"),
    ("query_cache_size", "1048576"),
    ("query_cache_type", "0"),
    ("socket", ""),
    ("sql_mode", "ONLY_FULL_GROUP_BY"),
    ("system_time_zone", "UTC"),
    ("time_zone", "UTC"),
    ("transaction_isolation", "REPEATABLE-READ"),
    ("tx_isolation", "REPEATABLE-READ"),
    ("version_comment", CURRENT_VERSION),
    ("wait_timeout", "28800"),
];

pub(super) fn select(
    cluster: &Cluster,
    database: Option<&str>,
    reads_from: Reads,
    tokens: &[Token],
) -> Result<ResultSet, SqlError> {
    if let Some(result) = counted_only(cluster, database, tokens) {
        return Ok(result);
    }
    let mut rewriter = Rewriter::new(cluster, database, tokens);
    rewriter.run()?;
    let Rewriter { out, views, tables, .. } = rewriter;
    let views: Vec<_> = views.iter().filter_map(|name| schema_view::view(cluster, name)).collect();
    let behind = match reads_from {
        Reads::Follower if views.is_empty() => cluster.query_behind(&out, &tables),
        Reads::Follower | Reads::Leader => None,
    };
    let result = behind.unwrap_or_else(|| cluster.store.query(&out, &views));
    let mut result = result.map_err(|error| explain(&error, database))?;
    print_decimals(&mut result, &tables);
    Ok(result)
}

/// SQLite's complaint in StarRocks' words.
pub(super) fn explain(error: &rusqlite::Error, database: Option<&str>) -> SqlError {
    let text = match error {
        rusqlite::Error::SqliteFailure(_, Some(text)) => text.clone(),
        rusqlite::Error::SqlInputError { msg, .. } => msg.clone(),
        other => other.to_string(),
    };
    if let Some(name) = text.strip_prefix("no such table: ") {
        return match database {
            Some(database) => SqlError::unknown_table(database, name),
            None => SqlError::analysis("No database selected"),
        };
    }
    if let Some(name) = text.strip_prefix("no such column: ") {
        return SqlError::analysis(format!("Column '{name}' cannot be resolved"));
    }
    SqlError::syntax(text)
}

/// A sandbox that keeps no rows answers `SELECT count(*) FROM t` from its counters.
fn counted_only(cluster: &Cluster, database: Option<&str>, tokens: &[Token]) -> Option<ResultSet> {
    if cluster.options.keep == Keep::Rows {
        return None;
    }
    let (head, rest) = tokens.split_at_checked(6)?;
    let is_count = head[0].is_word("SELECT")
        && head[1].is_word("count")
        && head[2].is_sign('(')
        && (head[3].is_sign('*') || head[3] == Token::Number("1".to_owned()))
        && head[4].is_sign(')')
        && head[5].is_word("FROM");
    if !is_count {
        return None;
    }
    let (db, name) = match rest {
        [name] => (database?, name.as_name()?),
        [db, Token::Sign('.'), name] => (db.as_name()?, name.as_name()?),
        _ => return None,
    };
    let rows = cluster.table_stats(db, name)?.rows_loaded;
    let value = Value::Int(i64::try_from(rows).unwrap_or(i64::MAX));
    Some(ResultSet { columns: vec!["count(*)".to_owned()], rows: vec![vec![value]], affected: 0 })
}

/// Decimals are kept as numbers; a plain column of one is printed with the digits of its scale.
fn print_decimals(result: &mut ResultSet, tables: &[Arc<Table>]) {
    for (at, name) in result.columns.iter().enumerate() {
        let scale = tables.iter().find_map(|table| {
            table.schema().columns.iter().find_map(|column| match column.kind {
                ColumnType::Decimal { scale, .. } if column.name == *name => Some(scale),
                _ => None,
            })
        });
        let Some(scale) = scale else { continue };
        for row in &mut result.rows {
            let printed = match &row[at] {
                Value::Int(number) => print_decimal(*number as f64, scale),
                Value::Real(number) => print_decimal(*number, scale),
                Value::Null | Value::Text(_) => continue,
            };
            row[at] = Value::Text(printed);
        }
    }
}

/// Words that end a table reference, so that they are not taken for its alias.
const AFTER_TABLE: [&str; 24] = [
    "ON",
    "WHERE",
    "JOIN",
    "LEFT",
    "RIGHT",
    "INNER",
    "OUTER",
    "CROSS",
    "FULL",
    "NATURAL",
    "GROUP",
    "ORDER",
    "LIMIT",
    "UNION",
    "HAVING",
    "USING",
    "EXCEPT",
    "INTERSECT",
    "WINDOW",
    "FOR",
    "SET",
    "VALUES",
    "SELECT",
    "OFFSET",
];

/// Where the rewriting is: one level per open bracket.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Between SELECT and FROM, directly after SELECT or a comma.
    ItemStart,
    /// Further on in an item.
    Item,
    /// Directly after FROM, JOIN or a comma between tables.
    TableStart,
    /// Between tables, where a comma brings another.
    Tables,
    Elsewhere,
}

pub(super) struct Rewriter<'a> {
    cluster: &'a Cluster,
    database: Option<&'a str>,
    tokens: &'a [Token],
    at: usize,
    pub(super) out: String,
    /// Names of the `information_schema` views in use.
    views: BTreeSet<String>,
    tables: Vec<Arc<Table>>,
    places: Vec<Place>,
}

impl<'a> Rewriter<'a> {
    pub(super) fn new(cluster: &'a Cluster, database: Option<&'a str>, tokens: &'a [Token]) -> Self {
        let places = vec![Place::Elsewhere];
        Self {
            cluster,
            database,
            tokens,
            at: 0,
            out: String::new(),
            views: BTreeSet::new(),
            tables: Vec::new(),
            places,
        }
    }

    pub(super) fn run(&mut self) -> Result<(), SqlError> {
        while let Some(token) = self.tokens.get(self.at) {
            self.one(token)?;
        }
        Ok(())
    }

    fn place(&self) -> Place {
        self.places.last().copied().unwrap_or(Place::Elsewhere)
    }

    fn set_place(&mut self, place: Place) {
        if let Some(top) = self.places.last_mut() {
            *top = place;
        }
    }

    fn emit(&mut self, text: &str) {
        // Spaces only where they are needed: SQLite names a result column after its text.
        if !self.out.is_empty() && !self.out.ends_with(['(', '.']) {
            self.out.push(' ');
        }
        self.out.push_str(text);
    }

    fn ahead(&self, by: usize) -> Option<&'a Token> {
        self.tokens.get(self.at + by)
    }

    fn one(&mut self, token: &'a Token) -> Result<(), SqlError> {
        let starts_table = self.place() == Place::TableStart && token.as_name().is_some();
        if starts_table && !token.is_word("SELECT") && !token.is_word("LATERAL") {
            return self.table();
        }
        match token {
            Token::Text(text) => self.plain(&literal(text)),
            Token::Number(number) => self.plain(number),
            Token::Variable(name) => self.variable(name),
            Token::Sign(sign) => self.sign(*sign),
            Token::Word(word) if self.keyword(word) => {}
            Token::Word(word) if self.call(word) => {}
            Token::Word(_) | Token::Name(_) => self.column(token),
        }
        Ok(())
    }

    /// Copies one token.
    fn plain(&mut self, text: &str) {
        self.emit(text);
        self.at += 1;
        if self.place() == Place::ItemStart {
            self.set_place(Place::Item);
        }
    }

    fn sign(&mut self, sign: char) {
        let place = self.place();
        if matches!(sign, '(' | ')' | ',' | '.') {
            self.out.push(sign);
        } else {
            self.emit(sign.encode_utf8(&mut [0; 4]));
        }
        // `<=`, `!=`, `||`, `->` and their kind must stay together.
        while let Some(Token::Sign(next)) = self.ahead(1) {
            if !matches!(
                (sign, next),
                ('<' | '>' | '!' | '=', '=') | ('<', '>') | ('|', '|') | ('-', '>') | ('&', '&') | ('>', '>')
            ) {
                break;
            }
            self.out.push(*next);
            self.at += 1;
        }
        self.at += 1;
        match sign {
            '(' if place == Place::TableStart => {
                self.set_place(Place::Tables);
                self.places.push(Place::Elsewhere);
            }
            '(' => {
                self.plain_place();
                self.places.push(Place::Elsewhere);
            }
            ')' if self.places.len() > 1 => {
                self.places.pop();
            }
            ',' if matches!(place, Place::Item | Place::ItemStart) => self.set_place(Place::ItemStart),
            ',' if place == Place::Tables => self.set_place(Place::TableStart),
            _ => self.plain_place(),
        }
    }

    fn plain_place(&mut self) {
        if self.place() == Place::ItemStart {
            self.set_place(Place::Item);
        }
    }

    /// Keywords that move the place.
    fn keyword(&mut self, word: &str) -> bool {
        let place = match word.to_ascii_uppercase().as_str() {
            "SELECT" => Place::ItemStart,
            "DISTINCT" | "ALL" if self.place() == Place::ItemStart => Place::ItemStart,
            "FROM" if matches!(self.place(), Place::Item | Place::ItemStart) => {
                if self.ahead(1).is_some_and(|next| next.is_word("DUAL")) {
                    self.at += 2;
                    self.set_place(Place::Elsewhere);
                    return true;
                }
                Place::TableStart
            }
            "JOIN" => Place::TableStart,
            "INTO" | "FROM" if self.at == 1 => Place::TableStart,
            "ON" | "USING" | "WHERE" | "GROUP" | "ORDER" | "HAVING" | "LIMIT" | "UNION" | "EXCEPT"
            | "INTERSECT" => Place::Elsewhere,
            _ => return false,
        };
        self.emit(word);
        self.at += 1;
        self.set_place(place);
        true
    }

    /// Functions that SQLite does not have, or has under another name.
    fn call(&mut self, word: &str) -> bool {
        let lower = word.to_ascii_lowercase();
        let brackets = self.ahead(1).is_some_and(|next| next.is_sign('('));
        if brackets && lower == "if" {
            self.plain("iif");
            return true;
        }
        let value = match lower.as_str() {
            "database" | "schema" => self.database.map_or("NULL".to_owned(), literal),
            "user" | "current_user" | "session_user" => literal("'root'@'%'"),
            "version" => literal(MYSQL_VERSION),
            "current_version" => literal(CURRENT_VERSION),
            "connection_id" => "1".to_owned(),
            "now" | "utc_timestamp" => "datetime('now')".to_owned(),
            "curdate" => "date('now')".to_owned(),
            _ => return false,
        };
        if !brackets || !self.ahead(2).is_some_and(|next| next.is_sign(')')) {
            return false;
        }
        self.at += 3;
        self.constant(&value, &format!("{word}()"));
        true
    }

    fn variable(&mut self, written: &str) {
        let name = written.trim_start_matches('@');
        let name = name.trim_start_matches("session.").trim_start_matches("global.").to_ascii_lowercase();
        let value = match VARIABLES.iter().find(|(have, _)| *have == name) {
            Some((_, value)) if value.parse::<i64>().is_ok() => (*value).to_owned(),
            Some((_, value)) => literal(value),
            None if name == "version" => literal(MYSQL_VERSION),
            None => "NULL".to_owned(),
        };
        self.at += 1;
        self.constant(&value, written);
    }

    /// Puts a value for something, and names the result column after it when it is a whole item.
    fn constant(&mut self, value: &str, named: &str) {
        let starts = self.place() == Place::ItemStart;
        self.emit(value);
        let ends = match self.tokens.get(self.at) {
            None => true,
            Some(next) => next.is_sign(',') || next.is_word("FROM") || next.is_word("LIMIT"),
        };
        if starts && ends {
            self.emit("AS");
            self.emit(&quoted(named));
        }
        self.plain_place();
    }

    /// A name that is no table: a column, perhaps with a table and a database before it.
    fn column(&mut self, token: &'a Token) {
        let dotted = |by: usize| self.ahead(by).is_some_and(|next| next.is_sign('.'));
        let db = token.as_name().unwrap_or_default();
        let known = self.cluster.catalog().has_database(db) || db.eq_ignore_ascii_case(schema_view::SCHEMA);
        if dotted(1) && dotted(3) && known {
            // `db.table.column`: the table goes by its alias alone.
            self.at += 2;
            return;
        }
        match token {
            Token::Name(name) => self.plain(&quoted(name)),
            Token::Word(word) => self.plain(word),
            Token::Text(_) | Token::Number(_) | Token::Variable(_) | Token::Sign(_) => {}
        }
    }

    /// A table reference: `table`, `db.table`, with or without an alias.
    fn table(&mut self) -> Result<(), SqlError> {
        let first = self.ahead(0).and_then(Token::as_name).unwrap_or_default();
        let qualified = self.ahead(1).is_some_and(|next| next.is_sign('.'));
        let (db, name) = if qualified {
            let name = self.ahead(2).and_then(Token::as_name);
            (Some(first), name.ok_or_else(|| SqlError::syntax("a table name is missing after a dot"))?)
        } else {
            (self.database, first)
        };
        self.at += if qualified { 3 } else { 1 };
        self.set_place(Place::Tables);
        let stored = match db {
            Some(db) if db.eq_ignore_ascii_case(schema_view::SCHEMA) => {
                let view = name.to_ascii_lowercase();
                let stored = storage_name(schema_view::SCHEMA, &view);
                self.views.insert(view);
                stored
            }
            Some(db) => match self.cluster.catalog().table(db, name) {
                Some(table) => {
                    let stored = table.storage_name();
                    self.tables.push(table);
                    stored
                }
                None if qualified && !self.cluster.catalog().has_database(db) => {
                    return Err(SqlError::unknown_database(db));
                }
                None if qualified => return Err(SqlError::unknown_table(db, name)),
                // A name from a WITH clause, or unknown: SQLite will say.
                None => name.to_owned(),
            },
            None => name.to_owned(),
        };
        self.emit(&quoted(&stored));
        let has_alias = match self.ahead(0) {
            Some(Token::Name(_)) => true,
            Some(Token::Word(word)) => !AFTER_TABLE.iter().any(|after| word.eq_ignore_ascii_case(after)),
            Some(Token::Text(_) | Token::Number(_) | Token::Variable(_) | Token::Sign(_)) | None => false,
        };
        let is_source =
            !self.tokens.first().is_some_and(|verb| verb.is_word("INSERT") || verb.is_word("DELETE"));
        if !has_alias && is_source && stored != name {
            self.emit("AS");
            self.emit(&quoted(name));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Rewriter;
    use crate::cluster::{Addresses, Cluster};
    use crate::options::Options;
    use crate::sql::Session;
    use crate::sql::token::tokens;
    use std::sync::Arc;

    #[test]
    fn rewrites_to_sqlite() {
        let addresses = Addresses { fe_http: 1, be_http: 2, query: 3 };
        let cluster = Arc::new(Cluster::new(Options::default(), addresses).expect("a temporary directory"));
        let mut session = Session::new(Arc::clone(&cluster));
        for sql in ["CREATE DATABASE shop", "CREATE TABLE shop.orders (id INT, `from` INT)"] {
            session.execute(sql).expect("well-formed");
        }
        let check = |sql: &str, expected: &str| {
            let tokens = tokens(sql).expect("well-formed");
            let mut rewriter = Rewriter::new(&cluster, Some("shop"), &tokens);
            rewriter.run().expect("known tables");
            assert_eq!(rewriter.out, expected, "{sql}");
        };
        check("SELECT count(*) FROM orders", "SELECT count(*) FROM \"shop.orders\" AS \"orders\"");
        check(
            "select shop.orders.id from shop.orders",
            "select orders.id from \"shop.orders\" AS \"orders\"",
        );
        check(
            "SELECT o.`from` FROM orders o WHERE o.id<=1",
            "SELECT o.\"from\" FROM \"shop.orders\" o WHERE o.id <= 1",
        );
        check(
            "SELECT * FROM orders a JOIN orders AS b ON a.id=b.id LIMIT 2, 3",
            "SELECT * FROM \"shop.orders\" a JOIN \"shop.orders\" AS b ON a.id = b.id LIMIT 2, 3",
        );
        check("SELECT @@sql_mode, 1 FROM dual", "SELECT 'ONLY_FULL_GROUP_BY' AS \"@@sql_mode\", 1");
        check(
            "SELECT 1 WHERE 'x' = DATABASE() AND \"it's\" <> ''",
            "SELECT 1 WHERE 'x' = 'shop' AND 'it''s' <> ''",
        );
        check(
            "SELECT id FROM (SELECT id FROM orders) x, orders",
            "SELECT id FROM(SELECT id FROM \"shop.orders\" AS \"orders\") x, \"shop.orders\" AS \"orders\"",
        );
    }
}
