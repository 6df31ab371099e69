//! The server, our role and the slot.

use bytesize::ByteSize;

use super::{Defect, Mend, copies, follows, setting, sql};
use crate::config::model::Postgres;
use crate::source::postgres::facts::{Facts, Server, Slot, VERSION_MIN};
use crate::source::postgres::quote::{identifier, literal};

/// The first one of which a standby can decode.
const STANDBY_VERSION_MIN: u32 = 160_000;
/// The plugin that we read.
pub(super) const PLUGIN: &str = "pgoutput";
/// Open transactions that are named one by one.
const WRITERS_SHOWN: usize = 5;
/// A transaction that is open so long is not about to end.
const LONG_OPEN_S: f64 = 60.0;

pub(super) fn check(facts: &Facts, source: &Postgres, found: &mut Vec<Defect>) {
    let server = &facts.server;
    if server.version < VERSION_MIN {
        let what = format!("the server is PostgreSQL {}, and 14 is the least", server.major());
        found.push(Defect::blocks(what, vec![setting("upgrade the server")]));
    }
    if server.encoding == "SQL_ASCII" {
        found.push(Defect::warns(
            "the database's encoding is SQL_ASCII: rows with text that is no UTF-8 become dead letters, or halt the pipeline where it \
             keeps none",
            vec![setting("configure [dead_letters], or move the data to a database with the encoding UTF8")],
        ));
    }
    if !follows(source) {
        return;
    }
    check_wal_level(server, found);
    check_role(facts, found);
    check_limits(facts, source, found);
    if server.in_recovery {
        check_standby(server, found);
    }
}

fn check_wal_level(server: &Server, found: &mut Vec<Defect>) {
    if server.wal_level == "logical" {
        return;
    }
    let what = format!("wal_level is {}, and has to be logical", server.wal_level);
    let mend = if server.rds_logical_replication.is_some() {
        setting("set rds.logical_replication = 1 in the parameter group and reboot the instance")
    } else if server.wal_level_pending {
        setting("restart the server: its files say otherwise already")
    } else {
        Mend::SqlAndRestart("ALTER SYSTEM SET wal_level = 'logical'".to_owned())
    };
    found.push(Defect::blocks(what, vec![mend]));
}

fn check_role(facts: &Facts, found: &mut Vec<Defect>) {
    let role = &facts.role;
    if role.replication || role.superuser {
        return;
    }
    let name = identifier(&role.name);
    let mend = if facts.server.rds_logical_replication.is_some() {
        sql(format!("GRANT rds_replication TO {name}"))
    } else {
        sql(format!("ALTER ROLE {name} REPLICATION"))
    };
    found.push(Defect::blocks(format!("role {} may not replicate", role.name), vec![mend]));
}

fn check_limits(facts: &Facts, source: &Postgres, found: &mut Vec<Defect>) {
    let server = &facts.server;
    let slots_free = server.slots_max.saturating_sub(server.slots_used);
    let more_slots =
        || Mend::SqlAndRestart(format!("ALTER SYSTEM SET max_replication_slots = {}", server.slots_used + 4));
    let unused = "drop a slot that nobody needs: SELECT slot_name FROM pg_replication_slots WHERE NOT active";
    if slots_free == 0 && facts.slot.is_none() {
        let what = format!("all {} replication slots are in use (max_replication_slots)", server.slots_max);
        found.push(Defect::blocks(what, vec![more_slots(), setting(unused)]));
    } else if copies(source) && slots_free < 1 + u64::from(facts.slot.is_none()) {
        let what =
            "no replication slot is left for resuming a copy that is interrupted (max_replication_slots)";
        found.push(Defect::warns(what, vec![more_slots(), setting(unused)]));
    }
    let senders_free = server.senders_max.saturating_sub(server.senders_used);
    // One more while a slot is made: its snapshot lives as long as the connection that made it.
    let senders_needed = if facts.slot.is_none() || copies(source) { 2 } else { 1 };
    let ours_runs = facts.slot.as_ref().is_some_and(|slot| slot.active_pid.is_some());
    if senders_free < senders_needed && !ours_runs {
        let what = format!(
            "{senders_free} of {} WAL senders are free, and {senders_needed} are needed (max_wal_senders)",
            server.senders_max
        );
        let more = server.senders_used + 4;
        let mend = vec![Mend::SqlAndRestart(format!("ALTER SYSTEM SET max_wal_senders = {more}"))];
        let defect = if senders_free == 0 { Defect::blocks(what, mend) } else { Defect::warns(what, mend) };
        found.push(defect);
    }
    check_keep_size(server, source.max_slot_wal_bytes, found);
}

