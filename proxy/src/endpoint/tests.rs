use proptest::prelude::*;

use super::*;

fn endpoint() -> Arc<Endpoint> {
    let spec = EndpointSpec {
        id: "c1".into(),
        address: Address::Tcp(([127, 0, 0, 1], 80).into()),
        protocol: Protocol::H1,
        unhealthy: false,
    };
    Arc::new(Endpoint::new(&spec, Instant::now()))
}

fn after(start: Instant, millis: u64) -> Instant {
    start + Duration::from_millis(millis)
}

#[test]
fn leases_are_counted_by_class_and_counted_down_on_drop() {
    let endpoint = endpoint();
    let request = endpoint.try_lease(Class::Request).unwrap();
    let mut upgraded = endpoint.try_lease(Class::Request).unwrap();
    let _pass = endpoint.try_lease(Class::Passthrough).unwrap();
    upgraded.become_class(Class::Websocket);
    assert_eq!(upgraded.class, Class::Websocket);
    assert_eq!(endpoint.in_flight(), InFlight { requests: 1, streams: 0, websockets: 1, passthrough: 1 });
    drop(request);
    drop(upgraded);
    assert_eq!(endpoint.in_flight(), InFlight { passthrough: 1, ..InFlight::default() });
}

#[test]
fn closed_gives_no_lease_and_keeps_those_it_gave() {
    let endpoint = endpoint();
    let mut lease = endpoint.try_lease(Class::Request).unwrap();
    assert_eq!(endpoint.close().requests, 1);
    assert!(endpoint.is_closed());
    assert!(endpoint.try_lease(Class::Request).is_none());
    lease.become_class(Class::Websocket);
    assert_eq!(endpoint.in_flight(), InFlight { websockets: 1, ..InFlight::default() });
    drop(lease);
    assert_eq!(endpoint.in_flight(), InFlight::default());
    assert!(endpoint.is_closed(), "counting down never opens it");
}

#[test]
fn two_endpoints_of_one_address_have_two_keys() {
    assert_ne!(endpoint().key, endpoint().key);
}

#[test]
fn a_burst_of_failures_counts_once() {
    let endpoint = endpoint();
    let start = Instant::now();
    for _ in 0..100 {
        endpoint.record_failure(start);
    }
    assert!(endpoint.is_set_aside(start));
    assert!(!endpoint.is_set_aside(after(start, 1_001)), "the first back-off is a second");
}

#[test]
fn back_off_grows_with_each_round_and_ends_with_a_success() {
    let endpoint = endpoint();
    let mut now = Instant::now();
    let mut last = Duration::ZERO;
    for _ in 0..4 {
        endpoint.record_failure(now);
        let back_off = endpoint.set_aside_for(now);
        assert!(back_off > last, "{back_off:?} after {last:?}");
        last = back_off;
        now = now + back_off + Duration::from_millis(1);
        assert!(!endpoint.is_set_aside(now));
        assert!(endpoint.is_suspect(), "it has not answered yet");
    }
    endpoint.record_failure(now);
    endpoint.record_success();
    assert!(!endpoint.is_set_aside(now) && !endpoint.is_suspect());
    endpoint.record_failure(now);
    assert!(endpoint.set_aside_for(now) <= Duration::from_secs(1), "it starts over");
}

#[test]
fn a_failed_probe_holds_it_back_until_the_next_one() {
    let endpoint = endpoint();
    let start = Instant::now();
    endpoint.record_failure(start);
    let next = after(start, 2_500);
    endpoint.record_probe_failure(after(start, 500), next);
    assert!(endpoint.is_set_aside(next));
}

#[test]
fn status_names_the_worst_that_holds() {
    let endpoint = endpoint();
    let now = Instant::now();
    assert_eq!(endpoint.status(now).state, EndpointState::Up);
    endpoint.probe_unhealthy(true);
    assert_eq!(endpoint.status(now).state, EndpointState::Unhealthy);
    endpoint.record_failure(now);
    assert_eq!(endpoint.status(now).state, EndpointState::SetAside);
    endpoint.close();
    assert_eq!(endpoint.status(now).state, EndpointState::Draining);
    assert_eq!(endpoint.status(now).address, "127.0.0.1:80");
}

proptest! {
    #[test]
    fn back_off_is_between_its_bounds(round in 1u8.., random: u64) {
        let whole = 1_000u64.checked_shl(u32::from(round) - 1).filter(|ms| *ms >= 1_000 && round < 20)
            .unwrap_or(u64::MAX).min(30_000);
        let ms = back_off(round, random);
        prop_assert!(ms <= whole && ms >= whole * 4 / 5, "{ms} of {whole}");
    }

    #[test]
    fn set_aside_survives_packing(until in 0u64..1 << 56, rounds: u8) {
        let set_aside = SetAside { until, rounds };
        prop_assert_eq!(SetAside::unpack(set_aside.pack()), set_aside);
    }

    /// Whatever is leased, changed and dropped in whatever order, the counts are those of a plain model.
    #[test]
    fn counts_are_those_of_a_model(steps in prop::collection::vec((0usize..4, 0usize..4, any::<bool>()), 0..200)) {
        let endpoint = endpoint();
        let mut model: Vec<Class> = Vec::new();
        let mut leases: Vec<Lease> = Vec::new();
        for (class, to, drops) in steps {
            if drops && !leases.is_empty() {
                let at = to % leases.len();
                drop(leases.swap_remove(at));
                model.swap_remove(at);
            } else {
                let mut lease = endpoint.try_lease(Class::ALL[class]).unwrap();
                lease.become_class(Class::ALL[to]);
                leases.push(lease);
                model.push(Class::ALL[to]);
            }
            let count = |class| u32::try_from(model.iter().filter(|c| **c == class).count()).unwrap();
            prop_assert_eq!(endpoint.in_flight(), InFlight::from_fn(count));
        }
    }
}
