//! Which relations the patterns of the pipeline file name.

use std::collections::{HashMap, HashSet};

use globset::{GlobBuilder, GlobMatcher};

use crate::config::model::Postgres;
use crate::fault::Fault;
use crate::source::postgres::facts::{Named, Relation, Unmatched};
use crate::source::postgres::table::TableName;

/// Names that are offered for a pattern that names nothing.
const NEAR_MAX: usize = 3;

/// `schema.table`, either with wildcards.
struct Pattern {
    written: String,
    schema: GlobMatcher,
    table: GlobMatcher,
    exact: bool,
}

impl Pattern {
    fn new(written: &str) -> Result<Pattern, Fault> {
        let (schema, table) = written.split_once('.').unwrap_or(("public", written));
        let matcher = |part: &str| {
            let glob = GlobBuilder::new(&only_stars_and_questions(part)).backslash_escape(true).build();
            glob.map(|glob| glob.compile_matcher()).map_err(|error| {
                Fault::halt(
                    format!("cannot use the pattern {written:?}"),
                    "write `schema.table`, with `*` and `?` as wildcards, in `tables` and `exclude`",
                )
                .caused_by(error)
            })
        };
        Ok(Pattern {
            written: written.to_owned(),
            schema: matcher(schema)?,
            table: matcher(table)?,
            exact: !written.contains(['*', '?']),
        })
    }

    fn names(&self, name: &TableName) -> bool {
        self.schema.is_match(&*name.schema) && self.table.is_match(&*name.name)
    }
}

/// Globs know more than `*` and `?`; in names of tables the rest stands for itself.
fn only_stars_and_questions(part: &str) -> String {
    let mut glob = String::with_capacity(part.len());
    for c in part.chars() {
        match c {
            // Two stars in a row have a meaning of their own in paths.
            '*' if glob.ends_with('*') => {}
            '[' | ']' | '{' | '}' | '\\' | '!' | ',' => glob.extend(['\\', c]),
            c => glob.push(c),
        }
    }
    glob
}

/// `tables` and `exclude` of the pipeline file.
pub(super) struct Names {
    tables: Vec<Pattern>,
    exclude: Vec<Pattern>,
}

impl Names {
    pub(super) fn new(source: &Postgres) -> Result<Names, Fault> {
        let patterns = |written: &[String]| -> Result<Vec<Pattern>, Fault> {
            written.iter().map(|text| Pattern::new(text)).collect()
        };
        Ok(Names { tables: patterns(&source.tables)?, exclude: patterns(&source.exclude)? })
    }

    /// Keeps what is named, and the partitions of it; tells which patterns name nothing.
    pub(super) fn choose(&self, mut relations: Vec<Relation>) -> (Vec<Relation>, Vec<Unmatched>) {
        for relation in &mut relations {
            relation.named = self.named(&relation.name);
        }
        let nothing = |pattern: &&Pattern| !relations.iter().any(|relation| pattern.names(&relation.name));
        let unmatched = self.tables.iter().filter(nothing).map(|pattern| Unmatched {
            pattern: pattern.written.clone(),
            near: nearest(&pattern.written, &relations),
        });
        let unmatched = unmatched.collect();
        let kept = named_or_partitions_of_named(&relations);
        relations.retain(|relation| kept.contains(&relation.oid));
        (relations, unmatched)
    }

    /// What `exclude` names is dropped, unless it is a partition of something that is named.
    fn named(&self, name: &TableName) -> Named {
        let excluded = self.exclude.iter().any(|pattern| pattern.names(name));
        if excluded {
            return Named::Excluded;
        }
        let exact = self.tables.iter().filter(|pattern| pattern.names(name)).map(|by| by.exact);
        match exact.max() {
            None => Named::AsPartition,
            Some(true) => Named::Exactly,
            Some(false) => Named::ByPattern,
        }
    }
}

fn named_or_partitions_of_named(relations: &[Relation]) -> HashSet<u32> {
    let by_oid: HashMap<u32, &Relation> = relations.iter().map(|relation| (relation.oid, relation)).collect();
    let up = |oid: &u32| by_oid.get(oid).and_then(|relation| relation.parent);
    let named = |oid: u32| by_oid.get(&oid).is_some_and(|relation| relation.named.itself());
    let kept = |oid: &u32| std::iter::successors(Some(*oid), up).any(named);
    relations.iter().map(|relation| relation.oid).filter(kept).collect()
}

fn nearest(written: &str, relations: &[Relation]) -> Vec<TableName> {
    let table_only = written.rsplit('.').next().unwrap_or(written);
    let mut near: Vec<(usize, &TableName)> = relations
        .iter()
        .map(|relation| {
            let whole = strsim::damerau_levenshtein(written, &relation.name.to_string());
            // The right table in the wrong schema is near, too.
            let moved = 1 + strsim::damerau_levenshtein(table_only, &relation.name.name);
            (whole.min(moved), &relation.name)
        })
        .filter(|(distance, _)| *distance <= 2.max(table_only.len() / 3))
        .collect();
    near.sort();
    near.into_iter().take(NEAR_MAX).map(|(_, name)| name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::postgres::preflight::fixtures::{relation, source};

    fn chosen(tables: &[&str], exclude: &[&str]) -> (Vec<String>, Vec<Unmatched>) {
        let mut source = source();
        source.tables = tables.iter().map(ToString::to_string).collect();
        source.exclude = exclude.iter().map(ToString::to_string).collect();
        let mut there: Vec<Relation> =
            ["public.orders", "public.order_items", "Shop.Orders", "audit.log", "public.a[1]"]
                .iter()
                .zip(1..)
                .map(|(name, oid)| relation(oid, name))
                .collect();
        let mut partition = relation(9, "audit.log_2026");
        partition.parent = Some(4);
        there.push(partition);
        let (relations, unmatched) = Names::new(&source).expect("patterns").choose(there);
        (
            relations.iter().map(|relation| format!("{} {:?}", relation.name, relation.named)).collect(),
            unmatched,
        )
    }

    #[test]
    fn patterns_name_schema_and_table_apart() {
        let check = |tables: &[&str], exclude: &[&str], expected: &[&str]| {
            assert_eq!(chosen(tables, exclude).0, expected, "{tables:?} without {exclude:?}");
        };
        check(&["public.order*"], &[], &["public.orders ByPattern", "public.order_items ByPattern"]);
        check(&["*.?rders"], &[], &["public.orders ByPattern", "Shop.Orders ByPattern"]);
        check(&["Shop.Orders"], &[], &["Shop.Orders Exactly"]);
        check(&["public.**"], &["public.order*"], &["public.a[1] ByPattern"]);
        check(&["public.a[1]"], &[], &["public.a[1] Exactly"]);
        check(&["audit.log"], &[], &["audit.log Exactly", "audit.log_2026 AsPartition"]);
        check(&["audit.*"], &["audit.log"], &["audit.log_2026 ByPattern"]);
        check(&["audit.*"], &["audit.log_*"], &["audit.log ByPattern", "audit.log_2026 Excluded"]);
    }

    #[test]
    fn a_pattern_that_names_nothing_is_told_with_what_is_near() {
        let (_, unmatched) = chosen(&["public.order", "sales.orders", "public.zzz"], &[]);
        let near = |index: usize| unmatched[index].near.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(near(0), ["public.orders"]);
        assert_eq!(near(1)[0], "public.orders");
        assert!(near(2).is_empty());
        assert_eq!(unmatched.len(), 3);
    }
}
