//! What is known of a source before anything is set up: plain data, read by [`super::catalog`].

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;

use super::kind::TypeInfo;
use super::lsn::Lsn;
use super::table::{Column, Identity, Table, TableName};

/// The oldest server, as `server_version_num`: the first with messages in pgoutput and scans of ctid ranges.
pub const VERSION_MIN: u32 = 140_000;

/// Everything that preflight looks at.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The server and its settings.
    pub server: Server,
    /// Our role.
    pub role: Role,
    /// What `tables` names and `exclude` does not, and all partitions of those, by their oids.
    pub relations: BTreeMap<u32, Relation>,
    /// Patterns of `tables` that name nothing, each with the nearest names that there are.
    pub unmatched: Vec<Unmatched>,
    /// The publication, if there is one of that name.
    pub publication: Option<Publication>,
    /// The slot, if there is one of that name.
    pub slot: Option<Slot>,
    /// Open transactions that write: a new slot waits until all of them have ended. The oldest first.
    pub writers: Vec<Writer>,
    /// Types of all columns, with those that they are made of.
    pub types: Vec<TypeInfo>,
}

/// A server.
#[derive(Debug, Clone, Default)]
pub struct Server {
    /// As `server_version_num`: 150018 is 15.18.
    pub version: u32,
    /// Of the database, `UTF8` mostly.
    pub encoding: String,
    /// Whether it is a standby.
    pub in_recovery: bool,
    /// Names the cluster, across restarts and its standbys; none without the right to read it.
    pub system_identifier: Option<u64>,
    /// `wal_level`.
    pub wal_level: String,
    /// A `wal_level` is in the server's files that only a restart makes true.
    pub wal_level_pending: bool,
    /// `rds.logical_replication`, on Amazon RDS.
    pub rds_logical_replication: Option<bool>,
    /// `max_replication_slots`.
    pub slots_max: u64,
    /// Slots there are.
    pub slots_used: u64,
    /// `max_wal_senders`.
    pub senders_max: u64,
    /// Senders that run.
    pub senders_used: u64,
    /// `max_slot_wal_keep_size` in bytes; none = no limit.
    pub slot_wal_max_bytes: Option<u64>,
    /// `wal_sender_timeout` in milliseconds as the server has it; our connections set their own.
    pub sender_timeout_ms: u64,
    /// `hot_standby_feedback`.
    pub hot_standby_feedback: bool,
    /// `block_size` in bytes.
    pub page_bytes: u64,
}

impl Server {
    /// The first part of its version: 15.
    pub fn major(&self) -> u32 {
        self.version / 10_000
    }
}

/// What our role may do.
#[derive(Debug, Clone, Default)]
pub struct Role {
    /// Its name.
    pub name: String,
    /// `SUPERUSER`.
    pub superuser: bool,
    /// `REPLICATION`, itself or by membership in `rds_replication`.
    pub replication: bool,
    /// May create objects in the database, publications for instance.
    pub may_create: bool,
}

/// What kind of relation it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A table.
    Table,
    /// A table made of partitions.
    Partitioned,
    /// A foreign table.
    Foreign,
    /// A view, materialized or not.
    View,
}

/// A relation.
#[derive(Debug, Clone)]
pub struct Relation {
    /// `pg_class.oid`.
    pub oid: u32,
    /// Its name.
    pub name: TableName,
    /// What it is.
    pub kind: Kind,
    /// What named it.
    pub named: Named,
    /// Unlogged: it leaves no trace in the log.
    pub unlogged: bool,
    /// The partitioned table that it is a partition of.
    pub parent: Option<u32>,
    /// `REPLICA IDENTITY` as declared.
    pub identity: Identity,
    /// All columns, also unpublished ones, in order.
    pub columns: Vec<Attribute>,
    /// Numbers of the primary key's columns, in the key's order; empty = it has none.
    pub primary_key: Vec<i16>,
    /// The primary key is deferrable and therefore no replica identity.
    pub primary_key_deferrable: bool,
    /// Numbers of the columns that an UPDATE or DELETE tells of; empty = it fails when published.
    pub identity_columns: Vec<i16>,
    /// A unique index that could be the replica identity.
    pub unique_index: Option<String>,
    /// Our role may see the schema.
    pub may_use_schema: bool,
    /// Our role is the owner, or a member of it: it may publish the table.
    pub owned: bool,
    /// The owner's name.
    pub owner: String,
    /// A row security policy applies to our role.
    pub row_security: bool,
    /// Estimate of the planner; negative = never looked at.
    pub rows: f64,
    /// Size of the heap without TOAST, in bytes.
    pub bytes: u64,
}

