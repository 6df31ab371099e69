//! The hot path, on one page: read → charge → open → plugins → rows → hand over.
//!
//! A lane is a thread that owns everything it touches for a record; it shares one short lock a chunk
//! (ledger) and one message a chunk (stage).

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::batch::Piece;
use crate::batch::stage::{StageHandle, TableIndex};
use crate::budget::Permit;
use crate::chain::{Chain, Sampling, Transformed};
use crate::dead_letter::{Bundle, Content, DeadLetter, Holds, Rejected, Rejects, Stage};
use crate::delivery::owner::Owner;
use crate::failpoint;
use crate::fault::{Fault, FaultKind};
use crate::ledger::{Ledger, Ticket};
use crate::meter::Waiting;
use crate::position::{Partition, Span};
use crate::record::{Columns, MARK_DELETE, MARK_KEY, MARK_VALUE, RecordReject};
use crate::retry::{Backoff, Pace};
use crate::rows::{self, Built, Segment, Targets};
use crate::source::{Fed, Feed};

/// How long a lane waits for the budget or the dead letters' writer before it looks at its orders again.
const PATIENCE: Duration = Duration::from_millis(50);

/// What a lane shares with its pipeline.
#[derive(Clone)]
pub struct LaneParts {
    /// Where rows go.
    pub stage: StageHandle,
    /// Which spans are open.
    pub ledger: Ledger,
    /// The pipeline, as its rows know it: counters, rejects, bytes in flight, bodies' memory.
    pub owner: Arc<Owner>,
    /// Destinations as rows see them.
    pub targets: Targets,
    /// Values already end with a line feed each.
    pub line_feeds: bool,
}

/// A lane at work.
pub struct Lane<F> {
    parts: LaneParts,
    feed: F,
    chain: Chain,
    plugin: Option<Arc<str>>,
    /// Which chunks are verified; none = no chunk is.
    sampling: Option<Sampling>,
    /// Memory for the next body that has to be copied.
    spare: Vec<u8>,
}

impl<F: Feed> Lane<F> {
    /// A lane that reads `feed` through `chain`.
    pub fn new(parts: LaneParts, feed: F, chain: Chain) -> Lane<F> {
        let plugin = chain.last_plugin();
        Lane { parts, feed, chain, plugin, sampling: None, spare: Vec::new() }
    }

    /// The same, which has its plugins make the rows of some chunks twice.
    #[must_use]
    pub fn verifying(self, verify: bool) -> Lane<F> {
        Lane { sampling: verify.then(Sampling::default), ..self }
    }

    /// Works until the feed ends.
    ///
    /// # Errors
    /// Whatever halts the pipeline.
    pub fn run(mut self) -> Result<(), Fault> {
        let mut chunk = Columns::default();
        loop {
            match self.feed.next(&mut chunk)? {
                Fed::Ended => return Ok(()),
                Fed::Idle => {}
                Fed::Chunk(span) => {
                    if let Some(permit) = self.charge(chunk.bytes() as u64, &span) {
                        self.carry(&mut chunk, &span, permit)?;
                    }
                }
                Fed::Charged(span, permit) => self.carry(&mut chunk, &span, permit)?,
            }
        }
    }

    /// One chunk, from the feed to the stage.
    fn carry(&mut self, chunk: &mut Columns, span: &Span, permit: Permit) -> Result<(), Fault> {
        failpoint::at("lane.read");
        let Some(mut ticket) = self.parts.ledger.open(span) else { return Ok(()) };
        failpoint::at("lane.before_plugins");
        let records = chunk.len() as u64;
        let line_feeds = if self.parts.line_feeds { records } else { 0 };
        let bytes = (chunk.data_bytes() as u64).saturating_sub(line_feeds);
        let first = chunk.offsets.first().copied().unwrap_or(span.after + 1);
        ticket.count(self.parts.owner.meter.read(records, bytes), records, first);
        let Some(mut transformed) = self.transform(chunk, span)? else {
            self.give_up(records, ticket);
            return Ok(());
        };
        failpoint::at("lane.after_plugins");
        if self.spare.capacity() == 0 {
            self.spare = self.parts.owner.buffers.take();
        }
        let mut built =
            rows::build(chunk, &mut transformed, &self.parts.targets, self.parts.line_feeds, &mut self.spare);
        // A request is told of it; letters would pile up unseen.
        if let Some(table) = built.unknown.filter(|_| !matches!(self.parts.owner.rejects, Rejects::Answer)) {
            return Err(self.parts.targets.unknown_model(table));
        }
        let letters = self.letters(chunk, &mut transformed, &mut built, span);
        if !self.post(letters, built.refused, span, &ticket)? {
            self.give_up(records, ticket);
            return Ok(());
        }
        let dropped = records.saturating_sub(built.kept + built.refused);
        self.parts.owner.meter.leave(&self.parts.owner.meter.records_dropped, dropped);
        self.hand_over(built.segments, chunk.arrived, &ticket, permit)?;
        failpoint::at("lane.handed_over");
        let _ = ticket.settle_dropped(dropped);
        Ok(())
    }

    /// Waits for the budget; none if the partition is given up meanwhile.
    fn charge(&mut self, bytes: u64, span: &Span) -> Option<Permit> {
        if let Some(permit) = self.parts.owner.share.try_acquire(bytes) {
            return Some(permit);
        }
        loop {
            self.parts.stage.nudge();
            if let Some(permit) = self.parts.owner.share.acquire(bytes, PATIENCE) {
                return Some(permit);
            }
            if !self.feed.owns(&span.stay) {
                return None;
            }
        }
    }

