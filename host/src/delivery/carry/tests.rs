use tidemill_sandbox::{Fault as Broken, FaultKind as Breakage, Hop, Options, Sandbox};
use tokio::sync::mpsc;

use super::*;
use crate::batch::stage::fakes::{cluster, owner};
use crate::batch::{Cut, FIRST_ROW, PARTIAL_ROW, RowIndex};
use crate::budget::Budget;
use crate::config::model::TableModel;
use crate::dead_letter::{Bundle, DeadLetterBox, Rejects};
use crate::fault::FaultKind;
use crate::ledger::Ledger;
use crate::position::{Epoch, Partition, Span, Stay};
use crate::retry::Pace;
use crate::sink::Destination;

const ROOM: u64 = 1 << 20;
const NEVER: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_secs(20);

fn stay(number: u32) -> Stay {
    Stay { partition: Partition { source: "t".into(), number }, epoch: Epoch(1) }
}

/// A carrier into a table of the sandbox.
struct Bench {
    sandbox: Arc<Sandbox>,
    shared: Arc<Shared>,
    /// The first one keeps rejects, the second one halts at the first.
    owners: [Arc<Owner>; 2],
    destination: Arc<Destination>,
    ledger: Ledger,
    letters: mpsc::Receiver<Bundle>,
}

impl Bench {
    async fn new() -> Bench {
        Bench::of("DUPLICATE KEY(id)", TableModel::Duplicate, &[]).await
    }

    /// Of a table that upserts, whose rows know their key.
    async fn upserting() -> Bench {
        Bench::of("PRIMARY KEY(id)", TableModel::Primary, &["id"]).await
    }

    async fn of(model_clause: &str, model: TableModel, key: &[&str]) -> Bench {
        let sandbox = Sandbox::start(Options::default()).await.expect("free ports");
        sandbox.execute("CREATE DATABASE shop").expect("a database");
        let table = format!(
            "CREATE TABLE shop.orders (id BIGINT NOT NULL, name VARCHAR(20), note INT) {model_clause}"
        );
        sandbox.execute(&table).expect("a table");
        let cluster = Arc::new(cluster(vec![sandbox.fe_url()]));
        let destination = Destination {
            cluster: Arc::clone(&cluster),
            table: "orders".into(),
            model,
            key: key.iter().map(|column| (*column).to_owned()).collect(),
        };
        let (runtime, (inbox, letters)) = (Handle::current(), mpsc::channel(8));
        let share = Budget::new(ROOM).share(ROOM, 0);
        let rejects = Rejects::Keep(DeadLetterBox::to_test(inbox, &runtime), None);
        let owners = [owner(0, &share, rejects), owner(1, &share, Rejects::Halt)].map(Arc::new);
        let shared = Shared {
            client: Client::new(cluster).expect("a client"),
            labels: Labels::default(),
            witness: Arc::new(Witness::new()),
            paces: Paces {
                overloaded: Pace { base: NEVER, cap: NEVER, ..Pace::OVERLOADED },
                ..Paces::default()
            },
            runtime,
        };
        let ledger = Ledger::new();
        let (shared, destination) = (Arc::new(shared), Arc::new(destination));
        Bench { sandbox: Arc::new(sandbox), shared, owners, destination, ledger, letters }
    }

    /// A span of partition `number`; each row says whether it is its record's first.
    fn piece(&self, number: u32, rows: &[(&str, bool)]) -> Piece {
        self.piece_of(0, number, rows)
    }

    fn piece_of(&self, pipeline: usize, number: u32, rows: &[(&str, bool)]) -> Piece {
        let rows: Vec<_> =
            rows.iter().map(|(row, first)| (*row, if *first { FIRST_ROW } else { 0 })).collect();
        self.flagged(pipeline, number, &rows)
    }

    /// A span of records of a row each, which may be an update of some columns.
    fn changes(&self, pipeline: usize, number: u32, rows: &[(&str, bool)]) -> Piece {
        let flags = |partial: bool| FIRST_ROW | if partial { PARTIAL_ROW } else { 0 };
        let rows: Vec<_> = rows.iter().map(|(row, partial)| (*row, flags(*partial))).collect();
        self.flagged(pipeline, number, &rows)
    }

