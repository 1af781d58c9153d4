//! What happens to one request: route, access, lease, headers, retry, log.
//!
//! The one file, with [`crate::peer`], [`crate::worker`], [`crate::h1`] and [`crate::stream`], that knows the HTTP engine.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, StatusCode, Uri, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::compression::ResponseCompression;
use pingora::protocols::Digest;
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType};

use crate::access::Check;
use crate::access_log::{Record, shown};
use crate::chunked::BadChunk;
use crate::conn::Conn;
use crate::endpoint::{Class, Lease};
use crate::error_page::{self, Page};
use crate::headers::{self, Forwarded};
use crate::host::{self, Host};
use crate::live::{Entry, LiveSite, LiveTarget, LiveUpstream, NoEndpoint};
use crate::metrics::Shard;
use crate::path;
use crate::peer::peer;
use crate::redirect::https_url;
use crate::request_id::RequestId;
use crate::shared::Shared;
use crate::welcome;

/// Endpoints that are tried for one request.
const ATTEMPTS: usize = 3;
/// Snapshots that are looked at when endpoints retire faster than they are leased.
const RELOADS: u32 = 8;
/// The compression level of gzip, br and zstd where a site asks for it: the knee of all three curves.
const COMPRESSION_LEVEL: u32 = 5;

type Result<T> = std::result::Result<T, Box<Error>>;

/// The HTTP side of one data thread.
pub(crate) struct Gateway {
    shared: Arc<Shared>,
    thread: usize,
}

/// What is known of one request on its way through.
pub(crate) struct Request {
    id: RequestId,
    /// The id that a trusted proxy has given it.
    given_id: Option<Box<str>>,
    began: Instant,
    conn: Option<Arc<Conn>>,
    client: Option<std::net::IpAddr>,
    site: Option<Arc<LiveSite>>,
    upstream: Option<Arc<LiveUpstream>>,
    /// Bytes of the path that the route takes off.
    strip: usize,
    lease: Option<Lease>,
    tried: Vec<u64>,
    retries: u32,
    body_seen: u64,
    /// The status that was decided on here, where it was.
    status: u16,
    retry_after: u64,
    failed: &'static str,
    why: &'static str,
}

impl Request {
    fn id(&self) -> &str {
        self.given_id.as_deref().unwrap_or(self.id.as_str())
    }
}

/// Where a request turned out to go.
enum Verdict {
    Forward,
    Redirect(Host),
    Welcome,
    Refuse(u16, &'static str),
    Challenge,
}

impl Gateway {
    pub(crate) fn new(shared: Arc<Shared>, thread: usize) -> Self {
        Self { shared, thread }
    }

    fn count(&self) -> &Shard {
        self.shared.metrics.shard(self.thread)
    }

    /// Finds the site and the route, on a fresh snapshot.
    async fn judge(&self, session: &mut Session, request: &mut Request) -> Verdict {
        let Some(conn) = conn_of(session) else { return Verdict::Refuse(500, "connection without facts") };
        request.conn = Some(conn.clone());
        let req = session.req_header();
        let mut buffer = [0; 256];
        let Some(name) = authority(req).and_then(|raw| host::normalize(raw, &mut buffer)) else {
            return Verdict::Refuse(400, "no host name");
        };
        let live = self.shared.store.load();
        if live.edge.is_trusted(conn.client.ip()) {
            request.given_id = headers::request_id(&req.headers).map(Into::into);
        }
        request.client = Some(headers::client_of(&req.headers, conn.client.ip(), &live.edge.trusted_proxies));
        let site = match live.lookup(name) {
            Some(entry) if !shown_for(&conn, name) => {
                let _ = entry;
                return Verdict::Refuse(421, "not covered by the certificate shown");
            }
            Some(Entry::Terminate(site)) => site.clone(),
            Some(Entry::Redirect(to)) => return Verdict::Redirect(to.clone()),
            Some(Entry::Pass { .. }) | None => return Verdict::Refuse(421, "host is not terminated here"),
        };
        drop(live);
        request.site = Some(site.clone());
        self.judge_site(session, request, &site).await
    }

