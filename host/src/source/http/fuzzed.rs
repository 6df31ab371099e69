//! Any bytes as the body of a request: for the fuzzer (`/fuzz`) and for tests.

#![allow(unreachable_pub, reason = "public where the fuzzer includes it")]

use std::sync::Arc;
use std::time::Instant;

use super::coding::{Coding, Undone};
use super::records::{Common, Format, Unfit, read};
use crate::record::{Columns, MARK_VALUE};
use crate::source::Gathering;

const BODY_BYTES_MAX: usize = 256 << 10;
const RECORDS_MAX: u64 = 1_000;
/// Bytes of a chunk's fixed columns and headers for each of its records, roughly.
const RECORD_BYTES: usize = 128;

/// Unpacks and reads a body as a request does. The first byte says how it is packed and what it is said to be.
///
/// Nothing panics; no more is unpacked than is allowed; what is taken is complete objects, one line each, and not more
/// than the body holds.
pub fn any(bytes: &[u8]) {
    let Some((how, packed)) = bytes.split_first() else { return };
    let coding = [Coding::Identity, Coding::Gzip, Coding::Deflate, Coding::Zstd][usize::from(how & 3)];
    let format = [Format::Json, Format::Lines, Format::Guess, Format::Guess][usize::from(how >> 2 & 3)];
    let mut asked = 0;
    let unpacked = coding.unpack(packed, BODY_BYTES_MAX, &mut |bytes| {
        asked = asked.max(bytes);
        true
    });
    assert!(asked <= BODY_BYTES_MAX as u64 + 1, "asked for {asked}");
    let body = match unpacked {
        Ok(body) => body,
        Err(Undone::Broken(why)) => return assert!(!why.is_empty()),
        Err(Undone::TooLarge | Undone::NoRoom) => return,
    };
    assert!(body.len() <= BODY_BYTES_MAX);
    let common = Common {
        source: Arc::from("events"),
        gathering: Gathering {
            line_feeds: how & 16 != 0,
            keys: how & 32 != 0,
            headers: how & 64 != 0,
            ..Gathering::default()
        },
        headers: vec![(b"x-trace".to_vec(), b"t1".to_vec())],
        arrived: Instant::now(),
        arrived_us: 0,
        records_max: RECORDS_MAX,
    };
    let mut charged = 0;
    let chunks = read(&body, format, &common, &mut |bytes| {
        charged += bytes;
        true
    });
    match chunks {
        Ok(chunks) => taken(&chunks, &body, charged),
        Err(Unfit::Malformed(malformed)) => {
            assert!(malformed.byte <= body.len() as u64 && !malformed.what.is_empty());
            assert!(malformed.what.len() < 300, "{}", malformed.what);
        }
        Err(Unfit::TooMany { limit }) => assert_eq!(limit, RECORDS_MAX),
        Err(Unfit::NoRoom) => unreachable!("there was always room"),
    }
}

fn taken(chunks: &[Columns], body: &[u8], charged: u64) {
    let records: usize = chunks.iter().map(Columns::len).sum();
    assert!(records as u64 <= RECORDS_MAX);
    let data: usize = chunks.iter().map(|chunk| chunk.values.data.len()).sum();
    assert!(data <= body.len() + records, "{data} bytes of {}", body.len());
    assert!(charged <= (data + records * RECORD_BYTES) as u64, "{charged} charged for {data}");
    let mut place = 0;
    for chunk in chunks {
        assert!(chunk.values.len() == chunk.len() && chunk.offsets.len() == chunk.len());
        for (value, (mark, offset)) in chunk.values.iter().zip(chunk.marks.iter().zip(&chunk.offsets)) {
            assert_eq!((*mark, *offset), (MARK_VALUE, place));
            place += 1;
            let value = value.strip_suffix(b"\n").unwrap_or(value);
            assert!(value.starts_with(b"{") && !value.contains(&b'\n'));
            let whole: Result<serde::de::IgnoredAny, _> = serde_json::from_slice(value);
            assert!(whole.is_ok(), "{:?}", String::from_utf8_lossy(value));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::test_corpus::{files, mutated};

    #[test]
    fn the_corpus_is_read_without_a_panic() {
        files("http").iter().for_each(|bytes| super::any(bytes));
    }

    proptest! {
        #[test]
        fn whatever_a_body_is_it_is_refused_or_whole_objects(bytes in mutated(files("http"))) {
            super::any(&bytes);
        }
    }
}
