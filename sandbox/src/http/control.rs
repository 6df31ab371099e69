//! What a StarRocks does not have: the sandbox's own pages, on the FE port under `/sandbox`.

use http::{Method, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use std::time::Duration;

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
                    let id = cluster.set_fault(fault);
                    answer::json(&serde_json::json!({ "id": id }))
                }
                Err(message) => bad_request(&message),
            })
        }
        (&Method::DELETE, ["faults"]) => {
            cluster.clear_fault(None);
            Ok(answer::json(&serde_json::json!({ "cleared": "all" })))
        }
        (&Method::DELETE, ["faults", id]) => Ok(match id.parse() {
            Ok(id) => {
                cluster.clear_fault(Some(id));
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
        (&Method::GET, ["versions"]) => Ok(answer::json(&Versions::of(cluster))),
        (&Method::POST, ["versions"]) => {
            let body = Limited::new(body, FAULT_BYTES_MAX).collect().await.map_err(|_| HangUp)?.to_bytes();
            Ok(match serde_json::from_slice::<Versions>(&body) {
                Ok(versions) => {
                    versions.apply(cluster);
                    answer::json(&Versions::of(cluster))
                }
                Err(error) => bad_request(&error.to_string()),
            })
        }
        _ => Ok(answer::not_found(&format!("/sandbox/{}", rest.join("/")))),
    }
}

/// `/sandbox/versions`: a field that is left out stays as it is.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Versions {
    tablet_max_versions: Option<u32>,
    /// Milliseconds; 0 never compacts.
    compaction_ms: Option<u64>,
    compaction_merge_max: Option<u32>,
}

impl Versions {
    fn of(cluster: &Cluster) -> Self {
        let limits = *cluster.version_limits.borrow();
        let every = limits.compaction.unwrap_or_default();
        Self {
            tablet_max_versions: Some(limits.tablet_max_versions),
            compaction_ms: Some(u64::try_from(every.as_millis()).unwrap_or(u64::MAX)),
            compaction_merge_max: Some(limits.compaction_merge_max),
        }
    }

    fn apply(&self, cluster: &Cluster) {
        cluster.version_limits.send_modify(|limits| {
            limits.tablet_max_versions = self.tablet_max_versions.unwrap_or(limits.tablet_max_versions);
            limits.compaction_merge_max = self.compaction_merge_max.unwrap_or(limits.compaction_merge_max);
            if let Some(ms) = self.compaction_ms {
                limits.compaction = Some(Duration::from_millis(ms)).filter(|every| !every.is_zero());
            }
        });
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
