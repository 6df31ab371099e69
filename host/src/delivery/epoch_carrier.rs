//! Carries an epoch to its end: prepares all its loads, offers it, commits it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::carry::{Carrier, close, count, drop_rows, load_of};
use super::decision::{Decision, Extent, label};
use super::epoch::{Epochs, Offer, Turn, Verdict};
use super::isolation::{ISOLATING_LOADS_MAX, Parts};
use super::owner::Owner;
use crate::batch::stage::{Done, EpochOutlet, Signs};
use crate::batch::stretch::Sign;
use crate::batch::{Batch, Piece};
use crate::clock;
use crate::failpoint;
use crate::fault::{Fault, FaultKind};
use crate::ledger::Tickets;
use crate::meter::Waiting;
use crate::planted::{Bug, planted};
use crate::retry::{Pace, Rest};
use crate::sink::starrocks::client::Client;
use crate::sink::starrocks::two_phase::{self, FirstPhase};
use crate::sink::{Destination, Load, Receipt, Rejection, Scarce};

/// How long StarRocks keeps a load that only looks for bad rows.
const PROBE_TIMEOUT: Duration = Duration::from_secs(300);

/// How often an epoch that may not begin yet is looked through for rows that are another process's by now.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Carries the epochs of one pipeline, one at a time.
#[derive(Clone)]
pub struct EpochCarrier {
    carrier: Carrier,
    epochs: Epochs,
    owner: Arc<Owner>,
}

/// Rows of an epoch for one table.
struct TableRows {
    destination: Arc<Destination>,
    pieces: Vec<Piece>,
}

/// A load that is prepared.
struct PreparedLoad {
    load: Load,
    receipt: Receipt,
}

/// The loads of an epoch, all prepared.
struct Prepared {
    loads: Vec<PreparedLoad>,
    began: Instant,
    /// How long StarRocks took: what the decision waits for is none of its doing.
    took: Duration,
}

/// Why not all loads of an epoch are prepared.
enum Hitch {
    BadRows { table: usize, rejection: Rejection },
    Halt(Fault),
    Overloaded(Fault),
    Passing(Fault),
    Abandoned,
}

impl EpochOutlet for EpochCarrier {
    fn start(&self, batches: Vec<Batch>, done: Done) {
        let this = self.clone();
        if let Some(first) = batches.first() {
            self.owner.meter.cut(first.reason);
        }
        self.carrier.runtime().spawn(async move {
            this.carry(batches, &done.signs()).await;
            done.finish().await;
        });
    }
}

impl EpochCarrier {
    /// A carrier of the pipeline `owner`.
    pub fn new(carrier: Carrier, epochs: Epochs, owner: Arc<Owner>) -> EpochCarrier {
        EpochCarrier { carrier, epochs, owner }
    }

    async fn carry(&self, batches: Vec<Batch>, signs: &Signs) {
        let rows = |batch: Batch| TableRows { destination: batch.destination, pieces: batch.pieces };
        let mut tables: Vec<TableRows> = batches.into_iter().map(rows).collect();
        let mut troubles = Troubles::new(&self.owner);
        while let Some(turn) = self.enter(&mut tables, &troubles).await {
            let prepared_at_s = now_s();
            let hitch = match self.first_phases(&turn, &tables, signs).await {
                Ok(prepared) => {
                    troubles.over();
                    let offer = self.offer_of(&turn, &tables, prepared_at_s);
                    let decision = offer.decision.clone();
                    match self.epochs.offer(offer).await {
                        Verdict::Decided => {
                            return self.commit(&decision, tables, prepared, signs).await;
                        }
                        Verdict::Abandoned => Hitch::Abandoned,
                        Verdict::Left => {
                            self.epochs.leave();
                            break;
                        }
                    }
                }
                Err(hitch) => hitch,
            };
            failpoint::at("epoch.before_rollback");
            // Nothing hangs on when they go: their labels are never used again.
            let (client, loads) = (self.carrier.client().clone(), labels_of(&turn, &tables));
            self.carrier.runtime().spawn(async move { roll_back_all(&client, loads).await });
            // From here on control may give partitions up.
            self.epochs.leave();
            self.owner.meter.epochs_rolled_back.inc();
            if !self.get_over(hitch, &turn, &mut tables, &mut troubles).await {
                break;
            }
        }
        // The pipeline has ended, or will: its records are read again.
        tables.into_iter().flat_map(|table| table.pieces).for_each(Piece::forget);
    }

