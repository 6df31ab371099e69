//! Rows of `COPY … TO STDOUT` in text format, from chunks that may be cut anywhere.
//!
//! A line feed always ends a row, because Postgres writes those of values as `\n`.
//! Format: <https://www.postgresql.org/docs/15/sql-copy.html#id-1.9.3.55.9.2>.

use std::ops::Range;

use super::scan;

/// The data ended within a row: the connection broke off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("COPY ended within a row, {bytes} bytes behind its start")]
pub struct Unfinished {
    /// What there is of the row.
    pub bytes: usize,
}

/// Splits a COPY into rows. Its buffers are reused from row to row.
#[derive(Debug, Default)]
pub struct CopyText {
    /// The start of a row of which the end has not come yet.
    begun: Vec<u8>,
    fields: Fields,
}

/// One row. A value is borrowed from the chunk, unless it had to be unescaped.
#[derive(Debug, Clone, Copy)]
pub struct CopyRow<'a> {
    line: &'a [u8],
    places: &'a [Place],
    plain: &'a [u8],
}

/// Where the values of a row are.
#[derive(Debug, Default)]
struct Fields {
    places: Vec<Place>,
    /// Values without their escapes, one behind the other.
    plain: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Null,
    Line(Range<usize>),
    Plain(Range<usize>),
}

impl CopyText {
    /// Before the first chunk.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads a chunk and calls `row` for each row that ends in it.
    ///
    /// # Errors
    /// What `row` gives; the rest of the chunk is then not read.
    pub fn feed<E>(
        &mut self,
        chunk: &[u8],
        mut row: impl FnMut(CopyRow<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut rest = chunk;
        if !self.begun.is_empty() {
            let Some(end) = line_end(rest) else {
                self.begun.extend_from_slice(rest);
                return Ok(());
            };
            self.begun.extend_from_slice(&rest[..end]);
            rest = &rest[end + 1..];
            let told = row(self.fields.split(&self.begun));
            self.begun.clear();
            told?;
        }
        while let Some(end) = line_end(rest) {
            row(self.fields.split(&rest[..end]))?;
            rest = &rest[end + 1..];
        }
        self.begun.extend_from_slice(rest);
        Ok(())
    }

    /// To be asked when no chunk will follow.
    ///
    /// # Errors
    /// If the last row has no end.
    pub fn finish(&self) -> Result<(), Unfinished> {
        match self.begun.len() {
            0 => Ok(()),
            bytes => Err(Unfinished { bytes }),
        }
    }
}

impl<'a> CopyRow<'a> {
    /// Number of columns; never 0, since an empty line is one empty value.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there is no column: never.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Values in the order of the columns; none is NULL.
    pub fn fields(&self) -> impl ExactSizeIterator<Item = Option<&'a [u8]>> + use<'a> {
        let (line, plain) = (self.line, self.plain);
        self.places.iter().map(move |place| match place {
            Place::Null => None,
            Place::Line(range) => Some(&line[range.clone()]),
            Place::Plain(range) => Some(&plain[range.clone()]),
        })
    }

    /// The row as it came, without its line feed.
    pub fn line(&self) -> &'a [u8] {
        self.line
    }
}

impl Fields {
    fn split<'a>(&'a mut self, line: &'a [u8]) -> CopyRow<'a> {
        self.places.clear();
        self.plain.clear();
        let mut start = 0;
        loop {
            let rest = &line[start..];
            let end = match scan::find(rest, |byte| byte == b'\t' || byte == b'\\') {
                None => line.len(),
                Some(length) if rest[length] == b'\t' => start + length,
                Some(_backslash) => {
                    let end = start + scan::find(rest, |byte| byte == b'\t').unwrap_or(rest.len());
                    let place = self.unescape(&line[start..end]);
                    self.places.push(place);
                    if end == line.len() {
                        break;
                    }
                    start = end + 1;
                    continue;
                }
            };
            self.places.push(Place::Line(start..end));
            if end == line.len() {
                break;
            }
            start = end + 1;
        }
        CopyRow { line, places: &self.places, plain: &self.plain }
    }

    /// The value of a field with a backslash in it.
    fn unescape(&mut self, field: &[u8]) -> Place {
        if field == b"\\N" {
            return Place::Null;
        }
        let start = self.plain.len();
        let mut rest = field;
        while let Some(place) = scan::find(rest, |byte| byte == b'\\') {
            self.plain.extend_from_slice(&rest[..place]);
            let (byte, length) = escaped(&rest[place + 1..]);
            self.plain.push(byte);
            rest = &rest[place + 1 + length..];
        }
        self.plain.extend_from_slice(rest);
        Place::Plain(start..self.plain.len())
    }
}

fn line_end(bytes: &[u8]) -> Option<usize> {
    scan::find(bytes, |byte| byte == b'\n')
}

/// The byte that an escape stands for, and how many bytes behind the backslash belong to it.
fn escaped(rest: &[u8]) -> (u8, usize) {
    let Some(first) = rest.first().copied() else { return (b'\\', 0) };
    match first {
        b'b' => (0x08, 1),
        b'f' => (0x0c, 1),
        b'n' => (b'\n', 1),
        b'r' => (b'\r', 1),
        b't' => (b'\t', 1),
        b'v' => (0x0b, 1),
        b'0'..=b'7' => number(rest, 0, 3, 8),
        b'x' => match number(rest, 1, 2, 16) {
            // No digit: the letter stands for itself.
            (_, 1) => (b'x', 1),
            byte => byte,
        },
        itself => (itself, 1),
    }
}

