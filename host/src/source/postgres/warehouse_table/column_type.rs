//! StarRocks' types, and which of them a Postgres column asks for.

use std::fmt;

use crate::source::postgres::kind::{BaseType, Kind, Types};
use crate::source::postgres::table::Column;

/// Longest VARCHAR of StarRocks 2.1 to 4.1, in bytes. STRING is shorter there (65,533), so it is not used.
const VARCHAR_BYTES_MAX: u32 = 1_048_576;
/// Most digits of a DECIMAL.
const DECIMAL_DIGITS_MAX: u32 = 38;
/// A character in UTF-8; Postgres counts characters, StarRocks bytes.
const CHARACTER_BYTES_MAX: u32 = 4;
/// Text without a length, as a key: StarRocks refuses keys of more than 128 bytes unless it is told otherwise.
const KEY_TEXT_BYTES: u32 = 128;
/// What `atttypmod` of varchar, char and numeric is too large by.
const MODIFIER_HEADER: i32 = 4;

/// A column's type in StarRocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ColumnType {
    /// `BOOLEAN`
    Boolean,
    /// `TINYINT`, `SMALLINT`, `INT`, `BIGINT` or `LARGEINT`, by bytes.
    Integer(u8),
    /// `FLOAT`
    Float,
    /// `DOUBLE`
    Double,
    /// `DECIMAL(precision, scale)`
    Decimal {
        /// All digits.
        precision: u32,
        /// Those behind the point.
        scale: u32,
    },
    /// `DATE`
    Date,
    /// `DATETIME`
    DateTime,
    /// `VARCHAR` or `CHAR` of that many bytes.
    Varchar(u32),
    /// `JSON`
    Json,
    /// `ARRAY<FLOAT>`, or any other array.
    Array(String),
    /// A type that Tidemill does not create.
    Other(String),
}

impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boolean => f.write_str("BOOLEAN"),
            Self::Integer(1) => f.write_str("TINYINT"),
            Self::Integer(2) => f.write_str("SMALLINT"),
            Self::Integer(3..=4) => f.write_str("INT"),
            Self::Integer(5..=8) => f.write_str("BIGINT"),
            Self::Integer(_) => f.write_str("LARGEINT"),
            Self::Float => f.write_str("FLOAT"),
            Self::Double => f.write_str("DOUBLE"),
            Self::Decimal { precision, scale } => write!(f, "DECIMAL({precision}, {scale})"),
            Self::Date => f.write_str("DATE"),
            Self::DateTime => f.write_str("DATETIME"),
            Self::Varchar(bytes) => write!(f, "VARCHAR({bytes})"),
            Self::Json => f.write_str("JSON"),
            Self::Array(written) | Self::Other(written) => f.write_str(&written.to_uppercase()),
        }
    }
}

impl ColumnType {
    /// Any text.
    const TEXT: Self = Self::Varchar(VARCHAR_BYTES_MAX);

    /// The type of a column that is not in the key.
    pub fn of_value(column: &Column, types: &Types) -> Self {
        Self::of(column, types, &types.kind(column.type_oid))
    }

    /// Reads a type as `DESC` gives it: `bigint(20)`, `decimal64(10, 2)`, `varchar(64)`, `array<float>`.
    pub fn parse(written: &str) -> Self {
        let lower = written.trim().to_ascii_lowercase();
        let (name, arguments) = match lower.split_once('(') {
            Some((name, rest)) => (name.trim(), rest.trim_end_matches(')')),
            None => (lower.as_str(), ""),
        };
        let mut numbers = arguments.split(',').map(|number| number.trim().parse().ok());
        let first: Option<u32> = numbers.next().flatten();
        match name {
            "boolean" => Self::Boolean,
            // How a BOOLEAN looks to MySQL clients.
            "tinyint" if first == Some(1) => Self::Boolean,
            "tinyint" => Self::Integer(1),
            "smallint" => Self::Integer(2),
            "int" | "integer" => Self::Integer(4),
            "bigint" => Self::Integer(8),
            "largeint" | "bigint unsigned" => Self::Integer(16),
            "float" => Self::Float,
            "double" => Self::Double,
            "decimal" | "decimalv2" | "decimal32" | "decimal64" | "decimal128" | "decimal256" => {
                Self::Decimal { precision: first.unwrap_or(10), scale: numbers.next().flatten().unwrap_or(0) }
            }
            "date" => Self::Date,
            "datetime" => Self::DateTime,
            "varchar" | "char" => Self::Varchar(first.unwrap_or(1)),
            "string" => Self::Varchar(65_533),
            "json" => Self::Json,
            _ if name.starts_with("array<") => Self::Array(lower),
            _ => Self::Other(lower),
        }
    }

