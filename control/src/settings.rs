//! Settings: flags, then the environment, then `.env`, made into one typed value.
//!
//! Pure but for [`Sources::read`] and [`Settings::make_log_folder`]; knows nothing of what the settings are used for. A fault names the
//! variable, where it was set and what to write instead, and all faults come at once.

pub mod acme;
mod api;
mod env_file;
mod root;
#[cfg(test)]
mod tests;
mod variable;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use itsup_proxy::AccessLogTarget;

pub use acme::Acme;
pub use api::{ApiKey, ApiRules, Secret};
pub use env_file::EnvFile;
pub use root::Root;
pub use variable::Variable;

use crate::files;
use crate::units::parse_duration;

/// Everything that can be set outside db.yml.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The root folder: db.yml, .env, certs/, upstream/, data/ and logs/.
    pub root: Root,
    /// `ITSUP_HTTP`: the plain listener. `[::]:80`.
    pub http: SocketAddr,
    /// `ITSUP_HTTPS`: the TLS listener. `[::]:443`.
    pub https: SocketAddr,
    /// `ITSUP_PUBLIC_HTTPS_PORT`: the port that redirects to https name. 443.
    pub public_https_port: u16,
    /// `ITSUP_API`: where the API listens on TCP; `None` for `off`. `127.0.0.1:8888`.
    pub api: Option<SocketAddr>,
    /// What it allows.
    pub api_rules: ApiRules,
    /// `ITSUP_TRUSTED_PROXIES`: peers whose forwarded headers count.
    pub trusted_proxies: Vec<IpNet>,
    /// `ITSUP_PROXY_PROTOCOL`: peers that must send a PROXY header.
    pub proxy_protocol: Vec<IpNet>,
    /// `ITSUP_ACCESS_LOG`. `logs/access.log`.
    pub access_log: AccessLogTarget,
    /// `ITSUP_GRACE`: how long a shutdown waits for traffic to end. 30 s.
    pub grace: Duration,
    /// `ITSUP_DOCKER`: whether containers are looked for at all.
    pub docker: bool,
    /// `DOCKER_HOST`: where the engine is, as Docker's own tools read it.
    pub docker_host: Option<String>,
    /// `ITSUP_THREADS`: data threads. The cores.
    pub threads: NonZeroUsize,
    /// `LE_*` and `ACME_*`; `None` without `LE_EMAIL`.
    pub acme: Option<Acme>,
    /// How itsUP updates itself.
    pub update: UpdateSettings,
}

/// How itsUP updates itself from its git repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpdateSettings {
    /// `ITSUP_ENV` (or `PYTHON_ENV`, as it was called before) is `production`: without that it does not.
    pub production: bool,
    /// `ITSUP_SOURCE`: the folder with its repository. The root folder.
    pub source: PathBuf,
    /// `ITSUP_BRANCH`: what is followed. `main`.
    pub branch: String,
    /// `ITSUP_BUILD`: a shell command that makes `release/itsup` in the folder `CARGO_TARGET_DIR`. `bin/build-release.sh`.
    pub build: String,
}

/// `ITSUP_ROOT` is known too, though it is the command line's: it says where `.env` is, so it cannot be set there.
const ROOT_VARIABLE: &str = "ITSUP_ROOT";

/// Where a value was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// On the command line.
    Flag,
    /// In the environment.
    Environment,
    /// On this line of `.env`.
    File { path: PathBuf, line: usize },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Flag => f.write_str("command line"),
            Source::Environment => f.write_str("environment"),
            Source::File { path, line } => write!(f, "{}:{line}", path.display()),
        }
    }
}

/// What is wrong with one setting, or with one line of `.env`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Fault {
    /// The variable, where the fault is in one.
    pub variable: Option<&'static str>,
    /// Where it was set.
    pub source_of_value: Source,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub hint: Option<String>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.source_of_value)?;
        if let Some(variable) = self.variable {
            write!(f, "{variable}: ")?;
        }
        f.write_str(&self.message)?;
        if let Some(hint) = &self.hint {
            write!(f, " (hint: {hint})")?;
        }
        Ok(())
    }
}

