//! The tables: can their rows be told apart, are they logged, may they be read?

use std::collections::{BTreeMap, BTreeSet};

use super::publication::addition_by_others;
use super::{Defect, Mend, copies, setting, sql};
use crate::config::model::Postgres;
use crate::source::postgres::facts::{Facts, Kind, Named, Publication, Published, Relation};
use crate::source::postgres::quote::{friendly, friendly_table, identifier};
use crate::source::postgres::table::{Identity, Table, TableName};

pub(super) fn check(facts: &Facts, source: &Postgres, found: &mut Vec<Defect>) {
    for unmatched in &facts.unmatched {
        let near: Vec<String> = unmatched.near.iter().map(ToString::to_string).collect();
        let mend = match near.as_slice() {
            [] => "mend `tables` in [source.postgres]".to_owned(),
            near => format!("mend `tables` in [source.postgres]; there is {}", near.join(", ")),
        };
        found.push(Defect::blocks(format!("{:?} names no table", unmatched.pattern), vec![setting(mend)]));
    }
    if facts.unmatched.is_empty() && facts.chosen().is_empty() {
        let mend = setting("mend `tables` and `exclude` in [source.postgres]");
        found.push(Defect::blocks("no table is left to be followed", vec![mend]));
    }
    for relation in facts.chosen() {
        match relation.kind {
            Kind::Foreign => found.push(no_table(relation, "a foreign table")),
            Kind::View => found.push(no_table(relation, "a view")),
            Kind::Table | Kind::Partitioned => check_table(facts, source, relation, found),
        }
    }
    if copies(source) {
        check_reading(facts, source, found);
    }
}

fn no_table(relation: &Relation, what: &str) -> Defect {
    let what = format!("{} is {what}, whose changes leave no trace in the log", relation.name);
    Defect::blocks(what, vec![leave_out(&relation.name)])
}

fn leave_out(name: &TableName) -> Mend {
    setting(format!("leave it out: exclude = [\"{name}\"] in [source.postgres]"))
}

fn check_table(facts: &Facts, source: &Postgres, relation: &Relation, found: &mut Vec<Defect>) {
    let mut unfit = Vec::new();
    for heap in facts.heaps(relation) {
        if heap.unlogged {
            let statement = format!("ALTER TABLE {} SET LOGGED", friendly_table(&heap.name));
            let what = format!("{} is unlogged: its changes leave no trace in the log", heap.name);
            unfit.push(Defect::blocks(what, vec![sql(statement), leave_out(&relation.name)]));
        }
        if heap.named == Named::Excluded {
            let what = format!(
                "{} is in `exclude`, but its rows are rows of {}, which is followed",
                heap.name, relation.name
            );
            let mend =
                "leave it out of `exclude`, or name the other partitions in `tables` instead of the whole";
            found.push(Defect::warns(what, vec![setting(mend)]));
        }
        if heap.kind == Kind::Foreign {
            let what = format!("{} is a foreign table: its rows are not followed", heap.name);
            found.push(Defect::warns(what, vec![leave_out(&heap.name)]));
        }
    }
    unfit.extend(without_identity(facts, relation));
    if let Some(Mend::Sql(statement)) = unfit.last_mut().and_then(|last| last.mend.first_mut())
        && let Some(add) = addition_by_others(facts, source, relation)
    {
        // Only now that it is fit: all of the mends together leave nothing to be mended.
        statement.push_str(&format!("; {add}"));
    }
    found.append(&mut unfit);
    found.extend(clashing_columns(facts, relation));
    if let (Some(publication), Some(published)) = (&facts.publication, facts.published(relation)) {
        check_published(facts, relation, publication, published, found);
    }
}

/// Whether a table may be put into a publication that publishes updates: otherwise the owner's own UPDATE and DELETE
/// statements would fail from then on.
pub(super) fn may_be_published(facts: &Facts, relation: &Relation) -> bool {
    matches!(relation.kind, Kind::Table | Kind::Partitioned)
        && has_identity(relation)
        && facts.heaps(relation).iter().all(|heap| has_identity(heap) && !heap.unlogged)
}

/// The rows can be told apart, and an UPDATE tells of which one it was.
fn has_identity(relation: &Relation) -> bool {
    match relation.identity {
        Identity::Full => !relation.primary_key.is_empty(),
        Identity::Default | Identity::Index => !relation.identity_columns.is_empty(),
        Identity::Nothing => false,
    }
}

