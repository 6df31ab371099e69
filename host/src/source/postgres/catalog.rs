//! Reads the facts from the system catalogue, in few round trips: independent questions are sent together.

use std::collections::{HashMap, HashSet};

use tokio_postgres::Row;
use tokio_postgres::types::Oid;

use super::connect::Control;
use super::facts::{
    Attribute, Facts, Kind, Named, Publication, Published, Relation, Role, Server, Slot, VERSION_MIN, Writer,
};
use super::kind::TypeInfo;
use super::lsn::Lsn;
use super::table::{Column, Identity, TableName};
use crate::config::model::Postgres;
use crate::fault::Fault;

mod names;
mod queries;

use names::Names;

/// A version that has column lists and row filters.
const WITH_COLUMN_LISTS: u32 = 150_000;

/// Reads everything.
///
/// # Errors
/// `Halt` for a server before PostgreSQL 14; what the server says when it refuses, being on its way down for instance.
pub async fn facts(control: &Control, source: &Postgres) -> Result<Facts, Fault> {
    let reader = Reader { control };
    let names = Names::new(source)?;
    let (server, role) = reader.server().await?;
    if server.version < VERSION_MIN {
        // Its catalogue lacks what the other questions ask for.
        let what = format!("cannot follow a server of PostgreSQL {}: 14 is the least", server.major());
        return Err(Fault::halt(what, "upgrade the server"));
    }
    let ((slot, writers), listed) = tokio::try_join!(reader.slot(&source.slot), reader.relations())?;
    let (mut relations, unmatched) = names.choose(listed);
    let (publication, ()) = tokio::try_join!(
        reader.publication(&source.publication, &source.slot, server.version),
        reader.complete(&mut relations)
    )?;
    let types = reader.types(&relations).await?;
    let relations = relations.into_iter().map(|relation| (relation.oid, relation)).collect();
    Ok(Facts { server, role, relations, unmatched, publication, slot, writers, types })
}

/// The slot of that name as it stands; none if there is none.
///
/// # Errors
/// What the server says when it refuses.
pub async fn slot(control: &Control, name: &str) -> Result<Option<Slot>, Fault> {
    let rows = Reader { control }.rows("read the replication slot", queries::SLOT, &[&name]).await?;
    rows.first().map(slot_of).transpose().map_err(|error| control.fault("read the replication slot", error))
}

/// Which tables are named now, and what is published in effect: facts without the definitions of the tables, which may
/// be asked for again and again.
///
/// # Errors
/// What the server says when it refuses.
pub async fn outline(control: &Control, source: &Postgres, server: &Server) -> Result<Facts, Fault> {
    let reader = Reader { control };
    let listed = reader.relations().await?;
    let publication = reader.publication(&source.publication, &source.slot, server.version).await?;
    let (relations, unmatched) = Names::new(source)?.choose(listed);
    let relations = relations.into_iter().map(|relation| (relation.oid, relation)).collect();
    Ok(Facts { server: server.clone(), relations, unmatched, publication, ..Facts::default() })
}

/// Up to where the server's log is written, or, on a standby, has arrived.
///
/// # Errors
/// What the server says when it refuses.
pub async fn written(control: &Control) -> Result<Lsn, Fault> {
    let attempted = "ask how far the log is written";
    let rows = Reader { control }.each(attempted, queries::WRITTEN, &[], |row| lsn(row, 0)).await?;
    Ok(rows.into_iter().flatten().next().unwrap_or_default())
}

/// Ends the process of the server that reads a slot for a client of this name, should there be one; returns its number.
///
/// # Errors
/// What the server says when it refuses: its role must be ours.
pub async fn end_reader(control: &Control, slot: &str, application: &str) -> Result<Option<i32>, Fault> {
    let attempted = "end the reader that a process of ours has left at the slot";
    let parameters: [Parameter<'_>; 2] = [&slot, &application];
    let ended =
        Reader { control }.each(attempted, queries::END_READER, &parameters, |row| row.try_get(0)).await?;
    Ok(ended.into_iter().next())
}

type Failed = tokio_postgres::Error;
type Parameter<'a> = &'a (dyn tokio_postgres::types::ToSql + Sync);

struct Reader<'a> {
    control: &'a Control,
}

