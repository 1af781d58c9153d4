//! What differs between two route tables, by host.
//!
//! Pure; knows nothing of who made them.

use std::collections::BTreeSet;

use itsup_proxy::{Action, RouteTable, Target, UpstreamName};

/// Hosts that came, went, or lead elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Hosts that are new.
    pub(super) added: Vec<String>,
    /// Hosts that are gone.
    pub(super) removed: Vec<String>,
    /// Hosts that stay, and whose routes or endpoints are not what they were.
    pub(super) changed: Vec<String>,
}

impl Changes {
    /// Compares two tables.
    pub(super) fn between(old: &RouteTable, new: &RouteTable) -> Changes {
        let names: BTreeSet<&UpstreamName> = old.upstreams.keys().chain(new.upstreams.keys()).collect();
        let upstreams: BTreeSet<&str> = names
            .into_iter()
            .filter(|name| old.upstreams.get(*name) != new.upstreams.get(*name))
            .map(AsRef::as_ref)
            .collect();
        let mut changes = Changes::default();
        for (host, action) in &new.hosts {
            match old.hosts.get(host) {
                None => changes.added.push(host.to_string()),
                Some(before) if before != action || leads_to(action, &upstreams) => {
                    changes.changed.push(host.to_string());
                }
                Some(_) => {}
            }
        }
        let gone = old.hosts.keys().filter(|host| !new.hosts.contains_key(*host));
        changes.removed = gone.map(ToString::to_string).collect();
        changes
    }
}

fn leads_to(action: &Action, upstreams: &BTreeSet<&str>) -> bool {
    match action {
        Action::Pass(pass) => {
            upstreams.contains(pass.upstream.as_ref())
                || pass.challenge.as_ref().is_some_and(|name| upstreams.contains(name.as_ref()))
        }
        Action::Terminate(site) => site.routes.iter().any(|route| match &route.target {
            Target::Upstream(name) => upstreams.contains(name.as_ref()),
            Target::Welcome => false,
        }),
        Action::Redirect(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use itsup_proxy::{
        Address, EndpointSpec, Host, HostPattern, Passthrough, Policy, Protocol, Upstream,
    };

    use super::*;

    fn upstream(port: u16) -> Arc<Upstream> {
        let endpoint = EndpointSpec {
            id: "e".into(),
            address: Address::Tcp(([127, 0, 0, 1], port).into()),
            protocol: Protocol::H1,
            unhealthy: false,
        };
        Arc::new(Upstream { endpoints: vec![endpoint], policy: Policy::default() })
    }

    fn table(hosts: &[(&str, &str)], upstreams: &[(&str, u16)]) -> RouteTable {
        let action = |to: &str| match to.strip_prefix('>') {
            Some(host) => Action::Redirect(Host::parse(host).unwrap()),
            None => Action::Pass(Passthrough { upstream: to.into(), challenge: None }),
        };
        RouteTable {
            hosts: hosts.iter().map(|(host, to)| (HostPattern::parse(host).unwrap(), action(to))).collect(),
            upstreams: upstreams.iter().map(|(name, port)| ((*name).into(), upstream(*port))).collect(),
            ..RouteTable::default()
        }
    }

    #[test]
    fn hosts_are_compared_with_what_they_lead_to() {
        let old = table(&[("a.b", "x"), ("c.b", "y"), ("d.b", "z"), ("e.b", ">a.b")], &[("x", 1), ("y", 2), ("z", 3)]);
        let new = table(&[("a.b", "x"), ("c.b", "y"), ("f.b", "z"), ("e.b", ">c.b")], &[("x", 1), ("y", 9), ("z", 3)]);
        let changes = Changes::between(&old, &new);
        assert_eq!(changes.added, ["f.b"]);
        assert_eq!(changes.removed, ["d.b"]);
        assert_eq!(changes.changed, ["c.b", "e.b"]);
        assert_eq!(Changes::between(&new, &new), Changes::default());
    }
}
