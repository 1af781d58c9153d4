//! Listening sockets: opened, taken over from an older process, and handed over to a newer one.
//!
//! Usually one of each kind for each data thread, sharing a port by SO_REUSEPORT. A socket that is taken over keeps its queue: a
//! connection that waits in it is lost only when the last process that has the socket closes it, so none is ever left out.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::acceptor::Acceptor;

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

/// Listening sockets of both kinds, on their way from one process to another.
#[derive(Debug, Default)]
pub struct Listeners {
    /// For plain HTTP.
    pub http: Vec<TcpListener>,
    /// For TLS.
    pub https: Vec<TcpListener>,
}

/// A socket for a data thread to accept from.
#[derive(Debug)]
pub(crate) struct Door {
    socket: TcpListener,
    listening: bool,
}

impl Door {
    /// Begins to accept; call it within the data thread's runtime.
    pub(crate) fn open(self) -> io::Result<Acceptor> {
        if !self.listening {
            SockRef::from(&self.socket).listen(BACKLOG)?;
        }
        // Linux hands it down to what is accepted (tcp(7)): one system call fewer for each connection.
        SockRef::from(&self.socket).set_tcp_nodelay(true)?;
        Acceptor::new(self.socket)
    }
}

/// The sockets on one address.
#[derive(Debug)]
pub(crate) struct Bound {
    /// The address, with its real port.
    pub(crate) address: SocketAddr,
    /// What each data thread accepts from.
    pub(crate) doors: Vec<Vec<Door>>,
    /// The same sockets again, for whoever comes after.
    pub(crate) kept: Vec<TcpListener>,
}

/// Takes over the sockets that listen on `address`, or opens new ones where there are none; for `threads` data threads.
///
/// With port 0 any port will do. `[::]` listens on IPv4 too; where the host has no IPv6 it becomes `0.0.0.0`.
///
/// # Errors
/// The address is in use, not ours, or a privileged port without the privilege.
pub(crate) fn bind(address: SocketAddr, inherited: Vec<TcpListener>, threads: usize) -> Result<Bound, BindError> {
    let fail = |source| BindError { address, source };
    let taken: Vec<TcpListener> = inherited.into_iter().filter(|socket| listens_on(socket, address)).collect();
    let bound = match taken.first().map(TcpListener::local_addr) {
        Some(local) => share_out(local.map_err(fail)?, taken, threads),
        None => bind_anew(address, threads),
    };
    bound.map_err(fail)
}

/// Tells whether a socket is what `address` asks for; port 0 asks for any.
pub fn listens_on(socket: &TcpListener, address: SocketAddr) -> bool {
    let Ok(local) = socket.local_addr() else { return false };
    let same_ip = local.ip() == address.ip() || (local.ip().is_unspecified() && address.ip().is_unspecified());
    same_ip && (address.port() == 0 || address.port() == local.port())
}

fn bind_anew(address: SocketAddr, threads: usize) -> io::Result<Bound> {
    let guard = claim(address)?;
    let address = guard.local_addr()?;
    let mut sockets = Vec::with_capacity(threads);
    for _ in 0..threads {
        let socket = open(address, true)?;
        socket.listen(BACKLOG)?;
        sockets.push(TcpListener::from(socket));
    }
    share_out(address, sockets, threads)
}

