//! What a guest may not do, at any moment of its life.

use std::time::Instant;

use super::wat::{CONFIGURED, KEEP_ALL, Wat};
use super::*;
use crate::plugin::CallError;

const SPIN: &str = "(loop $for_ever (br $for_ever))";
/// Grows the memory until it cannot.
const GROW: &str = "(loop $more (drop (memory.grow (i32.const 16))) (br $more))";

fn at_rest(seconds: f64) -> impl Fn(Instant) {
    move |began| assert!(began.elapsed().as_secs_f64() < seconds, "took {:?}", began.elapsed())
}

/// Loading this component halts with this beginning of a sentence.
fn check_load(wat: &Wat<'_>, expected: &str) {
    check_load_as(transform, wat, expected);
}

/// The same with the limits that `limits` gives the component.
fn check_load_as(limits: fn(PathBuf, &str) -> Transform, wat: &Wat<'_>, expected: &str) {
    let bench = Bench::new();
    let began = Instant::now();
    let story = halts(bench.load(&limits(wat.build(bench.cache.path()), "{}")));
    assert!(story.contains(expected), "{story}");
    at_rest(5.0)(began);
}

#[test]
fn a_start_that_loops_is_stopped() {
    check_load_as(
        endless,
        &Wat { fields: &format!("(func $start {SPIN}) (start $start)"), ..Wat::default() },
        "plugin test failed while it was started and configured: it outlasted its time",
    );
}

#[test]
fn a_configuration_that_loops_is_stopped() {
    let wat = Wat { configure: &format!("{SPIN} unreachable"), ..Wat::default() };
    check_load_as(endless, &wat, "it outlasted its time");
}

#[test]
fn a_configuration_that_grows_is_stopped() {
    check_load(
        &Wat { configure: &format!("{GROW} unreachable"), ..Wat::default() },
        &format!("bytes of memory, {MEMORY_BYTES} are allowed"),
    );
}

#[test]
fn a_configuration_that_traps_says_so() {
    check_load(
        &Wat { configure: "unreachable", ..Wat::default() },
        "wasm `unreachable` instruction executed",
    );
}

#[test]
fn a_table_that_grows_is_stopped() {
    check_load(
        &Wat {
            configure: "(drop (table.grow $t (ref.null func) (i32.const 100000))) unreachable",
            fields: "(table $t 1 funcref)",
            ..Wat::default()
        },
        "wanted 100001 table elements, 32768 are allowed",
    );
}

#[test]
fn a_memory_that_begins_above_the_limit_is_refused() {
    check_load(&Wat { memory_pages: 513, ..Wat::default() }, "wants more than it may have from its start: ");
}

#[test]
fn a_memory_that_begins_at_the_limit_is_not() {
    let bench = Bench::new();
    let wat = Wat { memory_pages: 512, ..Wat::default() };
    let mut guest = bench.guest(&transform(wat.build(bench.cache.path()), "{}"));
    assert!(guest.process(&chunk(["a"])).is_ok());
}

#[test]
fn there_is_room_for_many_instances() {
    let cache = tempfile::tempdir().unwrap();
    Engine::new(1_000, 256 << 20, cache.path()).unwrap();
}

#[test]
fn a_refused_configuration_is_shown_in_the_plugins_words() {
    check_load(
        &Wat {
            configure: r"(i32.store8 (i32.const 4096) (i32.const 1))
                (i32.store offset=4 (i32.const 4096) (i32.const 5000))
                (i32.store offset=8 (i32.const 4096) (i32.const 19))
                (i32.const 4096)",
            fields: r#"(data (i32.const 5000) "`currency` is\nneeded")"#,
            ..Wat::default()
        },
        "plugin test refuses its configuration: `currency` is neede; change `config` of its [[transform]]",
    );
}

