//! I1 to I5: the records, what became of them, and what the source was told.

use super::{Invariant, Violation, repeats::Windows};
use crate::oracle::Promise;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Partition and offset of a record.
pub type Place = (i32, i64);

/// What a record says, as a function of the run's seed and the record's identifier: it is computed anew, not remembered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Payload {
    /// Of the run.
    pub seed: u64,
    /// Keys of a Primary Key table; none = each record has a row of its own, under its identifier.
    pub keys: Option<u64>,
    /// Partitions of the topic.
    pub partitions: i32,
    /// One record in so many cannot be loaded; 0 = none.
    pub bad_every: u64,
}

/// Steele, Lea and Flood's SplitMix64: every bit of the result hangs on every bit of both numbers.
fn mixed(seed: u64, number: u64) -> u64 {
    let mut mix = seed.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mix = (mix ^ (mix >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mix = (mix ^ (mix >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mix ^ (mix >> 31)
}

impl Payload {
    /// The key of the row: the column `id`.
    #[must_use]
    pub fn key(&self, id: u64) -> u64 {
        self.keys.map_or(id, |keys| mixed(self.seed, id) % keys)
    }

    /// Where it is produced to: records of a key keep their order.
    #[must_use]
    pub fn partition(&self, id: u64) -> i32 {
        let partitions = u64::try_from(self.partitions).unwrap_or(1);
        i32::try_from(self.key(id) % partitions).unwrap_or(0)
    }

    /// Whether it is one that cannot be loaded.
    #[must_use]
    pub fn is_bad(&self, id: u64) -> bool {
        self.bad_every > 0 && mixed(!self.seed, id).is_multiple_of(self.bad_every)
    }

    /// The column `note`: shows that a row was not put together from two records.
    #[must_use]
    pub fn note(&self, id: u64) -> String {
        format!("v{id} {:016x}", mixed(self.seed.rotate_left(17), id))
    }

    /// The record's value: a row, or what cannot become one.
    #[must_use]
    pub fn value(&self, id: u64) -> String {
        let (key, note) = (self.key(id), self.note(id));
        if self.is_bad(id) {
            return match id % 2 {
                0 => format!(r#"{{"id":{key},"amount":{id},"note":"{note}"#),
                _ => format!(r#"{{"id":"no number","amount":{id},"note":"{note}"}}"#),
            };
        }
        format!(r#"{{"id":{key},"amount":{id},"note":"{note}"}}"#)
    }

    /// Whether a row is what its record said: `amount` names the record.
    #[must_use]
    pub fn is_of(&self, row: &Row) -> bool {
        row.id == self.key(row.amount) && row.note == self.note(row.amount)
    }
}

/// A row of the table.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Row {
    /// The column `id`: the key.
    pub id: u64,
    /// The column `amount`: the record's identifier, which is also the key's version.
    pub amount: u64,
    /// The column `note`.
    pub note: String,
}

/// What is known when all has come to rest.
#[derive(Clone, Debug)]
pub struct Evidence<'a> {
    /// What records say.
    pub payload: Payload,
    /// What was promised of a Duplicate Key table.
    pub promise: Promise,
    /// Identifiers `0..issued` were handed to the client.
    pub issued: u64,
    /// Those that the broker has acknowledged: obligations.
    pub acknowledged: &'a BTreeMap<Place, u64>,
    /// What is in the table.
    pub rows: &'a [Row],
    /// Where dead letters came from.
    pub letters: &'a [Place],
    /// Records of which the client does not know whether the broker has them: letters of theirs have no place in the book.
    pub given_up: u64,
    /// What may come twice at least once: what was on its way at each end that was not orderly.
    pub repeats: &'a Windows,
}

/// What was counted on the way to the verdict.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Counted {
    /// Obligations.
    pub acknowledged: u64,
    /// Records that are in the table: of a Primary Key table, keys.
    pub loaded: u64,
    /// Records that are kept as dead letters.
    pub dead_lettered: u64,
    /// Obligations that are nowhere.
    pub missing: u64,
    /// Rows too many.
    pub repeated: u64,
    /// Letters too many: of one record there may be several, so that alone is no violation.
    pub letters_repeated: u64,
}

/// Judges what is in the table and in the dead letters: I1 to I4.
#[must_use]
pub fn judge(evidence: &Evidence<'_>) -> (Counted, Vec<Violation>) {
    let places: BTreeSet<&Place> = evidence.letters.iter().collect();
    let kept: HashSet<u64> =
        places.iter().filter_map(|place| evidence.acknowledged.get(*place)).copied().collect();
    // Where nobody sent anything that the broker took; what the client gave up may be there all the same.
    let stray = (places.len() - kept.len()) as u64;
    let broken = evidence.rows.iter().filter(|row| !evidence.payload.is_of(row));
    let broken: Vec<u64> = broken.map(|row| row.amount).collect();
    let foreign: Vec<u64> =
        evidence.rows.iter().map(|row| row.amount).filter(|id| *id >= evidence.issued).collect();
    let spoiled = kept.iter().copied().filter(|id| !evidence.payload.is_bad(*id)).collect::<BTreeSet<_>>();
    let mut violations: Vec<Violation> = [
        Violation::of_ids(Invariant::Integrity, "rows are not what was sent", &broken),
        Violation::of_ids(Invariant::Integrity, "rows are of records that nobody sent", &foreign),
        Violation::of_ids(
            Invariant::Integrity,
            "records are dead letters that could be loaded",
            &spoiled.into_iter().collect::<Vec<_>>(),
        ),
        (stray > evidence.given_up).then(|| {
            Violation::new(
                Invariant::Integrity,
                format!("{stray} dead letters are of no record that was sent"),
            )
        }),
    ]
    .into_iter()
    .flatten()
    .collect();
    let (mut counted, found) = match evidence.payload.keys {
        None => each_record(evidence, &kept),
        Some(_) => each_key(evidence, &kept),
    };
    violations.extend(found);
    counted.acknowledged = evidence.acknowledged.len() as u64;
    counted.dead_lettered = kept.len() as u64;
    counted.letters_repeated = (evidence.letters.len() - places.len()) as u64;
    (counted, violations)
}

/// A row for each record.
fn each_record(evidence: &Evidence<'_>, kept: &HashSet<u64>) -> (Counted, Vec<Violation>) {
    let mut counts: HashMap<u64, u64> = HashMap::new();
    for row in evidence.rows {
        *counts.entry(row.amount).or_default() += 1;
    }
    let owed = evidence.acknowledged.values();
    let mut missing: Vec<u64> =
        owed.filter(|id| !counts.contains_key(id) && !kept.contains(id)).copied().collect();
    missing.sort_unstable();
    let mut repeated: Vec<u64> = counts.iter().filter(|(_, count)| **count > 1).map(|(id, _)| *id).collect();
    repeated.sort_unstable();
    let mut both: Vec<u64> = kept.iter().filter(|id| counts.contains_key(id)).copied().collect();
    both.sort_unstable();
    let too_many: u64 = counts.values().map(|count| count - 1).sum();
    let counted = Counted {
        loaded: counts.len() as u64,
        missing: missing.len() as u64,
        repeated: too_many,
        ..Counted::default()
    };
    let unexplained = unexplained(evidence, &counts, &repeated);
    let why = match evidence.promise {
        Promise::Once => "records are there more than once",
        Promise::AtLeastOnce => {
            "records are there more often than they were on their way when something failed"
        }
    };
    let violations = [
        Violation::of_ids(Invariant::Conservation, "acknowledged records are nowhere", &missing),
        Violation::of_ids(Invariant::Uniqueness, why, &unexplained),
        Violation::of_ids(Invariant::Uniqueness, "records are loaded and dead letters, too", &both),
    ];
    (counted, violations.into_iter().flatten().collect())
}

/// Of the records that are there more than once those that should not be: all of them, or at least once those that are there
/// more often than they were on their way when something failed.
fn unexplained(evidence: &Evidence<'_>, counts: &HashMap<u64, u64>, repeated: &[u64]) -> Vec<u64> {
    let sought: HashSet<u64> = repeated.iter().copied().collect();
    let places = evidence.acknowledged.iter().filter(|(_, id)| sought.contains(id));
    let places: HashMap<u64, Place> = places.map(|(place, id)| (*id, *place)).collect();
    let allowed = |id: &u64| match evidence.promise {
        Promise::Once => 0,
        Promise::AtLeastOnce => places.get(id).map_or(0, |place| evidence.repeats.over(*place)),
    };
    repeated
        .iter()
        .filter(|id| counts.get(*id).is_some_and(|count| *count > 1 + allowed(id)))
        .copied()
        .collect()
}

/// A row for each key, of its last record.
fn each_key(evidence: &Evidence<'_>, kept: &HashSet<u64>) -> (Counted, Vec<Violation>) {
    let payload = &evidence.payload;
    let mut last: BTreeMap<u64, u64> = BTreeMap::new();
    for id in evidence.acknowledged.values().filter(|id| !payload.is_bad(**id) && !kept.contains(id)) {
        let newest = last.entry(payload.key(*id)).or_insert(*id);
        *newest = (*newest).max(*id);
    }
    let mut found: HashMap<u64, u64> = HashMap::new();
    let mut repeated = Vec::new();
    for row in evidence.rows {
        if found.insert(row.id, row.amount).is_some() {
            repeated.push(row.id);
        }
    }
    let lacking: Vec<u64> = last.keys().filter(|key| !found.contains_key(key)).copied().collect();
    // What was sent and not acknowledged may be there or not: a version that is newer than the last acknowledged one.
    let old: Vec<u64> = last
        .iter()
        .filter(|(key, newest)| found.get(key).is_some_and(|version| version < newest))
        .map(|(key, _)| *key)
        .collect();
    let known: HashSet<u64> = evidence.acknowledged.values().copied().collect();
    let beyond = found.iter().filter(|(key, version)| last.get(key).is_none_or(|newest| *version > newest));
    let invented: Vec<u64> =
        beyond.filter(|(_, version)| known.contains(version)).map(|(key, _)| *key).collect();
    // A bad record has no row: nothing may stand for it.
    let bad_owed: Vec<u64> = evidence
        .acknowledged
        .values()
        .filter(|id| payload.is_bad(**id) && !kept.contains(id))
        .copied()
        .collect();
    let counted = Counted {
        loaded: found.len() as u64,
        missing: (lacking.len() + bad_owed.len()) as u64,
        repeated: repeated.len() as u64,
        ..Counted::default()
    };
    let violations = [
        Violation::of_ids(Invariant::Conservation, "keys with acknowledged records have no row", &lacking),
        Violation::of_ids(Invariant::Conservation, "acknowledged records are nowhere", &bad_owed),
        Violation::of_ids(Invariant::Uniqueness, "keys are there more than once", &repeated),
        Violation::of_ids(Invariant::FinalState, "keys are older than their last record", &old),
        Violation::of_ids(Invariant::FinalState, "keys have a record that cannot be loaded", &invented),
    ];
    (counted, violations.into_iter().flatten().collect())
}

/// I5: of all obligations below `safe` (the next offset to read, by partition) each is `durable`. Returns what is not.
pub fn released_too_early(
    acknowledged: &BTreeMap<Place, u64>,
    from: &BTreeMap<i32, i64>,
    safe: &BTreeMap<i32, i64>,
    durable: impl Fn(u64) -> bool,
) -> Vec<u64> {
    let released = safe.iter().flat_map(|(partition, upto)| {
        let begin = from.get(partition).copied().unwrap_or(0);
        acknowledged.range((*partition, begin)..(*partition, (*upto).max(begin)))
    });
    released.map(|(_, id)| *id).filter(|id| !durable(*id)).collect()
}

/// I4 while the run goes on: keys whose version is lower than it was at an earlier look.
#[must_use]
pub fn gone_back(before: &BTreeMap<u64, u64>, now: &BTreeMap<u64, u64>) -> Vec<u64> {
    before
        .iter()
        .filter(|(key, version)| now.get(key).is_none_or(|found| found < version))
        .map(|(key, _)| *key)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{
        super::repeats::{Disturbance, Offsets, Timeline},
        *,
    };
    use std::time::SystemTime;

    const PAYLOAD: Payload = Payload { seed: 7, keys: None, partitions: 2, bad_every: 5 };

    fn good(payload: &Payload, ids: std::ops::Range<u64>) -> Vec<u64> {
        ids.filter(|id| !payload.is_bad(*id)).collect()
    }

    fn row(payload: &Payload, id: u64) -> Row {
        Row { id: payload.key(id), amount: id, note: payload.note(id) }
    }

    fn places(ids: std::ops::Range<u64>) -> BTreeMap<Place, u64> {
        ids.map(|id| ((0, i64::try_from(id).expect("small")), id)).collect()
    }

    fn letters(payload: &Payload, acknowledged: &BTreeMap<Place, u64>) -> Vec<Place> {
        acknowledged.iter().filter(|(_, id)| payload.is_bad(**id)).map(|(place, _)| *place).collect()
    }

    /// Records below 20 were on their way when something failed; what came later was not.
    fn disturbed() -> Windows {
        let mut timeline = Timeline::default();
        let (begin, end) =
            (SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(60));
        timeline.released(begin, Offsets::new());
        timeline.acknowledged(end, Offsets::from([(0, 20)]));
        let disturbance = Disturbance { from: begin, to: begin, pipeline: None };
        Windows::of("a", &timeline, &[disturbance])
    }

    /// Judges a run of 40 records that went well but for what `spoil` does; returns which invariants are broken.
    fn check(
        payload: Payload,
        promise: Promise,
        spoil: impl FnOnce(&mut Vec<Row>, &mut Vec<Place>),
    ) -> Vec<Invariant> {
        let acknowledged = places(0..40);
        let mut rows: Vec<Row> = match payload.keys {
            None => good(&payload, 0..40).into_iter().map(|id| row(&payload, id)).collect(),
            Some(_) => {
                let last: BTreeMap<u64, u64> =
                    good(&payload, 0..40).into_iter().map(|id| (payload.key(id), id)).collect();
                last.into_values().map(|id| row(&payload, id)).collect()
            }
        };
        let mut kept = letters(&payload, &acknowledged);
        assert!(!kept.is_empty() && rows.len() > 3, "the seed gives both kinds");
        spoil(&mut rows, &mut kept);
        let evidence = Evidence {
            payload,
            promise,
            issued: 40,
            acknowledged: &acknowledged,
            rows: &rows,
            letters: &kept,
            given_up: 0,
            repeats: &disturbed(),
        };
        judge(&evidence).1.into_iter().map(|violation| violation.invariant).collect()
    }

    fn keyed() -> Payload {
        Payload { keys: Some(6), ..PAYLOAD }
    }

    #[test]
    fn a_run_that_went_well_breaks_nothing() {
        for payload in [PAYLOAD, keyed()] {
            for promise in [Promise::Once, Promise::AtLeastOnce] {
                assert_eq!(check(payload, promise, |_, _| {}), []);
            }
        }
    }

    #[test]
    fn a_lost_record_is_seen() {
        let lost = |rows: &mut Vec<Row>, _: &mut Vec<Place>| drop(rows.remove(3));
        assert_eq!(check(PAYLOAD, Promise::AtLeastOnce, lost), [Invariant::Conservation]);
        assert_eq!(check(keyed(), Promise::AtLeastOnce, lost), [Invariant::Conservation]);
        let no_letter = |_: &mut Vec<Row>, kept: &mut Vec<Place>| {
            kept.pop();
        };
        assert_eq!(check(PAYLOAD, Promise::Once, no_letter), [Invariant::Conservation]);
        assert_eq!(check(keyed(), Promise::Once, no_letter), [Invariant::Conservation]);
    }

    #[test]
    fn a_row_of_other_content_is_seen() {
        let spoil = |rows: &mut Vec<Row>, _: &mut Vec<Place>| rows[2].note = rows[3].note.clone();
        assert_eq!(check(PAYLOAD, Promise::Once, spoil), [Invariant::Integrity]);
        let invent = |rows: &mut Vec<Row>, _: &mut Vec<Place>| rows.push(row(&PAYLOAD, 41));
        assert_eq!(check(PAYLOAD, Promise::Once, invent), [Invariant::Integrity]);
        let needless = |rows: &mut Vec<Row>, kept: &mut Vec<Place>| {
            let id = rows.remove(0).amount;
            kept.push((0, i64::try_from(id).expect("small")));
        };
        assert_eq!(check(PAYLOAD, Promise::Once, needless), [Invariant::Integrity]);
    }

    #[test]
    fn a_letter_of_nothing_is_seen_and_one_that_came_twice_is_counted() {
        let stray = |_: &mut Vec<Row>, kept: &mut Vec<Place>| kept.push((1, 3));
        assert_eq!(check(PAYLOAD, Promise::Once, stray), [Invariant::Integrity]);
        assert_eq!(check(keyed(), Promise::AtLeastOnce, stray), [Invariant::Integrity]);
        let again = |_: &mut Vec<Row>, kept: &mut Vec<Place>| kept.push(kept[0]);
        assert_eq!(check(PAYLOAD, Promise::Once, again), []);
    }

    #[test]
    fn a_repeated_record_is_seen_as_far_as_it_was_promised() {
        let twice = |rows: &mut Vec<Row>, _: &mut Vec<Place>| rows.push(rows[0].clone());
        assert_eq!(check(PAYLOAD, Promise::Once, twice), [Invariant::Uniqueness]);
        assert_eq!(check(PAYLOAD, Promise::AtLeastOnce, twice), []);
        let thrice = |rows: &mut Vec<Row>, _: &mut Vec<Place>| {
            rows.extend([rows[0].clone(), rows[0].clone()]);
        };
        assert_eq!(
            check(PAYLOAD, Promise::AtLeastOnce, thrice),
            [Invariant::Uniqueness],
            "more often than something failed"
        );
        // As a host does that loads anew whatever answer was lost.
        let later = |rows: &mut Vec<Row>, _: &mut Vec<Place>| {
            let last = rows.last().expect("there are rows").clone();
            assert!(last.amount >= 20);
            rows.push(last);
        };
        assert_eq!(
            check(PAYLOAD, Promise::AtLeastOnce, later),
            [Invariant::Uniqueness],
            "nothing had failed"
        );
        let both = |rows: &mut Vec<Row>, kept: &mut Vec<Place>| {
            let bad = u64::try_from(kept[0].1).expect("small");
            rows.push(row(&PAYLOAD, bad));
        };
        assert_eq!(check(PAYLOAD, Promise::AtLeastOnce, both), [Invariant::Uniqueness]);
        assert_eq!(check(keyed(), Promise::AtLeastOnce, twice), [Invariant::Uniqueness]);
    }

    #[test]
    fn a_key_that_went_back_is_seen() {
        let payload = keyed();
        let back = |rows: &mut Vec<Row>, _: &mut Vec<Place>| {
            let key = rows[1].id;
            let first = good(&payload, 0..40).into_iter().find(|id| payload.key(*id) == key);
            rows[1] = row(&payload, first.expect("a record of the key"));
        };
        assert_eq!(check(payload, Promise::AtLeastOnce, back), [Invariant::FinalState]);
        let before = BTreeMap::from([(1, 10), (2, 20), (3, 30)]);
        let now = BTreeMap::from([(1, 11), (2, 19)]);
        assert_eq!(gone_back(&before, &now), [2, 3]);
    }

    #[test]
    fn an_offset_that_was_committed_before_its_rows_were_there_is_seen() {
        let acknowledged = places(0..10);
        let (from, safe) = (BTreeMap::from([(0, 2)]), BTreeMap::from([(0, 8)]));
        let early = |durable: fn(u64) -> bool| released_too_early(&acknowledged, &from, &safe, durable);
        assert_eq!(early(|id| id < 8), [0; 0]);
        assert_eq!(
            early(|id| id != 5 && id > 1),
            [5],
            "what is not released, or was looked at, does not count"
        );
    }

    #[test]
    fn what_a_record_says_hangs_on_seed_and_identifier() {
        let other = Payload { seed: 8, ..PAYLOAD };
        assert!(PAYLOAD.note(3) == PAYLOAD.note(3) && PAYLOAD.note(3) != other.note(3));
        assert!(PAYLOAD.is_of(&row(&PAYLOAD, 3)) && !other.is_of(&row(&PAYLOAD, 3)));
        assert!((0..100).all(|id| keyed().key(id) < 6 && (0..2).contains(&keyed().partition(id))));
    }
}