/// A table's rows are kept apart by its own identity; a partitioned one's by that of each partition.
fn without_identity(facts: &Facts, relation: &Relation) -> Vec<Defect> {
    let mut lacking: Vec<Defect> = Vec::new();
    if !has_identity(relation) {
        lacking.push(no_identity(facts, relation));
    } else if relation.kind == Kind::Partitioned {
        let key = key_names(relation);
        let differs = |heap: &&Relation| {
            let told = heap.names(&heap.identity_columns);
            heap.kind == Kind::Table && !(has_identity(heap) && key.iter().all(|name| told.contains(name)))
        };
        let heaps = facts.heaps(relation);
        lacking.extend(heaps.into_iter().filter(differs).map(|heap| {
            let what = format!(
                "{}, a partition of {}, has a replica identity that does not tell the whole key ({})",
                heap.name,
                relation.name,
                key.join(", ")
            );
            let statement = format!("ALTER TABLE {} REPLICA IDENTITY FULL", friendly_table(&heap.name));
            Defect::blocks(what, vec![sql(statement)])
        }));
    }
    lacking
}

/// Columns by which rows are told apart: the primary key, or the index that is the replica identity.
fn key_names(relation: &Relation) -> Vec<&str> {
    match relation.identity {
        Identity::Full | Identity::Nothing => relation.names(&relation.primary_key),
        Identity::Default | Identity::Index => relation.names(&relation.identity_columns),
    }
}

fn no_identity(facts: &Facts, relation: &Relation) -> Defect {
    let name = &relation.name;
    let identity = |by: &str| sql(format!("ALTER TABLE {} REPLICA IDENTITY {by}", friendly_table(name)));
    let has_key = !relation.primary_key.is_empty();
    let usable_key = has_key && !relation.primary_key_deferrable;
    let (what, mut mend) = match (relation.identity, usable_key, has_key) {
        (Identity::Nothing, true, _) => {
            (format!("{name} has REPLICA IDENTITY NOTHING"), vec![identity("DEFAULT")])
        }
        (Identity::Index, true, _) => {
            (format!("{name} has lost the index that was its replica identity"), vec![identity("DEFAULT")])
        }
        (_, false, true) => (
            format!("{name} has a deferrable primary key, which is no replica identity"),
            vec![identity("FULL")],
        ),
        (_, _, false) => (format!("{name} has no primary key"), Vec::new()),
        (Identity::Default | Identity::Full, true, true) => {
            (format!("{name} has no replica identity"), vec![identity("DEFAULT")])
        }
    };
    if let Some(index) = &relation.unique_index {
        mend.push(identity(&format!("USING INDEX {}", friendly(index))));
    }
    if !has_key {
        mend.push(sql(format!("ALTER TABLE {} ADD PRIMARY KEY (<columns>)", friendly_table(name))));
    }
    mend.push(leave_out(name));
    let harm = facts.publication.as_ref().filter(|publication| {
        let breaks = publication.updates || publication.deletes;
        breaks && relation.identity != Identity::Full && facts.published(relation).is_some()
    });
    let what = match harm {
        Some(_) => format!("{what}, and is published: its owner's own UPDATE and DELETE statements fail"),
        None => format!("{what}: its updates and deletes would not tell which row they mean"),
    };
    Defect::blocks(what, mend)
}

/// StarRocks does not tell `Id` and `id` apart.
fn clashing_columns(facts: &Facts, relation: &Relation) -> Vec<Defect> {
    let table = facts.table(relation);
    let mut spellings: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for column in &table.columns {
        spellings.entry(column.name.to_lowercase()).or_default().push(&column.name);
    }
    let clashing = spellings.into_values().filter(|names| names.len() > 1);
    let defect = |names: Vec<&str>| {
        let what = format!("columns {} of {} are one name in StarRocks", names.join(" and "), relation.name);
        let column = names.first().copied().unwrap_or_default();
        let rename = format!(
            "ALTER TABLE {} RENAME COLUMN {} TO {}",
            friendly_table(&relation.name),
            friendly(column),
            friendly(&format!("{column}_2"))
        );
        Defect::blocks(what, vec![sql(rename), setting("leave one out by a column list of the publication")])
    };
    clashing.map(defect).collect()
}

