//! One table of a file, read by its section: unknown and missing keys are noted here.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::kind::Kind;
use super::nearest::{bare, nearest};
use super::node::{Node, type_name};
use super::problem::Problem;
use super::schema::{Key, Presence, Section};
use super::sections::{ELSEWHERE, ELSEWHERE_IN, ROOT};
use super::source::Source;

/// A table that stands in a file, or one that is left out and has only defaults.
#[derive(Clone)]
pub(super) struct Table<'a> {
    /// The file.
    pub(super) source: &'a Source,
    /// What it may hold.
    pub(super) section: &'static Section,
    /// Its header, or where it would have to be.
    pub(super) span: Range<usize>,
    entries: Option<&'a DeTable<'a>>,
}

impl<'a> Table<'a> {
    /// A table of the file; notes its unknown keys.
    pub(super) fn open(
        source: &'a Source,
        section: &'static Section,
        span: Range<usize>,
        entries: &'a DeTable<'a>,
    ) -> Self {
        let table = Self { source, section, span, entries: Some(entries) };
        for (key, _) in entries.iter().filter(|(key, _)| !section.names().any(|name| name == key.get_ref())) {
            table.note_unknown(key.get_ref(), &key.span());
        }
        table
    }

    /// A table that is not in the file: all its keys have their defaults.
    pub(super) fn absent(source: &'a Source, section: &'static Section) -> Self {
        Self { source, section, span: 0..0, entries: None }
    }

    /// A key's value: read, or its default, or none. What is wrong with it is noted.
    pub(super) fn get<K: Kind>(&self, key: &Key<K>) -> Option<K::Value> {
        debug_assert!(
            self.section.names().any(|name| name == key.name),
            "{} is not in its section",
            key.name
        );
        if let Some(node) = self.node(key.name) {
            return key.kind.read(&node);
        }
        match key.presence {
            Presence::Default(text) => key.read_text(self.source, text),
            Presence::Usual { .. } | Presence::Optional { .. } => None,
            // The unknown key says it already.
            Presence::Required(_) if self.has_misspelt(key.name) => None,
            Presence::Required(example) => {
                let what = format!("missing key `{}` {}", key.name, self.section.inside());
                let expected = format!("a line such as {} = {example}", key.name);
                self.note(Problem::at(self.source, self.span.clone(), what).expected(expected));
                None
            }
        }
    }

    /// Whether the key is in the file.
    pub(super) fn has(&self, name: &str) -> bool {
        self.entries.is_some_and(|entries| entries.contains_key(name))
    }

    /// Whether the key is in the file and its value is a table.
    pub(super) fn holds_table(&self, name: &str) -> bool {
        self.node(name).is_some_and(|node| node.value.is_table())
    }

    /// Whether an unknown key was probably meant to be this one.
    pub(super) fn has_misspelt(&self, name: &str) -> bool {
        let mut unknown =
            self.written().filter(|(written, _)| !self.section.names().any(|known| known == *written));
        unknown.any(|(written, _)| nearest(written, self.section.names()) == Some(name))
    }

    /// Where a key's value is; the table's header if it is not there.
    pub(super) fn span_of(&self, name: &str) -> Range<usize> {
        self.node(name).map_or_else(|| self.span.clone(), |node| node.span)
    }

    /// Notes a problem of a key's value, or of the table.
    pub(super) fn note_at(
        &self,
        name: &str,
        what: impl Into<String>,
        change: impl FnOnce(Problem) -> Problem,
    ) {
        let span = self.span_of(name);
        self.source.note(&span, change(Problem::at(self.source, span.clone(), what)));
    }

    /// The table within; none if it is not there or not a table, which is noted.
    pub(super) fn table(&self, section: &'static Section) -> Option<Table<'a>> {
        let node = self.node(section.name())?;
        match node.value {
            DeValue::Table(entries) => Some(Table::open(self.source, section, node.span, entries)),
            DeValue::Array(_) if is_list_of_tables(node.value) => {
                let what = format!("{} stands more than once or in double brackets", section.header());
                node.wrong(|problem| problem.expected(format!("it once, as {}", section.header())), what)
            }
            _ => node.wrong_type(&format!("a table {}", section.header())),
        }
    }

    /// All tables of a repeated section.
    pub(super) fn tables(&self, section: &'static Section) -> Vec<Table<'a>> {
        let Some(node) = self.node(section.name()) else { return Vec::new() };
        if !node.value.is_array() {
            let what = format!("`{}` is {}", section.name(), type_name(node.value));
            let expected = format!("double brackets: {}", section.header());
            node.wrong::<()>(|problem| problem.expected(expected), what);
            return Vec::new();
        }
        let open = |element: Node<'a>| match element.value {
            DeValue::Table(entries) => Some(Table::open(self.source, section, element.span, entries)),
            _ => element.wrong_type(&format!("a table {}", section.header())),
        };
        node.elements().into_iter().filter_map(open).collect()
    }

    /// The names in the table as written, each with its place.
    pub(super) fn written(&self) -> impl Iterator<Item = (&'a str, Range<usize>)> {
        let entries = self.entries.into_iter().flat_map(|entries| entries.iter());
        entries.map(|(key, _)| (key.get_ref().as_ref(), key.span()))
    }

    fn node(&self, name: &str) -> Option<Node<'a>> {
        let (key, value) = self.entries?.get_key_value(name)?;
        Some(Node { source: self.source, name: key.get_ref(), value: value.get_ref(), span: value.span() })
    }

