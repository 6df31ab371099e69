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
