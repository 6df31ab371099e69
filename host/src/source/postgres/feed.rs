//! The stream's lane: decodes what the pump brings and gathers rows table by table.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::gather::{Gathered, Incomplete, Transaction};
use super::lsn::Lsn;
use super::pgoutput::{Message, Relation, Truncate, Update};
use super::progress::{Barrier, Marks, Progress};
use super::pump::{EVENTS_WAITING_MAX, Pumped};
use super::schema::{Change, Schema};
use super::table::TableName;
use super::transport::Event;
use crate::config::model::Truncate as TruncatePolicy;
use crate::fault::{Fault, FaultKind};
use crate::ledger::Ledger;
use crate::meter::PostgresMeter;
use crate::position::{Epoch, Partition, Span, Stay};
use crate::record::Columns;
use crate::retry::{Backoff, Pace};
use crate::source::{Fed, Feed, Gathering};

/// Bytes that all tables may have gathered before the fullest is handed on.
const GATHERED_BYTES_MAX: usize = 4 << 20;
/// How long rows wait for more of their chunk while the stream is quiet.
const MORE_WAIT: Duration = Duration::from_millis(5);
/// Fewer events at a time than this are not worth waking a thread for.
const EVENTS_WORTH_WAKING: usize = 512;
/// How long the feed leaves the pump alone after so few: awake at each event, threads do little but wake each other.
const PAUSE: Duration = Duration::from_millis(1);
/// How often a source that is away is asked again.
const ASKING_AGAIN: Pace = Pace { cap: Duration::from_secs(2), ..Pace::PASSING };
/// How long a feed with nothing gathered waits before its lane looks around.
const IDLE_WAIT: Duration = Duration::from_millis(50);

/// What the stream's feed is made of.
pub(super) struct FeedParts {
    /// The feed's end of the pump.
    pub(super) events: mpsc::Receiver<Pumped>,
    /// To wait for it.
    pub(super) runtime: Handle,
    /// Shared with control.
    pub(super) progress: Progress,
    /// Where stays of tables begin.
    pub(super) ledger: Ledger,
    /// What tables look like, here and there.
    pub(super) schema: Schema,
    /// Name of the slot: the partition.
    pub(super) slot: Arc<str>,
    /// What is worth copying.
    pub(super) gathering: Gathering,
    /// What a TRUNCATE does.
    pub(super) truncate: TruncatePolicy,
    /// Counters.
    pub(super) meter: PostgresMeter,
}

/// A lane's input: the changes of one slot.
pub(crate) struct StreamFeed {
    parts: FeedParts,
    /// What was taken from the pump and not looked at yet.
    waiting: VecDeque<Pumped>,
    batch: Vec<Pumped>,
    /// The last batch was a small one.
    came_few: bool,
    tables: Vec<Gathered>,
    by_relation: HashMap<u32, Option<usize>>,
    /// The relation of the last row, and its place in `tables`.
    last: Option<(u32, usize)>,
    transaction: Transaction,
    /// Place of the last row, counted over all tables.
    place: i64,
    marks: Marks,
    /// The connection that they are of.
    session: u64,
    /// Where the stream was not to be read past: published when everything before it was handed on.
    barrier: Option<Barrier>,
    /// The barrier was published.
    waits: bool,
    /// The feed was asked to end while it asked the source: what comes behind that place was not read, and no mark behind it
    /// may be published.
    gave_up: bool,
}

impl StreamFeed {
    pub(super) fn new(parts: FeedParts) -> StreamFeed {
        StreamFeed {
            parts,
            waiting: VecDeque::new(),
            batch: Vec::with_capacity(EVENTS_WAITING_MAX),
            came_few: false,
            tables: Vec::new(),
            by_relation: HashMap::new(),
            last: None,
            transaction: Transaction::default(),
            place: 0,
            marks: Marks::default(),
            session: 0,
            barrier: None,
            waits: false,
            gave_up: false,
        }
    }

