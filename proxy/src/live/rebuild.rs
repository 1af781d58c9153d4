//! From one snapshot and a new table to the next snapshot: what is equal is shared, endpoints carry over.
//!
//! It decides and builds, and touches no endpoint but for its listed health; [`super::store`] swaps and closes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use super::{Entry, Live, LiveRoute, LiveSite, LiveTarget, LiveUpstream};
use crate::endpoint::Endpoint;
use crate::host::HostPattern;
use crate::table::{Action, Policy, RouteTable, Site, Target, Upstream, UpstreamName};

/// The next snapshot, and what it no longer names.
pub(super) struct Rebuilt {
    pub live: Live,
    /// To be closed once `live` is stored.
    pub retired: Vec<Arc<Endpoint>>,
}

/// Makes the snapshot that follows `old`, or nothing where the table is equal.
pub(super) fn rebuild(old: &Live, mut table: RouteTable, now: Instant) -> Option<Rebuilt> {
    if !share_equal_parts(&old.table, &mut table) {
        return None;
    }
    let Upstreams { live: upstreams, changed, retired } = Upstreams::build(old, &table, now);
    let mut sites =
        Sites { old, upstreams: &upstreams, changed: &changed, absent: HashMap::new(), built: HashMap::new() };
    let wildcards = table.hosts.keys().filter(|pattern| matches!(pattern, HostPattern::Wildcard(_))).count();
    let mut wildcard = HashMap::with_capacity(wildcards);
    let mut exact = HashMap::with_capacity(table.hosts.len() - wildcards);
    for (pattern, action) in &table.hosts {
        let entry = sites.entry(pattern, action);
        match pattern {
            HostPattern::Exact(host) => exact.insert(host.clone(), entry),
            HostPattern::Wildcard(parent) => wildcard.insert(parent.clone(), entry),
        };
    }
    let (generation, edge) = (old.generation + 1, table.edge.clone());
    Some(Rebuilt { live: Live { generation, edge, exact, wildcard, upstreams, table: Arc::new(table) }, retired })
}

/// Lets the new table use the old one's sites and upstreams where they are equal, so that from here on a
/// comparison of pointers will do, and memory holds each once. Tells whether anything differs.
fn share_equal_parts(old: &RouteTable, new: &mut RouteTable) -> bool {
    let mut differs =
        old.edge != new.edge || old.hosts.len() != new.hosts.len() || old.upstreams.len() != new.upstreams.len();
    in_step(&old.hosts, &mut new.hosts, |old, new| match old {
        Some(old) if old == new => new.clone_from(old),
        _ => differs = true,
    });
    in_step(&old.upstreams, &mut new.upstreams, |old, new| match old {
        Some(old) if old == new => new.clone_from(old),
        _ => differs = true,
    });
    differs
}

/// Goes over the new map with what the old one has under the same key, both in order.
fn in_step<K: Ord, V>(old: &BTreeMap<K, V>, new: &mut BTreeMap<K, V>, mut each: impl FnMut(Option<&V>, &mut V)) {
    let mut old = old.iter().peekable();
    for (key, value) in new {
        while old.next_if(|(known, _)| *known < key).is_some() {}
        each(old.next_if(|(known, _)| *known == key).map(|(_, value)| value), value);
    }
}

struct Upstreams {
    live: BTreeMap<UpstreamName, Arc<LiveUpstream>>,
    /// Names whose `LiveUpstream` is another than before, or is gone.
    changed: HashSet<UpstreamName>,
    retired: Vec<Arc<Endpoint>>,
}

impl Upstreams {
    fn build(old: &Live, table: &RouteTable, now: Instant) -> Self {
        let mut live = BTreeMap::new();
        let (mut changed, mut retired) = (HashSet::new(), Vec::new());
        for (name, upstream) in &table.upstreams {
            let before = old.upstreams.get(name);
            let same = old.table.upstreams.get(name).is_some_and(|known| Arc::ptr_eq(known, upstream));
            let next = match before {
                Some(before) if same => before.clone(),
                _ => {
                    let known = before.map_or(&[][..], |before| &before.endpoints);
                    let next = build_upstream(name, upstream, known, now);
                    retired.extend(known.iter().filter(|e| !next.endpoints.iter().any(|n| n.key == e.key)).cloned());
                    changed.insert(name.clone());
                    Arc::new(next)
                }
            };
            live.insert(name.clone(), next);
        }
        for (name, gone) in old.upstreams.iter().filter(|(name, _)| !table.upstreams.contains_key(*name)) {
            changed.insert(name.clone());
            retired.extend(gone.endpoints.iter().cloned());
        }
        Self { live, changed, retired }
    }
}

