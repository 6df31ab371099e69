//! Tables of all shapes, and tables that change shape while they are followed: TRUNCATE, ALTER TABLE, large values, keys,
//! partitions, publications of the owner's own.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};
use tidemill_tests::{
    comparison::{Column, Comparison},
    limit::within,
    machine,
    pipeline::{Pipeline, Source, transform},
    process::Tidemill,
    replica::Replica,
    wait_until,
};

const ORDERS: &str = "CREATE TABLE orders (id bigint PRIMARY KEY, note text, amount int);
                      INSERT INTO orders SELECT n, 'note ' || n, n FROM generate_series(1, 100) n";

/// A replica of these tables, of which the first is followed already.
fn following(name: &str, tables: &str, first: &str, more: &str) -> (Replica, Pipeline, Tidemill) {
    let replica = Replica::new(name);
    replica.postgres.run(tables);
    let mut pipeline = replica.pipeline();
    pipeline.source_more = more.to_owned();
    let tidemill = replica.run(&pipeline);
    replica.until_equal(60, &[first]);
    replica.postgres.until_streaming(30, &replica.slot());
    (replica, pipeline, tidemill)
}

fn must_halt(tidemill: &mut Tidemill, words: &[&str]) {
    let ended = tidemill.until_ended(60);
    assert_eq!(ended.code, Some(1), "{}", ended.log);
    for word in words {
        assert!(ended.log.contains(word), "{word:?} is not in {}", ended.log);
    }
}

#[test]
fn truncate_halts_unless_the_file_says_what_to_do() {
    within(90, || {
        let (replica, mut pipeline, mut tidemill) = following("truncate_halt", ORDERS, "orders", "");
        replica.postgres.run("INSERT INTO orders VALUES (200, 'before', 0); TRUNCATE orders; INSERT INTO orders VALUES (201, 'after', 0)");
        let words = ["the source table public.orders was truncated", "truncate = \"apply\"", "\"ignore\""];
        must_halt(&mut tidemill, &words);
        assert_eq!(
            replica.warehouse.number("SELECT COUNT(*) FROM shop.orders"),
            101,
            "what came before is loaded"
        );
        // It goes on at the TRUNCATE as the file says now.
        pipeline.source_more = "truncate = \"apply\"".to_owned();
        let mut tidemill = replica.run(&pipeline);
        replica.until_equal(60, &["orders"]);
        assert_eq!(replica.warehouse.number("SELECT COUNT(*) FROM shop.orders"), 1);
        tidemill.drain(30);
    });
}

#[test]
fn truncate_is_applied_between_the_rows_before_and_after_it() {
    within(90, || {
        let (replica, _, mut tidemill) =
            following("truncate_apply", ORDERS, "orders", "truncate = \"apply\"");
        replica.postgres.run(
            "BEGIN; INSERT INTO orders SELECT n, 'before', n FROM generate_series(1000, 3000) n; TRUNCATE orders;
             INSERT INTO orders VALUES (1, 'again', 1), (4000, 'after', 2); COMMIT; UPDATE orders SET amount = 3",
        );
        replica.until_equal(60, &["orders"]);
        assert_eq!(replica.warehouse.number("SELECT COUNT(*) FROM shop.orders"), 2);
        tidemill.drain(30);
    });
}

#[test]
fn truncate_can_be_ignored() {
    within(90, || {
        let (replica, _, mut tidemill) =
            following("truncate_ignore", ORDERS, "orders", "truncate = \"ignore\"");
        replica.postgres.run("TRUNCATE orders; INSERT INTO orders VALUES (500, 'after', 1)");
        replica.warehouse.until_rows(60, "orders", 101);
        tidemill.drain(30);
        assert_eq!(replica.warehouse.number("SELECT COUNT(*) FROM shop.orders"), 101);
    });
}

