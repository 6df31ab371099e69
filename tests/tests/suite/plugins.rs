//! Plugins from their authors' builds, good and hostile: limits hold, the record is isolated, the pipeline goes on.

use tidemill_tests::{
    kafka::Record,
    limit::within,
    machine,
    oracle::Promise,
    pipeline::transform,
    process::tidemill_output,
    stand::{Model, Stand},
    warehouse::row,
};

/// Loads a thousand records of which one asks the hostile plugin for a misdeed; all others must arrive.
fn isolates(name: &str, misdeed: &str, plugin_more: &str) {
    let stand = Stand::new(name, 1, Model::Duplicate);
    let directory = stand.folder.path().join("letters");
    let record = |id: u64| match id {
        500 => Record::of(format!("{{\"id\":500,\"amount\":1,\"note\":\"#hostile:{misdeed}\"}}")),
        id => Record::of(row(id)),
    };
    stand.kafka.produce(&stand.name, (0..1_000).map(record));
    let mut pipeline = stand.pipeline();
    pipeline.transforms = transform(&machine::plugin("hostile"), "{}") + plugin_more;
    pipeline.dead_letters = format!("directory = {directory:?}");
    let mut tidemill = stand.run(&pipeline);
    let metrics = tidemill.until_settled(60, 1_000);
    assert_eq!(metrics.count("tidemill_records_dead_lettered_total", &[]), 1, "{misdeed}");
    let ids = stand.warehouse.ids(&stand.table);
    assert_eq!(ids.len(), 999, "{misdeed}: the neighbours are loaded");
    assert!(!ids.contains(&500), "{misdeed}");
    // And it goes on.
    stand.produce(1_000..1_100);
    tidemill.until_settled(30, 1_100);
    tidemill.drain(30);
    assert_eq!(stand.committed(), 1_100);
}

#[test]
fn a_trap_is_isolated() {
    within(120, || isolates("trap", "trap", ""));
}

#[test]
fn a_panic_is_isolated() {
    within(120, || isolates("panic", "panic", ""));
}

#[test]
fn an_endless_loop_is_ended_and_isolated() {
    within(180, || isolates("spin", "spin", "timeout = \"200ms\"\n"));
}

#[test]
fn a_memory_bomb_is_isolated() {
    within(120, || isolates("grow", "grow", "memory = \"32MiB\"\n"));
}

#[test]
fn an_exhausted_stack_is_isolated() {
    within(120, || isolates("stack", "stack_overflow", ""));
}

#[test]
fn an_answer_out_of_the_contract_is_isolated() {
    within(120, || {
        for misdeed in ["input_beyond", "values_beyond", "marks_short"] {
            isolates(&format!("garbage_{misdeed}"), misdeed, "");
        }
        isolates("garbage_values_huge", "values_huge", "max_output = \"8MiB\"\n");
    });
}

#[test]
fn failures_in_a_row_halt() {
    within(120, || {
        let stand = Stand::new("in_a_row", 1, Model::Duplicate);
        let directory = stand.folder.path().join("letters");
        stand.produce(0..1_000);
        let mut pipeline = stand.pipeline();
        pipeline.transforms = transform(&machine::plugin("hostile"), "{ always = \"trap\" }");
        pipeline.dead_letters = format!("directory = {directory:?}");
        let mut tidemill = stand.run(&pipeline);
        let ended = tidemill.until_ended(60);
        assert_eq!(ended.code, Some(1));
        assert!(ended.log.contains("in a row"), "{}", ended.log);
    });
}

#[test]
fn a_fatal_answer_halts_with_the_plugins_sentence() {
    within(90, || {
        let stand = Stand::new("fatal", 1, Model::Duplicate);
        stand.produce(0..10);
        let mut pipeline = stand.pipeline();
        pipeline.transforms = transform(&machine::plugin("hostile"), "{ always = \"fatal\" }");
        let mut tidemill = stand.run(&pipeline);
        let ended = tidemill.until_ended(30);
        assert_eq!(ended.code, Some(1));
        assert!(ended.log.contains("asked to fail for ever"), "{}", ended.log);
        assert_eq!(stand.committed(), 0);
    });
}

#[test]
fn both_targets_of_rust_load() {
    within(180, || {
        for (name, plugin) in [
            ("unknown_unknown", machine::plugin("passthrough")),
            ("wasip2", machine::wasip2_component("tidemill_plugin_passthrough")),
        ] {
            let stand = Stand::new(name, 1, Model::Duplicate);
            stand.produce(0..1_000);
            let mut pipeline = stand.pipeline();
            pipeline.transforms = transform(&plugin, "{}");
            let mut tidemill = stand.run(&pipeline);
            tidemill.until_settled(30, 1_000);
            stand.judge(1_000).must_keep(Promise::Once);
        }
    });
}

#[test]
fn a_chain_of_plugins_works() {
    within(90, || {
        let stand = Stand::new("chain", 1, Model::Duplicate);
        stand.produce(0..1_000);
        let mut pipeline = stand.pipeline();
        let links = [machine::plugin("passthrough"), machine::test_plugin(), machine::plugin("passthrough")];
        pipeline.transforms = links.iter().map(|plugin| transform(plugin, "{}")).collect();
        let mut tidemill = stand.run(&pipeline);
        tidemill.until_settled(30, 1_000);
        stand.judge(1_000).must_keep(Promise::Once);
    });
}

#[test]
fn what_is_no_plugin_is_refused_by_check_with_a_sentence() {
    within(120, || {
        let stand = Stand::new("broken", 1, Model::Duplicate);
        for (file, sentence) in [
            ("core-module", "core module"),
            ("other-world", "another world"),
            ("future-version", "7.0.0"),
            ("wrong-types", "other types"),
            ("extra-import", "acme:net/fetch"),
            ("truncated", "cut short"),
            ("empty", "is empty"),
            ("text", "not WebAssembly"),
            ("nobody-built-this", "is not there"),
        ] {
            let mut pipeline = stand.pipeline();
            pipeline.transforms = transform(&machine::plugin(&format!("broken/{file}")), "{}");
            let path = stand.write(&pipeline);
            let output = tidemill_output(&["check", path.to_str().expect("text")]);
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{file}: {said}");
            assert!(said.contains(sentence), "{file}: {sentence:?} is not in {said}");
        }
    });
}
