//! PostgreSQL: the stream beside `pg_recvlogical`, the snapshot beside `psql -c "COPY …"`, in turn on one server.

use std::fmt::Write as _;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use clap::Args;
use tidemill_test_postgres::{Server, Settings};

use crate::report::median;
use crate::stand::{self, Run, Stand};

/// Connections that copy, of Tidemill and of psql.
const COPIERS: u64 = 2;
/// Batches of the snapshot: by bytes alone, so that they are few, and yet enough to read a rate off.
const SNAPSHOT_BATCH: &str = "max_bytes = \"10MiB\"\n";
/// Batches of streams, so that there are many.
const STREAM_BATCH: &str = "max_rows = 10000\nmax_bytes = \"10MiB\"\n";
/// Heading of the section on the page.
pub(crate) const HEADING: &str = "Postgres";

/// How much is streamed and copied.
#[derive(Debug, Clone, Args)]
pub(crate) struct Sizes {
    /// Rows of the stream of large transactions
    #[arg(long, global = true, default_value_t = 2_000_000)]
    rows: u64,
    /// Transactions of that stream
    #[arg(long, global = true, default_value_t = 2_000)]
    transactions: u64,
    /// Transactions of one row each
    #[arg(long, global = true, default_value_t = 200_000)]
    single_rows: u64,
    /// Rows of the snapshot
    #[arg(long, global = true, default_value_t = 5_000_000)]
    snapshot_rows: u64,
    /// The snapshot's batches as they are without limits of their own: for its memory, as they are too few for a rate
    #[arg(long, global = true)]
    default_batches: bool,
}

/// One contest: the same rows by Tidemill and by PostgreSQL's own program.
struct Duel {
    what: &'static str,
    limit: &'static str,
    target: f64,
    rows: u64,
    limit_s: Vec<f64>,
    ours: Vec<Run>,
}

/// What is streamed.
struct Stream {
    what: &'static str,
    table: &'static str,
    rows: u64,
    transactions: u64,
}

/// Runs all contests; returns their section of the page.
pub(crate) fn run(sizes: &Sizes, rounds: usize) -> Result<String, String> {
    let settings = Settings::default()
        .with("max_wal_size", "16GB")
        .with("checkpoint_timeout", "1h")
        .with("max_slot_wal_keep_size", "16GB")
        .with("shared_buffers", "512MB")
        // A table that was just filled is vacuumed in the middle of a round otherwise.
        .with("autovacuum", "off");
    let server = Server::start(&crate::root().join("target/postgres"), &settings)
        .map_err(|fault| fault.to_string())?;
    let ground = Ground { server, stand: Stand::start(&[])? };
    let streams = [
        Stream {
            what: "large transactions",
            table: "many",
            rows: sizes.rows,
            transactions: sizes.transactions,
        },
        Stream {
            what: "one-row transactions",
            table: "single",
            rows: sizes.single_rows,
            transactions: sizes.single_rows,
        },
    ];
    let mut duels = Vec::new();
    for stream in streams.iter().filter(|stream| stream.rows > 0) {
        duels.push(ground.stream(stream, rounds)?);
    }
    if sizes.snapshot_rows > 0 {
        let batch = if sizes.default_batches { "" } else { SNAPSHOT_BATCH };
        duels.push(ground.snapshot(sizes.snapshot_rows, batch, rounds)?);
    }
    Ok(section(&duels, rounds))
}

/// A server to read from and a stand to load into.
struct Ground {
    server: Server,
    stand: Stand,
}

