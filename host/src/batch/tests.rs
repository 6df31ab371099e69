use proptest::prelude::*;

use super::stage::fakes::owner;
use super::*;
use crate::budget::{Budget, Share};
use crate::dead_letter::Rejects;
use crate::ledger::Ledger;
use crate::position::{Epoch, Partition, Span, Stay};

const LIMITS: BatchLimits =
    BatchLimits { max_rows: 10, max_bytes: 100, linger: Duration::from_secs(1), stretch: None };

fn fill() -> Fill {
    Fill { rows: 1, bytes: 10, age: Duration::ZERO, slot_free: true, pressure: false, draining: false }
}

fn check(expected: Option<Cut>, fill: Fill) {
    assert_eq!(decide(&fill, &LIMITS), expected, "{fill:?}");
}

#[test]
fn a_batch_is_cut_when_it_is_full_or_old() {
    check(None, fill());
    check(Some(Cut::Rows), Fill { rows: 10, ..fill() });
    check(Some(Cut::Bytes), Fill { bytes: 100, ..fill() });
    check(Some(Cut::Linger), Fill { age: LIMITS.linger, ..fill() });
    check(Some(Cut::Pressure), Fill { pressure: true, ..fill() });
    check(Some(Cut::Flush), Fill { draining: true, ..fill() });
    check(None, Fill { rows: 0, draining: true, pressure: true, age: LIMITS.linger, ..fill() });
}

#[test]
fn a_busy_table_gathers_on_until_the_batch_is_full() {
    let busy = Fill { slot_free: false, age: LIMITS.linger, pressure: true, draining: true, ..fill() };
    check(None, busy);
    check(Some(Cut::Rows), Fill { rows: 10, ..busy });
}

fn piece(rows: &[&str], ledger: &Ledger, share: &Share) -> Piece {
    let stay = Stay { partition: Partition { source: "t".into(), number: 0 }, epoch: Epoch(1) };
    ledger.begin(stay.clone(), 99);
    let ticket = ledger.open(&Span { stay, after: 99, upto: 200 }).unwrap();
    let mut text = Vec::new();
    let mut index =
        RowIndex { ends: Vec::new(), deltas: Vec::new(), keys: Vec::new(), base: 100, source: "t".into() };
    for (place, row) in rows.iter().enumerate() {
        text.extend_from_slice(row.as_bytes());
        text.push(b'\n');
        index.ends.push(text.len() as u32);
        index.deltas.push(place as u32 | FIRST_ROW);
    }
    let permit = share.overdraft(text.len() as u64);
    let owner = owner(0, share, Rejects::Halt);
    Piece::new(text.into(), index, None, ticket, permit, Arc::new(owner))
}

proptest! {
    #[test]
    fn splitting_loses_no_row_and_no_byte(
        lengths in prop::collection::vec(0_usize..30, 1..50),
        rows in 1_u64..20,
        bytes in 1_u64..200,
    ) {
        let (ledger, share) = (Ledger::new(), Budget::new(10_000).share(10_000, 0));
        let texts: Vec<String> = lengths.iter().map(|length| "x".repeat(*length)).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let whole = piece(&texts, &ledger, &share);
        let expected: Vec<(i64, Vec<u8>)> = whole.iter().map(|(at, row)| (at, row.to_vec())).collect();
        let total = whole.bytes();
        let mut parts = Vec::new();
        let mut rest = Some(whole);
        while let Some(mut part) = rest {
            rest = part.split(rows, bytes);
            prop_assert!(part.len() as u64 <= rows);
            prop_assert!(part.bytes() <= bytes || part.len() == 1);
            parts.push(part);
        }
        // Beside the rows their ends and positions are charged.
        prop_assert_eq!(share.used(), total + 8 * texts.len() as u64);
        let found: Vec<_> = parts.iter().flat_map(Piece::iter).map(|(at, row)| (at, row.to_vec())).collect();
        prop_assert_eq!(found, expected);
        prop_assert_eq!(parts.iter().map(Piece::records).sum::<u64>(), texts.len() as u64);
        let bodies: Vec<u8> = parts.iter().flat_map(|part| part.body().to_vec()).collect();
        prop_assert_eq!(bodies.len() as u64, total);
        let stay = parts[0].ticket().stay().clone();
        for part in parts {
            prop_assert_eq!(ledger.watermark(&stay).unwrap().upto, 99);
            part.settle();
        }
        prop_assert_eq!(ledger.watermark(&stay).unwrap().upto, 200);
        prop_assert_eq!(share.used(), 0);
    }
}

#[test]
fn a_record_counts_once_whatever_became_of_its_rows() {
    let (ledger, share) = (Ledger::new(), Budget::new(1_000).share(1_000, 0));
    let rows = piece(&["{\"n\":1}", "{\"n\":2}", "{\"n\":3}"], &ledger, &share);
    let stay = rows.ticket().stay().clone();
    let dropped = rows.ticket().hold();
    // One of them was replaced by a later row of the same key.
    let replaced = rows.twin().emptied(1);
    assert_eq!((replaced.len(), replaced.bytes(), replaced.records()), (0, 0, 1));
    let rest = rows.without(&[0]).expect("two are left");
    assert_eq!((rest.len(), rest.records()), (2, 2));
    // The others are refused.
    assert!(rest.without(&[0, 1]).is_none());
    let _ = replaced.settle();
    let _ = dropped.settle_dropped(7);
    let tally = ledger.end(&stay).expect("it stands").tally;
    assert_eq!((tally.loaded, tally.dropped, tally.dead_lettered), (1, 7, 0));
}
