//! Sizes and durations with units, as text and back, and points in time.

use std::time::Duration;

use bytesize::ByteSize;
use toml::value::{Datetime, Offset};

use super::nearest::nearest;

const BYTE_UNITS: [&str; 8] = ["B", "kB", "KB", "KiB", "MB", "MiB", "GB", "GiB"];
/// The units of a size, for messages.
pub(super) const BYTE_UNITS_TEXT: &str = "B, kB, KiB, MB, MiB, GB or GiB";

const TIME_UNITS: [&str; 4] = ["ms", "s", "m", "h"];
/// The units of a duration, for messages.
pub(super) const TIME_UNITS_TEXT: &str = "ms, s, m or h";

/// `"64MiB"` → bytes. A unit is a must: bare numbers have been read as kilobytes by too many tools.
pub(super) fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start();
    if number.is_empty() {
        return Err("it does not begin with a number".to_owned());
    }
    if !BYTE_UNITS.contains(&unit) {
        return Err(unit_missing_or_unknown(unit, &BYTE_UNITS));
    }
    let plain = format!("{}{unit}", number.replace('_', ""));
    plain.parse::<ByteSize>().map(|size| size.as_u64()).map_err(|_| format!("{number:?} is not a number"))
}

/// `"1s"`, `"500ms"`, `"1m30s"` → a duration.
pub(super) fn parse_time(text: &str) -> Result<Duration, String> {
    if !text.starts_with(|c: char| c.is_ascii_digit()) {
        return Err("it does not begin with a number".to_owned());
    }
    let mut units = text.split(|c: char| !c.is_alphabetic()).filter(|unit| !unit.is_empty()).peekable();
    if units.peek().is_none() {
        return Err("it has no unit".to_owned());
    }
    if let Some(unit) = units.find(|unit| !TIME_UNITS.contains(unit)) {
        return Err(unit_missing_or_unknown(unit, &TIME_UNITS));
    }
    // The library's own words name units that are not for pipeline files, like years.
    humantime::parse_duration(text).map_err(|_| "it is not a number with a unit".to_owned())
}

fn unit_missing_or_unknown(unit: &str, units: &[&'static str]) -> String {
    if unit.is_empty() {
        return "it has no unit".to_owned();
    }
    let unit: String = unit.chars().take(20).collect();
    let same = units.iter().find(|known| known.eq_ignore_ascii_case(&unit)).copied();
    match same.or_else(|| nearest(&unit, units.iter().copied())) {
        Some(near) => format!("unknown unit {unit:?}, perhaps {near:?}"),
        None => format!("unknown unit {unit:?}"),
    }
}

/// Bytes with the largest unit that leaves a whole number.
pub(super) fn show_bytes(bytes: u64) -> String {
    const UNITS: [(u64, &str); 6] = [
        (1 << 30, "GiB"),
        (1_000_000_000, "GB"),
        (1 << 20, "MiB"),
        (1_000_000, "MB"),
        (1 << 10, "KiB"),
        (1_000, "kB"),
    ];
    let whole = UNITS.iter().find(|(size, _)| bytes >= *size && bytes.is_multiple_of(*size));
    whole.map_or_else(|| format!("{bytes}B"), |(size, unit)| format!("{}{unit}", bytes / size))
}

/// A duration with the largest unit that leaves a whole number.
pub(super) fn show_time(time: Duration) -> String {
    let ms = time.as_millis();
    match ms {
        _ if ms >= 3_600_000 && ms.is_multiple_of(3_600_000) => format!("{}h", ms / 3_600_000),
        _ if ms >= 60_000 && ms.is_multiple_of(60_000) => format!("{}m", ms / 60_000),
        _ if ms >= 1_000 && ms.is_multiple_of(1_000) => format!("{}s", ms / 1_000),
        _ => format!("{ms}ms"),
    }
}

/// A count with `_` between thousands, as TOML takes it.
pub(super) fn show_count(count: u64) -> String {
    let digits = count.to_string();
    let mut shown = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            shown.push('_');
        }
        shown.push(digit);
    }
    shown
}

/// Milliseconds since 1970 in UTC; none without date, time and zone, or before 1970.
pub(super) fn epoch_ms(time: &Datetime) -> Option<i64> {
    let (date, clock) = (time.date?, time.time?);
    let offset_minutes = match time.offset? {
        Offset::Z => 0,
        Offset::Custom { minutes } => i64::from(minutes),
    };
    let days = days_since_1970(i64::from(date.year), i64::from(date.month), i64::from(date.day));
    let minutes = (days * 24 + i64::from(clock.hour)) * 60 + i64::from(clock.minute) - offset_minutes;
    let seconds = minutes * 60 + i64::from(clock.second.unwrap_or(0));
    let ms = seconds * 1000 + i64::from(clock.nanosecond.unwrap_or(0) / 1_000_000);
    (ms >= 0).then_some(ms)
}

/// Days of the proleptic Gregorian calendar. Years are counted from March, so that the leap day is
/// the last one of its year.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    const DAYS_FROM_YEAR_0_TO_1970: i64 = 719_468;
    let (year, month_from_march) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    year * 365 + leap_days + day_of_year - DAYS_FROM_YEAR_0_TO_1970
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_need_a_known_unit() {
        assert_eq!(parse_bytes("64MiB"), Ok(64 << 20));
        assert_eq!(parse_bytes("1.5 GiB"), Ok(3 << 29));
        assert_eq!(parse_bytes("1_000B"), Ok(1000));
        assert_eq!(parse_bytes("10"), Err("it has no unit".to_owned()));
        assert_eq!(parse_bytes("10mb"), Err("unknown unit \"mb\", perhaps \"MB\"".to_owned()));
        assert_eq!(parse_bytes("-1MB"), Err("it does not begin with a number".to_owned()));
        assert_eq!(parse_bytes("1.2.3MB"), Err("\"1.2.3\" is not a number".to_owned()));
        assert_eq!(parse_bytes("99999999999999999999GiB"), Ok(u64::MAX));
    }

    #[test]
    fn durations_need_a_known_unit() {
        assert_eq!(parse_time("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_time("0.5s"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_time("1"), Err("it has no unit".to_owned()));
        assert_eq!(parse_time("1M"), Err("unknown unit \"M\", perhaps \"m\"".to_owned()));
        assert!(parse_time("99999999999999999999h").is_err());
        assert!(parse_time("1s-").is_err());
    }

    #[test]
    fn what_is_shown_can_be_read_again() {
        for bytes in [1, 1024, 1536, 100_000_000, 64 << 20, 3 << 30] {
            assert_eq!(parse_bytes(&show_bytes(bytes)), Ok(bytes));
        }
        for ms in [1, 999, 1000, 90_000, 3_600_000] {
            assert_eq!(parse_time(&show_time(Duration::from_millis(ms))), Ok(Duration::from_millis(ms)));
        }
        assert_eq!(show_count(1_234_567), "1_234_567");
    }

    #[test]
    fn points_in_time_are_counted_in_utc() {
        let check = |text: &str, ms: Option<i64>| {
            assert_eq!(epoch_ms(&text.parse().expect("a date")), ms, "{text}");
        };
        check("1970-01-01T00:00:00Z", Some(0));
        check("2000-02-29T12:00:00.25+02:00", Some(951_818_400_250));
        check("2026-01-01T00:00:00Z", Some(1_767_225_600_000));
        check("2026-01-01T00:00:00", None);
        check("1969-12-31T23:59:59Z", None);
        check("2026-01-01", None);
    }
}
