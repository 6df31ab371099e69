//! Which rows of a refused part StarRocks' error log is about: where it can be told, no halving is needed.

use super::refused::BadRow;
use crate::batch::Piece;
use crate::sink::Rejection;
use crate::sink::starrocks::error_log::{Keys, complaints, culprits};

/// Adds the rows that the log names to those of their pieces. Parses all rows: not for the runtime.
pub(super) fn by_log(bad: &mut [(Piece, Vec<BadRow>)], rejection: &Rejection, keys: Keys) {
    let complaints = complaints(rejection.error_log.as_deref().unwrap_or_default());
    if complaints.is_empty() {
        return;
    }
    let rows = bad.iter().flat_map(|(piece, _)| piece.iter().map(|(_, row)| row));
    let named = culprits(rows, &complaints, keys, rejection.filtered_rows);
    let mut before = 0;
    for (piece, rows) in bad {
        let own = named.range(before..before + piece.len());
        let why = |reason: &str| format!("{}: {reason}", rejection.message);
        rows.extend(own.map(|(at, reason)| BadRow { row: at - before, code: "refused", why: why(reason) }));
        before += piece.len();
    }
}
