use tidemill_sandbox::{Options, Sandbox};
use tokio::runtime::Handle;

use super::*;
use crate::config::model::Secret;
use crate::delivery::carry::Shared;
use crate::sink::starrocks::label::Labels;
use crate::sink::starrocks::scripted;
use crate::source::postgres::connect::Connector;
use crate::source::postgres::preflight::fixtures;

#[test]
fn details_are_read_back_and_those_of_other_versions_are_unknown() {
    let columns = vec![Remembered { name: "n\"1".into(), number: 2, type_oid: 25, type_modifier: -1 }];
    let note = Note { table: TableName::new("public", "t"), oid: 7, columns: columns.clone() };
    let text = serde_json::to_string(&note.details()).expect("plain data");
    assert_eq!(text, r#"{"columns":[{"name":"n\"1","number":2,"type":25,"modifier":-1}],"oid":7}"#);
    let read = read_details(Some(&text));
    assert_eq!((read.columns, read.oid, read.left), (Some(columns), Some(7), false));
    let left = read_details(Some(r#"{"oid":7,"left":true}"#));
    assert_eq!((left.columns, left.oid, left.left), (None, Some(7), true));
    let later = read_details(Some(r#"{"timeline":3,"weather":"fair"}"#));
    assert_eq!((later.timeline, later.columns), (Some(3), None));
    for unknown in [None, Some(""), Some("{}"), Some(r#"{"columns":{"a":1}}"#), Some("no JSON")] {
        let read = read_details(unknown);
        assert_eq!((read.timeline, read.columns), (None, None), "{unknown:?}");
    }
}

#[test]
fn a_table_that_has_left_is_known_and_not_followed() {
    let trace = |has_left| Trace { oid: Some(7), has_left, at: Lsn(1) };
    let known = Known {
        copied: ["a", "b"].map(|table| (table.to_owned(), Lsn(1))).into(),
        columns: ["b", "c", "d"].map(|table| (table.to_owned(), Vec::new())).into(),
        traces: [("b", true), ("c", false), ("d", true)]
            .map(|(table, left)| (table.to_owned(), trace(left)))
            .into(),
        ..Known::default()
    };
    assert_eq!(known.followed().into_iter().collect::<Vec<_>>(), ["a", "c"]);
    assert_eq!((known.oid("a"), known.oid("b")), (None, Some(7)));
}

/// Positions in a sandbox.
async fn positions(sandbox: &Sandbox) -> Positions {
    sandbox.execute("CREATE DATABASE shop").expect("a database");
    let sink = StarRocks {
        query: Some(format!("127.0.0.1:{}", sandbox.query_port())),
        password: Secret::default(),
        ..scripted::cluster(&[&sandbox.fe_url()])
    };
    let carrier = Carrier::new(Shared {
        runtime: Handle::current(),
        client: Client::new(Arc::new(sink.clone())).expect("a client"),
        labels: Labels::default(),
        witness: Arc::default(),
        paces: Paces::default(),
    });
    let connector = Connector::new(&fixtures::source(), "orders").expect("good settings");
    let fence = Arc::new(Leadership::new(&Arc::new(connector)));
    Positions::open(&sink, "orders", "slot", "7", &carrier, &fence).await.expect("a table for positions")
}

async fn claims(positions: &Positions) -> Claims {
    positions.read().await.expect("a query port").claims
}

fn claim(generation: u64, revision: u64, stem: &str, end: u64) -> Claim {
    Claim { generation, revision, stem: stem.to_owned(), first: 0, end }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_claim_that_lands_late_changes_nothing() {
    let sandbox = Sandbox::start(Options::default()).await.expect("free ports");
    let positions = positions(&sandbox).await;
    positions.claimed(&claim(1, 1, "a", 0)).await.expect("a claim");
    positions.claimed(&claim(1, 3, "a", 128)).await.expect("a claim");
    positions.claimed(&claim(1, 2, "a", 64)).await.expect("it is taken, and stands behind");
    let found = claims(&positions).await;
    assert_eq!(found.values().collect::<Vec<_>>(), [&claim(1, 3, "a", 128)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_writes_over_what_another_process_claims() {
    let sandbox = Sandbox::start(Options::default()).await.expect("free ports");
    let positions = positions(&sandbox).await;
    // A version before had one row, with the generation alone.
    let id = positions.id(CLAIM);
    let columns = "id, pipeline, slot, source_table, lsn, stem, first_label, end_label";
    let old = format!(
        "INSERT INTO shop.{TABLE} ({columns}) VALUES ('{id}', 'orders', 'slot', '{CLAIM}', 4, 'o', 2, 66)"
    );
    sandbox.execute(&old).expect("a row");
    let before = claims(&positions).await;
    let old = Claim { first: 2, ..claim(4, 0, "o", 66) };
    assert_eq!(before.values().collect::<Vec<_>>(), [&old]);
    // Both take over from it; the claim of one of them lands late.
    let (first, second) = (Claim::after(&before, "b"), Claim::after(&before, "c"));
    assert_eq!((first.generation, first.place()), (5, 5 << 32 | 1));
    positions.claimed(&second).await.expect("a claim");
    let second = Claim { revision: 2, end: 64, ..second };
    positions.claimed(&second).await.expect("a claim");
    assert!(second.is_newest(&claims(&positions).await));
    positions.claimed(&first).await.expect("a claim");
    let found = claims(&positions).await;
    assert!([&old, &first, &second].iter().all(|claim| found.values().any(|one| one == *claim)), "{found:?}");
    // Neither can be sure that it led last.
    assert!(!first.is_newest(&found) && !second.is_newest(&found));
    let third = Claim::after(&found, "b");
    positions.claimed(&third).await.expect("a claim");
    positions.tidied(&found).await.expect("rows that go");
    let found = claims(&positions).await;
    assert_eq!(found.values().collect::<Vec<_>>(), [&third]);
    assert!(third.is_newest(&found) && !third.is_newest(&Claims::new()));
}
