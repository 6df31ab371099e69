//! Records and rows that cannot be loaded: kept durably, with reason, stage, plugin, position and
//! original bytes, before their span may close.
//!
//! One thread a pipeline writes them; what waits in its channel is written together, with one fsync
//! or one round of Kafka acknowledgements, and only then are the tickets settled. With exactly_once and a topic on the
//! source's cluster they wait in an [`Outbox`] instead and are written with the decision about their records.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::budget::{Permit, Share};
use crate::config::model::{DeadLetters, Kafka, Pipeline, Source};
use crate::delivery::Alarm;
use crate::failpoint;
use crate::fault::Fault;
use crate::ledger::{Refused, Ticket};
use crate::meter::PipelineMeter;
use crate::planted::{Bug, planted};
use crate::position::Partition;

pub mod archive;
mod directory;
mod envelope;
pub mod kept;
mod notice;
mod outbox;
pub(crate) mod tally;
pub mod text;
mod tolerance;
mod topic;

pub use outbox::{Outbox, Undecided};
pub use tolerance::Tolerance;

/// Bundles that may wait for the writer; their bytes are charged to the budget.
const BUNDLES_WAITING_MAX: usize = 64;

/// Where in the pipeline a letter died.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
pub enum Stage {
    /// Before any plugin, or without one.
    Read,
    /// A plugin refused it, or failed on it.
    Transform,
    /// It could not be made a row of its table, or StarRocks would not have it.
    Load,
}

impl Stage {
    /// All of them, in the order in which records pass them.
    pub const ALL: [Stage; 3] = [Stage::Read, Stage::Transform, Stage::Load];

    /// The name in files and headers.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Read => "read",
            Stage::Transform => "transform",
            Stage::Load => "load",
        }
    }
}

/// One dead letter.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// Where it died.
    pub stage: Stage,
    /// The plugin concerned.
    pub plugin: Option<Arc<str>>,
    /// Short reason for machines.
    pub code: String,
    /// The reason for people.
    pub message: String,
    /// Where the record came from.
    pub partition: Partition,
    /// Its position there.
    pub offset: i64,
    /// Microseconds since 1970 UTC; 0 if unknown.
    pub timestamp_us: i64,
    /// The record's key.
    pub key: Option<Vec<u8>>,
    /// The record's value as it was read; at stage `load` the row as it was to be loaded.
    pub value: Option<Vec<u8>>,
    /// The record's headers.
    pub headers: Vec<(Vec<u8>, Vec<u8>)>,
    /// What of it a replay has to know.
    pub content: Content,
}

/// What the bytes of a letter are and where they were to go: what else a replay has to know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Content {
    /// Whether they have been through the plugins.
    pub holds: Holds,
    /// The table of a row, or of a record that is a row of one; none = plugins or the file say it.
    pub table: Option<Arc<str>>,
    /// The record deletes its key although it has a value.
    pub delete: bool,
    /// Columns that did not change are not in it, so it is no whole row.
    pub partial: bool,
}

/// What the value of a letter is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Holds {
    /// The record as it was read.
    #[default]
    Record,
    /// The row that the plugins made of it (decision 0013).
    Row,
}

impl Holds {
    /// The name in files and headers.
    pub fn name(self) -> &'static str {
        match self {
            Holds::Record => "record",
            Holds::Row => "row",
        }
    }
}

/// In front of the row in a line of StarRocks' error log (reference/starrocks-load-protocol.md §6).
const QUOTED_ROW: &str = "Row:";
/// A reason in a log is cut off behind so many characters.
const REASON_CHARS_MAX: usize = 300;

impl DeadLetter {
    /// Bytes for the budget.
    pub fn bytes(&self) -> u64 {
        let headers: usize = self.headers.iter().map(|(name, content)| name.len() + content.len()).sum();
        let own = self.key.as_ref().map_or(0, Vec::len) + self.value.as_ref().map_or(0, Vec::len);
        (own + headers + self.message.len() + 128) as u64
    }

