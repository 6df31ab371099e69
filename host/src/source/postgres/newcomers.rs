//! Tables that come while others are followed: made ready without disturbing those, or set aside until they are mended.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use super::catalog;
use super::connect::{Connector, Control as Connection};
use super::destination::Memory;
use super::facts::Facts;
use super::kind::Types;
use super::position;
use super::preflight::{self, Defect, Severity, Step};
use super::prepare;
use super::roster::check_same;
use super::setup;
use super::table::{Table, TableName};
use crate::config::model::{Postgres, StarRocks};
use crate::fault::Fault;
use crate::meter::PipelineMeter;
use crate::sink::starrocks::query::Query;

/// A table that cannot be followed as it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Unfit {
    table: TableName,
    /// What is wrong with it, and what mends it.
    why: String,
}

/// What was told of tables that are set aside: told once, and again if they are set aside for another reason.
#[derive(Debug, Clone, Default)]
pub(super) struct Told(Arc<Mutex<BTreeSet<Unfit>>>);

impl Told {
    /// Keeps what is wrong now; returns what is to be told.
    fn news(&self, unfit: Vec<Unfit>) -> Vec<Unfit> {
        // One value: a panic elsewhere leaves it usable.
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now: BTreeSet<Unfit> = unfit.into_iter().collect();
        let news = now.difference(&told).cloned().collect();
        *told = now;
        news
    }
}

/// Sees to tables that are not followed yet.
#[derive(Clone)]
pub(super) struct Newcomers {
    pub(super) connector: Arc<Connector>,
    pub(super) sink: Arc<StarRocks>,
    pub(super) meter: Arc<PipelineMeter>,
    /// Names of those that are followed.
    pub(super) followed: BTreeSet<TableName>,
    pub(super) told: Told,
}

impl Newcomers {
    /// Publishes tables that are not followed yet, and sees that each has its place in StarRocks. Returns those that
    /// can be followed now; of the others the log tells what mends them.
    ///
    /// # Errors
    /// If the source or StarRocks cannot be asked.
    pub(super) async fn welcome(&self) -> Result<Vec<TableName>, Fault> {
        let source = self.connector.source();
        let connection = self.connector.control().await?;
        let facts = catalog::facts(&connection, source).await?;
        let chosen = facts.chosen().into_iter().map(|relation| &relation.name);
        let newcomers = chosen.filter(|name| !self.followed.contains(name)).cloned().collect();
        let mut unfit = judge(&facts, source, &newcomers);
        let set_aside: BTreeSet<TableName> = unfit.iter().map(|unfit| unfit.table.clone()).collect();
        let fit = facts.without(&set_aside);
        let mut types = Types::new();
        facts.types.iter().for_each(|info| types.add(info.clone()));
        let known = position::known(&self.sink, &self.meter.name, &source.slot).await?.unwrap_or_default();
        let mut query = Query::connect(&self.sink).await?;
        let mut ready = Vec::new();
        for table in fit.tables().into_iter().filter(|table| !self.followed.contains(&table.name)) {
            if let Err(fault) = check_same(&known, [(&table.name, table.oid)].into_iter()) {
                unfit.push(Unfit { table: table.name, why: fault.story() });
                continue;
            }
            match self.make_ready(&connection, &mut query, &fit, &table, &types).await {
                Ok(()) => ready.push(table.name),
                Err(why) => unfit.push(Unfit { table: table.name, why }),
            }
        }
        for Unfit { table, why } in self.told.news(unfit) {
            tracing::warn!(
                pipeline = %self.meter.name, %table,
                "a new table cannot be followed, and is left out until that is mended: {why}"
            );
        }
        Ok(ready)
    }

    /// # Errors
    /// Why it cannot be followed.
    async fn make_ready(
        &self,
        connection: &Connection,
        query: &mut Query,
        facts: &Facts,
        table: &Table,
        types: &Types,
    ) -> Result<(), String> {
        let source = self.connector.source();
        let is_missing = |step: &Step| match step {
            Step::AddTables { tables, .. } => tables.contains(&table.name),
            Step::CreatePublication { .. } | Step::CreateSlot { .. } => false,
        };
        // Its place first: what cannot be loaded need not be published.
        let placed = prepare::placed(query, &self.sink, table, Memory::Fresh, types).await;
        if let Err(refusals) = placed.map_err(|fault| fault.story())? {
            let refusals = refusals.into_iter().map(|refusal| format!("{}; {}", refusal.what, refusal.hint));
            return Err(refusals.collect::<Vec<_>>().join("; "));
        }
        if preflight::plan(facts, source).iter().any(is_missing) {
            let add =
                Step::AddTables { publication: source.publication.clone(), tables: vec![table.name.clone()] };
            tracing::info!(pipeline = %self.meter.name, "postgres: {}", add.sql());
            setup::publish(connection, &[add]).await.map_err(|fault| fault.story())?;
        }
        Ok(())
    }
}

