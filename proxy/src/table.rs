//! The route table: plain data that says where every host and path goes.
//!
//! It is compared with `==` to find out that nothing changed. It holds no sockets, no counters and no
//! certificates, and it is built by others: the proxy only reads it.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::access::Access;
use crate::host::{Host, HostPattern};
use crate::path::PathPrefix;

/// Everything that the proxy answers to, and where it goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteTable {
    /// What each host does. An exact host wins over a wildcard.
    pub hosts: BTreeMap<HostPattern, Action>,
    /// The upstreams that the actions name. One that is named but absent answers 503.
    pub upstreams: BTreeMap<UpstreamName, Arc<Upstream>>,
    /// What holds at the edge, whatever the host.
    pub edge: Edge,
}

impl RouteTable {
    /// Finds what differs in `next`: what `reload` prints.
    pub fn changes(&self, next: &RouteTable) -> Changes {
        let mut changes = Changes { edge: self.edge != next.edge, ..Changes::default() };
        let touched = |name: &UpstreamName| self.upstreams.get(name) != next.upstreams.get(name);
        for (host, action) in &next.hosts {
            match self.hosts.get(host) {
                None => changes.added.push(host.clone()),
                Some(before) if before != action || action.upstreams().any(touched) => {
                    changes.changed.push(host.clone());
                }
                Some(_) => {}
            }
        }
        changes.removed.extend(self.hosts.keys().filter(|host| !next.hosts.contains_key(*host)).cloned());
        changes
    }
}

/// What a new table changes, host by host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Hosts that only the new table has.
    pub added: Vec<HostPattern>,
    /// Hosts whose action, or an upstream that it names, differs.
    pub changed: Vec<HostPattern>,
    /// Hosts that only the old table has.
    pub removed: Vec<HostPattern>,
    /// Whether the edge's settings differ.
    pub edge: bool,
}

impl Changes {
    /// Tells whether no host and no edge setting differs.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Settings of the edge that may change with a publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edge {
    /// The port that redirects to https name; left out of the URL where it is 443.
    pub public_https_port: u16,
    /// Peers whose forwarded headers count, and which no connection limit holds.
    pub trusted_proxies: Vec<IpNet>,
    /// Peers that must send a PROXY protocol header; from every other one it is refused.
    pub proxy_protocol: Vec<IpNet>,
}

impl Default for Edge {
    fn default() -> Self {
        Self { public_https_port: 443, trusted_proxies: Vec::new(), proxy_protocol: Vec::new() }
    }
}

impl Edge {
    /// Whether the forwarded headers of this peer count.
    pub(crate) fn is_trusted(&self, peer: IpAddr) -> bool {
        contains(&self.trusted_proxies, peer)
    }

    /// Whether this peer must send a PROXY header.
    pub(crate) fn sends_proxy_header(&self, peer: IpAddr) -> bool {
        contains(&self.proxy_protocol, peer)
    }
}

fn contains(networks: &[IpNet], peer: IpAddr) -> bool {
    // Most machines have nothing in front.
    !networks.is_empty() && networks.iter().any(|net| net.contains(&peer.to_canonical()))
}

/// What a host does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// TLS goes through untouched.
    Pass(Passthrough),
    /// TLS ends here, and HTTP is routed by path.
    Terminate(Arc<Site>),
    /// TLS ends here, and every request is redirected to the same path on this host (308, or 301 for GET and HEAD).
    Redirect(Host),
}

impl Action {
    /// Returns the upstreams that it names.
    pub fn upstreams(&self) -> impl Iterator<Item = &UpstreamName> {
        let (pass, site) = match self {
            Action::Pass(pass) => (Some(pass), None),
            Action::Terminate(site) => (None, Some(site)),
            Action::Redirect(_) => (None, None),
        };
        let passed = pass.into_iter().flat_map(|pass| std::iter::once(&pass.upstream).chain(&pass.challenge));
        let routed = site.into_iter().flat_map(|site| &site.routes).filter_map(|route| match &route.target {
            Target::Upstream(name) => Some(name),
            Target::Welcome => None,
        });
        passed.chain(routed)
    }
}

/// Where a passthrough host's bytes go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passthrough {
    /// Where TLS connections go.
    pub upstream: UpstreamName,
    /// Where `/.well-known/acme-challenge/` on :80 goes, so that the host behind can get its own certificate.
    pub challenge: Option<UpstreamName>,
}

