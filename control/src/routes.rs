//! The one translator: from projects, services and containers to hosts, routes, upstreams and endpoints.
//!
//! Pure. It must not know how any of its inputs came to be, nor what the proxy does with the table.
//!
//! How a project's own hosts (`domain`, `aliases`) are routed:
//! - With an `entrypoint`, to that service; where it passes TLS through, nothing else of the project can be reached there.
//! - With `routes`, by path; the rest goes to the entrypoint or, without one, to the static services that no route names.
//! - With neither, to its static services together.
//! - Without any services, to the welcome page.
//!
//! One host cannot both pass TLS through and end it. Where static services that go together differ in that, those that
//! pass it through are left out if there are `routes`, which need it to end here; else the first service decides.
//!
//! A service with a `domain` of its own is routed there, and is no part of what static services do together.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use itsup_proxy::{
    Access, Action, Address, Edge, EndpointSpec, Health, HostPattern, Passthrough, PathPrefix, Policy, Protocol, Route,
    RouteTable, Site, Target, Upstream, UpstreamName, Verify, VerifyAgainst,
};

use crate::active::{ActiveSets, ServiceKey, compose_service};
use crate::db::{Db, Http, Project, Service, VerifySetting};
use crate::local::OwnAddresses;
use crate::observed::{Container, ContainerId, Observed, unix_nanos};
use crate::resolve::Resolved;

#[cfg(test)]
mod tests;

/// Everything that a route table is made from.
pub struct RouteInputs<'a> {
    pub db: &'a Db,
    pub observed: &'a Observed,
    pub active: &'a ActiveSets,
    pub resolved: &'a Resolved,
    pub own_addresses: &'a OwnAddresses,
    /// The API's port and the socket on which it is served in-process.
    pub api: Option<(u16, PathBuf)>,
    pub edge: Edge,
    /// What is in the CA files ([`ca_files`]), PEM. Against one that is not here nothing verifies.
    pub ca_files: &'a BTreeMap<PathBuf, Arc<str>>,
}

/// Makes the route table.
pub fn route_table(inputs: &RouteInputs<'_>) -> RouteTable {
    let mut builder = Builder {
        inputs,
        addresses: owners(inputs.observed),
        table: RouteTable { edge: inputs.edge.clone(), ..RouteTable::default() },
    };
    for project in inputs.db.projects.iter().filter(|p| p.enabled) {
        builder.project(project);
    }
    builder.table
}

/// Returns the CA files that the services and the containers' labels name.
pub fn ca_files(db: &Db, observed: &Observed) -> BTreeSet<PathBuf> {
    let services = db.projects.iter().filter(|p| p.enabled).flat_map(|p| &p.services).map(|s| &s.http);
    let labels = observed.containers.values().filter_map(|c| c.http.as_ref());
    let files = services.chain(labels).filter_map(|http| match http {
        Http::Https(VerifySetting::Ca(file)) => Some(file.clone()),
        _ => None,
    });
    files.collect()
}

/// Says whose each address is. Two containers with one address are news half told: the later start is the one to
/// believe, so that no service ever gets another one's traffic.
fn owners(observed: &Observed) -> HashMap<IpAddr, &ContainerId> {
    let mut owners: HashMap<IpAddr, &Container> = HashMap::new();
    for container in observed.containers.values().filter(|c| c.running) {
        let Some(address) = container.address else { continue };
        owners
            .entry(address)
            .and_modify(|owner| {
                if unix_nanos(&container.started_at) > unix_nanos(&owner.started_at) {
                    *owner = container;
                }
            })
            .or_insert(container);
    }
    owners.into_iter().map(|(address, container)| (address, &container.id)).collect()
}

struct Builder<'a> {
    inputs: &'a RouteInputs<'a>,
    addresses: HashMap<IpAddr, &'a ContainerId>,
    table: RouteTable,
}

/// Which of a service's ports is meant.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Port {
    /// The one that HTTP is spoken on.
    Http,
    /// The same one, for TLS that goes through untouched.
    Tls,
    /// The one that HTTP-01 challenges go to.
    Challenge,
}

