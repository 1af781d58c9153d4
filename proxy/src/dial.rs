//! Opening a plain connection to one of an upstream's endpoints, under a lease, once the upstream is not held.

use std::borrow::Cow;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::endpoint::{Class, Lease};
use crate::hangup::hung_up;
use crate::hold::Waited;
use crate::live::{Live, LiveUpstream, NoEndpoint};
use crate::proxy_protocol;
use crate::table::Address;
use crate::worker::Worker;

/// Endpoints that are tried before giving up.
const ATTEMPTS: usize = 3;
/// Snapshots that are looked at when endpoints retire faster than they are leased.
const RELOADS: usize = 8;

/// An open connection and the right to use it.
pub(crate) struct Dialed {
    pub(crate) tcp: TcpStream,
    pub(crate) lease: Lease,
}

/// Whom a connection is opened for.
pub(crate) struct Caller<'a> {
    /// The client's address, as a trusted PROXY header has it.
    pub(crate) address: SocketAddr,
    /// Its connection: watched while the upstream is held, and the other end of the PROXY header.
    pub(crate) tcp: &'a TcpStream,
}

/// No endpoint could be reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("no endpoint is up")]
    Down,
    #[error("held for too long, or the client left")]
    Held,
    #[error("{0}")]
    Connect(#[from] io::Error),
}

/// Opens a connection to the upstream that `find` points at and sends `opening`, behind a PROXY header where the upstream
/// asks for one; tries other endpoints when one cannot be reached.
pub(crate) async fn dial(
    worker: &Worker,
    find: impl Fn(&Live) -> Option<Arc<LiveUpstream>>,
    caller: Caller<'_>,
    opening: &[u8],
) -> Result<Dialed, DialError> {
    let mut tried = Vec::new();
    let mut last = DialError::Down;
    while tried.len() < ATTEMPTS {
        if wait_while_held(worker, &find, caller.tcp.as_raw_fd()).await? {
            tried.clear();
        }
        let (upstream, lease) = match lease(worker, &find, &tried) {
            Some(found) => found,
            // A hold that has begun since comes before the table that has emptied the upstream.
            None if is_held(worker, &find) => continue,
            None => break,
        };
        match connect(&upstream, &lease, &caller, opening).await {
            Ok(tcp) => {
                lease.endpoint().record_success();
                return Ok(Dialed { tcp, lease });
            }
            Err(error) => {
                lease.endpoint().record_failure(Instant::now());
                lease.endpoint().tally().add(|t| &t.connect_failures);
                worker.count().add(|c| &c.connect_failures);
                tried.push(lease.endpoint().key);
                last = error.into();
            }
        }
    }
    Err(last)
}

/// Waits where the upstream is held; tells whether it was.
async fn wait_while_held(
    worker: &Worker,
    find: &impl Fn(&Live) -> Option<Arc<LiveUpstream>>,
    client: RawFd,
) -> Result<bool, DialError> {
    if !worker.shared.holds.any() {
        return Ok(false);
    }
    let name = find(&worker.shared.store.load()).map(|upstream| upstream.name.clone());
    let Some(door) = name.and_then(|name| worker.shared.holds.door(&name)) else { return Ok(false) };
    match door.wait(hung_up(client)).await {
        Waited::Released => Ok(true),
        Waited::Refused | Waited::Left => Err(DialError::Held),
    }
}

fn is_held(worker: &Worker, find: &impl Fn(&Live) -> Option<Arc<LiveUpstream>>) -> bool {
    worker.shared.holds.any()
        && find(&worker.shared.store.load()).is_some_and(|upstream| worker.shared.holds.door(&upstream.name).is_some())
}

fn lease(
    worker: &Worker,
    find: &impl Fn(&Live) -> Option<Arc<LiveUpstream>>,
    tried: &[u64],
) -> Option<(Arc<LiveUpstream>, Lease)> {
    for _ in 0..RELOADS {
        let upstream = find(&worker.shared.store.load())?;
        match upstream.lease(Class::Passthrough, tried, Instant::now()) {
            Ok(lease) => return Some((upstream, lease)),
            Err(NoEndpoint::Stale) => {}
            Err(NoEndpoint::Down { .. } | NoEndpoint::Empty) => return None,
        }
    }
    None
}

