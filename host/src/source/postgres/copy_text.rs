//! Rows of `COPY … TO STDOUT` in text format.
//!
//! The server sends each row as a message of its own, ended by a line feed; those of values are written as `\n`.
//! Format: <https://www.postgresql.org/docs/15/sql-copy.html#id-1.9.3.55.9.2>.

use super::scan;

/// Takes rows apart. Its buffers are reused from row to row.
#[derive(Debug, Default)]
pub struct CopyText {
    places: Vec<Place>,
    /// Values without their escapes, one behind the other.
    plain: Vec<u8>,
}

/// One row. A value is borrowed from the line, unless it had to be unescaped.
#[derive(Debug, Clone, Copy)]
pub struct CopyRow<'a> {
    line: &'a [u8],
    places: &'a [Place],
    plain: &'a [u8],
}

/// Where a value is, from and to; rows are shorter than 1 GB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Null,
    Line(u32, u32),
    Plain(u32, u32),
}

impl CopyText {
    /// Before the first row.
    pub fn new() -> Self {
        Self::default()
    }

    /// The row of a line, which comes without its line feed.
    pub fn row<'a>(&'a mut self, line: &'a [u8]) -> CopyRow<'a> {
        self.places.clear();
        self.plain.clear();
        let CopyText { places, plain } = self;
        let (mut start, mut escaped) = (0, false);
        let mut end_field = |end: usize, escaped: bool| {
            places.push(if escaped {
                unescaped(&line[start..end], plain)
            } else {
                Place::Line(start as u32, end as u32)
            });
            start = end + 1;
        };
        scan::each(
            line,
            |byte| byte == b'\t' || byte == b'\\',
            |at| {
                if line[at] == b'\t' {
                    end_field(at, std::mem::take(&mut escaped));
                } else {
                    escaped = true;
                }
            },
        );
        end_field(line.len(), escaped);
        CopyRow { line, places, plain }
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
            Place::Line(start, end) => Some(&line[*start as usize..*end as usize]),
            Place::Plain(start, end) => Some(&plain[*start as usize..*end as usize]),
        })
    }

    /// The row as it came, without its line feed.
    pub fn line(&self) -> &'a [u8] {
        self.line
    }
}

/// The value of a field with a backslash in it, appended to `plain`.
fn unescaped(field: &[u8], plain: &mut Vec<u8>) -> Place {
    if field == b"\\N" {
        return Place::Null;
    }
    let start = plain.len();
    let mut rest = field;
    while let Some(place) = scan::find(rest, |byte| byte == b'\\') {
        plain.extend_from_slice(&rest[..place]);
        let (byte, length) = escaped(&rest[place + 1..]);
        plain.push(byte);
        rest = &rest[place + 1 + length..];
    }
    plain.extend_from_slice(rest);
    Place::Plain(start as u32, plain.len() as u32)
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
    use proptest::prelude::*;

    use super::*;

    type Row = Vec<Option<Vec<u8>>>;

    /// The rows of some lines.
    fn read(bytes: &[u8]) -> Vec<Row> {
        let mut copy = CopyText::new();
        let mut rows = Vec::new();
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            let row = copy.row(line);
            assert_eq!((row.fields().len(), row.line()), (row.len(), line));
            rows.push(row.fields().map(|field| field.map(<[u8]>::to_vec)).collect());
        }
        rows
    }

    fn text(fields: &[Option<&str>]) -> Row {
        fields.iter().map(|field| field.map(|text| text.as_bytes().to_vec())).collect()
    }

    fn check(bytes: &[u8], expected: &[Row]) {
        assert_eq!(read(bytes), expected);
    }

    #[test]
    fn values_are_found_between_tabs() {
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

    proptest! {
        #[test]
        fn rows_come_back_as_they_went(
            rows in prop::collection::vec(prop::collection::vec(prop::option::of("[a-c\\\\\t\n\r\u{8}N.é]{0,20}"), 1..5), 0..5),
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
            let expected: Vec<Row> = rows
                .iter()
                .map(|row| row.iter().map(|field| field.clone().map(String::into_bytes)).collect())
                .collect();
            prop_assert_eq!(read(bytes.as_bytes()), expected);
        }

        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
        }
    }
}
