//! `verify = true`: whether a plugin makes the same rows of the same records when it is asked once more, on an instance
//! that has seen nothing else. Then what a lane's own instance remembers of earlier chunks shows, too.

use std::sync::Arc;

use crate::fault::Fault;
use crate::plugin::{Guest, Plugin, TABLE_UNROUTED, process_isolated};
use crate::position::Partition;
use crate::record::{Answer, BytesColumn, Columns};

/// One chunk in so many is verified.
pub const CHUNKS_PER_SAMPLE: u64 = 100;
/// Codes of rejects that hang on the machine and not on the record: an answer with one is compared with none.
const CODES_OF_CHANCE: [&str; 2] = ["timeout", "memory"];

/// Which chunks of a lane are verified: the 1st, 2nd, 4th and so on, since a plugin that remembers mostly shows it soon,
/// and then each hundredth.
#[derive(Debug, Default)]
pub struct Sampling {
    chunks: u64,
}

impl Sampling {
    /// Whether the next chunk is one.
    pub fn takes_next(&mut self) -> bool {
        self.chunks += 1;
        match self.chunks {
            early if early < CHUNKS_PER_SAMPLE => early.is_power_of_two(),
            later => later % CHUNKS_PER_SAMPLE == 0,
        }
    }
}

/// Where two answers to the same records begin to differ.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Difference {
    /// The record, by its place in the chunk.
    input: u32,
    /// Its row, from 1; none if no row is concerned.
    row: Option<u64>,
    /// What of it.
    what: &'static str,
}

/// Asks a fresh instance of the plugin for the same records, and compares. `partition` is where the chunk came from. False
/// if the answers could not be compared, since one of them hangs on the machine.
///
/// # Errors
/// Halt, if it makes other rows, naming the record and never its content; or whatever a call may come to.
pub(super) fn ask_again(
    plugin: &Arc<Plugin>,
    (chunk, partition): (&Columns, &Partition),
    answer: &Answer,
    scratch: &mut Columns,
) -> Result<bool, Fault> {
    let mut fresh = Guest::new(Arc::clone(plugin))?;
    let again = process_isolated(&mut fresh, chunk, scratch)?;
    let by_chance =
        |answer: &Answer| answer.rejects.iter().any(|reject| CODES_OF_CHANCE.contains(&reject.code.as_str()));
    if by_chance(answer) || by_chance(&again) {
        return Ok(false);
    }
    let Some(Difference { input, row, what }) = difference(chunk, answer, &again) else { return Ok(true) };
    let source = chunk.source.as_ref().unwrap_or(&partition.source);
    let offset = chunk.offsets.get(input as usize).copied().unwrap_or_default();
    let row = row.map_or_else(String::new, |row| format!(", its row {row}"));
    Err(Fault::halt(
        format!(
            "plugin {} does not make the same rows of the same records twice: {source}[{}] offset {offset}{row}: another {what}",
            plugin.name, partition.number
        ),
        "what is promised hangs on it: rows must follow from the record and the configuration alone. Take out what the \
         plugin keeps between calls, the order of hash maps, and addresses; nothing of these records was loaded, and no \
         position has moved. verify = false in [pipeline] goes on without looking",
    ))
}

/// The first record of which the answers say different things; what they leave as it was counts as what it was.
fn difference(chunk: &Columns, one: &Answer, other: &Answer) -> Option<Difference> {
    let row = row_that_differs(chunk, one, other);
    let reject = reject_that_differs(one, other);
    match (row, reject) {
        (Some(row), Some(reject)) => Some(if reject.input < row.input { reject } else { row }),
        (row, reject) => row.or(reject),
    }
}

fn row_that_differs(chunk: &Columns, one: &Answer, other: &Answer) -> Option<Difference> {
    let rows = one.inputs.len().max(other.inputs.len());
    for row in 0..rows {
        let (mine, theirs) = (one.inputs.get(row).copied(), other.inputs.get(row).copied());
        let input = mine.into_iter().chain(theirs).min()?;
        let differs = |what| {
            let longer = if mine == Some(input) { one } else { other };
            let before = longer.inputs.iter().take(row).rev().take_while(|earlier| **earlier == input);
            Some(Difference { input, row: Some(before.count() as u64 + 1), what })
        };
        if mine != theirs {
            return differs("number of rows");
        }
        if let Some(what) = column_that_differs(chunk, one, other, (row, input as usize)) {
            return differs(what);
        }
    }
    None
}

