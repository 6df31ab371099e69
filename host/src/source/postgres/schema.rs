//! What the followed tables look like, in the source and in StarRocks, while the stream goes on.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_postgres::Row;

use super::begin::Beginning;
use super::catalog;
use super::connect::{Connector, Control};
use super::destination::key_of;
use super::feed::NOT_COPIED;
use super::kind::Types;
use super::lsn::Lsn;
use super::pgoutput::{Relation, Update};
use super::position::{Known, Note};
use super::read_back;
use super::row::{Layout, table_of};
use super::shape;
use super::table::{Table, TableName};
use super::warehouse_table::{Added, Comparison, Remembered};
use crate::fault::Fault;
use crate::sink::starrocks::query::{Column as WarehouseColumn, Query};

/// Name, number, type, modifier and the type's name for people, of the columns that a publication does not leave out by
/// a column list, which only servers from 15 on have.
const COLUMNS_SQL: &str = "SELECT a.attname::text, a.attnum, a.atttypid, a.atttypmod, format_type(a.atttypid, a.atttypmod) \
     FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped AND NOT EXISTS \
     (SELECT FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid \
      WHERE p.pubname = $2 AND r.prrelid = a.attrelid AND jsonb_typeof(to_jsonb(r) -> 'prattrs') = 'array' \
      AND NOT (to_jsonb(r) -> 'prattrs') @> to_jsonb(a.attnum)) ORDER BY a.attnum";

/// Whether a transaction still runs, for other sessions: whoever runs one holds a lock on its number.
const RUNNING_SQL: &str =
    "SELECT count(*) FROM pg_catalog.pg_locks WHERE locktype = 'transactionid' AND transactionid::text = $1";
/// How long a transaction that the stream tells of may take to be visible: mostly none, and as long as a synchronous standby
/// takes to have it.
const VISIBLE_WITHIN: Duration = Duration::from_secs(60);

/// A source table and where its rows go.
#[derive(Debug, Clone)]
pub(super) struct Followed {
    /// The table, as the catalogue had it, and then as the stream told of it.
    pub(super) table: Table,
    /// Its columns as they were followed last.
    pub(super) remembered: Vec<Remembered>,
    /// Place of its destination among the pipeline's.
    pub(super) destination: u16,
    /// Name of that destination.
    pub(super) warehouse_table: String,
    /// Its columns.
    pub(super) warehouse: Vec<WarehouseColumn>,
    /// Key columns of the destination.
    pub(super) key: Vec<String>,
    /// Changes before it are in the table's copy.
    pub(super) copied_upto: Lsn,
}

impl Followed {
    /// What is to be remembered of it.
    pub(super) fn note(&self) -> Note {
        Note { table: self.table.name.clone(), oid: self.table.oid, columns: self.remembered.clone() }
    }

    /// Whether `table` has the columns that were followed last, and that the catalogue had when it was asked last.
    fn is_still(&self, table: &Table) -> bool {
        let told = Remembered::of(table);
        shape::are(&told, &self.remembered)
            && told
                .iter()
                .zip(&self.remembered)
                .all(|(told, known)| told.number != 0 && told.number == known.number)
            && table.columns.iter().all(|column| !column.type_name.is_empty())
    }
}

/// Puts in what the positions know of the columns of tables that are not copied anew, and reads destinations again that
/// somebody else has changed meanwhile. Returns what is to be remembered before anything is loaded.
///
/// # Errors
/// Retry, if StarRocks cannot be asked.
pub(super) async fn recall(
    followed: &mut [Followed],
    known: &Known,
    beginning: &Beginning,
    query: &mut Query,
) -> Result<Vec<Note>, Fault> {
    let mut unknown = Vec::new();
    for one in followed {
        let name = one.table.name.clone();
        let kept = known.columns.get(&name.to_string());
        let is_same = known.oid(&name.to_string()) == Some(one.table.oid);
        if beginning.copy().contains(&name) {
            // Its columns are remembered when it was copied; which table it is, before its first row is loaded.
            one.remembered = Remembered::of(&one.table);
            if !is_same {
                unknown.push(one.note());
            }
            continue;
        }
        if let Some(kept) = kept
            && *kept != one.remembered
        {
            one.remembered.clone_from(kept);
            if let Some(there) = query.columns(&one.warehouse_table).await? {
                one.key = key_of(&there);
                one.warehouse = there;
            }
        }
        if kept != Some(&one.remembered) || !is_same {
            unknown.push(one.note());
        }
    }
    Ok(unknown)
}