    async fn judge_site(&self, session: &mut Session, request: &mut Request, site: &LiveSite) -> Verdict {
        let req = session.req_header();
        if let Some(client) = request.client {
            let credentials = req.headers.get(header::AUTHORIZATION).map(|v| v.as_bytes());
            match site.site.access.check(client, credentials) {
                Check::Allowed => {}
                Check::Forbidden => return Verdict::Refuse(403, "client address is not allowed"),
                Check::Unauthorized => return Verdict::Challenge,
                Check::Verify(costly) => {
                    if !tokio::task::spawn_blocking(move || costly.run()).await.unwrap_or(false) {
                        return Verdict::Challenge;
                    }
                }
            }
        }
        let req = session.req_header();
        let path = req.uri.path();
        if site.has_path_routes && path::has_dot_segments(path.as_bytes()) {
            return Verdict::Refuse(400, "dot segments");
        }
        let Some(route) = site.route(path) else { return Verdict::Refuse(404, "no route for this path") };
        request.strip = if route.strip { path.len() - route.path.strip(path).len() } else { 0 };
        match &route.target {
            LiveTarget::Welcome => Verdict::Welcome,
            LiveTarget::Upstream(upstream) => {
                let declared = content_length(req);
                let too_large = upstream.policy.max_body.is_some_and(|most| declared.is_some_and(|n| n > most));
                request.upstream = Some(upstream.clone());
                if too_large { Verdict::Refuse(413, "body too large") } else { Verdict::Forward }
            }
        }
    }

    /// Leases an endpoint, looking at newer snapshots as long as the one at hand has retired its own.
    fn lease(&self, session: &Session, request: &mut Request) -> Result<Arc<LiveUpstream>> {
        request.lease = None;
        for _ in 0..RELOADS {
            let Some(upstream) = request.upstream.clone() else { break };
            match upstream.lease(Class::Request, &request.tried, Instant::now()) {
                Ok(lease) => {
                    request.lease = Some(lease);
                    return Ok(upstream);
                }
                Err(NoEndpoint::Stale) => self.reroute(session, request),
                Err(NoEndpoint::Down { retry_after }) => {
                    request.retry_after = retry_after.as_secs().max(1);
                    break;
                }
                Err(NoEndpoint::Empty) => break,
            }
        }
        request.failed = "upstream";
        if request.why.is_empty() {
            request.why = "no endpoint is up";
        }
        Err(Error::new(ErrorType::HTTPStatus(503)))
    }

    fn reroute(&self, session: &Session, request: &mut Request) {
        let req = session.req_header();
        let mut buffer = [0; 256];
        let name = authority(req).and_then(|raw| host::normalize(raw, &mut buffer));
        let live = self.shared.store.load();
        request.upstream = None;
        if let Some(Entry::Terminate(site)) = name.and_then(|name| live.lookup(name))
            && let Some(route) = site.route(req.uri.path())
            && let LiveTarget::Upstream(upstream) = &route.target
        {
            let path = req.uri.path();
            request.strip = if route.strip { path.len() - route.path.strip(path).len() } else { 0 };
            request.upstream = Some(upstream.clone());
            request.site = Some(site.clone());
        }
    }

    /// Answers from here.
    async fn answer(
        &self,
        session: &mut Session,
        request: &mut Request,
        mut head: ResponseHeader,
        body: Bytes,
    ) -> Result<()> {
        request.status = head.status.as_u16();
        if session.downstream_session.is_body_done() {
            // Nothing more of the request is on its way.
        } else if let Some(conn) = &request.conn {
            conn.refuse_body();
        }
        if let Some(site) = &request.site {
            headers::to_client(&mut head, &site.site.headers, site.site.hsts.as_deref())?;
        }
        head.insert_header("x-request-id", request.id())?;
        head.insert_header(header::CONTENT_LENGTH, body.len())?;
        let bare = session.req_header().method == Method::HEAD || body.is_empty();
        session.write_response_header(Box::new(head), bare).await?;
        if !bare {
            session.write_response_body(Some(body), true).await?;
        }
        Ok(())
    }

    async fn answer_error(&self, session: &mut Session, request: &mut Request, status: u16) -> Result<()> {
        let accept = session.req_header().headers.get(header::ACCEPT).map(|v| v.as_bytes());
        let Page { content_type, body } = error_page::render(status, accept, request.id());
        let mut head = ResponseHeader::build(status, Some(8))?;
        head.insert_header(header::CONTENT_TYPE, content_type)?;
        head.insert_header(header::CACHE_CONTROL, "no-store")?;
        match status {
            503 => head.insert_header(header::RETRY_AFTER, request.retry_after.max(1))?,
            401 => head.insert_header(header::WWW_AUTHENTICATE, "Basic realm=\"itsUP\", charset=\"UTF-8\"")?,
            _ => {}
        }
        self.answer(session, request, head, body).await
    }

