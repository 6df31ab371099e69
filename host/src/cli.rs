//! Arguments and exit codes; nothing else.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use crate::config::{self, Overrides};
use crate::meter::bars;

mod check;
mod demo;
mod dlq;
mod docs;
mod dry_run;
mod inspect;
mod resync;
mod run;
mod sandbox;

/// Everything went well.
pub const EXIT_OK: u8 = 0;
/// Something failed, or a pipeline halted; the log says what and what to do.
pub const EXIT_FAILED: u8 = 1;
/// The command line or a file is wrong; nothing was started.
pub const EXIT_USAGE: u8 = 2;

const AFTER_HELP: &str = "\
Exit codes: 0 ok, 1 failed or halted, 2 wrong usage or file.

Try it without Kafka or StarRocks:
  tidemill demo

A pipeline of your own:
  tidemill check orders.toml            what is wrong with the file, all at once
  tidemill check --online orders.toml   also broker, topics, StarRocks and its tables
  tidemill run --dry-run orders.toml    rows of the first 10 records; commits nothing
  tidemill run orders.toml              until SIGTERM or Ctrl-C; a second one ends it at once
  tidemill dlq list orders.toml         what was set aside as dead letters, and why";

/// Heading of the options that every command takes.
const GLOBAL: &str = "Logs (every command)";

/// Loads StarRocks from streams: Kafka → WebAssembly plugins → shared batches → one transaction a batch.
#[derive(Debug, Parser)]
#[command(name = "tidemill", version, about, after_help = AFTER_HELP)]
struct Arguments {
    /// How logs are written; by default as text
    #[arg(
        long,
        global = true,
        help_heading = GLOBAL,
        value_enum,
        value_name = "FORMAT",
        default_value_t = LogFormat::Text
    )]
    log: LogFormat,
    /// What is logged, such as `debug` or `info,librdkafka=debug`; by default `info` where something runs
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "FILTER", env = "TIDEMILL_LOG")]
    log_level: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    /// Lines for people
    Text,
    /// One JSON object a line
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run pipelines until asked to stop
    Run(run::Run),
    /// Check pipeline files: keys, units, plugins; with --online also what they talk to
    Check(check::Check),
    /// See a million events go through plugins into batches, and what each batch size costs
    Demo(demo::Demo),
    /// A stand-in for StarRocks on this machine: Stream Load, transactions, SQL, faults on demand
    Sandbox(sandbox::SandboxCommand),
    /// Have one table of a Postgres source copied again
    Resync(resync::Resync),
    /// Look at dead letters, and run them through the pipeline again when their cause is mended
    #[command(subcommand)]
    Dlq(dlq::DlqCommand),
    /// Look at plugins
    #[command(subcommand)]
    Plugin(inspect::PluginCommand),
    /// Write the generated reference pages
    #[command(hide = true)]
    Docs(docs::Docs),
}

/// Parses the arguments and does what they say.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let usual = match arguments.command {
        Command::Demo(_) => "off",
        Command::Check(_) | Command::Resync(_) | Command::Dlq(_) | Command::Plugin(_) | Command::Docs(_) => {
            "warn"
        }
        Command::Run(_) | Command::Sandbox(_) => "info",
    };
    let level = arguments.log_level.as_deref().unwrap_or(usual);
    let runs = matches!(arguments.command, Command::Run(_));
    if let Err(error) = start_logs(arguments.log, level, runs) {
        eprintln!("error: --log-level: {error}");
        return ExitCode::from(EXIT_USAGE);
    }
    let code = match arguments.command {
        Command::Run(run) => run.execute(),
        Command::Check(check) => check.execute(),
        Command::Resync(resync) => resync.execute(),
        Command::Demo(demo) => demo.execute(),
        Command::Sandbox(sandbox) => sandbox.execute(),
        Command::Dlq(dlq) => dlq.execute(),
        Command::Plugin(plugin) => plugin.execute(),
        Command::Docs(docs) => docs.execute(),
    };
    ExitCode::from(code)
}

fn start_logs(
    format: LogFormat,
    filter: &str,
    runs: bool,
) -> Result<(), tracing_subscriber::filter::ParseError> {
    // The replication client logs errors that it also returns: they are told once, where they are handled.
    let filter = tracing_subscriber::EnvFilter::try_new(format!("pgwire_replication=off,{filter}"))?;
    let terminal = std::io::stderr().is_terminal();
    if runs && terminal && matches!(format, LogFormat::Text) {
        bars::draw_on_stderr();
    }
    let logs =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(bars::Beside).with_ansi(terminal);
    match format {
        LogFormat::Text => logs.with_target(false).init(),
        LogFormat::Json => logs.json().flatten_event(true).init(),
    }
    Ok(())
}

/// Loads the files; prints what is wrong with them.
fn load(files: &[PathBuf], flags: &Overrides) -> Result<config::model::Plan, u8> {
    config::load(files, flags).map_err(|problems| {
        eprint!("{problems}");
        EXIT_USAGE
    })
}

/// Says a fault on the terminal, with what to do about it.
fn say(fault: &crate::fault::Fault) {
    eprintln!("error: {}", fault.story());
}
