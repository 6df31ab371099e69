//! The CREATE TABLE that would fit some rows: a start for whoever has to create the table. And what to do about one
//! that StarRocks refused.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use crate::fault::Fault;

/// What a refusal names when the table would have more replicas than there are BEs to hold them: three, unless the
/// statement or the FE's `default_replication_num` says otherwise.
const TOO_MANY_REPLICAS: &str = "replication_num";

/// A statement that creates `database`.`table` so that `sample_rows` (one JSON object each) fit.
///
/// Types come from the values seen; the key is the column that looks most like one. Rows with `__op`
/// ask for a Primary Key table, all others get a Duplicate Key table. Rows that are no JSON object are
/// left out; with none left the statement has one `id` column.
pub fn suggest_create_table(database: &str, table: &str, sample_rows: &[&[u8]]) -> String {
    let mut columns: Vec<Column> = Vec::new();
    let mut deletes = false;
    for row in sample_rows {
        let Ok(object) = serde_json::from_slice::<Map<String, Value>>(row) else { continue };
        for (name, value) in &object {
            if name == "__op" {
                deletes = true;
                continue;
            }
            match columns.iter_mut().find(|column| column.name == *name) {
                Some(column) => column.kind = column.kind.with(Kind::of(value)),
                None => columns.push(Column { name: name.clone(), kind: Kind::of(value) }),
            }
        }
    }
    let key = key_index(table, &columns);
    let key = match key {
        Some(index) => columns.remove(index),
        None => Column { name: "id".to_owned(), kind: Kind::Integer },
    };
    let mut sql = format!(
        "CREATE TABLE {}.{} ({} {} NOT NULL",
        quoted(database),
        quoted(table),
        quoted(&key.name),
        key.kind.key_type()
    );
    for column in &columns {
        // Writing to a String cannot fail.
        let _ = write!(sql, ", {} {} NULL", quoted(&column.name), column.kind.sql_type());
    }
    let model = if deletes { "PRIMARY" } else { "DUPLICATE" };
    let name = quoted(&key.name);
    let _ = write!(sql, ") {model} KEY({name}) DISTRIBUTED BY HASH({name})");
    sql
}

/// What a person has to do when StarRocks has `refused` a `statement` that ends behind its distribution.
pub fn made_by_hand(statement: &str, refused: &Fault) -> String {
    if refused.story().contains(TOO_MANY_REPLICAS) {
        return format!(
            "there are fewer BEs than replicas by default; run this with as many as there are: {statement} PROPERTIES \
             (\"replication_num\" = \"1\")"
        );
    }
    format!("grant the user CREATE TABLE on the database, or run: {statement}")
}

#[derive(Debug)]
struct Column {
    name: String,
    kind: Kind,
}

/// What the values of a column have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Nothing but null so far.
    Nothing,
    Boolean,
    Integer,
    /// Whole numbers past 64 bits.
    Large,
    Fraction,
    Date,
    Moment,
    Text,
    Nested,
}

impl Kind {
    fn of(value: &Value) -> Self {
        match value {
            Value::Null => Self::Nothing,
            Value::Bool(_) => Self::Boolean,
            Value::Number(number) if number.is_i64() => Self::Integer,
            Value::Number(number) if number.is_u64() => Self::Large,
            Value::Number(_) => Self::Fraction,
            Value::String(text) => Self::of_text(text.as_bytes()),
            Value::Array(_) | Value::Object(_) => Self::Nested,
        }
    }

    /// Dates and times without a zone are what StarRocks reads as such; the rest is text.
    fn of_text(text: &[u8]) -> Self {
        let shape = |pattern: &[u8], text: &[u8]| {
            pattern.len() == text.len()
                && pattern.iter().zip(text).all(|(p, b)| if *p == b'0' { b.is_ascii_digit() } else { p == b })
        };
        if shape(b"0000-00-00", text) {
            return Self::Date;
        }
        let (whole, fraction) = text.split_at(text.len().min(19));
        let fraction_fits = match fraction.split_first() {
            None => true,
            Some((point, digits)) => {
                *point == b'.' && (1..=6).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit)
            }
        };
        if fraction_fits && (shape(b"0000-00-00 00:00:00", whole) || shape(b"0000-00-00T00:00:00", whole)) {
            return Self::Moment;
        }
        Self::Text
    }

    /// The narrowest kind that holds both.
    fn with(self, other: Self) -> Self {
        if self == other || other == Self::Nothing {
            return self;
        }
        match (self, other) {
            (Self::Nothing, _) => other,
            (Self::Integer, Self::Large) | (Self::Large, Self::Integer) => Self::Large,
            (Self::Integer | Self::Large | Self::Fraction, Self::Integer | Self::Large | Self::Fraction) => {
                Self::Fraction
            }
            (Self::Date, Self::Moment) | (Self::Moment, Self::Date) => Self::Moment,
            (Self::Nested, _) | (_, Self::Nested) => Self::Nested,
            (
                Self::Boolean
                | Self::Integer
                | Self::Large
                | Self::Fraction
                | Self::Date
                | Self::Moment
                | Self::Text,
                _,
            ) => Self::Text,
        }
    }

    fn sql_type(self) -> &'static str {
        match self {
            Self::Boolean => "BOOLEAN",
            Self::Integer => "BIGINT",
            Self::Large => "LARGEINT",
            Self::Fraction => "DOUBLE",
            Self::Date => "DATE",
            Self::Moment => "DATETIME",
            Self::Nothing | Self::Text => "STRING",
            Self::Nested => "JSON",
        }
    }

    /// Keys have fewer types, and text a length of which the key limit (128 bytes) leaves room.
    fn key_type(self) -> &'static str {
        match self {
            Self::Boolean | Self::Integer | Self::Large | Self::Date | Self::Moment => self.sql_type(),
            Self::Nothing | Self::Text | Self::Fraction | Self::Nested => "VARCHAR(64)",
        }
    }
}

