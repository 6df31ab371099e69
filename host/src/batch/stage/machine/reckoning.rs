//! What ought to be of what a process has read: which spans are open, how far it is safe, what is counted.

use std::collections::BTreeSet;

use super::pipeline::stay;
use super::records::{Fate, Hold, Part, Record, records};
use super::{PARTITIONS, TABLES};
use crate::ledger::Tally;
use crate::meter::PipelineMeter;
use crate::position::{Span, Stay};

/// Each row and letter that is on its way keeps its span open, and each that was lost for good.
#[derive(Debug, Clone)]
pub(super) struct Reckoning {
    start: [i64; PARTITIONS],
    /// Ends of the spans of the present stays.
    ends: [Vec<i64>; PARTITIONS],
    /// Which stay of its partition each is.
    stays: [u64; PARTITIONS],
    /// Places of the spans that nothing closes any more.
    closed_never: [BTreeSet<usize>; PARTITIONS],
    /// What the ledger tells of the present stays.
    pub(super) tallies: [Tally; PARTITIONS],
    pub(super) counts: Counts,
    /// Records of which something was lost: they stay in flight.
    pub(super) missing: u64,
    /// The span of which a ticket was lost first.
    pub(super) poisoned: Option<Span>,
}

/// What the pipeline's metrics say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Counts {
    read: u64,
    loaded: u64,
    dropped: u64,
    dead_lettered: u64,
    given_up: u64,
}

impl Counts {
    pub(super) fn of(meter: &PipelineMeter) -> Counts {
        Counts {
            read: meter.records_read.get(),
            loaded: meter.records_loaded.get(),
            dropped: meter.records_dropped.get(),
            dead_lettered: meter.records_dead_lettered.get(),
            given_up: meter.records_given_up.get(),
        }
    }
}

/// What becomes of a chunk.
pub(super) struct Opened {
    pub(super) letters: Vec<Hold>,
    /// By table.
    pub(super) rows: [Vec<Hold>; TABLES],
}

/// What rows are charged to the budget.
pub(super) fn charged(holds: &[Hold]) -> u64 {
    holds.iter().filter(|hold| hold.is_row()).map(Hold::charge).sum()
}

impl Reckoning {
    /// Of a process that reads on behind `start`.
    pub(super) fn behind(start: [i64; PARTITIONS]) -> Reckoning {
        Reckoning {
            start,
            ends: std::array::from_fn(|_| Vec::new()),
            stays: [1; PARTITIONS],
            closed_never: std::array::from_fn(|_| BTreeSet::new()),
            tallies: std::array::from_fn(|_| Tally::default()),
            counts: Counts::default(),
            missing: 0,
            poisoned: None,
        }
    }

    /// How far was read.
    pub(super) fn read(&self, partition: usize) -> i64 {
        self.ends[partition].last().copied().unwrap_or(self.start[partition])
    }

    /// The next `places` places are read: what of them is on its way from now on.
    pub(super) fn open(&mut self, partition: usize, places: i64) -> Opened {
        let after = self.read(partition);
        self.ends[partition].push(after + places);
        let read: Vec<Record> = records(partition, after, after + places).collect();
        let fates = |fate: Fate| read.iter().filter(|record| record.fate() == fate).count() as u64;
        self.counts.read += read.len() as u64 - fates(Fate::Gap);
        self.counts.dropped += fates(Fate::Dropped);
        self.tallies[partition].dropped += fates(Fate::Dropped);
        let letters = read.iter().copied().filter(|record| record.has_letter());
        let rows = |table: usize| {
            let rows = read.iter().copied().filter(|record| record.is_row_of(table));
            rows.map(|record| Hold::row(record, table)).collect()
        };
        Opened { letters: letters.map(Hold::letter).collect(), rows: std::array::from_fn(rows) }
    }

    /// The place of its span in its stay.
    pub(super) fn span_of(&self, record: Record) -> usize {
        self.ends[record.partition].partition_point(|end| *end < record.offset)
    }

    /// Where a span of the present stay ends.
    pub(super) fn end_of(&self, partition: usize, span: usize) -> i64 {
        self.ends[partition][span]
    }

    /// How far a partition would be safe if only `holds` were open: the end of the last span before the first of them.
    pub(super) fn reach<'a>(&self, partition: usize, holds: impl IntoIterator<Item = &'a Hold>) -> i64 {
        let holds = holds.into_iter().filter(|hold| !hold.has_ended && hold.record.partition == partition);
        let open = holds.map(|hold| self.span_of(hold.record));
        let first = open.chain(self.closed_never[partition].first().copied()).min();
        let safe = &self.ends[partition][..first.unwrap_or(self.ends[partition].len())];
        safe.last().copied().unwrap_or(self.start[partition])
    }

    /// In how many spans something is on its way.
    pub(super) fn open_spans(&self, holds: &[Hold]) -> usize {
        let holds = holds.iter().filter(|hold| !hold.has_ended);
        let open: BTreeSet<_> =
            holds.map(|hold| (hold.record.partition, self.span_of(hold.record))).collect();
        open.len()
    }

    /// A row is in its table, or a letter is kept.
    pub(super) fn settle(&mut self, hold: &Hold) {
        let records = hold.records();
        let tally = (!hold.has_ended).then_some(&mut self.tallies[hold.record.partition]);
        match hold.of {
            Part::Row(_) => {
                self.counts.loaded += records;
                tally.into_iter().for_each(|tally| tally.loaded += records);
            }
            Part::Letter(_) => {
                self.counts.dead_lettered += records;
                tally.into_iter().for_each(|tally| tally.dead_lettered += records);
            }
        }
    }

    /// Something is given up on purpose: its span is not closed by this process.
    pub(super) fn forget(&mut self, hold: &Hold) {
        if !hold.has_ended {
            let (partition, span) = (hold.record.partition, self.span_of(hold.record));
            self.closed_never[partition].insert(span);
            self.tallies[partition].lost = true;
        }
    }

    /// Tickets are dropped that nobody settled: that is a defect, and must never count as done.
    pub(super) fn lose<'a>(&mut self, holds: impl IntoIterator<Item = &'a Hold>) {
        for hold in holds {
            self.missing += hold.records();
            self.forget(hold);
            if !hold.has_ended {
                let partition = hold.record.partition;
                let span = self.span_of(hold.record);
                let before = span.checked_sub(1).map(|before| self.ends[partition][before]);
                let after = before.unwrap_or(self.start[partition]);
                let lost = Span { stay: self.stay(partition), after, upto: self.ends[partition][span] };
                self.poisoned.get_or_insert(lost);
            }
        }
    }

    /// Unsent rows go because their partition does.
    pub(super) fn give_up(&mut self, hold: &Hold) {
        self.counts.given_up += hold.records();
    }

    fn stay(&self, partition: usize) -> Stay {
        stay(partition, self.stays[partition])
    }

    /// A further stay of a partition begins behind `released`.
    pub(super) fn stay_anew(&mut self, partition: usize, released: i64) {
        self.start[partition] = released;
        self.ends[partition].clear();
        self.stays[partition] += 1;
        self.closed_never[partition].clear();
        self.tallies[partition] = Tally::default();
    }
}