#[test]
fn an_added_column_is_added_in_starrocks() {
    within(90, || {
        let (replica, pipeline, mut tidemill) = following("added", ORDERS, "orders", "");
        replica.postgres.run(
            "INSERT INTO orders VALUES (300, 'before', 1);
             BEGIN; ALTER TABLE orders ADD COLUMN extra numeric(10,2), ADD COLUMN \"When\" timestamptz;
             INSERT INTO orders VALUES (301, 'within', 1, 1.25, '2024-02-29 12:00:00+00'); COMMIT;
             UPDATE orders SET extra = 7.5 WHERE id = 1",
        );
        let texts = Column::normalised("When", |text| text.replace("+00", ""), |text| text);
        let equal = || {
            Comparison::of(&replica.postgres, "public.orders", "shop.orders")
                .with(texts.clone())
                .until_equal(60, &replica.postgres, &replica.warehouse);
        };
        equal();
        // Also one that is added while nobody looks, behind rows of the old shape.
        tidemill.drain(30);
        replica.postgres.run(
            "INSERT INTO orders (id, note) VALUES (302, 'old shape');
             ALTER TABLE orders ADD COLUMN late text; UPDATE orders SET late = 'x' WHERE id = 2",
        );
        let _tidemill = replica.run(&pipeline);
        equal();
    });
}

/// Follows `orders`, changes it, and expects a halt with both schemas, and that it goes on after the mend.
fn refuses(name: &str, change: &str, words: &[&str], mend: &str) {
    let (replica, pipeline, mut tidemill) = following(name, ORDERS, "orders", "");
    replica.postgres.run("INSERT INTO orders VALUES (600, 'before', 1)");
    replica.postgres.run(change);
    let ended = tidemill.until_ended(60);
    assert_eq!(ended.code, Some(1), "{}", ended.log);
    for word in words.iter().chain(&["public.orders", "shop.orders"]) {
        assert!(ended.log.contains(word), "{word:?} is not in {}", ended.log);
    }
    let before = replica.warehouse.number("SELECT COUNT(*) FROM shop.orders WHERE id = 600");
    assert_eq!(before, 1, "what came before the change is loaded");
    replica.warehouse.execute(mend);
    let mut tidemill = replica.run(&pipeline);
    replica.until_equal(60, &["orders"]);
    tidemill.drain(30);
}

#[test]
fn a_dropped_column_halts_with_both_schemas() {
    within(90, || {
        let words =
            ["column note of public.orders was dropped", "ALTER TABLE `shop`.`orders` DROP COLUMN `note`"];
        let change = "ALTER TABLE orders DROP COLUMN note; INSERT INTO orders VALUES (601, 2)";
        refuses("dropped", change, &words, "ALTER TABLE `shop`.`orders` DROP COLUMN `note`");
    });
}

#[test]
fn a_renamed_column_halts_with_both_schemas() {
    within(90, || {
        let words = [
            "column note of public.orders is now called remark",
            "ALTER TABLE `shop`.`orders` RENAME COLUMN `note` TO `remark`",
        ];
        let change =
            "ALTER TABLE orders RENAME COLUMN note TO remark; INSERT INTO orders VALUES (601, 'renamed', 2)";
        refuses("renamed", change, &words, "ALTER TABLE `shop`.`orders` RENAME COLUMN `note` TO `remark`");
    });
}

#[test]
fn a_retyped_column_halts_with_both_schemas() {
    within(90, || {
        let words = ["column amount of public.orders is now text", "MODIFY COLUMN `amount`"];
        let change =
            "ALTER TABLE orders ALTER COLUMN amount TYPE text; INSERT INTO orders VALUES (601, 'x', 'many')";
        let mend = "ALTER TABLE `shop`.`orders` MODIFY COLUMN `amount` VARCHAR(1048576) NULL";
        refuses("retyped", change, &words, mend);
    });
}

const DOCUMENTS: &str =
    "CREATE TABLE documents (id bigint PRIMARY KEY, title text, body text, appendix text);
    ALTER TABLE documents ALTER COLUMN body SET STORAGE EXTERNAL, ALTER COLUMN appendix SET STORAGE EXTERNAL;
    INSERT INTO documents SELECT n, 'title', repeat('body ' || n, 20000), repeat('appendix ' || n, 1000)
    FROM generate_series(1, 8) n";

