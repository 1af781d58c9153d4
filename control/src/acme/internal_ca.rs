//! The internal CA: a certificate for every host that has none of its own.
//!
//! A root of ten years and an intermediate of one live in `data/ca/`; leaves of seven days are made in
//! memory, one for each host, and again at two thirds of their life. Time is passed in, and everything is
//! dated back by an hour, for clocks that jump. Knows nothing of projects or of who asks for which host.
//!
//! People install the root on their devices, so it is never thrown away: where `root.pem` and `root.key`
//! cannot be used (torn, not a pair, past their time) both are moved aside, and a new root is made. A file
//! that is there but cannot be read (rights, disk) is an error and stays where it is.

use std::collections::HashMap;
use std::fs::{self, Permissions};
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use itsup_proxy::{Cert, HostPattern};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::files;

#[cfg(test)]
mod tests;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const ROOT_LIFE: Duration = Duration::from_secs(3652 * 24 * 60 * 60);
const INTERMEDIATE_LIFE: Duration = Duration::from_secs(365 * 24 * 60 * 60);
const LEAF_LIFE: Duration = Duration::from_secs(7 * 24 * 60 * 60);
const BACKDATED: Duration = Duration::from_secs(60 * 60);
/// Below this many, threads cost more than they save.
const WORTH_A_THREAD: usize = 64;

/// Why the internal CA cannot work.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file of the CA cannot be read, written or moved.
    #[error("internal CA: {path}: {error}", path = .path.display())]
    File { path: PathBuf, error: io::Error },
    /// A certificate or key could not be made.
    #[error("internal CA: {0}")]
    Make(String),
}

/// The internal CA and the leaves that it has made.
pub struct InternalCa {
    folder: PathBuf,
    root: Authority,
    intermediate: Authority,
    leaves: HashMap<HostPattern, Leaf>,
}

/// A host's certificate of the internal CA.
#[derive(Clone)]
pub struct Leaf {
    /// What the proxy shows.
    pub cert: Arc<Cert>,
    /// When it ends.
    pub not_after: SystemTime,
    not_before: SystemTime,
    renew_at: SystemTime,
}

/// A CA certificate with its key.
struct Authority {
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    facts: Facts,
}

/// What of a CA certificate is looked at.
#[derive(Clone, Debug)]
struct Facts {
    not_before: SystemTime,
    not_after: SystemTime,
    public_key: Vec<u8>,
    key_id: Option<Vec<u8>>,
    issuer_key_id: Option<Vec<u8>>,
    is_ca: bool,
}

impl InternalCa {
    /// Reads the CA from its folder, or makes a new one. The notes say what had to be done.
    pub fn open(folder: &Path, now: SystemTime) -> Result<(InternalCa, Vec<String>), CaError> {
        files::make_private_folder(folder).map_err(at(folder))?;
        let mut notes = Vec::new();
        let root = open_root(folder, now, &mut notes)?;
        let intermediate = open_intermediate(folder, &root, now, &mut notes)?;
        Ok((InternalCa { folder: folder.to_owned(), root, intermediate, leaves: HashMap::new() }, notes))
    }

    /// Where the root certificate is, for people to install.
    pub fn root_path(&self) -> PathBuf {
        self.folder.join("root.pem")
    }

