//! Connections that the proxy makes to itself, to prove that it can serve before anyone relies on it.
//!
//! It asks as a client does and reaches no endpoint. A challenge with an unpredictable answer, known to this process alone, tells it
//! from any other that has the same sockets; TLS must show the very certificate that is published.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{AlertDescription, ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;

use crate::host::HostPattern;
use crate::request_id::RequestId;
use crate::shared::Shared;
use crate::table::{Action, RouteTable};
use crate::worker::{Errand, Kind};

/// A busy machine may be slow; one that takes longer than this for a handshake is not ready.
const PATIENCE: Duration = Duration::from_secs(10);
/// A name that nobody has (RFC 2606).
const NOBODY: &str = "self-test.itsup.invalid";

/// Which way the connections go in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Through {
    /// Through the listening sockets, as clients come.
    Listeners,
    /// To every data thread directly, past the sockets.
    Threads,
}

/// The proxy is not as it ought to be.
#[derive(Debug, thiserror::Error)]
#[error("the self-test of {port} failed: {fault}")]
pub struct SelfTestError {
    port: &'static str,
    fault: String,
}

/// What is asked, and the right answers.
pub(crate) struct SelfTest<'a> {
    shared: &'a Shared,
    token: String,
    answer: String,
    /// Hosts that end TLS here and have a certificate, with its leaf.
    hosts: Vec<(String, CertificateDer<'static>)>,
}

impl<'a> SelfTest<'a> {
    /// Prepares the challenge; it is answered until this is dropped.
    pub(crate) fn new(shared: &'a Shared, table: &RouteTable) -> Self {
        let (token, answer) = (RequestId::random().as_str().to_owned(), RequestId::random().as_str().to_owned());
        shared.challenges.set(token.clone(), answer.clone());
        let ended_here = table.hosts.iter().filter(|(_, action)| !matches!(action, Action::Pass(_)));
        let names = ended_here.map(|(host, _)| match host {
            HostPattern::Exact(host) => host.as_str().to_owned(),
            HostPattern::Wildcard(parent) => format!("self-test.{}", parent.as_str()),
        });
        let leaf = |name: String| {
            let leaf = shared.certs.find(&name)?.chain().first()?.clone();
            Some((name, leaf))
        };
        // One for each data thread is enough to see that handshakes work; a hundred thousand would take too long.
        let hosts = names.filter_map(leaf).take(64).collect();
        Self { shared, token, answer, hosts }
    }

    pub(crate) async fn by_address(&self, http: SocketAddr, https: SocketAddr) -> Result<(), SelfTestError> {
        let plain = async { self.ask_plain(TcpStream::connect(reachable(http)).await?).await };
        within("the plain port", plain).await?;
        let tls = async { self.ask_tls(TcpStream::connect(reachable(https)).await?, 0).await };
        within("the TLS port", tls).await
    }

    pub(crate) async fn by_thread(&self, threads: &[mpsc::UnboundedSender<Errand>]) -> Result<(), SelfTestError> {
        for (index, thread) in threads.iter().enumerate() {
            let plain = async { self.ask_plain(connect(thread, Kind::Plain).await?).await };
            within("a data thread's plain side", plain).await?;
            let tls = async { self.ask_tls(connect(thread, Kind::Tls).await?, index).await };
            within("a data thread's TLS side", tls).await?;
        }
        Ok(())
    }

    async fn ask_plain(&self, mut tcp: TcpStream) -> io::Result<()> {
        let request = format!(
            "{}GET /.well-known/acme-challenge/{} HTTP/1.1\r\nHost: {NOBODY}\r\nConnection: close\r\n\r\n",
            self.proxy_header(&tcp)?,
            self.token
        );
        tcp.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        tcp.take(16 * 1024).read_to_end(&mut answer).await?;
        let answer = String::from_utf8_lossy(&answer);
        if answer.starts_with("HTTP/1.1 200 ") && answer.ends_with(&self.answer) {
            return Ok(());
        }
        Err(io::Error::other(format!("answered `{}`", answer.lines().next().unwrap_or_default())))
    }

    async fn ask_tls(&self, mut tcp: TcpStream, turn: usize) -> io::Result<()> {
        tcp.write_all(self.proxy_header(&tcp)?.as_bytes()).await?;
        let Some((name, leaf)) = self.hosts.get(turn % self.hosts.len().max(1)) else {
            return match handshake(tcp, NOBODY, None).await {
                Err(error) if is_unrecognized_name(&error) => Ok(()),
                Err(error) => Err(error),
                Ok(()) => Err(io::Error::other("a host that nobody has was served")),
            };
        };
        handshake(tcp, name, Some(leaf.clone())).await.map_err(|error| io::Error::other(format!("{name}: {error}")))
    }

    /// What has to come first where this host itself is one that sends PROXY headers.
    fn proxy_header(&self, tcp: &TcpStream) -> io::Result<&'static str> {
        let own = tcp.local_addr()?.ip();
        Ok(if self.shared.store.load().edge.sends_proxy_header(own) { "PROXY UNKNOWN\r\n" } else { "" })
    }
}

impl Drop for SelfTest<'_> {
    fn drop(&mut self) {
        self.shared.challenges.remove(&self.token);
    }
}

async fn within(port: &'static str, ask: impl Future<Output = io::Result<()>>) -> Result<(), SelfTestError> {
    let fault = match tokio::time::timeout(PATIENCE, ask).await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {PATIENCE:?}"),
    };
    Err(SelfTestError { port, fault })
}

/// A connection to a data thread.
async fn connect(thread: &mpsc::UnboundedSender<Errand>, kind: Kind) -> io::Result<TcpStream> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr()?), listener.accept());
    let (near, (far, peer)) = (near?, far?);
    if near.local_addr()? != peer {
        return Err(io::Error::other("somebody else connected"));
    }
    let gone = |_| io::Error::other("the thread is gone");
    thread.send(Errand::Serve(far.into_std()?, peer, kind)).map_err(gone)?;
    Ok(near)
}

fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, address.port())
}

async fn handshake(tcp: TcpStream, name: &str, leaf: Option<CertificateDer<'static>>) -> io::Result<()> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Arc::new(Exactly { leaf, provider: provider.clone() });
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
    let mut tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    // The other side need not wait for it.
    let _ = tls.shutdown().await;
    Ok(())
}

fn is_unrecognized_name(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::AlertReceived(AlertDescription::UnrecognisedName)))
}

/// Takes one certificate for the right one, whoever issued it and whenever it ends.
#[derive(Debug)]
struct Exactly {
    leaf: Option<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Exactly {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.leaf.as_ref().is_some_and(|leaf| leaf == shown) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::General("another certificate was shown than the one that is published".into()))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
