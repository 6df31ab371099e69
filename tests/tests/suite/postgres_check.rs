//! `tidemill check --online` on Postgres and HTTP sources: every defect with its SQL in one go, and nothing is changed.

use std::net::TcpListener;
use tidemill_test_postgres::{Settings, Stop};
use tidemill_tests::{
    limit::within,
    pipeline::{Http, Pipeline, Source},
    process::tidemill_output,
    replica::Replica,
};

struct Checked {
    code: Option<i32>,
    /// Both streams.
    said: String,
}

fn check(replica: &Replica, pipeline: &Pipeline) -> Checked {
    let file = replica.write(pipeline);
    let output = tidemill_output(&["check", "--online", file.to_str().expect("text")]);
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Checked { code: output.status.code(), said }
}

/// The SQL of the first mend of each defect.
fn mends(said: &str) -> Vec<String> {
    let first = said.lines().filter_map(|line| line.trim_start().strip_prefix("mend: "));
    let sql = first.filter_map(|mend| {
        let mend = mend.split("  -- then restart").next().unwrap_or(mend);
        mend.strip_suffix(';').map(|sql| sql.replace("<columns>", "a"))
    });
    sql.collect()
}

/// What is wrong, and the first words of what has to be said of it.
const DEFECTS: &[&str] = &[
    "wal_level is replica",
    "may not replicate",
    "public.no_key has no primary key",
    "public.silent has REPLICA IDENTITY NOTHING",
    "public.scratch is unlogged",
    "may not read public.",
    "does not own all its tables",
    "\"public.nowhere\" names no table",
    "table shop.orders is no Primary Key table",
    "there is no table shop.silent",
    "StarRocks' key column note is not in the replica identity of public.keyed (id)",
];

#[test]
fn a_badly_configured_server_is_told_everything_at_once_and_mended_by_what_is_printed() {
    within(180, || {
        let settings = Settings { wal_level: "replica".to_owned(), ..Settings::default() };
        let mut replica = Replica::own("defects", &settings);
        replica.postgres.run(
            "CREATE ROLE follower LOGIN;
             CREATE TABLE orders (id bigint PRIMARY KEY, note text);
             CREATE TABLE keyed (id bigint PRIMARY KEY, note varchar(20) NOT NULL);
             CREATE TABLE no_key (a bigint NOT NULL, note text);
             CREATE TABLE silent (id bigint PRIMARY KEY, note text);
             ALTER TABLE silent REPLICA IDENTITY NOTHING;
             CREATE UNLOGGED TABLE scratch (id bigint PRIMARY KEY, note text);",
        );
        let warehouse = |sql: &str| replica.warehouse.execute(sql);
        warehouse(
            "CREATE TABLE shop.orders (id BIGINT, note VARCHAR(100)) DUPLICATE KEY(id) DISTRIBUTED BY HASH(id)",
        );
        warehouse(
            "CREATE TABLE shop.keyed (note VARCHAR(20) NOT NULL, id BIGINT) PRIMARY KEY(note) DISTRIBUTED BY HASH(note)",
        );
        let mut pipeline = replica.pipeline();
        pipeline.sink_more.clear();
        if let Source::Postgres(source) = &mut pipeline.source {
            source.user = "follower".to_owned();
            source.tables.push("public.nowhere".to_owned());
        }

        let Checked { code, said } = check(&replica, &pipeline);
        assert_eq!(code, Some(1), "{said}");
        let missing: Vec<_> = DEFECTS.iter().filter(|words| !said.contains(**words)).collect();
        assert!(missing.is_empty(), "{missing:?} are not in\n{said}");
        // Nothing was changed.
        assert_eq!(replica.postgres.number("SELECT count(*) FROM pg_publication"), 0);
        assert_eq!(replica.postgres.number("SELECT count(*) FROM pg_replication_slots"), 0);
        assert!(replica.warehouse.attempt("SELECT * FROM shop.tidemill_positions").is_err());

        // What is no SQL.
        if let Source::Postgres(source) = &mut pipeline.source {
            source.tables.retain(|table| table != "public.nowhere");
        }
        warehouse("DROP TABLE shop.orders");
        warehouse("DROP TABLE shop.keyed");
        let (there, here): (Vec<_>, Vec<_>) =
            mends(&said).into_iter().partition(|sql| sql.starts_with("CREATE TABLE"));
        assert!(here.len() >= 7 && !there.is_empty(), "{said}");
        here.iter().for_each(|sql| drop(replica.postgres.run(sql)));
        there.iter().for_each(|sql| drop(replica.warehouse.execute(sql)));
        replica.postgres.server().restart(Stop::Fast).expect("it restarts");

        // The tables that were refused before have no place yet.
        let Checked { said, .. } = check(&replica, &pipeline);
        mends(&said).iter().filter(|sql| sql.starts_with("CREATE TABLE")).for_each(|sql| {
            replica.warehouse.execute(sql);
        });
        let Checked { code, said } = check(&replica, &pipeline);
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("pg_create_logical_replication_slot"), "what run will do is told: {said}");
        assert!(said.contains("tidemill_positions"), "{said}");

        // And it is true.
        replica.postgres.run("INSERT INTO orders VALUES (1, 'a'); INSERT INTO no_key VALUES (2, 'b')");
        let _tidemill = replica.run(&pipeline);
        replica.until_equal(60, &["orders", "no_key", "silent", "scratch", "keyed"]);
        let Checked { code, said } = check(&replica, &pipeline);
        assert_eq!(code, Some(0), "while it runs: {said}");
        assert!(!said.contains("will do"), "nothing is left to be set up: {said}");
    });
}

