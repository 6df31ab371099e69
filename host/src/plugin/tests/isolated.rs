//! The policy: a failing record becomes a reject, its neighbours have their rows, and many in a row halt.

use proptest::prelude::*;

use super::wat::{KEEP_ALL, Wat};
use super::*;
use crate::plugin::process_isolated;
use crate::record::Answer;

/// Traps on `!`, loops on `@`; returns the values if one has a `v`, and leaves them as they are otherwise.
fn whimsical(bench: &Bench, failures_in_a_row: u32) -> Guest {
    whimsical_as(transform, bench, failures_in_a_row)
}

fn whimsical_as(limits: fn(PathBuf, &str) -> Transform, bench: &Bench, failures_in_a_row: u32) -> Guest {
    let process = format!(
        "(if (call $has (local.get $batch) (i32.const 33)) (then unreachable))
         (if (call $has (local.get $batch) (i32.const 64)) (then (loop $for_ever (br $for_ever))))
         (drop {KEEP_ALL})
         (if (call $has (local.get $batch) (i32.const 118)) (then
            (i32.store8 offset=24 (i32.const 4096) (i32.const 1))
            (memory.copy (i32.const 4124) (i32.add (local.get $batch) (i32.const 8)) (i32.const 16))))
         (i32.const 4096)"
    );
    let wat = Wat { process: &process, ..Wat::default() };
    let plugin = Transform { failures_in_a_row, ..limits(wat.build(bench.cache.path()), "{}") };
    bench.guest(&plugin)
}

fn isolated(guest: &mut Guest, chunk: &Columns) -> Result<Answer, Fault> {
    process_isolated(guest, chunk, &mut Columns::default())
}

fn rejected(answer: &Answer) -> Vec<(u32, &str)> {
    answer.rejects.iter().map(|reject| (reject.input, reject.code.as_str())).collect()
}

#[test]
fn a_record_alone_has_two_chances() {
    let bench = Bench::new();
    let mut guest = whimsical(&bench, 10);
    let answer = isolated(&mut guest, &chunk(["!"])).unwrap();
    assert_eq!((answer.inputs.len(), rejected(&answer)), (0, vec![(0, "trap")]));
    assert_eq!(answer.rejects[0].message, "the plugin trapped: wasm `unreachable` instruction executed");
    assert_eq!(guest.plugin().stats.traps.get(), 2);
}

#[test]
fn parts_that_returned_values_and_parts_that_did_not_make_one_answer() {
    let bench = Bench::new();
    let mut guest = whimsical_as(endless, &bench, 10);
    let answer = isolated(&mut guest, &chunk(["a", "!", "v1", "bc", "@"])).unwrap();
    assert_eq!(answer.inputs, [0, 2, 3]);
    assert_eq!(answer.values.as_ref().unwrap().iter().collect::<Vec<_>>(), [&b"a"[..], b"v1", b"bc"]);
    assert_eq!(rejected(&answer), [(1, "trap"), (4, "timeout")]);
}

#[test]
fn failures_in_a_row_halt_and_a_success_starts_the_row_again() {
    let bench = Bench::new();
    let mut guest = whimsical(&bench, 3);
    assert!(isolated(&mut guest, &chunk(["!", "!", "a", "!", "!", "a"])).is_ok());
    assert!(isolated(&mut guest, &chunk(["a", "!", "!"])).is_ok());
    assert!(isolated(&mut guest, &chunk(["a"])).is_ok());
    assert!(isolated(&mut guest, &chunk(["a", "!", "!"])).is_ok());
    let story = halts(isolated(&mut guest, &chunk(["!", "a"])));
    assert!(
        story.starts_with("plugin test failed on 3 records in a row: the plugin trapped: "),
        "over chunks: {story}"
    );
}

#[test]
fn a_plugin_that_always_fails_halts_soon() {
    let bench = Bench::new();
    let mut guest = whimsical(&bench, 5);
    let values = vec!["!"; 10_000];
    halts(isolated(&mut guest, &chunk(values)));
    let calls = guest.plugin().stats.calls.get();
    assert!(calls < 50, "{calls} calls for 10,000 records");
}

/// Traps on more than one record, and answers one with `answer`.
fn one_at_a_time(bench: &Bench, answer: &str, failures_in_a_row: u32) -> Guest {
    let process = format!(
        "(if (i32.gt_u (i32.load offset=28 (local.get $batch)) (i32.const 1)) (then unreachable))
         (drop {KEEP_ALL}) {answer} (i32.const 4096)"
    );
    // 1 MiB from 65536 on; at 5000 its end, at 5004 four rows of the one record.
    let fields =
        r#"(data (i32.const 5000) "\00\00\10\00" "\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00")"#;
    let wat = Wat { process: &process, fields, memory_pages: 20, ..Wat::default() };
    let file = wat.build(bench.cache.path());
    let plugin = Transform { failures_in_a_row, output_bytes: 4_500_000, ..transform(file, "{}") };
    bench.guest(&plugin)
}

