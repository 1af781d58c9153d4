//! The rules that no single value can break: those between keys of a project, and between projects.
//!
//! Works on the document's tree, so that a project with other faults is checked all the same.

use std::collections::HashMap;

use itsup_proxy::{HostPattern, PathPrefix};

use super::fault::Fault;
use super::formats;
use super::model::compose_name;
use super::spans::{NodeId, Place, Tree};
use super::structure::nearest;

/// Keys that need a container, and mean nothing on a static host.
const OF_CONTAINERS: [&str; 12] = [
    "env",
    "env_file",
    "volumes",
    "command",
    "restart",
    "depends_on",
    "labels",
    "replicas",
    "rollout",
    "healthcheck",
    "compose",
    "additional_properties",
];

/// Keys that need HTTP, and mean nothing where TLS goes through untouched.
const OF_HTTP: [&str; 4] = ["headers", "hsts", "compress", "tls"];

/// Checks one project by itself.
pub(super) fn project(tree: &Tree, project: NodeId, faults: &mut Vec<Fault>) {
    let services = services(tree, project);
    Project { tree, project, services, faults }.check();
}

struct Project<'a> {
    tree: &'a Tree,
    project: NodeId,
    services: Vec<Service<'a>>,
    faults: &'a mut Vec<Fault>,
}

#[derive(Clone, Copy)]
struct Service<'a> {
    node: NodeId,
    name: &'a str,
    name_place: Place,
    has_image: bool,
    passthrough: bool,
}

fn services(tree: &Tree, project: NodeId) -> Vec<Service<'_>> {
    let list = tree.field(project, "services");
    let nodes = list.map(|list| tree.elements(list)).unwrap_or_default();
    let service = |node: &NodeId| {
        let name = tree.field(*node, "name")?;
        Some(Service {
            node: *node,
            name: tree.str(name)?,
            name_place: tree.place(name),
            has_image: tree.field(*node, "image").is_some(),
            passthrough: tree.field(*node, "passthrough").is_some_and(|flag| tree.flag(flag) == Some(true)),
        })
    };
    nodes.iter().filter_map(service).collect()
}

impl<'a> Project<'a> {
    fn check(&mut self) {
        self.project_name();
        self.service_names();
        self.entrypoint();
        self.routes();
        self.hosts_need_a_domain();
        self.passthrough();
        for service in self.services.clone() {
            self.service(service);
        }
    }

    fn field(&self, key: &str) -> Option<NodeId> {
        self.tree.field(self.project, key)
    }

    fn error(&mut self, node: NodeId, message: impl Into<String>) -> &mut Fault {
        self.push(Fault::error(self.tree.place(node), message))
    }

    fn warning(&mut self, node: NodeId, message: impl Into<String>) -> &mut Fault {
        self.push(Fault::warning(self.tree.place(node), message))
    }

    fn push(&mut self, fault: Fault) -> &mut Fault {
        self.faults.push(fault);
        let last = self.faults.len() - 1;
        &mut self.faults[last]
    }

