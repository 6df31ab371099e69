//! A lane's input: what the listener's tasks have sent it, one parcel a chunk.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};

use super::records::{CHUNK_BYTES_MAX, CHUNK_RECORDS_MAX};
use crate::budget::Permit;
use crate::fault::Fault;
use crate::ledger::Ledger;
use crate::meter::PipelineMeter;
use crate::position::{Epoch, Partition, Span, Stay};
use crate::record::{BytesColumn, Columns, HeaderColumn};
use crate::source::{Fed, Feed};

/// How long a lane waits for a parcel before it looks at its orders again.
const READ_WAIT: Duration = Duration::from_millis(50);
/// How long a lane lets requests gather that nobody waits for.
const GATHER_PAUSE: Duration = Duration::from_millis(2);
/// Fewer records than this, and no more waiting, are worth that pause.
const SMALL_CHUNK_RECORDS: usize = 256;
/// Parcels that may wait for a lane; their bytes are charged to the budget.
const PARCELS_WAITING_MAX: usize = 1024;

/// What the lanes are to do; control changes it.
#[derive(Debug, Default)]
pub(super) struct Orders(AtomicU8);

const WORK: u8 = 0;
const FINISH: u8 = 1;
const LET_GO: u8 = 2;

impl Orders {
    /// Lanes end when nothing waits for them any more.
    pub(super) fn finish(&self) {
        self.0.fetch_max(FINISH, Ordering::AcqRel);
    }

    /// Lanes end at once and use nothing that waits for them.
    pub(super) fn let_go(&self) {
        self.0.fetch_max(LET_GO, Ordering::AcqRel);
    }

    fn get(&self) -> u8 {
        self.0.load(Ordering::Acquire)
    }
}

/// The numbers of stays: each request is one of its own.
#[derive(Debug, Clone, Default)]
pub(super) struct Epochs(Arc<AtomicU64>);

impl Epochs {
    /// A stay that there has not been.
    pub(super) fn begin(&self, source: &Arc<str>) -> Stay {
        let epoch = Epoch(self.0.fetch_add(1, Ordering::Relaxed) + 1);
        Stay { partition: Partition { source: Arc::clone(source), number: 0 }, epoch }
    }
}

/// Tells the task of a request that one of its parcels came to nothing: no lane took it.
#[derive(Debug, Clone, Default)]
pub(super) struct Abandoned {
    flag: Arc<AtomicBool>,
    notify: Arc<Notify>,
}

impl Abandoned {
    /// Woken by the ledger, and by a parcel that is dropped.
    pub(super) fn notify(&self) -> &Arc<Notify> {
        &self.notify
    }

    /// Whether a parcel was dropped.
    pub(super) fn is_told(&self) -> bool {
        self.flag.load(Ordering::Acquire)
    }
}

/// Whose a parcel is.
#[derive(Debug)]
enum Whose {
    /// A request that waits for its rows.
    Waiting { span: Span, abandoned: Abandoned },
    /// Nobody waits.
    Nobody,
}

/// A chunk on its way to a lane.
#[derive(Debug)]
pub(crate) struct Parcel {
    columns: Columns,
    /// None only while it is dropped or handed on.
    permit: Option<Permit>,
    whose: Whose,
}

impl Parcel {
    /// A chunk of a request that waits for its rows.
    pub(super) fn awaited(columns: Columns, span: Span, permit: Permit, abandoned: Abandoned) -> Parcel {
        Parcel { columns, permit: Some(permit), whose: Whose::Waiting { span, abandoned } }
    }

    /// A chunk that nobody waits for.
    pub(super) fn queued(columns: Columns, permit: Permit) -> Parcel {
        Parcel { columns, permit: Some(permit), whose: Whose::Nobody }
    }
}

impl Drop for Parcel {
    fn drop(&mut self) {
        if let Whose::Waiting { abandoned, .. } = &self.whose
            && self.permit.is_some()
        {
            abandoned.flag.store(true, Ordering::Release);
            abandoned.notify.notify_one();
        }
    }
}

/// A lane's end of the way.
pub(crate) struct HttpFeed {
    inbox: mpsc::Receiver<Parcel>,
    /// One that did not fit the chunk before.
    held_back: Option<Parcel>,
    orders: Arc<Orders>,
    epochs: Epochs,
    ledger: Ledger,
    meter: Arc<PipelineMeter>,
    runtime: Handle,
}

/// A way to a lane.
pub(super) fn way(
    orders: &Arc<Orders>,
    epochs: &Epochs,
    ledger: &Ledger,
    meter: &Arc<PipelineMeter>,
    runtime: &Handle,
) -> (mpsc::Sender<Parcel>, HttpFeed) {
    let (outbox, inbox) = mpsc::channel(PARCELS_WAITING_MAX);
    let feed = HttpFeed {
        inbox,
        held_back: None,
        orders: Arc::clone(orders),
        epochs: epochs.clone(),
        ledger: ledger.clone(),
        meter: Arc::clone(meter),
        runtime: runtime.clone(),
    };
    (outbox, feed)
}

