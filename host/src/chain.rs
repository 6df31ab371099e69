//! The plugins of a lane, one behind the other: a chunk in, where each row came from and goes to out.

use std::sync::Arc;

use crate::batch::stage::TableIndex;
use crate::fault::Fault;
use crate::plugin::{Guest, Plugin, TABLE_UNROUTED, process_isolated};
use crate::position::Partition;
use crate::record::{Answer, BytesColumn, Columns, HeaderColumn, RecordReject};

mod verify;

pub use verify::{CHUNKS_PER_SAMPLE, Sampling};

/// What the chain made of a chunk.
#[derive(Debug, Default)]
pub struct Transformed {
    /// The chunk's record of each row; none = row `i` is record `i`.
    pub inputs: Option<Vec<u32>>,
    /// Destination of each row; none = the pipeline's own table for all.
    pub tables: Option<Vec<Option<TableIndex>>>,
    /// Values of the rows; none = those of their records.
    pub values: Option<BytesColumn>,
    /// Marks of the rows; none = those of their records.
    pub marks: Option<Vec<u8>>,
    /// Refused records, with the plugin that refused them.
    pub rejects: Vec<(RecordReject, Arc<str>)>,
    /// Each plugin has answered the same once more.
    pub verified: bool,
}

impl Transformed {
    /// The chunk's record of row `row`.
    pub fn input(&self, row: usize) -> usize {
        self.inputs.as_ref().map_or(row, |inputs| inputs[row] as usize)
    }
}

/// One plugin of the chain, with this lane's instance of it.
struct Link {
    guest: Guest,
    name: Arc<str>,
    /// Destination of each table that the plugin declares; none = the pipeline's own.
    tables: Vec<Option<TableIndex>>,
}

/// A lane's chain.
pub struct Chain {
    links: Vec<Link>,
    /// Output of one link, input of the next.
    between: Columns,
    spare: Columns,
    scratch: Columns,
}

/// Maps a plugin's declared tables to the pipeline's destinations.
pub type TablesOf<'a> = dyn Fn(&Plugin) -> Vec<Option<TableIndex>> + 'a;

impl Chain {
    /// Starts an instance of each plugin.
    ///
    /// # Errors
    /// If a plugin cannot be started or does not take its configuration.
    pub fn start(plugins: &[Arc<Plugin>], tables_of: &TablesOf<'_>) -> Result<Chain, Fault> {
        let mut links = Vec::with_capacity(plugins.len());
        for plugin in plugins {
            let guest = Guest::new(Arc::clone(plugin))?;
            links.push(Link { guest, name: plugin.name.as_str().into(), tables: tables_of(plugin) });
        }
        Ok(Chain {
            links,
            between: Columns::default(),
            spare: Columns::default(),
            scratch: Columns::default(),
        })
    }

    /// Name of the last plugin, for dead letters of rows.
    pub fn last_plugin(&self) -> Option<Arc<str>> {
        self.links.last().map(|link| Arc::clone(&link.name))
    }

    /// Runs a chunk through all plugins. If it is to be verified, which needs the partition that it came from, each of
    /// them has to answer the same once more, on a fresh instance.
    ///
    /// # Errors
    /// Retry, if a plugin asked for it: the same chunk may be processed again. Halt otherwise.
    pub fn process(&mut self, chunk: &Columns, verify: Option<&Partition>) -> Result<Transformed, Fault> {
        let mut whole = Transformed::default();
        let several = self.links.len() > 1;
        let mut compared = verify.is_some();
        for (place, link) in self.links.iter_mut().enumerate() {
            let input = if place == 0 { chunk } else { &self.between };
            let answer = process_isolated(&mut link.guest, input, &mut self.scratch)?;
            if let Some(partition) = verify {
                compared &=
                    verify::ask_again(link.guest.plugin(), (input, partition), &answer, &mut self.scratch)?;
            }
            if several {
                carry_over(input, &answer, &mut self.spare);
            }
            whole.follow(answer, link);
            std::mem::swap(&mut self.between, &mut self.spare);
        }
        if several {
            whole.values = Some(std::mem::take(&mut self.between.values));
            whole.marks = Some(std::mem::take(&mut self.between.marks));
        }
        whole.verified = compared;
        Ok(whole)
    }
}

/// Makes the rows of one link the records of the next.
fn carry_over(input: &Columns, answer: &Answer, rows: &mut Columns) {
    rows.clear();
    rows.source.clone_from(&input.source);
    for (row, record) in answer.inputs.iter().enumerate() {
        let record = *record as usize;
        let bytes = |own: &Option<BytesColumn>, theirs: &BytesColumn, into: &mut BytesColumn| match own {
            Some(column) => into.push(column.get(row)),
            None => into.push(theirs.get(record)),
        };
        bytes(&answer.values, &input.values, &mut rows.values);
        bytes(&answer.keys, &input.keys, &mut rows.keys);
        // A column that nobody wants was not gathered and stays empty.
        fn own_or<T: Copy>(own: Option<&Vec<T>>, row: usize, theirs: &[T], record: usize) -> Option<T> {
            own.map_or_else(|| theirs.get(record), |column| column.get(row)).copied()
        }
        rows.marks.extend(own_or(answer.marks.as_ref(), row, &input.marks, record));
        rows.timestamps.extend(own_or(answer.timestamps.as_ref(), row, &input.timestamps, record));
        rows.partitions.extend(input.partitions.get(record));
        rows.offsets.extend(input.offsets.get(record));
        let (headers, place) = match &answer.headers {
            Some(headers) => (headers, row),
            None => (&input.headers, record),
        };
        copy_pairs(headers, place, &mut rows.headers);
    }
}

fn copy_pairs(from: &HeaderColumn, place: usize, into: &mut HeaderColumn) {
    for (name, content) in from.pairs(place) {
        into.names.push(name);
        into.contents.push(content);
    }
    into.end_record();
}

impl Transformed {
    /// Puts one link's answer behind what the links before it made.
    fn follow(&mut self, answer: Answer, link: &Link) {
        let before = self.inputs.take();
        let origin = |input: u32| before.as_ref().map_or(input, |inputs| inputs[input as usize]);
        for mut reject in answer.rejects {
            reject.input = origin(reject.input);
            // One letter a record and plugin, however many of the record's rows the plugin refused.
            let told = self
                .rejects
                .last()
                .is_some_and(|(last, by)| last.input == reject.input && Arc::ptr_eq(by, &link.name));
            if !told {
                self.rejects.push((reject, Arc::clone(&link.name)));
            }
        }
        let earlier = self.tables.take();
        let kept = |row: usize| earlier.as_ref().and_then(|tables| tables[answer.inputs[row] as usize]);
        self.tables = match &answer.tables {
            None if earlier.is_none() => None,
            None => Some((0..answer.inputs.len()).map(kept).collect()),
            Some(chosen) => {
                let routed = chosen.iter().enumerate().map(|(row, table)| {
                    if *table == TABLE_UNROUTED {
                        return kept(row);
                    }
                    link.tables.get(usize::from(*table)).copied().flatten().or_else(|| kept(row))
                });
                Some(routed.collect())
            }
        };
        self.inputs = Some(match before {
            None => answer.inputs,
            Some(inputs) => answer.inputs.iter().map(|input| inputs[*input as usize]).collect(),
        });
        self.values = answer.values;
        self.marks = answer.marks;
    }
}
