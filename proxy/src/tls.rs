//! How TLS is spoken to clients: the rustls settings of terminated hosts and of TLS-ALPN-01.
//!
//! It knows no socket and no route.
//!
//! **Resumption and 421.** One ticket key serves all hosts, so a client may offer host A's ticket for host B. rustls
//! then makes a full handshake: a session is resumed only where the SNI is the same as in the session
//! (`can_resume` in its `server/hs.rs`, for tickets and session ids, TLS 1.2 and 1.3; RFC 6066,
//! section 3), so B's own certificate is shown. What was shown on a resumed connection is therefore the certificate of
//! that very SNI, now or at most a ticket's lifetime (12 h) ago, and the check for 421 against what
//! [`Certs::find`] gives for the connection's SNI holds. The other way around, a certificate that has lost a
//! name since: the check is against the new one, so the request gets 421 and the client makes a new connection.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{NoServerSessionStorage, ServerSessionMemoryCache};
use rustls::{CipherSuite, ServerConfig};

use crate::certs::{ACME_TLS, Certs};
use crate::challenges::Challenges;

/// Sessions kept for TLS 1.2 clients that resume by session id, having no tickets.
const SESSIONS: usize = 1024;

/// What a client's hello is answered with.
#[derive(Clone, Debug)]
pub(crate) struct Tls {
    /// Terminated hosts: h2 and http/1.1.
    pub sites: Arc<ServerConfig>,
    /// Hellos that offer `acme-tls/1`: the handshake is the whole answer.
    pub challenges: Arc<ServerConfig>,
}

impl Tls {
    /// Both, from what is in use at each handshake.
    pub(crate) fn new(certs: Arc<Certs>, challenges: Arc<Challenges>) -> Result<Self, rustls::Error> {
        Ok(Self { sites: server_config(certs)?, challenges: challenge_config(challenges)? })
    }
}

/// The settings of terminated hosts: TLS 1.2 and 1.3, tickets, h2 and http/1.1.
pub(crate) fn server_config(certs: Arc<Certs>) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(certs);
    config.ignore_client_order = true;
    config.send_tls13_tickets = 1;
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    config.session_storage = ServerSessionMemoryCache::new(SESSIONS);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The settings of TLS-ALPN-01: `acme-tls/1` alone, and nothing that could be resumed elsewhere.
pub(crate) fn challenge_config(challenges: Arc<Challenges>) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(challenges);
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.alpn_protocols = vec![ACME_TLS.to_vec()];
    Ok(Arc::new(config))
}

/// aws-lc-rs with AES-128-GCM-SHA256 first. Clients list AES-256-GCM-SHA384 first, whose key schedule runs
/// on SHA-512, for which most processors have no instructions.
fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    provider
}

#[cfg(test)]
mod tests;
