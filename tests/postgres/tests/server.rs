//! A real server: started, restarted, killed, and gone in the end.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};
use tidemill_test_postgres::{Auth, Server, Settings, Stop, Tls, certificates, wait_until};

fn root() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("postgres")
}

fn start(settings: &Settings) -> Server {
    Server::start(&root(), settings).unwrap_or_else(|fault| panic!("{fault}"))
}

fn one(server: &Server, sql: &str) -> String {
    let rows = server.query(sql).unwrap_or_else(|fault| panic!("{fault}"));
    rows.into_iter().flatten().flatten().collect()
}

/// The processes of a server, by the folder of their data.
fn processes(data: &Path) -> usize {
    let argument = data.as_os_str().as_encoded_bytes();
    let lines = fs::read_dir("/proc").expect("Linux").flatten().filter_map(|entry| {
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        line.windows(argument.len()).any(|part| part == argument).then_some(())
    });
    lines.count()
}

#[test]
fn committed_rows_survive_each_way_to_end_a_server() {
    let mut server = start(&Settings::default());
    let address = server.address();
    server.psql("CREATE TABLE t (id int PRIMARY KEY)").expect("a table");
    for (life, end) in [None, Some(Stop::Fast), Some(Stop::Immediate)].into_iter().enumerate() {
        server.psql(&format!("INSERT INTO t VALUES ({life})")).expect("a row");
        match end {
            Some(how) => server.restart(how).expect("it restarts"),
            None => {
                server.kill().expect("it can be killed");
                assert!(server.psql("SELECT 1").is_err(), "a killed server answers nobody");
                server.start_again().expect("it starts again");
            }
        }
    }
    assert_eq!(server.address(), address);
    assert_eq!(one(&server, "SELECT string_agg(id::text, ',' ORDER BY id) FROM t"), "0,1,2");
    let recoveries = server.log().matches("database system was not properly shut down").count();
    assert_eq!(recoveries, 2, "a kill and an immediate stop are recovered from, a fast stop is not");
}

#[test]
fn nothing_is_left_of_a_dropped_server_killed_or_not() {
    for killed in [true, false] {
        let mut server = start(&Settings::default());
        let (home, data) = (server.socket_dir().to_path_buf(), server.data_dir());
        assert!(processes(&data) > 0);
        let lock = fs::read_to_string(data.join("postmaster.pid")).expect("a lock file");
        let segment = lock
            .lines()
            .nth(6)
            .and_then(|line| line.split_whitespace().nth(1))
            .expect("a segment")
            .to_owned();
        if killed {
            server.kill().expect("it can be killed");
        }
        drop(server);
        // What watches over it ends right behind it.
        let gone = wait_until(Duration::from_secs(20), || (processes(&data) == 0).then_some(()));
        gone.expect("all of its processes have ended");
        assert!(!home.exists());
        let segments = fs::read_to_string("/proc/sysvipc/shm").expect("Linux");
        let left = segments.lines().any(|line| line.split_whitespace().nth(1) == Some(&segment));
        assert!(!left, "shared memory {segment}, killed: {killed}");
    }
}

/// Set in the child that is to die.
const DIES: &str = "TIDEMILL_TEST_POSTGRES_DIES";

#[test]
fn a_server_ends_with_the_process_that_started_it() {
    if std::env::var_os(DIES).is_some() {
        let server = start(&Settings::default());
        println!("\ndata={}", server.data_dir().display());
        std::process::abort();
    }
    let child = Command::new(std::env::current_exe().expect("this binary"))
        .args(["--exact", "a_server_ends_with_the_process_that_started_it", "--nocapture"])
        .env(DIES, "1")
        .stderr(Stdio::null())
        .output()
        .expect("it runs");
    let output = String::from_utf8_lossy(&child.stdout);
    let data = output.lines().find_map(|line| line.strip_prefix("data=")).expect("it had a server");
    let gone = wait_until(Duration::from_secs(20), || (processes(Path::new(data)) == 0).then_some(()));
    gone.unwrap_or_else(|late| panic!("the server of a dead process is still there: {late}"));
    // The next server clears away what the dead left.
    drop(start(&Settings::default()));
    assert!(!Path::new(data).exists());
}

