//! Texts of plugins have no limit of their own; what is kept of them has.

/// The longest beginning of `text` that has at most `bytes_max` bytes and whole characters.
pub(super) fn truncated(text: &str, bytes_max: usize) -> &str {
    text.get(..text.floor_char_boundary(bytes_max)).unwrap_or(text)
}
