//! Ends loads of a process that may be gone, before its successor loads anything (delivery.md §2).

use crate::fault::Fault;
use crate::sink::starrocks::client::Client;
use crate::sink::starrocks::state::LabelState;

/// How a label of another process stood when it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Found {
    /// Nothing of it will become visible from now on behind anything that begins later.
    Decided,
    /// It was open. Its cancelling was asked for: ask again.
    Open,
}

/// Asks how the load under `label` stands, and asks for its end if it is open.
///
/// A label that StarRocks does not know is decided: should it begin yet, whoever began it fails at its fence.
/// One that is committed and not visible yet is visible soon, before anything that begins later.
///
/// # Errors
/// Retry, if StarRocks cannot be asked; halt, if it does not let the user.
pub async fn end_if_open(client: &Client, database: &str, table: &str, label: &str) -> Result<Found, Fault> {
    match client.label_state(database, label).await? {
        LabelState::Unknown | LabelState::Visible | LabelState::Aborted | LabelState::Committed => {
            Ok(Found::Decided)
        }
        LabelState::Prepare | LabelState::Prepared => {
            client.cancel(database, table, label).await?;
            Ok(Found::Open)
        }
    }
}