impl Ground {
    /// A slot for each run, all at one place of the log; the rows; then the runs in turn.
    fn stream(&self, stream: &Stream, rounds: usize) -> Result<Duel, String> {
        let Stream { what, table, rows, transactions } = *stream;
        eprintln!("filling {table} with {rows} rows in {transactions} transactions");
        self.table(table)?;
        // Slots begin at the checkpoint, behind the publication.
        self.sql(&format!("CREATE PUBLICATION {table} FOR TABLE {table}; CHECKPOINT"))?;
        for round in 0..rounds {
            for reader in ["theirs", "ours"] {
                let make = "SELECT pg_create_logical_replication_slot";
                self.sql(&format!("{make}('{table}_{reader}_{round}', 'pgoutput')"))?;
            }
        }
        self.sql(&filling(table, rows, transactions))?;
        let end = self.sql("SELECT pg_current_wal_lsn()")?;
        // What is past the end makes `pg_recvlogical` notice it at once.
        self.sql("SELECT pg_logical_emit_message(true, 'bench', '')")?;
        let mut duel = Duel::new(what, "pg_recvlogical -f /dev/null", 0.9, rows);
        for round in 0..rounds {
            let limit_s =
                timed(&mut [self.recvlogical(&format!("{table}_theirs_{round}"), table, end.trim())])?;
            let name = stand::unique(table);
            let more = format!(
                "snapshot = \"never\"\nslot = \"{table}_ours_{round}\"\npublication = \"{table}\"\n{}",
                stand::transform("passthrough", "")
            );
            let ours = self.stand.measure(&name, &self.pipeline(&name, table, &more, STREAM_BATCH), rows)?;
            duel.add(limit_s, ours)?;
        }
        for round in 0..rounds {
            self.sql(&format!("SELECT pg_drop_replication_slot('{table}_theirs_{round}')"))?;
        }
        Ok(duel)
    }

    fn snapshot(&self, rows: u64, batch: &str, rounds: usize) -> Result<Duel, String> {
        let table = "copied";
        eprintln!("filling {table} with {rows} rows");
        self.table(table)?;
        self.sql(&filling(table, rows, 1))?;
        self.sql(&format!("VACUUM (FREEZE, ANALYZE) {table}"))?;
        let pages = self.sql(&format!("SELECT relpages FROM pg_class WHERE relname = '{table}'"))?;
        let pages: u64 = pages.trim().parse().map_err(|_| format!("{table} has {pages} pages"))?;
        let what = if batch.is_empty() { "snapshot, default batches" } else { "snapshot" };
        let mut duel = Duel::new(what, "psql -c \"COPY … TO STDOUT\" > /dev/null", 0.6, rows);
        for _ in 0..rounds {
            let mut copiers: Vec<Command> = (0..COPIERS)
                .map(|part| self.psql_copy(table, pages * part / COPIERS, pages * (part + 1) / COPIERS))
                .collect();
            let limit_s = timed(&mut copiers)?;
            let name = stand::unique(table);
            let more = format!("snapshot_workers = {COPIERS}\n{}", stand::transform("passthrough", ""));
            let ours = self.stand.measure(&name, &self.pipeline(&name, table, &more, batch), rows)?;
            duel.add(limit_s, ours)?;
        }
        Ok(duel)
    }

    fn sql(&self, sql: &str) -> Result<String, String> {
        self.server.psql(sql).map_err(|fault| fault.to_string())
    }

    /// Rows are some 90 bytes as text.
    fn table(&self, name: &str) -> Result<(), String> {
        self.sql(&format!(
            "CREATE TABLE {name} (id bigint PRIMARY KEY, customer int NOT NULL, amount numeric(12,2), \
             note text, paid boolean, made timestamptz)"
        ))?;
        Ok(())
    }

    fn recvlogical(&self, slot: &str, publication: &str, end: &str) -> Command {
        let mut command = Command::new(self.server.programs().path("pg_recvlogical"));
        command
            .args(self.server_arguments())
            .args(["--start", "--slot", slot, "--endpos", end, "-f", "/dev/null"])
            .args(["-o", "proto_version=1", "-o", &format!("publication_names={publication}")]);
        command
    }

    fn psql_copy(&self, table: &str, first_page: u64, end_page: u64) -> Command {
        let copy = format!(
            "COPY (SELECT * FROM {table} WHERE ctid >= '({first_page},0)' AND ctid < '({end_page},0)') TO STDOUT"
        );
        let mut command = Command::new(self.server.programs().path("psql"));
        command.args(self.server_arguments()).args(["--no-psqlrc", "-c", &copy]);
        command
    }

    /// Over TCP, as Tidemill comes.
    fn server_arguments(&self) -> [String; 8] {
        let port = self.server.port().to_string();
        ["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-d", "postgres"].map(str::to_owned)
    }

