//! What happens when a plugin fails: the records that make it fail are found by halving and become rejects.

use std::ops::Range;
use std::time::Duration;

use super::guest::{CallError, Guest};
use super::log::printable;
use super::merge::{Pieces, copy_part};
use super::validate::Weight;
use crate::fault::Fault;
use crate::record::{Answer, Columns, RecordReject};

/// While halving, a piece gets its share of the call's time, and never less than this (or the whole, if that is
/// shorter): a plugin that loops on one record of a chunk must not hold its lane for the whole time at every step.
const PIECE_TIMEOUT_MIN: Duration = Duration::from_secs(1);
/// Time-outs within one chunk after which the pipeline halts: that plugin is slow or stuck, not poisoned.
const TIMEOUTS_PER_CHUNK_MAX: u32 = 64;

/// Calls the plugin for a chunk and isolates what makes it fail.
///
/// A call that traps, outlasts its time, runs out of memory or returns what breaks the contract is repeated once on
/// a fresh instance. If it fails again, the chunk is halved until the records that cause it stand alone; each of
/// those is tried once more alone and then becomes a reject with the code `trap`, `timeout`, `memory` or
/// `invalid-output`. All other records have their rows. `scratch` holds the halves; its contents do not matter.
///
/// The parts of a chunk may return no more together than one call may: what goes beyond that breaks the contract, as if a
/// call had returned too much. Otherwise a chunk of thousands of records could be answered with `max_output` for each.
///
/// In the answer, rows of a plugin that routes only some of its outputs may name
/// [`TABLE_UNROUTED`](super::TABLE_UNROUTED).
///
/// # Errors
///
/// `Retry` if the plugin asks for it: the same chunk should be given again later. `Halt` if the plugin gives up, or if
/// as many records in a row made it fail as the pipeline allows (over chunks, reset by any success).
pub fn process_isolated(guest: &mut Guest, chunk: &Columns, scratch: &mut Columns) -> Result<Answer, Fault> {
    // The way that nearly every chunk goes.
    let first = match guest.process(chunk) {
        Ok(answer) => {
            guest.failures_in_a_row = 0;
            return Ok(answer);
        }
        Err(error) => Poison::of(&error, guest)?,
    };
    tracing::warn!(
        plugin = guest.plugin().name,
        records = chunk.len(),
        error = printable(&first.message),
        "plugin failed, trying the chunk again on a fresh instance"
    );
    let weight = Weight::default();
    let mut search = Search { guest, chunk, scratch, timeouts: 0, weight, pieces: Pieces::new(chunk) };
    search.count_timeout(&first)?;
    search.run()
}

/// A failure that may be the fault of one record.
struct Poison {
    code: &'static str,
    message: String,
}

impl Poison {
    /// The failure as a reason to search, or as the fault that it is when no record can be to blame.
    fn of(error: &CallError, guest: &Guest) -> Result<Self, Fault> {
        let code = match error {
            CallError::Trap { .. } => "trap",
            CallError::TimedOut(_) => "timeout",
            CallError::OutOfMemory(_) => "memory",
            CallError::OutputTooLarge(_) | CallError::Invalid(_) => "invalid-output",
            CallError::Retry(message) => {
                let (plugin, message) = (&guest.plugin().name, printable(message));
                return Err(Fault::retry(format!("plugin {plugin} asks to try again: {message}")));
            }
            CallError::Fatal(message) => {
                let (plugin, message) = (&guest.plugin().name, printable(message));
                return Err(Fault::halt(
                    format!("plugin {plugin} gave up: {message}"),
                    "correct the plugin or its configuration; no position has moved, the same records come again",
                ));
            }
            CallError::NoInstance(why) => {
                let plugin = &guest.plugin().name;
                return Err(Fault::halt(
                    format!("cannot replace the instance of plugin {plugin} that failed: {}", printable(why)),
                    "no position has moved; start again when the cause is gone",
                ));
            }
        };
        Ok(Self { code, message: error.to_string() })
    }
}

/// The search through one chunk.
struct Search<'a> {
    guest: &'a mut Guest,
    chunk: &'a Columns,
    scratch: &'a mut Columns,
    timeouts: u32,
    /// Of all pieces.
    weight: Weight,
    pieces: Pieces<'a>,
}

