//! What is known of one client connection, for as long as it lives.

use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;

use futures_util::task::AtomicWaker;
use http::HeaderValue;

use crate::certs::Cert;
use crate::headers::ip_value;

/// A terminated client connection's facts.
#[derive(Debug)]
pub(crate) struct Conn {
    /// The socket's other end.
    pub(crate) peer: SocketAddr,
    /// The client: the PROXY header's source where one was required, else the peer.
    pub(crate) client: SocketAddr,
    /// Its address, as forwarded fields have it.
    pub(crate) client_value: HeaderValue,
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
    /// Its socket, for system calls alone; open for as long as the connection lives.
    pub(crate) fd: RawFd,
    refused_body: AtomicBool,
    broken_off: AtomicBool,
    told_to_end: AtomicBool,
    waker: AtomicWaker,
}

/// Where a connection comes from and where it came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    pub(crate) peer: SocketAddr,
    pub(crate) client: SocketAddr,
    pub(crate) local_port: u16,
    pub(crate) fd: RawFd,
}

impl Conn {
    pub(crate) fn new(ends: Ends, sni: Box<str>, cert: Option<Arc<Cert>>, tls: &'static str, h2: bool) -> Self {
        let Ends { peer, client, local_port, fd } = ends;
        Self {
            peer,
            client,
            client_value: ip_value(client.ip()),
            local_port,
            sni,
            cert,
            tls,
            h2,
            fd,
            refused_body: AtomicBool::new(false),
            broken_off: AtomicBool::new(false),
            told_to_end: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        }
    }

    /// Notes that a response stops before its end: closing the connection must not look like that end.
    pub(crate) fn break_off(&self) {
        self.broken_off.store(true, Ordering::Relaxed);
    }

    /// Whether a response stops before its end.
    pub(crate) fn is_broken_off(&self) -> bool {
        self.broken_off.load(Ordering::Relaxed)
    }

    /// Has a websocket closed at the next frame boundary.
    pub(crate) fn tell_to_end(&self) {
        self.told_to_end.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Whether the websocket is to be closed.
    pub(crate) fn is_told_to_end(&self) -> bool {
        self.told_to_end.load(Ordering::Acquire)
    }

    /// Says who is to be woken by [`Self::tell_to_end`]; look again afterwards.
    pub(crate) fn wake_when_told(&self, waker: &Waker) {
        self.waker.register(waker);
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
