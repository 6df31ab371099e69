//! A time as StarRocks reads it, made without allocating.

const MS_PER_DAY: i64 = 86_400_000;
/// The end of the year 9999, the last that a DATETIME can hold, in milliseconds since 1970.
const END_MS: i64 = 253_402_300_800_000;
const DAY_BYTES: usize = "YYYY-MM-DD".len();
const TIME_BYTES: usize = "YYYY-MM-DD HH:MM:SS".len();

/// A second of UTC, as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment([u8; TIME_BYTES]);

impl Moment {
    /// `None` before 1970 and after 9999.
    pub(crate) fn from_unix_ms(ms: i64) -> Option<Self> {
        if !(0..END_MS).contains(&ms) {
            return None;
        }
        let (year, month, day) = civil((ms / MS_PER_DAY) as u32);
        let second = (ms % MS_PER_DAY / 1000) as u32;
        let mut text = *b"0000-00-00 00:00:00";
        two_digits(&mut text, 0, year / 100);
        two_digits(&mut text, 2, year % 100);
        two_digits(&mut text, 5, month);
        two_digits(&mut text, 8, day);
        two_digits(&mut text, 11, second / 3600);
        two_digits(&mut text, 14, second / 60 % 60);
        two_digits(&mut text, 17, second % 60);
        Some(Self(text))
    }

    fn text(&self, bytes: usize) -> &str {
        // Digits and punctuation only, so that it is UTF-8.
        std::str::from_utf8(&self.0[..bytes]).unwrap_or_default()
    }

    /// `YYYY-MM-DD`.
    pub(crate) fn day(&self) -> &str {
        self.text(DAY_BYTES)
    }

    /// `YYYY-MM-DD HH:MM:SS`.
    pub(crate) fn second(&self) -> &str {
        self.text(TIME_BYTES)
    }
}

fn two_digits(text: &mut [u8; TIME_BYTES], at: usize, number: u32) {
    text[at] = b'0' + (number / 10) as u8;
    text[at + 1] = b'0' + (number % 10) as u8;
}

/// Year, month and day of a day counted from 1970-01-01 (Howard Hinnant's `civil_from_days`, from 1970 on): years begin
/// in March, so that the leap day is the last of its year.
fn civil(days: u32) -> (u32, u32, u32) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u32::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_leap_years_and_limits() {
        for (ms, expected) in [
            (0, Some("1970-01-01 00:00:00")),
            (951_782_399_999, Some("2000-02-28 23:59:59")),
            (951_782_400_000, Some("2000-02-29 00:00:00")),
            (1_709_251_199_000, Some("2024-02-29 23:59:59")),
            (4_107_542_399_000, Some("2100-02-28 23:59:59")),
            (4_107_542_400_000, Some("2100-03-01 00:00:00")),
            (END_MS - 1, Some("9999-12-31 23:59:59")),
            (END_MS, None),
            (-1, None),
            (i64::MAX, None),
        ] {
            let moment = Moment::from_unix_ms(ms);
            assert_eq!(moment.as_ref().map(|moment| moment.second()), expected, "{ms}");
        }
    }
}
