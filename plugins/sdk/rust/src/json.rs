//! JSON without allocations, where a whole typed struct would be too much.

use crate::reject::{CODE_PARSE, Reject};
use serde::de::{DeserializeSeed, Deserializer as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Deserializer;
use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;

mod object;

pub use object::Object;
pub use serde_json::value::RawValue;

/// Reads a value as JSON. Borrow what you can (`&str`, [`Text`], `&RawValue`): an owned string costs an allocation.
///
/// The whole value is checked to be UTF-8 at once, which is cheaper than text by text as [`serde_json::from_slice`] does it.
///
/// # Errors
///
/// `parse` if the value is not the JSON that `T` wants.
#[inline]
pub fn read<'a, T: Deserialize<'a>>(value: &'a [u8]) -> Result<T, Reject> {
    Ok(serde_json::from_str(text(value)?)?)
}

#[inline]
pub(crate) fn text(value: &[u8]) -> Result<&str, Reject> {
    std::str::from_utf8(value).map_err(|error| Reject::new(CODE_PARSE, error))
}

/// The text of the field `name` of a JSON object, without reading the others into memory. `None` if the object has no such
/// field, or if it is null. Numbers and booleans are given as they are written. Of a field that occurs twice, the first counts.
///
/// # Errors
///
/// `parse` if the value is not a JSON object in UTF-8, or if the field is an object or a list.
pub fn field<'a>(value: &'a [u8], name: &str) -> Result<Option<Cow<'a, str>>, Reject> {
    let mut json = Deserializer::from_str(text(value)?);
    let found = json.deserialize_map(FieldOf { name })?;
    json.end()?;
    match found {
        None => Ok(None),
        Some(raw) => scalar(raw.get(), name),
    }
}

fn scalar<'a>(raw: &'a str, name: &str) -> Result<Option<Cow<'a, str>>, Reject> {
    match raw.as_bytes().first() {
        Some(b'"') => Ok(Some(serde_json::from_str::<Text<'a>>(raw)?.0)),
        Some(b'{' | b'[') => {
            Err(Reject::new(CODE_PARSE, format_args!("the field `{name}` is neither text nor a number")))
        }
        Some(b'n') | None => Ok(None),
        Some(_) => Ok(Some(Cow::Borrowed(raw))),
    }
}

/// A text that is borrowed from the record unless something in it is escaped. In a struct mark the field `#[serde(borrow)]`.
///
/// `Cow<str>` does the same as a field of its own, but is always owned inside of an `Option`, a list or a map.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Text<'a>(#[serde(borrow)] pub Cow<'a, str>);

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

struct FieldOf<'n> {
    name: &'n str,
}

impl<'de> Visitor<'de> for FieldOf<'_> {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(is_it) = map.next_key_seed(IsName { name: self.name })? {
            if is_it && found.is_none() {
                found = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// Compares a key instead of taking it out.
struct IsName<'n> {
    name: &'n str,
}

impl<'de> DeserializeSeed<'de> for IsName<'_> {
    type Value = bool;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for IsName<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<bool, E> {
        Ok(key == self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(value: &str, expected: Result<Option<&str>, &str>) {
        let found = field(value.as_bytes(), "kind");
        match (&found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found.as_deref(), expected, "{value}"),
            (Err(reject), Err(expected)) => {
                assert!(reject.message().contains(expected), "{value}: {reject}");
            }
            _ => panic!("{value}: {found:?}"),
        }
    }

    #[test]
    fn finds_a_field_wherever_it_stands() {
        check(r#"{"kind":"paid"}"#, Ok(Some("paid")));
        check(r#"{"a":{"kind":"inner"},"b":[1,"kind"],"kind":"outer"}"#, Ok(Some("outer")));
        check(r#"{"k\u0069nd":"p\u0061id"}"#, Ok(Some("paid")));
        check(r#"{"kind":17}"#, Ok(Some("17")));
        check(r#"{"kind":true,"kind":2}"#, Ok(Some("true")));
        check(r#"{"kind":null}"#, Ok(None));
        check(r#"{"other":1}"#, Ok(None));
    }

    #[test]
    fn refuses_what_is_no_object_or_no_scalar() {
        check(r#"{"kind":{}}"#, Err("neither text nor a number"));
        check(r#"{"kind":[1]}"#, Err("neither text nor a number"));
        check(r#"["kind"]"#, Err("expected a JSON object"));
        check(r#"{"kind":"a"} x"#, Err("trailing characters"));
        check(r#"{"kind":"a""#, Err("EOF"));
    }

    #[test]
    fn a_plain_text_is_borrowed() {
        let found = field(br#"{"kind":"paid"}"#, "kind").unwrap();
        assert!(matches!(found, Some(Cow::Borrowed("paid"))));
    }
}
