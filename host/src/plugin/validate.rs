//! The one place where a plugin's output is checked. Nothing of it is used before.
//!
//! The checks are those that `wit/transform.wit` names as **Checked**. Whether a value is JSON is not among them:
//! whoever loads it finds out, and looking at every byte here would cost more than the crossing.

use super::excerpt::truncated;
use super::wit;
use crate::record::{
    Answer, BytesColumn, Columns, HeaderColumn, MARK_DELETE, MARK_KEY, MARK_VALUE, RecordReject,
};

/// Bytes of a reject's message; the rest is cut off.
const MESSAGE_BYTES_MAX: usize = 1_024;
/// Bytes of a reject's code: it becomes the label of a metric.
const CODE_BYTES_MAX: usize = 64;
const MARKS_KNOWN: u8 = MARK_DELETE | MARK_KEY | MARK_VALUE;

/// What an output is held against besides its input.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Tables that the plugin declared.
    pub(super) tables: usize,
    /// Bytes of all columns together.
    pub(super) output_bytes: u64,
}

/// Checks an output and takes it over without copying.
///
/// # Errors
///
/// What the plugin did against the contract, in words for its author; never with data of the records.
pub(super) fn answer(output: wit::Output, chunk: &Columns, limits: Limits) -> Result<Answer, String> {
    let records = chunk.len();
    let rows = output.inputs.len();
    check_inputs(&output.inputs, records)?;
    if let Some(tables) = &output.tables {
        check_len("tables", tables.len(), rows)?;
        check_tables(tables, limits.tables)?;
    }
    if let Some(timestamps) = &output.timestamps {
        check_len("timestamps", timestamps.len(), rows)?;
    }
    if let Some(marks) = &output.marks {
        check_len("marks", marks.len(), rows)?;
        if marks.iter().fold(0, |all, mark| all | mark) & !MARKS_KNOWN != 0 {
            return Err("marks: reserved bits are set".into());
        }
    }
    let values = output.values.map(|column| bytes_column("values", column, rows)).transpose()?;
    let keys = output.keys.map(|column| bytes_column("keys", column, rows)).transpose()?;
    let headers = output.headers.map(|column| header_column(column, rows)).transpose()?;
    let marks_of = RowMarks { own: output.marks.as_deref(), inputs: &output.inputs, chunk: &chunk.marks };
    for (name, column, bit) in [("values", &values, MARK_VALUE), ("keys", &keys, MARK_KEY)] {
        if let Some(column) = column {
            marks_of.check_absent_is_empty(name, column, bit)?;
        }
    }
    let rejects = rejects(output.errors, &output.inputs, records)?;
    let answer = Answer {
        inputs: output.inputs,
        tables: output.tables,
        values,
        marks: output.marks,
        keys,
        timestamps: output.timestamps,
        headers,
        rejects,
    };
    let Weight { own, copied } = Weight::of(&answer, chunk);
    if copied > limits.output_bytes {
        return Err(format!(
            "rows that repeat their records have {copied} bytes of them, {} are allowed",
            limits.output_bytes
        ));
    }
    if own > limits.output_bytes {
        return Err(format!("output has {own} bytes, {} are allowed", limits.output_bytes));
    }
    Ok(answer)
}

/// What an answer costs the host, in bytes; each of the two has the same limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Weight {
    /// Of its columns and rejects.
    own: u64,
    /// What is copied of records for rows that repeat them.
    copied: u64,
}

impl Weight {
    /// What `answer` to `chunk` costs.
    pub(super) fn of(answer: &Answer, chunk: &Columns) -> Weight {
        let taken = [answer.values.is_none(), answer.keys.is_none(), answer.headers.is_none()];
        Weight { own: answer_bytes(answer), copied: copied_bytes(&answer.inputs, chunk, taken) }
    }

