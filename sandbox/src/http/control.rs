//! What a StarRocks does not have: the sandbox's own pages, on the FE port under `/sandbox`.

use http::{Method, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;

use super::answer::{self, Answer, Handled, HangUp};
use crate::cluster::Cluster;
use crate::fault::Fault;

/// Largest fault description in bytes.
const FAULT_BYTES_MAX: usize = 64 * 1024;

pub(super) async fn handle(cluster: &Cluster, method: &Method, rest: &[&str], body: Incoming) -> Handled {
    match (method, rest) {
        (&Method::GET, ["faults"]) => Ok(answer::json(&cluster.faults.reports())),
        (&Method::POST, ["faults"]) => {
            let body = Limited::new(body, FAULT_BYTES_MAX).collect().await.map_err(|_| HangUp)?.to_bytes();
            Ok(match Fault::from_json(&body) {
                Ok(fault) => {
                    let id = cluster.faults.add(fault);
                    answer::json(&serde_json::json!({ "id": id }))
                }
                Err(message) => bad_request(&message),
            })
        }
        (&Method::DELETE, ["faults"]) => {
            cluster.faults.clear(None);
            Ok(answer::json(&serde_json::json!({ "cleared": "all" })))
        }
        (&Method::DELETE, ["faults", id]) => Ok(match id.parse() {
            Ok(id) => {
                cluster.faults.clear(Some(id));
                answer::json(&serde_json::json!({ "cleared": id }))
            }
            Err(_) => bad_request("the id of a fault is a number"),
        }),
        (&Method::GET, ["stats"]) => {
            let tables: serde_json::Map<String, serde_json::Value> = cluster
                .all_stats()
                .into_iter()
                .map(|(table, stats)| (table, serde_json::json!(stats)))
                .collect();
            Ok(answer::json(&serde_json::json!({ "tables": tables })))
        }
        (&Method::POST, ["stats", "reset"]) => {
            cluster.reset_stats();
            Ok(answer::json(&serde_json::json!({ "reset": true })))
        }
        _ => Ok(answer::not_found(&format!("/sandbox/{}", rest.join("/")))),
    }
}

fn bad_request(message: &str) -> Answer {
    let mut answer = answer::json(&serde_json::json!({ "error": message }));
    *answer.status_mut() = StatusCode::BAD_REQUEST;
    answer
}

/// A page for somebody who opens the FE's address in a browser.
pub(super) fn front_page(cluster: &Cluster) -> Answer {
    let mut page = String::from("Tidemill sandbox: a stand-in for StarRocks\n\n");
    page.push_str(&crate::sandbox::banner(&cluster.addresses));
    page.push_str("\nloads, versions and rows by table:\n");
    for (table, stats) in cluster.all_stats() {
        page.push_str(&format!(
            "  {table}: {} loads, {} versions now, {} rows, {} bytes\n",
            stats.loads, stats.versions_now, stats.rows_loaded, stats.bytes_loaded
        ));
    }
    answer::with_body(StatusCode::OK, "text/plain; charset=utf-8", page)
}
