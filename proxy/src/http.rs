//! What happens to one request: route, access, lease, headers, retry, log.
//!
//! The one room, with [`crate::peer`], [`crate::worker`], [`crate::h1`], [`crate::coding`] and [`crate::stream`], that knows the HTTP engine. The
//! engine's hooks are here, in the order in which it calls them; what they decide is in the files below.

use std::net::IpAddr;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http::{StatusCode, Version, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::protocols::Digest;
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType, RetryType};

use crate::coding::{Coding, Codings};
use crate::conn::Conn;
use crate::ending::Listed;
use crate::endpoint::{Class, Lease};
use crate::headers::{self, Forwarded};
use crate::live::{LiveSite, LiveUpstream};
use crate::metrics::Shard;
use crate::peer::peer;
use crate::request_id::RequestId;
use crate::shared::Shared;

mod answer;
mod explain;
mod forward;
mod judge;
mod record;

use explain::{TLS_FAILED, explain, is_bare, is_event_stream, is_long, is_streaming};
use forward::take_off;
use judge::{Verdict, authority};

/// Endpoints that are tried for one request.
const ATTEMPTS: usize = 3;
/// How long the next byte of an h1 body may take once its answer is over: nobody waits for it, and it keeps the endpoint.
const AFTER_ANSWER: Duration = Duration::from_secs(5);

/// How long a client may take to take the end of an event stream.
const LAST_WORD: Duration = Duration::from_secs(2);

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
    client: Option<IpAddr>,
    site: Option<Arc<LiveSite>>,
    upstream: Option<Arc<LiveUpstream>>,
    /// Bytes of the path that the route takes off.
    strip: usize,
    lease: Option<Lease>,
    /// The connection to the endpoint, while there is one.
    upstream_fd: Option<RawFd>,
    /// Its endpoint was retired while it was being connected to: nothing was sent.
    unsent: bool,
    /// Its place among what can be ended, where it may go on for long.
    listed: Option<Listed>,
    /// It was ended because its endpoint is to go.
    told: bool,
    /// The response may end anywhere.
    event_stream: bool,
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

impl Gateway {
    pub(crate) fn new(shared: Arc<Shared>, thread: usize) -> Self {
        Self { shared, thread }
    }

    /// Makes a response fit for the client.
    fn to_client(&self, response: &mut ResponseHeader, request: &Request) -> Result<()> {
        match &request.site {
            Some(site) => headers::to_client(response, &site.site.headers, site.site.hsts.as_deref()),
            None => Ok(()),
        }
    }

    fn count(&self) -> &Shard {
        self.shared.metrics.shard(self.thread)
    }
}

#[async_trait]
impl ProxyHttp for Gateway {
    type CTX = Request;