    /// Waits until the epoch may begin; none if it never may, or has no rows left.
    async fn enter(&self, tables: &mut Vec<TableRows>, troubles: &Troubles) -> Option<Turn> {
        loop {
            self.drop_given_up(tables);
            if tables.is_empty() || self.epochs.has_ended() {
                return None;
            }
            if troubles.rest.is_on() {
                // Short, so that partitions that are given up do not wait for what this waits for.
                troubles.rest.a_while(LOOK_EVERY).await;
                continue;
            }
            if let Ok(turn) = tokio::time::timeout(LOOK_EVERY, self.epochs.enter()).await {
                return turn;
            }
        }
    }

    /// Rows of partitions that are another's by now are not loaded.
    fn drop_given_up(&self, tables: &mut Vec<TableRows>) {
        for table in tables.iter_mut() {
            drop_rows(&mut table.pieces, |piece| {
                piece.ticket().has_ended() || self.owner.giving_up.concerns(piece.ticket().stay())
            });
        }
        tables.retain(|table| !table.pieces.is_empty());
    }

    /// Prepares a load a table, all at once; ends when all have ended, or when the epoch is given up.
    async fn first_phases(
        &self,
        turn: &Turn,
        tables: &[TableRows],
        signs: &Signs,
    ) -> Result<Prepared, Hitch> {
        let began = Instant::now();
        let mut loads = JoinSet::new();
        for (place, table) in (0..).zip(tables) {
            let label = label(&turn.stem, turn.seq, place);
            let mut load = load_of(&table.destination, label, None, &table.pieces);
            let (client, timeout) = (self.carrier.client().clone(), self.epochs.terms.prepared_timeout);
            loads.spawn(async move {
                let phase = two_phase::prepare(&client, &mut load, timeout).await;
                if matches!(phase, FirstPhase::Prepared(_)) {
                    failpoint::at("epoch.prepared");
                }
                (place as usize, load, phase)
            });
        }
        let mut prepared = BTreeMap::new();
        let mut hitch = None;
        loop {
            let next = tokio::select! {
                next = loads.join_next() => next,
                () = self.epochs.given_up() => return Err(Hitch::Abandoned),
            };
            match next {
                None => break,
                Some(Err(panic)) => {
                    let fault = Fault::halt("sending a load panicked", "restart, and report this defect");
                    hitch = Some(Hitch::Halt(fault.caused_by(panic)));
                }
                Some(Ok((_, load, FirstPhase::Overloaded(fault, Scarce::Versions)))) => {
                    signs.show(&load.destination, Sign::Refused);
                    hitch = Some(worse(hitch, Hitch::Overloaded(fault)));
                }
                Some(Ok((place, load, phase))) => match what_came(place, load, phase) {
                    Ok(load) => drop(prepared.insert(place, load)),
                    Err(found) => hitch = Some(worse(hitch, found)),
                },
            }
        }
        match hitch {
            None => Ok(Prepared { loads: prepared.into_values().collect(), began, took: began.elapsed() }),
            Some(hitch) => Err(hitch),
        }
    }

    fn offer_of(&self, turn: &Turn, tables: &[TableRows], prepared_at_s: u64) -> Offer {
        let mut tickets = Tickets::new();
        for piece in tables.iter().flat_map(|table| &table.pieces) {
            let ticket = piece.ticket();
            *tickets.entry((ticket.stay().clone(), ticket.place())).or_default() += 1;
        }
        let count = u32::try_from(tables.len()).unwrap_or(u32::MAX);
        let decision = Decision::of_epoch(&turn.stem, turn.seq, count, prepared_at_s, &self.epochs.terms);
        Offer { decision, tickets }
    }

    /// The epoch was decided: commits its loads, however long that takes, and settles its rows.
    async fn commit(&self, decision: &Decision, tables: Vec<TableRows>, prepared: Prepared, signs: &Signs) {
        failpoint::at("epoch.before_commit");
        let Some(committed_in) = self.commit_loads(decision, &tables, &prepared.loads).await else {
            // What stands in Kafka must not be written over: the epoch never ends.
            tables.into_iter().flat_map(|table| table.pieces).for_each(Piece::forget);
            return;
        };
        failpoint::at("epoch.committed");
        self.owner.meter.epochs_decided.inc();
        let took = prepared.took + committed_in;
        // They share that time: a small one beside a large one would seem slow.
        let bytes = prepared.loads.iter().map(|one| one.load.bytes).sum();
        for (table, PreparedLoad { load, receipt }) in tables.into_iter().zip(prepared.loads) {
            // A commit waits until its rows are visible: one that takes long shows in the time.
            signs.show(&load.destination, Sign::Loaded { took, bytes });
            count(&table.pieces, &load, &receipt, prepared.began.elapsed());
            table.pieces.into_iter().for_each(close);
        }
        failpoint::at("epoch.settled");
        self.epochs.leave();
    }