/// Up to `digits_max` digits from place `from`, cut down to a byte as Postgres does it.
fn number(rest: &[u8], from: usize, digits_max: usize, radix: u32) -> (u8, usize) {
    let digit = |byte: &u8| char::from(*byte).to_digit(radix);
    let digits = rest.iter().skip(from).take(digits_max).map_while(digit);
    let (value, count) = digits.fold((0, 0), |(value, count), digit| (value * radix + digit, count + 1));
    ((value & 0xff) as u8, from + count)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    type Row = Vec<Option<Vec<u8>>>;

    fn read(chunks: &[&[u8]]) -> (Vec<Row>, Result<(), Unfinished>) {
        let mut copy = CopyText::new();
        let mut rows = Vec::new();
        for chunk in chunks {
            let told: Result<(), Infallible> = copy.feed(chunk, |row| {
                assert_eq!(row.fields().len(), row.len());
                rows.push(row.fields().map(|field| field.map(<[u8]>::to_vec)).collect());
                Ok(())
            });
            assert!(told.is_ok());
        }
        (rows, copy.finish())
    }

    fn text(fields: &[Option<&str>]) -> Row {
        fields.iter().map(|field| field.map(|text| text.as_bytes().to_vec())).collect()
    }

    /// What `text` holds, however it is cut in two.
    fn check(bytes: &[u8], expected: &[Row]) {
        for cut in 0..=bytes.len() {
            let (rows, finished) = read(&[&bytes[..cut], &bytes[cut..]]);
            assert_eq!(rows, expected, "cut at {cut}");
            assert_eq!(finished, Ok(()));
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(read(&single).0, expected, "byte by byte");
    }

    #[test]
    fn rows_are_found_wherever_chunks_are_cut() {
        check(
            b"1\tAnn\t\\N\n2\t\tback\\\\slash and\\ttab\\n\n\\N\t\\\\N\t\\\\.\n",
            &[
                text(&[Some("1"), Some("Ann"), None]),
                text(&[Some("2"), Some(""), Some("back\\slash and\ttab\n")]),
                text(&[None, Some("\\N"), Some("\\.")]),
            ],
        );
        check(b"", &[]);
        check(b"\n\n", &[text(&[Some("")]), text(&[Some("")])]);
        check(b"\t\n", &[text(&[Some(""), Some("")])]);
        check(b"ends with\\\\\nnext\n", &[text(&[Some("ends with\\")]), text(&[Some("next")])]);
        let long = "x".repeat(100);
        check(
            format!("{long}\t{long}\\\\{long}\n").as_bytes(),
            &[text(&[Some(&long), Some(&format!("{long}\\{long}"))])],
        );
    }

    #[test]
    fn each_escape_is_known() {
        check(
            b"\\b\\f\\n\\r\\t\\v\\\\\\a\\/\t\\101\\1012\\7\\18\t\\x41\\x4a2\\xz\\x\t\\777\n",
            &[text(&[Some("\u{8}\u{c}\n\r\t\u{b}\\a/"), Some("AA2\u{7}\u{1}8"), Some("AJ2xzx"), None])
                .into_iter()
                .take(3)
                .chain([Some(vec![0xff])])
                .collect()],
        );
        check(b"\\Nx\tx\\N\n", &[text(&[Some("Nx"), Some("xN")])]);
        check(b"lone\\\n", &[text(&[Some("lone\\")])]);
    }

    #[test]
    fn a_row_without_an_end_is_told() {
        let (rows, finished) = read(&[b"1\n2\t"]);
        assert_eq!(rows, [text(&[Some("1")])]);
        assert_eq!(finished, Err(Unfinished { bytes: 2 }));
    }

    #[test]
    fn an_error_of_the_caller_ends_the_chunk() {
        let mut copy = CopyText::new();
        assert_eq!(copy.feed(b"1", |_| Err("no")), Ok(()));
        assert_eq!(
            copy.feed(b"0\n2\n", |row| if row.line() == b"10" { Err("no") } else { Ok(()) }),
            Err("no")
        );
    }

    proptest! {
        #[test]
        fn rows_come_back_as_they_went(
            rows in prop::collection::vec(prop::collection::vec(prop::option::of("[a-c\\\\\t\n\r\u{8}N.é]{0,20}"), 1..5), 0..5),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
        ) {
            let field = |field: &Option<String>| match field {
                None => "\\N".to_owned(),
                // As CopyAttributeOutText does it.
                Some(text) => text
                    .replace('\\', "\\\\")
                    .replace('\t', "\\t")
                    .replace('\n', "\\n")
                    .replace('\r', "\\r")
                    .replace('\u{8}', "\\b"),
            };
            let line = |row: &Vec<Option<String>>| row.iter().map(field).collect::<Vec<_>>().join("\t") + "\n";
            let bytes: String = rows.iter().map(line).collect();
            let bytes = bytes.as_bytes();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            let (read, finished) = read(&chunks);
            let expected: Vec<Row> = rows
                .iter()
                .map(|row| row.iter().map(|field| field.clone().map(String::into_bytes)).collect())
                .collect();
            prop_assert_eq!(read, expected);
            prop_assert_eq!(finished, Ok(()));
        }

        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&[&bytes]);
        }
    }
}
