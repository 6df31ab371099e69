//! Body buffers that come back from durable batches: a megabyte that is mapped and page-faulted anew
//! for every chunk costs more than filling it (reference: wasm.md §2, "fresh heap").

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
}

impl Default for Buffers {
    fn default() -> Self {
        let (give, take) = bounded(BUFFERS_MAX);
        Self { give, take }
    }
}

impl Buffers {
    /// An empty buffer, used before if there is one.
    pub fn take(&self) -> Vec<u8> {
        self.take.try_recv().unwrap_or_default()
    }

    /// Gives a buffer back.
    pub fn give(&self, mut buffer: Vec<u8>) {
        if buffer.capacity() <= BUFFER_BYTES_MAX {
            buffer.clear();
            // Full: there are enough, this one is freed.
            let _ = self.give.try_send(buffer);
        }
    }
}
