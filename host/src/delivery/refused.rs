//! Rows that will not be loaded: taken out of their pieces, and handed to whoever keeps or answers for them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::owner::Owner;
use crate::batch::stage::PipelineId;
use crate::batch::{PARTIAL_ROW, Piece};
use crate::dead_letter::{Bundle, Content, DeadLetter, Holds, Rejected, Rejects, Stage};
use crate::fault::Fault;
use crate::position::Partition;
use crate::sink::Rejection;

/// Takes bad rows out of their pieces and hands them to their pipelines, of which those that want none are halted.
/// Returns the other rows.
pub(super) async fn set_aside(
    bad: Vec<(Piece, Vec<BadRow>)>,
    table: &str,
    halted: &mut Vec<PipelineId>,
) -> Vec<Piece> {
    let mut rest = Vec::with_capacity(bad.len());
    let mut rejected: BTreeMap<PipelineId, (Arc<Owner>, Vec<Rejected>)> = BTreeMap::new();
    for (piece, rows) in bad {
        if rows.is_empty() {
            rest.push(piece);
            continue;
        }
        let owner = Arc::clone(piece.owner());
        let (kept, aside) = take_out(piece, &rows, table);
        rest.extend(kept);
        rejected.entry(owner.pipeline).or_insert_with(|| (owner, Vec::new())).1.push(aside);
    }
    for (owner, rejected) in rejected.into_values() {
        if let Err(fault) = reject(&owner, rejected).await {
            halted.push(owner.pipeline);
            owner.alarm.raise(fault);
        }
    }
    rest
}

/// Sets all rows aside: they hid behind one after another that was refused, until no more loads were worth it.
pub(super) async fn give_up_on(pieces: Vec<Piece>, table: &str, halted: &mut Vec<PipelineId>) -> Vec<Piece> {
    let why = "later rows of its key were refused, and their batch cost as many loads as it may";
    let bad_row = |row| BadRow { row, code: "refused", why: why.to_owned() };
    let bad = pieces.into_iter().map(|piece| {
        let rows = (0..piece.len()).map(bad_row).collect();
        (piece, rows)
    });
    set_aside(bad.collect(), table, halted).await
}

/// Hands rejects to their pipeline.
async fn reject(owner: &Owner, rejected: Vec<Rejected>) -> Result<(), Fault> {
    let rejected = owner.rejects.sort(rejected, &owner.meter)?;
    match &owner.rejects {
        Rejects::Keep(letters, _) => letters.post_async(Bundle::new(rejected, &owner.share)).await,
        Rejects::Halt | Rejects::Answer => Ok(()),
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
pub(super) fn bad_syntax(piece: &Piece) -> Vec<BadRow> {
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

/// StarRocks' own reason for a row that it refused alone.
pub(super) fn refusal(rejection: &Rejection) -> String {
    let mut why = rejection.message.clone();
    if let Some(log) = &rejection.error_log {
        why.push_str("; its error log says: ");
        why.push_str(log.trim());
    }
    why
}
