//! What happens to header fields on their way through: forwarded and hop-by-hop fields, and a site's edits.
//!
//! Pure; knows nothing of routes or sockets. The engine does a part of the job, which is not done twice here:
//! - Under [`upstream_request_policy`] it takes `Connection`, `Keep-Alive`, `Proxy-*`, `TE`, `Trailer`,
//!   `Transfer-Encoding`, `Upgrade` and `HTTP2-Settings` off requests that came by HTTP/1, frames the body anew, and puts a
//!   normalised handshake back where `Upgrade` says websocket. HTTP/2 has none of these fields, save `TE: trailers`, which stays for gRPC.
//! - It does not look whether `Connection` lists `upgrade`, and it would take off any field that `Connection`
//!   lists, credentials too: both are done here instead.
//! - On responses it writes `Connection` itself, and for HTTP/2 clients takes the other hop-by-hop fields off.

use std::net::{IpAddr, SocketAddr};

use bytes::{BufMut, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::upstreams::peer::{H1UpgradePolicy, HttpUpstreamRequestPolicy};

use crate::table::HeaderEdits;

/// Header names that a `Connection` field may list at most; more are not looked at.
const MAX_NOMINATIONS: usize = 10;
/// The longest request id taken over from a trusted proxy.
const MAX_REQUEST_ID: usize = 128;

/// What the upstream is to be told of where a request came from.
#[derive(Clone, Debug)]
pub struct Forwarded<'a> {
    /// Who opened the connection, the peer or whom its PROXY header named, as [`ip_value`] writes it.
    pub peer: &'a HeaderValue,
    /// Whether the peer is a trusted proxy ([`is_trusted`]).
    pub trusted: bool,
    /// The client, by [`client_ip`].
    pub client: IpAddr,
    /// `https` or `http`.
    pub scheme: &'static str,
    /// The host that the client asked for, as it wrote it.
    pub host: &'a [u8],
    /// The port that it came in on, as the world sees it.
    pub port: u16,
    /// This request's id: the trusted proxy's ([`request_id`]) or one of our own.
    pub request_id: &'a str,
}

/// The part of hop-by-hop handling that is the engine's, for a request with these headers.
pub fn upstream_request_policy(headers: &HeaderMap) -> HttpUpstreamRequestPolicy {
    // It looks each field up by itself. Most requests have none of them.
    if !headers.keys().any(is_hop_by_hop) {
        return HttpUpstreamRequestPolicy::preserve();
    }
    HttpUpstreamRequestPolicy {
        strip_hop_by_hop: true,
        strip_connection_nominated: false,
        reject_malformed_connection_nominations: false,
        h1_upgrade: H1UpgradePolicy::WebSocketOnly,
    }
}

/// Whether a field is for the next hop alone (RFC 9110, section 7.6.1, and what is in use beside it).
fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "http2-settings"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// Tells whether an address is a trusted proxy's.
pub fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    // Most have no proxy in front.
    !trusted.is_empty() && {
        let address = address.to_canonical();
        trusted.iter().any(|net| net.contains(&address))
    }
}

/// Finds the client: the peer, or, where that is a trusted proxy, the first address in `X-Forwarded-For`, from the right, that is not one.
///
/// What stands to the left of it, or of anything that is no address, may be made up and does not count. Where all are trusted, it is the leftmost.
pub fn client_ip<'a>(
    forwarded_for: impl DoubleEndedIterator<Item = &'a [u8]>,
    peer: IpAddr,
    trusted: &[IpNet],
) -> IpAddr {
    let mut client = peer.to_canonical();
    if !is_trusted(client, trusted) {
        return client;
    }
    for entry in forwarded_for.rev().flat_map(|value| value.rsplit(|&byte| byte == b',')) {
        match address(entry) {
            Some(address) => client = address,
            None => return client,
        }
        if !is_trusted(client, trusted) {
            return client;
        }
    }
    client
}

/// An address as proxies write it: alone, in brackets, or with a port.
fn address(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry.trim_ascii()).ok()?;
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    let address: IpAddr = text.parse().ok().or_else(bracketed).or_else(with_port)?;
    Some(address.to_canonical())
}

/// The client of a request with these headers; see [`client_ip`].
pub fn client_of(headers: &HeaderMap, peer: IpAddr, trusted: &[IpNet]) -> IpAddr {
    client_ip(headers.get_all(X_FORWARDED_FOR).iter().map(HeaderValue::as_bytes), peer, trusted)
}