    /// The SHA-256 of the root certificate, in hexadecimal.
    pub fn root_sha256(&self) -> String {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &self.root.der);
        data_encoding::HEXLOWER.encode(digest.as_ref())
    }

    /// The root certificate.
    pub fn root_pem(&self) -> String {
        let lines = data_encoding::BASE64.encode(&self.root.der);
        let lines: Vec<&str> = lines.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
    }

    /// When the root ends.
    pub fn root_not_after(&self) -> SystemTime {
        self.root.facts.not_after
    }

    /// Whether [`Self::leaves`] of the same hosts would make something new.
    pub fn is_due(&self, now: SystemTime) -> bool {
        self.intermediate.is_due(&self.root, now) || self.leaves.values().any(|leaf| leaf.is_due(now))
    }

    /// The certificates of these hosts: those there are, and new ones where none is or it is due. Others are forgotten.
    ///
    /// What could not be renewed stays as it was, and the error says why.
    pub fn leaves(&mut self, hosts: &[HostPattern], now: SystemTime) -> (&HashMap<HostPattern, Leaf>, Option<CaError>) {
        let mut fault = None;
        if self.intermediate.is_due(&self.root, now) {
            match make_intermediate(&self.folder, &self.root, now) {
                Ok(intermediate) => self.intermediate = intermediate,
                Err(error) => fault = Some(error),
            }
        }
        let mut old = std::mem::take(&mut self.leaves);
        let mut kept = HashMap::with_capacity(hosts.len());
        let mut missing = Vec::new();
        for host in hosts {
            let leaf = old.remove(host);
            if leaf.as_ref().is_none_or(|leaf| leaf.is_due(now)) {
                missing.push(host.clone());
            }
            kept.extend(leaf.map(|leaf| (host.clone(), leaf)));
        }
        match make_leaves(&self.intermediate, &missing, now) {
            Ok(made) => kept.extend(missing.into_iter().zip(made)),
            Err(error) => fault = Some(error),
        }
        self.leaves = kept;
        (&self.leaves, fault)
    }
}

impl Leaf {
    fn is_due(&self, now: SystemTime) -> bool {
        now >= self.renew_at || now < self.not_before
    }
}

impl Authority {
    /// Past two thirds of its life, unless its root ends as soon.
    fn is_due(&self, root: &Authority, now: SystemTime) -> bool {
        let life = self.facts.not_after.duration_since(self.facts.not_before).unwrap_or_default();
        let can_be_longer = root.facts.not_after > self.facts.not_after + DAY;
        now >= self.facts.not_after || can_be_longer && now >= self.facts.not_before + life * 2 / 3
    }

    /// Reads a certificate and its key; `Err` says why they cannot be used.
    fn from_pem(cert: &str, key: &str) -> Result<Authority, String> {
        let der = CertificateDer::from_pem_slice(cert.as_bytes()).map_err(|_| "no certificate in it")?;
        let key = KeyPair::from_pem(key).map_err(|_| "the key cannot be read")?;
        let facts = Facts::read(&der)?;
        if facts.public_key != key.public_key_raw() {
            return Err("certificate and key are not a pair".into());
        }
        if !facts.is_ca {
            return Err("it is not the certificate of a CA".into());
        }
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(|error| error.to_string())?;
        Ok(Authority { der, issuer, facts })
    }
}

impl Facts {
    fn read(der: &[u8]) -> Result<Facts, String> {
        let (_, cert) = X509Certificate::from_der(der).map_err(|_| "the certificate cannot be read")?;
        let time = |seconds: i64| UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap_or(0));
        let mut facts = Facts {
            not_before: time(cert.validity().not_before.timestamp()),
            not_after: time(cert.validity().not_after.timestamp()),
            public_key: cert.public_key().subject_public_key.data.to_vec(),
            key_id: None,
            issuer_key_id: None,
            is_ca: cert.is_ca(),
        };
        for extension in cert.extensions() {
            match extension.parsed_extension() {
                x509_parser::extensions::ParsedExtension::SubjectKeyIdentifier(id) => {
                    facts.key_id = Some(id.0.to_vec());
                }
                x509_parser::extensions::ParsedExtension::AuthorityKeyIdentifier(id) => {
                    facts.issuer_key_id = id.key_identifier.as_ref().map(|id| id.0.to_vec());
                }
                _ => {}
            }
        }
        Ok(facts)
    }
}

