//! The tables to follow change while they are followed: others come, some go, one leaves the publication.

use std::{path::Path, time::Duration};
use tidemill_sandbox::FaultKind;
use tidemill_test_postgres::{Settings, Stop};
use tidemill_tests::{
    limit::within,
    pipeline::{Pipeline, Source},
    process::{Tidemill, tidemill_output},
    replica::Replica,
    wait_until,
    workload::{self, TABLES, Workload},
};

const ORDERS: &str = "CREATE TABLE orders (id bigint PRIMARY KEY, note text);
                      INSERT INTO orders SELECT n, 'note ' || n FROM generate_series(1, 100) n";
const ITEMS: &str = "CREATE TABLE items (id bigint PRIMARY KEY, note text);
                     INSERT INTO items SELECT n, 'item ' || n FROM generate_series(1, 500) n";

/// A replica that follows these tables already, with these further lines of the source.
fn following(name: &str, tables: &str, names: &[&str], more: &str) -> (Replica, Pipeline, Tidemill) {
    let replica = Replica::new(name);
    replica.postgres.run(tables);
    let mut pipeline = replica.pipeline();
    pipeline.source_more = more.to_owned();
    let mut tidemill = replica.run(&pipeline);
    replica.until_equal(60, names);
    tidemill.until_logged(30, "following the slot");
    (replica, pipeline, tidemill)
}

fn must_halt(tidemill: &mut Tidemill, words: &[&str]) {
    let ended = tidemill.until_ended(60);
    assert_eq!(ended.code, Some(1), "{}", ended.log);
    for word in words {
        assert!(ended.log.contains(word), "{word:?} is not in {}", ended.log);
    }
}

