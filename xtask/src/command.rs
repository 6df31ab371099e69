//! Running other programs: each is announced, and its failure names it.

use std::{
    env,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

/// Why a chore did not come to its end, as a sentence for the terminal.
#[derive(Debug)]
pub(crate) struct Failure(Option<String>);

impl Failure {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self(Some(what.into()))
    }

    /// A failure that was told on the terminal already.
    pub(crate) fn told() -> Self {
        Self(None)
    }

    /// What is still to be told.
    pub(crate) fn untold(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.untold().unwrap_or("failed, as told above"))
    }
}

impl std::error::Error for Failure {}

impl From<tidemill_test_kafka::Fault> for Failure {
    fn from(fault: tidemill_test_kafka::Fault) -> Self {
        Self::new(fault.to_string())
    }
}

/// The workspace: `cargo xtask` may be called from any folder inside it.
pub(crate) fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_path_buf()
}

/// Cargo's target folder.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A program built with the release profile, which is the one that every chore uses.
pub(crate) fn built(program: &str) -> PathBuf {
    target().join("release").join(program)
}

/// A `cargo` command at the root of the workspace, with the toolchain that runs us.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    // What `cargo run` says of xtask itself. ring's build script asks for the same names, so that it, and all that is
    // built on it, would be compiled anew each time after a `cargo build` by hand.
    let told = |name: &OsString| {
        let name = name.to_string_lossy();
        name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
    };
    for name in env::vars_os().map(|(name, _)| name).filter(told) {
        command.env_remove(name);
    }
    command
}

/// Announces a command, runs it on this terminal, and fails by its name.
pub(crate) fn run(command: &mut Command) -> Result<(), Failure> {
    let name = announce(command);
    let status = command.status().map_err(|cause| Failure::new(format!("run `{name}`: {cause}")))?;
    if status.success() { Ok(()) } else { Err(Failure::new(format!("`{name}` failed with {status}"))) }
}

/// Prints the command as one would type it, and returns that text.
pub(crate) fn announce(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_else(|| command.get_program());
    let words: Vec<_> =
        std::iter::once(program).chain(command.get_args()).map(|word| word.to_string_lossy()).collect();
    let name = words.join(" ");
    println!("\n$ {name}");
    name
}