    fn find(&self, name: &str) -> Option<Service<'a>> {
        self.services.iter().copied().find(|service| service.name == name)
    }

    /// The services that `entrypoint` or `routes` name.
    fn routed(&self) -> Vec<&'a str> {
        let entrypoint = self.field("entrypoint").and_then(|node| self.tree.str(node));
        let routes = self.field("routes").map(|routes| self.tree.elements(routes)).unwrap_or_default();
        let named = routes.iter().filter_map(|route| self.tree.str(self.tree.field(*route, "service")?));
        entrypoint.into_iter().chain(named).collect()
    }

    fn project_name(&mut self) {
        let Some(node) = self.field("name") else { return };
        let Some(name) = self.tree.str(node) else { return };
        if !self.services.iter().any(|service| service.has_image) {
            return;
        }
        if let Err(misfit) = formats::compose_service_name(name) {
            self.push(Fault::misfit(self.tree.place(node), misfit));
        } else if !name.is_empty() && compose_name(name).is_empty() {
            self.error(node, format!("the name `{name}` has nothing that compose could take for a project's name"))
                .hint = Some("begin it with a letter or a digit".to_owned());
        }
    }

    fn service_names(&mut self) {
        let mut seen: HashMap<&str, Place> = HashMap::new();
        for Service { name, name_place, has_image, .. } in self.services.clone() {
            let verdict = if has_image { formats::compose_service_name(name) } else { formats::static_host(name) };
            if !name.is_empty()
                && formats::check("name", name).is_ok()
                && let Err(misfit) = verdict
            {
                self.push(Fault::misfit(name_place, misfit));
            }
            if let Some(first) = seen.get(name) {
                let message = format!("the service `{name}` stands twice; first on line {}", first.line);
                self.push(Fault::error(name_place, message));
            } else {
                seen.insert(name, name_place);
            }
        }
    }

    fn entrypoint(&mut self) {
        let Some(node) = self.field("entrypoint") else { return };
        let Some(name) = self.tree.str(node) else { return };
        match self.find(name) {
            None => self.no_such_service(node, name),
            Some(service) if !service.has_image => {
                self.error(node, format!("the entrypoint `{name}` has no image")).hint =
                    Some("static hosts need no `entrypoint`: all of them are endpoints of the project".to_owned());
            }
            Some(_) => {}
        }
    }

    fn no_such_service(&mut self, node: NodeId, name: &str) {
        let names: Vec<&str> = self.services.iter().map(|service| service.name).collect();
        let hint = match nearest(name, names.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None if names.is_empty() => "the project has no services".to_owned(),
            None if names.len() <= 8 => format!("its services: `{}`", names.join("`, `")),
            None => "name one of the project's services".to_owned(),
        };
        self.error(node, format!("`{}` is not a service of this project", name.escape_debug())).hint = Some(hint);
    }

    fn routes(&mut self) {
        let Some(routes) = self.field("routes") else { return };
        let mut seen: HashMap<PathPrefix, Place> = HashMap::new();
        for route in self.tree.elements(routes) {
            if let Some(node) = self.tree.field(*route, "service")
                && let Some(name) = self.tree.str(node)
            {
                match self.find(name) {
                    None => self.no_such_service(node, name),
                    Some(service) if service.passthrough => {
                        self.error(node, format!("`{name}` is passthrough, so no path can lead to it")).hint =
                            Some("the path is encrypted; give the service a `domain` of its own".to_owned());
                    }
                    Some(_) => {}
                }
            }
            if let Some(node) = self.tree.field(*route, "path")
                && let Some(Ok(path)) = self.tree.str(node).map(PathPrefix::parse)
            {
                let place = self.tree.place(node);
                if let Some(first) = seen.get(&path) {
                    let message = format!("the path `{}` stands twice; first on line {}", path.as_str(), first.line);
                    self.push(Fault::error(place, message));
                } else {
                    seen.insert(path, place);
                }
            }
        }
    }

    fn hosts_need_a_domain(&mut self) {
        if let Some(domain) = self.field("domain") {
            let routed = self.field("entrypoint").is_some() || self.field("routes").is_some();
            if !routed && let Some(image) = self.services.iter().find(|service| service.has_image) {
                let hint = format!("add `entrypoint: {}`", image.name);
                self.error(domain, "no service is named that this domain leads to").hint = Some(hint);
            }
            return;
        }
        for key in ["aliases", "redirect_from", "routes"] {
            if let (Some(value), Some(node)) = (self.field(key), self.tree.key(self.project, key))
                && !self.tree.elements(value).is_empty()
            {
                self.error(node, format!("`{key}` needs a `domain` on the project"));
            }
        }
    }

    /// Passthrough of the project's own domain: its entrypoint's, or, without one, its static hosts'.
    fn passthrough(&mut self) {
        let entrypoint = self.field("entrypoint").and_then(|node| self.tree.str(node));
        let behind: Vec<Service<'_>> = match entrypoint {
            Some(name) => self.find(name).into_iter().collect(),
            None => self
                .services
                .iter()
                .copied()
                .filter(|service| !service.has_image && !self.has_domain(*service))
                .collect(),
        };
        let count = behind.iter().filter(|service| service.passthrough).count();
        if self.field("domain").is_none() || count == 0 {
            return;
        }
        if count < behind.len()
            && let Some(first) = behind.iter().find(|service| !service.passthrough)
        {
            self.error(first.node, "some of the project's static hosts are passthrough and this one is not").hint =
                Some("they are endpoints of one upstream, and must agree".to_owned());
        }
        if let Some(routes) = self.tree.key(self.project, "routes")
            && self.field("routes").is_some_and(|routes| !self.tree.elements(routes).is_empty())
        {
            self.error(routes, "a domain that is passed through cannot have path routes").hint = Some(
                "the path is encrypted; remove `passthrough`, or give the routes a project of their own".to_owned(),
            );
        }
        if let Some(access) = self.tree.key(self.project, "access").filter(|_| self.field("access").is_some()) {
            self.error(access, "`access` cannot hold for a domain that is passed through").hint =
                Some("what is behind it must protect itself".to_owned());
        }
        for key in OF_HTTP {
            if let (Some(_), Some(node)) = (self.field(key), self.tree.key(self.project, key)) {
                self.warning(node, format!("`{key}` has no effect on a domain that is passed through"));
            }
        }
    }

    fn has_domain(&self, service: Service<'_>) -> bool {
        self.tree.field(service.node, "domain").is_some()
    }

    fn service(&mut self, service: Service<'_>) {
        let tree = self.tree;
        let text = |key: &str| tree.field(service.node, key).and_then(|node| tree.str(node));
        if let Some(verify) = tree.key(service.node, "verify").filter(|_| tree.field(service.node, "verify").is_some())
            && text("http") != Some("https")
        {
            self.error(verify, "`verify` is about a certificate, and `http` is not `https`").hint =
                Some("add `http: https`".to_owned());
        }
        if service.passthrough
            && let Some(node) = tree.key(service.node, "http").filter(|_| text("http").is_some())
        {
            self.warning(node, "`http` has no effect where TLS goes through untouched");
        }
        if !service.passthrough
            && let Some(node) = tree.key(service.node, "challenge_port")
        {
            self.warning(node, "`challenge_port` has no effect without `passthrough`");
        }
        self.depends_on(service);
        if service.has_image {
            self.rolled(service);
        } else {
            for key in OF_CONTAINERS {
                if let (Some(_), Some(node)) = (tree.field(service.node, key), tree.key(service.node, key)) {
                    self.warning(
                        node,
                        format!("`{key}` has no effect: `{}` has no `image`", service.name.escape_debug()),
                    )
                    .hint = Some("add `image`, or remove it".to_owned());
                }
            }
        }
    }

    fn depends_on(&mut self, service: Service<'_>) {
        let tree = self.tree;
        let Some(list) = tree.field(service.node, "depends_on") else { return };
        let keys = tree.entries(list).iter().map(|(key, _)| *key);
        let names: Vec<NodeId> = tree.elements(list).iter().copied().chain(keys).collect();
        for node in names {
            let Some(name) = tree.str(node).filter(|name| !name.is_empty()) else { continue };
            match self.find(name) {
                None => self.no_such_service(node, name),
                Some(other) if !other.has_image => {
                    self.error(node, format!("`{name}` has no image, so nothing can wait for it"));
                }
                Some(other) if other.node == service.node => {
                    self.error(node, "a service cannot depend on itself");
                }
                Some(_) => {}
            }
        }
    }

    /// A service that is rolled over runs twice for a while, which some of compose's keys do not bear.
    fn rolled(&mut self, service: Service<'_>) {
        let tree = self.tree;
        let strategy = tree.field(service.node, "rollout").and_then(|rollout| tree.field(rollout, "strategy"));
        let in_place = strategy.and_then(|strategy| tree.str(strategy)) == Some("recreate");
        if in_place || !(self.routed().contains(&service.name) || self.has_domain(service)) {
            return;
        }
        let blocks = ["compose", "additional_properties"].map(|key| tree.field(service.node, key));
        for block in blocks.into_iter().flatten() {
            let keys = [
                ("container_name", "two containers cannot have the same name"),
                ("ports", "two containers cannot have the same host port"),
                ("network_mode", "its containers could not be reached by their own addresses"),
            ];
            let keys = keys
                .into_iter()
                .filter_map(|(key, why)| Some((tree.field(block, key).and(tree.key(block, key))?, key, why)));
            let addresses = addresses(tree, block).into_iter();
            let addresses = addresses.map(|(node, key)| (node, key, "two containers cannot have the same"));
            for (node, key, why) in keys.chain(addresses) {
                self.error(node, format!("`{key}` cannot stand on a service that is rolled over: {why}")).hint =
                    Some("remove it, or set `rollout: {strategy: recreate}`".to_owned());
            }
        }
        let blocks = blocks.into_iter().flatten().chain([service.node]);
        for block in blocks {
            if let (Some(_), Some(node)) = (tree.field(block, "volumes"), tree.key(block, "volumes")) {
                self.warning(node, "during a rollout two containers write to these volumes for a while").hint =
                    Some("where that can do harm, set `rollout: {strategy: recreate}`".to_owned());
            }
        }
    }
}

