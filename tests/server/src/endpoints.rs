//! What each path answers.

use std::fmt::Write as _;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aws_lc_rs::digest;
use bytes::Bytes;
use futures_util::stream;
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use crate::app::App;
use crate::body::{self, Body};
use crate::serve::Connection;
use crate::{Failure, grpc, websocket};

/// Answers a request; an error closes the connection without an answer.
pub(crate) async fn respond(
    request: Request<Incoming>,
    connection: Arc<Connection>,
    app: Arc<App>,
) -> Result<Response<Body>, Failure> {
    app.requests.fetch_add(1, Ordering::Relaxed);
    if !app.ready() {
        return Ok(status(StatusCode::SERVICE_UNAVAILABLE, "not ready\n"));
    }
    if request.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
    {
        return Ok(grpc::respond(request));
    }
    let query = Query(request.uri().query().unwrap_or_default().to_owned());
    let path = request.uri().path().to_owned();
    let (first, rest) = path[1.min(path.len())..].split_once('/').unwrap_or((&path[1.min(path.len())..], ""));
    match first {
        "echo" => Ok(echo(request)),
        "bytes" => Ok(bytes(rest, &query)),
        "slow" => {
            tokio::time::sleep(query.millis("ms", 2_000)).await;
            Ok(describe(&request, &connection, &app))
        }
        "stream" => {
            let events = body::events(query.number("n", 10), query.millis("ms", 100), app.clone());
            Ok(with_type(Response::new(events), "text/event-stream"))
        }
        "ws" => Ok(websocket::respond(request, connection, app)),
        "upload" | "continue" => upload(request).await,
        "status" => Ok(status(StatusCode::from_str(rest).unwrap_or(StatusCode::BAD_REQUEST), "as told\n")),
        "hang" => std::future::pending().await,
        "close" => close(&query),
        "trailers" => Ok(trailers()),
        "expect-no-body" => Ok(describe(&request, &connection, &app)),
        "reply" => Ok(reply(&query)),
        "health" => Ok(health(&request, &query, &app)),
        _ => Ok(describe(&request, &connection, &app)),
    }
}

/// The query's `name=value` pairs, as they stand.
struct Query(String);

impl Query {
    fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, "")))
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.pairs().find(|pair| pair.0 == name).map(|pair| pair.1)
    }

    fn number(&self, name: &str, default: u64) -> u64 {
        self.text(name).and_then(|text| text.parse().ok()).unwrap_or(default)
    }

    fn millis(&self, name: &str, default: u64) -> Duration {
        Duration::from_millis(self.number(name, default))
    }
}

fn status(code: StatusCode, text: &'static str) -> Response<Body> {
    let empty = code.is_informational() || code == StatusCode::NO_CONTENT || code == StatusCode::NOT_MODIFIED;
    let mut response = with_type(Response::new(body::full(if empty { "" } else { text })), "text/plain");
    // A server cannot end a request with 1xx.
    *response.status_mut() = if code.is_informational() { StatusCode::BAD_REQUEST } else { code };
    response
}

fn with_type(mut response: Response<Body>, kind: &'static str) -> Response<Body> {
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn json_body(value: &Value) -> Response<Body> {
    with_type(Response::new(body::full(format!("{value}\n"))), "application/json")
}

/// All that is known of the request, as JSON.
fn describe(request: &Request<Incoming>, connection: &Connection, app: &App) -> Response<Body> {
    let headers: Vec<_> = request
        .headers()
        .iter()
        .map(|(name, value)| json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())]))
        .collect();
    json_body(&json!({
        "name": app.name,
        "version": app.version,
        "instance": app.instance,
        "method": request.method().as_str(),
        "path": request.uri().path_and_query().map(|path| path.as_str()),
        "authority": request.uri().authority().map(|authority| authority.as_str()),
        "http": format!("{:?}", request.version()),
        "headers": headers,
        "peer": connection.peer.to_string(),
        "proxy": connection.proxy.as_ref().map(|header| header.to_json()),
        "tls": connection.tls.as_ref().map(|(sni, alpn)| json!({"sni": sni, "alpn": alpn})),
        "requests": app.requests.load(Ordering::Relaxed),
    }))
}

fn echo(request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let mut response = Response::new(body.map_err(Into::into).boxed_unsync());
    for name in [header::CONTENT_TYPE, header::CONTENT_LENGTH] {
        if let Some(value) = parts.headers.get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    response
}

/// `/bytes/N?piece=&ms=&chunked=1`.
fn bytes(length: &str, query: &Query) -> Response<Body> {
    let Ok(length) = length.parse::<u64>() else { return status(StatusCode::BAD_REQUEST, "a number, please\n") };
    let piece = usize::try_from(query.number("piece", 65_536)).unwrap_or(65_536);
    let mut response = Response::new(body::pattern(length, piece, query.millis("ms", 0)));
    if query.text("chunked").is_none() {
        response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    }
    with_type(response, "application/octet-stream")
}

/// Reads the body to its end, which is when a waiting client is told to continue; answers its size and SHA-256.
async fn upload(request: Request<Incoming>) -> Result<Response<Body>, Failure> {
    let (parts, mut body) = request.into_parts();
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            length += data.len();
            hash.update(&data);
        }
    }
    let sha256 = hash.finish().as_ref().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    });
    let expect = parts.headers.get(header::EXPECT).map(|value| String::from_utf8_lossy(value.as_bytes()));
    Ok(json_body(&json!({"bytes": length, "sha256": sha256, "expect": expect})))
}

/// `/close` hangs up without a word; `/close?after=N&of=M` within the body.
fn close(query: &Query) -> Result<Response<Body>, Failure> {
    let Some(after) = query.text("after").and_then(|text| text.parse().ok()) else {
        return Err("closed, as told".into());
    };
    let mut response = Response::new(body::broken(after));
    if let Some(of) = query.text("of").and_then(|text| text.parse::<u64>().ok()) {
        response.headers_mut().insert(header::CONTENT_LENGTH, of.into());
    }
    Ok(response)
}

fn trailers() -> Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-checksum", HeaderValue::from_static("42"));
    let frames = [Ok(Frame::data(Bytes::from_static(b"hello\n"))), Ok(Frame::trailers(trailers))];
    let mut response = with_type(Response::new(body::streamed(stream::iter(frames))), "text/plain");
    response.headers_mut().insert(header::TRAILER, HeaderValue::from_static("x-checksum"));
    response
}

/// `/reply?name=value&...` answers with these headers; `body=N` with N bytes.
fn reply(query: &Query) -> Response<Body> {
    let mut response = Response::new(body::pattern(query.number("body", 0), 65_536, Duration::ZERO));
    response.headers_mut().insert(header::CONTENT_LENGTH, query.number("body", 0).into());
    for (name, value) in query.pairs().filter(|pair| pair.0 != "body") {
        if let (Ok(name), Ok(value)) = (HeaderName::from_str(name), HeaderValue::from_str(value)) {
            response.headers_mut().append(name, value);
        }
    }
    response
}

fn health(request: &Request<Incoming>, query: &Query, app: &App) -> Response<Body> {
    if request.method() == Method::POST {
        app.switch_health(query.text("ok") != Some("false"));
    }
    // Whoever switches is told it worked; whoever asks is told how it is.
    if request.method() == Method::POST || app.healthy() {
        status(StatusCode::OK, "well\n")
    } else {
        status(StatusCode::SERVICE_UNAVAILABLE, "ill\n")
    }
}