/// Changes beside large values, which are then not told.
const EDITS: &str = "
    UPDATE documents SET title = 'other' WHERE id <= 4;
    UPDATE documents SET body = repeat('new', 20000) WHERE id IN (3, 5);
    UPDATE documents SET title = 'twice', appendix = NULL WHERE id = 3;
    INSERT INTO documents VALUES (9, 'nine', repeat('nine', 20000), NULL);
    UPDATE documents SET title = 'changed at once' WHERE id = 9;
    DELETE FROM documents WHERE id = 4;
    INSERT INTO documents VALUES (4, 'again', NULL, NULL);";

#[test]
fn large_values_that_an_update_leaves_alone_stay() {
    within(120, || {
        let (replica, _, mut tidemill) = following("toast", DOCUMENTS, "documents", "");
        replica.postgres.run(EDITS);
        replica.until_equal(60, &["documents"]);
        let metrics = tidemill.metrics().expect("metrics");
        assert_eq!(metrics.count("tidemill_postgres_rows_read_back_total", &[]), 0);
        // Its new key, and its large values, which the stream leaves out: they are asked for.
        replica.postgres.run("UPDATE documents SET id = id + 100 WHERE id <= 2");
        replica.until_equal(60, &["documents"]);
        let metrics = tidemill.metrics().expect("metrics");
        assert_eq!(metrics.count("tidemill_postgres_rows_read_back_total", &[]), 2);
        tidemill.drain(30);
    });
}

#[test]
fn with_the_full_identity_nothing_is_read_back() {
    within(120, || {
        let tables = format!("{DOCUMENTS}; ALTER TABLE documents REPLICA IDENTITY FULL");
        let (replica, _, mut tidemill) = following("full_identity", &tables, "documents", "");
        replica.postgres.run(EDITS);
        replica.postgres.run("UPDATE documents SET id = id + 100 WHERE id <= 2");
        replica.until_equal(60, &["documents"]);
        let metrics = tidemill.metrics().expect("metrics");
        assert_eq!(metrics.count("tidemill_postgres_rows_read_back_total", &[]), 0);
        tidemill.drain(30);
    });
}

#[test]
fn keys_may_swap_and_come_back() {
    within(90, || {
        let (replica, _, mut tidemill) = following("swap", ORDERS, "orders", "");
        replica.postgres.run(
            "BEGIN; UPDATE orders SET id = -1 WHERE id = 1; UPDATE orders SET id = 1 WHERE id = 2;
             UPDATE orders SET id = 2 WHERE id = -1; COMMIT;
             UPDATE orders SET id = id + 1000 WHERE id BETWEEN 50 AND 60; UPDATE orders SET id = id - 1000 WHERE id > 1000;
             DELETE FROM orders WHERE id = 70; INSERT INTO orders VALUES (70, 'back', 7)",
        );
        replica.until_equal(60, &["orders"]);
        tidemill.drain(30);
    });
}

#[test]
fn a_partitioned_table_is_one_table() {
    within(90, || {
        let tables = "CREATE TABLE events (id bigint, day date, note text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
             CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM ('2024-01-01') TO ('2024-02-01');
             CREATE TABLE events_2 (note text, day date NOT NULL, id bigint NOT NULL);
             ALTER TABLE events ATTACH PARTITION events_2 FOR VALUES FROM ('2024-02-01') TO ('2024-03-01');
             INSERT INTO events SELECT n, '2024-01-01'::date + (n % 60)::int, 'n' || n FROM generate_series(1, 600) n";
        let (replica, _, mut tidemill) = following("partitions", tables, "events", "");
        replica.postgres.run(
            "UPDATE events SET note = 'changed' WHERE id % 7 = 0;
             UPDATE events SET day = '2024-02-15' WHERE id % 60 = 3;
             CREATE TABLE events_3 PARTITION OF events FOR VALUES FROM ('2024-03-01') TO ('2024-04-01');
             INSERT INTO events VALUES (9000, '2024-03-03', 'new partition');
             DELETE FROM events WHERE id % 11 = 0",
        );
        replica.until_equal(60, &["events"]);
        assert!(
            replica.warehouse.attempt("SELECT * FROM shop.events_1").is_err(),
            "partitions have no table of their own"
        );
        tidemill.drain(30);
    });
}

