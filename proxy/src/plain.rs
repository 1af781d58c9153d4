//! A connection to :80: challenges are answered, everything else is sent to https.
//!
//! Small enough to do without the HTTP engine: no request here has an upstream, but for the challenges of passthrough hosts.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use crate::access_log::{Record, shown};
use crate::dial::{Caller, dial};
use crate::front::read_proxy_header;
use crate::head::{Framing, Head, HeadReader, Progress, Reject};
use crate::live::{Entry, Live, LiveUpstream};
use crate::redirect::https_url;
use crate::request_id::RequestId;
use crate::shared::Seat;
use crate::worker::Worker;
use crate::{error_page, host};

const CHALLENGE: &str = "/.well-known/acme-challenge/";
/// A forwarded challenge is done within this, or given up.
const CHALLENGE_LIMIT: Duration = Duration::from_secs(30);
/// Challenge answers are a line; more than this is not one.
const CHALLENGE_BYTES: u64 = 64 * 1024;
const LINGER: Duration = Duration::from_secs(1);

/// What to do with one request.
enum Answer {
    Redirect(String),
    KeyAuthorization(Arc<str>),
    /// Ask the passthrough host behind.
    Forward,
    Error(u16),
}

/// One request, as the log tells of it.
struct Asked<'a> {
    method: &'a str,
    target: &'a str,
    host: &'a str,
}

/// Serves a connection to the plain port.
pub(crate) async fn serve(worker: Arc<Worker>, mut tcp: TcpStream, peer: SocketAddr, seat: Seat) {
    let mut bytes = BytesMut::new();
    let client = if worker.shared.store.load().edge.sends_proxy_header(peer.ip()) {
        match timeout(worker.shared.limits.hello, read_proxy_header(&mut tcp, &mut bytes)).await {
            Ok(Some(source)) => source.unwrap_or(peer),
            _ => return worker.count().add(|c| &c.refused_proxy_header),
        }
    } else {
        peer
    };
    while let Some(head) = next_head(&worker, &mut tcp, &mut bytes, client).await {
        if !respond(&worker, &mut tcp, &bytes[..head.len], &head, client).await {
            linger(tcp).await;
            break;
        }
        let _ = bytes.split_to(head.len);
    }
    drop(seat);
}

/// Reads the next request's head; `None` ends the connection.
async fn next_head(worker: &Worker, tcp: &mut TcpStream, bytes: &mut BytesMut, client: SocketAddr) -> Option<Head> {
    let limits = &worker.shared.limits;
    let mut closing = worker.closing.clone();
    let mut reader = HeadReader::new(limits.header_bytes, limits.header_fields);
    let mut deadline = Instant::now() + if bytes.is_empty() { limits.keep_alive } else { limits.header };
    loop {
        if !bytes.is_empty() {
            match reader.check(bytes) {
                Progress::Done(head) => return Some(head),
                Progress::Reject(reject) => {
                    refuse(worker, tcp, &reject, client).await;
                    return None;
                }
                Progress::NeedMore => {}
            }
        }
        let idle = bytes.is_empty();
        let read = tokio::select! {
            read = timeout_at(deadline, tcp.read_buf(bytes)) => read,
            _ = closing.wait_for(|closing| *closing), if idle => return None,
        };
        match read {
            Ok(Ok(read)) if read > 0 => {}
            Err(_) if !idle => {
                refuse(worker, tcp, &Reject { status: 408, reason: "header too slow" }, client).await;
                return None;
            }
            _ => return None,
        }
        if idle {
            deadline = Instant::now() + limits.header;
        }
    }
}

async fn refuse(worker: &Worker, tcp: &mut TcpStream, reject: &Reject, client: SocketAddr) {
    worker.count().add(|c| &c.plain_rejected);
    let id = RequestId::random();
    let asked = Asked { method: "", target: "", host: "" };
    let sent = send_error(worker, tcp, reject.status, &id, true, false).await;
    log(worker, &asked, client, reject.status, sent, &id, reject.reason);
}

