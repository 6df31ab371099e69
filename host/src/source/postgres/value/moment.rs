//! Days and times as StarRocks reads them: years 0000 to 9999, no zone.

use super::{Noted, ValueError, append_null, append_quoted};
use crate::source::postgres::scan;

/// Digits of `0000-00-00`.
const DATE_SHAPE: &[u8; 10] = b"0000-00-00";
/// Digits of `0000-00-00 00:00:00`.
const TIMESTAMP_SHAPE: &[u8; 19] = b"0000-00-00 00:00:00";
/// Postgres keeps microseconds.
const FRACTION_DIGITS_MAX: usize = 6;
/// What Postgres prints behind a `timestamptz` while `timezone` is UTC.
const UTC_SUFFIX: &[u8] = b"+00";

/// Appends `"2024-02-29"`.
pub(super) fn append_date(text: &[u8], out: &mut Vec<u8>) -> Result<Noted, ValueError> {
    if has_shape(text, DATE_SHAPE) {
        return Ok(append_quoted(text, out));
    }
    or_null(text, "date as DateStyle ISO prints it", out)
}

/// Appends `"2024-02-29 12:34:56.5"`.
pub(super) fn append_timestamp(text: &[u8], out: &mut Vec<u8>) -> Result<Noted, ValueError> {
    if is_timestamp(text) {
        return Ok(append_quoted(text, out));
    }
    or_null(text, "timestamp as DateStyle ISO prints it", out)
}

/// Appends the same for a moment in UTC: without the zone, which StarRocks has no type for.
pub(super) fn append_timestamptz(text: &[u8], out: &mut Vec<u8>) -> Result<Noted, ValueError> {
    if let Some(local) = text.strip_suffix(UTC_SUFFIX).filter(|local| is_timestamp(local)) {
        return Ok(append_quoted(local, out));
    }
    or_null(text, "timestamp in UTC as DateStyle ISO prints it", out)
}

/// Null for what StarRocks cannot hold: infinity, years before 1 and past 9999.
fn or_null(text: &[u8], expected: &'static str, out: &mut Vec<u8>) -> Result<Noted, ValueError> {
    let year_digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let far_year = year_digits > 4 && text.get(year_digits) == Some(&b'-');
    let before_christ = year_digits >= 4 && text.ends_with(b" BC");
    if matches!(text, b"infinity" | b"-infinity") || far_year || before_christ {
        return Ok(append_null(out));
    }
    Err(ValueError::Unreadable { at: 0, expected })
}

#[inline]
fn is_timestamp(text: &[u8]) -> bool {
    let Some((whole, fraction)) = text.split_first_chunk::<19>() else { return false };
    if !has_shape(whole, TIMESTAMP_SHAPE) {
        return false;
    }
    match fraction.split_first() {
        None => true,
        Some((point, digits)) => {
            *point == b'.'
                && (1..=FRACTION_DIGITS_MAX).contains(&digits.len())
                && scan::all(digits, |byte| byte.is_ascii_digit())
        }
    }
}

/// Whether `text` has digits where `shape` has zeros, and is like it elsewhere.
#[inline]
fn has_shape<const N: usize>(text: &[u8], shape: &[u8; N]) -> bool {
    let Some(text) = text.as_array::<N>() else { return false };
    // No early way out, so that the compiler makes vector instructions of it.
    let mut unlike = 0;
    for place in 0..N {
        let (byte, like) = (text[place], shape[place]);
        let digit = byte.wrapping_sub(b'0') <= 9;
        unlike |= u8::from(if like == b'0' { !digit } else { byte != like });
    }
    unlike == 0
}
