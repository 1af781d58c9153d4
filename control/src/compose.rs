//! From a project to its compose document, and to the hash that says whether a service has changed.
//!
//! Pure. It must not know what is written where (`artifacts.rs`), what runs, or how compose is called. Texts are passed on as they
//! are: a `$` is compose's to read.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};
use serde_yaml::{Mapping, Value};

use crate::active::compose_service;
use crate::db::{Project, Service};
use crate::observed::{LABEL_CONFIG, LABEL_HTTP, LABEL_PORT, NETWORK, http_label};
use crate::yaml;

pub use written::Written;

mod merge;
mod variables;
mod written;

#[cfg(test)]
mod tests;

/// What the first line of a compose file of ours says.
pub const HEADER: &str = "# Written by itsup from db.yml. What is changed here is lost.\n";
/// Keys of a compose service that say nothing about a single container: changing them replaces none.
const NOT_OF_CONTAINERS: [&str; 5] = ["depends_on", "scale", "pull_policy", "profiles", "build"];

/// A project's compose document, and what is to be known of its services.
#[derive(Clone, Debug, PartialEq)]
pub struct Stack {
    /// The project, as written in db.yml.
    pub project: Arc<str>,
    /// The same to compose.
    pub compose_name: Arc<str>,
    /// Those with an image, dependencies before dependents.
    pub services: Vec<StackService>,
    /// Compose's names of the services in db.yml's order, so that a new dependency moves nothing in the file.
    order: Vec<Arc<str>>,
}

/// A service of a stack.
#[derive(Clone, Debug, PartialEq)]
pub struct StackService {
    /// The service's name in db.yml.
    pub name: Arc<str>,
    /// Its name in the compose file.
    pub compose_service: Arc<str>,
    /// The image that it asks for.
    pub image: String,
    /// Whether compose builds the image, so that there is nothing to pull.
    pub built: bool,
    /// How many containers it has.
    pub replicas: u32,
    /// Whether traffic leads to it.
    pub routed: bool,
    /// Its hash; two services with the same one are the same.
    pub config: ConfigHash,
    /// The hash of what db.yml says; another one than `config` only where a rollback holds.
    pub wanted: ConfigHash,
    /// Whether a rollback holds it where it is.
    pub pinned: bool,
    /// What must be there before it is started, by names of db.yml.
    pub depends_on: Vec<Dependency>,
    /// Folders of its volumes, relative to the project's own.
    pub folders: Vec<PathBuf>,
    /// Its part of the compose file.
    pub document: Mapping,
}

/// A service that another one waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependency {
    /// By its name in db.yml.
    pub service: Arc<str>,
    pub condition: Condition,
}

/// What a dependency must have come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    #[default]
    Started,
    Healthy,
    /// It has run and ended well.
    Completed,
}

/// The canonical hash of all that matters for a service's containers: the label `itsup.config`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ConfigHash(String);

impl ConfigHash {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The files of a project's folder that have a say in what its containers are given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProjectFiles {
    /// `.env`, from which compose fills in `${X}`.
    pub env: Option<String>,
    /// The files that `env_file` names, as far as they are there.
    pub env_files: BTreeMap<String, String>,
}

impl Stack {
    /// The stack of a project that has none.
    pub fn empty(project: &Project) -> Stack {
        let (compose_name, services, order) = (project.compose_name.clone(), Vec::new(), Vec::new());
        Stack { project: project.name.clone(), compose_name, services, order }
    }

    /// Whether the project has no containers.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// Finds a service by its name in db.yml.
    pub fn service(&self, name: &str) -> Option<&StackService> {
        self.services.iter().find(|service| &*service.name == name)
    }

    /// Puts an older document in place of what db.yml says of a service: what a rollback does.
    pub fn pin(&mut self, name: &str, document: Mapping) {
        if let Some(service) = self.services.iter_mut().find(|service| &*service.name == name) {
            service.image = image(&document);
            service.config = written::config(&document).unwrap_or_else(|| service.wanted.clone());
            service.document = document;
            service.pinned = true;
        }
    }

    /// Renders the compose file: the same project, the same bytes.
    pub fn text(&self) -> String {
        let of_file = |name: &Arc<str>| self.services.iter().find(|service| service.compose_service == *name);
        let services = self.order.iter().filter_map(of_file);
        let services: Mapping =
            services.map(|one| (one.compose_service.as_ref().into(), one.document.clone().into())).collect();
        let (networks, volumes) = (networks(&services), volumes(&services));
        let mut document = mapping([
            ("name", self.compose_name.as_ref().into()),
            ("services", services.into()),
            ("networks", networks.into()),
        ]);
        if !volumes.is_empty() {
            document.insert("volumes".into(), volumes.into());
        }
        format!("{HEADER}{}", yaml::render(&document))
    }
}

