//! The engine that all plugins of the process share, and what becomes of a plugin's file.

use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;
use std::{fmt, thread};

use sha2::{Digest, Sha256};
use wasmtime::component::{Component, Linker};
use wasmtime::{Config, InstanceAllocationStrategy, PoolingAllocationConfig};

use super::cache::Cache;
use super::clock::Clock;
use super::instance::{self, Grant, Live, State};
use super::limits::{CORE_INSTANCES_MAX, MEMORIES_MAX, TABLE_ELEMENTS_MAX, TABLES_MAX};
use super::log::LogGate;
use super::stats::Stats;
use super::{refusal, wasi, wit};
use crate::config::model::{Transform, Wasi};
use crate::fault::Fault;

/// Guest stack, in bytes: enough for every language that was tried, and a lane's thread has room for it.
const GUEST_STACK_BYTES: usize = 512 << 10;
/// Memory of an instance that stays mapped when its slot is taken again, in bytes: a fresh instance then faults less.
const KEEP_RESIDENT_BYTES: usize = 1 << 20;
/// Instances above what lanes need: the one with which a plugin is tried at its load.
const SPARE_INSTANCES: u32 = 1;
/// Declared tables: an index has 16 bits and the last one means "none" inside the host.
const TABLES_DECLARED_MAX: usize = 65_535;
/// Characters of a declared table's name: StarRocks' own limit.
const TABLE_NAME_CHARS_MAX: usize = 1_024;
/// Far above what the largest plugin needs on a small machine: 6 s on two cores.
const COMPILE_TIME_MAX: Duration = Duration::from_secs(180);
const THREADS_HINT: &str = "lift the limit on threads (`ulimit -u`)";

/// Compiles plugins and holds the memory of all instances. A clone is the same engine.
///
/// From the first plugin on a thread ticks for it while guests run, as long as it or anything made by it lives.
#[derive(Clone)]
pub struct Engine {
    wasmtime: wasmtime::Engine,
    cache: Arc<Cache>,
    clock: Arc<Clock>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("cache", &self.cache).finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine with room for `instances_max` instances at a time (pipelines × lanes × plugins) of at most
    /// `memory_max_bytes` linear memory each. Compiled plugins are kept in `cache_dir`.
    ///
    /// # Errors
    ///
    /// `Halt` if the machine cannot reserve the address space, or if others could write to `cache_dir`.
    pub fn new(instances_max: usize, memory_max_bytes: u64, cache_dir: &Path) -> Result<Engine, Fault> {
        let wasmtime = wasmtime::Engine::new(&config(instances_max, memory_max_bytes)).map_err(|error| {
            Fault::halt(
                format!("cannot reserve memory for {instances_max} plugin instances: {error:#}"),
                "lower `lanes` or the plugins' `memory`, or lift the limit on address space (`ulimit -v`)",
            )
        })?;
        let cache = Arc::new(Cache::open(cache_dir, &wasmtime)?);
        Ok(Engine { wasmtime, cache, clock: Arc::default() })
    }

    /// Starts the clock that ends guests whose time is over. Before anything is compiled: nothing else makes guests.
    fn start_clock(&self) -> Result<(), Fault> {
        // Held weakly, the engine ends the thread with its last user.
        let engine = self.wasmtime.weak();
        self.clock.start(move || engine.upgrade().inspect(wasmtime::Engine::increment_epoch).is_some())
    }

