//! db.yml, parsed and valid: what the rest of control works with.

use std::collections::BTreeMap;
use std::fmt;
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
    /// Commands run once, in order, in a container of the new image before a rollout.
    pub before: Vec<String>,
    pub webhook: Option<Webhook>,
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

/// `webhook: {secret, repository, branch}`: whose deliveries may deploy the project.
#[derive(Clone, Default, PartialEq)]
pub struct Webhook {
    pub secret: Option<String>,
    /// `owner/name`.
    pub repository: Option<String>,
    pub branch: Option<String>,
}

/// Never shows the secret.
impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secret = self.secret.as_ref().map(|_| "***");
        let Self { repository, branch, .. } = self;
        f.debug_struct("Webhook")
            .field("secret", &secret)
            .field("repository", repository)
            .field("branch", branch)
            .finish()
    }
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
    /// Files of further environment variables, relative to the project's folder.
    pub env_file: Vec<String>,
    pub volumes: Vec<String>,
    pub command: Option<serde_yaml::Value>,
    pub restart: Option<String>,
    /// Services of this project that are started first.
    pub depends_on: Vec<String>,
    /// Compose's conditions, where `depends_on` is a mapping.
    pub depends_on_conditions: Option<serde_yaml::Mapping>,
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
    pub rollout: Rollout,
    /// Compose's healthcheck, as it stands.
    pub healthcheck: Option<serde_yaml::Mapping>,
    /// Merged into the generated compose service as it stands.
    pub compose: Option<serde_yaml::Mapping>,
    pub line: usize,
}

/// `rollout: {timeout, drain, stream_drain, watch, strategy}`; `None` means the default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rollout {
    /// How long the new containers may take to be ready. 60 s by default.
    pub timeout: Option<Duration>,
    /// How long requests may take to end on the old ones. 30 s by default.
    pub drain: Option<Duration>,
    /// The same for websockets, event streams and passthrough. 5 min by default.
    pub stream_drain: Option<Duration>,
    /// How long the new ones are watched. 10 s by default.
    pub watch: Option<Duration>,
    pub strategy: RolloutStrategy,
}

/// How a service is changed over to a new version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RolloutStrategy {
    /// The new beside the old, then one switch.
    #[default]
    Rolling,
    /// In place, while the proxy holds requests.
    Recreate,
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

impl Db {
    /// Finds a project by its name as written.
    pub fn project(&self, name: &str) -> Option<&Project> {
        self.projects.iter().find(|project| &*project.name == name)
    }
}

impl Project {
    /// Finds a service by its name.
    pub fn service(&self, name: &str) -> Option<&Service> {
        self.services.iter().find(|service| &*service.name == name)
    }

    /// The name of a service's compose service, `<project>-<name>`, both as written.
    pub fn container_service_name(&self, service: &Service) -> String {
        format!("{}-{}", self.name, service.name)
    }

    /// Reports whether traffic leads to a service: `entrypoint`, `routes` or its own `domain` name it.
    pub fn is_routed(&self, service: &Service) -> bool {
        service.domain.is_some()
            || self.entrypoint.as_ref() == Some(&service.name)
            || self.routes.iter().any(|route| route.service == service.name)
    }
}

impl Service {
    /// Reports whether this is a static host: a service without an image.
    pub fn is_static(&self) -> bool {
        self.image.is_none()
    }
}

/// Spells a project's name as compose v2 does: lower case, of `[a-z0-9_-]` alone, no leading `_` or `-`.
pub fn compose_name(name: &str) -> String {
    let kept: String = name.to_lowercase().chars().filter(|c| matches!(c, 'a'..='z' | '0'..='9' | '_' | '-')).collect();
    kept.trim_start_matches(['_', '-']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compose_spelling() {
        for (name, want) in [
            ("itsUP", "itsup"),
            ("home-assistant", "home-assistant"),
            ("_-x_Y", "x_y"),
            ("a.b c", "abc"),
            ("Größe", "gre"),
            ("...", ""),
        ] {
            assert_eq!(compose_name(name), want, "{name}");
        }
    }
}
