//! `tidemill run --dry-run`: what would be loaded, on standard output.

use std::io::Write as _;
use std::ops::ControlFlow;

use super::EXIT_OK;
use crate::chain::{Chain, Transformed};
use crate::config::model::{Pipeline, Plan, Source, TableModel};
use crate::dead_letter::archive::Archive;
use crate::dead_letter::kept::Filter;
use crate::fault::Fault;
use crate::pipeline::{Destinations, load_plugins};
use crate::record::Columns;
use crate::rows::{self, Built, Targets};
use crate::sink::late::Model;
use crate::source::kafka::dry_run;
use crate::source::replay::chunks::{self, Chunk, Chunks, Way};

/// Reads up to `records` records of each pipeline and prints `table<TAB>row` for each row, and a line
/// on standard error for each reject. Nothing is loaded and nothing committed.
pub(super) fn print(plan: &Plan, records: usize) -> Result<u8, Fault> {
    let (_runtime, shared) = super::run::start(plan)?;
    for pipeline in &plan.pipelines {
        let plugins = load_plugins(pipeline, &shared.engine)?;
        let destinations = Destinations::of(pipeline, &plugins, &[])?;
        let mut chain = Chain::start(&plugins, &|plugin| destinations.of_plugin(plugin))?;
        let source = match &pipeline.source {
            Source::Kafka(source) => source,
            Source::Postgres(_) | Source::Http(_) => {
                return Err(Fault::halt(
                    format!(
                        "{}: a dry run needs a source that can be read without a trace, which {} is not",
                        pipeline.file.display(),
                        pipeline.source.name()
                    ),
                    "take the same file with [source.kafka], or run it against a sandbox: `tidemill sandbox`",
                ));
            }
        };
        // Without a connection to StarRocks the model is the file's; deletes are shown either way.
        let model = Model::from(pipeline.sink.table_model.unwrap_or(TableModel::Primary));
        let models = vec![model; destinations.names().len()];
        let targets = destinations.targets(&models, pipeline);
        let (mut read, mut made, mut refused) = (0, 0, 0);
        for mut chunk in dry_run::read(source, records)? {
            read += chunk.len();
            let transformed = chain.process(&chunk, None)?;
            let shown = show(pipeline, &destinations, &targets, &mut chunk, transformed)?;
            made += shown.made;
            refused += shown.refused;
        }
        eprintln!(
            "{}: {read} records read, {made} rows, {refused} rejected; nothing was loaded or committed",
            pipeline.name
        );
    }
    Ok(EXIT_OK)
}

/// As [`print`], of dead letters. `followed` are the tables of a source of tables.
pub(super) fn print_letters(
    plan: &Plan,
    archive: &Archive,
    filter: &Filter,
    limit: u64,
    followed: &[String],
) -> Result<u8, Fault> {
    let (_runtime, shared) = super::run::start(plan)?;
    let Some(pipeline) = plan.pipelines.first() else { return Ok(EXIT_OK) };
    let plugins = load_plugins(pipeline, &shared.engine)?;
    let followed: Vec<_> = followed.iter().map(|table| (table.clone(), Vec::new())).collect();
    let destinations = Destinations::of(pipeline, &plugins, &followed)?;
    let mut chain = Chain::start(&plugins, &|plugin| destinations.of_plugin(plugin))?;
    let model = Model::from(pipeline.sink.table_model.unwrap_or(TableModel::Primary));
    let targets = destinations.targets(&vec![model; destinations.names().len()], pipeline);
    let tombstones = matches!(pipeline.source, Source::Kafka(_));
    let (mut read, mut made, mut refused) = (0, 0, 0);
    let mut show_chunk = |chunk: Chunk| -> Result<(), Fault> {
        let Chunk { mut columns, way, .. } = chunk;
        let transformed = match way {
            Way::ThroughPlugins if !plugins.is_empty() => chain.process(&columns, None)?,
            Way::ThroughPlugins | Way::PastPlugins => Transformed::default(),
        };
        let shown = show(pipeline, &destinations, &targets, &mut columns, transformed)?;
        made += shown.made;
        refused += shown.refused;
        Ok(())
    };
    let mut chunks = Chunks::new(false);
    let mut impossible = 0;
    archive.each(&mut |kept| {
        if !filter.takes(&kept) {
            return Ok(ControlFlow::Continue(()));
        }
        if read == limit {
            return Ok(ControlFlow::Break(()));
        }
        read += 1;
        match chunks::way_of(&kept, destinations.names(), tombstones) {
            Err(why) => {
                impossible += 1;
                eprintln!("stays  {}: {why}", kept.place);
            }
            Ok((way, table)) => {
                if let Some(chunk) = chunks.add(kept, way, table) {
                    show_chunk(chunk)?;
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    })?;
    if let Some(chunk) = chunks.finish() {
        show_chunk(chunk)?;
    }
    refused += impossible;
    eprintln!(
        "{}: {read} letters read, {made} rows, {refused} rejected again; nothing was loaded or marked",
        pipeline.name
    );
    Ok(EXIT_OK)
}

/// What became of a chunk that was shown.
struct Shown {
    made: usize,
    refused: usize,
}

/// Prints the rows of a chunk, and says its rejects.
fn show(
    pipeline: &Pipeline,
    destinations: &Destinations,
    targets: &Targets,
    chunk: &mut Columns,
    mut transformed: Transformed,
) -> Result<Shown, Fault> {
    let mut refused = transformed.rejects.len();
    for (reject, plugin) in &transformed.rejects {
        say_reject(chunk, reject.input, &format!("plugin {plugin}: {}: {}", reject.code, reject.message));
    }
    let built = rows::build(chunk, &mut transformed, targets, false, &mut Vec::new());
    refused += built.rejects.len();
    Ok(Shown { made: print_rows(pipeline, destinations, chunk, &built)?, refused })
}

fn say_reject(chunk: &Columns, input: u32, why: &str) {
    let (partition, offset) = (chunk.partitions[input as usize], chunk.offsets[input as usize]);
    eprintln!("rejected {}[{partition}] offset {offset}: {why}", chunk.source());
}

fn print_rows(
    pipeline: &Pipeline,
    destinations: &Destinations,
    chunk: &Columns,
    built: &Built,
) -> Result<usize, Fault> {
    for reject in &built.rejects {
        say_reject(chunk, reject.input, &format!("{}: {}", reject.code, reject.message));
    }
    let mut out = std::io::stdout().lock();
    let mut made = 0;
    for segment in &built.segments {
        let table = &destinations.names()[usize::from(segment.table)];
        let mut start = 0;
        for end in &segment.index.ends {
            let row = &segment.body[start..*end as usize];
            start = *end as usize;
            made += 1;
            let written =
                write!(out, "{}.{table}\t", pipeline.sink.database).and_then(|()| out.write_all(row));
            written.map_err(|error| Fault::retry("cannot print a row").caused_by(error))?;
        }
    }
    Ok(made)
}
