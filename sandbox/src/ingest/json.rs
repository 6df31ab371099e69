//! JSON bodies: one array of objects, or a stream of objects (protocol reference §1.6).
//!
//! Values are taken as the text that stands in the body, so that number tokens reach the column as they were
//! written. The usual body has one object per line, and each line is parsed by itself; a document that spans
//! lines, or shares one with others, sends the rest of the body through the general way.

use serde::de::{DeserializeSeed, Deserializer as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;

use super::plan::{LoadPlan, OpSource, PathStep, Source};
use super::{Raw, RowSink};
use crate::ingest::LoadParams;

/// How messages about an unreadable body begin, without the reason.
pub(super) fn prefix(params: &LoadParams) -> &'static str {
    if params.strip_outer_array {
        "Failed to parse json as array"
    } else {
        "Failed to parse json as document stream"
    }
}

/// Feeds every row of `body` into `rows`.
///
/// # Errors
/// The message for a body that is not the JSON it should be.
pub(super) fn read(body: &str, plan: &LoadPlan, rows: &mut RowSink<'_>) -> Result<(), String> {
    let trimmed = body.trim_start();
    match trimmed.as_bytes().first() {
        None => return Ok(()),
        Some(b'{' | b'[') => {}
        Some(other) => return Err(format!("illegal json started with {}", *other as char)),
    }
    let mut reader = Reader::new(body, plan, rows);
    if plan.params.strip_outer_array && plan.root.is_empty() {
        return reader.array(trimmed);
    }
    if plan.root.is_empty() {
        return reader.documents(body);
    }
    reader.rooted(trimmed)
}

/// simdjson's words for what serde found.
fn reason(error: &serde_json::Error) -> &'static str {
    let text = error.to_string();
    if text.starts_with("control character") {
        "Within strings, some characters must be escaped, we found unescaped characters"
    } else if text.starts_with("invalid escape") {
        "Problem while parsing a string"
    } else if text.starts_with("invalid number") {
        "Problem while parsing a number"
    } else if error.is_eof() {
        "JSON document ended early in the middle of an object or array."
    } else {
        "The JSON document has an improper structure: missing or superfluous commas, braces, missing keys, etc."
    }
}

/// Which value of a row a key names.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slot {
    Target(usize),
    Op,
    Unwanted,
}

struct Reader<'b, 'r, 'p> {
    body: &'b str,
    plan: &'r LoadPlan,
    rows: &'r mut RowSink<'p>,
    /// Keys in the order of the plan, each with its slot.
    keys: Vec<(String, Slot)>,
    /// Values of the row being read.
    values: Vec<Option<Raw<'b>>>,
    op: Option<Raw<'b>>,
}

impl<'b, 'r, 'p> Reader<'b, 'r, 'p>
where
    'p: 'r,
{
    fn new(body: &'b str, plan: &'r LoadPlan, rows: &'r mut RowSink<'p>) -> Self {
        let mut keys = Vec::new();
        for (at, target) in plan.targets.iter().enumerate() {
            if let Source::Key(name) = &target.source {
                keys.push((name.clone(), Slot::Target(at)));
            }
        }
        if let OpSource::Value(Source::Key(name)) = &plan.op {
            keys.push((name.clone(), Slot::Op));
        }
        Self { body, plan, rows, keys, values: vec![None; plan.targets.len()], op: None }
    }

    fn array(&mut self, text: &'b str) -> Result<(), String> {
        if !text.starts_with('[') {
            let shown: String = text.chars().take(64).collect();
            return Err(format!(
                "the value should be array type with strip_outer_array=true, value: {shown}"
            ));
        }
        let mut parser = serde_json::Deserializer::from_str(text);
        let outcome = parser.deserialize_seq(ArrayVisitor { reader: self }).and_then(|()| parser.end());
        outcome.map_err(|error| format!("Failed to parse json as array. error: {}", reason(&error)))
    }

    fn documents(&mut self, text: &'b str) -> Result<(), String> {
        let mut rest = text;
        while !rest.is_empty() {
            let (line, after) = match rest.as_bytes().iter().position(|byte| *byte == b'\n') {
                Some(at) => (&rest[..at], &rest[at + 1..]),
                None => (rest, ""),
            };
            if !line.trim_ascii().is_empty() && !self.line(line)? {
                return self.spanning(rest);
            }
            rest = after;
        }
        Ok(())
    }

    /// Reads a line that is one object. False, with nothing added, when it is something else.
    fn line(&mut self, line: &'b str) -> Result<bool, String> {
        let mut parser = serde_json::Deserializer::from_str(line);
        self.clear();
        let read = parser.deserialize_map(RowVisitor { reader: self }).and_then(|()| parser.end());
        if read.is_err() {
            return Ok(false);
        }
        self.add(line);
        Ok(true)
    }

    /// Reads documents that do not keep to lines.
    fn spanning(&mut self, text: &'b str) -> Result<(), String> {
        let documents = serde_json::Deserializer::from_str(text).into_iter::<&'b RawValue>();
        for document in documents {
            let failed = |error: &serde_json::Error| {
                format!("Failed to iterate document stream as object. error: {}", reason(error))
            };
            let document = document.map_err(|error| failed(&error))?.get();
            if document.starts_with('[') {
                return Err("The value is array type in json document stream, you can set \
                            strip_outer_array=true to parse each element of the array as individual rows"
                    .to_owned());
            }
            if !document.starts_with('{') {
                return Err("The value should be object type in json document stream".to_owned());
            }
            self.row(document).map_err(|error| failed(&error))?;
        }
        Ok(())
    }

    /// Reads rows below `json_root`: objects, or with `strip_outer_array` arrays of objects.
    fn rooted(&mut self, text: &'b str) -> Result<(), String> {
        let mut tops: Vec<&'b str> = Vec::new();
        let failed =
            |error: serde_json::Error| format!("{}. error: {}", prefix(&self.plan.params), reason(&error));
        if text.starts_with('[') {
            let items: Vec<&'b RawValue> = serde_json::from_str(text).map_err(failed)?;
            tops.extend(items.into_iter().map(RawValue::get));
        } else {
            for item in serde_json::Deserializer::from_str(text).into_iter::<&'b RawValue>() {
                tops.push(item.map_err(failed)?.get());
            }
        }
        for top in tops {
            let Some(inner) = walk(top, &self.plan.root) else {
                return Err("failed to find json_root in the document".to_owned());
            };
            let found: Vec<&'b str> = if self.plan.params.strip_outer_array {
                let items: Vec<&'b RawValue> = serde_json::from_str(inner).map_err(|_| {
                    "the value under json root should be array type with strip_outer_array=true".to_owned()
                })?;
                items.into_iter().map(RawValue::get).collect()
            } else {
                vec![inner]
            };
            for row in found {
                self.row(row).map_err(|error| {
                    let reason = reason(&error);
                    format!("Failed to iterate document stream as object with json root. error: {reason}")
                })?;
            }
        }
        Ok(())
    }

    /// Reads one object that is known to be well-formed.
    fn row(&mut self, document: &'b str) -> Result<(), serde_json::Error> {
        self.clear();
        serde_json::Deserializer::from_str(document).deserialize_map(RowVisitor { reader: self })?;
        self.add(document);
        Ok(())
    }

    fn clear(&mut self) {
        self.values.fill(None);
        self.op = None;
    }

    fn add(&mut self, row: &'b str) {
        if self.plan.params.jsonpaths.is_some() {
            for (value, target) in self.values.iter_mut().zip(&self.plan.targets) {
                if let Source::Path(path) = &target.source {
                    *value = walk(row, path).map(Raw::Json);
                }
            }
            if let OpSource::Value(Source::Path(path)) = &self.plan.op {
                self.op = walk(row, path).map(Raw::Json);
            }
        }
        self.rows.add(self.body, &self.values, self.op, row);
    }

    /// The slot of a key; keys usually come in the order of the columns, so the guess mostly holds.
    fn slot(&self, key: &str, guess: usize) -> (Slot, usize) {
        if let Some((name, slot)) = self.keys.get(guess)
            && name == key
        {
            return (*slot, guess + 1);
        }
        match self.keys.iter().position(|(name, _)| name == key) {
            Some(at) => (self.keys[at].1, at + 1),
            None => (Slot::Unwanted, guess),
        }
    }
}