    /// Runs the plugins, again and again while they ask for it; none if the partition is given up.
    fn transform(&mut self, chunk: &Columns, span: &Span) -> Result<Option<Transformed>, Fault> {
        if self.plugin.is_none() {
            return Ok(Some(Transformed::default()));
        }
        let sampled = self.sampling.as_mut().is_some_and(Sampling::takes_next);
        let verify = sampled.then_some(&span.stay.partition);
        let mut backoff = Backoff::new(Pace::PASSING);
        let mut waiting = None;
        loop {
            let fault = match self.chain.process(chunk, verify) {
                Ok(transformed) => {
                    self.parts.owner.meter.chunks_verified.inc_by(u64::from(transformed.verified));
                    return Ok(Some(transformed));
                }
                Err(fault) => fault,
            };
            if fault.kind != FaultKind::Retry {
                return Err(fault);
            }
            if waiting.is_none() {
                tracing::warn!("{}; trying again", fault.story());
                waiting = Some(Waiting::begin(&self.parts.owner.meter, fault.story()));
            }
            let pause = backoff.next_pause(rand::random());
            let until = std::time::Instant::now() + pause;
            while std::time::Instant::now() < until {
                if !self.feed.owns(&span.stay) {
                    return Ok(None);
                }
                std::thread::sleep(PATIENCE.min(pause));
            }
        }
    }

    /// The records of an open span are not used: their partition is being given up, or the lane ends.
    fn give_up(&self, records: u64, ticket: Ticket) {
        self.parts.owner.meter.leave(&self.parts.owner.meter.records_given_up, records);
        ticket.forget();
    }

    /// A letter for each record that a plugin refused, and for each of which a row cannot be loaded.
    fn letters(
        &self,
        chunk: &Columns,
        transformed: &mut Transformed,
        built: &mut Built,
        span: &Span,
    ) -> Vec<DeadLetter> {
        let parts = &self.parts;
        let stage = if self.plugin.is_some() { Stage::Load } else { Stage::Read };
        let records = std::mem::take(&mut transformed.rejects).into_iter();
        let records = records
            .map(|(reject, plugin)| letter(chunk, reject, span, Stage::Transform, Some(plugin), parts));
        let rows = std::mem::take(&mut built.rejects).into_iter();
        let rows = rows.map(|reject| letter(chunk, reject, span, stage, self.plugin.clone(), parts));
        records.chain(rows).collect()
    }

    /// Hands letters of `records` records to their writer, and waits while it is behind; false if the
    /// partition is given up meanwhile.
    fn post(
        &mut self,
        letters: Vec<DeadLetter>,
        records: u64,
        span: &Span,
        ticket: &Ticket,
    ) -> Result<bool, Fault> {
        if letters.is_empty() {
            return Ok(true);
        }
        let owner = &self.parts.owner;
        let rejected = vec![Rejected { letters, ticket: ticket.hold(), records }];
        let rejected = owner.rejects.sort(rejected, &owner.meter)?;
        let Rejects::Keep(letter_box, _) = &owner.rejects else { return Ok(true) };
        let mut bundle = Bundle::new(rejected, &owner.share);
        while let Some(back) = letter_box.post(bundle, PATIENCE)? {
            if !self.feed.owns(&span.stay) {
                back.forget();
                return Ok(false);
            }
            bundle = back;
        }
        Ok(true)
    }

    fn hand_over(
        &self,
        segments: Vec<Segment>,
        arrived: Option<Instant>,
        ticket: &Ticket,
        permit: Permit,
    ) -> Result<(), Fault> {
        if segments.is_empty() {
            return Ok(());
        }
        let pieces: Vec<(TableIndex, Piece)> = segments
            .into_iter()
            .map(|segment| {
                let charged = permit.empty();
                let body = Bytes::from(segment.body);
                let (plugin, owner) = (self.plugin.clone(), Arc::clone(&self.parts.owner));
                let piece = Piece::new(body, segment.index, plugin, ticket.hold(), charged, owner);
                (segment.table, piece.arrived_at(arrived))
            })
            .collect();
        // The chunk's own bytes are free again; its rows are charged for themselves.
        drop(permit);
        self.parts.stage.hand_over(self.parts.owner.pipeline, pieces)
    }
}

fn letter(
    chunk: &Columns,
    reject: RecordReject,
    span: &Span,
    stage: Stage,
    plugin: Option<Arc<str>>,
    parts: &LaneParts,
) -> DeadLetter {
    let input = reject.input as usize;
    let mark = chunk.marks.get(input).copied().unwrap_or(0);
    let value = chunk.values.get(input);
    let value = if parts.line_feeds { value.strip_suffix(b"\n").unwrap_or(value) } else { value };
    let pairs = chunk.headers.pairs(input).map(|(name, content)| (name.to_vec(), content.to_vec()));
    DeadLetter {
        stage,
        plugin,
        code: reject.code,
        message: reject.message,
        partition: Partition {
            source: chunk.source.clone().unwrap_or_else(|| Arc::clone(&span.stay.partition.source)),
            number: span.stay.partition.number,
        },
        offset: chunk.offsets.get(input).copied().unwrap_or(span.after),
        timestamp_us: chunk.timestamps.get(input).copied().unwrap_or(0),
        key: (mark & MARK_KEY != 0).then(|| chunk.keys.get(input).to_vec()),
        value: (mark & MARK_VALUE != 0).then(|| value.to_vec()),
        headers: pairs.collect(),
        content: Content {
            holds: Holds::Record,
            table: chunk.destination.and_then(|place| parts.targets.name(place)),
            delete: mark & (MARK_DELETE | MARK_VALUE) == MARK_DELETE | MARK_VALUE,
            partial: chunk.partial.binary_search(&reject.input).is_ok(),
        },
    }
}

#[cfg(test)]
mod tests;
