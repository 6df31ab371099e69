//! The results as a page.

use std::fmt::Write as _;

use crate::contest::Results;
use crate::stages::Stage;
use crate::stand::Run;

/// What stands behind this line in the page is written by people and kept.
const NOTES: &str = "<!-- notes: kept when the benchmark runs again -->";

/// The one in the middle.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn median_of(results: &Results, of: impl Fn(&Run) -> f64) -> f64 {
    median(results.runs.iter().map(of).collect())
}

/// The stages' table.
pub(crate) fn stages(stages: &[Stage]) -> String {
    let mut text =
        String::from("| stage | chunk | ns per record (median) | fastest to slowest |\n|---|---|---|---|\n");
    for stage in stages {
        let _ = writeln!(
            text,
            "| {} | {} | {:.1} | {:.1} to {:.1} |",
            stage.name, stage.chunk_records, stage.ns_per_record, stage.spread.0, stage.spread.1
        );
    }
    text
}

/// The whole page, without notes.
pub(crate) fn page(all: &[Results], measured: &[Stage], records: u64, rounds: usize) -> String {
    let mut text = format!(
        "# Benchmarks\n\nWritten by `cargo xtask bench`: {records} JSON orders of about 240 bytes in 4 partitions of a real \
         Kafka 4.1, the sandbox with `--keep none`, {rounds} rounds in turn, medians. Broker, sandbox and contestant share \
         the machine's cores; its speed drifts, so that only ratios within one run mean anything. CPU-s are user + system \
         time of the contestant's process, its start included.\n\n{}\n## End to end\n\n\
         | contestant | batch | records/s | CPU-s per M records | peak RSS | loads |\n|---|---|---|---|---|---|\n",
        machine()
    );
    let millions = records as f64 / 1e6;
    for results in all {
        let seconds = median_of(results, |run| run.seconds);
        let _ = writeln!(
            text,
            "| {} | {} | {:.0} | {:.2} | {:.0} MiB | {} |",
            results.contestant.name,
            results.contestant.batch.name,
            records as f64 / seconds,
            median_of(results, |run| run.cpu_s) / millions,
            median_of(results, |run| run.peak_bytes as f64) / f64::from(1 << 20),
            median_of(results, |run| run.loads as f64),
        );
    }
    text.push_str(&ratios(all));
    let _ = write!(text, "\n## Stages\n\n{}", stages(measured));
    text
}

/// The ratios' table: ours to their limit, and what exactly_once costs more than at_least_once.
fn ratios(all: &[Results]) -> String {
    let mut text = String::from("\n## Ratios\n\n| of | to | CPU | records/s |\n|---|---|---|---|\n");
    for (ours, limit, batch) in [
        ("tidemill, orders", "native loop, orders", "10,000 rows"),
        ("tidemill, orders", "native loop, orders", "defaults"),
        ("tidemill, passthrough", "native loop, no transform", "10,000 rows"),
        ("tidemill, no plugin", "native loop, no transform", "10,000 rows"),
        ("tidemill, passthrough, exactly_once", "tidemill, passthrough", "defaults"),
        ("tidemill, orders, exactly_once", "tidemill, orders", "defaults"),
    ] {
        let find = |name: &str| {
            all.iter().find(|one| one.contestant.name == name && one.contestant.batch.name == batch)
        };
        let (Some(ours), Some(limit)) = (find(ours), find(limit)) else { continue };
        let ratio = |of: fn(&Run) -> f64| median_of(ours, of) / median_of(limit, of);
        let _ = writeln!(
            text,
            "| {} ({batch}) | {} | {:.2} | {:.2} |",
            ours.contestant.name,
            limit.contestant.name,
            ratio(|run| run.cpu_s),
            1.0 / ratio(|run| run.seconds),
        );
    }
    text
}

fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let model = model.map_or("unknown", |(_, model)| model.trim());
    format!("Machine: {cores} cores, {model}.\n")
}

/// The page with the notes that were in the file before.
pub(crate) fn with_notes(before: &str, text: &str) -> String {
    let notes = before.split_once(NOTES).map_or("\n", |(_, notes)| notes);
    format!("{text}\n{NOTES}{notes}")
}

/// The page with a section in the place of the one of the same heading, or before the notes.
pub(crate) fn with_section(before: &str, heading: &str, section: &str) -> String {
    let (page, notes) = before.split_once(NOTES).unwrap_or((before, "\n"));
    let head = format!("\n## {heading}\n");
    let (above, old) = page.split_once(&head).unwrap_or((page, ""));
    let below = old.find("\n## ").and_then(|place| old.get(place..)).unwrap_or_default();
    let page = format!("{}\n{head}\n{}\n{below}", above.trim_end(), section.trim_end());
    format!("{}\n\n{NOTES}{notes}", page.trim_end())
}

#[cfg(test)]
mod tests {
    use super::{NOTES, with_section};

    #[test]
    fn a_section_takes_the_place_of_its_predecessor() {
        let page = format!("# Page\n\n## First\n\none\n\n{NOTES}\n\nnotes\n");
        let page = with_section(&page, "Second", "two\n");
        assert_eq!(page, format!("# Page\n\n## First\n\none\n\n## Second\n\ntwo\n\n{NOTES}\n\nnotes\n"));
        let page = with_section(&page, "First", "1\n");
        assert_eq!(page, format!("# Page\n\n## First\n\n1\n\n## Second\n\ntwo\n\n{NOTES}\n\nnotes\n"));
    }
}
