//! The settings of certificates that a CA issues: `LE_*` and `ACME_*`.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::{Fault, Problem, Reader, Root, Variable, parse_duration, parse_switch, problem};

/// Let's Encrypt's own directories.
pub const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
/// The one whose certificates nobody trusts.
pub const LETS_ENCRYPT_STAGING: &str = "https://acme-staging-v02.api.letsencrypt.org/directory";

/// From which CA certificates come, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acme {
    /// `LE_EMAIL`: whom the CA may write to. Without it there is no ACME.
    pub email: String,
    /// `ACME_DIRECTORY`, else Let's Encrypt's: the staging one where `LE_STAGING` is on.
    pub directory: String,
    /// Whether `ACME_DIRECTORY` chose it: names of local networks are ordered too then.
    pub own_directory: bool,
    /// `ACME_CA`: the roots that the directory's own certificate is checked against, PEM.
    pub ca: Option<PathBuf>,
    /// `ACME_EAB_KID` and `ACME_EAB_HMAC`: the account at the CA that ours is bound to.
    pub binding: Option<Binding>,
    /// `ACME_PROFILE`: which of the CA's kinds of certificate.
    pub profile: Option<String>,
    /// `ACME_KEY`. P-256.
    pub key: KeyKind,
    /// How TXT records are set, for wildcards.
    pub dns: Option<Dns>,
    /// `ACME_DNS_RESOLVER`: whom to ask for a zone's name servers. The system's.
    pub resolver: Option<SocketAddr>,
    /// `ACME_DNS_WAIT`: how long a TXT record may take to reach all name servers. 2 minutes.
    pub dns_wait: Duration,
}

impl Acme {
    /// Whether its certificates are for trials alone.
    pub fn is_staging(&self) -> bool {
        self.directory == LETS_ENCRYPT_STAGING
    }
}

/// An external account binding (RFC 8555, section 7.3.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The key's name.
    pub kid: String,
    /// The key.
    pub hmac: Secret,
}

/// How TXT records are set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dns {
    /// `ACME_DNS_HOOK`: a program, called with `add|remove FQDN VALUE`.
    Hook(PathBuf),
    /// `ACME_DNS_SERVER` and `ACME_DNS_TSIG`: dynamic updates (RFC 2136).
    Update { server: String, key: Option<Tsig> },
}

/// What dynamic updates are signed with (RFC 8945).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tsig {
    /// `hmac-sha256` or another.
    pub algorithm: TsigAlgorithm,
    /// The key's name.
    pub name: String,
    /// The key.
    pub secret: Secret,
}

/// The algorithms that TSIG knows and that are still in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the hash of its name")]
pub enum TsigAlgorithm {
    Sha256,
    Sha384,
    Sha512,
}

/// What keys are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the key of its name")]
pub enum KeyKind {
    #[default]
    P256,
    P384,
    Rsa2048,
}

/// Bytes that are never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Reads them; `None` without `LE_EMAIL`. Each value is checked all the same.
pub(super) fn read(reader: &mut Reader<'_>, root: &Root) -> Option<Acme> {
    let below_root = |text: &str| Ok(Some(root.path().join(text)));
    let email = reader.value(Variable::LeEmail, None, parse_email);
    let staging = reader.value(Variable::LeStaging, false, parse_switch);
    let directory = reader.value(Variable::AcmeDirectory, None, parse_directory);
    let ca = reader.value(Variable::AcmeCa, None, below_root);
    let kid = reader.value(Variable::AcmeEabKid, None, |text| Ok(Some(text.to_owned())));
    let hmac = reader.value(Variable::AcmeEabHmac, None, parse_hmac);
    let profile = reader.value(Variable::AcmeProfile, None, |text| Ok(Some(text.to_owned())));
    let key = reader.value(Variable::AcmeKey, KeyKind::default(), parse_key);
    let hook = reader.value(Variable::AcmeDnsHook, None, below_root);
    let server = reader.value(Variable::AcmeDnsServer, None, |text| parse_server(text).map(Some));
    let tsig = reader.value(Variable::AcmeDnsTsig, None, parse_tsig);
    let resolver = reader.value(Variable::AcmeDnsResolver, None, parse_resolver);
    let dns_wait = reader.value(Variable::AcmeDnsWait, Duration::from_secs(120), parse_wait);
    let email = email?;
    let binding = match (kid, hmac) {
        (Some(kid), Some(hmac)) => Some(Binding { kid, hmac }),
        (None, None) => None,
        (Some(_), None) => reader.alone(Variable::AcmeEabKid, "set ACME_EAB_HMAC too; the CA gives out both together"),
        (None, Some(_)) => reader.alone(Variable::AcmeEabHmac, "set ACME_EAB_KID too; the CA gives out both together"),
    };
    let dns = match (hook, server, tsig) {
        (Some(_), Some(_), _) => reader.alone(Variable::AcmeDnsHook, "set either ACME_DNS_HOOK or ACME_DNS_SERVER"),
        (Some(hook), None, None) => Some(Dns::Hook(hook)),
        (None, Some(server), key) => Some(Dns::Update { server, key }),
        (_, None, Some(_)) => {
            reader.alone(Variable::AcmeDnsTsig, "set ACME_DNS_SERVER too, the server it is the key of")
        }
        (None, None, None) => None,
    };
    let own_directory = directory.is_some();
    let lets_encrypt = if staging { LETS_ENCRYPT_STAGING } else { LETS_ENCRYPT };
    let directory = directory.unwrap_or_else(|| lets_encrypt.to_owned());
    Some(Acme { email, directory, own_directory, ca, binding, profile, key, dns, resolver, dns_wait })
}

