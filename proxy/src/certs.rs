//! Which certificate is shown for which name: swapped as a whole, never locked.
//!
//! It knows no files and no issuer; others load certificates and publish them here.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SigningKey};

use crate::host::{Host, HostPattern};

/// The protocol name of TLS-ALPN-01 (RFC 8737).
pub(crate) const ACME_TLS: &[u8] = b"acme-tls/1";

/// A certificate chain with its key and the names it is good for.
#[derive(Debug)]
pub struct Cert {
    key: Arc<CertifiedKey>,
    names: Vec<HostPattern>,
}

impl Cert {
    /// A chain (leaf first), the leaf's key, and the leaf's names.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: Arc<dyn SigningKey>, names: Vec<HostPattern>) -> Self {
        Self { key: Arc::new(CertifiedKey::new(chain, key)), names }
    }

    /// Tells whether it is good for `host` (lower-cased): a request for any other host on a connection that was
    /// shown it is answered 421.
    pub fn covers(&self, host: &str) -> bool {
        self.names.iter().any(|name| match name {
            HostPattern::Exact(name) => name.as_str() == host,
            HostPattern::Wildcard(parent) => under_one_label(host) == Some(parent.as_str()),
        })
    }

    /// Returns the names that it is good for.
    pub fn names(&self) -> &[HostPattern] {
        &self.names
    }

    /// Returns the chain, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.key.cert
    }

    /// Returns chain and key as rustls wants them.
    pub(crate) fn certified_key(&self) -> Arc<CertifiedKey> {
        self.key.clone()
    }
}

/// What is shown for which name.
#[derive(Clone, Debug, Default)]
pub struct CertTable {
    exact: HashMap<Host, Arc<Cert>>,
    /// By the name behind `*.`.
    wildcard: HashMap<Host, Arc<Cert>>,
}

impl CertTable {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Shows `cert` for `name`, and no longer what was shown for it before.
    pub fn insert(&mut self, name: HostPattern, cert: Arc<Cert>) {
        match name {
            HostPattern::Exact(host) => self.exact.insert(host, cert),
            HostPattern::Wildcard(parent) => self.wildcard.insert(parent, cert),
        };
    }

    /// Finds what is shown for `host`: exact before wildcard, which stands for exactly one label.
    pub fn find(&self, host: &str) -> Option<&Arc<Cert>> {
        self.exact.get(host).or_else(|| self.wildcard.get(under_one_label(host)?))
    }

    /// Returns how many names it knows.
    pub fn len(&self) -> usize {
        self.exact.len() + self.wildcard.len()
    }

    /// Tells whether it knows no name.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Takes the first label off: `b.c` for `a.b.c`.
fn under_one_label(host: &str) -> Option<&str> {
    host.split_once('.').filter(|(label, _)| !label.is_empty()).map(|(_, parent)| parent)
}

/// The certificates in use: what the TLS handshake reads, and control replaces.
pub struct Certs(ArcSwap<CertTable>);

impl Certs {
    /// No certificates.
    pub fn new() -> Self {
        Self(ArcSwap::from_pointee(CertTable::new()))
    }

    /// Replaces all certificates. Handshakes that have begun end with the old ones.
    pub fn publish(&self, table: CertTable) {
        // Dropped here, on the publisher's thread, unless a handshake looks at it at this moment: it is small
        // (two words for each name).
        drop(self.0.swap(Arc::new(table)));
    }

    /// Finds what is shown for `sni` (lower-cased).
    pub fn find(&self, sni: &str) -> Option<Arc<Cert>> {
        self.0.load().find(sni).cloned()
    }
}

impl Default for Certs {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Certs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certs").field("names", &self.0.load().len()).finish()
    }
}

/// rustls has lower-cased the name. A TLS-ALPN-01 hello is none of ours: showing it a site's
/// certificate would be a wrong answer to the validation (see `challenges.rs`).
impl ResolvesServerCert for Certs {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if asks_for_acme(&hello) {
            return None;
        }
        let certs = self.0.load();
        certs.find(hello.server_name()?).map(|cert| cert.certified_key())
    }
}

/// Tells whether a hello offers TLS-ALPN-01.
pub(crate) fn asks_for_acme(hello: &ClientHello<'_>) -> bool {
    hello.alpn().is_some_and(|mut protocols| protocols.any(|protocol| protocol == ACME_TLS))
}

#[cfg(test)]
pub(crate) mod tests;
