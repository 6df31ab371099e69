//! A connection that is not waited for forever: between requests, while the head of one arrives, and while an
//! answer is not read.
//!
//! hyper has one time-out for both, which is either too long for a head that trickles or too short for a
//! client that keeps its connection for the next request.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// The whole answer to a head that took too long; there is no request that hyper could answer.
const TOO_SLOW: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-type: application/json\r\n\
    content-length: 64\r\n\r\n{\"error\":\"the head of the request did not arrive soon enough\"}\r\n";

/// Where a connection is; shared with whoever takes its requests.
#[derive(Debug, Clone, Default)]
pub(super) struct Phase(Arc<AtomicU8>);

const BETWEEN: u8 = 0;
const IN_HEAD: u8 = 1;
const IN_REQUEST: u8 = 2;

impl Phase {
    /// A head has arrived: from now on whoever takes the request keeps the time.
    pub(super) fn request(&self) {
        self.0.store(IN_REQUEST, Ordering::Relaxed);
    }

    /// The request is answered.
    pub(super) fn between(&self) {
        self.0.store(BETWEEN, Ordering::Relaxed);
    }

    fn get(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }

    fn head(&self) {
        self.0.store(IN_HEAD, Ordering::Relaxed);
    }
}

/// A stream whose reads end when they take too long.
pub(super) struct Paced<S> {
    inner: S,
    phase: Phase,
    idle_max: Duration,
    head_max: Duration,
    timer: Pin<Box<Sleep>>,
    /// The phase that the timer runs for.
    timed: Option<u8>,
    /// Runs while the client does not read its answer.
    unread: Option<Pin<Box<Sleep>>>,
}

impl<S> Paced<S> {
    pub(super) fn new(inner: S, phase: Phase, idle_max: Duration, head_max: Duration) -> Paced<S> {
        let timer = Box::pin(tokio::time::sleep(idle_max));
        Paced { inner, phase, idle_max, head_max, timer, timed: None, unread: None }
    }

    /// What a write has come to; one that the client keeps waiting for too long is an error.
    fn written<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.unread = None;
            return written;
        }
        let patience = self.head_max;
        let timer = self.unread.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        timer.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Whether the time of the phase is over; starts its timer if it does not run.
    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        let phase = self.phase.get();
        let limit = match phase {
            BETWEEN => self.idle_max,
            IN_HEAD => self.head_max,
            _in_request => {
                self.timed = None;
                return false;
            }
        };
        if self.timed != Some(phase) {
            self.timed = Some(phase);
            self.timer.as_mut().reset(Instant::now() + limit);
        }
        self.timer.as_mut().poll(cx).is_ready()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        if let Poll::Ready(read) = Pin::new(&mut this.inner).poll_read(cx, buf) {
            if buf.filled().len() > before && this.phase.get() == BETWEEN {
                this.phase.head();
                this.timed = None;
            }
            return Poll::Ready(read);
        }
        let in_head = this.phase.get() == IN_HEAD;
        if !this.is_over(cx) {
            return Poll::Pending;
        }
        if !in_head {
            // Nothing was begun: as if the client had closed.
            return Poll::Ready(Ok(()));
        }
        // A client that does not read either misses nothing that it would have read.
        if Pin::new(&mut this.inner).poll_write(cx, TOO_SLOW).is_ready() {
            let _ = Pin::new(&mut this.inner).poll_flush(cx);
        }
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.written(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        self.written(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.written(cx, shut)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.written(cx, written)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    /// Tests that reach it wait it out.
    const LIMIT: Duration = Duration::from_millis(500);
    const NEVER: Duration = Duration::from_secs(3600);

    fn paced(idle_max: Duration, head_max: Duration) -> (DuplexStream, Phase, Paced<DuplexStream>) {
        let ((client, server), phase) = (duplex(1024), Phase::default());
        (client, phase.clone(), Paced::new(server, phase, idle_max, head_max))
    }

    #[tokio::test]
    async fn an_idle_connection_ends_as_if_the_client_had_closed() {
        let (_client, _phase, mut server) = paced(LIMIT, NEVER);
        let began = Instant::now();
        assert_eq!(server.read(&mut [0; 9]).await.expect("the end"), 0);
        assert!(began.elapsed() >= LIMIT);
    }

    #[tokio::test]
    async fn a_head_that_trickles_is_cut_off_with_an_answer() {
        let (mut client, _phase, mut server) = paced(NEVER, LIMIT);
        let trickle = tokio::spawn(async move {
            let mut said = Vec::new();
            while !said.ends_with(b"}\r\n") {
                tokio::select! {
                    read = client.read_buf(&mut said) => assert!(read.expect("open") > 0),
                    () = tokio::time::sleep(LIMIT / 20) => client.write_all(b"P").await.expect("open"),
                }
            }
            said
        });
        let began = Instant::now();
        let error = loop {
            if let Err(error) = server.read(&mut [0; 9]).await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() >= LIMIT);
        let said = String::from_utf8(trickle.await.expect("ends")).expect("text");
        let (head, body) = said.split_once("\r\n\r\n").expect("a head");
        assert!(
            head.starts_with("HTTP/1.1 408 ") && head.contains(&format!("content-length: {}", body.len()))
        );
    }

    #[tokio::test]
    async fn each_pause_between_requests_is_a_new_one() {
        /// So much longer than a pause that a busy machine does not stretch one to it; all pauses together are longer.
        const IDLE_MAX: Duration = Duration::from_secs(2);
        const PAUSE: Duration = Duration::from_millis(300);
        const PAUSES: u32 = 8;
        const { assert!(PAUSE.as_millis() * PAUSES as u128 > IDLE_MAX.as_millis()) };
        let (mut client, phase, mut server) = paced(IDLE_MAX, NEVER);
        for _ in 0..PAUSES {
            // A pause that ends before its limit does not count for the next one.
            let pause = tokio::time::timeout(PAUSE, server.read(&mut [0; 9])).await;
            assert!(pause.is_err(), "nothing arrived, and it was not the end");
            client.write_all(b"x").await.expect("open");
            assert_eq!(server.read(&mut [0; 9]).await.expect("a byte"), 1);
            phase.request();
            phase.between();
        }
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_is_not_written_to_for_ever() {
        let (_client, _phase, mut server) = paced(NEVER, LIMIT);
        let began = Instant::now();
        let error = server.write_all(&[0; 4096]).await.expect_err("a full pipe");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() >= LIMIT);
    }
}
