//! `cargo xtask chaos`: pipelines under faults, judged.

use crate::{
    command::{self, Failure},
    setup,
};
use std::{ffi::OsString, process::Command};
use tidemill_test_kafka::{Distribution, LIB_VARIABLE};

/// Names the binary with failpoints, for tests that want it beside the one that users run.
pub(crate) const FAULTS_VARIABLE: &str = "TIDEMILL_FAULTS_BIN";

/// Builds the binary with failpoints: the host is compiled a second time for it.
pub(crate) fn build_faults() -> Result<(), Failure> {
    let arguments = ["build", "--release", "--package", "tidemill", "--features", "faults"];
    command::run(command::cargo(&arguments).args(["--bin", "tidemill-faults"]))
}

/// Builds the driver and what it drives, and hands over.
pub(crate) fn run(arguments: &[OsString]) -> Result<(), Failure> {
    setup::for_testing()?;
    let distribution = Distribution::resolve(&command::target())?;
    build_faults()?;
    let driver = ["build", "--release", "--package", "tidemill-tests", "--bin", "tidemill-chaos"];
    command::run(&mut command::cargo(&driver))?;
    let mut chaos = Command::new(command::built("tidemill-chaos"));
    chaos
        .args(arguments)
        .current_dir(command::root())
        .env(LIB_VARIABLE, distribution.lib())
        .env("TIDEMILL_BIN", command::built("tidemill-faults"));
    command::run(&mut chaos)
}
