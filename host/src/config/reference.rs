//! The reference, written from the same description that files are read by.

use super::refused;
use super::schema::{AnyKey, Presence};
use super::sections::ROOT;

const TEXT_COLUMNS_MAX: usize = 100;

/// What `pipelines/reference.toml` must hold: every key with its default, as a file that is valid.
/// `tidemill docs` writes it, and a test beside that command finds drift.
pub fn reference_toml() -> String {
    let mut text = String::from(
        "# Every table and key of a pipeline file, each with its default. The file is generated (`tidemill docs`).\n\
         #\n\
         # A line like `#lanes = 2` is a key that has no default: without the `#` it would be set.\n\
         # Copy what you need; a file needs no more than orders.toml beside this one has.\n",
    );
    for section in ROOT.all().into_iter().filter(|section| !section.path.is_empty()) {
        if section.keys.is_empty() {
            // `[source]` and `[sink]` are only the names of what is within.
            continue;
        }
        text.push('\n');
        comment(&mut text, section.doc);
        let off = if section.rare { "#" } else { "" };
        text.push_str(&format!("{off}{}\n", section.header()));
        for key in section.keys {
            text.push('\n');
            toml_key(&mut text, *key, section.rare);
        }
    }
    text
}

fn toml_key(text: &mut String, key: &dyn AnyKey, section_rare: bool) {
    comment(text, key.doc());
    comment(text, &format!("Takes {}.", key.expected()));
    let off = match key.presence() {
        Presence::Required(_) => {
            comment(text, "Must be set.");
            section_rare
        }
        Presence::Default(_) => section_rare,
        Presence::Usual { without, .. } => {
            comment(text, &format!("Without it: {without}."));
            section_rare
        }
        Presence::Optional { without, .. } => {
            comment(text, &format!("Without it: {without}."));
            true
        }
    };
    let off = if off { "#" } else { "" };
    text.push_str(&format!("{off}{} = {}\n", key.name(), key.presence().sample()));
}

/// What `docs/configuration.md` must hold: how files are read, in prose, and every table and key.
/// `tidemill docs` writes it.
pub fn reference_markdown() -> String {
    let mut text = String::from(include_str!("reference/prose.md"));
    for section in ROOT.all().into_iter().filter(|section| !section.keys.is_empty()) {
        text.push_str(&format!("\n### `{}`\n\n", section.header()));
        paragraph(&mut text, "", section.doc);
        for key in section.keys {
            text.push_str(&format!(
                "\n**`{}`**: {}. {}  \n",
                key.name(),
                key.expected(),
                markdown_presence(key.presence())
            ));
            paragraph(&mut text, "", key.doc());
        }
    }
    markdown_refused(&mut text, "`properties` of `[source.kafka]` that are refused", &refused::KAFKA);
    markdown_refused(&mut text, "`properties` of `[sink.starrocks]` that are refused", &refused::STARROCKS);
    text
}

fn markdown_presence(presence: Presence) -> String {
    match presence {
        Presence::Required(_) => "Must be set.".to_owned(),
        Presence::Default(value) => format!("Default: `{value}`."),
        Presence::Usual { without, .. } | Presence::Optional { without, .. } => {
            format!("Without it: {without}.")
        }
    }
}

fn markdown_refused(text: &mut String, title: &str, list: &[(&str, &str)]) {
    text.push_str(&format!("\n### {title}\n\n| name | reason |\n|---|---|\n"));
    for (name, reason) in list {
        text.push_str(&format!("| `{name}` | {reason} |\n"));
    }
}

fn comment(text: &mut String, sentence: &str) {
    paragraph(text, "# ", sentence);
}

/// Adds a text in lines of at most `TEXT_COLUMNS_MAX`, each behind `prefix`.
fn paragraph(text: &mut String, prefix: &str, sentence: &str) {
    let mut column = 0;
    for word in sentence.split_whitespace() {
        let width = word.chars().count();
        if column > 0 && column + 1 + width > TEXT_COLUMNS_MAX {
            text.push('\n');
            column = 0;
        }
        if column == 0 {
            text.push_str(prefix);
            column = prefix.len();
        } else {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += width;
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::config::source::Source;
    use crate::config::{Overrides, load_texts};

    fn repository() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
    }

    #[test]
    fn the_reference_is_a_valid_file() {
        let path = repository().join("pipelines/reference.toml");
        let flags = Overrides { cache_dir: Some("/tmp".into()), ..Overrides::default() };
        let plan = load_texts(&[(&path, &reference_toml())], &flags);
        plan.unwrap_or_else(|problems| panic!("{problems}"));
    }

    #[test]
    fn keys_that_are_commented_out_are_known_too() {
        let all: String = reference_toml()
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(off) if off.starts_with(|c: char| c == '[' || c.is_ascii_lowercase()) => {
                    format!("{off}\n")
                }
                Some(_) | None => format!("{line}\n"),
            })
            .collect();
        let wrong = load_texts(&[(Path::new("all.toml"), &all)], &Overrides::default())
            .expect_err("two dead letters");
        let unknown: Vec<_> = wrong.iter().filter(|problem| problem.what.starts_with("unknown")).collect();
        assert!(unknown.is_empty(), "{wrong}");
        assert!(all.contains("\nlanes = 2\n") && all.contains("\n[dead_letters.kafka]\n"));
    }

    /// Defaults and examples are TOML text: a typing mistake in one would only show when it is used.
    #[test]
    fn every_default_and_example_is_valid() {
        let here = Source::new(&repository().join("pipelines/reference.toml"), "");
        for section in ROOT.all() {
            for key in section.keys {
                let sample = key.presence().sample();
                let elsewhere = sample.contains(".pem") || sample.contains("env = ");
                assert!(
                    elsewhere || key.accepts(&here, sample),
                    "{} {} = {sample}",
                    section.header(),
                    key.name()
                );
            }
        }
    }
}
