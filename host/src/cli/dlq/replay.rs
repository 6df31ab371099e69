//! `tidemill dlq replay`: letters go through the pipeline again.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::list::one_line;
use super::{Choice, EXIT_FAILED, EXIT_OK};
use crate::cli::{dry_run, run};
use crate::config::model::{Pipeline, Plan, Source};
use crate::dead_letter::archive::{Archive, Marks};
use crate::dead_letter::kept::Filter;
use crate::delivery::Stop;
use crate::fault::Fault;
use crate::pipeline;
use crate::source::replay::{Order, Report, SharedReport};

#[derive(Debug, Args)]
pub(in crate::cli) struct Replay {
    /// The pipeline's file; the pipeline itself may run or not
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    choice: Choice,
    /// At most so many letters
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Load also into Primary and Unique Key tables, where letters may overwrite newer rows
    #[arg(long)]
    force: bool,
    /// Print the rows that the letters would become; load and mark nothing
    #[arg(long)]
    dry_run: bool,
}

/// What a look at the letters tells before anything is done.
struct Survey {
    letters: u64,
    /// Tables that the letters name.
    tables: BTreeSet<String>,
}

impl Replay {
    pub(super) fn execute(self) -> u8 {
        let Replay { file, choice, limit, force, dry_run } = self;
        let (filter, limit) = (choice.filter(false), limit.unwrap_or(u64::MAX));
        super::with_pipeline(file, |plan, pipeline| {
            let archive = Archive::of(pipeline)?;
            let Survey { letters, tables } = survey(&archive, &filter, limit)?;
            if letters == 0 {
                println!("{}: no letter to be replayed", pipeline.name);
                return Ok(EXIT_OK);
            }
            let followed = followed(pipeline, tables);
            if dry_run {
                return dry_run::print_letters(plan, &archive, &filter, limit, &followed);
            }
            let order = |marks, report| Order {
                archive,
                filter,
                limit,
                marks,
                followed,
                tombstones: matches!(pipeline.source, Source::Kafka(_)),
                force,
                report,
            };
            replay(plan, pipeline, letters, order)
        })
    }
}

fn survey(archive: &Archive, filter: &Filter, limit: u64) -> Result<Survey, Fault> {
    let mut survey = Survey { letters: 0, tables: BTreeSet::new() };
    archive.each(&mut |kept| {
        if filter.takes(&kept) && survey.letters < limit {
            survey.letters += 1;
            survey.tables.extend(kept.letter.content.table.as_deref().map(str::to_owned));
        }
        Ok(if survey.letters < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    Ok(survey)
}

/// Tables of a source of tables are known by its letters: it is not asked.
fn followed(pipeline: &Pipeline, tables: BTreeSet<String>) -> Vec<String> {
    match pipeline.source {
        Source::Postgres(_) => tables.into_iter().collect(),
        Source::Kafka(_) | Source::Http(_) => Vec::new(),
    }
}

fn replay(
    plan: &Plan,
    pipeline: &Arc<Pipeline>,
    letters: u64,
    order: impl FnOnce(Marks, SharedReport) -> Order,
) -> Result<u8, Fault> {
    let (runtime, shared) = run::start(plan)?;
    let stop = Stop::default();
    run::watch_signals(&runtime, &stop)?;
    let (marks, report) =
        (Marks::open(pipeline, &shared.meter.pipeline(&pipeline.name))?, SharedReport::default());
    let ended = pipeline::replay(pipeline, &shared, &stop, order(marks, report.clone()));
    let report = report.read();
    tell(pipeline, letters, &report);
    run::close(runtime, &shared);
    ended?;
    let all = report.refused == 0 && report.replayed >= letters;
    Ok(if all { EXIT_OK } else { EXIT_FAILED })
}

/// Which letters stay and why, and how many got through.
fn tell(pipeline: &Pipeline, letters: u64, report: &Report) {
    for stays in &report.stay {
        println!("stays  {}  {}: {}: {}", stays.place, stays.from, stays.code, one_line(&stays.message));
    }
    let told = report.stay.len() as u64;
    if report.refused > told {
        println!("and {} more that stay", report.refused - told);
    }
    // Further ones may have been kept meanwhile.
    let letters = letters.max(report.replayed + report.refused);
    // Of a replay that halted or was asked to stop.
    let left = letters.saturating_sub(report.replayed + report.refused);
    let left = if left > 0 { format!(", {left} are as they were") } else { String::new() };
    println!(
        "{}: {} of {letters} letters replayed and marked, {} stay{left}",
        pipeline.name, report.replayed, report.refused
    );
}
