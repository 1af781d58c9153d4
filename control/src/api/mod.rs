//! The API: one router behind the control socket, the TCP address and the proxy's own socket.
//!
//! What a caller may do depends on how he came ([`Door`]). The handlers only ask [`Control`].

pub(crate) mod metrics;
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

use crate::control::{Control, ReloadError};
use crate::status::ErrorReport;

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

/// Serves the control socket until the process ends.
pub async fn serve_control(listener: UnixListener, control: Control) -> io::Result<()> {
    axum::serve(listener, router(control, Door::Control)).await
}

/// Serves `ITSUP_API` until the process ends.
pub async fn serve_tcp(listener: TcpListener, control: Control) -> io::Result<()> {
    let router = router(control, Door::Tcp);
    axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>()).await
}

/// Serves what the proxy sends until the process ends.
pub async fn serve_proxy(listener: UnixListener, control: Control) -> io::Result<()> {
    axum::serve(listener, router(control, Door::Proxy)).await
}

fn router(control: Control, door: Door) -> Router {
    let router = Router::new().route("/healthz", get(healthz));
    let router = match door {
        Door::Control => {
            router.route("/status", get(status)).route("/reload", post(reload)).route("/metrics", get(metrics))
        }
        Door::Tcp => router.route("/metrics", get(metrics).layer(middleware::from_fn(direct_loopback_alone))),
        Door::Proxy => router,
    };
    router.fallback(not_found).method_not_allowed_fallback(wrong_method).with_state(control)
}

async fn healthz() -> &'static str {
    "ok\n"
}

async fn status(State(control): State<Control>) -> Response {
    // With 100,000 hosts this is work; it belongs to no runtime's worker.
    match tokio::task::spawn_blocking(move || control.status()).await {
        Ok(status) => Json(status).into_response(),
        Err(_) => error(StatusCode::INTERNAL_SERVER_ERROR, "the status could not be made"),
    }
}

async fn reload(State(control): State<Control>) -> Response {
    match control.reload().await {
        Ok(report) => Json(report).into_response(),
        Err(refused @ ReloadError::Refused(_)) => {
            let message = refused.to_string();
            let ReloadError::Refused(refused) = refused else { return error(StatusCode::CONFLICT, &message) };
            let report = ErrorReport { error: message, hint: None, diagnostics: refused.diagnostics };
            (StatusCode::UNPROCESSABLE_ENTITY, Json(report)).into_response()
        }
        Err(gone @ ReloadError::ShuttingDown(_)) => error(StatusCode::SERVICE_UNAVAILABLE, &gone.to_string()),
    }
}

async fn metrics(State(control): State<Control>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], control.metrics()).into_response()
}

async fn not_found() -> Response {
    error(StatusCode::NOT_FOUND, "there is nothing here")
}

async fn wrong_method() -> Response {
    error(StatusCode::METHOD_NOT_ALLOWED, "this method is not for this path")
}

/// Lets in who connects from this very host and speaks for himself.
async fn direct_loopback_alone(request: Request, next: middleware::Next) -> Response {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| *peer);
    if !peer.is_some_and(|peer| is_direct_loopback(peer, request.headers())) {
        return error(StatusCode::FORBIDDEN, "only for direct connections from this host");
    }
    next.run(request).await
}

/// A proxy on this host is a loopback peer too, and says for whom it asks.
fn is_direct_loopback(peer: SocketAddr, headers: &HeaderMap) -> bool {
    const FORWARDED: [&str; 5] = ["forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip"];
    peer.ip().to_canonical().is_loopback() && !FORWARDED.iter().any(|name| headers.contains_key(*name))
}

fn error(status: StatusCode, message: &str) -> Response {
    (status, Json(ErrorReport { error: message.to_owned(), hint: None, diagnostics: Vec::new() })).into_response()
}