/// The value at `path` below the JSON text `document`.
fn walk<'b>(document: &'b str, path: &[PathStep]) -> Option<&'b str> {
    let mut at = document.trim();
    for step in path {
        at = match step {
            PathStep::Key(key) => {
                let mut parser = serde_json::Deserializer::from_str(at);
                parser.deserialize_map(FindKey { key }).ok()??
            }
            PathStep::Index(index) => {
                let items: Vec<&'b RawValue> = serde_json::from_str(at).ok()?;
                items.get(*index)?.get()
            }
        };
    }
    Some(at)
}

struct FindKey<'k> {
    key: &'k str,
}

impl<'b> Visitor<'b> for FindKey<'_> {
    type Value = Option<&'b str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'b>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(key) = map.next_key::<std::borrow::Cow<'b, str>>()? {
            let value = map.next_value::<&'b RawValue>()?;
            if found.is_none() && key == self.key {
                found = Some(value.get());
            }
        }
        Ok(found)
    }
}

/// Collects the wanted values of one object into the reader.
struct RowVisitor<'x, 'b, 'r, 'p> {
    reader: &'x mut Reader<'b, 'r, 'p>,
}

impl<'b, 'r, 'p: 'r> Visitor<'b> for RowVisitor<'_, 'b, 'r, 'p> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'b>>(self, mut map: A) -> Result<(), A::Error> {
        let mut guess = 0;
        while let Some(slot) = map.next_key_seed(KeySeed { reader: self.reader, guess })? {
            guess = slot.1;
            match slot.0 {
                Slot::Target(at) => {
                    let value = map.next_value::<&'b RawValue>()?;
                    self.reader.values[at] = Some(Raw::Json(value.get()));
                }
                Slot::Op => self.reader.op = Some(Raw::Json(map.next_value::<&'b RawValue>()?.get())),
                Slot::Unwanted => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

struct KeySeed<'x, 'b, 'r, 'p> {
    reader: &'x Reader<'b, 'r, 'p>,
    guess: usize,
}

impl<'b, 'r, 'p: 'r> DeserializeSeed<'b> for KeySeed<'_, 'b, 'r, 'p> {
    type Value = (Slot, usize);

    fn deserialize<D: serde::Deserializer<'b>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'b, 'r, 'p: 'r> Visitor<'b> for KeySeed<'_, 'b, 'r, 'p> {
    type Value = (Slot, usize);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.reader.slot(key, self.guess))
    }
}

/// Adds every object of an array to the reader.
struct ArrayVisitor<'x, 'b, 'r, 'p> {
    reader: &'x mut Reader<'b, 'r, 'p>,
}

impl<'b, 'r, 'p: 'r> Visitor<'b> for ArrayVisitor<'_, 'b, 'r, 'p> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of objects")
    }

    fn visit_seq<A: SeqAccess<'b>>(self, mut items: A) -> Result<(), A::Error> {
        while let Some(item) = items.next_element::<&'b RawValue>()? {
            self.reader.row(item.get()).map_err(serde::de::Error::custom)?;
        }
        Ok(())
    }
}
