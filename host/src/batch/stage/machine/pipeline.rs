//! A pipeline within a process, as both deliveries have it: a ledger with a stay of each partition, the stage without its
//! thread, and letters that wait for their writer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::lasting::Lasting;
use super::reckoning::{Counts, Reckoning};
use super::records::{Fate, Hold, Letter, Record, records};
use super::{LINGER, PARTITIONS, TABLES};
use crate::batch::stage::fakes::{destination, owner};
use crate::batch::stage::{EpochOutlet, Message, Outlet, PipelineId, Registration, Stage, TableIndex};
use crate::batch::{FIRST_ROW, Piece, RowIndex};
use crate::budget::{Budget, Share};
use crate::config::model::BatchLimits;
use crate::dead_letter::{Content, DeadLetter, Rejected, Rejects, Stage as Died};
use crate::delivery::owner::Owner;
use crate::ledger::{Ledger, Ticket};
use crate::position::{Epoch, Partition, Span, Stay};

const PIPELINE: PipelineId = 0;
/// A table that the stage does not know.
const NO_TABLE: TableIndex = TABLES as TableIndex;
/// What the pipeline may hold, in bytes: nothing here fills it.
const ROOM: u64 = 1 << 20;
/// How long a reader waits for room that it gets at once.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where what is cut goes, and when.
pub(super) struct Ways {
    pub(super) limits: BatchLimits,
    pub(super) in_flight: usize,
    pub(super) outlet: Arc<dyn Outlet>,
    pub(super) epochs: Option<Arc<dyn EpochOutlet>>,
}

pub(super) struct Pipeline {
    pub(super) ledger: Ledger,
    pub(super) share: Share,
    /// What the lanes and refused loads have handed to the letters' writer.
    pub(super) letters: Vec<Rejected>,
    pub(super) read: [i64; PARTITIONS],
    pub(super) stays: [Stay; PARTITIONS],
    pub(super) owner: Arc<Owner>,
    stage: Stage,
    /// The stage's own is weak.
    _inbox: mpsc::Sender<Message>,
}

pub(super) fn stay(partition: usize, epoch: u64) -> Stay {
    let number = u32::try_from(partition).expect("small");
    Stay { partition: Partition { source: "orders".into(), number }, epoch: Epoch(epoch) }
}

pub(super) fn partition_of(stay: &Stay) -> usize {
    stay.partition.number as usize
}

fn table_name(table: usize) -> String {
    format!("t{table}")
}

/// What a letter tells of.
pub(super) fn letter_of(letter: &DeadLetter) -> Letter {
    let record = Record { partition: letter.partition.number as usize, offset: letter.offset };
    let is_of = |table: &usize| Some(table_name(*table).as_str()) == letter.content.table.as_deref();
    Letter { record, table: (0..TABLES).find(is_of) }
}

impl Pipeline {
    /// Reads on behind `released`.
    pub(super) fn starting(released: [i64; PARTITIONS], ways: Ways) -> Pipeline {
        let share = Budget::new(2 * ROOM).share(ROOM, 0);
        let (inbox, _) = mpsc::channel(1);
        let stage = Stage {
            inbox: inbox.downgrade(),
            pipelines: BTreeMap::new(),
            draining: BTreeSet::new(),
            tables: Vec::new(),
            epochs: BTreeMap::new(),
        };
        let mut pipeline = Pipeline {
            ledger: Ledger::new(),
            letters: Vec::new(),
            read: released,
            stays: std::array::from_fn(|partition| stay(partition, 1)),
            owner: Arc::new(owner(PIPELINE, &share, Rejects::Halt)),
            stage,
            _inbox: inbox,
            share: share.clone(),
        };
        let Ways { limits, in_flight, outlet, epochs } = ways;
        let destinations = (0..TABLES).map(|table| destination(&table_name(table))).collect();
        let meters = Vec::new();
        let registration = Registration { destinations, limits, in_flight, share, meters, outlet, epochs };
        pipeline.tell(Message::Register { pipeline: PIPELINE, registration });
        for (stay, released) in pipeline.stays.iter().zip(released) {
            pipeline.ledger.begin(stay.clone(), released);
        }
        pipeline
    }

    /// As the stage's thread takes a message.
    pub(super) fn tell(&mut self, message: Message) {
        self.stage.take(message);
        self.stage.cut_due(Instant::now());
    }

    /// What gathers has waited for so long that it is cut.
    pub(super) fn linger_is_over(&mut self) {
        self.stage.cut_due(Instant::now() + LINGER);
    }

    /// From now on nothing waits for more.
    pub(super) fn drain(&mut self) {
        self.tell(Message::Drain { pipeline: PIPELINE });
    }