impl Reader<'_> {
    async fn rows(
        &self,
        attempted: &str,
        query: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, Fault> {
        let answer = self.control.client().query(query, parameters).await;
        answer.map_err(|error| self.control.fault(attempted, error))
    }

    /// Runs the query and makes a value of each row.
    async fn each<T>(
        &self,
        attempted: &str,
        query: &str,
        parameters: &[Parameter<'_>],
        make: impl Fn(&Row) -> Result<T, Failed>,
    ) -> Result<Vec<T>, Fault> {
        let rows = self.rows(attempted, query, parameters).await?;
        let made: Result<Vec<T>, Failed> = rows.iter().map(make).collect();
        made.map_err(|error| self.control.fault(attempted, error))
    }

    async fn server(&self) -> Result<(Server, Role), Fault> {
        let attempted = "read the server's settings";
        let (settings, about, identifier) = tokio::try_join!(
            self.each(attempted, queries::SETTINGS, &[], |row| {
                Ok((row.try_get::<_, String>(0)?, (row.try_get::<_, String>(1)?, row.try_get::<_, bool>(2)?)))
            }),
            self.each(attempted, queries::SERVER_AND_ROLE, &[], server_and_role),
            async { Ok(self.system_identifier().await) },
        )?;
        let settings: HashMap<String, (String, bool)> = settings.into_iter().collect();
        let text = |name: &str| settings.get(name).map_or("", |(value, _)| value.as_str());
        let number = |name: &str| text(name).parse::<u64>().unwrap_or(0);
        let missing = || Fault::retry("cannot read the server's settings: our role is not in pg_roles");
        let (about, role) = about.into_iter().next().ok_or_else(missing)?;
        let server = Server {
            system_identifier: identifier,
            wal_level: text("wal_level").to_owned(),
            wal_level_pending: settings.get("wal_level").is_some_and(|(_, pending)| *pending),
            rds_logical_replication: settings.get("rds.logical_replication").map(|(value, _)| value == "on"),
            slots_max: number("max_replication_slots"),
            senders_max: number("max_wal_senders"),
            // In MB; -1 = no limit.
            slot_wal_max_bytes: text("max_slot_wal_keep_size").parse::<u64>().ok().map(|mb| mb << 20),
            sender_timeout_ms: number("wal_sender_timeout"),
            hot_standby_feedback: text("hot_standby_feedback") == "on",
            page_bytes: number("block_size"),
            ..about
        };
        Ok((server, role))
    }

    /// Without the right to read it there is none, which is no failure.
    async fn system_identifier(&self) -> Option<u64> {
        let row = self.control.client().query_one(queries::SYSTEM_IDENTIFIER, &[]).await.ok()?;
        row.try_get::<_, String>(0).ok()?.parse().ok()
    }

    async fn relations(&self) -> Result<Vec<Relation>, Fault> {
        self.each("list the tables", queries::RELATIONS, &[], relation).await
    }

    /// Fills in what the list of relations does not tell.
    async fn complete(&self, relations: &mut [Relation]) -> Result<(), Fault> {
        let attempted = "read the definitions of the tables";
        let oids: Vec<Oid> = relations.iter().map(|relation| relation.oid).collect();
        let parameters: [Parameter<'_>; 1] = [&oids];
        let (details, columns, keys) = tokio::try_join!(
            self.each(attempted, queries::DETAILS, &parameters, |row| {
                Ok((row.try_get::<_, Oid>(0)?, detail(row)?))
            }),
            self.each(attempted, queries::COLUMNS, &parameters, |row| {
                Ok((row.try_get::<_, Oid>(0)?, attribute(row)?))
            }),
            self.each(attempted, queries::UNIQUE_INDEXES, &parameters, |row| {
                Ok((row.try_get::<_, Oid>(0)?, unique_index(row)?))
            }),
        )?;
        let place: HashMap<Oid, usize> = oids.iter().enumerate().map(|(place, oid)| (*oid, place)).collect();
        for (oid, detail) in details {
            if let Some(relation) = place.get(&oid).and_then(|place| relations.get_mut(*place)) {
                detail.put(relation);
            }
        }
        for (oid, column) in columns {
            if let Some(relation) = place.get(&oid).and_then(|place| relations.get_mut(*place)) {
                relation.columns.push(column);
            }
        }
        for (oid, index) in &keys {
            if let Some(relation) = place.get(oid).and_then(|place| relations.get_mut(*place)) {
                index.put(relation);
            }
        }
        for relation in relations {
            if relation.identity == Identity::Full {
                relation.identity_columns =
                    relation.columns.iter().map(|column| column.column.number).collect();
            }
        }
        Ok(())
    }

    async fn publication(&self, name: &str, slot: &str, version: u32) -> Result<Option<Publication>, Fault> {
        let attempted = "read the publication";
        let contents = if version >= WITH_COLUMN_LISTS {
            queries::PUBLISHED_TABLES
        } else {
            queries::PUBLISHED_TABLES_BEFORE_15
        };
        let named: [Parameter<'_>; 2] = [&name, &slot];
        let parameters: [Parameter<'_>; 1] = [&name];
        let (publications, tables) = tokio::try_join!(
            self.each(attempted, queries::PUBLICATION, &named, publication_of),
            self.each(attempted, contents, &parameters, |row| {
                let published = Published { columns: row.try_get(1)?, filter: row.try_get(2)? };
                Ok((row.try_get::<_, Oid>(0)?, published))
            }),
        )?;
        let found = publications.into_iter().next();
        Ok(found.map(|publication| Publication { tables: tables.into_iter().collect(), ..publication }))
    }

    async fn slot(&self, name: &str) -> Result<(Option<Slot>, Vec<Writer>), Fault> {
        let attempted = "read the replication slot";
        let parameters: [Parameter<'_>; 1] = [&name];
        let (slots, writers) = tokio::try_join!(
            self.each(attempted, queries::SLOT, &parameters, slot_of),
            self.each("read the open transactions", queries::WRITERS, &[], writer)
        )?;
        Ok((slots.into_iter().next(), writers))
    }

    async fn types(&self, relations: &[Relation]) -> Result<Vec<TypeInfo>, Fault> {
        let columns = relations.iter().flat_map(|relation| &relation.columns);
        let used: HashSet<Oid> = columns.map(|attribute| attribute.column.type_oid).collect();
        let used: Vec<Oid> = used.into_iter().collect();
        self.each("read the types", queries::TYPES, &[&used], type_info).await
    }
}

/// Types by their oids, and those that they are made of.
///
/// # Errors
/// What the server says when it refuses.
pub async fn types(control: &Control, oids: &[Oid]) -> Result<Vec<TypeInfo>, Fault> {
    Reader { control }.each("read the types", queries::TYPES, &[&oids], type_info).await
}

/// The open transactions of some processes: who holds a new slot up.
///
/// # Errors
/// What the server says when it refuses.
pub async fn holding_up(control: &Control, waiting_pid: i32) -> Result<Vec<Writer>, Fault> {
    Reader { control }.each("read who holds the slot up", queries::HOLDING_UP, &[&waiting_pid], writer).await
}

/// `"char"` columns hold one byte.
fn letter(row: &Row, index: usize) -> Result<char, Failed> {
    row.try_get::<_, i8>(index).map(|byte| char::from(byte.cast_unsigned()))
}

fn lsn(row: &Row, index: usize) -> Result<Option<Lsn>, Failed> {
    let text: Option<String> = row.try_get(index)?;
    Ok(text.and_then(|text| text.parse().ok()))
}

fn server_and_role(row: &Row) -> Result<(Server, Role), Failed> {
    let server = Server {
        version: row.try_get::<_, i32>(0)?.unsigned_abs(),
        encoding: row.try_get(1)?,
        in_recovery: row.try_get(2)?,
        slots_used: row.try_get::<_, i64>(3)?.unsigned_abs(),
        senders_used: row.try_get::<_, i64>(4)?.unsigned_abs(),
        ..Server::default()
    };
    let role = Role {
        name: row.try_get(5)?,
        superuser: row.try_get(6)?,
        replication: row.try_get(7)?,
        may_create: row.try_get(8)?,
    };
    Ok((server, role))
}

fn relation(row: &Row) -> Result<Relation, Failed> {
    Ok(Relation {
        oid: row.try_get(0)?,
        name: TableName::new(row.try_get(1)?, row.try_get(2)?),
        kind: match letter(row, 3)? {
            'p' => Kind::Partitioned,
            'f' => Kind::Foreign,
            'v' | 'm' => Kind::View,
            // The query lists no others.
            _ => Kind::Table,
        },
        named: Named::AsPartition,
        unlogged: letter(row, 4)? == 'u',
        identity: match letter(row, 5)? {
            'f' => Identity::Full,
            'i' => Identity::Index,
            'n' => Identity::Nothing,
            // `d` is the only other one.
            _ => Identity::Default,
        },
        parent: row.try_get(6)?,
        columns: Vec::new(),
        primary_key: Vec::new(),
        primary_key_deferrable: false,
        identity_columns: Vec::new(),
        unique_index: None,
        may_use_schema: false,
        owned: false,
        owner: String::new(),
        row_security: false,
        rows: -1.0,
        bytes: 0,
    })
}

/// What [`queries::DETAILS`] tells.
struct Detail {
    may_use_schema: bool,
    owned: bool,
    owner: String,
    row_security: bool,
    rows: f64,
    bytes: u64,
}

fn detail(row: &Row) -> Result<Detail, Failed> {
    Ok(Detail {
        may_use_schema: row.try_get(1)?,
        owned: row.try_get(2)?,
        owner: row.try_get(3)?,
        row_security: row.try_get(4)?,
        rows: row.try_get(5)?,
        bytes: row.try_get::<_, Option<i64>>(6)?.unwrap_or(0).unsigned_abs(),
    })
}

impl Detail {
    fn put(self, relation: &mut Relation) {
        relation.may_use_schema = self.may_use_schema;
        relation.owned = self.owned;
        relation.owner = self.owner;
        relation.row_security = self.row_security;
        relation.rows = self.rows;
        relation.bytes = self.bytes;
    }
}

fn attribute(row: &Row) -> Result<Attribute, Failed> {
    Ok(Attribute {
        column: Column {
            name: row.try_get(1)?,
            number: row.try_get(2)?,
            type_oid: row.try_get(3)?,
            type_modifier: row.try_get(4)?,
            type_name: row.try_get(5)?,
            not_null: row.try_get(6)?,
            primary_key: None,
            in_identity: false,
            may_be_toasted: row.try_get(8)?,
        },
        generated: row.try_get(7)?,
        may_select: row.try_get(9)?,
    })
}

/// What [`queries::UNIQUE_INDEXES`] tells.
struct UniqueIndex {
    name: String,
    primary: bool,
    replica_identity: bool,
    immediate: bool,
    complete: bool,
    columns: Vec<i16>,
}

fn unique_index(row: &Row) -> Result<UniqueIndex, Failed> {
    Ok(UniqueIndex {
        name: row.try_get(1)?,
        primary: row.try_get(2)?,
        replica_identity: row.try_get(3)?,
        immediate: row.try_get(4)?,
        complete: row.try_get(5)?,
        columns: row.try_get(6)?,
    })
}

impl UniqueIndex {
    fn put(&self, relation: &mut Relation) {
        let not_null = |number: &i16| {
            relation.columns.iter().any(|known| known.column.number == *number && known.column.not_null)
        };
        let usable = self.immediate && self.complete && self.columns.iter().all(not_null);
        if self.primary {
            relation.primary_key.clone_from(&self.columns);
            relation.primary_key_deferrable = !self.immediate;
        } else if usable && relation.unique_index.is_none() {
            relation.unique_index = Some(self.name.clone());
        }
        let is_identity = match relation.identity {
            Identity::Default => self.primary && self.immediate,
            Identity::Index => self.replica_identity && usable,
            Identity::Full | Identity::Nothing => false,
        };
        if is_identity {
            relation.identity_columns.clone_from(&self.columns);
        }
    }
}

fn publication_of(row: &Row) -> Result<Publication, Failed> {
    Ok(Publication {
        owned: row.try_get(0)?,
        owner: row.try_get(1)?,
        all_tables: row.try_get(2)?,
        inserts: row.try_get(3)?,
        updates: row.try_get(4)?,
        deletes: row.try_get(5)?,
        truncates: row.try_get(6)?,
        via_root: row.try_get(7)?,
        newer_than_slot: row.try_get(8)?,
        tables: HashMap::new(),
    })
}

fn slot_of(row: &Row) -> Result<Slot, Failed> {
    Ok(Slot {
        plugin: row.try_get(0)?,
        database: row.try_get(1)?,
        active_pid: row.try_get(2)?,
        active_application: row.try_get(3)?,
        wal_status: row.try_get(4)?,
        safe_wal_bytes: row.try_get(5)?,
        held_wal_bytes: row.try_get(6)?,
        confirmed: lsn(row, 7)?,
        restart: lsn(row, 8)?,
        two_phase: row.try_get(9)?,
    })
}

fn writer(row: &Row) -> Result<Writer, Failed> {
    Ok(Writer { pid: row.try_get(0)?, name: row.try_get(1)?, age_s: row.try_get(2)? })
}

fn type_info(row: &Row) -> Result<TypeInfo, Failed> {
    Ok(TypeInfo {
        oid: row.try_get(0)?,
        name: row.try_get(1)?,
        schema: row.try_get(2)?,
        kind: letter(row, 3)?,
        category: letter(row, 4)?,
        element: row.try_get(5)?,
        base: row.try_get(6)?,
        base_modifier: row.try_get(7)?,
        delimiter: letter(row, 8)?,
    })
}
