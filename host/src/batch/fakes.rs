//! Pieces for tests.

use std::ops::Range;
use std::sync::Arc;

use super::stage::fakes::owner;
use super::{FIRST_ROW, Piece, RowIndex};
use crate::budget::Budget;
use crate::dead_letter::Rejects;
use crate::ledger::Ledger;
use crate::position::{Epoch, Partition, Span, Stay};

/// A budget that nothing here fills, in bytes.
const ROOM: u64 = 1 << 20;

/// Rows `{"n":7}`, each of a record at that position.
pub(crate) fn numbered_rows(places: Range<u64>) -> Piece {
    let (ledger, share) = (Ledger::new(), Budget::new(ROOM).share(ROOM, 0));
    let stay = Stay { partition: Partition { source: "t".into(), number: 0 }, epoch: Epoch(1) };
    let (base, upto) = (places.start as i64, places.end as i64);
    ledger.begin(stay.clone(), base - 1);
    let ticket = ledger.open(&Span { stay, after: base - 1, upto }).expect("the stay has begun");
    let mut body = Vec::new();
    let mut index = RowIndex { ends: Vec::new(), deltas: Vec::new(), base, source: "t".into() };
    for (delta, place) in (0_u32..).zip(places) {
        body.extend_from_slice(format!("{{\"n\":{place}}}\n").as_bytes());
        index.ends.push(body.len() as u32);
        index.deltas.push(delta | FIRST_ROW);
    }
    let permit = share.overdraft(body.len() as u64);
    Piece::new(body.into(), index, None, ticket, permit, Arc::new(owner(0, &share, Rejects::Halt)))
}
