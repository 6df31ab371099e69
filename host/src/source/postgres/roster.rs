//! Whether the tables that are followed are still those that there are to follow. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::facts::{Facts, Relation};
use super::position::Known;
use super::preflight::is_listed;
use super::prepare::Prepared;
use super::quote::{friendly, friendly_table};
use super::table::TableName;
use crate::config::model::Postgres;
use crate::fault::Fault;

/// The tables that are followed, with the oids by which the catalogue knows them.
#[derive(Debug, Clone, Default)]
pub(super) struct Roster(BTreeMap<TableName, u32>);

/// How the tables that there are differ from those that are followed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Drift {
    /// Are named by the file and not followed.
    pub(super) came: Vec<TableName>,
    /// Are followed, and not there any more under their name.
    pub(super) gone: Vec<TableName>,
    /// Are followed and there, but not published: their changes do not come.
    pub(super) unpublished: Vec<TableName>,
    /// Were dropped, and others of the same name made.
    pub(super) remade: Vec<TableName>,
}

impl Roster {
    pub(super) fn of(prepared: &Prepared) -> Roster {
        let followed = prepared.followed.iter();
        Roster(followed.map(|followed| (followed.table.name.clone(), followed.table.oid)).collect())
    }

    /// Names of the tables.
    pub(super) fn names(&self) -> BTreeSet<TableName> {
        self.0.keys().cloned().collect()
    }

    /// Compares with what there is now. A publication that is gone has not lost tables: it is missing as a whole.
    pub(super) fn drift(&self, now: &Facts) -> Drift {
        let there: BTreeMap<&TableName, &Relation> =
            now.chosen().into_iter().map(|relation| (&relation.name, relation)).collect();
        let mut drift = Drift::default();
        for (name, oid) in &self.0 {
            match there.get(name) {
                None => drift.gone.push(name.clone()),
                Some(relation) if relation.oid != *oid => drift.remade.push(name.clone()),
                Some(relation) if now.publication.is_some() && !is_listed(now, relation) => {
                    drift.unpublished.push(name.clone());
                }
                Some(_followed) => {}
            }
        }
        drift.came = there.into_keys().filter(|name| !self.0.contains_key(name)).cloned().collect();
        drift
    }
}

impl Drift {
    /// The fault of changes that have not come, or will not; none if there are no such tables.
    pub(super) fn lost(&self, source: &Postgres) -> Option<Fault> {
        if !self.unpublished.is_empty() {
            return Some(unpublished(&self.unpublished, source));
        }
        (!self.remade.is_empty()).then(|| remade(&self.remade))
    }
}

