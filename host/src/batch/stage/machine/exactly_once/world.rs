//! What outlives the process: Kafka, StarRocks and kept letters.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::super::lasting::Lasting;
use super::super::records::{Letter, Record, records};
use super::super::{PARTITIONS, TABLES};
use super::TAKE_OVER_STEPS;
use crate::delivery::decision::{self, Decision, Recovery, Terms, recover};
use crate::sink::starrocks::state::LabelState;

const DAY: Duration = Duration::from_secs(86_400);

/// A transaction of StarRocks.
struct Transaction {
    state: LabelState,
    table: usize,
    rows: Vec<Record>,
}

pub(super) struct World {
    /// Kafka: the last offset that is done, and the text beside it.
    standings: [(i64, String); PARTITIONS],
    transactions: BTreeMap<String, Transaction>,
    /// Labels that nobody rolls back any more: StarRocks gives them up by itself.
    strays: BTreeSet<String>,
    /// Rows that are visible, and letters: those that go with decisions in the same transaction of Kafka.
    pub(super) lasting: Lasting,
    lives: u64,
}

pub(super) fn terms() -> Terms {
    Terms { tables_max: TABLES as u32, prepared_timeout: DAY, database: "shop".into() }
}

impl World {
    pub(super) fn behind(committed: [i64; PARTITIONS]) -> World {
        World {
            standings: committed.map(|offset| (offset, String::new())),
            transactions: BTreeMap::new(),
            strays: BTreeSet::new(),
            lasting: Lasting::behind(committed),
            lives: 0,
        }
    }

    fn state_of(&self, label: &str) -> LabelState {
        self.transactions.get(label).map_or(LabelState::Unknown, |transaction| transaction.state)
    }

    pub(super) fn prepare(&mut self, label: String, table: usize, rows: Vec<Record>) {
        let state = LabelState::Prepared;
        let before = self.transactions.insert(label, Transaction { state, table, rows });
        assert!(before.is_none(), "a label is never used again");
    }

    fn commit(&mut self, label: &str) {
        let transaction = self.transactions.get_mut(label).expect("it was prepared");
        transaction.state = LabelState::Visible;
        self.lasting.load(transaction.table, transaction.rows.iter().copied());
    }

    pub(super) fn roll_back(&mut self, label: &str) {
        let found = self.transactions.get_mut(label);
        if let Some(transaction) = found.filter(|found| found.state == LabelState::Prepared) {
            transaction.state = LabelState::Aborted;
        }
    }

    /// The rollback of what is under a label does not arrive.
    pub(super) fn stray(&mut self, label: String) {
        self.strays.insert(label);
    }

    fn prepared(&self) -> impl Iterator<Item = &String> {
        let found = self.transactions.iter().filter(|(_, found)| found.state == LabelState::Prepared);
        found.map(|(label, _)| label)
    }

    /// StarRocks forgets what is finished.
    pub(super) fn forget(&mut self) {
        self.transactions.retain(|_, transaction| transaction.state == LabelState::Prepared);
    }

    /// Does what the host does about a label that was decided.
    pub(super) fn settle(&mut self, label: &str, decision: &Decision) {
        let timeout = Duration::from_secs(decision.prepared_timeout_s);
        match recover(self.state_of(label), Duration::ZERO, timeout) {
            Recovery::Done => {}
            Recovery::Commit => self.commit(label),
            Recovery::Lost => panic!("decided load {label} is lost"),
        }
    }

    pub(super) fn decision_at(&self, partition: usize) -> Option<Decision> {
        Decision::read(&self.standings[partition].1).expect("our own form")
    }

    /// One transaction of Kafka.
    pub(super) fn write(
        &mut self,
        offsets: [i64; PARTITIONS],
        decision: &Decision,
        letters: impl IntoIterator<Item = Letter>,
    ) {
        for (standing, offset) in self.standings.iter_mut().zip(offsets) {
            *standing = (offset, decision.beginning_at(standing.0 + 1).to_metadata());
        }
        letters.into_iter().for_each(|letter| self.lasting.keep(letter));
    }