/// Why a relation is among the facts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    /// A pattern without wildcards names it.
    Exactly,
    /// A pattern with wildcards does.
    ByPattern,
    /// None does, but a table that it is a partition of is named.
    AsPartition,
    /// `exclude` names it, and yet a table that it is a partition of is named.
    Excluded,
}

impl Named {
    /// Whether it is to be followed in its own right.
    pub fn itself(self) -> bool {
        match self {
            Named::Exactly | Named::ByPattern => true,
            Named::AsPartition | Named::Excluded => false,
        }
    }
}

/// A column as the catalogue has it.
#[derive(Debug, Clone)]
pub struct Attribute {
    /// What the rest of the program knows of it; its places in keys are filled in later.
    pub column: Column,
    /// `GENERATED ALWAYS AS … STORED` (or virtual).
    pub generated: bool,
    /// Our role may read it.
    pub may_select: bool,
}

/// A pattern that names nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmatched {
    /// As written.
    pub pattern: String,
    /// Tables with a similar name, the nearest first.
    pub near: Vec<TableName>,
}

/// A publication.
#[derive(Debug, Clone, Default)]
pub struct Publication {
    /// Our role may change it.
    pub owned: bool,
    /// Its owner.
    pub owner: String,
    /// `FOR ALL TABLES`.
    pub all_tables: bool,
    /// Inserts are published.
    pub inserts: bool,
    /// Updates are.
    pub updates: bool,
    /// Deletes are.
    pub deletes: bool,
    /// TRUNCATE is.
    pub truncates: bool,
    /// Changes of partitions are told as changes of the partitioned table.
    pub via_root: bool,
    /// It was made or altered when the slot stood already where it stands; there it may not be known.
    pub newer_than_slot: bool,
    /// What is published in effect, by the table's oid: partitions or their root, as `via_root` says.
    pub tables: HashMap<u32, Published>,
}

/// How a table is published.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Published {
    /// Names of the published columns; none = a server that has no column lists.
    pub columns: Option<Vec<String>>,
    /// Condition on the rows, as SQL.
    pub filter: Option<String>,
}

/// A replication slot.
#[derive(Debug, Clone, Default)]
pub struct Slot {
    /// Output plugin; none = a physical slot.
    pub plugin: Option<String>,
    /// Its database.
    pub database: Option<String>,
    /// Process that reads it now.
    pub active_pid: Option<i32>,
    /// What that process' client calls itself.
    pub active_application: Option<String>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// Bytes that may still be written until it is in danger; none without a limit.
    pub safe_wal_bytes: Option<i64>,
    /// Bytes of log that it holds back.
    pub held_wal_bytes: Option<i64>,
    /// Up to where its reader confirmed.
    pub confirmed: Option<Lsn>,
    /// From where the log is kept.
    pub restart: Option<Lsn>,
    /// Prepared transactions are told when they are prepared.
    pub two_phase: bool,
}

impl Slot {
    /// Whether the log that it needs is gone.
    pub fn is_lost(&self) -> bool {
        self.wal_status.as_deref() == Some("lost")
    }
}

/// A transaction that has written and is still open.
#[derive(Debug, Clone, PartialEq)]
pub struct Writer {
    /// Its process; none = a prepared transaction, which has none.
    pub pid: Option<i32>,
    /// Its application, or the name of the prepared transaction.
    pub name: String,
    /// Its age in seconds, if we may know.
    pub age_s: Option<f64>,
}

impl Facts {
    /// A relation by its oid.
    pub fn relation(&self, oid: u32) -> Option<&Relation> {
        self.relations.get(&oid)
    }

    /// The tables to be followed, in the order of their names: those named, without what can be no table if only a
    /// wildcard named it, and without partitions of which the whole table is named.
    pub fn chosen(&self) -> Vec<&Relation> {
        let is_chosen = |relation: &&Relation| {
            let named = match relation.named {
                Named::Exactly => true,
                Named::ByPattern => matches!(relation.kind, Kind::Table | Kind::Partitioned),
                Named::AsPartition | Named::Excluded => false,
            };
            named && !self.ancestors(relation).any(|ancestor| ancestor.named.itself())
        };
        let mut chosen: Vec<&Relation> = self.relations.values().filter(is_chosen).collect();
        chosen.sort_by_key(|relation| &relation.name);
        chosen
    }

