//! The two HTTP ports.

mod answer;
mod backend;
mod control;
mod frontend;
mod request;
mod transaction;

pub(crate) use transaction::OpenTransactions;

use http::Method;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::cluster::Cluster;
use crate::fault::FaultKind;
use answer::Handled;

/// Which of the two ports a connection came in on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Port {
    Frontend,
    Backend,
}

/// What the handlers of a port need.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) transactions: Arc<OpenTransactions>,
}

/// How long to wait after the operating system refused something, such as a file descriptor.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(20);

/// Accepts connections on the FE's port until the task is aborted; all connections end with it.
pub(crate) async fn serve_frontend(shared: Shared, listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        accept(&shared, &listener, Port::Frontend, &mut connections).await;
    }
}

/// The same for the BE's port, which a fault can close for a while.
pub(crate) async fn serve_backend(shared: Shared, listener: TcpListener, number: u16) {
    let mut refuses = shared.cluster.faults.backend_refuses.subscribe();
    let mut connections = JoinSet::new();
    let mut listener = Some(listener);
    loop {
        if *refuses.borrow_and_update() {
            listener = None;
            connections.abort_all();
            if refuses.changed().await.is_err() {
                return;
            }
            continue;
        }
        let Some(open) = &listener else {
            listener = reopen(number).await;
            continue;
        };
        tokio::select! {
            () = accept(&shared, open, Port::Backend, &mut connections) => {}
            changed = refuses.changed() => if changed.is_err() { return },
        }
    }
}

async fn accept(shared: &Shared, listener: &TcpListener, port: Port, connections: &mut JoinSet<()>) {
    match listener.accept().await {
        Ok((stream, _)) => {
            connections.spawn(connection(shared.clone(), stream, port));
        }
        Err(error) => {
            tracing::warn!(%error, "could not accept a connection");
            tokio::time::sleep(PAUSE_AFTER_ERROR).await;
        }
    }
    while connections.try_join_next().is_some() {}
}

async fn reopen(number: u16) -> Option<TcpListener> {
    match TcpListener::bind(("127.0.0.1", number)).await {
        Ok(listener) => Some(listener),
        Err(error) => {
            tracing::warn!(%error, number, "could not open the BE's port again");
            tokio::time::sleep(PAUSE_AFTER_ERROR).await;
            None
        }
    }
}

async fn connection(shared: Shared, stream: TcpStream, port: Port) {
    let resets = |kind: &FaultKind| matches!(kind, FaultKind::BackendResets).then_some(());
    if port == Port::Backend && shared.cluster.faults.fire("", "", resets).is_some() {
        if let Err(error) = stream.set_zero_linger() {
            tracing::warn!(%error, "could not arrange for a reset");
        }
        return;
    }
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "could not set TCP_NODELAY");
    }
    let service = service_fn(move |request| route(shared.clone(), request, port));
    let served =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    if let Err(error) = served {
        // A fault that hangs up ends here too.
        tracing::debug!(%error, ?port, "connection ended");
    }
}

async fn route(shared: Shared, request: http::Request<Incoming>, port: Port) -> Handled {
    let path = request.uri().path().to_owned();
    let segments: Vec<String> =
        path.split('/').filter(|segment| !segment.is_empty()).map(request::decode).collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let method = request.method().clone();
    match (port, &method, segments.as_slice()) {
        (Port::Frontend, &Method::PUT, ["api", db, table, "_stream_load"]) => {
            frontend::stream_load(&shared.cluster, db, table, &request).await
        }
        (Port::Backend, &Method::PUT, ["api", db, table, "_stream_load"]) => {
            backend::stream_load(&shared.cluster, db, table, request).await
        }
        (Port::Frontend, &Method::GET, ["api", db, "get_load_state"]) => {
            frontend::load_state(&shared.cluster, db, &request)
        }
        (Port::Frontend, &Method::POST, ["api", db, _, "_cancel"]) => {
            frontend::cancel(&shared.cluster, db, &request)
        }
        (Port::Frontend, &Method::POST | &Method::PUT, ["api", "transaction", operation]) => {
            transaction::at_frontend(&shared, operation, &request).await
        }
        (Port::Backend, &Method::POST | &Method::PUT, ["api", "transaction", operation]) => {
            transaction::at_backend(&shared, operation, request).await
        }
        (Port::Backend, &Method::GET, ["api", "_load_error_log"]) => {
            backend::error_log(&shared.cluster, &request)
        }
        (_, &Method::GET, ["api", "health"]) => Ok(answer::health(port)),
        (Port::Frontend, &Method::GET, []) => Ok(control::front_page(&shared.cluster)),
        (Port::Frontend, _, ["sandbox", rest @ ..]) => {
            control::handle(&shared.cluster, &method, rest, request.into_body()).await
        }
        _ => Ok(answer::not_found(&path)),
    }
}
