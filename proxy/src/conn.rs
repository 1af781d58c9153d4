//! What is known of one client connection, for as long as it lives.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::certs::Cert;

/// A terminated client connection's facts.
#[derive(Debug)]
pub(crate) struct Conn {
    /// The socket's other end.
    pub(crate) peer: SocketAddr,
    /// The client: the PROXY header's source where one was required, else the peer.
    pub(crate) client: SocketAddr,
    /// The port of ours that it came to.
    pub(crate) local_port: u16,
    /// The host that the ClientHello named.
    pub(crate) sni: Box<str>,
    /// The certificate that was shown.
    pub(crate) cert: Option<Arc<Cert>>,
    /// The TLS version, as access logs spell it.
    pub(crate) tls: &'static str,
    /// Whether HTTP/2 was agreed on.
    pub(crate) h2: bool,
    refused_body: AtomicBool,
}

/// Where a connection comes from and where it came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    pub(crate) peer: SocketAddr,
    pub(crate) client: SocketAddr,
    pub(crate) local_port: u16,
}

impl Conn {
    pub(crate) fn new(ends: Ends, sni: Box<str>, cert: Option<Arc<Cert>>, tls: &'static str, h2: bool) -> Self {
        let Ends { peer, client, local_port } = ends;
        Self { peer, client, local_port, sni, cert, tls, h2, refused_body: AtomicBool::new(false) }
    }

    /// Notes that an answer was given before the client had sent all of its request.
    pub(crate) fn refuse_body(&self) {
        self.refused_body.store(true, Ordering::Relaxed);
    }

    /// Whether an answer was given before the client had sent all of its request.
    pub(crate) fn refused_body(&self) -> bool {
        self.refused_body.load(Ordering::Relaxed)
    }
}
