//! Where things are on this machine, and building what is not there yet.

use std::{
    collections::HashMap,
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, OnceLock},
};

/// The workspace.
#[must_use]
pub fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_path_buf()
}

/// Cargo's target folder.
#[must_use]
pub fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The binary under test: what `TIDEMILL_BIN` names, else a release build made now.
///
/// # Panics
/// When it cannot be built.
#[must_use]
pub fn tidemill() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        env::var_os("TIDEMILL_BIN").map_or_else(
            || {
                cargo(&["build", "--release", "--package", "tidemill"]);
                target().join("release/tidemill")
            },
            PathBuf::from,
        )
    })
}

/// A plugin built as its author would, by a plain `cargo build --target wasm32-wasip2`, which gives a component at once.
///
/// # Panics
/// When it cannot be built.
pub fn wasip2_component(package: &str) -> PathBuf {
    static BUILT: OnceLock<Mutex<HashMap<String, PathBuf>>> = OnceLock::new();
    let mut built = BUILT.get_or_init(Mutex::default).lock().expect("building a plugin did not panic");
    built
        .entry(package.to_owned())
        .or_insert_with(|| {
            // A folder that guests share: this build does not wait for one of the host.
            let folder = target().join("guest");
            let target = folder.to_str().expect("a path of text");
            cargo(&["build", "--target", "wasm32-wasip2", "--package", package, "--target-dir", target]);
            folder.join("wasm32-wasip2/debug").join(format!("{}.wasm", package.replace('-', "_")))
        })
        .clone()
}

/// One of the plugins in `plugins/`, as `cargo xtask plugins` built it for `wasm32-unknown-unknown`; also those in
/// `broken/`, which no host may load.
///
/// # Panics
/// When they cannot be built.
#[must_use]
pub fn plugin(name: &str) -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    // `cargo xtask test` has built them; whoever runs the tests by hand gets what the sources say now.
    BUILT.get_or_init(|| {
        if env::var_os("TIDEMILL_BIN").is_none() {
            cargo(&["run", "--release", "--package", "xtask", "--", "plugins"]);
        }
    });
    target().join("plugins").join(format!("{name}.wasm"))
}

fn cargo(arguments: &[&str]) {
    let status = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(arguments)
        .arg("--quiet")
        .current_dir(root())
        .status()
        .expect("cargo can be run");
    assert!(status.success(), "`cargo {}` failed with {status}", arguments.join(" "));
}