fn open_root(folder: &Path, now: SystemTime, notes: &mut Vec<String>) -> Result<Authority, CaError> {
    let (cert_path, key_path) = (folder.join("root.pem"), folder.join("root.key"));
    let (cert, key) = (read(&cert_path)?, read(&key_path)?);
    let fault = match (&cert, &key) {
        (None, None) => return make_root(folder, now),
        (None, Some(_)) => "root.pem is missing".to_owned(),
        (Some(_), None) => "root.key is missing".to_owned(),
        (Some(cert), Some(key)) => match Authority::from_pem(cert, key) {
            Ok(root) if now >= root.facts.not_after => "the root has expired".to_owned(),
            Ok(root) => {
                keep_private(&key_path, notes)?;
                if now + 90 * DAY >= root.facts.not_after {
                    let days = root.facts.not_after.duration_since(now).unwrap_or_default().as_secs() / DAY.as_secs();
                    notes.push(format!(
                        "internal CA: the root ends in {days} days, and a new one must be installed then"
                    ));
                }
                return Ok(root);
            }
            Err(fault) => fault,
        },
    };
    let aside = move_aside(folder, &["root.pem", "root.key"], now)?;
    let root = make_root(folder, now)?;
    notes.push(format!(
        "internal CA: {fault}; a new root was made, which clients must install ({}); the old files are kept as {aside}",
        cert_path.display()
    ));
    Ok(root)
}

fn open_intermediate(
    folder: &Path,
    root: &Authority,
    now: SystemTime,
    notes: &mut Vec<String>,
) -> Result<Authority, CaError> {
    let (cert, key) = (read(&folder.join("intermediate.pem"))?, read(&folder.join("intermediate.key"))?);
    if let (Some(cert), Some(key)) = (&cert, &key) {
        match Authority::from_pem(cert, key) {
            Ok(found) if found.facts.issuer_key_id != root.facts.key_id => {}
            Ok(found) if found.is_due(root, now) => {}
            Ok(found) => return Ok(found),
            Err(fault) => notes.push(format!("internal CA: the intermediate was made anew: {fault}")),
        }
    }
    make_intermediate(folder, root, now)
}

fn make_root(folder: &Path, now: SystemTime) -> Result<Authority, CaError> {
    let key = KeyPair::generate().map_err(make)?;
    let mut params = ca_params("itsUP root", &key, now, now + ROOT_LIFE);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    let cert = params.self_signed(&key).map_err(make)?;
    save(folder, "root", &cert.pem(), &key)?;
    let facts = Facts::read(cert.der()).map_err(CaError::Make)?;
    let issuer = Issuer::from_ca_cert_der(cert.der(), key).map_err(make)?;
    Ok(Authority { der: cert.der().clone(), issuer, facts })
}

fn make_intermediate(folder: &Path, root: &Authority, now: SystemTime) -> Result<Authority, CaError> {
    let key = KeyPair::generate().map_err(make)?;
    let mut params = ca_params("itsUP intermediate", &key, now, (now + INTERMEDIATE_LIFE).min(root.facts.not_after));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.use_authority_key_identifier_extension = true;
    let cert = params.signed_by(&key, &root.issuer).map_err(make)?;
    save(folder, "intermediate", &cert.pem(), &key)?;
    let facts = Facts::read(cert.der()).map_err(CaError::Make)?;
    let issuer = Issuer::from_ca_cert_der(cert.der(), key).map_err(make)?;
    Ok(Authority { der: cert.der().clone(), issuer, facts })
}

