//! Column types, and how a JSON or CSV value becomes a value of each (protocol reference §7).

use crate::json_token::{self, TokenKind};
use crate::staged::Cell;

mod decimal;
mod moment;

/// Types of columns; the names of `CREATE TABLE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ColumnType {
    Boolean,
    /// TINYINT, SMALLINT, INT, BIGINT by their width in bytes.
    Int {
        bytes: u32,
    },
    LargeInt,
    /// FLOAT or DOUBLE.
    Float {
        double: bool,
    },
    Decimal {
        precision: u32,
        scale: u32,
    },
    Date,
    DateTime,
    /// Lengths are in bytes.
    Char {
        bytes: u32,
    },
    Varchar {
        bytes: u32,
    },
    Json,
    Binary,
    /// ARRAY, MAP or STRUCT: its type as written, and the bracket its JSON starts with.
    Nested {
        written: String,
        opens_with: u8,
    },
}

impl ColumnType {
    /// The type as `SHOW CREATE TABLE` writes it.
    pub(crate) fn written(&self) -> String {
        match self {
            Self::Boolean => "boolean".to_owned(),
            Self::Int { bytes: 1 } => "tinyint(4)".to_owned(),
            Self::Int { bytes: 2 } => "smallint(6)".to_owned(),
            Self::Int { bytes: 4 } => "int(11)".to_owned(),
            Self::Int { .. } => "bigint(20)".to_owned(),
            Self::LargeInt => "largeint(40)".to_owned(),
            Self::Float { double: true } => "double".to_owned(),
            Self::Float { double: false } => "float".to_owned(),
            Self::Decimal { precision, scale } => format!("decimal({precision}, {scale})"),
            Self::Date => "date".to_owned(),
            Self::DateTime => "datetime".to_owned(),
            Self::Char { bytes } => format!("char({bytes})"),
            Self::Varchar { bytes } => format!("varchar({bytes})"),
            Self::Json => "json".to_owned(),
            Self::Binary => "varbinary".to_owned(),
            Self::Nested { written, .. } => written.clone(),
        }
    }

    /// The bare name of the type, as in `information_schema.columns.DATA_TYPE`.
    /// BOOLEAN is a tinyint there and LARGEINT a "bigint unsigned" (protocol reference §10.2).
    pub(crate) fn data_type(&self) -> String {
        match self {
            Self::Boolean => "tinyint".to_owned(),
            Self::LargeInt => "bigint unsigned".to_owned(),
            Self::Nested { written, .. } => written.split('<').next().unwrap_or(written).to_owned(),
            other => {
                let written = other.written();
                written.split('(').next().unwrap_or(&written).to_owned()
            }
        }
    }

    /// How many bytes a CHAR or VARCHAR takes.
    pub(crate) fn text_bytes_max(&self) -> Option<u32> {
        match self {
            Self::Char { bytes } | Self::Varchar { bytes } => Some(*bytes),
            Self::Boolean
            | Self::Int { .. }
            | Self::LargeInt
            | Self::Float { .. }
            | Self::Decimal { .. }
            | Self::Date
            | Self::DateTime
            | Self::Json
            | Self::Binary
            | Self::Nested { .. } => None,
        }
    }

    /// The digits of a number, as the FE's `Type.getPrecision` tells them; a BOOLEAN is no number there.
    pub(crate) fn precision(&self) -> Option<u32> {
        match self {
            Self::Int { bytes: 1 } => Some(3),
            Self::Int { bytes: 2 } => Some(5),
            Self::Int { bytes: 4 } => Some(10),
            Self::Int { .. } => Some(19),
            Self::LargeInt => Some(39),
            Self::Float { double: false } => Some(7),
            Self::Float { double: true } => Some(15),
            Self::Decimal { precision, .. } => Some(*precision),
            Self::Boolean
            | Self::Date
            | Self::DateTime
            | Self::Char { .. }
            | Self::Varchar { .. }
            | Self::Json
            | Self::Binary
            | Self::Nested { .. } => None,
        }
    }

    /// The digits behind the point, as the FE's `Type.getDecimalDigits` tells them; of a LARGEINT it tells none.
    pub(crate) fn decimal_digits(&self) -> Option<u32> {
        match self {
            Self::Boolean | Self::Int { .. } => Some(0),
            Self::Float { double: false } => Some(7),
            Self::Float { double: true } => Some(15),
            Self::Decimal { scale, .. } => Some(*scale),
            Self::LargeInt
            | Self::Date
            | Self::DateTime
            | Self::Char { .. }
            | Self::Varchar { .. }
            | Self::Json
            | Self::Binary
            | Self::Nested { .. } => None,
        }
    }

