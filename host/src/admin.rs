//! `/health`, `/ready` and `/metrics`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::budget::Budget;
use crate::fault::Fault;
use crate::meter::{Meter, PipelineMeter};

/// A wait shorter than this does not make the process unready.
const WAIT_PATIENCE: Duration = Duration::from_secs(5);

/// What the endpoint looks at.
#[derive(Clone)]
pub struct Console {
    /// All metrics.
    pub meter: Arc<Meter>,
    /// For the budget's gauges.
    pub budget: Budget,
    /// Each pipeline's health.
    pub pipelines: Arc<Vec<Arc<PipelineMeter>>>,
}

/// Binds `address` and serves until the runtime ends. Returns the address bound (for port 0).
///
/// # Errors
/// If the address is taken or not ours.
pub async fn serve(address: SocketAddr, console: Console) -> Result<SocketAddr, Fault> {
    let cannot = |error| {
        Fault::halt(
            format!("cannot listen on {address} for /health, /ready and /metrics"),
            "set another address with --admin or [process] admin",
        )
        .caused_by(error)
    };
    let listener = TcpListener::bind(address).await.map_err(cannot)?;
    let bound = listener.local_addr().map_err(cannot)?;
    let router = Router::new()
        .route("/health", get(|| async { "ok\n" }))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state(console);
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the admin endpoint has ended");
        }
    });
    Ok(bound)
}

/// 200 if every pipeline is ready, with a line for each that stands by; else 503 with a line for each that is not.
async fn ready(State(console): State<Console>) -> impl IntoResponse {
    let lines = |of: &dyn Fn(&PipelineMeter) -> Option<String>| -> String {
        let line = |pipeline: &Arc<PipelineMeter>| Some(format!("{}: {}\n", pipeline.name, of(pipeline)?));
        console.pipelines.iter().filter_map(line).collect()
    };
    let unready = lines(&|pipeline| pipeline.health.unready(pipeline.stalled.get() != 0, WAIT_PATIENCE));
    if unready.is_empty() {
        let standing_by = lines(&|pipeline| pipeline.health.standing_by());
        (StatusCode::OK, format!("ready\n{standing_by}"))
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, unready)
    }
}

async fn metrics(State(console): State<Console>) -> impl IntoResponse {
    let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    console.meter.budget_used.set(bytes(console.budget.used()));
    console.meter.budget_limit.set(bytes(console.budget.limit()));
    console.meter.read_plugins();
    let kind = [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")];
    match console.meter.text() {
        Ok(text) => (StatusCode::OK, kind, text),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, kind, String::new()),
    }
}
