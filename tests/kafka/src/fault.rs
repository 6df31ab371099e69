use std::{fmt, io};

/// Why a server for tests could not be found, started, asked or stopped.
#[derive(Debug)]
pub struct Fault {
    attempt: String,
    cause: Cause,
}

#[derive(Debug)]
enum Cause {
    Io(io::Error),
    Said(String),
}

impl Fault {
    /// What was attempted, and the system's error.
    pub fn io(attempt: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let attempt = attempt.into();
        move |cause| Self { attempt, cause: Cause::Io(cause) }
    }

    /// What was attempted, and what somebody else said of it.
    pub fn said(attempt: impl Into<String>, what: impl Into<String>) -> Self {
        Self { attempt: attempt.into(), cause: Cause::Said(what.into()) }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Cause::Io(cause) => write!(out, "{}: {cause}", self.attempt),
            Cause::Said(what) => write!(out, "{}: {what}", self.attempt),
        }
    }
}

impl std::error::Error for Fault {}
