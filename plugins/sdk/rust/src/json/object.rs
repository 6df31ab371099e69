//! A JSON object written field by field, straight into the column that is returned.

use super::RawValue;

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Writes one JSON object: for rows whose fields are known when the plugin is written, in half the time that a derived
/// `Serialize` needs, and without a struct for the row.
///
/// ```
/// use tidemill_sdk::json::Object;
/// let mut row = Vec::new();
/// Object::begin(&mut row).unsigned("id", 7).text("name", "O\"Brien").end();
/// assert_eq!(row, b"{\"id\":7,\"name\":\"O\\\"Brien\"}\n");
/// ```
///
/// Names are written as they are, and so must be free of quotes, backslashes and control characters; a build with
/// debug assertions checks that. An object that is dropped without [`Object::end`] is not complete.
#[must_use = "an object is complete only after end()"]
pub struct Object<'o> {
    out: &'o mut Vec<u8>,
    /// What stands before the next field: `{` or `,`.
    before: u8,
}

impl<'o> Object<'o> {
    /// Starts an object at the end of `out`.
    #[inline]
    pub fn begin(out: &'o mut Vec<u8>) -> Self {
        Self { out, before: b'{' }
    }

    /// A text, escaped.
    #[inline]
    pub fn text(mut self, name: &str, text: &str) -> Self {
        self.name(name);
        write_text(self.out, text);
        self
    }

    /// A whole number without sign.
    #[inline]
    pub fn unsigned(mut self, name: &str, number: u64) -> Self {
        self.name(name);
        write_unsigned(self.out, number);
        self
    }

    /// A whole number.
    #[inline]
    pub fn signed(mut self, name: &str, number: i64) -> Self {
        self.name(name);
        if number < 0 {
            self.out.push(b'-');
        }
        write_unsigned(self.out, number.unsigned_abs());
        self
    }

    /// A number in the shortest form that reads back as the same; `null` if it is infinite or not a number.
    #[inline]
    pub fn float(mut self, name: &str, number: f64) -> Self {
        self.name(name);
        // Writing a number to memory cannot fail.
        let _ = serde_json::to_writer(&mut *self.out, &number);
        self
    }

    /// `true` or `false`.
    #[inline]
    pub fn boolean(mut self, name: &str, boolean: bool) -> Self {
        self.name(name);
        self.out.extend_from_slice(if boolean { b"true" } else { b"false" });
        self
    }

    /// `null`.
    #[inline]
    pub fn null(mut self, name: &str) -> Self {
        self.name(name);
        self.out.extend_from_slice(b"null");
        self
    }

    /// A piece of the record's JSON, as it is.
    #[inline]
    pub fn raw(mut self, name: &str, json: &RawValue) -> Self {
        self.name(name);
        self.out.extend_from_slice(json.get().as_bytes());
        self
    }

    /// Ends the object and the row: a line feed follows, so that the host can send the column as it is.
    #[inline]
    pub fn end(self) {
        if self.before == b'{' {
            self.out.push(b'{');
        }
        self.out.extend_from_slice(b"}\n");
    }

    #[inline(always)]
    fn name(&mut self, name: &str) {
        debug_assert!(!name.bytes().any(needs_escape), "the name `{name}` needs escaping");
        self.out.extend_from_slice(&[self.before, b'"']);
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
        self.before = b',';
    }
}

/// Two digits at a time, from the end.
#[inline]
fn write_unsigned(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0_u8; 20];
    let mut at = digits.len();
    while number >= 10 {
        let pair = (number % 100) as u8;
        number /= 100;
        at -= 2;
        digits[at] = b'0' + pair / 10;
        digits[at + 1] = b'0' + pair % 10;
    }
    if number > 0 || at == digits.len() {
        at -= 1;
        digits[at] = b'0' + number as u8;
    }
    out.extend_from_slice(&digits[at..]);
}

