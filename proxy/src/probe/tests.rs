use tokio::net::TcpListener;

use super::*;
use crate::host::HostPattern;
use crate::table::{Action, EndpointSpec, RouteTable, Site, Upstream};

fn endpoint(address: std::net::SocketAddr) -> Arc<Endpoint> {
    let address = Address::Tcp(address);
    Arc::new(Endpoint::new(
        &EndpointSpec { id: "e".into(), address, protocol: Protocol::H1, unhealthy: false },
        Instant::now(),
    ))
}

fn health() -> Health {
    Health { path: "/up".into(), interval: Duration::from_secs(10), timeout: Duration::from_secs(5) }
}

/// Answers every connection with these bytes, after it has read a request line.
async fn server(answer: &'static str) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut read = [0; 8];
            if stream.read_exact(&mut read).await.is_ok() {
                assert_eq!(&read, b"GET /up ");
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        }
    });
    address
}

#[tokio::test]
async fn a_health_path_must_answer_2xx_or_3xx() {
    for (answer, good) in [
        ("HTTP/1.1 200 OK\r\n\r\n", true),
        ("HTTP/1.0 302 Found\r\n\r\n", true),
        ("HTTP/1.1 404 Not Found\r\n\r\n", false),
        ("HTTP/1.1 503 Busy\r\n\r\n", false),
        ("HTTP/1.1 2x0 Odd\r\n\r\n", false),
        ("SSH-2.0-OpenSSH\r\n", false),
        ("HTTP/1.1 2", false),
        ("", false),
    ] {
        let endpoint = endpoint(server(answer).await);
        let health = Health { timeout: Duration::from_millis(500), ..health() };
        assert_eq!(probe(&endpoint, Some(&health), health.timeout).await, good, "{answer:?}");
    }
}

#[tokio::test]
async fn without_a_path_an_open_port_will_do_and_a_closed_one_will_not() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = endpoint(listener.local_addr().unwrap());
    assert!(probe(&endpoint, None, Duration::from_secs(5)).await);
    drop(listener);
    assert!(!probe(&endpoint, None, Duration::from_secs(5)).await);
}

#[test]
fn only_what_is_suspect_or_has_a_health_path_is_probed() {
    let (mut schedule, now) = (Schedule::default(), Instant::now());
    let endpoint = endpoint(([127, 0, 0, 1], 1).into());
    let plain = Policy::default();
    let watched = Policy { health: Some(health()), ..Policy::default() };
    assert_eq!(schedule.due(&endpoint, &plain, now), None);
    assert_eq!(schedule.due(&endpoint, &watched, now), Some(Kind::Health));
    assert_eq!(schedule.due(&endpoint, &watched, now + Duration::from_secs(60)), None, "one is running");
    schedule.conclude(&endpoint, Kind::Health, true, now);
    assert_eq!(schedule.due(&endpoint, &watched, now + Duration::from_secs(9)), None, "its interval");
    endpoint.record_failure(now);
    assert_eq!(schedule.due(&endpoint, &watched, now + Duration::from_secs(2)), Some(Kind::SetAside));
}

#[test]
fn two_failures_make_unhealthy_and_one_answer_makes_well() {
    let (mut schedule, now) = (Schedule::default(), Instant::now());
    let endpoint = endpoint(([127, 0, 0, 1], 1).into());
    let watched = Policy { health: Some(health()), ..Policy::default() };
    let mut at = now;
    for (answered, unhealthy) in [(false, false), (false, true), (false, true), (true, false), (false, false)] {
        assert_eq!(schedule.due(&endpoint, &watched, at), Some(Kind::Health));
        schedule.conclude(&endpoint, Kind::Health, answered, at);
        assert_eq!(endpoint.is_unhealthy(), unhealthy);
        at += Duration::from_secs(10);
    }
}

#[test]
fn a_set_aside_endpoint_that_does_not_answer_stays_so() {
    let (mut schedule, now) = (Schedule::default(), Instant::now());
    let endpoint = endpoint(([127, 0, 0, 1], 1).into());
    endpoint.record_failure(now);
    for second in 0..60 {
        let at = now + Duration::from_secs(second);
        assert!(endpoint.is_set_aside(at), "after {second} s");
        assert_eq!(schedule.due(&endpoint, &Policy::default(), at), Some(Kind::SetAside));
        schedule.conclude(&endpoint, Kind::SetAside, false, at);
    }
    schedule.conclude(&endpoint, Kind::SetAside, true, now);
    assert!(!endpoint.is_suspect());
    schedule.forget_unseen();
    schedule.forget_unseen();
    assert!(schedule.0.is_empty(), "nothing is remembered of endpoints that are well");
}

#[tokio::test]
async fn the_keeper_brings_a_set_aside_endpoint_back() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let spec = EndpointSpec {
        id: "e".into(),
        address: Address::Tcp(listener.local_addr().unwrap()),
        protocol: Protocol::H1,
        unhealthy: false,
    };
    let mut table = RouteTable::default();
    table.upstreams.insert("u".into(), Arc::new(Upstream { endpoints: vec![spec], policy: Policy::default() }));
    table.hosts.insert(HostPattern::parse("a.test").unwrap(), Action::Terminate(Arc::new(Site::new("s", vec![]))));
    let store = Store::new();
    let _ = store.publish(table);
    let upstream = store.load().upstreams().next().unwrap().clone();
    upstream.endpoints[0].record_failure(Instant::now());
    let keeper = tokio::spawn(keeper(store));
    // The probe's own connection is the event to wait for; what it finds is written right after it.
    listener.accept().await.unwrap();
    let written = async {
        while upstream.endpoints[0].is_suspect() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), written).await.unwrap();
    keeper.abort();
}
