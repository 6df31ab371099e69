//! Files that are no transform: each has its sentence.

use super::wat::Wat;
use super::*;
use crate::plugin::{CacheState, inspect};

/// Loading `file` halts with this story, `{}` being its path.
fn check(file: &Path, expected: &str) {
    let story = halts(Bench::new().load(&transform(file, "{}")));
    assert_eq!(story, expected.replace("{}", &file.display().to_string()));
}

fn broken(name: &str) -> PathBuf {
    built(&format!("broken/{name}.wasm"))
}

#[test]
fn a_core_module() {
    check(
        &broken("core-module"),
        "plugin {} is a core module, not a component; turn it into one with `wasm-tools component new`, or build \
         Rust with `--target wasm32-wasip2`",
    );
}

#[test]
fn a_component_of_another_world() {
    check(
        &broken("other-world"),
        "plugin {} is a component of another world: it exports acme:other/answer@1.0.0, not \
         tidemill:transform/plugin@0.1.0; a plugin implements the world `transform` of wit/transform.wit",
    );
}

#[test]
fn an_extra_import() {
    check(
        &broken("extra-import"),
        "plugin {} imports acme:net/fetch@1.0.0, which no plugin may have; a transform may import \
         tidemill:transform/log and nothing else: it has no network, no files and no other services",
    );
}

#[test]
fn another_version_of_the_contract() {
    check(
        &broken("future-version"),
        "plugin {} speaks tidemill:transform/plugin@7.0.0, this tidemill speaks tidemill:transform/plugin@0.1.0; \
         build the plugin with the SDK of this version",
    );
}

#[test]
fn other_types_under_the_same_names() {
    check(
        &broken("wrong-types"),
        "plugin {} has other types than tidemill:transform/plugin@0.1.0: instance export \
         `tidemill:transform/plugin@0.1.0` does not have export `configure`; build it against wit/transform.wit of \
         this version, unchanged",
    );
}

#[test]
fn a_truncated_file() {
    let story = halts(Bench::new().load(&transform(broken("truncated"), "{}")));
    assert!(story.contains("truncated.wasm is cut short: "), "{story}");
    assert!(
        story.ends_with("; the file was not copied or written to its end: build or copy it again"),
        "{story}"
    );
}

#[test]
fn an_empty_file() {
    check(&broken("empty"), "plugin {} is empty; build it again");
}

#[test]
fn a_text() {
    check(
        &broken("text"),
        "plugin {} is not WebAssembly: it does not begin with the bytes 00 61 73 6d; give the .wasm component that \
         the plugin's build has written",
    );
}

#[test]
fn compiled_code_from_elsewhere() {
    let bench = Bench::new();
    let wasm = Wat::default().build(bench.cache.path());
    bench.load(&transform(wasm, "{}")).unwrap();
    let compiled = bench.cached();
    check(
        &compiled,
        "plugin {} is native code, not WebAssembly; give the .wasm component; compiled code is taken from \
         `cache_dir` only",
    );
}

#[test]
fn a_file_of_a_hundred_megabytes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("large.wasm");
    std::fs::File::create(&path).unwrap().set_len(100 << 20).unwrap();
    check(
        &path,
        "plugin {} has 104857600 bytes, at most 67108864 are accepted; build it optimised and stripped of debug \
         information",
    );
}

#[test]
fn a_missing_file_and_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    let story = halts(Bench::new().load(&transform(directory.path().join("none.wasm"), "{}")));
    let hint = "none.wasm is not there; check the path: in a pipeline file it is relative to that file";
    assert!(story.starts_with("plugin ") && story.ends_with(hint), "{story}");
    let story = halts(Bench::new().load(&transform(directory.path().join("target/plugins/none.wasm"), "{}")));
    assert!(story.ends_with(" is not there; build the examples with `cargo xtask plugins`"), "{story}");
    let story = halts(Bench::new().load(&transform(directory.path(), "{}")));
    assert!(story.contains("is not a file"), "{story}");
}

#[test]
fn an_import_that_minimal_does_not_grant() {
    let bench = Bench::new();
    let wat = Wat {
        packages: &["package wasi:nn@0.2.0; interface tensor { compute: func(); }"],
        imports: "import wasi:nn/tensor@0.2.0;",
        fields: r#"(import "wasi:nn/tensor@0.2.0" "compute" (func $compute))"#,
        ..Wat::default()
    };
    let file = wat.build(bench.cache.path());
    bench.load(&transform(&file, "{}")).expect("by default it traps when it is called");
    let story = halts(bench.load(&Transform { wasi: Wasi::Minimal, ..transform(&file, "{}") }));
    assert!(story.contains("imports what wasi = \"minimal\" does not grant: "), "{story}");
    assert!(story.contains("wasi:nn/tensor@0.2.0"), "{story}");
}

#[test]
fn a_refused_component_can_still_be_inspected() {
    let bench = Bench::new();
    let inspection = inspect(&bench.engine, &transform(broken("extra-import"), "{}")).unwrap();
    assert_eq!(inspection.cache, CacheState::Written);
    assert!(inspection.verdict.is_err());
    let page = inspection.to_string();
    assert!(page.contains("acme:net/fetch@1.0.0 (no plugin may have this)"), "{page}");
    assert!(page.contains("\nrefused   plugin "), "{page}");
}

#[test]
fn an_inspection_tells_all() {
    let bench = Bench::new();
    let orders = transform(built("wasip2/orders.wasm"), r#"{"currency":"EUR"}"#);
    let page = inspect(&bench.engine, &orders).unwrap().to_string();
    for line in [
        "code      compiled now and kept in the cache",
        "imports   tidemill:transform/log@0.1.0",
        "          wasi:cli/exit@0.2.6 (traps when it is called)",
        "exports   tidemill:transform/plugin@0.1.0",
        "wants     values only",
        "tables    the pipeline's own",
    ] {
        assert!(page.lines().any(|found| found == line), "{line} is missing in\n{page}");
    }
}