impl HttpFeed {
    fn receive(&mut self) -> Option<Parcel> {
        if let Some(parcel) = self.held_back.take() {
            return Some(parcel);
        }
        if let Ok(parcel) = self.inbox.try_recv() {
            return Some(parcel);
        }
        let (runtime, inbox) = (self.runtime.clone(), &mut self.inbox);
        runtime.block_on(async { tokio::time::timeout(READ_WAIT, inbox.recv()).await.ok().flatten() })
    }

    /// Parcels that nobody waits for travel together as far as they fit: a thousand small requests then cost
    /// one call of a plugin and one message, and not a thousand.
    fn gather_queued(&mut self, first: Parcel, into: &mut Columns) -> Fed {
        let permit = take(first, into);
        if into.len() < SMALL_CHUNK_RECORDS && self.inbox.len() < SMALL_CHUNK_RECORDS {
            // Being woken for each costs more than all the rest of it.
            std::thread::sleep(GATHER_PAUSE);
        }
        while into.len() < CHUNK_RECORDS_MAX && into.data_bytes() < CHUNK_BYTES_MAX {
            let Ok(next) = self.inbox.try_recv() else { break };
            let fits = matches!(next.whose, Whose::Nobody) && next.columns.source == into.source;
            if !fits {
                self.held_back = Some(next);
                break;
            }
            append(&next.columns, into);
        }
        let permit = permit.map(|mut permit| {
            permit.resize(into.bytes() as u64);
            permit
        });
        let source = into.source.clone().unwrap_or_default();
        let stay = self.epochs.begin(&source);
        let notify = Arc::new(Notify::new());
        self.ledger.begin_watched(stay.clone(), -1, Arc::clone(&notify));
        let upto = into.len() as i64 - 1;
        self.runtime.spawn(end_unwatched(self.ledger.clone(), Arc::clone(&self.meter), stay.clone(), notify));
        fed(Span { stay, after: -1, upto }, permit)
    }
}

/// Ends the stay of records that nobody waits for; says if some were not loaded.
async fn end_unwatched(ledger: Ledger, meter: Arc<PipelineMeter>, stay: Stay, notify: Arc<Notify>) {
    // Its one span is opened right behind its begin, so the first time that it is quiet is the last.
    notify.notified().await;
    let Some(ended) = ledger.end(&stay) else { return };
    meter.health.progress();
    if let Some(first) = ended.tally.refused.first() {
        tracing::warn!(
            pipeline = %meter.name, source = %stay.partition.source, refused = ended.tally.refused.len(),
            code = %first.code, "records that were queued were refused and are gone: there are no [dead_letters]"
        );
    }
    if ended.tally.lost {
        tracing::warn!(
            pipeline = %meter.name, source = %stay.partition.source,
            "records that were queued were not loaded: the pipeline ended"
        );
    }
}

/// Takes the columns out of a parcel that is used from now on.
fn take(mut parcel: Parcel, into: &mut Columns) -> Option<Permit> {
    *into = std::mem::take(&mut parcel.columns);
    parcel.permit.take()
}

fn fed(span: Span, permit: Option<Permit>) -> Fed {
    match permit {
        Some(permit) => Fed::Charged(span, permit),
        None => Fed::Chunk(span),
    }
}

/// Appends records of the same source; their offsets go on from those that are there.
fn append(from: &Columns, to: &mut Columns) {
    let first = to.len() as i64;
    append_bytes(&from.values, &mut to.values);
    append_bytes(&from.keys, &mut to.keys);
    to.marks.extend_from_slice(&from.marks);
    to.timestamps.extend_from_slice(&from.timestamps);
    to.partitions.extend_from_slice(&from.partitions);
    to.offsets.extend((first..).take(from.len()));
    append_headers(&from.headers, &mut to.headers);
}

fn append_bytes(from: &BytesColumn, to: &mut BytesColumn) {
    let start = to.data.len() as u32;
    to.data.extend_from_slice(&from.data);
    to.ends.extend(from.ends.iter().map(|end| start + end));
}

fn append_headers(from: &HeaderColumn, to: &mut HeaderColumn) {
    let start = to.names.len() as u32;
    append_bytes(&from.names, &mut to.names);
    append_bytes(&from.contents, &mut to.contents);
    to.ends.extend(from.ends.iter().map(|end| start + end));
}

