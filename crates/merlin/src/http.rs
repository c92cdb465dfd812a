//! `/alive`, `/ready`, `/health` and `/metrics` for probes and scrapers.
//!
//! * `/alive`: the process runs. The only one to restart it for.
//! * `/ready`: the first reconcile is done and the store takes writes.
//! * `/health`: nothing is wrong with this node as a whole. One object the kernel refuses does not
//!   make a node unhealthy, it is listed in `meradm status`.

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use futures::StreamExt;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::listen;
use crate::metrics::Metrics;
use crate::node::Node;

#[derive(Clone, Debug)]
struct Pages {
    node: Node,
    metrics: Metrics,
}

pub(crate) async fn serve(
    listener: TcpListener,
    node: Node,
    metrics: Metrics,
    shutdown: CancellationToken,
) {
    let router = Router::new()
        .route("/alive", get(async || "alive\n"))
        .route(
            "/ready",
            get(async |State(pages): State<Pages>| answer(pages.node.unready())),
        )
        .route(
            "/health",
            get(async |State(pages): State<Pages>| answer(pages.node.problems())),
        )
        .route(
            "/metrics",
            get(async |State(pages): State<Pages>| scrape(&pages.metrics)),
        )
        .with_state(Pages { node, metrics });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(listen::PATIENCE)
        .max_buf_size(16 * 1024);
    let mut connections = std::pin::pin!(listen::connections(listener));
    loop {
        let connection = tokio::select! {
            () = shutdown.cancelled() => return,
            next = connections.next() => next,
        };
        let Some(Ok(socket)) = connection else { return };
        let serving = http.serve_connection(
            TokioIo::new(socket),
            TowerToHyperService::new(router.clone()),
        );
        let shutdown = shutdown.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                // Garbage and hang-ups are the client's affair.
                _ = serving => {}
            }
        });
    }
}

/// 200 when there is nothing to complain about, otherwise 503 with one complaint a line.
fn answer(complaints: Vec<String>) -> impl IntoResponse {
    if complaints.is_empty() {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            complaints.join("\n") + "\n",
        )
    }
}

fn scrape(metrics: &Metrics) -> impl IntoResponse + use<> {
    const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match metrics.encode() {
        Ok(text) => (StatusCode::OK, [(header::CONTENT_TYPE, CONTENT_TYPE)], text),
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            [(header::CONTENT_TYPE, "text/plain")],
            format!("{error}\n"),
        ),
    }
}
