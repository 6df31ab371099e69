//! One value of a file with its place: what the kinds read from, and complain about.

use std::ops::Range;

use toml::de::{DeInteger, DeValue};

use super::problem::Problem;
use super::source::Source;

/// Longer values are not repeated in a message.
const QUOTED_CHARS_MAX: usize = 60;

/// A value, the key it stands behind and its place.
#[derive(Debug, Clone)]
pub(super) struct Node<'a> {
    /// The file.
    pub(super) source: &'a Source,
    /// The key.
    pub(super) name: &'a str,
    /// The value.
    pub(super) value: &'a DeValue<'a>,
    /// The value's bytes in the file.
    pub(super) span: Range<usize>,
}

/// A text and how a message may call it.
#[derive(Debug)]
pub(super) struct Words {
    /// The text.
    pub(super) text: String,
    /// The text in quotes, or where it came from, which may be a secret.
    pub(super) shown: String,
}

impl<'a> Node<'a> {
    /// Notes a problem; gives none, so that it can end a function.
    pub(super) fn wrong<T>(
        &self,
        change: impl FnOnce(Problem) -> Problem,
        what: impl Into<String>,
    ) -> Option<T> {
        let problem = Problem::at(self.source, self.span.clone(), what);
        self.source.note(&self.span, change(problem));
        None
    }

    /// Notes that the value has the wrong type.
    pub(super) fn wrong_type<T>(&self, expected: &str) -> Option<T> {
        let what = format!("`{}` is {}", self.name, type_name(self.value));
        self.wrong(|problem| problem.expected(expected), what)
    }

    /// A string, or what `{ env = "NAME" }` or `{ file = "path" }` stands for.
    pub(super) fn words(&self, expected: &str) -> Option<Words> {
        match self.value {
            DeValue::String(text) => {
                let long = text.chars().count() > QUOTED_CHARS_MAX;
                let shown = if long { "a long text".to_owned() } else { format!("{text:?}") };
                Some(Words { text: text.to_string(), shown })
            }
            DeValue::Table(_) => self.reference(expected),
            DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_)
            | DeValue::Array(_) => self.wrong_type(expected),
        }
    }

    fn reference(&self, expected: &str) -> Option<Words> {
        let Some((kind, named)) = self.named_elsewhere() else {
            let what = format!(
                "`{}` is a table that is neither {{ env = \"NAME\" }} nor {{ file = \"path\" }}",
                self.name
            );
            return self.wrong(|problem| problem.expected(expected).hushed(), what);
        };
        if kind == "env" {
            let shown = format!("the value of the environment variable {named}");
            return match std::env::var(named) {
                Ok(text) => Some(Words { text, shown }),
                Err(std::env::VarError::NotPresent) => {
                    let what =
                        format!("`{}` names the environment variable {named}, which is not set", self.name);
                    self.wrong(|problem| problem.hint(format!("set {named}, or put the value here")), what)
                }
                Err(std::env::VarError::NotUnicode(_)) => {
                    let what =
                        format!("`{}` names the environment variable {named}, which is not UTF-8", self.name);
                    self.wrong(|problem| problem, what)
                }
            };
        }
        match self.source.value_of_file(named) {
            Ok(text) => Some(Words { text, shown: format!("the content of the file {named:?}") }),
            Err(why) => {
                let what = format!("`{}` names the file {named:?}, which cannot be read: {why}", self.name);
                let path = self.source.beside(named);
                self.wrong(|problem| problem.hint(format!("it was looked for at {}", path.display())), what)
            }
        }
    }

    /// `("env", NAME)` or `("file", path)` if the value is such a table.
    pub(super) fn named_elsewhere(&self) -> Option<(&'a str, &'a str)> {
        let table = self.value.as_table()?;
        let (key, value) = table.iter().next()?;
        let kind = key.get_ref().as_ref();
        (table.len() == 1 && (kind == "env" || kind == "file")).then_some((kind, value.get_ref().as_str()?))
    }

    /// The elements of a list; a single value counts as a list of one.
    pub(super) fn elements(&self) -> Vec<Node<'a>> {
        let Some(array) = self.value.as_array() else { return vec![self.clone()] };
        let element = |value: &'a toml::Spanned<DeValue<'a>>| Node {
            source: self.source,
            name: self.name,
            value: value.get_ref(),
            span: value.span(),
        };
        array.iter().map(element).collect()
    }
}

/// The type of a value, with its article.
pub(super) fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// A TOML integer as a number, unless it needs more than 128 bits.
pub(super) fn integer(value: &DeInteger<'_>) -> Option<i128> {
    i128::from_str_radix(value.as_str(), value.radix()).ok()
}
