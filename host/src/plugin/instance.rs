//! One running instance of a component: its store, its limits, and what a call that went wrong means.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use wasmtime::component::HasSelf;
use wasmtime::{Store, Trap, WasmBacktrace};

use super::clock::{Clock, TICK};
use super::limits::{Exceeded, MemoryLimit};
use super::log::LogGate;
use super::wasi::WasiState;
use super::wit;

/// What belongs to one store: the host's side of one instance.
pub(super) struct State {
    pub(super) memory: MemoryLimit,
    pub(super) log: Arc<LogGate>,
    pub(super) wasi: WasiState,
}

impl wit::tidemill::transform::log::Host for State {
    fn log(&mut self, level: wit::Level, message: String) {
        self.log.line(level, &message);
    }
}

/// Gives a linker the one import that the contract has.
pub(super) fn link_log(linker: &mut wasmtime::component::Linker<State>) -> wasmtime::Result<()> {
    wit::tidemill::transform::log::add_to_linker::<State, HasSelf<State>>(linker, |state| state)
}

/// What one instance may take and what it is told: the same for all instances of a plugin.
#[derive(Debug, Clone)]
pub(super) struct Grant {
    /// All linear memories together.
    pub(super) memory_bytes: u64,
    /// Wall time of one call.
    pub(super) timeout: Duration,
    /// Bytes that one call may copy out.
    pub(super) output_bytes: u64,
    /// What `configure` gets.
    pub(super) config_json: String,
}

/// Why a call gave no usable answer, before anybody decides what to do about it.
#[derive(Debug)]
pub(super) enum Failure {
    /// The guest stopped itself or did what WebAssembly forbids.
    Trap(String),
    /// It outlasted its time.
    TimedOut,
    /// It wanted more memory or table space than it may have.
    OutOfMemory(String),
    /// It returned more bytes than it may.
    OutputTooLarge,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Trap(what) | Self::OutOfMemory(what) => f.write_str(what),
            Self::TimedOut => f.write_str("it outlasted its time"),
            Self::OutputTooLarge => f.write_str("it returned more bytes than it may"),
        }
    }
}

/// An instance that is ready to be called.
///
/// The guest's thread is the caller's: a `Live` belongs to one lane, and with it dies the guest's memory.
pub(super) struct Live {
    store: Store<State>,
    world: wit::Transform,
    clock: Arc<Clock>,
}

impl Live {
    /// Makes an instance, runs whatever it does at its start, and configures it.
    ///
    /// The inner error is the plugin's own sentence about its configuration.
    pub(super) fn start(
        pre: &wit::TransformPre<State>,
        grant: &Grant,
        log: &Arc<LogGate>,
        clock: &Arc<Clock>,
    ) -> Result<(Self, Result<wit::Descriptor, String>), Failure> {
        let state = State {
            memory: MemoryLimit::new(grant.memory_bytes),
            log: Arc::clone(log),
            wasi: WasiState::default(),
        };
        let mut store = Store::new(pre.engine(), state);
        store.limiter(|state| &mut state.memory);
        store.set_hostcall_fuel(usize::try_from(grant.output_bytes).unwrap_or(usize::MAX));
        let running = clock.run();
        // A new store stands at deadline 0 and would trap at its first instruction.
        arm(&mut store, grant.timeout);
        let started = guarded(|| {
            let world = pre.instantiate(&mut store)?;
            arm(&mut store, grant.timeout);
            let answer = world.tidemill_transform_plugin().call_configure(&mut store, &grant.config_json)?;
            Ok((world, answer))
        });
        drop(running);
        started.map(|(world, answer)| (Self { store, world, clock: Arc::clone(clock) }, answer))
    }

    /// One call of `process`. After an `Err` the instance must be dropped: wasmtime refuses to enter it again.
    pub(super) fn process(
        &mut self,
        batch: wit::Batch<'_>,
        timeout: Duration,
    ) -> Result<Result<wit::Output, wit::BatchError>, Failure> {
        let _running = self.clock.run();
        arm(&mut self.store, timeout);
        guarded(|| self.world.tidemill_transform_plugin().call_process(&mut self.store, batch))
    }

    /// Bytes of the guest's linear memories.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.store.data().memory.used_bytes()
    }
}

/// Sets the time from now at which the guest is stopped: not before `timeout`, and at most one tick later. The clock has
/// to [run](Clock::run) already.
fn arm(store: &mut Store<State>, timeout: Duration) {
    let ticks = timeout.as_nanos().div_ceil(TICK.as_nanos()).saturating_add(1);
    // Far from overflowing the epoch counter, and longer than any process lives.
    let ticks = u64::try_from(ticks).unwrap_or(u64::MAX).min(u64::from(u32::MAX));
    store.set_epoch_deadline(ticks);
    store.data_mut().wasi.set_timeout(timeout);
}

/// Runs guest code and sorts what went wrong. A panic inside wasmtime (there have been advisories of panics that
/// a guest can provoke) costs the instance and not the lane.
fn guarded<T>(call: impl FnOnce() -> wasmtime::Result<T>) -> Result<T, Failure> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(classify(&error)),
        Err(_panic) => Err(Failure::Trap("the WebAssembly run-time failed while running it".into())),
    }
}

fn classify(error: &wasmtime::Error) -> Failure {
    if let Some(exceeded) = error.downcast_ref::<Exceeded>() {
        return Failure::OutOfMemory(exceeded.to_string());
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::Interrupt) => Failure::TimedOut,
        Some(trap) => Failure::Trap(match first_named_frame(error) {
            Some(function) => format!("{} in {function}", trap_sentence(*trap)),
            None => trap_sentence(*trap),
        }),
        // Not a trap instruction: a host function or the copying in and out refused. The type behind the
        // output limit is private to wasmtime, so its text decides; a test holds it to that.
        None if format!("{error:?}").contains("fuel allocated for hostcalls") => Failure::OutputTooLarge,
        None => Failure::Trap(ungranted(&error.root_cause().to_string())),
    }
}

/// wasmtime's words for a call of an import that is a trap, in ours; anything else as it is.
fn ungranted(cause: &str) -> String {
    match cause.strip_prefix("unknown import: `").and_then(|rest| rest.split_once('`')) {
        Some((import, _)) => format!("it called {import}, which only wasi = \"minimal\" grants"),
        None => cause.to_owned(),
    }
}

/// `wasm trap: x` without its prefix, which the reader of a dead letter knows.
fn trap_sentence(trap: Trap) -> String {
    let text = trap.to_string();
    text.strip_prefix("wasm trap: ").unwrap_or(&text).to_owned()
}

/// The innermost function that has a name: none in stripped modules.
fn first_named_frame(error: &wasmtime::Error) -> Option<String> {
    let backtrace = error.downcast_ref::<WasmBacktrace>()?;
    backtrace.frames().iter().find_map(|frame| frame.func_name()).map(str::to_owned)
}