/// Makes a project's stack.
pub fn stack(project: &Project, files: &ProjectFiles) -> Stack {
    let services = project.services.iter().filter(|service| !service.is_static());
    let services: Vec<StackService> = services.map(|one| service(project, one, files)).collect();
    Stack {
        project: project.name.clone(),
        compose_name: project.compose_name.clone(),
        order: services.iter().map(|service| service.compose_service.clone()).collect(),
        services: in_order(services),
    }
}

fn service(project: &Project, service: &Service, files: &ProjectFiles) -> StackService {
    let mut document = generated(project, service);
    if let Some(over) = &service.compose {
        merge::into(&mut document, over);
    }
    if document.contains_key("network_mode") {
        document.remove("networks");
    }
    let replicas = replicas(&document).unwrap_or(service.replicas);
    if replicas != 1 && document.get("scale").is_none() {
        merge::into(&mut document, &mapping([("deploy", mapping([("replicas", u64::from(replicas).into())]).into())]));
    }
    label(&mut document, LABEL_PORT, &service.port.to_string());
    label(&mut document, LABEL_HTTP, &http_label(&service.http));
    let config = hash(&document, files);
    label(&mut document, LABEL_CONFIG, config.as_str());
    StackService {
        name: service.name.clone(),
        compose_service: compose_service(project, service).into(),
        image: image(&document),
        built: document.contains_key("build"),
        replicas,
        routed: project.is_routed(service),
        wanted: config.clone(),
        config,
        pinned: false,
        depends_on: dependencies(service),
        folders: service.volumes.iter().filter_map(|volume| own_folder(volume)).collect(),
        document,
    }
}

/// Sets a label of ours, over whatever the user may have written.
fn label(document: &mut Mapping, name: &str, value: &str) {
    merge::into(document, &mapping([("labels", mapping([(name, value.into())]).into())]));
}

/// What db.yml's own keys say, in compose's words.
fn generated(project: &Project, service: &Service) -> Mapping {
    let mut document = Mapping::new();
    let mut put = |key: &str, value: Value| drop(document.insert(key.into(), value));
    put("image", service.image.clone().unwrap_or_default().into());
    if let Some(command) = &service.command {
        put("command", command.clone());
    }
    if !service.env_file.is_empty() {
        put("env_file", service.env_file.clone().into());
    }
    if !service.env.is_empty() {
        put("environment", mapping(service.env.iter().map(|(k, v)| (k.as_str(), v.as_str().into()))).into());
    }
    put("restart", service.restart.as_deref().unwrap_or("unless-stopped").into());
    put("expose", Value::Sequence(vec![service.port.to_string().into()]));
    put("networks", Value::Sequence(vec!["default".into(), NETWORK.into()]));
    if !service.volumes.is_empty() {
        put("volumes", service.volumes.iter().map(|volume| compose_volume(volume)).collect::<Vec<_>>().into());
    }
    if let Some(healthcheck) = &service.healthcheck {
        put("healthcheck", healthcheck.clone().into());
    }
    let name = |other: &str| format!("{}-{other}", project.name);
    match &service.depends_on_conditions {
        Some(conditions) => {
            let condition = |(other, value): (&Value, &Value)| {
                let mut value = value.as_mapping().cloned().unwrap_or_default();
                if !value.contains_key("condition") {
                    value.insert("condition".into(), "service_started".into());
                }
                (Value::from(name(other.as_str().unwrap_or_default())), value.into())
            };
            put("depends_on", Mapping::from_iter(conditions.iter().map(condition)).into());
        }
        None if service.depends_on.is_empty() => {}
        None => put("depends_on", service.depends_on.iter().map(|other| name(other)).collect::<Vec<_>>().into()),
    }
    // Never empty, once ours are added.
    put("labels", mapping(service.labels.iter().map(|(k, v)| (k.as_str(), v.as_str().into()))).into());
    document
}

fn mapping<'a>(entries: impl IntoIterator<Item = (&'a str, Value)>) -> Mapping {
    entries.into_iter().map(|(key, value)| (key.into(), value)).collect()
}

/// `/x` is kept in the project's folder; all else is compose's own syntax.
fn compose_volume(volume: &str) -> Value {
    match own_folder(volume) {
        Some(_) => format!(".{volume}:{volume}").into(),
        None => volume.into(),
    }
}

fn own_folder(volume: &str) -> Option<PathBuf> {
    let relative = volume.trim_start_matches('/');
    (volume.starts_with('/') && !volume.contains(':') && !relative.is_empty()).then(|| relative.into())
}

