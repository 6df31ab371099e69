//! Answers for parts of a chunk, put together into the answer for the whole.

use std::ops::Range;

use crate::record::{Answer, BytesColumn, Columns, HeaderColumn};

/// In [`Answer::tables`]: the table that the row would have without this plugin. Occurs only where a plugin that
/// returned tables for one part of a chunk returned none for another and declares no empty name.
/// Larger than every index that a plugin can return.
pub const TABLE_UNROUTED: u16 = u16::MAX;

/// The answers so far, in the order of the chunk.
pub(super) struct Pieces<'a> {
    chunk: &'a Columns,
    answers: Vec<(Range<usize>, Answer)>,
}

impl<'a> Pieces<'a> {
    pub(super) fn new(chunk: &'a Columns) -> Self {
        Self { chunk, answers: Vec::new() }
    }

    /// Adds the answer for the records `part`, which follow those added before.
    pub(super) fn push(&mut self, part: Range<usize>, answer: Answer) {
        self.answers.push((part, answer));
    }

    /// One answer for the whole chunk. A column that any part brings is brought for all rows: where a part left it
    /// as in the input, the input is copied.
    pub(super) fn merge(self, tables: &[String]) -> Answer {
        let Self { chunk, mut answers } = self;
        if answers.len() == 1
            && let Some((part, answer)) = answers.pop_if(|(part, _)| part.start == 0)
        {
            debug_assert_eq!(part.end, chunk.len(), "a lone answer is for the whole chunk");
            return answer;
        }
        // A part without rows brings nothing, whatever empty columns it returned.
        let brings = |has: fn(&Answer) -> bool| {
            answers.iter().any(|(_, answer)| !answer.inputs.is_empty() && has(answer))
        };
        let unrouted = tables.iter().position(String::is_empty).and_then(|own| u16::try_from(own).ok());
        let mut whole = Whole {
            chunk,
            unrouted: unrouted.unwrap_or(TABLE_UNROUTED),
            answer: Answer {
                tables: brings(|answer| answer.tables.is_some()).then(Vec::new),
                values: brings(|answer| answer.values.is_some()).then(BytesColumn::default),
                marks: brings(|answer| answer.marks.is_some()).then(Vec::new),
                keys: brings(|answer| answer.keys.is_some()).then(BytesColumn::default),
                timestamps: brings(|answer| answer.timestamps.is_some()).then(Vec::new),
                headers: brings(|answer| answer.headers.is_some()).then(HeaderColumn::default),
                ..Answer::default()
            },
        };
        for (part, answer) in answers {
            whole.append(part.start, answer);
        }
        whole.answer
    }
}

struct Whole<'a> {
    chunk: &'a Columns,
    unrouted: u16,
    answer: Answer,
}

impl Whole<'_> {
    fn append(&mut self, start: usize, part: Answer) {
        let chunk = self.chunk;
        let inputs: Vec<u32> = part.inputs.iter().map(|input| input + start as u32).collect();
        let whole = &mut self.answer;
        if let Some(tables) = &mut whole.tables {
            match part.tables {
                Some(more) => tables.extend(more),
                None => tables.extend(inputs.iter().map(|_| self.unrouted)),
            }
        }
        if let Some(values) = &mut whole.values {
            append_bytes(values, part.values.as_ref(), &chunk.values, &inputs);
        }
        if let Some(keys) = &mut whole.keys {
            append_bytes(keys, part.keys.as_ref(), &chunk.keys, &inputs);
        }
        if let Some(marks) = &mut whole.marks {
            append_numbers(marks, part.marks.as_deref(), &chunk.marks, &inputs);
        }
        if let Some(timestamps) = &mut whole.timestamps {
            append_numbers(timestamps, part.timestamps.as_deref(), &chunk.timestamps, &inputs);
        }
        if let Some(headers) = &mut whole.headers {
            append_headers(headers, part.headers.as_ref(), &chunk.headers, &inputs);
        }
        whole.inputs.extend(inputs);
        whole.rejects.extend(part.rejects.into_iter().map(|mut reject| {
            reject.input += start as u32;
            reject
        }));
    }
}

fn append_bytes(whole: &mut BytesColumn, part: Option<&BytesColumn>, chunk: &BytesColumn, inputs: &[u32]) {
    match part {
        Some(part) => part.iter().for_each(|element| whole.push(element)),
        None => inputs.iter().for_each(|input| whole.push(chunk.get(*input as usize))),
    }
}

fn append_numbers<T: Copy + Default>(whole: &mut Vec<T>, part: Option<&[T]>, chunk: &[T], inputs: &[u32]) {
    match part {
        Some(part) => whole.extend_from_slice(part),
        // A column that was not gathered has no entries: every row then has none.
        None => {
            whole.extend(inputs.iter().map(|input| chunk.get(*input as usize).copied().unwrap_or_default()))
        }
    }
}

fn append_headers(
    whole: &mut HeaderColumn,
    part: Option<&HeaderColumn>,
    chunk: &HeaderColumn,
    inputs: &[u32],
) {
    let mut push = |headers: &HeaderColumn, record: usize| {
        for (name, content) in headers.pairs(record) {
            whole.names.push(name);
            whole.contents.push(content);
        }
        whole.end_record();
    };
    match part {
        Some(part) => (0..part.ends.len()).for_each(|row| push(part, row)),
        None => inputs.iter().for_each(|input| push(chunk, *input as usize)),
    }
}

