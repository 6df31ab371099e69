//! Tables that change while no process runs, rows that are asked for after their table has changed, and servers that were
//! standbys: a start knows what was followed, and from whom.

use std::{process::Output, time::Duration};
use tidemill_sandbox::FaultKind;
use tidemill_test_postgres::{Server, Settings, Stop};
use tidemill_tests::{
    limit::within,
    machine,
    pipeline::{Pipeline, Source},
    process::{Tidemill, tidemill_output},
    replica::Replica,
    wait_until,
};

const ORDERS: &str = "CREATE TABLE orders (id bigint PRIMARY KEY, note text, amount int);
                      INSERT INTO orders SELECT n, 'note ' || n, n FROM generate_series(1, 100) n";

/// A replica of this table that was followed, by a process that has ended.
fn stopped(replica: Replica, tables: &str, table: &str) -> (Replica, Pipeline) {
    replica.postgres.run(tables);
    let pipeline = replica.pipeline();
    let mut tidemill = replica.run(&pipeline);
    replica.until_equal(60, &[table]);
    tidemill.until_logged(60, "following the slot");
    tidemill.drain(30);
    (replica, pipeline)
}

fn must_halt(tidemill: &mut Tidemill, words: &[&str]) {
    let ended = tidemill.until_ended(60);
    assert_eq!(ended.code, Some(1), "{}", ended.log);
    for word in words {
        assert!(ended.log.contains(word), "{word:?} is not in {}", ended.log);
    }
}

