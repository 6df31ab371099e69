//! Rows of a chunk → one NDJSON segment a destination: the last copy before the request body, and
//! often not even that. Pure: no I/O, no clock.

use std::sync::Arc;

use crate::batch::key::KeyHasher;
use crate::batch::stage::TableIndex;
use crate::batch::{FIRST_ROW, PARTIAL_ROW, POSITION_BITS, RowIndex};
use crate::chain::Transformed;
use crate::config::model::TableModel;
use crate::fault::Fault;
use crate::record::{Columns, MARK_DELETE, MARK_VALUE, RecordReject};
use crate::sink::late::Model;

/// What rows need to know of a destination.
#[derive(Debug, Clone)]
pub struct Target {
    /// What a delete may do there.
    pub model: Model,
}

/// A pipeline's destinations, as rows see them.
#[derive(Debug, Clone)]
pub struct Targets {
    /// By index.
    pub tables: Vec<Target>,
    /// The pipeline's own table; none = every row has to be routed.
    pub own: Option<TableIndex>,
    /// Longest row.
    pub row_bytes_max: u64,
    /// Names of the tables, for dead letters.
    pub names: Arc<[Arc<str>]>,
}

impl Targets {
    /// The name of a table.
    pub fn name(&self, table: TableIndex) -> Option<Arc<str>> {
        self.names.get(usize::from(table)).cloned()
    }

    /// Halts: a delete is for a table of which nobody knows what it does with deletes.
    pub fn unknown_model(&self, table: TableIndex) -> Fault {
        let name = self.name(table).unwrap_or_default();
        Fault::halt(
            format!("a delete is for table `{name}`, which was not there when the pipeline started"),
            "make the table, with a Primary Key if it is to take deletes, and start the pipeline again",
        )
    }
}

/// One destination's rows of a chunk.
#[derive(Debug)]
pub struct Segment {
    /// Whose.
    pub table: TableIndex,
    /// NDJSON; each row ends with a line feed.
    pub body: Vec<u8>,
    /// Where rows end, and which record they came from.
    pub index: RowIndex,
}

/// What became of a chunk's rows.
#[derive(Debug, Default)]
pub struct Built {
    /// One a destination that has rows.
    pub segments: Vec<Segment>,
    /// Records of which a row cannot be loaded.
    pub rejects: Vec<RecordReject>,
    /// Distinct records that have rows in segments and were not refused.
    pub kept: u64,
    /// A table that has deletes and was not there when the pipeline started: its rows here are refused.
    pub unknown: Option<TableIndex>,
    /// Distinct records of which a plugin or a destination refused something.
    pub refused: u64,
}

/// Makes the segments. Takes columns out of `chunk` and `transformed` where it can use them as they
/// are; `line_feeds` says that the chunk's values already end with one each. `spare` is memory for a
/// body that has to be copied; it is taken if it was used.
pub fn build(
    chunk: &mut Columns,
    transformed: &mut Transformed,
    targets: &Targets,
    line_feeds: bool,
    spare: &mut Vec<u8>,
) -> Built {
    let whole = whole_column(chunk, transformed, targets, line_feeds, spare)
        .or_else(|| copied_column(chunk, transformed, targets, line_feeds, spare));
    let mut built = match whole {
        Some(segment) => {
            let kept = segment.index.deltas.iter().filter(|delta| **delta & FIRST_ROW != 0).count() as u64;
            Built { segments: vec![segment], kept, ..Built::default() }
        }
        None => row_by_row(chunk, transformed, targets),
    };
    built.rejects.append(&mut chunk.refused);
    built.count_each_record_once(&chunk.offsets, transformed);
    built
}

