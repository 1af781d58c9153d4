//! Certificates in files, the user's own and those that a CA has issued to us: found, checked, and matched to hosts.
//!
//! `certs/<name>/{fullchain,privkey}.pem` and the files that a project's `tls: {cert, key}` names. What
//! counts is the names *in* a certificate: it serves every configured host that it covers. The folder's
//! name only decides between two that cover the same host. A wildcard's folder may have any name, say
//! `_wildcard.example.com`. Reading is apart from deciding ([`choose`] is pure), and time is passed in.
//!
//! A file that has become unreadable, torn or no pair does not take its host down: the last good
//! certificate of that place stays. One that has expired stays as well where no other covers its host: what a client then
//! says of it is true, and who has accepted it goes on. Of pairs that we
//! manage there is a copy in `data/acme/pairs/`, which is the last good one also after a restart.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use itsup_proxy::{Cert, Host, HostPattern};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::owner;
pub use super::owner::Owner;
use super::pairs;
use crate::files;
use crate::settings::Root;

#[cfg(test)]
mod tests;

/// The two files of a certificate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The chain, the host's own certificate first.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// A certificate that was read and is a pair with its key.
#[derive(Clone)]
pub struct Loaded {
    /// What the proxy shows.
    pub cert: Arc<Cert>,
    /// What is known of it.
    pub facts: Facts,
    /// Whose it is.
    pub owner: Owner,
    /// Who issued it, as it calls itself.
    pub issuer: String,
    /// The SHA-256 of the certificate, in hexadecimal.
    pub sha256: String,
    /// The CA's name for it (RFC 9773), where it carries what that is made of.
    pub id: Option<String>,
    bytes: (Vec<u8>, Vec<u8>),
}

/// What of a certificate matters for the choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Hosts that it is for.
    pub names: Vec<HostPattern>,
    /// From when it is valid.
    pub not_before: SystemTime,
    /// Until when.
    pub not_after: SystemTime,
}

/// A host and where its certificate is to come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The host.
    pub host: HostPattern,
    /// From where.
    pub from: From,
}

/// Where a host's certificate is to come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum From {
    /// From `certs/` where one covers the host, else the internal CA.
    Auto,
    /// From the internal CA, whatever else is there.
    Internal,
    /// From these files.
    Files(Place),
}

/// What a host shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The certificate of this place.
    File(Place),
    /// The internal CA's.
    Internal,
}

/// All certificates in files that could be read, now or at an earlier time.
#[derive(Default)]
pub struct Store {
    /// Where the old tool's renewals and our copies are; none in tests.
    root: Option<Root>,
    loaded: BTreeMap<Place, Loaded>,
    /// Places with files of the user's that cannot be used.
    unusable: BTreeSet<Place>,
}

impl Store {
    /// A store that knows which pairs are ours.
    pub fn new(root: Root) -> Store {
        Store { root: Some(root), ..Store::default() }
    }

    /// Reads `certs/` and the named places anew. The warnings say what could not be used and what stands in for it.
    pub fn read(&mut self, certs: &Path, named: &BTreeSet<Place>) -> Vec<String> {
        let mut warnings = Vec::new();
        let mut places = match places_in(certs) {
            Ok(places) => places,
            Err(error) => {
                warnings.push(format!("{}: {error}; the certificates read before stay", certs.display()));
                self.loaded.keys().filter(|place| place.cert.starts_with(certs)).cloned().collect()
            }
        };
        places.extend(named.iter().cloned());
        let mut old = std::mem::take(&mut self.loaded);
        self.unusable.clear();
        for place in places {
            let before = old.remove(&place);
            let is_named = named.contains(&place);
            warnings.extend(self.take(place, before, is_named));
        }
        warnings
    }

    /// Reads one place anew; the warning is as in [`Self::read`].
    pub fn reread(&mut self, place: &Place) -> Option<String> {
        let before = self.loaded.remove(place);
        self.take(place.clone(), before, false)
    }

