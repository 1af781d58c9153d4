//! A CA for tests: Pebble, with a DNS of its own, on a loopback address that nobody else uses.
//!
//! So every port has a fixed number and still collides with nobody's.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::harness::{
    Answer, Child, Itsup, PATIENCE, Root, Starter, eventually, plain, read_answer, send, tcp, tls_config, tls_over,
    try_read_answer,
};
use serde_json::{Value, json};

const DIRECTORY: u16 = 14000;
const MANAGEMENT: u16 = 15000;
const DNS: u16 = 8053;
const DNS_MANAGEMENT: u16 = 8055;
/// Where itsup is to listen, as that is where the CA looks.
const HTTP: u16 = 5002;
const HTTPS: u16 = 5001;

/// How a [`Ca`] is to be.
pub(crate) struct Options {
    /// Percent of good nonces that are refused.
    pub(crate) nonces_refused: u8,
    /// Seconds that its certificates are valid.
    pub(crate) valid_for: u64,
    /// Where it looks for files; elsewhere than itsup listens, HTTP-01 fails.
    pub(crate) http_port: u16,
    pub(crate) https_port: u16,
    /// Seconds that it may wait before it looks; 0 for none.
    pub(crate) hesitates: u8,
    /// Whether accounts must be bound to one that there is.
    pub(crate) binding: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            nonces_refused: 5,
            valid_for: 90 * 24 * 60 * 60,
            http_port: HTTP,
            https_port: HTTPS,
            hesitates: 0,
            binding: false,
        }
    }
}

/// A running CA; gone when dropped.
pub(crate) struct Ca {
    ip: Ipv4Addr,
    folder: tempfile::TempDir,
    options: Options,
    dns: SocketAddr,
    pebble: Option<Child>,
    _dns: Child,
}

/// The key that accounts can be bound to.
pub(crate) const BINDING: (&str, &str) = ("kid-1", "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W");

impl Ca {
    #[track_caller]
    pub(crate) fn start() -> Ca {
        Ca::with(Options::default())
    }

    #[track_caller]
    pub(crate) fn with(options: Options) -> Ca {
        let ip = lone_address();
        let folder = tempfile::tempdir().unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let own = rcgen::CertificateParams::new([ip.to_string()]).unwrap().self_signed(&key).unwrap();
        std::fs::write(folder.path().join("ca.pem"), own.pem()).unwrap();
        std::fs::write(folder.path().join("ca.key"), key.serialize_pem()).unwrap();
        let mut command = Command::new("pebble-challtestsrv");
        command.args([
            "-defaultIPv4",
            &ip.to_string(),
            "-defaultIPv6",
            "",
            "-http01",
            "",
            "-https01",
            "",
            "-tlsalpn01",
            "",
        ]);
        command.args(["-dns01", &format!("{ip}:{DNS}"), "-management", &format!("{ip}:{DNS_MANAGEMENT}")]);
        let dns = Child::start("pebble-challtestsrv", &mut command);
        let mut ca = Ca { ip, folder, options, dns: (ip, DNS).into(), pebble: None, _dns: dns };
        ca.resume();
        eventually("its DNS", || std::net::TcpStream::connect((ip, DNS_MANAGEMENT)).ok());
        ca
    }

    /// Starts it (again): it has forgotten everything, and signs with other keys.
    #[track_caller]
    pub(crate) fn resume(&mut self) {
        let path = |name: &str| self.folder.path().join(name);
        let options = &self.options;
        let config = json!({ "pebble": {
            "listenAddress": format!("{}:{DIRECTORY}", self.ip),
            "managementListenAddress": format!("{}:{MANAGEMENT}", self.ip),
            "certificate": path("ca.pem"),
            "privateKey": path("ca.key"),
            "httpPort": options.http_port,
            "tlsPort": options.https_port,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": options.binding,
            "externalAccountMACKeys": if options.binding { json!({ BINDING.0: BINDING.1 }) } else { json!({}) },
            "certificateValidityPeriod": options.valid_for,
        }});
        std::fs::write(path("config.json"), config.to_string()).unwrap();
        let mut command = Command::new("pebble");
        command.arg("-config").arg(path("config.json")).args(["-strict", "-dnsserver", &self.dns.to_string()]);
        command.env("PEBBLE_WFE_NONCEREJECT", options.nonces_refused.to_string()).env("PEBBLE_AUTHZREUSE", "0");
        match options.hesitates {
            0 => command.env("PEBBLE_VA_NOSLEEP", "1"),
            seconds => command.env("PEBBLE_VA_SLEEPTIME", seconds.to_string()),
        };
        self.pebble = Some(Child::start("pebble", &mut command));
        eventually("the CA's directory", || self.try_get(DIRECTORY, "/dir"));
    }

