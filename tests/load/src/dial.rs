//! Where the load goes: TCP and TLS to one address under any name.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::version::TLS12;
use rustls::{ALL_VERSIONS, ClientConfig, DigitallySignedStruct, HandshakeKind, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

use crate::Failure;

/// Bytes both ways, with or without TLS.
pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// One address, one trust.
#[derive(Clone)]
pub(crate) struct Dialer {
    pub(crate) address: SocketAddr,
    tls: Option<ClientConfig>,
}

/// What is offered to servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offer {
    /// All that rustls has, the post-quantum key exchange first.
    All,
    /// X25519: with the hybrid, servers that know it would do work that the others do not.
    X25519,
    /// The same, up to TLS 1.2, whose resumption needs no key exchange.
    X25519Tls12,
}

/// Why no connection came about.
#[derive(Debug)]
pub(crate) enum DialError {
    Connect(io::Error),
    Tls(io::Error),
}

impl Dialer {
    /// Plain TCP.
    pub(crate) fn plain(address: SocketAddr) -> Self {
        Self { address, tls: None }
    }

    /// TLS that trusts the roots in `ca`, or anything where there is none.
    pub(crate) fn tls(address: SocketAddr, ca: Option<&Path>, offer: Offer) -> Result<Self, Failure> {
        let mut provider = aws_lc_rs::default_provider();
        if offer != Offer::All {
            // In TLS 1.2 the list must name the certificate's curve too.
            provider.kx_groups = vec![aws_lc_rs::kx_group::X25519, aws_lc_rs::kx_group::SECP256R1];
        }
        let provider = Arc::new(provider);
        let versions = if offer == Offer::X25519Tls12 { &[&TLS12] } else { ALL_VERSIONS };
        let builder = ClientConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions)?;
        let builder = match ca {
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for cert in CertificateDer::pem_file_iter(path)? {
                    roots.add(cert?)?;
                }
                let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
                builder.with_webpki_verifier(verifier)
            }
            None => builder.dangerous().with_custom_certificate_verifier(Arc::new(Anything(provider))),
        };
        Ok(Self { address, tls: Some(builder.with_no_client_auth()) })
    }

    /// A dialer with this ALPN protocol, and tickets where wanted.
    pub(crate) fn with(&self, alpn: &str, resume: bool) -> Self {
        let mut dialer = self.clone();
        if let Some(tls) = &mut dialer.tls {
            tls.alpn_protocols = vec![alpn.as_bytes().to_vec()];
            tls.resumption = if resume { Resumption::in_memory_sessions(16) } else { Resumption::disabled() };
        }
        dialer
    }

    /// A connection under the name `host`, and whether its session was resumed.
    pub(crate) async fn dial(&self, host: &str) -> Result<(Box<dyn Io>, bool), DialError> {
        self.dial_from(host, None).await
    }

    /// As `dial`, from this address of our own.
    pub(crate) async fn dial_from(&self, host: &str, from: Option<Ipv4Addr>) -> Result<(Box<dyn Io>, bool), DialError> {
        let stream = match from {
            None => TcpStream::connect(self.address).await,
            Some(from) => connect_from(from, self.address).await,
        };
        let stream = stream.map_err(DialError::Connect)?;
        stream.set_nodelay(true).map_err(DialError::Connect)?;
        let Some(tls) = &self.tls else { return Ok((Box::new(stream), false)) };
        let name = ServerName::try_from(host.to_owned()).map_err(|error| DialError::Tls(io::Error::other(error)))?;
        let stream = TlsConnector::from(Arc::new(tls.clone())).connect(name, stream).await.map_err(DialError::Tls)?;
        let resumed = stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
        Ok((Box::new(stream), resumed))
    }
}

async fn connect_from(from: Ipv4Addr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    socket.connect(to).await
}

/// `--insecure`.
#[derive(Debug)]
struct Anything(Arc<CryptoProvider>);

impl ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
