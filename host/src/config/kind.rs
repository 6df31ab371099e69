//! What a key may take: each kind reads a value, says what it expects, and complains with both.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use super::json;
use super::nearest::nearest;
use super::node::{Node, integer};
use super::units;
use toml::de::DeValue;

mod hidden;
mod listen;
mod rejects;
mod start;

pub(crate) use hidden::warn_if_open;
pub(super) use hidden::{Hidden, HiddenList};
pub(super) use listen::{Address, Listen};
pub(super) use rejects::Rejects;
pub(super) use start::StartAt;

/// What a key takes.
pub(super) trait Kind {
    /// What a valid value becomes.
    type Value;

    /// What it takes, as a noun with an example: it follows "expected".
    fn expected(&self) -> String;

    /// The value, or none after noting what is wrong with it.
    fn read(&self, node: &Node<'_>) -> Option<Self::Value>;
}

/// `true` or `false`.
#[derive(Debug)]
pub(super) struct Flag;

impl Kind for Flag {
    type Value = bool;

    fn expected(&self) -> String {
        "true or false".to_owned()
    }

    fn read(&self, node: &Node<'_>) -> Option<bool> {
        match node.value {
            DeValue::Boolean(value) => Some(*value),
            _ => node.wrong_type(&self.expected()),
        }
    }
}

/// A whole number between limits, both included.
#[derive(Debug)]
pub(super) struct Count {
    pub(super) min: u64,
    pub(super) max: u64,
}

impl Kind for Count {
    type Value = u64;

    fn expected(&self) -> String {
        format!("a whole number from {} to {}", units::show_count(self.min), units::show_count(self.max))
    }

    fn read(&self, node: &Node<'_>) -> Option<u64> {
        let DeValue::Integer(written) = node.value else {
            let number = node.value.as_str().filter(|text| text.parse::<u64>().is_ok());
            let what = format!("`{}` is {}", node.name, super::node::type_name(node.value));
            return node.wrong(|problem| problem.expected(self.expected()).meant(number), what);
        };
        let number = integer(written).and_then(|number| u64::try_from(number).ok());
        let fits = number.filter(|number| (self.min..=self.max).contains(number));
        fits.or_else(|| {
            node.wrong(
                |problem| problem.expected(self.expected()),
                format!("`{}` is {}", node.name, short(written.as_str())),
            )
        })
    }
}

/// A size with its unit: at least `min`, less than `below`.
#[derive(Debug)]
pub(super) struct Bytes {
    pub(super) min: u64,
    pub(super) below: u64,
}

impl Kind for Bytes {
    type Value = u64;

    fn expected(&self) -> String {
        let (min, below) = (units::show_bytes(self.min), units::show_bytes(self.below));
        format!("a size such as \"64MiB\" ({}), at least {min} and less than {below}", units::BYTE_UNITS_TEXT)
    }

    fn read(&self, node: &Node<'_>) -> Option<u64> {
        read_bytes(node, &self.expected(), self.min..self.below)
    }
}

fn read_bytes(node: &Node<'_>, expected: &str, fits: Range<u64>) -> Option<u64> {
    let (bytes, what) = with_unit(node, expected, units::parse_bytes)?;
    if fits.contains(&bytes) { Some(bytes) } else { node.wrong(|problem| problem.expected(expected), what) }
}

/// The same, or `false` for no limit, which becomes the largest number.
#[derive(Debug)]
pub(super) struct BytesOrOff {
    pub(super) min: u64,
    pub(super) below: u64,
}

impl Kind for BytesOrOff {
    type Value = u64;

    fn expected(&self) -> String {
        let bytes = Bytes { min: self.min, below: self.below };
        format!("{}, or false for none", bytes.expected())
    }

    fn read(&self, node: &Node<'_>) -> Option<u64> {
        let DeValue::Boolean(false) = node.value else {
            return read_bytes(node, &self.expected(), self.min..self.below);
        };
        Some(u64::MAX)
    }
}

/// A duration with its unit, limits included.
#[derive(Debug)]
pub(super) struct Time {
    pub(super) min: Duration,
    pub(super) max: Duration,
}

impl Kind for Time {
    type Value = Duration;

    fn expected(&self) -> String {
        let (min, max) = (units::show_time(self.min), units::show_time(self.max));
        format!("a duration such as \"500ms\" or \"1s\" ({}), from {min} to {max}", units::TIME_UNITS_TEXT)
    }