    /// The type as messages about rows name it.
    pub(crate) fn named(&self) -> String {
        match self {
            Self::Int { bytes: 1 } => "TINYINT".to_owned(),
            Self::Int { bytes: 2 } => "SMALLINT".to_owned(),
            Self::Int { bytes: 4 } => "INT".to_owned(),
            Self::Int { .. } => "BIGINT".to_owned(),
            Self::LargeInt => "LARGEINT".to_owned(),
            Self::Decimal { precision, scale } => {
                let width = match precision {
                    0..=9 => 32,
                    10..=18 => 64,
                    _ => 128,
                };
                format!("DECIMAL{width}({precision},{scale})")
            }
            other => other.written().to_uppercase(),
        }
    }

    /// The affinity of the SQLite column. Decimals that a double carries exactly are numbers, so that
    /// they compare and add up; wider ones and LARGEINT beyond 64 bits stay text, digit for digit.
    pub(crate) fn affinity(&self) -> &'static str {
        match self {
            Self::Boolean | Self::Int { .. } => "INTEGER",
            Self::LargeInt => "BLOB",
            Self::Float { .. } => "REAL",
            Self::Decimal { precision, .. } if *precision <= decimal::DOUBLE_DIGITS_MAX => "NUMERIC",
            Self::Decimal { .. }
            | Self::Date
            | Self::DateTime
            | Self::Char { .. }
            | Self::Varchar { .. }
            | Self::Json
            | Self::Binary
            | Self::Nested { .. } => "TEXT",
        }
    }
}

/// One column of a table.
#[derive(Debug, Clone)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) kind: ColumnType,
    pub(crate) nullable: bool,
    /// The default as text; loads use it only for columns that they do not name.
    pub(crate) default: Option<String>,
    pub(crate) comment: Option<String>,
}

/// Why a value does not fit. The texts are the value's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Misfit {
    /// Not of the column's type.
    Unconvertible { text: String },
    /// A number beyond the column's range.
    Overflow { text: String },
    /// More bytes than the column takes.
    TooLong { text: String, bytes_max: u32 },
    /// A number with more digits than the column has. It is refused even without `strict_mode`.
    Decimal { text: String },
}

impl Misfit {
    /// Whether the value is NULL without `strict_mode`; otherwise its row is filtered in both modes.
    pub(crate) fn becomes_null(&self) -> bool {
        match self {
            Self::Unconvertible { .. } | Self::Overflow { .. } | Self::TooLong { .. } => true,
            Self::Decimal { .. } => false,
        }
    }

    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Unconvertible { text }
            | Self::Overflow { text }
            | Self::TooLong { text, .. }
            | Self::Decimal { text } => text,
        }
    }
}

/// Where converted text goes that is not a piece of the body as it stands.
pub(crate) struct Sink<'a> {
    pub(crate) body: &'a str,
    pub(crate) scratch: &'a mut String,
}

impl Sink<'_> {
    /// A cell for `text`: the place in the body when it is a piece of it, otherwise a copy.
    fn text(&mut self, text: &str) -> Cell {
        let body = self.body.as_ptr() as usize;
        let at = (text.as_ptr() as usize).wrapping_sub(body);
        // Bodies are limited to far less than 4 GiB, so the positions fit.
        if at <= self.body.len() && at + text.len() <= self.body.len() {
            return Cell::Body(at as u32, (at + text.len()) as u32);
        }
        let start = self.scratch.len() as u32;
        self.scratch.push_str(text);
        Cell::Scratch(start, self.scratch.len() as u32)
    }
}

impl Column {
    /// Converts a JSON value, given as the text that stood in the body.
    pub(crate) fn convert_json(&self, token: &str, sink: &mut Sink<'_>) -> Result<Cell, Misfit> {
        match json_token::kind(token) {
            TokenKind::Null => Ok(Cell::Null),
            TokenKind::String => match self.kind {
                ColumnType::Json => Ok(sink.text(token)),
                _ => self.convert_text(&json_token::unescape(token), sink),
            },
            TokenKind::True | TokenKind::False => self.convert_json_bool(token, sink),
            TokenKind::Number => self.convert_json_number(token, sink),
            TokenKind::Nested => self.convert_json_nested(token, sink),
        }
    }

