use std::sync::Weak;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::endpoint::{Class, Lease};
use crate::host::HostPattern;
use crate::live::{Entry, LiveSite, LiveTarget, LiveUpstream, NoEndpoint};
use crate::path::PathPrefix;
use crate::status::{EndpointState, InFlight};
use crate::table::{Action, Address, EndpointSpec, Passthrough, Policy, Protocol, Route, Site, Target, Upstream};

const LONG: Duration = Duration::from_secs(60);

fn spec(id: &str, port: u16) -> EndpointSpec {
    let address = Address::Tcp(([127, 0, 0, 1], port).into());
    EndpointSpec { id: id.into(), address, protocol: Protocol::H1, unhealthy: false }
}

/// A table, made anew each time: nothing is shared by pointer. `host=upstream` and `upstream: ids`.
fn table(hosts: &[(&str, &str)], upstreams: &[(&str, &[&str])]) -> RouteTable {
    let mut table = RouteTable::default();
    for (host, upstream) in hosts {
        let path = PathPrefix::parse("/").unwrap();
        let route = Route { path, strip: false, target: Target::Upstream((*upstream).into()) };
        let action = Action::Terminate(Arc::new(Site::new(*host, vec![route])));
        table.hosts.insert(HostPattern::parse(host).unwrap(), action);
    }
    for (name, ids) in upstreams {
        let endpoints = ids.iter().map(|id| spec(id, 80)).collect();
        table.upstreams.insert((*name).into(), Arc::new(Upstream { endpoints, policy: Policy::default() }));
    }
    table
}

fn site(store: &Store, host: &str) -> Arc<LiveSite> {
    match store.load().lookup(host) {
        Some(Entry::Terminate(site)) => site.clone(),
        other => panic!("{other:?}"),
    }
}

fn upstream(store: &Store, host: &str) -> Arc<LiveUpstream> {
    match &site(store, host).routes[0].target {
        LiveTarget::Upstream(upstream) => upstream.clone(),
        LiveTarget::Welcome => panic!("welcome"),
    }
}

fn lease(store: &Store, host: &str) -> Lease {
    upstream(store, host).lease(Class::Request, &[], Instant::now()).unwrap()
}

#[test]
fn an_equal_table_touches_nothing() {
    let store = Store::new();
    let build = || table(&[("a.test", "u")], &[("u", &["1"])]);
    let first = store.publish(build());
    assert!(first.changed && first.generation == 1);
    let (before, key) = (store.live.load_full(), upstream(&store, "a.test").endpoints[0].key);
    let again = store.publish(build());
    assert!(!again.changed && again.generation == 1 && again.draining.is_empty());
    assert!(Arc::ptr_eq(&before, &store.live.load_full()));
    assert!(!upstream(&store, "a.test").endpoints[0].is_closed());
    assert_eq!(upstream(&store, "a.test").endpoints[0].key, key);
}

#[test]
fn what_is_equal_is_shared_with_the_snapshot_before() {
    let store = Store::new();
    let upstreams: [(&str, &[&str]); 2] = [("u", &["1"]), ("v", &["2"])];
    let _ = store.publish(table(&[("a.test", "u"), ("b.test", "v")], &upstreams));
    let (a, b) = (site(&store, "a.test"), site(&store, "b.test"));
    let table_before = store.load().table.clone();
    let published = store.publish(table(&[("a.test", "u"), ("b.test", "v")], &[("u", &["1"]), ("v", &["2", "3"])]));
    assert!(published.changed && published.draining.is_empty());
    assert!(Arc::ptr_eq(&a, &site(&store, "a.test")), "an untouched site is the same");
    assert!(!Arc::ptr_eq(&b, &site(&store, "b.test")), "a site of a changed upstream is not");
    let table_after = store.load().table.clone();
    assert!(Arc::ptr_eq(&table_before.upstreams["u"], &table_after.upstreams["u"]), "memory holds it once");
}

#[test]
fn hosts_that_share_a_site_share_it_live() {
    let store = Store::new();
    let mut table = table(&[("a.test", "u")], &[("u", &["1"])]);
    let action = table.hosts.values().next().unwrap().clone();
    table.hosts.insert(HostPattern::parse("*.a.test").unwrap(), action);
    let _ = store.publish(table);
    assert!(Arc::ptr_eq(&site(&store, "a.test"), &site(&store, "x.a.test")));
}

#[test]
fn endpoints_carry_over_by_identity() {
    let store = Store::new();
    let _ = store.publish(table(&[("a.test", "u")], &[("u", &["1", "2"])]));
    let before = upstream(&store, "a.test");
    let _ = store.publish(table(&[("a.test", "u")], &[("u", &["2", "3"])]));
    let after = upstream(&store, "a.test");
    assert_eq!(after.endpoints[0].key, before.endpoints[1].key);
    assert!(before.endpoints[0].is_closed() && !before.endpoints[1].is_closed());
    assert!(!after.endpoints.iter().any(|e| e.is_closed()));

    // The same id at another address, or spoken to otherwise, is another endpoint.
    for change in
        [|s: &mut EndpointSpec| s.address = spec("", 81).address, |s: &mut EndpointSpec| s.protocol = Protocol::H2c]
    {
        let old = upstream(&store, "a.test").endpoints[0].clone();
        let mut next = (*store.load().table).clone();
        change(&mut Arc::make_mut(next.upstreams.get_mut("u").unwrap()).endpoints[0]);
        let _ = store.publish(next);
        assert!(old.is_closed());
        assert_ne!(upstream(&store, "a.test").endpoints[0].key, old.key);
    }
}