    /// Reads, checks, compiles (or takes from the cache) and configures the plugin of one `[[transform]]`.
    ///
    /// One instance is made and dropped again, on a thread of its own: this may be called from anywhere.
    ///
    /// # Errors
    ///
    /// `Halt` with a sentence of its own for each file that is no transform, and for a configuration that the
    /// plugin refuses.
    pub fn load(&self, transform: &Transform) -> Result<Arc<Plugin>, Fault> {
        let Compiled { component, sha256, .. } = self.compile(&transform.plugin)?;
        refusal::refuse_by_type(&transform.plugin, &component)?;
        let pre = self.link(&transform.plugin, &component, transform.wasi)?;
        let name = transform.plugin.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let stats = Arc::new(Stats::default());
        let mut plugin = Plugin {
            log: Arc::new(LogGate::new(name.clone(), transform.log_lines_per_second, Arc::clone(&stats))),
            name,
            path: transform.plugin.clone(),
            sha256,
            descriptor: Descriptor::default(),
            pre,
            grant: Grant {
                memory_bytes: transform.memory_bytes,
                timeout: transform.timeout,
                output_bytes: transform.output_bytes,
                config_json: transform.config_json.clone(),
            },
            failures_in_a_row_max: transform.failures_in_a_row,
            stats,
            clock: Arc::clone(&self.clock),
        };
        plugin.descriptor =
            on_own_thread("plugin-check", || plugin.start().map(|(_, descriptor)| descriptor))??;
        tracing::info!(plugin = plugin.name, sha256 = plugin.sha256, "loaded plugin");
        Ok(Arc::new(plugin))
    }

    /// Reads and compiles a file, or takes what an earlier start has compiled from it.
    pub(super) fn compile(&self, path: &Path) -> Result<Compiled, Fault> {
        self.start_clock()?;
        let bytes = refusal::read(path)?;
        let file_bytes = bytes.len();
        let sha256 = hex(&Sha256::digest(&bytes));
        if let Some(component) = self.cache.get(&self.wasmtime, &sha256) {
            return Ok(Compiled { component, sha256, file_bytes, cache: CacheState::Taken });
        }
        let component = compile_in_time(&self.wasmtime, path, bytes, COMPILE_TIME_MAX)?;
        let cache = match self.cache.put(&component, &sha256) {
            true => CacheState::Written,
            false => CacheState::Off,
        };
        Ok(Compiled { component, sha256, file_bytes, cache })
    }

    /// Gives a component its imports, once for all instances.
    fn link(
        &self,
        path: &Path,
        component: &Component,
        granted: Wasi,
    ) -> Result<wit::TransformPre<State>, Fault> {
        let other_types = |error: wasmtime::Error| refusal::other_types(path, &error);
        let mut linker = Linker::new(&self.wasmtime);
        instance::link_log(&mut linker).map_err(other_types)?;
        match granted {
            // All that is left begins with `wasi:`: `refusal` has seen to it.
            Wasi::None => linker.define_unknown_imports_as_traps(component).map_err(other_types)?,
            // No traps here: they would take the place of granted interfaces whose patch version differs from ours.
            Wasi::Minimal => wasi::link_minimal(&mut linker).map_err(other_types)?,
        }
        let pre = linker.instantiate_pre(component).map_err(|error| match granted {
            Wasi::None => other_types(error),
            Wasi::Minimal => refusal::not_granted(path, &error),
        })?;
        wit::TransformPre::new(pre).map_err(other_types)
    }
}

/// A compiled file.
pub(super) struct Compiled {
    pub(super) component: Component,
    /// SHA-256 of the file, in hex.
    pub(super) sha256: String,
    pub(super) file_bytes: usize,
    pub(super) cache: CacheState,
}

/// What the cache did for a plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheState {
    /// An earlier start had compiled it.
    Taken,
    /// It was compiled now and kept.
    Written,
    /// It was compiled now and could not be kept; the log says why.
    Off,
}