    async fn answer_redirect(&self, session: &mut Session, request: &mut Request, to: &Host) -> Result<()> {
        let req = session.req_header();
        let port = self.shared.store.load().edge.public_https_port;
        let target = req.uri.path_and_query().map_or("/", |pq| pq.as_str());
        let location = https_url(to.as_str(), port, target);
        let permanent = if matches!(req.method, Method::GET | Method::HEAD) { 301 } else { 308 };
        let mut head = ResponseHeader::build(permanent, Some(6))?;
        head.insert_header(header::LOCATION, location)?;
        self.answer(session, request, head, Bytes::new()).await
    }

    async fn answer_welcome(&self, session: &mut Session, request: &mut Request) -> Result<()> {
        let name = request.conn.as_ref().map_or("", |conn| &conn.sni);
        let Page { content_type, body } = welcome::render(name);
        let mut head = ResponseHeader::build(200, Some(6))?;
        head.insert_header(header::CONTENT_TYPE, content_type)?;
        head.insert_header(header::CACHE_CONTROL, "no-store")?;
        self.answer(session, request, head, body).await
    }

    fn log(&self, session: &Session, request: &Request, status: u16) {
        let (bytes_in, bytes_out) = (session.body_bytes_read() as u64, session.body_bytes_sent() as u64);
        let label = request.site.as_ref().map(|site| &site.site.label);
        if let Some(label) = label {
            self.shared.metrics.site(label, status, bytes_in, bytes_out);
        }
        let (true, Some(conn)) = (self.shared.log.is_on(), &request.conn) else { return };
        let req = session.req_header();
        let endpoint = request.lease.as_ref().map(|lease| lease.endpoint().address.to_string());
        let record = Record {
            at: SystemTime::now(),
            client: request.client.unwrap_or_else(|| shown(conn.client)),
            host: authority(req).and_then(|raw| std::str::from_utf8(raw).ok()).unwrap_or(&conn.sni),
            method: req.method.as_str(),
            path: req.uri.path_and_query().map_or("", |pq| pq.as_str()),
            protocol: if conn.h2 { "h2" } else { "h1" },
            status,
            bytes_in,
            bytes_out,
            took: request.began.elapsed(),
            site: label.map_or("", |label| label),
            upstream: request.upstream.as_ref().map_or("", |upstream| &upstream.name),
            endpoint: endpoint.as_deref().unwrap_or(""),
            retries: request.retries,
            tls: conn.tls,
            request_id: request.id(),
            failed: request.failed,
            why: request.why,
        };
        if !self.shared.log.write(&record) {
            self.count().add(|c| &c.log_dropped);
        }
    }
}

#[async_trait]
impl ProxyHttp for Gateway {
    type CTX = Request;

    fn new_ctx(&self) -> Request {
        Request {
            id: RequestId::random(),
            given_id: None,
            began: Instant::now(),
            conn: None,
            client: None,
            site: None,
            upstream: None,
            strip: 0,
            lease: None,
            tried: Vec::new(),
            retries: 0,
            body_seen: 0,
            status: 0,
            retry_after: 1,
            failed: "",
            why: "",
        }
    }

    async fn request_filter(&self, session: &mut Session, request: &mut Request) -> Result<bool> {
        match self.judge(session, request).await {
            Verdict::Forward => return Ok(false),
            Verdict::Redirect(to) => self.answer_redirect(session, request, &to).await?,
            Verdict::Welcome => self.answer_welcome(session, request).await?,
            Verdict::Challenge => self.answer_error(session, request, 401).await?,
            Verdict::Refuse(status, why) => {
                request.failed = "client";
                request.why = why;
                self.answer_error(session, request, status).await?;
            }
        }
        Ok(true)
    }

    async fn upstream_peer(&self, session: &mut Session, request: &mut Request) -> Result<Box<HttpPeer>> {
        let upstream = self.lease(session, request)?;
        let (Some(lease), Some(conn)) = (&request.lease, &request.conn) else {
            return Err(Error::new(ErrorType::InternalError));
        };
        peer(lease.endpoint(), &upstream.policy, &session.req_header().method, conn)
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        upstream: &mut RequestHeader,
        request: &mut Request,
    ) -> Result<()> {
        let Some(conn) = &request.conn else { return Err(Error::new(ErrorType::InternalError)) };
        let stripped = request.strip > 0;
        if stripped {
            take_off(upstream, request.strip)?;
        }
        let live = self.shared.store.load();
        let peer = conn.client.ip();
        let forwarded = Forwarded {
            peer,
            trusted: live.edge.is_trusted(peer),
            client: request.client.unwrap_or(peer),
            scheme: "https",
            host: authority(session.req_header()).unwrap_or_default(),
            port: live.edge.public_https_port,
            request_id: request.id(),
        };
        headers::to_upstream(upstream, session.req_header(), &forwarded)?;
        if stripped {
            let prefix = &session.req_header().uri.path()[..request.strip];
            upstream.insert_header("x-forwarded-prefix", prefix)?;
        }
        Ok(())
    }

