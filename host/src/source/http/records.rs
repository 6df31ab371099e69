//! A body → records by column: complete syntax, one line each, or the line and byte of the first mistake.
//!
//! serde_json checks the syntax: it skips a value without recursion and hands back its text, so that numbers,
//! duplicate keys and the order of keys reach StarRocks and plugins as they were sent. What it does not check is
//! how deep values nest, which is done here.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use serde::Deserializer as _;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::record::{Columns, MARK_VALUE};
use crate::source::Gathering;

/// Records of a chunk: from about a thousand on, a guest call's fixed cost is lost in the noise.
pub(super) const CHUNK_RECORDS_MAX: usize = 2048;
/// Bytes of a chunk, unless one record alone is larger.
pub(super) const CHUNK_BYTES_MAX: usize = 512 << 10;
/// Objects and arrays within each other. Deeper ones are refused by most readers of JSON.
const DEPTH_MAX: usize = 128;

/// How records stand in a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// One object, or an array of objects.
    Json,
    /// An object a line.
    Lines,
    /// Whatever the first character says: an array, or objects with or without lines between them.
    Guess,
}

/// Why a body holds no usable records.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    /// It is not JSON, or not objects.
    Malformed(Malformed),
    /// It has more records than are taken at a time.
    TooMany { limit: u64 },
    /// The byte budget is full.
    NoRoom,
}

/// The first mistake of a body, and where it stands in the unpacked body.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed {
    pub(super) what: String,
    /// From 1.
    pub(super) line: u64,
    /// From 0.
    pub(super) byte: u64,
    pub(super) hint: Option<&'static str>,
}

/// What all records of a request have in common.
pub(super) struct Common {
    /// The request's path: what plugins see as the source.
    pub(super) source: Arc<str>,
    /// What is worth copying.
    pub(super) gathering: Gathering,
    /// Headers of the request, if somebody wants them.
    pub(super) headers: Vec<(Vec<u8>, Vec<u8>)>,
    /// When the request began to arrive.
    pub(super) arrived: Instant,
    /// When its body was there, in microseconds since 1970 UTC.
    pub(super) arrived_us: i64,
    /// Records of a request.
    pub(super) records_max: u64,
}

/// Reads all records of a body. `room` is asked for the bytes of each chunk, and says whether there is room.
pub(super) fn read(
    body: &[u8],
    format: Format,
    common: &Common,
    room: &mut dyn FnMut(u64) -> bool,
) -> Result<Vec<Columns>, Unfit> {
    let text = std::str::from_utf8(body)
        .map_err(|error| malformed(body, error.valid_up_to(), "a byte that is not UTF-8", Some(UTF8)))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = Reader { body, records: Records::new(common, room) };
    let first = text.trim_ascii_start().bytes().next();
    match (format, first) {
        (_, None) => return Err(malformed(body, body.len(), "the body is empty", None)),
        (Format::Json | Format::Guess, Some(b'[')) => reader.array(text)?,
        (Format::Json, Some(_)) => reader.lone(text)?,
        (Format::Lines, Some(_)) => reader.lines(text)?,
        (Format::Guess, Some(_)) => reader.stream(text)?,
    }
    reader.records.finish()
}

const UTF8: &str = "JSON is UTF-8";
const LINES: &str = "several objects are an array, or NDJSON with `Content-Type: application/x-ndjson`";
const LINE: &str =
    "NDJSON has one object a line; an object of several lines is `Content-Type: application/json`";

fn malformed(body: &[u8], at: usize, what: impl Into<String>, hint: Option<&'static str>) -> Unfit {
    let before = body.get(..at).unwrap_or(body);
    let line = 1 + before.iter().filter(|byte| **byte == b'\n').count() as u64;
    Unfit::Malformed(Malformed { what: what.into(), line, byte: at as u64, hint })
}

struct Reader<'a> {
    body: &'a [u8],
    records: Records<'a>,
}

impl<'a> Reader<'a> {
    /// Where a part of the body begins in it.
    fn place(&self, part: &str) -> usize {
        (part.as_ptr() as usize).saturating_sub(self.body.as_ptr() as usize)
    }

    /// serde_json's complaint about `part` → ours, about the body.
    fn complaint(&self, part: &str, error: &serde_json::Error, hint: Option<&'static str>) -> Unfit {
        let lines_before = error.line().saturating_sub(1);
        let line_start = match lines_before {
            0 => 0,
            _several => part
                .bytes()
                .enumerate()
                .filter(|(_, byte)| *byte == b'\n')
                .nth(lines_before - 1)
                .map_or(part.len(), |(feed, _)| feed + 1),
        };
        let at = line_start + error.column().saturating_sub(1);
        let text = error.to_string();
        // The place is told apart, and for the whole body.
        let what = text.split(" at line ").next().unwrap_or(&text);
        malformed(self.body, self.place(part) + at.min(part.len()), what, hint)
    }

    fn take(&mut self, value: &str) -> Result<(), Unfit> {
        if !value.starts_with('{') {
            let what = format!("a record is {} and not an object", kind_of(value));
            return Err(malformed(self.body, self.place(value), what, None));
        }
        if let Some(at) = too_deep(value.as_bytes()) {
            let what = format!("more than {DEPTH_MAX} objects and arrays within each other");
            return Err(malformed(self.body, self.place(value) + at, what, None));
        }
        self.records.push(value)
    }

    fn lone(&mut self, text: &'a str) -> Result<(), Unfit> {
        let value: &RawValue =
            serde_json::from_str(text).map_err(|error| self.complaint(text, &error, Some(LINES)))?;
        self.take(value.get())
    }