/// Compiles on a thread of its own, which is left behind if it takes too long: compilers cannot be interrupted, and a
/// file can be made so that they never end.
fn compile_in_time(
    engine: &wasmtime::Engine,
    path: &Path,
    bytes: Vec<u8>,
    limit: Duration,
) -> Result<Component, Fault> {
    let (send, receive) = mpsc::sync_channel(1);
    let engine = engine.clone();
    let compile = move || {
        // Nobody listens any more if it took too long.
        let _ = send.send(Component::from_binary(&engine, &bytes));
    };
    spawn("plugin-compile", compile)?;
    let shown = path.display();
    match receive.recv_timeout(limit) {
        Ok(compiled) => compiled.map_err(|error| refusal::damaged(path, &error)),
        Err(mpsc::RecvTimeoutError::Timeout) => Err(Fault::halt(
            format!("plugin {shown} did not compile within {limit:?}"),
            "build it smaller, or run where more processor time is left",
        )),
        Err(mpsc::RecvTimeoutError::Disconnected) => Err(Fault::halt(
            format!("the compiler failed on plugin {shown}"),
            "build it with other tools; if it is a valid component, report it",
        )),
    }
}

/// Starts a thread that nobody waits for.
pub(super) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<thread::Thread, Fault> {
    let started = thread::Builder::new().name(name.into()).spawn(work);
    started.map(|handle| handle.thread().clone()).map_err(|error| {
        Fault::halt(format!("cannot start the thread {name}"), THREADS_HINT).caused_by(error)
    })
}

fn config(instances_max: usize, memory_max_bytes: u64) -> Config {
    let instances = u32::try_from(instances_max).unwrap_or(u32::MAX / 256).saturating_add(SPARE_INSTANCES);
    let memory_max_bytes = usize::try_from(memory_max_bytes).unwrap_or(usize::MAX);
    let times = |each: usize| instances.saturating_mul(each as u32);
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances)
        .total_core_instances(times(CORE_INSTANCES_MAX))
        .total_memories(times(MEMORIES_MAX))
        .total_tables(times(TABLES_MAX / 4).saturating_add(TABLES_MAX as u32))
        // Fibres are for asynchronous calls, of which there are none.
        .total_stacks(0)
        .max_memory_size(memory_max_bytes)
        .table_elements(TABLE_ELEMENTS_MAX)
        .linear_memory_keep_resident(KEEP_RESIDENT_BYTES)
        .table_keep_resident(KEEP_RESIDENT_BYTES);
    let mut config = Config::new();
    config
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
        .epoch_interruption(true)
        .max_wasm_stack(GUEST_STACK_BYTES)
        // No plugin exports asynchronous functions; their bookkeeping costs 0.4 µs a call.
        .concurrency_support(false)
        .wasm_memory64(false)
        .wasm_multi_memory(false)
        // The same input gives the same rows on every machine.
        .relaxed_simd_deterministic(true)
        .cranelift_nan_canonicalization(true);
    config
}

/// Runs `work` on a plain thread and waits: WASI may block, which panics on a thread of the async runtime.
fn on_own_thread<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> Result<T, Fault> {
    thread::scope(|scope| {
        let worker = thread::Builder::new().name(name.into()).spawn_scoped(scope, work).map_err(|error| {
            Fault::halt(format!("cannot start the thread {name}"), THREADS_HINT).caused_by(error)
        })?;
        worker
            .join()
            .map_err(|_panic| Fault::halt(format!("{name} panicked"), "this is a bug of tidemill: report it"))
    })
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a configured plugin needs and may do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Columns that it reads.
    pub wants: Wants,
    /// Tables that [`Answer::tables`](crate::record::Answer::tables) points into. The empty name is the table that
    /// the row would have without this plugin. Empty: the plugin does not route.
    pub tables: Vec<String>,
}

/// Columns that a plugin asks for. The others need not be filled for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wants {
    /// `keys`
    pub key: bool,
    /// `timestamps`
    pub timestamp: bool,
    /// `partitions` and `offsets`
    pub position: bool,
    /// `headers`
    pub headers: bool,
}

impl From<wit::Descriptor> for Descriptor {
    fn from(from: wit::Descriptor) -> Self {
        let wants = |column| from.wants.contains(column);
        Self {
            wants: Wants {
                key: wants(wit::Columns::KEY),
                timestamp: wants(wit::Columns::TIMESTAMP),
                position: wants(wit::Columns::POSITION),
                headers: wants(wit::Columns::HEADERS),
            },
            tables: from.tables,
        }
    }
}