    fn convert_json_bool(&self, token: &str, sink: &mut Sink<'_>) -> Result<Cell, Misfit> {
        let digit = if token.starts_with('t') { "1" } else { "0" };
        match self.kind {
            ColumnType::Boolean | ColumnType::Int { .. } | ColumnType::LargeInt => {
                Ok(Cell::Int(i64::from(digit == "1")))
            }
            ColumnType::Json => Ok(sink.text(token)),
            _ => self.convert_text(digit, sink),
        }
    }

    fn convert_json_number(&self, token: &str, sink: &mut Sink<'_>) -> Result<Cell, Misfit> {
        match self.kind {
            ColumnType::Boolean => {
                let number: f64 = token.parse().map_err(|_| unconvertible(token))?;
                Ok(Cell::Int(i64::from(number != 0.0)))
            }
            ColumnType::Json => Ok(sink.text(token)),
            ColumnType::Nested { .. } => Err(unconvertible(token)),
            _ => self.convert_text(token, sink),
        }
    }

    fn convert_json_nested(&self, token: &str, sink: &mut Sink<'_>) -> Result<Cell, Misfit> {
        match &self.kind {
            ColumnType::Json => Ok(sink.text(&json_token::minify(token))),
            ColumnType::Char { .. } | ColumnType::Varchar { .. } => {
                self.convert_text(&json_token::minify(token), sink)
            }
            ColumnType::Nested { opens_with, .. } if token.as_bytes().first() == Some(opens_with) => {
                Ok(sink.text(&json_token::minify(token)))
            }
            _ => Err(unconvertible(token)),
        }
    }

    /// Converts plain text: a CSV field, or the content of a JSON string or number.
    pub(crate) fn convert_text(&self, text: &str, sink: &mut Sink<'_>) -> Result<Cell, Misfit> {
        match &self.kind {
            ColumnType::Boolean => match text {
                "1" | "true" | "TRUE" | "True" => Ok(Cell::Int(1)),
                "0" | "false" | "FALSE" | "False" => Ok(Cell::Int(0)),
                _ => Err(unconvertible(text)),
            },
            ColumnType::Int { bytes } => self.integer(text, *bytes),
            ColumnType::LargeInt => match (text.parse::<i64>(), text.parse::<i128>()) {
                (Ok(small), _) => Ok(Cell::Int(small)),
                (Err(_), Ok(_)) => Ok(sink.text(text)),
                (Err(_), Err(_)) => Err(unconvertible(text)),
            },
            ColumnType::Float { .. } => match text.parse::<f64>() {
                Ok(number) if number.is_finite() => Ok(Cell::Real(number)),
                Ok(_) | Err(_) => Err(unconvertible(text)),
            },
            ColumnType::Decimal { precision, scale } => self.decimal(text, *precision, *scale, sink),
            ColumnType::Date => match moment::parse(text) {
                Some(moment) => Ok(sink.text(moment.date(text).as_ref())),
                None => Err(unconvertible(text)),
            },
            ColumnType::DateTime => match moment::parse(text) {
                Some(moment) => Ok(sink.text(moment.date_time(text).as_ref())),
                None => Err(unconvertible(text)),
            },
            ColumnType::Char { bytes } | ColumnType::Varchar { bytes } => {
                if text.len() > *bytes as usize {
                    return Err(Misfit::TooLong { text: text.to_owned(), bytes_max: *bytes });
                }
                Ok(sink.text(text))
            }
            ColumnType::Binary => Ok(sink.text(text)),
            ColumnType::Json | ColumnType::Nested { .. } => {
                let parsed: Result<&serde_json::value::RawValue, _> = serde_json::from_str(text);
                match parsed {
                    Ok(_) => Ok(sink.text(&json_token::minify(text))),
                    Err(_) => Err(unconvertible(text)),
                }
            }
        }
    }

    fn integer(&self, text: &str, bytes: u32) -> Result<Cell, Misfit> {
        let number = match text.parse::<i64>() {
            Ok(number) => number,
            // A number that is no 64-bit integer goes by way of a double, as `1e3` and `1.0` do.
            Err(_) => match text.parse::<f64>() {
                Ok(number) if number.abs() < 9.2e18 => number as i64,
                Ok(_) => return Err(overflow(text)),
                Err(_) => return Err(unconvertible(text)),
            },
        };
        let bits = bytes * 8;
        if bits < 64 && !(-(1_i64 << (bits - 1))..1_i64 << (bits - 1)).contains(&number) {
            return Err(overflow(text));
        }
        Ok(Cell::Int(number))
    }

