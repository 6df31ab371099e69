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

    /// The first row from place `at` on, without its line feed, and the place behind it.
    #[inline]
    pub fn row(&self, mut at: usize) -> Option<(&[u8], usize)> {
        loop {
            let (tag, length) = head(self.messages.get(at..)?)?;
            let end = at + 1 + length;
            if tag == ROW {
                let row = self.messages.get(at + HEAD_BYTES..end)?;
                return Some((row.strip_suffix(b"\n").unwrap_or(row), end));
            }
            at = end;
        }
    }

    /// All rows, without their line feeds.
    pub fn lines(&self) -> impl Iterator<Item = &[u8]> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let (line, behind) = self.row(at)?;
            at = behind;
            Some(line)
        })
    }
}
