use super::fixtures::{add, attribute, change, facts, relation, source};
use super::*;
use crate::config::model::Truncate;
use crate::source::postgres::facts::{Kind, Named, Publication, Published, Relation, Unmatched, Writer};
use crate::source::postgres::table::{Identity, TableName};

/// Spoils what is well and expects one defect with these words and this first mend.
fn check(spoil: impl FnOnce(&mut Facts, &mut Postgres), severity: Severity, words: &str, mend: &str) {
    let (mut facts, mut source) = (facts(), source());
    spoil(&mut facts, &mut source);
    let found = defects(&facts, &source);
    let text = report(&found, &[]);
    let defect = found.iter().find(|defect| defect.what.contains(words));
    let defect = defect.unwrap_or_else(|| panic!("{words:?} is not in: {text}"));
    assert_eq!(defect.severity, severity, "{text}");
    let first = defect.mend.first().map(ToString::to_string).unwrap_or_default();
    assert!(first.contains(mend), "{mend:?} is not first in: {text}");
    assert_eq!(found.len(), 1, "one cause is one defect: {text}");
}

fn blocks(spoil: impl FnOnce(&mut Facts, &mut Postgres), words: &str, mend: &str) {
    check(spoil, Severity::Blocks, words, mend);
}

fn warns(spoil: impl FnOnce(&mut Facts, &mut Postgres), words: &str, mend: &str) {
    check(spoil, Severity::Warns, words, mend);
}

fn orders(facts: &mut Facts) -> &mut Relation {
    change(facts, 1)
}

fn publication(facts: &mut Facts) -> &mut Publication {
    facts.publication.as_mut().expect("the fixture has one")
}

#[test]
fn with_a_sound_source_nothing_is_wrong_and_nothing_is_to_do() {
    assert_eq!(defects(&facts(), &source()), []);
    assert_eq!(plan(&facts(), &source()), []);
    assert!(verdict(&[]).is_ok());
}

#[test]
fn the_server_is_looked_at() {
    blocks(|facts, _| facts.server.version = 130_004, "PostgreSQL 13", "upgrade");
    blocks(
        |facts, _| facts.server.wal_level = "replica".to_owned(),
        "wal_level is replica",
        "wal_level = 'logical';  -- then restart",
    );
    blocks(
        |facts, _| {
            facts.server.wal_level = "replica".to_owned();
            facts.server.wal_level_pending = true;
        },
        "wal_level is replica",
        "restart the server",
    );
    blocks(
        |facts, _| {
            facts.server.wal_level = "replica".to_owned();
            facts.server.rds_logical_replication = Some(false);
        },
        "wal_level is replica",
        "rds.logical_replication = 1",
    );
    blocks(
        |facts, _| facts.role.replication = false,
        "may not replicate",
        "ALTER ROLE \"reader\" REPLICATION;",
    );
    blocks(|facts, _| facts.server.senders_used = 10, "0 of 10 WAL senders", "max_wal_senders = 14");
    warns(|facts, _| facts.server.senders_used = 9, "1 of 10 WAL senders", "max_wal_senders = 13");
    warns(|facts, _| facts.server.slots_used = 10, "resuming a copy", "max_replication_slots = 14");
    warns(
        |facts, _| facts.server.slot_wal_max_bytes = None,
        "no limit",
        "max_slot_wal_keep_size = '20480MB'; SELECT pg_reload_conf();",
    );
    warns(|facts, _| facts.server.slot_wal_max_bytes = Some(1 << 30), "holds back 1 GiB", "'20480MB'");
    warns(|facts, _| facts.server.encoding = "SQL_ASCII".to_owned(), "SQL_ASCII", "UTF8");
    blocks(|facts, _| facts.server.in_recovery = true, "is a standby", "primary");
    warns(
        |facts, _| {
            facts.server.version = 160_001;
            facts.server.in_recovery = true;
        },
        "hot_standby_feedback",
        "hot_standby_feedback = 'on'",
    );
}

