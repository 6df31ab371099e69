//! A row as a line of CSV: the values of named columns, for StarRocks to split instead of parse.
//!
//! Rows are JSON objects up to the load, so that plugins, folding, isolation and dead letters know only one
//! form of them; each is parsed once more here. What that buys is a cheaper load on the BE. The form is the
//! one of [`HEADERS`]: control characters between columns, line feeds between rows, and quotes only around
//! values that hold one of them (reference/starrocks-load-protocol.md §1.5 and §7; quotes need StarRocks
//! 3.0). Pure: no I/O, no clock.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Headers that say how the lines are written.
pub(super) const HEADERS: [(&str, &str); 4] =
    [("format", "csv"), ("column_separator", "\\x01"), ("row_delimiter", "\\n"), ("enclose", "\"")];

/// The field of a row that is no column.
const OP_FIELD: &str = "__op";
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

/// Writes rows of one load; it reuses its memory.
#[derive(Debug)]
pub struct CsvWriter {
    columns: Arc<[String]>,
    /// Whether each line ends with the row's `__op`.
    ops: bool,
    /// Where the columns' values stand in the row at hand, and behind them that of `__op`; empty = not there.
    values: Vec<std::ops::Range<u32>>,
}

impl CsvWriter {
    /// A writer of `columns`, in this order. `ops` puts `__op` behind them: for Primary Key tables, on all
    /// lines, since the number of columns is one for a whole load.
    pub fn new(columns: Arc<[String]>, ops: bool) -> Self {
        let values = vec![0..0; columns.len() + 1];
        Self { columns, ops, values }
    }

    /// Appends `row` to `out` with the line feed behind it. A missing key is a NULL, a nested value its
    /// JSON text; keys that are no columns are left out.
    ///
    /// # Errors
    /// Why the row cannot be written; `out` is then as it was.
    pub fn append_row(&mut self, row: &[u8], out: &mut Vec<u8>) -> Result<(), NotCsv> {
        if u32::try_from(row.len()).is_err() {
            return Err(NotCsv::TooLong(row.len()));
        }
        self.values.fill(0..0);
        let find = Find { base: row.as_ptr() as usize, columns: &self.columns, values: &mut self.values };
        // One look at the whole row for UTF-8 is cheaper than one at each of its texts.
        let found = match std::str::from_utf8(row) {
            Ok(row) => find.run(serde_json::Deserializer::from_str(row)),
            Err(_) => find.run(serde_json::Deserializer::from_slice(row)),
        };
        found.map_err(NotCsv::NotAnObject)?;
        let start = out.len();
        let token = |at: usize| &row[self.values[at].start as usize..self.values[at].end as usize];
        for (at, column) in self.columns.iter().enumerate() {
            if at > 0 {
                out.push(COLUMN_SEPARATOR);
            }
            if let Err(Unwritable) = append_value(token(at), out) {
                out.truncate(start);
                return Err(NotCsv::NullText(column.clone()));
            }
        }
        if self.ops {
            out.push(COLUMN_SEPARATOR);
            append_op(token(self.columns.len()), out);
        }
        if out.len() == start {
            // A blank line would be skipped: this is a row whose only value is an empty text.
            out.extend_from_slice(&[ENCLOSE, ENCLOSE]);
        }
        out.push(ROW_DELIMITER);
        Ok(())
    }

    /// Writes all rows of a segment, which end with line feeds, in pieces of some [`WRITE_BYTES`].
    ///
    /// # Errors
    /// The first row that cannot be written, or what `into` says.
    pub(super) fn write_segment(&mut self, segment: &[u8], into: &mut dyn Write) -> Result<(), NotWritten> {
        let mut out = Vec::with_capacity(WRITE_BYTES + segment.len().min(WRITE_BYTES));
        let mut rest = segment;
        while !rest.is_empty() {
            let mut end = line_end(rest, 0);
            // A row of several lines, which JSON allows, is taken line by line until it is whole.
            while let Err(refused) = self.append_line(&rest[..end], &mut out) {
                let open = matches!(&refused, NotCsv::NotAnObject(error) if error.is_eof());
                if !open || end == rest.len() {
                    return Err(refused.into());
                }
                end = line_end(rest, end);
            }
            rest = &rest[end..];
            if out.len() >= WRITE_BYTES {
                into.write_all(&out)?;
                out.clear();
            }
        }
        Ok(into.write_all(&out)?)
    }

    fn append_line(&mut self, line: &[u8], out: &mut Vec<u8>) -> Result<(), NotCsv> {
        let row = line.trim_ascii();
        if row.is_empty() { Ok(()) } else { self.append_row(row, out) }
    }
}

/// Bytes that are gathered before they are written.
const WRITE_BYTES: usize = 64 << 10;

/// Where the line ends that goes on at `from`, its line feed included.
fn line_end(text: &[u8], from: usize) -> usize {
    text[from..].iter().position(|byte| *byte == b'\n').map_or(text.len(), |at| from + at + 1)
}

/// Why a segment was not written.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotWritten {
    /// A row cannot be CSV.
    #[error(transparent)]
    Row(#[from] NotCsv),
    /// Whoever takes the bytes does not.
    #[error("cannot write the rows")]
    Io(#[from] io::Error),
}

/// Writes the op of a row: 0 unless it says otherwise.
fn append_op(token: &[u8], out: &mut Vec<u8>) {
    match token {
        b"" | b"null" | b"0" | b"false" | b"\"0\"" => out.push(b'0'),
        b"1" | b"true" | b"\"1\"" => out.push(b'1'),
        other => append_text(&unescaped_or(other), out),
    }
}

/// A token as text, whatever it is: StarRocks says what is wrong with it.
fn unescaped_or(token: &[u8]) -> Cow<'_, [u8]> {
    if token.len() > 1 && token.starts_with(b"\"") { unescaped(token) } else { Cow::Borrowed(token) }
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

impl Find<'_> {
    fn run<'de, R: serde_json::de::Read<'de>>(
        self,
        mut parser: serde_json::Deserializer<R>,
    ) -> Result<(), serde_json::Error> {
        parser.deserialize_map(self)?;
        parser.end()
    }
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
        if key == OP_FIELD {
            return Ok(Some(self.columns.len()));
        }
        Ok(self.columns.iter().position(|name| name == key))
    }
}

#[cfg(test)]
#[path = "csv_tests.rs"]
mod tests;
