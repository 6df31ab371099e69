//! Where a life begins: what the slot, the position rows and the file come to. Pure.

use super::facts::Slot;
use super::lsn::Lsn;
use super::position::{Known, TABLE};
use super::table::TableName;
use crate::config::model::{Postgres, Snapshot};
use crate::fault::Fault;

/// What to do before changes are followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Beginning {
    /// Make the slot; copy these tables in its snapshot, then follow it from its start.
    Fresh {
        /// All tables, or none of them if the file says so.
        copy: Vec<TableName>,
    },
    /// Follow the slot from a place.
    Resume {
        /// Place in the log.
        from: Lsn,
        /// Tables that were never copied whole: in a snapshot of their own first. All changes of them since
        /// `from` are loaded again: rows that an interrupted copy brought, and that are deleted since, go only
        /// by that.
        copy: Vec<TableName>,
    },
    /// Copy the tables, and end.
    Only {
        /// Which.
        copy: Vec<TableName>,
    },
}

impl Beginning {
    /// Tables that are copied first.
    pub(super) fn copy(&self) -> &[TableName] {
        match self {
            Beginning::Fresh { copy } | Beginning::Resume { copy, .. } | Beginning::Only { copy } => copy,
        }
    }

    /// Where the stream begins, if that is known.
    pub(super) fn from(&self) -> Option<Lsn> {
        match self {
            Beginning::Resume { from, .. } => Some(*from),
            Beginning::Fresh { .. } | Beginning::Only { .. } => None,
        }
    }
}

/// Whether the slot was confirmed past the position that is known.
pub(super) fn is_ahead(known: &Known, slot: Option<&Slot>) -> bool {
    let confirmed = slot.and_then(|slot| slot.confirmed);
    confirmed.zip(known.stream).is_some_and(|(confirmed, stream)| confirmed > stream)
}

/// Decides. A slot that [is ahead](is_ahead) `may_pass` if StarRocks may not show its latest rows yet.
///
/// # Errors
/// Halt, when changes between here and there are lost, or may be; retry, if that may pass.
pub(super) fn decide(
    source: &Postgres,
    known: &Known,
    slot: Option<&Slot>,
    system: Option<u64>,
    tables: &[TableName],
    may_pass: bool,
) -> Result<Beginning, Fault> {
    check_system(source, known, system)?;
    let uncopied = || {
        let missing = tables.iter().filter(|table| !known.copied.contains_key(&table.to_string()));
        missing.cloned().collect::<Vec<_>>()
    };
    let wanted = match source.snapshot {
        Snapshot::Only => return Ok(Beginning::Only { copy: uncopied() }),
        Snapshot::Initial => uncopied(),
        Snapshot::Never => Vec::new(),
    };
    let name = &source.slot;
    let Some(slot) = slot else {
        return match known.stream {
            // Nothing was followed yet: copies without a slot are worth nothing.
            None if source.snapshot == Snapshot::Initial => Ok(Beginning::Fresh { copy: tables.to_vec() }),
            None => Ok(Beginning::Fresh { copy: Vec::new() }),
            Some(lsn) => Err(Fault::halt(
                format!("replication slot {name} is gone, and changes since {lsn} with it"),
                start_over(source),
            )),
        };
    };
    if slot.is_lost() {
        return Err(Fault::halt(
            format!(
                "replication slot {name} is lost: the server needed the room of its log (max_slot_wal_keep_size)"
            ),
            format!("SELECT pg_drop_replication_slot('{name}'); then {}", start_over(source)),
        ));
    }
    let Some(confirmed) = slot.confirmed else {
        return Err(Fault::retry(format!("replication slot {name} is still being made")));
    };
    let what = |stream| {
        format!(
            "replication slot {name} was confirmed up to {confirmed}, but StarRocks has changes up to {stream} only"
        )
    };
    match known.stream {
        None => Ok(Beginning::Resume { from: confirmed, copy: wanted }),
        Some(stream) if is_ahead(known, Some(slot)) && may_pass => {
            Err(Fault::retry(format!("{}, as far as it shows", what(stream))))
        }
        Some(stream) if is_ahead(known, Some(slot)) => Err(Fault::halt(
            format!("{}: those between are lost", what(stream)),
            format!(
                "another program reads the slot, or StarRocks was restored from a backup; {}",
                start_over(source)
            ),
        )),
        Some(stream) => Ok(Beginning::Resume { from: stream, copy: wanted }),
    }
}

