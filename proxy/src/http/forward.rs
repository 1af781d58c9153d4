//! A request on its way to an endpoint: waiting where its upstream is held, the lease, what ends it before its time.

use std::os::fd::RawFd;
use std::time::Instant;

use http::Uri;
use pingora::http::RequestHeader;
use pingora::proxy::Session;
use pingora::{Error, ErrorType};

use super::explain::{LONG_BODY, TLS_FAILED};
use super::judge::{authority, content_length};
use super::{Gateway, Request, Result};
use crate::ending::{Listed, Way};
use crate::endpoint::Class;
use crate::hangup::hung_up;
use crate::hold::Waited;
use crate::host;
use crate::live::{Entry, LiveTarget, NoEndpoint};

/// Snapshots that are looked at when endpoints retire faster than they are leased.
const RELOADS: u32 = 8;
/// What clients are told who were held in vain, seconds.
const HELD_RETRY_AFTER: u64 = 5;

impl Gateway {
    /// Leases an endpoint, once the upstream is not held.
    pub(super) async fn lease(&self, session: &mut Session, request: &mut Request) -> Result<()> {
        request.let_go();
        let class = class_of(session);
        loop {
            self.wait_while_held(session, request).await?;
            if self.try_lease(session, request, class) {
                return Ok(());
            }
            // A hold that has begun since comes before the table that has emptied the upstream.
            if request.upstream.as_ref().is_none_or(|upstream| self.shared.holds.door(&upstream.name).is_none()) {
                break;
            }
        }
        request.failed = "upstream";
        if request.why.is_empty() {
            request.why = "no endpoint is up";
        }
        // Endpoints that are there and cannot be trusted are a bad gateway, not a busy one.
        Err(Error::new(ErrorType::HTTPStatus(if request.why == TLS_FAILED { 502 } else { 503 })))
    }

    async fn wait_while_held(&self, session: &mut Session, request: &mut Request) -> Result<()> {
        if !self.shared.holds.any() {
            return Ok(());
        }
        let name = request.upstream.as_ref().map(|upstream| &upstream.name);
        let Some(door) = name.and_then(|name| self.shared.holds.door(name)) else { return Ok(()) };
        let Some(conn) = request.conn.clone() else { return Ok(()) };
        let waited = if conn.h2 {
            // Pending for as long as the client wants the answer; a byte of the body is not asked for.
            let gone = async { drop(session.downstream_session.read_body_or_idle(true).await) };
            door.wait(gone).await
        } else {
            door.wait(hung_up(conn.fd)).await
        };
        match waited {
            Waited::Released => {
                // The endpoints are others now, or the same ones made anew.
                request.tried.clear();
                self.reroute(session, request);
                Ok(())
            }
            Waited::Refused => {
                request.failed = "upstream";
                request.why = "held for too long";
                request.retry_after = HELD_RETRY_AFTER;
                Err(Error::new(ErrorType::HTTPStatus(503)))
            }
            Waited::Left => {
                Err(Error::explain(ErrorType::ConnectionClosed, "the client left while it was held").into_down())
            }
        }
    }

    /// Leases an endpoint, looking at newer snapshots as long as the one at hand has retired its own.
    fn try_lease(&self, session: &Session, request: &mut Request, class: Class) -> bool {
        for _ in 0..RELOADS {
            let Some(upstream) = &request.upstream else { return false };
            match upstream.lease(class, &request.tried, Instant::now()) {
                Ok(lease) => {
                    request.lease = Some(lease);
                    return true;
                }
                Err(NoEndpoint::Stale) => self.reroute(session, request),
                Err(NoEndpoint::Down { retry_after }) => {
                    request.retry_after = retry_after.as_secs().max(1);
                    return false;
                }
                Err(NoEndpoint::Empty) => return false,
            }
        }
        false
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
            request.strip = if route.strip { route.path.len() } else { 0 };
            request.upstream = Some(upstream.clone());
            request.site = Some(site.clone());
        }
    }
}

impl Request {
    /// Counts the request as one of another class from here on, and lists it as what can be ended.
    pub(super) fn become_class(&mut self, class: Class) {
        let Some(lease) = &mut self.lease else { return };
        // What has been listed may have been told, and is not to forget it.
        if lease.class() == class && self.listed.is_some() {
            return;
        }
        lease.become_class(class);
        self.list();
    }

    /// Lists what goes on for long, as soon as it is known how to end it.
    pub(super) fn list(&mut self) {
        let (Some(lease), Some(conn), Some(fd)) = (&self.lease, &self.conn, self.upstream_fd) else { return };
        let way = match lease.class() {
            Class::Stream => Way::Upstream { fd, peer: lease.endpoint().peer(), conn: conn.clone() },
            Class::Websocket => Way::Websocket(conn.clone()),
            Class::Request | Class::Passthrough => return,
        };
        self.listed = Some(Listed::new(lease.endpoint().key, lease.class(), way));
    }

    /// Notes the connection that it goes out on.
    pub(super) fn connected(&mut self, fd: RawFd) {
        self.upstream_fd = Some(fd);
        self.list();
        // Whatever failed before has been made good.
        (self.failed, self.why) = ("", "");
    }

    /// Notes that it has been told to end, where it has; the connection that it went out on is gone, or about to go.
    ///
    /// To be called as soon as the engine has let go of that connection, before anything is waited for: from then on
    /// the number of its socket may become another's.
    pub(super) fn disconnected(&mut self) {
        self.told = self.is_told();
        self.listed = None;
        self.upstream_fd = None;
    }

    /// Whether it has been told to end.
    pub(super) fn is_told(&self) -> bool {
        self.told || self.listed.as_ref().is_some_and(Listed::is_told)
    }

    /// Whether it has become a websocket.
    pub(super) fn is_websocket(&self) -> bool {
        self.lease.as_ref().is_some_and(|lease| lease.class() == Class::Websocket)
    }

    /// Gives the endpoint back.
    pub(super) fn let_go(&mut self) {
        self.disconnected();
        self.told = false;
        self.lease = None;
    }
}

/// A request whose body is long, or whose end nobody knows yet, is a stream from the start.
fn class_of(session: &mut Session) -> Class {
    if session.is_body_done() {
        return Class::Request;
    }
    match content_length(&session.req_header().headers) {
        Some(length) if length <= LONG_BODY => Class::Request,
        _ => Class::Stream,
    }
}

/// Takes the first `strip` bytes off the path.
pub(super) fn take_off(upstream: &mut RequestHeader, strip: usize) -> Result<()> {
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