/// Answers one request; false when the connection is not to be used again.
async fn respond(worker: &Worker, tcp: &mut TcpStream, raw: &[u8], head: &Head, client: SocketAddr) -> bool {
    let text = |range: &std::ops::Range<usize>| std::str::from_utf8(&raw[range.clone()]).unwrap_or("");
    let mut buffer = [0; 256];
    let name = head.host.as_ref().and_then(|range| host::normalize(&raw[range.clone()], &mut buffer));
    let asked = Asked { method: text(&head.method), target: origin_form(text(&head.target)), host: name.unwrap_or("") };
    let keep = head.keep_alive && head.framing == Framing::None && !*worker.shutdown.borrow();
    let id = RequestId::random();
    let count = worker.count();
    let (status, sent, why) = match decide(worker, &asked) {
        Answer::Redirect(location) => {
            count.add(|c| &c.redirected);
            let status = if matches!(asked.method, "GET" | "HEAD") { 301 } else { 308 };
            let fields = format!("Location: {location}\r\n");
            (status, send(worker, tcp, status, &fields, b"", keep).await, "")
        }
        Answer::KeyAuthorization(authorization) => {
            count.add(|c| &c.challenged);
            let fields = "Content-Type: application/octet-stream\r\n";
            let body = if asked.method == "HEAD" { &b""[..] } else { authorization.as_bytes() };
            (200, send(worker, tcp, 200, fields, body, keep).await, "")
        }
        Answer::Forward => {
            count.add(|c| &c.challenged);
            let done = timeout(CHALLENGE_LIMIT, forward(worker, tcp, &asked, client)).await;
            match done {
                Ok(Some(sent)) => {
                    log(worker, &asked, client, 200, Some(sent), &id, "forwarded to the passthrough host");
                    return false;
                }
                _ => (502, send_error(worker, tcp, 502, &id, true, false).await, "challenge not forwarded"),
            }
        }
        Answer::Error(status) => {
            count.add(|c| &c.plain_unknown);
            let bare = asked.method == "HEAD";
            (status, send_error(worker, tcp, status, &id, !keep, bare).await, "unknown host")
        }
    };
    log(worker, &asked, client, status, sent, &id, why);
    keep && sent.is_some()
}

/// The path and query of a request target in origin or absolute form (RFC 9112, section 3.2).
fn origin_form(target: &str) -> &str {
    match target.split_once("://") {
        Some((scheme, rest)) if !scheme.contains('/') => rest.find('/').map_or("/", |at| &rest[at..]),
        _ => target,
    }
}

fn decide(worker: &Worker, asked: &Asked<'_>) -> Answer {
    let live = worker.shared.store.load();
    let entry = live.lookup(asked.host);
    if let Some(token) = asked.target.strip_prefix(CHALLENGE) {
        if let Some(Entry::Pass { challenge: Some(_), .. }) = entry {
            return Answer::Forward;
        }
        return match worker.shared.challenges.find(token) {
            Some(authorization) => Answer::KeyAuthorization(authorization),
            None => Answer::Error(404),
        };
    }
    let to = match entry {
        None => return Answer::Error(404),
        Some(Entry::Redirect(to)) => to.as_str(),
        Some(Entry::Pass { .. } | Entry::Terminate(_)) => asked.host,
    };
    let target = if asked.target.starts_with('/') { asked.target } else { "/" };
    Answer::Redirect(https_url(to, live.edge.public_https_port, target))
}

fn challenged(live: &Live, host: &str) -> Option<Arc<LiveUpstream>> {
    match live.lookup(host) {
        Some(Entry::Pass { challenge, .. }) => challenge.clone(),
        _ => None,
    }
}

