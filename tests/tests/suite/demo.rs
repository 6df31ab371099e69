//! `tidemill demo` and `tidemill sandbox`: what somebody sees who has neither Kafka nor StarRocks.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};
use tidemill_tests::{limit::within, machine, process::tidemill_output};

#[test]
fn the_demo_shows_what_each_batch_size_costs() {
    within(180, || {
        let plugin = machine::plugin("orders");
        let output =
            tidemill_output(&["demo", "--events", "30000", "--plugin", plugin.to_str().expect("text")]);
        let (table, said) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(0), "{table}{said}");
        // One order in six is a test order, which the plugin leaves out.
        let line =
            |start: &str| table.lines().find(|line| line.starts_with(start)).unwrap_or_default().to_owned();
        let cells = |start: &str| line(start).split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(cells("1,000 rows")[2..5], ["30000", "25000", "25"], "{table}");
        assert!(["3", "4"].contains(&cells("10,000 rows")[4].as_str()), "{table}");
        assert!(line("1 row").contains("refused: too many versions"), "{table}");
    });
}

#[test]
fn the_demo_shows_the_same_for_orders_by_http() {
    within(180, || {
        let plugin = machine::plugin("orders");
        let plugin = plugin.to_str().expect("text");
        let output = tidemill_output(&["demo", "--source", "http", "--events", "30000", "--plugin", plugin]);
        let (table, said) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(0), "{table}{said}");
        assert!(!said.contains("panicked"), "{said}");
        let line = |start: &str| table.lines().find(|line| line.starts_with(start)).unwrap_or_default();
        let cells = |start: &str| line(start).split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        // Thirty posts of a thousand orders, one in six of which is left out.
        let thousands = cells("1,000 rows");
        assert_eq!(thousands[2..4], ["30000", "25000"], "{table}");
        let loads: u64 = thousands[4].parse().expect("a number");
        assert!((25..=32).contains(&loads), "{table}");
        // Those that come together share a load, which is the point.
        let loads: u64 = cells("default")[3].parse().expect("a number");
        assert!(loads <= 3, "{table}");
        assert!(line("1 row").contains("refused: too many versions"), "{table}");
    });
}

#[test]
fn the_demo_has_no_brokers_without_kafka() {
    let output = tidemill_output(&["demo", "--source", "http", "--brokers", "127.0.0.1:9092"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--source kafka"));
}

/// Ended with the test, however that ends.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn the_sandbox_command_prints_where_it_listens_and_answers_a_mysql_client() {
    within(60, || {
        let mut sandbox = Ended(
            Command::new(machine::tidemill())
                .args(["sandbox", "--fe-port", "0", "--be-port", "0", "--query-port", "0"])
                .args(["--execute", "CREATE DATABASE shop"])
                .args(["--execute", "CREATE TABLE shop.t (id BIGINT NOT NULL) DUPLICATE KEY(id)"])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::inherit())
                .spawn()
                .expect("it starts"),
        );
        let banner = BufReader::new(sandbox.0.stdout.take().expect("piped"));
        // It prints a `mysql` command to paste: that is what is run here, with a query behind it.
        let command = banner
            .lines()
            .map_while(Result::ok)
            .find_map(|line| line.find("mysql ").map(|at| line[at..].trim().to_owned()))
            .expect("the banner has a mysql command");
        let output = Command::new("sh")
            .args([
                "-c",
                &format!("{command} --batch --skip-column-names --execute 'SELECT COUNT(*) FROM shop.t'"),
            ])
            .output()
            .expect("a shell");
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "0");
    });
}

#[test]
fn the_sandbox_command_leaves_nothing_behind_when_it_is_terminated() {
    within(60, || {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let left = || std::fs::read_dir(folder.path()).expect("readable").count();
        let mut sandbox = Ended(
            Command::new(machine::tidemill())
                .args(["sandbox", "--fe-port", "0", "--be-port", "0", "--query-port", "0"])
                .env("TMPDIR", folder.path())
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::inherit())
                .spawn()
                .expect("it starts"),
        );
        let mut banner = BufReader::new(sandbox.0.stdout.take().expect("piped"));
        banner.read_line(&mut String::new()).expect("its banner");
        assert_eq!(left(), 1, "the folder of its rows");
        let id = sandbox.0.id().to_string();
        assert!(
            Command::new("sh")
                .args(["-c", "kill -TERM \"$1\"", "sh", &id])
                .status()
                .expect("a shell")
                .success()
        );
        assert_eq!(sandbox.0.wait().expect("it ends").code(), Some(0));
        assert_eq!(left(), 0, "its folder is gone");
    });
}