#[test]
fn the_slot_is_looked_at() {
    let slot = |change: fn(&mut crate::source::postgres::facts::Slot)| {
        move |facts: &mut Facts, _: &mut Postgres| change(facts.slot.as_mut().expect("the fixture has one"))
    };
    blocks(
        slot(|slot| slot.plugin = Some("wal2json".to_owned())),
        "plugin wal2json",
        "pg_drop_replication_slot('tidemill_shop')",
    );
    blocks(slot(|slot| slot.plugin = None), "physical", "pg_drop_replication_slot");
    blocks(slot(|slot| slot.database = Some("other".to_owned())), "reads database other", "another slot");
    blocks(slot(|slot| slot.wal_status = Some("lost".to_owned())), "is lost", "pg_drop_replication_slot");
    warns(
        slot(|slot| slot.wal_status = Some("unreserved".to_owned())),
        "next checkpoint",
        "start the pipeline",
    );
    blocks(
        slot(|slot| {
            slot.active_pid = Some(77);
            slot.active_application = Some("debezium".to_owned());
        }),
        "\"debezium\" (pid 77)",
        "another slot",
    );
    let (mut standby, source) = (facts(), source());
    let slot = standby.slot.as_mut().expect("the fixture has one");
    slot.active_pid = Some(77);
    slot.active_application = Some("tidemill shop".to_owned());
    standby.server.senders_used = 9;
    assert_eq!(defects(&standby, &source), [], "a twin is stood by for");
    blocks(
        |facts, _| {
            facts.slot = None;
            facts.server.slots_used = 10;
        },
        "all 10 replication slots",
        "max_replication_slots = 14",
    );
    warns(
        |facts, _| {
            facts.slot = None;
            facts.writers = vec![
                Writer { pid: Some(5), name: "psql".to_owned(), age_s: Some(7200.4) },
                Writer { pid: Some(6), name: "app".to_owned(), age_s: Some(0.1) },
            ];
        },
        "pid 5 (\"psql\", 7200 s old)",
        "pg_terminate_backend(5)",
    );
}

#[test]
fn tables_that_cannot_be_told_apart_are_named_with_what_would_do() {
    let without_key = |facts: &mut Facts| {
        orders(facts).primary_key = Vec::new();
        orders(facts).identity_columns = Vec::new();
    };
    blocks(
        |facts, _| without_key(facts),
        "public.orders has no primary key, and is published: its owner's own UPDATE and DELETE statements fail",
        "ADD PRIMARY KEY (<columns>)",
    );
    blocks(
        |facts, _| {
            without_key(facts);
            orders(facts).unique_index = Some("orders_code".to_owned());
        },
        "has no primary key",
        "ALTER TABLE public.orders REPLICA IDENTITY USING INDEX orders_code;",
    );
    blocks(
        |facts, _| {
            without_key(facts);
            orders(facts).identity = Identity::Full;
        },
        "has no primary key: its updates",
        "ADD PRIMARY KEY",
    );
    blocks(
        |facts, _| {
            orders(facts).identity = Identity::Nothing;
            orders(facts).identity_columns = Vec::new();
        },
        "REPLICA IDENTITY NOTHING",
        "ALTER TABLE public.orders REPLICA IDENTITY DEFAULT;",
    );
    blocks(
        |facts, _| {
            orders(facts).identity_columns = Vec::new();
            orders(facts).primary_key_deferrable = true;
        },
        "deferrable",
        "REPLICA IDENTITY FULL",
    );
    blocks(
        |facts, _| {
            orders(facts).identity = Identity::Index;
            orders(facts).identity_columns = Vec::new();
        },
        "lost the index",
        "REPLICA IDENTITY DEFAULT",
    );
}

