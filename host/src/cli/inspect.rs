//! `tidemill plugin inspect`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{EXIT_FAILED, EXIT_OK, EXIT_USAGE};
use crate::config::Overrides;
use crate::fault::Fault;
use crate::plugin::{Engine, inspect};

#[derive(Debug, Subcommand)]
pub(super) enum PluginCommand {
    /// What a component imports, exports, wants and routes to
    Inspect(Inspect),
}

#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// The component
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Its configuration, as JSON
    #[arg(long, value_name = "JSON", default_value = "{}")]
    config: String,
    /// Where compiled plugins are kept
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
}

impl PluginCommand {
    pub(super) fn execute(self) -> u8 {
        let PluginCommand::Inspect(command) = self;
        if let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(&command.config) {
            eprintln!("error: --config is not JSON: {error}");
            return EXIT_USAGE;
        }
        match command.look() {
            Ok(code) => code,
            Err(fault) => {
                super::say(&fault);
                EXIT_FAILED
            }
        }
    }
}

impl Inspect {
    fn look(&self) -> Result<u8, Fault> {
        let flags = Overrides { cache_dir: self.cache_dir.clone(), ..Overrides::default() };
        let (transform, cache_dir) = match crate::config::lone_transform(&self.file, &self.config, &flags) {
            Ok(found) => found,
            Err(problems) => {
                eprint!("{problems}");
                return Ok(EXIT_USAGE);
            }
        };
        let engine = Engine::new(1, transform.memory_bytes, &cache_dir)?;
        let inspection = inspect(&engine, &transform)?;
        print!("{inspection}");
        Ok(if inspection.verdict.is_ok() { EXIT_OK } else { EXIT_FAILED })
    }
}
