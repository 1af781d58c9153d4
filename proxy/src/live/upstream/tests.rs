use std::collections::HashSet;

use super::*;
use crate::table::{Address, EndpointSpec, Protocol};

fn upstream(endpoints: u16) -> LiveUpstream {
    let spec = |n: u16| EndpointSpec {
        id: n.to_string().into(),
        address: Address::Tcp(([127, 0, 0, 1], n).into()),
        protocol: Protocol::H1,
        unhealthy: false,
    };
    let endpoints = (0..endpoints).map(|n| Arc::new(Endpoint::new(&spec(n), Instant::now()))).collect();
    LiveUpstream { name: "u".into(), policy: Policy::default(), endpoints }
}

fn picks(upstream: &LiveUpstream, tried: &[u64], now: Instant) -> HashSet<u64> {
    (0..200).filter_map(|_| upstream.lease(Class::Request, tried, now).ok()).map(|l| l.endpoint().key).collect()
}

fn keys(upstream: &LiveUpstream, of: &[usize]) -> HashSet<u64> {
    of.iter().map(|i| upstream.endpoints[*i].key).collect()
}

#[test]
fn no_endpoints_is_empty() {
    let now = Instant::now();
    assert_eq!(upstream(0).lease(Class::Request, &[], now).err(), Some(NoEndpoint::Empty));
}

#[test]
fn every_good_endpoint_gets_its_turn() {
    let upstream = upstream(5);
    assert_eq!(picks(&upstream, &[], Instant::now()), keys(&upstream, &[0, 1, 2, 3, 4]));
}

#[test]
fn held_leases_spread_evenly() {
    let upstream = upstream(4);
    let held: Vec<_> = (0..400).map(|_| upstream.lease(Class::Request, &[], Instant::now()).unwrap()).collect();
    for endpoint in &upstream.endpoints {
        assert!((90..=110).contains(&endpoint.load()), "{}", endpoint.load());
    }
    drop(held);
}

#[test]
fn of_two_the_less_loaded_always() {
    let upstream = upstream(2);
    let _busy = upstream.endpoints[0].try_lease(Class::Passthrough).unwrap();
    assert_eq!(picks(&upstream, &[], Instant::now()), keys(&upstream, &[1]));
}

#[test]
fn what_was_tried_is_not_tried_again() {
    let (upstream, now) = (upstream(3), Instant::now());
    let tried: Vec<u64> = upstream.endpoints.iter().map(|e| e.key).collect();
    assert_eq!(picks(&upstream, &tried[..2], now), keys(&upstream, &[2]));
    let down = upstream.lease(Class::Request, &tried, now).err();
    assert_eq!(down, Some(NoEndpoint::Down { retry_after: Duration::from_secs(1) }));
}

#[test]
fn good_then_unhealthy_then_set_aside() {
    let (upstream, now) = (upstream(4), Instant::now());
    upstream.endpoints[1].list_unhealthy(true);
    upstream.endpoints[2].record_failure(now);
    upstream.endpoints[3].close();
    assert_eq!(picks(&upstream, &[], now), keys(&upstream, &[0]));
    let good = upstream.endpoints[0].key;
    assert_eq!(picks(&upstream, &[good], now), keys(&upstream, &[1]));
    let unhealthy = upstream.endpoints[1].key;
    assert_eq!(picks(&upstream, &[good, unhealthy], now), keys(&upstream, &[2]));
}

#[test]
fn all_unhealthy_or_set_aside_still_serve() {
    let (upstream, now) = (upstream(2), Instant::now());
    upstream.endpoints.iter().for_each(|e| e.list_unhealthy(true));
    assert_eq!(picks(&upstream, &[], now).len(), 2);
    upstream.endpoints.iter().for_each(|e| e.record_failure(now));
    assert_eq!(picks(&upstream, &[], now).len(), 2);
}

#[test]
fn any_closed_one_means_that_a_newer_snapshot_is_there() {
    for count in [1, 3] {
        let (upstream, now) = (upstream(count), Instant::now());
        let tried: Vec<u64> = upstream.endpoints[1..].iter().map(|e| e.key).collect();
        upstream.endpoints[0].close();
        assert_eq!(upstream.lease(Class::Request, &tried, now).err(), Some(NoEndpoint::Stale));
    }
}

#[test]
fn retry_after_is_when_the_first_is_back() {
    let (upstream, now) = (upstream(2), Instant::now());
    let mut later = now;
    for _ in 0..4 {
        upstream.endpoints.iter().for_each(|e| e.record_failure(later));
        later += Duration::from_secs(31);
    }
    upstream.endpoints.iter().for_each(|e| e.record_failure(later));
    let tried: Vec<u64> = upstream.endpoints.iter().map(|e| e.key).collect();
    let Err(NoEndpoint::Down { retry_after }) = upstream.lease(Class::Request, &tried, later) else { panic!() };
    assert!(retry_after > Duration::from_secs(10) && retry_after <= Duration::from_secs(16), "{retry_after:?}");
}
