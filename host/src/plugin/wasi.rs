//! What `wasi = "minimal"` grants: clocks, random numbers, and a stdio that goes nowhere.
//!
//! No directory, no environment, no arguments; every network address is denied. Go programs do not start without this.

use std::time::{Duration, Instant};

use wasmtime::component::{Linker, ResourceTable};
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};

use super::instance::State;

/// Handles (streams, pollables) that one instance may hold at a time.
const HANDLES_MAX: usize = 1_024;

/// One instance's share of WASI: made when it is first asked for, so that plugins without WASI pay nothing.
#[derive(Default)]
pub(super) struct WasiState {
    granted: Option<(WasiCtx, ResourceTable)>,
    /// When the running call has to be over.
    deadline: Option<Instant>,
}

impl WasiState {
    /// Tells when the call that begins now has to be over: waiting inside the host is not seen by epochs.
    pub(super) fn set_timeout(&mut self, timeout: Duration) {
        self.deadline = Instant::now().checked_add(timeout);
    }

    fn parts(&mut self) -> (&mut WasiCtx, &mut ResourceTable) {
        let (ctx, table) = self.granted.get_or_insert_with(|| {
            let mut table = ResourceTable::new();
            table.set_max_capacity(HANDLES_MAX);
            (WasiCtxBuilder::new().build(), table)
        });
        (ctx, table)
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let (ctx, table) = self.wasi.parts();
        WasiCtxView { ctx, table }
    }
}

/// Gives a linker WASI 0.2 with the empty context above.
pub(super) fn link_minimal(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    wasmtime_wasi::p2::add_to_linker_sync(linker)
}
