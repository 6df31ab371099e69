//! Load transactions and their labels (protocol reference §3, §4): pure, the clock is an argument.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// The states that `get_load_state` tells, without UNKNOWN, which is the absence of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransactionState {
    /// Begun; rows may be on their way.
    Prepare,
    /// All rows are there; waits for a commit and survives everything but its time-out.
    Prepared,
    /// Durable, not visible yet.
    Committed,
    /// Durable and visible.
    Visible,
    /// Undone; the label may be used again.
    Aborted,
}

impl TransactionState {
    /// The name in StarRocks' answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prepare => "PREPARE",
            Self::Prepared => "PREPARED",
            Self::Committed => "COMMITTED",
            Self::Visible => "VISIBLE",
            Self::Aborted => "ABORTED",
        }
    }

    fn is_final(self) -> bool {
        matches!(self, Self::Visible | Self::Aborted)
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Transaction {
    pub(crate) id: i64,
    pub(crate) db: String,
    pub(crate) table: String,
    pub(crate) label: String,
    pub(crate) state: TransactionState,
    pub(crate) reason: Option<String>,
    /// When an unfinished transaction is aborted.
    deadline: Instant,
    finished: Option<Instant>,
}

/// Why a transaction was not begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BeginRefusal {
    LabelUsed { existing: TransactionState },
    TooManyRunning { running: usize, limit: usize },
}

/// Why a transaction did not change its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StateRefusal {
    Unknown,
    Is(TransactionState),
}

/// What is remembered, and for how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) finished_max: usize,
    pub(crate) finished_age_max: Duration,
    pub(crate) running_max: usize,
}

/// The transactions of one database.
#[derive(Debug, Default)]
struct Database {
    /// By label, in the order of their beginning: any number aborted, at most one other.
    labels: HashMap<String, Vec<i64>>,
    finished: VecDeque<i64>,
    running: usize,
}

/// All transactions that are not forgotten.
#[derive(Debug)]
pub(crate) struct Transactions {
    limits: Limits,
    next_id: i64,
    by_id: HashMap<i64, Transaction>,
    databases: HashMap<String, Database>,
}

const FIRST_ID: i64 = 2001;