    fn note(&self, problem: Problem) {
        self.source.note(&self.span, problem);
    }

    /// `auto.offset.reset` without quotes is a table in a table to TOML: its whole name.
    fn dotted(&self, written: &str) -> String {
        let mut name = written.to_owned();
        let mut value = self.node(written).map(|node| node.value);
        while let Some((key, inner)) = value.and_then(DeValue::as_table).and_then(|table| table.iter().next())
        {
            name.push('.');
            name.push_str(key.get_ref());
            value = Some(inner.get_ref());
        }
        name
    }

    fn note_unknown(&self, written: &str, span: &Range<usize>) {
        if self.section.path == ["source"] || self.section.path == ["sink"] {
            // `choice` reads these two and says more.
            return;
        }
        let near = nearest(written, self.section.names());
        let dotted = self.dotted(written);
        // The whole name says more than its first part: `plugin.name` is none of ours, `plugin` is.
        let names = [dotted.as_str(), written];
        let hinted = names.into_iter().find_map(|name| Some((name, home_of(name, self.section)?)));
        let (shown, hint) = match (near, hinted) {
            (Some(_), _) | (None, None) => (written, None),
            (None, Some((name, hint))) => (name, Some(hint)),
        };
        let quoted: Vec<String> = self.section.names().map(|name| format!("`{name}`")).collect();
        let what = format!("unknown key {} {}", quote(shown), self.section.inside());
        let problem = Problem::at(self.source, span.clone(), what).of_unknown_key();
        let problem = problem.expected(format!("one of {}", quoted.join(", "))).maybe_hint(hint).meant(near);
        self.source.note(span, problem);
    }
}

/// Names can be any text, so only a part is repeated, without line feeds.
pub(super) fn quote(name: &str) -> String {
    const NAME_CHARS_MAX: usize = 40;
    let shown: String = name.chars().take(NAME_CHARS_MAX).flat_map(char::escape_debug).collect();
    let more = if name.chars().count() > NAME_CHARS_MAX { "…" } else { "" };
    format!("`{shown}{more}`")
}

fn is_list_of_tables(value: &DeValue<'_>) -> bool {
    value
        .as_array()
        .is_some_and(|array| !array.is_empty() && array.iter().all(|element| element.get_ref().is_table()))
}

/// Where a name that is unknown here is at home, or what other tools' name it is.
pub(super) fn home_of(written: &str, here: &'static Section) -> Option<String> {
    let bare_written = bare(written);
    let of_here = ELSEWHERE_IN.iter().find(|(table, name, _)| here.name() == *table && *name == bare_written);
    if let Some((_, _, ours)) = of_here {
        return Some(format!("here it is {ours}"));
    }
    let homes: Vec<&Section> = ROOT
        .all()
        .into_iter()
        .filter(|home| home.path != here.path && !home.is_other_kind_than(here))
        .filter(|home| home.names().any(|name| bare(name) == bare_written))
        .collect();
    // What is missing between this table and the key is the likelier mistake.
    let below: Vec<&Section> = homes
        .iter()
        .copied()
        .filter(|home| !here.path.is_empty() && home.path.starts_with(here.path))
        .collect();
    let homes = if below.is_empty() { homes } else { below };
    if let Some(first) = homes.first() {
        let name = first.names().find(|name| bare(name) == bare_written).unwrap_or_default();
        let places: Vec<String> = homes.iter().map(|home| home.place()).collect();
        return Some(format!("`{name}` belongs {}", one_of(&places)));
    }
    let prefixes = ["sink", "starrocks"];
    let trimmed =
        prefixes.iter().find_map(|prefix| bare_written.strip_prefix(prefix)).unwrap_or(&bare_written);
    let trimmed = trimmed.strip_suffix("ms").unwrap_or(trimmed);
    let known = ELSEWHERE.iter().find(|(name, _)| *name == trimmed || *name == bare_written);
    known.map(|(_, ours)| format!("here it is {ours}"))
}

/// `a, b or c`.
fn one_of(words: &[String]) -> String {
    match words {
        [firsts @ .., last] if !firsts.is_empty() => format!("{} or {last}", firsts.join(", ")),
        few => few.concat(),
    }
}

impl Section {
    /// Whether both are kinds of source, or tables of kinds, but of different ones: a file has only one.
    fn is_other_kind_than(&self, here: &Section) -> bool {
        match (self.path, here.path) {
            ([ours, kind, ..], [theirs, other, ..]) => ours == theirs && kind != other,
            _without_a_kind => false,
        }
    }

    /// `into [batch]`, or `at the top of the file`.
    fn place(&self) -> String {
        if self.path.is_empty() { self.inside() } else { format!("into {}", self.header()) }
    }
}
