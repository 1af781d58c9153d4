//! Which certificates there should be: hosts in groups, and the orders that they make.
//!
//! Pure. It knows no CA and no clock, other than as arguments.

use std::collections::BTreeSet;

use itsup_proxy::{Action, HostPattern, RouteTable};

use super::due::{self, Life, Unix, Window};
use super::store::wildcard_over;
use crate::db::{Db, Project, Tls};
use crate::settings::Acme;

#[cfg(test)]
mod tests;

/// Endings of names that no CA of the internet issues for.
const LOCAL: [&str; 6] = ["localhost", "lan", "internal", "test", "local", "home.arpa"];

/// Hosts that go into one certificate, the one that gives it its name first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// At least one.
    pub names: Vec<HostPattern>,
}

/// What the user's own pairs are for: such hosts are never ordered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Users {
    /// Names in certificates that are still valid.
    pub names: BTreeSet<HostPattern>,
    /// Folders in `certs/` that hold a pair of the user's, whatever state it is in.
    pub folders: BTreeSet<String>,
}

/// One certificate that is to be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Its first host: what it is remembered by.
    pub key: String,
    /// The folder in `certs/` that it goes to.
    pub folder: String,
    /// What to order.
    pub names: Vec<HostPattern>,
    /// The hosts that show it; more than `names` where a wildcard stands for some.
    pub hosts: Vec<HostPattern>,
    /// The key of the order that it was split off from.
    pub parent: Option<String>,
}

/// A pair of ours that there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The names in it.
    pub names: Vec<HostPattern>,
    /// Its life.
    pub life: Life,
    /// The directory of the CA that issued it, where that is known.
    pub directory: Option<String>,
    /// The CA's name for it (RFC 9773).
    pub id: Option<String>,
    /// The SHA-256 of the certificate.
    pub sha256: String,
}

impl Users {
    fn have(&self, host: &HostPattern) -> bool {
        let by_wildcard = || match host {
            HostPattern::Exact(name) => wildcard_over(name).is_some_and(|wildcard| self.names.contains(&wildcard)),
            HostPattern::Wildcard(_) => false,
        };
        self.folders.contains(&folder_of(host)) || self.names.contains(host) || by_wildcard()
    }
}

/// The folder in `certs/` of a host.
pub fn folder_of(host: &HostPattern) -> String {
    match host {
        HostPattern::Exact(host) => host.to_string(),
        HostPattern::Wildcard(parent) => format!("_wildcard.{parent}"),
    }
}

/// Whether a name means something on a local network alone.
pub fn is_local(host: &HostPattern) -> bool {
    let name = match host {
        HostPattern::Exact(host) | HostPattern::Wildcard(host) => host.as_str(),
    };
    let ends = |ending: &str| name == ending || name.strip_suffix(ending).is_some_and(|rest| rest.ends_with('.'));
    !name.contains('.') || LOCAL.into_iter().any(ends)
}

/// The hosts that a CA is to be asked for: those that end TLS here and whose project leaves the choice to us.
pub fn groups(db: &Db, routes: &RouteTable, own_directory: bool) -> Vec<Group> {
    let mut seen = BTreeSet::new();
    let mut wanted = |host: &HostPattern| {
        let ends_here = routes.hosts.get(host).is_some_and(|action| !matches!(action, Action::Pass(_)));
        ends_here && (own_directory || !is_local(host)) && seen.insert(host.clone())
    };
    let mut groups = Vec::new();
    for project in db.projects.iter().filter(|project| project.enabled && project.tls == Tls::Auto) {
        let own = own_hosts(project);
        let services = project.services.iter().filter_map(|service| service.domain.clone());
        for mut names in std::iter::once(own).chain(services.map(|host| vec![HostPattern::Exact(host)])) {
            names.retain(&mut wanted);
            if !names.is_empty() {
                groups.push(Group { names });
            }
        }
    }
    groups
}

fn own_hosts(project: &Project) -> Vec<HostPattern> {
    let exact = |hosts: &mut dyn Iterator<Item = &itsup_proxy::Host>| {
        hosts.cloned().map(HostPattern::Exact).collect::<Vec<HostPattern>>()
    };
    let mut names = exact(&mut project.domain.iter());
    names.extend(project.aliases.iter().cloned());
    names.extend(exact(&mut project.redirect_from.iter()));
    names
}

/// The orders that a group makes, given the names that have been split off it. `dns` is whether TXT records can be set.
pub fn orders(group: &Group, users: &Users, split_off: &BTreeSet<String>, dns: bool) -> Vec<Order> {
    let hosts = group.names.iter().filter(|host| !users.have(host));
    let apart = |host: &&HostPattern| {
        let wildcard = matches!(host, HostPattern::Wildcard(_));
        split_off.contains(&host.to_string()) || wildcard && !dns
    };
    let (alone, together): (Vec<&HostPattern>, Vec<&HostPattern>) = hosts.partition(apart);
    let mut orders = Vec::new();
    let main = order(together, None);
    let parent = main.as_ref().map(|order| order.key.clone());
    orders.extend(main);
    orders.extend(alone.into_iter().filter_map(|host| order(vec![host], parent.clone())));
    orders
}

fn order(hosts: Vec<&HostPattern>, parent: Option<String>) -> Option<Order> {
    let first = hosts.first()?;
    let (key, folder) = (first.to_string(), folder_of(first));
    let hosts: Vec<HostPattern> = hosts.into_iter().cloned().collect();
    // CAs refuse a name that a wildcard of the same order covers.
    let covered = |host: &HostPattern| match host {
        HostPattern::Exact(name) => wildcard_over(name).is_some_and(|wildcard| hosts.contains(&wildcard)),
        HostPattern::Wildcard(_) => false,
    };
    let names = hosts.iter().filter(|host| !covered(host)).cloned().collect();
    Some(Order { key, folder, names, hosts, parent })
}

/// From when an order is to be placed.
pub fn wanted_at(order: &Order, held: Option<&Held>, acme: &Acme, window: Option<&Window>) -> Unix {
    let Some(held) = held else { return 0 };
    if order.names.iter().any(|name| !held.names.contains(name)) {
        return 0;
    }
    // A trusted certificate is not given away for one of the staging CA before its time.
    let elsewhere = held.directory.as_ref().is_some_and(|directory| *directory != acme.directory);
    if elsewhere && !acme.is_staging() {
        return 0;
    }
    let window = window.filter(|window| held.id.as_ref() == Some(&window.certificate));
    due::renew_at(held.life, window, due::seed(&order.key))
}
