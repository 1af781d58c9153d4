//! Where a request goes: host, certificate, access and path, on a fresh snapshot. It answers nothing.

use std::sync::Arc;

use http::header;
use pingora::http::RequestHeader;
use pingora::proxy::Session;
use tokio::sync::Semaphore;

use super::{Gateway, Request};
use crate::access::Check;
use crate::conn::Conn;
use crate::host::{self, Host};
use crate::live::{Entry, LiveSite, LiveTarget};
use crate::{headers, path};

/// Passwords that are hashed or wait for it, of all threads: each takes up to tenths of a second, so more would only grow
/// a queue that nobody waits for any more.
static HASHING: Semaphore = Semaphore::const_new(512);

/// Where a request turned out to go.
pub(super) enum Verdict {
    Forward,
    Redirect(Host),
    Welcome,
    Refuse(u16, &'static str),
    Challenge,
}

impl Gateway {
    /// Finds the site and the route, on a fresh snapshot.
    pub(super) async fn judge(&self, session: &mut Session, request: &mut Request) -> Verdict {
        let Some(conn) = conn_of(session) else { return Verdict::Refuse(500, "connection without facts") };
        request.conn = Some(conn.clone());
        let req = session.req_header();
        let mut buffer = [0; 256];
        let Some(name) = host_of(req, &conn, &mut buffer) else {
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
        let verdict = self.judge_site(session, request, &site).await;
        request.site = Some(site);
        verdict
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
                    let Ok(_turn) = HASHING.try_acquire() else {
                        return Verdict::Refuse(503, "too many passwords to check");
                    };
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
        request.strip = if route.strip { route.path.len() } else { 0 };
        match &route.target {
            LiveTarget::Welcome => Verdict::Welcome,
            LiveTarget::Upstream(upstream) => {
                let exceeds = |most| content_length(&req.headers).is_some_and(|declared| declared > most);
                let too_large = upstream.policy.max_body.is_some_and(exceeds);
                request.upstream = Some(upstream.clone());
                if too_large { Verdict::Refuse(413, "body too large") } else { Verdict::Forward }
            }
        }
    }
}

/// The connection that a request came on.
fn conn_of(session: &Session) -> Option<Arc<Conn>> {
    let digest = session.digest()?.proxy_digest.as_ref()?;
    digest.user_data.as_ref()?.downcast_ref::<Arc<Conn>>().cloned()
}

/// The host that a request is for, normalised. Nearly always it is spelled as the ClientHello has it, which is.
fn host_of<'a>(req: &'a RequestHeader, conn: &'a Conn, buffer: &'a mut [u8; 256]) -> Option<&'a str> {
    let raw = authority(req)?;
    if raw == conn.sni.as_bytes() { Some(&conn.sni) } else { host::normalize(raw, buffer) }
}

/// Whether the certificate that was shown on the connection is good for `name` too (RFC 9110, section 7.4).
fn shown_for(conn: &Conn, name: &str) -> bool {
    *conn.sni == *name || conn.cert.as_ref().is_some_and(|cert| cert.covers(name))
}

/// The host and port that the request is for: `:authority`, the absolute-form target, or Host.
pub(super) fn authority(req: &RequestHeader) -> Option<&[u8]> {
    match req.uri.authority() {
        Some(authority) => Some(authority.as_str().as_bytes()),
        None => req.headers.get(header::HOST).map(|host| host.as_bytes()),
    }
}

/// The length that a header field declares.
pub(super) fn content_length(headers: &http::HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
