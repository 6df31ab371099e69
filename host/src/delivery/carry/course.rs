//! How far a batch has come that may take several loads, one after the other.

use super::{close, drop_rows, owners_of};
use crate::batch::Piece;
use crate::batch::stage::PipelineId;
use crate::delivery::fold::Hidden;
use crate::delivery::isolation::ISOLATING_LOADS_MAX;
use crate::fault::Fault;

/// What is known of a batch between its loads.
#[derive(Default)]
pub(super) struct Course {
    /// Rows that hide behind others of the batch.
    pub(super) hidden: Vec<Hidden>,
    /// Rows that are durable and may be those that others hide behind.
    pub(super) landed: Vec<Piece>,
    /// Pipelines that were halted.
    pub(super) halted: Vec<PipelineId>,
    /// Loads that were refused for their rows.
    pub(super) refusals: u32,
}

impl Course {
    /// Whether it has cost as many loads as it may.
    pub(super) fn is_tired(&self) -> bool {
        self.refusals >= ISOLATING_LOADS_MAX
    }

    /// Whether the rows of `piece` are not to be loaded from here any more.
    pub(super) fn is_gone(&self, piece: &Piece) -> bool {
        piece.ticket().comes_again() || self.halted.contains(&piece.owner().pipeline)
    }

    /// The rows are durable: their spans may close, but what hides behind them is looked for among them.
    pub(super) fn landed(&mut self, pieces: Vec<Piece>) {
        if self.hidden.is_empty() {
            pieces.into_iter().for_each(close);
        } else {
            self.landed.extend(pieces);
        }
    }

    /// Drops hidden rows that are another process's to load, or read again: whoever gives them up waits for their
    /// tickets.
    pub(super) fn drop_hidden(&mut self, gone: impl Fn(&Piece) -> bool) {
        let hidden = std::mem::take(&mut self.hidden).into_iter();
        let (dropped, kept): (Vec<_>, Vec<_>) = hidden.partition(|hidden| gone(hidden.piece()));
        self.hidden = kept;
        drop_rows(&mut dropped.into_iter().map(Hidden::into_piece).collect(), |_| true);
    }

    /// A person is needed for a load with these rows, none of which counts as loaded: their pipelines halt, and all that
    /// the batch has of them goes. Rows of others that hide behind one of these are loaded after all.
    pub(super) fn halt(&mut self, fault: &Fault, mut pieces: Vec<Piece>) {
        let owners = owners_of(&pieces);
        owners.iter().for_each(|owner| owner.alarm.raise(fault.retold()));
        self.halted.extend(owners.iter().map(|owner| owner.pipeline));
        drop_rows(&mut pieces, |_| true);
        self.drop_hidden(|piece| owners.iter().any(|owner| owner.pipeline == piece.owner().pipeline));
    }
}
