//! What a request's head asks for: method, path, query and headers, checked before its body is read.

use std::borrow::Cow;
use std::sync::Arc;

use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, ORIGIN};
use http::{Method, Uri};

use super::answer::Answer;
use super::coding::Coding;
use super::records::Format;

/// Bytes of a path, unescaped.
const PATH_BYTES_MAX: usize = 255;
/// Bytes of an `Idempotency-Key`.
const KEY_BYTES_MAX: usize = 255;

static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Headers that plugins do not see: credentials, and what concerns one connection only (RFC 9110, 7.6.1).
const HIDDEN: [&str; 11] = [
    "authorization",
    "cookie",
    "proxy-authorization",
    "proxy-authenticate",
    "proxy-connection",
    "connection",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What a request wants.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// `GET /health`
    Health,
    /// `POST /{path}`
    Send(Sending),
}

/// Records on their way.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sending {
    /// The path without its slash: what plugins see as the source.
    pub(super) source: Arc<str>,
    /// `?ack=queued`: answered before anything is loaded.
    pub(super) queued: bool,
    pub(super) format: Format,
    pub(super) coding: Coding,
    /// `Idempotency-Key`
    pub(super) key: Option<String>,
}

/// Whether `/health` is asked for, which needs no token.
pub(super) fn is_health(uri: &Uri) -> bool {
    uri.path() == "/health"
}

/// Reads the head of a request.
///
/// # Errors
/// The answer to a request that is none of ours.
pub(super) fn read(method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<Wish, Answer> {
    if is_health(uri) {
        return match *method {
            Method::GET | Method::HEAD => Ok(Wish::Health),
            _ => Err(Answer::method_not_allowed("GET, HEAD")),
        };
    }
    if *method != Method::POST {
        return Err(Answer::method_not_allowed("POST"));
    }
    Ok(Wish::Send(Sending {
        source: source(uri.path())?,
        queued: is_queued(uri.query().unwrap_or_default())?,
        format: format(headers)?,
        coding: coding(headers)?,
        key: key(headers)?,
    }))
}

/// The request's headers as plugins and dead letters see them.
pub(super) fn shown(headers: &HeaderMap) -> Vec<(Vec<u8>, Vec<u8>)> {
    let shown = headers.iter().filter(|(name, _)| !HIDDEN.contains(&name.as_str()));
    shown.map(|(name, value)| (name.as_str().as_bytes().to_vec(), value.as_bytes().to_vec())).collect()
}

fn source(path: &str) -> Result<Arc<str>, Answer> {
    let path = path.strip_prefix('/').unwrap_or(path);
    let Some(bytes) = unescaped(path.as_bytes()) else {
        return Err(Answer::bad_request("the path has a % without two hexadecimal digits behind it", ""));
    };
    match std::str::from_utf8(&bytes) {
        Ok("") => Err(Answer::not_found("the path names nothing")),
        Ok(path) if path.len() > PATH_BYTES_MAX => {
            Err(Answer::not_found(&format!("the path is longer than {PATH_BYTES_MAX} bytes")))
        }
        Ok(path) if path.contains(char::is_control) => {
            Err(Answer::bad_request("the path has a control character in it", ""))
        }
        Ok(path) => Ok(path.into()),
        Err(_) => Err(Answer::bad_request("the path is not UTF-8", "")),
    }
}

/// `%41` → `A`; none for a `%` without two digits.
fn unescaped(text: &[u8]) -> Option<Cow<'_, [u8]>> {
    if !text.contains(&b'%') {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, others @ ..] = rest {
        rest = others;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, others) = others.split_at_checked(2)?;
        let digit = |digit: u8| char::from(digit).to_digit(16);
        let [high, low] = digits else { return None };
        bytes.push(u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()?);
        rest = others;
    }
    Some(Cow::Owned(bytes))
}

/// What `ack` in the query says; other parameters are whoever's.
fn is_queued(query: &str) -> Result<bool, Answer> {
    let said = query.split('&').filter_map(|pair| pair.strip_prefix("ack=")).next_back();
    match said {
        None | Some("durable") => Ok(false),
        Some("queued") => Ok(true),
        Some(_other) => Err(Answer::bad_request(
            "the parameter `ack` is not known",
            "`?ack=durable`, which is the default, or `?ack=queued`, which answers before anything is loaded",
        )),
    }
}

