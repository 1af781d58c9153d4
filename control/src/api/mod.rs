//! The API: one router behind the control socket, the TCP address and the proxy's own socket.
//!
//! What a caller may do depends on how he came ([`Door`]) and on his key (`auth`). The handlers, a file for each noun, only
//! ask [`Control`], the jobs and db.yml's writer.

mod answers;
mod auth;
pub mod certs;
mod docs;
mod edits;
mod hook;
mod jobs;
pub(crate) mod metrics;
mod page;
mod plan;
mod problem;
mod projects;
mod read;
mod services;
mod sockets;
#[cfg(test)]
mod tests;
mod upgrading;
mod writing;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{ConnectInfo, DefaultBodyLimit, FromRequest, Request};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Extension, Router, body::Bytes};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use serde::de::DeserializeOwned;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Mutex, Semaphore, watch};

use crate::control::Control;
use crate::db_file::{DbFile, Held};
use crate::jobs::Jobs;
use crate::settings::Root;

pub use docs::{openapi, openapi_yaml};
pub use hook::HookAnswer;
pub use jobs::Accepted;
pub use problem::Problem;
pub use sockets::{Claim, SocketError};

/// The largest body; of a webhook, what GitHub sends at the most.
const BODY: usize = 1 << 20;
const HOOK_BODY: usize = 25 << 20;
/// Webhooks that are read at once: their bodies are large, and nobody has proved who he is yet.
const HOOKS: usize = 8;
/// How long a request's head may take to come, and an idle connection may stay.
const HEADER: Duration = Duration::from_secs(10);
/// How long accepting rests after it has failed.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// How long an answer may take to begin.
const ANSWER: Duration = Duration::from_secs(60);

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
    control: Control,
    jobs: Jobs,
    root: Root,
    db: DbFile,
    throttle: auth::Throttle,
    writing: writing::Writing,
    reloading: Arc<Reloading>,
    hooks: Arc<Semaphore>,
}

/// Reloads that many have asked for are done once.
#[derive(Default)]
struct Reloading {
    asked: std::sync::atomic::AtomicU64,
    /// Up to which asking it has been done.
    done: Mutex<u64>,
}

impl Api {
    /// What the handlers need.
    pub fn new(control: Control, jobs: Jobs) -> Api {
        let root = control.settings().map_or_else(|| Root::new("."), |settings| settings.root);
        let pen = control.pen().clone();
        Api {
            control,
            jobs,
            writing: writing::Writing::new(DbFile::new(root.clone()), pen),
            db: DbFile::new(root.clone()),
            root,
            throttle: auth::Throttle::default(),
            reloading: Arc::default(),
            hooks: Arc::new(Semaphore::new(HOOKS)),
        }
    }

    /// What db.yml says now.
    async fn read_db(&self) -> Result<Held, Problem> {
        let db = self.db.clone();
        let read = tokio::task::spawn_blocking(move || db.read()).await;
        Ok(read.map_err(|_| Problem::internal("db.yml could not be read"))??)
    }

    /// Changes db.yml, and returns its new tag.
    async fn write_db(
        &self,
        seen: Option<String>,
        change: impl Fn(&mut serde_json::Value) -> Result<(), edits::EditFault> + Send + 'static,
    ) -> Result<String, Problem> {
        Ok(self.writing.change(seen, Box::new(change)).await?)
    }

    /// Has the routes follow db.yml. Who asks while another waits shares his reload.
    async fn reload_soon(&self) -> Result<(), Problem> {
        use std::sync::atomic::Ordering::SeqCst;
        let wanted = self.reloading.asked.fetch_add(1, SeqCst) + 1;
        let mut done = self.reloading.done.lock().await;
        if *done < wanted {
            let now = self.reloading.asked.load(SeqCst);
            self.control.reload().await?;
            *done = now;
        }
        Ok(())
    }
}

/// Serves the control socket until told to close: then answers what has been asked, and returns.
pub async fn serve_control(listener: UnixListener, api: Api, close: watch::Receiver<bool>) -> io::Result<()> {
    axum::serve(listener, router(api, Door::Control)).with_graceful_shutdown(told(close)).await
}

/// Serves `ITSUP_API` until told to close: then answers what has been asked, and returns.
///
/// Anybody may connect here, so a request's head has [`HEADER`] to come; axum's own server would wait for ever.
pub async fn serve_tcp(listener: TcpListener, api: Api, close: watch::Receiver<bool>) -> io::Result<()> {
    let router = router(api, Door::Tcp);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER);
    let open = GracefulShutdown::new();
    let told = told(close);
    tokio::pin!(told);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut told => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!("ITSUP_API: {error}");
                // Out of file descriptors, most likely; others may become free.
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone().layer(Extension(ConnectInfo(peer))));
        let connection = open.watch(http.serve_connection(TokioIo::new(stream), service));
        // A client that breaks off is nobody's fault but its own.
        tokio::spawn(async move { _ = connection.await });
    }
    drop(listener);
    open.shutdown().await;
    Ok(())
}

