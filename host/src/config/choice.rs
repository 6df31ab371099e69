//! `[source]` and `[sink]`: each has exactly one table within, whose name says the kind.

use super::nearest::nearest;
use super::problem::Problem;
use super::schema::Section;
use super::sections;
use super::table::{Table, home_of, quote};

/// One of the two, with what it may have within.
struct Choice {
    outer: &'static Section,
    /// The kinds, each with the keys that it needs, for messages.
    kinds: &'static [(&'static Section, &'static str)],
}

static SOURCE: Choice = Choice {
    outer: &sections::SOURCE,
    kinds: &[
        (&sections::kafka::SECTION, " with `brokers` and `topics`"),
        (&sections::postgres::SECTION, " with `host`, `database`, `user` and `tables`"),
        (&sections::http::SECTION, ""),
    ],
};

static SINK: Choice = Choice {
    outer: &sections::SINK,
    kinds: &[(&sections::starrocks::SECTION, " with `fe`, `database`, `table` and `user`")],
};

/// `[source.kafka]` or another one; what is wrong with `[source]` is noted.
pub(super) fn source<'a>(root: &Table<'a>) -> Option<Table<'a>> {
    SOURCE.open(root)
}

/// `[sink.starrocks]`; what is wrong with `[sink]` is noted.
pub(super) fn sink<'a>(root: &Table<'a>) -> Option<Table<'a>> {
    SINK.open(root)
}

impl Choice {
    /// The first table of a known kind. Further ones are a mistake, and read for mistakes of their own.
    fn open<'a>(&self, root: &Table<'a>) -> Option<Table<'a>> {
        let word = self.outer.name();
        if !root.has(word) {
            if !root.has_misspelt(word) {
                root.source.note_whole(self.missing(root));
            }
            return None;
        }
        let table = root.table(self.outer)?;
        if table.written().next().is_none() {
            root.note_at(word, format!("no {word} in {}", self.outer.header()), |p| {
                p.expected(self.wanted())
            });
        }
        self.note_second(&table);
        self.note_unknown(&table);
        let mut opened: Vec<_> = self.kinds.iter().filter_map(|(section, _)| table.table(section)).collect();
        opened.sort_by_key(|table| table.span.start);
        opened.into_iter().next()
    }

    fn missing(&self, root: &Table<'_>) -> Problem {
        let problem = |what: String| Problem::whole(root.source, what);
        match self.kinds {
            [(only, needs)] => {
                problem(format!("missing table {}", only.header())).expected(format!("it{needs}"))
            }
            _several => problem(format!("missing {}", self.outer.name())).expected(self.wanted()),
        }
    }

    fn wanted(&self) -> String {
        let kinds: Vec<_> =
            self.kinds.iter().map(|(section, needs)| format!("{}{needs}", section.header())).collect();
        match kinds.as_slice() {
            [firsts @ .., last] if !firsts.is_empty() => format!("{}, or {last}", firsts.join(", ")),
            few => few.concat(),
        }
    }

    fn names(&self) -> impl Iterator<Item = &'static str> {
        self.kinds.iter().map(|(section, _)| section.name())
    }

    fn is_kind(&self, name: &str) -> bool {
        self.names().any(|known| known == name)
    }

    fn note_second(&self, table: &Table<'_>) {
        let mut kinds: Vec<_> = table.written().filter(|(name, _)| self.is_kind(name)).collect();
        kinds.sort_by_key(|(_, span)| span.start);
        let word = self.outer.name();
        if let [(first, _), others @ ..] = kinds.as_slice() {
            for (name, span) in others {
                let what = format!("two {word}s in one file: {} and {}", quote(first), quote(name));
                let problem = Problem::at(table.source, span.clone(), what).expected("exactly one");
                table.source.note(span, problem.hint(format!("a second {word} is a second file")));
            }
        }
    }

    fn note_unknown(&self, table: &Table<'_>) {
        let word = self.outer.name();
        for (name, span) in table.written().filter(|(name, _)| !self.is_kind(name)) {
            let problem =
                |what: String| Problem::at(table.source, span.clone(), what).expected(self.wanted());
            let problem = if table.holds_table(name) {
                problem(format!("unknown {word} {}", quote(name))).meant(nearest(name, self.names()))
            } else {
                let problem =
                    problem(format!("unknown key {} {}", quote(name), self.outer.inside())).of_unknown_key();
                problem.maybe_hint(home_of(name, self.outer))
            };
            table.source.note(&span, problem);
        }
    }
}
