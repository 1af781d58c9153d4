//! db.yml, parsed and valid: what the rest of control works with.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use itsup_proxy::{BasicUser, HeaderEdits, Host, HostPattern, PathPrefix, ProxyVersion};

/// The whole of db.yml.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Db {
    /// In the file's order; those with `enabled: false` are there too.
    pub projects: Vec<Project>,
}

/// A project: a set of services and the hosts that lead to them.
#[derive(Clone, Debug, PartialEq)]
pub struct Project {
    /// As written; unique, also in compose's spelling.
    pub name: Arc<str>,
    /// The compose project's name: compose's normalised spelling of `name` (`itsUP` is `itsup`).
    pub compose_name: Arc<str>,
    pub description: Option<String>,
    /// False takes the project out of service: no routes, no stack.
    pub enabled: bool,
    pub domain: Option<Host>,
    /// Further hosts that do what `domain` does.
    pub aliases: Vec<HostPattern>,
    /// Hosts that redirect to `domain`.
    pub redirect_from: Vec<Host>,
    /// The service that `domain` leads to.
    pub entrypoint: Option<Arc<str>>,
    /// Path routes; what none of them matches goes to `entrypoint`.
    pub routes: Vec<PathRoute>,
    pub tls: Tls,
    pub allow: Vec<IpNet>,
    pub basic: Vec<BasicUser>,
    pub headers: HeaderEdits,
    /// The `Strict-Transport-Security` value.
    pub hsts: Option<Arc<str>>,
    pub compress: bool,
    pub services: Vec<Service>,
    /// Line of the project in db.yml, from 1.
    pub line: usize,
}

/// `routes: [{path, service, strip}]`.
#[derive(Clone, Debug, PartialEq)]
pub struct PathRoute {
    pub path: PathPrefix,
    pub service: Arc<str>,
    pub strip: bool,
}

/// Where a project's certificate comes from.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Tls {
    /// Files under `certs/`, else the internal CA (or ACME).
    #[default]
    Auto,
    /// `tls: internal`: always the internal CA.
    Internal,
    /// `tls: {cert, key}`: the user's own files, relative to the root.
    Files { cert: PathBuf, key: PathBuf },
}

/// A service: containers of a compose stack, or a static host.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// The service's name; a static host's address or DNS name where there is no image.
    pub name: Arc<str>,
    /// The container image; `None` makes it a static host at `name:port`.
    pub image: Option<String>,
    /// 8080 by default.
    pub port: u16,
    /// TLS of the host that leads here goes through untouched.
    pub passthrough: bool,
    /// A host that leads to this service.
    pub domain: Option<Host>,
    /// Environment, in the file's order, values as compose will see them.
    pub env: Vec<(String, String)>,
    pub volumes: Vec<String>,
    pub command: Option<serde_yaml::Value>,
    pub restart: Option<String>,
    pub depends_on: Vec<String>,
    pub labels: BTreeMap<String, String>,
    /// Containers to run. 1 by default.
    pub replicas: u32,
    pub proxy_protocol: Option<ProxyVersion>,
    /// Where a passthrough host's HTTP-01 challenges go. 80 by default.
    pub challenge_port: u16,
    pub health: Option<HealthCheck>,
    pub timeouts: Timeouts,
    /// Bytes.
    pub max_body: Option<u64>,
    pub http: Http,
    /// Merged into the generated compose service as it stands.
    pub compose: Option<serde_yaml::Mapping>,
    pub line: usize,
}

/// `health: {path, interval, timeout}`.
#[derive(Clone, Debug, PartialEq)]
pub struct HealthCheck {
    pub path: String,
    pub interval: Duration,
    pub timeout: Duration,
}

/// `timeouts: {connect, response, idle}`; `None` means the proxy's default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timeouts {
    pub connect: Option<Duration>,
    pub response: Option<Duration>,
    pub idle: Option<Duration>,
}

/// `http: h1|h2c|https` with `verify`.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Http {
    #[default]
    H1,
    H2c,
    Https(VerifySetting),
}

/// `verify: true | false | FILE`.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum VerifySetting {
    #[default]
    System,
    Nothing,
    /// A CA file, PEM, relative to the root.
    Ca(PathBuf),
}