/// What to do when changes are lost.
pub(super) fn start_over(source: &Postgres) -> String {
    format!(
        "to copy all tables anew: DELETE FROM {TABLE} WHERE slot = '{}' in StarRocks, empty the tables there, and start \
         again with snapshot = \"initial\"",
        source.slot
    )
}

fn check_system(source: &Postgres, known: &Known, system: Option<u64>) -> Result<(), Fault> {
    let before = known.system.as_deref().filter(|before| !before.is_empty());
    match (before, system.map(|system| system.to_string())) {
        (Some(before), Some(now)) if before != now => Err(Fault::halt(
            format!(
                "the server at {}:{} is not the one that was followed before (system identifier {now}, not {before})",
                source.host, source.port
            ),
            format!(
                "mend `host` and `port` in [source.postgres]; if the database has moved, {}",
                start_over(source)
            ),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::postgres::preflight::fixtures;

    fn tables() -> Vec<TableName> {
        ["a", "b"].map(|name| TableName::new("public", name)).to_vec()
    }

    fn slot(confirmed: u64) -> Slot {
        Slot { confirmed: Some(Lsn(confirmed)), ..Slot::default() }
    }

    fn known(stream: Option<u64>, copied: &[&str]) -> Known {
        let copied = copied.iter().map(|table| ((*table).to_owned(), Lsn(5)));
        Known {
            stream: stream.map(Lsn),
            system: Some("7".into()),
            copied: copied.collect(),
            ..Known::default()
        }
    }

    fn check(known: &Known, slot: Option<&Slot>) -> Result<Beginning, Fault> {
        decide(&fixtures::source(), known, slot, Some(7), &tables(), false)
    }

    #[test]
    fn a_first_start_copies_all_tables_in_the_slots_own_snapshot() {
        let fresh = check(&Known::default(), None).expect("nothing is lost");
        assert_eq!(fresh, Beginning::Fresh { copy: tables() });
    }

    #[test]
    fn an_interrupted_copy_goes_on_table_by_table() {
        let resumed = check(&known(None, &["public.a"]), Some(&slot(9))).expect("nothing is lost");
        let copy = vec![TableName::new("public", "b")];
        assert_eq!(resumed, Beginning::Resume { from: Lsn(9), copy });
    }

    #[test]
    fn a_restart_follows_our_own_position_and_not_the_slots() {
        let resumed =
            check(&known(Some(30), &["public.a", "public.b"]), Some(&slot(9))).expect("nothing is lost");
        assert_eq!(resumed, Beginning::Resume { from: Lsn(30), copy: Vec::new() });
    }

    #[test]
    fn a_slot_that_is_ahead_is_asked_for_again_before_that_halts() {
        let (known, slot) = (known(Some(30), &["public.a", "public.b"]), slot(31));
        assert!(is_ahead(&known, Some(&slot)));
        let decided = decide(&fixtures::source(), &known, Some(&slot), Some(7), &tables(), true);
        let fault = decided.expect_err("the latest position may not show yet");
        assert_eq!(fault.kind, crate::fault::FaultKind::Retry, "{}", fault.story());
        assert_eq!(
            check(&known, Some(&slot)).expect_err("it was waited for").kind,
            crate::fault::FaultKind::Halt
        );
    }

    #[test]
    fn lost_changes_halt_and_say_what_to_do() {
        for (known, slot, told) in [
            (known(Some(30), &[]), Some(slot(31)), "those between are lost"),
            (known(Some(30), &[]), None, "is gone"),
            (known(Some(30), &[]), Some(Slot { wal_status: Some("lost".into()), ..slot(9) }), "is lost"),
            (Known { system: Some("8".into()), ..known(Some(30), &[]) }, Some(slot(9)), "is not the one"),
        ] {
            let fault = check(&known, slot.as_ref()).expect_err("changes are lost");
            assert!(fault.what.contains(told), "{}", fault.what);
            assert!(fault.hint.is_some_and(|hint| hint.contains("DELETE FROM tidemill_positions")));
        }
    }
}
