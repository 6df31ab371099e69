//! One lane's instance of a plugin: called a chunk at a time, replaced when it failed or grew.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::engine::Plugin;
use super::instance::{Failure, Live};
use super::{validate, wit};
use crate::fault::Fault;
use crate::planted::{Bug, planted};
use crate::record::{Answer, BytesColumn, Columns};

/// Why a call gave no rows. The instance is gone already, the next call gets a fresh one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The guest stopped itself or did what WebAssembly forbids.
    #[error("the plugin trapped: {what}")]
    Trap {
        /// How, in the words of the run-time.
        what: String,
    },
    /// The call outlasted its time.
    #[error("the plugin outlasted its time of {0:?}")]
    TimedOut(Duration),
    /// It wanted more memory than it may have.
    #[error("the plugin ran out of memory: {0}")]
    OutOfMemory(String),
    /// It returned more bytes than it may.
    #[error("the plugin returned more than {0} bytes")]
    OutputTooLarge(u64),
    /// Its output breaks the contract.
    #[error("the plugin broke its contract: {0}")]
    Invalid(String),
    /// The plugin says that it may go better another time.
    #[error("the plugin asks to try again: {0}")]
    Retry(String),
    /// The plugin says that it will never go better.
    #[error("the plugin gave up: {0}")]
    Fatal(String),
    /// After an earlier failure no fresh instance could be started.
    #[error("no fresh instance: {0}")]
    NoInstance(String),
}

/// The running instance of one plugin in one lane.
///
/// Holds at most one instance, because the pool has room for one: the old one is dropped before its successor is
/// made. Dies with its lane.
pub struct Guest {
    plugin: Arc<Plugin>,
    live: Option<Live>,
    /// Linear memory above which the instance is replaced after a call: it never shrinks.
    replace_above_bytes: u64,
    /// Records that made the plugin fail since the last one that did not, over chunks.
    pub(super) failures_in_a_row: u32,
}

impl Guest {
    /// Starts and configures an instance.
    ///
    /// # Errors
    ///
    /// `Halt` if it cannot be started or describes itself otherwise than when it was loaded.
    pub fn new(plugin: Arc<Plugin>) -> Result<Guest, Fault> {
        let mut guest = Guest { plugin, live: None, replace_above_bytes: 0, failures_in_a_row: 0 };
        guest.live = Some(guest.start()?);
        Ok(guest)
    }

    /// The plugin that it is an instance of.
    pub fn plugin(&self) -> &Arc<Plugin> {
        &self.plugin
    }

    /// One guest call for the chunk, with the columns that the plugin wants. Never panics, whatever the guest does.
    ///
    /// # Errors
    ///
    /// See [`CallError`]. After any of them the next call runs on a fresh instance.
    pub fn process(&mut self, chunk: &Columns) -> Result<Answer, CallError> {
        self.process_within(chunk, self.plugin.grant.timeout)
    }

    /// As [`Guest::process`], with another limit on time.
    pub(super) fn process_within(&mut self, chunk: &Columns, timeout: Duration) -> Result<Answer, CallError> {
        if chunk.is_empty() {
            return Ok(Answer::default());
        }
        let mut live = match self.live.take() {
            Some(live) => live,
            None => self.start().map_err(|fault| CallError::NoInstance(fault.story()))?,
        };
        let stats = &self.plugin.stats;
        let began = Instant::now();
        let outcome = live.process(self.batch(chunk), timeout);
        stats.guest_ns.add(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX));
        stats.calls.add(1);
        let answer = match outcome {
            Ok(Ok(output)) => self.check(output, chunk),
            Ok(Err(wit::BatchError::Retry(message))) => Err(CallError::Retry(message)),
            Ok(Err(wit::BatchError::Fatal(message))) => Err(CallError::Fatal(message)),
            Err(failure) => Err(self.failed(failure, timeout)),
        };
        // Whatever is not kept here is dropped with `live`, before a successor is made.
        let is_sound = answer.is_ok() || planted(Bug::GuestReusedAfterTrap);
        if is_sound && live.memory_bytes() <= self.replace_above_bytes {
            self.live = Some(live);
        } else {
            stats.instances_replaced.add(1);
        }
        answer
    }

    fn start(&mut self) -> Result<Live, Fault> {
        let (live, descriptor) = self.plugin.start()?;
        if descriptor != self.plugin.descriptor {
            return Err(Fault::halt(
                format!(
                    "plugin {} describes itself differently with the same configuration",
                    self.plugin.name
                ),
                "this is a mistake in the plugin: report it to its author",
            ));
        }
        // Half of the way from where it starts to where it must stop: one large chunk fixes the size for good.
        let started = live.memory_bytes();
        self.replace_above_bytes = started + self.plugin.grant.memory_bytes.saturating_sub(started) / 2;
        Ok(live)
    }

    /// The chunk as the guest gets it: columns that it does not want are empty.
    fn batch<'a>(&self, chunk: &'a Columns) -> wit::Batch<'a> {
        let wants = self.plugin.descriptor.wants;
        let headers = if wants.headers {
            wit::HeaderColumnParam {
                ends: &chunk.headers.ends,
                names: lent(&chunk.headers.names),
                contents: lent(&chunk.headers.contents),
            }
        } else {
            wit::HeaderColumnParam { ends: &[], names: NOTHING, contents: NOTHING }
        };
        wit::Batch {
            source: chunk.source(),
            values: lent(&chunk.values),
            marks: &chunk.marks,
            keys: if wants.key { lent(&chunk.keys) } else { NOTHING },
            timestamps: if wants.timestamp { chunk.timestamps.as_slice() } else { &[] },
            partitions: if wants.position { chunk.partitions.as_slice() } else { &[] },
            offsets: if wants.position { chunk.offsets.as_slice() } else { &[] },
            headers,
        }
    }

    fn check(&self, output: wit::Output, chunk: &Columns) -> Result<Answer, CallError> {
        let limits = validate::Limits {
            tables: self.plugin.descriptor.tables.len(),
            output_bytes: self.plugin.grant.output_bytes,
        };
        validate::answer(output, chunk, limits).map_err(|violation| {
            self.plugin.stats.invalid_outputs.add(1);
            CallError::Invalid(violation)
        })
    }

    fn failed(&self, failure: Failure, timeout: Duration) -> CallError {
        let stats = &self.plugin.stats;
        match failure {
            Failure::Trap(what) => {
                stats.traps.add(1);
                CallError::Trap { what }
            }
            Failure::TimedOut => {
                stats.timeouts.add(1);
                CallError::TimedOut(timeout)
            }
            Failure::OutOfMemory(what) => {
                stats.out_of_memory.add(1);
                CallError::OutOfMemory(what)
            }
            Failure::OutputTooLarge => {
                stats.invalid_outputs.add(1);
                CallError::OutputTooLarge(self.plugin.grant.output_bytes)
            }
        }
    }
}

const NOTHING: wit::BytesColumnParam<'static> = wit::BytesColumnParam { data: &[], ends: &[] };

fn lent(column: &BytesColumn) -> wit::BytesColumnParam<'_> {
    wit::BytesColumnParam { data: &column.data, ends: &column.ends }
}
