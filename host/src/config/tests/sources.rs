//! Files with the other two sources.

use std::path::Path;
use std::time::Duration;

use super::{FILE, complaints, flags, read};
use crate::config::load_texts;
use crate::config::model::{
    DeadLetters, Http, MaxRejects, Pipeline, Postgres, Snapshot, Source, TlsMode, Truncate,
};

const POSTGRES: &str = r#"[pipeline]
name = "Shop-EU"
[source.postgres]
host = "db1"
database = "shop"
user = "tidemill"
tables = "public.*"
[sink.starrocks]
fe = ["http://127.0.0.1:8030"]
database = "shop"
user = "root"
"#;

const HTTP: &str = r#"[pipeline]
name = "events"
[source.http]
[sink.starrocks]
fe = ["http://127.0.0.1:8030"]
database = "shop"
table = "events"
user = "root"
"#;

#[track_caller]
fn pipeline(text: &str) -> Pipeline {
    let plan = read(text).unwrap_or_else(|problems| panic!("{problems}"));
    Pipeline::clone(&plan.pipelines[0])
}

#[track_caller]
fn postgres(text: &str) -> Postgres {
    match pipeline(text).source {
        Source::Postgres(postgres) => postgres,
        other @ (Source::Kafka(_) | Source::Http(_)) => panic!("{other:?}"),
    }
}

#[track_caller]
fn http(text: &str) -> Http {
    match pipeline(text).source {
        Source::Http(http) => http,
        other @ (Source::Kafka(_) | Source::Postgres(_)) => panic!("{other:?}"),
    }
}

/// The text with lines added behind the one that begins with `after`.
fn with(text: &str, after: &str, lines: &str) -> String {
    let place = text.find(after).unwrap_or_else(|| panic!("no {after} in {text}"));
    let end = text[place..].find('\n').map_or(text.len(), |length| place + length);
    format!("{}\n{lines}{}", &text[..end], &text[end..])
}

#[test]
fn a_postgres_source_has_the_documented_defaults() {
    let postgres = postgres(POSTGRES);
    assert_eq!((postgres.host.as_str(), postgres.port), ("db1", 5432));
    assert!(postgres.password.is_none() && postgres.exclude.is_empty());
    assert_eq!(postgres.tables, ["public.*"]);
    assert_eq!(
        (postgres.slot.as_str(), postgres.publication.as_str()),
        ("tidemill_shop_eu", "tidemill_shop_eu")
    );
    assert_eq!((postgres.snapshot, postgres.snapshot_workers), (Snapshot::Initial, 4));
    assert_eq!((postgres.truncate, postgres.max_slot_wal_bytes), (Truncate::Halt, 10 << 30));
    assert_eq!(postgres.heartbeat, Duration::from_secs(10));
    assert_eq!(postgres.tls.mode, TlsMode::Prefer);
    let pipeline = pipeline(POSTGRES);
    assert_eq!((pipeline.sink.table.as_deref(), pipeline.sink.create_tables), (Some("{table}"), false));
}

#[test]
fn a_full_postgres_source_is_read_as_written() {
    let folder = tempfile::tempdir().expect("a folder");
    for file in ["ca.pem", "client.pem", "key.pem"] {
        std::fs::write(folder.path().join(file), "").expect("written");
    }
    let lines = "port = 6432\npassword = \"hunter2\"\nexclude = [\"public.tmp_*\"]\nslot = \"s_1\"\n\
                 publication = \"Pub\"\nsnapshot = \"never\"\nsnapshot_workers = 1\ntruncate = \"apply\"\n\
                 max_slot_wal = false\nheartbeat = \"1m\"\n\
                 tls = { ca = \"ca.pem\", certificate = \"client.pem\", key = \"key.pem\" }";
    let text = with(POSTGRES, "host", lines);
    let text = with(&text, "[sink.starrocks]", "table = \"{schema}_{table}\"\ncreate_tables = true");
    let plan = load_texts(&[(&folder.path().join("a.toml"), &text)], &flags());
    let plan = plan.unwrap_or_else(|problems| panic!("{problems}"));
    let pipeline = &plan.pipelines[0];
    assert!(!format!("{pipeline:?}").contains("hunter2"));
    let Source::Postgres(postgres) = &pipeline.source else { panic!("{:?}", pipeline.source) };
    assert_eq!((postgres.slot.as_str(), postgres.publication.as_str()), ("s_1", "Pub"));
    assert_eq!((postgres.max_slot_wal_bytes, postgres.heartbeat), (u64::MAX, Duration::from_secs(60)));
    // An authority is there to be asked.
    assert_eq!(postgres.tls.mode, TlsMode::VerifyFull);
    assert_eq!(postgres.tls.files.key.as_deref(), Some(folder.path().join("key.pem").as_path()));
    assert_eq!(
        (pipeline.sink.table.as_deref(), pipeline.sink.create_tables),
        (Some("{schema}_{table}"), true)
    );
}

