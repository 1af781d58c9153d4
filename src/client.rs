//! Asking the running itsup, over its control socket.

use std::io::ErrorKind;

use anyhow::Context as _;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use itsup_control::settings::Root;
use itsup_control::status::{ErrorReport, ReloadReport, StatusReport};
use serde_json::from_slice;
use tokio::net::UnixStream;

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

fn ask(root: &Root, method: Method, path: &str) -> Result<Bytes, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("the async runtime cannot be started")?;
    let (status, bytes) = runtime.block_on(exchange(root, method, path))?;
    if status.is_success() {
        return Ok(bytes);
    }
    match from_slice::<ErrorReport>(&bytes) {
        Ok(report) => Err(report.into()),
        Err(_) => Err(Failure::faults(format!("the running itsup answered {status}"), Vec::new())),
    }
}

async fn exchange(root: &Root, method: Method, path: &str) -> Result<(StatusCode, Bytes), Failure> {
    let stream = connect(root).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .context("the control socket does not answer")?;
    let connection = tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header(http::header::HOST, "itsup");
    let request = request.body(Empty::<Bytes>::new()).context("the request cannot be made")?;
    let answer = sender.send_request(request).await.context("the running itsup did not answer")?;
    let status = answer.status();
    let bytes = answer.into_body().collect().await.context("the running itsup's answer broke off")?.to_bytes();
    drop(sender);
    connection.abort();
    Ok((status, bytes))
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