fn format(headers: &HeaderMap) -> Result<Format, Answer> {
    const HINT: &str = "send `Content-Type: application/json` for one object or an array, \
                        `application/x-ndjson` for an object a line";
    let Some(value) = headers.get(CONTENT_TYPE).filter(|value| !value.is_empty()) else {
        // A page may post to this machine without asking if it says no content type; for JSON its browser asks first.
        return match headers.contains_key(ORIGIN) {
            true => Err(Answer::unsupported("a page in a browser has to say its content type", HINT)),
            false => Ok(Format::Guess),
        };
    };
    // As nearly everybody writes them.
    match value.as_bytes() {
        b"application/x-ndjson" => return Ok(Format::Lines),
        b"application/json" => return Ok(Format::Json),
        _other_spelling => {}
    }
    let text = value.to_str().unwrap_or_default().to_ascii_lowercase();
    let (kind, parameters) = text.split_once(';').unwrap_or((&text, ""));
    let format = match kind.trim() {
        "application/json" | "text/json" => Format::Json,
        "application/x-ndjson"
        | "application/ndjson"
        | "application/jsonl"
        | "application/x-jsonlines"
        | "application/jsonlines"
        | "application/json-lines" => Format::Lines,
        // `application/vnd.acme.order+json`, `application/cloudevents+json`
        other if other.starts_with("application/") && other.ends_with("+json") => Format::Json,
        other => return Err(Answer::unsupported(&format!("the content type {other:?} is not JSON"), HINT)),
    };
    let charset = parameters.split(';').find_map(|pair| pair.trim().strip_prefix("charset="));
    match charset.map(|charset| charset.trim_matches('"')) {
        None | Some("utf-8" | "utf8" | "us-ascii") => Ok(format),
        Some(other) => {
            Err(Answer::unsupported(&format!("the charset {other:?} is not UTF-8"), "JSON is UTF-8"))
        }
    }
}

fn coding(headers: &HeaderMap) -> Result<Coding, Answer> {
    const HINT: &str = "one of gzip, deflate, zstd and identity";
    let mut values = headers.get_all(CONTENT_ENCODING).into_iter();
    let Some(value) = values.next() else { return Ok(Coding::Identity) };
    let text = value.to_str().unwrap_or("?");
    match Coding::named(text).filter(|_| values.next().is_none()) {
        Some(coding) => Ok(coding),
        None => Err(Answer::unsupported(
            &format!("the content encoding {text:?} is not known or not alone"),
            HINT,
        )),
    }
}

