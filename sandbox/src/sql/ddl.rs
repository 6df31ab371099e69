//! CREATE, DROP and TRUNCATE.

use std::time::Duration;

use super::alter;
use super::token::{Cursor, Token};
use crate::catalog::{KeyModel, Schema, fits_primary_key};
use crate::cluster::Cluster;
use crate::column::{Column, ColumnType};
use crate::error::{SqlError, SqlErrorKind};
use crate::fault::FaultKind;

/// Bytes of a `STRING` column.
const STRING_BYTES: u32 = 65_533;
/// The widest VARCHAR of StarRocks before 4.2.
const VARCHAR_BYTES_MAX: u32 = 1_048_576;
const CHAR_BYTES_MAX: u32 = 255;
const DECIMAL_DIGITS_MAX: u32 = 38;
const DEFAULT_BUCKETS: u32 = 1;

pub(super) fn run(
    cluster: &Cluster,
    database: Option<&str>,
    cursor: &mut Cursor<'_>,
) -> Result<(), SqlError> {
    if cursor.words("CREATE DATABASE") || cursor.words("CREATE SCHEMA") {
        let if_absent = cursor.words("IF NOT EXISTS");
        let db = cursor.name()?;
        return cluster.catalog_mut().create_database(&db, if_absent);
    }
    if cursor.words("CREATE TABLE") {
        return create_table(cluster, database, cursor);
    }
    if cursor.words("DROP DATABASE") || cursor.words("DROP SCHEMA") {
        return drop_database(cluster, cursor);
    }
    if cursor.words("DROP TABLE") {
        return drop_table(cluster, database, cursor);
    }
    if cursor.words("TRUNCATE TABLE") || cursor.words("TRUNCATE") {
        let (db, name) = cursor.table_name(database)?;
        cursor.expect_end()?;
        let table = cluster.catalog().table(&db, &name);
        let table = table.ok_or_else(|| SqlError::unknown_table(&db, &name))?;
        let slow = |kind: &FaultKind| match kind {
            FaultKind::SlowTruncate { delay_ms } => Some(Duration::from_millis(*delay_ms)),
            _ => None,
        };
        if let Some(delay) = cluster.faults.fire(&db, &name, slow) {
            std::thread::sleep(delay);
        }
        return Ok(cluster.store.truncate_table(&table.storage_name())?);
    }
    if cursor.words("ALTER TABLE") {
        return alter::run(cluster, database, cursor);
    }
    let verb = cursor.next().and_then(Token::as_name).unwrap_or_default().to_uppercase();
    let what = cursor.peek().and_then(Token::as_name).unwrap_or_default().to_uppercase();
    Err(SqlError::unsupported(format!("{verb} {what}")))
}

fn create_table(cluster: &Cluster, database: Option<&str>, cursor: &mut Cursor<'_>) -> Result<(), SqlError> {
    let if_absent = cursor.words("IF NOT EXISTS");
    let (db, name) = cursor.table_name(database)?;
    let schema = definition(cursor)?;
    // The rows' table is made under the same lock, so that a load never meets one without the other.
    let mut catalog = cluster.catalog_mut();
    match catalog.create_table(&db, &name, schema)? {
        Some(table) => {
            let created = cluster.store.create_table(&table.storage_name(), &table.schema());
            if created.is_err() {
                catalog.drop_table(&db, &name);
            }
            Ok(created?)
        }
        None if if_absent => Ok(()),
        None => {
            let message = format!("Getting analyzing error. Detail message: Table '{name}' already exists.");
            Err(SqlError::new(SqlErrorKind::TableExists, message))
        }
    }
}

fn drop_database(cluster: &Cluster, cursor: &mut Cursor<'_>) -> Result<(), SqlError> {
    let if_there = cursor.words("IF EXISTS");
    let db = cursor.name()?;
    let dropped = cluster.catalog_mut().drop_database(&db);
    match dropped {
        Some(tables) => {
            for table in tables {
                cluster.store.drop_table(&table.storage_name())?;
            }
            cluster.transactions().drop_database(&db);
            Ok(())
        }
        None if if_there => Ok(()),
        None => Err(SqlError::unknown_database(&db)),
    }
}

