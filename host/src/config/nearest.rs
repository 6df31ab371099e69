//! The nearest valid name of a mistyped one.

/// The candidate that `written` was probably meant to be.
pub(super) fn nearest<'a>(written: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const WRITTEN_CHARS_MAX: usize = 64;
    if written.chars().count() > WRITTEN_CHARS_MAX {
        return None;
    }
    let bare = bare(written);
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&bare, &self::bare(candidate)), candidate))
        .filter(|(distance, candidate)| *distance <= 1.max(candidate.len().min(written.len()) / 3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// A name without case and separators: `maxRows`, `max-rows` and `max_rows` are one.
pub(super) fn bare(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_mistakes_are_recognised() {
        let keys = ["max_rows", "max_bytes", "linger"];
        assert_eq!(nearest("lingr", keys), Some("linger"));
        assert_eq!(nearest("maxRows", keys), Some("max_rows"));
        assert_eq!(nearest("max-byte", keys), Some("max_bytes"));
        assert_eq!(nearest("flush", keys), None);
        assert_eq!(nearest(&"x".repeat(10_000), keys), None);
    }
}
