//! Reading requests: paths, queries, passwords.

use base64::Engine as _;
use http::{HeaderMap, Uri};

/// The only user of a sandbox.
pub(super) const USER: &str = "root";

/// Decodes `%xx`.
pub(super) fn decode(written: &str) -> String {
    let mut bytes = Vec::with_capacity(written.len());
    let mut rest = written.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..2).and_then(|pair| std::str::from_utf8(pair).ok());
        match (first, code.and_then(|pair| u8::from_str_radix(pair, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A parameter of the query string.
pub(super) fn parameter(uri: &Uri, name: &str) -> Option<String> {
    uri.query()?.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        (key == name).then(|| decode(&value.replace('+', " ")))
    })
}

/// What the `Authorization` header says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Credentials {
    Valid,
    /// Not there, or not Basic.
    Missing,
    /// The wrong password or an unknown user.
    Wrong {
        user: String,
    },
}

/// Checks HTTP Basic credentials against the one user and `password`.
pub(super) fn credentials(headers: &HeaderMap, password: Option<&str>) -> Credentials {
    let Some(pair) = basic(headers) else { return Credentials::Missing };
    let (user, given) = pair.split_once(':').unwrap_or((&pair, ""));
    // `user@cluster` is an old way to write the user.
    let bare = user.split('@').next().unwrap_or(user);
    if bare == USER && given == password.unwrap_or("") {
        Credentials::Valid
    } else {
        Credentials::Wrong { user: bare.to_owned() }
    }
}

fn basic(headers: &HeaderMap) -> Option<String> {
    let header = headers.get(http::header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, encoded) = header.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = base64::engine::general_purpose::STANDARD.decode(encoded.trim()).ok()?;
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::{Credentials, credentials, decode, parameter};
    use http::{HeaderMap, HeaderValue, Uri};

    #[test]
    fn decodes() {
        assert_eq!(decode("a%20b%C3%A9%"), "a b\u{e9}%");
        let uri: Uri = "/x?label=a%2Db&y=1".parse().expect("well-formed");
        assert_eq!(parameter(&uri, "label").as_deref(), Some("a-b"));
        assert_eq!(parameter(&uri, "z"), None);
    }

    #[test]
    fn checks_the_password() {
        let mut headers = HeaderMap::new();
        assert_eq!(credentials(&headers, None), Credentials::Missing);
        headers.insert("authorization", HeaderValue::from_static("Basic cm9vdDpzZWNyZXQ="));
        assert_eq!(credentials(&headers, Some("secret")), Credentials::Valid);
        assert_eq!(credentials(&headers, None), Credentials::Wrong { user: "root".to_owned() });
    }
}
