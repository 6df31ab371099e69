//! Whole files in, plans or messages out.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::model::{DeadLetters, Delivery, Isolation, Plan, Source, Start, TableModel, Wasi};
use super::{Overrides, Problems, load_texts};

/// The smallest file that is valid.
const SMALLEST: &str = r#"[pipeline]
name = "orders"

[source.kafka]
brokers = ["localhost:9092"]
topics = ["orders"]

[sink.starrocks]
fe = ["http://127.0.0.1:8030"]
database = "shop"
table = "orders"
user = "root"
"#;

const FILE: &str = "/etc/tidemill/orders.toml";

fn read(text: &str) -> Result<Plan, Problems> {
    load_texts(&[(Path::new(FILE), text)], &flags())
}

/// A cache directory, so that no test depends on HOME.
fn flags() -> Overrides {
    Overrides { cache_dir: Some("/tmp/tidemill-cache".into()), ..Overrides::default() }
}

/// The messages without file and excerpt.
fn complaints(text: &str) -> Vec<String> {
    match read(text) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.iter().map(|problem| first_line(&problem.to_string())).collect(),
    }
}

fn first_line(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    line.strip_prefix(FILE).and_then(|rest| rest.strip_prefix(':')).unwrap_or(line).trim_start().to_owned()
}

/// The smallest file with one line put behind the line that begins with `after`.
fn with(after: &str, line: &str) -> String {
    let mut text = String::new();
    for existing in SMALLEST.lines() {
        text.push_str(existing);
        text.push('\n');
        if existing.starts_with(after) {
            text.push_str(line);
            text.push('\n');
        }
    }
    assert!(text.len() > SMALLEST.len(), "no line begins with {after}");
    text
}

/// The smallest file with one line replaced.
fn instead(of: &str, line: &str) -> String {
    assert!(SMALLEST.lines().any(|existing| existing.starts_with(of)), "no line begins with {of}");
    SMALLEST
        .lines()
        .map(|existing| if existing.starts_with(of) { line } else { existing })
        .collect::<Vec<_>>()
        .join("\n")
}

#[track_caller]
fn check(text: &str, expected: &[&str]) {
    assert_eq!(complaints(text), expected, "\n{text}");
}

#[test]
fn the_smallest_file_has_the_documented_defaults() {
    let plan = read(SMALLEST).expect("valid");
    assert_eq!(plan.process.budget_bytes, 144 << 20);
    assert_eq!(plan.process.lanes, None);
    assert_eq!(plan.process.admin, "127.0.0.1:9464".parse().ok());
    assert_eq!(plan.process.shutdown_timeout, Duration::from_secs(30));
    assert_eq!(plan.process.stall_after, Duration::from_secs(60));
    let [pipeline] = plan.pipelines.as_slice() else { panic!("one pipeline") };
    assert_eq!(pipeline.delivery, Delivery::AtLeastOnce);
    let Source::Kafka(kafka) = &pipeline.source;
    assert_eq!((kafka.group.as_str(), kafka.start), ("orders", Start::Earliest));
    assert_eq!(kafka.isolation, Isolation::ReadCommitted);
    assert_eq!((kafka.commit_interval, kafka.fetch_queue_bytes), (Duration::from_secs(1), 16 << 20));
    assert!(kafka.security.tls.is_none() && kafka.security.sasl.is_none() && kafka.properties.is_empty());
    assert_eq!((pipeline.batch.max_rows, pipeline.batch.max_bytes), (500_000, 64 << 20));
    assert_eq!(pipeline.batch.linger, Duration::from_secs(1));
    assert_eq!(pipeline.sink.password.reveal(), "");
    assert_eq!((pipeline.sink.in_flight, pipeline.sink.load_timeout), (1, Duration::from_secs(600)));
    assert!(pipeline.transforms.is_empty() && pipeline.dead_letters.is_none());
}

#[test]
fn a_full_file_is_read_as_written() {
    let text = r#"
pipeline = { name = "full", delivery = "at_least_once" }
[process]
budget = "1GiB"
lanes = 3
admin = false
cache_dir = "cache"
[source.kafka]
brokers = "Kafka.example.com:9092"
topics = "orders"
group = "other"
start = { timestamp = 2026-01-01T01:00:00+01:00 }
isolation = "read_uncommitted"
properties = { session.timeout.ms = 45000, "client.id" = "x" }
sasl = { mechanism = "PLAIN", username = "u", password = "hunter2" }
tls = {}
[[transform]]
plugin = "../plugins/a.wasm"
config = { since = 2026-01-01, list = [1, 2.5, true], text = "é" }
wasi = "minimal"
memory = "1MiB"
[[transform]]
plugin = "/abs/b.wasm"
timeout = "50ms"
[batch]
max_rows = 1
[sink.starrocks]
fe = ["http://fe1:8030", "https://fe2:8443"]
query = "fe1:9030"
database = "db"
tables = ["a", "b"]
user = "root"
password = { env = "CARGO_PKG_NAME" }
table_model = "duplicate"
in_flight = 4
properties = { Columns = "a,b", "max_filter_ratio" = 0 }
[dead_letters]
directory = "dead"
"#;
    let plan = read(text).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!((plan.process.budget_bytes, plan.process.lanes, plan.process.admin), (1 << 30, Some(3), None));
    let [pipeline] = plan.pipelines.as_slice() else { panic!("one pipeline") };
    let Source::Kafka(kafka) = &pipeline.source;
    assert_eq!(kafka.brokers, ["kafka.example.com:9092"]);
    assert_eq!(kafka.start, Start::TimestampMs(1_767_225_600_000));
    assert_eq!(kafka.properties.get("session.timeout.ms").map(String::as_str), Some("45000"));
    assert!(!format!("{pipeline:?}").contains("hunter2"));
    let [first, second] = pipeline.transforms.as_slice() else { panic!("two plugins") };
    assert_eq!(first.plugin, Path::new("/etc/tidemill/../plugins/a.wasm"));
    let config: serde_json::Value = serde_json::from_str(&first.config_json).expect("JSON");
    assert_eq!(config, serde_json::json!({"since": "2026-01-01", "list": [1, 2.5, true], "text": "é"}));
    assert_eq!((first.wasi, first.memory_bytes), (Wasi::Minimal, 1 << 20));
    assert_eq!((second.config_json.as_str(), second.timeout), ("{}", Duration::from_millis(50)));
    assert_eq!(pipeline.sink.fe, ["http://fe1:8030", "https://fe2:8443"]);
    assert_eq!(
        (pipeline.sink.table.as_deref(), pipeline.sink.table_model),
        (None, Some(TableModel::Duplicate))
    );
    assert_eq!(pipeline.sink.password.reveal(), env!("CARGO_PKG_NAME"));
    assert_eq!(pipeline.sink.properties.get("columns").map(String::as_str), Some("a,b"));
    let Some(DeadLetters::Directory(directory)) = &pipeline.dead_letters else { panic!("a directory") };
    assert_eq!(directory, Path::new("/etc/tidemill/dead"));
}

