//! Carries a batch from the stage to its outcome: one label for life, tickets settled when durable.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::watch;

use self::course::Course;
use super::Carrying;
use super::blame::by_log;
use super::fold::{Folded, Group, Hidden, fold, uncovered};
use super::isolation::{Part, Parts};
use super::owner::Owner;
use super::refused::{BadRow, bad_syntax, give_up_on, refusal, set_aside};
use crate::batch::stage::{Done, Outlet, PipelineId, Signs};
use crate::batch::stretch::Sign;
use crate::batch::{Batch, Piece};
use crate::failpoint;
use crate::fault::Fault;
use crate::meter::Waiting;
use crate::position::Stay;
use crate::retry::{Backoff, Pace};
use crate::sink::starrocks::client::Client;
use crate::sink::starrocks::deliver::{DeliverContext, Delivered, Observer, Paces, Witness, deliver};
use crate::sink::starrocks::error_log::Keys;
use crate::sink::starrocks::label::Labels;
use crate::sink::{Destination, Fence, Guarded, Load, Outcome, Receipt, Rejection};

mod course;

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

    /// Where its tasks run.
    pub(super) fn runtime(&self) -> &Handle {
        &self.0.runtime
    }

    /// Sets rows aside that StarRocks refused, see [`Shared::set_bad_rows_aside`].
    pub(super) async fn set_bad_rows_aside(
        &self,
        part: Part,
        refused: (Rejection, &Destination),
        parts: &mut Parts,
        halted: &mut Vec<PipelineId>,
        tired: bool,
    ) -> bool {
        self.0.set_bad_rows_aside(part, refused, parts, halted, tired).await
    }
}

impl Outlet for Carrier {
    fn start(&self, batch: Batch, done: Done) {
        let shared = Arc::clone(&self.0);
        if let Some(first) = batch.pieces.first() {
            first.owner().meter.cut(batch.reason);
        }
        self.0.runtime.spawn(async move {
            shared.carry(batch, &done.signs()).await;
            done.finish().await;
        });
    }
}

/// Tells the health and counters of all pipelines concerned, and the stage, how a load fares.
struct Watching {
    owners: Vec<Arc<Owner>>,
    /// Its entries with those that may give its stays up.
    carrying: Vec<Carrying>,
    signs: Signs,
    destination: Arc<Destination>,
    bytes: u64,
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
        self.carrying.iter().for_each(|entry| entry.set_rests(false));
        if let Some(first) = self.owners.first().filter(|_| number > 1) {
            first.meter.load_retries.inc();
        }
    }

    fn answered(&self, outcome: &Outcome, took: Duration) {
        if let Some(sign) = Sign::of(outcome, took, self.bytes) {
            self.signs.show(&self.destination, sign);
        }
    }

    fn resting(&self, _label: &str) {
        self.carrying.iter().for_each(|entry| entry.set_rests(true));
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

/// What guards the rows of a pipeline in loads into `destination`.
fn guarding<'a>(owner: &'a Owner, destination: &Destination) -> Option<&'a Arc<dyn Fence>> {
    owner.fence.as_ref().filter(|fence| fence.guards(destination))
}

