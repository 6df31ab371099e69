//! One pipeline file as text, and where in it a byte stands.

use std::cell::RefCell;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::problem::Problem;

/// A pipeline file is read up to this size; a larger one is something else.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// A value that is read from a file, like a password.
const VALUE_FILE_BYTES_MAX: u64 = 64 * 1024;

/// A file's text, and what was found wrong in it so far.
#[derive(Debug)]
pub(super) struct Source {
    /// As it was named on the command line: messages use this.
    pub(super) name: String,
    /// The file; relative paths in it start in its directory.
    pub(super) path: PathBuf,
    /// The text without a byte order mark; empty for a flag.
    pub(super) text: String,
    problems: RefCell<Vec<(usize, Problem)>>,
}

/// Where a byte stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// From 1.
    pub(super) line: usize,
    /// From 1, in characters.
    pub(super) column: usize,
    /// The line's bytes, without its line feed.
    pub(super) line_span: Range<usize>,
}

impl Source {
    /// Text that is at hand already.
    pub(super) fn new(path: &Path, text: &str) -> Self {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text).to_owned();
        let name = path.display().to_string();
        Self { name, path: path.to_owned(), text, problems: RefCell::default() }
    }

    /// A command-line flag: its problems name the flag and have no line.
    pub(super) fn flag(name: &str) -> Self {
        Self::new(Path::new(name), "")
    }

    /// Reads a file; what goes wrong is noted, and the text is then empty.
    pub(super) fn read(path: &Path) -> Result<Self, Box<Problem>> {
        let empty = Self::new(path, "");
        let cannot = |why: String| Problem::whole(&empty, format!("cannot read the pipeline file: {why}"));
        let bytes = read_limited(path, FILE_BYTES_MAX)
            .map_err(|why| Box::new(cannot(why).expected("a TOML file")))?;
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Self::new(path, &text)),
            Err(error) => {
                let good = error.utf8_error().valid_up_to();
                let bytes = error.into_bytes();
                if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
                    let problem = Problem::whole(&empty, "the file is UTF-16").expected("TOML in UTF-8");
                    return Err(Box::new(problem));
                }
                let before = String::from_utf8_lossy(bytes.get(..good).unwrap_or_default()).into_owned();
                // One stand-in character, so that the place behind the good part exists.
                let source = Self::new(path, &format!("{before}\u{fffd}"));
                let at = source.text.len() - '\u{fffd}'.len_utf8();
                let problem =
                    Problem::at(&source, at..at, "a byte that is not UTF-8").expected("TOML in UTF-8");
                Err(Box::new(problem.hushed()))
            }
        }
    }

    /// Where byte `offset` stands; none in a flag.
    pub(super) fn place(&self, offset: usize) -> Option<Place> {
        let before = self.text.get(..offset.min(self.text.len()))?;
        if self.text.is_empty() {
            return None;
        }
        let start = before.rfind('\n').map_or(0, |feed| feed + 1);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        let column = before.get(start..)?.chars().count() + 1;
        let end = self.text.get(start..)?.find('\n').map_or(self.text.len(), |length| start + length);
        Some(Place { line, column, line_span: start..end })
    }

    /// Notes what is wrong at a span.
    pub(super) fn note(&self, span: &Range<usize>, problem: Problem) {
        self.problems.borrow_mut().push((span.start, problem));
    }

    /// Notes what is wrong with the file as a whole.
    pub(super) fn note_whole(&self, problem: Problem) {
        self.problems.borrow_mut().push((0, problem));
    }

    /// How many problems were noted.
    pub(super) fn noted(&self) -> usize {
        self.problems.borrow().len()
    }

    /// All that was noted, by place.
    pub(super) fn into_problems(self) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|(start, _)| *start);
        let mut problems: Vec<Problem> = problems.into_iter().map(|(_, problem)| problem).collect();
        Problem::hush_lines_of_unknown_keys(&mut problems);
        problems
    }

    /// A path as written → from the file's directory, as relative as the file's own name: for messages.
    pub(super) fn beside(&self, written: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(written)
    }

    /// A path as written → absolute, from the file's directory.
    pub(super) fn resolve(&self, written: &str) -> PathBuf {
        let joined = self.beside(written);
        // It fails only without a working directory; the relative path then says so on use.
        std::path::absolute(&joined).unwrap_or(joined)
    }

    /// What `{ file = "path" }` stands for: the file's text without its last line feed.
    pub(super) fn value_of_file(&self, written: &str) -> Result<String, String> {
        let bytes = read_limited(&self.resolve(written), VALUE_FILE_BYTES_MAX)?;
        let text = String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
        let text = text.strip_suffix('\n').unwrap_or(&text);
        Ok(text.strip_suffix('\r').unwrap_or(text).to_owned())
    }
}

/// Reads at most `limit` bytes, and says in plain words why not.
fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>, String> {
    let plain = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => "no such file".to_owned(),
        ErrorKind::PermissionDenied => "permission denied".to_owned(),
        ErrorKind::IsADirectory => "it is a directory".to_owned(),
        _ => error.to_string(),
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(plain)?;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(plain)?;
    if bytes.len() as u64 > limit {
        return Err(format!("it is larger than {} KiB", limit / 1024));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters() {
        let source = Source::new(Path::new("a.toml"), "\u{feff}é = 1\nüx\n");
        assert_eq!(source.place(0), Some(Place { line: 1, column: 1, line_span: 0..6 }));
        assert_eq!(source.place(9), Some(Place { line: 2, column: 2, line_span: 7..10 }));
        assert_eq!(source.place(usize::MAX).map(|place| place.line), Some(3));
    }

    #[test]
    fn a_byte_that_is_not_utf8_has_its_place() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("bad.toml");
        std::fs::write(&path, b"[pipeline]\nname = \"\xff\"\n").expect("written");
        let problem = Source::read(&path).expect_err("not UTF-8");
        assert_eq!(problem.at, Some((2, 9)));
    }
}
