//! An endpoint as the HTTP engine dials it.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use async_trait::async_trait;
use http::Method;
use pingora::connectors::l4::Connect;
use pingora::http::RequestHeader;
use pingora::protocols::l4::socket::SocketAddr as PeerAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::tls::CaType;
use pingora::upstreams::peer::HttpPeer;
use pingora::utils::tls::{WrappedX509, parse_x509};
use pingora::{Error, ErrorType};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::conn::Conn;
use crate::endpoint::Endpoint;
use crate::table::{Address, Policy, Protocol, VerifyAgainst};
use crate::{headers, proxy_protocol};

/// Idle upstream connections are kept this long.
const KEEP_IDLE: Duration = Duration::from_secs(60);
/// Idle connections that a POST or PATCH may take are kept this long: what was sent on them is never sent again, so the
/// chance that the endpoint has closed one in the meantime must be small.
const KEEP_IDLE_UNREPEATABLE: Duration = Duration::from_secs(1);
/// Streams at a time on one HTTP/2 upstream connection.
const H2_STREAMS: usize = 100;
/// Sets the pools of unrepeatable requests apart.
const UNREPEATABLE: u64 = 1 << 63;

static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// Whether a request may be sent again when its connection died before a byte came back (RFC 9110, section 9.2.2).
pub(crate) fn is_repeatable(method: &Method) -> bool {
    method.is_idempotent()
}

/// Says how to reach `endpoint` for one request.
///
/// # Errors
/// A Unix socket path that is not one, or a CA file without a certificate in it.
pub(crate) fn peer(
    endpoint: &Endpoint,
    policy: &Policy,
    request: &RequestHeader,
    conn: &Conn,
) -> Result<Box<HttpPeer>, Box<Error>> {
    let sni = match &endpoint.protocol {
        Protocol::Https(verify) => verify.name.to_string(),
        Protocol::H1 | Protocol::H2c => String::new(),
    };
    let tls = matches!(endpoint.protocol, Protocol::Https(_));
    let mut peer = match &endpoint.address {
        Address::Tcp(address) => HttpPeer::new(*address, tls, sni),
        Address::Unix(path) => HttpPeer::new_uds(&path.to_string_lossy(), tls, sni)?,
    };
    peer.group_key = endpoint.key;
    let options = &mut peer.options;
    options.connection_timeout = Some(policy.connect_timeout);
    options.total_connection_timeout = Some(policy.connect_timeout * 2);
    options.read_timeout = policy.response_timeout;
    options.idle_timeout = Some(KEEP_IDLE);
    options.http_upstream_request_policy = headers::upstream_request_policy(&request.headers);
    match &endpoint.protocol {
        Protocol::H1 => {}
        Protocol::H2c => options.set_http_version(2, 2),
        Protocol::Https(verify) => {
            options.set_http_version(2, 1);
            match &verify.against {
                VerifyAgainst::System => {}
                VerifyAgainst::Ca(pem) => options.ca = Some(authorities(pem)?),
                VerifyAgainst::Nothing => {
                    options.verify_cert = false;
                    options.verify_hostname = false;
                }
            }
        }
    }
    options.max_h2_streams = H2_STREAMS;
    if endpoint.protocol == Protocol::H1 && !is_repeatable(&request.method) {
        peer.group_key |= UNREPEATABLE;
        peer.options.idle_timeout = Some(KEEP_IDLE_UNREPEATABLE);
    }
    if let (Some(version), Address::Tcp(address)) = (policy.proxy_protocol, &endpoint.address) {
        // The header speaks for one client connection, so no other may ever use what it was sent on.
        peer.group_key ^= HASHER.hash_one((conn.client, conn.peer));
        peer.options.custom_l4 = Some(Arc::new(WithHeader {
            header: proxy_protocol::encode(version, conn.client, SocketAddr::new(address.ip(), conn.local_port)),
            timeout: policy.connect_timeout,
        }));
    }
    Ok(Box::new(peer))
}

fn authorities(pem: &str) -> Result<Arc<CaType>, Box<Error>> {
    let authorities: Vec<WrappedX509> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .filter_map(Result::ok)
        .filter(|der| x509_parser::parse_x509_certificate(der).is_ok())
        .map(|der| WrappedX509::new(der.to_vec(), parse_x509))
        .collect();
    if authorities.is_empty() {
        return Err(Error::explain(ErrorType::InvalidCert, "the upstream's CA file holds no certificate"));
    }
    Ok(authorities.into())
}

/// Opens a connection and sends a PROXY header first.
#[derive(Debug)]
struct WithHeader {
    header: proxy_protocol::Header,
    timeout: Duration,
}

#[async_trait]
impl Connect for WithHeader {
    async fn connect(&self, address: &PeerAddr) -> Result<Stream, Box<Error>> {
        let Some(address) = address.as_inet() else {
            return Err(Error::explain(ErrorType::ConnectError, "a PROXY header needs a TCP endpoint"));
        };
        let opened = async {
            let mut tcp = TcpStream::connect(address).await?;
            tcp.set_nodelay(true)?;
            tcp.write_all(self.header.as_ref()).await?;
            Ok::<_, io::Error>(tcp)
        };
        match tokio::time::timeout(self.timeout, opened).await {
            Ok(Ok(tcp)) => Ok(Stream::from(tcp)),
            Ok(Err(error)) => Err(Error::because(ErrorType::ConnectError, "connecting to the endpoint", error)),
            Err(_) => Err(Error::explain(ErrorType::ConnectTimedout, "connecting to the endpoint")),
        }
    }
}
