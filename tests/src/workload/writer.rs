//! One connection that writes, for as long as it is wanted.

use super::{Settings, Tally, schema, transaction, transaction::Transaction};
use crate::{postgres::Postgres, wait_until};
use rand::rngs::StdRng;
use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};
use tokio::runtime::Runtime;
use tokio_postgres::{Client, Error, NoTls};

/// A server that restarts is away for seconds; one that a test has stopped may be away for longer.
const RECONNECTED_WITHIN: Duration = Duration::from_secs(120);
/// Deadlocks are wanted, waiting a second for each is not. A statement that hangs is a failure.
const SESSION: &str = "SET deadlock_timeout = '20ms'; SET lock_timeout = '5s'; SET statement_timeout = '30s'";
/// Between two columns that a writer adds.
const TRANSACTIONS_A_COLUMN: u64 = 25;

pub(super) struct Writer {
    settings: Settings,
    number: u32,
    random: StdRng,
    runtime: Runtime,
    socket_dir: PathBuf,
    port: u16,
    database: String,
    stop: Arc<AtomicBool>,
    tally: Arc<Tally>,
}

/// How a transaction ended, as far as is known.
enum End {
    Committed,
    Aborted,
    Refused,
    Lost,
    Unknown,
}

impl Writer {
    pub(super) fn new(
        postgres: &Postgres,
        settings: &Settings,
        number: u32,
        stop: Arc<AtomicBool>,
        tally: Arc<Tally>,
    ) -> Self {
        Self {
            settings: settings.clone(),
            number,
            random: transaction::random(settings, number),
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime"),
            socket_dir: postgres.socket_dir().to_path_buf(),
            port: postgres.port(),
            database: postgres.database().to_owned(),
            stop,
            tally,
        }
    }

    /// Until it is stopped or has sent what it was to send.
    ///
    /// # Panics
    /// When it cannot connect any more.
    pub(super) fn work(mut self) {
        let Some(mut client) = self.connect() else { return };
        let mut columns = self.columns();
        for sent in 0..self.settings.transactions.unwrap_or(u64::MAX) {
            if self.stopped() {
                return;
            }
            if sent % TRANSACTIONS_A_COLUMN == TRANSACTIONS_A_COLUMN - 1
                && let Some(column) = columns.pop()
                && !self.add_column(&mut client, column)
            {
                return;
            }
            let next = Transaction::random(&mut self.random, &self.settings);
            let end = self.runtime.block_on(run(&client, &next));
            let counter = match end {
                End::Committed => &self.tally.committed,
                End::Aborted => &self.tally.aborted,
                End::Refused => &self.tally.refused,
                End::Lost => &self.tally.lost,
                End::Unknown => &self.tally.unknown,
            };
            count(counter);
            if matches!(end, End::Lost | End::Unknown) && !self.reconnect(&mut client) {
                return;
            }
            if !self.settings.pause.is_zero() {
                // Woken when it is to stop.
                thread::park_timeout(self.settings.pause);
            }
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// The columns that this writer adds, last first.
    fn columns(&self) -> Vec<u32> {
        let own =
            (0..self.settings.added_columns).filter(|column| column % self.settings.writers == self.number);
        own.rev().collect()
    }

    /// Adds a column and writes to it, again and again until it is there; false when stopped before.
    fn add_column(&self, client: &mut Client, column: u32) -> bool {
        let name = schema::added_column(column);
        let alter = Transaction {
            statements: vec![
                format!("ALTER TABLE account ADD COLUMN IF NOT EXISTS {name} bigint"),
                // Rows of before and after in one transaction.
                format!("UPDATE account SET {name} = id + {column} WHERE id % 7 = 0"),
            ],
            commits: true,
        };
        while !self.stopped() {
            match self.runtime.block_on(run(client, &alter)) {
                End::Committed => {
                    count(&self.tally.columns);
                    return true;
                }
                End::Refused | End::Aborted => {}
                End::Lost | End::Unknown => {
                    if !self.reconnect(client) {
                        return false;
                    }
                }
            }
        }
        false
    }

    /// False when stopped before.
    fn reconnect(&self, client: &mut Client) -> bool {
        let Some(again) = self.connect() else { return false };
        count(&self.tally.reconnects);
        *client = again;
        true
    }

    /// Connects as soon as the server lets it; none when stopped before.
    fn connect(&self) -> Option<Client> {
        let mut config = tokio_postgres::Config::new();
        config.host_path(&self.socket_dir).port(self.port).user("postgres").dbname(&self.database);
        config.application_name(format!("writer {}", self.number));
        let attempt = async || -> Result<Client, Error> {
            let (client, connection) = config.connect(NoTls).await?;
            // Ends with the client; what goes wrong is told to whoever waits for an answer.
            drop(tokio::spawn(connection));
            client.batch_execute(SESSION).await?;
            Ok(client)
        };
        let mut last = None;
        let connected = wait_until(RECONNECTED_WITHIN, || {
            if self.stopped() {
                return Some(None);
            }
            self.runtime.block_on(attempt()).map_err(|error| last = Some(error)).ok().map(Some)
        });
        connected.unwrap_or_else(|late| panic!("writer {} cannot connect: {late}: {last:?}", self.number))
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Runs a transaction to its end.
async fn run(client: &Client, transaction: &Transaction) -> End {
    if client.batch_execute("BEGIN").await.is_err() {
        return End::Lost;
    }
    for statement in &transaction.statements {
        if let Err(error) = client.batch_execute(statement).await {
            return give_up(client, &error).await;
        }
    }
    if !transaction.commits {
        return if client.batch_execute("ROLLBACK").await.is_ok() { End::Aborted } else { End::Lost };
    }
    match client.batch_execute("COMMIT").await {
        Ok(()) => End::Committed,
        // Nothing is deferred to the end here: an error is the connection's, or that of a server that shuts down.
        Err(_) => End::Unknown,
    }
}

/// After an error in the middle: does the connection live on?
async fn give_up(client: &Client, error: &Error) -> End {
    let refused = error.as_db_error().is_some() && client.batch_execute("ROLLBACK").await.is_ok();
    if refused { End::Refused } else { End::Lost }
}