/// The tables of `newcomers` that cannot be followed.
pub(super) fn unfit(
    facts: &Facts,
    source: &Postgres,
    newcomers: &BTreeSet<TableName>,
) -> BTreeSet<TableName> {
    judge(facts, source, newcomers).into_iter().map(|unfit| unfit.table).collect()
}

fn judge(facts: &Facts, source: &Postgres, newcomers: &BTreeSet<TableName>) -> Vec<Unfit> {
    // What is wrong without them is not theirs.
    let before = preflight::defects_of_tables(&facts.without(newcomers), source);
    let own = |defect: &Defect| defect.severity == Severity::Blocks && !before.contains(defect);
    let all_fit = !preflight::defects_of_tables(facts, source).iter().any(own);
    let no_room = no_room(facts, source);
    let mut unfit = Vec::new();
    for table in newcomers {
        let mut defects = Vec::new();
        if !all_fit {
            let others = newcomers.iter().filter(|other| *other != table).cloned().collect();
            defects = preflight::defects_of_tables(&facts.without(&others), source);
            defects.retain(own);
        }
        let why = if defects.is_empty() { no_room.clone() } else { Some(told(&defects)) };
        unfit.extend(why.map(|why| Unfit { table: table.clone(), why }));
    }
    unfit
}

/// Copying takes a slot of its own for a while.
fn no_room(facts: &Facts, source: &Postgres) -> Option<String> {
    let server = &facts.server;
    (preflight::copies(source) && server.slots_used >= server.slots_max).then(|| {
        format!(
            "all {} replication slots are in use, and copying needs one (max_replication_slots)",
            server.slots_max
        )
    })
}

fn told(defects: &[Defect]) -> String {
    let one = |defect: &Defect| {
        let mends: Vec<String> = defect.mend.iter().map(ToString::to_string).collect();
        format!("{}; {}", defect.what, mends.join(" or "))
    };
    defects.iter().map(one).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::postgres::preflight::fixtures::{add, change, facts, relation, source};
    use crate::source::postgres::table::Identity;

    fn newcomers() -> BTreeSet<TableName> {
        ["fit", "keyless"].map(|name| TableName::new("public", name)).into()
    }

    /// `public.orders` is followed; `public.fit` and `public.keyless` came.
    fn grown() -> Facts {
        let mut facts = facts();
        let mut keyless = relation(3, "public.keyless");
        keyless.primary_key.clear();
        keyless.identity_columns.clear();
        add(&mut facts, [relation(2, "public.fit"), keyless]);
        facts
    }

    #[test]
    fn a_table_with_a_defect_is_set_aside_and_the_others_are_not() {
        let unfit = judge(&grown(), &source(), &newcomers());
        let [Unfit { table, why }] = unfit.as_slice() else { panic!("{unfit:?}") };
        assert_eq!(*table, TableName::new("public", "keyless"));
        assert!(why.contains("public.keyless has no primary key"), "{why}");
        assert!(why.contains("ALTER TABLE public.keyless ADD PRIMARY KEY"), "{why}");
    }

    #[test]
    fn a_defect_of_a_followed_table_is_none_of_a_newcomers() {
        let mut facts = grown();
        change(&mut facts, 1).identity = Identity::Nothing;
        facts.relations.remove(&3);
        assert_eq!(judge(&facts, &source(), &newcomers()), Vec::new());
    }

    #[test]
    fn without_a_slot_for_copying_nothing_new_is_followed() {
        let mut facts = grown();
        facts.relations.remove(&3);
        facts.server.slots_used = facts.server.slots_max;
        let unfit = judge(&facts, &source(), &newcomers());
        assert!(unfit[0].why.contains("max_replication_slots"), "{unfit:?}");
    }

    #[test]
    fn what_is_wrong_is_told_once() {
        let unfit = |why: &str| Unfit { table: TableName::new("public", "a"), why: why.to_owned() };
        let told = Told::default();
        assert_eq!(told.news(vec![unfit("no key")]), [unfit("no key")]);
        assert_eq!(told.news(vec![unfit("no key")]), []);
        assert_eq!(told.news(vec![unfit("unlogged")]), [unfit("unlogged")]);
        assert_eq!(told.news(Vec::new()), []);
        assert_eq!(told.news(vec![unfit("unlogged")]), [unfit("unlogged")], "it was mended in between");
    }
}
