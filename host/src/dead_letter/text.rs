//! A dead letter as one line of JSON.

use serde::Serialize;

use super::DeadLetter;

/// The line's fields. Bytes that are UTF-8 stand as text, others as hexadecimal under `<name>_hex`.
#[derive(Debug, Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    kept: Option<Seen<'a>>,
    pipeline: &'a str,
    stage: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    plugin: Option<&'a str>,
    code: &'a str,
    message: &'a str,
    source: &'a str,
    partition: u32,
    offset: i64,
    timestamp_us: i64,
    kept_us: i64,
    holds: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    table: Option<&'a str>,
    #[serde(skip_serializing_if = "is_false")]
    delete: bool,
    #[serde(skip_serializing_if = "is_false")]
    partial: bool,
    #[serde(flatten)]
    key: Named<'a>,
    #[serde(flatten)]
    value: Named<'a>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    headers: Vec<Header<'a>>,
}

/// What only a letter has that was read again.
#[derive(Debug, Serialize)]
pub struct Seen<'a> {
    /// Where it is kept.
    pub place: &'a str,
    /// Whether a replay got it through.
    pub replayed: bool,
}

/// For serde, which hands over a reference.
fn is_false(flag: &bool) -> bool {
    !*flag
}

#[derive(Debug, Serialize)]
struct Header<'a> {
    name: String,
    #[serde(flatten)]
    content: Named<'a>,
}

/// A value under a name that tells its encoding.
#[derive(Debug)]
struct Named<'a> {
    text: &'static str,
    hex: &'static str,
    bytes: Option<&'a [u8]>,
}

impl Serialize for Named<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap as _;
        let mut map = serializer.serialize_map(Some(1))?;
        match self.bytes.map(|bytes| (bytes, std::str::from_utf8(bytes))) {
            None => map.serialize_entry(self.text, &None::<&str>)?,
            Some((_, Ok(text))) => map.serialize_entry(self.text, text)?,
            Some((bytes, Err(_))) => {
                let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                map.serialize_entry(self.hex, &hex)?;
            }
        }
        map.end()
    }
}

/// Appends a letter that is kept at `kept_us` (microseconds since 1970 UTC) to `into`, with a line feed; `seen` for one
/// that was read again.
///
/// # Errors
/// Never for these types: serde_json only fails on maps with keys that are no strings.
pub fn append(
    letter: &DeadLetter,
    pipeline: &str,
    kept_us: i64,
    seen: Option<Seen<'_>>,
    into: &mut Vec<u8>,
) -> serde_json::Result<()> {
    let headers = letter.headers.iter().map(|(name, content)| Header {
        name: String::from_utf8_lossy(name).into_owned(),
        content: Named { text: "content", hex: "content_hex", bytes: Some(content) },
    });
    let line = Line {
        kept: seen,
        pipeline,
        stage: letter.stage.name(),
        plugin: letter.plugin.as_deref(),
        code: &letter.code,
        message: &letter.message,
        source: &letter.partition.source,
        partition: letter.partition.number,
        offset: letter.offset,
        timestamp_us: letter.timestamp_us,
        kept_us,
        holds: letter.content.holds.name(),
        table: letter.content.table.as_deref(),
        delete: letter.content.delete,
        partial: letter.content.partial,
        key: Named { text: "key", hex: "key_hex", bytes: letter.key.as_deref() },
        value: Named { text: "value", hex: "value_hex", bytes: letter.value.as_deref() },
        headers: headers.collect(),
    };
    serde_json::to_writer(&mut *into, &line)?;
    into.push(b'\n');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letter::{Content, Stage};
    use crate::position::Partition;

    #[test]
    fn text_stays_text_and_other_bytes_are_hexadecimal() {
        let letter = DeadLetter {
            stage: Stage::Transform,
            plugin: Some("orders".into()),
            code: "parse".into(),
            message: "expected `}`".into(),
            partition: Partition { source: "orders".into(), number: 3 },
            offset: 42,
            timestamp_us: 0,
            key: Some(vec![0xff, 0x00]),
            value: Some(b"{\"a\":".to_vec()),
            headers: vec![(b"trace".to_vec(), b"7".to_vec())],
            content: Content::default(),
        };
        let mut line = Vec::new();
        append(&letter, "shop", 9, None, &mut line).unwrap();
        assert_eq!(
            String::from_utf8(line).unwrap(),
            "{\"pipeline\":\"shop\",\"stage\":\"transform\",\"plugin\":\"orders\",\"code\":\"parse\",\
             \"message\":\"expected `}`\",\"source\":\"orders\",\"partition\":3,\"offset\":42,\
             \"timestamp_us\":0,\"kept_us\":9,\"holds\":\"record\",\"key_hex\":\"ff00\",\"value\":\"{\\\"a\\\":\",\
             \"headers\":[{\"name\":\"trace\",\"content\":\"7\"}]}\n"
        );
    }
}