impl Builder<'_> {
    fn project(&mut self, project: &Project) {
        let own = project.domain.iter().cloned().map(HostPattern::Exact).chain(project.aliases.iter().cloned());
        let own: Vec<HostPattern> = own.collect();
        if !own.is_empty() {
            let action = self.own_action(project);
            for host in own {
                self.claim(host, action.clone());
            }
        }
        for service in &project.services {
            if let Some(host) = &service.domain {
                let upstream = service_upstream(project, &service.name);
                let action = self.lead(project, &upstream, &[service], Vec::new());
                self.claim(HostPattern::Exact(host.clone()), action);
            }
        }
        for host in &project.redirect_from {
            if let Some(domain) = &project.domain {
                self.claim(HostPattern::Exact(host.clone()), Action::Redirect(domain.clone()));
            }
        }
    }

    /// Gives a host what it does; of two claims the first counts.
    fn claim(&mut self, host: HostPattern, action: Action) {
        self.table.hosts.entry(host).or_insert(action);
    }

    /// Returns what the project's own hosts do.
    fn own_action(&mut self, project: &Project) -> Action {
        if project.services.is_empty() {
            return terminate(project, rest(Target::Welcome).into_iter().collect());
        }
        let routes = self.path_routes(project);
        if let Some(name) = &project.entrypoint {
            let services: Vec<&Service> = project.services.iter().filter(|s| s.name == *name).take(1).collect();
            return self.lead(project, &service_upstream(project, name), &services, routes);
        }
        let together = together(project);
        if together.is_empty() && !routes.is_empty() {
            return terminate(project, routes);
        }
        self.lead(project, &project.name.clone(), &together, routes)
    }

    fn path_routes(&mut self, project: &Project) -> Vec<Route> {
        let routes = project.routes.iter().map(|route| {
            let name = service_upstream(project, &route.service);
            if let Some(service) = project.services.iter().find(|s| s.name == route.service) {
                self.upstream(&name, project, &[service], Port::Http);
            }
            Route { path: route.path.clone(), strip: route.strip, target: Target::Upstream(name) }
        });
        routes.collect()
    }

    /// Returns the action that leads to these services, apart from what `routes` take.
    fn lead(&mut self, project: &Project, name: &UpstreamName, services: &[&Service], routes: Vec<Route>) -> Action {
        if services.first().is_some_and(|s| s.passthrough) {
            let challenge: UpstreamName = format!("{name}#challenge").into();
            self.upstream(name, project, services, Port::Tls);
            self.upstream(&challenge, project, services, Port::Challenge);
            return Action::Pass(Passthrough { upstream: name.clone(), challenge: Some(challenge) });
        }
        self.upstream(name, project, services, Port::Http);
        let rest = rest(Target::Upstream(name.clone()));
        terminate(project, routes.into_iter().chain(rest).collect())
    }

    /// Adds an upstream with the endpoints of these services, and the policy of the first.
    fn upstream(&mut self, name: &UpstreamName, project: &Project, services: &[&Service], port: Port) {
        let Some(first) = services.first() else { return };
        if self.table.upstreams.contains_key(name) {
            return;
        }
        let mut endpoints: Vec<EndpointSpec> = Vec::new();
        for service in services {
            let of_service = match service.image {
                Some(_) => self.containers(project, service, port),
                None => self.hosts(service, port),
            };
            for endpoint in of_service {
                if endpoints.iter().all(|known| known.id != endpoint.id) {
                    endpoints.push(endpoint);
                }
            }
        }
        let upstream = Upstream { endpoints, policy: policy(first, port) };
        self.table.upstreams.insert(name.clone(), Arc::new(upstream));
    }

    /// Returns the endpoints of a service with an image: the containers of its active set that can be reached.
    fn containers(&self, project: &Project, service: &Service, port: Port) -> Vec<EndpointSpec> {
        let name = compose_service(project, service);
        let key = ServiceKey::new(project.name.clone(), service.name.clone());
        let ids = self.inputs.active.of(&key).into_iter().flatten();
        let containers = ids.filter_map(|id| self.inputs.observed.containers.get(id)).filter(|c| {
            c.running
                && c.compose_project.as_ref() == project.compose_name.as_ref()
                && c.compose_service.as_deref() == Some(&name)
        });
        let endpoints = containers.filter_map(|container| {
            let address = container.address.filter(|a| self.addresses.get(a) == Some(&&container.id))?;
            let (id, number) = match port {
                Port::Http | Port::Tls => (container.endpoint_id(), container.port.unwrap_or(service.port)),
                Port::Challenge => (format!("{}#challenge", container.endpoint_id()).into(), service.challenge_port),
            };
            let http = container.http.as_ref().unwrap_or(&service.http);
            Some(EndpointSpec {
                id,
                address: Address::Tcp(SocketAddr::new(address, number)),
                protocol: self.protocol(http, &name, port),
                unhealthy: container.last_choice(),
            })
        });
        endpoints.collect()
    }

    /// Returns the endpoints of a static host: one for each of its addresses, or the API's own socket.
    fn hosts(&self, service: &Service, port: Port) -> Vec<EndpointSpec> {
        let own = self.inputs.own_addresses;
        let mut addresses = self.inputs.resolved.addresses(&service.name);
        // Where this host has no IPv6, a name's IPv6 addresses would only cost failures.
        if !own.has_ipv6() && addresses.iter().any(IpAddr::is_ipv4) {
            addresses.retain(|a| a.is_ipv4());
        }
        let number = if port == Port::Challenge { service.challenge_port } else { service.port };
        let endpoints = addresses.into_iter().map(|address| {
            if let Some((api, socket)) = &self.inputs.api
                && (port, number) == (Port::Http, *api)
                && own.contains(address)
            {
                let id = format!("unix:{}", socket.display()).into();
                let address = Address::Unix(socket.clone());
                return EndpointSpec { id, address, protocol: Protocol::H1, unhealthy: false };
            }
            let to = SocketAddr::new(address, number);
            let protocol = self.protocol(&service.http, service.name.trim_matches(['[', ']']), port);
            EndpointSpec { id: to.to_string().into(), address: Address::Tcp(to), protocol, unhealthy: false }
        });
        endpoints.collect()
    }

    fn protocol(&self, http: &Http, name: &str, port: Port) -> Protocol {
        if port != Port::Http {
            return Protocol::H1;
        }
        let against = match http {
            Http::H1 => return Protocol::H1,
            Http::H2c => return Protocol::H2c,
            Http::Https(VerifySetting::System) => VerifyAgainst::System,
            Http::Https(VerifySetting::Nothing) => VerifyAgainst::Nothing,
            // A file that could not be read trusts nobody.
            Http::Https(VerifySetting::Ca(file)) => {
                VerifyAgainst::Ca(self.inputs.ca_files.get(file).cloned().unwrap_or_default())
            }
        };
        Protocol::Https(Verify { name: name.into(), against })
    }
}

