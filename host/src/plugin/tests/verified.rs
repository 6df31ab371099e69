//! `verify = true`: a plugin that remembers is found out before its rows are loaded.

use super::wat::{KEEP_ALL, Wat};
use super::*;
use crate::chain::Chain;
use crate::position::Partition;

/// Leaves the last record out, from its second call on.
fn forgetful(bench: &Bench) -> Arc<Plugin> {
    let process = format!(
        "(drop {KEEP_ALL})
         (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
         (if (i32.gt_u (global.get $calls) (i32.const 1)) (then
            (i32.store offset=8 (i32.const 4096)
                (i32.sub (i32.load offset=8 (i32.const 4096)) (i32.const 1)))))
         (i32.const 4096)"
    );
    let wat = Wat { process: &process, fields: "(global $calls (mut i32) (i32.const 0))", ..Wat::default() };
    bench.load(&transform(wat.build(bench.cache.path()), "{}")).unwrap()
}

fn records(from: i64) -> Columns {
    let mut records = chunk(["a", "secret", "c"]);
    records.source = Some("orders".into());
    records.offsets = (from..from + 3).collect();
    records
}

#[test]
fn a_plugin_that_remembers_earlier_chunks_halts_and_its_record_is_named() {
    let bench = Bench::new();
    let mut chain = Chain::start(&[forgetful(&bench)], &|_| Vec::new()).unwrap();
    let partition = Partition { source: "orders".into(), number: 7 };
    let first = chain.process(&records(100), Some(&partition)).unwrap();
    assert_eq!(first.inputs, Some(vec![0, 1, 2]));
    let story = halts(chain.process(&records(103), Some(&partition)));
    let expected = "plugin test does not make the same rows of the same records twice: orders[7] offset 105, its row 1: \
                    another number of rows; ";
    assert!(story.starts_with(expected), "{story}");
    assert!(!story.contains("secret"), "{story}");
    // Who does not look does not see.
    assert!(chain.process(&records(106), None).is_ok());
}

#[test]
fn an_honest_plugin_passes_however_often_it_is_asked() {
    let bench = Bench::new();
    let plugin = bench.load(&transform(Wat::default().build(bench.cache.path()), "{}")).unwrap();
    let mut chain = Chain::start(&[Arc::clone(&plugin), plugin], &|_| Vec::new()).unwrap();
    let partition = Partition { source: "orders".into(), number: 0 };
    for from in [0, 3, 6] {
        assert_eq!(chain.process(&records(from), Some(&partition)).unwrap().inputs, Some(vec![0, 1, 2]));
    }
}
