//! A proxy in this process, endpoints whose every byte a test decides, and clients that see every byte.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test file uses a part of it")]

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use itsup_proxy::status::InFlight;
use itsup_proxy::{
    AccessLogTarget, Action, Address, Cert, CertTable, Config, Draining, EndpointSpec, HostPattern, Limits,
    Passthrough, PathPrefix, Policy, Protocol, Proxy, Route, RouteTable, Site, Target, Upstream, UpstreamName,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Longer than anything takes on the slowest machine.
pub const PATIENCE: Duration = Duration::from_secs(40);
/// The terminated host, and the passed one.
pub const HOST: &str = "app.test";
pub const PASSED: &str = "pass.test";

/// The upstream of both.
pub fn app() -> UpstreamName {
    "app".into()
}

pub struct Rig {
    pub proxy: Proxy,
    root: CertificateDer<'static>,
}

/// What a table is made of.
#[derive(Clone, Default)]
pub struct Setup {
    /// Identity and address.
    pub endpoints: Vec<(String, SocketAddr)>,
    pub protocol: Protocol,
    pub policy: Policy,
}

impl Setup {
    pub fn new(id: &str, address: SocketAddr) -> Self {
        Self { endpoints: vec![(id.into(), address)], ..Self::default() }
    }

    pub fn table(&self) -> RouteTable {
        let endpoints = self.endpoints.iter().map(|(id, address)| EndpointSpec {
            id: id.as_str().into(),
            address: Address::Tcp(*address),
            protocol: self.protocol.clone(),
            unhealthy: false,
        });
        let upstream = Upstream { endpoints: endpoints.collect(), policy: self.policy.clone() };
        let path = PathPrefix::parse("/").unwrap();
        let routes = vec![Route { path, strip: false, target: Target::Upstream(app()) }];
        let mut table = RouteTable::default();
        table.upstreams.insert(app(), Arc::new(upstream));
        table.hosts.insert(HostPattern::parse(HOST).unwrap(), Action::Terminate(Arc::new(Site::new("app", routes))));
        let pass = Passthrough { upstream: app(), challenge: None };
        table.hosts.insert(HostPattern::parse(PASSED).unwrap(), Action::Pass(pass));
        table
    }
}

impl Rig {
    pub fn new(setup: &Setup) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let any = "127.0.0.1:0".parse().unwrap();
        let proxy = Proxy::bind(Config {
            http: any,
            https: any,
            threads: NonZeroUsize::new(2).unwrap(),
            access_log: AccessLogTarget::Off,
            limits: Limits::default(),
        })
        .unwrap();
        let made = rcgen::generate_simple_self_signed([HOST.to_owned()]).unwrap();
        let root = made.cert.der().clone();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).unwrap();
        let name = HostPattern::parse(HOST).unwrap();
        let mut certs = CertTable::new();
        certs.insert(name.clone(), Arc::new(Cert::new(vec![root.clone()], key, vec![name])));
        proxy.certs().publish(certs);
        let _ = proxy.publish(setup.table());
        Self { proxy, root }
    }

    /// Takes all endpoints off.
    pub fn retire(&self) -> Draining {
        let published = self.proxy.publish(Setup::default().table());
        assert!(published.changed);
        published.draining
    }

    pub fn publish(&self, setup: &Setup) -> Draining {
        self.proxy.publish(setup.table()).draining
    }

    pub fn in_flight(&self) -> InFlight {
        self.proxy.upstream_status(&app()).unwrap().in_flight()
    }

    pub async fn tls(&self, alpn: &[u8]) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        let tcp = TcpStream::connect(self.proxy.https_addr()).await.unwrap();
        let name = ServerName::try_from(HOST).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap()
    }

    pub async fn h1(&self) -> TlsStream<TcpStream> {
        self.tls(b"http/1.1").await
    }

    pub async fn h2(&self) -> SendRequest<Bytes> {
        let (client, connection) = h2::client::handshake(self.tls(b"h2").await).await.unwrap();
        tokio::spawn(connection);
        client.ready().await.unwrap()
    }
}

/// A request for h2.
pub fn get(path: &str) -> http::Request<()> {
    http::Request::get(format!("https://{HOST}{path}")).body(()).unwrap()
}

/// A request for h1.
pub fn get_h1(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n").into_bytes()
}

pub fn websocket() -> Vec<u8> {
    format!(
        "GET /ws HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    .into_bytes()
}

/// What a TLS client of the passed host sends first.
pub fn hello() -> Vec<u8> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let config = ClientConfig::builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let mut connection =
        rustls::ClientConnection::new(Arc::new(config), ServerName::try_from(PASSED).unwrap()).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    hello
}

/// Listens, and hands every connection over with the first head that came on it.
pub async fn endpoint<F, Served>(serve: F) -> SocketAddr
where
    F: Fn(TcpStream, String) -> Served + Send + Sync + 'static,
    Served: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let serve = serve.clone();
            tokio::spawn(async move {
                if let Some(head) = head(&mut tcp).await {
                    serve(tcp, head).await;
                }
            });
        }
    });
    address
}

/// An address where nobody listens.
pub async fn nowhere() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// Reads up to the end of a head; `None` where there is none.
pub async fn head(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon(stream.read_u8()).await.ok()?);
    }
    Some(String::from_utf8(head).unwrap())
}

/// Reads this many bytes.
pub async fn exactly(stream: &mut (impl AsyncRead + Unpin), len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    soon(stream.read_exact(&mut bytes)).await.unwrap();
    bytes
}

/// Reads until the end, and tells whether that was an orderly one.
pub async fn rest(stream: &mut (impl AsyncRead + Unpin)) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    let read = soon(stream.read_to_end(&mut bytes)).await;
    (bytes, read.is_ok())
}

/// Reads until the end of an h2 body; an error where it is reset.
pub async fn ended(body: &mut h2::RecvStream) -> Result<usize, h2::Error> {
    let mut len = 0;
    while let Some(data) = soon(body.data()).await {
        len += data?.len();
    }
    Ok(len)
}

pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it takes too long")
}

/// Waits until something holds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "never: {what}");
}
