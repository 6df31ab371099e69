//! Carries a batch from the stage to its outcome: one label for life, tickets settled when durable.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::watch;

use super::blame::by_log;
use super::fold::{Group, fold};
use super::isolation::{ISOLATING_LOADS_MAX, Part, Parts};
use super::owner::Owner;
use crate::batch::stage::{Done, Outlet, PipelineId};
use crate::batch::{Batch, PARTIAL_ROW, Piece};
use crate::dead_letter::{Bundle, Content, DeadLetter, Holds, Rejected, Rejects, Stage};
use crate::fault::Fault;
use crate::meter::Waiting;
use crate::position::{Partition, Stay};
use crate::retry::{Backoff, Pace};
use crate::sink::starrocks::client::Client;
use crate::sink::starrocks::deliver::{DeliverContext, Delivered, Observer, Paces, Witness, deliver};
use crate::sink::starrocks::error_log::Keys;
use crate::sink::starrocks::label::Labels;
use crate::sink::{Destination, Fence, Load, Receipt, Rejection};

/// The carrier of a cluster: starts a task a batch. Cheap to clone.
#[derive(Clone)]
pub struct Carrier(Arc<Shared>);

/// What all loads into a cluster share.
pub struct Shared {
    /// Where tasks run.
    pub runtime: Handle,
    /// The cluster.
    pub client: Client,
    /// Names for loads.
    pub labels: Labels,
    /// The newest settled label.
    pub witness: Arc<Witness>,
    /// How long to wait for what.
    pub paces: Paces,
}

impl Carrier {
    /// A carrier.
    pub fn new(shared: Shared) -> Carrier {
        Carrier(Arc::new(shared))
    }

    /// Begin of all labels with rows of `pipeline`, as far as it carries them alone.
    pub fn stem(&self, pipeline: &str) -> String {
        self.0.labels.stem(pipeline)
    }

    /// A label of `pipeline` that no load has, and its number.
    pub fn next_label(&self, pipeline: &str) -> (String, u64) {
        self.0.labels.next_numbered(pipeline)
    }

    /// The cluster.
    pub fn client(&self) -> &Client {
        &self.0.client
    }
}

impl Outlet for Carrier {
    fn start(&self, batch: Batch, done: Done) {
        let shared = Arc::clone(&self.0);
        if let Some(first) = batch.pieces.first() {
            first.owner().meter.cut(batch.reason);
        }
        self.0.runtime.spawn(async move {
            shared.carry(batch).await;
            done.finish().await;
        });
    }
}

/// Tells the health and counters of all pipelines concerned how a load fares.
struct Watching {
    owners: Vec<Arc<Owner>>,
    waiting: Mutex<Vec<Waiting>>,
}

impl Watching {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Waiting>> {
        // A list that is filled or emptied in one go: a panic elsewhere leaves it usable.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Watching {
    fn attempting(&self, _label: &str, number: u32) {
        if let Some(first) = self.owners.first().filter(|_| number > 1) {
            first.meter.load_retries.inc();
        }
    }

    fn waiting(&self, label: &str, _since: Instant, why: &Fault) {
        let mut waiting = self.lock();
        if waiting.is_empty() {
            let what = format!("load {label}: {}", why.story());
            waiting.extend(self.owners.iter().map(|owner| Waiting::begin(&owner.meter, what.clone())));
        }
    }

    fn resumed(&self, _label: &str, _waited: Duration) {
        self.lock().clear();
    }

