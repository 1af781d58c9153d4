//! The Docker engine's API, in control's own words.
//!
//! The only file that knows bollard, with those below it; none of its types leaves it. It must not know what is done
//! with what it reads.

mod acts;
mod images;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error as BollardError;
use bollard::models::{
    ContainerInspectResponse, ContainerState, EventMessage, EventMessageTypeEnum, HealthStatusEnum, NetworkSettings,
};
use bollard::query_parameters::{EventsOptionsBuilder, InspectContainerOptions, ListContainersOptionsBuilder};
use futures_util::{Stream, StreamExt as _};
use tokio::time::timeout;

use crate::observed::{
    Container, ContainerId, Health, LABEL_CONFIG, LABEL_HTTP, LABEL_ONEOFF, LABEL_PORT, LABEL_PROJECT, LABEL_SERVICE,
    parse_http_label, parse_port_label, unix_nanos,
};

pub use acts::Image;

/// Where the engine listens unless `DOCKER_HOST` says otherwise.
const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";
/// How long one answer may take.
const LIMIT: Duration = Duration::from_secs(10);
/// How long reading one container may take: the engine can hang on a single one, and others wait for it.
const INSPECT_LIMIT: Duration = Duration::from_secs(3);
/// The events that may change what is known of a container. Health probes alone make three `exec_*` events each.
const EVENTS: &[&str] = &[
    "create",
    "start",
    "die",
    "destroy",
    "health_status",
    "rename",
    "pause",
    "unpause",
    "update",
    "connect",
    "disconnect",
];

/// Why the engine did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// This address is of a kind that cannot be used.
    #[error("DOCKER_HOST={host}: {why}")]
    Host { host: String, why: &'static str },
    /// It cannot be reached, or the connection broke.
    #[error("the Docker engine at {host} cannot be reached: {why}")]
    Unreachable { host: String, why: String },
    /// It did not answer in time.
    #[error("the Docker engine at {host} did not answer in time")]
    Silent { host: String },
    /// It answered with an error, or with what cannot be understood.
    #[error("the Docker engine refused: {0}")]
    Refused(String),
}

/// What the engine says of itself.
#[derive(Clone, Debug)]
pub struct EngineInfo {
    pub version: String,
    /// Its clock, seconds since 1970.
    pub now: i64,
}

/// Something that happened to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub container: ContainerId,
    pub kind: EventKind,
    /// By the engine's clock, nanoseconds since 1970.
    pub at: i128,
}

/// What happened, as far as it makes a difference before the container is read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// Its process ended.
    Died,
    /// Anything else that may have changed it.
    Changed,
}

/// A handle on a Docker engine. Cheap to clone; it connects anew for every call, so a restarted engine is no matter.
#[derive(Clone, Debug)]
pub struct EngineClient {
    host: Arc<str>,
}

impl EngineClient {
    /// Takes an address as `DOCKER_HOST` has it (`unix://`, `tcp://`, `http://`); `None` or empty is the usual socket.
    pub fn new(docker_host: Option<&str>) -> Result<Self, EngineError> {
        let host = docker_host.filter(|host| !host.is_empty()).unwrap_or(DEFAULT_HOST);
        let why = match host.split_once("://") {
            Some(("unix" | "tcp" | "http", rest)) if !rest.is_empty() => return Ok(Self { host: host.into() }),
            Some(("ssh", _)) => "ssh is not supported; forward the socket and use unix://",
            Some(("https", _)) => "TLS to the engine is not supported; use unix://",
            _ => "use unix:///PATH or tcp://HOST:PORT",
        };
        Err(EngineError::Host { host: host.to_owned(), why })
    }

    /// Takes the address from `DOCKER_HOST`, as the docker command does.
    pub fn from_env() -> Result<Self, EngineError> {
        let host = std::env::var("DOCKER_HOST").ok();
        let remote = host.as_deref().is_some_and(|host| host.starts_with("tcp://"));
        if remote && std::env::var_os("DOCKER_TLS_VERIFY").is_some_and(|v| !v.is_empty()) {
            let why = "DOCKER_TLS_VERIFY is set, and TLS to the engine is not supported; use unix://";
            return Err(EngineError::Host { host: host.unwrap_or_default(), why });
        }
        Self::new(host.as_deref())
    }

