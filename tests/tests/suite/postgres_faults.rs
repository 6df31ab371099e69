//! What can go wrong between a Postgres server and us: each gets a clear error with its mend, and nothing is lost.

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};
use tidemill_test_postgres::{Auth, Programs, Settings, Stop};
use tidemill_tests::{
    limit::within,
    pipeline::{Pipeline, Source},
    process::Tidemill,
    proxy::{Proxy, Traffic},
    replica::Replica,
    wait_until,
    workload::{self, TABLES, Workload},
};

const ORDERS: &str = "CREATE TABLE orders (id bigint PRIMARY KEY, note text);
                      INSERT INTO orders SELECT n, 'note ' || n FROM generate_series(1, 1000) n";

/// Starts it and expects it to halt with these words.
fn halts(replica: &Replica, pipeline: &Pipeline, words: &[&str]) {
    let mut tidemill = replica.run(pipeline);
    must_halt(&mut tidemill, words);
}

fn must_halt(tidemill: &mut Tidemill, words: &[&str]) {
    let ended = tidemill.until_ended(60);
    assert_eq!(ended.code, Some(1), "{}", ended.log);
    for word in words {
        assert!(ended.log.contains(word), "{word:?} is not in {}", ended.log);
    }
}

fn source(pipeline: &mut Pipeline) -> &mut tidemill_tests::pipeline::Postgres {
    match &mut pipeline.source {
        Source::Postgres(source) => source,
        Source::Kafka | Source::Http(_) => panic!("the pipeline is one of Postgres"),
    }
}

/// A replica with `orders`, a process that has copied it and followed a change of it, and its pipeline.
fn following(name: &str) -> (Replica, Pipeline, Tidemill) {
    let replica = Replica::new(name);
    replica.postgres.run(ORDERS);
    let pipeline = replica.pipeline();
    let tidemill = follow(&replica, &pipeline);
    (replica, pipeline, tidemill)
}

fn follow(replica: &Replica, pipeline: &Pipeline) -> Tidemill {
    let tidemill = replica.run(pipeline);
    replica.until_equal(60, &["orders"]);
    replica.postgres.run("INSERT INTO orders VALUES (1001, 'followed')");
    replica.until_equal(60, &["orders"]);
    tidemill
}

#[test]
fn wrong_logins_and_rights_halt_with_the_mend() {
    within(120, || {
        let settings = Settings { auth: Auth::Scram, wal_level: "replica".to_owned(), ..Settings::default() };
        let mut replica = Replica::own("logins", &settings);
        replica.postgres.run(ORDERS);
        replica.postgres.run("CREATE ROLE follower LOGIN PASSWORD 'right'");
        let mut pipeline = replica.pipeline();
        source(&mut pipeline).user = "follower".to_owned();
        source(&mut pipeline).password = "wrong".to_owned();
        halts(&replica, &pipeline, &["password authentication failed", "check `user` and `password`"]);
        source(&mut pipeline).password = "right".to_owned();
        let words = [
            "wal_level is replica",
            "ALTER SYSTEM SET wal_level = 'logical'",
            "role follower may not replicate",
            "ALTER ROLE \"follower\" REPLICATION",
        ];
        halts(&replica, &pipeline, &words);
        source(&mut pipeline).database = "nowhere".to_owned();
        halts(&replica, &pipeline, &["nowhere", "check `database` in [source.postgres]"]);

        let database = replica.name().to_owned();
        source(&mut pipeline).database.clone_from(&database);
        replica.postgres.run(&format!(
            "ALTER SYSTEM SET wal_level = 'logical'; ALTER ROLE follower REPLICATION;
             ALTER TABLE orders OWNER TO follower; GRANT CREATE ON DATABASE {database} TO follower;"
        ));
        replica.postgres.server().restart(Stop::Fast).expect("it restarts");
        let _tidemill = follow(&replica, &pipeline);
    });
}

