//! The one snapshot that data threads read: hosts to sites and upstreams, with the endpoints at run time.
//!
//! A `Live` never changes; a publish makes the next one ([`rebuild`]) and swaps it in ([`store`]). It knows no
//! sockets and no certificates. Hold a guard on it for one look-up only, never across an await: what a request
//! needs for longer (`Arc<LiveSite>`, `Arc<LiveUpstream>`, a lease) is shared one by one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::host::{Host, HostPattern};
use crate::path::PathPrefix;
use crate::table::{Edge, RouteTable, Site, UpstreamName};

pub(crate) mod bench;
mod rebuild;
mod store;
mod upstream;

pub use store::Published;
pub(crate) use store::Store;
pub(crate) use upstream::{LiveUpstream, NoEndpoint};

/// The snapshot.
#[derive(Debug, Default)]
pub(crate) struct Live {
    /// How many publishes have changed anything since start.
    pub generation: u64,
    /// The table it was made from.
    pub table: Arc<RouteTable>,
    /// What holds at the edge.
    pub edge: Edge,
    exact: HashMap<Host, Entry>,
    /// By the name behind `*.`.
    wildcard: HashMap<Host, Entry>,
    upstreams: BTreeMap<UpstreamName, Arc<LiveUpstream>>,
}

/// What a host does.
#[derive(Debug)]
pub(crate) enum Entry {
    /// TLS goes through untouched.
    Pass {
        /// Where TLS connections go.
        upstream: Arc<LiveUpstream>,
        /// Where ACME challenges on :80 go.
        challenge: Option<Arc<LiveUpstream>>,
    },
    /// TLS ends here.
    Terminate(Arc<LiveSite>),
    /// TLS ends here, and every request is redirected to this host.
    Redirect(Host),
}

/// A terminated host with its routes resolved.
#[derive(Debug)]
pub(crate) struct LiveSite {
    /// What the table says of it.
    pub site: Arc<Site>,
    /// Longest prefix first.
    pub routes: Vec<LiveRoute>,
    /// Whether any route is narrower than the whole host: then paths must be matched exactly as they are forwarded.
    pub has_path_routes: bool,
}

/// A path prefix and where it goes.
#[derive(Debug)]
pub(crate) struct LiveRoute {
    /// Matched on whole segments.
    pub path: PathPrefix,
    /// Whether the prefix is taken off before the request is forwarded.
    pub strip: bool,
    /// Where matching requests go.
    pub target: LiveTarget,
}

/// Where a request goes.
#[derive(Debug)]
pub(crate) enum LiveTarget {
    /// To one of its endpoints.
    Upstream(Arc<LiveUpstream>),
    /// itsUP's own welcome page.
    Welcome,
}

impl Live {
    /// Finds what a host does; `host` is lower-cased and without a trailing dot. Exact before wildcard, and a
    /// wildcard stands for exactly one label.
    pub(crate) fn lookup(&self, host: &str) -> Option<&Entry> {
        self.exact.get(host).or_else(|| match host.split_once('.') {
            Some((label, parent)) if !label.is_empty() => self.wildcard.get(parent),
            _ => None,
        })
    }

    /// Returns how many host patterns it answers to.
    pub(crate) fn hosts(&self) -> usize {
        self.exact.len() + self.wildcard.len()
    }

    /// Returns the upstreams that the table lists, by name.
    pub(crate) fn upstreams(&self) -> impl ExactSizeIterator<Item = &Arc<LiveUpstream>> {
        self.upstreams.values()
    }

    /// Finds an upstream that the table lists.
    pub(crate) fn upstream(&self, name: &str) -> Option<&Arc<LiveUpstream>> {
        self.upstreams.get(name)
    }

    fn entry(&self, pattern: &HostPattern) -> Option<&Entry> {
        match pattern {
            HostPattern::Exact(host) => self.exact.get(host),
            HostPattern::Wildcard(parent) => self.wildcard.get(parent),
        }
    }
}

impl LiveSite {
    /// Finds the route of a path (without its query): the longest prefix of whole segments.
    pub(crate) fn route(&self, path: &str) -> Option<&LiveRoute> {
        self.routes.iter().find(|route| route.path.matches(path))
    }
}

#[cfg(test)]
mod tests;