/// The whole column as one segment, if every row goes to one destination as it is.
fn whole_column(
    chunk: &mut Columns,
    transformed: &mut Transformed,
    targets: &Targets,
    line_feeds: bool,
    spare: &mut Vec<u8>,
) -> Option<Segment> {
    let table = lone_table(chunk, transformed, targets)?;
    let column = match &transformed.values {
        Some(column) => column,
        None if line_feeds && transformed.inputs.is_none() => &chunk.values,
        None => return None,
    };
    let mut start = 0;
    for end in &column.ends {
        let end = *end as usize;
        // A row of white space would be loaded as no row; a leading blank takes the careful way.
        if column.data[start..end].first().is_none_or(u8::is_ascii_whitespace)
            || column.data[end - 1] != b'\n'
            || (end - start) as u64 > targets.row_bytes_max
        {
            return None;
        }
        start = end;
    }
    let index = index_of(chunk, transformed);
    let (body, ends) = match transformed.values.take() {
        Some(column) => (column.data, column.ends),
        None => {
            let body = std::mem::replace(&mut chunk.values.data, std::mem::take(spare));
            (body, std::mem::take(&mut chunk.values.ends))
        }
    };
    Some(Segment { table, body, index: RowIndex { ends, ..index } })
}

/// The one destination of all rows, if there is one and all are upserts with a value.
fn lone_table(chunk: &Columns, transformed: &Transformed, targets: &Targets) -> Option<TableIndex> {
    let table = own_table(chunk, targets)?;
    if transformed.tables.is_some() || !chunk.refused.is_empty() {
        return None;
    }
    let marks = transformed.marks.as_ref().unwrap_or(&chunk.marks);
    let plain = |mark: &u8| mark & (MARK_DELETE | MARK_VALUE) == MARK_VALUE;
    (!marks.is_empty() && marks.iter().all(plain)).then_some(table)
}

/// The records' own values behind one another, for a plugin that changed none: one copy, no checks
/// but the length of each.
fn copied_column(
    chunk: &Columns,
    transformed: &Transformed,
    targets: &Targets,
    line_feeds: bool,
    spare: &mut Vec<u8>,
) -> Option<Segment> {
    let inputs = transformed.inputs.as_ref()?;
    if line_feeds || transformed.values.is_some() || inputs.is_empty() {
        return None;
    }
    let table = lone_table(chunk, transformed, targets)?;
    let mut index = index_of(chunk, transformed);
    index.ends.reserve(inputs.len());
    let mut body = std::mem::take(spare);
    body.clear();
    body.reserve(chunk.values.data.len() + inputs.len());
    for input in inputs {
        let value = chunk.values.get(*input as usize);
        // White space alone would be loaded as no row; the rare leading blank takes the careful way.
        let blank = value.first().is_none_or(u8::is_ascii_whitespace);
        if blank || value.len() as u64 >= targets.row_bytes_max {
            *spare = body;
            return None;
        }
        body.extend_from_slice(value);
        body.push(b'\n');
        index.ends.push(body.len() as u32);
    }
    Some(Segment { table, body, index })
}

/// Deltas of all rows; `ends` is left empty.
fn index_of(chunk: &Columns, transformed: &Transformed) -> RowIndex {
    let base = chunk.offsets.first().copied().unwrap_or(0);
    let rows = transformed.inputs.as_ref().map_or(chunk.len(), Vec::len);
    let mut last = usize::MAX;
    let deltas = (0..rows).map(|row| {
        let input = transformed.input(row);
        let first = if input == last { 0 } else { FIRST_ROW };
        last = input;
        delta(chunk, input, base) | first
    });
    let deltas = deltas.collect();
    let hasher = key_hasher(chunk);
    let keys = hasher
        .map(|hasher| (0..rows).map(|row| hasher.hash(chunk.keys.get(transformed.input(row)))).collect());
    let keys = keys.unwrap_or_default();
    RowIndex { ends: Vec::new(), deltas, keys, base, source: source_of(chunk) }
}

/// Where rows go that no plugin routes.
fn own_table(chunk: &Columns, targets: &Targets) -> Option<TableIndex> {
    chunk.destination.or(targets.own)
}

