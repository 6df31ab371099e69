use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tidemill_test_postgres::{Server, Settings, wait_until};

use super::{PATIENCE, connector, control, facts, run, source, start};
use crate::config::model::Postgres;
use crate::fault::{Fault, FaultKind};
use crate::source::postgres::connect::Connector;
use crate::source::postgres::copy_data::CopyData;
use crate::source::postgres::setup::export_snapshot;
use crate::source::postgres::snapshot::copy::{Copied, Copying, start as start_copy};
use crate::source::postgres::snapshot::plan::CopyPlan;

const IN_FLIGHT_BYTES: usize = 1 << 20;

/// Rows of a table as they came, in the order of their text, and what became of it.
#[derive(Debug, Default)]
struct Received {
    lines: Vec<String>,
    ranges_done: usize,
    rows_told: u64,
    failed: Vec<Fault>,
}

fn lines(data: &CopyData) -> impl Iterator<Item = String> {
    data.lines().map(|line| std::str::from_utf8(line.expect("rows are whole")).expect("UTF-8").to_owned())
}

async fn receive(mut copying: Copying, plan: &CopyPlan) -> HashMap<String, Received> {
    let mut received: HashMap<String, Received> = HashMap::new();
    let all = async {
        while let Some(copied) = copying.copied.recv().await {
            let table = match &copied {
                Copied::Rows { table, .. }
                | Copied::RangeDone { table, .. }
                | Copied::Failed { table, .. } => *table,
            };
            let entry = received.entry(plan.tables[table].table.name.to_string()).or_default();
            match copied {
                Copied::Rows { data, .. } => {
                    let before = entry.lines.len() as u64;
                    entry.lines.extend(lines(&data));
                    assert_eq!(entry.lines.len() as u64 - before, data.rows());
                }
                Copied::RangeDone { rows, .. } => {
                    entry.ranges_done += 1;
                    entry.rows_told += rows;
                }
                Copied::Failed { fault, .. } => entry.failed.push(fault),
            }
        }
    };
    tokio::time::timeout(PATIENCE * 4, all).await.expect("the copy ends");
    for entry in received.values_mut() {
        entry.lines.sort_unstable();
    }
    received
}

/// The same rows by one statement in the same snapshot.
async fn at_once(connector: &Connector, snapshot: &str, query: &str) -> Vec<String> {
    let mut session = connector.copying().await.expect("a connection");
    let begin = format!("BEGIN ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT '{snapshot}'");
    session.run(&begin).await.expect("the snapshot is there");
    session.copy_out(&format!("COPY ({query}) TO STDOUT")).await.expect("a copy");
    let arrived = session.copied(usize::MAX).await.expect("rows");
    assert!(arrived.ended);
    let mut lines: Vec<String> = lines(&arrived.data).collect();
    lines.sort_unstable();
    lines
}

/// Changes `t` again and again until told to stop: rows move, vanish and come, and the table grows.
async fn write(source: Postgres, stop: Arc<AtomicBool>) -> u64 {
    let control = control(&source).await;
    let mut turns = 0;
    while !stop.load(Ordering::Relaxed) {
        let statement = format!(
            "UPDATE public.t SET v = v || '!' WHERE id % 97 = {turn}; DELETE FROM public.t WHERE id % 89 = {turn};
             INSERT INTO public.t SELECT 1000000 + {turns} * 500 + i, repeat('new', 20) FROM generate_series(1, 500) i",
            turn = turns % 89,
        );
        control.client().batch_execute(&statement).await.expect("a write");
        turns += 1;
    }
    turns
}