/// The name carries a bit of the key, so that two roots on one device can be told apart.
fn ca_params(name: &str, key: &KeyPair, now: SystemTime, not_after: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    let tag: String = params.key_identifier(key).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "itsUP");
    params.distinguished_name.push(DnType::CommonName, format!("{name} {tag}"));
    params.not_before = (now - BACKDATED).into();
    params.not_after = not_after.into();
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// Makes a leaf for each host, on all cores where there are many.
fn make_leaves(issuer: &Authority, hosts: &[HostPattern], now: SystemTime) -> Result<Vec<Leaf>, CaError> {
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get).min(hosts.len() / WORTH_A_THREAD);
    if threads < 2 {
        return hosts.iter().map(|host| make_leaf(issuer, host, now)).collect();
    }
    let share = hosts.len().div_ceil(threads);
    std::thread::scope(|scope| {
        let make_share = |hosts: &[HostPattern]| hosts.iter().map(|host| make_leaf(issuer, host, now)).collect();
        let running: Vec<_> = hosts.chunks(share).map(|hosts| scope.spawn(move || make_share(hosts))).collect();
        let mut leaves = Vec::with_capacity(hosts.len());
        for thread in running {
            let made: Result<Vec<Leaf>, CaError> =
                thread.join().map_err(|_| CaError::Make("a thread that makes certificates has died".into()))?;
            leaves.extend(made?);
        }
        Ok(leaves)
    })
}

fn make_leaf(issuer: &Authority, host: &HostPattern, now: SystemTime) -> Result<Leaf, CaError> {
    let (chain, key) = sign_leaf(issuer, host, now)?;
    let key = any_ecdsa_type(&key).map_err(|error| CaError::Make(error.to_string()))?;
    Ok(Leaf {
        cert: Arc::new(Cert::new(chain, key, vec![host.clone()])),
        not_after: now + LEAF_LIFE,
        not_before: now - BACKDATED,
        renew_at: now + LEAF_LIFE * 2 / 3,
    })
}

type ChainAndKey = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn sign_leaf(issuer: &Authority, host: &HostPattern, now: SystemTime) -> Result<ChainAndKey, CaError> {
    let name = host.to_string();
    let key = KeyPair::generate().map_err(make)?;
    let mut params = CertificateParams::new([name.clone()]).map_err(make)?;
    params.distinguished_name = DistinguishedName::new();
    // X.509 bounds a common name to 64 characters; the alternative name is what counts.
    if name.len() <= 64 {
        params.distinguished_name.push(DnType::CommonName, name);
    }
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + LEAF_LIFE).into();
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let cert = params.signed_by(&key, &issuer.issuer).map_err(make)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok((vec![cert.der().clone(), issuer.der.clone()], key))
}

/// The key first: a certificate is on disk only when its key is.
fn save(folder: &Path, name: &str, cert: &str, key: &KeyPair) -> Result<(), CaError> {
    let (cert_path, key_path) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
    files::write_atomically(&key_path, key.serialize_pem().as_bytes(), 0o600).map_err(at(&key_path))?;
    files::write_atomically(&cert_path, cert.as_bytes(), 0o644).map_err(at(&cert_path))
}

fn move_aside(folder: &Path, names: &[&str], now: SystemTime) -> Result<String, CaError> {
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let free = |suffix: &String| names.iter().all(|name| !folder.join(format!("{name}{suffix}")).exists());
    let suffix = (0..)
        .map(|n| if n == 0 { format!(".aside-{seconds}") } else { format!(".aside-{seconds}-{n}") })
        .find(free)
        .unwrap_or_default();
    for name in names {
        let (from, to) = (folder.join(name), folder.join(format!("{name}{suffix}")));
        match files::rename(&from, &to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&from)(error)),
            _ => {}
        }
    }
    Ok(format!("{}/*{suffix}", folder.display()))
}

fn keep_private(path: &Path, notes: &mut Vec<String>) -> Result<(), CaError> {
    let mode = fs::metadata(path).map_err(at(path))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(at(path))?;
        notes.push(format!("internal CA: {} could be read by others (mode {mode:o}); it is 600 now", path.display()));
    }
    Ok(())
}

/// A file's text, `None` where there is none. Bytes that are no text are as torn as half a file.
fn read(path: &Path) -> Result<Option<String>, CaError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at(path)(error)),
    }
}

fn at(path: &Path) -> impl Fn(io::Error) -> CaError {
    let path = path.to_owned();
    move |error| CaError::File { path: path.clone(), error }
}

fn make(error: rcgen::Error) -> CaError {
    CaError::Make(error.to_string())
}