fn check_keep_size(server: &Server, red_at_bytes: u64, found: &mut Vec<Defect>) {
    let reload = |bytes: u64| {
        let mb = (bytes >> 20).max(1);
        sql(format!("ALTER SYSTEM SET max_slot_wal_keep_size = '{mb}MB'; SELECT pg_reload_conf()"))
    };
    let twice = red_at_bytes.saturating_mul(2);
    match server.slot_wal_max_bytes {
        None => found.push(Defect::warns(
            "max_slot_wal_keep_size has no limit: while nobody reads the slot, its log can fill the server's disk",
            vec![reload(twice)],
        )),
        Some(limit) if limit <= red_at_bytes => {
            let what = format!(
                "the slot is lost when it holds back {} of log (max_slot_wal_keep_size), before /ready turns red at {} \
                 (max_slot_wal)",
                size(limit),
                size(red_at_bytes)
            );
            let smaller = setting(format!("set max_slot_wal in [source.postgres] below {}", size(limit)));
            found.push(Defect::warns(what, vec![reload(twice), smaller]));
        }
        Some(_) => {}
    }
}

fn size(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string().replacen(".0 ", " ", 1)
}

fn check_standby(server: &Server, found: &mut Vec<Defect>) {
    if server.version < STANDBY_VERSION_MIN {
        let what = "the server is a standby, which can decode only from PostgreSQL 16 on";
        found.push(Defect::blocks(what, vec![setting("set `host` in [source.postgres] to the primary")]));
    } else if !server.hot_standby_feedback {
        let what = "the server is a standby without hot_standby_feedback: its primary may remove what the slot needs";
        let mend = "ALTER SYSTEM SET hot_standby_feedback = 'on'; SELECT pg_reload_conf()";
        found.push(Defect::warns(what, vec![sql(mend)]));
    }
}

pub(super) fn check_slot(facts: &Facts, source: &Postgres, found: &mut Vec<Defect>) {
    let name = &source.slot;
    let Some(slot) = &facts.slot else {
        check_writers(facts, found);
        return;
    };
    let drop = || sql(format!("SELECT pg_drop_replication_slot({})", literal(name)));
    let other = || setting("name another slot: `slot` in [source.postgres]");
    match slot.plugin.as_deref() {
        Some(PLUGIN) => {}
        Some(plugin) => {
            let what = format!("slot {name} is of the plugin {plugin}, and not of {PLUGIN}");
            found.push(Defect::blocks(what, vec![drop(), other()]));
            return;
        }
        None => {
            let what = format!("slot {name} is a physical one");
            found.push(Defect::blocks(what, vec![drop(), other()]));
            return;
        }
    }
    if let Some(database) = slot.database.as_ref().filter(|database| **database != source.database) {
        let what = format!("slot {name} reads database {database}, and not {}", source.database);
        found.push(Defect::blocks(what, vec![other()]));
        return;
    }
    if slot.is_lost() {
        let what = format!(
            "slot {name} is lost: it fell behind max_slot_wal_keep_size, and the log it needs is gone; the tables have \
             to be copied anew"
        );
        found.push(Defect::blocks(what, vec![drop()]));
        return;
    }
    if slot.wal_status.as_deref() == Some("unreserved") {
        let what = format!("slot {name} will be lost at the next checkpoint unless it is read until then");
        found.push(Defect::warns(what, vec![setting("start the pipeline now")]));
    }
    check_reader(name, slot, found);
}

/// Another process of ours is a twin that we stand by for; anything else is a mistake.
fn check_reader(name: &str, slot: &Slot, found: &mut Vec<Defect>) {
    let Some(pid) = slot.active_pid else { return };
    let reader = slot.active_application.as_deref().unwrap_or_default();
    if reader.starts_with("tidemill ") {
        return;
    }
    let what = format!("slot {name} is being read by another program, {reader:?} (pid {pid})");
    let mend = vec![
        setting("name another slot: `slot` in [source.postgres]"),
        sql(format!("SELECT pg_terminate_backend({pid})")),
    ];
    found.push(Defect::blocks(what, mend));
}

fn check_writers(facts: &Facts, found: &mut Vec<Defect>) {
    let long: Vec<_> =
        facts.writers.iter().filter(|writer| writer.age_s.is_some_and(|age| age >= LONG_OPEN_S)).collect();
    if long.is_empty() {
        return;
    }
    let shown: Vec<String> = long.iter().take(WRITERS_SHOWN).map(ToString::to_string).collect();
    let what = format!("a new slot waits until these open transactions have ended: {}", shown.join(", "));
    let end = |pid| sql(format!("SELECT pg_terminate_backend({pid})"));
    found.push(Defect::warns(what, long.iter().filter_map(|writer| writer.pid).map(end).take(1).collect()));
}