    /// Returns the address, as `DOCKER_HOST` has it.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Asks the engine for its version and clock.
    pub async fn info(&self) -> Result<EngineInfo, EngineError> {
        let docker = self.connect()?;
        let info = self.within(docker.info()).await?;
        let nanos = info.system_time.as_deref().and_then(unix_nanos);
        let seconds = nanos.and_then(|n| i64::try_from(n.div_euclid(1_000_000_000)).ok());
        let now = seconds.ok_or_else(|| EngineError::Refused("it does not tell the time".to_owned()))?;
        Ok(EngineInfo { version: info.server_version.unwrap_or_default(), now })
    }

    /// Lists the containers of compose projects, running or not.
    pub async fn list(&self) -> Result<Vec<ContainerId>, EngineError> {
        let docker = self.connect()?;
        let filters = HashMap::from([("label", vec![LABEL_PROJECT])]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        let containers = self.within(docker.list_containers(Some(options))).await?;
        Ok(containers.into_iter().filter_map(|c| c.id).map(|id| ContainerId::from(id.as_str())).collect())
    }

    /// Reads a container, with its address on `network`; `None` where there is none, or it is of no compose project.
    pub async fn inspect(&self, id: &ContainerId, network: &str) -> Result<Option<Container>, EngineError> {
        let docker = self.connect()?;
        let answer =
            timeout(INSPECT_LIMIT, docker.inspect_container(id.as_str(), None::<InspectContainerOptions>)).await;
        match answer {
            Err(_) => Err(EngineError::Silent { host: self.host.to_string() }),
            Ok(Err(BollardError::DockerResponseServerError { status_code: 404, .. })) => Ok(None),
            Ok(Err(error)) => Err(self.error(error)),
            Ok(Ok(found)) => Ok(container(found, network)),
        }
    }

    /// Streams what happens to compose containers and to `network`, from `since` (the engine's clock, seconds) on.
    ///
    /// The engine replays what it still remembers from `since` on, so nothing is missed between a read and the moment
    /// the stream stands. The stream ends with the connection.
    pub fn events(
        &self,
        network: &str,
        since: i64,
    ) -> Result<impl Stream<Item = Result<Event, EngineError>> + Send + Unpin + 'static, EngineError> {
        let docker = self.connect()?;
        let filters = HashMap::from([("type", vec!["container", "network"]), ("event", EVENTS.to_vec())]);
        let options = EventsOptionsBuilder::new().since(&since.to_string()).filters(&filters).build();
        let (client, network) = (self.clone(), network.to_owned());
        Ok(Box::pin(docker.events(Some(options)).filter_map(move |message| {
            let item = match message {
                Ok(message) => event(message, &network).map(Ok),
                Err(error) => Some(Err(client.error(error))),
            };
            std::future::ready(item)
        })))
    }

    /// Returns the error of an event stream that ended.
    pub(super) fn ended(&self) -> EngineError {
        EngineError::Unreachable { host: self.host.to_string(), why: "it closed the event stream".to_owned() }
    }

    /// Makes a client. bollard asks without a version in the path, so the engine answers in its own.
    fn connect(&self) -> Result<Docker, EngineError> {
        let (host, seconds, version) = (self.host.as_ref(), LIMIT.as_secs(), bollard::API_DEFAULT_VERSION);
        let docker = if host.starts_with("unix://") {
            Docker::connect_with_unix(host, seconds, version)
        } else {
            Docker::connect_with_http(host, seconds, version)
        };
        docker.map_err(|error| self.error(error))
    }

    /// Waits for an answer, head and body, so long and no longer.
    async fn within<T>(&self, answer: impl Future<Output = Result<T, BollardError>>) -> Result<T, EngineError> {
        match timeout(LIMIT, answer).await {
            Ok(answer) => answer.map_err(|error| self.error(error)),
            Err(_) => Err(EngineError::Silent { host: self.host.to_string() }),
        }
    }

    fn error(&self, error: BollardError) -> EngineError {
        match error {
            BollardError::RequestTimeoutError => EngineError::Silent { host: self.host.to_string() },
            BollardError::DockerResponseServerError { status_code, message } => {
                EngineError::Refused(format!("{message} ({status_code})"))
            }
            BollardError::JsonDataError { .. } | BollardError::JsonSerdeError { .. } => {
                EngineError::Refused(format!("its answer is not understood: {error}"))
            }
            other => EngineError::Unreachable { host: self.host.to_string(), why: root_cause(&other) },
        }
    }
}

/// Returns the innermost reason, which is the one that says something (`Connection refused`).
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