    /// Both together, unless that is more than `limit`.
    pub(super) fn plus(self, other: Weight, limit: u64) -> Option<Weight> {
        let own = self.own.saturating_add(other.own);
        let copied = self.copied.saturating_add(other.copied);
        (own <= limit && copied <= limit).then_some(Weight { own, copied })
    }
}

fn check_len(name: &str, len: usize, rows: usize) -> Result<(), String> {
    if len == rows { Ok(()) } else { Err(format!("{name} has {len} elements for {rows} rows")) }
}

fn check_inputs(inputs: &[u32], records: usize) -> Result<(), String> {
    if !never_decreases(inputs) {
        return Err("inputs decrease".into());
    }
    match inputs.last() {
        Some(last) if *last as usize >= records => Err(format!("inputs name record {last} of {records}")),
        Some(_) | None => Ok(()),
    }
}

/// Without an early exit: the compiler makes wide compares of it, and nearly every output is right.
fn never_decreases(numbers: &[u32]) -> bool {
    numbers.iter().zip(numbers.get(1..).unwrap_or_default()).fold(true, |right, (a, b)| right & (a <= b))
}

/// Bytes that the host will copy for rows that repeat the record of the row before them: four bytes of output each could
/// otherwise be a copy of the longest record each. `taken` says whether values, keys and headers are the records' own.
fn copied_bytes(inputs: &[u32], chunk: &Columns, taken: [bool; 3]) -> u64 {
    let [values, keys, headers] = taken;
    if taken == [false; 3] {
        return 0;
    }
    let of_record = |record: usize| {
        let value = if values { chunk.values.get(record).len() } else { 0 };
        let key = if keys { chunk.keys.get(record).len() } else { 0 };
        let pairs = |(name, content): (&[u8], &[u8])| name.len() + content.len();
        let header = if headers { chunk.headers.pairs(record).map(pairs).sum() } else { 0 };
        (value + key + header) as u64
    };
    let mut bytes = 0_u64;
    let mut each = None;
    for (before, input) in inputs.iter().zip(inputs.get(1..).unwrap_or_default()) {
        // Nearly every row is another record's.
        if before == input {
            bytes = bytes.saturating_add(*each.get_or_insert_with(|| of_record(*input as usize)));
        } else {
            each = None;
        }
    }
    bytes
}

fn check_tables(tables: &[u16], declared: usize) -> Result<(), String> {
    match tables.iter().max() {
        Some(largest) if *largest as usize >= declared => {
            Err(format!("tables name table {largest} of {declared} declared"))
        }
        Some(_) | None => Ok(()),
    }
}

fn check_ends(name: &str, ends: &[u32], len: usize) -> Result<(), String> {
    if !never_decreases(ends) {
        return Err(format!("{name}: ends decrease"));
    }
    let last = ends.last().map_or(0, |end| *end as usize);
    if last == len { Ok(()) } else { Err(format!("{name}: the last end is {last}, there are {len}")) }
}

fn bytes_column(name: &str, column: wit::BytesColumnResult, rows: usize) -> Result<BytesColumn, String> {
    check_len(name, column.ends.len(), rows)?;
    check_ends(name, &column.ends, column.data.len())?;
    Ok(BytesColumn { data: column.data, ends: column.ends })
}

fn header_column(column: wit::HeaderColumnResult, rows: usize) -> Result<HeaderColumn, String> {
    check_len("headers", column.ends.len(), rows)?;
    let pairs = column.names.ends.len();
    check_ends("headers", &column.ends, pairs)?;
    let names = bytes_column("header names", column.names, pairs)?;
    let contents = bytes_column("header contents", column.contents, pairs)?;
    let text = std::str::from_utf8(&names.data).map_err(|_| "header names are not UTF-8".to_owned())?;
    if !names.ends.iter().all(|end| text.is_char_boundary(*end as usize)) {
        return Err("header names are not UTF-8".into());
    }
    Ok(HeaderColumn { ends: column.ends, names, contents })
}

/// The marks that the rows have: the plugin's own, or those of their records.
struct RowMarks<'a> {
    own: Option<&'a [u8]>,
    inputs: &'a [u32],
    chunk: &'a [u8],
}