fn checked(replica: &Replica, pipeline: &Pipeline) -> Output {
    let file = replica.write(pipeline);
    tidemill_output(&["check", "--online", file.to_str().expect("a path")])
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Changes `orders` while nobody looks, expects a halt with both schemas behind what came before, and that the mend lets it
/// go on.
fn refuses(name: &str, change: &str, words: &[&str], mend: &str) -> Replica {
    let (replica, pipeline) = stopped(Replica::new(name), ORDERS, "orders");
    replica.postgres.run("INSERT INTO orders VALUES (600, 'before', 1)");
    replica.postgres.run(change);
    let file = replica.write(&pipeline);
    let output = tidemill_output(&["check", "--online", file.to_str().expect("a path")]);
    let checked =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(checked.contains(words[0]) && output.status.success(), "{:?} is not in {checked}", words[0]);
    must_halt(&mut replica.run(&pipeline), &[words, &["public.orders", "shop.orders"]].concat());
    let before =
        replica.warehouse.number("SELECT COUNT(*) FROM shop.orders WHERE id = 600 AND note = 'before'");
    assert_eq!(before, 1, "what came before the change is loaded as it was");
    // Nothing helps but the mend.
    must_halt(&mut replica.run(&pipeline), words);
    replica.warehouse.execute(mend);
    let mut tidemill = replica.run(&pipeline);
    replica.until_equal(60, &["orders"]);
    tidemill.drain(30);
    // What was accepted is remembered.
    replica.postgres.run("UPDATE orders SET id = id + 1000 WHERE id < 10");
    let mut tidemill = replica.run(&pipeline);
    replica.until_equal(60, &["orders"]);
    tidemill.drain(30);
    replica
}

#[test]
fn a_column_that_was_dropped_while_nobody_looked_halts_and_may_be_dropped_or_kept() {
    within(120, || {
        let words =
            ["column note of public.orders was dropped", "ALTER TABLE `shop`.`orders` DROP COLUMN `note`"];
        let change = "ALTER TABLE orders DROP COLUMN note; INSERT INTO orders VALUES (601, 2)";
        refuses("schema_dropped", change, &words, words[1]);
        let keep = "ALTER TABLE `shop`.`orders` RENAME COLUMN `note` TO `note_dropped`";
        let replica = refuses("schema_kept", change, &[words[0], keep], keep);
        let kept =
            replica.warehouse.number("SELECT COUNT(*) FROM shop.orders WHERE note_dropped = 'note 50'");
        assert_eq!(kept, 1, "the values that it had are still there");
    });
}

#[test]
fn a_column_that_was_renamed_while_nobody_looked_is_told_apart_from_a_new_one() {
    within(90, || {
        let words = [
            "column note of public.orders is now called remark",
            "ALTER TABLE `shop`.`orders` RENAME COLUMN `note` TO `remark`",
        ];
        let change =
            "ALTER TABLE orders RENAME COLUMN note TO remark; INSERT INTO orders VALUES (601, 'renamed', 2)";
        refuses("schema_renamed", change, &words, words[1]);
    });
}

#[test]
fn rows_of_before_a_rename_in_the_same_transaction_go_to_the_new_name_when_they_come_again() {
    within(90, || {
        let words = ["column note of public.orders is now called remark"];
        let change = "BEGIN; INSERT INTO orders VALUES (602, 'within', 1); UPDATE orders SET note = 'changed' WHERE id = 9;
            ALTER TABLE orders RENAME COLUMN note TO remark; INSERT INTO orders VALUES (603, 'renamed', 2); COMMIT";
        refuses(
            "schema_within",
            change,
            &words,
            "ALTER TABLE `shop`.`orders` RENAME COLUMN `note` TO `remark`",
        );
    });
}

#[test]
fn a_column_that_was_retyped_while_nobody_looked_halts() {
    within(90, || {
        let words = ["column amount of public.orders is now text", "MODIFY COLUMN `amount`"];
        let change =
            "ALTER TABLE orders ALTER COLUMN amount TYPE text; INSERT INTO orders VALUES (601, 'x', 'many')";
        let mend = "ALTER TABLE `shop`.`orders` MODIFY COLUMN `amount` VARCHAR(1048576) NULL";
        refuses("schema_retyped", change, &words, mend);
    });
}

#[test]
fn a_column_that_only_starrocks_has_is_no_renamed_one() {
    within(90, || {
        let (replica, pipeline) = stopped(Replica::new("schema_own"), ORDERS, "orders");
        replica.warehouse.execute("ALTER TABLE shop.orders ADD COLUMN loaded_by VARCHAR(20) NULL");
        replica.postgres.run(
            "ALTER TABLE orders ADD COLUMN extra int; INSERT INTO orders VALUES (700, 'new', 1, 2);
             UPDATE orders SET extra = 3 WHERE id = 1",
        );
        let mut tidemill = replica.run(&pipeline);
        replica.until_equal(60, &["orders"]);
        tidemill.drain(30);
    });
}

#[test]
fn positions_of_an_earlier_version_are_gone_on_with() {
    within(90, || {
        let (replica, pipeline) = stopped(Replica::new("schema_older"), ORDERS, "orders");
        replica.warehouse.execute("ALTER TABLE shop.tidemill_positions DROP COLUMN details");
        replica
            .warehouse
            .execute("DELETE FROM shop.tidemill_positions WHERE source_table = '#columns public.orders'");
        replica.postgres.run("INSERT INTO orders VALUES (700, 'new', 1)");
        let mut tidemill = replica.run(&pipeline);
        replica.until_equal(60, &["orders"]);
        tidemill.drain(30);
        let details: Vec<String> = replica
            .warehouse
            .execute("SELECT details FROM shop.tidemill_positions")
            .into_iter()
            .flatten()
            .flatten()
            .collect();
        for known in [r#"{"name":"note","number":2,"type":25,"modifier":-1}"#, r#"{"timeline":1}"#] {
            assert_eq!(details.iter().filter(|text| text.contains(known)).count(), 1, "{known}: {details:?}");
        }
    });
}

const DOCUMENTS: &str =
    "CREATE TABLE documents (id bigint PRIMARY KEY, title text, body text, appendix text);
    ALTER TABLE documents ALTER COLUMN body SET STORAGE EXTERNAL, ALTER COLUMN appendix SET STORAGE EXTERNAL;
    INSERT INTO documents SELECT n, 'title', repeat('body ' || n, 2000), repeat('appendix ' || n, 1000)
    FROM generate_series(1, 8) n";

/// What a row that is read back lacks since its column was dropped.
const LOST: [&str; 4] = [
    "its appendix, which such a change leaves out, cannot be read back",
    "ALTER TABLE `shop`.`documents` DROP COLUMN `appendix`",
    "tidemill resync <file> public.documents",
    "appendix varchar(1048576)",
];

/// A key change whose row cannot be read back whole any more.
fn dropped_behind_a_key_change(name: &str) -> (Replica, Pipeline) {
    let (replica, pipeline) = stopped(Replica::new(name), DOCUMENTS, "documents");
    replica.postgres.run(
        "UPDATE documents SET title = 'before' WHERE id = 2; UPDATE documents SET id = 101 WHERE id = 1;
         ALTER TABLE documents DROP COLUMN appendix; UPDATE documents SET title = 'behind' WHERE id = 3",
    );
    must_halt(&mut replica.run(&pipeline), &LOST);
    must_halt(&mut replica.run(&pipeline), &LOST);
    (replica, pipeline)
}

#[test]
fn a_row_whose_large_column_was_dropped_since_is_read_back_once_starrocks_has_dropped_it() {
    within(90, || {
        let (replica, pipeline) = dropped_behind_a_key_change("schema_back");
        replica.warehouse.execute(LOST[1]);
        let mut tidemill = replica.run(&pipeline);
        replica.until_equal(60, &["documents"]);
        tidemill.drain(30);
    });
}

#[test]
fn a_table_whose_rows_cannot_be_read_back_may_be_copied_anew() {
    within(90, || {
        let (replica, pipeline) = dropped_behind_a_key_change("schema_anew");
        let file = replica.write(&pipeline);
        let output = tidemill_output(&["resync", file.to_str().expect("a path"), "public.documents"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut tidemill = replica.run(&pipeline);
        replica.until_equal(60, &["documents"]);
        replica.postgres.run("DELETE FROM documents WHERE id = 4");
        replica.until_equal(60, &["documents"]);
        tidemill.drain(30);
    });
}

#[test]
fn a_row_whose_large_column_was_renamed_since_is_read_back_by_its_number() {
    within(90, || {
        let (replica, pipeline) = stopped(Replica::new("schema_number"), DOCUMENTS, "documents");
        replica.postgres.run(
            "UPDATE documents SET id = 101 WHERE id = 1; ALTER TABLE documents RENAME COLUMN appendix TO addendum;
             CREATE TABLE other (id int PRIMARY KEY)",
        );
        let mut tidemill = replica.run(&pipeline);
        let appendix = || {
            let rows = replica.warehouse.execute("SELECT appendix FROM shop.documents WHERE id = 101");
            rows.into_iter().flatten().flatten().next()
        };
        let loaded = tidemill_tests::wait_until(std::time::Duration::from_secs(60), || {
            (appendix()? == "appendix 1".repeat(1000)).then_some(())
        });
        loaded.unwrap_or_else(|late| panic!("the row that was read back is not there: {late}"));
        replica.postgres.run("UPDATE documents SET title = 'behind' WHERE id = 3");
        must_halt(&mut tidemill, &["column appendix of public.documents is now called addendum"]);
        replica.warehouse.execute("ALTER TABLE `shop`.`documents` RENAME COLUMN `appendix` TO `addendum`");
        let mut tidemill = replica.run(&pipeline);
        replica.until_equal(60, &["documents"]);
        tidemill.drain(30);
    });
}

#[test]
fn a_row_whose_table_was_dropped_since_is_gone() {
    within(90, || {
        let replica = Replica::new("schema_gone");
        replica.postgres.run(&format!("{DOCUMENTS}; {ORDERS}"));
        let mut tidemill = replica.run(&replica.pipeline());
        replica.until_equal(60, &["documents", "orders"]);
        tidemill.until_logged(60, "following the slot");
        replica.postgres.run(
            "BEGIN; UPDATE documents SET id = 101 WHERE id = 1; DROP TABLE documents; COMMIT;
             INSERT INTO orders VALUES (700, 'behind', 1)",
        );
        replica.until_equal(60, &["orders"]);
        let metrics = tidemill.metrics().expect("metrics");
        assert_eq!(metrics.count("tidemill_postgres_rows_read_back_total", &[]), 1);
        let left = || {
            let mut ids = replica.warehouse.ids("documents");
            ids.sort_unstable();
            ids
        };
        // Each table has its own batches.
        let gone = tidemill_tests::wait_until(std::time::Duration::from_secs(30), || {
            (left() == [2, 3, 4, 5, 6, 7, 8]).then_some(())
        });
        gone.unwrap_or_else(|late| panic!("{:?}: {late}", left()));
        tidemill.drain(30);
    });
}

/// The pipeline, pointed at another server.
fn at(pipeline: &Pipeline, server: &Server) -> Pipeline {
    let mut pipeline = pipeline.clone();
    let Source::Postgres(source) = &mut pipeline.source else { panic!("it is one of Postgres") };
    source.port = server.port();
    pipeline
}

/// A replica with a server of its own.
fn own(name: &str) -> (Replica, Pipeline) {
    stopped(Replica::own(name, &Settings::default()), ORDERS, "orders")
}

/// Runs statements on a server that has taken the place of the replica's.
fn run_on(server: &Server, replica: &Replica, sql: &str) -> String {
    server.client().database(replica.name()).run(sql).unwrap_or_else(|fault| panic!("{fault}\n{sql}"))
}

#[test]
fn a_failover_that_left_the_slot_behind_is_told_and_the_way_out_works() {
    within(180, || {
        let (mut replica, pipeline) = own("schema_failover");
        let root = machine::target().join("postgres");
        let standby = replica.postgres.server().standby(&root).expect("a standby");
        replica.postgres.run("INSERT INTO orders VALUES (700, 'replicated', 1)");
        // A fast stop waits until the standby has everything.
        replica.postgres.server().stop(Stop::Fast).expect("it stops");
        standby.promote().expect("it becomes a primary");
        run_on(&standby, &replica, "INSERT INTO orders VALUES (701, 'new primary', 1)");
        let pipeline = at(&pipeline, &standby);
        let slot = format!("it has no replication slot {}", replica.slot());
        let delete = format!("DELETE FROM tidemill_positions WHERE slot = '{}'", replica.slot());
        let words =
            ["a standby was promoted (timeline 1 → 2", slot.as_str(), "before version 17", delete.as_str()];
        must_halt(&mut replica.run(&pipeline), &words);
        let checked = checked(&replica, &pipeline);
        assert!(!checked.status.success() && said(&checked).contains(words[0]), "{}", said(&checked));
        replica.warehouse.execute(&delete.replace("FROM ", "FROM shop."));
        replica.warehouse.execute("TRUNCATE TABLE shop.orders");
        let mut tidemill = replica.run(&pipeline);
        replica.warehouse.until_rows(60, "orders", 102);
        tidemill.until_logged(60, "following the slot");
        run_on(&standby, &replica, "INSERT INTO orders VALUES (702, 'followed', 1)");
        replica.warehouse.until_rows(60, "orders", 103);
        tidemill.drain(30);
    });
}

#[test]
fn a_failover_that_took_the_slot_along_is_gone_on_with() {
    within(180, || {
        let (mut replica, pipeline) = own("schema_switchover");
        let root = machine::target().join("postgres");
        replica.postgres.run("INSERT INTO orders VALUES (700, 'not read yet', 1)");
        replica.postgres.server().stop(Stop::Fast).expect("it stops");
        let standby = replica.postgres.server().copy(&root).expect("a copy");
        standby.promote().expect("it becomes a primary");
        run_on(&standby, &replica, "INSERT INTO orders VALUES (701, 'new primary', 1)");
        let pipeline = at(&pipeline, &standby);
        let mut tidemill = replica.run(&pipeline);
        replica.warehouse.until_rows(60, "orders", 102);
        tidemill.until_logged(10, "a standby was promoted (timeline 1 → 2");
        tidemill.drain(30);
        // It is the timeline that is followed now.
        run_on(&standby, &replica, "INSERT INTO orders VALUES (702, 'again', 1)");
        let mut tidemill = replica.run(&pipeline);
        replica.warehouse.until_rows(60, "orders", 103);
        assert!(!tidemill.log().contains("was promoted"), "{}", tidemill.log());
        tidemill.drain(30);
    });
}

#[test]
fn a_failover_that_lost_changes_is_noticed_though_the_new_log_is_longer() {
    within(180, || {
        let (mut replica, pipeline) = own("schema_lost");
        let root = machine::target().join("postgres");
        replica.postgres.server().stop(Stop::Fast).expect("it stops");
        let standby = replica.postgres.server().copy(&root).expect("a copy");
        replica.postgres.server().start_again().expect("it starts");
        replica.postgres.run("INSERT INTO orders VALUES (700, 'never replicated', 1)");
        let mut tidemill = replica.run(&pipeline);
        replica.until_equal(60, &["orders"]);
        tidemill.drain(30);
        let end = replica.postgres.cell("SELECT pg_current_wal_lsn()").expect("a place");
        replica.postgres.server().stop(Stop::Fast).expect("it stops");
        standby.promote().expect("it becomes a primary");
        run_on(
            &standby,
            &replica,
            "INSERT INTO orders SELECT n, repeat('x', 1000), n FROM generate_series(1000, 3000) n",
        );
        let longer = run_on(&standby, &replica, &format!("SELECT pg_current_wal_lsn() > '{end}'::pg_lsn"));
        assert_eq!(longer.trim(), "t", "its log has gone past the position");
        let words =
            ["whatever was committed in between was lost in the failover", "(timeline 1 → 2)", "DELETE FROM"];
        must_halt(&mut replica.run(&at(&pipeline, &standby)), &words);
        assert_eq!(replica.warehouse.number("SELECT COUNT(*) FROM shop.orders"), 101, "nothing was loaded");
    });
}

/// The copy knows the new columns, and the stream, which begins before it, tells of older rows again: in one chunk with newer
/// ones, and in chunks that follow each other.
#[test]
fn rows_of_before_a_new_column_and_of_after_it_share_batches() {
    within(120, || {
        const ROWS: u64 = 20_000;
        let replica = Replica::new("replayed");
        replica.postgres.run(&format!(
            "CREATE TABLE orders (id bigint PRIMARY KEY, note text);
             INSERT INTO orders SELECT n, 'first' FROM generate_series(1, {ROWS}) n"
        ));
        let pipeline = replica.pipeline();
        let refused = replica.warehouse.fault_on("orders", FaultKind::TooManyVersions);
        let mut copying = replica.run(&pipeline);
        replica.warehouse.until_fired(refused, 1);
        copying.kill();
        replica.warehouse.clear_faults();
        for column in ["one", "two"] {
            replica.postgres.run("UPDATE orders SET note = note || '+' WHERE id % 10 = 0");
            replica.postgres.run(&format!(
                "ALTER TABLE orders ADD COLUMN {column} bigint; UPDATE orders SET {column} = id WHERE id % 7 = 0"
            ));
        }
        let mut following = replica.run(&pipeline);
        following.until_logged(60, "following the slot");
        replica.postgres.run(&format!("INSERT INTO orders VALUES ({ROWS} + 1, 'after', 1, 1)"));
        replica.warehouse.until_rows(60, "orders", ROWS + 1);
        following.drain(30);
        replica.until_equal(1, &["orders"]);
    });
}

/// The stream tells of a commit when it is in the log on disk; other sessions see it later, and on a busy machine so much later
/// that a column that was just added looked like one that was dropped, and a row that had moved to another key like none.
#[test]
fn what_the_stream_tells_of_before_it_is_visible_is_waited_for() {
    within(180, || {
        const WAITING: &str = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        let replica = Replica::own("invisible", &Settings::default());
        replica.postgres.run(
            "CREATE SCHEMA aside; CREATE TABLE aside.probe (n int);
             CREATE TABLE orders (id bigint PRIMARY KEY, note text);
             ALTER TABLE orders ALTER note SET STORAGE EXTERNAL;
             INSERT INTO orders SELECT n, repeat('x', 5000) FROM generate_series(1, 20) n;
             CREATE TABLE items (id bigint PRIMARY KEY); INSERT INTO items SELECT generate_series(1, 20)",
        );
        let file = replica.write(&replica.pipeline());
        let mut tidemill = Tidemill::run_with(&[&file], &["--log-level", "debug"]);
        replica.until_equal(60, &["orders", "items"]);
        replica.postgres.until_streaming(60, &replica.slot());
        // A commit waits for a standby that never comes, after it is on disk and before it is visible.
        replica.postgres.run("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
        replica.postgres.run("SELECT pg_reload_conf()");
        let write = |sql: &'static str| {
            let client = replica.postgres.client();
            std::thread::spawn(move || client.run(sql).expect("it is committed"))
        };
        let waiting = || replica.postgres.number(WAITING);
        // The server heeds it from some moment on.
        let mut writers = Vec::new();
        let heeded = wait_until(Duration::from_secs(30), || {
            writers.push(write("INSERT INTO aside.probe VALUES (1)"));
            let last = writers.last()?;
            wait_until(Duration::from_secs(5), || (last.is_finished() || waiting() > 0).then_some(()))
                .ok()?;
            (waiting() > 0).then_some(())
        });
        heeded.expect("commits wait");
        let before = waiting();
        writers.push(write("UPDATE orders SET id = id + 1000 WHERE id <= 10"));
        writers.push(write("ALTER TABLE items ADD COLUMN extra bigint; UPDATE items SET extra = id"));
        wait_until(Duration::from_secs(30), || (waiting() == before + 2).then_some(())).expect("both wait");
        tidemill.until_logged(30, "is in the log, and not visible yet");
        replica.postgres.run("ALTER SYSTEM RESET synchronous_standby_names");
        replica.postgres.run("SELECT pg_reload_conf()");
        writers.into_iter().for_each(|writer| drop(writer.join().expect("no panic")));
        replica.postgres.run("INSERT INTO orders VALUES (5000, 'last'); INSERT INTO items VALUES (5000, 1)");
        replica.until_equal(60, &["orders", "items"]);
        tidemill.drain(30);
    });
}