#[test]
fn a_folder_that_cannot_hold_a_server_is_no_obstacle() {
    let closed = std::env::temp_dir().join(format!("tidemill-closed-{}", std::process::id()));
    let deep = closed.join("x".repeat(100));
    fs::create_dir_all(&deep).expect("a folder");
    // Root's own folders are often like that: nobody but root may enter.
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).expect("it is ours");
    for root in [&closed, &deep] {
        let server = Server::start(root, &Settings::default()).unwrap_or_else(|fault| panic!("{fault}"));
        assert_eq!(one(&server, "SELECT 1"), "1");
        assert!(!server.socket_dir().starts_with(&deep), "its path is too long for a socket");
    }
    fs::remove_dir_all(&closed).expect("it is ours");
}

#[test]
fn settings_reach_the_server() {
    let settings =
        Settings { max_slot_wal_keep_size: Some("64MB".to_owned()), fsync: true, ..Settings::default() };
    let server = start(&settings.with("wal_sender_timeout", "2s"));
    let expected = [
        ("wal_level", "logical"),
        ("fsync", "on"),
        ("max_slot_wal_keep_size", "64MB"),
        ("wal_sender_timeout", "2s"),
    ];
    for (name, value) in expected {
        assert_eq!(one(&server, &format!("SELECT current_setting('{name}')")), value, "{name}");
    }
    let plain =
        start(&Settings { wal_level: "minimal".to_owned(), own_identity: true, ..Settings::default() });
    assert_eq!(one(&plain, "SELECT current_setting('wal_level')"), "minimal");
    let identity = "SELECT system_identifier FROM pg_control_system()";
    assert_ne!(one(&server, identity), one(&plain, identity), "it was asked for one of its own");
}

#[test]
fn passwords_are_asked_for_over_tcp() {
    let server = start(&Settings { auth: Auth::Scram, ..Settings::default() });
    server.psql("CREATE ROLE reader LOGIN PASSWORD 'right'").expect("a role");
    let reader = server.client().user("reader");
    assert_eq!(reader.clone().over_tcp("right").run("SELECT current_user").expect("let in"), "reader\n");
    let refused = reader.over_tcp("wrong").run("SELECT 1").expect_err("refused").to_string();
    assert!(refused.contains("password authentication failed for user \"reader\""), "{refused}");
    assert_eq!(server.psql_as("reader", "SELECT current_user").expect("let in by the socket"), "reader\n");
}

#[test]
fn tls_is_there_when_asked_for() {
    let server = start(&Settings { tls: Tls::Required, ..Settings::default() });
    let connect = |more: &str| {
        let target = format!("host=127.0.0.1 port={} user=postgres dbname=postgres {more}", server.port());
        let mut psql = Command::new(server.programs().path("psql"));
        psql.args(["-XAtw", "-c", "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &target]);
        let output = psql.env_clear().output().expect("psql runs");
        (
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let trusting =
        |authority: PathBuf| connect(&format!("sslmode=verify-full sslrootcert={}", authority.display()));
    assert_eq!(trusting(certificates::authority()).0, "t\n");
    assert!(trusting(certificates::stranger()).1.contains("certificate verify failed"));
    assert!(connect("sslmode=disable").1.contains("no encryption"));
}

#[test]
fn errors_say_what_the_server_says() {
    let server = start(&Settings::default());
    let fault =
        server.client().database("nowhere").run("SELECT 1").expect_err("no such database").to_string();
    assert!(fault.starts_with("run SQL in database nowhere as postgres: "), "{fault}");
    assert!(fault.contains("database \"nowhere\" does not exist"), "{fault}");
    let fault =
        server.psql("SELECT 1;\nSELEKT 2;\nCREATE TABLE late (id int)").expect_err("a typo").to_string();
    assert!(fault.contains("syntax error") && fault.contains("line 2"), "{fault}");
    assert_eq!(one(&server, "SELECT to_regclass('late') IS NULL"), "t", "the rest is not run");

    let settings = Settings::default().with("shared_buffers", "a lot");
    let fault = Server::start(&root(), &settings).expect_err("it cannot start").to_string();
    assert!(fault.contains("it exited") && fault.contains("shared_buffers"), "{fault}");
}

#[test]
fn long_scripts_and_long_answers_pass() {
    let server = start(&Settings::default());
    let script: String = (0..20_000).map(|n| format!("SELECT {n}, repeat('x', 100);\n")).collect();
    assert_eq!(server.psql(&script).expect("all are run").lines().count(), 20_000);
}
