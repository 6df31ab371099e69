//! SQL as the query port takes it: enough to make tables, look at rows and answer what drivers ask.

mod alter;
mod change;
mod ddl;
mod query;
mod schema_view;
mod show;
mod token;

use std::sync::Arc;

use crate::cluster::Cluster;
use crate::error::SqlError;
use crate::fault::FaultKind;
use crate::store::ResultSet;
pub(crate) use query::MYSQL_VERSION;
use token::{Cursor, Token};

/// One client's session: it remembers the database that `USE` named.
pub(crate) struct Session {
    cluster: Arc<Cluster>,
    database: Option<String>,
    reads: Reads,
}

/// Which FE answers a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reads {
    Leader,
    /// That of the query port, which may lag.
    Follower,
}

impl Session {
    pub(crate) fn new(cluster: Arc<Cluster>) -> Self {
        Self { cluster, database: None, reads: Reads::Leader }
    }

    /// One of the query port.
    pub(crate) fn at_the_port(cluster: Arc<Cluster>) -> Self {
        Self { reads: Reads::Follower, ..Self::new(cluster) }
    }

    /// `USE db`.
    pub(crate) fn use_database(&mut self, db: &str) -> Result<(), SqlError> {
        if !self.cluster.catalog().has_database(db) && !db.eq_ignore_ascii_case(schema_view::SCHEMA) {
            return Err(SqlError::unknown_database(db));
        }
        self.database = Some(db.to_owned());
        Ok(())
    }

    /// A follower's session waits for what it has caused at the leader, or for all there is if it asks to.
    fn hears_of_all(&self) {
        if self.reads == Reads::Follower {
            self.cluster.catch_up();
        }
    }

    /// Runs one statement; a result without columns is a plain OK.
    pub(crate) fn execute(&mut self, sql: &str) -> Result<ResultSet, SqlError> {
        let tokens = token::tokens(sql)?;
        let mut cursor = Cursor::new(&tokens);
        let Some(Token::Word(verb)) = cursor.peek() else {
            return match tokens.first() {
                None => Ok(ResultSet::default()),
                // A query in brackets.
                Some(_) => query::select(&self.cluster, self.database.as_deref(), self.reads, &tokens),
            };
        };
        match verb.to_ascii_uppercase().as_str() {
            "SELECT" | "WITH" | "VALUES" => {
                query::select(&self.cluster, self.database.as_deref(), self.reads, &tokens)
            }
            "SHOW" => show::show(&self.cluster, self.database.as_deref(), &mut cursor),
            "DESC" | "DESCRIBE" => show::describe(&self.cluster, self.database.as_deref(), &mut cursor),
            "CREATE" | "DROP" | "TRUNCATE" | "ALTER" => {
                ddl::run(&self.cluster, self.database.as_deref(), &mut cursor)?;
                self.hears_of_all();
                Ok(ResultSet::default())
            }
            "INSERT" | "DELETE" => {
                let changed = change::run(&self.cluster, self.database.as_deref(), &tokens)?;
                self.hears_of_all();
                Ok(changed)
            }
            "SYNC"
                if !self.cluster.faults.is_set(|kind| *kind == FaultKind::FollowerLags { sync: false }) =>
            {
                cursor.next();
                cursor.expect_end()?;
                self.hears_of_all();
                Ok(ResultSet::default())
            }
            "USE" => {
                cursor.next();
                let db = cursor.name()?;
                self.use_database(&db)?;
                Ok(ResultSet::default())
            }
            // Drivers set variables and open transactions by habit; nothing here depends on either.
            "SET" | "BEGIN" | "COMMIT" | "ROLLBACK" | "START" | "ANALYZE" | "REFRESH" => {
                Ok(ResultSet::default())
            }
            "UPDATE" | "ADMIN" | "GRANT" | "REVOKE" | "EXPLAIN" | "KILL" | "LOAD" => {
                Err(SqlError::unsupported(verb))
            }
            _ => Err(cursor.unexpected("a statement")),
        }
    }
}