    fn read(&self, node: &Node<'_>) -> Option<Duration> {
        let time = with_unit(node, &self.expected(), units::parse_time)?;
        let fits = (self.min..=self.max).contains(&time.0);
        if fits { Some(time.0) } else { node.wrong(|problem| problem.expected(self.expected()), time.1) }
    }
}

/// Parses a text that has a unit; also gives what to say if it is out of range.
fn with_unit<T>(
    node: &Node<'_>,
    expected: &str,
    parse: fn(&str) -> Result<T, String>,
) -> Option<(T, String)> {
    if let DeValue::Integer(_) | DeValue::Float(_) = node.value {
        let what = format!("`{}` is a number without a unit", node.name);
        return node.wrong(|problem| problem.expected(expected), what);
    }
    let words = node.words(expected)?;
    let what = format!("`{}` is {}", node.name, words.shown);
    match parse(words.text.trim()) {
        Ok(value) => Some((value, what)),
        Err(why) => node.wrong(|problem| problem.expected(expected), format!("{what}: {why}")),
    }
}

/// A text with a shape of its own; `parse` gives it in its normal form, or says what is wrong.
#[derive(Debug)]
pub(super) struct Text {
    pub(super) expected: &'static str,
    pub(super) parse: fn(&str) -> Result<String, Refusal>,
}

/// Why a text is not taken.
#[derive(Debug)]
pub(super) enum Refusal {
    /// What is wrong with it.
    Because(String),
    /// The same, and the text holds a credential: it must not be repeated.
    Hushed(String),
}

impl Refusal {
    pub(super) fn because<T>(why: impl Into<String>) -> Result<T, Self> {
        Err(Self::Because(why.into()))
    }
}

impl Kind for Text {
    type Value = String;

    fn expected(&self) -> String {
        self.expected.to_owned()
    }

    fn read(&self, node: &Node<'_>) -> Option<String> {
        let words = node.words(self.expected)?;
        match (self.parse)(&words.text) {
            Ok(text) => Some(text),
            Err(Refusal::Because(why)) => {
                let what = format!("`{}` is {}: {why}", node.name, words.shown);
                node.wrong(|problem| problem.expected(self.expected), what)
            }
            Err(Refusal::Hushed(why)) => node
                .wrong(|problem| problem.expected(self.expected).hushed(), format!("`{}`: {why}", node.name)),
        }
    }
}

/// Any number of texts without repetition; a single one needs no brackets.
#[derive(Debug)]
pub(super) struct Texts {
    pub(super) expected: &'static str,
    pub(super) each: Text,
    /// Whether the list may be empty.
    pub(super) may_be_empty: bool,
}

impl Kind for Texts {
    type Value = Vec<String>;

    fn expected(&self) -> String {
        self.expected.to_owned()
    }

    fn read(&self, node: &Node<'_>) -> Option<Vec<String>> {
        if !matches!(node.value, DeValue::String(_) | DeValue::Array(_) | DeValue::Table(_)) {
            return node.wrong_type(self.expected);
        }
        let elements = node.elements();
        if elements.is_empty() && !self.may_be_empty {
            return node
                .wrong(|problem| problem.expected(self.expected), format!("`{}` is empty", node.name));
        }
        let noted = node.source.noted();
        let mut texts: Vec<String> = Vec::with_capacity(elements.len());
        for element in elements {
            let Some(text) = self.each.read(&element) else { continue };
            if texts.contains(&text) {
                element.wrong::<()>(|problem| problem, format!("`{}` names {text:?} twice", node.name));
            }
            texts.push(text);
        }
        (node.source.noted() == noted).then_some(texts)
    }
}

/// One of a few words.
#[derive(Debug)]
pub(super) struct OneOf<T: 'static> {
    pub(super) words: &'static [(&'static str, T)],
    /// Words that people will try, and why they are not taken.
    pub(super) refused: &'static [(&'static str, &'static str)],
}

impl<T: Clone> Kind for OneOf<T> {
    type Value = T;

    fn expected(&self) -> String {
        let quoted: Vec<String> = self.words.iter().map(|(word, _)| format!("{word:?}")).collect();
        match quoted.as_slice() {
            [firsts @ .., last] if !firsts.is_empty() => format!("{} or {last}", firsts.join(", ")),
            few => few.concat(),
        }
    }

    fn read(&self, node: &Node<'_>) -> Option<T> {
        let words = node.words(&self.expected())?;
        if let Some((_, value)) = self.words.iter().find(|(word, _)| *word == words.text) {
            return Some(value.clone());
        }
        let what = format!("`{}` is {}", node.name, words.shown);
        if let Some((_, why)) = self.refused.iter().find(|(word, _)| *word == words.text) {
            return node.wrong(|problem| problem.expected(self.expected()), format!("{what}: {why}"));
        }
        let near = nearest(&words.text, self.words.iter().map(|(word, _)| *word));
        let meant = near.map(|word| format!("{word:?}"));
        node.wrong(|problem| problem.expected(self.expected()).meant(meant), what)
    }
}