    fn take(&mut self, place: Place, before: Option<Loaded>, is_named: bool) -> Option<String> {
        self.unusable.remove(&place);
        let fault = match load(&place, before.as_ref()) {
            Ok(Some(mut loaded)) => {
                loaded.owner = self.owner(&place, Some(&loaded.sha256), is_named);
                self.loaded.insert(place, loaded);
                return None;
            }
            // `certs/` may hold other folders; a place that db.yml names must be there.
            Ok(None) if !is_named => return None,
            Ok(None) => return Some(not_used(&place, "there is no such file", None)),
            Err(fault) => fault,
        };
        if let Some(copy) = self.copy(&place, is_named) {
            if finish(&place, &copy) {
                tracing::info!("{}: what broke off when it was written is finished", place.cert.display());
                self.loaded.insert(place, copy);
                return None;
            }
            let warning = not_used(&place, &fault, Some(&copy));
            self.loaded.insert(place, copy);
            return Some(warning);
        }
        if self.owner(&place, None, is_named) == Owner::User {
            self.unusable.insert(place.clone());
        }
        let warning = not_used(&place, &fault, before.as_ref());
        self.loaded.extend(before.map(|before| (place, before)));
        Some(warning)
    }

    fn owner(&self, place: &Place, sha256: Option<&str>, is_named: bool) -> Owner {
        match (&self.root, place.cert.parent()) {
            (Some(root), Some(folder)) if !is_named => owner::owner(folder, sha256, &root.old_renewals()),
            _ => Owner::User,
        }
    }

    /// The copy of a pair of ours.
    fn copy(&self, place: &Place, is_named: bool) -> Option<Loaded> {
        let owner = self.owner(place, None, is_named);
        let Owner::Itsup { .. } = owner else { return None };
        let bytes = fs::read(pairs::copy_path(self.root.as_ref()?, place.folder()?)).ok()?;
        let loaded = parse((bytes.clone(), bytes)).ok()?;
        Some(Loaded { owner, ..loaded })
    }

    /// Places whose files are the user's and of no use.
    pub fn unusable(&self) -> impl Iterator<Item = &Place> {
        self.unusable.iter()
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = (&Place, &Loaded)> {
        self.loaded.iter()
    }

    /// The certificate of a place.
    pub fn find(&self, place: &Place) -> Option<&Loaded> {
        self.loaded.get(place)
    }

    /// What is known of every certificate.
    pub fn facts(&self) -> BTreeMap<&Place, &Facts> {
        self.loaded.iter().map(|(place, loaded)| (place, &loaded.facts)).collect()
    }
}

/// What is said of a place starts so.
pub fn warning_head(place: &Place) -> String {
    format!("certificate {}: ", place.cert.display())
}

fn not_used(place: &Place, fault: &str, before: Option<&Loaded>) -> String {
    let instead = match before {
        Some(_) => "the last good one stays",
        None => "the internal CA stands in",
    };
    format!("{}{fault}; {instead}", warning_head(place))
}

/// Decides what each host shows. Pure; warnings say why a host does not get what one would expect.
pub fn choose(wanted: &[Wanted], available: &BTreeMap<&Place, &Facts>, now: SystemTime) -> (Vec<Choice>, Vec<String>) {
    let index = Index::new(available);
    let mut warnings = BTreeSet::new();
    let choices = wanted
        .iter()
        .map(|wanted| match &wanted.from {
            From::Internal => Choice::Internal,
            From::Files(place) => choose_named(&wanted.host, place, available.get(place).copied(), now, &mut warnings),
            From::Auto => choose_found(&wanted.host, &index, now, &mut warnings),
        })
        .collect();
    (choices, warnings.into_iter().collect())
}

fn choose_named(
    host: &HostPattern,
    place: &Place,
    facts: Option<&Facts>,
    now: SystemTime,
    warnings: &mut BTreeSet<String>,
) -> Choice {
    // What could not be read was reported when it was read.
    let Some(facts) = facts else { return Choice::Internal };
    let name = place.cert.display();
    if !facts.covers(host) {
        let names = facts.names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        warnings.insert(format!("certificate {name}: it is for {names}, not for {host}; the internal CA stands in"));
        return Choice::Internal;
    }
    if facts.is_over(now) {
        warnings.insert(expired(place));
    }
    Choice::File(place.clone())
}

fn expired(place: &Place) -> String {
    format!("{}it has expired, and is shown for want of another", warning_head(place))
}

fn choose_found(host: &HostPattern, index: &Index<'_>, now: SystemTime, warnings: &mut BTreeSet<String>) -> Choice {
    let found = index.covering(host);
    let best = found.iter().max_by_key(|(place, facts)| {
        let (valid, exact) = (!facts.is_over(now), facts.names.contains(host));
        (valid, place.is_of(host), exact, facts.not_after, std::cmp::Reverse(*place))
    });
    if let Some((place, facts)) = best {
        if facts.is_over(now) {
            warnings.insert(expired(place));
        }
        return Choice::File((*place).clone());
    }
    if let Some((place, facts)) = index.folders.get(host.to_string().as_str())
        && !facts.covers(host)
    {
        let name = place.cert.display();
        let names = facts.names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        warnings.insert(format!("certificate {name}: it is for {names}, not for {host}; the internal CA stands in"));
    }
    Choice::Internal
}

/// Certificates by the names in them, so that a host's are found without a look at all of them.
struct Index<'a> {
    by_name: HashMap<&'a HostPattern, Vec<(&'a Place, &'a Facts)>>,
    folders: HashMap<&'a str, (&'a Place, &'a Facts)>,
}

