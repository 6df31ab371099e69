//! What a pipeline file may hold: tables and keys as values. Reading, error messages, defaults and the
//! reference are all driven by these, so that none of them can say something else.

use toml::de::DeValue;

use super::kind::Kind;
use super::node::Node;
use super::source::Source;

/// One key: its name, what it takes, what happens without it, and what it is for.
#[derive(Debug)]
pub(super) struct Key<K> {
    /// The name in the file.
    pub(super) name: &'static str,
    /// What it takes.
    pub(super) kind: K,
    /// What happens without it.
    pub(super) presence: Presence,
    /// What it is for, in sentences.
    pub(super) doc: &'static str,
}

/// What happens when a key is not there. All values are TOML text.
#[derive(Debug, Clone, Copy)]
pub(super) enum Presence {
    /// It must be there; the example is shown.
    Required(&'static str),
    /// This value is used.
    Default(&'static str),
    /// There is no value, but most files have one.
    Usual {
        /// A value that could stand there.
        example: &'static str,
        /// What happens without one.
        without: &'static str,
    },
    /// There is no value.
    Optional {
        /// A value that could stand there.
        example: &'static str,
        /// What happens without one.
        without: &'static str,
    },
}

impl Presence {
    /// A value that is valid for the key.
    pub(super) fn sample(self) -> &'static str {
        match self {
            Self::Required(text) | Self::Default(text) => text,
            Self::Usual { example, .. } | Self::Optional { example, .. } => example,
        }
    }
}

/// A table of keys and tables.
pub(super) struct Section {
    /// Names from the root; empty for the root itself.
    pub(super) path: &'static [&'static str],
    /// `[[name]]` instead of `[name]`.
    pub(super) repeated: bool,
    /// Whether it is left out of most files: the reference then has it commented out.
    pub(super) rare: bool,
    /// What it is for, in sentences.
    pub(super) doc: &'static str,
    /// Keys in the order of the reference.
    pub(super) keys: &'static [&'static (dyn AnyKey + Sync)],
    /// Tables within.
    pub(super) tables: &'static [&'static Section],
}

impl Section {
    /// The last name; empty for the root.
    pub(super) fn name(&self) -> &'static str {
        self.path.last().copied().unwrap_or_default()
    }

    /// As it stands in a file: `[source.kafka]`, `[[transform]]`.
    pub(super) fn header(&self) -> String {
        let path = self.path.join(".");
        if self.repeated { format!("[[{path}]]") } else { format!("[{path}]") }
    }

    /// `in [batch]`, or `at the top of the file`.
    pub(super) fn inside(&self) -> String {
        if self.path.is_empty() {
            "at the top of the file".to_owned()
        } else {
            format!("in {}", self.header())
        }
    }

    /// All names that are valid in it.
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.keys.iter().map(|key| key.name()).chain(self.tables.iter().map(|table| table.name()))
    }

    /// The tables below it and itself, in order.
    pub(super) fn all(&'static self) -> Vec<&'static Section> {
        let below = self.tables.iter().flat_map(|table| table.all());
        std::iter::once(self).chain(below).collect()
    }
}

/// A key whatever it takes.
pub(super) trait AnyKey {
    /// The name in the file.
    fn name(&self) -> &'static str;
    /// What happens without it.
    fn presence(&self) -> Presence;
    /// What it is for.
    fn doc(&self) -> &'static str;
    /// What it takes, as in error messages.
    fn expected(&self) -> String;
    /// Reads a TOML value as if it stood in `source`; false if it is not valid.
    #[cfg(test)]
    fn accepts(&self, source: &Source, value: &str) -> bool;
}

impl<K: Kind> AnyKey for Key<K> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn presence(&self) -> Presence {
        self.presence
    }

    fn doc(&self) -> &'static str {
        self.doc
    }

    fn expected(&self) -> String {
        self.kind.expected()
    }

    #[cfg(test)]
    fn accepts(&self, source: &Source, value: &str) -> bool {
        self.read_text(source, value).is_some()
    }
}

impl<K: Kind> Key<K> {
    /// Reads a TOML value, like the default.
    pub(super) fn read_text(&self, source: &Source, value: &str) -> Option<K::Value> {
        let parsed = DeValue::parse(value).ok()?;
        let node = Node { source, name: self.name, value: parsed.get_ref(), span: 0..0 };
        self.kind.read(&node)
    }
}
