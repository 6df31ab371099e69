//! A place in Postgres's write-ahead log.

use std::fmt;
use std::str::FromStr;

/// Log sequence number: a byte position in the write-ahead log of one cluster and timeline.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

/// A text that is no LSN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no LSN such as 16/B374D848")]
pub struct NoLsn(String);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl FromStr for Lsn {
    type Err = NoLsn;

    /// Reads the form that Postgres prints: two hexadecimal numbers of 32 bits.
    fn from_str(text: &str) -> Result<Self, NoLsn> {
        let half = |digits: &str| {
            let valid =
                (1..=8).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            u64::from_str_radix(digits, 16).ok().filter(|_| valid)
        };
        let halves = text.split_once('/').and_then(|(high, low)| half(high).zip(half(low)));
        halves.map(|(high, low)| Lsn(high << 32 | low)).ok_or_else(|| NoLsn(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_lsn_is_read_as_it_is_printed() {
        for (text, value) in [("0/0", 0), ("16/B374D848", 0x16_B374_D848), ("FFFFFFFF/FFFFFFFF", u64::MAX)] {
            assert_eq!(text.parse(), Ok(Lsn(value)));
            assert_eq!(Lsn(value).to_string(), text);
        }
        for text in ["", "0", "/", "0/", "x/0", "+1/0", "0/123456789"] {
            assert_eq!(text.parse::<Lsn>(), Err(NoLsn(text.to_owned())));
        }
    }
}
