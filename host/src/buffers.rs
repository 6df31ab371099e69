//! Body buffers that come back from durable batches: a megabyte that is mapped and page-faulted anew
//! for every chunk costs more than filling it (reference: wasm.md §2, "fresh heap").

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};

/// Buffers kept at most; more are freed.
const BUFFERS_MAX: usize = 32;
/// A buffer that grew past this is freed rather than kept.
const BUFFER_BYTES_MAX: usize = 4 << 20;

/// A pipeline's buffers, shared by lanes (take) and loads (give back). Neither ever waits here.
#[derive(Debug, Clone)]
pub struct Buffers {
    give: Sender<Vec<u8>>,
    take: Receiver<Vec<u8>>,
    /// Buffers that lanes took and that did not come back: no more than these are kept, so that memory
    /// that plugins' answers came in does not pile up here.
    lent: Arc<AtomicUsize>,
}

impl Default for Buffers {
    fn default() -> Self {
        let (give, take) = bounded(BUFFERS_MAX);
        Self { give, take, lent: Arc::default() }
    }
}

impl Buffers {
    /// An empty buffer, used before if there is one.
    pub fn take(&self) -> Vec<u8> {
        self.lent.fetch_add(1, Ordering::Relaxed);
        self.take.try_recv().unwrap_or_default()
    }

    /// Gives a buffer back.
    pub fn give(&self, mut buffer: Vec<u8>) {
        let back = self.lent.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |lent| lent.checked_sub(1));
        if back.is_ok() && buffer.capacity() <= BUFFER_BYTES_MAX {
            buffer.clear();
            // Full: there are enough, this one is freed.
            let _ = self.give.try_send(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_as_many_come_back_as_were_taken() {
        let buffers = Buffers::default();
        buffers.give(Vec::with_capacity(10));
        assert_eq!(buffers.take().capacity(), 0);
        buffers.give(vec![1; 10]);
        let again = buffers.take();
        assert!(again.is_empty() && again.capacity() >= 10);
    }
}