fn image(document: &Mapping) -> String {
    document.get("image").and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn replicas(document: &Mapping) -> Option<u32> {
    let deploy = document.get("deploy").and_then(|deploy| deploy.get("replicas"));
    document.get("scale").or(deploy)?.as_u64()?.try_into().ok()
}

fn dependencies(service: &Service) -> Vec<Dependency> {
    let condition = |name: &str| {
        let told = service.depends_on_conditions.as_ref()?.get(name)?.get("condition")?.as_str()?;
        Some(match told {
            "service_healthy" => Condition::Healthy,
            "service_completed_successfully" => Condition::Completed,
            _ => Condition::Started,
        })
    };
    let dependency =
        |name: &String| Dependency { service: name.as_str().into(), condition: condition(name).unwrap_or_default() };
    service.depends_on.iter().map(dependency).collect()
}

/// Puts dependencies before dependents, and keeps the order otherwise. What goes in circles stays as it was: compose refuses it.
fn in_order(mut services: Vec<StackService>) -> Vec<StackService> {
    let mut ordered: Vec<StackService> = Vec::new();
    while !services.is_empty() {
        let waits = |service: &StackService| {
            service.depends_on.iter().any(|needed| services.iter().any(|other| other.name == needed.service))
        };
        let next = services.iter().position(|service| !waits(service)).unwrap_or_default();
        ordered.push(services.remove(next));
    }
    ordered
}

/// The top-level networks: the shared one, and those that services name.
fn networks(services: &Mapping) -> Mapping {
    let mut networks = mapping([(NETWORK, mapping([("name", NETWORK.into()), ("external", true.into())]).into())]);
    for named in services.values().filter_map(|service| service.get("networks")) {
        let list = named.as_sequence().into_iter().flatten();
        let keys = named.as_mapping().into_iter().flat_map(Mapping::keys);
        for name in list.chain(keys).filter(|name| name.as_str() != Some("default")) {
            networks.entry(name.clone()).or_insert(Value::Null);
        }
    }
    networks
}

/// The top-level volumes: those that services name.
fn volumes(services: &Mapping) -> Mapping {
    let lists = services.values().filter_map(|service| service.get("volumes")?.as_sequence());
    let names: BTreeSet<&str> = lists.flatten().filter_map(named_volume).collect();
    mapping(names.into_iter().map(|name| (name, Value::Null)))
}

fn named_volume(volume: &Value) -> Option<&str> {
    let source = match volume {
        Value::String(text) => text.split_once(':')?.0,
        long => {
            long.get("type").is_some_and(|kind| kind == "volume").then_some(())?;
            long.get("source")?.as_str()?
        }
    };
    let is_name = source.starts_with(|c: char| c.is_ascii_alphanumeric())
        && source.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
    is_name.then_some(source)
}

/// Hashes what a container of this service is made from: its part of the file, and what compose reads for it from others.
fn hash(document: &Mapping, files: &ProjectFiles) -> ConfigHash {
    let mut canonical = String::new();
    let mut document = document.clone();
    for key in NOT_OF_CONTAINERS {
        document.remove(key);
    }
    if let Some(deploy) = document.get_mut("deploy").and_then(Value::as_mapping_mut) {
        deploy.remove("replicas");
        if deploy.is_empty() {
            document.remove("deploy");
        }
    }
    let document = Value::from(document);
    write_canonical(&mut canonical, &document);
    let env_files = document.get("env_file").into_iter().flat_map(env_file_names);
    let contents: Vec<(&str, &str)> = env_files
        .filter_map(|name| files.env_files.get_key_value(name))
        .map(|(n, t)| (n.as_str(), t.as_str()))
        .collect();
    for (name, text) in &contents {
        canonical.push_str("\nenv_file ");
        write_text(&mut canonical, name);
        write_text(&mut canonical, text);
    }
    let texts = contents.iter().map(|(_, text)| *text).chain([canonical.as_str()]);
    let filled_in = files.env.as_deref().and_then(|env| variables::filled_in(env, texts));
    if let Some(filled_in) = filled_in {
        canonical.push_str("\n.env ");
        write_text(&mut canonical, &filled_in);
    }
    let digest = digest::digest(&digest::SHA256, canonical.as_bytes());
    ConfigHash(digest.as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The names in `env_file`: a text, or a list of texts and of mappings with a `path`.
pub fn env_file_names(value: &Value) -> Vec<&str> {
    match value {
        Value::String(name) => vec![name],
        Value::Sequence(list) => {
            list.iter().filter_map(|item| item.as_str().or_else(|| item.get("path")?.as_str())).collect()
        }
        _ => Vec::new(),
    }
}

/// Writes a value on one line, its keys sorted.
fn write_canonical(out: &mut String, value: &Value) {
    match value {
        Value::Mapping(mapping) => {
            let mut entries: Vec<(String, &Value)> =
                mapping.iter().map(|(key, value)| (yaml::scalar(key), value)).collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            out.push('{');
            for (key, value) in entries {
                out.push_str(&key);
                out.push(':');
                write_canonical(out, value);
                out.push(',');
            }
            out.push('}');
        }
        Value::Sequence(elements) => {
            out.push('[');
            for element in elements {
                write_canonical(out, element);
                out.push(',');
            }
            out.push(']');
        }
        Value::Tagged(tagged) => write_canonical(out, &tagged.value),
        one => out.push_str(&yaml::scalar(one)),
    }
}

fn write_text(out: &mut String, text: &str) {
    out.push_str(&yaml::scalar(&text.into()));
}
