//! Host names as the wire spells them: lower-cased DNS names, exact or `*.` one label deep.
//!
//! Pure; knows nothing of routes, certificates or sockets.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

/// A DNS host name: ASCII, lower-cased, without a trailing dot, 1 to 253 bytes (RFC 1035, RFC 1123).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host(Arc<str>);

impl Host {
    /// Returns the name as text, lower-cased.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Host {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a site answers to: one host, or every host exactly one label below it (`*.example.com`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostPattern {
    /// This host alone.
    Exact(Host),
    /// `*.` in front of this host: one label, no more and no less (RFC 6125, section 6.4.3).
    Wildcard(Host),
}
