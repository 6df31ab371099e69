//! What a StarRocks client sees, checked over raw connections.
//!
//! Without further ado the suite runs against sandboxes of its own. With `TIDEMILL_STARROCKS_FE=http://host:8030`
//! it runs against that cluster (`TIDEMILL_STARROCKS_QUERY=host:9030` and `TIDEMILL_STARROCKS_PASSWORD` say the
//! rest), and the tests that need a sandbox's faults or limits are skipped with a line that says so.

mod columns;
mod error_logs;
mod faults;
mod formats;
mod labels;
mod official_clients;
mod page;
mod query_port;
mod rows;
mod stream_load;
mod target;
mod transactions;
mod versions;
mod wire;