#[test]
fn a_table_declared_twice_is_refused() {
    check_load(
        &Wat {
            configure: r"(i32.store8 (i32.const 4096) (i32.const 0))
                (i32.store8 offset=4 (i32.const 4096) (i32.const 0))
                (i32.store offset=8 (i32.const 4096) (i32.const 5000))
                (i32.store offset=12 (i32.const 4096) (i32.const 2))
                (i32.store (i32.const 5000) (i32.const 5100)) (i32.store (i32.const 5004) (i32.const 2))
                (i32.store (i32.const 5008) (i32.const 5100)) (i32.store (i32.const 5012) (i32.const 2))
                (i32.const 4096)",
            fields: r#"(data (i32.const 5100) "t1")"#,
            ..Wat::default()
        },
        r#"plugin test declares the table "t1" twice"#,
    );
}

#[test]
fn a_table_that_no_table_can_be_called_is_refused() {
    for (name, shown) in [("a\\0ab", "a b"), ("..", "..")] {
        check_load(
            &Wat {
                configure: &format!(
                    "(i32.store8 (i32.const 4096) (i32.const 0)) (i32.store8 offset=4 (i32.const 4096) (i32.const 0))
                    (i32.store offset=8 (i32.const 4096) (i32.const 5000))
                    (i32.store offset=12 (i32.const 4096) (i32.const 1))
                    (i32.store (i32.const 5000) (i32.const 5100))
                    (i32.store (i32.const 5004) (i32.const {}))
                    (i32.const 4096)",
                    shown.len()
                ),
                fields: &format!(r#"(data (i32.const 5100) "{name}")"#),
                ..Wat::default()
            },
            &format!("plugin test declares {shown:?}, which no table can be called; this is a mistake in the plugin"),
        );
    }
}

/// Calls `process` once and gives what came of it.
fn call(process: &str, fields: &str) -> CallError {
    let bench = Bench::new();
    let wat = Wat { process, fields, ..Wat::default() };
    let mut guest = bench.guest(&transform(wat.build(bench.cache.path()), "{}"));
    let began = Instant::now();
    let error = guest.process(&chunk(["a", "b"])).unwrap_err();
    at_rest(5.0)(began);
    error
}

#[test]
fn a_loop_ends_with_the_time_of_the_call() {
    let bench = Bench::new();
    let wat = Wat { process: &format!("{SPIN} unreachable"), ..Wat::default() };
    let mut guest = bench.guest(&endless(wat.build(bench.cache.path()), "{}"));
    let began = Instant::now();
    let error = guest.process(&chunk(["a"])).unwrap_err();
    assert_eq!(error, CallError::TimedOut(ENDLESS_TIMEOUT));
    assert!(began.elapsed() >= ENDLESS_TIMEOUT, "not before its time: {:?}", began.elapsed());
    at_rest(5.0)(began);
    assert_eq!(guest.plugin().stats.timeouts.get(), 1);
}

/// The clock looks every 10 ms, so that a loop has its time and at most one tick more. Others run on this machine, too: the
/// fastest of many calls tells, and the first that is fast enough is that.
#[test]
fn a_loop_ends_a_tick_after_its_time() {
    const TIMEOUT: Duration = Duration::from_millis(100);
    const CALLS_MAX: usize = 64;
    // Two ticks as `arm` counts them, and one for starting an instance.
    const BOUND: Duration = TIMEOUT.saturating_add(Duration::from_millis(30));
    let bench = Bench::new();
    // Both keep the processor busy: one for ever, one in a loop of loops that would end some time.
    let slow = "(local $i i64) (loop $outer
        (local.set $i (i64.add (local.get $i) (i64.const 1)))
        (br_if $outer (i64.lt_u (local.get $i) (i64.const 1000000000000)))) unreachable";
    for process in [&format!("{SPIN} unreachable"), slow] {
        let wat = Wat { process, ..Wat::default() };
        let plugin = Transform { timeout: TIMEOUT, ..transform(wat.build(bench.cache.path()), "{}") };
        let mut guest = bench.guest(&plugin);
        let mut fastest = Duration::MAX;
        for _ in 0..CALLS_MAX {
            let began = Instant::now();
            assert_eq!(guest.process(&chunk(["a"])).unwrap_err(), CallError::TimedOut(TIMEOUT));
            fastest = fastest.min(began.elapsed());
            assert!(fastest >= TIMEOUT, "ended after {fastest:?}, before its time");
            if fastest < BOUND {
                break;
            }
        }
        assert!(fastest < BOUND, "ended after {fastest:?}");
    }
}