impl Search<'_> {
    /// Goes through the chunk from its beginning, so that "in a row" means what it says.
    fn run(mut self) -> Result<Answer, Fault> {
        let whole = 0..self.chunk.len();
        // Ranges still to be called, the next one last. At most one for each halving: 32.
        let mut open = vec![whole];
        while let Some(range) = open.pop() {
            match self.call(&range)? {
                Ok(answer) => self.keep(range, answer),
                Err(_) if range.len() > 1 => {
                    let middle = range.start + range.len() / 2;
                    open.push(middle..range.end);
                    open.push(range.start..middle);
                }
                Err(poison) => self.alone(range, poison)?,
            }
        }
        Ok(self.pieces.merge(&self.guest.plugin().descriptor.tables))
    }

    /// A record that failed alone: once more, then it is a reject. In a chunk of one record it had that chance already.
    fn alone(&mut self, record: Range<usize>, poison: Poison) -> Result<(), Fault> {
        let poison = if self.chunk.len() > 1 {
            match self.call(&record)? {
                Ok(answer) => {
                    self.keep(record, answer);
                    return Ok(());
                }
                Err(poison) => poison,
            }
        } else {
            poison
        };
        self.guest.failures_in_a_row += 1;
        let plugin = self.guest.plugin();
        let (failures, allowed) = (self.guest.failures_in_a_row, plugin.failures_in_a_row_max);
        if failures >= allowed {
            return Err(Fault::halt(
                format!(
                    "plugin {} failed on {failures} records in a row: {}",
                    plugin.name,
                    printable(&poison.message)
                ),
                "correct the plugin, or raise `failures_in_a_row` of its [[transform]]; no position has moved",
            ));
        }
        let reject = RecordReject { input: 0, code: poison.code.into(), message: poison.message };
        self.pieces.push(record, Answer { rejects: vec![reject], ..Answer::default() });
        Ok(())
    }

    fn keep(&mut self, part: Range<usize>, answer: Answer) {
        self.guest.failures_in_a_row = 0;
        self.pieces.push(part, answer);
    }

    /// Adds an answer to what the parts before it returned, if there is room for it.
    fn weigh(&mut self, answer: Answer, weight: Weight) -> Result<Answer, Poison> {
        let allowed = self.guest.plugin().grant.output_bytes;
        match self.weight.plus(weight, allowed) {
            Some(sum) => {
                self.weight = sum;
                Ok(answer)
            }
            None => {
                self.guest.plugin().stats.invalid_outputs.add(1);
                let message =
                    format!("the plugin returned more than {allowed} bytes for the records of one chunk");
                Err(Poison { code: "invalid-output", message })
            }
        }
    }

    /// One call for a part of the chunk. The outer error ends the search.
    fn call(&mut self, range: &Range<usize>) -> Result<Result<Answer, Poison>, Fault> {
        let full = self.guest.plugin().grant.timeout;
        let (outcome, part) = if range.len() == self.chunk.len() {
            (self.guest.process(self.chunk), self.chunk)
        } else {
            let share = full.mul_f64(range.len() as f64 / self.chunk.len() as f64);
            copy_part(self.chunk, range.clone(), self.scratch);
            let outcome = self.guest.process_within(self.scratch, share.max(PIECE_TIMEOUT_MIN).min(full));
            (outcome, &*self.scratch)
        };
        match outcome {
            Ok(answer) => {
                let weight = Weight::of(&answer, part);
                Ok(self.weigh(answer, weight))
            }
            Err(error) => {
                let poison = Poison::of(&error, self.guest)?;
                self.count_timeout(&poison)?;
                Ok(Err(poison))
            }
        }
    }

    fn count_timeout(&mut self, poison: &Poison) -> Result<(), Fault> {
        if poison.code != "timeout" {
            return Ok(());
        }
        self.timeouts += 1;
        if self.timeouts < TIMEOUTS_PER_CHUNK_MAX {
            return Ok(());
        }
        let plugin = &self.guest.plugin().name;
        Err(Fault::halt(
            format!("plugin {plugin} outlasted its time {TIMEOUTS_PER_CHUNK_MAX} times within one chunk"),
            "correct the plugin, or raise `timeout` of its [[transform]]; no position has moved",
        ))
    }
}