/// What a Relation message came to.
#[derive(Debug)]
pub(super) enum Change {
    /// The pipeline does not follow the table.
    NotFollowed,
    /// Its rows have, or will have, a place for all their columns.
    Followed {
        /// How to take them apart.
        layout: Layout,
        /// Where they go.
        destination: u16,
        /// Columns to add to the destination.
        add: Vec<Added>,
        /// All columns, if they have to be remembered anew before rows are handed on.
        remember: Option<Vec<Remembered>>,
    },
}

/// The fault of a table that no longer fits.
pub(super) fn unfit(what: &str, hint: &str, side_by_side: &str) -> Fault {
    Fault::halt(format!("{what}\n{side_by_side}"), hint)
}

/// All followed tables.
pub(super) struct Schema {
    connector: Arc<Connector>,
    control: Option<Control>,
    types: Types,
    followed: HashMap<TableName, Followed>,
    database: String,
    /// Whether columns that StarRocks lacks are added there; otherwise their values are left out.
    grows: bool,
    /// The transaction that is waited for, and since when.
    invisible: Option<(u32, Instant)>,
}

impl Schema {
    pub(super) fn new(
        connector: Arc<Connector>,
        types: Types,
        followed: &[Followed],
        database: &str,
        grows: bool,
    ) -> Schema {
        let followed = followed.iter().map(|one| (one.table.name.clone(), one.clone()));
        Schema {
            connector,
            control: None,
            types,
            followed: followed.collect(),
            database: database.to_owned(),
            grows,
            invisible: None,
        }
    }

    /// Changes of a table before this place in the log are in its copy.
    pub(super) fn copied_upto(&self, table: &TableName) -> Lsn {
        self.followed.get(table).map_or(NOT_COPIED, |followed| followed.copied_upto)
    }

    /// The stream told of a table, in transaction `xid`.
    ///
    /// # Errors
    /// Halt, if its rows no longer fit their destination; retry, if the source cannot be asked yet.
    pub(super) async fn told(&mut self, relation: &Relation<'_>, xid: u32) -> Result<Change, Fault> {
        let name = TableName::new(relation.schema, relation.name);
        if !self.followed.contains_key(&name) {
            return Ok(Change::NotFollowed);
        }
        let unknown = self.types.unknown(relation.columns.iter().map(|column| column.type_oid));
        self.learn(unknown).await?;
        let table = table_of(relation, self.followed.get(&name).map(|followed| &followed.table));
        let is_known = self.followed.get(&name).is_some_and(|followed| followed.is_still(&table));
        let (now, type_names) = match is_known {
            true => (Remembered::of(&table), Vec::new()),
            false => {
                // A column that it has added would be taken for one that was dropped since.
                self.must_be_visible(xid).await?;
                self.columns_now(table.oid).await?
            }
        };
        let (types, grows, database) = (&self.types, self.grows, &self.database);
        let Some(followed) = self.followed.get_mut(&name) else { return Ok(Change::NotFollowed) };
        let mut reading = shape::read(table, &followed.remembered, &now, &followed.warehouse);
        reading.name_types(&now, &type_names);
        let key: Vec<&str> = followed.key.iter().map(String::as_str).collect();
        let layout = Layout::of_table(&reading.table, types).keyed_by(&key).map_err(|error| {
            Fault::halt(
                format!("the key of {name} no longer fits StarRocks: {error}"),
                format!(
                    "make table {} anew with the source's key, and copy it again: tidemill resync <file> {name}",
                    followed.warehouse_table
                ),
            )
        })?;
        let difference = reading.difference(Comparison {
            table: &reading.table,
            types,
            database,
            name: &followed.warehouse_table,
            warehouse: &followed.warehouse,
            before: Some(&reading.before),
        });
        if let Some(first) = difference.incompatible.first() {
            return Err(unfit(&first.what, &first.hint, &difference.side_by_side));
        }
        let mut add = Vec::new();
        // What was dropped since is not added.
        let is_there = |added: &Added| now.iter().any(|column| column.name == added.column);
        for added in difference.added.into_iter().filter(is_there) {
            followed.warehouse.push(WarehouseColumn {
                name: added.column.clone(),
                sql_type: String::new(),
                nullable: true,
                key: false,
            });
            add.extend(grows.then_some(added));
        }
        let remember =
            (reading.followed != followed.remembered || !add.is_empty()).then(|| reading.followed.clone());
        followed.remembered = reading.followed;
        followed.table = reading.table;
        Ok(Change::Followed { layout, destination: followed.destination, add, remember })
    }