    fn flagged(&self, pipeline: usize, number: u32, rows: &[(&str, u32)]) -> Piece {
        let owner = &self.owners[pipeline];
        let records = rows.iter().filter(|(_, flags)| flags & FIRST_ROW != 0).count() as u64;
        if self.ledger.opened_upto(&stay(number)).is_none() {
            self.ledger.begin(stay(number), -1);
        }
        let after = self.ledger.opened_upto(&stay(number)).expect("the stay has begun");
        let span = Span { stay: stay(number), after, upto: after + records as i64 };
        let ticket = self.ledger.open(&span).expect("the stay has begun");
        let mut body = Vec::new();
        let (base, source) = (after + 1, "t".into());
        let mut index = RowIndex { ends: Vec::new(), deltas: Vec::new(), keys: Vec::new(), base, source };
        let mut record = 0;
        for (row, flags) in rows {
            body.extend_from_slice(row.as_bytes());
            body.push(b'\n');
            index.ends.push(body.len() as u32);
            record += u32::from(flags & FIRST_ROW != 0);
            index.deltas.push((record - 1) | flags);
            if !self.destination.key.is_empty() {
                let row: serde_json::Value = serde_json::from_str(row).expect("a row");
                index.keys.push(row["id"].as_u64().expect("an id"));
            }
        }
        owner.meter.read(records, 0);
        let permit = owner.share.overdraft(body.len() as u64);
        Piece::new(body.into(), index, None, ticket, permit, Arc::clone(owner))
    }

    fn batch(&self, pieces: Vec<Piece>) -> Batch {
        let destination = Arc::clone(&self.destination);
        Batch { destination, pieces, reason: Cut::Rows, since: Instant::now() }
    }

    /// Has the pipeline's loads guarded by a fence that lets all of them pass.
    fn guard(&mut self, pipeline: usize) {
        let share = self.owners[pipeline].share.clone();
        let guarded = owner(pipeline as u32, &share, Rejects::Halt);
        self.owners[pipeline] = Arc::new(Owner { fence: Some(Arc::new(Passing)), ..guarded });
    }

    /// Refuses the next load for good.
    fn deny_once(&self) {
        let kind = Breakage::AccessDenied { at: Hop::Backend };
        self.sandbox.set_fault(Broken { kind, table: None, times: Some(1) });
    }

    fn ids(&self) -> Vec<String> {
        let rows = self.sandbox.execute("SELECT id FROM shop.orders ORDER BY id").expect("rows");
        rows.into_iter().flatten().flatten().collect()
    }

    /// All rows, as text.
    fn rows(&self) -> Vec<String> {
        let rows = self.sandbox.execute("SELECT id, name, note FROM shop.orders ORDER BY id").expect("rows");
        let text = |cell: Option<String>| cell.unwrap_or_else(|| "-".to_owned());
        rows.into_iter().map(|row| row.into_iter().map(text).collect::<Vec<_>>().join(" ")).collect()
    }

    fn safe_upto(&self, number: u32) -> Option<i64> {
        self.ledger.watermark(&stay(number)).map(|watermark| watermark.upto)
    }

    /// Loads of which rows came into the table.
    fn rows_of_loads(&self) -> Vec<u64> {
        self.sandbox.loads().iter().map(|load| load.rows).filter(|rows| *rows > 0).collect()
    }

    /// Loaded, given up and in flight.
    fn counts(&self) -> [u64; 3] {
        self.counts_of(0)
    }