    /// Commits the loads of a decided epoch, however long that takes. Returns how long StarRocks took, without the rests
    /// between the attempts; none if they cannot be committed, which halts the pipeline.
    async fn commit_loads(
        &self,
        decision: &Decision,
        tables: &[TableRows],
        prepared: &[PreparedLoad],
    ) -> Option<Duration> {
        let mut troubles = Troubles::new(&self.owner);
        let loads: Vec<_> =
            prepared.iter().map(|one| (Arc::clone(&one.load.destination), one.load.label.clone())).collect();
        let extent = extent_of(tables);
        let mut took = Duration::ZERO;
        loop {
            let began = Instant::now();
            let committed = two_phase::commit_all(self.carrier.client(), &loads, decision, &extent).await;
            took += began.elapsed();
            match committed {
                Ok(()) => return Some(took),
                Err(fault) if fault.kind == FaultKind::Retry => {
                    troubles.begin(Pace::PASSING, &fault);
                    troubles.rest.to_its_end().await;
                }
                Err(fault) => {
                    self.owner.alarm.raise(fault);
                    return None;
                }
            }
        }
    }

    /// Does what has to be done before the epoch is tried again. False if it never will be.
    async fn get_over(
        &self,
        hitch: Hitch,
        turn: &Turn,
        tables: &mut [TableRows],
        troubles: &mut Troubles,
    ) -> bool {
        match hitch {
            Hitch::Abandoned => true,
            Hitch::Passing(fault) => {
                troubles.begin(Pace::PASSING, &fault);
                true
            }
            Hitch::Overloaded(fault) => {
                troubles.begin(Pace::OVERLOADED, &fault);
                true
            }
            Hitch::Halt(fault) => {
                self.owner.alarm.raise(fault);
                false
            }
            Hitch::BadRows { table, rejection } => match tables.get_mut(table) {
                Some(table) => self.set_bad_rows_aside(turn, table, rejection, troubles).await,
                None => true,
            },
        }
    }

    /// Finds the rows that StarRocks will not have, by loads that are never committed. False if the pipeline
    /// halts over them.
    async fn set_bad_rows_aside(
        &self,
        turn: &Turn,
        table: &mut TableRows,
        rejection: Rejection,
        troubles: &mut Troubles,
    ) -> bool {
        let destination = Arc::clone(&table.destination);
        let mut parts = Parts::whole(std::mem::take(&mut table.pieces));
        let (mut halted, mut probes, mut aside) = (Vec::new(), 0, false);
        let message = rejection.message.clone();
        let mut told = Some(rejection);
        while let Some(part) = parts.next() {
            let rejection = match told.take() {
                Some(rejection) => Some(rejection),
                None => {
                    probes += 1;
                    let stem = format!("{}-{}-probe", turn.stem, turn.seq);
                    self.probe(&destination, (&stem, probes), &part.pieces, troubles).await
                }
            };
            let Some(rejection) = rejection else {
                parts.loaded();
                table.pieces.extend(part.pieces);
                continue;
            };
            let tired = probes >= u64::from(ISOLATING_LOADS_MAX);
            let carrier = &self.carrier;
            let found = carrier
                .set_bad_rows_aside(part, (rejection, &destination), &mut parts, &mut halted, tired)
                .await;
            aside |= found;
            // Found by their reasons at once: the epoch is tried without them.
            if !halted.is_empty() || (found && probes == 0) {
                break;
            }
        }
        table.pieces.extend(parts.into_pieces());
        if !aside {
            let what = format!("StarRocks refused rows as a whole and takes them in parts: {message}");
            troubles.begin(Pace::PASSING, &Fault::retry(what));
        }
        halted.is_empty()
    }

    /// Whether StarRocks takes the rows: none, or why not.
    async fn probe(
        &self,
        destination: &Arc<Destination>,
        (stem, probe): (&str, u64),
        pieces: &[Piece],
        troubles: &mut Troubles,
    ) -> Option<Rejection> {
        let client = self.carrier.client();
        let is_wanted = || {
            let gone = |piece: &Piece| {
                piece.ticket().has_ended() || self.owner.giving_up.concerns(piece.ticket().stay())
            };
            !self.epochs.has_ended() && !pieces.iter().any(gone)
        };
        let mut number = 0;
        while is_wanted() {
            if troubles.rest.is_on() {
                troubles.rest.a_while(LOOK_EVERY).await;
                continue;
            }
            let mut load = load_of(destination, label(stem, probe, number), None, pieces);
            number += 1;
            let phase = two_phase::prepare(client, &mut load, PROBE_TIMEOUT).await;
            two_phase::roll_back(client, destination, &load.label).await;
            match phase {
                FirstPhase::BadRows(rejection) => return Some(rejection),
                // If it halts, the epoch itself meets that again.
                FirstPhase::Prepared(_) | FirstPhase::Halt(_) => return None,
                FirstPhase::Overloaded(fault, _) => troubles.begin(Pace::OVERLOADED, &fault),
                FirstPhase::Unknown(fault) => troubles.begin(Pace::PASSING, &fault),
            }
        }
        None
    }
}

