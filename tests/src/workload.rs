//! A random workload for PostgreSQL, reproducible by its seed: what each writer sends is a function of the seed, whatever
//! the server answers. How the writers' transactions mix is up to the server.
//!
//! It survives restarts: a writer connects again and goes on with its next transaction. Whether the one whose COMMIT was not
//! answered came to be is unknown, and needs not be known: the source's tables are the truth that others are compared with.

mod schema;
mod transaction;
mod writer;

pub use schema::{TABLES, destination_tables};
pub use transaction::Transaction;

use crate::{postgres::Postgres, wait_until};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};
use writer::Writer;

/// How much, how wild.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Everything random follows from it.
    pub seed: u64,
    /// Connections that write at the same time.
    pub writers: u32,
    /// Rows of each table before the writers begin; of `document`, half its keys at most.
    pub rows: u64,
    /// Keys that are in use, of `account` and `pair`: few, so that writers meet on them.
    pub keys: u64,
    /// Keys of `document`, whose rows are large.
    pub documents: u64,
    /// Length of a large value: stored out of line from about 2 kB on.
    pub toast_bytes: usize,
    /// Columns that are added to `account` while it is written to, without defaults; all writers together.
    pub added_columns: u32,
    /// Transactions of each writer; none = until it is stopped.
    pub transactions: Option<u64>,
    /// What a writer rests between two transactions.
    pub pause: Duration,
    /// `REPLICA IDENTITY FULL` of `document`: the old row of each change then tells its large values.
    pub full_identity: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            seed: 1,
            writers: 8,
            rows: 200,
            keys: 400,
            documents: 40,
            toast_bytes: 100_000,
            added_columns: 3,
            transactions: None,
            pause: Duration::from_millis(5),
            full_identity: false,
        }
    }
}

/// How transactions ended, all writers together.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Answered by COMMIT.
    pub committed: u64,
    /// Rolled back because they were to be.
    pub aborted: u64,
    /// Refused by the server: a key that is taken, a deadlock.
    pub refused: u64,
    /// Broken off before COMMIT was sent.
    pub lost: u64,
    /// The answer to COMMIT was lost.
    pub unknown: u64,
    /// Columns that were added.
    pub columns: u64,
    /// Connections made after the first.
    pub reconnects: u64,
}

impl fmt::Display for Counts {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{} committed, {} aborted, {} refused, {} lost, {} unknown, {} columns added, {} reconnects",
            self.committed,
            self.aborted,
            self.refused,
            self.lost,
            self.unknown,
            self.columns,
            self.reconnects
        )
    }
}

/// One counter for each field of [`Counts`]; writers add, the test looks.
#[derive(Debug, Default)]
struct Tally {
    committed: AtomicU64,
    aborted: AtomicU64,
    refused: AtomicU64,
    lost: AtomicU64,
    unknown: AtomicU64,
    columns: AtomicU64,
    reconnects: AtomicU64,
}

impl Tally {
    fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            committed: read(&self.committed),
            aborted: read(&self.aborted),
            refused: read(&self.refused),
            lost: read(&self.lost),
            unknown: read(&self.unknown),
            columns: read(&self.columns),
            reconnects: read(&self.reconnects),
        }
    }
}

/// Writers at work. Dropping it stops them.
#[derive(Debug)]
pub struct Workload {
    writers: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    tally: Arc<Tally>,
}

/// Makes the [tables](TABLES) and their first rows, which follow from the seed, too.
///
/// # Panics
/// When the server refuses.
pub fn prepare(postgres: &Postgres, settings: &Settings) {
    postgres.run(schema::SOURCE_TABLES);
    if settings.full_identity {
        postgres.run("ALTER TABLE document REPLICA IDENTITY FULL");
    }
    postgres.run(&transaction::first_rows(settings));
}