impl RowMarks<'_> {
    /// A row that its mark says has no value (or key) must not bring one: nobody would know what to do with it.
    fn check_absent_is_empty(&self, name: &str, column: &BytesColumn, bit: u8) -> Result<(), String> {
        // Nearly always every row has one: a single pass over bytes tells.
        let marks = self.own.unwrap_or(self.chunk);
        if marks.iter().fold(bit, |all, mark| all & mark) != 0 {
            return Ok(());
        }
        let mut start = 0;
        for (row, (end, input)) in column.ends.iter().zip(self.inputs).enumerate() {
            let mark = match self.own {
                Some(own) => own.get(row),
                None => self.chunk.get(*input as usize),
            };
            if *end != start && mark.is_none_or(|mark| mark & bit == 0) {
                return Err(format!("{name}: row {row} is not empty, its mark says that it has none"));
            }
            start = *end;
        }
        Ok(())
    }
}

fn rejects(
    errors: Vec<wit::RecordError>,
    inputs: &[u32],
    records: usize,
) -> Result<Vec<RecordReject>, String> {
    let mut after: Option<u32> = None;
    errors
        .into_iter()
        .map(|error| {
            let input = error.input;
            if input as usize >= records {
                return Err(format!("errors name record {input} of {records}"));
            }
            if after.is_some_and(|after| after >= input) {
                return Err("errors are not in increasing order of records".into());
            }
            after = Some(input);
            if inputs.binary_search(&input).is_ok() {
                return Err(format!("record {input} is in error and has rows"));
            }
            if !is_code(&error.code) {
                return Err("errors: a code is not 1 to 64 of a-z, 0-9, _ and -".into());
            }
            let mut message = error.message;
            message.truncate(truncated(&message, MESSAGE_BYTES_MAX).len());
            Ok(RecordReject { input, code: error.code, message })
        })
        .collect()
}

fn is_code(code: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_' || byte == b'-';
    (1..=CODE_BYTES_MAX).contains(&code.len()) && code.bytes().all(known)
}

