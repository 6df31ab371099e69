//! `docs/conformance.md` and this suite name the same cases, and say the same of which cluster they need.
//!
//! Names, files and columns are compared here. Whether a case asserts what its sentence says, a reader must judge.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What a case runs against.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Needs {
    /// A sandbox, or a cluster.
    Any,
    /// A sandbox, or a cluster of this release or a later one.
    Since(String),
    /// Switches that only a sandbox has.
    Sandbox,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn needs(body: &str) -> Needs {
    const SINCE: &str = "Target::since([";
    let own = ["Target::sandbox(", "with(FaultKind::", "with(kind", "skipped: needs a sandbox"];
    if own.iter().any(|text| body.contains(text)) {
        return Needs::Sandbox;
    }
    let release = body.split(SINCE).nth(1).and_then(|rest| rest.split(']').next());
    release.map_or(Needs::Any, |release| Needs::Since(release.replace(", ", ".")))
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
            cases.insert(format!("{module}::{name}"), needs(body));
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
        let needs = match (needs, needs.strip_suffix(" on")) {
            ("any", _) => Needs::Any,
            ("sandbox", _) => Needs::Sandbox,
            (_, Some(release)) => Needs::Since(release.to_owned()),
            (other, None) => panic!("{name} needs {other}"),
        };
        assert_eq!(
            why.is_empty(),
            needs == Needs::Any,
            "{name}: a reason belongs to those that cannot run on every cluster"
        );
        assert!(listed.insert(name.to_owned(), needs).is_none(), "{name} is listed twice");
    }
    listed
}

/// Every `module::case` that a text names, wherever.
fn named(text: &str) -> BTreeSet<&str> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.filter(|text| text.contains("::") && !text.contains([' ', '/'])).collect()
}

/// Every `path/of/a/file.rs::test` that a text cites: what is shown elsewhere.
fn cited(text: &str) -> Vec<(&str, &str)> {
    let quoted = text.split('`').skip(1).step_by(2).filter(|text| !text.contains(' '));
    quoted.filter_map(|text| text.split_once("::").filter(|(file, _)| file.ends_with(".rs"))).collect()
}

/// The rows above "All cases", without their heads: sentence, cases, sandbox, cluster.
fn sentences(page: &str) -> Vec<[&str; 4]> {
    let (sentences, _) = page.split_once("## All cases").expect("the heading");
    let rows = sentences.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| sentence"));
    rows.map(|row| {
        let columns: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        columns.try_into().unwrap_or_else(|_| panic!("not four columns: {row}"))
    })
    .collect()
}

#[test]
fn the_page_lists_each_case_once_and_names_no_other() {
    let (page, cases) = (page(), cases());
    assert!(cases.len() >= 100, "only {} cases were found", cases.len());
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
fn every_sentence_has_cases_that_can_run_where_it_says() {
    let (page, cases) = (page(), cases());
    let rows = sentences(&page);
    assert!(rows.len() >= 60, "only {} sentences", rows.len());
    for [sentence, shown_by, sandbox, cluster] in rows {
        let runs = |case: &&str| cases.get(*case) != Some(&Needs::Sandbox);
        let named = named(shown_by);
        assert!(!named.is_empty(), "no case: {sentence}");
        assert!(sandbox == "shown" || sandbox.starts_with("in part: "), "{sentence}: {sandbox}");
        // Whoever says "can" names no case that a cluster skips; whoever says "cannot", none that it runs.
        let (all, any) = (named.iter().all(runs), named.iter().any(runs));
        let fits = match cluster.split(':').next() {
            Some("can") => all && cluster == "can",
            Some("in part") => any,
            Some("cannot") => !any,
            Some(_) | None => false,
        };
        assert!(fits, "{sentence}: {cluster}, with {named:?}");
        let has_reason = cluster.split_once(": ").is_some_and(|(_, reason)| !reason.is_empty());
        assert!(cluster == "can" || has_reason, "{sentence}: why {cluster}?");
    }
}

#[test]
fn what_is_cited_from_elsewhere_exists() {
    let page = page();
    let cited = cited(&page);
    assert!(cited.len() >= 5, "only {cited:?}");
    for (file, test) in cited {
        let text =
            std::fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        let at = text.find(&format!("fn {test}(")).unwrap_or_else(|| panic!("no {test} in {file}"));
        let mark = text[..at].rsplit("\n\n").next().unwrap_or_default();
        assert!(mark.contains("test]") || mark.contains("test("), "{test} of {file} is no test: {mark}");
    }
}
