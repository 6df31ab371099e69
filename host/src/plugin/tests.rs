//! Plugins run for real here. The small ones are written in `tests/wat.rs` as text; the others are those of `plugins/`.

mod built;
mod cached;
mod granted;
mod isolated;
mod limits;
mod mutated;
mod refused;
mod verified;
mod wat;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::{Engine, Guest, Plugin};
use crate::config::model::{Transform, Wasi};
use crate::fault::{Fault, FaultKind};
use crate::record::{Columns, MARK_VALUE};

/// Memory of one instance in these tests.
const MEMORY_BYTES: u64 = 32 << 20;

/// An engine with its cache in a directory that goes away with it.
struct Bench {
    engine: Engine,
    cache: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let cache = tempfile::tempdir().unwrap();
        let engine = Engine::new(4, MEMORY_BYTES, &cache.path().join("cache")).unwrap();
        Self { engine, cache }
    }

    fn load(&self, transform: &Transform) -> Result<Arc<Plugin>, Fault> {
        self.engine.load(transform)
    }

    /// The one compiled plugin in the cache.
    fn cached(&self) -> PathBuf {
        let files = std::fs::read_dir(self.cache.path().join("cache")).unwrap();
        let mut compiled = files
            .map(|file| file.unwrap().path())
            .filter(|file| file.extension().is_some_and(|e| e == "cwasm"));
        compiled.next().unwrap()
    }

    fn guest(&self, transform: &Transform) -> Guest {
        Guest::new(self.load(transform).unwrap()).unwrap()
    }
}

/// The time of a guest that would never end by itself.
const ENDLESS_TIMEOUT: Duration = Duration::from_millis(500);

/// A `[[transform]]` for guests that end by themselves: however busy the machine is, no call outlasts its time.
fn transform(plugin: impl Into<PathBuf>, config_json: &str) -> Transform {
    Transform {
        plugin: plugin.into(),
        config_json: config_json.into(),
        wasi: Wasi::None,
        memory_bytes: MEMORY_BYTES,
        timeout: Duration::from_secs(60),
        output_bytes: 16 << 20,
        log_lines_per_second: 10,
        failures_in_a_row: 10,
    }
}

/// The same for guests that loop or wait until they are stopped.
fn endless(plugin: impl Into<PathBuf>, config_json: &str) -> Transform {
    Transform { timeout: ENDLESS_TIMEOUT, ..transform(plugin, config_json) }
}

/// A chunk with these values, numbered offsets, and nothing else.
fn chunk<T: AsRef<[u8]>>(values: impl IntoIterator<Item = T>) -> Columns {
    let mut chunk = Columns { source: Some("orders".into()), ..Columns::default() };
    for (offset, value) in values.into_iter().enumerate() {
        chunk.values.push(value.as_ref());
        chunk.marks.push(MARK_VALUE);
        chunk.partitions.push(3);
        chunk.offsets.push(offset as i64);
        chunk.timestamps.push(1_767_225_605_000_000 + offset as i64);
        chunk.keys.push(b"");
        chunk.headers.end_record();
    }
    chunk
}

/// A plugin of `plugins/`, as `cargo xtask plugins` leaves it.
fn built(name: &str) -> PathBuf {
    let directory = std::env::var_os("TIDEMILL_PLUGINS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/plugins"), PathBuf::from);
    let file = directory.join(name);
    assert!(file.is_file(), "run cargo xtask plugins first: {} is missing", file.display());
    file
}

fn halts(fault: Result<impl std::fmt::Debug, Fault>) -> String {
    let fault = fault.unwrap_err();
    assert_eq!(fault.kind, FaultKind::Halt);
    assert!(fault.hint.is_some(), "a halt says what to do: {}", fault.what);
    fault.story()
}