/// Returns the static services that a project's own hosts lead to together.
fn together(project: &Project) -> Vec<&Service> {
    let elsewhere = |service: &Service| {
        let apart = service.domain.is_some() && service.domain != project.domain;
        apart || project.routes.iter().any(|route| route.service == service.name)
    };
    let mut services: Vec<&Service> = project.services.iter().filter(|s| s.image.is_none() && !elsewhere(s)).collect();
    // Path routes need TLS to end here.
    let first = services.first().is_some_and(|s| s.passthrough);
    let passthrough = first && project.routes.is_empty();
    services.retain(|s| s.passthrough == passthrough);
    services
}

fn service_upstream(project: &Project, service: &str) -> UpstreamName {
    format!("{}/{service}", project.name).into()
}

/// Returns the route that takes every path.
fn rest(target: Target) -> Option<Route> {
    let path = PathPrefix::parse("/").ok()?;
    Some(Route { path, strip: false, target })
}

fn terminate(project: &Project, mut routes: Vec<Route>) -> Action {
    // Stable: of two routes with one path the first counts, so a route for `/` wins over the entrypoint.
    routes.sort_by(|a, b| b.path.as_str().len().cmp(&a.path.as_str().len()).then_with(|| a.path.cmp(&b.path)));
    routes.dedup_by(|later, kept| later.path == kept.path);
    Action::Terminate(Arc::new(Site {
        label: project.name.clone(),
        routes,
        access: Access { allow: project.allow.clone(), basic: project.basic.clone() },
        headers: project.headers.clone(),
        hsts: project.hsts.clone(),
        compress: project.compress,
    }))
}

fn policy(service: &Service, port: Port) -> Policy {
    let default = Policy::default();
    // What is probed by HTTP is the HTTP port: elsewhere a connect must do.
    let health = service.health.as_ref().filter(|_| port == Port::Http);
    Policy {
        connect_timeout: service.timeouts.connect.unwrap_or(default.connect_timeout),
        response_timeout: service.timeouts.response,
        idle_timeout: service.timeouts.idle,
        // What answers challenges is a plain HTTP server beside the service, which expects no header.
        proxy_protocol: service.proxy_protocol.filter(|_| port != Port::Challenge),
        max_body: service.max_body,
        health: health.map(|h| Health { path: h.path.as_str().into(), interval: h.interval, timeout: h.timeout }),
    }
}