    /// Kills it.
    pub(crate) fn kill(&mut self) {
        self.pebble = None;
    }

    pub(crate) fn ip(&self) -> Ipv4Addr {
        self.ip
    }

    /// What the directory's certificate is checked against.
    pub(crate) fn own_certificate(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    pub(crate) fn directory_address(&self) -> SocketAddr {
        (self.ip, DIRECTORY).into()
    }

    /// The URL of its directory.
    pub(crate) fn directory(&self) -> String {
        format!("https://{}:{DIRECTORY}/dir", self.ip)
    }

    /// The DNS that it asks.
    pub(crate) fn dns(&self) -> SocketAddr {
        self.dns
    }

    /// Has it ask another DNS from its next start on.
    pub(crate) fn use_dns(&mut self, dns: SocketAddr) {
        self.dns = dns;
    }

    /// Its log so far.
    pub(crate) fn log(&self) -> String {
        self.pebble.as_ref().map(Child::stdout).unwrap_or_default()
    }

    /// Waits for a line in its log.
    #[track_caller]
    pub(crate) fn logged(&self, text: &str) -> String {
        self.pebble.as_ref().expect("it runs").line(|line| line.contains(text))
    }

    /// How many orders it has got.
    pub(crate) fn orders(&self) -> usize {
        self.log().matches("Added order").count()
    }

    fn try_get(&self, port: u16, path: &str) -> Option<Answer> {
        let to = SocketAddr::from((self.ip, port));
        let stream = std::net::TcpStream::connect(to).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        let config = tls_config(&self.own_certificate(), &["http/1.1"]);
        let mut stream = tls_over(stream, &self.ip.to_string(), config).ok()?;
        send(&mut stream, "GET", &to.to_string(), path, &[("Connection", "close")], b"");
        try_read_answer(&mut stream, "GET").ok()
    }

    /// The root of the certificates that it issues, in a file.
    #[track_caller]
    pub(crate) fn root(&self) -> PathBuf {
        let pem = self.try_get(MANAGEMENT, "/roots/0").expect("its root").text();
        let path = self.folder.path().join("issuing-root.pem");
        std::fs::write(&path, pem).unwrap();
        path
    }

    /// What it says of a certificate with this serial number.
    #[track_caller]
    pub(crate) fn standing(&self, serial: &str) -> Value {
        self.try_get(MANAGEMENT, &format!("/cert-status-by-serial/{serial}")).expect("an answer").json()
    }

    /// Tells its DNS something: `add-a`, `set-servfail`, `clear-servfail`, `set-txt`...
    #[track_caller]
    pub(crate) fn tell_dns(&self, what: &str, value: &Value) {
        let to = SocketAddr::from((self.ip, DNS_MANAGEMENT));
        let mut stream = plain(to);
        send(
            &mut stream,
            "POST",
            &to.to_string(),
            &format!("/{what}"),
            &[("Connection", "close")],
            value.to_string().as_bytes(),
        );
        let answer = read_answer(&mut stream, "POST");
        assert_eq!(answer.status, 200, "{what}: {}", answer.text());
    }

    /// A hook that sets TXT records in its DNS, as a script in this root.
    pub(crate) fn hook(&self, root: &Root) {
        let to = format!("http://{}:{DNS_MANAGEMENT}", self.ip);
        let script = format!(
            "#!/bin/sh\necho \"$@\" >> \"$(dirname \"$0\")/hook.log\"\ncase $1 in\n\
             add) exec curl -sf -d '{{\"host\":\"'$2'.\",\"value\":\"'$3'\"}}' {to}/set-txt ;;\n\
             remove) exec curl -sf -d '{{\"host\":\"'$2'.\"}}' {to}/clear-txt ;;\nesac\n"
        );
        root.write("hook.sh", script);
        let done = Command::new("chmod").arg("755").arg(root.path("hook.sh")).status().unwrap();
        assert!(done.success());
    }

    /// The lines of .env that make itsup use it.
    pub(crate) fn env(&self) -> String {
        format!(
            "LE_EMAIL=admin@example.com\nACME_DIRECTORY={}\nACME_CA={}\nACME_DNS_RESOLVER={}\nACME_DNS_WAIT=20s\n",
            self.directory(),
            self.own_certificate().display(),
            self.dns()
        )
    }

    /// An itsup to be started on this root, where the CA will look for it.
    pub(crate) fn itsup(&self, root: &Root) -> Starter {
        let address = |port: u16| SocketAddr::from((self.ip, port)).to_string();
        Itsup::on(root).env("ITSUP_HTTP", address(HTTP)).env("ITSUP_HTTPS", address(HTTPS))
    }

    /// One started on a new root with these projects.
    #[track_caller]
    pub(crate) fn serve(&self, db: &str) -> Itsup {
        let root = Root::new();
        root.write(".env", self.env());
        self.itsup(&root).db(db).start()
    }
}

/// A port of this address where nobody listens.
pub(crate) const DEAD_PORT: u16 = 5009;

fn lone_address() -> Ipv4Addr {
    static TAKEN: AtomicU8 = AtomicU8::new(0);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 100 + TAKEN.fetch_add(1, Ordering::Relaxed), high, low)
}