    /// A lane waits for room, and the stage is nudged to make some. The lane goes on when the step is over.
    pub(super) fn press(&mut self) {
        let (share, wanted) = (self.share.clone(), ROOM - self.share.used() + 1);
        let lane = std::thread::spawn(move || share.acquire(wanted, PATIENCE).is_some());
        while !self.share.is_waiting() {
            assert!(!lane.is_finished(), "there was room");
            std::thread::yield_now();
        }
        self.tell(Message::Nudge);
        self.share.widen(ROOM);
        assert!(lane.join().expect("no panic"), "the lane got room");
        self.share.widen(0);
    }

    /// Whether something gathers that will be cut for its age, and could be loaded.
    pub(super) fn has_deadline(&self) -> bool {
        self.stage.next_deadline().is_some()
    }

    /// The next `places` places of a partition, as a lane reads them.
    pub(super) fn read(&mut self, partition: usize, places: i64) {
        self.carry(partition, places, |table| table);
    }

    /// The same, but no rows come to their batches.
    pub(super) fn read_and_lose(&mut self, partition: usize, places: i64) {
        self.carry(partition, places, |_| NO_TABLE);
    }

    /// What was read at some time and is not read again yet.
    pub(super) fn read_up_to(&mut self, seen: [i64; PARTITIONS]) {
        for (partition, seen) in seen.into_iter().enumerate() {
            let left = seen - self.read[partition];
            if left > 0 {
                self.read(partition, left);
            }
        }
    }

    fn carry(&mut self, partition: usize, places: i64, arrives_at: impl Fn(TableIndex) -> TableIndex) {
        let (after, upto) = (self.read[partition], self.read[partition] + places);
        self.read[partition] = upto;
        let span = Span { stay: self.stays[partition].clone(), after, upto };
        let mut ticket = self.ledger.open(&span).expect("the stay stands");
        let read: Vec<Record> =
            records(partition, after, upto).filter(|record| record.fate() != Fate::Gap).collect();
        ticket.count(self.owner.meter.read(read.len() as u64, 0), read.len() as u64, after + 1);
        let letters = read.iter().filter(|record| record.has_letter());
        let letters: Vec<DeadLetter> = letters.map(|record| self.letter(*record, None)).collect();
        if !letters.is_empty() {
            let (ticket, records) = (ticket.hold(), letters.len() as u64);
            self.letters.push(Rejected { letters, ticket, records });
        }
        let dropped = read.iter().filter(|record| record.fate() == Fate::Dropped).count() as u64;
        self.owner.meter.leave(&self.owner.meter.records_dropped, dropped);
        let pieces = (0..TABLES).filter_map(|table| {
            let rows: Vec<Record> = read.iter().copied().filter(|record| record.is_row_of(table)).collect();
            let piece = self.piece(table, &rows, &ticket)?;
            Some((arrives_at(table as TableIndex), piece))
        });
        let pieces: Vec<_> = pieces.collect();
        if !pieces.is_empty() {
            self.tell(Message::Pieces { pipeline: PIPELINE, pieces });
        }
        let _ = ticket.settle_dropped(dropped);
    }

    fn piece(&self, table: usize, rows: &[Record], ticket: &Ticket) -> Option<Piece> {
        let first = rows.first()?;
        let (mut body, mut ends, mut deltas) = (Vec::new(), Vec::new(), Vec::new());
        for record in rows {
            body.extend_from_slice(record.row().as_bytes());
            ends.push(body.len() as u32);
            let counts = if record.counts_with(table) { FIRST_ROW } else { 0 };
            deltas.push((record.offset - first.offset) as u32 | counts);
        }
        let index = RowIndex { ends, deltas, keys: Vec::new(), base: first.offset, source: "orders".into() };
        let (ticket, permit) = (ticket.hold(), self.share.overdraft(0));
        Some(Piece::new(body.into(), index, None, ticket, permit, Arc::clone(&self.owner)))
    }

    fn letter(&self, record: Record, table: Option<usize>) -> DeadLetter {
        DeadLetter {
            stage: if table.is_some() { Died::Load } else { Died::Transform },
            plugin: None,
            code: "refused".into(),
            message: String::new(),
            partition: self.stays[record.partition].partition.clone(),
            offset: record.offset,
            timestamp_us: 0,
            key: None,
            value: None,
            headers: Vec::new(),
            content: Content { table: table.map(|table| table_name(table).into()), ..Content::default() },
        }
    }