impl Reader<'_> {
    /// A setting that means nothing beside the others.
    fn alone<T>(&mut self, variable: Variable, hint: &str) -> Option<T> {
        let (_, source_of_value) = self.sources.find(variable)?;
        self.faults.push(Fault {
            variable: Some(variable.name()),
            source_of_value,
            message: "does not go with the other settings".into(),
            hint: Some(hint.into()),
        });
        None
    }
}

fn parse_email(text: &str) -> Result<Option<String>, Problem> {
    let sound = text.split_once('@').is_some_and(|(name, host)| !name.is_empty() && !host.is_empty());
    if !sound || text.contains(|c: char| c.is_whitespace() || c.is_control() || c == ',') {
        return Err(problem(format!("`{text}` is not a mail address"), "write one, as in admin@example.com"));
    }
    Ok(Some(text.to_owned()))
}

fn parse_directory(text: &str) -> Result<Option<String>, Problem> {
    let sound = text.parse::<http::Uri>().is_ok_and(|uri| uri.scheme_str() == Some("https") && uri.host().is_some());
    if sound {
        return Ok(Some(text.to_owned()));
    }
    let hint = "write the https:// address that the CA gives as its ACME directory";
    Err(problem(format!("`{text}` is not an https address"), hint))
}

fn parse_key(text: &str) -> Result<KeyKind, Problem> {
    match text.to_ascii_lowercase().as_str() {
        "p256" => Ok(KeyKind::P256),
        "p384" => Ok(KeyKind::P384),
        "rsa2048" => Ok(KeyKind::Rsa2048),
        _ => Err(problem(format!("`{text}` is not a kind of key"), "write p256, p384 or rsa2048")),
    }
}

/// CAs give it out in base64url without padding, some with.
fn parse_hmac(text: &str) -> Result<Option<Secret>, Problem> {
    let url: String = text.trim_end_matches('=').replace('+', "-").replace('/', "_");
    match data_encoding::BASE64URL_NOPAD.decode(url.as_bytes()) {
        Ok(bytes) if !bytes.is_empty() => Ok(Some(Secret(bytes))),
        // The value is a secret, so it is not repeated.
        _ => Err(problem("it is not base64", "write the HMAC key as the CA shows it")),
    }
}

/// A name or an address, with a port or without: 53.
fn parse_server(text: &str) -> Result<String, Problem> {
    let with_port = if text.parse::<std::net::IpAddr>().is_ok() {
        SocketAddr::new(text.parse().map_err(|_| bad_server(text))?, 53).to_string()
    } else if text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()) {
        text.to_owned()
    } else {
        format!("{text}:53")
    };
    if with_port.contains(char::is_whitespace) { Err(bad_server(text)) } else { Ok(with_port) }
}

fn bad_server(text: &str) -> Problem {
    problem(format!("`{text}` is not a server"), "write its name or address, as in ns1.example.com or 10.0.0.1:5353")
}

fn parse_resolver(text: &str) -> Result<Option<SocketAddr>, Problem> {
    let address = text.parse::<SocketAddr>().ok();
    let address = address.or_else(|| text.parse().ok().map(|ip| SocketAddr::new(ip, 53)));
    let hint = "write its address, as in 10.0.0.1 or 127.0.0.1:5353";
    address.map(Some).ok_or_else(|| problem(format!("`{text}` is not an address"), hint))
}

fn parse_wait(text: &str) -> Result<Duration, Problem> {
    parse_duration(text).map_err(|_| {
        problem(format!("`{text}` is not a duration"), "write a whole number and ms, s, m, h or d, as in 2m")
    })
}

/// `algorithm:name:secret`, as `nsupdate -y` has it; base64.
fn parse_tsig(text: &str) -> Result<Option<Tsig>, Problem> {
    let hint = "write ALGORITHM:NAME:SECRET as for `nsupdate -y`, as in hmac-sha256:itsup:c2VjcmV0";
    let mut parts = text.splitn(3, ':');
    let (algorithm, name, secret) = match (parts.next(), parts.next(), parts.next()) {
        (Some(algorithm), Some(name), Some(secret)) if !name.is_empty() => (algorithm, name, secret),
        _ => return Err(problem("it is not a TSIG key", hint)),
    };
    let algorithm = match algorithm.to_ascii_lowercase().as_str() {
        "hmac-sha256" => TsigAlgorithm::Sha256,
        "hmac-sha384" => TsigAlgorithm::Sha384,
        "hmac-sha512" => TsigAlgorithm::Sha512,
        other => {
            let hint = "use hmac-sha256, hmac-sha384 or hmac-sha512";
            return Err(problem(format!("the algorithm `{other}` is not known"), hint));
        }
    };
    match data_encoding::BASE64.decode(secret.as_bytes()) {
        Ok(bytes) if !bytes.is_empty() => {
            let name = name.trim_end_matches('.').to_owned();
            Ok(Some(Tsig { algorithm, name, secret: Secret(bytes) }))
        }
        _ => Err(problem("its secret is not base64", hint)),
    }
}
