//! Whole files in, plans or messages out.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::model::{DeadLetters, Delivery, Isolation, Plan, Source, Start, TableModel, Wasi};
use super::{Overrides, Problems, load_texts};

mod corpus;
mod sources;

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
    let Source::Kafka(kafka) = &pipeline.source else { panic!("kafka") };
    assert_eq!((kafka.group.as_str(), kafka.start), ("orders", Start::Earliest));
    assert_eq!(kafka.isolation, Isolation::ReadCommitted);
    assert_eq!((kafka.commit_interval, kafka.fetch_queue_bytes), (Duration::from_secs(1), 8 << 20));
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
    let Source::Kafka(kafka) = &pipeline.source else { panic!("kafka") };
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
delivery = "at_most_once"

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
            "3:12: `delivery` is \"at_most_once\"; expected \"at_least_once\" or \"exactly_once\"; did you mean `\"at_least_once\"`?",
            "5:1: missing key `brokers` in [source.kafka]; expected a line such as brokers = [\"localhost:9092\"]",
            "6:21: `topics` names \"orders\" twice",
            "9:1: unknown key `max_row` in [batch]; expected one of `max_rows`, `max_bytes`, `linger`, `stretch`; did you mean `max_rows`?",
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
    let said = problems.to_string();
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
        let Err(problems) = load_named(std::slice::from_ref(file)) else {
            panic!("{} is accepted", file.display())
        };
        wrong.extend(difference(&problems, &file.with_extension("stderr")));
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

#[test]
fn all_examples_are_valid_alone_and_together() {
    let files = toml_files(&repository().join("pipelines"));
    for file in &files {
        super::load(std::slice::from_ref(file), &flags()).unwrap_or_else(|problems| panic!("{problems}"));
    }
    let plan = super::load(&files, &flags()).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(plan.pipelines.len(), files.len());
}

#[test]
fn a_byte_order_mark_and_carriage_returns_change_nothing() {
    let windows = format!("\u{feff}{}", SMALLEST.replace('\n', "\r\n"));
    read(&windows).unwrap_or_else(|problems| panic!("{problems}"));
    let wrong = windows.replace("user", "usr");
    let at = read(&wrong).expect_err("unknown key").iter().next().and_then(|problem| problem.at);
    assert_eq!(at, Some((12, 1)));
}

#[test]
fn a_duplicate_key_does_not_hide_other_mistakes() {
    let text = instead("user", "user = \"root\"\nuser = \"admin\"\nlode_timeout = 1");
    let expected = [
        "13:1: `user` stands here twice",
        "14:1: unknown key `lode_timeout` in [sink.starrocks]; expected one of `fe`, `query`, `database`, `table`, \
         `tables`, `create_tables`, `user`, `password`, `table_model`, `in_flight`, `load_timeout`, \
         `prepared_timeout`, `redirect_hosts`, `ca`, `format`, `properties`, `columns`, `partial_update`, `partial_update_mode`, `compression`; did you \
         mean `load_timeout`?",
    ];
    check(&text, &expected);
}

#[test]
fn exactly_once_is_promised_only_where_it_can_be_kept() {
    let text = instead("name", "name = \"orders\"\ndelivery = \"exactly_once\"");
    let plan = read(&text).expect("a Kafka pipeline");
    assert_eq!(plan.pipelines[0].delivery, Delivery::ExactlyOnce);
    let uncommitted = text.replace("brokers", "isolation = \"read_uncommitted\"\nbrokers");
    check(
        &uncommitted,
        &[
            "3:12: `delivery` is \"exactly_once\": a decision of another process that is not ended yet would be read past: \
           `isolation` has to be \"read_committed\"; expected \"at_least_once\", or a Kafka source with it",
        ],
    );
    let http = text
        .replace("[source.kafka]", "[source.http]")
        .replace("brokers = [\"localhost:9092\"]", "listen = \"127.0.0.1:8080\"")
        .replace("topics = [\"orders\"]", "");
    check(
        &http,
        &["3:12: `delivery` is \"exactly_once\": only Kafka can be read again from where it was: use \
           `Idempotency-Key`; expected \"at_least_once\", or a Kafka source with it"],
    );
}

#[test]
fn plugins_are_verified_only_where_something_hangs_on_it() {
    let with = |delivery: &str| {
        instead("name", &format!("name = \"orders\"\ndelivery = \"{delivery}\"\nverify = true"))
    };
    assert!(read(&with("exactly_once")).expect("it may").pipelines[0].verify);
    check(
        &with("at_least_once"),
        &[
            "4:10: `verify` is true and `delivery` is \"at_least_once\", which promises nothing that hangs on it; expected it \
           with delivery = \"exactly_once\" only",
        ],
    );
}