/// Where compose's `networks` gives a container an address of its own, with the key that does.
fn addresses(tree: &Tree, block: NodeId) -> Vec<(NodeId, &'static str)> {
    let networks = tree.field(block, "networks").map(|networks| tree.entries(networks)).unwrap_or_default();
    let of_network = |(_, network): &(NodeId, NodeId)| {
        ["ipv4_address", "ipv6_address", "mac_address"].map(|key| tree.key(*network, key).map(|node| (node, key)))
    };
    networks.iter().flat_map(of_network).flatten().collect()
}

/// Checks the projects against each other; each fault goes to the later one.
pub(super) fn together(tree: &Tree, projects: &[NodeId], mut report: impl FnMut(usize, Fault)) {
    let mut claims = Claims::default();
    for (index, project) in projects.iter().enumerate() {
        let mut report = |fault| report(index, fault);
        let Some(node) = tree.field(*project, "name") else { continue };
        let Some(name) = tree.str(node) else { continue };
        claims.name(name, tree.place(node), &mut report);
        for service in services(tree, *project).iter().filter(|service| service.has_image) {
            claims.container_service(name, service, &mut report);
        }
        let enabled = tree.field(*project, "enabled").is_none_or(|flag| tree.flag(flag) != Some(false));
        if enabled {
            hosts(tree, *project, |host, node| claims.host(host, name, tree.place(node), &mut report));
        }
    }
}

