//! WASI: traps by default, clocks and random numbers when granted, and waiting that ends with the call.

use std::time::Instant;

use super::wat::{KEEP_ALL, Wat};
use super::*;
use crate::plugin::CallError;

const RANDOM: &str = "package wasi:random@0.2.6; interface random { get-random-u64: func() -> u64; }";
const IO: &str = "package wasi:io@0.2.6; interface poll {
    resource pollable { block: func(); }
    poll: func(in: list<borrow<pollable>>) -> list<u32>;
}";
const CLOCKS: &str = "package wasi:clocks@0.2.6; interface monotonic-clock {
    use wasi:io/poll@0.2.6.{pollable};
    subscribe-duration: func(when: u64) -> own<pollable>;
}";

fn random() -> Wat<'static> {
    Wat {
        process: "(drop (call $random)) (call $keep_all (local.get $batch))",
        fields: r#"(import "wasi:random/random@0.2.6" "get-random-u64" (func $random (result i64)))"#,
        packages: &[RANDOM],
        imports: "import wasi:random/random@0.2.6;",
        ..Wat::default()
    }
}

#[test]
fn a_wasi_import_loads_and_traps_when_it_is_called() {
    let bench = Bench::new();
    let mut guest = bench.guest(&transform(random().build(bench.cache.path()), "{}"));
    let what =
        "it called wasi:random/random@0.2.6#get-random-u64, which only wasi = \"minimal\" grants".into();
    assert_eq!(guest.process(&chunk(["a"])).unwrap_err(), CallError::Trap { what });
}

#[test]
fn a_granted_wasi_import_works() {
    let bench = Bench::new();
    let granted = Transform { wasi: Wasi::Minimal, ..transform(random().build(bench.cache.path()), "{}") };
    assert_eq!(bench.guest(&granted).process(&chunk(["a"])).unwrap().inputs, [0]);
}

/// Waits ten minutes on a clock, in one of the two ways there are.
fn sleeper(wait: &str) -> Wat<'_> {
    Wat {
        process: wait,
        fields: r#"(import "wasi:clocks/monotonic-clock@0.2.6" "subscribe-duration" (func $after (param i64) (result i32)))
(import "wasi:io/poll@0.2.6" "[method]pollable.block" (func $block (param i32)))
(import "wasi:io/poll@0.2.6" "poll" (func $poll (param i32 i32 i32)))"#,
        packages: &[IO, CLOCKS],
        imports: "import wasi:io/poll@0.2.6; import wasi:clocks/monotonic-clock@0.2.6;",
        ..Wat::default()
    }
}

#[test]
fn waiting_in_the_host_ends_with_the_time_of_the_call() {
    let block = format!("(call $block (call $after (i64.const 600000000000))) {KEEP_ALL}");
    let poll = format!(
        "(i32.store (i32.const 5000) (call $after (i64.const 600000000000)))
         (call $poll (i32.const 5000) (i32.const 1) (i32.const 5008)) {KEEP_ALL}"
    );
    for wait in [&block, &poll] {
        let bench = Bench::new();
        let file = sleeper(wait).build(bench.cache.path());
        let mut guest = bench.guest(&Transform { wasi: Wasi::Minimal, ..endless(file, "{}") });
        let began = Instant::now();
        let error = guest.process(&chunk(["a"])).unwrap_err();
        assert_eq!(error, CallError::TimedOut(ENDLESS_TIMEOUT));
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }
}

#[test]
fn a_short_wait_is_over_in_time() {
    let wait = format!("(call $block (call $after (i64.const 1000000))) {KEEP_ALL}");
    let bench = Bench::new();
    let file = sleeper(&wait).build(bench.cache.path());
    let mut guest = bench.guest(&Transform { wasi: Wasi::Minimal, ..transform(file, "{}") });
    assert!(guest.process(&chunk(["a"])).is_ok());
}

#[tokio::test]
async fn loading_from_the_async_runtime_does_not_panic() {
    let wat = sleeper("unreachable");
    let configure = format!("(call $block (call $after (i64.const 1000000))) {}", super::wat::CONFIGURED);
    let wat = Wat { configure: &configure, ..wat };
    let bench = Bench::new();
    let granted = Transform { wasi: Wasi::Minimal, ..transform(wat.build(bench.cache.path()), "{}") };
    bench.load(&granted).unwrap();
}

#[test]
fn a_granted_clock_in_a_loop_ends_with_the_time_of_the_call() {
    let wat = Wat {
        process: "(loop $wait (br_if $wait (i64.ne (call $now) (i64.const 0)))) unreachable",
        fields: r#"(import "wasi:clocks/monotonic-clock@0.2.6" "now" (func $now (result i64)))"#,
        packages: &["package wasi:clocks@0.2.6; interface monotonic-clock { now: func() -> u64; }"],
        imports: "import wasi:clocks/monotonic-clock@0.2.6;",
        ..Wat::default()
    };
    let bench = Bench::new();
    let granted = Transform { wasi: Wasi::Minimal, ..endless(wat.build(bench.cache.path()), "{}") };
    let error = bench.guest(&granted).process(&chunk(["a"])).unwrap_err();
    assert_eq!(error, CallError::TimedOut(ENDLESS_TIMEOUT));
}

/// GHSA-852m-cvvp-9p4w: a guest could make the host allocate without bound.
#[test]
fn random_numbers_by_the_terabyte_are_not_made() {
    let wat = Wat {
        process: "(call $random (i64.const 1099511627776) (i32.const 5000)) unreachable",
        fields: r#"(import "wasi:random/random@0.2.6" "get-random-bytes" (func $random (param i64 i32)))"#,
        packages: &[
            "package wasi:random@0.2.6; interface random { get-random-bytes: func(len: u64) -> list<u8>; }",
        ],
        imports: "import wasi:random/random@0.2.6;",
        ..Wat::default()
    };
    let bench = Bench::new();
    let granted = Transform { wasi: Wasi::Minimal, ..transform(wat.build(bench.cache.path()), "{}") };
    let error = bench.guest(&granted).process(&chunk(["a"])).unwrap_err();
    assert!(matches!(&error, CallError::Trap { what } if what.contains("exceeds limit")), "{error:?}");
}

#[test]
fn what_is_granted_shows_no_variable_no_file_and_no_network() {
    let bench = Bench::new();
    let granted = Transform { wasi: Wasi::Minimal, ..transform(built("wasip2/hostile.wasm"), "{}") };
    let answer = bench.guest(&granted).process(&chunk(["#hostile:snoop"])).unwrap();
    let found = String::from_utf8(answer.values.unwrap().get(0).to_vec()).unwrap();
    assert_eq!(found, "{\"variables\":0,\"arguments\":0,\"files\":false,\"networks\":false}\n");
}