#[test]
fn a_row_filter_and_a_column_list_of_the_owner_hold_for_copy_and_stream() {
    within(90, || {
        let replica = Replica::new("own_publication");
        replica.postgres.run(ORDERS);
        replica.postgres.run(
            "ALTER TABLE orders ADD COLUMN region text NOT NULL DEFAULT 'eu', ADD COLUMN secret text DEFAULT 'hidden';
             UPDATE orders SET region = 'us' WHERE id % 2 = 0;
             ALTER TABLE orders DROP CONSTRAINT orders_pkey, ADD PRIMARY KEY (id, region);
             CREATE PUBLICATION own_one FOR TABLE orders (id, region, note) WHERE (region = 'eu')",
        );
        let mut pipeline = replica.pipeline();
        pipeline.source_more = "publication = \"own_one\"".to_owned();
        let mut tidemill = replica.run(&pipeline);
        replica.warehouse.until_rows(60, "orders", 50);
        replica.postgres.until_streaming(30, &replica.slot());
        replica.postgres.run(
            "UPDATE orders SET region = 'us' WHERE id = 1; UPDATE orders SET region = 'eu' WHERE id = 2;
             UPDATE orders SET note = 'seen', secret = 'more' WHERE id IN (3, 4); DELETE FROM orders WHERE id IN (5, 6);
             INSERT INTO orders VALUES (900, 'in', 1, 'eu'), (901, 'out', 1, 'us')",
        );
        let column = Column::plain;
        replica.postgres.run("CREATE VIEW seen AS SELECT id, region, note FROM orders WHERE region = 'eu'");
        Comparison::new("seen", "shop.orders", vec![column("id"), column("region")], vec![column("note")])
            .until_equal(60, &replica.postgres, &replica.warehouse);
        let columns = replica.warehouse.execute("DESC shop.orders");
        assert_eq!(columns.len(), 3, "{columns:?}");
        tidemill.drain(30);
    });
}

/// Follows `orders` by a publication of its owner's own that lists columns.
fn following_listed(name: &str) -> (Replica, Pipeline, Tidemill) {
    let replica = Replica::new(name);
    replica.postgres.run(ORDERS);
    replica.postgres.run("CREATE PUBLICATION listed FOR TABLE orders (id, note, amount)");
    let mut pipeline = replica.pipeline();
    pipeline.source_more = "publication = \"listed\"".to_owned();
    let mut tidemill = replica.run(&pipeline);
    replica.until_equal(60, &["orders"]);
    tidemill.until_logged(30, "following the slot");
    (replica, pipeline, tidemill)
}

#[test]
fn a_column_that_leaves_the_column_list_halts_with_both_schemas() {
    within(120, || {
        let (replica, pipeline, mut tidemill) = following_listed("unlisted");
        replica.postgres.run(
            "INSERT INTO orders VALUES (600, 'before', 1); ALTER PUBLICATION listed SET TABLE orders (id, amount);
             UPDATE orders SET amount = 7, note = 'unseen' WHERE id = 5; INSERT INTO orders VALUES (601, 'unseen', 2)",
        );
        let words = [
            "column note of public.orders",
            "public.orders",
            "shop.orders",
            "ALTER TABLE `shop`.`orders` DROP COLUMN `note`",
        ];
        must_halt(&mut tidemill, &words);
        // Whoever starts it again without a look at why it halted gets no NULLs either.
        must_halt(&mut replica.run(&pipeline), &words);
        let number = |sql: &str| replica.warehouse.number(&format!("SELECT COUNT(*) FROM shop.orders {sql}"));
        assert_eq!(number("WHERE id = 600 AND note = 'before'"), 1, "what came before is loaded");
        assert_eq!(number("WHERE note IS NULL OR note = 'unseen'"), 0);
        assert_eq!(number("WHERE id = 601"), 0, "nothing behind it is");
        // As the halt says: without the column.
        replica.warehouse.execute("ALTER TABLE `shop`.`orders` DROP COLUMN `note`");
        let mut tidemill = replica.run(&pipeline);
        replica.postgres.run("CREATE VIEW listed AS SELECT id, amount FROM orders");
        let (id, amount) = (Column::plain("id"), Column::plain("amount"));
        Comparison::new("listed", "shop.orders", vec![id], vec![amount]).until_equal(
            60,
            &replica.postgres,
            &replica.warehouse,
        );
        tidemill.drain(30);
    });
}