#[test]
fn a_table_without_a_key_is_named_and_its_owner_left_in_peace() {
    within(60, || {
        let replica = Replica::new("keyless");
        replica.postgres.run(ORDERS);
        replica.postgres.run("CREATE TABLE keyless (a int); INSERT INTO keyless VALUES (1)");
        let words =
            ["public.keyless has no primary key", "ADD PRIMARY KEY", "exclude = [\"public.keyless\"]"];
        halts(&replica, &replica.pipeline(), &words);
        assert_eq!(replica.postgres.number("SELECT count(*) FROM pg_publication"), 0);
        replica.postgres.run("UPDATE keyless SET a = 2");
        let mut pipeline = replica.pipeline();
        source(&mut pipeline).exclude = vec!["public.keyless".to_owned()];
        let _tidemill = follow(&replica, &pipeline);
        replica.postgres.run("UPDATE keyless SET a = 3");
    });
}

/// Another reader of a slot, which confirms nothing.
fn intruder(replica: &Replica) -> Child {
    let program = Programs::find().expect("PostgreSQL is installed").path("pg_recvlogical");
    let slot = replica.slot();
    Command::new(program)
        .args([
            "--start",
            "--no-loop",
            "--file",
            "/dev/null",
            "--fsync-interval",
            "0",
            "--status-interval",
            "0",
        ])
        .args([
            "--host",
            "127.0.0.1",
            "--port",
            &replica.postgres.port().to_string(),
            "--username",
            "postgres",
        ])
        .args(["--dbname", replica.name(), "--slot", &slot])
        .args(["--option", "proto_version=1", "--option", &format!("publication_names={slot}")])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("pg_recvlogical can be run")
}

#[test]
fn a_slot_that_another_program_reads_is_waited_for() {
    within(120, || {
        let replica = Replica::new("intruded");
        replica.postgres.run(ORDERS);
        let proxy = Proxy::to_port(replica.postgres.port());
        let mut pipeline = replica.pipeline();
        source(&mut pipeline).port = proxy.port();
        let mut tidemill = follow(&replica, &pipeline);
        proxy.refuse();
        assert!(proxy.cut() > 0);
        let free =
            format!("SELECT NOT active FROM pg_replication_slots WHERE slot_name = '{}'", replica.slot());
        replica.postgres.until(30, &free);
        let mut other = intruder(&replica);
        replica.postgres.until_streaming(30, &replica.slot());
        proxy.accept();
        tidemill.until_logged(30, "another process reads the slot: waiting for it to end");
        replica.postgres.run("UPDATE orders SET note = 'meanwhile' WHERE id < 100");
        tidemill.until_answer(30, "/ready", 503);

        // A second start is told who it is.
        let mut second = pipeline.clone();
        second.name.push_str("_second");
        second.source_more = format!("slot = {:?}", replica.slot());
        halts(&replica, &second, &["is being read by another program, \"pg_recvlogical\""]);

        other.kill().expect("it can be ended");
        other.wait().expect("it can be waited for");
        replica.until_equal(60, &["orders"]);
        tidemill.until_ready(30);
        tidemill.drain(30);
    });
}

#[test]
fn a_publication_that_is_dropped_halts() {
    within(90, || {
        let (replica, _, mut tidemill) = following("unpublished");
        replica.postgres.run(&format!("DROP PUBLICATION {}", replica.slot()));
        replica.postgres.run("INSERT INTO orders VALUES (2000, 'unpublished')");
        must_halt(&mut tidemill, &["publication", &replica.slot(), "does not exist"]);
    });
}

