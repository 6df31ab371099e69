//! I4 and I5 of a Postgres source, while a run goes on: what the slot has confirmed is in the table, and its place in the
//! position row.

use super::{Invariant, Violation};
use std::collections::BTreeMap;

/// A number that was written into all rows of a table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Beat {
    /// The number: it only grows.
    pub number: u64,
    /// A place in the server's log behind its commit.
    pub place: u64,
}

/// What was found, in this order: the rest may be further than what is confirmed, and not behind it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Look {
    /// Up to where the slot has confirmed the server's log.
    pub confirmed: u64,
    /// What the position row says.
    pub position: u64,
    /// The number in each row of the table.
    pub rows: BTreeMap<u64, u64>,
}

/// Nothing is confirmed that the position row does not say or that the table does not have; no row goes back behind that.
#[must_use]
pub fn keeps_order(look: &Look, beats: &[Beat]) -> Vec<Violation> {
    let Look { confirmed, position, rows } = look;
    let ahead = (confirmed > position).then(|| {
        let what = format!("place {confirmed} is confirmed, the position row says {position}");
        Violation::new(Invariant::Release, what)
    });
    let owed = beats.iter().filter(|beat| beat.place <= *confirmed).map(|beat| beat.number).max();
    let behind: Vec<u64> = rows
        .iter()
        .filter(|(_, number)| owed.is_some_and(|owed| **number < owed))
        .map(|(id, _)| *id)
        .collect();
    let behind =
        Violation::of_ids(Invariant::FinalState, "rows are behind what was confirmed of them", &behind);
    ahead.into_iter().chain(behind).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_confirmed_before_it_is_there_is_seen() {
        let beats =
            [Beat { number: 1, place: 10 }, Beat { number: 2, place: 20 }, Beat { number: 3, place: 30 }];
        let check = |confirmed, position, rows: [u64; 2], expected: &[Invariant]| {
            let look = Look { confirmed, position, rows: BTreeMap::from([(1, rows[0]), (2, rows[1])]) };
            let found: Vec<Invariant> =
                keeps_order(&look, &beats).into_iter().map(|violation| violation.invariant).collect();
            assert_eq!(found, expected, "{look:?}");
        };
        check(25, 25, [2, 2], &[]);
        check(25, 40, [3, 2], &[]);
        check(9, 9, [0, 0], &[]);
        check(26, 25, [2, 2], &[Invariant::Release]);
        check(25, 25, [2, 1], &[Invariant::FinalState]);
        check(30, 29, [2, 3], &[Invariant::Release, Invariant::FinalState]);
    }
}