    async fn request_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        _end_of_stream: bool,
        request: &mut Request,
    ) -> Result<()> {
        let Some(most) = request.upstream.as_ref().and_then(|upstream| upstream.policy.max_body) else {
            return Ok(());
        };
        request.body_seen += body.as_ref().map_or(0, |bytes| bytes.len() as u64);
        if request.body_seen > most {
            request.failed = "client";
            request.why = "body too large";
            return Err(Error::new_down(ErrorType::HTTPStatus(413)));
        }
        Ok(())
    }

    async fn connected_to_upstream(
        &self,
        _session: &mut Session,
        reused: bool,
        _peer: &HttpPeer,
        _fd: std::os::unix::io::RawFd,
        _digest: Option<&Digest>,
        request: &mut Request,
    ) -> Result<()> {
        if let (false, Some(lease)) = (reused, &request.lease) {
            lease.endpoint().record_success();
        }
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        request: &mut Request,
    ) -> Result<()> {
        if response.status == StatusCode::SWITCHING_PROTOCOLS {
            self.count().add(|c| &c.websockets);
            if let Some(lease) = &mut request.lease {
                lease.become_class(Class::Websocket);
            }
        }
        if response.status.is_informational() && response.status != StatusCode::SWITCHING_PROTOCOLS {
            return Ok(());
        }
        // From here on the client may be as slow as it likes: the endpoint has begun to answer.
        session.set_read_timeout(None);
        if !session.downstream_session.is_body_done()
            && response.status != StatusCode::SWITCHING_PROTOCOLS
            && let Some(conn) = &request.conn
        {
            conn.refuse_body();
        }
        let Some(site) = &request.site else { return Ok(()) };
        if site.site.compress
            && !is_streaming(response)
            && let Some(compression) = session.downstream_modules_ctx.get_mut::<ResponseCompression>()
        {
            compression.adjust_level(COMPRESSION_LEVEL);
        }
        headers::to_client(response, &site.site.headers, site.site.hsts.as_deref())
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        request: &mut Request,
        mut error: Box<Error>,
    ) -> Box<Error> {
        self.count().add(|c| &c.connect_failures);
        request.failed = "upstream";
        request.why = "cannot connect";
        if let Some(lease) = request.lease.take() {
            lease.endpoint().record_failure(Instant::now());
            request.tried.push(lease.endpoint().key);
        }
        let more = request.tried.len() < ATTEMPTS;
        error.set_retry(more);
        if more {
            request.retries += 1;
            self.count().add(|c| &c.retries);
        }
        error
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        request: &mut Request,
        client_reused: bool,
    ) -> Box<Error> {
        let repeatable = session.req_header().method.is_idempotent()
            && !session.as_ref().retry_buffer_truncated()
            && session.response_written().is_none();
        if repeatable {
            error.retry.decide_reuse(client_reused);
        } else {
            error.set_retry(false);
        }
        if *error.esource() == ErrorSource::Upstream {
            self.count().add(|c| &c.upstream_failures);
        }
        if error.retry() {
            request.retries += 1;
            self.count().add(|c| &c.retries);
        }
        error
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, request: &mut Request) -> FailToProxy {
        let (status, failed, why) = explain(error);
        if request.failed.is_empty() {
            (request.failed, request.why) = (failed, why);
        }
        let begun = session
            .response_written()
            .is_some_and(|r| !r.status.is_informational() || r.status == StatusCode::SWITCHING_PROTOCOLS);
        if status > 0 && !begun {
            session.set_keepalive(None);
            if let Err(unsent) = self.answer_error(session, request, status).await {
                tracing::debug!(error = %unsent, "an error page could not be sent");
            }
        }
        FailToProxy { error_code: status, can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, _error: Option<&Error>, request: &mut Request) {
        let count = self.count();
        let h2 = request.conn.as_ref().is_some_and(|conn| conn.h2);
        count.add(if h2 { |c| &c.requests_h2 } else { |c| &c.requests_h1 });
        count.observe(request.began.elapsed());
        let status = match session.response_written() {
            Some(response) => response.status.as_u16(),
            // The client left first; 499 is how nginx taught everyone to write that down.
            None if request.status == 0 && request.failed == "client" => 499,
            None => request.status,
        };
        self.log(session, request, status);
        // The rest of the request's body may be read for a while yet; the endpoint has no part in that.
        request.lease = None;
    }

    fn suppress_error_log(&self, session: &Session, _request: &Request, error: &Error) -> bool {
        tracing::debug!(%error, request = %session.request_summary(), "a request failed");
        true
    }

    fn suppress_proxy_warn_log(&self, _: &Session, _: &Request, _: &Error, _: ProxyWarnLogContext) -> bool {
        true
    }
}

/// The connection that a request came on.
fn conn_of(session: &Session) -> Option<Arc<Conn>> {
    let digest = session.digest()?.proxy_digest.as_ref()?;
    digest.user_data.as_ref()?.downcast_ref::<Arc<Conn>>().cloned()
}

/// Whether the certificate that was shown on the connection is good for `name` too (RFC 9110, section 7.4).
fn shown_for(conn: &Conn, name: &str) -> bool {
    *conn.sni == *name || conn.cert.as_ref().is_some_and(|cert| cert.covers(name))
}

/// The host and port that the request is for: `:authority`, the absolute-form target, or Host.
fn authority(req: &RequestHeader) -> Option<&[u8]> {
    match req.uri.authority() {
        Some(authority) => Some(authority.as_str().as_bytes()),
        None => req.headers.get(header::HOST).map(|host| host.as_bytes()),
    }
}

fn content_length(req: &RequestHeader) -> Option<u64> {
    req.headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Whether a response must reach the client piece by piece as it is written.
fn is_streaming(response: &ResponseHeader) -> bool {
    response.headers.get(header::CONTENT_TYPE).is_some_and(|kind| {
        let kind = kind.as_bytes();
        kind.starts_with(b"text/event-stream") || kind.starts_with(b"application/grpc")
    })
}

/// Takes the first `strip` bytes off the path.
fn take_off(upstream: &mut RequestHeader, strip: usize) -> Result<()> {
    let target = upstream.uri.path_and_query().map_or("/", |pq| pq.as_str());
    let rest = target.get(strip..).unwrap_or("/");
    let rest = if rest.starts_with('/') { rest.to_owned() } else { format!("/{rest}") };
    let mut parts = upstream.uri.clone().into_parts();
    parts.path_and_query =
        Some(rest.parse().map_err(|error| Error::because(ErrorType::InvalidHTTPHeader, "rewriting the path", error))?);
    let uri = Uri::from_parts(parts)
        .map_err(|error| Error::because(ErrorType::InvalidHTTPHeader, "rewriting the path", error))?;
    upstream.set_uri(uri);
    Ok(())
}

/// The status to answer a failed request with (0: nobody is there to read it), who failed, and what happened.
fn explain(error: &Error) -> (u16, &'static str, &'static str) {
    use ErrorType::*;
    let bad_chunk = std::iter::successors(std::error::Error::source(error), |cause| cause.source())
        .any(|cause| cause.is::<BadChunk>() || cause.to_string().contains("malformed chunked body"));
    match (error.esource(), error.etype()) {
        (_, HTTPStatus(status)) => (*status, "proxy", ""),
        (ErrorSource::Downstream, _) if bad_chunk => (400, "client", "malformed chunked body"),
        (ErrorSource::Downstream, ReadTimedout) => (408, "client", "body too slow"),
        (ErrorSource::Downstream, InvalidHTTPHeader) => (400, "client", "malformed request"),
        (ErrorSource::Downstream, _) => (0, "client", "client left"),
        (
            ErrorSource::Upstream,
            ConnectTimedout | ConnectRefused | ConnectNoRoute | ConnectError | TLSHandshakeTimedout,
        ) => (503, "upstream", "cannot connect"),
        (ErrorSource::Upstream, TLSHandshakeFailure | InvalidCert | TLSWantX509Lookup | HandshakeError) => {
            (502, "upstream", "TLS with the endpoint failed")
        }
        (ErrorSource::Upstream, ReadTimedout | WriteTimedout) => (504, "upstream", "endpoint too slow"),
        (ErrorSource::Upstream, _) => (502, "upstream", "endpoint gave no valid response"),
        _ => (500, "proxy", "internal error"),
    }
}
