//! Back-off with jitter, and a way to be told to stop waiting. Tasks pause between attempts here only; threads of their own
//! (lanes, control, the letters' writer) wait where they are.

use std::time::{Duration, Instant};

use tokio::sync::watch;

/// How long to wait between attempts: `base · factor^n`, at most `cap`, less a random part.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// First pause.
    pub base: Duration,
    /// Growth from one pause to the next; at least 1.
    pub factor: f64,
    /// Longest pause.
    pub cap: Duration,
    /// Part of a pause that is left to chance, 0 to 1, so that processes that failed together do not
    /// come back together.
    pub jitter: f64,
}

impl Pace {
    /// For failures that pass by themselves: connections, elections, restarts.
    pub const PASSING: Self =
        Self { base: Duration::from_millis(200), factor: 2.0, cap: Duration::from_secs(30), jitter: 0.5 };
    /// For back-pressure ("too many versions"): compaction needs tens of seconds, and each further
    /// attempt costs the cluster a transaction.
    pub const OVERLOADED: Self =
        Self { base: Duration::from_secs(5), factor: 2.0, cap: Duration::from_secs(60), jitter: 0.25 };
    /// For asking again and again how something stands.
    pub const POLLING: Self =
        Self { base: Duration::from_millis(500), factor: 1.6, cap: Duration::from_secs(5), jitter: 0.2 };
}

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Waited {
    /// The pause is over: try again.
    Elapsed,
    /// Somebody asked for it to end: give up if that is safe.
    Stopped,
}

/// Counts the failures in a row and waits accordingly.
#[derive(Debug, Clone)]
pub struct Backoff {
    pace: Pace,
    failures: u32,
}

impl Backoff {
    /// Starts with no failure counted.
    pub fn new(pace: Pace) -> Self {
        Self { pace, failures: 0 }
    }

    /// A success: the next pause is the first one again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// The next pause; `chance` in 0..1 says which part of the jitter is taken off.
    pub fn next_pause(&mut self, chance: f64) -> Duration {
        let growth = self.pace.factor.max(1.0).powi(self.failures.min(64) as i32);
        self.failures = self.failures.saturating_add(1);
        let seconds = (self.pace.base.as_secs_f64() * growth).min(self.pace.cap.as_secs_f64());
        let kept = 1.0 - self.pace.jitter.clamp(0.0, 1.0) * chance.clamp(0.0, 1.0);
        Duration::from_secs_f64(seconds * kept)
    }

    /// Waits out the next pause, whatever happens.
    pub async fn wait(&mut self) {
        let pause = self.next_pause(rand::random::<f64>());
        tokio::time::sleep(pause).await;
    }

    /// Waits out the next pause, or until `stop` is true. A `stop` whose sender is gone never stops.
    pub async fn wait_unless(&mut self, stop: &mut watch::Receiver<bool>) -> Waited {
        let pause = self.next_pause(rand::random::<f64>());
        let stopped = async {
            if stop.wait_for(|stop| *stop).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            () = stopped => Waited::Stopped,
            () = tokio::time::sleep(pause) => Waited::Elapsed,
        }
    }
}

/// A pause that is waited out in parts, for who has to look around meanwhile. Pauses of one pace in a row grow.
#[derive(Debug, Clone, Default)]
pub struct Rest {
    backoff: Option<Backoff>,
    until: Option<Instant>,
}

impl Rest {
    /// Begins the next pause.
    pub fn begin(&mut self, pace: Pace) {
        let same = self.backoff.take().filter(|backoff| backoff.pace == pace);
        let backoff = self.backoff.insert(same.unwrap_or_else(|| Backoff::new(pace)));
        self.until = Some(Instant::now() + backoff.next_pause(rand::random()));
    }

    fn left(&self) -> Duration {
        self.until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()))
    }

    /// Whether the pause is not over.
    pub fn is_on(&self) -> bool {
        !self.left().is_zero()
    }

    /// Waits for the end of the pause, but no longer than `part`.
    pub async fn a_while(&self, part: Duration) {
        tokio::time::sleep(self.left().min(part)).await;
    }

    /// Waits for the end of the pause.
    pub async fn to_its_end(&self) {
        tokio::time::sleep(self.left()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_cap_and_begin_again_after_a_success() {
        let mut backoff = Backoff::new(Pace { jitter: 0.5, ..Pace::PASSING });
        let pauses: Vec<u128> = (0..9).map(|_| backoff.next_pause(0.0).as_millis()).collect();
        assert_eq!(pauses, [200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000]);
        backoff.reset();
        assert_eq!(backoff.next_pause(1.0).as_millis(), 100, "all of the jitter taken off");
    }

    #[tokio::test]
    async fn a_stop_ends_a_long_wait_at_once() {
        let (told, mut stop) = watch::channel(false);
        let mut backoff = Backoff::new(Pace { base: Duration::from_secs(3600), ..Pace::OVERLOADED });
        let waiting = tokio::spawn(async move { backoff.wait_unless(&mut stop).await });
        told.send(true).expect("the waiter lives");
        let waited = tokio::time::timeout(Duration::from_secs(5), waiting).await.expect("ends at once");
        assert_eq!(waited.expect("no panic"), Waited::Stopped);
    }

    #[tokio::test]
    async fn a_rest_is_waited_out_in_parts_and_another_pace_begins_anew() {
        let mut rest = Rest::default();
        assert!(!rest.is_on());
        rest.begin(Pace { base: Duration::from_millis(20), factor: 1.0, jitter: 0.0, ..Pace::PASSING });
        while rest.is_on() {
            rest.a_while(Duration::from_millis(5)).await;
        }
        rest.begin(Pace {
            base: Duration::from_secs(3600),
            cap: Duration::from_secs(3600),
            ..Pace::OVERLOADED
        });
        assert!(rest.is_on());
        tokio::time::timeout(Duration::from_secs(60), rest.a_while(Duration::from_millis(1)))
            .await
            .expect("in parts");
        rest.begin(Pace { base: Duration::from_millis(1), ..Pace::PASSING });
        tokio::time::timeout(Duration::from_secs(60), rest.to_its_end()).await.expect("a pace of its own");
        assert!(!rest.is_on());
    }

    #[tokio::test]
    async fn a_stop_that_nobody_can_give_any_more_is_no_stop() {
        let (told, mut stop) = watch::channel(false);
        drop(told);
        let mut backoff = Backoff::new(Pace { base: Duration::from_millis(1), ..Pace::PASSING });
        assert_eq!(backoff.wait_unless(&mut stop).await, Waited::Elapsed);
    }
}
