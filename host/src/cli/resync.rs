//! `tidemill resync`: has one table of a Postgres source copied again at the next start.

use std::path::PathBuf;

use clap::Args;

use super::{EXIT_FAILED, EXIT_OK, EXIT_USAGE};
use crate::config::Overrides;
use crate::config::model::Source;
use crate::source::postgres;

#[derive(Debug, Args)]
pub(super) struct Resync {
    /// The pipeline's file; nothing may be running it
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The source table; it is emptied in StarRocks and copied at the next start
    #[arg(value_name = "SCHEMA.TABLE")]
    table: String,
}

impl Resync {
    pub(super) fn execute(self) -> u8 {
        let plan = match super::load(&[self.file], &Overrides::default()) {
            Ok(plan) => plan,
            Err(code) => return code,
        };
        let Some(pipeline) = plan.pipelines.first() else { return EXIT_USAGE };
        let Source::Postgres(source) = &pipeline.source else {
            eprintln!("error: only tables of [source.postgres] can be copied again");
            return EXIT_USAGE;
        };
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                eprintln!("error: cannot start the runtime: {error}");
                return EXIT_FAILED;
            }
        };
        match runtime.block_on(postgres::resync(source, pipeline, &self.table)) {
            Ok(name) => {
                println!("{}: {name} is empty, and is copied again at the next start", self.table);
                EXIT_OK
            }
            Err(fault) => {
                super::say(&fault);
                EXIT_FAILED
            }
        }
    }
}