fn what_came(table: usize, load: Load, phase: FirstPhase) -> Result<PreparedLoad, Hitch> {
    match phase {
        FirstPhase::Prepared(receipt) => match receipt.loaded_rows {
            // Whoever sends a body twice does not count rows either.
            Some(rows) if rows == load.rows || planted(Bug::SecondBody) => Ok(PreparedLoad { load, receipt }),
            Some(rows) => Err(Hitch::Halt(other_rows(&load, rows))),
            None => {
                let what = format!("StarRocks does not say how many rows it prepared as {}", load.label);
                Err(Hitch::Passing(Fault::retry(what)))
            }
        },
        FirstPhase::BadRows(rejection) => Err(Hitch::BadRows { table, rejection }),
        FirstPhase::Halt(fault) => Err(Hitch::Halt(fault)),
        FirstPhase::Overloaded(fault, _) => Err(Hitch::Overloaded(fault)),
        FirstPhase::Unknown(fault) => Err(Hitch::Passing(fault)),
    }
}

/// StarRocks counts other rows than were sent: what is decided must be what was sent.
fn other_rows(load: &Load, rows: u64) -> Fault {
    Fault::halt(
        format!("StarRocks prepared {rows} rows as {}, {} were sent", load.label, load.rows),
        "nothing of it was committed. More rows: a value holds several JSON documents, or a proxy sent the body twice; fewer: \
         something leaves rows out. Mend that, and start again",
    )
}

/// Of two hitches the one that says more about what to do.
fn worse(one: Option<Hitch>, other: Hitch) -> Hitch {
    let weight = |hitch: &Hitch| match hitch {
        Hitch::Passing(_) => 0,
        Hitch::Overloaded(_) => 1,
        Hitch::BadRows { .. } => 2,
        Hitch::Halt(_) => 3,
        Hitch::Abandoned => 4,
    };
    match one {
        Some(one) if weight(&one) >= weight(&other) => one,
        Some(_) | None => other,
    }
}

/// The records whose rows are in the tables.
fn extent_of(tables: &[TableRows]) -> Extent {
    let mut extent = Extent::default();
    for piece in tables.iter().flat_map(|table| &table.pieces) {
        // Rows stand in the order of their records.
        if let (Some((first, _)), Some((last, _))) = (piece.iter().next(), piece.iter().next_back()) {
            let partition = &piece.ticket().stay().partition;
            extent.add(&partition.source, partition.number, first, last + 1);
        }
    }
    extent
}

fn labels_of(turn: &Turn, tables: &[TableRows]) -> Vec<(Arc<Destination>, String)> {
    let tables = (0..).zip(tables);
    tables
        .map(|(place, table)| (Arc::clone(&table.destination), label(&turn.stem, turn.seq, place)))
        .collect()
}

async fn roll_back_all(client: &Client, loads: Vec<(Arc<Destination>, String)>) {
    let mut rolling = JoinSet::new();
    for (destination, label) in loads {
        let client = client.clone();
        rolling.spawn(async move { two_phase::roll_back(&client, &destination, &label).await });
    }
    while rolling.join_next().await.is_some() {}
    failpoint::at("epoch.rolled_back");
}

/// What an epoch waits for, told once and shown in `/ready`.
struct Troubles {
    owner: Arc<Owner>,
    rest: Rest,
    waiting: Option<Waiting>,
}

impl Troubles {
    fn new(owner: &Arc<Owner>) -> Troubles {
        Troubles { owner: Arc::clone(owner), rest: Rest::default(), waiting: None }
    }

    /// Tells of a fault; a rest begins.
    fn begin(&mut self, pace: Pace, fault: &Fault) {
        self.owner.meter.load_retries.inc();
        if self.waiting.is_none() {
            let story = fault.story();
            tracing::warn!(pipeline = %self.owner.meter.name, "{story}; waiting and trying again");
            self.waiting = Some(Waiting::begin(&self.owner.meter, story));
        }
        self.rest.begin(pace);
    }

    fn over(&mut self) {
        (self.rest, self.waiting) = (Rest::default(), None);
    }
}

fn now_s() -> u64 {
    clock::since_1970().as_secs()
}