    fn possible_duplicate(&self, _label: &str) {
        for owner in &self.owners {
            owner.meter.possible_duplicates.inc();
        }
    }
}

/// A label can be announced by one pipeline only: rows of several that are fenced are loaded apart.
fn one_fence_each(group: Group) -> Vec<Group> {
    let Group { columns, folded, pieces } = group;
    let fenced = |piece: &Piece| piece.owner().fence.as_ref().map(|_| piece.owner().pipeline);
    let fences: BTreeSet<PipelineId> = pieces.iter().filter_map(fenced).collect();
    if fences.len() < 2 {
        return vec![Group { columns, folded, pieces }];
    }
    let mut apart: BTreeMap<Option<PipelineId>, Vec<Piece>> = BTreeMap::new();
    for piece in pieces {
        apart.entry(fenced(&piece)).or_default().push(piece);
    }
    apart.into_values().map(|pieces| Group { columns: columns.clone(), folded, pieces }).collect()
}

/// The pipelines that have rows in `pieces`, in the order of their first row.
fn owners_of(pieces: &[Piece]) -> Vec<Arc<Owner>> {
    let mut owners: Vec<Arc<Owner>> = Vec::new();
    for piece in pieces {
        if !owners.iter().any(|owner| owner.pipeline == piece.owner().pipeline) {
            owners.push(Arc::clone(piece.owner()));
        }
    }
    owners
}

impl Shared {
    /// Loads the batch: for a table that upserts, first folded to what its keys come to.
    async fn carry(&self, batch: Batch) {
        let Batch { destination, mut pieces, .. } = batch;
        // A stay may have ended before its rows were sent: its next owner reads them again. They go before
        // rows are folded, so that none of the others hides behind them.
        drop_rows(&mut pieces, |piece| piece.ticket().has_ended());
        let groups = self.folded(&destination, pieces).await;
        let (mut halted, mut stopped) = (Vec::new(), false);
        // Of a folded batch nothing is safe before all of it is: a row that was replaced is only as durable as
        // the one that replaced it.
        let mut landed = Vec::new();
        for group in groups.into_iter().flat_map(one_fence_each) {
            if stopped {
                group.pieces.into_iter().for_each(Piece::forget);
                continue;
            }
            stopped = self.carry_group(&destination, group, &mut landed, &mut halted).await.is_err();
        }
        for piece in landed {
            if stopped || halted.contains(&piece.owner().pipeline) { piece.forget() } else { close(piece) }
        }
    }

    /// What the rows come to: without a key, what they are.
    async fn folded(&self, destination: &Arc<Destination>, pieces: Vec<Piece>) -> Vec<Group> {
        if destination.key.is_empty() {
            return vec![Group { columns: None, folded: false, pieces }];
        }
        let key = Arc::clone(destination);
        // Looking for half a million keys is nothing for a thread of the runtime.
        let folded = self.runtime.spawn_blocking(move || fold(pieces, &key.key)).await;
        folded.unwrap_or_else(|panic| {
            // The pieces went with it: their spans are poisoned, and their pipelines halt.
            tracing::error!(%panic, "folding a batch panicked");
            Vec::new()
        })
    }

    /// Loads rows of one set of columns: as a whole, and in parts if StarRocks refuses some of them. Pieces of a
    /// folded batch are left in `landed`. An error says that all pipelines with rows of the batch were halted.
    async fn carry_group(
        &self,
        destination: &Arc<Destination>,
        group: Group,
        landed: &mut Vec<Piece>,
        halted: &mut Vec<PipelineId>,
    ) -> Result<(), Halted> {
        let Group { columns, folded, pieces } = group;
        let mut parts = Parts::whole(pieces);
        let mut loads = 0;
        while let Some(mut part) = parts.next() {
            if part.rows() == 0 {
                // Spans whose rows were all replaced by others.
                for piece in part.pieces {
                    let meter = Arc::clone(&piece.owner().meter);
                    meter.leave(&meter.records_loaded, piece.records());
                    landed.push(piece);
                }
                continue;
            }
            drop_rows(&mut part.pieces, |piece| {
                piece.ticket().has_ended() || halted.contains(&piece.owner().pipeline)
            });
            let began = Instant::now();
            let tried = self.attempt(destination, columns.clone(), &part.pieces).await;
            let Some((load, delivered)) = tried else { continue };
            match delivered {
                Delivered::Durable(receipt) => {
                    count(&part.pieces, &load, &receipt, began.elapsed());
                    if folded {
                        landed.append(&mut part.pieces);
                    } else {
                        part.pieces.into_iter().for_each(close);
                    }
                    parts.loaded();
                }
                Delivered::Halt(fault) => {
                    return Err(halt(&fault, part.pieces.into_iter().chain(parts.into_pieces())));
                }
                Delivered::Released => {
                    drop_rows(&mut part.pieces, |piece| {
                        piece.owner().giving_up.concerns(piece.ticket().stay())
                    });
                    parts.refused(part.pieces, true);
                }
                Delivered::BadRows(rejection) => {
                    loads += 1;
                    tracing::debug!(label = %load.label, rows = load.rows, "refused for its rows: {}", rejection.message);
                    let tired = loads >= ISOLATING_LOADS_MAX;
                    self.set_bad_rows_aside(part, (rejection, destination), &mut parts, halted, tired).await;
                }
            }
        }
        Ok(())
    }

