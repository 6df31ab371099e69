//! Records of one request on their way: to a lane, into tables, and back as an answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::mpsc;

use super::Standing;
use super::answer::Answer;
use super::body::Charge;
use super::feed::{Abandoned, Parcel};
use super::intake::Intake;
use crate::budget::Permit;
use crate::ledger::Tally;
use crate::meter::HttpMeter;
use crate::position::{Span, Stay};
use crate::record::Columns;

/// A request whose records are on their way; control waits for all of them.
pub(super) struct Aboard {
    count: Arc<AtomicU64>,
    in_flight: Gauge,
}

impl Aboard {
    pub(super) fn new(count: &Arc<AtomicU64>, meter: &HttpMeter) -> Aboard {
        count.fetch_add(1, Ordering::SeqCst);
        meter.in_flight.inc();
        Aboard { count: Arc::clone(count), in_flight: meter.in_flight.clone() }
    }
}

impl Drop for Aboard {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::SeqCst);
        self.in_flight.dec();
    }
}

/// How a voyage ended.
#[derive(Debug)]
pub(super) enum Landed {
    /// Records of it are in tables, or may be.
    Somewhere(Answer),
    /// None of them is, and none will be.
    Nowhere(Answer),
}

/// The records of one request.
pub(super) struct Voyage {
    pub(super) chunks: Vec<Columns>,
    pub(super) charge: Charge,
    pub(super) aboard: Aboard,
}

impl Voyage {
    fn records(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.len() as u64).sum()
    }

    /// The chunks, each with its own charge.
    fn unload(self) -> (impl Iterator<Item = (Columns, Permit)>, Aboard) {
        let permits = self.charge.split(self.chunks.iter().map(|chunk| chunk.bytes() as u64));
        (self.chunks.into_iter().zip(permits), self.aboard)
    }

    /// Whether it fits one parcel.
    pub(super) fn is_small(&self) -> bool {
        self.chunks.len() == 1
    }

    /// Hands a small one over that nobody waits for, into room that is there: nothing can come in between.
    pub(super) fn queue_at_once(self, room: mpsc::Permit<'_, Parcel>) -> Landed {
        let accepted = self.records();
        let (mut chunks, _aboard) = self.unload();
        if let Some((columns, permit)) = chunks.next() {
            room.send(Parcel::queued(columns, permit));
        }
        Landed::Somewhere(Answer::queued(accepted))
    }

    /// Hands the chunks over; nobody waits for what becomes of them.
    pub(super) async fn queue(self, lane: &mpsc::Sender<Parcel>) -> Landed {
        let accepted = self.records();
        let (chunks, _aboard) = self.unload();
        let mut handed = false;
        for (columns, permit) in chunks {
            if lane.send(Parcel::queued(columns, permit)).await.is_err() {
                return if handed {
                    Landed::Somewhere(Answer::ended_under_way())
                } else {
                    Landed::Nowhere(Answer::unavailable("the pipeline has ended").closing())
                };
            }
            handed = true;
        }
        Landed::Somewhere(Answer::queued(accepted))
    }

    /// Hands the chunks over and waits until all of them are durable, kept or refused.
    pub(super) async fn carry(self, intake: &Intake, lane: &mpsc::Sender<Parcel>) -> Landed {
        let accepted = self.records();
        if accepted == 0 {
            return Landed::Somewhere(Answer::of_outcome(0, &Tally::default()));
        }
        let ledger = &intake.parts().ledger;
        crate::failpoint::at("http.taken");
        let (stay, abandoned) = (intake.epochs().begin(), Abandoned::default());
        ledger.begin_watched(stay.clone(), -1, Arc::clone(abandoned.notify()));
        let (chunks, _aboard) = self.unload();
        let mut upto = -1;
        for (columns, permit) in chunks {
            let after = upto;
            upto += columns.len() as i64;
            let span = Span { stay: stay.clone(), after, upto };
            let parcel = Parcel::awaited(columns, span, permit, abandoned.clone());
            if lane.send(parcel).await.is_err() {
                // The parcel has told that it was dropped, and so do those behind it.
                break;
            }
        }
        settled(intake, &stay, accepted, &abandoned).await;
        crate::failpoint::at("http.before_answer");
        let begun = ledger.opened_upto(&stay).is_some_and(|opened| opened >= 0);
        let Some(ended) = ledger.end(&stay) else { return Landed::Somewhere(Answer::ended_under_way()) };
        let lost = ended.tally.lost || ended.watermark.upto < last_of(accepted);
        if lost && !begun {
            return Landed::Nowhere(Answer::unavailable("the pipeline has ended").closing());
        }
        if !lost {
            intake.parts().meter.health.progress();
        }
        Landed::Somewhere(Answer::of_outcome(accepted, &Tally { lost, ..ended.tally }))
    }
}

/// Position of the last of `records`.
fn last_of(records: u64) -> i64 {
    i64::try_from(records).unwrap_or(i64::MAX) - 1
}

/// Waits until it is known what became of all records of a stay, or until nothing will become of them.
async fn settled(intake: &Intake, stay: &Stay, accepted: u64, abandoned: &Abandoned) {
    let ledger = &intake.parts().ledger;
    let mut standing = intake.standing();
    loop {
        let opened = ledger.opened_upto(stay).is_none_or(|opened| opened >= last_of(accepted));
        if abandoned.is_told() || (opened && ledger.is_quiet(stay)) {
            return;
        }
        tokio::select! {
            // Told once each time that the stay is quiet, also between two of its chunks.
            () = abandoned.notify().notified() => {}
            _ = standing.wait_for(|standing| *standing == Standing::Closed) => return,
        }
    }
}