/// A terminated host: its routes and what holds for all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// An opaque name for logs and metrics (the project).
    pub label: Arc<str>,
    /// Longest prefix first; [`Site::new`] sorts them.
    pub routes: Vec<Route>,
    /// Who may come in.
    pub access: Access,
    /// Edits of the response headers.
    pub headers: HeaderEdits,
    /// `Strict-Transport-Security`'s value, where it is to be sent (RFC 6797).
    pub hsts: Option<Arc<str>>,
    /// Whether responses are compressed (gzip, br, zstd by Accept-Encoding). Off by default.
    pub compress: bool,
}

impl Site {
    /// A site with its routes sorted, longest prefix first, open to everyone and without edits.
    pub fn new(label: impl Into<Arc<str>>, mut routes: Vec<Route>) -> Self {
        routes.sort_by_key(|route| Reverse(route.path.len()));
        Self {
            label: label.into(),
            routes,
            access: Access::default(),
            headers: HeaderEdits::default(),
            hsts: None,
            compress: false,
        }
    }
}

/// A path prefix and where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Matched on whole segments.
    pub path: PathPrefix,
    /// Whether the prefix is taken off before the request is forwarded.
    pub strip: bool,
    /// Where matching requests go.
    pub target: Target,
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// To one of this upstream's endpoints.
    Upstream(UpstreamName),
    /// itsUP's own welcome page.
    Welcome,
}

/// Header edits, applied in this order: remove, then set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderEdits {
    /// Names to remove.
    pub remove: Vec<http::HeaderName>,
    /// Names and values to set, replacing what was there.
    pub set: Vec<(http::HeaderName, http::HeaderValue)>,
}

/// An opaque name of an upstream, unique in a table (`project/service`).
pub type UpstreamName = Arc<str>;

/// A named set of endpoints and the policy for using them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Addresses that traffic goes to. Empty: 503 with Retry-After.
    pub endpoints: Vec<EndpointSpec>,
    /// How they are used.
    pub policy: Policy,
}

/// The identity of an endpoint: a container id with its start time, or a static address.
///
/// Two publishes that name the same id (and address and protocol) mean the same endpoint: its
/// connections, pools and counts carry over.
pub type EndpointId = Arc<str>;

/// One endpoint as the table names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSpec {
    /// Its identity.
    pub id: EndpointId,
    /// Where it listens.
    pub address: Address,
    /// How HTTP is spoken to it.
    pub protocol: Protocol,
    /// Whether it is known to be unhealthy: it is used only when no other endpoint is left.
    pub unhealthy: bool,
}

/// Where an endpoint listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A Unix socket of this process (the in-process API).
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// How HTTP is spoken to an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.1 in the clear.
    #[default]
    H1,
    /// HTTP/2 in the clear, by prior knowledge (RFC 9113, section 3.3).
    H2c,
    /// HTTPS, HTTP/2 or 1.1 by ALPN.
    Https(Verify),
}

/// How an https endpoint's certificate is checked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Verify {
    /// The name that is sent as SNI and that the certificate must carry.
    pub name: Arc<str>,
    /// Against what it is checked.
    pub against: VerifyAgainst,
}

/// Against what an https endpoint's certificate is checked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum VerifyAgainst {
    /// The host system's roots.
    System,
    /// These certificates, PEM.
    Ca(Arc<str>),
    /// Nothing: any certificate will do.
    Nothing,
}

/// How an upstream's endpoints are used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How long opening a connection may take. 5 s by default.
    pub connect_timeout: Duration,
    /// How long the response header may take, once the request is sent. Unlimited by default.
    pub response_timeout: Option<Duration>,
    /// How long a passthrough connection or websocket may be silent. 1 h by default.
    pub idle_timeout: Option<Duration>,
    /// The PROXY protocol header to send on passthrough (and plain) connections. None by default.
    pub proxy_protocol: Option<ProxyVersion>,
    /// The largest request body, bytes. Unlimited by default; more is answered 413.
    pub max_body: Option<u64>,
    /// How a set-aside endpoint is probed; without it, by a TCP connect.
    pub health: Option<Health>,
}

impl Policy {
    /// How long a passthrough connection or websocket may be silent.
    pub(crate) fn idle(&self) -> Duration {
        self.idle_timeout.unwrap_or(Duration::from_secs(3600))
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            response_timeout: None,
            idle_timeout: None,
            proxy_protocol: None,
            max_body: None,
            health: None,
        }
    }
}

/// The PROXY protocol's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyVersion {
    /// Version 1, text.
    V1,
    /// Version 2, binary.
    V2,
}

/// How an endpoint is probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// The path that must answer 2xx or 3xx.
    pub path: Arc<str>,
    /// Time between probes. 10 s by default.
    pub interval: Duration,
    /// How long one probe may take. 5 s by default.
    pub timeout: Duration,
}