#[test]
fn the_mark_of_a_delete_is_the_last_of_jsonpaths() {
    let with = |model: &str, paths: &str| {
        let properties = format!("properties = {{ columns = \"id,v\", jsonpaths = '{paths}' }}");
        instead("user", &format!("user = \"root\"\ntable_model = \"{model}\"\n{properties}"))
    };
    let expected = "14:14: with `jsonpaths` StarRocks takes deletes from the last path only; expected \"$.__op\" as the \
                    last one of `jsonpaths`";
    check(&with("primary", r#"["$.id", "$.v"]"#), &[expected]);
    check(&with("primary", r#"["$.id", "$.__op", "$.v"]"#), &[expected]);
    for fine in [with("primary", r#"["$.id", "$.v", "$.__op"]"#), with("duplicate", r#"["$.id", "$.v"]"#)] {
        read(&fine).unwrap_or_else(|problems| panic!("{problems}"));
    }
}

#[test]
fn spark_s_names_are_known() {
    for (written, ours) in [
        ("starrocks.write.buffer.rows", "max_rows"),
        ("starrocks.write.buffer.size", "max_bytes"),
        ("starrocks.write.flush.interval.ms", "linger"),
    ] {
        let text = instead("user", &format!("user = \"root\"\n\"{written}\" = 1"));
        let said = complaints(&text).join("\n");
        assert!(said.ends_with(&format!("here it is `{ours}` in [batch]")), "{said}");
    }
}

#[test]
fn credentials_are_in_no_message() {
    let texts = [
        instead("user", "user = \"root\"\npassword = \"hunter2"),
        instead("user", "user = \"root\"\npassword = [\"hunter2\"]"),
        instead("user", "user = \"root\"\npassword = { text = \"hunter2\" }"),
        instead("user", "user = \"root\"\npasswrd = \"hunter2\""),
        instead(
            "topics",
            "topics = 7\nsasl = { mechanism = \"PLAN\", passwrd = \"hunter2\", usrname = \"u\" }",
        ),
        instead("user", "user = \"root\"\nproperties = { authorization = \"hunter2\" }"),
        instead("user", "user = \"root\"\nproperties = { columns = \"hunter2\\n\" }"),
        instead("fe", "fe = [\"http://root:hunter2@localhost:8030\"]"),
        instead("fe", "fe = [\"http://localhost:9030\", \"http://root:hunter2@localhost:8030\"]"),
        instead("topics", "topics = [\"orders\"]\nproperties = { \"sasl.password\" = \"hunter2\" }"),
        instead("brokers", "brokers = [\"root:hunter2@localhost:9092\"]"),
    ];
    for text in texts {
        let problems = read(&text).expect_err("a mistake").to_string();
        assert!(!problems.contains("hunter2"), "{text}\n{problems}");
    }
}

#[test]
fn what_a_variable_or_a_file_holds_is_in_no_message() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("value"), "hunter two\n").expect("written");
    let path = folder.path().join("orders.toml");
    let text = instead("name", "name = { file = \"value\" }");
    let problems = load_texts(&[(&path, &text)], &flags()).expect_err("a space").to_string();
    assert!(!problems.contains("hunter"), "{problems}");
    assert!(problems.contains("`name` is the content of the file \"value\": ' ' cannot be"), "{problems}");
}

#[test]
fn a_secret_in_a_file_ends_before_its_last_line_feed() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("secret"), " two\nlines \r\n").expect("written");
    let path = folder.path().join("orders.toml");
    let text = instead("user", "user = \"root\"\npassword = { file = \"secret\" }");
    let plan = load_texts(&[(&path, &text)], &flags()).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(plan.pipelines[0].sink.password.reveal(), " two\nlines ");
}

#[test]
fn flags_win_over_the_file_and_are_checked_like_it() {
    let text = format!("{SMALLEST}[process]\nbudget = \"1GiB\"\nadmin = \"0.0.0.0:1\"\n");
    let some = |text: &str| Some(text.to_owned());
    let good = Overrides {
        budget: some("2GiB"),
        lanes: Some(5),
        admin: some("false"),
        shutdown_timeout: some("5s"),
        ..flags()
    };
    let plan = load_texts(&[(Path::new(FILE), &text)], &good).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!((plan.process.budget_bytes, plan.process.lanes, plan.process.admin), (2 << 30, Some(5), None));
    assert_eq!(plan.process.shutdown_timeout, Duration::from_secs(5));

    let bad = Overrides {
        budget: some("2"),
        lanes: Some(0),
        admin: some("0.0.0.0:9464"),
        shutdown_timeout: some("soon"),
        ..flags()
    };
    let problems = load_texts(&[(Path::new(FILE), &text)], &bad).expect_err("four mistakes");
    let said: Vec<String> =
        problems.iter().map(|problem| format!("{}: {}", problem.file, problem.what)).collect();
    let expected = [
        "--budget: `budget` is a number without a unit",
        "--lanes: `lanes` is 0",
        "--admin: `admin` is 0.0.0.0:9464, which other machines can reach, and it asks for no password",
        "--shutdown-timeout: `shutdown_timeout` is \"soon\": it does not begin with a number",
    ];
    let (mut said, mut expected) = (said, expected.map(str::to_owned).to_vec());
    said.sort();
    expected.sort();
    assert_eq!(said, expected);
}

#[test]
fn files_that_are_none_are_told_apart() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("big.toml"), vec![b'#'; 10 << 20]).expect("written");
    std::fs::write(path("wide.toml"), [0xff, 0xfe, b'a', 0]).expect("written");
    std::fs::write(path("good.toml"), SMALLEST).expect("written");
    let files = ["big.toml", "wide.toml", "missing.toml", "good.toml"].map(path);
    let mut files = files.to_vec();
    files.push(folder.path().to_owned());
    let problems = super::load(&files, &flags()).expect_err("four mistakes");
    let said: Vec<&str> = problems.iter().map(|problem| problem.what.as_str()).collect();
    let expected = [
        "cannot read the pipeline file: it is larger than 1024 KiB",
        "the file is UTF-16",
        "cannot read the pipeline file: no such file",
        "cannot read the pipeline file: it is a directory",
    ];
    assert_eq!(said, expected);
    assert!(super::load(&[], &flags()).is_err());
}

