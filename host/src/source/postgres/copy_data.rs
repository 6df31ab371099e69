//! The messages of a COPY as they came: rows are read where the socket put them.
//!
//! A server's `CopyData` message is always one row (PostgreSQL's documentation, "Message Formats").

use bytes::Bytes;

/// A type byte and a length that counts itself.
pub(super) const HEAD_BYTES: usize = 5;
/// Type of a message that is a row.
pub(super) const ROW: u8 = b'd';

/// Type and length of the message that begins here; the length counts itself and not the type.
pub(super) fn head(received: &[u8]) -> Option<(u8, usize)> {
    let (head, _) = received.split_at_checked(HEAD_BYTES)?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    Some((head[0], length as usize))
}

/// The server ended a row without a line feed: it is not whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a row of COPY, {at} bytes behind the start of its piece, has no line feed at its end")]
pub struct Unended {
    /// Where its message begins.
    pub at: usize,
}

/// Whole messages of a running COPY: rows, and what else the server said between them.
#[derive(Debug, Clone, Default)]
pub struct CopyData {
    messages: Bytes,
    rows: u64,
}

impl CopyData {
    /// Messages of which so many are rows. Each is there to its end and counts at least its head.
    pub(super) fn new(messages: Bytes, rows: u64) -> CopyData {
        CopyData { messages, rows }
    }

    /// How many rows there are.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Bytes of all messages, their heads included.
    pub fn bytes(&self) -> usize {
        self.messages.len()
    }

    /// The same in memory of its own length.
    pub fn fitted(&self) -> CopyData {
        CopyData { messages: Bytes::copy_from_slice(&self.messages), rows: self.rows }
    }

    /// The first row from place `at` on, without its line feed, and the place behind it; none if there is no more.
    ///
    /// # Errors
    /// If the row has no line feed at its end.
    #[inline]
    pub fn row(&self, mut at: usize) -> Result<Option<(&[u8], usize)>, Unended> {
        while let Some((tag, length)) = self.messages.get(at..).and_then(head) {
            let end = at + 1 + length;
            if tag == ROW {
                let Some(row) = self.messages.get(at + HEAD_BYTES..end) else { break };
                return row.strip_suffix(b"\n").map(|line| Some((line, end))).ok_or(Unended { at });
            }
            at = end;
        }
        Ok(None)
    }

    /// All rows, without their line feeds, up to one that has none.
    pub fn lines(&self) -> impl Iterator<Item = Result<&[u8], Unended>> {
        let mut next = Some(0);
        std::iter::from_fn(move || {
            let read = self.row(next?).transpose();
            next = read.as_ref().and_then(|read| read.as_ref().ok()).map(|(_, behind)| *behind);
            Some(read?.map(|(line, _)| line))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_without_its_line_feed_is_refused() {
        let message = |tag: u8, body: &[u8]| {
            let length = u32::try_from(body.len() + 4).expect("short");
            [&[tag], &length.to_be_bytes()[..], body].concat()
        };
        for cut in [&b"2\ttw"[..], b""] {
            let said =
                [message(ROW, b"1\n"), message(b'N', b"no row"), message(ROW, cut), message(ROW, b"3\n")];
            let data = CopyData::new(said.concat().into(), 3);
            let at = said[0].len() + said[1].len();
            let lines: Vec<_> = data.lines().collect();
            assert_eq!(lines, [Ok(&b"1"[..]), Err(Unended { at })], "nothing behind it is taken for a row");
        }
    }
}
