//! `tidemill dlq list`: letters counted by stage, plugin and code.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::{Choice, EXIT_OK};
use crate::dead_letter::Stage;
use crate::dead_letter::archive::Archive;
use crate::dead_letter::kept::{Filter, Kept, time_text};
use crate::fault::Fault;

/// Characters of an example message that a line of the list shows.
const EXAMPLE_CHARS: usize = 100;
/// Groups that are told apart: plugins choose their codes, and one may put an identifier into each.
const GROUPS_MAX: usize = 10_000;

#[derive(Debug, Args)]
pub(in crate::cli) struct List {
    /// The pipeline's file
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    choice: Choice,
    /// At most so many groups, the largest ones
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
    /// Also those that were replayed
    #[arg(long)]
    all: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

/// What letters of a group have in common.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Reason {
    stage: Stage,
    plugin: Option<String>,
    code: String,
}

/// A group of letters.
#[derive(Debug, Default, PartialEq, Eq)]
struct Group {
    letters: u64,
    replayed: u64,
    first_us: i64,
    last_us: i64,
    example: String,
}

/// A group as a line of JSON.
#[derive(Debug, Serialize)]
struct Line<'a> {
    pipeline: &'a str,
    stage: &'static str,
    plugin: Option<&'a str>,
    code: &'a str,
    letters: u64,
    replayed: u64,
    first: String,
    last: String,
    example: &'a str,
}

/// Letters by reason.
#[derive(Debug, Default)]
struct Groups {
    by_reason: BTreeMap<Reason, Group>,
    /// Letters of groups beyond [`GROUPS_MAX`].
    others: u64,
}

impl Groups {
    fn count(&mut self, kept: Kept) {
        let letter = kept.letter;
        let reason = Reason {
            stage: letter.stage,
            plugin: letter.plugin.as_deref().map(str::to_owned),
            code: letter.code,
        };
        if self.by_reason.len() >= GROUPS_MAX && !self.by_reason.contains_key(&reason) {
            self.others += 1;
            return;
        }
        let group = self.by_reason.entry(reason).or_insert_with(|| Group {
            first_us: kept.kept_us,
            example: letter.message,
            ..Group::default()
        });
        group.letters += 1;
        group.replayed += u64::from(kept.replayed);
        group.first_us = group.first_us.min(kept.kept_us);
        group.last_us = group.last_us.max(kept.kept_us);
    }

    /// The largest ones first.
    fn largest(&self, limit: usize) -> Vec<(&Reason, &Group)> {
        let mut groups: Vec<_> = self.by_reason.iter().collect();
        groups.sort_by_key(|(_, group)| std::cmp::Reverse(group.letters));
        groups.truncate(limit);
        groups
    }
}

impl List {
    pub(super) fn execute(self) -> u8 {
        let List { files, choice, limit, all, json } = self;
        let filter = choice.filter(all);
        let mut code = EXIT_OK;
        for file in files {
            let ended = super::with_pipeline(file, |_, pipeline| {
                let groups = gather(&Archive::of(pipeline)?, &filter)?;
                let text = if json {
                    as_json(&pipeline.name, &groups, limit)?
                } else {
                    as_table(&pipeline.name, &groups, limit, all)
                };
                super::print(text.as_bytes()).map(|_| EXIT_OK)
            });
            code = code.max(ended);
        }
        code
    }
}

