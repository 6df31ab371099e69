//! What happens to a request, from its head to its answer.
//!
//! Until all of its records are read nothing of it has gone anywhere, and a client that hangs up takes it back.
//! From then on it belongs to a task of its own, which no client can end: its records become durable, the
//! stay that they are ends, and whoever still waits is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::EXPECT;
use http::{HeaderMap, Request};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::sync::{Semaphore, mpsc, watch};

use super::Standing;
use super::answer::Answer;
use super::auth::Tokens;
use super::body::{self, Charge, Cut, Limits, Room};
use super::coding::Coding;
use super::feed::{Epochs, Parcel};
use super::idempotency::{Begun, Claim, Fingerprint, Memory};
use super::records::{self, Common};
use super::request::{self, Sending, Wish};
use super::voyage::{Aboard, Landed, Voyage};
use crate::config::model::Http;
use crate::meter::HttpMeter;
use crate::record::Columns;
use crate::source::Parts;

/// Bodies up to this length are read where they arrive: it takes some 50 µs. Longer and packed ones go to a
/// thread that may block.
const READ_AT_ONCE_BYTES_MAX: usize = 32 << 10;

/// Everything that requests share.
pub(super) struct Intake {
    http: Http,
    parts: Parts,
    tokens: Tokens,
    room: Room,
    memory: Arc<Memory>,
    epochs: Epochs,
    /// Ways to the lanes; never empty.
    lanes: Vec<mpsc::Sender<Parcel>>,
    /// Bodies that are unpacked and read at the same time: as many as cores.
    readers: Arc<Semaphore>,
    standing: watch::Receiver<Standing>,
    aboard: Arc<AtomicU64>,
    meter: HttpMeter,
}

impl Intake {
    pub(super) fn new(
        http: Http,
        parts: Parts,
        epochs: Epochs,
        lanes: Vec<mpsc::Sender<Parcel>>,
        standing: watch::Receiver<Standing>,
    ) -> Intake {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Intake {
            tokens: Tokens::new(&http.tokens),
            room: Room::new(parts.share.clone(), parts.stage.clone()),
            memory: Arc::new(Memory::new(http.idempotency_window, http.idempotency_keys)),
            epochs,
            lanes,
            readers: Arc::new(Semaphore::new(cores)),
            standing,
            aboard: Arc::default(),
            meter: parts.meter.http(),
            http,
            parts,
        }
    }

    pub(super) fn settings(&self) -> &Http {
        &self.http
    }

    pub(super) fn meter(&self) -> &HttpMeter {
        &self.meter
    }

    /// Requests whose records are on their way.
    pub(super) fn aboard(&self) -> u64 {
        self.aboard.load(Ordering::SeqCst)
    }

    pub(super) fn parts(&self) -> &Parts {
        &self.parts
    }

    pub(super) fn epochs(&self) -> &Epochs {
        &self.epochs
    }

    pub(super) fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    fn is_open(&self) -> bool {
        *self.standing.borrow() == Standing::Open
    }

    /// Answers a request of connection `number`.
    pub(super) async fn answer(self: &Arc<Self>, number: usize, request: Request<Incoming>) -> Answer {
        let began = Instant::now();
        let answer = self.take(number, request, began).await;
        self.meter.answered(answer.status.as_u16(), began.elapsed());
        answer
    }

    async fn take(self: &Arc<Self>, number: usize, request: Request<Incoming>, began: Instant) -> Answer {
        let (head, mut body) = request.into_parts();
        let wish = match self.tokens.check(&head.headers) {
            Err(denied) if !request::is_health(&head.uri) => Err(Answer::unauthorized(denied)),
            Ok(()) | Err(_) => request::read(&head.method, &head.uri, &head.headers),
        };
        let taken = match wish {
            Ok(Wish::Health) if self.is_open() => Err(Answer::healthy()),
            Ok(_) if !self.is_open() => Err(Answer::unavailable("the pipeline is ending").closing()),
            Ok(Wish::Health) => Err(Answer::healthy()),
            Ok(Wish::Send(sending)) => {
                self.gather(&mut body, began).await.map(|(packed, charge)| (sending, packed, charge))
            }
            Err(answer) => Err(answer),
        };
        match taken {
            Ok((sending, packed, charge)) => {
                self.send(number, sending, &head.headers, (packed, began), charge).await
            }
            Err(answer) => {
                // Whoever asks first whether to send its body is not told to.
                if !head.headers.contains_key(EXPECT) {
                    body::discard(body, self.http.read_timeout);
                }
                answer
            }
        }
    }