fn drop_table(cluster: &Cluster, database: Option<&str>, cursor: &mut Cursor<'_>) -> Result<(), SqlError> {
    let if_there = cursor.words("IF EXISTS");
    let (db, name) = cursor.table_name(database)?;
    let dropped = cluster.catalog_mut().drop_table(&db, &name);
    match dropped {
        Some(table) => Ok(cluster.store.drop_table(&table.storage_name())?),
        None if if_there => Ok(()),
        None => Err(SqlError::unknown_table(&db, &name)),
    }
}

/// Everything after the table's name.
fn definition(cursor: &mut Cursor<'_>) -> Result<Schema, SqlError> {
    cursor.expect_sign('(')?;
    let mut columns: Vec<Column> = Vec::new();
    loop {
        if cursor.words("INDEX") || cursor.words("KEY") {
            skip_item(cursor);
        } else {
            let column = column(cursor)?;
            if columns.iter().any(|have| have.name.eq_ignore_ascii_case(&column.name)) {
                return Err(SqlError::analysis(format!("Duplicate column name '{}'", column.name)));
            }
            columns.push(column);
        }
        if !cursor.sign(',') {
            break;
        }
    }
    cursor.expect_sign(')')?;
    let mut schema = Schema {
        columns,
        model: KeyModel::Duplicate,
        keys: 1,
        distributed_by: Vec::new(),
        buckets: DEFAULT_BUCKETS,
        properties: Vec::new(),
        comment: None,
    };
    clauses(cursor, &mut schema)?;
    check_replication(&schema)?;
    Ok(schema)
}

fn clauses(cursor: &mut Cursor<'_>, schema: &mut Schema) -> Result<(), SqlError> {
    while !cursor.is_done() {
        if cursor.words("ENGINE") {
            cursor.expect_sign('=')?;
            cursor.name()?;
        } else if cursor.words("DUPLICATE KEY") {
            keys(cursor, schema, KeyModel::Duplicate)?;
        } else if cursor.words("UNIQUE KEY") {
            keys(cursor, schema, KeyModel::Unique)?;
        } else if cursor.words("PRIMARY KEY") {
            keys(cursor, schema, KeyModel::Primary)?;
        } else if cursor.words("AGGREGATE KEY") {
            return Err(SqlError::unsupported("AGGREGATE KEY tables"));
        } else if cursor.words("COMMENT") {
            schema.comment = Some(cursor.text()?);
        } else if cursor.words("DISTRIBUTED BY") {
            distribution(cursor, schema)?;
        } else if cursor.words("ORDER BY") {
            cursor.name_list()?;
        } else if cursor.words("PARTITION BY") {
            partition(cursor);
        } else if cursor.words("PROPERTIES") {
            schema.properties = properties(cursor)?;
        } else {
            return Err(cursor.unexpected("PROPERTIES"));
        }
    }
    Ok(())
}

fn keys(cursor: &mut Cursor<'_>, schema: &mut Schema, model: KeyModel) -> Result<(), SqlError> {
    let names = cursor.name_list()?;
    for (at, name) in names.iter().enumerate() {
        let column = schema.columns.get_mut(at).filter(|column| column.name.eq_ignore_ascii_case(name));
        let Some(column) = column else {
            return Err(SqlError::analysis(
                "Key columns must be the first few columns of the schema and the order of the key columns must be \
                 consistent with the order of the schema",
            ));
        };
        if model == KeyModel::Primary {
            if !fits_primary_key(&column.kind) {
                let kind = column.kind.named();
                let message = format!("primary key column[{name}] type not supported: {kind}");
                return Err(SqlError::analysis(message));
            }
            column.nullable = false;
        }
    }
    schema.model = model;
    schema.keys = names.len();
    Ok(())
}

fn distribution(cursor: &mut Cursor<'_>, schema: &mut Schema) -> Result<(), SqlError> {
    if cursor.words("HASH") {
        schema.distributed_by = cursor.name_list()?;
        if let Some(unknown) = schema.distributed_by.iter().find(|name| schema.position(name).is_none()) {
            let message = format!("Distribution column({unknown}) doesn't exist");
            return Err(SqlError::analysis(message));
        }
        let in_key = |name: &String| schema.position(name).is_some_and(|at| at < schema.keys);
        if schema.model == KeyModel::Primary && !schema.distributed_by.iter().all(in_key) {
            return Err(SqlError::analysis(
                "Distribution column must be a key column of a primary key table",
            ));
        }
    } else {
        cursor.expect_words("RANDOM")?;
    }
    if cursor.words("BUCKETS") {
        schema.buckets = cursor.number()?;
    }
    Ok(())
}

