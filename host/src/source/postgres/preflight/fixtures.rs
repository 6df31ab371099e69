//! A source with which nothing is wrong, for tests to spoil.

use std::time::Duration;

use crate::config::model::{Postgres, PostgresTls, Secret, Snapshot, Truncate};
use crate::source::postgres::facts::{
    Attribute, Facts, Kind, Named, Publication, Published, Relation, Role, Server, Slot,
};
use crate::source::postgres::table::{Column, Identity, TableName};

/// Settings of a pipeline.
pub(crate) fn source() -> Postgres {
    Postgres {
        host: "db.example.com".to_owned(),
        port: 5432,
        database: "shop".to_owned(),
        user: "reader".to_owned(),
        password: Some(Secret::new("hunter2")),
        tls: PostgresTls::default(),
        tables: vec!["public.*".to_owned()],
        exclude: Vec::new(),
        slot: "tidemill_shop".to_owned(),
        publication: "tidemill_shop".to_owned(),
        snapshot: Snapshot::Initial,
        snapshot_workers: 4,
        truncate: Truncate::Halt,
        max_slot_wal_bytes: 10 << 30,
        heartbeat: Duration::from_secs(10),
    }
}

/// A table `(id bigint PRIMARY KEY, name text)` that our role may do anything with.
pub(crate) fn relation(oid: u32, name: &str) -> Relation {
    let (schema, table) = name.split_once('.').expect("schema.table");
    Relation {
        oid,
        name: TableName::new(schema, table),
        kind: Kind::Table,
        named: Named::ByPattern,
        unlogged: false,
        parent: None,
        identity: Identity::Default,
        columns: vec![attribute(1, "id", 20, true), attribute(2, "name", 25, false)],
        primary_key: vec![1],
        primary_key_deferrable: false,
        identity_columns: vec![1],
        unique_index: None,
        may_use_schema: true,
        owned: true,
        owner: "reader".to_owned(),
        row_security: false,
        rows: 1000.0,
        bytes: 81_920,
    }
}

/// Adds relations.
pub(crate) fn add(facts: &mut Facts, relations: impl IntoIterator<Item = Relation>) {
    facts.relations.extend(relations.into_iter().map(|relation| (relation.oid, relation)));
}

/// A relation that is there, to be changed.
pub(crate) fn change(facts: &mut Facts, oid: u32) -> &mut Relation {
    facts.relations.get_mut(&oid).expect("it is there")
}

/// A column.
pub(crate) fn attribute(number: i16, name: &str, type_oid: u32, not_null: bool) -> Attribute {
    Attribute {
        column: Column {
            name: name.to_owned(),
            number,
            type_oid,
            type_modifier: -1,
            type_name: String::new(),
            not_null,
            primary_key: None,
            in_identity: false,
            may_be_toasted: type_oid == 25,
        },
        generated: false,
        may_select: true,
    }
}

/// A server that is set up for the table `public.orders` (oid 1), with publication and slot.
pub(crate) fn facts() -> Facts {
    let orders = relation(1, "public.orders");
    let published = Published { columns: Some(vec!["id".to_owned(), "name".to_owned()]), filter: None };
    Facts {
        server: Server {
            version: 150_018,
            encoding: "UTF8".to_owned(),
            in_recovery: false,
            system_identifier: Some(7),
            wal_level: "logical".to_owned(),
            wal_level_pending: false,
            rds_logical_replication: None,
            slots_max: 10,
            slots_used: 1,
            senders_max: 10,
            senders_used: 0,
            slot_wal_max_bytes: Some(100 << 30),
            sender_timeout_ms: 60_000,
            hot_standby_feedback: false,
            page_bytes: 8192,
        },
        role: Role { name: "reader".to_owned(), superuser: false, replication: true, may_create: true },
        relations: [(1, orders)].into(),
        unmatched: Vec::new(),
        publication: Some(Publication {
            owned: true,
            owner: "reader".to_owned(),
            all_tables: false,
            inserts: true,
            updates: true,
            deletes: true,
            truncates: true,
            via_root: true,
            newer_than_slot: false,
            tables: [(1, published)].into(),
        }),
        slot: Some(Slot {
            plugin: Some("pgoutput".to_owned()),
            database: Some("shop".to_owned()),
            wal_status: Some("reserved".to_owned()),
            ..Slot::default()
        }),
        writers: Vec::new(),
        types: Vec::new(),
    }
}
