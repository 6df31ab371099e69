//! Where records come from: reading and releasing, nothing else.

use crate::fault::Fault;
use crate::position::{Span, Stay};
use crate::record::Columns;

pub mod kafka;
pub mod postgres;

/// What a lane got from its feed.
#[derive(Debug, PartialEq, Eq)]
pub enum Fed {
    /// The columns hold the records of this span.
    Chunk(Span),
    /// Nothing arrived for a moment.
    Idle,
    /// Nothing will arrive any more.
    Ended,
}

/// A lane's input. The lane alone calls it, from its own thread.
pub trait Feed {
    /// Fills `into` (which it clears first) with the next chunk of one partition.
    ///
    /// # Errors
    /// Whatever the source says that it cannot get over by itself.
    fn next(&mut self, into: &mut Columns) -> Result<Fed, Fault>;

    /// Whether records of `stay` should still be used: false once it is being given up.
    fn owns(&mut self, stay: &Stay) -> bool;
}
