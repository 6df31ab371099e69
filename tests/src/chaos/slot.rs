//! Judges while a Postgres run goes on: the server is told of no place in its log before the position row is visible and what
//! was written before it is loaded (I5), and no row goes back behind that (I4).
//!
//! A table of its own beats: each look writes the next number into all its rows. What the slot has confirmed says which
//! number each row must have reached.

use crate::{
    judge::{
        Invariant, Violation,
        confirmed::{Beat, Look, keeps_order},
    },
    postgres::Postgres,
    warehouse::Warehouse,
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};
use tidemill_sandbox::TransactionState;
use tidemill_test_postgres::Client;

/// The table that beats.
pub const TABLE: &str = "pulse";
/// Its rows.
const ROWS: u64 = 16;
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(400);
/// Looks at rows that are committed and not visible yet.
const LOOKS_MAX: u32 = 50;

/// Makes the table that beats.
///
/// # Panics
/// When the server refuses.
pub fn prepare(postgres: &Postgres) {
    postgres.run(&format!(
        "CREATE TABLE {TABLE} (id bigint PRIMARY KEY, n bigint NOT NULL);
         INSERT INTO {TABLE} SELECT id, 0 FROM generate_series(1, {ROWS}) id"
    ));
}

/// A thread that beats and watches; it ends when it is stopped or dropped.
#[derive(Debug)]
pub struct SlotWatch {
    stop: Arc<AtomicBool>,
    beats: Arc<AtomicBool>,
    thread: Option<JoinHandle<(usize, Vec<Violation>)>>,
}

impl SlotWatch {
    /// Watches the slot of a pipeline that has the name of its database.
    ///
    /// # Panics
    /// When the system has no threads left.
    #[must_use]
    pub fn start(postgres: &Postgres, warehouse: &Arc<Warehouse>) -> Self {
        let (stop, beats) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(true)));
        let mut watched = Watched {
            client: postgres.client(),
            slot: format!("tidemill_{}", postgres.database()),
            warehouse: Arc::clone(warehouse),
            beats: Vec::new(),
        };
        let (told, beating) = (Arc::clone(&stop), Arc::clone(&beats));
        let thread = thread::Builder::new().name("slot watch".to_owned()).spawn(move || {
            let mut violations = Vec::new();
            let mut looks = 0;
            while !told.load(Ordering::Relaxed) {
                if beating.load(Ordering::Relaxed) {
                    watched.beat();
                }
                if let Some(look) = watched.look() {
                    looks += 1;
                    violations.extend(keeps_order(&look, &watched.beats));
                }
                thread::park_timeout(LOOK_EVERY);
            }
            (looks, violations)
        });
        Self { stop, beats, thread: Some(thread.expect("the system has threads left")) }
    }

    /// Writes no more: the source is to come to rest.
    pub fn rest(&self) {
        self.beats.store(false, Ordering::Relaxed);
    }

    /// Ends it and returns what it has found. One that has never seen anything confirmed is a violation, too.
    ///
    /// # Panics
    /// With the panic of its thread.
    pub fn stop(mut self) -> Vec<Violation> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            None => Vec::new(),
            Some(Ok((looks, mut violations))) => {
                println!("        {looks} looks at what the slot has confirmed");
                if looks == 0 {
                    let what = "nobody has seen what the slot has confirmed";
                    violations.push(Violation::new(Invariant::Release, what));
                }
                violations
            }
            Some(Err(cause)) => std::panic::resume_unwind(cause),
        }
    }
}

impl Drop for SlotWatch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

struct Watched {
    client: Client,
    slot: String,
    warehouse: Arc<Warehouse>,
    beats: Vec<Beat>,
}

impl Watched {
    /// Writes the next number, and takes down behind which place in the log that is. A server that is away is left alone:
    /// whether it has taken the number is then not known, and not asked of anybody.
    fn beat(&mut self) {
        let sql = format!(
            "UPDATE {TABLE} SET n = n + 1;
             SELECT max(n), pg_current_wal_insert_lsn() - '0/0'::pg_lsn FROM {TABLE}"
        );
        let Ok(said) = self.client.run(&sql) else { return };
        let beat = said.trim().split_once('|').and_then(|(number, place)| {
            Some(Beat { number: number.parse().ok()?, place: place.parse().ok()? })
        });
        self.beats.extend(beat);
    }

    /// What is confirmed, and then what is there: that may only have grown since.
    fn look(&self) -> Option<Look> {
        let sql = format!(
            "SELECT confirmed_flush_lsn - '0/0'::pg_lsn FROM pg_replication_slots WHERE slot_name = '{}'",
            self.slot
        );
        let confirmed: u64 = self.client.run(&sql).ok()?.trim().parse().ok()?;
        let position = self.position()?;
        let mut look = Look { confirmed, position, rows: self.rows()? };
        // What is committed may take a while to be visible.
        for _ in 0..LOOKS_MAX {
            if keeps_order(&look, &self.beats).is_empty() || !self.has_invisible() {
                break;
            }
            thread::park_timeout(LOOK_EVERY);
            look.rows = self.rows()?;
        }
        // What became visible between the two questions is there now.
        look.rows = self.rows()?;
        Some(look)
    }

    /// The place in the position row of the stream; none before there is one.
    fn position(&self) -> Option<u64> {
        let sql = "SELECT lsn FROM shop.tidemill_positions WHERE source_table = ''";
        let rows = self.warehouse.attempt(sql).ok()?;
        rows.into_iter().flatten().flatten().filter_map(|lsn| lsn.parse().ok()).max()
    }

    /// The number of each row; none before the table is there.
    fn rows(&self) -> Option<BTreeMap<u64, u64>> {
        let rows = self.warehouse.attempt(&format!("SELECT id, n FROM shop.{TABLE}")).ok()?;
        let number = |cell: &Option<String>| cell.as_deref()?.parse::<u64>().ok();
        let rows: Option<BTreeMap<u64, u64>> =
            rows.iter().map(|row| Some((number(row.first()?)?, number(row.get(1)?)?))).collect();
        // While it is copied not all rows are there, and nothing is confirmed of them.
        rows.filter(|rows| rows.len() as u64 == ROWS)
    }

    fn has_invisible(&self) -> bool {
        self.warehouse
            .loads()
            .iter()
            .any(|load| load.table == TABLE && load.state == TransactionState::Committed)
    }
}
