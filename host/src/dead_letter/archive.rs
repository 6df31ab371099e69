//! Letters that were kept, read again; and the marks of those that a replay got through.
//!
//! Letters are never rewritten. A mark names a letter by its [`Place`] and is as durable as the letter: a line of a file
//! beside the letters, or a record of their topic.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::kept::{Kept, Place};
use super::topic::Topic;
use crate::config::model::{DeadLetters, Kafka, Pipeline, Source};
use crate::fault::Fault;
use crate::meter::PipelineMeter;

mod directory;
mod topic;

/// The letters of one pipeline.
#[derive(Debug, Clone)]
pub struct Archive {
    store: Store,
    pipeline: String,
}

#[derive(Debug, Clone)]
enum Store {
    Directory(directory::Files),
    Topic(topic::Records),
}

/// Takes a letter; `Break` = no more.
pub type Visit<'a> = dyn FnMut(Kept) -> Result<ControlFlow<()>, Fault> + 'a;

fn kafka_of(pipeline: &Pipeline) -> Option<&Kafka> {
    match &pipeline.source {
        Source::Kafka(kafka) => Some(kafka),
        Source::Postgres(_) | Source::Http(_) => None,
    }
}

fn settings_of(pipeline: &Pipeline) -> Result<&DeadLetters, Fault> {
    pipeline.dead_letters.as_ref().ok_or_else(|| {
        Fault::halt(
            format!("{}: the pipeline keeps no dead letters", pipeline.file.display()),
            "add [dead_letters] with `directory`, or [dead_letters.kafka] with `topic`; what is rejected from then on is kept",
        )
    })
}

impl Archive {
    /// The letters that `pipeline` has kept. Nothing is read yet.
    ///
    /// # Errors
    /// Halt, if the pipeline keeps none, or names no brokers for them.
    pub fn of(pipeline: &Pipeline) -> Result<Archive, Fault> {
        let store = match settings_of(pipeline)? {
            DeadLetters::Directory(path) => Store::Directory(directory::Files::new(path, &pipeline.name)),
            DeadLetters::Kafka { topic, brokers } => {
                Store::Topic(topic::Records::new(topic, brokers, kafka_of(pipeline))?)
            }
        };
        Ok(Archive { store, pipeline: pipeline.name.clone() })
    }

    /// Shows all letters of the pipeline to `visit`, file by file or partition by partition in the order in which they
    /// were kept, until it has had enough. What is kept meanwhile may be left out.
    ///
    /// # Errors
    /// Halt, if something cannot be read or is no letter; and whatever `visit` says.
    pub fn each(&self, visit: &mut Visit<'_>) -> Result<(), Fault> {
        let mut own = |kept: Kept| match kept.pipeline == self.pipeline {
            true => visit(kept),
            // Pipelines may share a directory or a topic.
            false => Ok(ControlFlow::Continue(())),
        };
        match &self.store {
            Store::Directory(files) => files.each(&mut own),
            Store::Topic(records) => records.each(&mut own),
        }
    }
}

/// Marks letters as replayed.
pub struct Marks(Notes);

enum Notes {
    /// Lines of a file beside the letters.
    Directory(directory::MarksFile),
    /// Records of the letters' topic.
    Topic(Topic),
}

impl Marks {
    /// Opens the place of the marks of `pipeline`.
    ///
    /// # Errors
    /// Halt, if it cannot be written, or if another replay of the same letters is at work.
    pub fn open(pipeline: &Pipeline, meter: &Arc<PipelineMeter>) -> Result<Marks, Fault> {
        Ok(Marks(match settings_of(pipeline)? {
            DeadLetters::Directory(path) => {
                Notes::Directory(directory::MarksFile::open(path, &pipeline.name)?)
            }
            DeadLetters::Kafka { topic, brokers } => {
                Notes::Topic(Topic::open(topic, brokers, kafka_of(pipeline), meter)?)
            }
        }))
    }

    /// Marks the letters at these places. They are marked for good when this returns.
    ///
    /// # Errors
    /// Halt, if the marks cannot be written; the letters then count as not replayed.
    pub fn mark(&mut self, places: &[&Place]) -> Result<(), Fault> {
        if places.is_empty() {
            return Ok(());
        }
        match &mut self.0 {
            Notes::Directory(file) => file.mark(places),
            Notes::Topic(topic) => topic.mark(places),
        }
    }
}