#[test]
fn memory_ends_at_its_limit() {
    assert!(matches!(call(&format!("{GROW} unreachable"), ""), CallError::OutOfMemory(_)));
}

#[test]
fn recursion_ends_with_the_stack() {
    let error = call("(call $deeper) (unreachable)", "(func $deeper (call $deeper) (call $deeper))");
    assert_eq!(error, CallError::Trap { what: "call stack exhausted in deeper".into() });
}

/// An answer whose `inputs` have this address and length.
fn answer_with_inputs(at: u32, len: u32) -> String {
    format!(
        "(memory.fill (i32.const 4096) (i32.const 0) (i32.const 140))
         (i32.store offset=4 (i32.const 4096) (i32.const {at}))
         (i32.store offset=8 (i32.const 4096) (i32.const {len}))
         (i32.const 4096)"
    )
}

#[test]
fn garbage_instead_of_an_answer_is_a_trap() {
    for (process, what) in [
        ("(i32.const -8)".to_owned(), "pointer out of bounds"),
        ("(i32.const 4097)".to_owned(), "pointer not aligned"),
        (answer_with_inputs(4098, 1), "not aligned"),
        (answer_with_inputs(0xffff_0000, 8), "out of bounds"),
        ("(i32.store8 (i32.const 4096) (i32.const 7)) (i32.const 4096)".to_owned(), "discriminant"),
    ] {
        match call(&process, "") {
            CallError::Trap { what: found } => assert!(found.contains(what), "{found}, not {what}"),
            other => panic!("{other:?} for {process}"),
        }
    }
}

#[test]
fn a_list_above_the_limit_on_output_is_not_copied() {
    // 5 million entries of 4 bytes: they are there, and more than 16 MiB.
    let grown = format!("(drop (memory.grow (i32.const 400))) {}", answer_with_inputs(8192, 5_000_000));
    assert_eq!(call(&grown, ""), CallError::OutputTooLarge(16 << 20));
}

/// An answer with one error, whose message has this address and length.
fn answer_with_message(at: u32, len: u32) -> String {
    // `errors` is the last list of the answer; an error is a number and two texts.
    format!(
        "(memory.fill (i32.const 4096) (i32.const 0) (i32.const 140))
         (i32.store offset={ERRORS_AT} (i32.const 4096) (i32.const 5000))
         (i32.store offset={} (i32.const 4096) (i32.const 1))
         (i32.store (i32.const 5000) (i32.const 0))
         (i32.store (i32.const 5004) (i32.const 5100)) (i32.store (i32.const 5008) (i32.const 1))
         (i32.store (i32.const 5012) (i32.const {at})) (i32.store (i32.const 5016) (i32.const {len}))
         (i32.const 4096)",
        ERRORS_AT + 4
    )
}

/// Where the list of errors stands in an answer, by the canonical ABI.
const ERRORS_AT: u32 = 132;

#[test]
fn a_text_of_a_gigabyte_is_never_made() {
    let fields = r#"(data (i32.const 5100) "x")"#;
    // It is said to be longer than the memory, then it is there and longer than what may be copied.
    let claimed = call(&answer_with_message(8192, 1 << 30), fields);
    assert!(matches!(&claimed, CallError::Trap { what } if what.contains("out of bounds")), "{claimed:?}");
    let there = format!("(drop (memory.grow (i32.const 400))) {}", answer_with_message(8192, 20 << 20));
    assert_eq!(call(&there, fields), CallError::OutputTooLarge(16 << 20));
    let logged = call("(call $log (i32.const 3) (i32.const 8192) (i32.const 1073741824)) unreachable", "");
    assert!(matches!(&logged, CallError::Trap { what } if what.contains("out of bounds")), "{logged:?}");
    let logged = "(drop (memory.grow (i32.const 400))) (call $log (i32.const 3) (i32.const 8192) (i32.const 20971520)) \
                  unreachable";
    assert_eq!(call(logged, ""), CallError::OutputTooLarge(16 << 20));
}

