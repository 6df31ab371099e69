//! Dates and times as StarRocks reads them: `YYYY-MM-DD`, optionally ` HH:MM[:SS[.ffffff]]` after a
//! space or a `T`, or 8 or 14 bare digits. Zones are refused: what StarRocks does with them is not known.

use std::borrow::Cow;

/// A date and perhaps a time of day that exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    year: u32,
    month: u32,
    day: u32,
    hour: u32,
    minute: u32,
    second: u32,
    micros: u32,
}

const DATE_LENGTH: usize = 10;
const DATE_TIME_LENGTH: usize = 19;

pub(crate) fn parse(text: &str) -> Option<Moment> {
    let bytes = text.as_bytes();
    if bytes.iter().all(u8::is_ascii_digit) {
        return match bytes.len() {
            8 => moment(date(text, [0..4, 4..6, 6..8])?, (0, 0, 0, 0)),
            14 => moment(
                date(text, [0..4, 4..6, 6..8])?,
                (number(text, 8..10)?, number(text, 10..12)?, number(text, 12..14)?, 0),
            ),
            _ => None,
        };
    }
    if bytes.get(4) != Some(&b'-') || bytes.get(7) != Some(&b'-') {
        return None;
    }
    let date = date(text, [0..4, 5..7, 8..10])?;
    let Some(separator) = bytes.get(DATE_LENGTH) else { return moment(date, (0, 0, 0, 0)) };
    if !matches!(separator, b' ' | b'T') {
        return None;
    }
    moment(date, time(text.get(DATE_LENGTH + 1..)?)?)
}

fn number(text: &str, range: std::ops::Range<usize>) -> Option<u32> {
    let digits = text.get(range)?;
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

fn date(text: &str, [year, month, day]: [std::ops::Range<usize>; 3]) -> Option<(u32, u32, u32)> {
    Some((number(text, year)?, number(text, month)?, number(text, day)?))
}

/// `HH:MM`, `HH:MM:SS` or `HH:MM:SS.f` with one to six digits.
fn time(text: &str) -> Option<(u32, u32, u32, u32)> {
    let bytes = text.as_bytes();
    if bytes.get(2) != Some(&b':') {
        return None;
    }
    let (hour, minute) = (number(text, 0..2)?, number(text, 3..5)?);
    match bytes.get(5) {
        None => return Some((hour, minute, 0, 0)),
        Some(b':') => {}
        Some(_) => return None,
    }
    let second = number(text, 6..8)?;
    let micros = match bytes.get(8) {
        None => 0,
        Some(b'.') => {
            let digits = text.get(9..)?;
            let width = digits.len();
            if !(1..=6).contains(&width) {
                return None;
            }
            number(digits, 0..width)? * 10_u32.pow(6 - width as u32)
        }
        Some(_) => return None,
    };
    Some((hour, minute, second, micros))
}

fn moment(
    (year, month, day): (u32, u32, u32),
    (hour, minute, second, micros): (u32, u32, u32, u32),
) -> Option<Moment> {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let days = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => return None,
    };
    let exists = (1..=days).contains(&day) && hour < 24 && minute < 60 && second < 60;
    exists.then_some(Moment { year, month, day, hour, minute, second, micros })
}

impl Moment {
    /// The date as StarRocks prints it; a piece of `text` when it stands there so.
    pub(crate) fn date(self, text: &str) -> Cow<'_, str> {
        if text.as_bytes().get(4) == Some(&b'-') {
            return Cow::Borrowed(&text[..DATE_LENGTH]);
        }
        Cow::Owned(format!("{:04}-{:02}-{:02}", self.year, self.month, self.day))
    }

    /// Date and time as StarRocks prints them: microseconds only when there are any.
    pub(crate) fn date_time(self, text: &str) -> Cow<'_, str> {
        if text.len() == DATE_TIME_LENGTH && text.as_bytes()[DATE_LENGTH] == b' ' {
            return Cow::Borrowed(text);
        }
        let Self { year, month, day, hour, minute, second, micros } = self;
        let mut out = format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}");
        if micros != 0 {
            out.push_str(&format!(".{micros:06}"));
        }
        Cow::Owned(out)
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn reads_the_usual_forms() {
        let check = |text: &str, expected: Option<&str>| {
            let printed = parse(text).map(|moment| moment.date_time(text).into_owned());
            assert_eq!(printed.as_deref(), expected, "{text}");
        };
        check("2024-02-29", Some("2024-02-29 00:00:00"));
        check("2023-02-29", None);
        check("2026-11-20 08:09:10", Some("2026-11-20 08:09:10"));
        check("2026-11-20T08:09:10.5", Some("2026-11-20 08:09:10.500000"));
        check("20261120080910", Some("2026-11-20 08:09:10"));
        check("2026-11-20T08:09:10Z", None);
        check("2026-11-20 25:00:00", None);
        check("yesterday", None);
    }
}