fn answer_bytes(answer: &Answer) -> u64 {
    let column = |column: &BytesColumn| column.data.len() + column.ends.len() * size_of::<u32>();
    let headers = |headers: &HeaderColumn| {
        headers.ends.len() * size_of::<u32>() + column(&headers.names) + column(&headers.contents)
    };
    let rejects: usize = answer.rejects.iter().map(|reject| reject.code.len() + reject.message.len()).sum();
    let bytes = answer.inputs.len() * size_of::<u32>()
        + answer.tables.as_ref().map_or(0, |tables| tables.len() * size_of::<u16>())
        + answer.values.as_ref().map_or(0, column)
        + answer.marks.as_ref().map_or(0, Vec::len)
        + answer.keys.as_ref().map_or(0, column)
        + answer.timestamps.as_ref().map_or(0, |timestamps| timestamps.len() * size_of::<i64>())
        + answer.headers.as_ref().map_or(0, headers)
        + rejects;
    bytes as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three records; the last one has neither key nor value.
    fn chunk() -> Columns {
        let mut chunk = Columns::default();
        for (value, key, mark) in
            [("v0", "k0", MARK_KEY | MARK_VALUE), ("v1", "", MARK_VALUE), ("", "", MARK_DELETE)]
        {
            chunk.values.push(value.as_bytes());
            chunk.keys.push(key.as_bytes());
            chunk.marks.push(mark);
        }
        chunk
    }

    fn column(elements: &[&str]) -> wit::BytesColumnResult {
        let mut column = BytesColumn::default();
        elements.iter().for_each(|element| column.push(element.as_bytes()));
        wit::BytesColumnResult { data: column.data, ends: column.ends }
    }

    fn error(input: u32) -> wit::RecordError {
        wit::RecordError { input, code: "parse".into(), message: "no".into() }
    }

    /// Two rows of record 0, with every column, and record 1 in error.
    fn output() -> wit::Output {
        wit::Output {
            inputs: vec![0, 0],
            tables: Some(vec![1, 0]),
            values: Some(column(&["a", ""])),
            marks: Some(vec![MARK_KEY | MARK_VALUE, MARK_KEY]),
            keys: Some(column(&["k", "l"])),
            timestamps: Some(vec![1, 2]),
            headers: Some(wit::HeaderColumnResult {
                ends: vec![0, 1],
                names: column(&["é"]),
                contents: column(&["x"]),
            }),
            errors: vec![error(1)],
        }
    }

    const LIMITS: Limits = Limits { tables: 2, output_bytes: 1_000 };

    /// The output with one thing changed is refused with these words.
    fn check(change: impl FnOnce(&mut wit::Output), expected: &str) {
        let mut output = output();
        change(&mut output);
        assert_eq!(answer(output, &chunk(), LIMITS).unwrap_err(), expected);
    }

    fn values(output: &mut wit::Output) -> &mut wit::BytesColumnResult {
        output.values.as_mut().unwrap()
    }

    fn headers(output: &mut wit::Output) -> &mut wit::HeaderColumnResult {
        output.headers.as_mut().unwrap()
    }

    #[test]
    fn what_is_right_is_taken_as_it_is() {
        let answer = answer(output(), &chunk(), LIMITS).unwrap();
        assert_eq!(answer.inputs, [0, 0]);
        assert_eq!(answer.values.unwrap().get(0), b"a");
        assert_eq!(answer.rejects[0].input, 1);
        assert!(answer_of(wit::Output { inputs: vec![], ..bare() }).inputs.is_empty());
    }

    fn bare() -> wit::Output {
        wit::Output {
            inputs: vec![0, 1, 2],
            tables: None,
            values: None,
            marks: None,
            keys: None,
            timestamps: None,
            headers: None,
            errors: vec![],
        }
    }

    fn answer_of(output: wit::Output) -> Answer {
        answer(output, &chunk(), LIMITS).unwrap()
    }

    #[test]
    fn rows_belong_to_records_in_order() {
        check(|output| output.inputs = vec![1, 0], "inputs decrease");
        check(|output| output.inputs = vec![0, 3], "inputs name record 3 of 3");
    }

    #[test]
    fn every_column_has_an_element_a_row() {
        check(|output| output.inputs.push(2), "tables has 2 elements for 3 rows");
        check(|output| output.timestamps = Some(vec![]), "timestamps has 0 elements for 2 rows");
        check(|output| output.marks = Some(vec![0; 3]), "marks has 3 elements for 2 rows");
        check(|output| output.values = Some(column(&["a"])), "values has 1 elements for 2 rows");
        check(|output| output.keys = Some(column(&[])), "keys has 0 elements for 2 rows");
        check(|output| headers(output).ends = vec![1], "headers has 1 elements for 2 rows");
        check(|output| headers(output).contents = column(&[]), "header contents has 0 elements for 1 rows");
    }

    #[test]
    fn ends_go_up_to_the_end() {
        check(|output| values(output).ends = vec![1, 0], "values: ends decrease");
        check(|output| values(output).ends = vec![1, 2], "values: the last end is 2, there are 1");
        check(|output| values(output).data.push(b'x'), "values: the last end is 1, there are 2");
        check(|output| headers(output).ends = vec![1, 0], "headers: ends decrease");
        check(|output| headers(output).ends = vec![0, 2], "headers: the last end is 2, there are 1");
        check(|output| headers(output).names.ends = vec![1], "header names: the last end is 1, there are 2");
    }

    #[test]
    fn names_of_headers_are_text_each() {
        check(|output| headers(output).names.data = vec![0xff, 0xfe], "header names are not UTF-8");
        let halves = |output: &mut wit::Output| {
            let headers = headers(output);
            headers.ends = vec![0, 2];
            headers.names.ends = vec![1, 2];
            headers.contents = column(&["x", "y"]);
        };
        check(halves, "header names are not UTF-8");
    }

    #[test]
    fn tables_are_declared_ones() {
        check(|output| output.tables = Some(vec![0, 2]), "tables name table 2 of 2 declared");
    }

    #[test]
    fn marks_have_known_bits_and_tell_the_truth() {
        check(|output| output.marks = Some(vec![8, 7]), "marks: reserved bits are set");
        check(
            |output| output.marks = Some(vec![MARK_KEY, MARK_KEY]),
            "values: row 0 is not empty, its mark says that it has none",
        );
        check(
            |output| output.marks = Some(vec![MARK_KEY | MARK_VALUE, MARK_VALUE]),
            "keys: row 1 is not empty, its mark says that it has none",
        );
    }

    #[test]
    fn without_marks_of_their_own_rows_have_those_of_their_records() {
        let keys =
            |keys: &[&str]| answer(wit::Output { keys: Some(column(keys)), ..bare() }, &chunk(), LIMITS);
        assert!(keys(&["k", "", ""]).is_ok());
        assert!(keys(&["k", "l", ""]).is_err(), "record 1 has no key");
        let values =
            |values| answer(wit::Output { values: Some(column(values)), ..bare() }, &chunk(), LIMITS);
        assert!(values(&["a", "b", ""]).is_ok());
        assert_eq!(
            values(&["a", "b", "c"]).unwrap_err(),
            "values: row 2 is not empty, its mark says that it has none"
        );
    }

    #[test]
    fn errors_are_of_records_without_rows() {
        check(|output| output.errors = vec![error(3)], "errors name record 3 of 3");
        check(|output| output.errors = vec![error(0)], "record 0 is in error and has rows");
        check(
            |output| output.errors = vec![error(2), error(1)],
            "errors are not in increasing order of records",
        );
        check(
            |output| output.errors = vec![error(1), error(1)],
            "errors are not in increasing order of records",
        );
        for code in ["", "Parse", "bad amount", "é", &"x".repeat(65)] {
            check(
                |output| output.errors[0].code = code.into(),
                "errors: a code is not 1 to 64 of a-z, 0-9, _ and -",
            );
        }
    }

    #[test]
    fn messages_are_cut_between_characters() {
        let mut long = output();
        long.errors[0].message = format!("x{}", "é".repeat(1_000));
        let limits = Limits { output_bytes: 10_000, ..LIMITS };
        let answer = answer(long, &chunk(), limits).unwrap();
        assert_eq!(answer.rejects[0].message.len(), 1_023);
    }

    #[test]
    fn all_bytes_together_have_a_limit() {
        let limits = Limits { output_bytes: 40, ..LIMITS };
        let refused = answer(output(), &chunk(), limits).unwrap_err();
        assert!(refused.ends_with("bytes, 40 are allowed"), "{refused}");
    }

    #[test]
    fn copies_of_one_record_have_the_same_limit() {
        let mut large = chunk();
        large.values = BytesColumn::default();
        for value in [&[b'x'; 300][..], b"v1", b""] {
            large.values.push(value);
        }
        let rows = |inputs: &[u32]| wit::Output { inputs: inputs.to_vec(), ..bare() };
        assert!(answer(rows(&[0, 1, 2]), &large, LIMITS).is_ok());
        // The first row of a record costs nothing more than the record did.
        assert!(answer(rows(&[0, 0, 0, 0, 1, 1, 2]), &large, LIMITS).is_ok());
        let refused = answer(rows(&[0, 0, 0, 0, 0, 1]), &large, LIMITS).unwrap_err();
        assert_eq!(refused, "rows that repeat their records have 1208 bytes of them, 1000 are allowed");
        let own = wit::Output { values: Some(column(&["a"; 6])), ..rows(&[0, 0, 0, 0, 0, 1]) };
        assert!(answer(own, &large, LIMITS).is_ok(), "values of its own are counted as output");
    }
}
