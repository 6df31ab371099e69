//! A lane's input: the chunks that control sends it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use crate::fault::Fault;
use crate::position::{Span, Stay};
use crate::record::Columns;
use crate::source::{Fed, Feed};

/// How long a lane waits for a chunk before it looks at its orders again.
const READ_WAIT: Duration = Duration::from_millis(50);

/// A lane's end of the way.
pub(crate) struct ReplayFeed {
    outlet: Receiver<(Columns, Span)>,
    let_go: Arc<AtomicBool>,
}

impl ReplayFeed {
    pub(super) fn new(outlet: Receiver<(Columns, Span)>, let_go: Arc<AtomicBool>) -> ReplayFeed {
        ReplayFeed { outlet, let_go }
    }
}

impl Feed for ReplayFeed {
    fn next(&mut self, into: &mut Columns) -> Result<Fed, Fault> {
        into.clear();
        if self.let_go.load(Ordering::Acquire) {
            return Ok(Fed::Ended);
        }
        match self.outlet.recv_timeout(READ_WAIT) {
            Ok((columns, span)) => {
                *into = columns;
                Ok(Fed::Chunk(span))
            }
            Err(RecvTimeoutError::Timeout) => Ok(Fed::Idle),
            Err(RecvTimeoutError::Disconnected) => Ok(Fed::Ended),
        }
    }

    fn owns(&mut self, _stay: &Stay) -> bool {
        !self.let_go.load(Ordering::Acquire)
    }
}
