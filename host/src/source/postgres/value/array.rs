//! Postgres arrays → JSON arrays.
//!
//! Text form: <https://www.postgresql.org/docs/15/arrays.html#ARRAYS-IO>. A loop and not a recursion;
//! only an array of a domain over an array calls itself, as deep as [`super::Kind`] is.

use super::{Kind, Noted, ValueError, append_json};
use crate::source::postgres::scan;

/// Postgres' own limit (`MAXDIM`).
const DIMENSIONS_MAX: usize = 6;
/// What every error here says was expected.
const EXPECTED: &str = "array such as {1,2}";

/// What may stand at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// The opening brace of all.
    Opening,
    /// An element, an inner array, or the end of an empty one.
    FirstElement,
    /// An element or an inner array.
    Element,
    /// A delimiter, or the end of this array.
    Delimiter,
    /// Nothing.
    End,
}

/// Appends the array. Lower bounds (`[2:3]={7,8}`) have no place in JSON and are left out.
pub(super) fn append(
    element: &Kind,
    delimiter: u8,
    text: &[u8],
    out: &mut Vec<u8>,
) -> Result<Noted, ValueError> {
    let mut at = bounds_length(text)?;
    let mut depth = 0;
    let mut next = Next::Opening;
    let mut noted = Noted::Exact;
    // Allocates nothing until an element has to be unescaped; then it is used for all that follow.
    let mut plain = Vec::new();
    while let Some(byte) = text.get(at).copied() {
        match (next, byte) {
            (Next::Opening | Next::FirstElement | Next::Element, b'{') if depth < DIMENSIONS_MAX => {
                out.push(b'[');
                depth += 1;
                at += 1;
                next = Next::FirstElement;
            }
            (Next::FirstElement | Next::Delimiter, b'}') => {
                out.push(b']');
                depth -= 1;
                at += 1;
                next = if depth == 0 { Next::End } else { Next::Delimiter };
            }
            (Next::Delimiter, byte) if byte == delimiter => {
                out.push(b',');
                at += 1;
                next = Next::Element;
            }
            (Next::FirstElement | Next::Element, b'"') => {
                let (value, length) = quoted(&text[at..], &mut plain).ok_or(unreadable(at))?;
                noted = noted.with(append_json(element, value, out).map_err(|error| error.within(at + 1))?);
                at += length;
                next = Next::Delimiter;
            }
            (Next::FirstElement | Next::Element, _bare) => {
                let ends = |byte| byte == delimiter || matches!(byte, b'}' | b'{' | b'"' | b'\\');
                let length =
                    scan::find(&text[at..], ends).filter(|length| *length > 0).ok_or(unreadable(at))?;
                let value = &text[at..at + length];
                if value.eq_ignore_ascii_case(b"NULL") {
                    out.extend_from_slice(b"null");
                } else {
                    noted = noted.with(append_json(element, value, out).map_err(|error| error.within(at))?);
                }
                at += length;
                next = Next::Delimiter;
            }
            (Next::Opening | Next::Delimiter | Next::End, _other) => return Err(unreadable(at)),
        }
    }
    if next == Next::End { Ok(noted) } else { Err(unreadable(text.len())) }
}

fn unreadable(at: usize) -> ValueError {
    ValueError::Unreadable { at, expected: EXPECTED }
}

/// Bytes of `[2:3][-1:0]=`; 0 where there is none.
fn bounds_length(text: &[u8]) -> Result<usize, ValueError> {
    if text.first() != Some(&b'[') {
        return Ok(0);
    }
    let in_bounds = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'[' | b']' | b':' | b'-' | b'+');
    let end = scan::find(text, |byte| !in_bounds(byte)).unwrap_or(text.len());
    if text.get(end) == Some(&b'=') { Ok(end + 1) } else { Err(unreadable(end)) }
}

/// The element in quotes that `text` begins with, without its escapes, and its length in `text`, quotes
/// included. Only an element with a backslash is copied.
fn quoted<'a>(text: &'a [u8], plain: &'a mut Vec<u8>) -> Option<(&'a [u8], usize)> {
    let inner = text.get(1..)?;
    let special = |byte| byte == b'"' || byte == b'\\';
    let mut place = scan::find(inner, special)?;
    if inner[place] == b'"' {
        return Some((&inner[..place], place + 2));
    }
    plain.clear();
    let mut start = 0;
    while inner[place] == b'\\' {
        // The byte behind the backslash stands for itself, also if it is one of the two.
        plain.extend_from_slice(&inner[start..place]);
        plain.push(*inner.get(place + 1)?);
        start = place + 2;
        place = start + scan::find(&inner[start..], special)?;
    }
    plain.extend_from_slice(&inner[start..place]);
    Some((plain, place + 2))
}
