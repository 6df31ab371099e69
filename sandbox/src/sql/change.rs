//! INSERT and DELETE: each statement is a load of its own, with a label and a version.

use std::sync::Arc;
use std::time::Instant;

use super::query::{self, Rewriter};
use super::token::{Cursor, Token};
use crate::catalog::KeyModel;
use crate::cluster::{BeginRefused, Cluster, Load};
use crate::error::{SqlError, SqlErrorKind};
use crate::options::Keep;
use crate::store::ResultSet;

pub(super) fn run(
    cluster: &Arc<Cluster>,
    database: Option<&str>,
    tokens: &[Token],
) -> Result<ResultSet, SqlError> {
    let mut cursor = Cursor::new(tokens);
    let insert = cursor.words("INSERT INTO");
    if !insert {
        cursor.expect_words("DELETE FROM")?;
    }
    let (db, name) = cursor.table_name(database)?;
    let table = cluster.catalog().table(&db, &name);
    let table = table.ok_or_else(|| SqlError::unknown_table(&db, &name))?;
    if cluster.options.keep == Keep::None {
        return Err(SqlError::unsupported("INSERT and DELETE where no rows are kept"));
    }
    let mut rewriter = Rewriter::new(cluster, database, tokens);
    rewriter.run()?;
    let mut sql = rewriter.out;
    if insert && table.schema().model != KeyModel::Duplicate {
        sql = sql.replacen("INSERT", "INSERT OR REPLACE", 1);
    }
    let label = label(insert);
    let load = Load::begin(cluster, &db, &name, &label, cluster.options.load_timeout).map_err(refused)?;
    if let Err(message) = load.admit() {
        return Err(SqlError::new(SqlErrorKind::Internal, message));
    }
    // Dropping the load on an error aborts it.
    let affected = cluster.store.execute(&sql).map_err(|error| query::explain(&error, database))?;
    load.committed_by_statement(affected)
        .map_err(|message| SqlError::new(SqlErrorKind::Internal, message))?;
    Ok(ResultSet { affected, ..ResultSet::default() })
}

/// A label as StarRocks makes one up for a statement.
fn label(insert: bool) -> String {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(Instant::now());
    format!("{}_{random:016x}", if insert { "insert" } else { "delete" })
}

fn refused(refused: BeginRefused) -> SqlError {
    let message = match refused {
        BeginRefused::LabelUsed { message, .. } | BeginRefused::Other(message) => message,
    };
    SqlError::new(SqlErrorKind::Internal, message)
}