/// Where settings come from: flags and the environment as they were at start, and `.env` as it is now.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    flags: BTreeMap<Variable, String>,
    environment: BTreeMap<Variable, String>,
    file: EnvFile,
    path: PathBuf,
}

impl Sources {
    /// Flags and the process's environment, without a `.env` yet.
    pub fn new(flags: BTreeMap<Variable, String>, environment: impl Fn(&str) -> Option<String>) -> Sources {
        let environment =
            Variable::ALL.into_iter().filter_map(|v| environment(v.name()).map(|text| (v, text))).collect();
        Sources { flags, environment, file: EnvFile::default(), path: PathBuf::new() }
    }

    /// Reads `.env` of this root anew; none there is as good as an empty one.
    pub fn read(&mut self, root: &Root) -> Result<(), Vec<Fault>> {
        let path = root.env();
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                return Err(vec![Fault {
                    variable: None,
                    source_of_value: Source::File { path, line: 1 },
                    message: format!("cannot be read: {error}"),
                    hint: None,
                }]);
            }
        };
        self.take(path, &bytes)
    }

    /// Takes these bytes for the `.env` at this path.
    pub fn take(&mut self, path: PathBuf, bytes: &[u8]) -> Result<(), Vec<Fault>> {
        self.file = EnvFile::parse(bytes).map_err(|faults| {
            let fault = |fault: env_file::LineFault| Fault {
                variable: None,
                source_of_value: Source::File { path: path.clone(), line: fault.line },
                message: fault.message,
                hint: fault.hint,
            };
            faults.into_iter().map(fault).collect::<Vec<_>>()
        })?;
        self.path = path;
        Ok(())
    }

    /// Whether this has a value, from wherever.
    pub fn sets(&self, variable: Variable) -> bool {
        self.find(variable).is_some()
    }

    /// The value that wins, and where it is from. An empty one counts as not set.
    fn find(&self, variable: Variable) -> Option<(&str, Source)> {
        let flag = self.flags.get(&variable).map(|text| (text.as_str(), Source::Flag));
        let environment = || self.environment.get(&variable).map(|text| (text.as_str(), Source::Environment));
        let file = || {
            let (text, line) = self.file.find(variable.name())?;
            Some((text, Source::File { path: self.path.clone(), line }))
        };
        flag.or_else(|| environment().filter(|(text, _)| !text.trim().is_empty()))
            .or_else(|| file().filter(|(text, _)| !text.trim().is_empty()))
    }

    /// Names in `.env` that look like ours and are not.
    fn unknown(&self) -> Vec<Fault> {
        let known = |name: &str| name == ROOT_VARIABLE || Variable::ALL.iter().any(|v| v.name() == name);
        let mut faults = Vec::new();
        for (name, line) in self.file.names().filter(|(name, _)| name.starts_with("ITSUP_")) {
            let source_of_value = Source::File { path: self.path.clone(), line };
            if name == ROOT_VARIABLE {
                faults.push(Fault {
                    variable: Some(ROOT_VARIABLE),
                    source_of_value,
                    message: "cannot be set in .env, as it says where .env is".into(),
                    hint: Some("use --root or the environment".into()),
                });
            } else if !known(name) {
                let near = Variable::ALL
                    .iter()
                    .map(|v| (strsim::damerau_levenshtein(v.name(), name), v.name()))
                    .min()
                    .filter(|(distance, _)| *distance <= 3);
                faults.push(Fault {
                    variable: None,
                    source_of_value,
                    message: format!("unknown setting {name}"),
                    hint: near.map(|(_, name)| format!("did you mean {name}?")),
                });
            }
        }
        faults
    }
}