fn listed(tables: &[TableName]) -> String {
    tables.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// One command a table, for a hint.
fn resync(tables: &[TableName]) -> String {
    let commands: Vec<String> =
        tables.iter().map(|table| format!("`tidemill resync <file> {table}`")).collect();
    commands.join(" and ")
}

/// Tables that were followed are not published any more.
pub(super) fn unpublished(tables: &[TableName], source: &Postgres) -> Fault {
    let add: Vec<String> = tables.iter().map(friendly_table).collect();
    let excluded: Vec<String> = tables.iter().map(|table| format!("\"{table}\"")).collect();
    Fault::halt(
        format!(
            "followed tables were taken out of publication {}: {}; their changes since then did not come",
            source.publication,
            listed(tables)
        ),
        format!(
            "have them copied again: {}, then ALTER PUBLICATION {} ADD TABLE {}, and start again; or give them up: \
             exclude = [{}] in [source.postgres]",
            resync(tables),
            friendly(&source.publication),
            add.join(", "),
            excluded.join(", ")
        ),
    )
}

/// Whether tables are those whose rows StarRocks has, if it has rows under their names, and were followed all the time since.
///
/// # Errors
/// Halt, naming those that are not: copied over what is there, or followed on top of it, they would leave rows that
/// the source has no more.
pub(super) fn check_same<'a>(
    known: &Known,
    tables: impl Iterator<Item = (&'a TableName, u32)>,
) -> Result<(), Fault> {
    let (mut others, mut back) = (Vec::new(), Vec::new());
    for (table, oid) in tables {
        let name = table.to_string();
        if known.oid(&name).is_some_and(|before| before != oid) {
            others.push(table.clone());
        } else if known.has_left(&name) {
            back.push(table.clone());
        }
    }
    if !others.is_empty() {
        return Err(remade(&others));
    }
    if back.is_empty() { Ok(()) } else { Err(returned(&back)) }
}

/// Tables that were followed once are to be followed again.
fn returned(tables: &[TableName]) -> Fault {
    Fault::halt(
        format!(
            "tables are back that were not followed for a while: {}; their changes in that time did not come, and rows \
             from before it are in StarRocks",
            listed(tables)
        ),
        format!("stop the pipeline, have them copied again: {}, and start again", resync(tables)),
    )
}

fn remade(tables: &[TableName]) -> Fault {
    Fault::halt(
        format!(
            "followed tables were dropped and made anew: {}; rows of the old ones are in StarRocks",
            listed(tables)
        ),
        format!("stop the pipeline, have the new ones copied: {}, and start again", resync(tables)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::postgres::facts::{Kind, Publication, Published};
    use crate::source::postgres::lsn::Lsn;
    use crate::source::postgres::position::Trace;
    use crate::source::postgres::preflight::fixtures::{add, change, facts, relation, source};

    fn names(tables: &[&str]) -> Vec<TableName> {
        tables.iter().map(|table| TableName::new("public", table)).collect()
    }

    /// `public.orders` (1) and `public.items` (2) are followed, and published.
    fn followed() -> (Roster, Facts) {
        let mut now = facts();
        add(&mut now, [relation(2, "public.items")]);
        publish(&mut now, 2);
        let roster = Roster(
            [("orders", 1), ("items", 2)].map(|(name, oid)| (TableName::new("public", name), oid)).into(),
        );
        (roster, now)
    }

    fn publish(facts: &mut Facts, oid: u32) {
        let publication = facts.publication.get_or_insert_with(Publication::default);
        publication.tables.insert(oid, Published::default());
    }

    #[test]
    fn nothing_has_changed() {
        let (roster, now) = followed();
        assert_eq!(roster.drift(&now), Drift::default());
        assert!(roster.drift(&now).lost(&source()).is_none());
    }

    #[test]
    fn tables_come_and_go() {
        let (roster, mut now) = followed();
        now.relations.remove(&1);
        add(&mut now, [relation(3, "public.later")]);
        let expected = Drift { came: names(&["later"]), gone: names(&["orders"]), ..Drift::default() };
        assert_eq!(roster.drift(&now), expected);
    }

    #[test]
    fn a_new_partition_of_a_followed_table_is_no_new_table() {
        let (roster, mut now) = followed();
        change(&mut now, 1).kind = Kind::Partitioned;
        let mut partition = relation(3, "public.orders_2026");
        partition.parent = Some(1);
        add(&mut now, [partition]);
        assert_eq!(roster.drift(&now), Drift::default());
    }

    #[test]
    fn a_table_that_leaves_the_publication_is_lost() {
        let (roster, mut now) = followed();
        now.publication.get_or_insert_default().tables.remove(&2);
        let drift = roster.drift(&now);
        assert_eq!(drift, Drift { unpublished: names(&["items"]), ..Drift::default() });
        let fault = drift.lost(&source()).expect("changes are lost");
        assert!(fault.what.contains("publication tidemill_shop: public.items"), "{}", fault.what);
        let hint = fault.hint.expect("a hint");
        for words in ["resync <file> public.items", "ADD TABLE public.items", "exclude = [\"public.items\"]"]
        {
            assert!(hint.contains(words), "{words} is not in {hint}");
        }
    }

    #[test]
    fn a_publication_that_is_gone_has_not_lost_tables() {
        let (roster, mut now) = followed();
        now.publication = None;
        assert_eq!(roster.drift(&now), Drift::default());
    }

    #[test]
    fn a_name_that_comes_back_is_told_by_its_oid_and_by_having_left() {
        let trace = |oid, has_left| Trace { oid, has_left, at: Lsn(5) };
        let known = |oid, has_left| Known {
            traces: [("public.items".to_owned(), trace(oid, has_left))].into(),
            ..Known::default()
        };
        let check = |known: &Known| check_same(known, names(&["items", "orders"]).iter().zip([2, 1]));
        for fine in [Known::default(), known(Some(2), false), known(None, false)] {
            check(&fine).expect("it was followed all the time, or never");
        }
        for (known, told) in [
            (known(Some(9), false), "dropped and made anew: public.items;"),
            (known(Some(9), true), "dropped and made anew: public.items;"),
            (known(Some(2), true), "not followed for a while: public.items;"),
            (known(None, true), "not followed for a while: public.items;"),
        ] {
            let fault = check(&known).expect_err("rows are left over");
            assert!(fault.what.contains(told), "{}", fault.what);
            let hint = fault.hint.expect("a hint");
            assert!(hint.contains("tidemill resync <file> public.items"), "{hint}");
        }
    }

    #[test]
    fn a_table_that_was_made_anew_is_another_one() {
        let (roster, mut now) = followed();
        now.relations.remove(&2);
        add(&mut now, [relation(9, "public.items")]);
        publish(&mut now, 9);
        let drift = roster.drift(&now);
        assert_eq!(drift, Drift { remade: names(&["items"]), ..Drift::default() });
        assert!(drift.lost(&source()).expect("rows are left over").what.contains("made anew: public.items"));
    }
}