/// Asks the passthrough host and hands its answer on as it is; returns the bytes that it had.
async fn forward(worker: &Worker, tcp: &mut TcpStream, asked: &Asked<'_>, client: SocketAddr) -> Option<u64> {
    let request = format!(
        "{} {} HTTP/1.1\r\nHost: {}\r\nX-Forwarded-For: {}\r\nX-Forwarded-Proto: http\r\nUser-Agent: itsUP\r\n\
         Accept: */*\r\nConnection: close\r\n\r\n",
        if asked.method == "HEAD" { "HEAD" } else { "GET" },
        asked.target,
        asked.host,
        client.ip(),
    );
    let caller = Caller { address: client, tcp };
    let mut dialed = dial(worker, |live| challenged(live, asked.host), caller, request.as_bytes()).await.ok()?;
    let mut answer = (&mut dialed.tcp).take(CHALLENGE_BYTES);
    // Nothing has been written to the client before the first byte is here, so that a dead endpoint is a 502.
    let mut first = BytesMut::with_capacity(4 * 1024);
    if answer.read_buf(&mut first).await.ok()? == 0 {
        return None;
    }
    tcp.write_all(&first).await.ok()?;
    let rest = tokio::io::copy(&mut answer, tcp).await.ok()?;
    Some(first.len() as u64 + rest)
}

async fn send_error(
    worker: &Worker,
    tcp: &mut TcpStream,
    status: u16,
    id: &RequestId,
    close: bool,
    bare: bool,
) -> Option<u64> {
    let page = error_page::render(status, None, id.as_str());
    let fields = format!("Content-Type: {}\r\nX-Request-Id: {}\r\n", page.content_type, id.as_str());
    let body = if bare { &b""[..] } else { &page.body };
    send(worker, tcp, status, &fields, body, !close).await
}

/// Sends a response; returns its body's length, or `None` when the client did not take it.
async fn send(worker: &Worker, tcp: &mut TcpStream, status: u16, fields: &str, body: &[u8], keep: bool) -> Option<u64> {
    let reason = http::StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or("Unknown");
    let connection = if keep { "" } else { "Connection: close\r\n" };
    let mut answer =
        format!("HTTP/1.1 {status} {reason}\r\n{fields}Content-Length: {}\r\n{connection}\r\n", body.len())
            .into_bytes();
    answer.extend_from_slice(body);
    let sent = timeout(worker.shared.limits.header, tcp.write_all(&answer)).await;
    matches!(sent, Ok(Ok(()))).then_some(body.len() as u64)
}

/// Closes our half, then reads and throws away for a moment, so that the answer is not lost to a reset.
async fn linger(mut tcp: TcpStream) {
    let _ = tcp.shutdown().await;
    let _ = timeout(LINGER, tokio::io::copy(&mut (&mut tcp).take(1024 * 1024), &mut tokio::io::sink())).await;
}

fn log(
    worker: &Worker,
    asked: &Asked<'_>,
    client: SocketAddr,
    status: u16,
    sent: Option<u64>,
    id: &RequestId,
    why: &str,
) {
    if !worker.shared.log.is_on() {
        return;
    }
    let failed = if sent.is_none() || status == 400 || status == 408 { "client" } else { "" };
    let written = worker.shared.log.write(&Record {
        at: SystemTime::now(),
        client: shown(client),
        host: asked.host,
        method: asked.method,
        path: asked.target,
        protocol: "http",
        status,
        bytes_in: 0,
        bytes_out: sent.unwrap_or(0),
        took: Duration::ZERO,
        site: "",
        upstream: "",
        endpoint: "",
        retries: 0,
        tls: "",
        request_id: id.as_str(),
        failed,
        why,
    });
    if !written {
        worker.count().add(|c| &c.log_dropped);
    }
}

#[cfg(test)]
mod tests {
    use super::origin_form;

    #[test]
    fn targets_lose_their_authority() {
        for (target, expected) in [
            ("/a?b=c", "/a?b=c"),
            ("http://host/a", "/a"),
            ("http://host", "/"),
            ("/a?u=http://x/y", "/a?u=http://x/y"),
            ("*", "*"),
        ] {
            assert_eq!(origin_form(target), expected);
        }
    }
}