fn with_tables(server: &Server) {
    run(
        server,
        r"
        CREATE TABLE t (id int PRIMARY KEY, v text, w text DEFAULT E'tab\there\\');
        INSERT INTO t SELECT i, repeat('row ', 1 + i % 40) || i FROM generate_series(1, 100000) i;
        CREATE TABLE empty (id int PRIMARY KEY);
        CREATE TABLE events (id int, region text, kept int, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
        CREATE TABLE events_eu PARTITION OF events FOR VALUES IN ('eu');
        CREATE TABLE events_us (kept int, region text NOT NULL, id int NOT NULL, PRIMARY KEY (id, region));
        ALTER TABLE events ATTACH PARTITION events_us FOR VALUES IN ('us');
        INSERT INTO events SELECT i, (ARRAY['eu', 'us'])[1 + i % 2], i FROM generate_series(1, 20000) i;
        CREATE TABLE parent (id int PRIMARY KEY);
        CREATE TABLE child () INHERITS (parent);
        INSERT INTO parent VALUES (1);
        INSERT INTO child VALUES (2);
        CREATE TABLE wide (id int PRIMARY KEY, v text);
        ALTER TABLE wide ALTER COLUMN v SET STORAGE external;
        INSERT INTO wide SELECT i, repeat('x', 3000000) FROM generate_series(1, 5) i;
        CREATE PUBLICATION tidemill_shop FOR TABLE t, empty, parent, ONLY events (id, region) WHERE (id > 100), wide
            WITH (publish_via_partition_root = true);
        ",
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_give_exactly_the_rows_of_the_snapshot_while_others_write() {
    let server = start(&Settings::default());
    with_tables(&server);
    let source = source(&server, "postgres", &["public.t", "public.e*", "public.parent", "public.wide"]);
    let connector = connector(&source);
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn(write(source.clone(), Arc::clone(&stop)));
    // The writer has begun when a row of its own is there.
    let asking = control(&source).await;
    let begun = "SELECT count(*) FROM public.t WHERE id > 1000000";
    let written = async {
        while asking.client().query_one(begun, &[]).await.expect("a count").get::<_, i64>(0) == 0 {}
    };
    tokio::time::timeout(PATIENCE, written).await.expect("the writer begins");
    let facts = facts(&source).await;
    let plan = Arc::new(CopyPlan::of(&facts, 4, |_| true));
    let exported = export_snapshot(&connector).await.unwrap_or_else(|fault| panic!("{}", fault.story()));
    let copying = start_copy(&connector, Arc::clone(&plan), &exported.snapshot, 4, IN_FLIGHT_BYTES);
    let progress = Arc::clone(&copying.progress);
    let received = receive(copying, &plan).await;
    stop.store(true, Ordering::Relaxed);
    assert!(writer.await.expect("it writes to the end") > 0);
    for (table, query) in [
        ("public.t", "SELECT id, v, w FROM public.t"),
        ("public.empty", "SELECT id FROM public.empty"),
        ("public.parent", "SELECT id FROM ONLY public.parent"),
        ("public.events", "SELECT id, region FROM public.events WHERE id > 100"),
        ("public.wide", "SELECT id, v FROM public.wide"),
    ] {
        let expected = at_once(&connector, &exported.snapshot, query).await;
        let place =
            plan.tables.iter().position(|it| it.table.name.to_string() == table).expect("it is planned");
        let ranges = plan.ranges.iter().filter(|range| range.table == place).count();
        let received = received.get(table).unwrap_or_else(|| panic!("nothing of {table}"));
        assert!(received.failed.is_empty(), "{table}: {:?}", received.failed);
        assert_eq!((received.ranges_done, received.rows_told), (ranges, expected.len() as u64), "{table}");
        assert!(received.lines == expected, "{table}: other rows than in the snapshot");
    }
    assert!(plan.ranges.len() > 6, "the big table is cut: {:?}", plan.ranges);
    let reached = progress.reached();
    assert_eq!((reached.ranges, reached.ranges_expected), (plan.ranges.len(), plan.ranges.len()));
    assert_eq!(reached.rows, received.values().map(|entry| entry.rows_told).sum::<u64>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_connection_costs_its_table_and_no_other() {
    let server = start(&Settings::default());
    with_tables(&server);
    let source = source(&server, "postgres", &["public.t", "public.wide", "public.parent"]);
    let connector = connector(&source);
    let facts = facts(&source).await;
    let plan = Arc::new(CopyPlan::of(&facts, 1, |_| true));
    assert_eq!(&*plan.tables[plan.ranges[0].table].table.name.name, "t", "the biggest heap is first");
    let exported = export_snapshot(&connector).await.expect("a snapshot");
    let mut copying = start_copy(&connector, Arc::clone(&plan), &exported.snapshot, 1, IN_FLIGHT_BYTES);
    // Nobody takes anything beyond this. With three more pieces there is no room left: the copy stands in its first
    // table, however fast the server is.
    let first = copying.copied.recv().await.expect("a first piece");
    assert!(matches!(first, Copied::Rows { .. }), "{first:?}");
    wait_until(PATIENCE, || (copying.copied.len() == 3).then_some(())).expect("three more pieces");
    let copying_pid = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'COPY%'";
    let pid = run(&server, copying_pid).trim().to_owned();
    run(&server, &format!("SELECT pg_terminate_backend({pid})"));
    wait_until(PATIENCE, || run(&server, copying_pid).is_empty().then_some(())).expect("it is gone");
    drop(first);
    let received = receive(copying, &plan).await;
    let failed = &received["public.t"].failed;
    assert_eq!(failed.len(), 1, "told once: {failed:?}");
    assert_eq!(failed[0].kind, FaultKind::Retry);
    assert!(failed[0].story().contains("cannot copy public.t"), "{}", failed[0].story());
    assert_eq!(received["public.wide"].rows_told, 5, "in the same snapshot, by a new connection");
    assert_eq!(received["public.parent"].rows_told, 1);
    drop(exported);
    // Without the exporter the snapshot is gone, which is to be tried again with a new one.
    let copying = start_copy(&connector, Arc::clone(&plan), "00000003-00000002-1", 2, IN_FLIGHT_BYTES);
    let received = receive(copying, &plan).await;
    for (table, entry) in &received {
        assert_eq!(entry.failed.len(), 1, "{table}");
        assert_eq!(entry.failed[0].kind, FaultKind::Retry, "{}", entry.failed[0].story());
    }
    assert_eq!(received.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_takes_is_not_read() {
    let server = start(&Settings::default());
    with_tables(&server);
    let source = source(&server, "postgres", &["public.wide"]);
    let connector = connector(&source);
    let plan = Arc::new(CopyPlan::of(&facts(&source).await, 2, |_| true));
    let exported = export_snapshot(&connector).await.expect("a snapshot");
    let mut copying = start_copy(&connector, Arc::clone(&plan), &exported.snapshot, 2, IN_FLIGHT_BYTES);
    // Each row is longer than all of the room: there is never a second one beside it.
    let mut rows = 0;
    while let Some(copied) = copying.copied.recv().await {
        if let Copied::Rows { data, .. } = &copied {
            assert!(data.bytes() > IN_FLIGHT_BYTES);
            assert_eq!(data.rows(), 1);
            rows += data.rows();
            // After the last one the ends of the ranges wait, which take no room.
            assert!(rows == 5 || copying.copied.is_empty(), "a piece waits although there is no room for it");
        }
    }
    assert_eq!(rows, 5);
}