impl<'a> Index<'a> {
    fn new(available: &BTreeMap<&'a Place, &'a Facts>) -> Index<'a> {
        let mut index = Index { by_name: HashMap::new(), folders: HashMap::new() };
        for (place, facts) in available {
            for name in &facts.names {
                index.by_name.entry(name).or_default().push((place, facts));
            }
            index.folders.extend(place.folder().map(|folder| (folder, (*place, *facts))));
        }
        index
    }

    fn covering(&self, host: &HostPattern) -> Vec<(&'a Place, &'a Facts)> {
        let mut found = self.by_name.get(host).cloned().unwrap_or_default();
        if let HostPattern::Exact(name) = host
            && let Some(wildcard) = wildcard_over(name)
        {
            found.extend(self.by_name.get(&wildcard).into_iter().flatten().copied());
        }
        found
    }
}

/// `*.example.com` for `www.example.com`.
pub(super) fn wildcard_over(host: &Host) -> Option<HostPattern> {
    let (_, parent) = host.as_str().split_once('.')?;
    HostPattern::parse(&format!("*.{parent}")).ok()
}

impl Place {
    /// The pair of a folder in `certs/`.
    pub fn in_folder(certs: &Path, folder: &str) -> Place {
        let folder = certs.join(folder);
        Place { cert: folder.join("fullchain.pem"), key: folder.join("privkey.pem") }
    }

    /// The name of the folder that it is in.
    pub fn folder(&self) -> Option<&str> {
        self.cert.parent()?.file_name()?.to_str()
    }

    /// Whether the folder has the host's name.
    fn is_of(&self, host: &HostPattern) -> bool {
        self.folder().is_some_and(|folder| match host {
            HostPattern::Exact(host) => folder == host.as_str(),
            HostPattern::Wildcard(below) => folder.strip_prefix("_wildcard.") == Some(below.as_str()),
        })
    }
}

impl Facts {
    /// Whether a client takes it for this host.
    pub fn covers(&self, host: &HostPattern) -> bool {
        let wildcard = match host {
            HostPattern::Exact(name) => wildcard_over(name),
            HostPattern::Wildcard(_) => None,
        };
        self.names.iter().any(|name| name == host || Some(name) == wildcard.as_ref())
    }

    /// Whether it has ended.
    pub fn is_over(&self, now: SystemTime) -> bool {
        // Not valid yet is not asked: where our own clock is behind, the client's says otherwise.
        now >= self.not_after
    }
}

/// The folders in `certs/` that hold a certificate, or half of one.
fn places_in(certs: &Path) -> io::Result<BTreeSet<Place>> {
    let entries = match fs::read_dir(certs) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(error),
    };
    let mut places = BTreeSet::new();
    for entry in entries {
        let folder = entry?.path();
        if folder.is_dir() {
            places.insert(Place { cert: folder.join("fullchain.pem"), key: folder.join("privkey.pem") });
        }
    }
    Ok(places)
}

/// Reads a place; the same bytes give the same certificate. `None` where neither file is there.
fn load(place: &Place, before: Option<&Loaded>) -> Result<Option<Loaded>, String> {
    let read = |path: &Path| match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{} cannot be read: {error}", path.display())),
    };
    let bytes = match (read(&place.cert)?, read(&place.key)?) {
        (None, None) => return Ok(None),
        (Some(cert), Some(key)) => (cert, key),
        (None, Some(_)) => return Err("the certificate is missing beside its key".into()),
        (Some(_), None) => return Err(format!("the key {} is missing", place.key.display())),
    };
    if let Some(before) = before
        && before.bytes == bytes
    {
        return Ok(Some(before.clone()));
    }
    parse(bytes).map(Some)
}

