//! The publication: is it there, whole, and of the right tables?

use super::steps::{create_publication, is_listed, unpublished};
use super::{Defect, follows, setting, sql};
use crate::config::model::{Postgres, Truncate};
use crate::source::postgres::facts::{Facts, Kind, Publication, Relation};
use crate::source::postgres::quote::{friendly, friendly_table, identifier, literal};
use crate::source::postgres::table::TableName;

pub(super) fn check(facts: &Facts, source: &Postgres, found: &mut Vec<Defect>) {
    match &facts.publication {
        None => check_missing(facts, source, found),
        Some(publication) => {
            check_age(source, publication, found);
            check_operations(facts, source, publication, found);
            check_partitions(facts, source, publication, found);
            check_tables(facts, source, publication, found);
        }
    }
}

fn check_missing(facts: &Facts, source: &Postgres, found: &mut Vec<Defect>) {
    let name = &source.publication;
    let Some(create) = create_publication(facts, source) else { return };
    if facts.slot.is_some() {
        let what = format!(
            "publication {name} does not exist, but slot {} does: one that is made now is unknown at the slot's place in \
             the log; without the slot both are made anew, and the tables copied",
            source.slot
        );
        let drop = format!("SELECT pg_drop_replication_slot({})", literal(&source.slot));
        found.push(Defect::blocks(what, vec![sql(drop)]));
        return;
    }
    let statement = create.sql();
    if facts.server.in_recovery {
        let what = format!(
            "publication {name} does not exist, and a standby cannot make it: it is made on the primary"
        );
        found.push(Defect::blocks(what, vec![sql(statement)]));
        return;
    }
    if facts.role.superuser {
        return;
    }
    let mut foreign = facts.chosen();
    foreign.retain(|relation| !relation.owned);
    if !foreign.is_empty() {
        let owners: Vec<String> =
            foreign.iter().map(|table| format!("{} of {}", table.owner, table.name)).collect();
        let what = format!(
            "publication {name} does not exist, and role {} does not own all its tables (owners: {})",
            source.user,
            owners.join(", ")
        );
        found.push(Defect::blocks(what, vec![sql(statement)]));
    } else if !facts.role.may_create {
        let what = format!("publication {name} does not exist, and role {} may not make it", source.user);
        let grant = format!(
            "GRANT CREATE ON DATABASE {} TO {}",
            friendly(&source.database),
            identifier(&source.user)
        );
        found.push(Defect::blocks(what, vec![sql(grant), sql(statement)]));
    }
}

/// The slot reads the log with the catalogue of its time.
fn check_age(source: &Postgres, publication: &Publication, found: &mut Vec<Defect>) {
    if publication.newer_than_slot {
        let what = format!(
            "publication {} was made or altered later than the place in the log at which slot {} stands: if it was made \
             then, the slot will never get past that place",
            source.publication, source.slot
        );
        let drop = format!("SELECT pg_drop_replication_slot({})", literal(&source.slot));
        found.push(Defect::warns(what, vec![sql(drop)]));
    }
}

fn check_operations(facts: &Facts, source: &Postgres, publication: &Publication, found: &mut Vec<Defect>) {
    let name = &source.publication;
    let all = [
        ("insert", publication.inserts),
        ("update", publication.updates),
        ("delete", publication.deletes),
        ("truncate", publication.truncates),
    ];
    let missing: Vec<&str> = all.iter().filter(|(_, published)| !published).map(|(what, _)| *what).collect();
    let only_truncate = missing == ["truncate"];
    if missing.is_empty() || (only_truncate && source.truncate == Truncate::Ignore) {
        return;
    }
    let what = format!("publication {name} does not publish {}", missing.join(", "));
    let alter = sql(format!(
        "ALTER PUBLICATION {} SET (publish = 'insert, update, delete, truncate')",
        friendly(name)
    ));
    // Whoever has other tables in it may have left updates out on purpose: those without a key could not be updated
    // any more.
    let own = setting("have a publication of its own: `publication` in [source.postgres]");
    let mend = if facts.published_for_nothing() > 0 { vec![own, alter] } else { vec![alter, own] };
    found.push(if only_truncate { Defect::warns(what, mend) } else { Defect::blocks(what, mend) });
}

fn check_partitions(facts: &Facts, source: &Postgres, publication: &Publication, found: &mut Vec<Defect>) {
    let name = friendly(&source.publication);
    for relation in facts.chosen() {
        if relation.kind == Kind::Partitioned && !publication.via_root {
            let what =
                format!("publication {name} tells changes of {} as changes of its partitions", relation.name);
            let alter = format!("ALTER PUBLICATION {name} SET (publish_via_partition_root = true)");
            let partitions = setting("name the partitions in `tables` in [source.postgres]");
            found.push(Defect::blocks(what, vec![sql(alter), partitions]));
        }
        let root = facts.ancestors(relation).find(|ancestor| publication.tables.contains_key(&ancestor.oid));
        if let Some(root) = root.filter(|_| publication.via_root) {
            let what = format!(
                "changes of {} are published as changes of {}, the whole table",
                relation.name, root.name
            );
            found.push(Defect::blocks(
                what,
                vec![setting(format!("name {} in `tables` in [source.postgres]", root.name))],
            ));
        }
    }
}

/// The statement that adds a table which the publication lacks, if our role may not run it.
pub(super) fn addition_by_others(facts: &Facts, source: &Postgres, relation: &Relation) -> Option<String> {
    if !follows(source) {
        return None;
    }
    let beyond_us = match &facts.publication {
        Some(publication) => !is_listed(facts, relation) && !may_add(facts, publication, relation),
        // Somebody else makes it, of the tables that are fit already: see `check_missing`.
        None => made_by_others(facts) && create_publication(facts, source).is_some(),
    };
    let name = friendly(&source.publication);
    beyond_us.then(|| format!("ALTER PUBLICATION {name} ADD TABLE {}", friendly_table(&relation.name)))
}

/// Whether the publication that is missing has to be made by somebody else.
fn made_by_others(facts: &Facts) -> bool {
    let foreign = || facts.chosen().iter().any(|relation| !relation.owned);
    facts.slot.is_none() && (facts.server.in_recovery || (!facts.role.superuser && foreign()))
}

fn may_add(facts: &Facts, publication: &Publication, relation: &Relation) -> bool {
    !facts.server.in_recovery && (facts.role.superuser || (publication.owned && relation.owned))
}

fn check_tables(facts: &Facts, source: &Postgres, publication: &Publication, found: &mut Vec<Defect>) {
    let name = friendly(&source.publication);
    let beyond_us: Vec<&TableName> = unpublished(facts)
        .filter(|relation| !may_add(facts, publication, relation))
        .map(|relation| &relation.name)
        .collect();
    if !beyond_us.is_empty() {
        let tables: Vec<String> = beyond_us.iter().map(|table| friendly_table(table)).collect();
        let what = format!(
            "publication {name} (of {}) lacks {}, and role {} may not add to it",
            publication.owner,
            tables.join(", "),
            source.user
        );
        found.push(Defect::blocks(
            what,
            vec![sql(format!("ALTER PUBLICATION {name} ADD TABLE {}", tables.join(", ")))],
        ));
    }
    let foreign = facts.published_for_nothing();
    if foreign > 0 {
        let noun = if foreign == 1 { "table" } else { "tables" };
        let what =
            format!("publication {name} has {foreign} other {noun}, whose changes are sent for nothing");
        let own = "have a publication of its own: `publication` in [source.postgres]";
        found.push(Defect::warns(what, vec![setting(own)]));
    }
}
