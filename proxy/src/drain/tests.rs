use super::*;
use crate::endpoint::Lease;
use crate::table::{Address, EndpointSpec, Protocol};

const LONG: Duration = Duration::from_secs(60);

fn endpoint(id: &str) -> Arc<Endpoint> {
    let address = Address::Tcp(([127, 0, 0, 1], 80).into());
    let spec = EndpointSpec { id: id.into(), address, protocol: Protocol::H1, unhealthy: false };
    Arc::new(Endpoint::new(&spec, Instant::now()))
}

fn closed(endpoints: &[&Arc<Endpoint>]) -> Draining {
    for endpoint in endpoints {
        endpoint.close();
    }
    Draining::new(endpoints.iter().map(|endpoint| Arc::clone(endpoint)).collect(), Arc::default())
}

fn lease(endpoint: &Arc<Endpoint>, class: Class) -> Lease {
    endpoint.try_lease(class).unwrap()
}

#[tokio::test]
async fn nothing_retired_is_drained_at_once() {
    let drained = Draining::default().wait(LONG).await;
    assert_eq!((drained.finished, drained.left), Default::default());
}

#[tokio::test]
async fn it_waits_for_the_last_lease_of_every_endpoint() {
    let (a, b) = (endpoint("a"), endpoint("b"));
    let leases = [lease(&a, Class::Request), lease(&b, Class::Websocket), lease(&b, Class::Passthrough)];
    let draining = closed(&[&a, &b]);
    let waiting = tokio::spawn({
        let draining = draining.clone();
        async move { draining.wait(LONG).await }
    });
    for lease in leases {
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(lease);
    }
    let drained = waiting.await.unwrap();
    assert_eq!(drained.finished, InFlight { requests: 1, websockets: 1, passthrough: 1, ..InFlight::default() });
    assert_eq!(drained.left, InFlight::default());
}

#[tokio::test]
async fn the_limit_ends_the_wait_and_says_what_is_left() {
    let a = endpoint("a");
    let (done, _held) = (lease(&a, Class::Request), lease(&a, Class::Websocket));
    let draining = closed(&[&a]);
    drop(done);
    let drained = draining.wait(Duration::from_millis(5)).await;
    assert_eq!(drained.finished, InFlight { requests: 1, ..InFlight::default() });
    assert_eq!(drained.left, InFlight { websockets: 1, ..InFlight::default() });
    assert!(drained.waited >= Duration::from_millis(5));
}

#[tokio::test]
async fn requests_can_be_waited_for_alone() {
    let a = endpoint("a");
    let (request, _held) = (lease(&a, Class::Request), lease(&a, Class::Websocket));
    let draining = closed(&[&a]);
    let waiting = tokio::spawn({
        let draining = draining.clone();
        async move { draining.wait_requests(LONG).await }
    });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    drop(request);
    assert_eq!(waiting.await.unwrap().left, InFlight { websockets: 1, ..InFlight::default() });
}

/// From another thread, over and over: a lost wake-up would hang until the limit.
#[tokio::test]
async fn leases_that_end_on_other_threads_wake_the_waiter() {
    for _ in 0..500 {
        let a = endpoint("a");
        let lease = lease(&a, Class::Request);
        let draining = closed(&[&a]);
        let other = std::thread::spawn(move || drop(lease));
        let drained = draining.wait(LONG).await;
        assert_eq!(drained.left, InFlight::default());
        assert!(drained.waited < LONG / 2);
        other.join().unwrap();
    }
}
