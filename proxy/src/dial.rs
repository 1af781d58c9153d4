//! Opening a plain connection to one of an upstream's endpoints, under a lease, once the upstream is not held.

use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Instant;

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

/// Opens a connection to the upstream that `find` points at, trying other endpoints when one cannot be reached.
///
/// `ends` are the client's address and ours, for the PROXY header where the upstream asks for one; `client` is its socket,
/// watched while the upstream is held.
pub(crate) async fn dial(
    worker: &Worker,
    find: impl Fn(&Live) -> Option<Arc<LiveUpstream>>,
    ends: (SocketAddr, SocketAddr),
    client: RawFd,
) -> Result<Dialed, DialError> {
    let mut tried = Vec::new();
    let mut last = DialError::Down;
    while tried.len() < ATTEMPTS {
        if wait_while_held(worker, &find, client).await? {
            tried.clear();
        }
        let (upstream, lease) = match lease(worker, &find, &tried) {
            Some(found) => found,
            // A hold that has begun since comes before the table that has emptied the upstream.
            None if is_held(worker, &find) => continue,
            None => break,
        };
        match connect(&upstream, &lease, ends).await {
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

async fn connect(upstream: &LiveUpstream, lease: &Lease, ends: (SocketAddr, SocketAddr)) -> io::Result<TcpStream> {
    let Address::Tcp(address) = lease.endpoint().address else {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "only TCP endpoints take raw connections"));
    };
    let mut tcp = tokio::time::timeout(upstream.policy.connect_timeout, TcpStream::connect(address))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "connecting took too long"))??;
    if lease.endpoint().is_closed() {
        // A connection that took its time may have come about with whoever has the address by now.
        return Err(io::Error::new(io::ErrorKind::NotConnected, "its endpoint has been retired"));
    }
    tcp.set_nodelay(true)?;
    if let Some(version) = upstream.policy.proxy_protocol {
        tcp.write_all(proxy_protocol::encode(version, ends.0, ends.1).as_ref()).await?;
    }
    Ok(tcp)
}