#[test]
fn a_log_line_that_is_not_text_is_a_trap() {
    let error = call(
        "(call $log (i32.const 1) (i32.const 5000) (i32.const 2)) unreachable",
        r#"(data (i32.const 5000) "\ff\fe")"#,
    );
    assert!(matches!(&error, CallError::Trap { what } if what.contains("utf-8")), "{error:?}");
}

#[test]
fn a_failed_instance_is_replaced_and_a_grown_one_too() {
    let bench = Bench::new();
    let process = format!(
        "(if (call $has (local.get $batch) (i32.const 33)) (then unreachable))
         (if (call $has (local.get $batch) (i32.const 43)) (then (drop (memory.grow (i32.const 300)))))
         {KEEP_ALL}"
    );
    let wat = Wat { process: &process, ..Wat::default() };
    let mut guest = bench.guest(&transform(wat.build(bench.cache.path()), "{}"));
    let plugin = Arc::clone(guest.plugin());
    let counts = || (plugin.stats.instances_started.get(), plugin.stats.instances_replaced.get());
    let (started, replaced) = counts();
    assert!(guest.process(&chunk(["a"])).is_ok());
    assert!(guest.process(&chunk(["a"])).is_ok());
    assert_eq!(counts(), (started, replaced), "an instance is used again");
    assert!(guest.process(&chunk(["!"])).is_err());
    assert!(guest.process(&chunk(["a"])).is_ok());
    assert_eq!(counts(), (started + 1, replaced + 1), "a trap costs the instance");
    assert!(guest.process(&chunk(["+"])).is_ok(), "growing within the limit is no failure");
    assert!(guest.process(&chunk(["a"])).is_ok());
    assert_eq!(counts(), (started + 2, replaced + 2), "19 MiB of 32 are above the mark");
}

#[test]
fn nothing_is_called_for_an_empty_chunk() {
    let bench = Bench::new();
    let wat = Wat { process: "unreachable", ..Wat::default() };
    let mut guest = bench.guest(&transform(wat.build(bench.cache.path()), "{}"));
    assert!(guest.process(&Columns::default()).unwrap().inputs.is_empty());
}

#[test]
fn a_flood_of_log_lines_is_counted_and_not_written() {
    let bench = Bench::new();
    let process = format!(
        "(local $line i32)
         (loop $more
            (call $log (i32.const 3) (i32.const 5000) (i32.const 4))
            (br_if $more (i32.lt_u (local.tee $line (i32.add (local.get $line) (i32.const 1))) (i32.const 1000))))
         {KEEP_ALL}"
    );
    let wat = Wat { process: &process, fields: r#"(data (i32.const 5000) "line")"#, ..Wat::default() };
    let mut guest = bench.guest(&transform(wat.build(bench.cache.path()), "{}"));
    let lines = Lines::default();
    let written = lines.clone();
    tracing::subscriber::with_default(lines, || guest.process(&chunk(["a"])).unwrap());
    let dropped = guest.plugin().stats.log_lines_dropped.get();
    // The call may run into the next second, which admits ten more and one line that tells of the dropped ones.
    assert!((980..=990).contains(&dropped), "{dropped} dropped");
    let written = written.0.load(std::sync::atomic::Ordering::Relaxed);
    assert!((1_000..=1_001).contains(&(written + dropped)), "{written} written, {dropped} dropped");
}

/// Counts events and keeps nothing of them.
#[derive(Clone, Default)]
struct Lines(Arc<std::sync::atomic::AtomicU64>);

impl tracing::Subscriber for Lines {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        // wasmtime and cranelift write lines of their own.
        if event.metadata().target().starts_with("tidemill") {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn configured_is_what_it_says() {
    let bench = Bench::new();
    let wat = Wat { configure: CONFIGURED, ..Wat::default() };
    let plugin = bench.load(&transform(wat.build(bench.cache.path()), "{}")).unwrap();
    assert_eq!(plugin.descriptor, crate::plugin::Descriptor::default());
    assert_eq!((plugin.name.as_str(), plugin.sha256.len()), ("test", 64));
}
