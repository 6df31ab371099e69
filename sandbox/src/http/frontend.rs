//! What the FE answers: it redirects loads, and knows the state of labels.

use http::{HeaderMap, Request, Version, header};
use hyper::body::Incoming;
use std::sync::Arc;
use std::time::Duration;

use super::answer::{self, Answer, Handled};
use super::request::{self, Credentials};
use crate::cluster::Cluster;
use crate::fault::{FaultKind, Hop};

/// `PUT /api/{db}/{table}/_stream_load`: a redirect to the BE, without looking at the body.
pub(super) async fn stream_load(
    cluster: &Arc<Cluster>,
    db: &str,
    table: &str,
    request: &Request<Incoming>,
) -> Handled {
    if let Some(refusal) = refuse_credentials(cluster, request.headers()) {
        return Ok(refusal);
    }
    if request.version() >= Version::HTTP_11 && !expects_continue(request.headers()) {
        let message = "class com.starrocks.common.DdlException: There is no 100-continue header";
        return Ok(answer::closing(answer::fe_failed(message)));
    }
    let answer = answer::closing(redirect(cluster, db, table, request).await);
    match lost(cluster, db, table, Hop::Frontend) {
        Some(how) => answer::spoil(answer, how),
        None => Ok(answer),
    }
}

/// The redirect of a request to the BE, with its faults.
pub(super) async fn redirect(
    cluster: &Arc<Cluster>,
    db: &str,
    table: &str,
    request: &Request<Incoming>,
) -> Answer {
    let delay = cluster.faults.fire(db, table, |kind| match kind {
        FaultKind::SlowRedirect { delay_ms } => Some(Duration::from_millis(*delay_ms)),
        _ => None,
    });
    if let Some(delay) = delay {
        tokio::time::sleep(delay).await;
    }
    let denied =
        |kind: &FaultKind| matches!(kind, FaultKind::AccessDenied { at: Hop::Frontend }).then_some(());
    if cluster.faults.fire(db, table, denied).is_some() {
        return answer::unauthorized(&access_denied(table));
    }
    let none = |kind: &FaultKind| matches!(kind, FaultKind::NoBackend).then_some(());
    if cluster.faults.fire(db, table, none).is_some() {
        return answer::fe_failed("class com.starrocks.common.DdlException: No backend alive.");
    }
    let elsewhere = cluster.faults.fire(db, table, |kind| match kind {
        FaultKind::RedirectTo { authority } => Some(authority.clone()),
        FaultKind::RedirectLoop => Some(format!("127.0.0.1:{}", cluster.addresses.fe_http)),
        _ => None,
    });
    if elsewhere.is_none() {
        cluster.faults.sends_to_backend();
    }
    let authority = elsewhere.unwrap_or_else(|| format!("127.0.0.1:{}", cluster.addresses.be_http));
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    answer::redirect(&format!("http://{authority}{path}"))
}

/// `GET /api/{db}/get_load_state?label=`.
pub(super) fn load_state(cluster: &Arc<Cluster>, db: &str, request: &Request<Incoming>) -> Handled {
    if let Some(refusal) = refuse_credentials(cluster, request.headers()) {
        return Ok(refusal);
    }
    let Some(label) = request::parameter(request.uri(), "label").filter(|label| !label.is_empty()) else {
        return Ok(answer::rest_failed("No label selected."));
    };
    if !cluster.catalog().has_database(db) {
        return Ok(answer::rest_failed(&format!("unknown database, database={db}")));
    }
    let table = cluster.transactions().by_label(db, &label).map(|found| found.table.clone());
    let (state, reason) = match cluster.label_state(db, &label) {
        Some((state, reason)) => (state.name(), reason),
        None => ("UNKNOWN", None),
    };
    let mut document = serde_json::json!({ "state": state, "status": "OK", "msg": "Success" });
    if let Some(reason) = reason {
        document["reason"] = reason.into();
    }
    match lost(cluster, db, table.as_deref().unwrap_or_default(), Hop::State) {
        Some(how) => answer::spoil(answer::json(&document), how),
        None => Ok(answer::json(&document)),
    }
}

/// `POST /api/{db}/{table}/_cancel?label=`: aborts a load that is not decided yet.
pub(super) fn cancel(cluster: &Arc<Cluster>, db: &str, request: &Request<Incoming>) -> Handled {
    if let Some(refusal) = refuse_credentials(cluster, request.headers()) {
        return Ok(refusal);
    }
    let Some(label) = request::parameter(request.uri(), "label").filter(|label| !label.is_empty()) else {
        return Ok(answer::rest_failed("No label selected."));
    };
    if !cluster.catalog().has_database(db) {
        return Ok(answer::rest_failed(&format!("unknown database, database={db}")));
    }
    let found = cluster.transactions().by_label(db, &label).map(|found| (found.id, found.state));
    let Some((txn_id, state)) = found else {
        return Ok(answer::rest_failed(&format!("transaction not found, label={label}")));
    };
    if !cluster.abort(txn_id, "user cancel") {
        let message = format!("transaction's state is already {}, could not abort", state.name());
        return Ok(answer::rest_failed(&message));
    }
    Ok(answer::json(&serde_json::json!({ "status": "OK", "msg": "Success" })))
}

/// The FE's 401, when the credentials do not do.
pub(super) fn refuse_credentials(cluster: &Cluster, headers: &HeaderMap) -> Option<Answer> {
    match request::credentials(headers, cluster.options.password.as_deref()) {
        Credentials::Valid => None,
        Credentials::Missing => Some(answer::unauthorized("Need auth information.")),
        Credentials::Wrong { user } => {
            Some(answer::unauthorized(&format!("Access denied for {user}@127.0.0.1")))
        }
    }
}

pub(super) fn access_denied(table: &str) -> String {
    format!(
        "Access denied; you need (at least one of) the INSERT privilege(s) on TABLE {table} for this operation. \
         Please ask the admin to grant permission(s) or try activating existing roles using <set [default] role>. \
         Current role(s): NONE. Inactivated role(s): NONE."
    )
}

fn expects_continue(headers: &HeaderMap) -> bool {
    headers
        .get(header::EXPECT)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.eq_ignore_ascii_case("100-continue"))
}

/// Whether the answer of a hop is to be spoiled, and how. The BE asks for itself: it must know before the commit.
pub(super) fn lost(cluster: &Cluster, db: &str, table: &str, hop: Hop) -> Option<crate::fault::AnswerFault> {
    cluster.faults.fire(db, table, |kind| match kind {
        FaultKind::AnswerLost { at, how, .. } if *at == hop => Some(*how),
        _ => None,
    })
}
