//! `tidemill check`: every example passes, and every broken file gives its exact message.

use std::{
    env, fs,
    path::{Path, PathBuf},
};
use tidemill_tests::{
    limit::within,
    machine,
    process::{Tidemill, tidemill_output},
    stand::{Model, Stand},
};

/// Set to write what is said now as what is expected; read the difference before committing it.
const BLESS_VARIABLE: &str = "TIDEMILL_BLESS";

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.retain(|file| file.extension().is_some_and(|found| found == extension));
    files.sort();
    files
}

#[test]
fn every_broken_file_gives_its_exact_message() {
    within(120, || {
        let fixtures = files(&machine::root().join("tests/fixtures/config"), "toml");
        assert!(fixtures.len() >= 20, "only {} fixtures", fixtures.len());
        let mut wrong = Vec::new();
        for file in fixtures {
            // As a user at the top of the repository names it: the messages repeat the name.
            let name = file.strip_prefix(machine::root()).expect("inside").to_str().expect("text").to_owned();
            let output = tidemill_output(&["check", &name]);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let expected_file = file.with_extension("stderr");
            if env::var_os(BLESS_VARIABLE).is_some() {
                fs::write(&expected_file, &said).expect("the expectation can be written");
            }
            let expected = fs::read_to_string(&expected_file).unwrap_or_default();
            if said != expected || output.status.code() != Some(2) {
                wrong.push(format!("{name}: {}\n--- expected\n{expected}--- said\n{said}", output.status));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    });
}

#[test]
fn every_example_passes_the_check() {
    within(120, || {
        // The examples name the plugins that `cargo xtask plugins` builds.
        assert!(machine::plugin("orders").exists());
        let examples = files(&machine::root().join("pipelines"), "toml");
        assert!(!examples.is_empty());
        for example in examples {
            let output = tidemill_output(&["check", example.to_str().expect("text")]);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{}: {}\n{said}", example.display(), output.status);
        }
    });
}

#[test]
fn a_broken_file_starts_nothing() {
    within(60, || {
        let stand = Stand::new("starts_nothing", 1, Model::Duplicate);
        stand.produce(0..10);
        let good = stand.write(&stand.pipeline());
        let broken = machine::root().join("tests/fixtures/config/unknown_key.toml");
        let mut tidemill = Tidemill::run(&[&good, &broken]);
        let ended = tidemill.until_ended(10);
        assert_eq!(ended.code, Some(2));
        assert_eq!(stand.committed(), 0);
        assert_eq!(stand.warehouse.stats(&stand.table).loads, 0);
    });
}

#[test]
fn online_check_finds_what_is_missing_and_passes_what_is_there() {
    within(90, || {
        let stand = Stand::new("online", 1, Model::Duplicate);
        let check = |pipeline: &tidemill_tests::pipeline::Pipeline| {
            let file = stand.write(pipeline);
            let output = tidemill_output(&["check", "--online", file.to_str().expect("text")]);
            (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
        };
        let good = stand.pipeline();
        let (code, said) = check(&good);
        assert_eq!(code, Some(0), "{said}");

        let mut no_topic = good.clone();
        no_topic.topics = vec!["nobody-made-this-topic".to_owned()];
        let (code, said) = check(&no_topic);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("nobody-made-this-topic"), "{said}");

        let mut nothing_yet = good.clone();
        nothing_yet.topics = vec!["^nobody-made-this-".to_owned()];
        let (code, said) = check(&nothing_yet);
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("no topic matches yet"), "{said}");

        let mut columns = good.clone();
        columns.sink_more = "columns = [\"id\", \"amounts\"]".to_owned();
        let (code, said) = check(&columns);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("has no column `amounts`"), "{said}");
        columns.sink_more = "columns = [\"id\", \"amount\"]\npartial_update = true".to_owned();
        let (code, said) = check(&columns);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("cannot be updated in part"), "{said}");

        let mut no_table = good;
        no_table.table = "nobody_made_me".to_owned();
        let (code, said) = check(&no_table);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("nobody_made_me"), "{said}");
    });
}

#[test]
fn bad_usage_exits_with_2() {
    within(30, || {
        for arguments in
            [&["run"][..], &["rum"], &["run", "--no-such-flag", "x.toml"], &["run", "no-such-file.toml"]]
        {
            let output = tidemill_output(arguments);
            assert_eq!(
                output.status.code(),
                Some(2),
                "{arguments:?}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    });
}