    /// Sends rows under a label that no load has, which a successor is told of first if it has to know. None if
    /// there are no rows.
    async fn attempt(
        &self,
        destination: &Arc<Destination>,
        columns: Option<Arc<[String]>>,
        pieces: &[Piece],
    ) -> Option<(Load, Delivered)> {
        let owners = owners_of(pieces);
        // A successor looks for the labels of a pipeline that is fenced by its name.
        let named = owners.iter().find(|owner| owner.fence.is_some()).or(owners.first())?;
        // Nothing was committed under an earlier label, and the bytes are others now: a new one.
        let (label, number) = self.labels.next_numbered(&named.meter.name);
        let mut load = load_of(destination, label, columns, pieces);
        let delivered = match &named.fence {
            None => self.deliver(&mut load, pieces, &owners).await,
            Some(fence) => {
                load.fences.push(Arc::clone(fence));
                let delivered = match self.announced(fence.as_ref(), number, pieces).await {
                    Some(()) => self.deliver(&mut load, pieces, &owners).await,
                    None => Delivered::Released,
                };
                fence.settled(number);
                delivered
            }
        };
        let delivered = match delivered {
            Delivered::Durable(receipt) => match missing_rows(&load.label, load.rows, &receipt) {
                None => Delivered::Durable(receipt),
                Some(fault) => Delivered::Halt(fault),
            },
            Delivered::Halt(_) | Delivered::Released | Delivered::BadRows(_) => delivered,
        };
        Some((load, delivered))
    }

    /// Waits until a successor would know of the label; none if all its rows are given up meanwhile.
    async fn announced(&self, fence: &dyn Fence, number: u64, pieces: &[Piece]) -> Option<()> {
        let mut backoff = Backoff::new(Pace { cap: Duration::from_secs(2), ..Pace::PASSING });
        let given_up = |piece: &Piece| {
            piece.ticket().has_ended() || piece.owner().giving_up.concerns(piece.ticket().stay())
        };
        while !pieces.iter().any(given_up) {
            match fence.announce(number).await {
                Ok(()) => return Some(()),
                Err(fault) => tracing::debug!("{}; waiting", fault.story()),
            }
            backoff.wait().await;
        }
        None
    }

    async fn deliver(&self, load: &mut Load, pieces: &[Piece], owners: &[Arc<Owner>]) -> Delivered {
        let owners = owners.to_vec();
        let (told, stop) = watch::channel(false);
        let told = Arc::new(told);
        let carrying = owners.iter().map(|owner| {
            let own = pieces.iter().filter(|piece| piece.owner().pipeline == owner.pipeline);
            let mut stays: Vec<Stay> = own.map(|piece| piece.ticket().stay().clone()).collect();
            stays.sort_unstable();
            stays.dedup();
            owner.giving_up.carrying(stays, &told)
        });
        let _carrying: Vec<_> = carrying.collect();
        let context = DeliverContext {
            observer: Arc::new(Watching { owners, waiting: Mutex::default() }),
            witness: Arc::clone(&self.witness),
            stop,
            paces: self.paces,
        };
        deliver(&self.client, load, &context).await
    }

    /// The rows that are no JSON; if there are none, those that StarRocks' error log is about.
    async fn suspects(
        &self,
        pieces: Vec<Piece>,
        rejection: Rejection,
        keys: Keys,
    ) -> (Vec<(Piece, Vec<BadRow>)>, Arc<Rejection>) {
        // Megabytes of JSON: long enough to be kept off the runtime.
        let told = Arc::new(rejection);
        let read = Arc::clone(&told);
        let checked = self.runtime.spawn_blocking(move || {
            let mut bad = Vec::with_capacity(pieces.len());
            for piece in pieces {
                let rows = bad_syntax(&piece);
                bad.push((piece, rows));
            }
            if bad.iter().all(|(_, rows)| rows.is_empty()) {
                by_log(&mut bad, &read, keys);
            }
            bad
        });
        let bad = checked.await.unwrap_or_else(|panic| {
            // The pieces went with the panic: their spans are poisoned, and their pipelines halt.
            tracing::error!(%panic, "checking the rows that StarRocks refused panicked");
            Vec::new()
        });
        (bad, told)
    }

