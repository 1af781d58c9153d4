//! Asking the running itsup, over its control socket.

use std::io::ErrorKind;
use std::path::PathBuf;

use anyhow::Context as _;
use http::{HeaderName, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use itsup_control::api::Problem;
use itsup_control::jobs::JobReport;
use itsup_control::self_update::SelfUpdated;
use itsup_control::settings::Root;
use itsup_control::status::{ErrorReport, ReloadReport, StatusReport};
use itsup_control::upgrade::{UpgradeReport, UpgradeRequest};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{from_slice, to_vec};
use tokio::net::UnixStream;
use tokio_util::task::AbortOnDropHandle;

use crate::failure::Failure;

/// Has it read everything again.
pub(crate) fn reload(root: &Root) -> Result<ReloadReport, Failure> {
    let bytes = ask(root, Method::POST, "/reload")?;
    Ok(from_slice(&bytes).context("the running itsup's answer cannot be read (is it of another version?)")?)
}

/// Asks how it is.
pub(crate) fn status(root: &Root) -> Result<StatusReport, Failure> {
    let bytes = ask(root, Method::GET, "/status")?;
    Ok(from_slice(&bytes).context("the running itsup's answer cannot be read (is it of another version?)")?)
}

/// Has another binary take over.
pub(crate) fn upgrade(root: &Root, to: Option<PathBuf>, patience_seconds: u64) -> Result<UpgradeReport, Failure> {
    let to = to.map_or_else(std::env::current_exe, Ok).and_then(|to| to.canonicalize());
    let to = to.context("the new binary cannot be found")?;
    let body = to_vec(&UpgradeRequest { to, patience_seconds }).context("the request cannot be made")?;
    let bytes = runtime()?.block_on(call(root, Method::POST, "/upgrade", Some(body)))?;
    Ok(from_slice(&bytes).context("the running itsup's answer cannot be read (is it of another version?)")?)
}

/// Has it update itself from git.
pub(crate) fn self_update(root: &Root) -> Result<SelfUpdated, Failure> {
    let bytes = ask(root, Method::POST, "/self-update")?;
    Ok(from_slice(&bytes).context("the running itsup's answer cannot be read (is it of another version?)")?)
}

/// Asks for all jobs.
pub(crate) fn jobs(root: &Root) -> Result<Vec<JobReport>, Failure> {
    let bytes = ask(root, Method::GET, "/jobs")?;
    Ok(from_slice(&bytes).context("the running itsup's answer cannot be read (is it of another version?)")?)
}

/// Cancels a job, as far as it can still be.
pub(crate) fn cancel(root: &Root, id: u64) -> Result<JobReport, Failure> {
    let bytes = ask(root, Method::POST, &format!("/jobs/{id}/cancel"))?;
    Ok(from_slice(&bytes).context("the running itsup's answer cannot be read (is it of another version?)")?)
}

/// Asks, and gives back the body of an answer that is not an error.
fn ask(root: &Root, method: Method, path: &str) -> Result<Bytes, Failure> {
    runtime()?.block_on(call(root, method, path, None))
}

/// Asks something else: `body` is sent as JSON, the answer read as `T`.
pub(crate) fn exchange_json<T: DeserializeOwned>(
    root: &Root,
    method: Method,
    path: &str,
    body: Option<&impl Serialize>,
) -> Result<T, Failure> {
    let body = body.map(serde_json::to_vec).transpose().context("the request cannot be made")?;
    let bytes = runtime()?.block_on(call(root, method, path, body))?;
    Ok(from_slice(&bytes).context("the running itsup's answer cannot be read (is it of another version?)")?)
}

/// Whether an itsup runs on this root. One that may not be spoken to runs as well: asking it says why.
pub(crate) fn is_running(root: &Root) -> bool {
    match std::os::unix::net::UnixStream::connect(root.socket()) {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused),
    }
}

/// What a client runs on: it does one thing at a time.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Ok(runtime.context("the async runtime cannot be started")?)
}

/// One request; an answer that is an error is the failure.
pub(crate) async fn call(root: &Root, method: Method, path: &str, body: Option<Vec<u8>>) -> Result<Bytes, Failure> {
    let Answer { status, body, _connection } = send(root, method, path, &[], body).await?;
    let bytes = body.collect().await.context("the running itsup's answer broke off")?.to_bytes();
    if status.is_success() { Ok(bytes) } else { Err(refusal(status, &bytes)) }
}

/// The failure that an answer stands for.
pub(crate) fn refusal(status: StatusCode, body: &[u8]) -> Failure {
    match from_slice::<Problem>(body) {
        Ok(Problem { detail, hint, diagnostics, .. }) => ErrorReport { error: detail, hint, diagnostics }.into(),
        Err(_) => Failure::faults(format!("the running itsup answered {status}"), Vec::new()),
    }
}

/// An answer whose body is still to come.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Incoming,
    /// Dropped, it ends the connection.
    _connection: AbortOnDropHandle<hyper::Result<()>>,
}

/// Sends a request, over a connection of its own.
pub(crate) async fn send(
    root: &Root,
    method: Method,
    path: &str,
    headers: &[(HeaderName, String)],
    body: Option<Vec<u8>>,
) -> Result<Answer, Failure> {
    let stream = connect(root).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .context("the control socket does not answer")?;
    let connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let mut request = Request::builder().method(method).uri(path).header(header::HOST, "itsup");
    if body.is_some() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request =
        request.body(Full::new(Bytes::from(body.unwrap_or_default()))).context("the request cannot be made")?;
    let answer = sender.send_request(request).await.context("the running itsup did not answer")?;
    Ok(Answer { status: answer.status(), body: answer.into_body(), _connection: connection })
}

async fn connect(root: &Root) -> Result<UnixStream, Failure> {
    let path = root.socket();
    UnixStream::connect(&path).await.map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
            let shown = root.path().display();
            Failure::with_hint(
                format!("no itsup runs on {shown}"),
                "start it with `itsup run`, or say where it runs with --root",
            )
        }
        ErrorKind::PermissionDenied => Failure::with_hint(
            format!("{}: permission denied", path.display()),
            "use the user that itsup runs as, or become a member of the group itsup",
        ),
        _ => Failure::faults(format!("{}: {error}", path.display()), Vec::new()),
    })
}
