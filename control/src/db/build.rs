//! Builds the model of a project from its mirror, once no fault has been found in it.
//!
//! What must stay as it is written (`1.10`, `yes`) is taken from the document's tree; all else from the mirror.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use itsup_proxy::{BasicUser, HeaderEdits, Host, HostPattern, PathPrefix, ProxyVersion};

use super::file;
use super::formats;
use super::model::*;
use super::spans::{NodeId, Tree};
use crate::units;

/// One year, which browsers' preload lists ask for.
const HSTS_DEFAULT: &str = "max-age=31536000";

/// A cause why a project that passed every check cannot be built all the same.
type Failure = String;

/// Builds a project.
pub(super) fn project(tree: &Tree, node: NodeId) -> Result<Project, Failure> {
    let mirror: file::Project = serde_yaml::from_value(tree.value(node)).map_err(text)?;
    let (allow, basic) = match mirror.access {
        Some(access) => (
            each(access.allow, |net| formats::cidr(&net.0).map_err(|misfit| misfit.message))?,
            each(access.basic, |line| BasicUser::parse(&line.0).map_err(text))?,
        ),
        None => Default::default(),
    };
    let nodes = tree.field(node, "services").map(|list| tree.elements(list)).unwrap_or_default();
    let mirrors = mirror.services.unwrap_or_default();
    let services = mirrors.into_iter().zip(nodes).map(|(mirror, node)| service(tree, *node, mirror));
    Ok(Project {
        compose_name: compose_name(&mirror.name.0).into(),
        name: mirror.name.0.into(),
        description: mirror.description,
        enabled: flag(mirror.enabled, true),
        domain: mirror.domain.map(|host| Host::parse(&host.0)).transpose().map_err(text)?,
        aliases: each(mirror.aliases, |host| HostPattern::parse(&host.0).map_err(text))?,
        redirect_from: each(mirror.redirect_from, |host| Host::parse(&host.0).map_err(text))?,
        entrypoint: mirror.entrypoint.map(Arc::from),
        routes: each(mirror.routes, route)?,
        tls: match mirror.tls {
            None => Tls::Auto,
            Some(file::Tls::Internal(file::InternalTls::Internal)) => Tls::Internal,
            Some(file::Tls::Files(files)) => Tls::Files { cert: files.cert.0.into(), key: files.key.0.into() },
        },
        allow,
        basic,
        headers: header_edits(tree, node, mirror.headers)?,
        hsts: tree.field(node, "hsts").and_then(|node| hsts(tree, node)),
        compress: flag(mirror.compress, false),
        services: services.collect::<Result<_, _>>()?,
        before: mirror.before.unwrap_or_default().into_iter().map(|command| command.0).collect(),
        webhook: mirror.webhook.map(|webhook| Webhook {
            secret: webhook.secret.map(|text| text.0),
            repository: webhook.repository.map(|text| text.0),
            branch: webhook.branch.map(|text| text.0),
        }),
        line: tree.place(node).line,
    })
}