impl Workload {
    /// Starts the writers on tables that [`prepare`] has made.
    ///
    /// # Panics
    /// When the system has no threads left.
    #[must_use]
    pub fn start(postgres: &Postgres, settings: &Settings) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let tally = Arc::new(Tally::default());
        let writers = (0..settings.writers).map(|number| {
            let writer = Writer::new(postgres, settings, number, Arc::clone(&stop), Arc::clone(&tally));
            let thread = std::thread::Builder::new().name(format!("writer {number}"));
            thread.spawn(move || writer.work()).expect("the system has threads left")
        });
        Self { writers: writers.collect(), stop, tally }
    }

    /// How transactions have ended so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.tally.counts()
    }

    /// Waits until this many transactions have been committed since now.
    ///
    /// # Panics
    /// When they have not within `seconds`: the server is down, or a writer has ended.
    pub fn until_committed(&self, seconds: u64, more: u64) {
        let wanted = self.counts().committed + more;
        let done = || (self.counts().committed >= wanted).then_some(());
        let outcome = wait_until(Duration::from_secs(seconds), done);
        outcome.unwrap_or_else(|late| panic!("{} of {wanted} commits: {late}", self.counts()));
    }

    /// Waits until each writer has sent all of [`Settings::transactions`].
    ///
    /// # Panics
    /// When one has not within `seconds`, or with the panic of a writer.
    pub fn until_done(self, seconds: u64) -> Counts {
        let done = || self.writers.iter().all(JoinHandle::is_finished).then_some(());
        let outcome = wait_until(Duration::from_secs(seconds), done);
        outcome.unwrap_or_else(|late| panic!("{}: {late}", self.counts()));
        self.stop()
    }

    /// Lets each writer end its transaction, and returns the counts. A server that is down is not waited for.
    ///
    /// # Panics
    /// With the panic of a writer.
    pub fn stop(mut self) -> Counts {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.writers.drain(..) {
            writer.thread().unpark();
            if let Err(cause) = writer.join() {
                std::panic::resume_unwind(cause);
            }
        }
        self.counts()
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.writers.drain(..) {
            writer.thread().unpark();
            // A writer's panic was printed, and the test is over.
            drop(writer.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Settings, TABLES, Transaction, Workload, prepare};
    use crate::{postgres::Postgres, wait_until};
    use std::time::Duration;
    use tidemill_test_postgres::{Settings as ServerSettings, Stop};

    fn tables(postgres: &Postgres) -> Vec<Vec<tidemill_test_postgres::Row>> {
        TABLES.iter().map(|table| postgres.rows(&format!("SELECT * FROM {table} ORDER BY 1, 2"))).collect()
    }

    #[test]
    fn one_writer_of_one_seed_always_leaves_the_same_tables() {
        let settings =
            Settings { writers: 1, transactions: Some(150), pause: Duration::ZERO, ..Settings::default() };
        let run = |seed| {
            let settings = Settings { seed, ..settings.clone() };
            let postgres = Postgres::shared("workload");
            prepare(&postgres, &settings);
            let counts = Workload::start(&postgres, &settings).until_done(60);
            assert_eq!(counts.lost + counts.unknown + counts.reconnects, 0, "{counts}");
            assert!(counts.committed > 100 && counts.aborted > 0 && counts.columns > 0, "{counts}");
            tables(&postgres)
        };
        let first = run(7);
        assert!(first == run(7), "the same seed");
        assert!(first != run(8), "another seed");
    }

    #[test]
    fn large_values_are_stored_out_of_line_and_left_unchanged_by_updates() {
        let settings =
            Settings { writers: 1, transactions: Some(200), pause: Duration::ZERO, ..Settings::default() };
        let postgres = Postgres::shared("workload_toast");
        prepare(&postgres, &settings);
        // What pgoutput says is binary; test_decoding says it in words.
        postgres
            .run("SELECT pg_create_logical_replication_slot(current_database() || '_t', 'test_decoding')");
        let _counts = Workload::start(&postgres, &settings).until_done(60);
        assert!(postgres.number("SELECT count(*) FROM document WHERE pg_column_size(body) >= 100000") > 0);
        let changes = postgres.rows(
            "SELECT left(data, 60), data LIKE '%unchanged-toast-datum%', data LIKE '%old-key:%' \
             FROM pg_logical_slot_get_changes(current_database() || '_t', NULL, NULL)",
        );
        let seen = |what: &str, unchanged: bool, key: bool| {
            changes.iter().any(|row| {
                let cells: Vec<&str> = row.iter().flatten().map(String::as_str).collect();
                cells[0].contains(what) && (!unchanged || cells[1] == "t") && (!key || cells[2] == "t")
            })
        };
        for what in [
            "account: INSERT",
            "account: UPDATE",
            "account: DELETE",
            "pair: INSERT",
            "pair: DELETE",
            "document: DELETE",
        ] {
            assert!(seen(what, false, false), "{what}");
        }
        assert!(seen("document: UPDATE", true, false), "a large value left unchanged");
        assert!(seen("document: UPDATE", true, true), "and with a change of the key");
        assert!(seen("pair: UPDATE", false, true), "a change of the key");
    }

    #[test]
    fn writers_survive_restarts_and_kills() {
        let settings = Settings { toast_bytes: 5_000, ..Settings::default() };
        let mut postgres = Postgres::own("workload_restarts", &ServerSettings::default());
        prepare(&postgres, &settings);
        let workload = Workload::start(&postgres, &settings);
        workload.until_committed(30, 100);
        postgres.server().restart(Stop::Fast).expect("it restarts");
        workload.until_committed(30, 100);
        postgres.server().kill().expect("it is killed");
        postgres.server().start_again().expect("it starts again");
        workload.until_committed(30, 100);
        let added = || (workload.counts().columns == u64::from(settings.added_columns)).then_some(());
        wait_until(Duration::from_secs(30), added)
            .unwrap_or_else(|late| panic!("{}: {late}", workload.counts()));
        let counts = workload.stop();
        // One that was slow to come back may have met both ends as one.
        assert!(counts.reconnects >= u64::from(settings.writers), "{counts}");
        assert!(counts.lost + counts.unknown > 0, "a kill hits somebody: {counts}");
    }

    #[test]
    fn transactions_follow_from_the_seed_alone() {
        let settings = Settings::default();
        let sent = |seed, writer| {
            let settings = Settings { seed, ..settings.clone() };
            let mut random = super::transaction::random(&settings, writer);
            (0..50).map(|_| Transaction::random(&mut random, &settings)).collect::<Vec<_>>()
        };
        assert!(sent(1, 0) == sent(1, 0));
        assert!(sent(1, 0) != sent(1, 1));
        assert!(sent(1, 0) != sent(2, 0));
    }
}
