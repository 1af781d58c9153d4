//! Shows that names are ours: a file on :80, a certificate on :443, or a TXT record, for as long as an order lasts.

use std::collections::BTreeMap;
use std::sync::Arc;

use instant_acme::KeyAuthorization;
use itsup_proxy::{Cert, Host, HostPattern, Proxy};
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::dns::{self, Txt};
use super::due::Proof;
use super::order::RefusedName;
use crate::settings::Acme;

/// What one order shows. Dropping it takes everything away again.
pub(super) struct Prover {
    proxy: Proxy,
    acme: Arc<Acme>,
    /// By the name as the CA spells it.
    shown: BTreeMap<String, Shown>,
}

enum Shown {
    Http(String),
    TlsAlpn(Host),
    Dns(Txt),
}

impl Prover {
    /// Nothing is shown yet.
    pub(super) fn new(proxy: Proxy, acme: Arc<Acme>) -> Prover {
        Prover { proxy, acme, shown: BTreeMap::new() }
    }

    /// The proofs that are set up here, this one first.
    pub(super) fn in_turn(&self, first: Proof) -> Vec<Proof> {
        let mut proofs = proofs(&self.acme);
        proofs.sort_by_key(|proof| *proof != first);
        proofs
    }

    /// How this name is shown to be ours.
    pub(super) fn shown(&self, name: &str) -> Option<Proof> {
        self.shown.get(name).map(|shown| match shown {
            Shown::Http(_) => Proof::Http,
            Shown::TlsAlpn(_) => Proof::TlsAlpn,
            Shown::Dns(_) => Proof::Dns,
        })
    }

    /// Shows it; once is enough.
    pub(super) async fn show(
        &mut self,
        proof: Proof,
        name: &str,
        token: &str,
        key: &KeyAuthorization,
    ) -> Result<(), String> {
        if self.shown(name) == Some(proof) {
            return Ok(());
        }
        let shown = match proof {
            Proof::Http => {
                self.proxy.challenges().set(token.to_owned(), key.as_str().to_owned());
                Shown::Http(token.to_owned())
            }
            Proof::TlsAlpn => {
                let host = Host::parse(name).map_err(|error| error.to_string())?;
                let cert = challenge_cert(&host, key.digest().as_ref()).map_err(|error| error.to_string())?;
                self.proxy.challenges().set_alpn(host.clone(), Arc::new(cert));
                Shown::TlsAlpn(host)
            }
            Proof::Dns => {
                let txt = Txt::new(name, key.dns_value());
                let dns = self.acme.dns.as_ref().ok_or("neither ACME_DNS_HOOK nor ACME_DNS_SERVER is set")?;
                dns::add(dns, &txt).await?;
                Shown::Dns(txt)
            }
        };
        self.shown.insert(name.to_owned(), shown);
        Ok(())
    }

    /// Waits until TXT records are where the CA will look for them.
    pub(super) async fn settle(&self) -> Result<(), RefusedName> {
        let records = self.shown.iter().filter_map(|(name, shown)| match shown {
            Shown::Dns(txt) => Some((name, txt)),
            Shown::Http(_) | Shown::TlsAlpn(_) => None,
        });
        let waits = records.map(|(name, txt)| async move {
            dns::wait(&self.acme, txt).await.map_err(|why| RefusedName {
                name: name.clone(),
                why,
                whatever_proof: false,
            })
        });
        futures_util::future::try_join_all(waits).await.map(drop)
    }
}

impl Drop for Prover {
    fn drop(&mut self) {
        for shown in std::mem::take(&mut self.shown).into_values() {
            match shown {
                Shown::Http(token) => self.proxy.challenges().remove(&token),
                Shown::TlsAlpn(host) => self.proxy.challenges().remove_alpn(&host),
                Shown::Dns(txt) => {
                    let acme = self.acme.clone();
                    // Without a runtime the process is ending, and the record stays: it proves nothing to anyone else.
                    let Ok(runtime) = tokio::runtime::Handle::try_current() else { continue };
                    runtime.spawn(async move {
                        if let Some(dns) = &acme.dns
                            && let Err(error) = dns::remove(dns, &txt).await
                        {
                            tracing::warn!("{}: the TXT record stays: {error}", txt.name);
                        }
                    });
                }
            }
        }
    }
}

/// The proofs that are set up here, in the order in which they are tried.
pub(super) fn proofs(acme: &Acme) -> Vec<Proof> {
    let dns = acme.dns.is_some().then_some(Proof::Dns);
    [Proof::Http, Proof::TlsAlpn].into_iter().chain(dns).collect()
}

/// The certificate of TLS-ALPN-01 (RFC 8737, section 3).
fn challenge_cert(host: &Host, digest: &[u8]) -> Result<Cert, Box<dyn std::error::Error + Send + Sync>> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new([host.to_string()])?;
    params.distinguished_name = DistinguishedName::new();
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let cert = params.self_signed(&key)?;
    let signer = any_ecdsa_type(&PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())))?;
    Ok(Cert::new(vec![cert.der().clone()], signer, vec![HostPattern::Exact(host.clone())]))
}
