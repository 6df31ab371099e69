//! A row as a line of CSV: the values of named columns, for StarRocks to split instead of parse.
//!
//! Rows are JSON objects up to here, so each is parsed once on our side; what that buys is a cheaper load
//! on the BE. The form is the one of [`HEADERS`]: control characters between columns, line feeds between
//! rows, and quotes only around values that hold one of them (reference/starrocks-load-protocol.md §1.5
//! and §7; quotes need StarRocks 3.0). Pure: no I/O, no clock.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Headers that say how the lines are written.
pub(super) const HEADERS: [(&str, &str); 4] =
    [("format", "csv"), ("column_separator", "\\x01"), ("row_delimiter", "\\n"), ("enclose", "\"")];

const COLUMN_SEPARATOR: u8 = 1;
const ROW_DELIMITER: u8 = b'\n';
const ENCLOSE: u8 = b'"';
/// A NULL. A text of these two characters cannot be told from it, not even in quotes.
const NULL: &[u8] = b"\\N";

/// Why a row cannot be written as CSV.
#[derive(Debug, thiserror::Error)]
pub enum NotCsv {
    /// It is not one JSON object.
    #[error("the row is not a JSON object: {0}")]
    NotAnObject(#[source] serde_json::Error),
    /// A text that StarRocks would read as NULL.
    #[error("the value of `{0}` is the text \\N, which means NULL in CSV")]
    NullText(String),
    /// Longer than a position within a row can say.
    #[error("the row has {0} bytes, more than CSV rows may have")]
    TooLong(usize),
}

/// Writes rows of one destination. One for each lane: it reuses its memory.
#[derive(Debug)]
pub struct CsvWriter {
    columns: Arc<[String]>,
    /// Whether each line ends with `__op`.
    ops: bool,
    /// Where the columns' values stand in the row at hand; empty = not there.
    values: Vec<std::ops::Range<u32>>,
}

impl CsvWriter {
    /// A writer of `columns`, in this order. `ops` puts `__op` behind them: for Primary Key tables, on all
    /// lines, since the number of columns is one for a whole load.
    pub fn new(columns: Arc<[String]>, ops: bool) -> Self {
        let values = vec![0..0; columns.len()];
        Self { columns, ops, values }
    }