#[test]
fn a_column_that_comes_into_the_column_list_is_added() {
    within(90, || {
        let (replica, _, mut tidemill) = following_listed("listed");
        replica.postgres.run(
            "ALTER TABLE orders ADD COLUMN extra int DEFAULT 3; INSERT INTO orders VALUES (700, 'unlisted', 1, 4);
             ALTER PUBLICATION listed SET TABLE orders (id, note, amount, extra);
             INSERT INTO orders VALUES (701, 'listed', 1, 5); UPDATE orders SET amount = 8",
        );
        replica.until_equal(60, &["orders"]);
        tidemill.drain(30);
    });
}

#[test]
fn without_a_snapshot_only_changes_come() {
    within(90, || {
        let replica = Replica::new("never");
        replica.postgres.run(ORDERS);
        let mut pipeline = replica.pipeline();
        pipeline.source_more = "snapshot = \"never\"".to_owned();
        let mut tidemill = replica.run(&pipeline);
        // A slot that is being made is active, too.
        tidemill.until_logged(60, "following the slot");
        replica.postgres.run(
            "INSERT INTO orders VALUES (700, 'new', 1); UPDATE orders SET note = 'changed' WHERE id = 7",
        );
        replica.warehouse.until_rows(30, "orders", 2);
        tidemill.drain(30);
        let mut ids = replica.warehouse.ids("orders");
        ids.sort_unstable();
        assert_eq!(ids, [7, 700]);
    });
}

#[test]
fn with_only_a_snapshot_it_ends_by_itself_and_leaves_nothing_behind() {
    within(90, || {
        let replica = Replica::new("only");
        replica.postgres.run(ORDERS);
        let mut pipeline = replica.pipeline();
        pipeline.source_more = "snapshot = \"only\"".to_owned();
        let ended = replica.run(&pipeline).until_ended(60);
        assert_eq!(ended.code, Some(0), "{}", ended.log);
        replica.until_equal(5, &["orders"]);
        let own = format!("FROM pg_replication_slots WHERE slot_name = '{}'", replica.slot());
        assert_eq!(replica.postgres.number(&format!("SELECT count(*) {own}")), 0);
        assert_eq!(replica.postgres.number("SELECT count(*) FROM pg_publication"), 0);
    });
}

/// What the test plugin saw of a record.
fn seen(replica: &Replica, id: u64, words: &str) -> Value {
    let select = format!("SELECT note FROM shop.events WHERE id = {id}");
    let told = wait_until(Duration::from_secs(30), || {
        // The table itself may still be to be made.
        let note = replica.warehouse.attempt(&select).ok()?.into_iter().flatten().flatten().next()?;
        note.contains(words).then_some(note)
    });
    let note =
        told.unwrap_or_else(|late| panic!("{words}: {late}, {:?}", replica.warehouse.attempt(&select)));
    serde_json::from_str(&note).expect("JSON")
}

/// Runs one transaction and checks what a plugin sees of its only change.
fn shows(replica: &Replica, sql: &str, id: u64, op: &str) {
    let cell = |sql: &str| replica.postgres.cell(sql).expect("a value");
    let now_us = || cell("SELECT floor(extract(epoch FROM clock_timestamp()) * 1000000)::bigint");
    let (before_us, before_lsn) = (now_us(), cell("SELECT pg_current_wal_insert_lsn()"));
    let said = replica.postgres.run(&format!("BEGIN; {sql}; SELECT pg_current_xact_id(); COMMIT"));
    let (after_us, after_lsn) = (now_us(), cell("SELECT pg_current_wal_insert_lsn()"));
    let xid = said.trim();
    let seen = seen(replica, id, &format!("\"{xid}\""));
    assert_eq!((&seen["source"], &seen["op"]), (&json!("public.events"), &json!(op)), "{seen}");
    let key = seen["key"].as_str().map(|key| serde_json::from_str::<Value>(key).expect("JSON"));
    assert_eq!(key, Some(json!({ "id": id })), "{seen}");
    let headers: BTreeMap<String, String> =
        serde_json::from_value::<Vec<(String, String)>>(seen["headers"].clone())
            .expect("pairs")
            .into_iter()
            .collect();
    assert_eq!(
        headers.keys().collect::<Vec<_>>(),
        ["postgres.commit_time_us", "postgres.lsn", "postgres.xid"]
    );
    assert_eq!(headers["postgres.xid"], xid);
    let us = |text: &str| text.parse::<u64>().expect("microseconds");
    let committed_us = us(&headers["postgres.commit_time_us"]);
    assert!((us(&before_us)..=us(&after_us)).contains(&committed_us), "{committed_us}");
    assert_eq!(seen["timestamp_us"], committed_us);
    let lsn = &headers["postgres.lsn"];
    let within = format!("SELECT '{lsn}'::pg_lsn BETWEEN '{before_lsn}' AND '{after_lsn}'");
    assert_eq!(cell(&within), "t", "{lsn} is not between {before_lsn} and {after_lsn}");
}