    /// StarRocks refused the part for its rows: sets aside those that can be told, and says what is
    /// tried next with the others. `tired` = no more halving.
    async fn set_bad_rows_aside(
        &self,
        part: Part,
        (rejection, destination): (Rejection, &Destination),
        parts: &mut Parts,
        halted: &mut Vec<PipelineId>,
        tired: bool,
    ) {
        let alone = part.rows() == 1;
        let (mut bad, rejection) = self.suspects(part.pieces, rejection, Keys::of(destination)).await;
        if bad.iter().all(|(_, rows)| rows.is_empty()) && (alone || tired) {
            for (piece, rows) in &mut bad {
                let why = refusal(&rejection);
                rows.extend((0..piece.len()).map(|row| BadRow { row, code: "refused", why: why.clone() }));
            }
        }
        let found = bad.iter().any(|(_, rows)| !rows.is_empty());
        let mut rest = Vec::with_capacity(bad.len());
        let mut rejected: BTreeMap<PipelineId, (Arc<Owner>, Vec<Rejected>)> = BTreeMap::new();
        for (piece, rows) in bad {
            if rows.is_empty() {
                rest.push(piece);
                continue;
            }
            let owner = Arc::clone(piece.owner());
            let (kept, aside) = take_out(piece, &rows, &destination.table);
            rest.extend(kept);
            rejected.entry(owner.pipeline).or_insert_with(|| (owner, Vec::new())).1.push(aside);
        }
        for (owner, rejected) in rejected.into_values() {
            if let Err(fault) = reject(&owner, rejected).await {
                halted.push(owner.pipeline);
                owner.alarm.raise(fault);
            }
        }
        parts.refused(rest, found);
    }
}

/// Hands rejects to their pipeline.
async fn reject(owner: &Owner, rejected: Vec<Rejected>) -> Result<(), Fault> {
    let rejected = owner.rejects.sort(rejected, &owner.meter)?;
    match &owner.rejects {
        Rejects::Keep(letters, _) => letters.post_async(Bundle::new(rejected, &owner.share)).await,
        Rejects::Halt | Rejects::Answer => Ok(()),
    }
}

fn load_of(
    destination: &Arc<Destination>,
    label: String,
    columns: Option<Arc<[String]>>,
    pieces: &[Piece],
) -> Load {
    Load {
        destination: Arc::clone(destination),
        label,
        columns,
        packed: None,
        segments: pieces.iter().map(Piece::body).collect(),
        bytes: pieces.iter().map(Piece::bytes).sum(),
        rows: pieces.iter().map(|piece| piece.len() as u64).sum(),
        fences: Vec::new(),
        body_sent: false,
    }
}

/// The rows are durable: counts them.
fn count(pieces: &[Piece], load: &Load, receipt: &Receipt, took: Duration) {
    let table = &load.destination.table;
    for (place, owner) in owners_of(pieces).iter().enumerate() {
        let own = || pieces.iter().filter(|piece| piece.owner().pipeline == owner.pipeline);
        let meter = &owner.meter;
        if receipt.loaded_rows.is_some_and(|loaded| loaded != load.rows) {
            meter.row_count_mismatches.inc();
            tracing::error!(
                pipeline = %meter.name, table, label = %load.label, sent = load.rows,
                loaded = receipt.loaded_rows, "StarRocks counted more rows than were sent: a value that holds \
                several JSON documents is the likely reason"
            );
        }
        if let Some(counters) = owner.tables.get(table) {
            // One version, however many pipelines share it.
            if place == 0 {
                counters.loads.inc();
                counters.load_seconds.observe(took.as_secs_f64());
            }
            counters.rows_loaded.inc_by(own().map(|piece| piece.len() as u64).sum());
            counters.bytes_loaded.inc_by(own().map(Piece::bytes).sum());
        }
        tracing::debug!(
            pipeline = %meter.name, table, label = %load.label, rows = load.rows, bytes = load.bytes,
            visible = receipt.visible, "loaded"
        );
        meter.leave(&meter.records_loaded, own().map(Piece::records).sum());
    }
}

/// The rows of a piece are durable: closes its span.
fn close(piece: Piece) {
    let buffers = piece.owner().buffers.clone();
    // The last piece of a segment gives its memory back.
    if let Ok(memory) = piece.settle().try_into_mut() {
        buffers.give(Vec::from(memory));
    }
}

/// All pipelines with rows of the batch were halted.
struct Halted;

/// Nothing of `pieces` counts as loaded, and a person is needed: all pipelines concerned halt.
fn halt(fault: &Fault, pieces: impl Iterator<Item = Piece>) -> Halted {
    let pieces: Vec<Piece> = pieces.collect();
    owners_of(&pieces).iter().for_each(|owner| owner.alarm.raise(fault.retold()));
    pieces.into_iter().for_each(Piece::forget);
    Halted
}

/// Drops the rows of which `gone` says that they are another process's to load, or read again.
fn drop_rows(pieces: &mut Vec<Piece>, gone: impl Fn(&Piece) -> bool) {
    let (dropped, kept): (Vec<_>, Vec<_>) = std::mem::take(pieces).into_iter().partition(gone);
    *pieces = kept;
    for piece in dropped {
        let meter = &piece.owner().meter;
        meter.leave(&meter.records_given_up, piece.records());
        piece.forget();
    }
}

/// A row that cannot be loaded.
pub(super) struct BadRow {
    /// Its place in its piece.
    pub(super) row: usize,
    /// The dead letter's code.
    pub(super) code: &'static str,
    /// Why, for the dead letter.
    pub(super) why: String,
}

/// The piece without its bad rows, and what was taken out.
fn take_out(piece: Piece, rows: &[BadRow], table: &str) -> (Option<Piece>, Rejected) {
    let letters = rows.iter().map(|bad| letter(&piece, bad, table)).collect();
    let (ticket, records) = (piece.ticket().hold(), piece.records());
    let rest = piece.without(&rows.iter().map(|bad| bad.row).collect::<Vec<_>>());
    let records = records - rest.as_ref().map_or(0, Piece::records);
    (rest, Rejected { letters, ticket, records })
}

fn letter(piece: &Piece, bad: &BadRow, table: &str) -> DeadLetter {
    let (offset, bytes) = piece.iter().nth(bad.row).unwrap_or((0, &[]));
    let number = piece.ticket().stay().partition.number;
    DeadLetter {
        stage: Stage::Load,
        plugin: piece.plugin.clone(),
        code: bad.code.to_owned(),
        message: bad.why.clone(),
        partition: Partition { source: Arc::clone(piece.source()), number },
        offset,
        timestamp_us: 0,
        key: None,
        value: Some(bytes.strip_suffix(b"\n").unwrap_or(bytes).to_vec()),
        headers: Vec::new(),
        content: Content {
            holds: Holds::Row,
            table: Some(table.into()),
            // A row that deletes says so itself, in `__op`.
            delete: false,
            partial: bad.row < piece.len() && piece.flags(bad.row) & PARTIAL_ROW != 0,
        },
    }
}

/// The rows that are no JSON objects, with serde_json's reason.
fn bad_syntax(piece: &Piece) -> Vec<BadRow> {
    let rows = piece.iter().enumerate();
    let bad = rows.filter_map(|(row, (_, bytes))| {
        // The line feed behind a row is not the row's, or its end would be told to be on a second line.
        let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        let parsed: Result<serde::de::IgnoredAny, _> = serde_json::from_slice(bytes);
        let why = match parsed {
            Err(error) => format!("not JSON: {error}"),
            Ok(_) if bytes.trim_ascii_start().first() != Some(&b'{') => "not a JSON object".to_owned(),
            Ok(_) => return None,
        };
        Some(BadRow { row, code: "syntax", why })
    });
    bad.collect()
}

/// Rows that are missing from a load that was committed must not be acknowledged.
fn missing_rows(label: &str, sent: u64, receipt: &Receipt) -> Option<Fault> {
    let loaded = receipt.loaded_rows.filter(|loaded| *loaded < sent)?;
    Some(Fault::halt(
        format!("StarRocks committed load {label} with {loaded} rows, {sent} were sent"),
        "the others are not in the table, and no offset was moved past them: look at the load by its label, \
         mend what left rows out, and restart; the rows that were loaded come again",
    ))
}

/// StarRocks' own reason for a row that it refused alone.
fn refusal(rejection: &Rejection) -> String {
    let mut why = rejection.message.clone();
    if let Some(log) = &rejection.error_log {
        why.push_str("; its error log says: ");
        why.push_str(log.trim());
    }
    why
}

#[cfg(test)]
mod tests;