/// Copying needs what following does not: SELECT, on partitions too.
fn check_reading(facts: &Facts, source: &Postgres, found: &mut Vec<Defect>) {
    let role = identifier(&source.user);
    let mut schemas = BTreeSet::new();
    let mut unreadable = Vec::new();
    let mut partly = Vec::new();
    for relation in facts.chosen() {
        let table = facts.table(relation);
        for heap in facts.heaps(relation).into_iter().filter(|heap| heap.kind == Kind::Table) {
            if !heap.may_use_schema {
                schemas.insert(&heap.name.schema);
            }
            let hidden = hidden_columns(heap, &table);
            if heap.columns.iter().all(|attribute| !attribute.may_select) {
                unreadable.push(&heap.name);
            } else if !hidden.is_empty() {
                let list = hidden.join(", ");
                let what =
                    format!("role {} may not read {} ({list}), which copying needs", source.user, heap.name);
                let grant = format!("GRANT SELECT ({list}) ON {} TO {role}", friendly_table(&heap.name));
                partly.push(Defect::blocks(what, vec![sql(grant)]));
            }
            if heap.row_security {
                let what = format!("row security hides rows of {} from role {}", heap.name, source.user);
                partly.push(Defect::blocks(what, vec![sql(format!("ALTER ROLE {role} BYPASSRLS"))]));
            }
        }
    }
    for schema in schemas {
        let schema = friendly(schema);
        let what = format!("role {} may not use schema {schema}, which copying needs", source.user);
        found.push(Defect::blocks(what, vec![sql(format!("GRANT USAGE ON SCHEMA {schema} TO {role}"))]));
    }
    if !unreadable.is_empty() {
        let names: Vec<String> = unreadable.iter().map(ToString::to_string).collect();
        let what = format!("role {} may not read {}, which copying needs", source.user, names.join(", "));
        let tables: Vec<String> = unreadable.into_iter().map(friendly_table).collect();
        let grant = format!("GRANT SELECT ON {} TO {role}", tables.join(", "));
        found.push(Defect::blocks(what, vec![sql(grant)]));
    }
    found.append(&mut partly);
}

/// Published columns that our role may not read.
fn hidden_columns(heap: &Relation, table: &Table) -> Vec<String> {
    let wanted = |name: &str| table.columns.iter().any(|column| column.name == name);
    let hidden = heap.columns.iter().filter(|column| !column.may_select && wanted(&column.column.name));
    hidden.map(|column| friendly(&column.column.name)).collect()
}

/// Column list and row filter must leave the identity whole, or the owner's own statements fail.
fn check_published(
    facts: &Facts,
    relation: &Relation,
    publication: &Publication,
    published: &Published,
    found: &mut Vec<Defect>,
) {
    let table = facts.table(relation);
    let key = key_names(relation);
    let missing: Vec<&str> =
        key.iter().copied().filter(|name| !table.columns.iter().any(|column| column.name == *name)).collect();
    if !missing.is_empty() {
        let what = format!(
            "the publication's column list of {} leaves out key columns: {}",
            relation.name,
            missing.join(", ")
        );
        let mend =
            "add them by ALTER PUBLICATION … SET TABLE …, which has to name all tables of the publication";
        found.push(Defect::blocks(what, vec![setting(mend)]));
    }
    let Some(filter) = &published.filter else { return };
    if relation.identity == Identity::Full || !(publication.updates || publication.deletes) {
        return;
    }
    let outside: Vec<&str> = relation
        .columns
        .iter()
        .map(|attribute| attribute.column.name.as_str())
        .filter(|name| !key.contains(name) && mentions(filter, name))
        .collect();
    if !outside.is_empty() {
        let what = format!(
            "the publication's row filter of {} looks at columns outside of the replica identity ({}): its owner's own \
             UPDATE and DELETE statements fail",
            relation.name,
            outside.join(", ")
        );
        let full = format!("ALTER TABLE {} REPLICA IDENTITY FULL", friendly_table(&relation.name));
        found.push(Defect::blocks(what, vec![sql(full), setting("or filter by key columns only")]));
    }
}

/// Whether an expression, as Postgres writes it back, names a column.
fn mentions(expression: &str, column: &str) -> bool {
    let mut rest = expression;
    while let Some(c) = rest.chars().next() {
        let length = match c {
            '\'' | '"' => quoted_length(rest, c),
            c if c.is_alphabetic() || c == '_' => {
                rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '$')).unwrap_or(rest.len())
            }
            c => c.len_utf8(),
        };
        let (word, after) = rest.split_at(length);
        if word == column || (c == '"' && word == identifier(column)) {
            return true;
        }
        rest = after;
    }
    false
}

/// Length of a quoted part with its quotes; a doubled quote is part of it.
fn quoted_length(text: &str, quote: char) -> usize {
    let mut at = 1;
    loop {
        match text[at..].find(quote) {
            None => return text.len(),
            Some(end) if text[at + end + 1..].starts_with(quote) => at += end + 2,
            Some(end) => return at + end + 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::mentions;

    #[test]
    fn a_column_is_found_in_a_filter_but_not_in_its_texts() {
        let filter = "((region)::text = 'it''s id'::text) AND (\"Odd\"\"Name\" > 5)";
        for (column, expected) in
            [("region", true), ("Odd\"Name", true), ("id", false), ("gion", false), ("text", true)]
        {
            assert_eq!(mentions(filter, column), expected, "{column}");
        }
    }
}
