use tidemill_test_postgres::{Server, Settings, Stop};

use super::{control, facts, run, source, start};
use crate::config::model::Postgres;
use crate::source::postgres::facts::Facts;
use crate::source::postgres::preflight::{Defect, Mend, Severity, Step, defects, plan, report};
use crate::source::postgres::setup;
use crate::source::postgres::table::{Column, Identity, Table};

/// Everything that can be wrong at once on one server.
const BADLY_CONFIGURED: &str = r#"
    CREATE ROLE reader LOGIN;
    CREATE TABLE good (id int PRIMARY KEY, v text);
    CREATE TABLE keyless (v text);
    CREATE TABLE indexed (code int NOT NULL, v text);
    CREATE UNIQUE INDEX indexed_code ON indexed (code);
    CREATE TABLE nothing (id int PRIMARY KEY);
    ALTER TABLE nothing REPLICA IDENTITY NOTHING;
    CREATE TABLE deferred (id int PRIMARY KEY DEFERRABLE);
    CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY);
    CREATE TABLE "Mixed" (id int PRIMARY KEY, "Name" text, name text);
    CREATE TABLE guarded (id int PRIMARY KEY);
    ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
    CREATE VIEW a_view AS SELECT * FROM good;
    CREATE TABLE events (id int, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
    CREATE TABLE events_2026 PARTITION OF events FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
    CREATE TABLE events_2027 PARTITION OF events FOR VALUES FROM ('2027-01-01') TO ('2028-01-01');
    ALTER TABLE events_2027 REPLICA IDENTITY NOTHING;
    CREATE TABLE listed (id int PRIMARY KEY, v text, w text);
    CREATE TABLE filtered (id int PRIMARY KEY, region text);
    CREATE SCHEMA hidden;
    CREATE TABLE hidden.t (id int PRIMARY KEY);
    CREATE PUBLICATION tidemill_shop FOR TABLE good, events, listed (id, v), filtered WHERE (region = 'eu')
        WITH (publish = 'insert');
    SELECT pg_create_physical_replication_slot('other');
"#;

fn badly_configured() -> Server {
    let settings = Settings {
        wal_level: "replica".to_owned(),
        max_replication_slots: 1,
        max_wal_senders: 1,
        ..Settings::default()
    };
    let server = start(&settings);
    run(&server, BADLY_CONFIGURED);
    server
}

/// Runs the first SQL of each defect, in the order in which they are printed.
fn mend(server: &Server, found: &[Defect]) {
    for defect in found {
        match defect.mend.first() {
            Some(Mend::Sql(sql) | Mend::SqlAndRestart(sql)) if !sql.contains('<') => {
                run(server, sql);
            }
            Some(Mend::Sql(_) | Mend::SqlAndRestart(_) | Mend::Setting(_)) | None => {}
        }
    }
}

#[tokio::test]
async fn every_defect_is_found_in_one_go_and_the_printed_sql_mends_them() {
    let mut server = badly_configured();
    let mut source = source(&server, "reader", &["public.*", "hidden.t", "public.god"]);
    let before = facts(&source).await;
    let found = defects(&before, &source);
    let text = report(&found, &[]);
    for words in [
        "error: wal_level is replica, and has to be logical",
        "error: role reader may not replicate",
        "error: all 1 replication slots are in use",
        "warning: 1 of 1 WAL senders are free, and 2 are needed",
        "warning: max_slot_wal_keep_size has no limit",
        "error: \"public.god\" names no table\n  mend: mend `tables` in [source.postgres]; there is public.good",
        "error: public.keyless has no primary key",
        "ALTER TABLE public.indexed REPLICA IDENTITY USING INDEX indexed_code; ALTER PUBLICATION tidemill_shop ADD TABLE",
        "ALTER TABLE public.nothing REPLICA IDENTITY DEFAULT; ALTER PUBLICATION",
        "error: public.deferred has a deferrable primary key",
        "error: public.unlogged is unlogged",
        "error: columns Name and name of public.Mixed are one name in StarRocks",
        "error: row security hides rows of public.guarded from role reader",
        "error: role reader may not use schema hidden",
        "error: role reader may not read hidden.t, public.Mixed, public.deferred, public.events_2026",
        "GRANT SELECT ON hidden.t, public.\"Mixed\", public.deferred, public.events_2026",
        "error: public.events_2027, a partition of public.events, has a replica identity",
        "error: publication tidemill_shop does not publish update, delete, truncate",
        "error: publication tidemill_shop tells changes of public.events as changes of its partitions",
        "error: publication tidemill_shop (of postgres) lacks hidden.t, public.\"Mixed\", public.guarded, and role reader",
    ] {
        assert!(text.contains(words), "{words:?} is not in:\n{text}");
    }
    assert!(!text.contains("a_view"), "a wildcard does not mean views: {text}");
    mend(&server, &found);
    server.restart(Stop::Fast).expect("the server restarts");
    source.tables.pop();
    source.exclude = vec!["public.keyless".to_owned()];
    let after = facts(&source).await;
    let left: Vec<Defect> = defects(&after, &source);
    // Not publishing updates, it could not break any; now it would, and says so.
    assert_eq!(left.len(), 1, "{}", report(&left, &[]));
    assert!(
        left[0].what.contains("row filter of public.filtered looks at columns outside"),
        "{}",
        left[0].what
    );
    mend(&server, &left);
    let mended = facts(&source).await;
    assert_eq!(defects(&mended, &source), []);
    let slot = Step::CreateSlot { slot: "tidemill_shop".to_owned() };
    assert_eq!(plan(&mended, &source), [slot], "nothing but the slot is left to be made");
    run(&server, "UPDATE good SET v = 'x'; UPDATE filtered SET region = 'us'; DELETE FROM events");
}

/// Columns, keys and types of many kinds.
const VARIED: &str = r#"
    CREATE ROLE reader LOGIN REPLICATION;
    CREATE TYPE mood AS ENUM ('sad', 'ok');
    CREATE DOMAIN price AS numeric(10, 2);
    CREATE TABLE t (b text NOT NULL, a int, gone int, g int GENERATED ALWAYS AS (a * 2) STORED, m mood[], p price,
        plain text, PRIMARY KEY (b, a));
    ALTER TABLE t DROP COLUMN gone, ALTER COLUMN plain SET STORAGE plain;
    CREATE TABLE full_row (id int PRIMARY KEY, v point);
    ALTER TABLE full_row REPLICA IDENTITY FULL;
    CREATE TABLE by_index (id int PRIMARY KEY, code int NOT NULL, v text);
    CREATE UNIQUE INDEX by_index_code ON by_index (code) INCLUDE (v);
    ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_code;
    GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader;
    INSERT INTO t (b, a) SELECT 'x', i FROM generate_series(1, 1000) i;
    ANALYZE t;
    CREATE PUBLICATION tidemill_shop FOR TABLE t, full_row (id), by_index WHERE (code > 5);
"#;

/// Columns by number, name and type, with their places in keys.
fn shown(table: &Table) -> Vec<String> {
    let column = |column: &Column| {
        format!(
            "{} {} {}{}{}{}",
            column.number,
            column.name,
            column.type_name,
            column.primary_key.map(|place| format!(" key{place}")).unwrap_or_default(),
            if column.in_identity { " identity" } else { "" },
            if column.may_be_toasted { " toast" } else { "" },
        )
    };
    table.columns.iter().map(column).collect()
}

/// Types by name, kind and category, element, base, modifier and schema.
fn types(facts: &Facts) -> Vec<String> {
    facts
        .types
        .iter()
        .filter(|it| ["_mood", "mood", "price", "numeric", "point"].contains(&it.name.as_str()))
        .map(|it| {
            let element =
                facts.types.iter().find(|other| other.oid == it.element).map_or("-", |other| &other.name);
            let base = facts.types.iter().find(|other| other.oid == it.base).map_or("-", |other| &other.name);
            format!(
                "{} {}{} {element} {base} {} {}",
                it.name, it.kind, it.category, it.base_modifier, it.schema
            )
        })
        .collect()
}

#[tokio::test]
async fn the_catalogue_is_read_as_it_is() {
    let server = start(&Settings::default());
    run(&server, VARIED);
    let source = source(&server, "reader", &["public.*"]);
    let facts = facts(&source).await;
    assert_eq!(facts.server.major(), 15);
    assert!(facts.server.system_identifier.is_some_and(|identifier| identifier > 0));
    let tables = facts.tables();
    let names: Vec<String> = tables.iter().map(|table| table.name.to_string()).collect();
    assert_eq!(names, ["public.by_index", "public.full_row", "public.t"]);
    let (by_index, full_row, t) = (&tables[0], &tables[1], &tables[2]);
    assert_eq!(
        shown(t),
        [
            "1 b text key0 identity toast",
            "2 a integer key1 identity",
            "5 m public.mood[] toast",
            "6 p public.price toast",
            "7 plain text toast",
        ]
    );
    assert_eq!(shown(full_row), ["1 id integer key0 identity"], "the column list is respected");
    assert_eq!((full_row.identity, by_index.identity), (Identity::Full, Identity::Index));
    assert_eq!(shown(by_index), ["1 id integer key0", "2 code integer identity", "3 v text toast"]);
    let relation = facts.relation(t.oid).expect("it is there");
    assert_eq!((relation.rows, relation.may_use_schema, relation.owned), (1000.0, true, false));
    assert_eq!(
        facts.relation(by_index.oid).and_then(|it| facts.published(it)).and_then(|it| it.filter.as_deref()),
        Some("(code > 5)")
    );
    assert_eq!(
        types(&facts),
        [
            "point bG - - -1 pg_catalog",
            "numeric bN - - -1 pg_catalog",
            "_mood bA mood - -1 public",
            "mood eE - - -1 public",
            "price dN - numeric 655366 public",
        ]
    );
}

#[tokio::test]
async fn the_plan_is_carried_out_and_can_be_again() {
    let server = start(&Settings { max_slot_wal_keep_size: Some("100GB".to_owned()), ..Settings::default() });
    run(
        &server,
        r#"
        CREATE ROLE reader LOGIN REPLICATION;
        GRANT CREATE ON DATABASE postgres TO reader;
        CREATE SCHEMA shop AUTHORIZATION reader;
        "#,
    );
    server
        .psql_as(
            "reader",
            r#"
            CREATE TABLE shop."Odd ""name" (id int PRIMARY KEY);
            CREATE TABLE shop.events (id int, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
            CREATE TABLE shop.events_2026 PARTITION OF shop.events FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
            CREATE TABLE shop.log (v text);
            "#,
        )
        .expect("tables");
    let mut source: Postgres = source(&server, "reader", &["shop.*"]);
    source.publication = "Mixed".to_owned();
    source.exclude = vec!["shop.log".to_owned()];
    let before = facts(&source).await;
    assert_eq!(defects(&before, &source), []);
    let steps = plan(&before, &source);
    let control = control(&source).await;
    for _ in 0..2 {
        setup::publish(&control, &steps).await.expect("it is made, and left as it is");
    }
    server.psql_as("reader", "CREATE TABLE shop.later (id int PRIMARY KEY)").expect("a table");
    let more = facts(&source).await;
    let steps = plan(&more, &source);
    let texts: Vec<String> = steps.iter().map(Step::sql).collect();
    assert_eq!(texts[0], "ALTER PUBLICATION \"Mixed\" ADD TABLE shop.later");
    for _ in 0..2 {
        setup::publish(&control, &steps).await.expect("it is added, and left as it is");
    }
    let after = facts(&source).await;
    assert_eq!(defects(&after, &source), []);
    assert_eq!(plan(&after, &source).len(), 1, "only the slot is left");
    assert!(defects(&after, &source).iter().all(|defect| defect.severity == Severity::Warns));
    // The table without key was left alone: its owner may go on.
    server
        .psql_as("reader", "INSERT INTO shop.log VALUES ('a'); UPDATE shop.log SET v = 'b'")
        .expect("an update");
}