    /// How many published tables are neither followed, nor parts of what is followed, nor the whole of it.
    pub fn published_for_nothing(&self) -> usize {
        let Some(publication) = &self.publication else { return 0 };
        let chosen: HashSet<u32> = self.chosen().into_iter().map(|relation| relation.oid).collect();
        let concerns_us = |oid: &&u32| {
            self.relation(**oid).is_some_and(|relation| {
                let is_chosen = |other: &Relation| chosen.contains(&other.oid);
                is_chosen(relation)
                    || self.ancestors(relation).any(is_chosen)
                    || self.heaps(relation).into_iter().any(is_chosen)
            })
        };
        publication.tables.keys().filter(|oid| !concerns_us(oid)).count()
    }

    /// The tables that a relation is a partition of, as far as they are known, the nearest first.
    pub fn ancestors<'a>(&'a self, relation: &'a Relation) -> impl Iterator<Item = &'a Relation> {
        let parent = |relation: &&'a Relation| relation.parent.and_then(|oid| self.relation(oid));
        std::iter::successors(parent(&relation), parent)
    }

    /// The tables that hold a relation's rows: itself, or its partitions that have none themselves.
    pub fn heaps<'a>(&'a self, relation: &'a Relation) -> Vec<&'a Relation> {
        match relation.kind {
            Kind::Partitioned => self
                .relations
                .values()
                .filter(|leaf| leaf.kind != Kind::Partitioned)
                .filter(|leaf| self.ancestors(leaf).any(|ancestor| ancestor.oid == relation.oid))
                .collect(),
            Kind::Table | Kind::Foreign | Kind::View => vec![relation],
        }
    }

    /// How a relation is published; none if it is not.
    pub fn published(&self, relation: &Relation) -> Option<&Published> {
        self.publication.as_ref().and_then(|publication| publication.tables.get(&relation.oid))
    }

    /// A relation with the columns that are published, or would be if the program published it.
    pub fn table(&self, relation: &Relation) -> Table {
        let listed = self.published(relation).and_then(|published| published.columns.as_ref());
        let is_published = |attribute: &&Attribute| {
            let listed = listed.is_none_or(|names| names.contains(&attribute.column.name));
            // Up to 17 the catalogue lists generated columns and the stream leaves them out.
            let told =
                !attribute.generated || (self.server.major() >= 18 && self.published(relation).is_some());
            listed && told
        };
        let place = |number: i16| relation.primary_key.iter().position(|key| *key == number);
        let column = |attribute: &Attribute| Column {
            primary_key: place(attribute.column.number).and_then(|place| u16::try_from(place).ok()),
            in_identity: relation.identity == Identity::Full
                || relation.identity_columns.contains(&attribute.column.number),
            ..attribute.column.clone()
        };
        Table {
            oid: relation.oid,
            name: relation.name.clone(),
            identity: relation.identity,
            columns: relation.columns.iter().filter(is_published).map(column).collect(),
        }
    }

    /// The same without some of the tables to be followed, and without their partitions.
    #[must_use]
    pub fn without(&self, left_out: &BTreeSet<TableName>) -> Facts {
        let mut rest = self.clone();
        let is_left_out = |relation: &Relation| relation.named.itself() && left_out.contains(&relation.name);
        rest.relations
            .retain(|_, relation| !is_left_out(relation) && !self.ancestors(relation).any(is_left_out));
        rest
    }

    /// All tables to be followed, with their published columns.
    pub fn tables(&self) -> Vec<Table> {
        self.chosen().into_iter().map(|relation| self.table(relation)).collect()
    }
}

impl Relation {
    /// Names of columns by their numbers, in the order given.
    pub fn names(&self, numbers: &[i16]) -> Vec<&str> {
        let name = |number: &i16| {
            let attribute = self.columns.iter().find(|attribute| attribute.column.number == *number);
            attribute.map(|attribute| attribute.column.name.as_str())
        };
        numbers.iter().filter_map(name).collect()
    }

    /// Pages of its heap.
    pub fn pages(&self, page_bytes: u64) -> u64 {
        self.bytes.div_ceil(page_bytes.max(1))
    }
}

impl fmt::Display for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "pid {pid} ({:?}", self.name)?,
            None => write!(f, "prepared transaction ({:?}", self.name)?,
        }
        match self.age_s {
            Some(age) => write!(f, ", {age:.0} s old)"),
            None => f.write_str(")"),
        }
    }
}