#[test]
fn very_many_mistakes_are_cut_short() {
    let text =
        format!("{SMALLEST}{}", (0..10_000).map(|index| format!("key{index} = 1\n")).collect::<String>());
    let problems = read(&text).expect_err("many mistakes");
    assert_eq!(problems.count(), 10_000);
    let said = problems.to_string();
    assert!(said.lines().count() < 200 && said.ends_with("and 9950 more problems\n"), "{said}");
}

#[test]
fn deep_nesting_is_a_mistake_and_no_overflow() {
    let deep = format!("a = {}1{}", "[".repeat(10_000), "]".repeat(10_000));
    assert!(read(&deep).is_err());
    let dotted = format!("{SMALLEST}properties.{}b = 1\n", "a.".repeat(400_000));
    assert!(read(&dotted).is_err());
    let headers: String = (1..300).map(|depth| format!("[{}b]\n", "a.".repeat(depth * 10))).collect();
    assert!(read(&format!("{SMALLEST}{headers}")).is_err());
}

#[test]
fn limits_of_routed_tables_are_compared_too() {
    let routed = |name: &str, tables: &str, linger: &str| {
        SMALLEST.replace("name = \"orders\"", &format!("name = {name:?}"))
            + &format!(
                "tables = {tables}\n[[transform]]\nplugin = \"a.wasm\"\n[batch]\nlinger = {linger:?}\n"
            )
    };
    let both = |first: &str, second: &str| {
        load_texts(&[(Path::new("a.toml"), first), (Path::new("b.toml"), second)], &flags())
    };
    let first = routed("a", "[\"x\", \"y\"]", "1s").replace("table = \"orders\"", "");
    assert!(both(&first, &routed("b", "[\"z\"]", "2s")).is_ok());
    assert!(both(&first, &routed("b", "[\"y\"]", "1s")).is_ok());
    let problems = both(&first, &routed("b", "[\"y\"]", "2s")).expect_err("different limits").to_string();
    assert!(problems.contains("two pipelines load shop.y with different limits"), "{problems}");
    let elsewhere = routed("b", "[\"y\"]", "2s").replace(":8030", ":18030");
    assert!(both(&first, &elsewhere).is_ok());
}

proptest::proptest! {
    /// Whatever is done to a valid file, reading it ends in a plan or in messages.
    #[test]
    fn no_change_of_a_file_panics(
        example in proptest::prelude::any::<proptest::sample::Index>(),
        changes in proptest::collection::vec((proptest::prelude::any::<proptest::sample::Index>(), 0..6_u8, "[ -~\n\té🦀\u{feff}\u{0}]{0,6}"), 1..8),
    ) {
        let texts = [SMALLEST.to_owned(), super::reference_toml(), super::reference_toml().replace("\n#", "\n")];
        let mut text: Vec<char> = example.get(&texts).chars().collect();
        for (at, change, piece) in changes {
            let at = at.index(text.len().max(1)).min(text.len());
            let end = (at + piece.chars().count() * 4).min(text.len());
            match change {
                0 => { text.splice(at..at, piece.chars()); }
                1 => { text.splice(at..end, piece.chars()); }
                2 => { text.drain(at..end); }
                3 => { let copy: Vec<char> = text[at..end].to_vec(); text.splice(at..at, copy); }
                4 => { text.truncate(at.max(1)); }
                _ => { text.splice(at..at, ['=', '"', '[', '{', '\'', '.'].into_iter().take(piece.chars().count())); }
            }
        }
        let text: String = text.into_iter().collect();
        if let Err(problems) = read(&text) {
            proptest::prop_assert!(!problems.to_string().is_empty());
        }
    }
}