#[test]
fn all_mistakes_of_a_file_are_told_at_once() {
    let text = r#"[pipeline]
name = "my orders"
delivery = "exactly_once"

[source.kafka]
topics = ["orders", "orders"]

[batch]
max_row = 10
linger = "0s"

[sink.starrocks]
fe = ["http://127.0.0.1:9030"]
database = "shop"
user = "root"
"#;
    check(
        text,
        &[
            "2:8: `name` is \"my orders\": ' ' cannot be part of a label; expected 1 to 64 of A-Z a-z 0-9 _ -, such as \"orders\"",
            "3:12: `delivery` is \"exactly_once\": this version does not have it yet; expected \"at_least_once\"",
            "5:1: missing key `brokers` in [source.kafka]; expected a line such as brokers = [\"localhost:9092\"]",
            "6:21: `topics` names \"orders\" twice",
            "9:1: unknown key `max_row` in [batch]; expected one of `max_rows`, `max_bytes`, `linger`; did you mean `max_rows`?",
            "10:10: `linger` is \"0s\"; expected a duration such as \"500ms\" or \"1s\" (ms, s, m or h), from 1ms to 1h",
            "12:1: missing key `table` in [sink.starrocks], and no plugin that could route rows; expected table = \"orders\", or a [[transform]] that routes",
            "13:7: `fe` is \"http://127.0.0.1:9030\": 9030 is the port for SQL, which belongs into `query`; HTTP is usually 8030; expected an FE's HTTP address such as \"http://127.0.0.1:8030\"",
        ],
    );
}

const BLESS_VARIABLE: &str = "TIDEMILL_BLESS";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn toml_files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let mut files: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|ending| ending == "toml")).collect();
    files.sort();
    files
}

/// Reads files that are named as from the top of the repository, as the messages name them.
fn load_named(files: &[PathBuf]) -> Result<Plan, Problems> {
    let named = |file: &PathBuf| {
        let name = file.strip_prefix(repository()).expect("in the repository").to_owned();
        (name, std::fs::read_to_string(file).expect("a text"))
    };
    let texts: Vec<(PathBuf, String)> = files.iter().map(named).collect();
    let texts: Vec<(&Path, &str)> =
        texts.iter().map(|(name, text)| (name.as_path(), text.as_str())).collect();
    load_texts(&texts, &flags())
}

/// Compares with the file of expected messages, or writes it if asked to.
fn difference(problems: &Problems, expected_file: &Path) -> Option<String> {
    let said = format!("{problems}\n");
    if std::env::var_os(BLESS_VARIABLE).is_some() {
        std::fs::write(expected_file, &said).expect("the expectation can be written");
    }
    let expected = std::fs::read_to_string(expected_file).unwrap_or_default();
    let name = expected_file.display();
    (said != expected).then(|| format!("{name}\n--- expected\n{expected}--- said\n{said}"))
}

/// The same files go through the binary in tests/; this one needs no binary.
#[test]
fn every_broken_file_gives_its_exact_message() {
    let mut wrong = Vec::new();
    let files = toml_files(&repository().join("tests/fixtures/config"));
    for file in &files {
        match load_named(std::slice::from_ref(file)) {
            Err(problems) => wrong.extend(difference(&problems, &file.with_extension("stderr"))),
            // Whether a plugin can be loaded is not said by the file.
            Ok(_) => assert!(file.ends_with("missing_plugin.toml"), "{} is accepted", file.display()),
        }
    }
    assert!(files.len() >= 50, "only {} files", files.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_that_contradict_each_other_give_their_exact_message() {
    let folder = repository().join("tests/fixtures/config/together");
    let mut wrong = Vec::new();
    for case in std::fs::read_dir(&folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
        let problems = load_named(&toml_files(&case)).expect_err("a contradiction");
        wrong.extend(difference(&problems, &case.join("expected.stderr")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