    /// Where it came from, and why it was rejected, for a log: without the whole row that StarRocks' error log quotes,
    /// and of bounded length. A reason may still name the value that was wrong.
    fn story(&self) -> String {
        let reason = self.message.split(QUOTED_ROW).next().unwrap_or_default();
        let reason = reason.split_whitespace().collect::<Vec<_>>().join(" ");
        let end = reason.char_indices().nth(REASON_CHARS_MAX).map_or(reason.len(), |(end, _)| end);
        let more = if end < reason.len() { "…" } else { "" };
        format!("{} offset {}: {}: {}{more}", self.partition, self.offset, self.code, &reason[..end])
    }
}

/// What was rejected of one span.
#[derive(Debug)]
pub struct Rejected {
    /// A letter each.
    pub letters: Vec<DeadLetter>,
    /// Settled when they are durable, or told to the request that they came with.
    pub ticket: Ticket,
    /// How many records they count as.
    pub records: u64,
}

impl Rejected {
    fn bytes(&self) -> u64 {
        self.letters.iter().map(DeadLetter::bytes).sum()
    }

    /// Of each record that counts how many the pipeline had read before it. A record of several letters counts once, also
    /// where they are not rejected together.
    fn read_before(&self) -> impl Iterator<Item = u64> {
        let offsets: BTreeSet<i64> = self.letters.iter().map(|letter| letter.offset).collect();
        let counted = usize::try_from(self.records).unwrap_or(usize::MAX);
        offsets.into_iter().take(counted).map(|offset| self.ticket.read_before(offset))
    }

    /// Gives them up: their records will be read again.
    pub fn forget(self) {
        self.ticket.forget();
    }
}

/// Rejects of one chunk or batch on their way to the writer.
#[derive(Debug)]
pub struct Bundle {
    /// Span by span.
    pub rejected: Vec<Rejected>,
    /// Their bytes.
    pub permit: Permit,
}

impl Bundle {
    /// A bundle whose bytes are charged to `share`.
    pub fn new(rejected: Vec<Rejected>, share: &Share) -> Bundle {
        let permit = share.overdraft(rejected.iter().map(Rejected::bytes).sum());
        Bundle { rejected, permit }
    }

    fn letters(&self) -> impl Iterator<Item = &DeadLetter> {
        self.rejected.iter().flat_map(|one| &one.letters)
    }

    /// Gives all of it up.
    pub fn forget(self) {
        self.rejected.into_iter().for_each(Rejected::forget);
    }
}

/// What becomes of records and rows that cannot be loaded.
#[derive(Debug, Clone)]
pub enum Rejects {
    /// There is nowhere to put them: the first one halts the pipeline.
    Halt,
    /// They are kept; more of them than is tolerated halt the pipeline.
    Keep(DeadLetterBox, Option<Arc<Tolerance>>),
    /// Each is told to the request that it came with and concerns nobody else.
    Answer,
}

impl Rejects {
    /// Settles what needs no writer and returns what does.
    ///
    /// # Errors
    /// If the pipeline has to halt; what was rejected is then given up, to be read again.
    pub fn sort(&self, rejected: Vec<Rejected>, meter: &PipelineMeter) -> Result<Vec<Rejected>, Fault> {
        let refused = match self {
            Rejects::Halt => rejected.iter().flat_map(|one| &one.letters).next().map(nowhere_to_put),
            Rejects::Keep(_, None) => None,
            Rejects::Keep(_, Some(tolerance)) => {
                let last = rejected.iter().flat_map(|one| &one.letters).next_back();
                let places = rejected.iter().flat_map(Rejected::read_before);
                last.and_then(|last| tolerance.refuse(places, last).err())
            }
            Rejects::Answer => {
                for Rejected { letters, ticket, records } in rejected {
                    meter.leave(&meter.records_refused, records);
                    let told = letters.into_iter().map(|letter| Refused {
                        offset: letter.offset,
                        code: letter.code,
                        message: letter.message,
                    });
                    let _ = ticket.settle_refused(told);
                }
                return Ok(Vec::new());
            }
        };
        match refused {
            None => Ok(rejected),
            Some(fault) => {
                rejected.into_iter().for_each(Rejected::forget);
                Err(fault)
            }
        }
    }
}