fn event(message: EventMessage, network: &str) -> Option<Event> {
    let actor = message.actor?;
    let attributes = actor.attributes.unwrap_or_default();
    let (container, kind) = match message.typ? {
        EventMessageTypeEnum::CONTAINER => {
            attributes.get(LABEL_PROJECT)?;
            let died = message.action.as_deref() == Some("die");
            (actor.id?, if died { EventKind::Died } else { EventKind::Changed })
        }
        EventMessageTypeEnum::NETWORK => {
            attributes.get("name").filter(|name| *name == network)?;
            (attributes.get("container")?.clone(), EventKind::Changed)
        }
        _ => return None,
    };
    let at = message.time_nano.unwrap_or_default().into();
    Some(Event { container: ContainerId::from(container.as_str()), kind, at })
}

fn container(found: ContainerInspectResponse, network: &str) -> Option<Container> {
    let config = found.config.unwrap_or_default();
    let labels = config.labels.unwrap_or_default();
    let label = |name: &str| labels.get(name).map(String::as_str);
    let state = found.state.unwrap_or_default();
    let restarting = state.restarting.unwrap_or_default();
    // Docker calls a container that waits to be restarted running as well.
    let running = state.running.unwrap_or_default() && !restarting && !state.dead.unwrap_or_default();
    Some(Container {
        id: ContainerId::from(found.id?.as_str()),
        name: found.name.unwrap_or_default().trim_start_matches('/').to_owned(),
        created: found.created.map(|created| created.to_string()).unwrap_or_default(),
        health: health(&state),
        exit_code: state.exit_code.filter(|_| !running),
        started_at: state.started_at.unwrap_or_default(),
        compose_project: label(LABEL_PROJECT)?.into(),
        compose_service: label(LABEL_SERVICE).map(Into::into),
        oneoff: label(LABEL_ONEOFF).is_some_and(|v| v.eq_ignore_ascii_case("true")),
        running,
        restarting,
        paused: state.paused.unwrap_or_default(),
        address: found.network_settings.filter(|_| running).and_then(|settings| address(settings, network)),
        port: label(LABEL_PORT).and_then(parse_port_label),
        http: label(LABEL_HTTP).and_then(parse_http_label),
        config_hash: label(LABEL_CONFIG).map(str::to_owned),
        image: config.image.unwrap_or_default(),
        image_id: found.image.unwrap_or_default(),
        restart_count: found.restart_count.unwrap_or_default(),
    })
}

fn health(state: &ContainerState) -> Health {
    match state.health.as_ref().and_then(|h| h.status) {
        Some(HealthStatusEnum::STARTING) => Health::Starting,
        Some(HealthStatusEnum::HEALTHY) => Health::Healthy,
        Some(HealthStatusEnum::UNHEALTHY) => Health::Unhealthy,
        Some(HealthStatusEnum::EMPTY | HealthStatusEnum::NONE) | None => Health::None,
    }
}