fn resync(file: &Path, table: &str) {
    let done = tidemill_output(&["resync", file.to_str().expect("a path"), table]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// How often the log has this text.
fn times(tidemill: &Tidemill, text: &str) -> usize {
    tidemill.log().matches(text).count()
}

/// What the log says of new tables.
const NEW: &str = "following new tables";

/// Waits until the new tables are copied and followed.
fn until_followed(tidemill: &Tidemill) {
    let follows = || (times(tidemill, "following the slot") > times(tidemill, NEW)).then_some(());
    wait_until(Duration::from_secs(90), follows).unwrap_or_else(|late| panic!("{late}: {}", tidemill.log()));
}

#[test]
fn new_tables_are_copied_and_followed_while_others_are() {
    within(120, || {
        let (replica, pipeline, mut tidemill) = following("came", ORDERS, &["orders"], "");
        replica.postgres.run(ITEMS);
        replica.postgres.run("UPDATE orders SET note = 'meanwhile' WHERE id < 50");
        replica.until_equal(60, &["items", "orders"]);
        replica.postgres.run(
            "UPDATE items SET note = 'followed' WHERE id % 3 = 0; DELETE FROM items WHERE id % 7 = 0;
             INSERT INTO items VALUES (1000, 'new'); DELETE FROM orders WHERE id > 90",
        );
        replica.until_equal(60, &["items", "orders"]);
        // And once more, in one transaction with its rows.
        replica.postgres.run(
            "BEGIN; CREATE TABLE later (a text, b int, PRIMARY KEY (b, a)); INSERT INTO later VALUES ('x', 1), ('y', 2);
             COMMIT; UPDATE later SET b = 3 WHERE a = 'x'",
        );
        replica.until_equal(60, &["later"]);
        until_followed(&tidemill);
        tidemill.drain(30);
        // A restart finds everything as it was left.
        replica.postgres.run("DELETE FROM items WHERE id % 5 = 0; INSERT INTO later VALUES ('z', 9)");
        let mut tidemill = replica.run(&pipeline);
        replica.until_equal(60, &["items", "orders", "later"]);
        assert!(!tidemill.log().contains("copying what is there"), "{}", tidemill.log());
        tidemill.drain(30);
    });
}

#[test]
fn tables_that_are_written_to_from_their_first_moment_equal_their_source() {
    within(240, || {
        let (replica, _, mut tidemill) = following("busy_newcomer", ORDERS, &["orders"], "");
        let settings =
            workload::Settings { seed: rand::random(), rows: 5_000, keys: 10_000, ..Default::default() };
        println!("seed {}", settings.seed);
        workload::prepare(&replica.postgres, &settings);
        let workload = Workload::start(&replica.postgres, &settings);
        tidemill.until_logged(60, NEW);
        until_followed(&tidemill);
        workload.until_committed(60, 500);
        let counts = workload.stop();
        assert!(counts.committed > 500, "{counts}");
        replica.until_equal(120, &TABLES);
        replica.until_equal(10, &["orders"]);
        let metrics = tidemill.metrics().expect("metrics");
        assert_eq!(metrics.count("tidemill_records_given_up_total", &[]), 0, "{metrics:?}");
        tidemill.drain(30);
    });
}

#[test]
fn a_new_table_with_a_defect_is_left_out_until_it_is_mended() {
    within(120, || {
        let (replica, _, mut tidemill) = following("unfit", ORDERS, &["orders"], "");
        replica
            .postgres
            .run("CREATE TABLE keyless (id bigint NOT NULL, note text); INSERT INTO keyless VALUES (1, 'a')");
        let told = "a new table cannot be followed";
        tidemill.until_logged(30, told);
        assert!(tidemill.log().contains("ALTER TABLE public.keyless ADD PRIMARY KEY"), "{}", tidemill.log());
        // Another one that is fit does not wait for it, and the others go on.
        replica.postgres.run(ITEMS);
        replica
            .postgres
            .run("UPDATE orders SET note = 'goes on'; UPDATE keyless SET note = 'still possible'");
        replica.until_equal(60, &["items", "orders"]);
        assert_eq!(times(&tidemill, told), 1, "{}", tidemill.log());
        replica.postgres.run("ALTER TABLE keyless ADD PRIMARY KEY (id)");
        replica.until_equal(60, &["keyless"]);
        replica.postgres.run("UPDATE keyless SET note = 'followed'");
        replica.until_equal(60, &["keyless"]);
        tidemill.drain(30);
    });
}

#[test]
fn a_publication_for_all_tables_has_new_ones_from_the_start() {
    within(120, || {
        let replica = Replica::new("all_tables");
        replica.postgres.run(ORDERS);
        replica.postgres.run("CREATE PUBLICATION everything FOR ALL TABLES");
        let mut pipeline = replica.pipeline();
        pipeline.source_more = "publication = \"everything\"".to_owned();
        let mut tidemill = replica.run(&pipeline);
        replica.until_equal(60, &["orders"]);
        tidemill.until_logged(30, "following the slot");
        replica.postgres.run(ITEMS);
        replica
            .postgres
            .run("UPDATE items SET note = 'at once' WHERE id < 10; DELETE FROM items WHERE id = 11");
        replica.until_equal(60, &["items"]);
        replica.postgres.run("DELETE FROM items WHERE id < 5");
        replica.until_equal(60, &["items"]);
        tidemill.drain(30);
    });
}

#[test]
fn a_table_that_leaves_the_publication_halts_until_it_is_copied_again() {
    within(180, || {
        let tables = format!("{ORDERS}; {ITEMS}");
        let (replica, pipeline, mut tidemill) = following("left", &tables, &["orders", "items"], "");
        let publication = replica.slot();
        replica.postgres.run(&format!("ALTER PUBLICATION {publication} DROP TABLE items"));
        replica.postgres.run("DELETE FROM items WHERE id < 100; UPDATE orders SET note = 'others go on'");
        let words = [
            "taken out of publication",
            "public.items; their changes since then did not come",
            "tidemill resync <file> public.items",
            &format!("ALTER PUBLICATION {publication} ADD TABLE public.items"),
            "exclude = [\"public.items\"]",
        ];
        must_halt(&mut tidemill, &words);
        // A start does not put it back without a word.
        let mut tidemill = replica.run(&pipeline);
        must_halt(&mut tidemill, &words);
        let published = "SELECT count(*) FROM pg_publication_tables WHERE tablename = 'items'";
        assert_eq!(replica.postgres.number(published), 0);
        resync(&replica.write(&pipeline), "public.items");
        let mut tidemill = replica.run(&pipeline);
        replica.until_equal(60, &["items", "orders"]);
        replica.postgres.run("UPDATE items SET note = 'followed again'");
        replica.until_equal(60, &["items", "orders"]);
        tidemill.drain(30);
    });
}

#[test]
fn a_dropped_table_is_no_longer_followed_and_the_others_are() {
    within(120, || {
        let tables = format!("{ORDERS}; {ITEMS}");
        let (replica, _, mut tidemill) = following("gone", &tables, &["orders", "items"], "");
        replica.postgres.run("INSERT INTO items VALUES (2000, 'the last row'); DROP TABLE items");
        tidemill.until_logged(30, "followed tables are gone from the source");
        replica.postgres.run("UPDATE orders SET note = 'goes on'");
        replica.until_equal(60, &["orders"]);
        replica.warehouse.until_rows(30, "items", 501);
        assert_eq!(
            replica.warehouse.number("SELECT COUNT(*) FROM shop.items"),
            501,
            "its rows stay, the last one, too"
        );
        tidemill.until_logged(60, "it is not followed any more");
        tidemill.drain(30);
    });
}

#[test]
fn a_dropped_table_that_the_file_names_halts() {
    within(120, || {
        let replica = Replica::new("named");
        replica.postgres.run(&format!("{ORDERS}; {ITEMS}"));
        let mut pipeline = replica.pipeline();
        let Source::Postgres(source) = &mut pipeline.source else { panic!("it is one of Postgres") };
        source.tables = vec!["public.orders".to_owned(), "public.items".to_owned()];
        let mut tidemill = replica.run(&pipeline);
        replica.until_equal(60, &["orders", "items"]);
        tidemill.until_logged(30, "following the slot");
        replica.postgres.run("DROP TABLE items");
        must_halt(&mut tidemill, &["\"public.items\" names no table", "mend `tables` in [source.postgres]"]);
    });
}

#[test]
fn a_table_that_is_made_anew_halts() {
    within(120, || {
        let tables = format!("{ORDERS}; {ITEMS}");
        let (replica, pipeline, mut tidemill) = following("remade", &tables, &["orders", "items"], "");
        replica.postgres.run(
            "BEGIN; DROP TABLE items; CREATE TABLE items (id bigint PRIMARY KEY, note text);
             INSERT INTO items VALUES (1, 'of the new one'); COMMIT",
        );
        must_halt(
            &mut tidemill,
            &["dropped and made anew: public.items", "tidemill resync <file> public.items"],
        );
        resync(&replica.write(&pipeline), "public.items");
        let mut tidemill = replica.run(&pipeline);
        replica.until_equal(60, &["items", "orders"]);
        tidemill.drain(30);
    });
}

#[test]
fn a_standby_takes_over_with_tables_that_came_after_it_was_started() {
    within(120, || {
        let (replica, pipeline, mut leader) = following("widened", ORDERS, &["orders"], "");
        let mut standby = replica.run(&pipeline);
        standby.until_logged(30, "standing by");
        replica.postgres.run(ITEMS);
        replica.until_equal(60, &["items"]);
        until_followed(&leader);
        leader.kill();
        replica.postgres.run("DELETE FROM items WHERE id % 2 = 0; INSERT INTO items VALUES (3000, 'after')");
        replica.until_equal(60, &["items", "orders"]);
        assert!(!standby.log().contains("copying what is there"), "{}", standby.log());
        standby.drain(30);
    });
}

#[test]
fn a_standby_copies_a_new_table_that_its_leader_has_not_copied_whole() {
    within(120, || {
        let (replica, pipeline, mut leader) = following("half_copied", ORDERS, &["orders"], "");
        let mut standby = replica.run(&pipeline);
        standby.until_logged(30, "standing by");
        // Its rows come, and that all of them have is not written down.
        replica.warehouse.fault_on("items", FaultKind::SlowLoad { delay_ms: 2_000 });
        replica.postgres.run(ITEMS);
        let copies = || (times(&leader, "copying what is there") == 2).then_some(());
        wait_until(Duration::from_secs(60), copies).unwrap_or_else(|late| panic!("{late}: {}", leader.log()));
        replica.warehouse.fault_on("tidemill_positions", FaultKind::TooManyVersions);
        replica.until_equal(60, &["items"]);
        leader.kill();
        replica.warehouse.clear_faults();
        replica.postgres.run("DELETE FROM items WHERE id % 2 = 0; INSERT INTO items VALUES (3000, 'after')");
        replica.until_equal(60, &["items", "orders"]);
        standby.drain(30);
    });
}

#[test]
fn a_column_that_is_added_while_the_slot_is_being_made_is_copied() {
    within(120, || {
        let replica = Replica::new("outdated");
        replica.postgres.run(ORDERS);
        replica.postgres.run("CREATE TABLE held (id int PRIMARY KEY)");
        // A new slot waits for whoever is writing.
        let holder = replica.postgres.client();
        let holding = std::thread::spawn(move || {
            holder.run("BEGIN; INSERT INTO held VALUES (1); SELECT pg_sleep(600)")
        });
        let holds = "SELECT count(*) > 0 FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%' AND backend_xid IS NOT NULL \
                     AND datname = current_database() AND pid <> pg_backend_pid()";
        replica.postgres.until(30, holds);
        let mut tidemill = replica.run(&replica.pipeline());
        let making =
            format!("SELECT count(*) = 1 FROM pg_replication_slots WHERE slot_name = '{}'", replica.slot());
        replica.postgres.until(30, &making);
        replica.postgres.run("ALTER TABLE orders ADD COLUMN extra bigint; UPDATE orders SET extra = id");
        replica.postgres.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%' \
             AND datname = current_database() AND pid <> pg_backend_pid()",
        );
        assert!(holding.join().expect("it does not panic").is_err(), "it was ended");
        replica.until_equal(60, &["orders"]);
        replica.postgres.run("UPDATE orders SET extra = extra + 1 WHERE id < 10");
        replica.until_equal(60, &["orders"]);
        tidemill.drain(30);
    });
}

/// Says what leads out of a table that has rows in StarRocks which are not its own, and sees that it does.
fn until_resynced(replica: &Replica, pipeline: &Pipeline, why: &str) {
    let mut tidemill = replica.run(pipeline);
    must_halt(&mut tidemill, &[why, "tidemill resync <file> public.items"]);
    resync(&replica.write(pipeline), "public.items");
    let mut tidemill = replica.run(pipeline);
    replica.until_equal(60, &["items", "orders"]);
    replica.postgres.run("UPDATE items SET note = 'followed again'; DELETE FROM items WHERE id = 1");
    replica.until_equal(60, &["items", "orders"]);
    tidemill.drain(30);
}

#[test]
fn a_table_that_comes_back_is_set_aside_until_it_is_copied_again() {
    within(180, || {
        let tables = format!("{ORDERS}; {ITEMS}");
        let (replica, pipeline, mut tidemill) = following("back", &tables, &["orders", "items"], "");
        replica.postgres.run("DROP TABLE items");
        tidemill.until_logged(60, "it is not followed any more");
        replica.postgres.run(
            "CREATE TABLE items (id bigint PRIMARY KEY, note text);
             INSERT INTO items VALUES (1, 'of the new one'), (7000, 'too')",
        );
        let told = "a new table cannot be followed";
        tidemill.until_logged(60, told);
        assert!(tidemill.log().contains("tidemill resync <file> public.items"), "{}", tidemill.log());
        // The others go on, and so does a newcomer that was never there.
        replica.postgres.run("UPDATE orders SET note = 'goes on'; CREATE TABLE later (id int PRIMARY KEY)");
        replica.postgres.run("INSERT INTO later VALUES (1)");
        replica.until_equal(60, &["orders", "later"]);
        assert_eq!(times(&tidemill, told), 1, "{}", tidemill.log());
        assert_eq!(replica.warehouse.number("SELECT COUNT(*) FROM shop.items"), 500, "the old ones");
        tidemill.drain(30);
        until_resynced(&replica, &pipeline, "dropped and made anew: public.items");
    });
}

#[test]
fn a_table_that_is_renamed_away_and_back_is_set_aside_too() {
    within(180, || {
        let tables = format!("{ORDERS}; {ITEMS}");
        let (replica, pipeline, mut tidemill) = following("renamed", &tables, &["orders", "items"], "");
        replica.postgres.run("ALTER TABLE items RENAME TO elsewhere");
        tidemill.until_logged(60, "it is not followed any more");
        until_followed(&tidemill);
        replica.postgres.run("DELETE FROM elsewhere WHERE id % 2 = 0");
        replica.until_equal(60, &["elsewhere"]);
        replica.postgres.run("ALTER TABLE elsewhere RENAME TO items");
        tidemill.until_logged(60, "a new table cannot be followed");
        tidemill.drain(30);
        until_resynced(&replica, &pipeline, "not followed for a while: public.items");
    });
}

#[test]
fn a_table_that_was_excluded_for_a_while_halts_until_it_is_copied_again() {
    within(180, || {
        let tables = format!("{ORDERS}; {ITEMS}");
        let (replica, pipeline, mut tidemill) = following("excluded", &tables, &["orders", "items"], "");
        tidemill.drain(30);
        let mut without = pipeline.clone();
        let Source::Postgres(source) = &mut without.source else { panic!("it is one of Postgres") };
        source.exclude = vec!["public.items".to_owned()];
        let mut tidemill = replica.run(&without);
        tidemill.until_logged(60, "following the slot");
        replica.postgres.run("DELETE FROM items WHERE id < 100; UPDATE orders SET note = 'goes on'");
        replica.until_equal(60, &["orders"]);
        tidemill.drain(30);
        until_resynced(&replica, &pipeline, "not followed for a while: public.items");
    });
}

#[test]
fn a_table_that_is_made_anew_while_nothing_runs_halts() {
    within(180, || {
        let replica = Replica::new("remade_meanwhile");
        replica.postgres.run(&format!("{ORDERS}; {ITEMS}; CREATE PUBLICATION everything FOR ALL TABLES"));
        let mut pipeline = replica.pipeline();
        pipeline.source_more = "publication = \"everything\"".to_owned();
        let mut tidemill = replica.run(&pipeline);
        replica.until_equal(60, &["orders", "items"]);
        tidemill.until_logged(30, "following the slot");
        tidemill.drain(30);
        replica.postgres.run(
            "DROP TABLE items; CREATE TABLE items (id bigint PRIMARY KEY, note text);
             INSERT INTO items VALUES (1, 'of the new one'), (7000, 'too')",
        );
        until_resynced(&replica, &pipeline, "dropped and made anew: public.items");
    });
}

#[test]
fn a_server_that_is_shut_down_while_a_round_drains_does_not_wait_for_it() {
    within(180, || {
        let mut replica = Replica::own("drained", &Settings::default());
        replica.postgres.run(ORDERS);
        let mut tidemill = replica.run(&replica.pipeline());
        replica.until_equal(60, &["orders"]);
        tidemill.until_logged(30, "following the slot");
        // What was read cannot be loaded, so the round that ends for a new table goes on draining.
        replica.warehouse.fault_on("orders", FaultKind::TooManyVersions);
        replica.postgres.run("UPDATE orders SET note = 'waits'");
        replica.postgres.run(ITEMS);
        tidemill.until_logged(60, "draining");
        replica
            .postgres
            .server()
            .restart(Stop::Fast)
            .expect("it does not wait for what it keeps us from loading");
        replica.warehouse.clear_faults();
        replica.until_equal(60, &["orders", "items"]);
        tidemill.drain(30);
    });
}