#[test]
fn rows_that_come_while_the_server_restarts_all_arrive() {
    within(180, || {
        let mut replica = Replica::own("restarts", &Settings::default());
        let settings = workload::Settings { writers: 3, toast_bytes: 5_000, ..workload::Settings::default() };
        workload::prepare(&replica.postgres, &settings);
        let workload = Workload::start(&replica.postgres, &settings);
        let mut tidemill = replica.run(&replica.pipeline());
        replica.postgres.until_streaming(60, &replica.slot());
        for how in [Some(Stop::Fast), Some(Stop::Immediate), None] {
            workload.until_committed(30, 50);
            let server = replica.postgres.server();
            let outcome = match how {
                Some(how) => server.restart(how),
                None => server.kill().and_then(|()| server.start_again()),
            };
            outcome.unwrap_or_else(|fault| panic!("{how:?}: {fault}"));
            replica.postgres.until_streaming(60, &replica.slot());
        }
        workload.until_committed(30, 50);
        let _counts = workload.stop();
        replica.until_equal(90, &TABLES);
        let metrics = tidemill.metrics().expect("metrics");
        assert!(metrics.count("tidemill_postgres_reconnects_total", &[]) >= 3, "{metrics:?}");
        tidemill.drain(30);
    });
}

#[test]
fn a_line_that_is_cut_is_connected_again() {
    within(120, || {
        let replica = Replica::new("cut");
        replica.postgres.run(ORDERS);
        let proxy = Proxy::to_port(replica.postgres.port());
        let mut pipeline = replica.pipeline();
        source(&mut pipeline).port = proxy.port();
        let mut tidemill = follow(&replica, &pipeline);
        for round in 0..3 {
            replica.postgres.run(&format!(
                "INSERT INTO orders SELECT n, 'cut' FROM generate_series({0}, {0} + 5000) n",
                10_000 * (round + 1)
            ));
            let cut = wait_until(Duration::from_secs(30), || (proxy.cut() > 0).then_some(()));
            cut.unwrap_or_else(|late| panic!("it connects again: {late}"));
        }
        replica.until_equal(60, &["orders"]);
        tidemill.drain(30);
    });
}

#[test]
fn a_line_that_went_dead_without_a_word_is_noticed() {
    within(180, || {
        let replica = Replica::new("half_open");
        replica.postgres.run(ORDERS);
        let proxy = Proxy::to_port(replica.postgres.port());
        let mut pipeline = replica.pipeline();
        source(&mut pipeline).port = proxy.port();
        pipeline.source_more = "heartbeat = \"1s\"".to_owned();
        let mut tidemill = follow(&replica, &pipeline);
        // Connections that are open now stay dead; new ones are well.
        proxy.set(Traffic::Swallowed);
        proxy.set(Traffic::Flowing);
        replica.postgres.run("UPDATE orders SET note = 'into the void' WHERE id < 100");
        // The server gives its reader up after a minute without a word.
        replica.until_equal(150, &["orders"]);
        assert!(proxy.swallowed_bytes() > 0);
        tidemill.drain(30);
    });
}

#[test]
fn a_slot_that_fell_behind_halts_and_the_way_out_works() {
    within(150, || {
        let settings = Settings {
            max_slot_wal_keep_size: Some("16MB".to_owned()),
            ..Settings::default().with("max_wal_size", "64MB")
        };
        let replica = Replica::own("behind", &settings);
        replica.postgres.run(ORDERS);
        let mut pipeline = replica.pipeline();
        pipeline.source_more = "max_slot_wal = \"8MiB\"".to_owned();
        let mut tidemill = follow(&replica, &pipeline);
        tidemill.drain(30);
        replica
            .postgres
            .run("UPDATE orders SET note = 'lost' WHERE id < 10; DELETE FROM orders WHERE id = 500");
        let slot = replica.slot();
        let lost = format!("SELECT wal_status = 'lost' FROM pg_replication_slots WHERE slot_name = '{slot}'");
        for _ in 0..8 {
            replica.postgres.run(
                "CREATE TABLE fill AS SELECT repeat('x', 1000) FROM generate_series(1, 20000); DROP TABLE fill;
                 SELECT pg_switch_wal(); CHECKPOINT",
            );
        }
        replica.postgres.until(30, &lost);
        halts(
            &replica,
            &pipeline,
            &[&format!("slot {slot} is lost"), "max_slot_wal_keep_size", "pg_drop_replication_slot"],
        );
        // What it says, step by step.
        replica.postgres.run(&format!("SELECT pg_drop_replication_slot('{slot}')"));
        let delete = format!("DELETE FROM tidemill_positions WHERE slot = '{slot}'");
        halts(&replica, &pipeline, &["is gone, and changes since", &delete]);
        replica.warehouse.execute(&delete.replace("FROM ", "FROM shop."));
        replica.warehouse.execute("TRUNCATE TABLE shop.orders");
        let mut tidemill = replica.run(&pipeline);
        replica.until_equal(60, &["orders"]);
        tidemill.drain(30);
    });
}

