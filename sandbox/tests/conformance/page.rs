//! `docs/conformance.md` and this suite name the same cases, and say the same of which cluster they need.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What a case runs against.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Needs {
    /// A sandbox, or a cluster.
    Any,
    /// Switches that only a sandbox has.
    Sandbox,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The cases of the suite, as `module::case`.
fn cases() -> BTreeMap<String, Needs> {
    const MARK: &str = "#[tokio::test]\nasync fn ";
    let folder = root().join("sandbox/tests/conformance");
    let mut cases = BTreeMap::new();
    for entry in std::fs::read_dir(folder).expect("the suite's folder") {
        let path = entry.expect("an entry").path();
        let module = path.file_stem().and_then(|name| name.to_str()).expect("a name").to_owned();
        let text = std::fs::read_to_string(&path).expect("a text");
        for case in text.split(MARK).skip(1) {
            let name = case.split('(').next().expect("something before the bracket");
            let body = case.split("\n}\n").next().expect("something before the end");
            let own = ["Target::sandbox(", "with(FaultKind::", "with(kind)", "skipped: needs a sandbox"];
            let needs = if own.iter().any(|text| body.contains(text)) { Needs::Sandbox } else { Needs::Any };
            cases.insert(format!("{module}::{name}"), needs);
        }
    }
    cases
}

fn page() -> String {
    std::fs::read_to_string(root().join("docs/conformance.md")).expect("the page")
}

/// What the table under "All cases" says: a row each.
fn listed(page: &str) -> BTreeMap<String, Needs> {
    let (_, table) = page.split_once("## All cases").expect("the heading");
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `"));
    let mut listed = BTreeMap::new();
    for row in rows {
        let (name, rest) = row.split_once("` | ").expect("a second column");
        let (needs, why) = rest.split_once(" |").expect("a third column");
        let why = why.trim().trim_end_matches('|').trim();
        let needs = match needs {
            "any" => Needs::Any,
            "sandbox" => Needs::Sandbox,
            other => panic!("{name} needs {other}"),
        };
        assert_eq!(
            why.is_empty(),
            needs == Needs::Any,
            "{name}: a reason belongs to those that cannot run on a cluster"
        );
        assert!(listed.insert(name.to_owned(), needs).is_none(), "{name} is listed twice");
    }
    listed
}

/// Every `module::case` that the page names, wherever.
fn named(page: &str) -> BTreeSet<&str> {
    let quoted = page.split('`').skip(1).step_by(2);
    quoted.filter(|text| text.contains("::") && !text.contains([' ', '/'])).collect()
}

#[test]
fn the_page_lists_each_case_once_and_names_no_other() {
    let (page, cases) = (page(), cases());
    assert!(cases.len() >= 90, "only {} cases were found", cases.len());
    let listed = listed(&page);
    let missing: Vec<_> = cases.keys().filter(|case| !listed.contains_key(*case)).collect();
    let unknown: Vec<_> = named(&page).into_iter().filter(|name| !cases.contains_key(*name)).collect();
    assert!(
        missing.is_empty() && unknown.is_empty(),
        "not on the page: {missing:?}; no such case: {unknown:?}"
    );
    let otherwise: Vec<_> = listed.iter().filter(|(name, needs)| cases.get(*name) != Some(*needs)).collect();
    assert!(otherwise.is_empty(), "the suite says otherwise of {otherwise:?}");
}

#[test]
fn every_sentence_has_a_case_or_a_reason() {
    let page = page();
    let (sentences, _) = page.split_once("## All cases").expect("the heading");
    let rows: Vec<&str> =
        sentences.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| sentence")).collect();
    assert!(rows.len() >= 40, "only {} sentences", rows.len());
    for row in rows {
        let columns: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        let [_, cases, sandbox, cluster] = columns.as_slice() else { panic!("not four columns: {row}") };
        assert!(cases.contains("::") || cases.contains("none:"), "neither a case nor a reason: {row}");
        assert!(["ran", "–"].contains(&sandbox.trim()), "ran against the sandbox or not: {row}");
        let cluster = cluster.trim();
        assert!(
            cluster == "can" || cluster.starts_with("in part: ") || cluster.starts_with("cannot: "),
            "{row}"
        );
    }
}
