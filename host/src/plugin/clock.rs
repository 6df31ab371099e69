//! The clock by which a guest's time ends: it ticks while one runs, and rests while none does.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::Duration;

use crate::fault::Fault;

/// How often running guests look whether their time is over.
pub(super) const TICK: Duration = Duration::from_millis(10);
/// How often a clock that rests looks whether it is still needed.
const REST: Duration = Duration::from_secs(10);

/// A thread that ticks every 10 ms while a guest runs, and every 10 s otherwise.
#[derive(Debug, Default)]
pub(super) struct Clock {
    running: AtomicUsize,
    thread: OnceLock<Thread>,
    starting: Mutex<()>,
}

/// A guest may run while this lives.
#[derive(Debug)]
pub(super) struct Running<'a>(&'a Clock);

impl Clock {
    /// Starts the thread unless it was started before; it ends when `tick` returns false.
    ///
    /// # Errors
    ///
    /// `Halt` when the machine lets no thread start.
    pub(super) fn start(self: &Arc<Self>, tick: impl Fn() -> bool + Send + 'static) -> Result<(), Fault> {
        let _starting = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        if self.thread.get().is_some() {
            return Ok(());
        }
        let clock = Arc::clone(self);
        let ticking = move || {
            loop {
                match clock.running.load(Ordering::SeqCst) {
                    0 => thread::park_timeout(REST),
                    _ => thread::sleep(TICK),
                }
                if !tick() {
                    return;
                }
            }
        };
        let thread = super::engine::spawn("plugin-clock", ticking)?;
        self.thread.get_or_init(|| thread);
        Ok(())
    }

    /// Has it tick. A deadline that is set from now on sees at most one tick before its first 10 ms are over: that of
    /// waking up, or the next of a clock that ticked already.
    pub(super) fn run(&self) -> Running<'_> {
        if self.running.fetch_add(1, Ordering::SeqCst) == 0
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
        Running(self)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{self, RecvTimeoutError};

    /// Far from a tick, and far from a rest.
    const A_MOMENT: Duration = Duration::from_millis(200);

    #[test]
    fn it_ticks_while_a_guest_runs_and_rests_while_none_does() {
        let clock = Arc::new(Clock::default());
        let (ticks, ticked) = mpsc::channel();
        clock.start(move || ticks.send(()).is_ok()).unwrap();
        assert_eq!(ticked.recv_timeout(A_MOMENT), Err(RecvTimeoutError::Timeout));
        {
            let _running = [clock.run(), clock.run()];
            for _ in 0..20 {
                ticked.recv_timeout(REST / 2).expect("a tick long before the rest is over");
            }
        }
        // What ticked until here while nobody looked.
        while ticked.try_recv().is_ok() {}
        // One for a tick that was under way, one for having been called in between.
        let last = (0..).take_while(|_| ticked.recv_timeout(A_MOMENT).is_ok()).count();
        assert!(last <= 2, "{last} more ticks");
    }

    #[test]
    fn its_thread_is_one_and_ends() {
        let clock = Arc::new(Clock::default());
        let (ticks, ticked) = mpsc::channel();
        clock.start(move || ticks.send(()).is_err()).unwrap();
        clock.start(|| panic!("a second thread")).unwrap();
        let _running = clock.run();
        assert_eq!(ticked.recv(), Ok(()));
        assert!(ticked.recv().is_err(), "it has ended, and let go of its end of the channel");
    }
}