#[test]
fn a_slot_that_somebody_moved_on_halts() {
    within(90, || {
        let (replica, pipeline, mut tidemill) = following("moved_on");
        tidemill.drain(30);
        replica.postgres.run("INSERT INTO orders VALUES (3000, 'stolen')");
        replica
            .postgres
            .run(&format!("SELECT pg_replication_slot_advance('{}', pg_current_wal_lsn())", replica.slot()));
        halts(
            &replica,
            &pipeline,
            &["those between are lost", "another program reads the slot", "DELETE FROM"],
        );
    });
}

#[test]
fn another_cluster_under_the_same_address_halts() {
    within(120, || {
        let first = Replica::own("first_cluster", &Settings { own_identity: true, ..Settings::default() });
        let other = Replica::own("other_cluster", &Settings::default());
        for replica in [&first, &other] {
            replica.postgres.run(ORDERS);
        }
        let mut pipeline = first.pipeline();
        pipeline.source_more = "slot = \"tidemill_mover\"\npublication = \"tidemill_mover\"".to_owned();
        let mut tidemill = follow(&first, &pipeline);
        tidemill.drain(30);
        source(&mut pipeline).port = other.postgres.port();
        source(&mut pipeline).database = other.name().to_owned();
        halts(&first, &pipeline, &["is not the one that was followed before", "mend `host` and `port`"]);
    });
}

#[test]
fn an_idle_database_lets_its_slot_move_on() {
    within(90, || {
        let replica = Replica::own("idle", &Settings::default());
        replica.postgres.run(ORDERS);
        replica.postgres.run("CREATE DATABASE busy");
        let mut pipeline = replica.pipeline();
        pipeline.source_more = "heartbeat = \"500ms\"".to_owned();
        let mut tidemill = follow(&replica, &pipeline);
        for _ in 0..2 {
            let busy = replica.postgres.client().database("busy");
            busy.run("CREATE TABLE fill AS SELECT repeat('x', 1000) FROM generate_series(1, 5000); DROP TABLE fill")
                .expect("another database is busy");
            let written = replica.postgres.cell("SELECT pg_current_wal_lsn()").expect("a place in the log");
            replica.postgres.until(
                30,
                &format!(
                    "SELECT confirmed_flush_lsn >= '{written}' FROM pg_replication_slots WHERE slot_name = '{}'",
                    replica.slot()
                ),
            );
        }
        tidemill.drain(30);
        // The position is behind no confirmation: the next start goes on.
        let _tidemill = replica.run(&pipeline);
        replica.postgres.run("INSERT INTO orders VALUES (4000, 'awake')");
        replica.until_equal(30, &["orders"]);
    });
}

