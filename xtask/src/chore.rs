//! The short chores: each builds what it needs and hands over.

use crate::{
    command::{self, Failure},
    setup,
};
use std::{ffi::OsString, os::unix::process::CommandExt, process::Command};
use tidemill_test_kafka::{BROKER_VARIABLE, Broker, Distribution, LIB_VARIABLE};

/// Builds plugins and binary and becomes `tidemill demo`: it needs no Kafka, no Docker and no JVM.
pub(crate) fn demo(arguments: &[OsString]) -> Result<(), Failure> {
    setup::for_building()?;
    plugins()?;
    command::run(&mut command::cargo(&["build", "--release", "--package", "tidemill"]))?;
    let mut demo = Command::new(command::built("tidemill"));
    demo.arg("demo").args(arguments).current_dir(command::root());
    command::announce(&demo);
    Err(Failure::new(format!("run `tidemill demo`: {}", demo.exec())))
}

/// Runs the benchmarks against a Kafka of their own.
pub(crate) fn bench(arguments: &[OsString]) -> Result<(), Failure> {
    setup::for_benchmarks()?;
    plugins()?;
    command::run(&mut command::cargo(&[
        "build",
        "--release",
        "--package",
        "tidemill",
        "--package",
        "tidemill-bench",
    ]))?;
    let distribution = Distribution::resolve(&command::target())?;
    let broker = Broker::start(&distribution, &command::target(), &[])?;
    let mut bench = Command::new(command::built("tidemill-bench"));
    bench
        .args(arguments)
        .current_dir(command::root())
        .env(BROKER_VARIABLE, broker.address())
        .env(LIB_VARIABLE, distribution.lib())
        .env("TIDEMILL_BIN", command::built("tidemill"));
    command::run(&mut bench)
}

/// Builds the example plugins.
pub(crate) fn plugins() -> Result<(), Failure> {
    crate::plugins::build(crate::plugins::Platform::Unknown)
}

/// Generates the configuration reference, or checks it for drift.
pub(crate) fn docs(check: bool) -> Result<(), Failure> {
    command::run(&mut command::cargo(&["build", "--release", "--package", "tidemill"]))?;
    let mut docs = Command::new(command::built("tidemill"));
    docs.arg("docs").current_dir(command::root());
    if check {
        docs.arg("--check");
    }
    command::run(&mut docs)
}

/// Licences, advisories, duplicate versions, as `deny.toml` says.
pub(crate) fn deny() -> Result<(), Failure> {
    if !setup::on_path("cargo-deny") {
        return Err(Failure::new(
            "cargo-deny is not installed; `cargo install --locked cargo-deny` brings it",
        ));
    }
    command::run(&mut command::cargo(&["deny", "--workspace", "check"]))
}
