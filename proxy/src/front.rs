//! A connection to :443: PROXY header where one is due, ClientHello, then pass through or terminate.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use pingora::apps::ServerApp;
use rustls::{HandshakeKind, ProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;

use crate::conn::{Conn, Ends};
use crate::dial::{Caller, dial};
use crate::ending::{Listed, Way};
use crate::endpoint::Class;
use crate::hello::{self, HelloReader};
use crate::live::{Entry, Live, LiveUpstream};
use crate::prefixed::Prefixed;
use crate::relay::relay;
use crate::shared::Seat;
use crate::stream::Downstream;
use crate::worker::Worker;
use crate::{h1, proxy_protocol};

/// TLS alerts (RFC 8446, section 6).
const UNRECOGNIZED_NAME: u8 = 112;
const INTERNAL_ERROR: u8 = 80;

const PLAIN_HTTP: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 42\r\n\
    Connection: close\r\n\r\nThis port speaks HTTPS. Use https:// here.";

/// What the first bytes of a connection say.
struct Opening {
    /// The hello and whatever came with it, to be replayed.
    buffered: BytesMut,
    client: SocketAddr,
    sni: Box<str>,
    wants_challenge: bool,
}

/// Why a connection is not served.
enum Refusal {
    /// It ended, or took too long, or was not TLS: nothing to say.
    Silent,
    /// A TLS alert says why.
    Alert(u8),
    /// Somebody speaks HTTP in the clear to the TLS port.
    PlainHttp,
}

/// Serves a connection to the TLS port from its first byte to its last.
pub(crate) async fn serve(worker: Arc<Worker>, mut tcp: TcpStream, peer: SocketAddr, seat: Seat) {
    let limit = worker.shared.limits.hello;
    let opening = match tokio::time::timeout(limit, Box::pin(open(&worker, &mut tcp, peer))).await {
        Ok(Ok(opening)) => opening,
        Ok(Err(Refusal::Alert(description))) => return refuse(tcp, description).await,
        Ok(Err(Refusal::PlainHttp)) => return refuse_with(tcp, PLAIN_HTTP).await,
        Ok(Err(Refusal::Silent)) => return,
        Err(_) => return worker.count().add(|c| &c.refused_hello),
    };
    match route(&worker, &opening) {
        Route::Pass(idle) => Box::pin(pass(worker, tcp, opening, idle, seat)).await,
        Route::Terminate => Box::pin(terminate(worker, tcp, peer, opening, seat)).await,
        Route::Challenge => Box::pin(answer_challenge(worker, tcp, opening)).await,
        Route::Unknown => {
            worker.count().add(|c| &c.refused_unknown_host);
            refuse(tcp, UNRECOGNIZED_NAME).await;
        }
    }
}

enum Route {
    Pass(Duration),
    Terminate,
    Challenge,
    Unknown,
}

fn route(worker: &Worker, opening: &Opening) -> Route {
    let live = worker.shared.store.load();
    match live.lookup(&opening.sni) {
        // A passthrough host answers its own challenges.
        Some(Entry::Pass { upstream, .. }) => Route::Pass(upstream.policy.idle()),
        Some(_) if opening.wants_challenge => Route::Challenge,
        Some(Entry::Terminate(_) | Entry::Redirect(_)) => Route::Terminate,
        None => Route::Unknown,
    }
}

async fn refuse(tcp: TcpStream, description: u8) {
    refuse_with(tcp, &hello::alert(description)).await;
}

async fn refuse_with(mut tcp: TcpStream, answer: &[u8]) {
    let _ = tcp.write_all(answer).await;
    let _ = tcp.shutdown().await;
}

async fn open(worker: &Worker, tcp: &mut TcpStream, peer: SocketAddr) -> Result<Opening, Refusal> {
    let mut buffered = BytesMut::with_capacity(2 * 1024);
    let mut shutdown = worker.shutdown.clone();
    tokio::select! {
        biased;
        // A read, and not `readable`, which may be true of a socket with nothing in it.
        read = tcp.read_buf(&mut buffered) => if !matches!(read, Ok(read) if read > 0) {
            worker.count().add(|c| &c.refused_hello);
            return Err(Refusal::Silent);
        },
        // Opened ahead of time, as browsers do, and never used: idle.
        _ = shutdown.wait_for(|ended| *ended) => return Err(Refusal::Silent),
    }
    let client = if worker.shared.store.load().edge.sends_proxy_header(peer.ip()) {
        match read_proxy_header(tcp, &mut buffered).await {
            Some(source) => source.unwrap_or(peer),
            None => {
                worker.count().add(|c| &c.refused_proxy_header);
                return Err(Refusal::Silent);
            }
        }
    } else {
        peer
    };
    let mut reader = HelloReader::default();
    loop {
        match reader.push(&buffered) {
            hello::Progress::NeedMore => {
                if !matches!(tcp.read_buf(&mut buffered).await, Ok(read) if read > 0) {
                    worker.count().add(|c| &c.refused_hello);
                    return Err(Refusal::Silent);
                }
            }
            hello::Progress::Done(found) => {
                return match found.sni {
                    Some(sni) => Ok(Opening { sni, buffered, client, wants_challenge: found.alpn_acme }),
                    None => {
                        worker.count().add(|c| &c.refused_unknown_host);
                        Err(Refusal::Alert(UNRECOGNIZED_NAME))
                    }
                };
            }
            hello::Progress::PlainHttp => {
                worker.count().add(|c| &c.refused_hello);
                return Err(Refusal::PlainHttp);
            }
            hello::Progress::Invalid(description) => {
                worker.count().add(|c| &c.refused_hello);
                return Err(Refusal::Alert(description));
            }
        }
    }
}

/// Reads a PROXY header off the connection; `None` when there is none, `Some(None)` when it names no source.
pub(crate) async fn read_proxy_header(tcp: &mut TcpStream, buffered: &mut BytesMut) -> Option<Option<SocketAddr>> {
    loop {
        match proxy_protocol::parse(buffered) {
            proxy_protocol::Progress::NeedMore => {
                if !matches!(tcp.read_buf(buffered).await, Ok(read) if read > 0) {
                    return None;
                }
            }
            proxy_protocol::Progress::Done { source, len, .. } => {
                buffered.advance(len);
                return Some(source);
            }
            proxy_protocol::Progress::Invalid => return None,
        }
    }
}

fn passing(live: &Live, sni: &str) -> Option<Arc<LiveUpstream>> {
    match live.lookup(sni) {
        Some(Entry::Pass { upstream, .. }) => Some(upstream.clone()),
        _ => None,
    }
}

async fn pass(worker: Arc<Worker>, mut tcp: TcpStream, opening: Opening, idle: Duration, seat: Seat) {
    let caller = Caller { address: opening.client, tcp: &tcp };
    let mut dialed = match dial(&worker, |live| passing(live, &opening.sni), caller, &opening.buffered).await {
        Ok(dialed) => dialed,
        Err(error) => {
            worker.count().add(|c| &c.pass_failed);
            tracing::debug!(host = %opening.sni, %error, "no endpoint for a passthrough connection");
            return refuse(tcp, INTERNAL_ERROR).await;
        }
    };
    let replayed = opening.buffered.len() as u64;
    drop(opening);
    let told = Arc::new(Notify::new());
    let endpoint = dialed.lease.endpoint().clone();
    let listed = Listed::new(endpoint.key, Class::Passthrough, Way::Relay(told.clone()));
    let passed = relay(&mut tcp, &mut dialed.tcp, idle, told.notified()).await;
    endpoint.tally().add(if listed.is_told() { |t| &t.cut } else { |t| &t.served });
    let count = worker.count();
    count.add(|c| &c.passed);
    count.passed_in.fetch_add(replayed + passed.to_endpoint, std::sync::atomic::Ordering::Relaxed);
    count.passed_out.fetch_add(passed.to_client, std::sync::atomic::Ordering::Relaxed);
    if let Some(error) = passed.error {
        tracing::debug!(%error, "a passthrough connection ended");
    }
    drop((listed, dialed, tcp, seat));
}

async fn terminate(worker: Arc<Worker>, tcp: TcpStream, peer: SocketAddr, opening: Opening, seat: Seat) {
    let stream = match handshake(&worker, tcp, peer, opening).await {
        Ok(stream) => stream,
        Err(error) => {
            worker.count().add(|c| &c.handshakes_failed);
            tracing::debug!(%error, "a TLS handshake failed");
            return;
        }
    };
    if stream.conn().h2 {
        worker.engine.process_new(stream, &worker.shutdown).await;
        drop(seat);
    } else {
        // A task of its own, so that an idle connection does not hold the handshake's memory.
        tokio::spawn(h1::serve(worker, stream, seat));
    }
}

async fn handshake(worker: &Worker, tcp: TcpStream, peer: SocketAddr, opening: Opening) -> io::Result<Box<Downstream>> {
    let cert = worker.shared.certs.find(&opening.sni);
    let acceptor = TlsAcceptor::from(worker.shared.tls.sites.clone());
    let ends = Ends { peer, client: opening.client, local_port: tcp.local_addr()?.port(), fd: tcp.as_raw_fd() };
    let prefixed = Prefixed::new(opening.buffered.freeze(), tcp);
    let tls = tokio::time::timeout(worker.shared.limits.handshake, acceptor.accept(prefixed))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the handshake took too long"))??;
    let session = tls.get_ref().1;
    worker.count().add(match session.handshake_kind() {
        Some(HandshakeKind::Resumed) => |c| &c.handshakes_resumed,
        _ => |c| &c.handshakes,
    });
    let version = match session.protocol_version() {
        Some(ProtocolVersion::TLSv1_2) => "1.2",
        _ => "1.3",
    };
    let h2 = session.alpn_protocol() == Some(b"h2");
    let conn = Arc::new(Conn::new(ends, opening.sni, cert, version, h2));
    Downstream::new(tls, conn).map(Box::new)
}

/// Shows the challenge certificate and hangs up (RFC 8737, section 3).
async fn answer_challenge(worker: Arc<Worker>, tcp: TcpStream, opening: Opening) {
    let acceptor = TlsAcceptor::from(worker.shared.tls.challenges.clone());
    let prefixed = Prefixed::new(Bytes::from(opening.buffered), tcp);
    let accepted = tokio::time::timeout(worker.shared.limits.handshake, acceptor.accept(prefixed)).await;
    if let Ok(Ok(mut tls)) = accepted {
        let _ = tls.shutdown().await;
    }
}
