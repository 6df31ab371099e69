//! Builds the example plugins into components.
//!
//! `wasm32-unknown-unknown` is the usual target: its core module already carries the description of its world, and is
//! wrapped into a component here. `wasm32-wasip2` makes components by itself. Guests have a target folder of their own, so
//! that building them does not wait for a build of the host.

mod broken;

use crate::command::{self, Failure};
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use wit_component::ComponentEncoder;

/// The plugins, which are the crates `tidemill-plugin-<name>`.
const PLUGINS: [&str; 4] = ["orders", "route", "passthrough", "hostile"];
/// The profile of the workspace for guests.
const PROFILE: &str = "plugin";

/// What a plugin is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Platform {
    /// No operating system at all: nothing imported but `log`.
    Unknown,
    /// WASI 0.2, as `cargo build --target wasm32-wasip2` does it: imports of `wasi:*` that are never called.
    Wasip2,
}

impl Platform {
    fn triple(self) -> &'static str {
        match self {
            Self::Unknown => "wasm32-unknown-unknown",
            Self::Wasip2 => "wasm32-wasip2",
        }
    }

    /// Where the components go: `target/plugins`, and `wasip2` in it.
    fn folder(self) -> PathBuf {
        let plugins = command::target().join("plugins");
        match self {
            Self::Unknown => plugins,
            Self::Wasip2 => plugins.join("wasip2"),
        }
    }
}

/// Builds all plugins for a platform into `target/plugins/<name>.wasm` or `target/plugins/wasip2/<name>.wasm`, and
/// for the usual platform the files that no host may load into `target/plugins/broken/`.
pub(crate) fn build(platform: Platform) -> Result<(), Failure> {
    compile(platform, &PLUGINS, &[])?;
    let folder = platform.folder();
    for name in PLUGINS {
        let component = component(platform, name)?;
        place(&folder.join(format!("{name}.wasm")), &component)?;
    }
    match platform {
        Platform::Unknown => broken::build(&folder),
        Platform::Wasip2 => Ok(()),
    }
}

fn compile(platform: Platform, plugins: &[&str], features: &[&str]) -> Result<(), Failure> {
    let mut cargo = command::cargo(&["build", "--profile", PROFILE, "--target", platform.triple()]);
    for plugin in plugins {
        cargo.arg("--package").arg(format!("tidemill-plugin-{plugin}"));
    }
    if !features.is_empty() {
        cargo.arg("--features").arg(features.join(","));
    }
    // Flags for the host (a CPU, a sanitizer) are wrong for a guest.
    cargo
        .env("CARGO_TARGET_DIR", guest_target())
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    command::run(&mut cargo)
}

fn guest_target() -> PathBuf {
    command::target().join("guest")
}

/// What the compiler left for a plugin: a core module, or on WASI a component.
fn compiled(platform: Platform, plugin: &str) -> Result<Vec<u8>, Failure> {
    let file =
        guest_target().join(platform.triple()).join(PROFILE).join(format!("tidemill_plugin_{plugin}.wasm"));
    fs::read(&file).map_err(|cause| failure("read", &file, &cause))
}

fn component(platform: Platform, plugin: &str) -> Result<Vec<u8>, Failure> {
    let compiled = compiled(platform, plugin)?;
    match platform {
        Platform::Unknown => encode(plugin, &compiled),
        Platform::Wasip2 => Ok(compiled),
    }
}

/// Wraps a core module into a component, as `wasm-tools component new` does.
fn encode(name: &str, module: &[u8]) -> Result<Vec<u8>, Failure> {
    ComponentEncoder::default()
        .validate(true)
        .module(module)
        .and_then(|encoder| encoder.encode())
        .map_err(|cause| Failure::new(format!("make a component of `{name}`: {cause:#}")))
}

/// Writes a file beside its place and moves it there, so that a running host that maps or hashes the old one keeps it. An
/// unchanged file keeps its time, too.
fn place(file: &Path, bytes: &[u8]) -> Result<(), Failure> {
    if fs::read(file).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(|cause| failure("create", folder, &cause))?;
    let aside = file.with_extension("wasm.new");
    fs::write(&aside, bytes).map_err(|cause| failure("write", &aside, &cause))?;
    fs::rename(&aside, file).map_err(|cause| failure("move into place", file, &cause))?;
    println!("{} ({} KiB)", file.display(), bytes.len().div_ceil(1024));
    Ok(())
}

fn failure(what: &str, file: &Path, cause: &io::Error) -> Failure {
    Failure::new(format!("{what} {}: {cause}", file.display()))
}
