//! Which pieces of which tables are copied, by which statements. Pure.

use crate::source::postgres::facts::{Facts, Relation};
use crate::source::postgres::quote::{identifier, table};
use crate::source::postgres::table::{Table, TableName};

/// Ranges of a large table for each worker: when one worker is left with the last range, it is a small one.
const RANGES_PER_WORKER: u64 = 4;
/// Rows of a range, or a large table's ranges would take hours each.
const ROWS_PER_RANGE: u64 = 250_000;
/// Pages of a range at least (2 MiB): a range costs a round trip.
const PAGES_PER_RANGE_MIN: u64 = 256;
/// Rows on a page of a table that was never analysed.
const ROWS_PER_PAGE_GUESS: u64 = 60;

/// A table to be copied.
#[derive(Debug, Clone, PartialEq)]
pub struct CopyTable {
    /// The table and its published columns, in the order in which they are copied.
    pub table: Table,
    /// What holds its rows: itself, or its partitions.
    pub heaps: Vec<Heap>,
    /// The publication's condition on the rows, as SQL.
    pub filter: Option<String>,
}

/// A table that holds rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heap {
    /// Its name.
    pub name: TableName,
    /// Pages, as its file's length says; it may grow meanwhile.
    pub pages: u64,
    /// Rows; an estimate.
    pub rows: u64,
}

/// A piece of a table: the rows on some of its pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// Place of the table in [`CopyPlan::tables`].
    pub table: usize,
    /// Place of the heap in [`CopyTable::heaps`].
    pub heap: usize,
    /// First page; none = from the beginning.
    pub from_page: Option<u64>,
    /// Page behind the last one; none = to the end, wherever that is by then.
    pub to_page: Option<u64>,
    /// Pages; an estimate.
    pub pages: u64,
    /// Rows; an estimate.
    pub rows: u64,
}

/// Everything that one snapshot copies.
#[derive(Debug, Clone, PartialEq)]
pub struct CopyPlan {
    /// The tables.
    pub tables: Vec<CopyTable>,
    /// Their pieces, the biggest first, so that the workers end together.
    pub ranges: Vec<Range>,
}

impl CopyPlan {
    /// Cuts tables for so many workers.
    pub fn new(tables: Vec<CopyTable>, workers: usize) -> CopyPlan {
        let mut ranges = Vec::new();
        for (table, copied) in tables.iter().enumerate() {
            for (heap, held) in copied.heaps.iter().enumerate() {
                cut(table, heap, held, workers, &mut ranges);
            }
        }
        ranges.sort_by_key(|range| std::cmp::Reverse(range.pages));
        CopyPlan { tables, ranges }
    }

    /// Cuts those of the tables to be followed that `wanted` names, as the publication has them.
    pub fn of(facts: &Facts, workers: usize, wanted: impl Fn(&TableName) -> bool) -> CopyPlan {
        let copied = |relation: &Relation| CopyTable {
            table: facts.table(relation),
            heaps: facts.heaps(relation).into_iter().map(|heap| measure(facts, heap)).collect(),
            filter: facts.published(relation).and_then(|published| published.filter.clone()),
        };
        let tables =
            facts.chosen().into_iter().filter(|relation| wanted(&relation.name)).map(copied).collect();
        CopyPlan::new(tables, workers)
    }

    /// The statement that copies a range, in the text format. None for a range of another plan.
    pub fn statement(&self, range: &Range) -> Option<String> {
        let copied = self.tables.get(range.table)?;
        let heap = copied.heaps.get(range.heap)?;
        let columns: Vec<String> =
            copied.table.columns.iter().map(|column| identifier(&column.name)).collect();
        let from = range.from_page.map(|page| format!("ctid >= '({page},0)'::tid"));
        let to = range.to_page.map(|page| format!("ctid < '({page},0)'::tid"));
        let filter = copied.filter.as_ref().map(|filter| format!("({filter})"));
        let conditions: Vec<String> = [from, to, filter].into_iter().flatten().collect();
        let condition = if conditions.is_empty() {
            String::new()
        } else {
            format!(" WHERE {}", conditions.join(" AND "))
        };
        // Only: tables that inherit from it are tables of their own.
        Some(format!(
            "COPY (SELECT {} FROM ONLY {}{condition}) TO STDOUT",
            columns.join(", "),
            table(&heap.name)
        ))
    }

    /// Rows of all tables; an estimate.
    pub fn rows(&self) -> u64 {
        self.ranges.iter().map(|range| range.rows).sum()
    }
}

fn measure(facts: &Facts, heap: &Relation) -> Heap {
    let pages = heap.pages(facts.server.page_bytes);
    // The planner's estimate stems from the last ANALYZE; none was made yet = -1, or 0 before PostgreSQL 14.
    let known = heap.rows > 0.0;
    let rows = if known { heap.rows as u64 } else { pages.saturating_mul(ROWS_PER_PAGE_GUESS) };
    Heap { name: heap.name.clone(), pages, rows }
}