    /// Appends `row` to `out` with the line feed behind it. A missing key is a NULL, a nested value its
    /// JSON text; keys that are no columns are left out.
    ///
    /// # Errors
    /// Why the row cannot be written; `out` is then as it was.
    pub fn append_row(&mut self, row: &[u8], delete: bool, out: &mut Vec<u8>) -> Result<(), NotCsv> {
        if u32::try_from(row.len()).is_err() {
            return Err(NotCsv::TooLong(row.len()));
        }
        self.values.fill(0..0);
        let mut parser = serde_json::Deserializer::from_slice(row);
        let find = Find { base: row.as_ptr() as usize, columns: &self.columns, values: &mut self.values };
        parser.deserialize_map(find).and_then(|()| parser.end()).map_err(NotCsv::NotAnObject)?;
        let start = out.len();
        for (at, value) in self.values.iter().enumerate() {
            if at > 0 {
                out.push(COLUMN_SEPARATOR);
            }
            let token = &row[value.start as usize..value.end as usize];
            if let Err(Unwritable) = append_value(token, out) {
                out.truncate(start);
                return Err(NotCsv::NullText(self.columns[at].clone()));
            }
        }
        if self.ops {
            out.extend_from_slice(&[COLUMN_SEPARATOR, if delete { b'1' } else { b'0' }]);
        }
        if out.len() == start {
            // A blank line would be skipped: this is a row whose only value is an empty text.
            out.extend_from_slice(&[ENCLOSE, ENCLOSE]);
        }
        out.push(ROW_DELIMITER);
        Ok(())
    }
}

/// A text that means NULL.
struct Unwritable;

/// Writes one JSON value; an empty token is a NULL.
fn append_value(token: &[u8], out: &mut Vec<u8>) -> Result<(), Unwritable> {
    match token.first() {
        None | Some(b'n') => out.extend_from_slice(NULL),
        // As StarRocks reads JSON: a boolean is 1 or 0, whatever the column's type.
        Some(b't') => out.push(b'1'),
        Some(b'f') => out.push(b'0'),
        Some(b'"') => {
            let text = unescaped(token);
            if text.as_ref() == NULL {
                return Err(Unwritable);
            }
            append_text(&text, out);
        }
        Some(b'{' | b'[') => append_text(&minified(token), out),
        Some(_) => out.extend_from_slice(token),
    }
    Ok(())
}

/// Writes a text, in quotes if it holds anything that would end it.
fn append_text(text: &[u8], out: &mut Vec<u8>) {
    let special = |byte: &u8| matches!(*byte, COLUMN_SEPARATOR | ROW_DELIMITER | ENCLOSE | b'\r');
    if !text.iter().any(special) {
        return out.extend_from_slice(text);
    }
    out.push(ENCLOSE);
    for (at, piece) in text.split(|byte| *byte == ENCLOSE).enumerate() {
        if at > 0 {
            out.extend_from_slice(&[ENCLOSE, ENCLOSE]);
        }
        out.extend_from_slice(piece);
    }
    out.push(ENCLOSE);
}

/// The content of a JSON string.
fn unescaped(token: &[u8]) -> Cow<'_, [u8]> {
    let content = &token[1..token.len() - 1];
    if !content.contains(&b'\\') {
        return Cow::Borrowed(content);
    }
    match serde_json::from_slice::<String>(token) {
        Ok(text) => Cow::Owned(text.into_bytes()),
        // A lone surrogate is well-formed JSON and no text: it is kept as it was written.
        Err(_) => Cow::Borrowed(content),
    }
}

/// A nested value without white space between its tokens.
fn minified(token: &[u8]) -> Cow<'_, [u8]> {
    if !token.iter().any(u8::is_ascii_whitespace) {
        return Cow::Borrowed(token);
    }
    let mut kept = Vec::with_capacity(token.len());
    let (mut in_string, mut escaped) = (false, false);
    for byte in token {
        if in_string {
            kept.push(*byte);
            in_string = escaped || *byte != b'"';
            escaped = !escaped && *byte == b'\\';
        } else if !byte.is_ascii_whitespace() {
            in_string = *byte == b'"';
            kept.push(*byte);
        }
    }
    Cow::Owned(kept)
}

/// Finds the columns' values in a row. Of a key that stands there twice the last one counts.
struct Find<'a> {
    /// Where the row begins in memory.
    base: usize,
    columns: &'a [String],
    values: &'a mut [std::ops::Range<u32>],
}

impl<'de> Visitor<'de> for Find<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut guess = 0;
        while let Some(found) = map.next_key_seed(Column { columns: self.columns, guess })? {
            let Some(at) = found else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            guess = at + 1;
            let value = map.next_value::<&'de RawValue>()?.get();
            // The value is a piece of the row, whose length fits.
            let start = value.as_ptr() as usize - self.base;
            self.values[at] = start as u32..(start + value.len()) as u32;
        }
        Ok(())
    }
}

/// The column that a key names; keys usually come in the order of the columns, so the guess mostly holds.
struct Column<'a> {
    columns: &'a [String],
    guess: usize,
}

impl<'de> DeserializeSeed<'de> for Column<'_> {
    type Value = Option<usize>;

    fn deserialize<D: serde::Deserializer<'de>>(self, key: D) -> Result<Option<usize>, D::Error> {
        key.deserialize_str(self)
    }
}

impl Visitor<'_> for Column<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Option<usize>, E> {
        if self.columns.get(self.guess).is_some_and(|name| name == key) {
            return Ok(Some(self.guess));
        }
        Ok(self.columns.iter().position(|name| name == key))
    }
}

#[cfg(test)]
#[path = "csv_tests.rs"]
mod tests;