/// What hashes keys, of records that have their table's keys.
fn key_hasher(chunk: &Columns) -> Option<KeyHasher> {
    let known = chunk.destination.is_some() && chunk.keys.len() == chunk.len();
    known.then(KeyHasher::default)
}

fn source_of(chunk: &Columns) -> Arc<str> {
    chunk.source.clone().unwrap_or_default()
}

/// Position less `base`; a spread of over a thousand million (compacted topics) is cut off, which
/// only makes the position in a dead letter of stage `load` too small.
fn delta(chunk: &Columns, input: usize, base: i64) -> u32 {
    let spread = chunk.offsets[input].saturating_sub(base);
    let place = u32::try_from(spread).unwrap_or(POSITION_BITS).min(POSITION_BITS);
    let partial = !chunk.partial.is_empty() && chunk.partial.binary_search(&(input as u32)).is_ok();
    if partial { place | PARTIAL_ROW } else { place }
}

fn row_by_row(chunk: &Columns, transformed: &Transformed, targets: &Targets) -> Built {
    let base = chunk.offsets.first().copied().unwrap_or(0);
    let rows = transformed.inputs.as_ref().map_or(chunk.len(), Vec::len);
    let mut built = Built::default();
    let mut places: Vec<Option<usize>> = vec![None; targets.tables.len()];
    let own = own_table(chunk, targets);
    let deletes = any_deletes(chunk, transformed, targets, rows);
    let is_unknown = |table: &TableIndex| {
        deletes[usize::from(*table)] && targets.tables[usize::from(*table)].model.get().is_none()
    };
    built.unknown = (0..).take(deletes.len()).find(is_unknown);
    let hasher = key_hasher(chunk);
    let (mut last_kept, mut last_refused) = (usize::MAX, usize::MAX);
    for row in 0..rows {
        let input = transformed.input(row);
        if chunk.refused.binary_search_by_key(&input, |reject| reject.input as usize).is_ok() {
            // Whatever a plugin made of it: there was nothing to make it of.
            continue;
        }
        let mark = transformed.marks.as_ref().map_or_else(|| chunk.marks[input], |marks| marks[row]);
        let value = transformed.values.as_ref().map_or_else(|| chunk.values.get(input), |own| own.get(row));
        let routed = transformed.tables.as_ref().and_then(|tables| tables[row]).or(own);
        let checked = check_row(value, mark, routed, targets);
        let (table, value) = match checked {
            Ok(row) => row,
            Err((code, message)) => {
                // One letter a record, however many of its rows are refused.
                if last_refused != input {
                    last_refused = input;
                    built.rejects.push(RecordReject { input: input as u32, code: code.into(), message });
                }
                continue;
            }
        };
        let place = *places[usize::from(table)].get_or_insert_with(|| {
            let source = source_of(chunk);
            let index = RowIndex { ends: Vec::new(), deltas: Vec::new(), keys: Vec::new(), base, source };
            built.segments.push(Segment { table, body: Vec::new(), index });
            built.segments.len() - 1
        });
        let segment = &mut built.segments[place];
        if deletes[usize::from(table)] {
            append_with_op(value, mark & MARK_DELETE != 0, &mut segment.body);
        } else {
            segment.body.extend_from_slice(value);
        }
        segment.body.push(b'\n');
        segment.index.ends.push(segment.body.len() as u32);
        let first = if input == last_kept { 0 } else { FIRST_ROW };
        if first != 0 {
            built.kept += 1;
        }
        last_kept = input;
        segment.index.deltas.push(delta(chunk, input, base) | first);
        segment.index.keys.extend(hasher.as_ref().map(|hasher| hasher.hash(chunk.keys.get(input))));
    }
    built
}