/// Serves what the proxy sends until told to close: then answers what has been asked, and returns.
pub async fn serve_proxy(listener: UnixListener, api: Api, close: watch::Receiver<bool>) -> io::Result<()> {
    axum::serve(listener, router(api, Door::Proxy)).with_graceful_shutdown(told(close)).await
}

async fn told(mut close: watch::Receiver<bool>) {
    // A sender that is gone has nothing more to say.
    let _ = close.wait_for(|close| *close).await;
}

/// Everything that every door has, behind its guard. A test holds this against the description.
fn routes() -> Vec<(&'static str, MethodRouter<Api>)> {
    vec![
        ("/healthz", get(read::healthz)),
        ("/metrics", get(read::metrics)),
        ("/status", get(read::status)),
        ("/reload", post(read::reload)),
        ("/certs", get(read::certs)),
        ("/receipts", get(read::receipts)),
        ("/receipts/{name}", get(read::one_receipt)),
        ("/projects", get(projects::list).post(projects::put)),
        ("/projects/{project}", get(projects::get).patch(projects::patch).delete(projects::delete)),
        ("/projects/{project}/services", get(services::list)),
        ("/projects/{project}/services/{service}", get(services::get).patch(services::patch).delete(services::delete)),
        ("/projects/{project}/services/{service}/env", get(services::get_env).post(services::set_env)),
        ("/services", get(services::list_all).post(services::put)),
        ("/plan", get(plan::plan)),
        ("/apply", post(jobs::apply)),
        ("/rollout", post(jobs::rollout)),
        ("/rollback", post(jobs::rollback)),
        ("/update-upstream", get(jobs::update_by_query)),
        ("/update-upstream/{project}", get(jobs::update_project)),
        ("/update-upstream/{project}/{service}", get(jobs::update_service)),
        ("/jobs", get(jobs::list)),
        ("/jobs/{id}", get(jobs::get)),
        ("/jobs/{id}/cancel", post(jobs::cancel)),
        ("/jobs/{id}/events", get(jobs::events_of_one)),
        ("/events", get(jobs::events_of_all)),
        ("/hook", post(hook::deliver).layer(DefaultBodyLimit::max(HOOK_BODY))),
        ("/openapi.json", get(docs::openapi_json)),
        ("/docs", get(docs::docs)),
    ]
}

fn router(api: Api, door: Door) -> Router {
    let mut router = Router::new();
    for (path, methods) in routes() {
        router = router.route(path, methods);
    }
    if door == Door::Control {
        router = router.merge(certs::routes()).merge(upgrading::routes());
    }
    let router =
        router.fallback(not_found).method_not_allowed_fallback(wrong_method).layer(DefaultBodyLimit::max(BODY));
    let router = match door {
        // Its callers are trusted, and may ask for what takes long.
        Door::Control => router,
        Door::Tcp | Door::Proxy => {
            let hooks = api.hooks.clone();
            router.layer(middleware::from_fn(move |request: Request, next: Next| in_time(hooks.clone(), request, next)))
        }
    };
    router
        .layer(middleware::from_fn(as_problem))
        .layer(middleware::from_fn_with_state((api.clone(), door), auth::guard))
        .with_state(api)
}

async fn not_found() -> Problem {
    Problem::not_found("there is nothing here")
}

async fn wrong_method() -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this method is not for this path")
}

/// Gives up on a request whose answer does not begin in time: a body that never comes, for one.
async fn in_time(hooks: Arc<Semaphore>, request: Request, next: Next) -> Response {
    let answer = async {
        let _turn = match request.uri().path() {
            "/hook" => Some(hooks.acquire().await),
            _ => None,
        };
        next.run(request).await
    };
    match tokio::time::timeout(ANSWER, answer).await {
        Ok(response) => response,
        Err(_) => Problem::new(StatusCode::REQUEST_TIMEOUT, "this takes too long").into_response(),
    }
}

/// What axum itself refuses (a query, a path, a body that is too large) is a problem document as well.
async fn as_problem(request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let status = response.status();
    let kind = response.headers().get(axum::http::header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    if !(status.is_client_error() || status.is_server_error()) || kind.is_some_and(|kind| kind.contains("json")) {
        return response;
    }
    let (parts, body) = response.into_parts();
    let detail = axum::body::to_bytes(body, 4096).await.unwrap_or_default();
    let mut problem = Problem::new(status, String::from_utf8_lossy(&detail)).into_response();
    for (name, value) in &parts.headers {
        if name != axum::http::header::CONTENT_TYPE && name != axum::http::header::CONTENT_LENGTH {
            problem.headers_mut().insert(name, value.clone());
        }
    }
    problem
}

/// A JSON body, whatever its declared type; an empty one is an empty object.
struct Body<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let bytes = Bytes::from_request(request, state).await.map_err(IntoResponse::into_response)?;
        let text: &[u8] = if bytes.trim_ascii().is_empty() { b"{}" } else { &bytes };
        serde_json::from_slice(text).map(Body).map_err(|error| {
            let status = if error.is_data() { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::BAD_REQUEST };
            Problem::new(status, format!("the body cannot be read: {error}")).into_response()
        })
    }
}
