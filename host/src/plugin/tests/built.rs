//! The plugins that people use, and the hostile one.

use super::*;
use crate::plugin::{CallError, process_isolated};
use crate::record::Answer;

const ORDER: &str = r#"{"id":42,"ts":1767225605754,"status":"paid","customer":{"id":48213,"name":"Ada Okafor","address":{"city":"Lisbon","zip":"1100-148","country":"PT"}},"sku":"TM-004417","items":3,"price":43.31,"shipping":4.90,"currency":"EUR","channel":"web"}"#;

#[test]
fn orders_become_rows() {
    let bench = Bench::new();
    let mut guest = bench.guest(&transform(built("orders.wasm"), r#"{"currency":"EUR"}"#));
    let answer = guest.process(&chunk([ORDER, "garbage", ORDER])).unwrap();
    assert_eq!(answer.inputs, [0, 2]);
    let values = answer.values.unwrap();
    assert!(values.get(0).starts_with(br#"{"order_id":42,"#), "{:?}", str::from_utf8(values.get(0)));
    assert_eq!(answer.rejects.len(), 1);
    assert_eq!((answer.rejects[0].input, answer.rejects[0].code.as_str()), (1, "parse"));
    assert_eq!(guest.plugin().stats.calls.get(), 1);
}

#[test]
fn passthrough_copies_nothing() {
    let bench = Bench::new();
    let mut guest = bench.guest(&transform(built("passthrough.wasm"), "{}"));
    let answer = guest.process(&chunk(["a", "b"])).unwrap();
    assert_eq!(answer.inputs, [0, 1]);
    assert!(answer.values.is_none() && answer.marks.is_none() && answer.tables.is_none());
}

#[test]
fn a_stock_wasip2_build_runs_without_wasi() {
    let bench = Bench::new();
    for name in ["orders", "passthrough", "route"] {
        let config = match name {
            "orders" => r#"{"currency":"EUR"}"#,
            _ => "{}",
        };
        let plugin = bench.load(&transform(built(&format!("wasip2/{name}.wasm")), config));
        match plugin {
            Ok(plugin) => assert!(Guest::new(plugin).unwrap().process(&chunk([ORDER])).is_ok(), "{name}"),
            Err(fault) => assert!(fault.what.contains("refuses its configuration"), "{}", fault.story()),
        }
    }
}

fn isolated(guest: &mut Guest, chunk: &Columns) -> Result<Answer, Fault> {
    process_isolated(guest, chunk, &mut Columns::default())
}

#[test]
fn a_misdeed_costs_its_record_and_nothing_else() {
    let bench = Bench::new();
    let mut patient = bench.guest(&transform(built("hostile.wasm"), "{}"));
    let mut stopped = bench.guest(&endless(built("hostile.wasm"), "{}"));
    for (misdeed, code) in [
        ("trap", "trap"),
        ("panic", "trap"),
        ("out_of_bounds", "trap"),
        ("stack_overflow", "trap"),
        ("spin", "timeout"),
        ("grow", "memory"),
        ("grow_small", "memory"),
        ("inputs_descending", ""),
        ("input_beyond", "invalid-output"),
        ("table_beyond", "invalid-output"),
        ("tables_short", "invalid-output"),
        ("values_short", "invalid-output"),
        ("values_descending", "invalid-output"),
        ("values_beyond", "invalid-output"),
        ("values_rest", "invalid-output"),
        ("values_huge", "memory"),
        ("marks_short", "invalid-output"),
        ("marks_reserved", "invalid-output"),
        ("marks_no_value", "invalid-output"),
        ("keys_denied", "invalid-output"),
        ("keys_short", "invalid-output"),
        ("timestamps_short", "invalid-output"),
        ("headers_short", "invalid-output"),
        ("headers_beyond", "invalid-output"),
        ("headers_uneven", "invalid-output"),
        ("headers_bytes", "invalid-output"),
        ("error_beyond", "invalid-output"),
        ("error_twice", "invalid-output"),
        ("error_and_row", "invalid-output"),
        ("error_code", "invalid-output"),
    ] {
        let guest = if code == "timeout" { &mut stopped } else { &mut patient };
        let answer =
            isolated(guest, &chunk(["a".into(), "b".into(), format!("#hostile:{misdeed}"), "c".into()]));
        let answer = answer.unwrap_or_else(|fault| panic!("{misdeed}: {}", fault.story()));
        if code.is_empty() {
            assert_eq!(answer.inputs.len(), 4, "{misdeed}");
            continue;
        }
        assert_eq!(answer.inputs, [0, 1, 3], "{misdeed}: {:?}", answer.rejects);
        let rejects: Vec<_> = answer.rejects.iter().map(|r| (r.input, r.code.as_str())).collect();
        assert_eq!(rejects, [(2, code)], "{misdeed}: {}", answer.rejects[0].message);
    }
}

/// Records that fail, by their place among eight: the first, one in the middle, the last, every second one, and all but one.
const PLACES: [&[u32]; 5] = [&[0], &[4], &[7], &[1, 3, 5, 7], &[0, 1, 2, 3, 5, 6, 7]];

#[test]
fn wherever_a_record_traps_its_neighbours_have_their_rows() {
    let bench = Bench::new();
    let plugin = bench.load(&transform(built("hostile.wasm"), "{}")).unwrap();
    for misdeed in ["trap", "panic", "out_of_bounds", "stack_overflow"] {
        let mut guest = Guest::new(Arc::clone(&plugin)).unwrap();
        for places in PLACES {
            let value = |record| match places.contains(&record) {
                true => format!("#hostile:{misdeed}"),
                false => format!("{{\"record\":{record}}}"),
            };
            let (started, replaced) =
                (plugin.stats.instances_started.get(), plugin.stats.instances_replaced.get());
            let answer = isolated(&mut guest, &chunk((0..8).map(value))).unwrap();
            let healthy: Vec<u32> = (0..8).filter(|record| !places.contains(record)).collect();
            assert_eq!(answer.inputs, healthy, "{misdeed} at {places:?}");
            let rejects: Vec<_> = answer.rejects.iter().map(|one| (one.input, one.code.as_str())).collect();
            assert_eq!(rejects, places.iter().map(|place| (*place, "trap")).collect::<Vec<_>>(), "{misdeed}");
            let replaced = plugin.stats.instances_replaced.get() - replaced;
            // Each twice alone, and the whole before.
            assert!(replaced > places.len() as u64 * 2, "{misdeed}: {replaced} instances replaced");
            assert!(plugin.stats.instances_started.get() - started <= replaced + 1, "{misdeed}");
        }
    }
}

#[test]
fn whatever_traps_on_every_record_halts() {
    let bench = Bench::new();
    for misdeed in ["trap", "panic", "out_of_bounds", "stack_overflow"] {
        let config = format!("{{\"always\":\"{misdeed}\"}}");
        let mut guest = bench.guest(&transform(built("hostile.wasm"), &config));
        let story = halts(isolated(&mut guest, &chunk(["a"; 100])));
        assert!(
            story.starts_with("plugin hostile failed on 10 records in a row: the plugin trapped: "),
            "{story}"
        );
        assert!(guest.plugin().stats.calls.get() < 50, "{} calls", guest.plugin().stats.calls.get());
    }
}

/// Four bytes of output are a copy of the record each: a million rows of 100 kB would be 100 GB.
#[test]
fn a_million_rows_of_a_large_record_are_never_made() {
    let bench = Bench::new();
    let mut guest = bench.guest(&transform(built("hostile.wasm"), "{}"));
    let large = format!("#hostile:many_rows {}", "x".repeat(100_000));
    let answer = isolated(&mut guest, &chunk([&large, "a", "b"])).unwrap();
    assert!(answer.inputs == [1, 2], "{} rows", answer.inputs.len());
    let rejects: Vec<_> = answer.rejects.iter().map(|one| (one.input, one.code.as_str())).collect();
    assert_eq!(rejects, [(0, "invalid-output")]);
    assert!(answer.rejects[0].message.contains("rows that repeat their records"), "{:?}", answer.rejects);
}

#[test]
fn what_a_misdeed_is_called() {
    let bench = Bench::new();
    let mut guest = bench.guest(&transform(built("hostile.wasm"), "{}"));
    let mut call = |misdeed: &str| guest.process(&chunk([format!("#hostile:{misdeed}")])).unwrap_err();
    assert!(matches!(call("trap"), CallError::Trap { what } if what.contains("unreachable")));
    assert!(matches!(call("grow"), CallError::OutOfMemory(_)));
    assert!(matches!(call("retry"), CallError::Retry(_)));
    assert!(matches!(call("fatal"), CallError::Fatal(_)));
    let mut stopped = bench.guest(&endless(built("hostile.wasm"), "{}"));
    let error = stopped.process(&chunk(["#hostile:spin"])).unwrap_err();
    assert!(matches!(error, CallError::TimedOut(_)));
}

#[test]
fn what_is_only_odd_is_allowed() {
    let bench = Bench::new();
    let mut guest = bench.guest(&transform(built("hostile.wasm"), "{}"));
    for misdeed in ["values_bytes", "values_text", "values_deep", "small", "flood", "long_line"] {
        let answer = isolated(&mut guest, &chunk([format!("#hostile:{misdeed}")])).unwrap();
        assert_eq!((answer.inputs.len(), answer.rejects.len()), (1, 0), "{misdeed}");
    }
    // Its copies are 18 MB: more than these tests allow otherwise.
    let roomy = Transform { output_bytes: 32 << 20, ..transform(built("hostile.wasm"), "{}") };
    let answer = isolated(&mut bench.guest(&roomy), &chunk(["#hostile:many_rows"])).unwrap();
    assert_eq!(answer.inputs.len(), 1_000_000);
    let answer = isolated(&mut guest, &chunk(["#hostile:error_message"])).unwrap();
    assert_eq!(answer.rejects[0].message.len(), 1_024);
}

#[test]
fn a_leak_costs_an_instance_now_and_then_and_no_record() {
    let bench = Bench::new();
    let mut guest = bench.guest(&transform(built("hostile.wasm"), r#"{"always":"leak"}"#));
    for _ in 0..100 {
        assert_eq!(guest.process(&chunk(["a"])).unwrap().inputs, [0]);
    }
    // 1 MiB leaks in each call, and half of 32 MiB is the mark.
    let replaced = guest.plugin().stats.instances_replaced.get();
    assert!((4..=10).contains(&replaced), "{replaced} instances for 100 calls");
    assert_eq!(guest.plugin().stats.out_of_memory.get(), 0);
}

#[test]
fn lanes_run_beside_each_other_and_a_stuck_one_stops_none() {
    fn is_send<T: Send>(_: &T) {}
    let bench = Bench::new();
    // One plugin for all, so one time for all: the others need little of it.
    let plugin = Transform { timeout: Duration::from_secs(1), ..transform(built("hostile.wasm"), "{}") };
    let plugin = bench.load(&plugin).unwrap();
    std::thread::scope(|scope| {
        for lane in 0..4 {
            let mut guest = Guest::new(Arc::clone(&plugin)).unwrap();
            is_send(&guest);
            scope.spawn(move || {
                let stuck = ["a", "#hostile:spin", "b"];
                let answer = if lane == 0 {
                    isolated(&mut guest, &chunk(stuck))
                } else {
                    isolated(&mut guest, &chunk(["a"]))
                };
                assert_eq!(answer.unwrap().rejects.len(), usize::from(lane == 0));
            });
        }
    });
}
