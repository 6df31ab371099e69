//! `tidemill dlq show`: letters one by one.

use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::Args;

use super::{Choice, EXIT_FAILED, EXIT_OK, Printed};
use crate::dead_letter::archive::Archive;
use crate::dead_letter::kept::{Filter, Kept, time_text};
use crate::fault::Fault;

#[derive(Debug, Args)]
pub(in crate::cli) struct Show {
    /// The pipeline's file
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    choice: Choice,
    /// At most so many of each pipeline
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: usize,
    /// Also those that were replayed
    #[arg(long)]
    all: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// The bytes of one letter's value and nothing else
    #[arg(long, conflicts_with = "json")]
    raw: bool,
}

impl Show {
    pub(super) fn execute(self) -> u8 {
        let Show { files, choice, limit, all, json, raw } = self;
        let filter = choice.filter(all);
        let mut code = EXIT_OK;
        for file in files {
            let ended = super::with_pipeline(file, |_, pipeline| {
                let archive = Archive::of(pipeline)?;
                if raw { print_raw(&archive, &filter) } else { print(&archive, &filter, limit, json) }
            });
            code = code.max(ended);
        }
        code
    }
}

fn print(archive: &Archive, filter: &Filter, limit: usize, json: bool) -> Result<u8, Fault> {
    let (mut shown, mut more) = (0, false);
    archive.each(&mut |kept| {
        if !filter.takes(&kept) {
            return Ok(ControlFlow::Continue(()));
        }
        if shown == limit {
            more = true;
            return Ok(ControlFlow::Break(()));
        }
        shown += 1;
        let printed = if json {
            let mut line = Vec::new();
            kept.append_json(&mut line)
                .map_err(|error| Fault::retry("cannot write a letter as JSON").caused_by(error))?;
            super::print(&line)?
        } else {
            super::print(as_text(&kept).as_bytes())?
        };
        Ok(match printed {
            Printed::Whole => ControlFlow::Continue(()),
            Printed::NobodyReads => ControlFlow::Break(()),
        })
    })?;
    if more {
        eprintln!("there are more: --limit shows more of them");
    }
    if shown == 0 && !more && filter.place.is_some() {
        return Ok(no_letter());
    }
    Ok(EXIT_OK)
}

/// Nothing is where somebody has looked for one letter.
fn no_letter() -> u8 {
    eprintln!("error: no letter matches; --all also looks among those that were replayed");
    EXIT_FAILED
}

/// The value of the one letter that the filter takes.
fn print_raw(archive: &Archive, filter: &Filter) -> Result<u8, Fault> {
    let mut found: Option<Kept> = None;
    let mut several = false;
    archive.each(&mut |kept| {
        if !filter.takes(&kept) {
            return Ok(ControlFlow::Continue(()));
        }
        several = found.is_some();
        found.get_or_insert(kept);
        Ok(if several { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    match found {
        Some(_) if several => {
            eprintln!("error: --raw prints one letter, and several match: name it by --letter PLACE");
            Ok(EXIT_FAILED)
        }
        Some(kept) => {
            super::print(kept.letter.value.as_deref().unwrap_or_default())?;
            Ok(EXIT_OK)
        }
        None => Ok(no_letter()),
    }
}

fn as_text(kept: &Kept) -> String {
    let letter = &kept.letter;
    let mut text = format!("{}  {}", kept.place, letter.stage.name());
    let mut line = |name: &str, what: &str| {
        // Writing to a String does not fail.
        let _ = write!(text, "\n  {name:<9}{what}");
    };
    if let Some(plugin) = &letter.plugin {
        line("plugin", plugin);
    }
    line("reason", &format!("{}: {}", letter.code, plain(&letter.message)));
    line("from", &format!("{} offset {}", letter.partition, letter.offset));
    if letter.timestamp_us > 0 {
        line("dated", &time_text(letter.timestamp_us));
    }
    line("kept", &time_text(kept.kept_us));
    if kept.replayed {
        line("replayed", "yes");
    }
    if let Some(table) = &letter.content.table {
        line("table", table);
    }
    let kind = match (letter.content.delete, letter.content.partial) {
        (true, _) => " (a delete)",
        (false, true) => " (only columns that changed)",
        (false, false) => "",
    };
    if let Some(key) = &letter.key {
        line("key", &bytes(key));
    }
    let value = letter.value.as_deref().map_or_else(|| "none".to_owned(), bytes);
    line(letter.content.holds.name(), &format!("{value}{kind}"));
    for (name, content) in &letter.headers {
        line("header", &format!("{}: {}", plain(&String::from_utf8_lossy(name)), bytes(content)));
    }
    text.push_str("\n\n");
    text
}

/// Text as it is, other bytes in hexadecimal, as in the letters' files.
fn bytes(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => plain(text),
        Err(_) => bytes.iter().fold("hex ".to_owned(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        }),
    }
}

/// Text without what a terminal would obey.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letter::kept::Place;
    use crate::dead_letter::{Content, DeadLetter, Holds, Stage};
    use crate::position::Partition;

    #[test]
    fn a_letter_tells_all_that_is_known_of_it() {
        let letter = DeadLetter {
            stage: Stage::Load,
            plugin: Some("orders".into()),
            code: "refused".into(),
            message: "NULL in `id`\u{7}".into(),
            partition: Partition { source: "orders".into(), number: 3 },
            offset: 42,
            timestamp_us: 1_000_000,
            key: Some(vec![0xff, 0x00]),
            value: Some(b"{\"id\":null}".to_vec()),
            headers: vec![(b"trace".to_vec(), b"7".to_vec())],
            content: Content { holds: Holds::Row, table: Some("sales".into()), ..Content::default() },
        };
        let place = Place { within: "shop-1-0.ndjson".into(), at: 3 };
        let kept = Kept { letter, place, pipeline: "shop".into(), kept_us: 2_000_000, replayed: true };
        assert_eq!(
            as_text(&kept),
            "shop-1-0.ndjson:3  load\n  plugin   orders\n  reason   refused: NULL in `id`\u{fffd}\n  \
             from     orders[3] offset 42\n  dated    1970-01-01T00:00:01Z\n  kept     1970-01-01T00:00:02Z\n  \
             replayed yes\n  table    sales\n  key      hex ff00\n  row      {\"id\":null}\n  header   trace: 7\n\n"
        );
    }
}
