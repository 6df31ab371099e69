//! Whether the server that answers is the one that was followed so far.

use super::connect::Connector;
use super::lsn::Lsn;
use super::position::Positions;
use super::setup::identify;
use crate::fault::Fault;

/// The server is the one whose changes were followed so far, and still has them.
pub(super) async fn same_server(
    connector: &Connector,
    positions: &Positions,
    from: Lsn,
) -> Result<(), Fault> {
    let found = identify(connector).await?;
    if found.system_identifier.to_string() != positions.system() {
        return Err(Fault::halt(
            format!("another server answers now (system identifier {})", found.system_identifier),
            "mend `host` and `port` in [source.postgres], or what they lead to",
        ));
    }
    if found.written < from {
        return Err(Fault::halt(
            format!(
                "the server's log ends at {}, before {from} up to which its changes are in StarRocks: changes that \
                 were loaded are not in the source any more",
                found.written
            ),
            "a standby was promoted before it had all changes, or a backup was restored: copy the tables anew",
        ));
    }
    Ok(())
}