/// Partitions hold rows but change nothing that a client sees here, so the clause is read over.
fn partition(cursor: &mut Cursor<'_>) {
    let next_clause = |token: &Token| {
        ["DISTRIBUTED", "PROPERTIES", "ORDER", "COMMENT"].iter().any(|word| token.is_word(word))
    };
    let mut depth = 0_u32;
    while let Some(token) = cursor.peek() {
        if depth == 0 && next_clause(token) {
            return;
        }
        match token {
            Token::Sign('(') => depth += 1,
            Token::Sign(')') => depth = depth.saturating_sub(1),
            _ => {}
        }
        cursor.next();
    }
}

/// Skips to the comma or bracket that ends an item of the column list.
fn skip_item(cursor: &mut Cursor<'_>) {
    let mut depth = 0_u32;
    while let Some(token) = cursor.peek() {
        match token {
            Token::Sign(',' | ')') if depth == 0 => return,
            Token::Sign('(') => depth += 1,
            Token::Sign(')') => depth -= 1,
            _ => {}
        }
        cursor.next();
    }
}

pub(super) fn properties(cursor: &mut Cursor<'_>) -> Result<Vec<(String, String)>, SqlError> {
    cursor.expect_sign('(')?;
    let mut found = Vec::new();
    loop {
        let key = cursor.text()?;
        cursor.expect_sign('=')?;
        found.push((key, cursor.text()?));
        if !cursor.sign(',') {
            break;
        }
    }
    cursor.expect_sign(')')?;
    Ok(found)
}

/// The sandbox is one BE: it can keep one replica.
fn check_replication(schema: &Schema) -> Result<(), SqlError> {
    let wanted = schema.properties.iter().find(|(key, _)| key == "replication_num");
    match wanted {
        Some((_, number)) if number != "1" => Err(SqlError::analysis(
            "Table replication num should be less than or equal to the number of available BE nodes. You can \
             change this default by setting the replication_num table properties. Current alive backend is [10001]",
        )),
        Some(_) | None => Ok(()),
    }
}

pub(super) fn column(cursor: &mut Cursor<'_>) -> Result<Column, SqlError> {
    let name = cursor.name()?;
    if name.eq_ignore_ascii_case("__op") || name.eq_ignore_ascii_case("__row") {
        return Err(SqlError::analysis(format!("Column name '{name}' is reserved")));
    }
    let kind = column_type(cursor)?;
    let mut column = Column { name, kind, nullable: true, default: None, comment: None };
    loop {
        if cursor.words("NOT NULL") {
            column.nullable = false;
        } else if cursor.words("NULL") {
            column.nullable = true;
        } else if cursor.words("KEY") {
            // Old syntax; the key clause of the table decides.
        } else if cursor.words("AUTO_INCREMENT") {
            return Err(SqlError::unsupported("AUTO_INCREMENT columns"));
        } else if cursor.words("COMMENT") {
            column.comment = Some(cursor.text()?);
        } else if cursor.words("DEFAULT") {
            column.default = default(cursor)?;
        } else {
            return Ok(column);
        }
    }
}

fn default(cursor: &mut Cursor<'_>) -> Result<Option<String>, SqlError> {
    if cursor.words("NULL") {
        return Ok(None);
    }
    if cursor.words("CURRENT_TIMESTAMP") {
        if cursor.sign('(') {
            cursor.expect_sign(')')?;
        }
        return Ok(Some("CURRENT_TIMESTAMP".to_owned()));
    }
    let sign = if cursor.sign('-') { "-" } else { "" };
    match cursor.next() {
        Some(Token::Text(text) | Token::Number(text)) => Ok(Some(format!("{sign}{text}"))),
        Some(Token::Word(word)) => Ok(Some(match word.to_ascii_lowercase().as_str() {
            "true" => "1".to_owned(),
            "false" => "0".to_owned(),
            _ => return Err(SqlError::unsupported(format!("DEFAULT {word}"))),
        })),
        Some(_) | None => Err(cursor.unexpected("a default value")),
    }
}

