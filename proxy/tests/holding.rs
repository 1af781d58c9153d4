//! Requests that wait for their upstream, endpoints that come back, and what is counted, through real sockets.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use itsup_proxy::HoldLimits;
use itsup_proxy::status::{EndpointState, InFlight};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

mod kit;
use kit::*;

/// Answers every request on a connection with its own name.
async fn named(name: &'static str) -> SocketAddr {
    endpoint(move |tcp, head| answer(tcp, head, name)).await
}

async fn answer(mut tcp: TcpStream, mut first: String, name: &'static str) {
    loop {
        let length =
            first.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ").map(str::to_owned));
        let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
        if tcp.read_exact(&mut body).await.is_err() {
            return;
        }
        let said = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
        if tcp.write_all(said.as_bytes()).await.is_err() {
            return;
        }
        first.clear();
        while !first.ends_with("\r\n\r\n") {
            match tcp.read_u8().await {
                Ok(byte) => first.push(byte.into()),
                Err(_) => return,
            }
        }
    }
}

fn post(length: usize) -> Vec<u8> {
    format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n\r\n").into_bytes()
}

#[tokio::test]
async fn what_is_held_goes_on_to_what_came_instead() {
    let (old, new) = (named("old").await, named("new").await);
    let rig = Rig::new(&Setup::new("c1", old));
    let hold = rig.proxy.hold(&app(), HoldLimits::default());
    let draining = rig.retire();
    assert_eq!(draining.wait(PATIENCE).await.left, InFlight::default());

    let mut h1 = rig.h1().await;
    h1.write_all(&get_h1("/")).await.unwrap();
    let mut uploading = rig.h1().await;
    uploading.write_all(&post(5)).await.unwrap();
    uploading.write_all(b"hello").await.unwrap();
    let mut h2 = rig.h2().await;
    let (response, _) = h2.send_request(get("/"), true).unwrap();
    until("three wait", || hold.held().waiting == 3).await;
    assert_eq!(rig.proxy.upstream_status(&app()).unwrap().held.unwrap().waiting, 3);
    assert_eq!(rig.proxy.status().upstreams[0].held.unwrap().waiting, 3);

    // The hold outlives publishes, with endpoints and without.
    let _ = rig.publish(&Setup::new("c2", new));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(hold.held().waiting, 3);
    let held = hold.release().await;
    assert_eq!((held.waiting, held.waited, held.refused, held.left), (0, 3, 0, 0));
    assert!(held.longest >= Duration::from_millis(50));
    for client in [&mut h1, &mut uploading] {
        assert!(head(client).await.unwrap().starts_with("HTTP/1.1 200"));
        assert_eq!(exactly(client, 3).await, b"new");
    }
    assert_eq!(soon(response).await.unwrap().status(), 200);
    assert!(rig.proxy.upstream_status(&app()).unwrap().held.is_none());
}

#[tokio::test]
async fn bodies_stay_with_their_clients_while_they_are_held() {
    let rig = Rig::new(&Setup::new("c1", named("one").await));
    let hold = rig.proxy.hold(&app(), HoldLimits::default());
    let mut client = rig.h1().await;
    client.write_all(&post(256 * 1024 * 1024)).await.unwrap();
    let mut taken = 0;
    while let Ok(written) = tokio::time::timeout(Duration::from_millis(500), client.write(&[7; 64 * 1024])).await {
        taken += written.unwrap();
        assert!(taken < 64 * 1024 * 1024, "somebody reads the body");
    }
    assert_eq!(hold.held().waiting, 1);
}

#[tokio::test]
async fn past_the_limits_it_is_503() {
    let rig = Rig::new(&Setup::new("c1", named("one").await));
    let hold = rig.proxy.hold(&app(), HoldLimits { wait: Duration::from_millis(700), most: 1 });
    let mut first = rig.h1().await;
    first.write_all(&get_h1("/")).await.unwrap();
    until("one waits", || hold.held().waiting == 1).await;
    let mut second = rig.h1().await;
    second.write_all(&get_h1("/")).await.unwrap();
    for client in [&mut second, &mut first] {
        let answer = head(client).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 503") && answer.to_lowercase().contains("retry-after: 5\r\n"), "{answer}");
    }
    let held = hold.release().await;
    assert_eq!((held.waiting, held.waited, held.refused), (0, 1, 2));
    assert!(held.longest >= Duration::from_millis(700));
}