fn key(headers: &HeaderMap) -> Result<Option<String>, Answer> {
    let Some(value) = headers.get(&IDEMPOTENCY_KEY) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    if text.is_empty() || text.len() > KEY_BYTES_MAX {
        let error = format!("the Idempotency-Key is not 1 to {KEY_BYTES_MAX} visible characters");
        return Err(Answer::bad_request(&error, "take a new random one for each request, such as a UUID"));
    }
    Ok(Some(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn head(method: &str, uri: &str, headers: &[(&'static str, &'static str)]) -> Result<Wish, Answer> {
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        read(&method, &uri.parse().expect("a URI"), &map)
    }

    fn sending(uri: &str, headers: &[(&'static str, &'static str)]) -> Sending {
        match head("POST", uri, headers) {
            Ok(Wish::Send(sending)) => sending,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn refused(method: &str, uri: &str, headers: &[(&'static str, &'static str)], status: u16, error: &str) {
        let answer = head(method, uri, headers).expect_err(error);
        assert_eq!(answer.status.as_u16(), status, "{}", answer.text());
        let said: serde_json::Value = serde_json::from_str(answer.text()).expect("JSON");
        assert_eq!(said["error"], error);
    }

    #[test]
    fn the_path_is_the_source() {
        let plain = sending("/events", &[]);
        assert_eq!((&*plain.source, plain.queued, plain.key), ("events", false, None));
        assert_eq!((plain.format, plain.coding), (Format::Guess, Coding::Identity));
        assert_eq!(&*sending("/a/b%20c/%C3%A9?x=1", &[]).source, "a/b c/é");
        refused("POST", "/", &[], 404, "the path names nothing");
        refused("POST", "/%zz", &[], 400, "the path has a % without two hexadecimal digits behind it");
        refused("POST", "/a%4", &[], 400, "the path has a % without two hexadecimal digits behind it");
        refused("POST", "/%ff", &[], 400, "the path is not UTF-8");
        refused("POST", "/a%0a", &[], 400, "the path has a control character in it");
        refused("POST", &format!("/{}", "a".repeat(256)), &[], 404, "the path is longer than 255 bytes");
    }

    #[test]
    fn other_methods_are_told_which_one_to_take() {
        assert_eq!(head("GET", "/health", &[]).expect("ours"), Wish::Health);
        refused("GET", "/events", &[], 405, "only POST is possible here");
        refused("DELETE", "/events", &[], 405, "only POST is possible here");
        refused("POST", "/health", &[], 405, "only GET, HEAD is possible here");
    }

    #[test]
    fn the_acknowledgement_is_durable_unless_the_query_says_otherwise() {
        for (query, queued) in
            [("ack=queued", true), ("a=b&ack=queued", true), ("ack=durable", false), ("q", false)]
        {
            assert_eq!(sending(&format!("/e?{query}"), &[]).queued, queued, "{query}");
        }
        refused("POST", "/e?ack=qeued", &[], 400, "the parameter `ack` is not known");
    }

    #[test]
    fn content_types_are_respected() {
        let format = |value| sending("/e", &[("content-type", value)]).format;
        assert_eq!(format("application/json"), Format::Json);
        assert_eq!(format("Application/JSON; charset=UTF-8"), Format::Json);
        assert_eq!(format("application/cloudevents+json"), Format::Json);
        assert_eq!(format("application/x-ndjson"), Format::Lines);
        assert_eq!(format("application/jsonl; charset=\"utf-8\""), Format::Lines);
        let form = [("content-type", "application/x-www-form-urlencoded")];
        refused(
            "POST",
            "/e",
            &form,
            415,
            "the content type \"application/x-www-form-urlencoded\" is not JSON",
        );
        let latin = [("content-type", "application/json; charset=latin1")];
        refused("POST", "/e", &latin, 415, "the charset \"latin1\" is not UTF-8");
    }

    #[test]
    fn pages_in_browsers_say_what_they_send() {
        let origin = ("origin", "https://example.com");
        let error = "a page in a browser has to say its content type";
        refused("POST", "/e", &[origin], 415, error);
        refused("POST", "/e", &[origin, ("content-type", "")], 415, error);
        assert_eq!(sending("/e", &[origin, ("content-type", "application/json")]).format, Format::Json);
        assert_eq!(sending("/e", &[("content-type", "")]).format, Format::Guess);
    }

    #[test]
    fn a_coding_is_known_and_alone() {
        assert_eq!(sending("/e", &[("content-encoding", "gzip")]).coding, Coding::Gzip);
        for values in
            [&[("content-encoding", "br")][..], &[("content-encoding", "gzip"), ("content-encoding", "zstd")]]
        {
            let error = format!("the content encoding {:?} is not known or not alone", values[0].1);
            refused("POST", "/e", values, 415, &error);
        }
    }

    #[test]
    fn a_key_has_a_length() {
        assert_eq!(sending("/e", &[("idempotency-key", " a-1 ")]).key.as_deref(), Some("a-1"));
        let error = "the Idempotency-Key is not 1 to 255 visible characters";
        refused("POST", "/e", &[("idempotency-key", " ")], 400, error);
    }

    #[test]
    fn credentials_are_not_among_the_headers_shown() {
        let mut headers = HeaderMap::new();
        for name in HIDDEN.into_iter().chain(["x-trace", "user-agent"]) {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static("canary"));
        }
        let mut names: Vec<_> = shown(&headers).into_iter().map(|(name, _)| name).collect();
        names.sort();
        assert_eq!(names, [&b"user-agent"[..], b"x-trace"]);
    }
}