    fn init_downstream_modules(&self, modules: &mut HttpModules) {
        modules.add_module(Box::new(Codings));
    }

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
            upstream_fd: None,
            unsent: false,
            listed: None,
            told: false,
            event_stream: false,
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
        self.lease(session, request).await?;
        let (Some(lease), Some(upstream), Some(conn)) = (&request.lease, &request.upstream, &request.conn) else {
            return Err(Error::new(ErrorType::InternalError));
        };
        peer(lease.endpoint(), &upstream.policy, session.req_header(), conn)
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
            peer: &conn.client_value,
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
        fd: RawFd,
        _digest: Option<&Digest>,
        request: &mut Request,
    ) -> Result<()> {
        if let (false, Some(lease)) = (reused, &request.lease) {
            if lease.endpoint().is_closed() {
                // A connection that took its time may have come about with whoever has the address by now.
                request.lease = None;
                request.unsent = true;
                return Err(Error::explain(ErrorType::ConnectError, "its endpoint has been retired").into_up());
            }
            lease.endpoint().record_success();
        }
        request.connected(fd);
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
            request.become_class(Class::Websocket);
            // The engine takes up reading anew whenever the endpoint has sent something, so this is silence on both sides.
            session.set_read_timeout(request.upstream.as_ref().map(|upstream| upstream.policy.idle()));
            return self.to_client(response, request);
        }
        if response.status.is_informational() {
            return Ok(());
        }
        // From here on the client may be as slow as it likes: the endpoint has begun to answer.
        let bare = is_bare(response, &session.req_header().method);
        session.set_read_timeout(bare.then_some(AFTER_ANSWER));
        request.event_stream = is_event_stream(response);
        if is_long(response, &session.req_header().method) {
            request.become_class(Class::Stream);
        }
        if !session.downstream_session.is_body_done()
            && let Some(conn) = &request.conn
        {
            conn.refuse_body();
        }
        if session.req_header().version == Version::HTTP_10 && !response.headers.contains_key(header::CONTENT_LENGTH) {
            // It knows no chunks: the body's end is the connection's.
            session.set_keepalive(None);
        }
        if let Some(site) = &request.site
            && site.site.compress
            && !is_streaming(response)
            && let Some(coding) = session.downstream_modules_ctx.get_mut::<Coding>()
        {
            coding.compress(session.downstream_session.req_header());
        }
        self.to_client(response, request)
    }

    fn response_body_filter(
        &self,
        session: &mut Session,
        _body: &mut Option<Bytes>,
        end_of_stream: bool,
        request: &mut Request,
    ) -> Result<Option<Duration>> {
        if end_of_stream && !request.is_websocket() {
            session.set_read_timeout(Some(AFTER_ANSWER));
        }
        // A response that ends with its connection ends also when that is shut down from here: not a true end.
        if end_of_stream && !request.event_stream && !request.is_websocket() && request.is_told() {
            return Err(Error::explain(ErrorType::ConnectionClosed, "its endpoint is to go").into_up());
        }
        Ok(None)
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
        request.why = match error.etype() {
            ErrorType::TLSHandshakeFailure | ErrorType::InvalidCert | ErrorType::HandshakeError => TLS_FAILED,
            _ => "cannot connect",
        };
        let lease = request.lease.take();
        if let Some(lease) = &lease {
            lease.endpoint().record_failure(Instant::now());
            lease.endpoint().tally().add(|t| &t.connect_failures);
            request.tried.push(lease.endpoint().key);
        }
        let more = request.tried.len() < ATTEMPTS;
        error.set_retry(more);
        if more {
            request.retries += 1;
            if let Some(lease) = &lease {
                lease.endpoint().tally().add(|t| &t.retried);
            }
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
        request.disconnected();
        if std::mem::take(&mut request.unsent) {
            // Whatever the method: it goes to another endpoint, and where there is none it is answered 503.
            request.retries += 1;
            self.count().add(|c| &c.retries);
            error.set_retry(true);
            return error;
        }
        let whole = !session.as_ref().retry_buffer_truncated() && session.response_written().is_none();
        let repeatable = session.req_header().method.is_idempotent() || was_refused(&error);
        if whole && repeatable {
            error.retry.decide_reuse(client_reused);
        } else {
            error.set_retry(false);
        }
        if *error.esource() == ErrorSource::Upstream {
            self.count().add(|c| &c.upstream_failures);
        }
        if error.retry() {
            request.retries += 1;
            if let Some(lease) = &request.lease {
                lease.endpoint().tally().add(|t| &t.retried);
            }
            self.count().add(|c| &c.retries);
        }
        error
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, request: &mut Request) -> FailToProxy {
        request.disconnected();
        let begun = session
            .response_written()
            .is_some_and(|r| !r.status.is_informational() || r.status == StatusCode::SWITCHING_PROTOCOLS);
        let (status, failed, why) = if request.told {
            // Half a request has been taken, or a whole one and nobody knows what came of it.
            (if session.is_body_done() { 504 } else { 503 }, "", "ended: its endpoint is to go")
        } else if request.is_websocket() && *error.etype() == ErrorType::ReadTimedout {
            (0, "", "idle for too long")
        } else {
            explain(error)
        };
        if request.failed.is_empty() {
            (request.failed, request.why) = (failed, why);
        }
        if !begun && status > 0 {
            session.set_keepalive(None);
            if let Err(unsent) = self.answer_error(session, request, status).await {
                tracing::debug!(error = %unsent, "an error page could not be sent");
            }
        } else if begun && request.told && request.event_stream {
            end_event_stream(session).await;
        } else if begun
            && !request.is_websocket()
            && (request.told || *error.esource() == ErrorSource::Upstream && ends_with_connection(session))
            && let Some(conn) = request.conn.as_ref().filter(|conn| !conn.h2)
        {
            conn.break_off();
        }
        FailToProxy { error_code: status, can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, request: &mut Request) {
        request.disconnected();
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
        self.tally(request, status, error.is_some());
        // The rest of the request's body may be read for a while yet; the endpoint has no part in that.
        request.let_go();
    }

    fn suppress_error_log(&self, session: &Session, _request: &Request, error: &Error) -> bool {
        tracing::debug!(%error, request = %session.request_summary(), "a request failed");
        true
    }

    fn suppress_proxy_warn_log(&self, _: &Session, _: &Request, _: &Error, _: ProxyWarnLogContext) -> bool {
        true
    }
}

/// Whether the endpoint has said that it has not begun with the request, as HTTP/2 lets it say: with GOAWAY, with
/// REFUSED_STREAM, or by asking for HTTP/1.1 (RFC 9113, sections 8.7 and 13). Then any method may be sent again.
fn was_refused(error: &Error) -> bool {
    matches!(error.retry, RetryType::Decided(true))
        && matches!(error.etype(), ErrorType::H2Error | ErrorType::H2Downgrade)
}

/// Whether the client takes the end of the connection for the end of the response (RFC 9112, section 6.3).
fn ends_with_connection(session: &Session) -> bool {
    let framed = |r: &ResponseHeader| {
        r.headers.contains_key(header::CONTENT_LENGTH) || r.headers.contains_key(header::TRANSFER_ENCODING)
    };
    session.response_written().is_some_and(|response| !framed(response))
}

/// Ends an event stream as its server would have: the client takes it up again with another endpoint.
async fn end_event_stream(session: &mut Session) {
    let h1 = session.as_http1().is_some();
    let ended = async {
        session.downstream_session.finish_body().await?;
        if h1 {
            session.downstream_session.shutdown().await;
        }
        Result::Ok(())
    };
    match tokio::time::timeout(LAST_WORD, ended).await {
        Ok(Ok(())) => {}
        Ok(Err(unsent)) => tracing::debug!(error = %unsent, "the end of an event stream could not be sent"),
        Err(_) => tracing::debug!("the end of an event stream was not taken"),
    }
}
