//! Letters as chunks for a lane: records of one partition that take the same way, in the order of their offsets.

use super::table_index;
use crate::batch::POSITION_BITS;
use crate::batch::stage::TableIndex;
use crate::dead_letter::Holds;
use crate::dead_letter::kept::{Kept, Place};
use crate::position::Partition;
pub use crate::record::Columns;
use crate::record::{MARK_DELETE, MARK_KEY, MARK_VALUE};

/// Records of a chunk.
const CHUNK_RECORDS_MAX: usize = 4_096;
/// A chunk ends behind the record that fills it.
const CHUNK_BYTES_MAX: usize = 1 << 20;

/// How a letter goes through the pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// A record: through the plugins.
    ThroughPlugins = 0,
    /// A row, which plugins have made: straight into its table.
    PastPlugins = 1,
}

/// Letters of one chunk.
#[derive(Debug)]
pub struct Chunk {
    /// Their records.
    pub columns: Columns,
    /// Where those came from.
    pub partition: Partition,
    /// The letters, each with the offset of its record, ascending.
    pub letters: Vec<(i64, Place)>,
    /// How they go.
    pub way: Way,
}

/// The way of a letter, and its table if the letter knows it. `tables` are the pipeline's; `tombstones` = its source has
/// records that have no value.
///
/// # Errors
/// Why it cannot be replayed.
pub fn way_of(kept: &Kept, tables: &[String], tombstones: bool) -> Result<(Way, Option<TableIndex>), String> {
    let (letter, content) = (&kept.letter, &kept.letter.content);
    if letter.value.is_none() && !tombstones {
        return Err("the source itself could not make a row of it, so the letter holds none: mend the row at its source".to_owned());
    }
    if content.partial {
        return Err("it holds only the columns that changed, and would set the others to NULL: change the row at its \
                    source once more, or copy its table again"
            .to_owned());
    }
    let way = match content.holds {
        Holds::Record => Way::ThroughPlugins,
        Holds::Row => Way::PastPlugins,
    };
    let table = match &content.table {
        Some(name) => Some(table_index(tables, name).ok_or_else(|| {
            format!("its table `{name}` is not one of the pipeline's: add it to [sink.starrocks] tables")
        })?),
        None if way == Way::PastPlugins => return Err("it does not say which table its row is of".to_owned()),
        None => None,
    };
    Ok((way, table))
}

/// Gathers letters into chunks.
#[derive(Debug)]
pub struct Chunks {
    open: Option<Chunk>,
    /// The lanes of a pipeline without plugins take values that end with a line feed each.
    line_feeds: bool,
}

impl Chunks {
    /// None yet.
    pub fn new(line_feeds: bool) -> Chunks {
        Chunks { open: None, line_feeds }
    }

    /// Adds a letter; returns the chunk before it if it does not fit in there.
    pub fn add(&mut self, kept: Kept, way: Way, table: Option<TableIndex>) -> Option<Chunk> {
        let full = if self.open.as_ref().is_some_and(|open| !open.takes(&kept, way, table)) {
            self.open.take()
        } else {
            None
        };
        let open = self.open.get_or_insert_with(|| Chunk {
            columns: Columns {
                source: Some(kept.letter.partition.source.clone()),
                destination: table,
                ..Columns::default()
            },
            partition: kept.letter.partition.clone(),
            letters: Vec::new(),
            way,
        });
        open.push(kept, self.line_feeds);
        full
    }

    /// The last chunk.
    pub fn finish(self) -> Option<Chunk> {
        self.open
    }
}

impl Chunk {
    fn takes(&self, kept: &Kept, way: Way, table: Option<TableIndex>) -> bool {
        let letter = &kept.letter;
        let same = self.way == way && self.columns.destination == table && self.partition == letter.partition;
        // A letter is told by its offset when it is refused again, so offsets differ within a chunk.
        let (first, last) = match self.letters.as_slice() {
            [] => return same,
            [(first, _)] => (first, first),
            [(first, _), .., (last, _)] => (first, last),
        };
        let near = letter.offset > *last && letter.offset.saturating_sub(*first) < i64::from(POSITION_BITS);
        same && near && self.letters.len() < CHUNK_RECORDS_MAX && self.columns.data_bytes() < CHUNK_BYTES_MAX
    }