fn column_type(cursor: &mut Cursor<'_>) -> Result<ColumnType, SqlError> {
    let word = cursor.name()?.to_ascii_uppercase();
    Ok(match word.as_str() {
        "BOOLEAN" | "BOOL" => ColumnType::Boolean,
        "TINYINT" => integer(cursor, 1)?,
        "SMALLINT" => integer(cursor, 2)?,
        "INT" | "INTEGER" => integer(cursor, 4)?,
        "BIGINT" => integer(cursor, 8)?,
        "LARGEINT" => {
            length(cursor)?;
            ColumnType::LargeInt
        }
        "FLOAT" => ColumnType::Float { double: false },
        "DOUBLE" => ColumnType::Float { double: true },
        "DECIMAL" | "DECIMALV2" | "DECIMAL32" | "DECIMAL64" | "DECIMAL128" | "NUMERIC" => decimal(cursor)?,
        "DATE" => ColumnType::Date,
        "DATETIME" => ColumnType::DateTime,
        "CHAR" => ColumnType::Char { bytes: bounded(length(cursor)?.unwrap_or(1), CHAR_BYTES_MAX)? },
        "VARCHAR" => ColumnType::Varchar { bytes: bounded(length(cursor)?.unwrap_or(1), VARCHAR_BYTES_MAX)? },
        "STRING" | "TEXT" => ColumnType::Varchar { bytes: STRING_BYTES },
        "JSON" => ColumnType::Json,
        "VARBINARY" | "BINARY" => {
            length(cursor)?;
            ColumnType::Binary
        }
        "ARRAY" => ColumnType::Nested { written: nested(cursor, "array")?, opens_with: b'[' },
        "MAP" => ColumnType::Nested { written: nested(cursor, "map")?, opens_with: b'{' },
        "STRUCT" => ColumnType::Nested { written: nested(cursor, "struct")?, opens_with: b'{' },
        _ => return Err(SqlError::unsupported(format!("type {word}"))),
    })
}

fn integer(cursor: &mut Cursor<'_>, bytes: u32) -> Result<ColumnType, SqlError> {
    length(cursor)?;
    Ok(ColumnType::Int { bytes })
}

/// `(n)`, if it is there.
fn length(cursor: &mut Cursor<'_>) -> Result<Option<u32>, SqlError> {
    if !cursor.sign('(') {
        return Ok(None);
    }
    let number = cursor.number()?;
    cursor.expect_sign(')')?;
    Ok(Some(number))
}

fn bounded(bytes: u32, max: u32) -> Result<u32, SqlError> {
    if (1..=max).contains(&bytes) {
        return Ok(bytes);
    }
    Err(SqlError::analysis(format!("size must be between 1 and {max}, but was {bytes}")))
}

fn decimal(cursor: &mut Cursor<'_>) -> Result<ColumnType, SqlError> {
    let (mut precision, mut scale) = (10, 0);
    if cursor.sign('(') {
        precision = cursor.number()?;
        if cursor.sign(',') {
            scale = cursor.number()?;
        }
        cursor.expect_sign(')')?;
    }
    if precision == 0 || precision > DECIMAL_DIGITS_MAX || scale > precision {
        return Err(SqlError::analysis(format!("invalid decimal type DECIMAL({precision},{scale})")));
    }
    Ok(ColumnType::Decimal { precision, scale })
}

/// The type of a nested column as it was written, in lower case.
fn nested(cursor: &mut Cursor<'_>, name: &str) -> Result<String, SqlError> {
    cursor.expect_sign('<')?;
    let mut written = format!("{name}<");
    let mut depth = 1;
    while depth > 0 {
        match cursor.next() {
            Some(Token::Sign('<')) => {
                depth += 1;
                written.push('<');
            }
            Some(Token::Sign('>')) => {
                depth -= 1;
                written.push('>');
            }
            Some(Token::Word(word) | Token::Name(word) | Token::Number(word)) => {
                if written.ends_with(|last: char| last.is_alphanumeric()) {
                    written.push(' ');
                }
                written.push_str(&word.to_lowercase());
            }
            Some(Token::Sign(sign)) => written.push(*sign),
            Some(Token::Text(_) | Token::Variable(_)) | None => return Err(cursor.unexpected("'>'")),
        }
    }
    Ok(written)
}
