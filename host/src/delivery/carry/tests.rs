use tidemill_sandbox::{Fault as Broken, FaultKind as Breakage, Options, Sandbox};
use tokio::sync::mpsc;

use super::*;
use crate::batch::stage::fakes::{cluster, owner};
use crate::batch::{Cut, FIRST_ROW, RowIndex};
use crate::budget::Budget;
use crate::config::model::TableModel;
use crate::dead_letter::DeadLetterBox;
use crate::fault::FaultKind;
use crate::ledger::Ledger;
use crate::position::{Epoch, Partition, Span};
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
    sandbox: Sandbox,
    shared: Arc<Shared>,
    /// The first one keeps rejects, the second one halts at the first.
    owners: [Arc<Owner>; 2],
    destination: Arc<Destination>,
    ledger: Ledger,
    letters: mpsc::Receiver<Bundle>,
}

impl Bench {
    async fn new() -> Bench {
        let sandbox = Sandbox::start(Options::default()).await.expect("free ports");
        sandbox.execute("CREATE DATABASE shop").expect("a database");
        let table = "CREATE TABLE shop.orders (id BIGINT NOT NULL, name VARCHAR(20)) DUPLICATE KEY(id)";
        sandbox.execute(table).expect("a table");
        let cluster = Arc::new(cluster(vec![sandbox.fe_url()]));
        let destination = Destination {
            cluster: Arc::clone(&cluster),
            table: "orders".into(),
            model: TableModel::Duplicate,
            key: Vec::new(),
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
        Bench { sandbox, shared, owners, destination, ledger, letters }
    }

    /// A span of partition `number`; each row says whether it is its record's first.
    fn piece(&self, number: u32, rows: &[(&str, bool)]) -> Piece {
        self.piece_of(0, number, rows)
    }

    fn piece_of(&self, pipeline: usize, number: u32, rows: &[(&str, bool)]) -> Piece {
        let owner = &self.owners[pipeline];
        let records = rows.iter().filter(|(_, first)| *first).count() as u64;
        self.ledger.begin(stay(number), -1);
        let span = Span { stay: stay(number), after: -1, upto: records as i64 - 1 };
        let ticket = self.ledger.open(&span).expect("the stay has begun");
        let mut body = Vec::new();
        let mut index =
            RowIndex { ends: Vec::new(), deltas: Vec::new(), keys: Vec::new(), base: 0, source: "t".into() };
        let mut record = 0;
        for (row, first) in rows {
            body.extend_from_slice(row.as_bytes());
            body.push(b'\n');
            index.ends.push(body.len() as u32);
            record += u32::from(*first);
            index.deltas.push((record - 1) | if *first { FIRST_ROW } else { 0 });
        }
        owner.meter.read(records, 0);
        let permit = owner.share.overdraft(body.len() as u64);
        Piece::new(body.into(), index, None, ticket, permit, Arc::clone(owner))
    }

    fn batch(&self, pieces: Vec<Piece>) -> Batch {
        let destination = Arc::clone(&self.destination);
        Batch { destination, pieces, reason: Cut::Rows, since: Instant::now() }
    }

    fn ids(&self) -> Vec<String> {
        let rows = self.sandbox.execute("SELECT id FROM shop.orders ORDER BY id").expect("rows");
        rows.into_iter().flatten().flatten().collect()
    }

    /// Loaded, given up and in flight.
    fn counts(&self) -> [u64; 3] {
        let meter = &self.owners[0].meter;
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
    bench.shared.carry(batch).await;
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
        tokio::spawn(async move { shared.carry(batch).await })
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_rows_become_letters_and_each_record_counts_once() {
    let mut bench = Bench::new().await;
    // Record 0: its first row is bad, its second is loaded. Record 1: the other way round.
    let rows =
        [("{\"id\":", true), ("{\"id\":1}", false), ("{\"id\":2}", true), ("7", false), ("{\"id\":3}", true)];
    let batch = bench.batch(vec![bench.piece(0, &rows), bench.piece(1, &[("{\"id\":4}", true)])]);
    bench.shared.carry(batch).await;
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
    bench.shared.carry(batch).await;
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
    bench.shared.carry(bench.batch(vec![bench.piece(0, &rows[..30]), bench.piece(1, &rows[30..])])).await;
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
    bench.shared.carry(bench.batch(vec![bench.piece(0, &rows)])).await;
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
    bench.shared.carry(batch).await;
    assert_eq!(bench.ids(), ["1", "3"]);
    assert!(!bench.owners[0].alarm.is_raised());
    let fault = bench.owners[1].alarm.take().expect("a reject without a place for it");
    assert!(fault.story().contains("add [dead_letters]"), "{}", fault.story());
    assert_eq!(bench.ledger.watermark(&stay(1)).map(|watermark| watermark.upto), Some(-1));
    assert_eq!(bench.ledger.watermark(&stay(2)).map(|watermark| watermark.upto), Some(0));
}