    fn push(&mut self, kept: Kept, line_feed: bool) {
        let Kept { letter, place, .. } = kept;
        let columns = &mut self.columns;
        let mut mark = match (&letter.value, letter.content.delete) {
            (None, _) => MARK_DELETE,
            (Some(_), true) => MARK_VALUE | MARK_DELETE,
            (Some(_), false) => MARK_VALUE,
        };
        if letter.key.is_some() {
            mark |= MARK_KEY;
        }
        columns.marks.push(mark);
        let mut value = letter.value.unwrap_or_default();
        if line_feed {
            value.push(b'\n');
        }
        columns.values.push(&value);
        if self.way == Way::ThroughPlugins {
            columns.keys.push(letter.key.as_deref().unwrap_or_default());
        }
        columns.timestamps.push(letter.timestamp_us);
        columns.partitions.push(letter.partition.number);
        columns.offsets.push(letter.offset);
        for (name, content) in &letter.headers {
            columns.headers.names.push(name);
            columns.headers.contents.push(content);
        }
        columns.headers.end_record();
        self.letters.push((letter.offset, place));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letter::{Content, DeadLetter, Stage};

    fn kept(number: u32, offset: i64) -> Kept {
        let letter = DeadLetter {
            stage: Stage::Transform,
            plugin: None,
            code: "parse".into(),
            message: "no".into(),
            partition: Partition { source: "orders".into(), number },
            offset,
            timestamp_us: 7,
            key: Some(b"k".to_vec()),
            value: Some(b"{}".to_vec()),
            headers: vec![(b"trace".to_vec(), b"t".to_vec())],
            content: Content::default(),
        };
        let place = Place { within: "f".into(), at: offset };
        Kept { letter, place, pipeline: "shop".into(), kept_us: 0, replayed: false }
    }

    fn offsets(chunk: &Chunk) -> Vec<i64> {
        chunk.letters.iter().map(|(offset, _)| *offset).collect()
    }

    #[test]
    fn a_chunk_has_one_partition_one_way_and_rising_offsets() {
        let mut chunks = Chunks::new(false);
        let mut done = Vec::new();
        let through = Way::ThroughPlugins;
        let letters = [
            (kept(0, 1), through),
            (kept(0, 4), through),
            // Kept twice, or of another request of HTTP.
            (kept(0, 4), through),
            (kept(1, 5), through),
            (kept(1, 6), Way::PastPlugins),
            (kept(1, 7 + i64::from(POSITION_BITS)), Way::PastPlugins),
        ];
        for (letter, way) in letters {
            done.extend(chunks.add(letter, way, None));
        }
        done.extend(chunks.finish());
        let expected = [vec![1, 4], vec![4], vec![5], vec![6], vec![7 + i64::from(POSITION_BITS)]];
        assert_eq!(done.iter().map(offsets).collect::<Vec<_>>(), expected);
        assert!(done[3].columns.keys.is_empty(), "rows have no use for a key");
    }

    #[test]
    fn a_record_is_as_it_was_read() {
        let mut chunks = Chunks::new(true);
        let mut tombstone = kept(3, 9);
        tombstone.letter.value = None;
        tombstone.letter.key = None;
        let mut delete = kept(3, 10);
        delete.letter.content.delete = true;
        for letter in [kept(3, 8), tombstone, delete] {
            assert!(chunks.add(letter, Way::ThroughPlugins, None).is_none());
        }
        let columns = chunks.finish().expect("a chunk").columns;
        assert_eq!(columns.source(), "orders");
        assert_eq!(columns.values.iter().collect::<Vec<_>>(), [&b"{}\n"[..], b"\n", b"{}\n"]);
        let marks = [MARK_VALUE | MARK_KEY, MARK_DELETE, MARK_VALUE | MARK_DELETE | MARK_KEY];
        assert_eq!(columns.marks, marks);
        assert_eq!((columns.offsets, columns.partitions), (vec![8, 9, 10], vec![3, 3, 3]));
        assert_eq!(columns.timestamps, [7, 7, 7]);
        assert_eq!(columns.headers.pairs(2).collect::<Vec<_>>(), [(&b"trace"[..], &b"t"[..])]);
    }

    #[test]
    fn what_cannot_be_replayed_says_why() {
        let tables = ["sales".to_owned(), "orders".to_owned()];
        let with = |content: Content| {
            let mut kept = kept(0, 1);
            kept.letter.content = content;
            way_of(&kept, &tables, false)
        };
        let row = Content { holds: Holds::Row, ..Content::default() };
        assert_eq!(with(Content::default()), Ok((Way::ThroughPlugins, None)));
        let in_orders = Content { table: Some("orders".into()), ..row.clone() };
        assert_eq!(with(in_orders.clone()), Ok((Way::PastPlugins, Some(1))));
        assert!(with(row.clone()).unwrap_err().contains("which table"));
        let elsewhere = Content { table: Some("gone".into()), ..row };
        assert!(with(elsewhere).unwrap_err().contains("`gone`"));
        let partial = Content { partial: true, ..in_orders };
        assert!(with(partial).unwrap_err().contains("NULL"));
        let mut empty = kept(0, 1);
        empty.letter.value = None;
        assert!(way_of(&empty, &tables, false).is_err());
        assert_eq!(way_of(&empty, &tables, true), Ok((Way::ThroughPlugins, None)));
    }
}
