//! CSV bodies (protocol reference §1.5): separators of any length, `\N` for NULL, and since StarRocks 3.0
//! fields in quotes, escapes, header lines and trimmed spaces.

use std::borrow::Cow;

use super::plan::{LoadPlan, OpSource, Source};
use super::{Raw, RowSink};
use crate::ingest::LoadParams;

/// A NULL; an empty field is an empty text.
const NULL: &str = "\\N";

/// Feeds every record of `body` into `rows`. Blank records are skipped.
///
/// # Errors
/// When there are fewer records than `skip_header` says.
pub(super) fn read(body: &str, plan: &LoadPlan, rows: &mut RowSink<'_>) -> Result<(), String> {
    let mut reader = Reader { params: &plan.params, rest: body };
    let mut fields: Vec<Cow<'_, str>> = Vec::new();
    for skipped in 0..plan.params.skip_header {
        if reader.record(&mut fields).is_none() {
            let wanted = plan.params.skip_header;
            return Err(format!(
                "The parameter 'skip_header' is set to {wanted}, but there are only {skipped} rows in the csv file"
            ));
        }
    }
    while let Some(record) = reader.record(&mut fields) {
        if record.is_empty() {
            continue;
        }
        if fields.len() != plan.fields {
            let params = &plan.params;
            let reason = format!(
                "Value count does not match column count: expected = {}, actual = {}. Column separator: {}, Row \
                 delimiter: {}",
                plan.fields,
                fields.len(),
                shown(&params.column_separator),
                shown(&params.row_delimiter)
            );
            rows.filter(&reason, record);
            continue;
        }
        add(body, plan, rows, &fields, record);
    }
    Ok(())
}

fn add<'b>(body: &'b str, plan: &LoadPlan, rows: &mut RowSink<'_>, fields: &[Cow<'_, str>], record: &'b str) {
    let value = |source: &Source| match source {
        Source::Field(at) => {
            fields.get(*at).filter(|field| *field != NULL).map(|field| Raw::Text(field.as_ref()))
        }
        Source::Key(_) | Source::Path(_) | Source::Absent => None,
    };
    let values: Vec<Option<Raw<'_>>> = plan.targets.iter().map(|target| value(&target.source)).collect();
    let op = match &plan.op {
        OpSource::Value(source) => value(source),
        OpSource::Upsert | OpSource::Delete => None,
    };
    rows.add(body, &values, op, record);
}

/// A separator as messages show it.
fn shown(separator: &str) -> String {
    let mut text = String::from("'");
    for byte in separator.bytes() {
        match byte {
            b'\n' => text.push_str("\\n"),
            b'\t' => text.push_str("\\t"),
            b' '..=b'~' => text.push(byte as char),
            other => text.push_str(&format!("0x{other:x}")),
        }
    }
    text.push('\'');
    text
}

struct Reader<'b, 'p> {
    params: &'p LoadParams,
    rest: &'b str,
}