    /// Takes one row out of pieces for `table`, as the host does with what StarRocks refuses: the row's ticket goes with its
    /// letter. Returns the other rows.
    pub(super) fn set_aside(&mut self, table: usize, pieces: Vec<Piece>, mut row: usize) -> Vec<Piece> {
        let mut rest = Vec::new();
        for piece in pieces {
            if row >= piece.len() {
                row -= piece.len();
                rest.push(piece);
                continue;
            }
            let letters = vec![self.letter(Record::of_row(piece.row(row)), Some(table))];
            let (ticket, records) = (piece.ticket().hold(), piece.records());
            let kept = piece.without(&[row]);
            let records = records - kept.as_ref().map_or(0, Piece::records);
            self.letters.push(Rejected { letters, ticket, records });
            rest.extend(kept);
            row = usize::MAX;
        }
        rest
    }

    /// The rows are durable.
    pub(super) fn settle(&self, pieces: impl IntoIterator<Item = Piece>) {
        let meter = &self.owner.meter;
        for piece in pieces {
            meter.leave(&meter.records_loaded, piece.records());
            drop(piece.settle());
        }
    }

    /// The letters' writer makes durable what it has.
    pub(super) fn keep_letters(&mut self, lasting: &mut Lasting) {
        let meter = &self.owner.meter;
        for Rejected { letters, ticket, records } in self.letters.drain(..) {
            letters.iter().for_each(|letter| lasting.keep(letter_of(letter)));
            meter.leave(&meter.records_dead_lettered, records);
            let _ = ticket.settle_kept(records);
        }
    }

    /// Drops the unsent rows of a partition's stay; with `finish` not those without which rows that were sent would be read
    /// again.
    pub(super) fn forget(&mut self, partition: usize, finish: bool) {
        let dropped = self.stage.forget(PIPELINE, &self.stays[partition..=partition], finish);
        self.stage.cut_due(Instant::now());
        self.owner.meter.leave(&self.owner.meter.records_given_up, dropped);
    }

    /// Drops the unsent rows of a partition's stay and ends it; returns how far it was safe.
    pub(super) fn end_stay(&mut self, partition: usize) -> i64 {
        self.forget(partition, false);
        self.ledger.end(&self.stays[partition]).expect("the stay stands").watermark.upto
    }

    /// A further stay of a partition, behind `released`.
    pub(super) fn stay_anew(&mut self, partition: usize, released: i64) {
        self.stays[partition] = stay(partition, self.stays[partition].epoch.0 + 1);
        self.read[partition] = released;
        self.ledger.begin(self.stays[partition].clone(), released);
    }

    /// The pipeline has halted: what was not sent is not.
    pub(super) fn remove(&mut self) {
        self.tell(Message::Remove { pipeline: PIPELINE });
    }

    pub(super) fn watermark(&self, partition: usize) -> i64 {
        self.ledger.watermark(&self.stays[partition]).expect("the stay stands").upto
    }

    /// Expects that ledger, metrics and budget say what ought to be while `holds` are on their way.
    pub(super) fn must_be(&self, expected: &Reckoning, holds: &[Hold]) {
        for partition in 0..PARTITIONS {
            let stay = &self.stays[partition];
            assert_eq!(self.watermark(partition), expected.reach(partition, holds), "watermark of {stay:?}");
            assert_eq!(self.ledger.tally(stay).as_ref(), Some(&expected.tallies[partition]), "of {stay:?}");
            let mut holds = holds.iter().filter(|hold| !hold.has_ended);
            let is_quiet = !holds.any(|hold| hold.record.partition == partition);
            assert_eq!(self.ledger.is_quiet(stay), is_quiet, "whether anybody holds {stay:?}");
        }
        assert_eq!(self.ledger.open_spans(), expected.open_spans(holds), "open spans");
        let poisoned = self.ledger.poisoned();
        if let Some(lost) = poisoned.as_ref().filter(|lost| self.stays.contains(&lost.stay)) {
            assert!(self.watermark(partition_of(&lost.stay)) <= lost.after, "{lost} counts as settled");
        }
        assert_eq!(poisoned, expected.poisoned, "what halts the pipeline");
        let meter = &self.owner.meter;
        assert_eq!(Counts::of(meter), expected.counts, "the metrics");
        let in_flight = expected.missing + holds.iter().map(Hold::records).sum::<u64>();
        assert_eq!(meter.records_in_flight.get(), in_flight.cast_signed(), "records in flight");
    }

    /// Expects that nobody holds anything any more.
    pub(super) fn must_be_idle(&self) {
        assert_eq!((self.ledger.open_spans(), self.share.used()), (0, 0), "spans and bytes in the end");
        assert_eq!(self.owner.meter.records_in_flight.get(), 0, "records in flight in the end");
        assert_eq!(self.ledger.poisoned(), None);
    }
}