/// Copies the records `part` of `chunk` into `into`, replacing what it held.
pub(super) fn copy_part(chunk: &Columns, part: Range<usize>, into: &mut Columns) {
    into.clear();
    into.source.clone_from(&chunk.source);
    for record in part.clone() {
        // Columns that were not gathered stay empty.
        if record < chunk.values.len() {
            into.values.push(chunk.values.get(record));
        }
        if record < chunk.keys.len() {
            into.keys.push(chunk.keys.get(record));
        }
        if record < chunk.headers.ends.len() {
            for (name, content) in chunk.headers.pairs(record) {
                into.headers.names.push(name);
                into.headers.contents.push(content);
            }
            into.headers.end_record();
        }
    }
    into.marks.extend_from_slice(chunk.marks.get(part.clone()).unwrap_or_default());
    into.timestamps.extend_from_slice(chunk.timestamps.get(part.clone()).unwrap_or_default());
    into.partitions.extend_from_slice(chunk.partitions.get(part.clone()).unwrap_or_default());
    into.offsets.extend_from_slice(chunk.offsets.get(part).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk() -> Columns {
        let mut chunk = Columns { source: Some("orders".into()), ..Columns::default() };
        for (record, (value, key)) in
            [("v0", "k0"), ("v1", "k1"), ("v2", "k2"), ("v3", "k3")].iter().enumerate()
        {
            chunk.values.push(value.as_bytes());
            chunk.keys.push(key.as_bytes());
            chunk.marks.push(6);
            chunk.timestamps.push(record as i64);
            chunk.partitions.push(1);
            chunk.offsets.push(100 + record as i64);
            chunk.headers.names.push(b"n");
            chunk.headers.contents.push(value.as_bytes());
            chunk.headers.end_record();
        }
        chunk
    }

    fn column(elements: &[&str]) -> BytesColumn {
        let mut column = BytesColumn::default();
        elements.iter().for_each(|element| column.push(element.as_bytes()));
        column
    }

    #[test]
    fn a_part_has_the_columns_of_its_records() {
        let chunk = chunk();
        let mut part = Columns::default();
        copy_part(&chunk, 1..3, &mut part);
        assert_eq!(part.source(), "orders");
        assert_eq!(part.values, column(&["v1", "v2"]));
        assert_eq!(part.keys, column(&["k1", "k2"]));
        assert_eq!((part.timestamps, part.offsets), (vec![1, 2], vec![101, 102]));
        assert_eq!(part.headers.pairs(1).collect::<Vec<_>>(), [(&b"n"[..], &b"v2"[..])]);
        assert_eq!(part.marks.len(), 2);
    }

    #[test]
    fn a_column_that_was_not_gathered_stays_empty() {
        let mut chunk = chunk();
        chunk.keys.clear();
        chunk.headers.clear();
        let mut part = Columns::default();
        copy_part(&chunk, 0..2, &mut part);
        assert!(part.keys.is_empty() && part.headers.ends.is_empty());
        assert_eq!(part.len(), 2);
    }

    /// Record 0 as it is, record 1 with everything new, records 2 and 3 rejected and dropped.
    fn merged(tables: &[&str]) -> Answer {
        let chunk = chunk();
        let mut pieces = Pieces::new(&chunk);
        pieces.push(0..1, Answer { inputs: vec![0], ..Answer::default() });
        let new = Answer {
            inputs: vec![0, 0],
            tables: Some(vec![0, 1]),
            values: Some(column(&["a", "b"])),
            marks: Some(vec![7, 7]),
            keys: Some(column(&["c", "d"])),
            timestamps: Some(vec![8, 9]),
            headers: Some(HeaderColumn { ends: vec![0, 0], ..HeaderColumn::default() }),
            ..Answer::default()
        };
        pieces.push(1..2, new);
        let reject = crate::record::RecordReject { input: 0, code: "trap".into(), message: "no".into() };
        pieces.push(2..3, Answer { rejects: vec![reject], ..Answer::default() });
        pieces.push(3..4, Answer { values: Some(BytesColumn::default()), ..Answer::default() });
        pieces.merge(&tables.iter().map(|table| (*table).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn what_a_part_left_alone_is_copied_from_the_input() {
        let answer = merged(&["x", "y", ""]);
        assert_eq!(answer.inputs, [0, 1, 1]);
        assert_eq!(answer.tables.unwrap(), [2, 0, 1], "the empty name is the table without this plugin");
        assert_eq!(answer.values.unwrap(), column(&["v0", "a", "b"]));
        assert_eq!(answer.keys.unwrap(), column(&["k0", "c", "d"]));
        assert_eq!(answer.marks.unwrap(), [6, 7, 7]);
        assert_eq!(answer.timestamps.unwrap(), [0, 8, 9]);
        let headers = answer.headers.unwrap();
        assert_eq!(headers.pairs(0).collect::<Vec<_>>(), [(&b"n"[..], &b"v0"[..])]);
        assert_eq!((headers.pairs(1).count(), headers.ends), (0, vec![1, 1, 1]));
        assert_eq!(answer.rejects[0].input, 2);
    }

    #[test]
    fn without_an_empty_name_rows_say_that_nobody_routed_them() {
        assert_eq!(merged(&["x", "y"]).tables.unwrap(), [TABLE_UNROUTED, 0, 1]);
    }

    #[test]
    fn columns_that_no_row_brings_stay_absent() {
        let chunk = chunk();
        let mut pieces = Pieces::new(&chunk);
        pieces.push(0..2, Answer { inputs: vec![0, 1], ..Answer::default() });
        pieces.push(2..4, Answer { values: Some(BytesColumn::default()), ..Answer::default() });
        let answer = pieces.merge(&[]);
        assert_eq!(answer.inputs, [0, 1]);
        assert!(answer.values.is_none() && answer.tables.is_none() && answer.keys.is_none());
    }
}