    /// Whether the source could not be asked, where it was asked last: it let nobody in, or the line broke.
    pub(super) fn is_cut_off(&self) -> bool {
        self.control.as_ref().is_none_or(Control::is_closed)
    }

    async fn control(&mut self) -> Result<&Control, Fault> {
        match self.control.take().filter(|control| !control.is_closed()) {
            Some(control) => Ok(self.control.insert(control)),
            None => Ok(self.control.insert(self.connector.control().await?)),
        }
    }

    /// Asks the catalogue for types.
    async fn learn(&mut self, unknown: BTreeSet<u32>) -> Result<(), Fault> {
        if unknown.is_empty() {
            return Ok(());
        }
        let oids: Vec<u32> = unknown.into_iter().collect();
        let found = catalog::types(self.control().await?, &oids).await?;
        // What the catalogue does not know either stays text.
        found.into_iter().for_each(|info| self.types.add(info));
        Ok(())
    }

    /// Asks the catalogue for the columns that are published now, and the names of their types.
    async fn columns_now(&mut self, table: u32) -> Result<(Vec<Remembered>, Vec<String>), Fault> {
        let publication = self.connector.source().publication.clone();
        let control = self.control().await?;
        let rows = control.client().query(COLUMNS_SQL, &[&table, &publication]).await;
        let rows =
            rows.map_err(|error| control.fault("read the columns of a table that has changed", error))?;
        let column = |row: &Row| Remembered {
            name: row.get(0),
            number: row.get(1),
            type_oid: row.get(2),
            type_modifier: row.get(3),
        };
        Ok(rows.iter().map(|row| (column(row), row.get::<_, String>(4))).unzip())
    }

    /// Whether other sessions see what the transaction did. The stream tells of it as soon as its commit is in the log on
    /// disk; the server shows it a moment later, and lets go of its lock on its own number after that. On a standby there
    /// is no such lock, and none is needed: there it is shown before the stream tells of it.
    ///
    /// # Errors
    /// Retry, until it is visible; Halt, if it is not for [`VISIBLE_WITHIN`].
    async fn must_be_visible(&mut self, xid: u32) -> Result<(), Fault> {
        let control = self.control().await?;
        let locks = control.client().query_one(RUNNING_SQL, &[&xid.to_string()]).await;
        let locks = locks.and_then(|row| row.try_get::<_, i64>(0));
        let locks = locks.map_err(|error| control.fault("ask whether a transaction is visible", error))?;
        if locks == 0 {
            self.invisible = None;
            return Ok(());
        }
        let (_, since) = self.invisible.filter(|(other, _)| *other == xid).unwrap_or((xid, Instant::now()));
        self.invisible = Some((xid, since));
        let what = format!("transaction {xid} is in the log, and not visible yet");
        if since.elapsed() < VISIBLE_WITHIN {
            return Err(Fault::retry(what));
        }
        Err(Fault::halt(
            format!("{what} after {} s", VISIBLE_WITHIN.as_secs()),
            "it may wait for a synchronous standby; if that is this reader, take tidemill out of \
             synchronous_standby_names, which \"*\" puts it in, and start again",
        ))
    }

    /// All columns of the row that `update` of transaction `xid` is about, as they are now; none if there is no such row.
    ///
    /// # Errors
    /// Retry, if the source cannot be asked yet; Halt, if it no longer has what StarRocks needs.
    pub(super) async fn read_back(
        &mut self,
        layout: &Layout,
        update: &Update<'_>,
        xid: u32,
    ) -> Result<Option<Vec<Option<Vec<u8>>>>, Fault> {
        // What was there before, or nothing, would be taken for what it left: nothing later in the stream would tell.
        self.must_be_visible(xid).await?;
        let Some(followed) = self.followed.get(layout.name()).cloned() else { return Ok(None) };
        let database = self.database.clone();
        let control = self.control().await?;
        read_back::row(control, &followed, &database, layout, update).await
    }
}
