//! The text of one value → its JSON form. COPY and the stream both come through here, so that a row
//! looks the same whichever way it came. The forms are those of docs/postgres-types.md.
//!
//! The text is what Postgres prints under the settings that both connections pin (ISO dates, UTC, ISO
//! 8601 intervals, hexadecimal bytea, shortest floats, `lc_monetary = C`).

use super::kind::Kind;
use super::scan;

mod array;
mod moment;
#[cfg(test)]
mod tests;

/// Text that cannot be given as JSON; the row becomes a dead letter. Places are bytes from the start of the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// A database of encoding SQL_ASCII holds what it was given.
    #[error("byte {at} is not UTF-8")]
    NotUtf8 {
        /// First byte that is not.
        at: usize,
    },
    /// It does not look as Postgres prints this type under the settings that are pinned.
    #[error("no {expected} at byte {at}")]
    Unreadable {
        /// Where it stops looking so; 0 if it is wrong as a whole.
        at: usize,
        /// What it should be.
        expected: &'static str,
    },
}

impl ValueError {
    /// The same, of a value that stands at byte `start` of another one.
    fn within(self, start: usize) -> Self {
        match self {
            Self::NotUtf8 { at } => Self::NotUtf8 { at: at + start },
            Self::Unreadable { at, expected } => Self::Unreadable { at: at + start, expected },
        }
    }
}

/// How much of a value its JSON form keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "values that became null are counted"]
pub enum Noted {
    /// All of it.
    Exact,
    /// It, or an element of it, has no JSON or StarRocks form (NaN, infinity, a year past 9999) and is null.
    Nulled,
}

impl Noted {
    /// What is to be said of two values together.
    pub fn with(self, other: Noted) -> Noted {
        match (self, other) {
            (Noted::Exact, Noted::Exact) => Noted::Exact,
            (Noted::Nulled, _) | (_, Noted::Nulled) => Noted::Nulled,
        }
    }
}

/// Appends the JSON form of one value. Never a line feed: rows are one line each.
///
/// Allocates only for arrays with elements that Postgres had to escape.
///
/// # Errors
/// If the text is not as Postgres prints the type. `out` then ends with a part of the value: the caller cuts it off.
#[inline]
pub fn append_json(kind: &Kind, text: &[u8], out: &mut Vec<u8>) -> Result<Noted, ValueError> {
    match kind {
        Kind::Text => append_string(text, out)?,
        Kind::Integer => append_integer(text, out)?,
        Kind::Bool => append_bool(text, out)?,
        Kind::Float => return append_float(text, out),
        Kind::Numeric => return append_numeric(text, out),
        Kind::Timestamp => return moment::append_timestamp(text, out),
        Kind::TimestampTz => return moment::append_timestamptz(text, out),
        Kind::Date => return moment::append_date(text, out),
        Kind::Json => append_embedded(text, out)?,
        Kind::Bytea => append_bytea(text, out)?,
        Kind::Money => append_money(text, out)?,
        Kind::Array { element, delimiter } => return array::append(element, *delimiter, text, out),
        Kind::Vector => append_vector(text, out)?,
    }
    Ok(Noted::Exact)
}

/// Appends a JSON string.
///
/// # Errors
/// If the text is not UTF-8.
#[inline]
pub fn append_string(text: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    // One look at text that is plain ASCII, as most is.
    if scan::all(text, |byte| (b' '..0x80).contains(&byte) && byte != b'"' && byte != b'\\') {
        let _exact = append_quoted(text, out);
        return Ok(());
    }
    append_str(checked_utf8(text)?, out);
    Ok(())
}

