//! `cargo xtask …`: set-up and chores, in Rust, from a bare machine on.

mod chaos;
mod chore;
mod command;
mod demo;
mod plants;
mod plugins;
mod setup;
mod suite;
mod tally;

use clap::{Parser, Subcommand};
use std::{ffi::OsString, process::ExitCode};

/// Set-up and chores of Tidemill.
#[derive(Parser)]
#[command(name = "cargo xtask", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Build the plugins and the binary, then run `tidemill demo` with the arguments that follow
    Demo {
        /// Start PostgreSQL with a busy shop instead, and `tidemill run` on it with the arguments that follow
        #[arg(long)]
        postgres: bool,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Install what is missing, check format and lints, and run every test against a real Kafka and a real PostgreSQL
    Test {
        /// Runs only the tests whose name contains one of these
        filters: Vec<String>,
    },
    /// Build, start Kafka, and run the benchmarks with the arguments that follow
    Bench {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Plant known bugs into the host, one at a time, and expect that the tests catch each of them
    Plants {
        /// Only these, by name; all by default
        bugs: Vec<String>,
    },
    /// Run pipelines while everything around them fails, with the arguments that follow, and judge what is left
    Chaos {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Build the example plugins into `target/plugins/*.wasm`
    Plugins {
        /// Build them for `wasm32-wasip2` instead, into `target/plugins/wasip2/*.wasm`
        #[arg(long)]
        wasip2: bool,
    },
    /// Generate the configuration reference from the types
    Docs {
        /// Fail when what is committed differs from what would be generated
        #[arg(long)]
        check: bool,
    },
    /// Check licences, advisories and duplicate versions with `cargo deny`, when it is installed
    Deny,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().chore {
        Chore::Demo { postgres: false, arguments } => chore::demo(&arguments),
        Chore::Demo { postgres: true, arguments } => demo::postgres(&arguments),
        Chore::Test { filters } => suite::run(&filters),
        Chore::Bench { arguments } => chore::bench(&arguments),
        Chore::Plants { bugs } => plants::run(&bugs),
        Chore::Chaos { arguments } => chaos::run(&arguments),
        Chore::Plugins { wasip2: false } => chore::plugins(),
        Chore::Plugins { wasip2: true } => plugins::build(plugins::Platform::Wasip2),
        Chore::Docs { check } => chore::docs(check),
        Chore::Deny => chore::deny(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(what) = failure.untold() {
                eprintln!("error: {what}");
            }
            ExitCode::FAILURE
        }
    }
}