/// The fault of a pipeline that has nowhere to put a reject.
fn nowhere_to_put(first: &DeadLetter) -> Fault {
    let plugin = first.plugin.as_ref().map_or_else(String::new, |plugin| format!(" by plugin `{plugin}`"));
    Fault::halt(
        format!("a record was rejected{plugin}: {}", first.story()),
        "mend the record or the plugin, or add [dead_letters] to the pipeline file to set such records aside",
    )
}

/// The way to where letters are kept; cheap to clone.
#[derive(Debug, Clone)]
pub struct DeadLetterBox(Way);

#[derive(Debug, Clone)]
enum Way {
    /// To the writer's thread.
    Writer { inbox: mpsc::Sender<Bundle>, runtime: Handle },
    /// Into the transactions of decisions.
    Decided(Outbox),
}

fn closed() -> Fault {
    Fault::halt("the dead letters' writer has ended", "see the log above for the reason, mend it and restart")
}

/// Makes letters durable. After an error nothing of the call counts as kept.
enum Store {
    Directory(directory::Directory),
    Topic(topic::Topic),
}

impl Store {
    fn keep(&mut self, letters: &mut dyn Iterator<Item = &DeadLetter>) -> Result<(), Fault> {
        match self {
            Store::Directory(directory) => directory.keep(letters),
            Store::Topic(topic) => topic.keep(letters),
        }
    }
}

/// Whether letters go to the brokers that the source reads from.
pub(crate) fn go_to_source(pipeline: &Pipeline) -> bool {
    match (&pipeline.source, &pipeline.dead_letters) {
        (Source::Kafka(source), Some(DeadLetters::Kafka { brokers, .. })) => {
            topic::is_on_cluster_of(source, brokers)
        }
        (Source::Kafka(_) | Source::Postgres(_) | Source::Http(_), _) => false,
    }
}

/// What is wrong with the topic that letters of a pipeline go to, before one is written; none = nothing, or they go
/// elsewhere. Makes no topic, and does not try whether it may be written to.
///
/// # Errors
/// Halt, if `[dead_letters.kafka]` makes no client; retry, if its brokers do not answer within ten seconds.
pub(crate) fn lacking_topic(pipeline: &Pipeline) -> Result<Option<String>, Fault> {
    let Some(DeadLetters::Kafka { topic, brokers }) = &pipeline.dead_letters else { return Ok(None) };
    let source = match &pipeline.source {
        Source::Kafka(source) => Some(source),
        Source::Postgres(_) | Source::Http(_) => None,
    };
    topic::lacking(topic, brokers, source)
}

impl DeadLetterBox {
    /// Opens the store and starts its writer.
    ///
    /// # Errors
    /// If the directory cannot be written or the topic's brokers refuse the settings.
    pub fn open(
        settings: &DeadLetters,
        source: Option<&Kafka>,
        runtime: &Handle,
        meter: &Arc<PipelineMeter>,
        alarm: &Alarm,
    ) -> Result<DeadLetterBox, Fault> {
        let store = match settings {
            DeadLetters::Directory(path) => Store::Directory(directory::Directory::open(path, &meter.name)?),
            DeadLetters::Kafka { topic, brokers } => {
                Store::Topic(topic::Topic::open(topic, brokers, source, meter)?)
            }
        };
        let (inbox, bundles) = mpsc::channel(BUNDLES_WAITING_MAX);
        let (meter, alarm) = (Arc::clone(meter), alarm.clone());
        std::thread::Builder::new()
            .name("dead-letters".into())
            .spawn(move || write(store, bundles, &meter, &alarm))
            .map_err(|error| Fault::retry("cannot start the dead letters' thread").caused_by(error))?;
        Ok(DeadLetterBox(Way::Writer { inbox, runtime: runtime.clone() }))
    }

