//! Carries a batch from the stage to its outcome: one label for life, tickets settled when durable.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::watch;

use super::{Alarm, GivingUp};
use crate::batch::stage::{Done, Outlet};
use crate::batch::{Batch, Piece};
use crate::budget::Share;
use crate::buffers::Buffers;
use crate::dead_letter::{Bundle, DeadLetter, DeadLetterBox, Stage};
use crate::fault::Fault;
use crate::lane::no_dead_letters;
use crate::ledger::Ticket;
use crate::meter::{PipelineMeter, TableMeter, Waiting};
use crate::position::Stay;
use crate::sink::starrocks::client::Client;
use crate::sink::starrocks::deliver::{DeliverContext, Delivered, Observer, Paces, Witness, deliver};
use crate::sink::starrocks::label::Labels;
use crate::sink::{Load, Receipt, Rejection};

/// A pipeline's carrier: starts a task a batch.
#[derive(Clone)]
pub struct Carrier(Arc<Shared>);

/// What all loads of a pipeline share.
pub struct Shared {
    /// Where tasks run.
    pub runtime: Handle,
    /// The cluster.
    pub client: Client,
    /// Names for loads.
    pub labels: Labels,
    /// The newest settled label.
    pub witness: Arc<Witness>,
    /// Counters and health.
    pub meter: Arc<PipelineMeter>,
    /// Counters of each table.
    pub tables: BTreeMap<String, TableMeter>,
    /// Stays being given up.
    pub giving_up: Arc<GivingUp>,
    /// What halts the pipeline.
    pub alarm: Alarm,
    /// Where bad rows go.
    pub dead_letters: Option<DeadLetterBox>,
    /// For dead letters' bytes.
    pub share: Share,
    /// Bodies' memory.
    pub buffers: Buffers,
    /// How long to wait for what.
    pub paces: Paces,
}

impl Carrier {
    /// A carrier.
    pub fn new(shared: Shared) -> Carrier {
        Carrier(Arc::new(shared))
    }
}

impl Outlet for Carrier {
    fn start(&self, batch: Batch, done: Done) {
        let shared = Arc::clone(&self.0);
        shared.meter.cut(batch.reason);
        self.0.runtime.spawn(async move {
            shared.carry(batch).await;
            done.finish().await;
        });
    }
}

/// Tells health and counters how a load fares.
struct Watching {
    meter: Arc<PipelineMeter>,
    waiting: std::sync::Mutex<Option<Waiting>>,
}

impl Watching {
    fn set(&self, waiting: Option<Waiting>) {
        *self.waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = waiting;
    }
}

impl Observer for Watching {
    fn attempting(&self, _label: &str, number: u32) {
        if number > 1 {
            self.meter.load_retries.inc();
        }
    }

    fn waiting(&self, label: &str, _since: Instant, why: &Fault) {
        let mut waiting = self.waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        waiting.get_or_insert_with(|| Waiting::begin(&self.meter, format!("load {label}: {}", why.story())));
    }

    fn resumed(&self, _label: &str, _waited: Duration) {
        self.set(None);
    }

    fn possible_duplicate(&self, _label: &str) {
        self.meter.possible_duplicates.inc();
    }
}

impl Shared {
    async fn carry(&self, mut batch: Batch) {
        let began = Instant::now();
        loop {
            // A stay may have ended before its rows were sent: its next owner reads them again.
            self.drop_rows(&mut batch, Ticket::has_ended);
            if batch.pieces.is_empty() {
                return;
            }
            // Nothing was committed under an earlier label, and the bytes are others now: a new one.
            let mut load = self.load_of(&batch);
            match self.deliver(&mut load, &batch).await {
                Delivered::Durable(receipt) => {
                    return match missing_rows(&load.label, load.rows, &receipt) {
                        None => self.settle(batch, &load, &receipt, began.elapsed()),
                        Some(fault) => self.halt(fault, batch),
                    };
                }
                Delivered::Halt(fault) => return self.halt(fault, batch),
                Delivered::Released => {
                    self.drop_rows(&mut batch, |ticket| self.giving_up.concerns(ticket.stay()));
                }
                Delivered::BadRows(rejection) => {
                    match self.set_bad_rows_aside(&mut batch, &rejection).await {
                        Ok(()) => {}
                        Err(fault) => return self.halt(fault, batch),
                    }
                }
            }
        }
    }

    fn load_of(&self, batch: &Batch) -> Load {
        Load {
            destination: Arc::clone(&batch.destination),
            label: self.labels.next(),
            segments: batch.pieces.iter().map(Piece::body).collect(),
            bytes: batch.bytes(),
            rows: batch.rows(),
            columns: None,
            packed: None,
            body_sent: false,
        }
    }

    async fn deliver(&self, load: &mut Load, batch: &Batch) -> Delivered {
        let mut stays: Vec<Stay> = batch.pieces.iter().map(|piece| piece.ticket().stay().clone()).collect();
        stays.sort_unstable();
        stays.dedup();
        let (_carrying, stop): (_, watch::Receiver<bool>) = self.giving_up.carrying(stays);
        let watching = Watching { meter: Arc::clone(&self.meter), waiting: std::sync::Mutex::new(None) };
        let context = DeliverContext {
            observer: Arc::new(watching),
            witness: Arc::clone(&self.witness),
            stop,
            paces: self.paces,
        };
        deliver(&self.client, load, &context).await
    }

