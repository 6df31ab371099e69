//! `[source.http]` → the settings of an HTTP source.

use crate::config::model::{Http, HttpTls};
use crate::config::sections::http as keys;
use crate::config::table::Table;

pub(super) fn read(table: &Table<'_>) -> Option<Http> {
    let (listen, tokens) = (table.get(&keys::LISTEN), table.get(&keys::TOKENS));
    let insecure = table.get(&keys::INSECURE);
    let (max_body, max_records) = (table.get(&keys::MAX_BODY), table.get(&keys::MAX_RECORDS));
    let (read_timeout, request_timeout) = (table.get(&keys::READ_TIMEOUT), table.get(&keys::REQUEST_TIMEOUT));
    let (answer_timeout, connections) = (table.get(&keys::ANSWER_TIMEOUT), table.get(&keys::MAX_CONNECTIONS));
    let (window, kept) = (table.get(&keys::IDEMPOTENCY_WINDOW), table.get(&keys::IDEMPOTENCY_KEYS));
    let tls = match table.table(&keys::TLS) {
        Some(table) => read_tls(&table).map(Some),
        None => Some(None),
    };
    let http = Http {
        listen: listen?,
        tls: tls?,
        tokens: tokens?,
        insecure: insecure?,
        max_body_bytes: max_body?,
        max_records: max_records?,
        read_timeout: read_timeout?,
        request_timeout: request_timeout?,
        answer_timeout: answer_timeout?,
        max_connections: usize::try_from(connections?).ok()?,
        idempotency_window: window?,
        idempotency_keys: usize::try_from(kept?).ok()?,
    };
    check_reach(table, &http);
    Some(http)
}

fn read_tls(table: &Table<'_>) -> Option<HttpTls> {
    let (certificate, key) = (table.get(&keys::CERTIFICATE), table.get(&keys::KEY));
    let client_ca = if table.has("client_ca") { table.get(&keys::CLIENT_CA).map(Some) } else { Some(None) };
    Some(HttpTls { certificate: certificate?, key: key?, client_ca: client_ca? })
}

/// A listener that other machines can reach asks who is there, and lets nobody read on the way.
fn check_reach(table: &Table<'_>, http: &Http) {
    if http.insecure || http.listen.ip().is_loopback() {
        return;
    }
    let asks = !http.tokens.is_empty() || http.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
    let lacks = match (asks, http.tls.is_some()) {
        (true, true) => return,
        (true, false) => "travel in the clear",
        (false, true) => "need no token",
        (false, false) => "need no token and travel in the clear",
    };
    let what =
        format!("`listen` is {}, which other machines can reach, and requests there {lacks}", http.listen);
    table.note_at("listen", what, |problem| {
        problem
            .expected("a loopback address, or `tokens` and a table [source.http.tls]")
            .hint("behind a proxy that asks for credentials and ends TLS, `insecure = true` allows it")
    });
}
