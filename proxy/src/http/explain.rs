//! What a failure or a response means: pure.

use http::{Method, StatusCode, header};
use pingora::http::ResponseHeader;
use pingora::{Error, ErrorSource, ErrorType};

use super::judge::content_length;
use crate::chunked::BAD_CHUNK;

/// Bodies up to this are soon over, however slow the other side is.
pub(super) const LONG_BODY: u64 = 64 * 1024;

/// Why an endpoint that speaks TLS could not be used: its certificate, most often.
pub(super) const TLS_FAILED: &str = "TLS with the endpoint failed";

/// Whether a response must reach the client piece by piece as it is written.
pub(super) fn is_streaming(response: &ResponseHeader) -> bool {
    response.headers.get(header::CONTENT_TYPE).is_some_and(|kind| {
        let kind = kind.as_bytes();
        kind.starts_with(b"text/event-stream") || kind.starts_with(b"application/grpc")
    })
}

/// Whether a response is an event stream (HTML, section 9.2), which may end anywhere.
pub(super) fn is_event_stream(response: &ResponseHeader) -> bool {
    let kind = response.headers.get(header::CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"))
}

/// Whether a response may go on for a while: a long body, or one whose end nobody knows.
pub(super) fn is_long(response: &ResponseHeader, method: &Method) -> bool {
    !is_bare(response, method) && content_length(&response.headers).is_none_or(|length| length > LONG_BODY)
}

/// Whether a response is over with its header.
pub(super) fn is_bare(response: &ResponseHeader, method: &Method) -> bool {
    *method == Method::HEAD
        || matches!(response.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        || content_length(&response.headers) == Some(0)
}

/// The status to answer a failed request with (0: nobody is there to read it), who failed, and what happened.
pub(super) fn explain(error: &Error) -> (u16, &'static str, &'static str) {
    use ErrorType::*;
    // What the engine wraps is out of reach of `source()`.
    let bad_chunk = || error.root_cause().to_string().contains(BAD_CHUNK);
    match (error.esource(), error.etype()) {
        (_, HTTPStatus(status)) => (*status, "proxy", ""),
        (ErrorSource::Downstream, _) if bad_chunk() => (400, "client", BAD_CHUNK),
        (ErrorSource::Downstream, ReadTimedout) => (408, "client", "body too slow"),
        (ErrorSource::Downstream, InvalidHTTPHeader) => (400, "client", "malformed request"),
        (ErrorSource::Downstream, _) => (0, "client", "client left"),
        (
            ErrorSource::Upstream,
            ConnectTimedout | ConnectRefused | ConnectNoRoute | ConnectError | TLSHandshakeTimedout,
        ) => (503, "upstream", "cannot connect"),
        (ErrorSource::Upstream, TLSHandshakeFailure | InvalidCert | TLSWantX509Lookup | HandshakeError) => {
            (502, "upstream", TLS_FAILED)
        }
        (ErrorSource::Upstream, ReadTimedout | WriteTimedout) => (504, "upstream", "endpoint too slow"),
        (ErrorSource::Upstream, _) => (502, "upstream", "endpoint gave no valid response"),
        _ => (500, "proxy", "internal error"),
    }
}
