//! Finding the rows that StarRocks will not have: which part of a batch is tried next is decided here,
//! without I/O.
//!
//! A refused part is halved until its bad rows stand alone. That costs at most 2·log2(n) loads for each
//! bad row among n: where the first half is loaded, the second one is known to be bad and is halved
//! without being tried.

use crate::batch::Piece;

/// Loads that one batch may cost before its bad rows are given up as a whole: many more versions would
/// be what batches are there to avoid.
pub(super) const ISOLATING_LOADS_MAX: u32 = 1024;

/// What is known of a part before it is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Suspicion {
    /// Nothing.
    None,
    /// It is bad if the part before it is good.
    UnlessBefore,
    /// It has a bad row.
    Certain,
}

/// Rows of a batch that are loaded together.
#[derive(Debug)]
pub(super) struct Part {
    /// The rows.
    pub(super) pieces: Vec<Piece>,
    suspicion: Suspicion,
}

/// The parts of a batch that have still to be loaded, in the order of its rows.
#[derive(Debug)]
pub(super) struct Parts {
    /// The last one is the next one.
    stack: Vec<Part>,
}

impl Parts {
    /// A batch as one part.
    pub(super) fn whole(pieces: Vec<Piece>) -> Parts {
        Parts { stack: vec![Part { pieces, suspicion: Suspicion::None }] }
    }

    /// The next part to try. Those that are known to be bad were halved.
    pub(super) fn next(&mut self) -> Option<Part> {
        loop {
            let part = self.stack.pop()?;
            if part.pieces.is_empty() {
                continue;
            }
            if part.suspicion != Suspicion::Certain || part.rows() == 1 {
                return Some(part);
            }
            self.halve(part);
        }
    }

    /// The last part tried was loaded.
    pub(super) fn loaded(&mut self) {
        if let Some(next) = self.stack.last_mut().filter(|next| next.suspicion == Suspicion::UnlessBefore) {
            next.suspicion = Suspicion::Certain;
        }
    }

    /// The last part tried was refused, and `rest` is what is left of it: tried again if bad rows were
    /// found in it, halved if not.
    pub(super) fn refused(&mut self, rest: Vec<Piece>, found: bool) {
        if let Some(next) = self.stack.last_mut().filter(|next| next.suspicion == Suspicion::UnlessBefore) {
            next.suspicion = Suspicion::None;
        }
        let suspicion = if found { Suspicion::None } else { Suspicion::Certain };
        self.stack.push(Part { pieces: rest, suspicion });
    }

    /// All pieces left.
    pub(super) fn into_pieces(self) -> impl Iterator<Item = Piece> {
        self.stack.into_iter().rev().flat_map(|part| part.pieces)
    }

    fn halve(&mut self, part: Part) {
        let rows = part.rows();
        let mut room = rows / 2;
        let (mut first, mut second) = (Vec::new(), Vec::new());
        for mut piece in part.pieces {
            if room == 0 {
                second.push(piece);
                continue;
            }
            let rest = piece.split(room, u64::MAX);
            room -= piece.len() as u64;
            first.push(piece);
            second.extend(rest);
        }
        self.stack.push(Part { pieces: second, suspicion: Suspicion::UnlessBefore });
        self.stack.push(Part { pieces: first, suspicion: Suspicion::None });
    }
}

impl Part {
    /// Rows in all pieces.
    pub(super) fn rows(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.len() as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::fakes::numbered_rows;

    /// Plays StarRocks with `bad` rows among `rows`; returns the rows loaded, those refused, and the
    /// loads that it took.
    fn play(rows: u64, bad: &[i64]) -> (Vec<i64>, Vec<i64>, u32) {
        let mut parts = Parts::whole(vec![numbered_rows(0..rows / 3), numbered_rows(rows / 3..rows)]);
        let (mut loaded, mut refused, mut loads) = (Vec::new(), Vec::new(), 0);
        while let Some(part) = parts.next() {
            loads += 1;
            let places: Vec<i64> =
                part.pieces.iter().flat_map(|piece| piece.iter().map(|(place, _)| place)).collect();
            if !places.iter().any(|place| bad.contains(place)) {
                loaded.extend(places);
                part.pieces.into_iter().for_each(|piece| drop(piece.settle()));
                parts.loaded();
            } else if let [only] = places[..] {
                refused.push(only);
                part.pieces.into_iter().for_each(|piece| drop(piece.settle()));
                parts.refused(Vec::new(), true);
            } else {
                parts.refused(part.pieces, false);
            }
        }
        (loaded, refused, loads)
    }

    #[test]
    fn every_good_row_is_loaded_once_in_order_and_every_bad_one_is_found() {
        for bad in [&[][..], &[0], &[1023], &[500], &[3, 4, 700], &[0, 1, 2, 3]] {
            let (loaded, refused, _) = play(1024, bad);
            let good: Vec<i64> = (0..1024).filter(|place| !bad.contains(place)).collect();
            assert_eq!((loaded, refused), (good, bad.to_vec()));
        }
    }

    #[test]
    fn a_bad_row_costs_at_most_twice_the_logarithm_in_loads() {
        for bad in 0..1024 {
            let (.., loads) = play(1024, &[bad]);
            // One for the batch as it was cut, 2·log2(1024) for the row.
            assert!(loads <= 1 + 20, "row {bad} cost {loads} loads");
        }
    }
}
