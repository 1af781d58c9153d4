//! The route table: look-ups, publishes, and the end of a snapshot, from 10 to 100,000 hosts.

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use itsup_proxy::internals::Snapshots;
use itsup_proxy::{
    Action, Address, EndpointSpec, HostPattern, PathPrefix, Policy, Protocol, Route, RouteTable, Site, Target,
    Upstream, UpstreamName,
};

const SIZES: [usize; 3] = [10, 1_000, 100_000];

fn pattern(text: &str) -> HostPattern {
    HostPattern::parse(text).expect("a host pattern")
}

fn upstream(n: usize, generation: usize) -> Upstream {
    let address = Address::Tcp(SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 8080)));
    let id = format!("{n}.{generation}").into();
    Upstream {
        endpoints: vec![EndpointSpec { id, address, protocol: Protocol::H1, unhealthy: false }],
        policy: Policy::default(),
    }
}

/// Half exact, half wildcard hosts, each with a site and an upstream of its own.
fn table(hosts: usize) -> RouteTable {
    let mut table = RouteTable::default();
    for n in 0..hosts {
        let name: UpstreamName = format!("project-{n}/web").into();
        let path = PathPrefix::parse("/").expect("a path");
        let route = Route { path, strip: false, target: Target::Upstream(name.clone()) };
        let host = if n % 2 == 0 { format!("www.site-{n}.example.com") } else { format!("*.site-{n}.example.com") };
        let site = Site::new(format!("project-{n}"), vec![route]);
        table.hosts.insert(pattern(&host), Action::Terminate(Arc::new(site)));
        table.upstreams.insert(name, Arc::new(upstream(n, 0)));
    }
    table
}

fn lookup(c: &mut Criterion) {
    let mut group = c.benchmark_group("table/lookup");
    for size in SIZES {
        let snapshots = Snapshots::new();
        snapshots.publish(table(size));
        for (kind, odd) in [("exact", 0), ("wildcard", 1)] {
            let names: Vec<String> = (0..size / 2).map(|n| format!("www.site-{}.example.com", 2 * n + odd)).collect();
            // A stride that is prime to the sizes: neither cache nor prefetcher sees an order.
            let mut at = 0;
            group.bench_function(BenchmarkId::new(kind, size), |b| {
                b.iter(|| {
                    at = (at + 7_919) % names.len();
                    assert!(snapshots.lookup(black_box(&names[at])));
                });
            });
        }
    }
    group.finish();
}

/// One upstream of many changes, as a rollout does it.
fn publish_one_changed(c: &mut Criterion) {
    let mut group = c.benchmark_group("table/publish_one_changed");
    for size in [1_000, 100_000] {
        let snapshots = Snapshots::new();
        let base = table(size);
        snapshots.publish(base.clone());
        let mut generation = 0;
        let next = || {
            generation += 1;
            let mut next = base.clone();
            next.upstreams.insert("project-1/web".into(), Arc::new(upstream(1, generation)));
            next
        };
        group.sample_size(10).bench_function(BenchmarkId::from_parameter(size), {
            let mut next = next;
            move |b| b.iter_batched(&mut next, |table| assert!(snapshots.publish(table)), BatchSize::PerIteration)
        });
    }
    group.finish();
}

fn build(c: &mut Criterion) {
    let mut group = c.benchmark_group("table/build");
    for size in SIZES {
        let base = table(size);
        group.sample_size(10).bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter_batched(|| base.clone(), Snapshots::build, BatchSize::PerIteration);
        });
    }
    group.finish();
}

/// What the reaper takes over from the data threads.
fn drop_snapshot(c: &mut Criterion) {
    let mut group = c.benchmark_group("table/drop");
    for size in SIZES {
        let base = table(size);
        group.sample_size(10).bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter_batched(|| Snapshots::build(base.clone()), drop, BatchSize::PerIteration);
        });
    }
    group.finish();
}

criterion_group!(benches, lookup, build, publish_one_changed, drop_snapshot);
criterion_main!(benches);