async fn connect(upstream: &LiveUpstream, lease: &Lease, caller: &Caller<'_>, opening: &[u8]) -> io::Result<TcpStream> {
    let Address::Tcp(address) = lease.endpoint().address else {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "only TCP endpoints take raw connections"));
    };
    let opening = match upstream.policy.proxy_protocol {
        None => Cow::Borrowed(opening),
        Some(version) => {
            let header = proxy_protocol::encode(version, caller.address, caller.tcp.local_addr()?);
            Cow::Owned([header.as_ref(), opening].concat())
        }
    };
    let (mut tcp, sent) =
        tokio::time::timeout(upstream.policy.connect_timeout, connect_and_send(address, lease, &opening))
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "connecting took too long"))??;
    tcp.write_all(&opening[sent..]).await?;
    Ok(tcp)
}

/// Connects and sends what can be sent at once; tells how much that was.
///
/// An endpoint on this host is connected to by the time that the kernel has been asked, so nothing waits to hear of it.
async fn connect_and_send(address: SocketAddr, lease: &Lease, bytes: &[u8]) -> io::Result<(TcpStream, usize)> {
    let tcp = begin_to_connect(address)?;
    still_there(lease)?;
    match SockRef::from(&tcp).send(bytes) {
        Ok(sent) => Ok((tcp, sent)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            tcp.writable().await?;
            if let Some(error) = tcp.take_error()? {
                return Err(error);
            }
            // A connection that took its time may have come about with whoever has the address by now.
            still_there(lease)?;
            Ok((tcp, 0))
        }
        Err(error) => Err(error),
    }
}

fn begin_to_connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&address.into()) {
        Err(error) if Errno::from_io_error(&error) != Some(Errno::INPROGRESS) => Err(error),
        _ => TcpStream::from_std(socket.into()),
    }
}

fn still_there(lease: &Lease) -> io::Result<()> {
    if lease.endpoint().is_closed() {
        return Err(io::Error::new(io::ErrorKind::NotConnected, "its endpoint has been retired"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;
    use crate::endpoint::Endpoint;
    use crate::table::{EndpointSpec, Protocol as Speaks};

    fn lease(address: SocketAddr) -> Lease {
        let address = Address::Tcp(address);
        let spec = EndpointSpec { id: "e".into(), address, protocol: Speaks::H1, unhealthy: false };
        Arc::new(Endpoint::new(&spec, Instant::now())).try_lease(Class::Passthrough).expect("open")
    }

    /// A listener with room for one connection in its queue, and that one: the next has to wait for it to be accepted.
    async fn full() -> (TcpListener, TcpStream, SocketAddr) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), Some(Protocol::TCP)).expect("socket");
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("bind");
        socket.listen(0).expect("listen");
        let listener = TcpListener::from_std(socket.into()).expect("listener");
        let address = listener.local_addr().expect("address");
        let first = TcpStream::connect(address).await.expect("the queue has room for one");
        (listener, first, address)
    }

    async fn waits(connecting: impl Future) {
        let early = tokio::time::timeout(Duration::from_millis(50), connecting).await;
        assert!(early.is_err(), "connected to a full queue");
    }

    async fn received(listener: &TcpListener) -> Vec<u8> {
        let mut got = Vec::new();
        listener.accept().await.expect("accept").0.read_to_end(&mut got).await.expect("read");
        got
    }

    #[tokio::test]
    async fn what_is_near_gets_the_first_bytes_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let address = listener.local_addr().expect("address");
        let (tcp, sent) = connect_and_send(address, &lease(address), b"hello").await.expect("connect");
        assert_eq!(sent, 5);
        drop(tcp);
        assert_eq!(received(&listener).await, b"hello");
    }

    #[tokio::test]
    async fn what_takes_its_time_is_waited_for() {
        let (listener, first, address) = full().await;
        let lease = lease(address);
        let mut connecting = Box::pin(connect_and_send(address, &lease, b"hello"));
        waits(&mut connecting).await;
        drop((listener.accept().await.expect("accept"), first));
        let (mut tcp, sent) = connecting.await.expect("connect");
        assert_eq!(sent, 0);
        tcp.write_all(b"hello").await.expect("write");
        drop(tcp);
        assert_eq!(received(&listener).await, b"hello");
    }

    #[tokio::test]
    async fn nothing_is_sent_to_an_endpoint_that_is_retired_meanwhile() {
        let (listener, first, address) = full().await;
        let lease = lease(address);
        let mut connecting = Box::pin(connect_and_send(address, &lease, b"hello"));
        waits(&mut connecting).await;
        lease.endpoint().close();
        drop((listener.accept().await.expect("accept"), first));
        assert_eq!(connecting.await.expect_err("retired").kind(), io::ErrorKind::NotConnected);
        assert_eq!(received(&listener).await, b"");
    }

    #[tokio::test]
    async fn nobody_there_is_an_error() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let address = listener.local_addr().expect("address");
        drop(listener);
        let error = connect_and_send(address, &lease(address), b"hello").await.expect_err("refused");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