fn gather(archive: &Archive, filter: &Filter) -> Result<Groups, Fault> {
    let mut groups = Groups::default();
    archive.each(&mut |kept| {
        if filter.takes(&kept) {
            groups.count(kept);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(groups)
}

fn as_json(pipeline: &str, groups: &Groups, limit: usize) -> Result<String, Fault> {
    let mut text = String::new();
    for (reason, group) in groups.largest(limit) {
        let line = Line {
            pipeline,
            stage: reason.stage.name(),
            plugin: reason.plugin.as_deref(),
            code: &reason.code,
            letters: group.letters,
            replayed: group.replayed,
            first: time_text(group.first_us),
            last: time_text(group.last_us),
            example: &group.example,
        };
        let line = serde_json::to_string(&line)
            .map_err(|error| Fault::retry("cannot write a group as JSON").caused_by(error))?;
        text.push_str(&line);
        text.push('\n');
    }
    Ok(text)
}

fn as_table(pipeline: &str, groups: &Groups, limit: usize, all: bool) -> String {
    let letters: u64 = groups.by_reason.values().map(|group| group.letters).sum::<u64>() + groups.others;
    let which = if all { "dead letters" } else { "dead letters that were not replayed" };
    let mut text = format!("{pipeline}: {letters} {which}\n");
    let shown = groups.largest(limit);
    if shown.is_empty() {
        return text;
    }
    let heads = ["letters", "replayed", "stage", "plugin", "code", "first", "last"].map(str::to_owned);
    let rows = shown.iter().map(|(reason, group)| {
        [
            group.letters.to_string(),
            group.replayed.to_string(),
            reason.stage.name().to_owned(),
            reason.plugin.clone().unwrap_or_else(|| "-".to_owned()),
            reason.code.clone(),
            time_text(group.first_us),
            time_text(group.last_us),
        ]
    });
    let rows: Vec<[String; 7]> = std::iter::once(heads).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 7] = std::array::from_fn(width);
    let examples = shown.iter().map(|(_, group)| one_line(&group.example));
    for (row, example) in rows.iter().zip(std::iter::once("example".to_owned()).chain(examples)) {
        for (cell, width) in row.iter().zip(widths) {
            // Writing to a String does not fail.
            let _ = write!(text, "{cell:width$}  ");
        }
        text.push_str(&example);
        text.push('\n');
    }
    let hidden = groups.by_reason.len() - shown.len();
    if hidden > 0 {
        let _ = writeln!(text, "and {hidden} more groups: --limit shows more of them");
    }
    text
}

/// The beginning of a message, on one line and without what a terminal would obey.
pub(super) fn one_line(message: &str) -> String {
    let plain = message.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut short: String = plain.take(EXAMPLE_CHARS).collect();
    if message.chars().nth(EXAMPLE_CHARS).is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letter::kept::Place;
    use crate::dead_letter::{Content, DeadLetter};
    use crate::position::Partition;

    fn kept(code: &str, kept_us: i64, replayed: bool) -> Kept {
        let letter = DeadLetter {
            stage: Stage::Transform,
            plugin: Some("orders".into()),
            code: code.into(),
            message: format!("{code} at {kept_us}"),
            partition: Partition { source: "orders".into(), number: 0 },
            offset: 0,
            timestamp_us: 0,
            key: None,
            value: None,
            headers: Vec::new(),
            content: Content::default(),
        };
        let place = Place { within: "f".into(), at: kept_us };
        Kept { letter, place, pipeline: "shop".into(), kept_us, replayed }
    }

    fn groups() -> Groups {
        let mut groups = Groups::default();
        for (code, seconds, replayed) in [("parse", 3, false), ("amount", 9, false), ("parse", 1, true)] {
            groups.count(kept(code, seconds * 1_000_000, replayed));
        }
        groups
    }

    #[test]
    fn letters_of_one_reason_are_one_line_and_the_largest_comes_first() {
        let table = as_table("shop", &groups(), 50, true);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[0], "shop: 3 dead letters");
        assert_eq!(
            lines[2],
            "2        1         transform  orders  parse   1970-01-01T00:00:01Z  1970-01-01T00:00:03Z  parse at 3000000"
        );
        assert!(lines[3].starts_with("1        0         transform  orders  amount"), "{}", lines[3]);
        assert!(
            as_table("shop", &groups(), 1, true).ends_with("and 1 more groups: --limit shows more of them\n")
        );
    }

    #[test]
    fn a_line_of_json_says_the_same() {
        let text = as_json("shop", &groups(), 1).expect("JSON");
        assert_eq!(
            text,
            "{\"pipeline\":\"shop\",\"stage\":\"transform\",\"plugin\":\"orders\",\"code\":\"parse\",\"letters\":2,\
             \"replayed\":1,\"first\":\"1970-01-01T00:00:01Z\",\"last\":\"1970-01-01T00:00:03Z\",\
             \"example\":\"parse at 3000000\"}\n"
        );
    }

    #[test]
    fn a_message_cannot_command_the_terminal() {
        assert_eq!(one_line("a\u{1b}[2Jb\nc"), "a [2Jb c");
        assert_eq!(one_line(&"x".repeat(101)).chars().count(), 101);
    }
}