    fn counts_of(&self, pipeline: usize) -> [u64; 3] {
        let meter = &self.owners[pipeline].meter;
        let in_flight = u64::try_from(meter.records_in_flight.get()).expect("not below zero");
        [meter.records_loaded.get(), meter.records_given_up.get(), in_flight]
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_a_stay_that_has_ended_are_not_sent() {
    let bench = Bench::new().await;
    let batch = bench.batch(vec![
        bench.piece(0, &[("{\"id\":1}", true), ("{\"id\":2}", true)]),
        bench.piece(1, &[("{\"id\":3}", true)]),
    ]);
    let _ = bench.ledger.end(&stay(0));
    bench.shared.carry(batch, &Signs::unheard()).await;
    assert_eq!(bench.ids(), ["3"]);
    assert_eq!(bench.counts(), [1, 2, 0]);
    assert_eq!(bench.ledger.watermark(&stay(1)).map(|watermark| watermark.upto), Some(0));
    assert_eq!(bench.owners[0].share.used(), 0);
}

/// Control is done with a lost partition in the turn in which it hears of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_that_waits_drops_the_rows_of_a_lost_partition() {
    let bench = Bench::new().await;
    let refused =
        bench.sandbox.set_fault(Broken { kind: Breakage::TooManyVersions, table: None, times: None });
    let batch =
        bench.batch(vec![bench.piece(0, &[("{\"id\":1}", true)]), bench.piece(1, &[("{\"id\":2}", true)])]);
    let carried = {
        let shared = Arc::clone(&bench.shared);
        tokio::spawn(async move { shared.carry(batch, &Signs::unheard()).await })
    };
    let waits = async {
        while bench.owners[0].meter.health.waiting_for().is_none() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, waits).await.expect("the load is refused");
    bench.sandbox.clear_fault(refused);
    bench.owners[0].giving_up.give_up(&[stay(0)]);
    let _ = bench.ledger.end(&stay(0));
    bench.owners[0].giving_up.done(&[stay(0)]);
    tokio::time::timeout(SOON, carried).await.expect("no further wait").expect("no panic");
    assert_eq!(bench.ids(), ["2"]);
    assert_eq!(bench.counts(), [1, 1, 0]);
}

/// A partition that is given up goes on trying where rows of it may become durable: a load that rests is none of that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_that_rests_lets_go_when_it_is_asked() {
    let bench = Bench::new().await;
    bench.sandbox.set_fault(Broken { kind: Breakage::TooManyVersions, table: None, times: None });
    let batch = bench.batch(vec![bench.piece(0, &[("{\"id\":1}", true)])]);
    let carried = {
        let shared = Arc::clone(&bench.shared);
        tokio::spawn(async move { shared.carry(batch, &Signs::unheard()).await })
    };
    let giving_up = &bench.owners[0].giving_up;
    let waits = async {
        while bench.owners[0].meter.health.waiting_for().is_none() {
            tokio::task::yield_now().await;
        }
        while !giving_up.give_up_at_rest(vec![stay(0)], |_| true).is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, waits).await.expect("it rests after the refusal");
    tokio::time::timeout(SOON, carried).await.expect("no further wait").expect("no panic");
    assert_eq!((bench.ids(), bench.counts()), (Vec::new(), [0, 1, 0]));
    assert!(bench.ledger.is_quiet(&stay(0)) && !bench.ledger.would_repeat(&stay(0)));
}