    /// The body as it was sent.
    async fn gather(&self, body: &mut Incoming, began: Instant) -> Result<(Bytes, Charge), Answer> {
        let bytes_max = self.http.max_body_bytes;
        let announced = body.size_hint().exact().unwrap_or(0);
        if announced > bytes_max {
            return Err(Answer::body_too_large(bytes_max, false));
        }
        let mut charge = self.room.charge();
        // The body, and its records beside it.
        if !charge.grow(announced * 2).await {
            return Err(Answer::no_room());
        }
        // There is room; but a body that trickles must not keep from others what it has not filled yet.
        charge.shrink(announced.min(READ_AT_ONCE_BYTES_MAX as u64) * 2);
        let limits =
            Limits { bytes_max, silence_max: self.http.read_timeout, arrival_max: self.http.request_timeout };
        let packed = body::gather(body, limits, began, &mut charge).await.map_err(|cut| match cut {
            Cut::TooLarge => Answer::body_too_large(bytes_max, false),
            Cut::Silent(waited) => Answer::too_slow(waited, "nothing of the body arrived"),
            Cut::TooSlow(waited) => Answer::too_slow(waited, "the request did not arrive"),
            Cut::NoRoom => Answer::no_room(),
            Cut::Broken => {
                Answer::bad_request("the body ended before its announced length", "nothing was taken")
                    .closing()
            }
        })?;
        self.meter.request_bytes.inc_by(packed.len() as u64);
        Ok((packed, charge))
    }