    /// A box whose letters are written with the decisions about their records, if they can be: the topic has to be on
    /// the cluster whose offsets are decided.
    pub fn decided(
        settings: &DeadLetters,
        source: Option<&Kafka>,
        meter: &Arc<PipelineMeter>,
    ) -> Option<DeadLetterBox> {
        let (DeadLetters::Kafka { topic, brokers }, Some(source)) = (settings, source) else { return None };
        let is_there = topic::is_on_cluster_of(source, brokers);
        is_there.then(|| DeadLetterBox(Way::Decided(Outbox::new(topic, meter))))
    }

    /// Where letters wait for decisions, if they do.
    pub fn outbox(&self) -> Option<&Outbox> {
        match &self.0 {
            Way::Writer { .. } => None,
            Way::Decided(outbox) => Some(outbox),
        }
    }

    /// A box whose letters go to the test.
    #[cfg(test)]
    pub(crate) fn to_test(inbox: mpsc::Sender<Bundle>, runtime: &Handle) -> DeadLetterBox {
        DeadLetterBox(Way::Writer { inbox, runtime: runtime.clone() })
    }

    /// Hands letters over from a plain thread; waits up to `patience` while too many wait already, and
    /// gives them back if they still do.
    ///
    /// # Errors
    /// If the writer has ended; the tickets then poison their spans.
    pub fn post(&self, bundle: Bundle, patience: Duration) -> Result<Option<Bundle>, Fault> {
        let (inbox, runtime) = match &self.0 {
            Way::Writer { inbox, runtime } => (inbox, runtime),
            Way::Decided(outbox) => return Ok(outbox.post(bundle, patience)),
        };
        let bundle = match inbox.try_send(bundle) {
            Ok(()) => return Ok(None),
            Err(TrySendError::Full(bundle)) => bundle,
            Err(TrySendError::Closed(_)) => return Err(closed()),
        };
        let room = async { tokio::time::timeout(patience, inbox.reserve()).await };
        match runtime.block_on(room) {
            Ok(Ok(room)) => {
                room.send(bundle);
                Ok(None)
            }
            Ok(Err(_closed)) => Err(closed()),
            Err(_elapsed) => Ok(Some(bundle)),
        }
    }

    /// Hands letters over from a tokio task.
    ///
    /// # Errors
    /// As [`DeadLetterBox::post`].
    pub async fn post_async(&self, bundle: Bundle) -> Result<(), Fault> {
        match &self.0 {
            Way::Writer { inbox, .. } => inbox.send(bundle).await.map_err(|_| closed()),
            Way::Decided(outbox) => {
                outbox.post_at_once(bundle);
                Ok(())
            }
        }
    }
}

fn write(mut store: Store, mut bundles: mpsc::Receiver<Bundle>, meter: &PipelineMeter, alarm: &Alarm) {
    let mut notice = notice::Notice::default();
    while let Some(first) = bundles.blocking_recv() {
        let mut group = vec![first];
        while let Ok(next) = bundles.try_recv() {
            group.push(next);
        }
        let mut early = Vec::new();
        if planted(Bug::DeadLetterBeforeDurable) {
            early.extend(group.iter().flat_map(Bundle::letters).cloned());
            settle(std::mem::take(&mut group), meter);
        }
        failpoint::at("letters.before_write");
        let kept = store.keep(&mut early.iter().chain(group.iter().flat_map(Bundle::letters)));
        if let Err(fault) = kept {
            alarm.raise(fault);
            // Nothing was acknowledged: the records are read again after the mend.
            group.into_iter().for_each(Bundle::forget);
            break;
        }
        failpoint::at("letters.kept");
        notice.kept(&meter.name, group.iter().flat_map(Bundle::letters));
        settle(group, meter);
        failpoint::at("letters.settled");
    }
    notice.end(&meter.name);
}

fn settle(group: Vec<Bundle>, meter: &PipelineMeter) {
    for Rejected { ticket, records, .. } in group.into_iter().flat_map(|bundle| bundle.rejected) {
        meter.leave(&meter.records_dead_lettered, records);
        let _ = ticket.settle_kept(records);
    }
}