#[tokio::test]
async fn a_held_client_that_hangs_up_frees_its_place() {
    let rig = Rig::new(&Setup::new("c1", named("one").await));
    let hold = rig.proxy.hold(&app(), HoldLimits { most: 4, ..HoldLimits::default() });
    let mut plain = rig.h1().await;
    plain.write_all(&get_h1("/")).await.unwrap();
    let mut uploading = rig.h1().await;
    uploading.write_all(&post(1_000_000)).await.unwrap();
    uploading.write_all(&[7; 200_000]).await.unwrap();
    let mut h2 = rig.h2().await;
    let (response, body) = h2.send_request(get("/"), true).unwrap();
    let mut passing = TcpStream::connect(rig.proxy.https_addr()).await.unwrap();
    passing.write_all(&hello()).await.unwrap();
    until("four wait", || hold.held().waiting == 4).await;
    drop((plain, uploading, passing));
    drop((response, body));
    until("all have left", || hold.held().waiting == 0).await;
    assert_eq!(hold.held().left, 4);
    assert_eq!(rig.in_flight(), InFlight::default());
}

#[tokio::test]
async fn a_passthrough_connection_waits_too() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rig = Rig::new(&Setup::default());
    let hold = rig.proxy.hold(&app(), HoldLimits::default());
    let mut client = TcpStream::connect(rig.proxy.https_addr()).await.unwrap();
    client.write_all(&hello()).await.unwrap();
    until("it waits", || hold.held().waiting == 1).await;
    let _ = rig.publish(&Setup::new("c1", listener.local_addr().unwrap()));
    assert_eq!(hold.release().await.waited, 1);
    let (mut server, _) = soon(listener.accept()).await.unwrap();
    server.write_all(b"answer").await.unwrap();
    assert_eq!(exactly(&mut client, 6).await, b"answer");
}

/// A restart in place: what comes for the service in the meantime sees nothing of it.
#[tokio::test]
async fn a_restart_under_load_is_not_seen() {
    static ANSWERED: AtomicU64 = AtomicU64::new(0);
    let rig = Arc::new(Rig::new(&Setup::new("c1", named("old").await)));
    let stop = Arc::new(tokio::sync::Notify::new());
    let clients: Vec<_> = (0..8)
        .map(|n| {
            let (rig, stop) = (rig.clone(), stop.clone());
            tokio::spawn(async move {
                let mut client = rig.h1().await;
                let stopped = stop.notified();
                tokio::pin!(stopped);
                stopped.as_mut().enable();
                loop {
                    let request = if n % 2 == 0 { get_h1("/") } else { [post(5), b"hello".to_vec()].concat() };
                    client.write_all(&request).await.unwrap();
                    let head = head(&mut client).await.unwrap();
                    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
                    exactly(&mut client, 3).await;
                    ANSWERED.fetch_add(1, Ordering::Relaxed);
                    if tokio::time::timeout(Duration::from_millis(2), &mut stopped).await.is_ok() {
                        return;
                    }
                }
            })
        })
        .collect();
    for round in 0..5 {
        let before = ANSWERED.load(Ordering::Relaxed);
        until("traffic flows", || ANSWERED.load(Ordering::Relaxed) >= before + 50).await;
        let hold = rig.proxy.hold(&app(), HoldLimits::default());
        let draining = rig.retire();
        assert_eq!(draining.wait(PATIENCE).await.left, InFlight::default());
        until("all clients wait", || hold.held().waiting == 8).await;
        let _ = rig.publish(&Setup::new(&format!("c{}", round + 2), named("new").await));
        let held = hold.release().await;
        assert_eq!((held.waited, held.refused, held.left), (8, 0, 0));
    }
    let before = ANSWERED.load(Ordering::Relaxed);
    until("traffic flows", || ANSWERED.load(Ordering::Relaxed) >= before + 50).await;
    stop.notify_waiters();
    for client in clients {
        soon(client).await.unwrap();
    }
}

