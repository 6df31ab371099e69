//! A request's body, read within limits of bytes, time and room.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt as _;
use tokio::sync::Semaphore;

use crate::batch::stage::StageHandle;
use crate::budget::{Permit, Share};

/// How long one request waits for room before it is refused; the others are refused at once.
const ROOM_PATIENCE: Duration = Duration::from_millis(250);
/// How often it asks the stage to make room meanwhile.
const NUDGE_EVERY: Duration = Duration::from_millis(50);
/// What is read of a body that is not wanted, so that its client comes to read the answer.
const UNWANTED_BYTES_MAX: u64 = 4 << 20;

/// Where requests get room for their bytes.
#[derive(Clone)]
pub(super) struct Room(Arc<RoomShared>);

struct RoomShared {
    share: Share,
    stage: StageHandle,
    /// The one that may wait: a reader that waits makes the stage cut a batch, a thousand would do no more.
    waiter: Arc<Semaphore>,
}

impl Room {
    pub(super) fn new(share: Share, stage: StageHandle) -> Room {
        Room(Arc::new(RoomShared { share, stage, waiter: Arc::new(Semaphore::new(1)) }))
    }

    /// Nothing charged yet.
    pub(super) fn charge(&self) -> Charge {
        Charge { room: self.clone(), permit: None }
    }
}

/// The bytes of one request.
pub(super) struct Charge {
    room: Room,
    permit: Option<Permit>,
}

impl Charge {
    /// The same for chunks of these bytes each, which ride on by themselves.
    pub(super) fn split(self, bytes: impl ExactSizeIterator<Item = u64>) -> Vec<Permit> {
        let Charge { room, mut permit } = self;
        let mut whole = if bytes.len() == 1 { permit.take() } else { None };
        let fitted = bytes.map(|bytes| match whole.take() {
            None => room.0.share.overdraft(bytes),
            Some(mut permit) => {
                permit.resize(bytes);
                permit
            }
        });
        fitted.collect()
    }

    fn held(&self) -> u64 {
        self.permit.as_ref().map_or(0, Permit::bytes)
    }

    fn add(&mut self, more: Permit) {
        match &mut self.permit {
            None => self.permit = Some(more),
            Some(permit) => permit.resize(permit.bytes().saturating_add(more.bytes())),
        }
    }

    /// Gives back what is charged beyond `bytes`.
    pub(super) fn shrink(&mut self, bytes: u64) {
        if let Some(permit) = self.permit.as_mut().filter(|permit| permit.bytes() > bytes) {
            permit.resize(bytes);
        }
    }

    /// Charges `bytes` in all, if there is room.
    pub(super) fn try_grow(&mut self, bytes: u64) -> bool {
        let Some(lacks) = bytes.checked_sub(self.held()).filter(|lacks| *lacks > 0) else { return true };
        let share = &self.room.0.share;
        // A request that is larger than the whole share could never be taken unless it is alone.
        let alone = || (share.used() == self.held()).then(|| share.overdraft(lacks));
        let more = share.try_acquire(lacks).or_else(alone);
        let found = more.is_some();
        more.into_iter().for_each(|more| self.add(more));
        found
    }

    /// Charges `bytes` in all; waits a moment for room if no other request does.
    pub(super) async fn grow(&mut self, bytes: u64) -> bool {
        if self.try_grow(bytes) {
            return true;
        }
        let Ok(_turn) = Arc::clone(&self.room.0.waiter).try_acquire_owned() else { return false };
        let (room, lacks) = (self.room.clone(), bytes.saturating_sub(self.held()));
        // The budget's waiting is made for threads.
        let waited = tokio::task::spawn_blocking(move || {
            let deadline = Instant::now() + ROOM_PATIENCE;
            loop {
                room.0.stage.nudge();
                let more = room.0.share.acquire(lacks, NUDGE_EVERY);
                if more.is_some() || Instant::now() >= deadline {
                    return more;
                }
            }
        });
        match waited.await {
            Ok(Some(more)) => {
                self.add(more);
                true
            }
            Ok(None) | Err(_) => false,
        }
    }
}

/// Why a body was not read to its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// It is longer than the limit.
    TooLarge,
    /// Nothing arrived for this long.
    Silent(Duration),
    /// It did not arrive whole within this long.
    TooSlow(Duration),
    /// The byte budget is full.
    NoRoom,
    /// The client ended it early, or broke its own framing.
    Broken,
}

/// Limits of a body.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) bytes_max: u64,
    /// A silent moment.
    pub(super) silence_max: Duration,
    /// The whole body, since the request's head.
    pub(super) arrival_max: Duration,
}

/// Reads a body. `charge` grows with what has arrived, to twice its length: its records are a copy.
///
/// # Errors
/// Why it was not read to its end; the rest of it is still in `body`.
pub(super) async fn gather<B>(
    body: &mut B,
    limits: Limits,
    began: Instant,
    charge: &mut Charge,
) -> Result<Bytes, Cut>
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut first = Bytes::new();
    let mut whole = BytesMut::new();
    loop {
        let left = limits.arrival_max.saturating_sub(began.elapsed());
        let frame = match tokio::time::timeout(limits.silence_max.min(left), body.frame()).await {
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(_broken))) => return Err(Cut::Broken),
            Ok(None) => break,
            Err(_elapsed) if began.elapsed() >= limits.arrival_max => {
                return Err(Cut::TooSlow(limits.arrival_max));
            }
            Err(_elapsed) => return Err(Cut::Silent(limits.silence_max)),
        };
        // Trailers say nothing that is asked for here.
        let Ok(data) = frame.into_data() else { continue };
        let length = (first.len() + whole.len() + data.len()) as u64;
        if length > limits.bytes_max {
            return Err(Cut::TooLarge);
        }
        if !charge.grow(length * 2).await {
            return Err(Cut::NoRoom);
        }
        if first.is_empty() && whole.is_empty() {
            first = data;
            continue;
        }
        // Most bodies are one frame, which needs no copy.
        if whole.is_empty() {
            whole.extend_from_slice(&std::mem::take(&mut first));
        }
        whole.extend_from_slice(&data);
    }
    Ok(if whole.is_empty() { first } else { whole.freeze() })
}

/// Reads on in a body that is answered already: a client that is still sending would otherwise find its
/// connection reset before it has read the answer.
pub(super) fn discard<B>(mut body: B, patience: Duration)
where
    B: Body<Data = Bytes> + Unpin + Send + 'static,
{
    if body.is_end_stream() {
        return;
    }
    tokio::spawn(async move {
        let mut seen = 0;
        let rest = async {
            while let Some(Ok(frame)) = body.frame().await {
                seen += frame.data_ref().map_or(0, |data| data.len() as u64);
                if seen > UNWANTED_BYTES_MAX {
                    return;
                }
            }
        };
        // However it ends, the body is dropped, and hyper closes the connection if there is more of it.
        let _ = tokio::time::timeout(patience, rest).await;
    });
}
