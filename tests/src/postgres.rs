//! A database of a real PostgreSQL: on the server that tests share, or on one of the test's own that it may kill.

use crate::{machine, wait_until};
use std::{path::Path, sync::OnceLock, time::Duration};
use tidemill_test_postgres::{Client, Row, Server, Settings};

/// Slots of processes that were just killed become free when the server notices.
const CLEARED_WITHIN: Duration = Duration::from_secs(20);

/// A fresh database. Dropping it removes the database with its slots and the roles that were made through it.
#[derive(Debug)]
pub struct Postgres {
    server: Home,
    database: String,
    roles: Vec<String>,
}

#[derive(Debug)]
enum Home {
    Shared(&'static Server),
    Own(Box<Server>),
}

impl Postgres {
    /// On the server that all tests of this process share. Slots and roles are the server's: their names must be unlike
    /// those of other tests, as [`database`](Self::database) is.
    ///
    /// # Panics
    /// When the server or the database cannot be made.
    #[must_use]
    pub fn shared(name: &str) -> Self {
        static STARTED: OnceLock<Server> = OnceLock::new();
        let many = Settings {
            max_replication_slots: 200,
            max_wal_senders: 200,
            max_connections: 400,
            ..Settings::default()
        };
        Self::on(Home::Shared(STARTED.get_or_init(|| start(&many))), name)
    }

    /// On a server of the test's own, to stop, kill and start again.
    ///
    /// # Panics
    /// When the server or the database cannot be made.
    #[must_use]
    pub fn own(name: &str, settings: &Settings) -> Self {
        Self::on(Home::Own(Box::new(start(settings))), name)
    }

    fn on(server: Home, name: &str) -> Self {
        let database = format!("{name}_{:08x}", rand::random::<u32>());
        let postgres = Self { server, database, roles: Vec::new() };
        let made = postgres.running().psql(&format!("CREATE DATABASE {}", postgres.database));
        made.unwrap_or_else(|fault| panic!("{fault}"));
        postgres
    }

    fn running(&self) -> &Server {
        match &self.server {
            Home::Shared(server) => server,
            Home::Own(server) => server,
        }
    }

    /// The server, to stop, kill and start again.
    ///
    /// # Panics
    /// When it is shared with other tests.
    pub fn server(&mut self) -> &mut Server {
        match &mut self.server {
            Home::Shared(_) => panic!("others are using this server"),
            Home::Own(server) => server,
        }
    }

    /// The name of the database: `[a-z0-9_]`, unlike that of any other test, so that it serves for slots and roles, too.
    #[must_use]
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The port of 127.0.0.1 and of the socket.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.running().port()
    }

    /// The folder of the Unix socket.
    #[must_use]
    pub fn socket_dir(&self) -> &Path {
        self.running().socket_dir()
    }

    /// A client in this database, as the superuser over the socket.
    #[must_use]
    pub fn client(&self) -> Client {
        self.running().client().database(&self.database)
    }

    /// Runs statements as the superuser.
    ///
    /// # Panics
    /// When one is refused.
    pub fn run(&self, sql: &str) -> String {
        self.client().run(sql).unwrap_or_else(|fault| panic!("{fault}\n{sql}"))
    }

    /// The rows of a query, in PostgreSQL's own text; NULL is none.
    ///
    /// # Panics
    /// When it is refused.
    #[must_use]
    pub fn rows(&self, sql: &str) -> Vec<Row> {
        self.client().query(sql).unwrap_or_else(|fault| panic!("{fault}\n{sql}"))
    }

    /// The single cell that a query yields; none when it is NULL or there is no row.
    ///
    /// # Panics
    /// When it yields more.
    #[must_use]
    pub fn cell(&self, sql: &str) -> Option<String> {
        let mut rows = self.rows(sql);
        assert!(rows.len() <= 1 && rows.iter().all(|row| row.len() == 1), "{sql} yields {rows:?}");
        rows.pop()?.pop()?
    }

    /// The single number that a query yields.
    ///
    /// # Panics
    /// When it yields something else.
    #[must_use]
    pub fn number(&self, sql: &str) -> u64 {
        let cell = self.cell(sql);
        cell.as_deref().and_then(|cell| cell.parse().ok()).unwrap_or_else(|| panic!("{sql} yields {cell:?}"))
    }

