//! How the CA is talked to: HTTPS with a deadline for each answer, and what it says beside the answer.
//!
//! The ACME client keeps an answer's body alone; `Retry-After` is noted here for the task that asked.

use std::cell::Cell;
use std::path::Path;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

/// A CA that takes longer for an answer is as good as away.
const ANSWER: Duration = Duration::from_secs(30);
const LONGEST_ANSWER: usize = 1024 * 1024;

tokio::task_local! {
    static RETRY_AFTER_SEEN: Cell<Option<Duration>>;
}

/// The CA cannot be reached, or something between it and us answered in its place.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Away(String);

/// Runs a task whose [`retry_after`] is its own.
pub(super) async fn noting_retry_after<F: Future>(task: F) -> F::Output {
    RETRY_AFTER_SEEN.scope(Cell::new(None), task).await
}

/// What the last answer in this task asked to wait.
pub(super) fn retry_after() -> Option<Duration> {
    RETRY_AFTER_SEEN.try_with(Cell::get).ok().flatten()
}

/// Whether an error means that nobody answered.
pub(super) fn is_away(error: &Error) -> bool {
    matches!(error, Error::Other(error) if error.is::<Away>())
}

/// The client; `roots` is the file that the CA's own certificate is checked against, else the system's roots are.
pub(super) fn client(roots: Option<&Path>) -> Result<Box<dyn HttpClient>, String> {
    let builder = rustls::ClientConfig::builder();
    let config = match roots {
        Some(path) => builder.with_root_certificates(read_roots(path)?),
        None => builder.try_with_platform_verifier().map_err(|error| format!("the system's roots: {error}"))?,
    };
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(config.with_no_client_auth())
        .https_only()
        .enable_http1()
        .enable_http2()
        .build();
    Ok(Box::new(Client(HyperClient::builder(TokioExecutor::new()).build(connector))))
}

fn read_roots(path: &Path) -> Result<rustls::RootCertStore, String> {
    let fault = |error: &dyn std::fmt::Display| format!("ACME_CA: {}: {error}", path.display());
    let mut roots = rustls::RootCertStore::empty();
    for der in CertificateDer::pem_file_iter(path).map_err(|error| fault(&error))? {
        roots.add(der.map_err(|error| fault(&error))?).map_err(|error| fault(&error))?;
    }
    if roots.is_empty() { Err(fault(&"there is no certificate in it")) } else { Ok(roots) }
}

struct Client(HyperClient<HttpsConnector<HttpConnector>, BodyWrapper<Bytes>>);

impl HttpClient for Client {
    fn request(
        &self,
        mut request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let agent = HeaderValue::from_static(concat!("itsup/", env!("CARGO_PKG_VERSION"), " instant-acme"));
        request.headers_mut().insert(USER_AGENT, agent);
        let host = request.uri().authority().map(ToString::to_string).unwrap_or_default();
        let asked = self.0.request(request);
        Box::pin(async move {
            let away = |why: &dyn std::fmt::Display| Error::Other(Box::new(Away(format!("{host}: {why}"))));
            let answer = tokio::time::timeout(ANSWER, async {
                let (parts, body) = asked.await.map_err(|error| away(&root_cause(&error)))?.into_parts();
                let body = Limited::new(body, LONGEST_ANSWER).collect().await.map_err(|error| away(&error))?;
                Ok::<_, Error>((parts, body.to_bytes()))
            });
            let (parts, body) = answer.await.map_err(|_| away(&"no answer in time"))??;
            // Outside of a task that asks for it, nobody wants to know.
            let _ = RETRY_AFTER_SEEN.try_with(|seen| seen.set(wait_asked_for(&parts.headers, SystemTime::now())));
            if parts.status.is_server_error() {
                return Err(away(&format!("it answered {}", parts.status)));
            }
            Ok(BytesResponse::from(Response::from_parts(parts, Full::new(body))))
        })
    }
}

/// hyper's own text says no more than that the client failed.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// `Retry-After` as a wait: seconds, or a date (RFC 9110, section 10.2.3).
fn wait_asked_for(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc2822).ok()?;
    Some(SystemTime::from(date).duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (text, wait) in [
            ("120", Some(120)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("soon", None),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(text))]);
            assert_eq!(wait_asked_for(&headers, now), wait.map(Duration::from_secs), "{text}");
        }
    }
}