impl Feed for HttpFeed {
    fn next(&mut self, into: &mut Columns) -> Result<Fed, Fault> {
        into.clear();
        let orders = self.orders.get();
        if orders == LET_GO {
            return Ok(Fed::Ended);
        }
        let Some(mut parcel) = self.receive() else {
            // What is sent before the order is given is there by now.
            return Ok(if orders == WORK { Fed::Idle } else { Fed::Ended });
        };
        match std::mem::replace(&mut parcel.whose, Whose::Nobody) {
            Whose::Waiting { span, .. } => Ok(fed(span, take(parcel, into))),
            Whose::Nobody => Ok(self.gather_queued(parcel, into)),
        }
    }

    fn owns(&mut self, _stay: &Stay) -> bool {
        self.orders.get() != LET_GO
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::{Budget, Share};
    use crate::meter::Meter;
    use crate::record::MARK_VALUE;

    struct Bench {
        runtime: tokio::runtime::Runtime,
        share: Share,
        ledger: Ledger,
        orders: Arc<Orders>,
        epochs: Epochs,
        outbox: mpsc::Sender<Parcel>,
        feed: HttpFeed,
    }

    fn bench() -> Bench {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let (ledger, orders, epochs) = (Ledger::new(), Arc::<Orders>::default(), Epochs::default());
        let (outbox, feed) = way(&orders, &epochs, &ledger, &Meter::new().pipeline("p"), runtime.handle());
        let share = Budget::new(10_000).share(10_000, 0);
        Bench { runtime, share, ledger, orders, epochs, outbox, feed }
    }

    fn columns(source: &str, values: &[&str]) -> Columns {
        let mut columns = Columns { source: Some(source.into()), ..Columns::default() };
        for (place, value) in values.iter().enumerate() {
            columns.values.push(value.as_bytes());
            columns.marks.push(MARK_VALUE);
            columns.offsets.push(place as i64);
            columns.headers.names.push(b"n");
            columns.headers.contents.push(value.as_bytes());
            columns.headers.end_record();
        }
        columns
    }

    impl Bench {
        fn queue(&self, source: &str, values: &[&str]) {
            let columns = columns(source, values);
            let permit = self.share.overdraft(columns.bytes() as u64);
            self.outbox.try_send(Parcel::queued(columns, permit)).expect("room");
        }

        fn next(&mut self) -> (Columns, Fed) {
            let mut into = Columns::default();
            let fed = self.feed.next(&mut into).expect("no fault");
            (into, fed)
        }
    }

    #[test]
    fn requests_that_nobody_waits_for_travel_together() {
        let mut bench = bench();
        bench.queue("a", &["1", "22"]);
        bench.queue("a", &["333"]);
        bench.queue("b", &["4"]);
        let (chunk, fed) = bench.next();
        let Fed::Charged(span, permit) = fed else { panic!("{fed:?}") };
        assert_eq!((span.after, span.upto, chunk.source()), (-1, 2, "a"));
        assert_eq!(chunk.values.iter().collect::<Vec<_>>(), [&b"1"[..], b"22", b"333"]);
        assert_eq!(chunk.offsets, [0, 1, 2]);
        assert_eq!(chunk.headers.pairs(2).collect::<Vec<_>>(), [(&b"n"[..], &b"333"[..])]);
        assert_eq!(permit.bytes(), chunk.bytes() as u64);
        // Nobody waits, so the stay ends by itself when its records are settled.
        let ticket = bench.ledger.open(&span).expect("begun");
        assert_eq!(bench.next().0.source(), "b");
        let _ = ticket.settle();
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while bench.ledger.opened_upto(&span.stay).is_some() {
            assert!(std::time::Instant::now() < deadline, "the stay does not end");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_request_that_waits_is_told_if_no_lane_takes_its_records() {
        let mut bench = bench();
        let stay = bench.epochs.begin(&"a".into());
        let (taken, dropped) = (Abandoned::default(), Abandoned::default());
        for (upto, abandoned) in [(0, &taken), (1, &dropped)] {
            let span = Span { stay: stay.clone(), after: upto - 1, upto };
            let parcel =
                Parcel::awaited(columns("a", &["1"]), span, bench.share.overdraft(1), abandoned.clone());
            bench.outbox.try_send(parcel).expect("room");
        }
        let (_, fed) = bench.next();
        assert!(matches!(fed, Fed::Charged(Span { upto: 0, .. }, _)), "{fed:?}");
        assert!(bench.feed.owns(&stay));
        bench.orders.let_go();
        assert!(!bench.feed.owns(&stay));
        assert!(matches!(bench.next().1, Fed::Ended));
        drop(bench.feed);
        assert!(!taken.is_told() && dropped.is_told());
        bench.runtime.block_on(dropped.notify().notified());
    }

    #[test]
    fn a_lane_that_is_to_finish_takes_what_waits_and_ends() {
        let mut bench = bench();
        assert!(matches!(bench.next().1, Fed::Idle));
        bench.queue("a", &["1"]);
        bench.orders.finish();
        assert!(matches!(bench.next().1, Fed::Charged(..)));
        assert!(matches!(bench.next().1, Fed::Ended));
    }
}
