//! What is wrong with pipeline files: all of it at once, each with its place.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;

use super::source::Source;

/// Lines longer than this are not repeated under a message.
const EXCERPT_CHARS_MAX: usize = 110;

/// Words that mark a line which may hold a credential: such a line is never repeated.
const SECRETIVE_WORDS: [&str; 4] = ["password", "secret", "token", "authorization"];

/// Problems that are printed for one file; the rest is counted.
const SHOWN_PER_FILE_MAX: usize = 50;

/// One thing that is wrong in one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file as it was named, or the flag.
    pub file: String,
    /// Line and column, both from 1; columns count characters. None = the file as a whole.
    pub at: Option<(usize, usize)>,
    /// What is wrong.
    pub what: String,
    /// What would have been right.
    pub expected: Option<String>,
    /// What to do, where `expected` does not say it.
    pub hint: Option<String>,
    /// The nearest valid spelling.
    pub meant: Option<String>,
    excerpt: Option<Excerpt>,
    /// It is about a key that nobody knows: its value may be a credential behind a mistyped name.
    of_unknown_key: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Excerpt {
    line: String,
    column: usize,
    width: usize,
}

impl Problem {
    /// A problem at a span of bytes of a file.
    pub(super) fn at(source: &Source, span: Range<usize>, what: impl Into<String>) -> Self {
        let mut problem = Self::whole(source, what);
        if let Some(place) = source.place(span.start) {
            problem.at = Some((place.line, place.column));
            let end = span.end.min(place.line_span.end).max(span.start);
            let width = source.text.get(span.start..end).map_or(1, |text| text.chars().count().max(1));
            let line = source.text.get(place.line_span).unwrap_or_default().trim_end();
            problem.excerpt = Excerpt::of(line, place.column, width);
        }
        problem
    }

    /// A problem of a file as a whole.
    pub(super) fn whole(source: &Source, what: impl Into<String>) -> Self {
        Self {
            file: source.name.clone(),
            at: None,
            what: what.into(),
            expected: None,
            hint: None,
            meant: None,
            excerpt: None,
            of_unknown_key: false,
        }
    }

    /// Says what would have been right.
    #[must_use]
    pub(super) fn expected(mut self, expected: impl Into<String>) -> Self {
        self.expected = Some(expected.into());
        self
    }

    /// Says what to do.
    #[must_use]
    pub(super) fn hint(self, hint: impl Into<String>) -> Self {
        self.maybe_hint(Some(hint.into()))
    }

    /// Says what to do, if there is something to say.
    #[must_use]
    pub(super) fn maybe_hint(mut self, hint: Option<String>) -> Self {
        self.hint = hint;
        self
    }

    /// Names the nearest valid spelling, if there is one.
    #[must_use]
    pub(super) fn meant(mut self, meant: Option<impl Into<String>>) -> Self {
        self.meant = meant.map(Into::into);
        self
    }

    /// Says that the span is a key that nobody knows: nothing of its line but the key is repeated.
    #[must_use]
    pub(super) fn of_unknown_key(mut self) -> Self {
        self.of_unknown_key = true;
        self.excerpt = self.excerpt.take().and_then(Excerpt::up_to_caret);
        self
    }

    /// Leaves lines with an unknown key out of all other problems, too.
    pub(super) fn hush_lines_of_unknown_keys(problems: &mut [Self]) {
        let unknown = problems.iter().filter(|problem| problem.of_unknown_key);
        let lines: BTreeSet<usize> = unknown.filter_map(|problem| problem.at).map(|(line, _)| line).collect();
        for problem in problems.iter_mut().filter(|problem| !problem.of_unknown_key) {
            if problem.at.is_some_and(|(line, _)| lines.contains(&line)) {
                problem.excerpt = None;
            }
        }
    }

    /// Leaves the line out, because it holds a credential.
    #[must_use]
    pub(super) fn hushed(mut self) -> Self {
        self.excerpt = None;
        self
    }
}

impl Excerpt {
    fn of(line: &str, column: usize, width: usize) -> Option<Self> {
        let lower = line.to_lowercase();
        let credentials_in_url = lower.contains("://") && lower.contains('@');
        let secretive = credentials_in_url || SECRETIVE_WORDS.iter().any(|word| lower.contains(word));
        let short = line.chars().count() <= EXCERPT_CHARS_MAX;
        // A tab is one character and many columns wide, so the caret would point elsewhere.
        let printable = !line.trim_start_matches('\t').chars().any(char::is_control);
        (short && printable && !secretive && !line.is_empty()).then(|| {
            let room = (line.chars().count() + 1).saturating_sub(column).max(1);
            Self { line: line.to_owned(), column, width: width.min(room) }
        })
    }
}

impl Excerpt {
    /// Without what stands behind the caret; none if something stands before it.
    fn up_to_caret(self) -> Option<Self> {
        let before: String = self.line.chars().take(self.column - 1).collect();
        let mut kept: String = self.line.chars().take(self.column - 1 + self.width).collect();
        if kept.len() < self.line.len() {
            kept.push_str(" …");
        }
        let first = before.chars().all(|c| c.is_whitespace() || c == '[');
        first.then_some(Self { line: kept, ..self })
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some((line, column)) = self.at {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": {}", self.what)?;
        if let Some(expected) = &self.expected {
            write!(f, "; expected {expected}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "; {hint}")?;
        }
        if let Some(meant) = &self.meant {
            write!(f, "; did you mean `{meant}`?")?;
        }
        if let (Some(excerpt), Some((line, _))) = (&self.excerpt, self.at) {
            // Leading tabs are repeated, so that the caret stands under its place.
            let indent: String = excerpt
                .line
                .chars()
                .take(excerpt.column - 1)
                .map(|c| if c == '\t' { '\t' } else { ' ' })
                .collect();
            let carets = "^".repeat(excerpt.width);
            write!(f, "\n{line:>5} | {}\n      | {indent}{carets}", excerpt.line)?;
        }
        Ok(())
    }
}

/// Everything that is wrong, in the order of files and lines. Never empty. Printed, each problem begins
/// a line and the last one ends its own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Problems {
    list: Vec<Problem>,
}

impl Problems {
    /// The problems found; without any, nothing was given to read.
    pub(super) fn or_none_given(list: Vec<Problem>) -> Self {
        if !list.is_empty() {
            return Self { list };
        }
        let nothing = Problem::whole(&Source::flag("FILE"), "no pipeline file was given");
        Self { list: vec![nothing.expected("one or more TOML files")] }
    }

    /// Each problem.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.list.iter()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.list.len()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for of_file in self.list.chunk_by(|a, b| a.file == b.file) {
            for problem in of_file.iter().take(SHOWN_PER_FILE_MAX) {
                writeln!(f, "{problem}")?;
            }
            if let (Some(rest @ 1..), Some(problem)) =
                (of_file.len().checked_sub(SHOWN_PER_FILE_MAX), of_file.first())
            {
                writeln!(f, "{}: and {rest} more problems", problem.file)?;
            }
        }
        Ok(())
    }
}