fn cut(table: usize, heap: usize, held: &Heap, workers: usize, ranges: &mut Vec<Range>) {
    let wanted = RANGES_PER_WORKER.saturating_mul(workers as u64).max(held.rows / ROWS_PER_RANGE);
    let count = wanted.clamp(1, (held.pages / PAGES_PER_RANGE_MIN).max(1));
    let border = |index: u64| u64::try_from(u128::from(held.pages) * u128::from(index) / u128::from(count));
    for index in 0..count {
        let from = border(index).unwrap_or(u64::MAX);
        let to = border(index + 1).unwrap_or(u64::MAX);
        ranges.push(Range {
            table,
            heap,
            from_page: (index > 0).then_some(from),
            to_page: (index + 1 < count).then_some(to),
            pages: to - from,
            rows: held.rows / count,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::postgres::facts::{Kind, Named, Published};
    use crate::source::postgres::preflight::fixtures::{add, change, facts, relation};

    fn plan(pages: u64, rows: u64, workers: usize) -> CopyPlan {
        let facts = facts();
        let table = facts.table(&facts.relations[&1]);
        let heap = Heap { name: table.name.clone(), pages, rows };
        CopyPlan::new(vec![CopyTable { table, heaps: vec![heap], filter: None }], workers)
    }

    #[test]
    fn a_table_is_cut_by_workers_rows_and_pages() {
        for (pages, rows, workers, expected) in [
            (0, 0, 4, 1),
            (255, 1000, 4, 1),
            (1024, 1000, 4, 4),
            (1 << 20, 1000, 4, 16),
            (1 << 20, 100_000_000, 4, 400),
            (u64::MAX, 1, 1, 4),
        ] {
            let plan = plan(pages, rows, workers);
            assert_eq!(plan.ranges.len(), expected, "{pages} pages, {rows} rows, {workers} workers");
        }
    }

    #[test]
    fn ranges_leave_no_page_out_and_are_open_at_both_ends() {
        for pages in [1, 300, 1000, 4097, 12345] {
            let mut ranges = plan(pages, 5_000_000, 3).ranges;
            ranges.sort_by_key(|range| range.from_page);
            assert_eq!(ranges.first().map(|range| range.from_page), Some(None));
            assert_eq!(ranges.last().map(|range| range.to_page), Some(None));
            for pair in ranges.windows(2) {
                assert!(pair[0].to_page.is_some());
                assert_eq!(pair[0].to_page, pair[1].from_page);
            }
            assert_eq!(ranges.iter().map(|range| range.pages).sum::<u64>(), pages);
        }
    }

    #[test]
    fn a_range_is_copied_with_the_publications_columns_and_filter() {
        let mut facts = facts();
        let publication = facts.publication.as_mut().expect("the fixture has one");
        let published =
            Published { columns: Some(vec!["id".to_owned()]), filter: Some("(id > 5)".to_owned()) };
        publication.tables.insert(1, published);
        change(&mut facts, 1).bytes = 8192 * 512;
        let plan = CopyPlan::of(&facts, 1, |_| true);
        let statements: Vec<String> = plan.ranges.iter().filter_map(|range| plan.statement(range)).collect();
        assert_eq!(
            statements,
            [
                "COPY (SELECT \"id\" FROM ONLY \"public\".\"orders\" WHERE ctid < '(256,0)'::tid AND ((id > 5))) TO STDOUT",
                "COPY (SELECT \"id\" FROM ONLY \"public\".\"orders\" WHERE ctid >= '(256,0)'::tid AND ((id > 5))) TO STDOUT",
            ]
        );
    }

    #[test]
    fn partitions_are_copied_one_by_one_into_their_table_the_biggest_first() {
        let mut facts = facts();
        let mut root = relation(2, "public.events");
        root.kind = Kind::Partitioned;
        add(&mut facts, [root]);
        for (oid, name, pages) in [(3, "public.events_a", 1), (4, "public.events_b", 9)] {
            let mut leaf = relation(oid, name);
            (leaf.parent, leaf.named, leaf.bytes) = (Some(2), Named::AsPartition, pages * 8192);
            add(&mut facts, [leaf]);
        }
        let plan = CopyPlan::of(&facts, 1, |name| &*name.name == "events");
        let statements: Vec<String> = plan.ranges.iter().filter_map(|range| plan.statement(range)).collect();
        assert_eq!(plan.tables.len(), 1);
        assert_eq!(
            statements,
            [
                "COPY (SELECT \"id\", \"name\" FROM ONLY \"public\".\"events_b\") TO STDOUT",
                "COPY (SELECT \"id\", \"name\" FROM ONLY \"public\".\"events_a\") TO STDOUT",
            ]
        );
    }
}