    /// All rows before this call were opened in the ledger: tells how far the stream was read, as far as
    /// nothing of it is still gathered here.
    fn publish(&mut self) {
        let gathered = self.tables.iter().filter(|table| !table.is_empty()).map(Gathered::first_place);
        let handed_upto = gathered.min().map_or(self.place, |first| first - 1);
        self.parts.progress.publish(
            self.session,
            handed_upto,
            &mut self.marks,
            self.transaction.commit_time_us,
        );
    }

    fn hand_on(&mut self, table: usize, into: &mut Columns) -> Span {
        let meter = &self.parts.meter;
        let nulled = std::mem::take(&mut self.tables[table].nulled);
        meter.values_nulled.inc_by(nulled);
        self.tables[table].hand_on(into)
    }

    fn fullest(&self) -> Option<usize> {
        let filled = self.tables.iter().enumerate().filter(|(_, table)| !table.is_empty());
        filled.max_by_key(|(_, table)| table.bytes()).map(|(place, _)| place)
    }

    /// Takes more from the pump; false if nothing came for a moment.
    fn receive(&mut self) -> Result<bool, Fault> {
        if std::mem::take(&mut self.came_few) {
            std::thread::sleep(PAUSE);
        }
        let patience = if self.fullest().is_some() { MORE_WAIT } else { IDLE_WAIT };
        let (events, batch) = (&mut self.parts.events, &mut self.batch);
        let received = self.parts.runtime.block_on(async {
            tokio::time::timeout(patience, events.recv_many(batch, EVENTS_WAITING_MAX)).await
        });
        match received {
            Err(_elapsed) => Ok(false),
            Ok(0) => Err(Fault::halt(
                "the replication stream's pump has ended",
                "this is a defect of tidemill, nothing was lost: restart, and report it",
            )),
            Ok(count) => {
                self.came_few = count < EVENTS_WORTH_WAKING;
                self.waiting.extend(self.batch.drain(..));
                Ok(true)
            }
        }
    }

    /// Reads what waits; stops at a table that is full and tells its place.
    fn gather(&mut self) -> Result<Option<usize>, Fault> {
        while self.barrier.is_none() && !self.gave_up {
            let Some(pumped) = self.waiting.pop_front() else { return Ok(None) };
            let table = match &pumped.event {
                Event::Change(data) => self.change(data)?,
                Event::Begin { final_lsn, xid, commit_time_us } => {
                    self.transaction = Transaction::new(*final_lsn, *xid, *commit_time_us);
                    None
                }
                Event::Commit { end_lsn: upto } | Event::Idle { upto, .. } => {
                    self.marks.push(self.place, *upto);
                    None
                }
                Event::Connected { session } => {
                    // What was told of comes again: it is safe when it has come.
                    self.session = *session;
                    self.marks.clear();
                    // The server tells of each table anew.
                    self.by_relation.clear();
                    self.last = None;
                    None
                }
            };
            if let Some(table) = table.filter(|table| self.tables[*table].is_full()) {
                return Ok(Some(table));
            }
        }
        Ok(None)
    }

    /// One pgoutput message; returns the table that it concerns.
    fn change(&mut self, data: &[u8]) -> Result<Option<usize>, Fault> {
        let message = Message::decode(data).map_err(|error| {
            Fault::halt(
                format!("cannot read a message of the replication stream at {}", self.transaction.final_lsn),
                "is it really PostgreSQL's pgoutput? nothing was confirmed past it: restart, and report it if it \
                 comes again",
            )
            .caused_by(error)
        })?;
        match message {
            Message::Insert(insert) => {
                let Some(table) = self.table(insert.relation)? else { return Ok(None) };
                self.place += 1;
                self.tables[table].insert(self.place, insert.new, &self.transaction)?;
                Ok(Some(table))
            }
            Message::Update(update) => {
                let Some(table) = self.table(update.relation)? else { return Ok(None) };
                self.update(table, &update)?;
                Ok(Some(table))
            }
            Message::Delete(delete) => {
                let Some(table) = self.table(delete.relation)? else { return Ok(None) };
                self.place += 1;
                self.tables[table].delete(self.place, &delete, &self.transaction)?;
                Ok(Some(table))
            }
            Message::Relation(relation) => self.relation(&relation).map(|()| None),
            Message::Truncate(truncate) => self.truncate(&truncate).map(|()| None),
            Message::Type(_) | Message::Origin(_) | Message::Logical(_) => Ok(None),
            // The transport tells of these by themselves.
            Message::Begin(_) | Message::Commit(_) => Ok(None),
        }
    }

