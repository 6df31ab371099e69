use std::{fmt, io};

/// Why Kafka could not be resolved, started or stopped.
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
    pub(crate) fn io(attempt: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let attempt = attempt.into();
        move |cause| Self { attempt, cause: Cause::Io(cause) }
    }

    pub(crate) fn said(attempt: impl Into<String>, what: impl Into<String>) -> Self {
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