impl Settings {
    /// Makes settings of these sources; all faults at once. `cores` is what `ITSUP_THREADS` defaults to.
    pub fn resolve(root: Root, sources: &Sources, cores: NonZeroUsize) -> Result<Settings, Vec<Fault>> {
        let mut reader = Reader { sources, faults: sources.unknown() };
        let any = |port| SocketAddr::new(IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED), port);
        let settings = Settings {
            http: reader.value(Variable::Http, any(80), parse_address),
            https: reader.value(Variable::Https, any(443), parse_address),
            public_https_port: reader.value(Variable::PublicHttpsPort, 443, parse_port),
            api: reader.value(Variable::Api, Some(SocketAddr::from(([127, 0, 0, 1], 8888))), parse_api),
            api_rules: api::read(&mut reader),
            trusted_proxies: reader.value(Variable::TrustedProxies, Vec::new(), parse_networks),
            proxy_protocol: reader.value(Variable::ProxyProtocol, Vec::new(), parse_networks),
            access_log: reader.value(
                Variable::AccessLog,
                AccessLogTarget::File(root.path().join("logs/access.log")),
                |text| Ok(parse_access_log(&root, text)),
            ),
            grace: reader.value(Variable::Grace, Duration::from_secs(30), parse_grace),
            docker: reader.value(Variable::Docker, true, parse_switch),
            docker_host: reader.value(Variable::DockerHost, None, |text| Ok(Some(text.to_owned()))),
            threads: reader.value(Variable::Threads, cores, parse_threads),
            acme: acme::read(&mut reader, &root),
            update: UpdateSettings {
                production: reader.value(Variable::Env, false, is_production)
                    || reader.value(Variable::PythonEnv, false, is_production),
                source: reader.value(Variable::SourceFolder, root.path().to_owned(), |text| Ok(root.path().join(text))),
                branch: reader.value(Variable::Branch, "main".to_owned(), parse_branch),
                build: reader.value(Variable::Build, "bin/build-release.sh".to_owned(), |text| Ok(text.to_owned())),
            },
            root,
        };
        if reader.faults.is_empty() { Ok(settings) } else { Err(reader.faults) }
    }

    /// Makes the folder that the access log's file is to be in.
    pub fn make_log_folder(&self) -> std::io::Result<()> {
        match &self.access_log {
            AccessLogTarget::File(path) => path.parent().map_or(Ok(()), |folder| files::make_folder(folder, 0o755)),
            AccessLogTarget::Off | AccessLogTarget::Stdout => Ok(()),
        }
    }

    /// What a reload makes of new settings: those that hold at once, and the variables that changed and need a restart.
    pub fn reloaded(&self, new: &Settings) -> (Settings, Vec<Variable>) {
        let settings = Settings {
            public_https_port: new.public_https_port,
            trusted_proxies: new.trusted_proxies.clone(),
            proxy_protocol: new.proxy_protocol.clone(),
            access_log: new.access_log.clone(),
            grace: new.grace,
            acme: new.acme.clone(),
            api_rules: new.api_rules.clone(),
            update: new.update.clone(),
            ..self.clone()
        };
        let changed = [
            (Variable::Http, self.http != new.http),
            (Variable::Https, self.https != new.https),
            (Variable::Api, self.api != new.api),
            (Variable::Docker, self.docker != new.docker),
            (Variable::DockerHost, self.docker_host != new.docker_host),
            (Variable::Threads, self.threads != new.threads),
        ];
        (settings, changed.into_iter().filter(|(_, changed)| *changed).map(|(variable, _)| variable).collect())
    }
}

/// Where there is no IPv6, the address that stands for "all of this host" is IPv4's.
pub fn without_ipv6(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V6(ip) if ip.is_unspecified() => SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()),
        _ => address,
    }
}

struct Reader<'a> {
    sources: &'a Sources,
    faults: Vec<Fault>,
}