    pub(super) fn committed(&self) -> [i64; PARTITIONS] {
        std::array::from_fn(|partition| self.standings[partition].0)
    }

    /// A process comes and makes so many steps of its take-over; returns its stem.
    pub(super) fn take_over(&mut self, steps: usize) -> String {
        let before: Vec<Decision> =
            (0..PARTITIONS).filter_map(|partition| self.decision_at(partition)).collect();
        self.lives += 1;
        let stem = format!("life-{}-1", self.lives);
        for step in decision::plan(before.iter()).into_iter().take(steps) {
            match step {
                decision::Step::Finish(places) => {
                    for decision in places.into_iter().map(|place| &before[place]) {
                        decision.labels().for_each(|label| self.settle(&label, decision));
                    }
                }
                decision::Step::Claim => {
                    self.write(self.committed(), &Decision::empty(&stem, 0, &terms()), []);
                }
                decision::Step::GiveUp(labels) => labels.iter().for_each(|label| self.roll_back(label)),
            }
        }
        if steps + 1 == TAKE_OVER_STEPS {
            // Whoever comes next finds this one's claim, and no longer what it was to roll back.
            self.strays = self.prepared().cloned().collect();
        }
        stem
    }

    /// Whether a row will be in its table, by what stands in Kafka.
    fn is_decided(&self, table: usize, record: Record) -> bool {
        let decided = self.decision_at(record.partition).into_iter();
        let mut named = decided.flat_map(|decision| decision.labels().collect::<Vec<_>>());
        named.any(|label| {
            let found = self.transactions.get(&label);
            found.is_some_and(|found| {
                found.state == LabelState::Prepared && found.table == table && found.rows.contains(&record)
            })
        })
    }

    /// Expects that nothing up to the offsets is missing and nothing is there twice, whatever is going on.
    pub(super) fn must_hold(&self, decides_letters: bool) {
        let Lasting { rows, letters, .. } = &self.lasting;
        assert!(rows.values().all(|times| *times == 1), "rows came twice: {rows:?}");
        if decides_letters {
            assert!(letters.values().all(|times| *times == 1), "letters came twice: {letters:?}");
            let mut places = letters.keys().map(|letter| letter.record);
            let is_behind = |record: Record| record.offset <= self.committed()[record.partition];
            assert!(places.all(is_behind), "letters are there before their decision: {letters:?}");
        }
        for (partition, committed) in self.committed().into_iter().enumerate() {
            for record in records(partition, -1, committed) {
                self.lasting.must_have(record, |table| self.is_decided(table, record));
            }
        }
    }

    /// Expects what a take-over leaves behind: the tables hold the rows up to the offsets, once, and none behind them, and
    /// nothing is prepared that nobody commits or rolls back.
    pub(super) fn must_hold_what_is_committed(&self, decides_letters: bool) {
        self.must_hold(decides_letters);
        let left: Vec<&String> = self.prepared().filter(|label| !self.strays.contains(*label)).collect();
        assert!(left.is_empty(), "{left:?} are prepared, and nobody will roll them back");
        let committed = self.committed();
        let all = (0..PARTITIONS).flat_map(|partition| records(partition, -1, self.lasting.seen[partition]));
        for (record, table) in all.flat_map(|record| (0..TABLES).map(move |table| (record, table))) {
            let times = self.lasting.times(table, record);
            let told = self.lasting.told(record, Some(table));
            if record.offset > committed[record.partition] || !record.is_row_of(table) {
                assert_eq!(times, 0, "{record:?} in table {table} behind what is decided");
            } else if decides_letters {
                assert_eq!(times + told, 1, "{record:?} is a row of table {table}, or a letter");
            } else {
                assert!(times == 1 || told > 0, "{record:?} is not in table {table}");
            }
        }
    }
}
