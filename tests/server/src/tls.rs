//! The test server's TLS: a certificate made at the start.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls_pki_types::PrivateKeyDer;
use tokio_rustls::TlsAcceptor;

use crate::Failure;
use crate::args::Args;

/// An acceptor with a self-signed certificate for the names given, which is also written where asked.
pub(crate) fn acceptor(args: &Args) -> Result<TlsAcceptor, Failure> {
    let made = rcgen::generate_simple_self_signed(args.tls_names.clone())?;
    if let Some(path) = &args.write_cert {
        std::fs::write(path, made.cert.pem())?;
    }
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)?;
    config.alpn_protocols = args.alpn.iter().map(|name| name.clone().into_bytes()).collect();
    Ok(TlsAcceptor::from(Arc::new(config)))
}