/// The request id that a trusted proxy sent, where it is fit to stand in a log.
pub fn request_id(headers: &HeaderMap) -> Option<&str> {
    let id = headers.get(X_REQUEST_ID)?.to_str().ok()?;
    let fit =
        (1..=MAX_REQUEST_ID).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"');
    fit.then_some(id)
}

/// Tells whether a request is a websocket handshake (RFC 6455, section 4.1) without a body.
pub fn is_websocket(request: &RequestHeader) -> bool {
    let headers = &request.headers;
    // Nearly all requests end here.
    let Some(upgrade) = headers.get(header::UPGRADE) else { return false };
    let has_body = headers.contains_key(header::TRANSFER_ENCODING)
        || headers.get(header::CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0");
    request.version == http::Version::HTTP_11
        && request.method == http::Method::GET
        && upgrade.as_bytes().eq_ignore_ascii_case(b"websocket")
        && headers.get_all(header::UPGRADE).iter().count() == 1
        && connection_options(headers).any(|option| option.eq_ignore_ascii_case(b"upgrade"))
        && !has_body
}

/// Makes a client's request fit for the upstream. `request` is the engine's copy of `downstream`, after its own
/// part of the job (`upstream_request_filter`).
pub fn to_upstream(
    request: &mut RequestHeader,
    downstream: &RequestHeader,
    forwarded: &Forwarded<'_>,
) -> pingora::Result<()> {
    remove_nominated(&downstream.headers, |name| drop(request.remove_header(name)));
    if request.headers.contains_key(header::UPGRADE) && !is_websocket(downstream) {
        request.remove_header(&header::UPGRADE);
        request.remove_header(&header::CONNECTION);
    }
    remove_unwanted(request, forwarded.trusted);
    to_origin_form(request)?;
    if request.uri.authority().is_none() && !request.headers.contains_key(header::HOST) {
        request.insert_header("Host", forwarded.host)?;
    }
    set_forwarded(request, forwarded)
}

/// Sends the path alone, also where the client sent a whole URL (RFC 9112, section 3.2.1): routing has
/// looked at nothing else.
fn to_origin_form(request: &mut RequestHeader) -> pingora::Result<()> {
    if matches!(request.raw_path().first(), Some(b'/' | b'*')) {
        return Ok(());
    }
    let path = request.uri.path_and_query().map_or("/", |path| path.as_str());
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    request.set_raw_path(path.as_bytes())
}

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

fn set_forwarded(request: &mut RequestHeader, forwarded: &Forwarded<'_>) -> pingora::Result<()> {
    let chain = forwarded_for(&request.headers, forwarded);
    request.insert_header("X-Forwarded-For", chain)?;
    let keep = |request: &RequestHeader, name: HeaderName| forwarded.trusted && request.headers.contains_key(name);
    if !keep(request, X_FORWARDED_PROTO) {
        request.insert_header("X-Forwarded-Proto", HeaderValue::from_static(forwarded.scheme))?;
    }
    if !keep(request, X_FORWARDED_HOST) {
        request.insert_header("X-Forwarded-Host", forwarded.host)?;
    }
    if !keep(request, X_FORWARDED_PORT) {
        request.insert_header("X-Forwarded-Port", HeaderValue::from(forwarded.port))?;
    }
    // Where nothing that was sent counts, the client is the peer.
    let client = if forwarded.trusted { ip_value(forwarded.client) } else { forwarded.peer.clone() };
    request.insert_header("X-Real-IP", client)?;
    request.insert_header("X-Request-Id", forwarded.request_id)
}

/// The peer, behind what a trusted one has sent.
fn forwarded_for(headers: &HeaderMap, forwarded: &Forwarded<'_>) -> HeaderValue {
    if !forwarded.trusted {
        return forwarded.peer.clone();
    }
    let mut chain = BytesMut::with_capacity(64);
    for value in headers.get_all(X_FORWARDED_FOR) {
        chain.put_slice(value.as_bytes());
        chain.put_slice(b", ");
    }
    chain.put_slice(forwarded.peer.as_bytes());
    // Values that were valid, commas and an address: never anything else.
    HeaderValue::from_maybe_shared(chain.freeze()).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// An address as these fields name it.
pub fn ip_value(address: IpAddr) -> HeaderValue {
    use std::fmt::Write as _;
    let mut text = BytesMut::with_capacity(40);
    let _ = write!(text, "{}", address.to_canonical());
    HeaderValue::from_maybe_shared(text.freeze()).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Takes off what clients have no business sending. Most requests have none of it, and cost no allocation.
fn remove_unwanted(request: &mut RequestHeader, trusted: bool) {
    let unwanted: Vec<HeaderName> =
        request.headers.keys().filter(|name| is_unwanted(name.as_str(), trusted)).cloned().collect();
    for name in unwanted {
        request.remove_header(&name);
    }
}

/// `name` is lower-cased.
fn is_unwanted(name: &str, trusted: bool) -> bool {
    // CGI reads it as the variable HTTP_PROXY, from anyone.
    if name == "proxy" {
        return true;
    }
    if trusted {
        return false;
    }
    let exact = match name.as_bytes().first() {
        Some(b'x') => {
            name.starts_with("x-forwarded")
                || matches!(
                    name,
                    "x-real-ip"
                        | "x-request-id"
                        | "x-original-url"
                        | "x-original-uri"
                        | "x-original-host"
                        | "x-rewrite-url"
                )
        }
        Some(b'f') => name == "forwarded",
        _ => false,
    };
    // Many servers read `_` and `-` as the same, so such a name could pass for one that is set here.
    exact || memchr::memchr(b'_', name.as_bytes()).is_some()
}

fn connection_options(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|option| !option.is_empty())
}

/// Removes what `Connection` lists (RFC 9110, section 7.6.1), unless it is meant for the other end: a list must not take away what
/// the upstream relies on.
fn remove_nominated(headers: &HeaderMap, mut remove: impl FnMut(&HeaderName)) {
    for option in connection_options(headers).take(MAX_NOMINATIONS) {
        let common = [&b"close"[..], b"keep-alive", b"upgrade"].iter().any(|name| option.eq_ignore_ascii_case(name));
        if common {
            continue;
        }
        if let Ok(name) = HeaderName::from_bytes(option)
            && headers.contains_key(&name)
            && !is_end_to_end(&name)
        {
            remove(&name);
        }
    }
}

/// Whether a field is known to be meant for the other end of the exchange.
fn is_end_to_end(name: &HeaderName) -> bool {
    const PREFIXES: [&str; 8] =
        ["x-forwarded", "x-real-", "x-request-", "x-auth", "x-csrf", "content-", "accept", "if-"];
    const NAMES: [&str; 19] = [
        "host",
        "authorization",
        "cookie",
        "set-cookie",
        "origin",
        "referer",
        "user-agent",
        "range",
        "expect",
        "date",
        "cache-control",
        "pragma",
        "location",
        "etag",
        "vary",
        "forwarded",
        "x-api-key",
        "strict-transport-security",
        "x-frame-options",
    ];
    let name = name.as_str();
    name.starts_with("sec-")
        || name.starts_with("access-control-")
        || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || NAMES.contains(&name)
}

/// Makes an upstream's response fit for the client: hop-by-hop fields off, HSTS on, then the site's edits,
/// which so have the last word.
pub fn to_client(response: &mut ResponseHeader, edits: &HeaderEdits, hsts: Option<&str>) -> pingora::Result<()> {
    if response.status != http::StatusCode::SWITCHING_PROTOCOLS {
        remove_response_hop_by_hop(response);
    }
    if let Some(hsts) = hsts {
        response.insert_header("Strict-Transport-Security", hsts)?;
    }
    for name in &edits.remove {
        response.remove_header(name);
    }
    for (name, value) in &edits.set {
        response.insert_header(name, value)?;
    }
    Ok(())
}

fn remove_response_hop_by_hop(response: &mut ResponseHeader) {
    if response.headers.contains_key(header::CONNECTION) {
        let mut nominated = Vec::new();
        remove_nominated(&response.headers, |name| nominated.push(name.clone()));
        for name in nominated {
            response.remove_header(&name);
        }
    }
    // 426 says by it what to upgrade to.
    let keeps_upgrade = response.status == http::StatusCode::UPGRADE_REQUIRED;
    let is_ours = |name: &HeaderName| match name.as_str() {
        "keep-alive" | "proxy-connection" => true,
        "upgrade" => !keeps_upgrade,
        _ => false,
    };
    // Looked for in one pass, and nearly always in vain: to remove what is not there costs more.
    if response.headers.keys().any(is_ours) {
        let ours: Vec<HeaderName> = response.headers.keys().filter(|name| is_ours(name)).cloned().collect();
        for name in ours {
            response.remove_header(&name);
        }
    }
}

#[cfg(test)]
mod tests;