    fn settle(&self, batch: Batch, load: &Load, receipt: &Receipt, took: Duration) {
        let table = &batch.destination.table;
        if receipt.loaded_rows.is_some_and(|loaded| loaded != load.rows) {
            self.meter.row_count_mismatches.inc();
            tracing::error!(
                pipeline = %self.meter.name, table, label = %load.label, sent = load.rows,
                loaded = receipt.loaded_rows, "StarRocks counted more rows than were sent: a value that holds \
                several JSON documents is the likely reason"
            );
        }
        if let Some(counters) = self.tables.get(table) {
            counters.loads.inc();
            counters.rows_loaded.inc_by(load.rows);
            counters.bytes_loaded.inc_by(load.bytes);
            counters.load_seconds.observe(took.as_secs_f64());
        }
        tracing::debug!(
            pipeline = %self.meter.name, table, label = %load.label, rows = load.rows, bytes = load.bytes,
            visible = receipt.visible, "loaded"
        );
        self.meter.leave(&self.meter.records_loaded, batch.records());
        for piece in batch.pieces {
            // The last piece of a segment gives its memory back.
            if let Ok(memory) = piece.settle().try_into_mut() {
                self.buffers.give(Vec::from(memory));
            }
        }
    }

    fn halt(&self, fault: Fault, batch: Batch) {
        self.alarm.raise(fault);
        batch.pieces.into_iter().for_each(Piece::forget);
    }

    /// Drops the rows of which `gone` says that they are another process's to load.
    fn drop_rows(&self, batch: &mut Batch, gone: impl Fn(&Ticket) -> bool) {
        let pieces = std::mem::take(&mut batch.pieces);
        let (dropped, kept): (Vec<_>, Vec<_>) = pieces.into_iter().partition(|piece| gone(piece.ticket()));
        batch.pieces = kept;
        for piece in dropped {
            self.meter.leave(&self.meter.records_given_up, piece.records());
            piece.forget();
        }
    }

    /// StarRocks refused the batch for its rows: checks the syntax of each, makes dead letters of the
    /// bad ones, and leaves the others in the batch.
    async fn set_bad_rows_aside(&self, batch: &mut Batch, rejection: &Rejection) -> Result<(), Fault> {
        let mut letters = Vec::new();
        let mut tickets = Vec::new();
        let mut records = 0;
        let mut kept = Vec::with_capacity(batch.pieces.len());
        for piece in std::mem::take(&mut batch.pieces) {
            // A megabyte of JSON at a time: long enough to be kept off the runtime.
            let checked = self.runtime.spawn_blocking(move || {
                let bad = bad_rows(&piece);
                (piece, bad)
            });
            let (piece, bad) = checked.await.map_err(|error| {
                Fault::halt("checking the rows that StarRocks refused panicked", "report this defect")
                    .caused_by(error)
            })?;
            if bad.is_empty() {
                kept.push(piece);
                continue;
            }
            tickets.push(piece.ticket().hold());
            records += piece.records();
            letters.extend(bad.iter().map(|(row, why)| self.letter(&piece, *row, why)));
            let rest = piece.without(&bad.iter().map(|(row, _)| *row).collect::<Vec<_>>());
            records -= rest.as_ref().map_or(0, Piece::records);
            kept.extend(rest);
        }
        batch.pieces = kept;
        if letters.is_empty() {
            return Err(refused_for_data(rejection));
        }
        let Some(letter_box) = &self.dead_letters else {
            tickets.into_iter().for_each(Ticket::forget);
            return Err(no_dead_letters(&letters));
        };
        let permit = self.share.overdraft(letters.iter().map(DeadLetter::bytes).sum());
        letter_box.post_async(Bundle { letters, tickets, records, permit }).await
    }

    fn letter(&self, piece: &Piece, row: usize, why: &str) -> DeadLetter {
        let (offset, bytes) = piece.iter().nth(row).unwrap_or((0, &[]));
        DeadLetter {
            stage: Stage::Load,
            plugin: piece.plugin.clone(),
            code: "syntax".into(),
            message: why.to_owned(),
            partition: piece.ticket().stay().partition.clone(),
            offset,
            timestamp_us: 0,
            key: None,
            value: Some(bytes.strip_suffix(b"\n").unwrap_or(bytes).to_vec()),
            headers: Vec::new(),
        }
    }
}

/// The rows that are no JSON objects, with serde_json's reason.
fn bad_rows(piece: &Piece) -> Vec<(usize, String)> {
    let rows = piece.iter().enumerate();
    let bad = rows.filter_map(|(row, (_, bytes))| {
        // The line feed behind a row is not the row's, or its end would be told to be on a second line.
        let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        let parsed: Result<serde::de::IgnoredAny, _> = serde_json::from_slice(bytes);
        match parsed {
            Err(error) => Some((row, format!("not JSON: {error}"))),
            Ok(_) if bytes.trim_ascii_start().first() != Some(&b'{') => {
                Some((row, "not a JSON object".to_owned()))
            }
            Ok(_) => None,
        }
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

/// Rows that are JSON and yet refused: isolating them one by one comes later; nothing is lost.
fn refused_for_data(rejection: &Rejection) -> Fault {
    let mut what = format!("StarRocks refused rows for their data: {}", rejection.message);
    if rejection.filtered_rows > 0 {
        what.push_str(&format!(" ({} rows)", rejection.filtered_rows));
    }
    if let Some(log) = &rejection.error_log {
        what.push_str("\nits error log says:\n");
        what.push_str(log.trim_end());
    }
    Fault::halt(
        what,
        "mend the table (type, length, NOT NULL) or let a plugin mend or reject such records; nothing of the \
         batch was loaded or committed, it is read again at the next start",
    )
}

#[cfg(test)]
mod tests;