    /// Makes a role that may log in with `password`, with these further options, such as `REPLICATION`.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn role(&mut self, name: &str, password: &str, options: &str) {
        self.run(&format!("CREATE ROLE {name} LOGIN PASSWORD '{password}' {options}"));
        self.roles.push(name.to_owned());
    }

    /// Waits until a query yields `t`; a server that is down is asked again.
    ///
    /// # Panics
    /// When it does not within `seconds`.
    pub fn until(&self, seconds: u64, sql: &str) {
        let client = self.client();
        let mut last = String::new();
        let outcome = wait_until(Duration::from_secs(seconds), || {
            last = client.run(sql).map_or_else(|fault| fault.to_string(), |said| said.trim().to_owned());
            (last == "t").then_some(())
        });
        outcome.unwrap_or_else(|late| panic!("{sql} says {last:?}: {late}"));
    }

    /// Waits until somebody streams from a slot. A slot is active, too, while it is being created and waits for open
    /// transactions, and its maker has then not copied a row.
    ///
    /// # Panics
    /// When nobody does within `seconds`.
    pub fn until_streaming(&self, seconds: u64, slot: &str) {
        self.until(
            seconds,
            &format!(
                "SELECT count(*) = 1 FROM pg_replication_slots s JOIN pg_stat_replication r ON r.pid = s.active_pid \
                 WHERE s.slot_name = '{slot}' AND r.state IN ('catchup', 'streaming')"
            ),
        );
    }

    /// Ends whoever uses the slots of this database, and drops them.
    fn drop_slots(&self) {
        let own = format!("FROM pg_replication_slots WHERE database = '{}'", self.database);
        let client = self.running().client();
        let cleared = wait_until(CLEARED_WITHIN, || {
            // An active slot cannot be dropped; its user may come back until the slot is gone.
            client.run(&format!("SELECT pg_terminate_backend(active_pid) {own} AND active")).ok()?;
            client.run(&format!("SELECT pg_drop_replication_slot(slot_name) {own}")).ok()
        });
        if let Err(late) = cleared {
            eprintln!("the slots of {} remain: {late}", self.database);
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        match &self.server {
            Home::Own(_) => {}
            Home::Shared(server) => {
                self.drop_slots();
                let roles: String = self.roles.iter().map(|role| format!("DROP ROLE {role};")).collect();
                // Roles own nothing that is outside of the database.
                let dropped = server.psql(&format!("DROP DATABASE {} WITH (FORCE);{roles}", self.database));
                if let Err(fault) = dropped {
                    eprintln!("{fault}");
                }
            }
        }
    }
}

fn start(settings: &Settings) -> Server {
    let root = machine::target().join("postgres");
    Server::start(&root, settings).unwrap_or_else(|fault| panic!("{fault}"))
}

#[cfg(test)]
mod tests {
    use super::Postgres;
    use tidemill_test_postgres::{Settings, Stop};

    #[test]
    fn a_database_goes_with_its_slots_and_roles() {
        let mut postgres = Postgres::shared("leaves_nothing");
        let database = postgres.database().to_owned();
        postgres.role(&format!("{database}_reader"), "secret", "REPLICATION");
        postgres.run(&format!("SELECT pg_create_logical_replication_slot('{database}', 'pgoutput')"));
        drop(postgres);
        let other = Postgres::shared("looks");
        for (names, column) in
            [("pg_database", "datname"), ("pg_roles", "rolname"), ("pg_replication_slots", "slot_name")]
        {
            let left = other
                .number(&format!("SELECT count(*) FROM {names} WHERE {column}::text LIKE '{database}%'"));
            assert_eq!(left, 0, "{names}");
        }
    }

    #[test]
    fn a_server_of_ones_own_can_be_restarted() {
        let mut postgres = Postgres::own("restarted", &Settings::default());
        postgres.run("CREATE TABLE t (id int, note text); INSERT INTO t VALUES (1, NULL), (2, E'a\\tb')");
        postgres.server().restart(Stop::Fast).expect("it restarts");
        let expected =
            [vec![Some("1".to_owned()), None], vec![Some("2".to_owned()), Some("a\tb".to_owned())]];
        assert_eq!(postgres.rows("SELECT * FROM t ORDER BY id"), expected);
    }
}
