//! The control thread: opens the listener, looks after lanes and health, and ends everything in order.
//!
//! The end: no further requests → those that were taken are handed to the lanes and loaded → their clients are
//! answered → lanes end → connections end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle as Task;

use super::feed::{self, Epochs, HttpFeed, Orders};
use super::intake::Intake;
use super::{Standing, listener, open_files, tls};
use crate::config::model::Http;
use crate::fault::Fault;
use crate::source::Parts;
use crate::source::halts::{Halts, LaneThread};

/// How long one turn waits.
const TURN: Duration = Duration::from_millis(50);
/// How long a halted pipeline waits for loads that are on their way: their requests can then be told.
const HALT_PATIENCE: Duration = Duration::from_secs(10);
/// How long connections may take to send their last answers.
const FAREWELL_PATIENCE: Duration = Duration::from_secs(2);

pub(super) struct Control {
    parts: Parts,
    intake: Arc<Intake>,
    standing: watch::Sender<Standing>,
    orders: Arc<Orders>,
    lanes: Vec<Option<LaneThread>>,
    listener: Task<()>,
    address: SocketAddr,
    halts: Halts,
}

impl Control {
    /// Takes the address, starts the lanes, and opens the door.
    pub(super) fn start<S>(mut http: Http, parts: Parts, spawn: S) -> Result<Control, Fault>
    where
        S: Fn(usize, HttpFeed) -> std::io::Result<LaneThread>,
    {
        http.max_connections = open_files::connections(http.max_connections);
        let acceptor = http.tls.as_ref().map(tls::acceptor).transpose()?;
        let listening = parts.runtime.block_on(listener::bind(http.listen))?;
        let address = listening.local_addr().unwrap_or(http.listen);
        let halts = Halts::of(&parts, "no request was told that they are loaded");
        let (orders, epochs) = (Arc::<Orders>::default(), Epochs::default());
        let (mut lanes, mut ways) = (Vec::new(), Vec::new());
        for number in 0..parts.lanes.max(1) {
            let (way, feed) = feed::way(&orders, &epochs, &parts.ledger, &parts.meter, &parts.runtime);
            let thread = spawn(number, feed)
                .map_err(|error| Fault::retry("cannot start a lane's thread").caused_by(error))?;
            lanes.push(Some(thread));
            ways.push(way);
        }
        let (standing, stands) = watch::channel(Standing::Open);
        let secure = acceptor.is_some();
        let intake = Arc::new(Intake::new(http, parts.clone(), epochs, ways, stands.clone()));
        let serve = listener::serve(listening, acceptor, Arc::clone(&intake), stands);
        let listener = parts.runtime.spawn(serve);
        parts.meter.health.started();
        let scheme = if secure { "https" } else { "http" };
        tracing::info!(pipeline = %parts.meter.name, "listening on {scheme}://{address}");
        Ok(Control { parts, intake, standing, orders, lanes, listener, address, halts })
    }

    /// Where requests are taken.
    #[cfg(test)]
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until it is told to stop or something halts the pipeline, then ends everything.
    pub(super) fn run(mut self) -> Result<(), Fault> {
        let ended = self.turn_until_stopped();
        self.end(ended)
    }

    fn turn_until_stopped(&mut self) -> Result<(), Fault> {
        while !self.parts.stop.is_requested() {
            self.turn()?;
        }
        Ok(())
    }

    fn turn(&mut self) -> Result<(), Fault> {
        self.pause();
        self.check_halts()?;
        self.observe();
        Ok(())
    }

    fn pause(&self) {
        self.parts.runtime.block_on(async { tokio::time::sleep(TURN).await });
    }

    /// Anything in the pipeline that cannot go on ends it: lanes, loads, dead letters, a lost ticket.
    fn check_halts(&mut self) -> Result<(), Fault> {
        self.halts.check(&mut self.lanes)?;
        if self.listener.is_finished() && *self.standing.borrow() == Standing::Open {
            let hint = "see the log above for the panic, restart, and report it";
            return Err(Fault::halt("the listener has ended", hint));
        }
        Ok(())
    }

    fn observe(&self) {
        let meter = &self.parts.meter;
        // Requests that end tell of progress themselves.
        if self.parts.ledger.open_spans() == 0 {
            meter.health.progress();
        }
        let stalled = meter.health.since_progress() >= self.parts.stall_after;
        meter.stalled.set(i64::from(stalled));
    }

    /// Drains if the pipeline was asked to stop; after a halt lets land what is on its way.
    fn end(mut self, ended: Result<(), Fault>) -> Result<(), Fault> {
        let began = Instant::now();
        self.standing.send_replace(Standing::Draining);
        let ended = ended.and_then(|()| self.drain(began));
        if ended.is_err() {
            let left = self.parts.shutdown_timeout.saturating_sub(began.elapsed());
            self.wind_up(left.min(HALT_PATIENCE));
        }
        self.close();
        ended
    }

    /// Lets everything that was taken be loaded and answered.
    fn drain(&mut self, began: Instant) -> Result<(), Fault> {
        let name = self.parts.meter.name.clone();
        tracing::info!(
            pipeline = %name, address = %self.address,
            "draining: no further requests, loading what was taken"
        );
        self.halts.drains();
        self.parts.stage.drain(self.parts.pipeline)?;
        let mut finishing = false;
        while began.elapsed() < self.parts.shutdown_timeout {
            if finishing && self.lanes.iter().all(Option::is_none) && self.parts.ledger.open_spans() == 0 {
                tracing::info!(pipeline = %name, "drained");
                return Ok(());
            }
            // Their parcels are with the lanes by then.
            if !finishing && self.intake.aboard() == 0 {
                self.orders.finish();
                finishing = true;
            }
            self.pause();
            self.check_halts()?;
        }
        Err(Fault::halt(
            format!(
                "the drain was not done within {:?}: {} requests and {} spans are still open",
                self.parts.shutdown_timeout,
                self.intake.aboard(),
                self.parts.ledger.open_spans()
            ),
            "their clients were not told that they are loaded; a longer shutdown_timeout lets slow loads end",
        ))
    }

    /// After a halt nothing more is sent; what is on its way may still land, and its clients are told.
    fn wind_up(&mut self, patience: Duration) {
        let deadline = Instant::now() + patience;
        self.orders.let_go();
        self.parts.stage.remove(self.parts.pipeline);
        self.parts.giving_up.give_up(&self.parts.ledger.stays());
        while Instant::now() < deadline && self.parts.ledger.open_spans() > 0 {
            self.pause();
        }
    }

    /// Lanes go, then clients hear what has become of their requests, then connections go.
    fn close(mut self) {
        self.orders.let_go();
        self.parts.stage.remove(self.parts.pipeline);
        for lane in std::mem::take(&mut self.lanes).into_iter().flatten() {
            if let Err(fault) = self.halts.join(lane) {
                tracing::warn!(pipeline = %self.parts.meter.name, "a lane ended late: {}", fault.story());
            }
        }
        self.standing.send_replace(Standing::Closed);
        let deadline = Instant::now() + FAREWELL_PATIENCE;
        let connections = &self.intake.meter().connections;
        while connections.get() > 0 && Instant::now() < deadline {
            self.pause();
        }
        self.listener.abort();
    }
}
