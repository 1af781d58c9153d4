//! Accepting connections, asking for none that is not there.

use std::io;
use std::net::{SocketAddr, TcpListener};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{SocketFlags, acceptfrom_with};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;

/// A listening socket within a data thread's runtime.
///
/// Unlike tokio's it looks whether another connection waits before it asks for it: `accept` makes a socket before it finds
/// that there is none to give, which costs six times as much as the look.
#[derive(Debug)]
pub(crate) struct Acceptor(AsyncFd<TcpListener>);

impl Acceptor {
    /// Takes a socket that listens and does not block; call it within the data thread's runtime.
    pub(crate) fn new(socket: TcpListener) -> io::Result<Self> {
        // SAFETY: a `TcpListener` has one socket, keeps it open, and gives out the same number for as long as it lives.
        let registered = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
        Ok(Self(registered?))
    }

    /// Waits for the next connection. Nothing is lost when the wait is given up.
    ///
    /// # Errors
    /// The connection ended in the queue, or the process has no file descriptor left.
    pub(crate) async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        loop {
            let mut ready = self.0.readable().await?;
            match accept_now(self.0.get_ref()) {
                // Another process or thread that has the same socket was faster.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                accepted => {
                    // What comes after the look is an event of its own.
                    if !is_waiting(self.0.get_ref()) {
                        ready.clear_ready();
                    }
                    return accepted;
                }
            }
        }
    }
}

fn accept_now(socket: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let (tcp, peer) = acceptfrom_with(socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok()).ok_or(io::ErrorKind::ConnectionAborted)?;
    Ok((TcpStream::from_std(tcp.into())?, peer))
}

fn is_waiting(socket: &TcpListener) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::IN)];
    // Where the look fails, `accept` tells.
    !matches!(poll(&mut fds, Some(&rustix::event::Timespec::default())), Ok(0))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::*;

    fn listening() -> (TcpListener, SocketAddr) {
        let socket = TcpListener::bind("127.0.0.1:0").expect("listen");
        socket.set_nonblocking(true).expect("nonblocking");
        let address = socket.local_addr().expect("address");
        (socket, address)
    }

    #[tokio::test]
    async fn every_connection_is_accepted_once_however_they_come() {
        let (socket, address) = listening();
        let twin = Acceptor::new(socket.try_clone().expect("clone")).expect("acceptor");
        let acceptors = [Acceptor::new(socket).expect("acceptor"), twin];
        let (sender, mut accepted) = tokio::sync::mpsc::unbounded_channel();
        for acceptor in acceptors {
            let sender = sender.clone();
            tokio::spawn(async move {
                while let Ok((_, peer)) = acceptor.accept().await {
                    sender.send(peer).expect("the test listens");
                }
            });
        }
        let mut expected = BTreeSet::new();
        // One at a time, then many at once.
        for batch in [1, 1, 1, 40, 1, 200] {
            let mut clients = Vec::new();
            for _ in 0..batch {
                clients.push(TcpStream::connect(address).await.expect("connect"));
            }
            expected.extend(clients.iter().map(|client| client.local_addr().expect("address")));
            for _ in 0..batch {
                let peer = tokio::time::timeout(Duration::from_secs(20), accepted.recv()).await.expect("accepted");
                assert!(expected.remove(&peer.expect("peer")));
            }
        }
        assert!(expected.is_empty());
        assert!(accepted.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_wait_that_is_given_up_loses_nothing() {
        let (socket, address) = listening();
        let acceptor = Acceptor::new(socket).expect("acceptor");
        assert!(tokio::time::timeout(Duration::from_millis(20), acceptor.accept()).await.is_err());
        let client = TcpStream::connect(address).await.expect("connect");
        let (tcp, peer) = acceptor.accept().await.expect("accept");
        assert_eq!(peer, client.local_addr().expect("address"));
        assert_eq!(tcp.peer_addr().expect("address"), peer);
    }
}
