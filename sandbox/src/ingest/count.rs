//! Counting rows without reading them, for sandboxes that keep nothing.

/// Counts the rows of a body by its line feeds as it streams by; a last line without one counts too.
#[derive(Debug, Default)]
pub(crate) struct RowCounter {
    line_feeds: u64,
    bytes: u64,
    ends_with_line_feed: bool,
}

/// Bytes summed in one `u8`; below 256, so that it cannot overflow, and a multiple of vector widths.
const BLOCK_BYTES: usize = 192;

impl RowCounter {
    pub(crate) fn add(&mut self, piece: &[u8]) {
        let count = |block: &[u8]| {
            let matches: u8 = block.iter().map(|byte| u8::from(*byte == b'\n')).sum();
            u64::from(matches)
        };
        self.line_feeds += piece.chunks(BLOCK_BYTES).map(count).sum::<u64>();
        self.bytes += piece.len() as u64;
        if let Some(last) = piece.last() {
            self.ends_with_line_feed = *last == b'\n';
        }
    }

    pub(crate) fn rows(&self) -> u64 {
        self.line_feeds + u64::from(self.bytes > 0 && !self.ends_with_line_feed)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::RowCounter;

    #[test]
    fn counts_lines_across_pieces() {
        let mut counter = RowCounter::default();
        assert_eq!(counter.rows(), 0);
        for piece in ["{}\n{", "}\n", &"{}\n".repeat(500), "{}"] {
            counter.add(piece.as_bytes());
        }
        assert_eq!(counter.rows(), 503);
    }
}