/// Texts are short, and most of them have nothing to escape: eight bytes are looked at and copied in one step, because
/// a loop over bytes pays for the check that lets the host interrupt it, and a copy of unknown length for a call.
#[inline]
fn write_text(out: &mut Vec<u8>, text: &str) {
    out.reserve(text.len() + 2);
    out.push(b'"');
    let (words, tail) = text.as_bytes().as_chunks::<8>();
    for word in words {
        if word_needs_escape(u64::from_le_bytes(*word)) {
            word.iter().for_each(|byte| write_escaped(out, *byte));
        } else {
            out.extend_from_slice(word);
        }
    }
    for byte in tail {
        write_escaped(out, *byte);
    }
    out.push(b'"');
}

#[inline]
fn write_escaped(out: &mut Vec<u8>, byte: u8) {
    if needs_escape(byte) { escape(out, byte) } else { out.push(byte) }
}

#[inline]
fn needs_escape(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// Whether one of eight bytes needs to be escaped. (`x - n` borrows into the high bit of a byte that is smaller than `n`, and
/// `!x` leaves out those that had it set before.)
#[inline]
fn word_needs_escape(word: u64) -> bool {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = ONES << 7;
    let quote = word ^ (ONES * b'"' as u64);
    let backslash = word ^ (ONES * b'\\' as u64);
    let control = word.wrapping_sub(ONES * 0x20) & !word;
    let quote = quote.wrapping_sub(ONES) & !quote;
    let backslash = backslash.wrapping_sub(ONES) & !backslash;
    (control | quote | backslash) & HIGHS != 0
}

#[cold]
fn escape(out: &mut Vec<u8>, byte: u8) {
    match byte {
        b'"' => out.extend_from_slice(b"\\\""),
        b'\\' => out.extend_from_slice(b"\\\\"),
        b'\n' => out.extend_from_slice(b"\\n"),
        b'\r' => out.extend_from_slice(b"\\r"),
        b'\t' => out.extend_from_slice(b"\\t"),
        _ => {
            out.extend_from_slice(b"\\u00");
            out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every character that is escaped, at every place in and behind a word of eight bytes.
    #[test]
    fn texts_read_back_as_they_were() {
        for character in (0..0x30).chain([b'\\', 0x7f]).map(char::from).chain(['é', '€', '😀', '\u{2028}'])
        {
            for before in 0..10 {
                let text = format!("{}{character}{}", "a".repeat(before), "ñz".repeat(5));
                let mut row = Vec::new();
                Object::begin(&mut row).text("t", &text).end();
                let read: serde_json::Value = serde_json::from_slice(&row).unwrap();
                assert_eq!(read["t"], text.as_str());
                assert!(!row[..row.len() - 1].contains(&b'\n'), "a row is one line");
            }
        }
    }

    #[test]
    fn numbers_read_back_as_they_were() {
        let mut numbers: Vec<u64> = vec![0, u64::MAX, i64::MAX as u64, i64::MAX as u64 + 1];
        numbers.extend((0..20).map(|power| 10_u64.pow(power)).flat_map(|ten| [ten - 1, ten, ten + 1]));
        for number in numbers {
            let mut row = Vec::new();
            Object::begin(&mut row).unsigned("u", number).signed("s", number as i64).end();
            assert_eq!(
                String::from_utf8(row).unwrap(),
                format!("{{\"u\":{number},\"s\":{}}}\n", number as i64)
            );
        }
    }

    #[test]
    fn an_object_may_be_empty_and_may_hold_everything_else() {
        let mut rows = Vec::new();
        Object::begin(&mut rows).end();
        let raw: &RawValue = serde_json::from_str("[1, 2]").unwrap();
        Object::begin(&mut rows)
            .float("f", 0.1)
            .float("n", f64::NAN)
            .boolean("b", true)
            .null("z")
            .raw("r", raw)
            .end();
        let expected = "{}\n{\"f\":0.1,\"n\":null,\"b\":true,\"z\":null,\"r\":[1, 2]}\n";
        assert_eq!(String::from_utf8(rows).unwrap(), expected);
    }
}