/// Calls back with every host that a project claims.
fn hosts(tree: &Tree, project: NodeId, mut claim: impl FnMut(HostPattern, NodeId)) {
    let services = tree.field(project, "services").map(|list| tree.elements(list)).unwrap_or_default();
    let of_services = services.iter().filter_map(|service| tree.field(*service, "domain"));
    let lists = ["aliases", "redirect_from"].into_iter().filter_map(|key| tree.field(project, key));
    let listed = lists.flat_map(|list| tree.elements(list).iter().copied());
    for node in tree.field(project, "domain").into_iter().chain(listed).chain(of_services) {
        if let Some(Ok(host)) = tree.str(node).map(HostPattern::parse) {
            claim(host, node);
        }
    }
}

/// Who has claimed what first.
#[derive(Default)]
struct Claims {
    names: HashMap<String, Place>,
    compose_names: HashMap<String, (String, Place)>,
    container_services: HashMap<String, (String, Place)>,
    hosts: HashMap<HostPattern, (String, Place)>,
}

impl Claims {
    fn name(&mut self, name: &str, place: Place, report: &mut impl FnMut(Fault)) {
        if let Some(first) = self.names.get(name) {
            let message = format!("the project `{name}` stands twice; first on line {}", first.line);
            return report(Fault::error(place, message).hint("give one of them another name"));
        }
        self.names.insert(name.to_owned(), place);
        let compose = compose_name(name);
        if compose.is_empty() {
            return;
        }
        match self.compose_names.get(&compose) {
            Some((other, first)) => {
                let message =
                    format!("the project `{name}` is `{compose}` to compose, as is `{other}` on line {}", first.line);
                report(Fault::error(place, message).hint("give one of them another name"));
            }
            None => drop(self.compose_names.insert(compose, (name.to_owned(), place))),
        }
    }

    fn container_service(&mut self, project: &str, service: &Service<'_>, report: &mut impl FnMut(Fault)) {
        let full = format!("{}-{}", compose_name(project), service.name.to_lowercase());
        match self.container_services.get(&full) {
            // Within a project it is a service that stands twice, which is reported as such.
            Some((other, _)) if other == project => {}
            Some((other, first)) => {
                let message = format!("its containers would be `{full}`, as those on line {} of `{other}`", first.line);
                report(Fault::error(service.name_place, message).hint("give one of them another name"));
            }
            None => drop(self.container_services.insert(full, (project.to_owned(), service.name_place))),
        }
    }

    fn host(&mut self, host: HostPattern, project: &str, place: Place, report: &mut impl FnMut(Fault)) {
        match self.hosts.get(&host) {
            Some((other, first)) => {
                let owner = if other == project { "this project".to_owned() } else { format!("`{other}`") };
                let host = match &host {
                    HostPattern::Exact(host) => host.to_string(),
                    HostPattern::Wildcard(parent) => format!("*.{parent}"),
                };
                let message = format!("the host `{host}` is claimed twice; first by {owner} on line {}", first.line);
                report(Fault::error(place, message));
            }
            None => drop(self.hosts.insert(host, (project.to_owned(), place))),
        }
    }
}