    /// Asks the source until it answers: it may be restarting. None if the feed is asked to end.
    fn asked<T>(
        parts: &mut FeedParts,
        mut ask: impl AsyncFnMut(&mut Schema) -> Result<T, Fault>,
    ) -> Result<Option<T>, Fault> {
        let mut backoff = Backoff::new(ASKING_AGAIN);
        while !parts.progress.has_ended() {
            let FeedParts { runtime, schema, .. } = parts;
            match runtime.block_on(ask(schema)) {
                Ok(answer) => return Ok(Some(answer)),
                Err(fault) if fault.kind == FaultKind::Retry => {
                    tracing::debug!("{}; asking again", fault.story());
                    if parts.schema.is_cut_off() {
                        // A server that shuts down waits for us to confirm what we cannot read without it.
                        parts.progress.broke(fault);
                    }
                    runtime.block_on(backoff.wait());
                }
                Err(fault) => return Err(fault),
            }
        }
        Ok(None)
    }

    fn update(&mut self, table: usize, update: &Update<'_>) -> Result<(), Fault> {
        let records = match self.tables[table].update(self.place + 1, update, &self.transaction)? {
            Ok(records) => records,
            Err(Incomplete) => {
                self.parts.meter.rows_read_back.inc();
                let (layout, xid) = (&self.tables[table].layout, self.transaction.xid);
                let row =
                    Self::asked(&mut self.parts, async |schema| schema.read_back(layout, update, xid).await)?;
                let Some(row) = row else {
                    self.gave_up = true;
                    return Ok(());
                };
                self.tables[table].update_read_back(
                    self.place + 1,
                    update,
                    row.as_deref(),
                    &self.transaction,
                )?
            }
        };
        self.place += records;
        Ok(())
    }

    /// Where a relation's rows go; none if they are not followed, or were in the snapshot already.
    fn table(&mut self, relation: u32) -> Result<Option<usize>, Fault> {
        let place = match self.last {
            Some((last, place)) if last == relation => place,
            _ => {
                let Some(known) = self.by_relation.get(&relation) else {
                    return Err(Fault::halt(
                        format!("a row came of relation {relation}, of which the stream has not told"),
                        "nothing was confirmed past it: restart, and report it if it comes again",
                    ));
                };
                let Some(place) = *known else { return Ok(None) };
                self.last = Some((relation, place));
                place
            }
        };
        let copied_upto = self.parts.schema.copied_upto(self.tables[place].layout.name());
        Ok((self.transaction.final_lsn >= copied_upto).then_some(place))
    }

    /// A table is told of: mostly again, and as it was.
    fn relation(&mut self, relation: &Relation<'_>) -> Result<(), Fault> {
        self.last = None;
        let columns: Vec<&str> = relation.columns.iter().map(|column| column.name).collect();
        tracing::debug!(
            table = %TableName::new(relation.schema, relation.name), ?columns, at = %self.transaction.final_lsn,
            "the stream told of a table"
        );
        let xid = self.transaction.xid;
        let change = match Self::asked(&mut self.parts, async |schema| schema.told(relation, xid).await) {
            Ok(Some(change)) => change,
            Ok(None) => {
                self.gave_up = true;
                return Ok(());
            }
            Err(fault) => return self.halt_here(&fault),
        };
        let Change::Followed { layout, destination, add, remember } = change else {
            self.by_relation.insert(relation.id, None);
            return Ok(());
        };
        let name = layout.name().clone();
        let place = self.tables.iter().position(|table| *table.layout.name() == name);
        let place = match place {
            Some(place) => {
                if self.tables[place].layout != layout {
                    self.tables[place].relaid(layout);
                }
                place
            }
            None => {
                let number = self.tables.len() as u32;
                let partition = Partition { source: Arc::clone(&self.parts.slot), number };
                let stay = Stay { partition, epoch: Epoch(1) };
                self.parts.ledger.begin(stay.clone(), self.place);
                let gathering = self.parts.gathering;
                self.tables.push(Gathered::new(layout, destination, stay, self.place, gathering));
                self.tables.len() - 1
            }
        };
        self.by_relation.insert(relation.id, Some(place));
        if let Some(columns) = remember {
            let at = self.transaction.final_lsn;
            self.barrier = Some(Barrier::Reshape { table: name, add, columns, at });
        }
        Ok(())
    }