/// A certificate that was shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) der: Vec<u8>,
    pub(crate) names: Vec<String>,
    /// In hexadecimal.
    pub(crate) serial: String,
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} for {:?}", self.serial, self.names)
    }
}

/// What is shown for a name to a client that trusts `roots` alone; `None` where that client would not go on.
pub(crate) fn seen(itsup: &Itsup, name: &str, roots: &std::path::Path) -> Option<Seen> {
    let stream = tls_over(tcp(itsup.https()), name, tls_config(roots, &["http/1.1"])).ok()?;
    let der = stream.session().peer_certificates()?.first()?.to_vec();
    Some(read(&der))
}

/// Waits until a certificate is shown that is trusted and for which `wanted` holds.
#[track_caller]
pub(crate) fn seen_when(itsup: &Itsup, name: &str, roots: &std::path::Path, wanted: impl Fn(&Seen) -> bool) -> Seen {
    eventually(&format!("a certificate for {name}; itsup says: {}", itsup.cli(&["certs"]).stdout), || {
        seen(itsup, name, roots).filter(|seen| wanted(seen))
    })
}

fn read(der: &[u8]) -> Seen {
    use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};
    let (_, cert) = X509Certificate::from_der(der).unwrap();
    let names = cert.subject_alternative_name().unwrap().map(|extension| {
        let names = extension.value.general_names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        });
        names.collect()
    });
    let mut names: Vec<String> = names.unwrap_or_default();
    names.sort();
    Seen { der: der.to_vec(), names, serial: format!("{:x}", cert.tbs_certificate.serial) }
}

/// Hosts that show the welcome page, each a project: `name`, or `name alias alias`.
pub(crate) fn hosts(hosts: &[&str]) -> String {
    let project = |(index, host): (usize, &&str)| {
        let mut names = host.split(' ');
        let domain = names.next().unwrap();
        let aliases: Vec<String> = names.map(|alias| format!("\"{alias}\"")).collect();
        let aliases = aliases.join(", ");
        format!("  - name: p{index}\n    domain: \"{domain}\"\n    aliases: [{aliases}]\n")
    };
    let projects: Vec<String> = hosts.iter().enumerate().map(project).collect();
    format!("projects:\n{}", projects.concat())
}

/// What `itsup certs --json` says of a host.
#[track_caller]
pub(crate) fn told(itsup: &Itsup, host: &str) -> Value {
    let all = itsup.cli(&["--json", "certs"]).ok().json();
    let found = all.as_array().unwrap().iter().find(|certificate| certificate["host"] == host);
    found.unwrap_or_else(|| panic!("{host} is not in {all}")).clone()
}

/// Waits until `itsup certs --json` says of a host what is wanted.
#[track_caller]
pub(crate) fn told_when(itsup: &Itsup, host: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    eventually(&format!("certs to say it of {host}"), || Some(told(itsup, host)).filter(&wanted))
}