    fn lines(&mut self, text: &'a str) -> Result<(), Unfit> {
        for line in text.split('\n') {
            let line = line.trim_ascii();
            if line.is_empty() {
                continue;
            }
            let value: &RawValue =
                serde_json::from_str(line).map_err(|error| self.complaint(line, &error, Some(LINE)))?;
            self.take(value.get())?;
        }
        Ok(())
    }

    fn stream(&mut self, text: &'a str) -> Result<(), Unfit> {
        for value in serde_json::Deserializer::from_str(text).into_iter::<&RawValue>() {
            let value = value.map_err(|error| self.complaint(text, &error, None))?;
            self.take(value.get())?;
        }
        Ok(())
    }

    fn array(&mut self, text: &'a str) -> Result<(), Unfit> {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let mut unfit = None;
        let read = deserializer.deserialize_seq(Elements { reader: self, unfit: &mut unfit });
        let read = read.and_then(|()| deserializer.end());
        match (unfit, read) {
            (Some(unfit), _) => Err(unfit),
            (None, Err(error)) => Err(self.complaint(text, &error, None)),
            (None, Ok(())) => Ok(()),
        }
    }
}

/// Takes the elements of an array one by one, without a list of them.
struct Elements<'e, 'a> {
    reader: &'e mut Reader<'a>,
    /// Why an element was not taken: serde_json's own error cannot carry it.
    unfit: &'e mut Option<Unfit>,
}

impl<'de> Visitor<'de> for Elements<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        while let Some(element) = elements.next_element::<&'de RawValue>()? {
            if let Err(unfit) = self.reader.take(element.get()) {
                *self.unfit = Some(unfit);
                return Err(A::Error::custom("an element was not taken"));
            }
        }
        Ok(())
    }
}

fn kind_of(value: &str) -> &'static str {
    match value.as_bytes().first() {
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        Some(_) | None => "a number",
    }
}

/// Where a valid value nests too deeply.
fn too_deep(value: &[u8]) -> Option<usize> {
    // Hardly any value has so many brackets at all, and counting them is fast.
    if value.iter().filter(|byte| matches!(byte, b'{' | b'[')).count() <= DEPTH_MAX {
        return None;
    }
    let (mut depth, mut quoted, mut escaped) = (0, false, false);
    for (at, byte) in value.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => quoted = !quoted,
            b'{' | b'[' if !quoted => {
                depth += 1;
                if depth > DEPTH_MAX {
                    return Some(at);
                }
            }
            b'}' | b']' if !quoted => depth -= 1,
            _other => {}
        }
    }
    None
}

/// The records so far, in chunks.
struct Records<'a> {
    common: &'a Common,
    room: &'a mut dyn FnMut(u64) -> bool,
    full: Vec<Columns>,
    open: Columns,
    count: u64,
    header_bytes: usize,
}

/// A chunk before its first record.
fn empty(common: &Common) -> Columns {
    Columns { source: Some(Arc::clone(&common.source)), arrived: Some(common.arrived), ..Columns::default() }
}

impl<'a> Records<'a> {
    fn new(common: &'a Common, room: &'a mut dyn FnMut(u64) -> bool) -> Records<'a> {
        let header_bytes = common.headers.iter().map(|(name, content)| name.len() + content.len() + 8).sum();
        let open = empty(common);
        Records { common, room, full: Vec::new(), open, count: 0, header_bytes }
    }

    fn push(&mut self, value: &str) -> Result<(), Unfit> {
        if self.count >= self.common.records_max {
            return Err(Unfit::TooMany { limit: self.common.records_max });
        }
        let columns = &mut self.open;
        let gathering = self.common.gathering;
        let data = &mut columns.values.data;
        data.reserve(value.len() + 1);
        // Line feeds in JSON are only between its parts: within strings they are escaped.
        if value.as_bytes().contains(&b'\n') {
            data.extend(value.bytes().filter(|byte| !matches!(byte, b'\n' | b'\r')));
        } else {
            data.extend_from_slice(value.as_bytes());
        }
        if gathering.line_feeds {
            data.push(b'\n');
        }
        // A chunk is a body at most, and bodies are shorter than 1 GiB.
        columns.values.ends.push(data.len() as u32);
        columns.marks.push(MARK_VALUE);
        columns.offsets.push(i64::try_from(self.count).unwrap_or(i64::MAX));
        if gathering.keys {
            columns.keys.push(b"");
        }
        if gathering.timestamps {
            columns.timestamps.push(self.common.arrived_us);
        }
        if gathering.partitions {
            columns.partitions.push(0);
        }
        if gathering.headers {
            for (name, content) in &self.common.headers {
                columns.headers.names.push(name);
                columns.headers.contents.push(content);
            }
            columns.headers.end_record();
        }
        self.count += 1;
        let bytes = columns.values.data.len() + columns.len() * self.header_bytes;
        if columns.len() >= CHUNK_RECORDS_MAX || bytes >= CHUNK_BYTES_MAX {
            self.end_chunk()?;
        }
        Ok(())
    }

    fn end_chunk(&mut self) -> Result<(), Unfit> {
        if self.open.is_empty() {
            return Ok(());
        }
        if !(self.room)(self.open.bytes() as u64) {
            return Err(Unfit::NoRoom);
        }
        self.full.push(std::mem::replace(&mut self.open, empty(self.common)));
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<Columns>, Unfit> {
        self.end_chunk()?;
        Ok(self.full)
    }
}

#[cfg(test)]
mod tests;