fn service(tree: &Tree, node: NodeId, mirror: file::Service) -> Result<Service, Failure> {
    let field = |key| tree.field(node, key);
    let (depends_on, depends_on_conditions) =
        field("depends_on").map(|node| depends_on(tree, node)).unwrap_or_default();
    Ok(Service {
        name: mirror.name.0.into(),
        image: mirror.image.map(|image| image.0),
        port: mirror.port.unwrap_or(8080),
        passthrough: flag(mirror.passthrough, false),
        domain: mirror.domain.map(|host| Host::parse(&host.0)).transpose().map_err(text)?,
        env: field("env").map(|node| assignments(tree, node)).unwrap_or_default(),
        env_file: field("env_file").map(|node| one_or_many(tree, node)).unwrap_or_default(),
        volumes: mirror.volumes.unwrap_or_default().into_iter().map(|volume| volume.0).collect(),
        command: field("command").map(|node| match tree.text(node) {
            Some(line) => line.into(),
            None => one_or_many(tree, node).into(),
        }),
        restart: mirror.restart.map(|policy| policy.0),
        depends_on,
        depends_on_conditions,
        labels: field("labels")
            .map(|node| assignments(tree, node))
            .unwrap_or_default()
            .into_iter()
            .collect::<BTreeMap<_, _>>(),
        replicas: mirror.replicas.unwrap_or(1),
        proxy_protocol: match mirror.proxy_protocol {
            Some(file::ProxyProtocol::V1) => Some(ProxyVersion::V1),
            Some(file::ProxyProtocol::V2) => Some(ProxyVersion::V2),
            None => field("proxyprotocol").and_then(|node| old_proxy_protocol(tree, node)),
        },
        challenge_port: mirror.challenge_port.unwrap_or(80),
        health: mirror.health.map(health).transpose()?,
        timeouts: mirror.timeouts.map(timeouts).transpose()?.unwrap_or_default(),
        max_body: mirror.max_body.map(|size| units::parse_size(&size.0)).transpose().map_err(text)?,
        http: match mirror.http {
            None | Some(file::Http::H1) => Http::H1,
            Some(file::Http::H2c) => Http::H2c,
            Some(file::Http::Https) => Http::Https(field("verify").map(|node| verify(tree, node)).unwrap_or_default()),
        },
        rollout: mirror.rollout.map(rollout).transpose()?.unwrap_or_default(),
        healthcheck: field("healthcheck").and_then(|node| healthcheck(tree, node)),
        compose: compose(tree, node),
        line: tree.place(node).line,
    })
}

fn text(error: impl ToString) -> Failure {
    error.to_string()
}

fn flag(flag: Option<file::Flag>, default: bool) -> bool {
    flag.map_or(default, |flag| flag.0)
}

fn each<T, U>(list: Option<Vec<T>>, make: impl FnMut(T) -> Result<U, Failure>) -> Result<Vec<U>, Failure> {
    list.unwrap_or_default().into_iter().map(make).collect()
}

fn route(route: file::Route) -> Result<PathRoute, Failure> {
    let path = PathPrefix::parse(&route.path.0).map_err(text)?;
    Ok(PathRoute { path, service: route.service.0.into(), strip: flag(route.strip, false) })
}

fn header_edits(tree: &Tree, project: NodeId, mirror: Option<file::Headers>) -> Result<HeaderEdits, Failure> {
    let name = |name: &str| HeaderName::from_bytes(name.as_bytes()).map_err(text);
    let remove = each(mirror.and_then(|headers| headers.remove), |header| name(&header.0))?;
    let set = tree.field(project, "headers").and_then(|headers| tree.field(headers, "set"));
    let set = set.map(|node| assignments(tree, node)).unwrap_or_default().into_iter();
    let set = set.map(|(header, value)| Ok((name(&header)?, HeaderValue::from_str(&value).map_err(text)?)));
    Ok(HeaderEdits { remove, set: set.collect::<Result<_, Failure>>()? })
}

fn hsts(tree: &Tree, node: NodeId) -> Option<Arc<str>> {
    match tree.flag(node) {
        Some(true) => Some(HSTS_DEFAULT.into()),
        Some(false) => None,
        None => tree.str(node).map(Arc::from),
    }
}

/// Names and values as written, in the file's order: a mapping, or a list of `NAME=value`.
///
/// A name without a value has the empty one; of a name that a list has twice, the last counts.
fn assignments(tree: &Tree, node: NodeId) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = Vec::new();
    for (name, value) in tree.entries(node) {
        let value = tree.text(*value).unwrap_or_default();
        all.push((tree.text(*name).unwrap_or_default().to_owned(), value.to_owned()));
    }
    for assignment in tree.elements(node).iter().filter_map(|node| tree.str(*node)) {
        let (name, value) = assignment.split_once('=').unwrap_or((assignment, ""));
        all.retain(|(known, _)| known != name);
        all.push((name.to_owned(), value.to_owned()));
    }
    all
}