/// Whoever has the partition next reads them again for certain.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_behind_a_span_that_was_given_up_are_not_sent() {
    let bench = Bench::new().await;
    let mut given_up = vec![bench.piece(0, &[("{\"id\":1}", true)])];
    let batch =
        bench.batch(vec![bench.piece(0, &[("{\"id\":2}", true)]), bench.piece(1, &[("{\"id\":3}", true)])]);
    drop_rows(&mut given_up, |_| true);
    bench.shared.carry(batch, &Signs::unheard()).await;
    assert_eq!(bench.ids(), ["3"]);
    assert_eq!(bench.counts(), [1, 2, 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_rows_become_letters_and_each_record_counts_once() {
    let mut bench = Bench::new().await;
    // Record 0: its first row is bad, its second is loaded. Record 1: the other way round.
    let rows =
        [("{\"id\":", true), ("{\"id\":1}", false), ("{\"id\":2}", true), ("7", false), ("{\"id\":3}", true)];
    let batch = bench.batch(vec![bench.piece(0, &rows), bench.piece(1, &[("{\"id\":4}", true)])]);
    bench.shared.carry(batch, &Signs::unheard()).await;
    assert_eq!(bench.ids(), ["1", "2", "3", "4"]);
    let bundle = bench.letters.try_recv().expect("letters");
    let told: Vec<_> = bundle
        .rejected
        .iter()
        .flat_map(|one| &one.letters)
        .map(|one| (one.offset, one.code.as_str()))
        .collect();
    assert_eq!(told, [(0, "syntax"), (1, "syntax")]);
    let why = &bundle.rejected[0].letters[0].message;
    assert!(why.ends_with("at line 1 column 6"), "the line feed behind a row is not the row's: {why}");
    assert_eq!((bundle.rejected[0].records, bench.counts()), (1, [3, 0, 1]));
    assert_eq!(bench.ledger.watermark(&stay(0)).map(|watermark| watermark.upto), Some(-1));
    for rejected in bundle.rejected {
        let _ = rejected.ticket.settle();
    }
    assert_eq!(bench.ledger.watermark(&stay(0)).map(|watermark| watermark.upto), Some(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_halt_moves_no_watermark_and_poisons_nothing() {
    let bench = Bench::new().await;
    bench.sandbox.execute("DROP TABLE shop.orders").expect("dropped");
    let batch = bench.batch(vec![bench.piece(0, &[("{\"id\":1}", true)])]);
    bench.shared.carry(batch, &Signs::unheard()).await;
    let fault = bench.owners[0].alarm.take().expect("a fault");
    assert!(fault.hint.is_some_and(|hint| hint.contains("CREATE TABLE")), "{}", fault.what);
    assert_eq!((bench.ledger.open_spans(), bench.ledger.poisoned()), (0, None));
    assert_eq!(bench.ledger.watermark(&stay(0)).map(|watermark| watermark.upto), Some(-1));
}

#[test]
fn rows_missing_from_a_committed_load_are_not_acknowledged() {
    let counted = |loaded_rows| Receipt { txn: None, loaded_rows, visible: true };
    for (loaded, halts) in [(Some(9), true), (Some(10), false), (Some(11), false), (None, false)] {
        let fault = missing_rows("l-1", 10, &counted(loaded));
        assert_eq!(fault.is_some(), halts, "{loaded:?}");
        assert!(fault.is_none_or(|fault| fault.kind == FaultKind::Halt && fault.story().contains("l-1")));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_does_not_fit_is_found_and_the_others_are_loaded_once() {
    let mut bench = Bench::new().await;
    let long = format!("{{\"id\":77,\"name\":\"{}\"}}", "x".repeat(40));
    let rows: Vec<String> = (0..100)
        .map(|id| if id == 77 { long.clone() } else { format!("{{\"id\":{id},\"name\":\"n\"}}") })
        .collect();
    let rows: Vec<(&str, bool)> = rows.iter().map(|row| (row.as_str(), true)).collect();
    bench
        .shared
        .carry(bench.batch(vec![bench.piece(0, &rows[..30]), bench.piece(1, &rows[30..])]), &Signs::unheard())
        .await;
    assert_eq!(bench.ids().len(), 99);
    let bundle = bench.letters.try_recv().expect("a letter");
    let letter = &bundle.rejected[0].letters[0];
    assert_eq!((letter.code.as_str(), letter.value.as_deref()), ("refused", Some(long.as_bytes())));
    assert!(letter.message.contains("column=name, capacity=20"), "{}", letter.message);
    assert_eq!((bundle.rejected[0].records, bench.counts()), (1, [99, 0, 1]));
    bundle.forget();
    assert_eq!(bench.sandbox.loads().len(), 2, "the error log named the row");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_error_log_a_bad_row_is_found_by_halving() {
    let mut bench = Bench::new().await;
    bench.sandbox.set_fault(Broken::always(Breakage::ErrorLogLost));
    let rows: Vec<String> = (0..64)
        .map(|id| format!("{{\"id\":{}}}", if id == 41 { "null".into() } else { id.to_string() }))
        .collect();
    let rows: Vec<(&str, bool)> = rows.iter().map(|row| (row.as_str(), true)).collect();
    bench.shared.carry(bench.batch(vec![bench.piece(0, &rows)]), &Signs::unheard()).await;
    assert_eq!(bench.ids().len(), 63);
    let bundle = bench.letters.try_recv().expect("a letter");
    assert_eq!(bundle.rejected[0].letters[0].value.as_deref(), Some(&b"{\"id\":null}"[..]));
    bundle.forget();
    let loads = bench.sandbox.loads().len();
    assert!((7..=14).contains(&loads), "{loads} loads");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipeline_that_halts_for_a_row_takes_only_its_own_rows_along() {
    let bench = Bench::new().await;
    let batch = bench.batch(vec![
        bench.piece_of(0, 0, &[("{\"id\":1}", true)]),
        bench.piece_of(1, 1, &[("{\"id\":2}", true), ("{\"id\":", true)]),
        bench.piece_of(0, 2, &[("{\"id\":3}", true)]),
    ]);
    bench.shared.carry(batch, &Signs::unheard()).await;
    assert_eq!(bench.ids(), ["1", "3"]);
    assert!(!bench.owners[0].alarm.is_raised());
    let fault = bench.owners[1].alarm.take().expect("a reject without a place for it");
    assert!(fault.story().contains("add [dead_letters]"), "{}", fault.story());
    assert_eq!(bench.ledger.watermark(&stay(1)).map(|watermark| watermark.upto), Some(-1));
    assert_eq!(bench.ledger.watermark(&stay(2)).map(|watermark| watermark.upto), Some(0));
}

/// Lets every load pass.
#[derive(Debug)]
struct Passing;

impl Fence for Passing {
    fn guards(&self, _destination: &Destination) -> bool {
        true
    }

    fn announce<'a>(&'a self, _number: u64, _stays: &'a [Stay]) -> crate::sink::FenceAnswer<'a> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn holds(&self, _number: u64) -> crate::sink::FenceAnswer<'_> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn settled(&self, _number: u64) {}
}

/// Their rows share a batch, and neither a load nor a halt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_halt_of_one_fenced_pipeline_leaves_the_other_ones_rows_of_the_batch_alone() {
    let mut bench = Bench::upserting().await;
    bench.guard(0);
    bench.guard(1);
    bench.deny_once();
    let batch = bench.batch(vec![
        bench.changes(1, 1, &[(r#"{"id":2,"name":"b","note":2}"#, WHOLE)]),
        bench.changes(1, 2, &[(r#"{"id":3,"name":"c","note":3}"#, WHOLE)]),
        bench.changes(0, 0, &[(r#"{"id":1,"name":"a","note":1}"#, WHOLE)]),
        // Behind this row hides one of the other pipeline.
        bench.changes(0, 3, &[(r#"{"id":3,"name":"d","note":4}"#, WHOLE)]),
    ]);
    bench.shared.carry(batch, &Signs::unheard()).await;
    assert!(bench.owners[0].alarm.take().expect("a fault").story().contains("denied"));
    assert!(!bench.owners[1].alarm.is_raised());
    assert_eq!(bench.rows(), ["2 b 2", "3 c 3"]);
    assert_eq!((bench.counts(), bench.counts_of(1)), ([0, 2, 0], [2, 0, 0]));
    assert_eq!([0, 1, 2, 3].map(|number| bench.safe_upto(number)), [Some(-1), Some(0), Some(0), Some(-1)]);
    assert_eq!((bench.ledger.open_spans(), bench.ledger.poisoned()), (0, None));
}

/// It has no row in the load that halts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_hides_behind_one_that_halts_is_loaded_after_all() {
    let bench = Bench::upserting().await;
    bench.deny_once();
    let batch = bench.batch(vec![
        bench.changes(1, 1, &[(r#"{"id":1,"name":"posted","note":1}"#, WHOLE)]),
        bench.changes(0, 0, &[(r#"{"id":1,"name":"followed","note":2}"#, WHOLE)]),
    ]);
    bench.shared.carry(batch, &Signs::unheard()).await;
    assert!(bench.owners[0].alarm.is_raised() && !bench.owners[1].alarm.is_raised());
    assert_eq!(bench.rows(), ["1 posted 1"]);
    assert_eq!((bench.counts(), bench.counts_of(1)), ([0, 1, 0], [1, 0, 0]));
    assert_eq!([0, 1].map(|number| bench.safe_upto(number)), [Some(-1), Some(0)]);
}

const WHOLE: bool = false;
const PARTIAL: bool = true;

/// In two batches, the row that the refused one was to replace would be in the table.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_a_refused_one_was_to_replace_is_loaded() {
    let long = "x".repeat(40);
    let bad = format!(r#"{{"id":1,"name":"{long}","note":9}}"#);
    let partly = format!(r#"{{"id":1,"name":"{long}"}}"#);
    let merged = format!(r#"{{"id":1,"name":"{long}","note":1}}"#);
    let check = async |change: (&str, bool), letter: &str| {
        let mut bench = Bench::upserting().await;
        let rows =
            [(r#"{"id":1,"name":"first","note":1}"#, WHOLE), (r#"{"id":2,"name":"other","note":2}"#, WHOLE)];
        bench
            .shared
            .carry(
                bench.batch(vec![bench.changes(0, 0, &rows), bench.changes(0, 1, &[change])]),
                &Signs::unheard(),
            )
            .await;
        assert_eq!(bench.rows(), ["1 first 1", "2 other 2"]);
        let bundle = bench.letters.try_recv().expect("a letter");
        let letters: Vec<_> = bundle.rejected.iter().flat_map(|one| &one.letters).collect();
        let told: Vec<_> = letters.iter().map(|one| (one.partition.number, one.value.as_deref())).collect();
        assert_eq!(told, [(1, Some(letter.as_bytes()))]);
        assert_eq!((bench.counts(), bench.rows_of_loads()), ([2, 0, 1], vec![1, 1]));
        assert_eq!([bench.safe_upto(0), bench.safe_upto(1)], [Some(1), Some(-1)]);
        let Bundle { rejected, permit } = bundle;
        drop(permit);
        for rejected in rejected {
            let _ = rejected.ticket.settle();
        }
        assert_eq!((bench.safe_upto(1), bench.ledger.open_spans()), (Some(0), 0));
        assert_eq!((bench.ledger.poisoned(), bench.owners[0].share.used()), (None, 0));
    };
    check((&bad, WHOLE), &bad).await;
    check((&partly, PARTIAL), &merged).await;
}

/// Of a key that only gets bad rows, each one becomes a letter, and the good one among them stands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_rows_of_one_key_are_taken_out_one_after_another() {
    let mut bench = Bench::upserting().await;
    let bad: Vec<String> =
        (0..3).map(|n| format!(r#"{{"id":1,"name":"{}","note":{n}}}"#, "x".repeat(40))).collect();
    let good = r#"{"id":1,"name":"good","note":7}"#;
    let rows = [(bad[0].as_str(), WHOLE), (good, WHOLE), (&bad[1], WHOLE), (&bad[2], WHOLE)];
    bench.shared.carry(bench.batch(vec![bench.changes(0, 0, &rows)]), &Signs::unheard()).await;
    assert_eq!(bench.rows(), ["1 good 7"]);
    let mut offsets = Vec::new();
    while let Ok(bundle) = bench.letters.try_recv() {
        offsets.extend(bundle.rejected.iter().flat_map(|one| &one.letters).map(|letter| letter.offset));
        bundle.forget();
    }
    // The first one was replaced by a row that landed: nobody will ever miss it.
    assert_eq!((offsets, bench.counts()), (vec![3, 2], [2, 0, 2]));
}

/// Two pipelines share a batch, and the later row of a key is the one that is given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_one_given_up_was_to_replace_is_loaded() {
    let check = async |others: &[(&str, bool)], expected: &[&str]| {
        let bench = Bench::upserting().await;
        let refuse = Broken { kind: Breakage::TooManyVersions, table: None, times: None };
        let refused = bench.sandbox.set_fault(refuse);
        let mut rows = vec![(r#"{"id":1,"name":"posted","note":1}"#, WHOLE)];
        rows.extend(others);
        let batch = bench.batch(vec![
            bench.changes(1, 1, &rows),
            bench.changes(0, 0, &[(r#"{"id":1,"name":"followed"}"#, PARTIAL)]),
        ]);
        let shared = Arc::clone(&bench.shared);
        let carried = tokio::spawn(async move { shared.carry(batch, &Signs::unheard()).await });
        let waits = async {
            while bench.owners[0].meter.health.waiting_for().is_none() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(SOON, waits).await.expect("the load is refused");
        bench.sandbox.clear_fault(refused);
        bench.owners[0].giving_up.give_up(&[stay(0)]);
        let _ = bench.ledger.end(&stay(0));
        bench.owners[0].giving_up.done(&[stay(0)]);
        tokio::time::timeout(SOON, carried).await.expect("no further wait").expect("no panic");
        assert_eq!(bench.rows(), expected);
        let records = rows.len() as u64;
        assert_eq!((bench.counts(), bench.counts_of(1)), ([0, 1, 0], [records, 0, 0]));
        assert_eq!(bench.safe_upto(1), Some(records as i64 - 1));
        // No load without a row was tried.
        assert_eq!(bench.rows_of_loads(), vec![1; rows.len()]);
        assert_eq!((bench.ledger.poisoned(), bench.owners[0].share.used()), (None, 0));
    };
    check(&[(r#"{"id":2,"name":"too","note":2}"#, WHOLE)], &["1 posted 1", "2 too 2"]).await;
    check(&[], &["1 posted 1"]).await;
}

/// Takes the table away before the pipeline's first load.
struct Saboteur(Arc<Sandbox>);

impl std::fmt::Debug for Saboteur {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Saboteur")
    }
}

impl Fence for Saboteur {
    fn guards(&self, _destination: &Destination) -> bool {
        true
    }

    fn announce<'a>(&'a self, _number: u64, _stays: &'a [Stay]) -> crate::sink::FenceAnswer<'a> {
        self.0.execute("DROP TABLE shop.orders").expect("dropped");
        Box::pin(std::future::ready(Ok(())))
    }

    fn holds(&self, _number: u64) -> crate::sink::FenceAnswer<'_> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn settled(&self, _number: u64) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_hide_behind_one_that_halts_are_not_counted_and_what_landed_is() {
    let mut bench = Bench::upserting().await;
    let share = bench.owners[1].share.clone();
    let saboteur = Arc::new(Saboteur(Arc::clone(&bench.sandbox)));
    bench.owners[1] = Arc::new(Owner { fence: Some(saboteur), ..owner(1, &share, Rejects::Halt) });
    let (one, again) = (r#"{"id":1,"name":"a","note":1}"#, r#"{"id":1,"name":"b","note":1}"#);
    let batch = bench.batch(vec![
        bench.changes(1, 1, &[(one, WHOLE)]),
        bench.changes(0, 0, &[(r#"{"id":2,"name":"c"}"#, PARTIAL)]),
        bench.changes(1, 2, &[(again, WHOLE)]),
    ]);
    bench.shared.carry(batch, &Signs::unheard()).await;
    let fault = bench.owners[1].alarm.take().expect("the table is gone");
    assert_eq!(fault.kind, FaultKind::Halt, "{}", fault.story());
    assert_eq!((bench.counts(), bench.counts_of(1)[0]), ([1, 0, 0], 0));
    assert_eq!([0, 1, 2].map(|number| bench.safe_upto(number)), [Some(0), Some(-1), Some(-1)]);
    assert_eq!((bench.ledger.open_spans(), bench.ledger.poisoned(), share.used()), (0, None, 0));
}
