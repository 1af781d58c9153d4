//! The API: one router behind the control socket, the TCP address and the proxy's own socket.
//!
//! What a caller may do depends on how he came ([`Door`]). The handlers only ask [`Control`].

pub mod certs;
mod jobs;
pub(crate) mod metrics;
mod problem;
mod sockets;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use axum::{Router, middleware};
use tokio::net::{TcpListener, UnixListener};

use crate::control::Control;
use crate::jobs::Jobs;
use crate::status::{ReloadReport, StatusReport};

pub use jobs::Accepted;
pub use problem::Problem;
pub use sockets::{Claim, SocketError};

/// By which way a caller came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    /// The control socket: its file's rights say who may.
    Control,
    /// `ITSUP_API`.
    Tcp,
    /// The proxy, for a host that leads to the API.
    Proxy,
}

/// What the handlers ask. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    /// Routes and state.
    pub control: Control,
    /// Changes.
    pub jobs: Jobs,
}

/// Serves the control socket until the process ends.
pub async fn serve_control(listener: UnixListener, api: Api) -> io::Result<()> {
    axum::serve(listener, router(api, Door::Control)).await
}

/// Serves `ITSUP_API` until the process ends.
pub async fn serve_tcp(listener: TcpListener, api: Api) -> io::Result<()> {
    let router = router(api, Door::Tcp);
    axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>()).await
}

/// Serves what the proxy sends until the process ends.
pub async fn serve_proxy(listener: UnixListener, api: Api) -> io::Result<()> {
    axum::serve(listener, router(api, Door::Proxy)).await
}

fn router(api: Api, door: Door) -> Router {
    let router = Router::new().route("/healthz", get(healthz));
    let router = match door {
        Door::Control => router
            .merge(certs::routes())
            .route("/status", get(status))
            .route("/reload", post(reload))
            .route("/metrics", get(metrics))
            .route("/apply", post(jobs::apply))
            .route("/rollout", post(jobs::rollout))
            .route("/rollback", post(jobs::rollback))
            .route("/jobs", get(jobs::list))
            .route("/jobs/{id}", get(jobs::get))
            .route("/jobs/{id}/cancel", post(jobs::cancel))
            .route("/jobs/{id}/events", get(jobs::events_of_one))
            .route("/events", get(jobs::events_of_all)),
        Door::Tcp => router.route("/metrics", get(metrics).layer(middleware::from_fn(direct_loopback_alone))),
        Door::Proxy => router,
    };
    router.fallback(not_found).method_not_allowed_fallback(wrong_method).with_state(api)
}

async fn healthz() -> &'static str {
    "ok\n"
}

async fn status(State(api): State<Api>) -> Result<Json<StatusReport>, Problem> {
    // With 100,000 hosts this is work; it belongs to no runtime's worker.
    let status = tokio::task::spawn_blocking(move || api.control.status()).await;
    status.map(Json).map_err(|_| Problem::internal("the status could not be made"))
}

async fn reload(State(api): State<Api>) -> Result<Json<ReloadReport>, Problem> {
    Ok(Json(api.control.reload().await?))
}

async fn metrics(State(api): State<Api>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], api.control.metrics()).into_response()
}

async fn not_found() -> Problem {
    Problem::not_found("there is nothing here")
}

async fn wrong_method() -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this method is not for this path")
}

/// Lets in who connects from this very host and speaks for himself.
async fn direct_loopback_alone(request: Request, next: middleware::Next) -> Response {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| *peer);
    if !peer.is_some_and(|peer| is_direct_loopback(peer, request.headers())) {
        return Problem::new(StatusCode::FORBIDDEN, "only for direct connections from this host").into_response();
    }
    next.run(request).await
}

/// A proxy on this host is a loopback peer too, and says for whom it asks.
fn is_direct_loopback(peer: SocketAddr, headers: &HeaderMap) -> bool {
    const FORWARDED: [&str; 5] = ["forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip"];
    peer.ip().to_canonical().is_loopback() && !FORWARDED.iter().any(|name| headers.contains_key(*name))
}
