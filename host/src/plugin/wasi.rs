//! What `wasi = "minimal"` grants: clocks, random numbers, and a stdio that goes nowhere.
//!
//! No directory, no environment, no arguments; every network address is denied. Go programs do not start without this.

use std::time::{Duration, Instant};

use wasmtime::component::{Linker, Resource, ResourceTable};
use wasmtime::{StoreContextMut, Trap};
use wasmtime_wasi::p2::DynPollable;
use wasmtime_wasi::p2::bindings::io::poll;
use wasmtime_wasi::runtime::in_tokio;
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};

use super::instance::State;

/// Handles (streams, pollables) that one instance may hold at a time.
const HANDLES_MAX: usize = 1_024;
/// The name under which wasmtime-wasi defines waiting. A test fails when an update changes it.
const POLL_INTERFACE: &str = "wasi:io/poll@0.2.12";

/// One instance's share of WASI: made when it is first asked for, so that plugins without WASI pay nothing.
#[derive(Default)]
pub(super) struct WasiState {
    granted: Option<(WasiCtx, ResourceTable)>,
    /// When the running call has to be over; none = never.
    deadline: Option<Instant>,
}

impl WasiState {
    /// Tells when the call that begins now has to be over.
    pub(super) fn set_timeout(&mut self, timeout: Duration) {
        self.deadline = Instant::now().checked_add(timeout);
    }

    fn parts(&mut self) -> (&mut WasiCtx, &mut ResourceTable) {
        let (ctx, table) = self.granted.get_or_insert_with(|| {
            let mut table = ResourceTable::new();
            table.set_max_capacity(HANDLES_MAX);
            let mut ctx = WasiCtxBuilder::new();
            ctx.allow_tcp(false).allow_udp(false).allow_ip_name_lookup(false);
            (ctx.build(), table)
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
///
/// A guest that waits for a clock waits inside the host, where epochs do not stop it: the two functions that wait are
/// replaced by ones that end with the call's time, in the same trap.
pub(super) fn link_minimal(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    wasmtime_wasi::p2::add_to_linker_sync(linker)?;
    linker.allow_shadowing(true);
    let mut instance = linker.instance(POLL_INTERFACE)?;
    instance.func_wrap(
        "poll",
        |mut store: StoreContextMut<'_, State>, (pollables,): (Vec<Resource<DynPollable>>,)| {
            let wasi = &mut store.data_mut().wasi;
            let deadline = wasi.deadline;
            let ready = wait_until(deadline, poll::Host::poll(wasi.parts().1, pollables))?;
            Ok((ready,))
        },
    )?;
    instance.func_wrap(
        "[method]pollable.block",
        |mut store: StoreContextMut<'_, State>, (pollable,): (Resource<DynPollable>,)| {
            let wasi = &mut store.data_mut().wasi;
            let deadline = wasi.deadline;
            wait_until(deadline, poll::HostPollable::block(wasi.parts().1, pollable))
        },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}

fn wait_until<T>(
    deadline: Option<Instant>,
    wait: impl Future<Output = wasmtime::Result<T>>,
) -> wasmtime::Result<T> {
    let Some(deadline) = deadline else { return in_tokio(wait) };
    in_tokio(async move {
        match tokio::time::timeout_at(deadline.into(), wait).await {
            Ok(done) => done,
            Err(_elapsed) => Err(Trap::Interrupt.into()),
        }
    })
}