impl Transactions {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, next_id: FIRST_ID, by_id: HashMap::new(), databases: HashMap::new() }
    }

    pub(crate) fn begin(
        &mut self,
        (db, table): (&str, &str),
        label: &str,
        timeout: Duration,
        now: Instant,
    ) -> Result<i64, BeginRefusal> {
        if let Some(live) = self.by_label(db, label).filter(|live| live.state != TransactionState::Aborted) {
            return Err(BeginRefusal::LabelUsed { existing: live.state });
        }
        let limit = self.limits.running_max;
        let database = self.databases.entry(db.to_owned()).or_default();
        if database.running >= limit {
            return Err(BeginRefusal::TooManyRunning { running: database.running, limit });
        }
        let id = self.next_id;
        self.next_id += 1;
        database.running += 1;
        database.labels.entry(label.to_owned()).or_default().push(id);
        let transaction = Transaction {
            id,
            db: db.to_owned(),
            table: table.to_owned(),
            label: label.to_owned(),
            state: TransactionState::Prepare,
            reason: None,
            deadline: now + timeout,
            finished: None,
        };
        self.by_id.insert(id, transaction);
        Ok(id)
    }

    /// The transaction that a label stands for: the one that is not aborted, else the last one.
    pub(crate) fn by_label(&self, db: &str, label: &str) -> Option<&Transaction> {
        let ids = self.databases.get(db)?.labels.get(label)?;
        self.by_id.get(ids.last()?)
    }

    pub(crate) fn get(&self, id: i64) -> Option<&Transaction> {
        self.by_id.get(&id)
    }

    /// PREPARE → PREPARED, to be committed within `timeout`.
    pub(crate) fn prepare(&mut self, id: i64, timeout: Duration, now: Instant) -> Result<(), StateRefusal> {
        let transaction = self.in_state(id, &[TransactionState::Prepare])?;
        transaction.state = TransactionState::Prepared;
        transaction.deadline = now + timeout;
        Ok(())
    }

    /// PREPARE or PREPARED → COMMITTED: from here on the rows are durable.
    pub(crate) fn commit(&mut self, id: i64) -> Result<(), StateRefusal> {
        let transaction = self.in_state(id, &[TransactionState::Prepare, TransactionState::Prepared])?;
        transaction.state = TransactionState::Committed;
        Ok(())
    }

    /// COMMITTED → VISIBLE.
    pub(crate) fn publish(&mut self, id: i64, now: Instant) -> Result<(), StateRefusal> {
        let transaction = self.in_state(id, &[TransactionState::Committed])?;
        transaction.state = TransactionState::Visible;
        self.finish(id, now);
        Ok(())
    }

    /// PREPARE or PREPARED → ABORTED.
    pub(crate) fn abort(&mut self, id: i64, reason: &str, now: Instant) -> Result<(), StateRefusal> {
        let transaction = self.in_state(id, &[TransactionState::Prepare, TransactionState::Prepared])?;
        transaction.state = TransactionState::Aborted;
        transaction.reason = Some(reason.to_owned());
        self.finish(id, now);
        Ok(())
    }

    /// Aborts what is past its deadline and forgets what finished too long ago; returns the aborted ids.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<i64> {
        let overdue = |transaction: &&Transaction| {
            let open = matches!(transaction.state, TransactionState::Prepare | TransactionState::Prepared);
            open && transaction.deadline <= now
        };
        let expired: Vec<i64> =
            self.by_id.values().filter(overdue).map(|transaction| transaction.id).collect();
        for id in &expired {
            // The state was checked just above, so the abort cannot be refused.
            let _aborted = self.abort(*id, "transaction is aborted by timeout.", now);
        }
        let age_max = self.limits.finished_age_max;
        let databases: Vec<String> = self.databases.keys().cloned().collect();
        for db in databases {
            while let Some(oldest) = self.databases.get(&db).and_then(|database| database.finished.front()) {
                let finished = self.by_id.get(oldest).and_then(|transaction| transaction.finished);
                if finished.is_some_and(|finished| now.duration_since(finished) < age_max) {
                    break;
                }
                self.forget_oldest(&db);
            }
        }
        expired
    }

    /// Forgets a finished label as if its time had come; false when it is unknown or unfinished.
    pub(crate) fn forget(&mut self, db: &str, label: &str) -> bool {
        let Some(database) = self.databases.get_mut(db) else { return false };
        let Some(ids) = database.labels.get(label) else { return false };
        if ids.iter().any(|id| self.by_id.get(id).is_some_and(|found| !found.state.is_final())) {
            return false;
        }
        for id in database.labels.remove(label).unwrap_or_default() {
            self.by_id.remove(&id);
            database.finished.retain(|finished| *finished != id);
        }
        true
    }

    /// Forgets all finished labels of a database, as if each had been followed by too many others.
    pub(crate) fn forget_finished(&mut self, db: &str) {
        while self.databases.get(db).is_some_and(|database| !database.finished.is_empty()) {
            self.forget_oldest(db);
        }
    }

    /// How many are neither visible nor aborted.
    pub(crate) fn open(&self) -> usize {
        self.databases.values().map(|database| database.running).sum()
    }

    /// Forgets everything about a database.
    pub(crate) fn drop_database(&mut self, db: &str) {
        self.databases.remove(db);
        self.by_id.retain(|_, transaction| transaction.db != db);
    }

    /// All transactions of a database, oldest first.
    pub(crate) fn list(&self, db: &str) -> Vec<Transaction> {
        let mut found: Vec<Transaction> =
            self.by_id.values().filter(|transaction| transaction.db == db).cloned().collect();
        found.sort_by_key(|transaction| transaction.id);
        found
    }

    fn in_state(&mut self, id: i64, allowed: &[TransactionState]) -> Result<&mut Transaction, StateRefusal> {
        let transaction = self.by_id.get_mut(&id).ok_or(StateRefusal::Unknown)?;
        if !allowed.contains(&transaction.state) {
            return Err(StateRefusal::Is(transaction.state));
        }
        Ok(transaction)
    }

    fn finish(&mut self, id: i64, now: Instant) {
        let Some(transaction) = self.by_id.get_mut(&id) else { return };
        transaction.finished = Some(now);
        let db = transaction.db.clone();
        let Some(database) = self.databases.get_mut(&db) else { return };
        database.running = database.running.saturating_sub(1);
        database.finished.push_back(id);
        while self.databases.get(&db).is_some_and(|found| found.finished.len() > self.limits.finished_max) {
            self.forget_oldest(&db);
        }
    }

    fn forget_oldest(&mut self, db: &str) {
        let Some(database) = self.databases.get_mut(db) else { return };
        let Some(id) = database.finished.pop_front() else { return };
        let Some(transaction) = self.by_id.remove(&id) else { return };
        if let Some(ids) = database.labels.get_mut(&transaction.label) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                database.labels.remove(&transaction.label);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{BeginRefusal, Limits, StateRefusal, TransactionState, Transactions};
    use std::time::{Duration, Instant};

    const TABLE: (&str, &str) = ("shop", "orders");
    const TIMEOUT: Duration = Duration::from_secs(600);

    fn transactions(finished_max: usize, running_max: usize) -> (Transactions, Instant) {
        let finished_age_max = Duration::from_secs(3600);
        (Transactions::new(Limits { finished_max, finished_age_max, running_max }), Instant::now())
    }

    fn state(transactions: &Transactions, label: &str) -> Option<TransactionState> {
        transactions.by_label("shop", label).map(|transaction| transaction.state)
    }

    #[test]
    fn a_label_is_used_once_unless_aborted() {
        let (mut all, now) = transactions(10, 10);
        let first = all.begin(TABLE, "a", TIMEOUT, now).expect("free label");
        let existing = TransactionState::Prepare;
        assert_eq!(all.begin(TABLE, "a", TIMEOUT, now), Err(BeginRefusal::LabelUsed { existing }));
        all.abort(first, "why not", now).expect("running");
        assert_eq!(state(&all, "a"), Some(TransactionState::Aborted));
        let second = all.begin(TABLE, "a", TIMEOUT, now).expect("aborted labels are free");
        all.commit(second).expect("running");
        let existing = TransactionState::Committed;
        assert_eq!(all.begin(TABLE, "a", TIMEOUT, now), Err(BeginRefusal::LabelUsed { existing }));
        assert_eq!(all.abort(second, "late", now), Err(StateRefusal::Is(TransactionState::Committed)));
        all.publish(second, now).expect("committed");
        assert_eq!(state(&all, "a"), Some(TransactionState::Visible));
        assert!(all.begin(("other", "orders"), "a", TIMEOUT, now).is_ok(), "labels are per database");
    }

    #[test]
    fn finished_labels_are_forgotten_by_number_and_by_age() {
        let (mut all, now) = transactions(2, 10);
        for label in ["a", "b", "c"] {
            let id = all.begin(TABLE, label, TIMEOUT, now).expect("free label");
            all.commit(id).expect("running");
            all.publish(id, now).expect("committed");
        }
        assert_eq!(state(&all, "a"), None);
        assert_eq!(state(&all, "b"), Some(TransactionState::Visible));
        assert!(all.forget("shop", "b"));
        assert_eq!(state(&all, "b"), None);
        assert_eq!((state(&all, "c"), all.open()), (Some(TransactionState::Visible), 0));
        all.expire(now + Duration::from_secs(3600));
        assert_eq!(state(&all, "c"), None);
    }

    #[test]
    fn all_finished_labels_can_be_forgotten_at_once() {
        let (mut all, now) = transactions(10, 10);
        for label in ["a", "b"] {
            let id = all.begin(TABLE, label, TIMEOUT, now).expect("free label");
            all.abort(id, "why not", now).expect("running");
        }
        let open = all.begin(TABLE, "c", TIMEOUT, now).expect("free label");
        all.forget_finished("shop");
        assert_eq!((state(&all, "a"), state(&all, "b")), (None, None));
        assert_eq!((state(&all, "c"), all.open()), (Some(TransactionState::Prepare), 1));
        all.commit(open).expect("running");
        assert_eq!(all.open(), 1, "not visible yet");
        all.publish(open, now).expect("committed");
        assert_eq!(all.open(), 0);
    }

    #[test]
    fn deadlines_abort_and_free_their_place() {
        let (mut all, now) = transactions(10, 1);
        let id = all.begin(TABLE, "a", TIMEOUT, now).expect("free label");
        let refused = all.begin(TABLE, "b", TIMEOUT, now);
        assert_eq!(refused, Err(BeginRefusal::TooManyRunning { running: 1, limit: 1 }));
        all.prepare(id, Duration::from_secs(1000), now).expect("running");
        assert!(all.expire(now + TIMEOUT).is_empty(), "preparing moves the deadline");
        assert_eq!(all.expire(now + Duration::from_secs(1000)), vec![id]);
        assert_eq!(state(&all, "a"), Some(TransactionState::Aborted));
        assert!(all.begin(TABLE, "b", TIMEOUT, now).is_ok());
    }
}