/// A compiled and configured plugin, from which instances are made.
///
/// Shared by the lanes that run it and by the meter; its code is freed with the last of them.
pub struct Plugin {
    /// The file's name without its ending: how logs, metrics and dead letters call it.
    pub name: String,
    /// The file that was loaded.
    pub path: PathBuf,
    /// SHA-256 of the file's bytes, in hex.
    pub sha256: String,
    /// What it answered to `configure`.
    pub descriptor: Descriptor,
    /// What it did so far.
    pub stats: Arc<Stats>,
    pub(super) grant: Grant,
    pub(super) failures_in_a_row_max: u32,
    pre: wit::TransformPre<State>,
    log: Arc<LogGate>,
    clock: Arc<Clock>,
}

impl fmt::Debug for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plugin")
            .field("name", &self.name)
            .field("sha256", &self.sha256)
            .field("descriptor", &self.descriptor)
            .finish_non_exhaustive()
    }
}

/// What to do about a configuration that a plugin refuses, in a pipeline's file.
pub(super) const CONFIG_HINT: &str = "change `config` of its [[transform]]";

impl Plugin {
    /// Makes and configures one instance, and checks what it says about itself.
    pub(super) fn start(&self) -> Result<(Live, Descriptor), Fault> {
        let (live, answer) = Live::start(&self.pre, &self.grant, &self.log, &self.clock).map_err(|failure| {
            Fault::halt(
                format!("plugin {} failed while it was started and configured: {failure}", self.name),
                "see what it logged before; `memory` and `timeout` of its [[transform]] hold for its start too",
            )
        })?;
        self.stats.instances_started.add(1);
        let descriptor = answer.map(Descriptor::from).map_err(|sentence| {
            Fault::halt(
                format!(
                    "plugin {} refuses its configuration: {}",
                    self.name,
                    super::log::printable(&sentence)
                ),
                CONFIG_HINT,
            )
        })?;
        self.check_tables(&descriptor.tables)?;
        Ok((live, descriptor))
    }

    fn check_tables(&self, tables: &[String]) -> Result<(), Fault> {
        let hint = "this is a mistake in the plugin: report it to its author";
        if tables.len() > TABLES_DECLARED_MAX {
            let declared = tables.len();
            return Err(Fault::halt(
                format!(
                    "plugin {} declares {declared} tables, {TABLES_DECLARED_MAX} are possible",
                    self.name
                ),
                hint,
            ));
        }
        let unusable = |name: &&String| {
            name.contains(char::is_control)
                || name.chars().count() > TABLE_NAME_CHARS_MAX
                || *name == "."
                || *name == ".."
        };
        if let Some(name) = tables.iter().find(unusable) {
            let (plugin, name) = (&self.name, super::log::printable(name));
            return Err(Fault::halt(
                format!("plugin {plugin} declares {name:?}, which no table can be called"),
                hint,
            ));
        }
        let mut seen = std::collections::HashSet::with_capacity(tables.len());
        match tables.iter().find(|table| !seen.insert(table.as_str())) {
            Some(twice) => {
                Err(Fault::halt(format!("plugin {} declares the table {twice:?} twice", self.name), hint))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compiler_that_takes_too_long_is_left_behind() {
        let engine = wasmtime::Engine::default();
        // Valid, and some seconds of work: ten thousand functions.
        let function =
            "(func (param i32) (result i32) (i32.mul (local.get 0) (i32.add (local.get 0) (i32.const 7))))";
        let bytes = wat::parse_str(format!("(component (core module {}))", function.repeat(10_000))).unwrap();
        let limit = Duration::from_millis(1);
        let fault = compile_in_time(&engine, Path::new("slow.wasm"), bytes, limit).map(drop).unwrap_err();
        assert_eq!(
            fault.story(),
            "plugin slow.wasm did not compile within 1ms; build it smaller, or run where more processor time is left"
        );
    }
}
