//! Listening sockets: one of each kind for each data thread, sharing a port by SO_REUSEPORT.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

const BACKLOG: i32 = 4096;

/// A listener could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}{}", hint(.source))]
pub struct BindError {
    /// Where.
    pub address: SocketAddr,
    /// Why.
    pub source: io::Error,
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => " (another program holds the port: `ss -ltnp` shows which)",
        io::ErrorKind::PermissionDenied => " (ports below 1024 need root or CAP_NET_BIND_SERVICE)",
        _ => "",
    }
}

/// Opens `count` listeners on one address; with port 0 all share the port that the first one got.
///
/// `[::]` listens on IPv4 too; where the host has no IPv6 it becomes `0.0.0.0`.
///
/// # Errors
/// The address is in use, not ours, or a privileged port without the privilege.
pub(crate) fn bind(address: SocketAddr, count: usize) -> Result<Vec<TcpListener>, BindError> {
    let fail = |source| BindError { address, source };
    let guard = claim(address).map_err(fail)?;
    let address = guard.local_addr().map_err(fail)?;
    let mut listeners = Vec::with_capacity(count);
    for _ in 0..count {
        let socket = open(address, true).map_err(fail)?;
        socket.listen(BACKLOG).map_err(fail)?;
        listeners.push(TcpListener::from(socket));
    }
    Ok(listeners)
}

/// Binds once, so that a port of another program is noticed and port 0 becomes a number.
///
/// SO_REUSEPORT lets any process of the same user join a port in silence, which would split traffic between two
/// programs. A bind without it fails when anybody has the port.
fn claim(address: SocketAddr) -> io::Result<TcpListener> {
    let probe = match open(address, false) {
        Err(error) if no_ipv6(&error) && address.ip().is_unspecified() && address.is_ipv6() => {
            open((Ipv4Addr::UNSPECIFIED, address.port()).into(), false)?
        }
        other => other?,
    };
    let claimed = probe.local_addr()?.as_socket().ok_or(io::ErrorKind::Unsupported)?;
    drop(probe);
    open(claimed, true).map(TcpListener::from)
}

fn no_ipv6(error: &io::Error) -> bool {
    // EAFNOSUPPORT: the kernel has no IPv6. EADDRNOTAVAIL: it is switched off.
    matches!(error.raw_os_error(), Some(97 | 99))
}

fn open(address: SocketAddr, share: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(share)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_share_one_port() {
        let listeners = bind("127.0.0.1:0".parse().expect("address"), 3).expect("bind");
        let ports: Vec<_> = listeners.iter().map(|l| l.local_addr().expect("address").port()).collect();
        assert!(ports[0] != 0 && ports.iter().all(|p| *p == ports[0]));
    }

    #[test]
    fn a_port_in_use_is_an_error_even_among_sharers() {
        let first = bind("127.0.0.1:0".parse().expect("address"), 1).expect("bind");
        let taken = first[0].local_addr().expect("address");
        let error = bind(taken, 1).expect_err("in use");
        assert!(error.to_string().contains("another program holds the port"), "{error}");
    }

    #[test]
    fn the_wildcard_listens_on_ipv4_too() {
        let listeners = bind("[::]:0".parse().expect("address"), 1).expect("bind");
        let port = listeners[0].local_addr().expect("address").port();
        std::net::TcpStream::connect(("127.0.0.1", port)).expect("IPv4 reaches it");
    }
}
