//! What the program will set up by itself.

use super::tables::may_be_published;
use super::{follows, server};
use crate::config::model::Postgres;
use crate::source::postgres::facts::{Facts, Relation};
use crate::source::postgres::quote::{friendly, friendly_table, literal};
use crate::source::postgres::table::TableName;

/// One change to the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Makes the publication. Before the slot, whose place in the log would know nothing of it otherwise.
    CreatePublication {
        /// Its name.
        publication: String,
        /// What it publishes.
        tables: Vec<TableName>,
    },
    /// Adds tables to the publication.
    AddTables {
        /// Its name.
        publication: String,
        /// What is added.
        tables: Vec<TableName>,
    },
    /// Makes the slot.
    CreateSlot {
        /// Its name.
        slot: String,
    },
}

impl Step {
    /// As SQL, without the semicolon. The slot is made by a replication command of the same effect, which gives the
    /// snapshot besides.
    pub fn sql(&self) -> String {
        let list = |tables: &[TableName]| tables.iter().map(friendly_table).collect::<Vec<_>>().join(", ");
        match self {
            // Via the root, or a new partition would be a new table in StarRocks.
            Step::CreatePublication { publication, tables } => format!(
                "CREATE PUBLICATION {} FOR TABLE {} WITH (publish_via_partition_root = true)",
                friendly(publication),
                list(tables)
            ),
            Step::AddTables { publication, tables } => {
                format!("ALTER PUBLICATION {} ADD TABLE {}", friendly(publication), list(tables))
            }
            Step::CreateSlot { slot } => {
                format!("SELECT pg_create_logical_replication_slot({}, '{}')", literal(slot), server::PLUGIN)
            }
        }
    }
}

/// The set-up that is missing, in the order in which it has to be done; nothing, if nothing is.
///
/// Tables that must not be published are never part of it: they are defects.
pub fn plan(facts: &Facts, source: &Postgres) -> Vec<Step> {
    if !follows(source) {
        return Vec::new();
    }
    let mut steps = Vec::new();
    if facts.publication.is_none() {
        steps.extend(create_publication(facts, source));
    } else {
        let tables: Vec<TableName> = unpublished(facts).map(|relation| relation.name.clone()).collect();
        if !tables.is_empty() {
            steps.push(Step::AddTables { publication: source.publication.clone(), tables });
        }
    }
    if facts.slot.is_none() {
        steps.push(Step::CreateSlot { slot: source.slot.clone() });
    }
    steps
}

/// None if no table may be published.
pub(super) fn create_publication(facts: &Facts, source: &Postgres) -> Option<Step> {
    let tables: Vec<TableName> = facts
        .chosen()
        .into_iter()
        .filter(|relation| may_be_published(facts, relation))
        .map(|relation| relation.name.clone())
        .collect();
    let publication = source.publication.clone();
    (!tables.is_empty()).then_some(Step::CreatePublication { publication, tables })
}

/// Tables to be followed that the publication lacks and that may be added.
pub(super) fn unpublished(facts: &Facts) -> impl Iterator<Item = &Relation> {
    facts
        .chosen()
        .into_iter()
        .filter(|relation| !is_listed(facts, relation) && may_be_published(facts, relation))
}

/// Whether a table is published, be it by its partitions or by what it is a partition of; if that is not as it has
/// to be, it is a defect of its own.
pub(in crate::source::postgres) fn is_listed(facts: &Facts, relation: &Relation) -> bool {
    let published = |relation: &Relation| facts.published(relation).is_some();
    published(relation)
        || facts.heaps(relation).into_iter().any(published)
        || facts.ancestors(relation).any(published)
}