#[test]
fn an_http_source_has_the_documented_defaults() {
    let http = http(HTTP);
    assert_eq!(http.listen, "127.0.0.1:8080".parse().expect("an address"));
    assert!(http.tls.is_none() && http.tokens.is_empty() && !http.insecure);
    assert_eq!((http.max_body_bytes, http.max_records), (16 << 20, 100_000));
    assert_eq!((http.read_timeout, http.request_timeout), (Duration::from_secs(10), Duration::from_secs(60)));
    assert_eq!((http.answer_timeout, http.max_connections), (Duration::from_secs(300), 10_000));
    assert_eq!((http.idempotency_window, http.idempotency_keys), (Duration::from_secs(600), 100_000));
}

#[test]
fn a_listener_for_other_machines_needs_authentication_and_tls_or_a_word() {
    let folder = tempfile::tempdir().expect("a folder");
    for file in ["server.pem", "key.pem", "ca.pem"] {
        std::fs::write(folder.path().join(file), "").expect("written");
    }
    let listen = |lines: &str| {
        let text = with(HTTP, "[source.http]", &format!("listen = \"0.0.0.0:8080\"\n{lines}"));
        load_texts(&[(&folder.path().join("a.toml"), &text)], &flags())
    };
    let tls = "tls = { certificate = \"server.pem\", key = \"key.pem\" }";
    for refused in ["", "tokens = \"secret\"", tls] {
        let problems = listen(refused).expect_err(refused).to_string();
        assert!(
            problems.contains("a.toml:4:10: `listen` is 0.0.0.0:8080, which other machines"),
            "{problems}"
        );
        assert!(problems.contains("`insecure = true` allows it"), "{problems}");
    }
    let client_ca = "tls = { certificate = \"server.pem\", key = \"key.pem\", client_ca = \"ca.pem\" }";
    for fine in [&format!("tokens = \"secret\"\n{tls}"), "insecure = true", client_ca] {
        listen(fine).unwrap_or_else(|problems| panic!("{problems}"));
    }
}

#[test]
fn tokens_are_in_no_message_and_in_no_log() {
    let plan = read(&with(HTTP, "[source.http]", "tokens = [\"hunter2\", { env = \"CARGO_PKG_NAME\" }]"));
    let plan = plan.unwrap_or_else(|problems| panic!("{problems}"));
    assert!(!format!("{plan:?}").contains("hunter2"));
    for wrong in ["tokens = [\"hunter2 \"]", "tokens = [\"hunter2\", 7]", "tokens = [[\"hunter2\"]]"] {
        let problems = read(&with(HTTP, "[source.http]", wrong)).expect_err(wrong).to_string();
        assert!(!problems.contains("hunter2"), "{problems}");
    }
}

#[test]
fn names_of_other_tools_are_known_where_they_stand() {
    for (name, ours) in [
        ("\"database.hostname\" = \"db1\"", "`host`"),
        ("slot.name = \"s\"", "`slot`"),
        ("\"schema.list\" = \"public\"", "`tables`"),
        ("decoding.plugin.name = \"pgoutput\"", "pgoutput is used"),
    ] {
        let said = complaints(&with(POSTGRES, "host", name)).join("\n");
        assert!(said.contains(ours), "{name}: {said}");
    }
    for (name, ours) in [("address", "`listen`"), ("path", "every path"), ("auth", "`tokens`")] {
        let said = complaints(&with(HTTP, "[source.http]", &format!("{name} = \"x\""))).join("\n");
        assert!(said.contains(&format!("unknown key `{name}`")) && said.contains(ours), "{said}");
    }
}

#[test]
fn the_limit_of_rejects_has_a_default_and_can_be_turned_off() {
    let limit = |line: &str| {
        let read = pipeline(&format!("{HTTP}[dead_letters]\ndirectory = \"dead\"\n{line}\n"));
        let Some(DeadLetters::Directory(directory)) = read.dead_letters else { panic!("a directory") };
        assert_eq!(directory, Path::new(FILE).with_file_name("dead"));
        read.max_rejects
    };
    assert_eq!(limit(""), Some(MaxRejects { window: 1000, limit: 50 }));
    assert_eq!(limit("max_rejects = { limit = 0 }"), Some(MaxRejects { window: 1000, limit: 0 }));
    assert_eq!(limit("max_rejects = false"), None);
    assert_eq!(pipeline(HTTP).max_rejects, None);
    let line = "max_rejects = { window = 50 }";
    let said = complaints(&format!("{HTTP}[dead_letters]\ndirectory = \"dead\"\n{line}\n"));
    assert_eq!(
        said,
        [
            "11:15: `max_rejects` has a limit of 50 in a window of 50, which can never be passed; expected a limit \
          that is less than the window"
        ]
    );
}
