//! Host names as the wire spells them: lower-cased DNS names, exact or `*.` one label deep.
//!
//! Pure; knows nothing of routes, certificates or sockets.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

/// A DNS host name: ASCII, lower-cased, without a trailing dot, 1 to 253 bytes (RFC 1035, RFC 1123).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host(Arc<str>);

/// Why a text is not a host name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct HostError(&'static str);

impl Host {
    /// Parses a DNS name.
    pub fn parse(text: &str) -> Result<Self, HostError> {
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.is_empty() {
            return Err(HostError("a host name cannot be empty"));
        }
        if name.len() > 253 {
            return Err(HostError("a host name has at most 253 characters"));
        }
        for label in name.split('.') {
            if label.is_empty() || label.len() > 63 {
                return Err(HostError("each label of a host name has 1 to 63 characters"));
            }
            if label.starts_with('-') || label.ends_with('-') {
                return Err(HostError("a label of a host name cannot begin or end with a hyphen"));
            }
            if !label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
                return Err(HostError("a host name has letters, digits, hyphens and dots only"));
            }
        }
        if name.parse::<std::net::Ipv4Addr>().is_ok() {
            return Err(HostError("an address is not a host name"));
        }
        Ok(Self(name.to_ascii_lowercase().into()))
    }

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

impl HostPattern {
    /// Parses a DNS name, with or without a leading `*.`.
    pub fn parse(text: &str) -> Result<Self, HostError> {
        match text.strip_prefix("*.") {
            Some(parent) => Ok(Self::Wildcard(Host::parse(parent)?)),
            None => Ok(Self::Exact(Host::parse(text)?)),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => write!(f, "{host}"),
            Self::Wildcard(host) => write!(f, "*.{host}"),
        }
    }
}
