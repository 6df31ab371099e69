//! A limit for each test: one that hangs fails by its name, and the others go on.

use std::{
    panic,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

/// Runs the body of a test on a thread of its own and fails the test when it has not ended after `seconds`. What tests
/// need is built before, and does not count.
///
/// A hung body is left behind; the processes that it started end with ours.
///
/// # Panics
/// With the panic of the body, or because the limit has passed.
pub fn within(seconds: u64, body: impl FnOnce() + Send + 'static) {
    crate::machine::prepare();
    let name = thread::current().name().unwrap_or("a test").to_owned();
    let (running, ended) = mpsc::sync_channel::<()>(0);
    let worker = thread::Builder::new()
        .name(name.clone())
        .spawn(move || {
            // Dropped at the end of the body, however it ends.
            let _running = running;
            body();
        })
        .expect("the system has threads left");
    match ended.recv_timeout(Duration::from_secs(seconds)) {
        Err(RecvTimeoutError::Timeout) => panic!("{name} hangs: it has not ended after {seconds} s"),
        Ok(()) | Err(RecvTimeoutError::Disconnected) => {
            if let Err(cause) = worker.join() {
                panic::resume_unwind(cause);
            }
        }
    }
}
