//! The compile cache: code is taken from it, and only what we wrote ourselves.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use super::wat::{KEEP_ALL, Wat};
use super::*;
use crate::plugin::{CacheState, inspect};

/// What the cache does when the plugin is loaded once more.
fn again(bench: &Bench, plugin: &Transform) -> CacheState {
    let inspection = inspect(&bench.engine, plugin).unwrap();
    assert!(inspection.verdict.is_ok());
    inspection.cache
}

#[test]
fn a_plugin_is_compiled_once() {
    let bench = Bench::new();
    let plugin = transform(Wat::default().build(bench.cache.path()), "{}");
    assert_eq!(again(&bench, &plugin), CacheState::Written);
    assert_eq!(again(&bench, &plugin), CacheState::Taken);
    let directory = bench.cached().parent().unwrap().to_owned();
    assert_eq!(directory.metadata().unwrap().mode() & 0o777, 0o700);
    assert_eq!(bench.cached().metadata().unwrap().mode() & 0o777, 0o600);
    let successor = Engine::new(1, MEMORY_BYTES, &directory).unwrap();
    assert_eq!(inspect(&successor, &plugin).unwrap().cache, CacheState::Taken, "by another process too");
}

#[test]
fn a_damaged_file_is_compiled_again() {
    let bench = Bench::new();
    let plugin = transform(Wat::default().build(bench.cache.path()), "{}");
    again(&bench, &plugin);
    let whole = std::fs::read(bench.cached()).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for damaged in [&flipped[..], &whole[..whole.len() - 1], &whole[..10], b"", &[7; 4096]] {
        // Written aside and renamed, as the engine does: the old file is still mapped.
        let aside = bench.cache.path().join("aside");
        std::fs::write(&aside, damaged).unwrap();
        std::fs::rename(&aside, bench.cached()).unwrap();
        assert_eq!(again(&bench, &plugin), CacheState::Written, "{} bytes", damaged.len());
        assert_eq!(again(&bench, &plugin), CacheState::Taken);
    }
}

#[test]
fn a_file_that_others_may_write_is_not_run() {
    let bench = Bench::new();
    let plugin = transform(Wat::default().build(bench.cache.path()), "{}");
    again(&bench, &plugin);
    std::fs::set_permissions(bench.cached(), std::fs::Permissions::from_mode(0o666)).unwrap();
    assert_eq!(again(&bench, &plugin), CacheState::Written);
}

#[test]
fn a_directory_that_others_may_write_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let story = halts(Engine::new(1, MEMORY_BYTES, directory.path()));
    assert!(
        story.contains("with mode 777: others could place code there that tidemill runs; `chmod 700 "),
        "{story}"
    );
}

#[test]
fn nobody_is_told_to_close_a_directory_that_is_shared() {
    let directory = tempfile::tempdir().unwrap();
    let refused = |mode| {
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        halts(Engine::new(1, MEMORY_BYTES, directory.path()))
    };
    let hint = "that tidemill runs; name a directory of your own as `cache_dir`";
    let story = refused(0o1777);
    assert!(story.ends_with(hint), "{story}");
    std::fs::write(directory.path().join("somebody's"), "").unwrap();
    let story = refused(0o777);
    assert!(story.ends_with(hint), "{story}");
}

#[test]
fn a_directory_of_somebody_else_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    // Only root can give files away; others cannot have this test.
    if chown(directory.path(), Some(12_345), None).is_ok() {
        let story = halts(Engine::new(1, MEMORY_BYTES, directory.path()));
        assert!(story.contains("belongs to user 12345 with mode "), "{story}");
    }
}

#[test]
fn without_a_place_for_it_plugins_still_load() {
    let bench = Bench::new();
    let plugin = transform(Wat::default().build(bench.cache.path()), "{}");
    let engine = Engine::new(1, MEMORY_BYTES, &plugin.plugin.join("below/a/file")).unwrap();
    assert_eq!(inspect(&engine, &plugin).unwrap().cache, CacheState::Off);
}

#[test]
fn a_plugin_that_changed_on_disk_is_another_plugin() {
    let bench = Bench::new();
    let plugin = transform(Wat::default().build(bench.cache.path()), "{}");
    let before = bench.load(&plugin).unwrap();
    Wat { process: &format!("(drop (i32.const 1)) {KEEP_ALL}"), ..Wat::default() }.build(bench.cache.path());
    let after = bench.load(&plugin).unwrap();
    assert_ne!(before.sha256, after.sha256);
    assert!(Guest::new(before).unwrap().process(&chunk(["a"])).is_ok(), "what runs goes on as it was");
}

#[test]
fn many_may_compile_the_same_at_once() {
    let bench = Bench::new();
    let plugin = transform(Wat::default().build(bench.cache.path()), "{}");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| bench.load(&plugin).map(drop).unwrap_or_else(|fault| panic!("{}", fault.story())));
        }
    });
    let left: Vec<_> = std::fs::read_dir(bench.cached().parent().unwrap()).unwrap().collect();
    assert_eq!(left.len(), 1, "nothing is left aside: {left:?}");
}