/// `id`, `<table>_id`, the first `…_id`, `uuid` or `key`, else the first column of a type that keys may have.
fn key_index(table: &str, columns: &[Column]) -> Option<usize> {
    let singular = table.strip_suffix('s').unwrap_or(table).to_ascii_lowercase();
    let rank = |column: &Column| {
        let name = column.name.to_ascii_lowercase();
        if name == "id" {
            0
        } else if name == format!("{singular}_id") {
            1
        } else if name.ends_with("_id") || name == "uuid" || name == "key" {
            2
        } else {
            match column.kind {
                Kind::Boolean | Kind::Integer | Kind::Large | Kind::Date | Kind::Moment | Kind::Text => 3,
                Kind::Nothing | Kind::Fraction | Kind::Nested => 4,
            }
        }
    };
    columns.iter().enumerate().min_by_key(|(_, column)| rank(column)).map(|(index, _)| index)
}

/// A name as StarRocks reads it.
pub(crate) fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(table: &str, rows: &[&str], expected: &str) {
        let rows: Vec<&[u8]> = rows.iter().map(|row| row.as_bytes()).collect();
        assert_eq!(suggest_create_table("shop", table, &rows), expected);
    }

    #[test]
    fn types_come_from_what_was_seen_and_the_key_is_first() {
        check(
            "orders",
            &[
                r#"{"at":"2026-01-02 03:04:05","order_id":7,"paid":true,"price":1,"tags":["a"],"day":"2026-01-02","note":null}"#,
                r#"{"at":"2026-01-02T03:04:05.123","order_id":8,"paid":false,"price":1.5,"tags":{"a":1},"day":null,"big":18446744073709551615}"#,
                "no json",
            ],
            "CREATE TABLE `shop`.`orders` (`order_id` BIGINT NOT NULL, `at` DATETIME NULL, `paid` BOOLEAN NULL, \
             `price` DOUBLE NULL, `tags` JSON NULL, `day` DATE NULL, `note` STRING NULL, `big` LARGEINT NULL) \
             DUPLICATE KEY(`order_id`) DISTRIBUTED BY HASH(`order_id`)",
        );
    }

    #[test]
    fn deletes_want_a_primary_key_table_and_mixed_values_want_text() {
        check(
            "users",
            &[
                r#"{"mix":1,"id":"u-1","__op":0,"seen":"2026-01-02T03:04:05Z"}"#,
                r#"{"mix":"x","id":"u-2","__op":1}"#,
            ],
            "CREATE TABLE `shop`.`users` (`id` VARCHAR(64) NOT NULL, `mix` STRING NULL, `seen` STRING NULL) \
             PRIMARY KEY(`id`) DISTRIBUTED BY HASH(`id`)",
        );
    }

    #[test]
    fn names_are_quoted_and_no_row_still_gives_a_statement() {
        check(
            "a`b",
            &[r#"{"x":1.5,"create":"now"}"#],
            "CREATE TABLE `shop`.`a``b` (`create` VARCHAR(64) NOT NULL, `x` DOUBLE NULL) DUPLICATE KEY(`create`) \
             DISTRIBUTED BY HASH(`create`)",
        );
        check(
            "t",
            &[],
            "CREATE TABLE `shop`.`t` (`id` BIGINT NOT NULL) DUPLICATE KEY(`id`) DISTRIBUTED BY HASH(`id`)",
        );
    }

    #[test]
    fn a_refused_statement_is_told_with_what_was_missing() {
        let statement = "CREATE TABLE t (id BIGINT) PRIMARY KEY (id) DISTRIBUTED BY HASH (id)";
        let hint = |said: &str| {
            let cause = std::io::Error::other(said.to_owned());
            made_by_hand(statement, &Fault::retry("cannot run a statement").caused_by(cause))
        };
        let one_backend = "Table replication num should be less than or equal to the number of available BE nodes. You \
                           can change this default by setting the replication_num table properties. Current alive \
                           backend is [10001]. , table=t, default_replication_num=3";
        assert!(
            hint(one_backend).ends_with(&format!("{statement} PROPERTIES (\"replication_num\" = \"1\")"))
        );
        assert!(!hint(one_backend).contains("grant"));
        assert_eq!(
            hint("Access denied; you need (at least one of) the CREATE TABLE privilege(s)"),
            format!("grant the user CREATE TABLE on the database, or run: {statement}")
        );
    }
}