fn address(settings: NetworkSettings, network: &str) -> Option<IpAddr> {
    let endpoint = settings.networks?.remove(network)?;
    let v4 = endpoint.ip_address.and_then(|a| a.parse().ok());
    v4.or_else(|| endpoint.global_ipv6_address.and_then(|a| a.parse().ok()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::db::Http;

    fn inspected(state: Value, networks: Value, labels: Value) -> Option<Container> {
        let found = json!({
            "Id": "abc", "Name": "/shop-web-1", "Created": "2026-11-22T21:00:00.5Z", "Image": "sha256:1",
            "RestartCount": 2, "State": state,
            "Config": { "Image": "app:1", "Labels": labels },
            "NetworkSettings": { "Networks": networks },
        });
        container(serde_json::from_value(found).unwrap(), "proxynet")
    }

    fn compose() -> Value {
        json!({ LABEL_PROJECT: "shop", LABEL_SERVICE: "shop-web" })
    }

    fn running() -> Value {
        json!({ "Running": true, "StartedAt": "2026-11-22T21:00:01.25Z", "ExitCode": 0 })
    }

    #[test]
    fn a_container_is_read_whole() {
        let labels = json!({
            LABEL_PROJECT: "shop", LABEL_SERVICE: "shop-web", LABEL_PORT: "3000", LABEL_HTTP: "h2c",
            LABEL_CONFIG: "f00", LABEL_ONEOFF: "False",
        });
        let networks = json!({ "default": { "IPAddress": "172.20.0.9" }, "proxynet": { "IPAddress": "172.18.0.3" } });
        let found = inspected(running(), networks, labels).unwrap();
        assert_eq!(found.endpoint_id().as_ref(), "abc@2026-11-22T21:00:01.25Z");
        assert_eq!((found.name.as_str(), found.created.as_str()), ("shop-web-1", "2026-11-22T21:00:00.5Z"));
        assert_eq!((found.address, found.port), (Some([172, 18, 0, 3].into()), Some(3000)));
        assert_eq!((found.http, found.config_hash.as_deref()), (Some(Http::H2c), Some("f00")));
        assert!(found.running && !found.oneoff);
        assert_eq!((found.exit_code, found.restart_count), (None, 2));
    }

    #[test]
    fn addresses_are_those_of_the_one_network() {
        for (networks, wanted) in [
            (json!({ "proxynet": { "IPAddress": "172.18.0.3" } }), Some("172.18.0.3")),
            (json!({ "proxynet": { "IPAddress": "", "GlobalIPv6Address": "fd00::3" } }), Some("fd00::3")),
            (json!({ "proxynet": { "IPAddress": "", "GlobalIPv6Address": "" } }), None),
            (json!({ "other": { "IPAddress": "172.18.0.3" } }), None),
            (Value::Null, None),
        ] {
            let found = inspected(running(), networks.clone(), compose()).unwrap();
            assert_eq!(found.address, wanted.map(|a| a.parse().unwrap()), "{networks}");
        }
    }

    #[test]
    fn states_are_told_apart() {
        for (state, is_running, health) in [
            (json!({ "Running": true }), true, Health::None),
            (json!({ "Running": true, "Restarting": true }), false, Health::None),
            (json!({ "Running": true, "Paused": true }), true, Health::None),
            (json!({ "Running": false, "Dead": true }), false, Health::None),
            (json!({ "Running": true, "Health": { "Status": "starting" } }), true, Health::Starting),
            (json!({ "Running": true, "Health": { "Status": "healthy" } }), true, Health::Healthy),
            (json!({ "Running": true, "Health": { "Status": "unhealthy" } }), true, Health::Unhealthy),
            (json!({ "Running": true, "Health": { "Status": "none" } }), true, Health::None),
            (Value::Null, false, Health::None),
        ] {
            let networks = json!({ "proxynet": { "IPAddress": "172.18.0.3" } });
            let found = inspected(state.clone(), networks, compose()).unwrap();
            assert_eq!((found.running, found.health), (is_running, health), "{state}");
            assert_eq!(found.address.is_some(), is_running, "{state}");
        }
    }

    #[test]
    fn containers_of_no_compose_project_are_not_there() {
        assert_eq!(inspected(running(), Value::Null, json!({ LABEL_SERVICE: "web" })), None);
        assert_eq!(inspected(running(), Value::Null, Value::Null), None);
    }

    #[test]
    fn events_name_the_container_they_are_about() {
        let labelled = json!({ LABEL_PROJECT: "shop" });
        for (kind, action, id, attributes, wanted) in [
            ("container", "die", "abc", labelled.clone(), Some(("abc", EventKind::Died))),
            ("container", "start", "abc", labelled.clone(), Some(("abc", EventKind::Changed))),
            ("container", "health_status: unhealthy", "abc", labelled, Some(("abc", EventKind::Changed))),
            ("container", "die", "abc", json!({}), None),
            (
                "network",
                "connect",
                "net",
                json!({ "name": "proxynet", "container": "abc" }),
                Some(("abc", EventKind::Changed)),
            ),
            ("network", "connect", "net", json!({ "name": "bridge", "container": "abc" }), None),
            ("network", "destroy", "net", json!({ "name": "proxynet" }), None),
            ("volume", "mount", "vol", json!({ "container": "abc" }), None),
        ] {
            let message = json!({
                "Type": kind, "Action": action, "Actor": { "ID": id, "Attributes": attributes }, "timeNano": 5,
            });
            let found = event(serde_json::from_value(message).unwrap(), "proxynet");
            let wanted = wanted.map(|(id, kind)| Event { container: id.into(), kind, at: 5 });
            assert_eq!(found, wanted, "{kind} {action}");
        }
    }

    #[test]
    fn addresses_that_cannot_be_used_are_refused_with_a_way_out() {
        for good in ["unix:///run/docker.sock", "tcp://127.0.0.1:2375", "http://127.0.0.1:2375", ""] {
            assert!(EngineClient::new(Some(good)).is_ok(), "{good}");
        }
        for bad in ["ssh://host", "https://host:2376", "npipe:////./pipe/x", "/run/docker.sock", "unix://"] {
            let error = EngineClient::new(Some(bad)).unwrap_err().to_string();
            assert!(error.contains(bad) && error.contains("use unix://"), "{error}");
        }
        assert_eq!(EngineClient::new(None).unwrap().host(), DEFAULT_HOST);
    }
}