/// Completes a pair of which one file has been written and the other has not. Anything else that is wrong with it
/// is somebody's doing, and stays.
fn finish(place: &Place, copy: &Loaded) -> bool {
    let text = String::from_utf8_lossy(&copy.bytes.0).into_owned();
    let Some(at) = text.rfind("-----BEGIN").filter(|at| *at > 0) else { return false };
    let (chain, key) = text.split_at(at);
    let is_there =
        |path: &Path, wanted: &str| fs::read(path).is_ok_and(|bytes| bytes.trim_ascii() == wanted.trim().as_bytes());
    // The key is written first, so a chain without its key is not of our making.
    is_there(&place.key, key)
        && before_or_none(place)
        && files::write_atomically(&place.cert, chain.as_bytes(), 0o644).is_ok()
}

/// Whether the certificate that is there is none, or the one before.
fn before_or_none(place: &Place) -> bool {
    let Ok(bytes) = fs::read(&place.cert) else { return true };
    let marker = place.cert.parent().and_then(owner::Marker::read).unwrap_or_default();
    CertificateDer::from_pem_slice(&bytes).is_ok_and(|der| marker.sha256.contains(&sha256(&der)))
}

/// Reads a pair from bytes, and checks that it is one.
pub fn parse_pair(chain: &str, key: &str) -> Result<Loaded, String> {
    parse((chain.as_bytes().to_vec(), key.as_bytes().to_vec()))
}

fn sha256(der: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der).as_ref())
}

fn parse(bytes: (Vec<u8>, Vec<u8>)) -> Result<Loaded, String> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&bytes.0)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("it is not PEM: {error}"))?;
    let first = chain.first().ok_or("there is no certificate in it")?;
    let facts = read_facts(first)?;
    let key = PrivateKeyDer::from_pem_slice(&bytes.1).map_err(|error| format!("its key is not PEM: {error}"))?;
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)
        .map_err(|error| format!("its key cannot be used: {error}"))?;
    let pair = CertifiedKey::new(chain, key);
    match pair.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
        Err(rustls::Error::InconsistentKeys(_)) => return Err("certificate and key are not a pair".into()),
        Err(error) => return Err(format!("it cannot be used: {error}")),
    }
    let leaf = &pair.cert[0];
    let (sha256, issuer) = (sha256(leaf), issuer(leaf));
    let id = instant_acme::CertificateIdentifier::try_from(leaf).ok().map(|id| id.to_string());
    let cert = Arc::new(Cert::new(pair.cert, pair.key, facts.names.clone()));
    Ok(Loaded { cert, facts, owner: Owner::User, issuer, sha256, id, bytes })
}

/// The issuer's organisation and name, for people.
fn issuer(der: &[u8]) -> String {
    let Ok((_, cert)) = X509Certificate::from_der(der) else { return String::new() };
    let issuer = cert.issuer();
    let text = |part: Option<&x509_parser::x509::AttributeTypeAndValue<'_>>| {
        part.and_then(|p| p.as_str().ok()).map(str::to_owned)
    };
    let (organisation, name) = (text(issuer.iter_organization().next()), text(issuer.iter_common_name().next()));
    [organisation, name].into_iter().flatten().collect::<Vec<_>>().join(" ")
}

fn read_facts(der: &[u8]) -> Result<Facts, String> {
    let (_, cert) = X509Certificate::from_der(der).map_err(|error| format!("it cannot be read: {error}"))?;
    let names = match cert.subject_alternative_name() {
        Ok(Some(extension)) => extension.value.general_names.as_slice(),
        Ok(None) => &[],
        Err(error) => return Err(format!("its names cannot be read: {error}")),
    };
    let names: Vec<HostPattern> = names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => HostPattern::parse(name).ok(),
            _ => None,
        })
        .collect();
    if names.is_empty() {
        return Err("it names no host (subjectAltName)".into());
    }
    let time = |seconds: i64| UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap_or(0));
    let validity = cert.validity();
    Ok(Facts {
        names,
        not_before: time(validity.not_before.timestamp()),
        not_after: time(validity.not_after.timestamp()),
    })
}