fn one_or_many(tree: &Tree, node: NodeId) -> Vec<String> {
    let many = tree.elements(node).iter().filter_map(|node| tree.text(*node));
    tree.text(node).into_iter().chain(many).map(str::to_owned).collect()
}

fn depends_on(tree: &Tree, node: NodeId) -> (Vec<String>, Option<serde_yaml::Mapping>) {
    let keys = tree.entries(node).iter().map(|(key, _)| *key);
    let names = keys.chain(tree.elements(node).iter().copied()).filter_map(|node| tree.text(node));
    (names.map(str::to_owned).collect(), mapping(tree, node))
}

fn old_proxy_protocol(tree: &Tree, node: NodeId) -> Option<ProxyVersion> {
    match (tree.flag(node), tree.text(node)) {
        (Some(false), _) => None,
        (Some(true), _) | (_, Some("2" | "v2")) => Some(ProxyVersion::V2),
        (_, Some("1" | "v1")) => Some(ProxyVersion::V1),
        _ => None,
    }
}

fn duration(text: &str) -> Result<Duration, Failure> {
    units::parse_duration(text).map_err(self::text)
}

fn limit(limit: Option<file::LimitText>) -> Result<Option<Duration>, Failure> {
    limit.map(|limit| duration(&limit.0)).transpose()
}

fn health(mirror: file::Health) -> Result<HealthCheck, Failure> {
    Ok(HealthCheck {
        path: mirror.path.0,
        interval: limit(mirror.interval)?.unwrap_or(Duration::from_secs(10)),
        timeout: limit(mirror.timeout)?.unwrap_or(Duration::from_secs(5)),
    })
}

fn timeouts(mirror: file::Timeouts) -> Result<Timeouts, Failure> {
    Ok(Timeouts { connect: limit(mirror.connect)?, response: limit(mirror.response)?, idle: limit(mirror.idle)? })
}

fn rollout(mirror: file::Rollout) -> Result<Rollout, Failure> {
    let optional = |text: Option<file::DurationText>| text.map(|text| duration(&text.0)).transpose();
    Ok(Rollout {
        timeout: limit(mirror.timeout)?,
        drain: optional(mirror.drain)?,
        stream_drain: optional(mirror.stream_drain)?,
        watch: optional(mirror.watch)?,
        strategy: match mirror.strategy {
            None | Some(file::Strategy::Rolling) => RolloutStrategy::Rolling,
            Some(file::Strategy::Recreate) => RolloutStrategy::Recreate,
        },
    })
}

fn verify(tree: &Tree, node: NodeId) -> VerifySetting {
    match (tree.flag(node), tree.str(node)) {
        (Some(false), _) => VerifySetting::Nothing,
        (None, Some(file)) => VerifySetting::Ca(PathBuf::from(file)),
        _ => VerifySetting::System,
    }
}

fn mapping(tree: &Tree, node: NodeId) -> Option<serde_yaml::Mapping> {
    match tree.value(node) {
        serde_yaml::Value::Mapping(mapping) => Some(mapping),
        _ => None,
    }
}

/// Compose's healthcheck, its command's words as they are written.
fn healthcheck(tree: &Tree, node: NodeId) -> Option<serde_yaml::Mapping> {
    let mut healthcheck = mapping(tree, node)?;
    if let Some(test) = tree.field(node, "test").filter(|test| !tree.elements(*test).is_empty()) {
        healthcheck.insert("test".into(), one_or_many(tree, test).into());
    }
    Some(healthcheck)
}

/// What is merged into the compose service: `compose`, over the old tool's `additional_properties`.
fn compose(tree: &Tree, service: NodeId) -> Option<serde_yaml::Mapping> {
    let block = |key| tree.field(service, key).and_then(|node| mapping(tree, node));
    match (block("additional_properties"), block("compose")) {
        (Some(mut old), Some(new)) => {
            old.extend(new);
            Some(old)
        }
        (old, new) => new.or(old),
    }
}
