//! Dead letters as a source: they pass plugins, batches and loads once more, and those that get through are marked.
//!
//! Nothing is read from the pipeline's own source. Each chunk of letters is a stay of its own in the ledger, as a request
//! of HTTP is: when nobody holds a ticket of it any more, the stay says which of its records were refused again, and the
//! others are durable. Letters of records go through the plugins; letters of rows have been through them and go past.

use std::collections::{HashSet, VecDeque};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use self::chunks::{Chunk, Chunks, Way};
pub(crate) use self::feed::ReplayFeed;
use super::Parts;
use super::halts::{Halts, LaneThread};
use crate::batch::stage::TableIndex;
use crate::dead_letter::archive::{Archive, Marks};
use crate::dead_letter::kept::{Filter, Kept, Place};
use crate::fault::Fault;
use crate::ledger::{Refused, Tally};
use crate::position::{Epoch, Partition, Span, Stay};

pub mod chunks;
mod feed;

/// How long one turn waits.
const TURN: Duration = Duration::from_millis(20);
/// Chunks that may wait for a lane.
const CHUNKS_WAITING_MAX: usize = 4;
/// Chunks that may be on their way at a time: of each, the letters' places are held.
const CHUNKS_ABOARD_MAX: usize = 1_024;
/// Letters that stay and are told one by one; further ones are only counted.
const TOLD_MAX: usize = 1_000;
/// How long a halted replay waits for loads that are on their way: what lands is still marked.
const HALT_PATIENCE: Duration = Duration::from_secs(10);

/// What a replay is to do.
pub struct Order {
    /// The letters.
    pub archive: Archive,
    /// Which of them.
    pub filter: Filter,
    /// At most so many.
    pub limit: u64,
    /// Where those are marked that get through.
    pub marks: Marks,
    /// Tables of a source of tables, which come first among the pipeline's; empty for others.
    pub followed: Vec<String>,
    /// A record without a value is a tombstone, and not one that its source could not read.
    pub tombstones: bool,
    /// Tables whose rows replace one another may be loaded although newer rows may be there.
    pub force: bool,
    /// Told as it goes on.
    pub report: SharedReport,
}

/// A letter that stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stays {
    /// Which one.
    pub place: Place,
    /// Where its record came from.
    pub from: String,
    /// Why it was refused this time, or why it was not tried: the code, and the reason for people.
    pub code: String,
    /// The reason for people.
    pub message: String,
}

/// What has become of the letters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Their records are durable, or were left out by a plugin; they are marked.
    pub replayed: u64,
    /// They were refused again, or cannot be replayed.
    pub refused: u64,
    /// The first of those.
    pub stay: Vec<Stays>,
}

/// A report that is read when the replay has ended, however it ended. Locked once a chunk.
#[derive(Debug, Clone, Default)]
pub struct SharedReport(Arc<Mutex<Report>>);

impl SharedReport {
    fn lock(&self) -> MutexGuard<'_, Report> {
        // Plain counters: a panic elsewhere leaves them usable.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has become of the letters so far.
    pub fn read(&self) -> Report {
        self.lock().clone()
    }

    fn refuse(&self, stays: Stays) {
        let mut report = self.lock();
        report.refused += 1;
        if report.stay.len() < TOLD_MAX {
            report.stay.push(stays);
        }
    }
}

/// Sent chunks whose records are on their way.
struct Aboard {
    stay: Stay,
    upto: i64,
    letters: Vec<(i64, Place)>,
}

/// A lane of each way; started when the first chunk takes it.
#[derive(Default)]
struct Lane {
    inbox: Option<SyncSender<(chunks::Columns, Span)>>,
    thread: Option<LaneThread>,
}

struct Control<'a, S> {
    parts: Parts,
    order: Order,
    spawn: S,
    tables: &'a [String],
    lanes: [Lane; 2],
    let_go: Arc<AtomicBool>,
    aboard: VecDeque<Aboard>,
    last_epoch: u64,
    halts: Halts,
}

/// Replays until all letters have got through or stay. `tables` are the pipeline's destinations; `spawn` starts a lane's
/// thread on its feed, with the plugins or past them.
///
/// # Errors
/// Whatever halted the pipeline, or an unreadable letter. What got through by then is marked.
pub(crate) fn run<S>(order: Order, parts: Parts, tables: &[String], spawn: S) -> Result<(), Fault>
where
    S: Fn(Way, ReplayFeed) -> std::io::Result<LaneThread>,
{
    let halts = Halts::of(&parts, "no letter of them was marked as replayed");
    parts.meter.health.started();
    let lanes = Default::default();
    let let_go = Arc::default();
    let aboard = VecDeque::new();
    Control { parts, order, spawn, tables, lanes, let_go, aboard, last_epoch: 0, halts }.run()
}