/// An upstream whose endpoints are the known ones, where their identity is the same.
fn build_upstream(name: &UpstreamName, upstream: &Upstream, known: &[Arc<Endpoint>], now: Instant) -> LiveUpstream {
    let mut endpoints: Vec<Arc<Endpoint>> = Vec::with_capacity(upstream.endpoints.len());
    for spec in &upstream.endpoints {
        // Named twice is one endpoint: its count and its closing must be one.
        if endpoints.iter().any(|endpoint| endpoint.is(spec)) {
            continue;
        }
        let carried = known.iter().find(|endpoint| endpoint.is(spec));
        let endpoint = carried.cloned().unwrap_or_else(|| Arc::new(Endpoint::new(spec, now)));
        endpoint.list_unhealthy(spec.unhealthy);
        if upstream.policy.health.is_none() {
            endpoint.probe_unhealthy(false);
        }
        endpoints.push(endpoint);
    }
    LiveUpstream { name: name.clone(), policy: upstream.policy.clone(), endpoints }
}

/// Resolves actions against the upstreams, each site once.
struct Sites<'a> {
    old: &'a Live,
    upstreams: &'a BTreeMap<UpstreamName, Arc<LiveUpstream>>,
    changed: &'a HashSet<UpstreamName>,
    /// Named by a route, not in the table: they answer 503.
    absent: HashMap<UpstreamName, Arc<LiveUpstream>>,
    /// Sites that several hosts share, by their address in the table.
    built: HashMap<*const Site, Arc<LiveSite>>,
}

impl Sites<'_> {
    fn entry(&mut self, pattern: &HostPattern, action: &Action) -> Entry {
        match action {
            Action::Pass(pass) => Entry::Pass {
                upstream: self.upstream(&pass.upstream),
                challenge: pass.challenge.as_ref().map(|name| self.upstream(name)),
            },
            Action::Redirect(to) => Entry::Redirect(to.clone()),
            Action::Terminate(site) => Entry::Terminate(self.site(pattern, site)),
        }
    }

    fn site(&mut self, pattern: &HostPattern, site: &Arc<Site>) -> Arc<LiveSite> {
        if let Some(Entry::Terminate(before)) = self.old.entry(pattern)
            && Arc::ptr_eq(&before.site, site)
            && !self.is_touched(site)
        {
            return before.clone();
        }
        if let Some(built) = self.built.get(&Arc::as_ptr(site)) {
            return built.clone();
        }
        let live = Arc::new(self.build_site(site));
        // The table and the new `LiveSite` own it; without a third owner no other host can ask for it.
        if Arc::strong_count(site) > 2 {
            self.built.insert(Arc::as_ptr(site), live.clone());
        }
        live
    }

    fn is_touched(&self, site: &Site) -> bool {
        let mut names = site.routes.iter().filter_map(|route| match &route.target {
            Target::Upstream(name) => Some(name),
            Target::Welcome => None,
        });
        !self.changed.is_empty() && names.any(|name| self.changed.contains(name))
    }

    fn build_site(&mut self, site: &Arc<Site>) -> LiveSite {
        let mut routes: Vec<LiveRoute> = Vec::with_capacity(site.routes.len());
        for route in &site.routes {
            let target = match &route.target {
                Target::Upstream(name) => LiveTarget::Upstream(self.upstream(name)),
                Target::Welcome => LiveTarget::Welcome,
            };
            routes.push(LiveRoute { path: route.path.clone(), strip: route.strip, target });
        }
        routes.sort_by_key(|route| Reverse(route.path.len()));
        let has_path_routes = routes.iter().any(|route| !route.path.is_empty());
        LiveSite { site: site.clone(), routes, has_path_routes }
    }

    fn upstream(&mut self, name: &UpstreamName) -> Arc<LiveUpstream> {
        let absent = || Arc::new(LiveUpstream { name: name.clone(), policy: Policy::default(), endpoints: Vec::new() });
        match self.upstreams.get(name) {
            Some(upstream) => upstream.clone(),
            None => self.absent.entry(name.clone()).or_insert_with(absent).clone(),
        }
    }
}
