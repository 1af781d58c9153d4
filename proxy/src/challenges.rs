//! Answers to ACME challenges, while they last: HTTP-01 (RFC 8555, section 8.3) and TLS-ALPN-01 (RFC 8737).
//!
//! It knows no account and no order. Few at a time, so each change copies the map; reading is wait-free.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::certs::{Cert, asks_for_acme};
use crate::host::Host;

/// The challenges that are open.
#[derive(Default)]
pub struct Challenges {
    http: ArcSwap<HashMap<Arc<str>, Arc<str>>>,
    alpn: ArcSwap<HashMap<Host, Arc<Cert>>>,
}

impl Challenges {
    /// No challenges.
    pub fn new() -> Self {
        Self::default()
    }

    /// Answers `/.well-known/acme-challenge/<token>` on :80, for every host.
    pub fn set(&self, token: String, key_authorization: String) {
        let (token, answer): (Arc<str>, Arc<str>) = (token.into(), key_authorization.into());
        self.http.rcu(|open| with(open, |open| drop(open.insert(token.clone(), answer.clone()))));
    }

    /// Answers that token no longer.
    pub fn remove(&self, token: &str) {
        self.http.rcu(|open| with(open, |open| drop(open.remove(token))));
    }

    /// Finds the key authorization of a token.
    pub fn find(&self, token: &str) -> Option<Arc<str>> {
        self.http.load().get(token).cloned()
    }

    /// Shows `cert` to hellos for `host` that offer `acme-tls/1`, and to no other.
    pub fn set_alpn(&self, host: Host, cert: Arc<Cert>) {
        self.alpn.rcu(|open| with(open, |open| drop(open.insert(host.clone(), cert.clone()))));
    }

    /// Shows it no longer.
    pub fn remove_alpn(&self, host: &Host) {
        self.alpn.rcu(|open| with(open, |open| drop(open.remove(host))));
    }

    /// Finds the TLS-ALPN-01 certificate of a host (lower-cased).
    pub fn find_alpn(&self, host: &str) -> Option<Arc<Cert>> {
        self.alpn.load().get(host).cloned()
    }
}

/// The copy of `open`, edited.
fn with<K: Clone, V: Clone>(open: &HashMap<K, V>, edit: impl FnOnce(&mut HashMap<K, V>)) -> HashMap<K, V> {
    let mut next = open.clone();
    edit(&mut next);
    next
}

impl fmt::Debug for Challenges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Challenges")
            .field("http", &self.http.load().len())
            .field("alpn", &self.alpn.load().keys())
            .finish()
    }
}

/// The challenge's certificate and nothing else, and only to who asks by `acme-tls/1`.
impl ResolvesServerCert for Challenges {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if !asks_for_acme(&hello) {
            return None;
        }
        self.find_alpn(hello.server_name()?).map(|cert| cert.certified_key())
    }
}

#[cfg(test)]
mod tests;
