//! The text of one JSON value: telling its kind, unescaping, minifying.

use std::borrow::Cow;

/// What a JSON value is, told by its first byte. The token is known to be well-formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenKind {
    Null,
    True,
    False,
    Number,
    String,
    Nested,
}

pub(crate) fn kind(token: &str) -> TokenKind {
    match token.as_bytes().first() {
        Some(b'"') => TokenKind::String,
        Some(b'{' | b'[') => TokenKind::Nested,
        Some(b't') => TokenKind::True,
        Some(b'f') => TokenKind::False,
        Some(b'n') => TokenKind::Null,
        Some(_) | None => TokenKind::Number,
    }
}

/// The content of a JSON string token, without quotes and escapes.
pub(crate) fn unescape(token: &str) -> Cow<'_, str> {
    let inner = token.get(1..token.len().saturating_sub(1)).unwrap_or("");
    if !inner.as_bytes().contains(&b'\\') {
        return Cow::Borrowed(inner);
    }
    // A lone surrogate is well-formed JSON for the scanner but no text; it is kept as it was written.
    serde_json::from_str(token).map_or(Cow::Borrowed(inner), Cow::Owned)
}

/// The value without the white space between its tokens.
pub(crate) fn minify(token: &str) -> Cow<'_, str> {
    if !token.bytes().any(|byte| byte.is_ascii_whitespace()) {
        return Cow::Borrowed(token);
    }
    let mut out = String::with_capacity(token.len());
    let mut in_string = false;
    let mut escaped = false;
    for character in token.chars() {
        if in_string {
            out.push(character);
            in_string = escaped || character != '"';
            escaped = !escaped && character == '\\';
        } else if !character.is_ascii_whitespace() {
            in_string = character == '"';
            out.push(character);
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::{minify, unescape};

    #[test]
    fn minifies_outside_of_strings_only() {
        let token = "{ \"a b\" : [ 1, \"x \\\" y\" ] }";
        assert_eq!(minify(token), "{\"a b\":[1,\"x \\\" y\"]}");
    }

    #[test]
    fn unescapes() {
        assert_eq!(unescape("\"a\\nb\\u00e9\""), "a\nb\u{e9}");
        assert_eq!(unescape("\"plain\""), "plain");
    }
}
