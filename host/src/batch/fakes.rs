//! Pieces for tests.

use std::ops::Range;
use std::sync::Arc;

use super::stage::fakes::owner;
use super::{FIRST_ROW, PARTIAL_ROW, Piece, RowIndex};
use crate::budget::Budget;
use crate::dead_letter::Rejects;
use crate::ledger::Ledger;
use crate::position::{Epoch, Partition, Span, Stay};

/// A budget that nothing here fills, in bytes.
const ROOM: u64 = 1 << 20;

/// Rows of their own records, given as text and whether they are partial, with a hash of each one's key.
pub(crate) fn rows(texts: &[(&str, bool)], key: impl Fn(&str) -> u64) -> Piece {
    let mut rows = piece(texts.iter().map(|(text, _)| (*text).to_owned()), 0);
    let index = Arc::get_mut(&mut rows.index).expect("nobody else has it yet");
    for (delta, (text, partial)) in index.deltas.iter_mut().zip(texts) {
        index.keys.push(key(text));
        *delta |= if *partial { PARTIAL_ROW } else { 0 };
    }
    rows
}

/// Rows `{"n":7}`, each of a record at that position.
pub(crate) fn numbered_rows(places: Range<u64>) -> Piece {
    let base = places.start as i64;
    piece(places.map(|place| format!("{{\"n\":{place}}}")), base)
}

fn piece(rows: impl Iterator<Item = String>, base: i64) -> Piece {
    let (ledger, share) = (Ledger::new(), Budget::new(ROOM).share(ROOM, 0));
    let stay = Stay { partition: Partition { source: "t".into(), number: 0 }, epoch: Epoch(1) };
    ledger.begin(stay.clone(), base - 1);
    let ticket = ledger.open(&Span { stay, after: base - 1, upto: i64::MAX }).expect("the stay has begun");
    let mut body = Vec::new();
    let (ends, deltas, keys) = (Vec::new(), Vec::new(), Vec::new());
    let mut index = RowIndex { ends, deltas, keys, base, source: "t".into() };
    for (delta, row) in (0_u32..).zip(rows) {
        body.extend_from_slice(row.as_bytes());
        body.push(b'\n');
        index.ends.push(body.len() as u32);
        index.deltas.push(delta | FIRST_ROW);
    }
    let permit = share.overdraft(body.len() as u64);
    Piece::new(body.into(), index, None, ticket, permit, Arc::new(owner(0, &share, Rejects::Halt)))
}