/// Appends a JSON string.
#[inline]
pub fn append_str(text: &str, out: &mut Vec<u8>) {
    out.reserve(text.len() + 2);
    out.push(b'"');
    let mut rest = text.as_bytes();
    while let Some(place) = scan::find(rest, |byte| byte < b' ' || byte == b'"' || byte == b'\\') {
        out.extend_from_slice(&rest[..place]);
        append_escaped(rest[place], out);
        rest = &rest[place + 1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

fn append_escaped(byte: u8, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let short = match byte {
        b'"' | b'\\' => byte,
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        0x08 => b'b',
        0x0c => b'f',
        control => {
            let digits = [HEX[usize::from(control >> 4)], HEX[usize::from(control & 15)]];
            out.extend_from_slice(b"\\u00");
            out.extend_from_slice(&digits);
            return;
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

fn checked_utf8(text: &[u8]) -> Result<&str, ValueError> {
    std::str::from_utf8(text).map_err(|error| ValueError::NotUtf8 { at: error.valid_up_to() })
}

fn append_null(out: &mut Vec<u8>) -> Noted {
    out.extend_from_slice(b"null");
    Noted::Nulled
}

/// Text that needs no escaping, in quotes.
fn append_quoted(text: &[u8], out: &mut Vec<u8>) -> Noted {
    out.reserve(text.len() + 2);
    out.push(b'"');
    out.extend_from_slice(text);
    out.push(b'"');
    Noted::Exact
}

fn append_bool(text: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    let name: &[u8] = match text {
        b"t" => b"true",
        b"f" => b"false",
        _ => return Err(ValueError::Unreadable { at: 0, expected: "boolean (t or f)" }),
    };
    out.extend_from_slice(name);
    Ok(())
}

#[inline]
fn append_integer(text: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    if integer_length(text) != Some(text.len()) {
        return Err(ValueError::Unreadable { at: 0, expected: "integer" });
    }
    out.extend_from_slice(text);
    Ok(())
}

fn append_float(text: &[u8], out: &mut Vec<u8>) -> Result<Noted, ValueError> {
    if is_number(text) {
        out.extend_from_slice(text);
        return Ok(Noted::Exact);
    }
    if is_beyond_numbers(text) {
        return Ok(append_null(out));
    }
    Err(ValueError::Unreadable { at: 0, expected: "floating-point number" })
}

fn append_numeric(text: &[u8], out: &mut Vec<u8>) -> Result<Noted, ValueError> {
    if is_number(text) {
        return Ok(append_quoted(text, out));
    }
    if is_beyond_numbers(text) {
        return Ok(append_null(out));
    }
    Err(ValueError::Unreadable { at: 0, expected: "numeric" })
}

fn is_beyond_numbers(text: &[u8]) -> bool {
    matches!(text, b"NaN" | b"Infinity" | b"-Infinity")
}

/// Length of the integer that `text` begins with, as JSON has it: no plus sign, no leading zero.
#[inline]
fn integer_length(text: &[u8]) -> Option<usize> {
    let sign = usize::from(text.first() == Some(&b'-'));
    let digits = text.iter().skip(sign).take_while(|byte| byte.is_ascii_digit()).count();
    let leading_zero = digits > 1 && text.get(sign) == Some(&b'0');
    (digits > 0 && !leading_zero).then_some(sign + digits)
}

/// Whether this is a number of JSON's grammar.
fn is_number(text: &[u8]) -> bool {
    let digits = |text: &[u8]| text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let Some(mut at) = integer_length(text) else { return false };
    if text.get(at) == Some(&b'.') {
        let fraction = digits(&text[at + 1..]);
        if fraction == 0 {
            return false;
        }
        at += 1 + fraction;
    }
    if matches!(text.get(at), Some(b'e' | b'E')) {
        at += 1 + usize::from(matches!(text.get(at + 1), Some(b'+' | b'-')));
        let exponent = digits(&text[at..]);
        if exponent == 0 {
            return false;
        }
        at += exponent;
    }
    at == text.len()
}

/// `-$1,234.56` → `"-1234.56"`.
fn append_money(text: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    out.push(b'"');
    let start = out.len();
    for (at, byte) in text.iter().enumerate() {
        match byte {
            b'0'..=b'9' | b'.' | b'-' => out.push(*byte),
            b'$' | b',' => {}
            _ => {
                return Err(ValueError::Unreadable {
                    at,
                    expected: "amount of money as lc_monetary=C prints it",
                });
            }
        }
    }
    if !is_number(&out[start..]) {
        return Err(ValueError::Unreadable { at: 0, expected: "amount of money as lc_monetary=C prints it" });
    }
    out.push(b'"');
    Ok(())
}

fn append_bytea(text: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    let unreadable = |at| ValueError::Unreadable { at, expected: "bytea in hexadecimal form" };
    let digits = text.strip_prefix(b"\\x").ok_or(unreadable(0))?;
    if let Some(place) = scan::find(digits, |byte| !matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(unreadable(2 + place));
    }
    let _exact = append_quoted(digits, out);
    Ok(())
}

/// JSON as it is, on one line. Postgres has checked it: it is valid, and a string in it holds no line
/// feed, so those that there are stand between tokens and can go. No look inside, so no depth is too deep.
fn append_embedded(text: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    checked_utf8(text)?;
    if text.trim_ascii().is_empty() {
        return Err(ValueError::Unreadable { at: 0, expected: "JSON" });
    }
    let mut rest = text;
    while let Some(place) = scan::find(rest, |byte| byte == b'\n' || byte == b'\r') {
        out.extend_from_slice(&rest[..place]);
        rest = &rest[place + 1..];
    }
    out.extend_from_slice(rest);
    Ok(())
}

fn append_vector(text: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    let unreadable = ValueError::Unreadable { at: 0, expected: "vector such as [1,2,3]" };
    let inner = text.strip_prefix(b"[").and_then(|text| text.strip_suffix(b"]")).ok_or(unreadable)?;
    if !inner.is_empty() && !inner.split(|byte| *byte == b',').all(is_number) {
        return Err(unreadable);
    }
    out.extend_from_slice(text);
    Ok(())
}