    fn pipeline(&self, name: &str, table: &str, more: &str, batch: &str) -> String {
        format!(
            "[pipeline]\nname = \"{name}\"\n[source.postgres]\nhost = \"127.0.0.1\"\nport = {}\n\
             database = \"postgres\"\nuser = \"postgres\"\ntables = [\"public.{table}\"]\n{more}\
             [batch]\n{batch}linger = \"1s\"\n{}create_tables = true\n",
            self.server.port(),
            self.stand.sink(),
        )
    }
}

/// Each row is inserted by itself: the log has one record a row, unlike that of a COPY.
fn filling(table: &str, rows: u64, transactions: u64) -> String {
    let each = rows / transactions.max(1);
    format!(
        "SET synchronous_commit = off;
         CREATE PROCEDURE fill_{table}() LANGUAGE plpgsql AS $$ BEGIN
           FOR t IN 0..{transactions} - 1 LOOP
             INSERT INTO {table} SELECT n, n % 9973, (n % 100000) / 100.0, 'order ' || n || ' of the benchmark',
               n % 3 = 0, '2024-02-29 12:00:00+00'::timestamptz + n * interval '1 second'
               FROM generate_series(t::bigint * {each}, (t + 1)::bigint * {each} - 1) n;
             COMMIT;
           END LOOP; END $$;
         CALL fill_{table}()"
    )
}

/// Runs programs side by side to their end, their output thrown away; returns the seconds.
fn timed(commands: &mut [Command]) -> Result<f64, String> {
    let cannot = |error: std::io::Error| format!("cannot run a program of PostgreSQL: {error}");
    let began = Instant::now();
    let started: Result<Vec<Child>, _> = commands
        .iter_mut()
        .map(|command| command.stdin(Stdio::null()).stdout(Stdio::null()).spawn())
        .collect();
    for mut child in started.map_err(cannot)? {
        let ended = child.wait().map_err(cannot)?;
        if !ended.success() {
            return Err(format!("a program of PostgreSQL ended with {ended}"));
        }
    }
    Ok(began.elapsed().as_secs_f64())
}

impl Duel {
    fn new(what: &'static str, limit: &'static str, target: f64, rows: u64) -> Duel {
        Duel { what, limit, target, rows, limit_s: Vec::new(), ours: Vec::new() }
    }

    fn add(&mut self, limit_s: f64, ours: Run) -> Result<(), String> {
        eprintln!(
            "{}: {} {limit_s:.2} s; tidemill {:.2} s, {:.2} CPU-s, {} MiB, {} loads",
            self.what,
            self.limit,
            ours.seconds,
            ours.cpu_s,
            ours.peak_bytes >> 20,
            ours.loads
        );
        if ours.rows < self.rows {
            return Err(format!("{}: {} rows arrived, expected {}", self.what, ours.rows, self.rows));
        }
        self.limit_s.push(limit_s);
        self.ours.push(ours);
        Ok(())
    }

    fn of_ours(&self, of: impl Fn(&Run) -> f64) -> f64 {
        median(self.ours.iter().map(of).collect())
    }

    /// Tidemill's rate to the limit's, of each round.
    fn ratio(&self) -> f64 {
        median(self.limit_s.iter().zip(&self.ours).map(|(limit_s, ours)| limit_s / ours.seconds).collect())
    }
}

fn section(duels: &[Duel], rounds: usize) -> String {
    let mut text = format!(
        "PostgreSQL 15 over TCP, rows of six columns and some 90 bytes, batches of 10,000 rows (the snapshot: 10 MiB), the passthrough \
         plugin, {rounds} rounds in turn, medians; the ratio is that of each round.\n\n\
         | what | rows | limit | its rows/s | Tidemill's rows/s | ratio | target | CPU-s per M rows | peak RSS |\n\
         |---|---|---|---|---|---|---|---|---|\n"
    );
    for duel in duels {
        let rows = duel.rows as f64;
        let _ = writeln!(
            text,
            "| {} | {} | `{}` | {:.0} | {:.0} | {:.2} | {} | {:.2} | {:.0} MiB |",
            duel.what,
            duel.rows,
            duel.limit,
            rows / median(duel.limit_s.clone()),
            rows / duel.of_ours(|run| run.seconds),
            duel.ratio(),
            duel.target,
            duel.of_ours(|run| run.cpu_s) / rows * 1e6,
            duel.of_ours(|run| run.peak_bytes as f64) / f64::from(1 << 20),
        );
    }
    text
}
