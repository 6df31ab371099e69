//! Where things are on this machine, and building what is not there yet.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
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

/// Names the binary under test; whoever sets it has built the plugins, too.
const BINARY_VARIABLE: &str = "TIDEMILL_BIN";

/// Plugins that tests want as their authors would build them.
const WASIP2_PLUGINS: [&str; 2] = ["tidemill-test-plugin", "tidemill-plugin-passthrough"];

/// Builds what is not there yet, once, before any test's time begins to run.
///
/// `cargo xtask test` has built the binary and the plugins; whoever runs the tests by hand gets what the sources say now.
///
/// # Panics
/// When something cannot be built.
pub fn prepare() {
    static PREPARED: OnceLock<()> = OnceLock::new();
    PREPARED.get_or_init(|| {
        if env::var_os(BINARY_VARIABLE).is_none() {
            cargo(&["build", "--release", "--package", "tidemill"]);
            cargo(&["run", "--release", "--package", "xtask", "--", "plugins"]);
        }
        // A plain build for WASI 0.2 gives components at once. Guests share a folder, so that this does not wait for a
        // build of the host.
        let guests = guests();
        let mut arguments = vec!["build", "--target", "wasm32-wasip2", "--target-dir"];
        arguments.push(guests.to_str().expect("a path of text"));
        arguments.extend(WASIP2_PLUGINS.iter().flat_map(|package| ["--package", package]));
        cargo(&arguments);
    });
}

/// The binary under test: what `TIDEMILL_BIN` names, else the release build.
#[must_use]
pub fn tidemill() -> PathBuf {
    env::var_os(BINARY_VARIABLE).map_or_else(|| target().join("release/tidemill"), PathBuf::from)
}

/// The plugin of tests, which does what each record says: the output of `cargo build --target wasm32-wasip2`.
#[must_use]
pub fn test_plugin() -> PathBuf {
    wasip2_component("tidemill_test_plugin")
}

/// A plugin as a plain `cargo build --target wasm32-wasip2` leaves it, by the name of its library.
#[must_use]
pub fn wasip2_component(library: &str) -> PathBuf {
    guests().join("wasm32-wasip2/debug").join(format!("{library}.wasm"))
}

/// One of the plugins in `plugins/`, as `cargo xtask plugins` builds it for `wasm32-unknown-unknown`; also those in
/// `broken/`, which no host may load.
#[must_use]
pub fn plugin(name: &str) -> PathBuf {
    target().join("plugins").join(format!("{name}.wasm"))
}

/// Makes sure that this process, and those that it starts, may open this many files.
///
/// # Panics
/// When the system does not let it: tests of many connections show nothing then.
pub fn need_open_files(needed: u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    #[expect(unsafe_code, reason = "std has no word for RLIMIT_NOFILE")]
    // SAFETY: both calls read or write the struct that they are given and nothing else.
    let raised = unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0, "every system has this limit");
        let raised =
            libc::rlimit { rlim_cur: needed.max(limit.rlim_cur), rlim_max: needed.max(limit.rlim_max) };
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) == 0
    };
    assert!(
        raised,
        "this test needs {needed} open files, and the hard limit is {}: raise `ulimit -Hn`",
        limit.rlim_max
    );
}

fn guests() -> PathBuf {
    target().join("guest")
}

fn cargo(arguments: &[&str]) {
    let status = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .arg("--quiet")
        .args(arguments)
        .current_dir(root())
        .status()
        .expect("cargo can be run");
    assert!(status.success(), "`cargo {}` failed with {status}", arguments.join(" "));
}
