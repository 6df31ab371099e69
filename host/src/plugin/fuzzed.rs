//! Any bytes as what a plugin returned: for the fuzzer (`/fuzz`) and for tests.

#![allow(unreachable_pub, reason = "public where the fuzzer includes it")]

use super::merge::Pieces;
use super::validate::{Limits, answer};
use super::wit;
use crate::record::{Answer, BytesColumn, Columns, MARK_KEY, MARK_VALUE};

/// Records of the chunk that is answered; two tables are declared.
const RECORDS: usize = 5;
const TABLES: usize = 2;
const OUTPUT_BYTES: u64 = 4 << 10;

/// Checks an answer made of `bytes`. What is accepted may be indexed without a look; nothing panics.
///
/// The first byte says which columns there are, then each column brings its length and its elements: a byte each, so that
/// the fuzzer finds its way. What is missing at the end is 0.
pub fn any(bytes: &[u8]) {
    let mut dice = Dice(bytes);
    let chunk = chunk();
    let output = dice.output();
    let limits = Limits { tables: TABLES, output_bytes: OUTPUT_BYTES };
    match answer(output, &chunk, limits) {
        Ok(answer) => {
            usable(&answer);
            let mut pieces = Pieces::new(&chunk);
            pieces.push(0..RECORDS, answer);
            usable(&pieces.merge(&["a".into(), "b".into()]));
        }
        Err(violation) => {
            assert!(!violation.is_empty() && violation.len() < 200, "{violation}");
            assert!(!violation.contains("canary"), "data of records in {violation}");
        }
    }
}

fn chunk() -> Columns {
    let mut chunk = Columns::default();
    for record in 0..RECORDS {
        let keyed = record.is_multiple_of(2);
        chunk.values.push(b"{\"canary\":1}");
        chunk.keys.push(if keyed { b"canary" } else { b"" });
        chunk.marks.push(if keyed { MARK_KEY | MARK_VALUE } else { MARK_VALUE });
        chunk.timestamps.push(0);
        chunk.headers.end_record();
    }
    chunk
}

/// What everybody behind the check relies on.
fn usable(answer: &Answer) {
    let rows = answer.inputs.len();
    assert!(answer.inputs.is_sorted());
    assert!(answer.inputs.iter().all(|input| (*input as usize) < RECORDS));
    let column = |column: &BytesColumn, len: usize| {
        assert!(column.ends.len() == len && column.ends.is_sorted());
        assert_eq!(column.ends.last().map_or(0, |end| *end as usize), column.data.len());
    };
    answer.values.iter().for_each(|values| column(values, rows));
    answer.keys.iter().for_each(|keys| column(keys, rows));
    assert!(answer.marks.as_ref().is_none_or(|marks| marks.len() == rows));
    assert!(answer.timestamps.as_ref().is_none_or(|timestamps| timestamps.len() == rows));
    let tables = answer.tables.as_deref().unwrap_or_default();
    assert!(tables.iter().all(|table| (*table as usize) < TABLES));
    assert!(answer.tables.is_none() || tables.len() == rows);
    if let Some(headers) = &answer.headers {
        assert!(headers.ends.len() == rows && headers.ends.is_sorted());
        let pairs = headers.ends.last().map_or(0, |end| *end as usize);
        column(&headers.names, pairs);
        column(&headers.contents, pairs);
        assert!(headers.names.iter().all(|name| std::str::from_utf8(name).is_ok()));
    }
    for reject in &answer.rejects {
        assert!((reject.input as usize) < RECORDS && !answer.inputs.contains(&reject.input));
        assert!(!reject.code.is_empty() && reject.message.len() <= 1_024);
    }
}

/// Bytes as decisions.
struct Dice<'a>(&'a [u8]);

impl Dice<'_> {
    fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    fn many<T>(&mut self, mut one: impl FnMut(u8) -> T) -> Vec<T> {
        (0..self.byte()).map(|_| one(self.byte())).collect()
    }

    /// Small numbers as they are; the upper half as those that are just below 2³².
    fn numbers(&mut self) -> Vec<u32> {
        self.many(|byte| if byte < 128 { u32::from(byte) } else { u32::MAX - u32::from(byte - 128) })
    }

    fn column(&mut self) -> wit::BytesColumnResult {
        wit::BytesColumnResult { data: self.many(|byte| byte), ends: self.numbers() }
    }

    fn text(&mut self) -> String {
        String::from_utf8_lossy(&self.many(|byte| byte)).into_owned()
    }

    fn output(&mut self) -> wit::Output {
        let there = self.byte();
        let has = |bit: u32| there & (1 << bit) != 0;
        wit::Output {
            inputs: self.numbers(),
            tables: has(0).then(|| self.many(u16::from)),
            values: has(1).then(|| self.column()),
            marks: has(2).then(|| self.many(|byte| byte)),
            keys: has(3).then(|| self.column()),
            timestamps: has(4).then(|| self.many(i64::from)),
            headers: has(5).then(|| wit::HeaderColumnResult {
                ends: self.numbers(),
                names: self.column(),
                contents: self.column(),
            }),
            errors: (0..if has(6) { self.byte() } else { 0 })
                .map(|_| wit::RecordError {
                    input: u32::from(self.byte()),
                    code: self.text(),
                    message: if has(7) { self.text().repeat(100) } else { self.text() },
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::test_corpus::{files, mutated};

    #[test]
    fn the_corpus_is_read_without_a_panic() {
        files("plugin").iter().for_each(|bytes| super::any(bytes));
    }

    proptest! {
        #[test]
        fn whatever_a_plugin_returns_is_refused_or_usable(bytes in mutated(files("plugin"))) {
            super::any(&bytes);
        }
    }
}