impl Reader<'_> {
    fn value<T>(&mut self, variable: Variable, default: T, parse: impl Fn(&str) -> Result<T, Problem>) -> T {
        let Some((text, source_of_value)) = self.sources.find(variable) else { return default };
        match parse(text.trim()) {
            Ok(value) => value,
            Err(Problem { message, hint }) => {
                let hint = Some(hint);
                self.faults.push(Fault { variable: Some(variable.name()), source_of_value, message, hint });
                default
            }
        }
    }
}

struct Problem {
    message: String,
    hint: String,
}

fn problem(message: impl Into<String>, hint: impl Into<String>) -> Problem {
    Problem { message: message.into(), hint: hint.into() }
}

fn parse_address(text: &str) -> Result<SocketAddr, Problem> {
    let hint = "write ADDRESS:PORT, as in [::]:80, 0.0.0.0:80 or 127.0.0.1:8080";
    // `:80` and `80` are how other tools say "all addresses".
    let port_alone = text.strip_prefix(':').unwrap_or(text);
    if let Ok(port) = port_alone.parse::<u16>() {
        return Err(problem(format!("`{text}` has no address"), format!("write [::]:{port}")));
    }
    text.parse().map_err(|_| problem(format!("`{text}` is not an address with a port"), hint))
}

fn parse_api(text: &str) -> Result<Option<SocketAddr>, Problem> {
    if is_off(text) {
        return Ok(None);
    }
    parse_address(text)
        .map(Some)
        .map_err(|fault| problem(fault.message, "write ADDRESS:PORT, as in 127.0.0.1:8888, or off"))
}

fn parse_port(text: &str) -> Result<u16, Problem> {
    match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(problem(format!("`{text}` is not a port"), "write a number from 1 to 65535")),
    }
}

fn parse_networks(text: &str) -> Result<Vec<IpNet>, Problem> {
    let parts = text.split([',', ' ', '\t']).filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let network = part.parse::<IpNet>().or_else(|_| part.parse::<IpAddr>().map(IpNet::from));
            network.map(|network| network.trunc()).map_err(|_| {
                problem(
                    format!("`{part}` is not a network"),
                    "write networks with commas between them, as in 10.0.0.0/8,192.168.1.2,fd00::/8",
                )
            })
        })
        .collect()
}

fn parse_access_log(root: &Root, text: &str) -> AccessLogTarget {
    match text {
        _ if is_off(text) => AccessLogTarget::Off,
        "stdout" | "-" => AccessLogTarget::Stdout,
        path => AccessLogTarget::File(root.path().join(path)),
    }
}

fn parse_grace(text: &str) -> Result<Duration, Problem> {
    parse_duration(text).map_err(|_| {
        problem(format!("`{text}` is not a duration"), "write a whole number and ms, s, m, h or d, as in 30s")
    })
}

fn parse_switch(text: &str) -> Result<bool, Problem> {
    match text.to_ascii_lowercase().as_str() {
        "on" | "yes" | "true" | "1" => Ok(true),
        other if is_off(other) => Ok(false),
        _ => Err(problem(format!("`{text}` is neither on nor off"), "write on or off")),
    }
}

/// Anything but production is a place to try things out.
fn is_production(text: &str) -> Result<bool, Problem> {
    Ok(text.eq_ignore_ascii_case("production"))
}

fn parse_branch(text: &str) -> Result<String, Problem> {
    let sound = !text.starts_with('-') && !text.contains(|c: char| c.is_whitespace() || c.is_control());
    if sound {
        Ok(text.to_owned())
    } else {
        Err(problem(format!("`{text}` is not a branch"), "write a name, as in main"))
    }
}

fn is_off(text: &str) -> bool {
    ["off", "no", "false", "0", "none"].iter().any(|word| text.eq_ignore_ascii_case(word))
}

fn parse_threads(text: &str) -> Result<NonZeroUsize, Problem> {
    text.parse::<NonZeroUsize>()
        .ok()
        .filter(|threads| threads.get() <= 1024)
        .ok_or_else(|| problem(format!("`{text}` is not a number of threads"), "write a number from 1 to 1024"))
}
