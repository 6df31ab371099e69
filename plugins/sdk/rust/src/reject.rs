//! Why a record becomes a dead letter.

use std::fmt::{self, Display};

/// The code of a record that is not the JSON that was expected.
pub const CODE_PARSE: &str = "parse";
/// The code of a record without a value, where one was needed.
pub const CODE_NO_VALUE: &str = "no_value";
/// The code of a row that no table was chosen for, in a plugin that declared tables but not the pipeline's own.
pub const CODE_NO_TABLE: &str = "no_table";

/// A record that cannot become rows. It is kept as a dead letter with its original bytes, this code and this message.
///
/// It is made from a [`serde_json::Error`] by `?`, with the code [`CODE_PARSE`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    code: &'static str,
    message: String,
}

impl Reject {
    /// `code` is for machines and becomes the label of a metric: 1 to 64 bytes of `a-z`, `0-9`, `_` and `-`.
    /// `message` is for people, is kept with the record and never logged, and is cut at 1024 bytes.
    pub fn new(code: &'static str, message: impl Display) -> Self {
        Self { code, message: message.to_string() }
    }

    /// What kind of error it is.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// What is wrong.
    pub fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn into_message(self) -> String {
        self.message
    }
}

impl Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl std::error::Error for Reject {}

impl From<serde_json::Error> for Reject {
    fn from(error: serde_json::Error) -> Self {
        Self::new(CODE_PARSE, error)
    }
}