/// A path, relative to the file; made absolute.
#[derive(Debug)]
pub(super) struct FilePath {
    pub(super) expected: &'static str,
    /// Whether it must name a file that is there now.
    pub(super) must_exist: bool,
}

impl Kind for FilePath {
    type Value = PathBuf;

    fn expected(&self) -> String {
        self.expected.to_owned()
    }

    fn read(&self, node: &Node<'_>) -> Option<PathBuf> {
        let words = node.words(self.expected)?;
        if words.text.is_empty() || words.text.contains('\0') {
            let what = format!("`{}` is {}: not a path", node.name, words.shown);
            return node.wrong(|problem| problem.expected(self.expected), what);
        }
        let path = node.source.resolve(&words.text);
        if self.must_exist && !path.is_file() {
            let what = format!("`{}` is {}: no such file", node.name, words.shown);
            let hint = format!("it was looked for at {}", node.source.beside(&words.text).display());
            return node.wrong(|problem| problem.expected(self.expected).hint(hint), what);
        }
        Some(path)
    }
}

/// Settings that are passed on by name, except those that would break a promise.
#[derive(Debug)]
pub(super) struct Properties {
    pub(super) expected: &'static str,
    /// Says why a setting is not taken.
    pub(super) refuse: fn(name: &str, value: &str) -> Option<&'static str>,
    /// The normal form of a name, or what is wrong with it.
    pub(super) name: fn(&str) -> Result<String, String>,
    /// What is wrong with a value.
    pub(super) value: fn(&str) -> Result<(), String>,
}

impl Kind for Properties {
    type Value = BTreeMap<String, String>;

    fn expected(&self) -> String {
        self.expected.to_owned()
    }

    fn read(&self, node: &Node<'_>) -> Option<BTreeMap<String, String>> {
        if node.value.as_table().is_none() {
            return node.wrong_type(self.expected);
        }
        let noted = node.source.noted();
        let mut properties = BTreeMap::new();
        self.gather("", node, &mut properties);
        (node.source.noted() == noted).then_some(properties)
    }
}

impl Properties {
    /// `session.timeout.ms = 1` without quotes is a table in a table to TOML: it is put together again.
    fn gather(&self, prefix: &str, node: &Node<'_>, into: &mut BTreeMap<String, String>) {
        for (key, value) in node.value.as_table().into_iter().flat_map(|table| table.iter()) {
            let written = format!("{prefix}{}", key.get_ref());
            let inner =
                Node { source: node.source, name: &written, value: value.get_ref(), span: value.span() };
            if inner.value.is_table() && inner.named_elsewhere().is_none() {
                self.gather(&format!("{written}."), &inner, into);
                continue;
            }
            let at_key = Node { span: key.span(), ..inner.clone() };
            let name = match (self.name)(&written) {
                Ok(name) => name,
                Err(why) => {
                    at_key.wrong::<()>(
                        |problem| problem.expected(self.expected),
                        format!("the property {written:?}: {why}"),
                    );
                    continue;
                }
            };
            let Some(text) = property_text(&inner) else { continue };
            if let Some(reason) = (self.refuse)(&name, &text) {
                at_key.wrong::<()>(
                    |problem| problem.hushed(),
                    format!("the property `{name}` is refused: {reason}"),
                );
            } else if let Err(why) = (self.value)(&text) {
                inner.wrong::<()>(
                    |problem| problem.hushed(),
                    format!("the value of the property `{name}` {why}"),
                );
            } else if into.insert(name.clone(), text).is_some() {
                at_key.wrong::<()>(|problem| problem, format!("the property `{name}` is set twice"));
            }
        }
    }
}

fn property_text(node: &Node<'_>) -> Option<String> {
    match node.value {
        DeValue::Integer(number) => integer(number).map(|number| number.to_string()).or_else(|| {
            node.wrong(|problem| problem, format!("`{}` is a number that does not fit 128 bits", node.name))
        }),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Boolean(value) => Some(value.to_string()),
        _ => node.words("a string, a number or a boolean").map(|words| words.text),
    }
}

/// Any TOML table; becomes JSON text.
#[derive(Debug)]
pub(super) struct Json;

impl Kind for Json {
    type Value = String;

    fn expected(&self) -> String {
        "any TOML value, usually a table such as { currency = \"EUR\" }".to_owned()
    }

    fn read(&self, node: &Node<'_>) -> Option<String> {
        json::from_toml(node).map(|value| value.to_string())
    }
}

/// A number as written, cut if somebody wrote very many digits.
fn short(written: &str) -> String {
    const DIGITS_SHOWN_MAX: usize = 24;
    if written.len() > DIGITS_SHOWN_MAX {
        format!("a number of {} digits", written.len())
    } else {
        written.to_owned()
    }
}