/// A label can be announced by one pipeline only: rows of several that are fenced are loaded apart.
fn one_fence_each(group: Group, destination: &Destination) -> Vec<Group> {
    let Group { columns, pieces } = group;
    let fenced = |piece: &Piece| guarding(piece.owner(), destination).map(|_| piece.owner().pipeline);
    let fences: BTreeSet<PipelineId> = pieces.iter().filter_map(fenced).collect();
    if fences.len() < 2 {
        return vec![Group { columns, pieces }];
    }
    let mut apart: BTreeMap<Option<PipelineId>, Vec<Piece>> = BTreeMap::new();
    for piece in pieces {
        apart.entry(fenced(&piece)).or_default().push(piece);
    }
    apart.into_values().map(|pieces| Group { columns: columns.clone(), pieces }).collect()
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

/// The stays of a pipeline that have rows in `pieces`.
fn stays_of(pieces: &[Piece], owner: &Owner) -> Vec<Stay> {
    let own = pieces.iter().filter(|piece| piece.owner().pipeline == owner.pipeline);
    let mut stays: Vec<Stay> = own.map(|piece| piece.ticket().stay().clone()).collect();
    stays.sort_unstable();
    stays.dedup();
    stays
}

impl Shared {
    /// Loads the batch: for a table that upserts, first folded to what its keys come to.
    async fn carry(&self, batch: Batch, signs: &Signs) {
        let Batch { destination, mut pieces, .. } = batch;
        let mut course = Course::default();
        let mut tired = false;
        while !pieces.is_empty() {
            // A stay may have ended before its rows were sent: its next owner reads them again. They go before
            // rows are folded, so that none of the others hides behind them.
            drop_rows(&mut pieces, |piece| course.is_gone(piece));
            if tired {
                pieces = give_up_on(pieces, &destination.table, &mut course.halted).await;
                continue;
            }
            tired = course.is_tired();
            let Folded { groups, hidden } = self.folded(&destination, pieces).await;
            let rows = groups.iter().flat_map(|group| &group.pieces).map(Piece::len).sum();
            course.hidden = hidden;
            for group in groups.into_iter().flat_map(|group| one_fence_each(group, &destination)) {
                self.carry_group(&destination, group, &mut course, signs).await;
            }
            pieces = self.left_over(&destination, &mut course, rows).await;
        }
    }

    /// What the rows come to: without a key, what they are.
    async fn folded(&self, destination: &Arc<Destination>, pieces: Vec<Piece>) -> Folded {
        if destination.key.is_empty() {
            return Folded::not(pieces);
        }
        let key = Arc::clone(destination);
        // Looking for half a million keys is nothing for a thread of the runtime.
        let folded = self.runtime.spawn_blocking(move || fold(pieces, &key.key)).await;
        folded.unwrap_or_else(|panic| {
            // The pieces went with it: their spans are poisoned, and their pipelines halt.
            tracing::error!(%panic, "folding a batch panicked");
            Folded::default()
        })
    }

    /// Closes what is durable of a batch that was folded to `rows` rows. Returns what is not: rows that hid behind
    /// some that were refused or dropped.
    async fn left_over(
        &self,
        destination: &Arc<Destination>,
        course: &mut Course,
        rows: usize,
    ) -> Vec<Piece> {
        let (landed, hidden) = (std::mem::take(&mut course.landed), std::mem::take(&mut course.hidden));
        let (landed, safe, bare) = if landed.iter().map(Piece::len).sum::<usize>() == rows {
            (landed, hidden, Vec::new())
        } else {
            let key = Arc::clone(destination);
            let sorted = self.runtime.spawn_blocking(move || {
                let (safe, bare) = uncovered(hidden, &landed, &key.key);
                (landed, safe, bare)
            });
            sorted.await.unwrap_or_else(|panic| {
                // As above.
                tracing::error!(%panic, "looking for rows that a batch still has to load panicked");
                Default::default()
            })
        };
        landed.into_iter().for_each(close);
        failpoint::at("load.settled");
        for piece in safe.into_iter().map(Hidden::into_piece) {
            let meter = Arc::clone(&piece.owner().meter);
            meter.leave(&meter.records_loaded, piece.records());
            close(piece);
        }
        bare
    }

    /// Loads rows of one set of columns: as a whole, and in parts if StarRocks refuses some of them. Pieces of a
    /// folded batch are left in `course.landed`. A load that halts takes the pipelines with rows in it out of the batch;
    /// the others' go on.
    async fn carry_group(
        &self,
        destination: &Arc<Destination>,
        group: Group,
        course: &mut Course,
        signs: &Signs,
    ) {
        let Group { columns, pieces } = group;
        let mut parts = Parts::whole(pieces);
        while let Some(mut part) = parts.next() {
            drop_rows(&mut part.pieces, |piece| course.is_gone(piece));
            let began = Instant::now();
            let tried = self.attempt(destination, columns.clone(), &part.pieces, signs).await;
            let Some((load, delivered, _until_settled)) = tried else { continue };
            match delivered {
                Delivered::Durable(receipt) => {
                    count(&part.pieces, &load, &receipt, began.elapsed());
                    course.landed(part.pieces);
                    parts.loaded();
                }
                Delivered::Halt(fault) => {
                    course.halt(&fault, part.pieces);
                    parts.refused(Vec::new(), true);
                }
                Delivered::Released => {
                    let given_up = |piece: &Piece| piece.owner().giving_up.concerns(piece.ticket().stay());
                    drop_rows(&mut part.pieces, given_up);
                    course.drop_hidden(given_up);
                    parts.refused(part.pieces, true);
                }
                Delivered::BadRows(rejection) => {
                    course.refusals += 1;
                    tracing::debug!(label = %load.label, rows = load.rows, "refused for its rows: {}", rejection.message);
                    let (tired, refused) = (course.is_tired(), (rejection, &**destination));
                    let halted = &mut course.halted;
                    self.set_bad_rows_aside(part, refused, &mut parts, halted, tired).await;
                }
            }
        }
    }

    /// Sends rows under a label that no load has, which a successor is told of first if it has to know. None if
    /// there are no rows. Until what comes with the outcome is dropped, the load counts as on its way.
    async fn attempt(
        &self,
        destination: &Arc<Destination>,
        columns: Option<Arc<[String]>>,
        pieces: &[Piece],
        signs: &Signs,
    ) -> Option<(Load, Delivered, Option<Arc<Watching>>)> {
        let owners = owners_of(pieces);
        // A successor looks for the labels of a pipeline that is fenced by its name.
        let fence_of = |owner: &Owner| guarding(owner, destination).cloned();
        let named = owners.iter().find(|owner| fence_of(owner).is_some()).or(owners.first())?;
        // Nothing was committed under an earlier label, and the bytes are others now: a new one.
        let (label, number) = self.labels.next_numbered(&named.meter.name);
        let mut load = load_of(destination, label, columns, pieces);
        load.fences.extend(owners.iter().filter_map(|owner| owner.late.guard(destination)));
        let (delivered, watching) = match fence_of(named) {
            None => self.deliver(&mut load, pieces, &owners, signs).await,
            Some(fence) => {
                load.fences.push(Guarded::new(Arc::clone(&fence), number));
                let own = stays_of(pieces, named);
                let (delivered, watching) = match self.announced(fence.as_ref(), number, &own, pieces).await {
                    Some(()) => self.deliver(&mut load, pieces, &owners, signs).await,
                    None => (Delivered::Released, None),
                };
                match &delivered {
                    Delivered::Durable(_) | Delivered::BadRows(_) | Delivered::Released => {
                        fence.settled(number)
                    }
                    // Whoever could not be asked leaves it open: a successor looks for it.
                    Delivered::Halt(_) => {}
                }
                (delivered, watching)
            }
        };
        let delivered = match delivered {
            Delivered::Durable(receipt) => match missing_rows(&load.label, load.rows, &receipt) {
                None => Delivered::Durable(receipt),
                Some(fault) => Delivered::Halt(fault),
            },
            Delivered::Halt(_) | Delivered::Released | Delivered::BadRows(_) => delivered,
        };
        Some((load, delivered, watching))
    }

    /// Waits until a successor would know of the label; none if all its rows are given up meanwhile.
    async fn announced(
        &self,
        fence: &dyn Fence,
        number: u64,
        stays: &[Stay],
        pieces: &[Piece],
    ) -> Option<()> {
        let mut backoff = Backoff::new(Pace { cap: Duration::from_secs(2), ..Pace::PASSING });
        let given_up = |piece: &Piece| {
            piece.ticket().has_ended() || piece.owner().giving_up.concerns(piece.ticket().stay())
        };
        while !pieces.iter().any(given_up) {
            match fence.announce(number, stays).await {
                Ok(()) => return Some(()),
                Err(fault) => tracing::debug!("{}; waiting", fault.story()),
            }
            backoff.wait().await;
        }
        None
    }

    async fn deliver(
        &self,
        load: &mut Load,
        pieces: &[Piece],
        owners: &[Arc<Owner>],
        signs: &Signs,
    ) -> (Delivered, Option<Arc<Watching>>) {
        let owners = owners.to_vec();
        let (told, stop) = watch::channel(false);
        let told = Arc::new(told);
        let carrying = owners.iter().map(|owner| owner.giving_up.carrying(stays_of(pieces, owner), &told));
        let watching = Arc::new(Watching {
            carrying: carrying.collect(),
            owners,
            signs: signs.clone(),
            destination: Arc::clone(&load.destination),
            bytes: load.bytes,
            waiting: Mutex::default(),
        });
        let context = DeliverContext {
            observer: Arc::clone(&watching) as Arc<dyn Observer>,
            witness: Arc::clone(&self.witness),
            stop,
            paces: self.paces,
        };
        (deliver(&self.client, load, &context).await, Some(watching))
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
    /// tried next with the others. `tired` = no more halving. Returns whether rows were set aside.
    async fn set_bad_rows_aside(
        &self,
        part: Part,
        (rejection, destination): (Rejection, &Destination),
        parts: &mut Parts,
        halted: &mut Vec<PipelineId>,
        tired: bool,
    ) -> bool {
        let alone = part.rows() == 1;
        let (mut bad, rejection) = self.suspects(part.pieces, rejection, Keys::of(destination)).await;
        if bad.iter().all(|(_, rows)| rows.is_empty()) && (alone || tired) {
            for (piece, rows) in &mut bad {
                let why = refusal(&rejection);
                rows.extend((0..piece.len()).map(|row| BadRow { row, code: "refused", why: why.clone() }));
            }
        }
        let found = bad.iter().any(|(_, rows)| !rows.is_empty());
        let rest = set_aside(bad, &destination.table, halted).await;
        parts.refused(rest, found);
        found
    }
}

pub(super) fn load_of(
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
pub(super) fn count(pieces: &[Piece], load: &Load, receipt: &Receipt, took: Duration) {
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
pub(super) fn close(piece: Piece) {
    let buffers = piece.owner().buffers.clone();
    // The last piece of a segment gives its memory back.
    if let Ok(memory) = piece.settle().try_into_mut() {
        buffers.give(Vec::from(memory));
    }
}

/// Drops the rows of which `gone` says that they are another process's to load, or read again.
pub(super) fn drop_rows(pieces: &mut Vec<Piece>, gone: impl Fn(&Piece) -> bool) {
    let (dropped, kept): (Vec<_>, Vec<_>) = std::mem::take(pieces).into_iter().partition(gone);
    *pieces = kept;
    for piece in dropped {
        let meter = &piece.owner().meter;
        meter.leave(&meter.records_given_up, piece.records());
        piece.forget();
    }
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

#[cfg(test)]
mod tests;