impl<'b> Reader<'b, '_> {
    /// The next record as it stands in the body, its fields in `fields`; none at the end.
    fn record(&mut self, fields: &mut Vec<Cow<'b, str>>) -> Option<&'b str> {
        if self.rest.is_empty() {
            return None;
        }
        fields.clear();
        let whole = self.rest;
        loop {
            let (field, ended) = self.field();
            fields.push(field);
            match ended {
                Ended::Field => {}
                Ended::Record => {
                    let length = whole.len() - self.rest.len() - self.params.row_delimiter.len();
                    return whole.get(..length);
                }
                Ended::Body => return Some(whole),
            }
        }
    }

    /// Takes one field and the separator behind it.
    fn field(&mut self) -> (Cow<'b, str>, Ended) {
        if self.params.trim_space {
            self.rest = self.rest.trim_start_matches(' ');
        }
        let text = self.rest;
        if let Some(quote) = self.params.enclose
            && text.as_bytes().first() == Some(&quote)
        {
            return self.enclosed(quote);
        }
        let mut unescaped: Option<String> = None;
        let mut start = 0;
        let mut at = 0;
        let ended = loop {
            let rest = &text[at..];
            if rest.is_empty() {
                break Ended::Body;
            }
            if rest.starts_with(self.params.row_delimiter.as_str()) {
                break Ended::Record;
            }
            if rest.starts_with(self.params.column_separator.as_str()) {
                break Ended::Field;
            }
            let width = rest.chars().next().map_or(1, char::len_utf8);
            if self.params.escape == rest.bytes().next() && !rest.starts_with(NULL) {
                unescaped.get_or_insert_default().push_str(&text[start..at]);
                start = at + 1;
                at += 1 + text[start..].chars().next().map_or(0, char::len_utf8);
            } else {
                at += width;
            }
        };
        self.skip(at, &ended);
        let field = match unescaped {
            None => Cow::Borrowed(&text[..at]),
            Some(mut done) => {
                done.push_str(&text[start..at]);
                Cow::Owned(done)
            }
        };
        (self.trimmed(field), ended)
    }

    /// A field in quotes: a doubled quote stands for one, separators are text.
    fn enclosed(&mut self, quote: u8) -> (Cow<'b, str>, Ended) {
        let text = self.rest;
        let mut content = String::new();
        let mut at = 1;
        while at < text.len() {
            let rest = &text[at..];
            let first = rest.as_bytes()[0];
            if first == quote && rest.as_bytes().get(1) == Some(&quote) {
                content.push(quote as char);
                at += 2;
            } else if first == quote {
                at += 1;
                break;
            } else if self.params.escape == Some(first) {
                let escaped = rest.chars().nth(1);
                content.extend(escaped);
                at += 1 + escaped.map_or(0, char::len_utf8);
            } else {
                let character = rest.chars().next().unwrap_or_default();
                content.push(character);
                at += character.len_utf8();
            }
        }
        let behind = &text[at..];
        let ends = [
            behind.find(self.params.row_delimiter.as_str()).map(|end| (end, Ended::Record)),
            behind.find(self.params.column_separator.as_str()).map(|end| (end, Ended::Field)),
        ];
        let end = ends.into_iter().flatten().min_by_key(|(end, _)| *end);
        let (end, ended) = end.unwrap_or((behind.len(), Ended::Body));
        // What stands between the quote and the separator belongs to the value, as on a BE.
        content.push_str(self.trimmed(Cow::Borrowed(&behind[..end])).as_ref());
        self.skip(at + end, &ended);
        (Cow::Owned(content), ended)
    }

    fn skip(&mut self, bytes: usize, ended: &Ended) {
        let separator = match ended {
            Ended::Field => self.params.column_separator.len(),
            Ended::Record => self.params.row_delimiter.len(),
            Ended::Body => 0,
        };
        self.rest = &self.rest[bytes + separator..];
    }

    fn trimmed<'f>(&self, field: Cow<'f, str>) -> Cow<'f, str> {
        if !self.params.trim_space {
            return field;
        }
        match field {
            Cow::Borrowed(text) => Cow::Borrowed(text.trim_matches(' ')),
            Cow::Owned(text) => Cow::Owned(text.trim_matches(' ').to_owned()),
        }
    }
}

/// What stood behind a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Field,
    Record,
    Body,
}

#[cfg(test)]
mod tests {
    use super::Reader;
    use crate::ingest::LoadParams;
    use http::{HeaderMap, HeaderName, HeaderValue};

    fn check(headers: &[(&'static str, &'static str)], body: &str, expected: &[&[&str]]) {
        let headers = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let params = LoadParams::from_headers(&headers.collect::<HeaderMap>()).expect("well-formed");
        let mut reader = Reader { params: &params, rest: body };
        let (mut fields, mut found) = (Vec::new(), Vec::new());
        while reader.record(&mut fields).is_some() {
            found.push(fields.iter().map(|field| field.to_string()).collect::<Vec<_>>());
        }
        assert_eq!(found, expected, "{body:?}");
    }

    #[test]
    fn fields_end_where_they_should() {
        check(&[], "1\ta\n2\t\n", &[&["1", "a"], &["2", ""]]);
        check(&[("column_separator", "\\x01")], "1\u{1}a b", &[&["1", "a b"]]);
        check(&[("column_separator", "||"), ("row_delimiter", "\\x02")], "1||a\u{2}", &[&["1", "a"]]);
        let quotes = [("column_separator", ","), ("enclose", "\"")];
        check(&quotes, "1,\"a,\"\"b\"\"\nc\",2\n", &[&["1", "a,\"b\"\nc", "2"]]);
        check(&quotes, "\"\",x\"y\n", &[&["", "x\"y"]]);
        let escapes = [("column_separator", ","), ("escape", "\\")];
        check(&escapes, "a\\,b,\\N,\\\\\n", &[&["a,b", "\\N", "\\"]]);
        let trimmed = [("column_separator", ","), ("trim_space", "true"), ("enclose", "\"")];
        check(&trimmed, " a , \" b \" \n", &[&["a", " b "]]);
    }
}
