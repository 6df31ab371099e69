//! A request body that waits for the server's `100 Continue` before its first byte leaves.
//!
//! StarRocks begins the transaction and plans it before it wants the body; a refusal then arrives as an
//! answer, and not as a reset in the middle of what was sent (reference/starrocks-load-protocol.md §1.2).

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::oneshot;
use tokio::time::Sleep;

/// What is known of a body from outside, while and after the connection had it.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress {
    left: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
}

impl Progress {
    /// Whether the first byte may have left this process.
    pub(super) fn has_left(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }

    /// Whether the connection was given all of it.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}

/// Opens a [`HeldBody`]: given to the callback for `1xx` answers.
#[derive(Debug)]
pub(super) struct Gate(Mutex<Option<oneshot::Sender<()>>>);

impl Gate {
    /// Lets the body go. Later calls do nothing.
    pub(super) fn open(&self) {
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(sender) = sender {
            // The body is gone when the connection is: nothing is left to open.
            let _ = sender.send(());
        }
    }
}

#[derive(Debug)]
enum Hold {
    /// Waits for the gate, or for the end of patience, if there is one, with servers that never say 100.
    Waiting { gate: oneshot::Receiver<()>, patience: Option<Pin<Box<Sleep>>> },
    /// Goes out.
    Open,
    /// The final answer came first: the body is not wanted and never goes out.
    Unwanted,
}

/// The segments of a load, one frame each, without copying.
#[derive(Debug)]
pub(super) struct HeldBody {
    hold: Hold,
    segments: std::vec::IntoIter<Bytes>,
    remaining: u64,
    progress: Progress,
}

impl HeldBody {
    /// No body at all.
    pub(super) fn empty() -> (Self, Progress) {
        let progress = Progress::default();
        progress.ended.store(true, Ordering::Release);
        let body = Self {
            hold: Hold::Open,
            segments: Vec::new().into_iter(),
            remaining: 0,
            progress: progress.clone(),
        };
        (body, progress)
    }

    /// A body that waits for the gate, at most `patience` if that is limited.
    pub(super) fn held(segments: Vec<Bytes>, patience: Option<Duration>) -> (Self, Gate, Progress) {
        let (opener, gate) = oneshot::channel();
        let progress = Progress::default();
        let remaining = segments.iter().map(|segment| segment.len() as u64).sum();
        let body = Self {
            hold: Hold::Waiting {
                gate,
                patience: patience.map(|patience| Box::pin(tokio::time::sleep(patience))),
            },
            segments: segments.into_iter(),
            remaining,
            progress: progress.clone(),
        };
        (body, Gate(Mutex::new(Some(opener))), progress)
    }

    /// Whether the hold is over. `Pending` for ever when the body is not wanted: whoever got the final
    /// answer drops the connection, and the body with it.
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Hold::Waiting { gate, patience } = &mut self.hold else {
            return match self.hold {
                Hold::Open => Poll::Ready(()),
                Hold::Unwanted | Hold::Waiting { .. } => Poll::Pending,
            };
        };
        match Pin::new(gate).poll(cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(_)) => {
                self.hold = Hold::Unwanted;
                return Poll::Pending;
            }
            Poll::Pending => match patience {
                Some(patience) => std::task::ready!(patience.as_mut().poll(cx)),
                None => return Poll::Pending,
            },
        }
        self.hold = Hold::Open;
        Poll::Ready(())
    }
}

impl Body for HeldBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        std::task::ready!(self.poll_open(cx));
        if self.progress.has_left() && self.remaining > 0 {
            crate::failpoint::at("load.mid_body");
        }
        match self.segments.next() {
            Some(segment) => {
                self.progress.left.store(true, Ordering::Release);
                self.remaining -= segment.len() as u64;
                if self.remaining == 0 {
                    crate::failpoint::soon("load.body_sent");
                    self.progress.ended.store(true, Ordering::Release);
                }
                Poll::Ready(Some(Ok(Frame::data(segment))))
            }
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.remaining == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn poll(body: &mut HeldBody) -> Poll<Option<Bytes>> {
        let frame = Pin::new(body).poll_frame(&mut Context::from_waker(Waker::noop()));
        frame.map(|frame| frame.map(|Ok(frame)| frame.into_data().expect("data")))
    }

    fn held() -> (HeldBody, Gate, Progress) {
        let segments = vec![Bytes::from_static(b"one\n"), Bytes::from_static(b"two\n")];
        HeldBody::held(segments, Some(Duration::from_secs(3600)))
    }

    #[tokio::test]
    async fn nothing_leaves_before_the_gate_opens() {
        let (mut body, gate, progress) = held();
        assert_eq!(body.size_hint().exact(), Some(8));
        assert_eq!(poll(&mut body), Poll::Pending);
        assert!(!progress.has_left());
        gate.open();
        assert_eq!(poll(&mut body), Poll::Ready(Some(Bytes::from_static(b"one\n"))));
        assert!(progress.has_left() && !progress.has_ended());
        assert_eq!(poll(&mut body), Poll::Ready(Some(Bytes::from_static(b"two\n"))));
        assert!(progress.has_ended() && body.is_end_stream());
        assert_eq!(poll(&mut body), Poll::Ready(None));
    }

    #[tokio::test]
    async fn a_body_never_asked_for_leaves_after_its_patience() {
        let segments = vec![Bytes::from_static(b"{}\n")];
        let (mut body, gate, progress) = HeldBody::held(segments, Some(Duration::from_millis(20)));
        assert_eq!(poll(&mut body), Poll::Pending);
        assert!(!progress.has_left());
        let frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
        assert!(frame.is_some() && progress.has_left());
        drop(gate);
    }

    #[tokio::test]
    async fn a_body_whose_answer_came_first_stays_here() {
        let (mut body, gate, progress) = held();
        drop(gate);
        assert_eq!(poll(&mut body), Poll::Pending);
        assert_eq!(poll(&mut body), Poll::Pending);
        assert!(!progress.has_left());
    }
}