    /// A whole request: its records are read, sent on, and waited for.
    async fn send(
        self: &Arc<Self>,
        number: usize,
        sending: Sending,
        headers: &HeaderMap,
        (packed, began): (Bytes, Instant),
        charge: Charge,
    ) -> Answer {
        let claim = match &sending.key {
            None => None,
            Some(key) => match self.claim(key, fingerprint(&sending.source, &packed).await).await {
                Ok(claim) => Some(claim),
                Err(answer) => return answer,
            },
        };
        let (chunks, charge) = match self.read(&sending, headers, (packed, began), charge).await {
            Ok(read) => read,
            Err(answer) => return answer,
        };
        let Some(aboard) = self.board() else {
            return Answer::unavailable("the pipeline is ending").closing();
        };
        let lane = self.lane(number);
        let voyage = Voyage { chunks, charge, aboard };
        if sending.queued
            && voyage.is_small()
            && let Ok(room) = lane.try_reserve()
        {
            return self.land(claim, voyage.queue_at_once(room));
        }
        let (queued, lane, intake) = (sending.queued, lane.clone(), Arc::clone(self));
        let task = tokio::spawn(async move {
            let landed = if queued { voyage.queue(&lane).await } else { voyage.carry(&intake, &lane).await };
            intake.land(claim, landed)
        });
        match tokio::time::timeout(self.http.answer_timeout, task).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_panic)) => Answer::defect(),
            Err(_elapsed) => Answer::undecided(self.http.answer_timeout),
        }
    }

    /// The lane of a connection: its requests stay in order.
    fn lane(&self, number: usize) -> &mpsc::Sender<Parcel> {
        // There is at least one lane.
        &self.lanes[number % self.lanes.len()]
    }

    /// A key is forgotten only if nothing of its request can be in a table.
    fn land(&self, claim: Option<Claim>, landed: Landed) -> Answer {
        match (claim, landed) {
            (Some(claim), Landed::Somewhere(answer)) => {
                claim.settle(Arc::new(answer.clone()), Instant::now());
                answer
            }
            (None, Landed::Somewhere(answer)) | (_, Landed::Nowhere(answer)) => answer,
        }
    }

    /// Takes a key; an error is the answer of the request that had it before.
    async fn claim(&self, key: &str, fingerprint: Fingerprint) -> Result<Claim, Answer> {
        loop {
            let mut under_way = match self.memory.begin(key, fingerprint, Instant::now()) {
                Begun::First(claim) => return Ok(claim),
                Begun::Answered(answer) => return Err(Answer::clone(&answer)),
                Begun::Different => return Err(Answer::other_request()),
                Begun::UnderWay(under_way) => under_way,
            };
            let answer = under_way.wait_for(Option::is_some);
            match tokio::time::timeout(self.http.answer_timeout, answer).await {
                Ok(Ok(answer)) => {
                    if let Some(answer) = answer.as_ref() {
                        return Err(Answer::clone(answer));
                    }
                }
                // It forgot its key: the next one to ask is the first.
                Ok(Err(_forgotten)) => {}
                Err(_elapsed) => return Err(Answer::undecided(self.http.answer_timeout)),
            }
        }
    }

    /// Unpacks the body and reads its records.
    async fn read(
        &self,
        sending: &Sending,
        headers: &HeaderMap,
        (packed, began): (Bytes, Instant),
        mut charge: Charge,
    ) -> Result<(Vec<Columns>, Charge), Answer> {
        let gathering = self.parts.gathering;
        let common = Common {
            source: Arc::clone(&sending.source),
            gathering,
            headers: if gathering.headers { request::shown(headers) } else { Vec::new() },
            arrived: began,
            arrived_us: now_us(),
            records_max: self.http.max_records,
        };
        let (format, coding) = (sending.format, sending.coding);
        let limit_bytes = self.http.max_body_bytes;
        let at_once = coding == Coding::Identity && packed.len() <= READ_AT_ONCE_BYTES_MAX;
        let work = move || {
            let chunks = unpack_and_read(&packed, coding, format, limit_bytes, &common, &mut charge);
            chunks.map(|chunks| (chunks, charge))
        };
        if at_once {
            return work();
        }
        // The semaphore is never closed.
        let _turn = Arc::clone(&self.readers).acquire_owned().await;
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|_panic| Err(Answer::defect()))
    }

    /// Comes aboard, unless the pipeline is ending.
    fn board(&self) -> Option<Aboard> {
        // First counted, then looked: control closes the door first and counts then.
        let aboard = Aboard::new(&self.aboard, &self.meter);
        self.is_open().then_some(aboard)
    }
}

/// Of a large body it takes long enough to be kept off the runtime.
async fn fingerprint(source: &Arc<str>, packed: &Bytes) -> Fingerprint {
    if packed.len() > READ_AT_ONCE_BYTES_MAX {
        let (source, packed) = (Arc::clone(source), packed.clone());
        let work = move || Fingerprint::of(&source, &packed);
        if let Ok(fingerprint) = tokio::task::spawn_blocking(work).await {
            return fingerprint;
        }
    }
    Fingerprint::of(source, packed)
}

fn unpack_and_read(
    packed: &[u8],
    coding: Coding,
    format: records::Format,
    limit_bytes: u64,
    common: &Common,
    charge: &mut Charge,
) -> Result<Vec<Columns>, Answer> {
    let limit = usize::try_from(limit_bytes).unwrap_or(usize::MAX - 1);
    let mut held = packed.len() as u64;
    let unpacked;
    let body = match coding {
        Coding::Identity => packed,
        Coding::Gzip | Coding::Deflate | Coding::Zstd => {
            unpacked = coding
                .unpack(packed, limit, &mut |bytes| charge.try_grow(held + bytes))
                .map_err(|undone| Answer::undone(&undone, limit_bytes))?;
            held += unpacked.len() as u64;
            &unpacked
        }
    };
    let mut room = |bytes| {
        held += bytes;
        charge.try_grow(held)
    };
    records::read(body, format, common, &mut room).map_err(|unfit| Answer::unfit(&unfit))
}

fn now_us() -> i64 {
    // A clock before 1970 or after 292,000 AD tells nothing.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_micros()).unwrap_or(0)
}