#[test]
fn tables_that_cannot_be_followed_or_read_are_named() {
    blocks(
        |facts, _| orders(facts).unlogged = true,
        "public.orders is unlogged",
        "ALTER TABLE public.orders SET LOGGED",
    );
    blocks(
        |facts, _| {
            let mut view = relation(2, "public.totals");
            view.kind = Kind::View;
            view.named = Named::Exactly;
            add(facts, [view]);
        },
        "public.totals is a view",
        "exclude = [\"public.totals\"]",
    );
    blocks(
        |facts, _| {
            facts.unmatched = vec![Unmatched {
                pattern: "public.order".to_owned(),
                near: vec![TableName::new("public", "orders")],
            }];
        },
        "\"public.order\" names no table",
        "there is public.orders",
    );
    blocks(
        |facts, _| {
            facts.relations.clear();
            publication(facts).tables.clear();
        },
        "no table is left",
        "`exclude`",
    );
    blocks(
        |facts, _| orders(facts).may_use_schema = false,
        "may not use schema public",
        "GRANT USAGE ON SCHEMA public TO \"reader\"",
    );
    blocks(
        |facts, _| orders(facts).columns.iter_mut().for_each(|column| column.may_select = false),
        "may not read public.orders,",
        "GRANT SELECT ON public.orders TO \"reader\"",
    );
    blocks(
        |facts, _| orders(facts).columns[1].may_select = false,
        "may not read public.orders (name)",
        "GRANT SELECT (name) ON public.orders TO \"reader\"",
    );
    blocks(|facts, _| orders(facts).row_security = true, "row security", "BYPASSRLS");
    blocks(
        |facts, _| {
            orders(facts).columns.push(attribute(3, "Name", 25, false));
            let published = publication(facts).tables.get_mut(&1).expect("published");
            published.columns = Some(vec!["id".to_owned(), "name".to_owned(), "Name".to_owned()]);
        },
        "columns name and Name of public.orders are one name",
        "RENAME COLUMN name TO name_2",
    );
}

#[test]
fn what_only_copying_needs_is_not_asked_of_a_pipeline_that_does_not_copy() {
    let (mut facts, mut source) = (facts(), source());
    orders(&mut facts).row_security = true;
    orders(&mut facts).columns[1].may_select = false;
    source.snapshot = Snapshot::Never;
    assert_eq!(defects(&facts, &source), []);
    orders(&mut facts).row_security = false;
    orders(&mut facts).columns[1].may_select = true;
    source.snapshot = Snapshot::Only;
    facts.server.wal_level = "minimal".to_owned();
    facts.role.replication = false;
    (facts.publication, facts.slot) = (None, None);
    assert_eq!(defects(&facts, &source), [], "a copy needs neither publication nor slot");
    assert_eq!(plan(&facts, &source), []);
}

#[test]
fn the_publication_is_looked_at() {
    let publish = "ALTER PUBLICATION tidemill_shop SET (publish = 'insert, update, delete, truncate')";
    blocks(|facts, _| publication(facts).deletes = false, "does not publish delete", publish);
    warns(|facts, _| publication(facts).truncates = false, "does not publish truncate", publish);
    let (mut ignoring, mut settings) = (facts(), source());
    publication(&mut ignoring).truncates = false;
    settings.truncate = Truncate::Ignore;
    assert_eq!(defects(&ignoring, &settings), []);
    warns(
        |facts, _| {
            publication(facts).tables.insert(99, Published::default());
        },
        "1 other table",
        "publication of its own",
    );
    blocks(
        |facts, _| {
            let published = publication(facts).tables.get_mut(&1).expect("published");
            published.columns = Some(vec!["name".to_owned()]);
        },
        "leaves out key columns: id",
        "SET TABLE",
    );
    blocks(
        |facts, _| {
            let published = publication(facts).tables.get_mut(&1).expect("published");
            published.filter = Some("(name = 'id'::text)".to_owned());
        },
        "outside of the replica identity (name)",
        "REPLICA IDENTITY FULL",
    );
    blocks(
        |facts, _| {
            publication(facts).tables.clear();
            publication(facts).owned = false;
            publication(facts).owner = "boss".to_owned();
        },
        "(of boss) lacks public.orders",
        "ALTER PUBLICATION tidemill_shop ADD TABLE public.orders;",
    );
    warns(
        |facts, _| publication(facts).newer_than_slot = true,
        "later than the place",
        "pg_drop_replication_slot",
    );
    blocks(|facts, _| facts.publication = None, "but slot tidemill_shop does", "pg_drop_replication_slot");
    blocks(
        |facts, _| {
            (facts.publication, facts.slot) = (None, None);
            facts.role.may_create = false;
        },
        "may not make it",
        "GRANT CREATE ON DATABASE shop TO \"reader\"",
    );
    blocks(
        |facts, _| {
            (facts.publication, facts.slot) = (None, None);
            orders(facts).owned = false;
            orders(facts).owner = "boss".to_owned();
        },
        "owners: boss of public.orders",
        "CREATE PUBLICATION tidemill_shop FOR TABLE public.orders WITH (publish_via_partition_root = true);",
    );
}

