//! The user's own certificates: found, checked, and matched to hosts.
//!
//! `certs/<name>/{fullchain,privkey}.pem` and the files that a project's `tls: {cert, key}` names. What
//! counts is the names *in* a certificate: it serves every configured host that it covers. The folder's
//! name only decides between two that cover the same host. A wildcard's folder may have any name, say
//! `_wildcard.example.com`. Reading is apart from deciding ([`choose`] is pure), and time is passed in.
//!
//! A file that has become unreadable, torn or no pair does not take its host down: the last good
//! certificate of that place stays while it is valid, then the internal CA takes over.

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

/// All certificates of the user that could be read, now or at an earlier time.
#[derive(Default)]
pub struct Store {
    loaded: BTreeMap<Place, Loaded>,
}

impl Store {
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
        for place in places {
            let before = old.remove(&place);
            match load(&place, before.as_ref()) {
                Ok(Some(loaded)) => {
                    self.loaded.insert(place, loaded);
                }
                // `certs/` may hold other folders; a place that db.yml names must be there.
                Ok(None) if !named.contains(&place) => {}
                Ok(None) => warnings.push(not_used(&place, "there is no such file", None)),
                Err(fault) => {
                    warnings.push(not_used(&place, &fault, before.as_ref()));
                    self.loaded.extend(before.map(|before| (place, before)));
                }
            }
        }
        warnings
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

fn not_used(place: &Place, fault: &str, before: Option<&Loaded>) -> String {
    let instead = match before {
        Some(_) => "the last good one stays",
        None => "the internal CA stands in",
    };
    format!("certificate {}: {fault}; {instead}", place.cert.display())
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
        warnings.insert(format!("certificate {name}: it has expired; the internal CA stands in"));
        return Choice::Internal;
    }
    Choice::File(place.clone())
}

fn choose_found(host: &HostPattern, index: &Index<'_>, now: SystemTime, warnings: &mut BTreeSet<String>) -> Choice {
    let found = index.covering(host);
    let best = found.iter().filter(|(_, facts)| !facts.is_over(now)).max_by_key(|(place, facts)| {
        (place.is_of(host), facts.names.contains(host), facts.not_after, std::cmp::Reverse(*place))
    });
    if let Some((place, _)) = best {
        return Choice::File((*place).clone());
    }
    for (place, _) in found {
        let name = place.cert.display();
        warnings.insert(format!("certificate {name}: it has expired; the internal CA stands in"));
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
fn wildcard_over(host: &Host) -> Option<HostPattern> {
    let (_, parent) = host.as_str().split_once('.')?;
    HostPattern::parse(&format!("*.{parent}")).ok()
}

impl Place {
    fn folder(&self) -> Option<&str> {
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

    fn is_over(&self, now: SystemTime) -> bool {
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
    let cert = Arc::new(Cert::new(pair.cert, pair.key, facts.names.clone()));
    Ok(Loaded { cert, facts, bytes })
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
