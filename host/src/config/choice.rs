//! `[source]` and `[sink]`: each has exactly one table within, whose name says the kind.

use super::nearest::nearest;
use super::problem::Problem;
use super::schema::Section;
use super::sections;
use super::table::{Table, home_of, quote};

/// One of the two, with what it may have within.
struct Choice {
    outer: &'static Section,
    inner: &'static Section,
    /// Kinds that will come: their names are answered, not guessed at.
    to_come: &'static [&'static str],
    /// The keys that `inner` needs, for messages.
    needs: &'static str,
}

/// `[source.kafka]`; what is wrong with `[source]` is noted.
pub(super) fn source<'a>(root: &Table<'a>) -> Option<Table<'a>> {
    let choice = Choice {
        outer: &sections::SOURCE,
        inner: &sections::kafka::SECTION,
        to_come: &["postgres", "http"],
        needs: "`brokers` and `topics`",
    };
    choice.open(root)
}

/// `[sink.starrocks]`; what is wrong with `[sink]` is noted.
pub(super) fn sink<'a>(root: &Table<'a>) -> Option<Table<'a>> {
    let choice = Choice {
        outer: &sections::SINK,
        inner: &sections::starrocks::SECTION,
        to_come: &[],
        needs: "`fe`, `database`, `table` and `user`",
    };
    choice.open(root)
}

impl Choice {
    fn open<'a>(&self, root: &Table<'a>) -> Option<Table<'a>> {
        let word = self.outer.name();
        if !root.has(word) {
            if !root.has_misspelt(word) {
                let problem = Problem::whole(root.source, format!("missing table {}", self.inner.header()));
                root.source.note_whole(problem.expected(format!("it with {}", self.needs)));
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
        table.table(self.inner)
    }

    fn wanted(&self) -> String {
        format!("{} with {}", self.inner.header(), self.needs)
    }

    fn is_kind(&self, name: &str) -> bool {
        name == self.inner.name() || self.to_come.contains(&name)
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
        for (name, span) in table.written().filter(|(name, _)| *name != self.inner.name()) {
            let problem =
                |what: String| Problem::at(table.source, span.clone(), what).expected(self.wanted());
            let problem = if self.is_kind(name) {
                problem(format!("the {word} {} is not in this version", quote(name)))
            } else if table.holds_table(name) {
                problem(format!("unknown {word} {}", quote(name))).meant(nearest(name, [self.inner.name()]))
            } else {
                let problem =
                    problem(format!("unknown key {} {}", quote(name), self.outer.inside())).of_unknown_key();
                match self.inner.key(name) {
                    Some(_) => problem.hint(format!("`{name}` belongs into {}", self.inner.header())),
                    None => problem.maybe_hint(home_of(name, self.outer)),
                }
            };
            table.source.note(&span, problem);
        }
    }
}