#[test]
fn the_metrics_of_a_postgres_source_are_there() {
    within(150, || {
        // A server of its own, and no heartbeats: what others write there would be a lag, too.
        let replica = Replica::own("metrics", &Settings::default());
        replica.postgres.run(ORDERS);
        let mut pipeline = replica.pipeline();
        pipeline.source_more = "heartbeat = \"1h\"".to_owned();
        let mut tidemill = follow(&replica, &pipeline);
        let names = [
            "lag_bytes",
            "lag_seconds",
            "slot_held_bytes",
            "slot_safe_bytes",
            "slot_wal_status",
            "snapshot_rows",
            "snapshot_rows_expected",
            "snapshot_ranges",
            "snapshot_ranges_expected",
            "values_nulled_total",
            "rows_read_back_total",
            "reconnects_total",
            "positions_total",
        ];
        let metrics = tidemill.until(30, "the slot was looked at", |metrics| {
            metrics.count("tidemill_postgres_positions_total", &[]) > 0
        });
        let missing: Vec<_> =
            names.iter().filter(|name| !metrics.has(&format!("tidemill_postgres_{name}"))).collect();
        assert!(missing.is_empty(), "{missing:?} in {metrics:?}");
        assert_eq!(metrics.count("tidemill_postgres_snapshot_rows", &[]), 1_000);
        // A reader that stands still holds the log back, and that shows.
        tidemill.freeze();
        replica.postgres.run("UPDATE orders SET note = repeat('y', 2000)");
        tidemill.thaw();
        tidemill.until(60, "the lag goes", |metrics| metrics.sum("tidemill_postgres_lag_bytes", &[]) == 0.0);
        replica.until_equal(30, &["orders"]);
    });
}

#[test]
fn a_slot_that_holds_too_much_turns_ready_red() {
    within(180, || {
        let replica = Replica::own("held", &Settings::default());
        replica.postgres.run(ORDERS);
        let mut pipeline = replica.pipeline();
        pipeline.source_more = "max_slot_wal = \"1MiB\"\nheartbeat = \"1s\"".to_owned();
        let mut tidemill = follow(&replica, &pipeline);
        // An open transaction that has written keeps the slot from moving its beginning.
        let open = replica.postgres.client();
        let writer = std::thread::spawn(move || {
            open.run("BEGIN; INSERT INTO orders VALUES (5000, 'open'); SELECT pg_sleep(60); COMMIT")
        });
        replica.postgres.until(20, "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'PgSleep'");
        replica.postgres.run("CREATE TABLE fill AS SELECT repeat('x', 1000) FROM generate_series(1, 5000)");
        let said = tidemill.until_answer(40, "/ready", 503);
        assert!(said.contains("max_slot_wal"), "{said}");
        replica.postgres.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'; DROP TABLE fill",
        );
        assert!(writer.join().expect("the writer's thread").is_err(), "it was terminated");
        let mended = wait_until(Duration::from_secs(100), || {
            // Each writes the list of running transactions, by which a slot learns where it may begin.
            replica.postgres.run("CHECKPOINT");
            (tidemill.get("/ready")?.0 == 200).then_some(())
        });
        mended.unwrap_or_else(|late| panic!("{:?}: {late}", tidemill.get("/ready")));
    });
}

/// It halted: the server then names the index, and not the publication.
#[test]
fn a_publication_that_another_session_makes_at_the_same_moment_is_taken() {
    within(120, || {
        let replica = Replica::new("published_twice");
        replica.postgres.run(ORDERS);
        let session = replica.postgres.client();
        // Made, and committed only when somebody waits for it.
        let script = format!(
            "BEGIN; CREATE PUBLICATION {} FOR TABLE public.orders WITH (publish_via_partition_root = true); \
             DO $$ BEGIN WHILE NOT EXISTS (SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND \
             datname = current_database()) LOOP PERFORM pg_sleep(0.02); PERFORM pg_stat_clear_snapshot(); END LOOP; END $$; \
             COMMIT",
            replica.slot()
        );
        let other = std::thread::spawn(move || session.run(&script));
        replica.postgres.until(
            20,
            "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()",
        );
        let mut tidemill = follow(&replica, &replica.pipeline());
        other.join().expect("the other session's thread").expect("committed");
        tidemill.drain(30);
    });
}
