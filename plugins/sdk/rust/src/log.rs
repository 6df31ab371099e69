//! Lines in Tidemill's log. Never put records, keys or secrets into them.

use std::fmt::Display;

/// How grave a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// For the author of the plugin.
    Debug,
    /// For who runs the pipeline.
    Info,
    /// Something is odd, and the plugin can go on.
    Warn,
    /// Something is wrong.
    Error,
}

/// Writes a line for the author of the plugin.
pub fn debug(message: impl Display) {
    write(Level::Debug, &message.to_string());
}

/// Writes a line for who runs the pipeline.
pub fn info(message: impl Display) {
    write(Level::Info, &message.to_string());
}

/// Writes a line about something odd.
pub fn warn(message: impl Display) {
    write(Level::Warn, &message.to_string());
}

/// Writes a line about something wrong.
pub fn error(message: impl Display) {
    write(Level::Error, &message.to_string());
}

#[cfg(target_family = "wasm")]
fn write(level: Level, message: &str) {
    crate::component::log(level, message);
}

/// Natively there is no Tidemill: the lines of a test go where a failing test shows them.
#[cfg(not(target_family = "wasm"))]
fn write(level: Level, message: &str) {
    println!("{level:?}: {message}");
}

/// Makes a panic say where it was, which is otherwise lost in an `unreachable`. The message is written for debugging
/// only, because a panic's message may quote the record.
#[cfg(target_family = "wasm")]
pub(crate) fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        match panic.location() {
            Some(place) => error(format_args!("the plugin panicked at {place}")),
            None => error("the plugin panicked"),
        }
        let message = panic.payload_as_str().unwrap_or("the panic has no message");
        debug(format_args!("the panic says: {message}"));
    }));
}