impl Built {
    /// A record of which one row was refused and another kept counts as dead-lettered only: its other
    /// rows are loaded, and the letter says which one was not.
    fn count_each_record_once(&mut self, offsets: &[i64], transformed: &Transformed) {
        let refused = self.rejects.iter().chain(transformed.rejects.iter().map(|(reject, _)| reject));
        let mut refused: Vec<i64> =
            refused.filter_map(|reject| offsets.get(reject.input as usize).copied()).collect();
        refused.sort_unstable();
        refused.dedup();
        self.refused = refused.len() as u64;
        if refused.is_empty() {
            return;
        }
        for segment in &mut self.segments {
            for delta in &mut segment.index.deltas {
                let offset = segment.index.base + i64::from(*delta & POSITION_BITS);
                if *delta & FIRST_ROW != 0 && refused.binary_search(&offset).is_ok() {
                    *delta &= !FIRST_ROW;
                    self.kept -= 1;
                }
            }
        }
    }
}

/// For each destination, whether the chunk has a delete for it: then all its rows name their op.
fn any_deletes(chunk: &Columns, transformed: &Transformed, targets: &Targets, rows: usize) -> Vec<bool> {
    let mut deletes = vec![false; targets.tables.len()];
    let own = own_table(chunk, targets);
    let marks = transformed.marks.as_ref().unwrap_or(&chunk.marks);
    if marks.iter().all(|mark| mark & MARK_DELETE == 0) {
        return deletes;
    }
    for row in 0..rows {
        let input = transformed.input(row);
        let mark = transformed.marks.as_ref().map_or_else(|| chunk.marks[input], |marks| marks[row]);
        let table = transformed.tables.as_ref().and_then(|tables| tables[row]).or(own);
        if let Some(table) = table.filter(|_| mark & MARK_DELETE != 0) {
            deletes[usize::from(table)] = true;
        }
    }
    deletes
}

/// The row's destination and its bytes without white space at the ends, or why it cannot be loaded.
fn check_row<'a>(
    value: &'a [u8],
    mark: u8,
    table: Option<TableIndex>,
    targets: &Targets,
) -> Result<(TableIndex, &'a [u8]), (&'static str, String)> {
    let Some(table) = table else {
        let why = "no plugin routed the row to a table and the pipeline has none of its own".to_owned();
        return Err(("unrouted", why));
    };
    let delete = mark & MARK_DELETE != 0;
    if delete {
        let why = match targets.tables[usize::from(table)].model.get() {
            Some(TableModel::Primary) => None,
            Some(model) => Some(format!("a delete cannot be loaded into a table of the {} model", model.name())),
            None => Some(
                "a delete cannot be loaded into a table that was not there when the pipeline started: make it, and start \
                 again"
                    .to_owned(),
            ),
        };
        if let Some(why) = why {
            return Err(("delete", why));
        }
    }
    if mark & MARK_VALUE == 0 {
        let why = "a record without a value (tombstone) needs a plugin that makes the key columns of its key";
        return Err(("no_value", why.to_owned()));
    }
    let value = value.trim_ascii();
    if value.is_empty() {
        return Err(("empty", "the value is empty".to_owned()));
    }
    if value.len() as u64 >= targets.row_bytes_max {
        let why =
            format!("the row has {} bytes, [batch] max_bytes is {}", value.len(), targets.row_bytes_max);
        return Err(("oversize", why));
    }
    if delete && !(value.starts_with(b"{") && value.ends_with(b"}")) {
        return Err(("not_an_object", "the value of a delete is not a JSON object".to_owned()));
    }
    Ok((table, value))
}

/// Splices `__op` into a JSON object. A row that is no object is left as it is: StarRocks refuses it.
fn append_with_op(value: &[u8], delete: bool, body: &mut Vec<u8>) {
    let Some(open) = value.strip_suffix(b"}") else {
        body.extend_from_slice(value);
        return;
    };
    body.extend_from_slice(open);
    if open.trim_ascii() != b"{" {
        body.push(b',');
    }
    body.extend_from_slice(if delete { b"\"__op\":1}" } else { b"\"__op\":0}" });
}

#[cfg(test)]
mod tests;
