//! What became of a label's transaction: answers of `get_load_state` and `_cancel`
//! (reference/starrocks-load-protocol.md §3.2).

use super::outcome::Fields;

/// State of the newest transaction under a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabelState {
    /// Never began, or was forgotten: a database keeps 1000 finished transactions.
    Unknown,
    /// Began, and is not decided.
    Prepare,
    /// First phase of two is done; a Stream Load of ours never is in this state for long.
    Prepared,
    /// Durable, not yet visible.
    Committed,
    /// Durable and visible.
    Visible,
    /// Will never be loaded; the label may be used again.
    Aborted,
}

impl LabelState {
    /// The state in an answer; the answer's own words if it has none.
    pub(super) fn read(body: &[u8]) -> Result<Self, String> {
        let Some(fields) = Fields::parse(body) else {
            return Err("no JSON object".to_owned());
        };
        match fields.text("state").map(str::to_ascii_uppercase).as_deref() {
            Some("UNKNOWN") => Ok(Self::Unknown),
            Some("PREPARE") => Ok(Self::Prepare),
            Some("PREPARED") => Ok(Self::Prepared),
            Some("COMMITTED") => Ok(Self::Committed),
            Some("VISIBLE") => Ok(Self::Visible),
            Some("ABORTED") => Ok(Self::Aborted),
            Some(other) => Err(format!("unknown state {other}")),
            None => Err(fields.message()),
        }
    }

    /// Whether the rows are or will be in the table.
    pub fn is_durable(self) -> bool {
        match self {
            Self::Committed | Self::Visible => true,
            Self::Unknown | Self::Prepare | Self::Prepared | Self::Aborted => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_read_in_both_spellings() {
        let check = |body: &str, expected: Result<LabelState, String>| {
            assert_eq!(LabelState::read(body.as_bytes()), expected, "{body}");
        };
        check(r#"{"state":"VISIBLE","status":"OK","msg":"Success"}"#, Ok(LabelState::Visible));
        check(r#"{"State":"committed","Status":"OK","Message":""}"#, Ok(LabelState::Committed));
        check(r#"{"state":"UNKNOWN","status":"OK","msg":"Success"}"#, Ok(LabelState::Unknown));
        check(r#"{"state":"PREPARE","reason":""}"#, Ok(LabelState::Prepare));
        check(r#"{"state":"PREPARED"}"#, Ok(LabelState::Prepared));
        check(r#"{"state":"ABORTED","reason":"cancelled"}"#, Ok(LabelState::Aborted));
        check(r#"{"state":"SOON"}"#, Err("unknown state SOON".into()));
        let unknown = r#"{"status":"FAILED","msg":"unknown database, database=x"}"#;
        check(unknown, Err("unknown database, database=x".into()));
        check("<html>502</html>", Err("no JSON object".into()));
        check("", Err("no JSON object".into()));
    }
}