    fn truncate(&mut self, truncate: &Truncate) -> Result<(), Fault> {
        let mut names: Vec<TableName> = Vec::new();
        for relation in &truncate.relations {
            if let Some(table) = self.table(*relation)? {
                names.push(self.tables[table].layout.name().clone());
            }
        }
        let Some(first) = names.first() else { return Ok(()) };
        match self.parts.truncate {
            TruncatePolicy::Ignore => {
                for name in names {
                    tracing::warn!(table = %name, "the source table was truncated; its rows stay in StarRocks");
                }
                Ok(())
            }
            TruncatePolicy::Apply => {
                self.barrier = Some(Barrier::Truncate(names));
                Ok(())
            }
            TruncatePolicy::Halt => self.halt_here(&Fault::halt(
                format!(
                    "the source table {first} was truncated (transaction at {})",
                    self.transaction.final_lsn
                ),
                "set truncate = \"apply\" in [source.postgres] to empty it in StarRocks, too, or \"ignore\" to keep the \
                 rows there; the pipeline then goes on at the TRUNCATE",
            )),
        }
    }

    /// Halts when everything before this place is loaded.
    fn halt_here(&mut self, fault: &Fault) -> Result<(), Fault> {
        let Fault { what, hint, .. } = fault.retold();
        self.barrier = Some(Barrier::Halt { what, hint: hint.unwrap_or_default() });
        Ok(())
    }

    /// Hands on what was gathered before a barrier, then waits for control; none = go on reading.
    fn wait_at_barrier(&mut self, into: &mut Columns) -> Option<Fed> {
        let barrier = self.barrier.as_ref()?;
        if let Some(fullest) = self.fullest() {
            return Some(Fed::Chunk(self.hand_on(fullest, into)));
        }
        if !self.waits {
            self.waits = true;
            self.parts.progress.shut(barrier.clone());
        }
        if !self.parts.progress.may_pass() {
            std::thread::sleep(MORE_WAIT);
            return Some(Fed::Idle);
        }
        self.barrier = None;
        self.waits = false;
        None
    }
}

impl Feed for StreamFeed {
    fn next(&mut self, into: &mut Columns) -> Result<Fed, Fault> {
        if self.gave_up {
            return Ok(Fed::Ended);
        }
        self.publish();
        if self.parts.progress.has_ended() {
            return Ok(Fed::Ended);
        }
        if let Some(fed) = self.wait_at_barrier(into) {
            return Ok(fed);
        }
        loop {
            if self.parts.progress.has_ended() {
                // What is gathered and not handed on comes again.
                return Ok(Fed::Ended);
            }
            let full = match self.gather()? {
                _ if self.gave_up => return Ok(Fed::Ended),
                Some(full) => Some(full),
                None if self.barrier.is_some() => return Ok(Fed::Idle),
                None => {
                    let bytes: usize = self.tables.iter().map(Gathered::bytes).sum();
                    let much = self.fullest().filter(|_| bytes >= GATHERED_BYTES_MAX);
                    match much {
                        Some(much) => Some(much),
                        None if self.receive()? => continue,
                        None => self.fullest(),
                    }
                }
            };
            return Ok(full.map_or(Fed::Idle, |table| Fed::Chunk(self.hand_on(table, into))));
        }
    }

    fn owns(&mut self, _stay: &Stay) -> bool {
        !self.parts.progress.has_ended()
    }
}

/// How far a table was copied: changes before it are in the copy.
pub(super) const NOT_COPIED: Lsn = Lsn(0);
