//! Knows which identifiers must be in a table, and judges what is there.

use std::{collections::HashMap, fmt};

/// How often each record may appear.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Promise {
    /// Once: nothing crashed.
    Once,
    /// Once or more: a process was killed, and what it had loaded without a release came again.
    AtLeastOnce,
}

/// What is wrong with a table, by the identifiers `0..expected`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Judgement {
    /// Records that are nowhere: a loss, whatever was promised.
    pub missing: Vec<u64>,
    /// Records that are there more often than once.
    pub repeated: Vec<u64>,
    /// Identifiers that nobody sent.
    pub foreign: Vec<u64>,
}

/// Counts each identifier that was found and compares with `0..expected`.
#[must_use]
pub fn judge(expected: u64, found: impl IntoIterator<Item = u64>) -> Judgement {
    let mut counts: HashMap<u64, u64> = HashMap::new();
    for id in found {
        *counts.entry(id).or_default() += 1;
    }
    let mut judgement = Judgement {
        missing: (0..expected).filter(|id| !counts.contains_key(id)).collect(),
        repeated: counts.iter().filter(|(_, count)| **count > 1).map(|(id, _)| *id).collect(),
        foreign: counts.keys().filter(|id| **id >= expected).copied().collect(),
    };
    judgement.repeated.sort_unstable();
    judgement.foreign.sort_unstable();
    judgement
}

impl Judgement {
    /// Whether the promise was kept.
    #[must_use]
    pub fn keeps(&self, promise: Promise) -> bool {
        let repeated_may_be = match promise {
            Promise::Once => self.repeated.is_empty(),
            Promise::AtLeastOnce => true,
        };
        self.missing.is_empty() && self.foreign.is_empty() && repeated_may_be
    }

    /// Fails the test, with the first few offenders, unless the promise was kept.
    ///
    /// # Panics
    /// When a record is missing, was never sent, or appears too often.
    pub fn must_keep(&self, promise: Promise) {
        assert!(self.keeps(promise), "{promise:?} is broken: {self}");
    }
}

impl fmt::Display for Judgement {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |ids: &[u64]| format!("{} {:?}", ids.len(), &ids[..ids.len().min(5)]);
        write!(
            out,
            "missing {}, repeated {}, foreign {}",
            part(&self.missing),
            part(&self.repeated),
            part(&self.foreign)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{Judgement, Promise, judge};

    fn check(found: &[u64], expected: &Judgement, once: bool, at_least_once: bool) {
        let judgement = judge(3, found.iter().copied());
        assert_eq!(&judgement, expected);
        assert_eq!(
            (judgement.keeps(Promise::Once), judgement.keeps(Promise::AtLeastOnce)),
            (once, at_least_once)
        );
    }

    #[test]
    fn each_offence_is_seen() {
        let fine = Judgement::default();
        check(&[2, 0, 1], &fine, true, true);
        check(&[2, 0, 1, 1], &Judgement { repeated: vec![1], ..fine.clone() }, false, true);
        check(&[2, 0], &Judgement { missing: vec![1], ..fine.clone() }, false, false);
        check(&[2, 0, 1, 7], &Judgement { foreign: vec![7], ..fine.clone() }, false, false);
        check(&[], &Judgement { missing: vec![0, 1, 2], ..fine }, false, false);
    }
}