/// `public.events` with one partition, beside the sound table.
fn with_partitions(facts: &mut Facts) {
    let mut root = relation(2, "public.events");
    root.kind = Kind::Partitioned;
    let mut leaf = relation(3, "public.events_2026");
    leaf.parent = Some(2);
    add(facts, [root, leaf]);
    publication(facts).tables.insert(2, Published::default());
}

#[test]
fn partitions_are_followed_as_the_whole_table() {
    let (mut sound, source) = (facts(), source());
    with_partitions(&mut sound);
    assert_eq!(defects(&sound, &source), []);
    assert_eq!(sound.tables().len(), 2, "the partition is no table of its own");
    warns(
        |facts, _| {
            with_partitions(facts);
            change(facts, 3).named = Named::Excluded;
        },
        "public.events_2026 is in `exclude`",
        "name the other partitions",
    );
    blocks(
        |facts, _| {
            with_partitions(facts);
            publication(facts).via_root = false;
            let whole = publication(facts).tables.remove(&2).expect("published");
            publication(facts).tables.insert(3, whole);
        },
        "as changes of its partitions",
        "SET (publish_via_partition_root = true)",
    );
    blocks(
        |facts, _| {
            with_partitions(facts);
            change(facts, 2).named = Named::AsPartition;
        },
        "changes of public.events_2026 are published as changes of public.events",
        "name public.events in `tables`",
    );
    blocks(
        |facts, _| {
            with_partitions(facts);
            change(facts, 3).identity = Identity::Nothing;
            change(facts, 3).identity_columns = Vec::new();
        },
        "public.events_2026, a partition of public.events",
        "ALTER TABLE public.events_2026 REPLICA IDENTITY FULL",
    );
}

#[test]
fn the_plan_makes_the_publication_before_the_slot_and_leaves_out_what_has_no_key() {
    let (mut facts, source) = (facts(), source());
    (facts.publication, facts.slot) = (None, None);
    let mut keyless = relation(2, "public.log");
    keyless.primary_key = Vec::new();
    keyless.identity_columns = Vec::new();
    add(&mut facts, [keyless, relation(3, "public.Items")]);
    let statements: Vec<String> = plan(&facts, &source).iter().map(Step::sql).collect();
    assert_eq!(
        statements,
        [
            "CREATE PUBLICATION tidemill_shop FOR TABLE public.\"Items\", public.orders WITH (publish_via_partition_root = true)",
            "SELECT pg_create_logical_replication_slot('tidemill_shop', 'pgoutput')",
        ]
    );
}

#[test]
fn the_plan_adds_what_the_publication_lacks() {
    let (mut facts, source) = (facts(), source());
    add(&mut facts, [relation(3, "public.items")]);
    let add = Step::AddTables {
        publication: "tidemill_shop".to_owned(),
        tables: vec![TableName::new("public", "items")],
    };
    assert_eq!(plan(&facts, &source), [add]);
    assert_eq!(defects(&facts, &source), []);
}

#[test]
fn the_report_has_everything_and_the_verdict_what_blocks() {
    let (mut facts, source) = (facts(), source());
    facts.server.wal_level = "replica".to_owned();
    facts.server.slot_wal_max_bytes = None;
    facts.slot = None;
    let found = defects(&facts, &source);
    let text = report(&found, &plan(&facts, &source));
    let expected = "\
error: wal_level is replica, and has to be logical
  mend: ALTER SYSTEM SET wal_level = 'logical';  -- then restart the server
warning: max_slot_wal_keep_size has no limit: while nobody reads the slot, its log can fill the server's disk
  mend: ALTER SYSTEM SET max_slot_wal_keep_size = '20480MB'; SELECT pg_reload_conf();
`tidemill run` will do:
  SELECT pg_create_logical_replication_slot('tidemill_shop', 'pgoutput');
";
    assert_eq!(text, expected);
    let fault = verdict(&found).expect_err("one blocks");
    assert!(
        fault.what.starts_with("cannot follow the database: 1 defect\n  - wal_level is replica"),
        "{}",
        fault.what
    );
}