    fn decimal(&self, text: &str, precision: u32, scale: u32, sink: &mut Sink<'_>) -> Result<Cell, Misfit> {
        match decimal::convert(text, precision, scale) {
            Ok(decimal::Converted::Number(number)) => Ok(Cell::Real(number)),
            Ok(decimal::Converted::Text(digits)) => Ok(sink.text(&digits)),
            Err(decimal::NotDecimal::OutOfRange) => Err(Misfit::Decimal { text: text.to_owned() }),
            Err(decimal::NotDecimal::Malformed) => Err(unconvertible(text)),
        }
    }
}

fn unconvertible(text: &str) -> Misfit {
    Misfit::Unconvertible { text: text.to_owned() }
}

fn overflow(text: &str) -> Misfit {
    Misfit::Overflow { text: text.to_owned() }
}

/// How a stored decimal is printed: with all digits of its scale.
pub(crate) fn print_decimal(number: f64, scale: u32) -> String {
    format!("{number:.*}", scale as usize)
}

#[cfg(test)]
mod tests {
    use super::{Column, ColumnType, Misfit, Sink};
    use crate::staged::{Cell, Staged};

    fn convert(kind: ColumnType, token: &str) -> Result<String, Misfit> {
        let column = Column { name: "c".to_owned(), kind, nullable: true, default: None, comment: None };
        let mut staged = Staged { body: token.to_owned(), ..Staged::default() };
        let mut scratch = String::new();
        let cell =
            column.convert_json(&staged.body, &mut Sink { body: &staged.body, scratch: &mut scratch })?;
        staged.scratch = scratch;
        Ok(match cell {
            Cell::Null => "NULL".to_owned(),
            Cell::Int(number) => number.to_string(),
            Cell::Real(number) => number.to_string(),
            Cell::Body(..) | Cell::Scratch(..) => staged.text(cell).unwrap_or("?").to_owned(),
        })
    }

    fn check(kind: ColumnType, token: &str, expected: &str) {
        assert_eq!(convert(kind, token).as_deref(), Ok(expected), "{token}");
    }

    #[test]
    fn values_that_fit() {
        check(ColumnType::Boolean, "true", "1");
        check(ColumnType::Boolean, "2", "1");
        check(ColumnType::Boolean, "\"false\"", "0");
        check(ColumnType::Int { bytes: 4 }, "\"12\"", "12");
        check(ColumnType::Int { bytes: 8 }, "1e3", "1000");
        check(
            ColumnType::LargeInt,
            "170141183460469231731687303715884105727",
            "170141183460469231731687303715884105727",
        );
        check(ColumnType::Varchar { bytes: 9 }, "12.50", "12.50");
        check(ColumnType::Varchar { bytes: 9 }, "{ \"a\": 1 }", "{\"a\":1}");
        check(ColumnType::Varchar { bytes: 9 }, "true", "1");
        check(ColumnType::Varchar { bytes: 4 }, "\"a\\tb\"", "a\tb");
        check(ColumnType::Decimal { precision: 10, scale: 2 }, "12.345", "12.35");
        check(
            ColumnType::Decimal { precision: 38, scale: 3 },
            "12345678901234567890.123",
            "12345678901234567890.123",
        );
        check(ColumnType::DateTime, "\"2026-11-20T10:11:12\"", "2026-11-20 10:11:12");
        check(ColumnType::Date, "\"2026-11-20 10:11:12\"", "2026-11-20");
        check(ColumnType::Json, "\"x\"", "\"x\"");
        check(ColumnType::Int { bytes: 1 }, "null", "NULL");
    }

    #[test]
    fn values_that_do_not_fit() {
        let check = |kind: ColumnType, token: &str, expected: Misfit| {
            assert_eq!(convert(kind, token), Err(expected), "{token}");
        };
        check(ColumnType::Int { bytes: 1 }, "128", Misfit::Overflow { text: "128".to_owned() });
        check(ColumnType::Int { bytes: 4 }, "\"x\"", Misfit::Unconvertible { text: "x".to_owned() });
        let text = "\u{e9}\u{e9}".to_owned();
        check(ColumnType::Varchar { bytes: 2 }, "\"\u{e9}\u{e9}\"", Misfit::TooLong { text, bytes_max: 2 });
        let kind = ColumnType::Decimal { precision: 4, scale: 2 };
        check(kind, "123.4", Misfit::Decimal { text: "123.4".to_owned() });
        check(ColumnType::Date, "\"2026-02-30\"", Misfit::Unconvertible { text: "2026-02-30".to_owned() });
    }
}