impl<S> Control<'_, S>
where
    S: Fn(Way, ReplayFeed) -> std::io::Result<LaneThread>,
{
    fn run(mut self) -> Result<(), Fault> {
        let ended = self.send_all().and_then(|()| self.drain());
        if ended.is_err() {
            self.wind_up();
        }
        self.close(ended)
    }

    /// Reads letters and hands them to the lanes until there are no more, or somebody asks to stop.
    fn send_all(&mut self) -> Result<(), Fault> {
        let Order { archive, filter, limit, tombstones, .. } = &self.order;
        // Both are only read, while the rest of the control changes.
        let (archive, filter, limit, tombstones) = (archive.clone(), filter.clone(), *limit, *tombstones);
        let mut chunks = Chunks::new(self.parts.gathering.line_feeds);
        let mut taken = 0;
        archive.each(&mut |kept| {
            if !filter.takes(&kept) {
                return Ok(ControlFlow::Continue(()));
            }
            if taken == limit || self.parts.stop.is_requested() {
                return Ok(ControlFlow::Break(()));
            }
            taken += 1;
            match chunks::way_of(&kept, self.tables, tombstones) {
                Err(why) => self.stays(&kept, "not_replayable", &why),
                Ok((way, table)) => {
                    if let Some(chunk) = chunks.add(kept, way, table) {
                        self.send(chunk)?;
                    }
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
        chunks.finish().map_or(Ok(()), |chunk| self.send(chunk))
    }

    fn stays(&self, kept: &Kept, code: &str, why: &str) {
        let letter = &kept.letter;
        self.order.report.refuse(Stays {
            place: kept.place.clone(),
            from: format!("{} offset {}", letter.partition, letter.offset),
            code: code.to_owned(),
            message: why.to_owned(),
        });
    }

    /// Hands a chunk to its lane; waits while that is busy.
    fn send(&mut self, chunk: Chunk) -> Result<(), Fault> {
        while self.aboard.len() >= CHUNKS_ABOARD_MAX {
            self.turn()?;
        }
        let Chunk { columns, partition, letters, way } = chunk;
        let inbox = self.inbox(way)?;
        self.last_epoch += 1;
        let stay = Stay { partition, epoch: Epoch(self.last_epoch) };
        let upto = letters.len() as i64 - 1;
        self.parts.ledger.begin(stay.clone(), -1);
        self.aboard.push_back(Aboard { stay: stay.clone(), upto, letters });
        let mut sending = (columns, Span { stay, after: -1, upto });
        loop {
            sending = match inbox.try_send(sending) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Full(back)) => back,
                Err(TrySendError::Disconnected(_)) => {
                    // The lane has ended: its own fault is the one to tell.
                    let deadline = Instant::now() + HALT_PATIENCE;
                    while Instant::now() < deadline {
                        self.turn()?;
                    }
                    return Err(Fault::halt("a lane has ended early", "report this defect"));
                }
            };
            self.turn()?;
        }
    }

    /// The way into a lane, which is started if it was not.
    fn inbox(&mut self, way: Way) -> Result<SyncSender<(chunks::Columns, Span)>, Fault> {
        let lane = &mut self.lanes[way as usize];
        if let Some(inbox) = &lane.inbox {
            return Ok(inbox.clone());
        }
        let (inbox, outlet) = sync_channel(CHUNKS_WAITING_MAX);
        let feed = ReplayFeed::new(outlet, Arc::clone(&self.let_go));
        let thread = (self.spawn)(way, feed)
            .map_err(|error| Fault::retry("cannot start a lane's thread").caused_by(error))?;
        lane.thread = Some(thread);
        lane.inbox = Some(inbox.clone());
        Ok(inbox)
    }

    /// Waits a moment, marks what has landed, and looks whether the pipeline can go on.
    fn turn(&mut self) -> Result<(), Fault> {
        self.parts.runtime.block_on(async { tokio::time::sleep(TURN).await });
        self.halts.check(self.lanes.iter_mut().map(|lane| &mut lane.thread))?;
        self.land()
    }

    /// Marks the letters of all chunks that nobody holds any more.
    fn land(&mut self) -> Result<(), Fault> {
        let ledger = self.parts.ledger.clone();
        let has_landed =
            |one: &Aboard| ledger.opened_upto(&one.stay) == Some(one.upto) && ledger.is_quiet(&one.stay);
        let (landed, aboard) = std::mem::take(&mut self.aboard).into_iter().partition(has_landed);
        self.aboard = aboard;
        let mut through = Vec::new();
        for one in Vec::from(landed) {
            let Some(ended) = ledger.end(&one.stay) else { continue };
            self.parts.meter.health.progress();
            through.append(&mut self.through(one, ended.tally));
        }
        self.order.marks.mark(&through.iter().collect::<Vec<_>>())?;
        self.order.report.lock().replayed += through.len() as u64;
        Ok(())
    }

    /// The letters of a chunk whose records are durable; the others are reported.
    fn through(&self, one: Aboard, tally: Tally) -> Vec<Place> {
        if tally.lost {
            // Given up on the way, by a halt: whether any of its rows was loaded is not known.
            return Vec::new();
        }
        let again = refused_again(&one.letters, &one.stay.partition, tally.refused);
        let refused: HashSet<Place> = again.iter().map(|stays| stays.place.clone()).collect();
        again.into_iter().for_each(|stays| self.order.report.refuse(stays));
        one.letters.into_iter().map(|(_, place)| place).filter(|place| !refused.contains(place)).collect()
    }

    /// Lets everything that was sent be loaded.
    fn drain(&mut self) -> Result<(), Fault> {
        for lane in &mut self.lanes {
            // A lane ends when it has taken all that was sent.
            lane.inbox = None;
        }
        self.parts.stage.drain(self.parts.pipeline)?;
        while !self.aboard.is_empty() || self.lanes.iter().any(|lane| lane.thread.is_some()) {
            self.turn()?;
        }
        Ok(())
    }

    /// After a halt nothing more is sent; what is on its way may still land, and is then marked.
    fn wind_up(&mut self) {
        self.let_go.store(true, Ordering::Release);
        self.parts.stage.remove(self.parts.pipeline);
        self.parts.giving_up.give_up(&self.parts.ledger.stays());
        let deadline = Instant::now() + HALT_PATIENCE;
        while Instant::now() < deadline && self.parts.ledger.open_spans() > 0 {
            self.parts.runtime.block_on(async { tokio::time::sleep(TURN).await });
        }
        if let Err(fault) = self.land() {
            tracing::warn!("{}", fault.story());
        }
    }

    fn close(mut self, ended: Result<(), Fault>) -> Result<(), Fault> {
        self.let_go.store(true, Ordering::Release);
        self.parts.stage.remove(self.parts.pipeline);
        for lane in &mut self.lanes {
            lane.inbox = None;
            if let Some(Err(fault)) = lane.thread.take().map(|thread| self.halts.join(thread)) {
                tracing::warn!("a lane ended late: {}", fault.story());
            }
        }
        ended
    }
}

/// The letters of a chunk that stay, each once and with its first reason. Offsets differ within a chunk.
fn refused_again(letters: &[(i64, Place)], partition: &Partition, refused: Vec<Refused>) -> Vec<Stays> {
    let mut told = HashSet::new();
    let stay = refused.into_iter().filter_map(|Refused { offset, code, message }| {
        let at = letters.binary_search_by_key(&offset, |(offset, _)| *offset).ok()?;
        let place = letters[at].1.clone();
        let from = format!("{partition} offset {offset}");
        told.insert(offset).then_some(Stays { place, from, code, message })
    });
    stay.collect()
}

/// The table's number among the pipeline's.
fn table_index(tables: &[String], name: &str) -> Option<TableIndex> {
    tables.iter().position(|table| table == name).and_then(|place| TableIndex::try_from(place).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_which_two_rows_are_refused_is_one_letter_that_stays() {
        let place = |at| Place { within: "f".into(), at };
        let letters = [(3, place(1)), (5, place(2)), (9, place(4))];
        let refused = |offset, code: &str| Refused { offset, code: code.into(), message: "no".into() };
        let partition = Partition { source: "orders".into(), number: 2 };
        let stay =
            refused_again(&letters, &partition, vec![refused(9, "a"), refused(9, "b"), refused(3, "c")]);
        let told: Vec<_> = stay.iter().map(|stays| (stays.place.at, stays.code.as_str())).collect();
        assert_eq!(told, [(4, "a"), (1, "c")]);
        assert_eq!(stay[0].from, "orders[2] offset 9");
    }
}
