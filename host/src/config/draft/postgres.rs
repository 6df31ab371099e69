//! `[source.postgres]` → the settings of a Postgres source.

use super::check_pair;
use crate::config::model::{Postgres, PostgresTls, Tls, TlsMode};
use crate::config::sections::postgres as keys;
use crate::config::table::Table;

/// The table of rows that no plugin routes, unless the file says another one.
pub(super) const TABLE: &str = "{table}";

pub(super) fn read(table: &Table<'_>, pipeline: Option<&str>) -> Option<Postgres> {
    let (host, port) = (table.get(&keys::HOST), table.get(&keys::PORT));
    let (database, user) = (table.get(&keys::DATABASE), table.get(&keys::USER));
    let password = if table.has("password") { table.get(&keys::PASSWORD).map(Some) } else { Some(None) };
    let (tables, exclude) = (table.get(&keys::TABLES), table.get(&keys::EXCLUDE));
    let slot = read_slot(table, pipeline);
    let publication = if table.has("publication") { table.get(&keys::PUBLICATION) } else { slot.clone() };
    let (snapshot, workers) = (table.get(&keys::SNAPSHOT), table.get(&keys::SNAPSHOT_WORKERS));
    let (truncate, heartbeat) = (table.get(&keys::TRUNCATE), table.get(&keys::HEARTBEAT));
    let max_slot_wal = table.get(&keys::MAX_SLOT_WAL);
    let tls = match table.table(&keys::TLS) {
        Some(table) => read_tls(&table),
        None => Some(PostgresTls::default()),
    };
    Some(Postgres {
        host: host?,
        port: u16::try_from(port?).ok()?,
        database: database?,
        user: user?,
        password: password?,
        tls: tls?,
        tables: tables?,
        exclude: exclude?,
        slot: slot?,
        publication: publication?,
        snapshot: snapshot?,
        snapshot_workers: usize::try_from(workers?).ok()?,
        truncate: truncate?,
        max_slot_wal_bytes: max_slot_wal?,
        heartbeat: heartbeat?,
    })
}

fn read_slot(table: &Table<'_>, pipeline: Option<&str>) -> Option<String> {
    if table.has("slot") {
        return table.get(&keys::SLOT);
    }
    match keys::slot_of(pipeline?) {
        Ok(slot) => Some(slot),
        Err(why) => {
            let what = format!("missing key `slot` {}: {why}", table.section.inside());
            table.note_at("slot", what, |problem| {
                problem.expected("a shorter name of the pipeline, or a `slot`")
            });
            None
        }
    }
}

fn read_tls(table: &Table<'_>) -> Option<PostgresTls> {
    check_pair(table);
    let files = Tls {
        ca: table.get(&keys::CA),
        certificate: table.get(&keys::CERTIFICATE),
        key: table.get(&keys::KEY),
    };
    let mode = match (table.has("mode"), table.has("ca")) {
        (true, _) => table.get(&keys::MODE)?,
        (false, true) => TlsMode::VerifyFull,
        (false, false) => TlsMode::default(),
    };
    let unused = match mode {
        TlsMode::Disable => ["ca", "certificate"].into_iter().find(|key| table.has(key)),
        TlsMode::Prefer | TlsMode::Require => table.has("ca").then_some("ca"),
        TlsMode::VerifyCa | TlsMode::VerifyFull => None,
    };
    if let Some(key) = unused {
        let what = format!("`{key}` is set, but this `mode` does not use it");
        table.note_at(key, what, |problem| problem.expected("`mode = \"verify-full\"`, or no `mode`"));
    }
    Some(PostgresTls { mode, files })
}