#[tokio::test]
async fn an_endpoint_that_is_opened_again_is_a_new_one_beside_what_still_drains() {
    let address = endpoint(|mut tcp, head| async move {
        if head.starts_with("GET /events") {
            let said =
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n";
            tcp.write_all(said.as_bytes()).await.unwrap();
            let _ = tcp.read(&mut [0; 64]).await;
        } else {
            answer(tcp, head, "one").await;
        }
    })
    .await;
    let (old, new) = (Setup::new("c1", address), Setup::new("c2", named("two").await));
    let rig = Rig::new(&old);
    let mut client = rig.h2().await;
    let (response, _) = client.send_request(get("/events"), true).unwrap();
    let mut events = soon(response).await.unwrap().into_body();
    assert_eq!(soon(events.data()).await.unwrap().unwrap(), "x");
    let mut h1 = rig.h1().await;
    let ask = async |h1: &mut tokio_rustls::client::TlsStream<TcpStream>| {
        h1.write_all(&get_h1("/")).await.unwrap();
        head(h1).await.unwrap();
        String::from_utf8(exactly(h1, 3).await).unwrap()
    };
    assert_eq!(ask(&mut h1).await, "one");

    // Rolled over, and back again after a watch that failed.
    let first = rig.publish(&new);
    assert_eq!(ask(&mut h1).await, "two");
    let second = rig.publish(&old);
    assert_eq!(ask(&mut h1).await, "one");
    assert_eq!(second.wait(PATIENCE).await.left, InFlight::default());
    assert_eq!(second.tally().served, 1);
    // A request is counted when it is over, which may be just after its client has all of it.
    let served = || rig.proxy.upstream_status(&app()).unwrap().endpoints[0].tally.served;
    until("it has served again", || served() == 1).await;
    until("and before", || first.tally().served == 1).await;
    until("nothing is in flight", || rig.in_flight() == InFlight::default()).await;
    let status = rig.proxy.status();
    let endpoint = &status.upstreams[0].endpoints[0];
    assert_eq!((&*endpoint.id, endpoint.state, endpoint.tally.served), ("c1", EndpointState::Up, 1));
    assert_eq!(endpoint.in_flight, InFlight::default());
    assert_eq!(status.draining.len(), 1, "its earlier life still drains");
    assert_eq!(first.in_flight().streams, 1);

    // Retired once more, its earlier life counts for it: the container may go only when both are empty.
    let third = rig.publish(&new);
    assert_eq!(third.in_flight().streams, 1);
    assert_eq!(
        third.tallies().iter().map(|one| (&*one.id, one.tally.served)).collect::<Vec<_>>(),
        [("c1", 1), ("c1", 1)]
    );
    assert_eq!(third.end(&[itsup_proxy::Class::Stream], Duration::ZERO).await.left, InFlight::default());
    assert_eq!(ended(&mut events).await.expect("an end, and no error"), 0);
}

#[tokio::test]
async fn an_endpoint_that_stays_is_not_ended_for_the_one_that_goes() {
    let said = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n";
    let stream = move |mut tcp: TcpStream, _| async move {
        tcp.write_all(said.as_bytes()).await.unwrap();
        let _ = tcp.read(&mut [0; 64]).await;
    };
    let (a, b) = (endpoint(stream).await, endpoint(stream).await);
    let both = Setup { endpoints: vec![("a".into(), a), ("b".into(), b)], ..Setup::default() };
    let rig = Rig::new(&both);
    let mut client = rig.h2().await;
    let mut bodies = Vec::new();
    for _ in 0..6 {
        let (response, _) = client.send_request(get("/"), true).unwrap();
        let mut body = soon(response).await.unwrap().into_body();
        soon(body.data()).await.unwrap().unwrap();
        bodies.push(body);
    }
    let draining = rig.publish(&Setup::new("b", b));
    let gone = draining.in_flight().streams;
    assert!((1..6).contains(&gone), "least in flight spreads them");
    assert_eq!(draining.end(&itsup_proxy::Class::LONG, Duration::ZERO).await.left, InFlight::default());
    assert_eq!(rig.in_flight().streams, 6 - gone);
}

#[tokio::test]
async fn what_an_endpoint_does_is_counted() {
    let address = endpoint(|mut tcp, head| async move {
        let path = head.split(' ').nth(1).unwrap().to_owned();
        match path.as_str() {
            "/error" => {
                tcp.write_all(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await.unwrap()
            }
            "/nothing" => {}
            "/half" => tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await.unwrap(),
            _ => answer(tcp, head, "one").await,
        }
    })
    .await;
    let rig = Rig::new(&Setup::new("c1", address));
    let tally = || rig.proxy.upstream_status(&app()).unwrap().endpoints[0].tally;
    for (path, asked) in [("/error", 1), ("/nothing", 2), ("/half", 3), ("/", 4)] {
        let mut client = rig.h1().await;
        client.write_all(&get_h1(path)).await.unwrap();
        head(&mut client).await.unwrap();
        until(path, || tally().asked() == asked).await;
    }
    let tally = tally();
    assert_eq!((tally.served, tally.server_errors, tally.broken, tally.cut), (2, 1, 2, 0));
    assert_eq!((tally.failed(), tally.asked()), (3, 4));

    // A connection that is not taken is a failure of the one, and the other's success.
    let dead = nowhere().await;
    let both = Setup { endpoints: vec![("dead".into(), dead), ("c1".into(), address)], ..Setup::default() };
    let _ = rig.publish(&both);
    let dead_tally = || rig.proxy.upstream_status(&app()).unwrap().endpoints[0].tally;
    let mut client = rig.h1().await;
    for _ in 0..50 {
        client.write_all(&get_h1("/")).await.unwrap();
        assert!(head(&mut client).await.unwrap().starts_with("HTTP/1.1 200"));
        exactly(&mut client, 3).await;
        if dead_tally().connect_failures > 0 {
            break;
        }
    }
    let dead = dead_tally();
    assert_eq!((dead.connect_failures, dead.retried, dead.served), (1, 1, 0));
}