    fn of(column: &Column, types: &Types, kind: &Kind) -> Self {
        let base = types.base(column.type_oid, column.type_modifier);
        let oid = base.map_or(0, |base| base.oid);
        match kind {
            Kind::Bool => Self::Boolean,
            Kind::Integer => match oid {
                21 => Self::Integer(2),
                23 => Self::Integer(4),
                _int8_or_oid => Self::Integer(8),
            },
            Kind::Float if oid == 700 => Self::Float,
            Kind::Float => Self::Double,
            Kind::Numeric => match base.and_then(|base| digits(base.modifier)) {
                Some((precision, scale)) if precision <= DECIMAL_DIGITS_MAX => {
                    Self::Decimal { precision, scale }
                }
                Some(_) | None => Self::TEXT,
            },
            Kind::Money => Self::Decimal { precision: 19, scale: 2 },
            Kind::Date => Self::Date,
            Kind::Timestamp | Kind::TimestampTz => Self::DateTime,
            Kind::Json | Kind::Array { .. } => Self::Json,
            Kind::Vector => Self::Array("array<float>".to_owned()),
            Kind::Bytea => Self::TEXT,
            Kind::Text => text_bytes(base).map_or(Self::TEXT, Self::Varchar),
        }
    }
}

/// The type that `column` asks for.
///
/// # Errors
/// If it is to be in the key and cannot: why.
pub fn column_type(column: &Column, types: &Types, in_key: bool) -> Result<ColumnType, &'static str> {
    let kind = types.kind(column.type_oid);
    let plain = ColumnType::of(column, types, &kind);
    if !in_key {
        return Ok(plain);
    }
    match (&kind, plain) {
        (Kind::Float, _) => Err("StarRocks has no floating-point keys"),
        (Kind::Json | Kind::Array { .. } | Kind::Vector, _) => Err("StarRocks has no JSON or array keys"),
        // 1.0 and 1.00 are one key to Postgres and two to StarRocks; with a scale they are printed alike.
        (Kind::Numeric, ColumnType::Varchar(_)) => {
            Err("numeric without a precision, or of more than 38 digits, has no exact key type in StarRocks")
        }
        // A sign, a point and a zero before it: DECIMAL is no key type of Primary Key tables.
        (Kind::Numeric | Kind::Money, ColumnType::Decimal { precision, .. }) => {
            Ok(ColumnType::Varchar(precision + 3))
        }
        (_, ColumnType::TEXT) => Ok(ColumnType::Varchar(KEY_TEXT_BYTES)),
        (_, plain) => Ok(plain),
    }
}

/// Precision and scale of a numeric, as a DECIMAL has them; none without a limit.
///
/// Postgres 15 allows a scale below 0 (thousands only) and above the precision (thousandths only).
fn digits(modifier: i32) -> Option<(u32, u32)> {
    let packed = modifier.checked_sub(MODIFIER_HEADER).filter(|packed| *packed >= 0)?;
    let precision = packed >> 16 & 0xffff;
    // Eleven bits with a sign.
    let scale = ((packed & 0x7ff) ^ 1024) - 1024;
    let whole = (precision - scale).max(0);
    let scale = u32::try_from(scale.max(0)).ok()?;
    Some((u32::try_from(whole).ok()? + scale, scale))
}

/// Bytes that text of this type may take; none if it has no limit.
fn text_bytes(base: Option<BaseType<'_>>) -> Option<u32> {
    let base = base?;
    if base.kind == 'e' {
        // A label has up to 63 bytes; what is added later fits as well.
        return Some(255);
    }
    match base.oid {
        // "char": one byte, or a backslash and three digits
        18 => Some(4),
        // name: 63 bytes
        19 => Some(64),
        // 23:59:59.999999, with -15:59:59 behind it
        1083 => Some(16),
        1266 => Some(32),
        // P-178000000Y-11M-31DT-2562047788H-59M-59.999999S
        1186 => Some(64),
        2950 => Some(36),
        // inet, cidr
        869 | 650 => Some(64),
        // macaddr, macaddr8, pg_lsn
        829 | 774 | 3220 => Some(32),
        // char(n), varchar(n)
        1042 | 1043 => {
            let characters = u32::try_from(base.modifier.checked_sub(MODIFIER_HEADER)?).ok()?;
            Some(characters.saturating_mul(CHARACTER_BYTES_MAX).clamp(1, VARCHAR_BYTES_MAX))
        }
        // bit(n), varbit(n)
        1560 | 1562 => u32::try_from(base.modifier).ok().map(|bits| bits.clamp(1, VARCHAR_BYTES_MAX)),
        _ => None,
    }
}