/// Gives every thread a socket and every socket a thread.
fn share_out(address: SocketAddr, sockets: Vec<TcpListener>, threads: usize) -> io::Result<Bound> {
    let mut kept = Vec::with_capacity(sockets.len().max(threads));
    let mut doors: Vec<Vec<Door>> = (0..threads).map(|_| Vec::new()).collect();
    for (index, socket) in sockets.into_iter().enumerate() {
        // What systemd opened may block.
        socket.set_nonblocking(true)?;
        kept.push(socket.try_clone()?);
        doors[index % threads].push(Door { socket, listening: true });
    }
    for index in kept.len()..threads {
        // Not listening before it is accepted from: were this process to fail before, what is in its queue would be lost.
        let door = match open(address, true) {
            Ok(socket) => Door { socket: socket.into(), listening: false },
            // The first ones were opened by somebody who does not share the port: then the queue is shared.
            Err(_) => Door { socket: kept[index % kept.len()].try_clone()?, listening: true },
        };
        if !door.listening {
            kept.push(door.socket.try_clone()?);
        }
        doors[index].push(door);
    }
    Ok(Bound { address, doors, kept })
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
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;

    use super::*;

    fn any() -> SocketAddr {
        "127.0.0.1:0".parse().expect("address")
    }

    fn clones(sockets: &[TcpListener]) -> Vec<TcpListener> {
        sockets.iter().map(|socket| socket.try_clone().expect("clone")).collect()
    }

    #[test]
    fn threads_share_one_port() {
        let bound = bind(any(), Vec::new(), 3).expect("bind");
        assert_ne!(bound.address.port(), 0);
        assert!(bound.doors.iter().all(|doors| doors.len() == 1));
        assert!(bound.kept.iter().all(|socket| socket.local_addr().expect("address") == bound.address));
    }

    #[test]
    fn a_port_in_use_is_an_error_even_among_sharers() {
        let first = bind(any(), Vec::new(), 1).expect("bind");
        let error = bind(first.address, Vec::new(), 1).expect_err("in use");
        assert!(error.to_string().contains("another program holds the port"), "{error}");
    }

    #[test]
    fn the_wildcard_listens_on_ipv4_too() {
        let bound = bind("[::]:0".parse().expect("address"), Vec::new(), 1).expect("bind");
        TcpStream::connect(("127.0.0.1", bound.address.port())).expect("IPv4 reaches it");
    }

    #[test]
    fn sockets_of_another_address_are_not_taken_over() {
        let first = bind(any(), Vec::new(), 1).expect("bind");
        let other = bind(any(), Vec::new(), 1).expect("bind").address;
        let bound = bind(other, clones(&first.kept), 1).expect("bind");
        assert_eq!(bound.address, other);
    }

    /// Whoever waits in a queue of the first is answered by the second, however many threads either has.
    #[tokio::test]
    async fn what_waits_in_a_queue_outlives_its_process() {
        for (before, after) in [(1, 1), (3, 1), (3, 2), (1, 3), (2, 4)] {
            let first = bind(any(), Vec::new(), before).expect("bind");
            let mut waiting: Vec<TcpStream> =
                (0..40).map(|_| TcpStream::connect(first.address).expect("connect")).collect();
            let second = bind(any(), clones(&first.kept), after).expect("take over");
            assert_eq!(second.address, first.address);
            assert!(second.doors.iter().all(|doors| !doors.is_empty()), "{before} to {after}");
            drop(first);
            for door in second.doors.into_iter().flatten() {
                let listener = door.open().expect("open");
                tokio::spawn(async move {
                    while let Ok((mut client, _)) = listener.accept().await {
                        let _ = tokio::io::AsyncWriteExt::write_all(&mut client, b"hi").await;
                    }
                });
            }
            waiting.extend((0..40).map(|_| TcpStream::connect(second.address).expect("connect")));
            let answered = tokio::task::spawn_blocking(move || {
                for client in &mut waiting {
                    client.write_all(b"?").expect("write");
                    client.read_exact(&mut [0; 2]).expect("an answer");
                }
            });
            answered.await.expect("all are answered");
        }
    }

    /// Two sockets of one queue: each connection is accepted once, by either.
    #[test]
    fn who_does_not_share_the_port_shares_the_queue() {
        let alone = TcpListener::bind("127.0.0.1:0").expect("bind");
        let bound = bind(alone.local_addr().expect("address"), vec![alone], 2).expect("take over");
        assert_eq!(bound.kept.len(), 1);
        assert!(bound.doors.iter().all(|doors| doors.len() == 1 && doors[0].listening));
    }
}
