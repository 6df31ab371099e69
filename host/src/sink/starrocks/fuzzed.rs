//! Any bytes as what a StarRocks, or whoever answers in its place, says: for the fuzzer (`/fuzz`) and for tests.

#![allow(unreachable_pub, reason = "public where the fuzzer includes it")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::address::Address;
use super::error_log::{ENTRIES_MAX, Keys, complaints, culprits};
use super::outcome::{Fields, Seen, classify};
use super::redirect::Redirects;
use super::state::LabelState;
use crate::config::model::{Compression, PartialUpdate, RowFormat, Secret, StarRocks, TableModel};
use crate::fault::{Fault, FaultKind};
use crate::sink::{Destination, Load, Outcome};

const PASSWORD: &str = "canary-of-the-fuzzer";
const ROWS: [&[u8]; 3] = [b"{\"id\":1,\"name\":\"a\"}\n", b"{\"id\":2,\"name\":null}\n", b"[3]\n"];
const STATUSES: [u16; 8] = [200, 307, 400, 401, 403, 404, 500, 503];
const MESSAGE_BYTES_MAX: usize = 8 << 10;

/// Reads an answer in each of the ways in which one is read. The first byte says with what HTTP status it came and what
/// had been sent before.
///
/// Nothing panics; only the statuses that are known to be a success are one; no message is longer than a person reads,
/// or holds the password; and no redirect leads out of the list.
pub fn any(bytes: &[u8]) {
    let Some((how, body)) = bytes.split_first() else { return };
    let load = load();
    let seen = Seen {
        status: STATUSES[usize::from(how & 7)],
        body,
        body_left: how & 8 != 0,
        sent_before: how & 16 != 0,
        load: &load,
    };
    let classified = classify(&seen);
    match &classified.outcome {
        Outcome::Durable(_) => assert!(is_success(&seen), "{:?}", String::from_utf8_lossy(body)),
        Outcome::Refused(fault) => told(fault),
        Outcome::Overloaded(fault, _) | Outcome::Unsure(fault) => {
            told(fault);
            assert_eq!(fault.kind, FaultKind::Retry);
        }
        Outcome::BadRows(rejection) => assert!(rejection.message.len() < MESSAGE_BYTES_MAX),
    }
    if let Err(why) = LabelState::read(body) {
        assert!(!why.is_empty());
    }
    let text = String::from_utf8_lossy(body);
    follow(&text, classified.error_url.as_deref());
    let complaints = complaints(&text);
    for keys in [Keys::AreColumns, Keys::AreMapped] {
        // An answer of a transaction has no count.
        for filtered_rows in [Some(u64::from(how >> 6)), None] {
            let named = culprits(ROWS, &complaints, keys, filtered_rows);
            let most = filtered_rows.unwrap_or(complaints.len() as u64);
            assert!(
                named.len() as u64 <= most || (filtered_rows.is_none() && complaints.len() >= ENTRIES_MAX)
            );
            assert!(named.keys().all(|row| *row < ROWS.len()));
        }
    }
}

/// The only ways to say that rows are in the table.
fn is_success(seen: &Seen<'_>) -> bool {
    let Some(fields) = Fields::parse(seen.body) else { return false };
    let status = fields.text("status").unwrap_or_default().to_ascii_lowercase().replace('_', " ");
    let before = seen.body_left || seen.load.bytes == 0;
    match status.as_str() {
        "success" | "ok" | "publish timeout" => before,
        // Of a label that this process has sent before.
        _ => seen.sent_before && fields.text("existingjobstatus").is_some(),
    }
}

fn told(fault: &Fault) {
    let story = fault.story();
    assert!(!story.is_empty() && story.len() < MESSAGE_BYTES_MAX, "{} bytes", story.len());
    assert!(!story.contains(PASSWORD));
    assert!(fault.kind != FaultKind::Halt || fault.hint.is_some(), "{story}");
}

fn follow(location: &str, error_url: Option<&str>) {
    let fe = Address { https: false, host: "fe1".into(), port: 8030 };
    let secure = Address { https: true, ..fe.clone() };
    let open = Redirects::new(std::slice::from_ref(&fe), &[]);
    let listed = Redirects::new(std::slice::from_ref(&fe), &["be1".into(), "be2:8040".into()]);
    for url in [Some(location), error_url].into_iter().flatten() {
        let before = open.error_log(&fe, url).map(|(address, _)| address.host);
        assert!(before.is_none_or(|host| host == "fe1"), "a log is read from {url:?}");
        if let Ok((target, path)) = listed.follow(&fe, Some(url)) {
            let known = target.host == "fe1" || target.host == "be1" || target.authority() == "be2:8040";
            assert!(known && path.starts_with('/'), "{url:?} leads to {target} {path:?}");
        }
        if let Ok((target, _)) = open.follow(&secure, Some(url)) {
            assert!(target.https, "{url:?} leads out of TLS");
        }
    }
}

fn load() -> Load {
    let cluster = StarRocks {
        fe: vec!["http://fe1:8030".into()],
        query: None,
        database: "shop".into(),
        table: Some("orders".into()),
        tables: Vec::new(),
        create_tables: false,
        user: "root".into(),
        password: Secret::new(PASSWORD),
        table_model: None,
        in_flight: 1,
        load_timeout: Duration::from_secs(600),
        prepared_timeout: Duration::from_secs(86_400),
        redirect_hosts: Vec::new(),
        ca: None,
        properties: BTreeMap::new(),
        format: RowFormat::Json,
        columns: Vec::new(),
        partial_update: false,
        partial_update_mode: PartialUpdate::Row,
        compression: Compression::None,
    };
    let destination = Destination {
        table: "orders".into(),
        cluster: Arc::new(cluster),
        model: TableModel::Duplicate,
        key: Vec::new(),
    };
    Load {
        destination: Arc::new(destination),
        label: "orders-0-7".into(),
        segments: ROWS.iter().map(|row| Bytes::from_static(row)).collect(),
        bytes: ROWS.iter().map(|row| row.len() as u64).sum(),
        rows: ROWS.len() as u64,
        columns: None,
        packed: None,
        fences: Vec::new(),
        body_sent: false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::test_corpus::{files, mutated};

    #[test]
    fn the_corpus_is_read_without_a_panic() {
        files("starrocks").iter().for_each(|bytes| super::any(bytes));
    }

    proptest! {
        #[test]
        fn whatever_is_answered_no_row_is_taken_for_loaded_without_a_word(bytes in mutated(files("starrocks"))) {
            super::any(&bytes);
        }
    }
}
