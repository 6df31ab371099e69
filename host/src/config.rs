//! Pipeline files: TOML as written → one validated [`model::Plan`], or all the mistakes at once.
//!
//! serde stops at the first mistake and knows neither units nor neighbours, so files are read with a
//! description instead: `sections` says which tables and keys there are, what each takes, its default and
//! what it is for. Reading (`table`, `kind`), messages (`problem`) and the reference (`reference`) all
//! follow that one description. `draft` then puts a file's values together, and `together` compares files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub mod model;

mod address;
mod choice;
mod columns;
mod draft;
mod json;
mod kind;
mod nearest;
mod node;
pub(crate) mod pattern;
mod problem;
mod process;
mod reference;
mod refused;
mod schema;
mod sections;
mod source;
mod table;
#[cfg(test)]
mod tests;
mod together;
mod units;

pub use problem::{Problem, Problems};
pub use process::Overrides;
pub use reference::{reference_markdown, reference_toml};

pub(crate) use kind::warn_if_open;

use draft::{Draft, with_root};
use model::{Plan, Process, Transform};
use source::Source;
use table::Table;

/// Reads pipeline files and checks each of them and all of them together.
///
/// # Errors
///
/// Everything that is wrong in any of the files or flags, with its place.
pub fn load(files: &[PathBuf], flags: &Overrides) -> Result<Plan, Problems> {
    plan(files.iter().map(|path| Source::read(path)).collect(), flags)
}

/// The same for texts that are at hand; relative paths start in the directory of the path given.
///
/// # Errors
///
/// As [`load`].
pub fn load_texts(texts: &[(&Path, &str)], flags: &Overrides) -> Result<Plan, Problems> {
    plan(texts.iter().map(|(path, text)| Ok(Source::new(path, text))).collect(), flags)
}

/// A plugin without a pipeline, under the default limits, and the directory for compiled plugins.
///
/// # Errors
///
/// If there is no directory for compiled plugins.
pub fn lone_transform(
    plugin: &Path,
    config_json: &str,
    flags: &Overrides,
) -> Result<(Transform, PathBuf), Problems> {
    let mut problems = Vec::new();
    let cache_dir = process::cache_dir_of(flags).or_else(|| process::usual_cache_dir(&mut problems));
    let nowhere = Source::flag("[[transform]]");
    let limits = Table::absent(&nowhere, &sections::transform::SECTION);
    let transform = draft::transform_of(&limits, Some(plugin.to_owned()), Some(config_json.to_owned()));
    problems.extend(nowhere.into_problems());
    transform.zip(cache_dir).ok_or_else(|| Problems::or_none_given(problems))
}

fn plan(sources: Vec<Result<Source, Box<Problem>>>, flags: &Overrides) -> Result<Plan, Problems> {
    let mut problems = Vec::new();
    let mut files = Vec::new();
    let mut process: Option<Process> = None;
    for source in sources {
        let source = match source {
            Ok(source) => source,
            Err(problem) => {
                problems.push(*problem);
                continue;
            }
        };
        let drafted = with_root(&source, |root| {
            if let Some(table) = root.table(&sections::process::SECTION) {
                process = process::read(&table, flags, &mut problems);
            }
            Draft::read(root)
        });
        match drafted {
            Some(draft) => files.push((source, draft)),
            None => problems.extend(source.into_problems()),
        }
    }
    together::check(&files);
    if files.iter().all(|(_, draft)| draft.process.is_none()) {
        let nowhere = Source::flag("[process]");
        process = process::read(&Table::absent(&nowhere, &sections::process::SECTION), flags, &mut problems);
        problems.extend(nowhere.into_problems());
    }
    let mut pipelines = Vec::with_capacity(files.len());
    for (source, draft) in files {
        pipelines.extend(draft.pipeline.map(Arc::new));
        problems.extend(source.into_problems());
    }
    match process {
        Some(process) if problems.is_empty() && !pipelines.is_empty() => Ok(Plan { process, pipelines }),
        Some(_) | None => Err(Problems::or_none_given(problems)),
    }
}