fn column_that_differs(
    chunk: &Columns,
    one: &Answer,
    other: &Answer,
    (row, record): (usize, usize),
) -> Option<&'static str> {
    fn bytes<'a>(own: Option<&'a BytesColumn>, theirs: &'a BytesColumn, at: (usize, usize)) -> &'a [u8] {
        own.map_or_else(|| theirs.get(at.1), |column| column.get(at.0))
    }
    fn number<T: Copy>(own: Option<&Vec<T>>, theirs: &[T], at: (usize, usize)) -> Option<T> {
        own.map_or_else(|| theirs.get(at.1), |column| column.get(at.0)).copied()
    }
    let at = (row, record);
    if bytes(one.values.as_ref(), &chunk.values, at) != bytes(other.values.as_ref(), &chunk.values, at) {
        return Some("value");
    }
    let table = |answer: &Answer| {
        answer.tables.as_ref().map_or(Some(TABLE_UNROUTED), |tables| tables.get(row).copied())
    };
    if table(one) != table(other) {
        return Some("table");
    }
    let mark = |answer: &Answer| number(answer.marks.as_ref(), &chunk.marks, at);
    if mark(one) != mark(other) {
        return Some("mark");
    }
    if bytes(one.keys.as_ref(), &chunk.keys, at) != bytes(other.keys.as_ref(), &chunk.keys, at) {
        return Some("key");
    }
    let timestamp = |answer: &Answer| number(answer.timestamps.as_ref(), &chunk.timestamps, at);
    if timestamp(one) != timestamp(other) {
        return Some("timestamp");
    }
    fn pairs<'a>(
        answer: &'a Answer,
        chunk: &'a Columns,
        at: (usize, usize),
    ) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        match &answer.headers {
            Some(headers) => headers.pairs(at.0),
            None => chunk.headers.pairs(at.1),
        }
    }
    (!pairs(one, chunk, at).eq(pairs(other, chunk, at))).then_some("header")
}

fn reject_that_differs(one: &Answer, other: &Answer) -> Option<Difference> {
    let rejects = one.rejects.len().max(other.rejects.len());
    (0..rejects).find_map(|place| {
        let (mine, theirs) = (one.rejects.get(place), other.rejects.get(place));
        if mine == theirs {
            return None;
        }
        let input = mine.into_iter().chain(theirs).map(|reject| reject.input).min()?;
        Some(Difference { input, row: None, what: "reject" })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::RecordReject;

    fn column(values: &[&str]) -> BytesColumn {
        let mut column = BytesColumn::default();
        values.iter().for_each(|value| column.push(value.as_bytes()));
        column
    }

    fn chunk() -> Columns {
        Columns { values: column(&["a", "b", "c"]), marks: vec![1, 1, 1], ..Columns::default() }
    }

    fn rows(inputs: &[u32], values: &[&str]) -> Answer {
        Answer { inputs: inputs.to_vec(), values: Some(column(values)), ..Answer::default() }
    }

    fn check(one: &Answer, other: &Answer, expected: Option<(u32, Option<u64>, &'static str)>) {
        let expected = expected.map(|(input, row, what)| Difference { input, row, what });
        assert_eq!(difference(&chunk(), one, other), expected);
        assert_eq!(difference(&chunk(), other, one), expected);
    }

    #[test]
    fn what_comes_to_the_same_is_the_same() {
        let kept = Answer { inputs: vec![0, 1, 2], ..Answer::default() };
        check(&kept, &rows(&[0, 1, 2], &["a", "b", "c"]), None);
        let said = Answer {
            tables: Some(vec![TABLE_UNROUTED; 3]),
            marks: Some(vec![1, 1, 1]),
            ..rows(&[0, 1, 2], &["a", "b", "c"])
        };
        check(&kept, &said, None);
    }

    #[test]
    fn the_first_record_with_another_row_is_named() {
        let one = rows(&[0, 1, 1, 2], &["a", "b", "b2", "c"]);
        check(&one, &rows(&[0, 1, 1, 2], &["a", "b", "b3", "C"]), Some((1, Some(2), "value")));
        check(&one, &rows(&[0, 1, 2], &["a", "b", "c"]), Some((1, Some(2), "number of rows")));
        check(&one, &rows(&[0, 1, 1], &["a", "b", "b2"]), Some((2, Some(1), "number of rows")));
        let routed = Answer { tables: Some(vec![0, 0, 1, 0]), ..rows(&[0, 1, 1, 2], &["a", "b", "b2", "c"]) };
        let other = Answer { tables: Some(vec![0, 0, 0, 0]), ..rows(&[0, 1, 1, 2], &["a", "b", "b2", "c"]) };
        check(&routed, &other, Some((1, Some(2), "table")));
        let deletes = Answer { marks: Some(vec![1, 1, 1, 3]), ..rows(&[0, 1, 1, 2], &["a", "b", "b2", "c"]) };
        check(&one, &deletes, Some((2, Some(1), "mark")));
    }

    #[test]
    fn rejects_are_compared_with_their_reasons() {
        let reject =
            |input, message: &str| RecordReject { input, code: "no".into(), message: message.into() };
        let one = Answer { rejects: vec![reject(1, "first")], ..rows(&[0, 2], &["a", "c"]) };
        let other = Answer { rejects: vec![reject(1, "second")], ..rows(&[0, 2], &["a", "c"]) };
        check(&one, &other, Some((1, None, "reject")));
        check(&one, &rows(&[0, 2], &["a", "c"]), Some((1, None, "reject")));
        check(
            &one,
            &Answer { rejects: vec![reject(1, "first")], ..rows(&[0, 2], &["x", "c"]) },
            Some((0, Some(1), "value")),
        );
    }

    #[test]
    fn the_first_chunks_are_looked_at_more_often() {
        let mut sampling = Sampling::default();
        let taken: Vec<u64> = (1..=301).filter(|_| sampling.takes_next()).collect();
        assert_eq!(taken, [1, 2, 4, 8, 16, 32, 64, 100, 200, 300]);
    }
}