#[test]
fn health_changes_without_a_new_endpoint() {
    let store = Store::new();
    let _ = store.publish(table(&[("a.test", "u")], &[("u", &["1"])]));
    let endpoint = upstream(&store, "a.test").endpoints[0].clone();
    for unhealthy in [true, false] {
        let mut next = (*store.load().table).clone();
        Arc::make_mut(next.upstreams.get_mut("u").unwrap()).endpoints[0].unhealthy = unhealthy;
        let published = store.publish(next);
        assert!(published.changed && published.draining.is_empty());
        assert_eq!(upstream(&store, "a.test").endpoints[0].key, endpoint.key);
        assert_eq!(endpoint.is_unhealthy(), unhealthy);
        assert!(!endpoint.is_closed());
    }
}

#[test]
fn an_endpoint_named_twice_is_one() {
    let store = Store::new();
    let _ = store.publish(table(&[("a.test", "u")], &[("u", &["1", "1"])]));
    assert_eq!(upstream(&store, "a.test").endpoints.len(), 1);
}

#[test]
fn an_absent_upstream_is_empty_until_it_comes() {
    let store = Store::new();
    let mut first = table(&[("a.test", "u")], &[]);
    let pass = Passthrough { upstream: "p".into(), challenge: Some("u".into()) };
    first.hosts.insert(HostPattern::parse("p.test").unwrap(), Action::Pass(pass));
    let _ = store.publish(first.clone());
    let no = upstream(&store, "a.test").lease(Class::Request, &[], Instant::now()).err();
    assert_eq!(no, Some(NoEndpoint::Empty));
    first.upstreams = table(&[], &[("u", &["1"])]).upstreams;
    let _ = store.publish(first);
    drop(lease(&store, "a.test"));
    match store.load().lookup("p.test") {
        Some(Entry::Pass { upstream, challenge: Some(challenge) }) => {
            assert_eq!((upstream.endpoints.len(), challenge.endpoints.len()), (0, 1));
        }
        other => panic!("{other:?}"),
    };
}

#[tokio::test]
async fn what_is_retired_drains() {
    let store = Store::new();
    let _ = store.publish(table(&[("a.test", "u")], &[("u", &["1"])]));
    let held = lease(&store, "a.test");
    let published = store.publish(RouteTable::default());
    assert_eq!(published.draining.in_flight().requests, 1);
    let status = store.statuses(Instant::now());
    assert_eq!((status.generation, status.hosts, status.upstreams.len()), (2, 0, 0));
    assert_eq!(status.draining.len(), 1);
    assert_eq!((&*status.draining[0].id, status.draining[0].state), ("1", EndpointState::Draining));
    drop(held);
    assert_eq!(published.draining.wait(LONG).await.left, InFlight::default());
    assert!(store.statuses(Instant::now()).draining.is_empty());
}

/// Out, back in, and out again while the first life still has traffic: it is drained only when both are.
#[test]
fn a_drain_covers_earlier_lives_of_the_same_identity() {
    let store = Store::new();
    let with = || table(&[("a.test", "u")], &[("u", &["1"])]);
    let without = || table(&[("a.test", "u")], &[("u", &["2"])]);
    let _ = store.publish(with());
    let first = lease(&store, "a.test");
    let _ = store.publish(without());
    let _ = store.publish(with());
    let second = lease(&store, "a.test");
    assert_ne!(first.endpoint().key, second.endpoint().key);
    let published = store.publish(without());
    assert_eq!(published.draining.in_flight().requests, 2);
    drop(second);
    assert_eq!(published.draining.in_flight().requests, 1);
    drop(first);
    assert_eq!(published.draining.in_flight().requests, 0);
}

/// The promise of the publish order, with real threads: who meets a stale snapshot finds a good one at
/// the next look, and is never left without an endpoint.
#[test]
fn no_lease_is_ever_lost_to_a_publish() {
    let store = Store::new();
    let _ = store.publish(table(&[("a.test", "u")], &[("u", &["0"])]));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut leases = 0u64;
                    while !done.load(Ordering::Relaxed) || leases == 0 {
                        let mut stale_at = None;
                        loop {
                            let generation = store.load().generation;
                            assert!(
                                stale_at.is_none_or(|stale| generation > stale),
                                "stale, but nothing newer is there"
                            );
                            match upstream(&store, "a.test").lease(Class::Request, &[], Instant::now()) {
                                Ok(_lease) => break,
                                Err(NoEndpoint::Stale) => stale_at = Some(generation),
                                Err(other) => panic!("{other:?}"),
                            }
                        }
                        leases += 1;
                    }
                })
            })
            .collect();
        for round in 1..=2_000 {
            let id = round.to_string();
            assert!(store.publish(table(&[("a.test", "u")], &[("u", &[&id])])).changed);
        }
        done.store(true, Ordering::Relaxed);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
}

/// Whoever holds a guard for long does not become the one who drops the snapshot: the reaper still holds it.
#[test]
fn old_snapshots_die_on_the_reaper() {
    let store = Store::new();
    let _ = store.publish(table(&[("a.test", "u")], &[("u", &["1"])]));
    let guard = store.load();
    let old: Weak<Live> = Arc::downgrade(&guard);
    let _ = store.publish(RouteTable::default());
    assert_eq!(old.strong_count(), 2, "the guard, and the reaper");
    drop(guard);
    let began = Instant::now();
    while old.strong_count() > 0 {
        assert!(began.elapsed() < LONG, "never reaped");
        std::thread::yield_now();
    }
}
