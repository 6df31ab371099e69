//! The bar of a copy, for whoever watches.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use indicatif::{BinaryBytes, HumanCount, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use super::copy::{Progress, Reached};
use super::plan::CopyPlan;
use crate::meter::bars;

/// Tables that are named at a time.
const NAMES_MAX: usize = 3;
/// Rows by the server's estimate, and below them what the estimate is not for: on 80 columns both are seen.
const TEMPLATE: &str =
    "{prefix} {bar:16} {percent:>3} % {human_pos}/{human_len} rows, {rate}, {eta} left\n  {wide_msg}";

/// The bar of one copy; gone when it is dropped.
#[derive(Debug)]
pub struct CopyBar {
    plan: Arc<CopyPlan>,
    progress: Arc<Progress>,
    /// None where nobody watches.
    bar: Option<ProgressBar>,
}

impl CopyBar {
    /// A bar named after the pipeline.
    pub fn new(pipeline: &str, plan: &Arc<CopyPlan>, progress: &Arc<Progress>) -> CopyBar {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        style(&bar, pipeline);
        CopyBar { plan: Arc::clone(plan), progress: Arc::clone(progress), bar: bars::place(bar) }
    }

    /// Whether somebody watches.
    pub fn is_drawn(&self) -> bool {
        self.bar.is_some()
    }

    /// Draws how far the copy is; often, if need be: it is drawn some twenty times a second at most.
    pub fn show(&self) {
        let Some(bar) = &self.bar else { return };
        let reached = self.progress.reached();
        let tables = self.progress.tables().into_iter().filter_map(|table| self.plan.tables.get(table));
        let names: Vec<String> = tables.map(|copied| copied.table.name.to_string()).collect();
        draw(bar, &reached, &names);
    }
}

impl Drop for CopyBar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn style(bar: &ProgressBar, pipeline: &str) {
    let rate = |state: &ProgressState, out: &mut dyn fmt::Write| {
        // A bar that cannot be written is not seen either.
        let _ = write!(out, "{}/s", HumanCount(state.per_sec() as u64));
    };
    // The template is a constant, which a test draws.
    if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
        bar.set_style(style.with_key("rate", rate));
    }
    bar.set_prefix(pipeline.to_owned());
}

fn draw(bar: &ProgressBar, reached: &Reached, tables: &[String]) {
    // There may be more rows than the server guessed.
    bar.set_length(reached.rows_expected.max(reached.rows).max(1));
    bar.set_position(reached.rows);
    bar.set_message(rest(reached, tables));
}

/// What a bar of rows does not say: bytes, ranges, and the tables that are being read.
fn rest(reached: &Reached, tables: &[String]) -> String {
    let Reached { ranges, ranges_expected, bytes, .. } = *reached;
    let mut text = format!("{}, range {ranges}/{ranges_expected}", BinaryBytes(bytes));
    if ranges == ranges_expected {
        text.push_str(", waiting for the last loads");
    }
    for (place, name) in tables.iter().take(NAMES_MAX).enumerate() {
        text.push_str(if place == 0 { ": " } else { ", " });
        text.push_str(name);
    }
    if tables.len() > NAMES_MAX {
        // Writing to a string cannot fail.
        let _ = write!(text, " and {} more", tables.len() - NAMES_MAX);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Mutex, PoisonError};

    use indicatif::TermLike;

    use super::*;

    fn reached(ranges: usize, rows: u64) -> Reached {
        Reached { ranges, ranges_expected: 20, rows, rows_expected: 5_000_000, bytes: 3 << 20 }
    }

    #[test]
    fn what_is_read_is_named() {
        let names = |count: usize| (0..count).map(|n| format!("public.t{n}")).collect::<Vec<_>>();
        for (ranges, count, expected) in [
            (3, 0, "3.00 MiB, range 3/20"),
            (3, 1, "3.00 MiB, range 3/20: public.t0"),
            (3, 3, "3.00 MiB, range 3/20: public.t0, public.t1, public.t2"),
            (3, 5, "3.00 MiB, range 3/20: public.t0, public.t1, public.t2 and 2 more"),
            (20, 0, "3.00 MiB, range 20/20, waiting for the last loads"),
        ] {
            assert_eq!(rest(&reached(ranges, 0), &names(count)), expected);
        }
    }

    /// A terminal that remembers what it was told to write.
    #[derive(Debug, Clone, Default)]
    struct Paper(Arc<Mutex<String>>);

    impl Paper {
        fn add(&self, text: &str) -> io::Result<()> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push_str(text);
            Ok(())
        }
    }

    impl TermLike for Paper {
        fn width(&self) -> u16 {
            80
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> io::Result<()> {
            self.add(text)
        }
        fn write_str(&self, text: &str) -> io::Result<()> {
            self.add(text)
        }
        fn clear_line(&self) -> io::Result<()> {
            self.add("\n")
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_bar_has_all_figures() {
        let paper = Paper::default();
        let target = ProgressDrawTarget::term_like(Box::new(paper.clone()));
        let bar = ProgressBar::with_draw_target(None, target);
        style(&bar, "shop");
        draw(&bar, &reached(7, 1_250_000), &["public.orders".to_owned()]);
        bar.force_draw();
        let drawn = paper.0.lock().expect("a page").clone();
        // Lines are filled up to the terminal's width and written without an end.
        let last = drawn.lines().last().expect("it is drawn");
        let (rows, rest) = last.split_once(" left ").expect("two parts");
        assert!(rows.starts_with("shop █") && rows.contains("  25 % 1,250,000/5,000,000 rows, "), "{last:?}");
        assert!(rows.contains("/s, ") && rows.chars().count() < 80, "{last:?}");
        assert_eq!(rest.trim(), "3.00 MiB, range 7/20: public.orders");
        // More rows than were expected are all rows.
        draw(&bar, &reached(7, 6_000_000), &[]);
        assert_eq!((bar.position(), bar.length()), (6_000_000, Some(6_000_000)));
    }
}