#[test]
fn plugins_see_each_change_with_its_key_and_transaction() {
    within(90, || {
        let replica = Replica::new("changes");
        replica.postgres.run(
            "CREATE TABLE events (id bigint PRIMARY KEY, \"do\" text, note text);
             INSERT INTO events VALUES (1, 'inspect', 'copied')",
        );
        let mut pipeline = replica.pipeline();
        pipeline.transforms = transform(&machine::test_plugin(), "{ inspect_deletes = true }");
        let mut tidemill = replica.run(&pipeline);
        let copied = seen(&replica, 1, "public.events");
        assert_eq!(
            (&copied["op"], &copied["source"]),
            (&json!("upsert"), &json!("public.events")),
            "{copied}"
        );
        tidemill.until_logged(30, "following the slot");
        shows(&replica, "INSERT INTO events VALUES (2, 'inspect', 'inserted')", 2, "upsert");
        shows(&replica, "UPDATE events SET note = 'updated' WHERE id = 2", 2, "upsert");
        shows(&replica, "DELETE FROM events WHERE id = 2", 2, "delete");
        tidemill.drain(30);
    });
}

#[test]
fn plugins_see_what_a_change_was() {
    within(90, || {
        let replica = Replica::new("seen");
        replica.postgres.run(
            "CREATE TABLE events (id bigint PRIMARY KEY, \"do\" text, note text);
             INSERT INTO events VALUES (1, 'inspect', 'copied'), (2, 'keep', 'copied'), (3, 'drop', 'copied')",
        );
        let mut pipeline = replica.pipeline();
        pipeline.transforms = transform(&machine::test_plugin(), "{}");
        let Source::Postgres(_) = &pipeline.source else { panic!("it is one of Postgres") };
        let mut tidemill = replica.run(&pipeline);
        replica.warehouse.until_rows(60, "events", 2);
        replica.postgres.until_streaming(30, &replica.slot());
        replica
            .postgres
            .run("INSERT INTO events VALUES (4, 'inspect', 'followed'); DELETE FROM events WHERE id = 2");
        let note = |id: u64| {
            let rows = replica.warehouse.execute(&format!("SELECT note FROM shop.events WHERE id = {id}"));
            rows.into_iter().flatten().flatten().next()
        };
        let told = tidemill_tests::wait_until(std::time::Duration::from_secs(30), || {
            (replica.warehouse.ids("events").len() == 2).then(|| note(4))?
        });
        let followed = told.unwrap_or_else(|late| panic!("{:?}: {late}", replica.warehouse.ids("events")));
        for words in [
            "\"source\":\"public.events\"",
            r#""key":"{\"id\":4}""#,
            "\"timestamp_us\":1",
            "postgres.lsn",
            "postgres.xid",
            "postgres.commit_time_us",
        ] {
            assert!(followed.contains(words), "{words} is not in {followed}");
        }
        let copied = note(1).expect("the row that was copied");
        assert!(
            copied.contains("\"source\":\"public.events\"") && copied.contains(r#""key":"{\"id\":1}""#),
            "{copied}"
        );
        let mut ids = replica.warehouse.ids("events");
        ids.sort_unstable();
        assert_eq!(ids, [1, 4], "a delete goes through a plugin as one");
        tidemill.drain(30);
    });
}
