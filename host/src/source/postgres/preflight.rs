//! What is wrong with a source before anything is changed in it, all of it in one go, each with its mend. Pure.

use std::fmt::{self, Write};

use super::facts::Facts;
use crate::config::model::{Postgres, Snapshot};
use crate::fault::Fault;

#[cfg(test)]
pub(crate) mod fixtures;
mod publication;
mod server;
mod steps;
mod tables;
#[cfg(test)]
mod tests;

pub(super) use steps::is_listed;
pub use steps::{Step, plan};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// It cannot work, or would harm somebody: the pipeline does not start.
    Blocks,
    /// It works, and may bring trouble one day.
    Warns,
}

/// One way to mend a defect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mend {
    /// SQL, without the last semicolon.
    Sql(String),
    /// SQL, and then a restart of the server.
    SqlAndRestart(String),
    /// Something that is no SQL: the pipeline file, or a parameter group.
    Setting(String),
}

impl fmt::Display for Mend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mend::Sql(sql) => write!(f, "{sql};"),
            Mend::SqlAndRestart(sql) => write!(f, "{sql};  -- then restart the server"),
            Mend::Setting(words) => f.write_str(words),
        }
    }
}

/// Something that is not as it has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defect {
    /// What is wrong with what.
    pub what: String,
    /// Ways to mend it; each is enough, the first is the one to be preferred.
    pub mend: Vec<Mend>,
    /// How bad it is.
    pub severity: Severity,
}

impl Defect {
    fn blocks(what: impl Into<String>, mend: Vec<Mend>) -> Defect {
        Defect { what: what.into(), mend, severity: Severity::Blocks }
    }

    fn warns(what: impl Into<String>, mend: Vec<Mend>) -> Defect {
        Defect { what: what.into(), mend, severity: Severity::Warns }
    }
}

fn sql(statement: impl Into<String>) -> Mend {
    Mend::Sql(statement.into())
}

fn setting(words: impl Into<String>) -> Mend {
    Mend::Setting(words.into())
}

/// Every defect.
pub fn defects(facts: &Facts, source: &Postgres) -> Vec<Defect> {
    let mut found = Vec::new();
    server::check(facts, source, &mut found);
    found.extend(defects_of_tables(facts, source));
    if follows(source) {
        server::check_slot(facts, source, &mut found);
    }
    found
}

/// Those of the publication and of the tables alone: what may have changed of a source that is followed.
pub fn defects_of_tables(facts: &Facts, source: &Postgres) -> Vec<Defect> {
    let mut found = Vec::new();
    if follows(source) {
        // Before the tables: their mends add to it.
        publication::check(facts, source, &mut found);
    }
    tables::check(facts, source, &mut found);
    found
}

/// Whether changes are followed: with `snapshot = "only"` neither publication nor slot is needed.
pub fn follows(source: &Postgres) -> bool {
    source.snapshot != Snapshot::Only
}

/// Whether tables are copied.
pub(super) fn copies(source: &Postgres) -> bool {
    source.snapshot != Snapshot::Never
}

/// Nothing, or one fault that tells of every defect that blocks.
///
/// # Errors
/// `Halt`, if there is any.
pub fn verdict(defects: &[Defect]) -> Result<(), Fault> {
    let blocking: Vec<&Defect> = defects.iter().filter(|found| found.severity == Severity::Blocks).collect();
    if blocking.is_empty() {
        return Ok(());
    }
    let noun = if blocking.len() == 1 { "defect" } else { "defects" };
    let mut what = format!("cannot follow the database: {} {noun}", blocking.len());
    for defect in blocking {
        let mends: Vec<String> = defect.mend.iter().map(ToString::to_string).collect();
        let _ = write!(what, "\n  - {}", defect.what);
        for mend in mends {
            let _ = write!(what, "\n      {mend}");
        }
    }
    Err(Fault::halt(
        what,
        "mend them and start again; `tidemill check --online` looks again without changing anything",
    ))
}

/// Defects and steps as text for people, a line each and its mends below.
pub fn report(defects: &[Defect], steps: &[Step]) -> String {
    let mut text = String::new();
    for defect in defects {
        let kind = match defect.severity {
            Severity::Blocks => "error",
            Severity::Warns => "warning",
        };
        let _ = writeln!(text, "{kind}: {}", defect.what);
        for (index, mend) in defect.mend.iter().enumerate() {
            let lead = if index == 0 { "mend:" } else { "  or:" };
            let _ = writeln!(text, "  {lead} {mend}");
        }
    }
    if !steps.is_empty() {
        let _ = writeln!(text, "`tidemill run` will do:");
    }
    for step in steps {
        let _ = writeln!(text, "  {};", step.sql());
    }
    text
}
