//! How far a batch has come that may take several loads, one after the other.

use super::{close, drop_rows};
use crate::batch::Piece;
use crate::batch::stage::PipelineId;
use crate::delivery::fold::Hidden;
use crate::delivery::isolation::ISOLATING_LOADS_MAX;

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
        piece.ticket().has_ended() || self.halted.contains(&piece.owner().pipeline)
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

    /// The batch ends here, for a fault: what landed is durable, of what hides it is not asked any more.
    pub(super) fn stop(self) {
        self.landed.into_iter().for_each(close);
        self.hidden.into_iter().for_each(|hidden| hidden.into_piece().forget());
    }
}