/// A value of 1 MiB.
const MEBIBYTE: &str = "(i32.store8 offset=24 (i32.const 4096) (i32.const 1))
    (i32.store offset=28 (i32.const 4096) (i32.const 65536)) (i32.store offset=32 (i32.const 4096) (i32.const 1048576))
    (i32.store offset=36 (i32.const 4096) (i32.const 5000)) (i32.store offset=40 (i32.const 4096) (i32.const 1))";
/// Four rows with the record's own value.
const FOUR_TIMES: &str = "(i32.store offset=4 (i32.const 4096) (i32.const 5004))
    (i32.store offset=8 (i32.const 4096) (i32.const 4))";

/// Each call keeps to its limit. Without one on all of them a chunk of two thousand records could bring 128 GiB.
#[test]
fn the_parts_of_a_chunk_return_no_more_together_than_one_call_may() {
    let bench = Bench::new();
    let answer = isolated(&mut one_at_a_time(&bench, MEBIBYTE, 10), &chunk(["a"; 8])).unwrap();
    assert_eq!(answer.inputs, [0, 1, 2, 3]);
    assert_eq!(answer.values.as_ref().map(|values| values.data.len()), Some(4 << 20));
    assert_eq!(rejected(&answer), [4, 5, 6, 7].map(|input| (input, "invalid-output")));
    assert_eq!(
        answer.rejects[0].message,
        "the plugin returned more than 4500000 bytes for the records of one chunk"
    );
    // What is copied of the records counts the same: three times 300 kB each.
    let large = "x".repeat(300_000);
    let mut guest = one_at_a_time(&bench, FOUR_TIMES, 10);
    let answer = isolated(&mut guest, &chunk([&large; 7])).unwrap();
    assert_eq!((answer.inputs.len(), answer.inputs.last()), (20, Some(&4)));
    assert_eq!(rejected(&answer), [5, 6].map(|input| (input, "invalid-output")));
    assert_eq!(guest.plugin().stats.invalid_outputs.get(), 4, "each was tried twice");
    // A plugin that always does so halts its pipeline soon.
    let mut guest = one_at_a_time(&bench, MEBIBYTE, 3);
    let story = halts(isolated(&mut guest, &chunk(["a"; 2_000])));
    assert!(
        story.starts_with("plugin test failed on 3 records in a row: the plugin returned more"),
        "{story}"
    );
    let calls = guest.plugin().stats.calls.get();
    assert!(calls < 50, "{calls} calls for 2,000 records");
    // The next chunk has all of its room again.
    assert!(isolated(&mut guest, &chunk(["a"; 3])).is_ok_and(|answer| answer.rejects.is_empty()));
}

#[test]
fn what_the_plugin_says_of_the_whole_batch_is_not_a_records_fault() {
    let bench = Bench::new();
    let say = |discriminant: u32| {
        format!(
            "(i32.store8 (i32.const 4096) (i32.const 1)) (i32.store8 offset=4 (i32.const 4096) (i32.const {discriminant}))
             (i32.store offset=8 (i32.const 4096) (i32.const 5000)) (i32.store offset=12 (i32.const 4096) (i32.const 4))
             (i32.const 4096)"
        )
    };
    let fields = r#"(data (i32.const 5000) "busy")"#;
    let process = say(0);
    let mut guest = bench.guest(&transform(
        Wat { process: &process, fields, ..Wat::default() }.build(bench.cache.path()),
        "{}",
    ));
    let fault = isolated(&mut guest, &chunk(["a", "b"])).unwrap_err();
    assert_eq!((fault.kind, fault.what.as_str()), (FaultKind::Retry, "plugin test asks to try again: busy"));
    let process = say(1);
    let mut guest = bench.guest(&transform(
        Wat { process: &process, fields, ..Wat::default() }.build(bench.cache.path()),
        "{}",
    ));
    let story = halts(isolated(&mut guest, &chunk(["a", "b"])));
    assert!(story.starts_with("plugin test gave up: busy; "), "{story}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever the mixture, each record is either a row with its own value or a reject, in order.
    #[test]
    fn every_record_is_accounted_for(values in proptest::collection::vec("[abv!]{0,3}", 1..40)) {
        thread_local! {
            // One engine for all cases.
            static BENCH: Bench = Bench::new();
        }
        BENCH.with(|bench| -> Result<(), TestCaseError> {
            let mut guest = whimsical(bench, 1_000);
            let chunk = chunk(&values);
            let answer = isolated(&mut guest, &chunk).unwrap();
            let poisoned = |record: &&u32| values[**record as usize].contains('!');
            let records: Vec<u32> = (0..values.len() as u32).collect();
            let healthy: Vec<u32> = records.iter().filter(|record| !poisoned(record)).copied().collect();
            prop_assert_eq!(&answer.inputs, &healthy);
            let rejects: Vec<u32> = answer.rejects.iter().map(|reject| reject.input).collect();
            prop_assert_eq!(rejects, records.iter().filter(poisoned).copied().collect::<Vec<_>>());
            if let Some(column) = &answer.values {
                let expected: Vec<&[u8]> = healthy.iter().map(|record| values[*record as usize].as_bytes()).collect();
                prop_assert_eq!(column.iter().collect::<Vec<_>>(), expected);
            } else {
                prop_assert!(!healthy.iter().any(|record| values[*record as usize].contains('v')));
            }
            Ok(())
        })?;
    }
}