#[test]
fn a_wrong_password_and_an_absent_starrocks_are_told_together() {
    within(60, || {
        let settings = Settings { auth: tidemill_test_postgres::Auth::Scram, ..Settings::default() };
        let replica = Replica::own("password_check", &settings);
        replica.postgres.run("CREATE ROLE follower LOGIN REPLICATION PASSWORD 'right'");
        let mut pipeline = replica.pipeline();
        pipeline.fe = vec!["http://127.0.0.1:9".to_owned()];
        if let Source::Postgres(source) = &mut pipeline.source {
            source.user = "follower".to_owned();
            source.password = "wrong".to_owned();
        }
        let Checked { code, said } = check(&replica, &pipeline);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("check `user` and `password` in [source.postgres]"), "{said}");
        assert!(said.contains("127.0.0.1:9"), "{said}");
        assert!(!said.contains("wrong"), "no secret is printed: {said}");
    });
}

#[test]
fn a_slot_that_was_lost_is_found_before_the_run() {
    within(60, || {
        let replica = Replica::new("check_gone");
        replica.postgres.run("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
        let mut tidemill = replica.run(&replica.pipeline());
        replica.until_equal(30, &["t"]);
        replica.postgres.run("INSERT INTO t VALUES (2)");
        replica.until_equal(30, &["t"]);
        tidemill.drain(30);
        replica.postgres.run(&format!("SELECT pg_drop_replication_slot('{}')", replica.slot()));
        let Checked { code, said } = check(&replica, &replica.pipeline());
        assert_eq!(code, Some(1), "{said}");
        assert!(
            said.contains("is gone, and changes since") && said.contains("DELETE FROM tidemill_positions"),
            "{said}"
        );
    });
}

#[test]
fn the_address_of_an_http_source_is_tried() {
    within(60, || {
        let replica = Replica::new("check_http");
        replica.warehouse.duplicate_table("events");
        let with = |listen: String| Pipeline {
            name: "check_http".to_owned(),
            source: Source::Http(Http { listen, tokens: Vec::new() }),
            source_more: "insecure = true".to_owned(),
            fe: vec![replica.warehouse.fe()],
            query: replica.warehouse.query(),
            table: "events".to_owned(),
            ..Pipeline::default()
        };
        // Of a network for documentation: no machine has it.
        let Checked { code, said } = check(&replica, &with("192.0.2.1:8080".to_owned()));
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("cannot listen on 192.0.2.1:8080"), "{said}");
        let Checked { code, said } = check(&replica, &with("127.0.0.1:0".to_owned()));
        assert_eq!(code, Some(0), "{said}");
        // One that is taken may be so by the pipeline that is checked.
        let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = taken.local_addr().expect("an address").to_string();
        let Checked { code, said } = check(&replica, &with(address));
        assert_eq!(code, Some(0), "{said}");
    });
}
