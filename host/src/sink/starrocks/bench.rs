//! A pipeline's side of a delivery, for tests: counts what it is told, and waits briefly.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::client::Client;
use super::deliver::{DeliverContext, Delivered, Observer, Paces, Witness, deliver};
use super::scripted::cluster;
use crate::fault::Fault;
use crate::retry::Pace;
use crate::sink::{Load, Outcome};

/// Counts what it is told.
#[derive(Debug, Default)]
pub(super) struct Counter {
    pub(super) attempts: Mutex<Vec<u32>>,
    pub(super) waits: Mutex<Vec<String>>,
    pub(super) resumed: Mutex<u32>,
    pub(super) took: Mutex<Vec<Duration>>,
    pub(super) duplicates: Mutex<Vec<String>>,
}

impl Observer for Counter {
    fn attempting(&self, _label: &str, number: u32) {
        self.attempts.lock().expect("no panic").push(number);
    }
    fn answered(&self, _outcome: &Outcome, took: Duration) {
        self.took.lock().expect("no panic").push(took);
    }
    fn waiting(&self, _label: &str, _since: Instant, why: &Fault) {
        self.waits.lock().expect("no panic").push(why.what.clone());
    }
    fn resumed(&self, _label: &str, _waited: Duration) {
        *self.resumed.lock().expect("no panic") += 1;
    }
    fn possible_duplicate(&self, label: &str) {
        self.duplicates.lock().expect("no panic").push(label.to_owned());
    }
}

/// One pipeline's side of a delivery.
pub(super) struct Bench {
    pub(super) counter: Arc<Counter>,
    pub(super) context: DeliverContext,
    pub(super) stop: watch::Sender<bool>,
}

impl Bench {
    pub(super) fn new() -> Self {
        let counter = Arc::new(Counter::default());
        let (stop, stopped) = watch::channel(false);
        let quick =
            Pace { base: Duration::from_millis(5), factor: 2.0, cap: Duration::from_millis(50), jitter: 0.5 };
        let context = DeliverContext {
            observer: Arc::clone(&counter) as Arc<dyn Observer>,
            witness: Arc::new(Witness::new()),
            stop: stopped,
            paces: Paces { passing: quick, overloaded: quick, polling: quick },
        };
        Self { counter, context, stop }
    }

    pub(super) async fn deliver(&self, fe: &str, load: &mut Load) -> Delivered {
        let client = Client::new(Arc::new(cluster(&[fe]))).expect("a client");
        self.deliver_with(&client, load).await
    }

    pub(super) async fn deliver_with(&self, client: &Client, load: &mut Load) -> Delivered {
        let delivery = deliver(client, load, &self.context);
        tokio::time::timeout(Duration::from_secs(20), delivery).await.expect("an outcome within 20 s")
    }

    /// Waits until `condition` holds, at most 20 s.
    pub(super) async fn until(condition: impl Fn() -> bool) {
        let held = async {
            let mut ticks = tokio::time::interval(Duration::from_millis(5));
            while !condition() {
                ticks.tick().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), held).await.expect("the condition holds within 20 s");
    }

    pub(super) fn attempts(&self) -> usize {
        self.counter.attempts.lock().expect("no panic").len()
    }

    pub(super) fn duplicates(&self) -> usize {
        self.counter.duplicates.lock().expect("no panic").len()
    }
}
