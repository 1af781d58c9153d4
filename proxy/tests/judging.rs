//! What the engine would decide otherwise: retries, silence, early answers, through real sockets.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use itsup_proxy::{Class, HoldLimits, Policy, Protocol};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

mod kit;
use kit::*;

/// What an h2c endpoint does with one request.
type Serve = fn(u32, http::Request<h2::RecvStream>, h2::server::SendResponse<Bytes>);

/// Speaks HTTP/2 in the clear; requests are numbered.
async fn h2c(serve: Serve) -> Setup {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(AtomicU32::new(0));
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let seen = seen.clone();
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(tcp).await else { return };
                while let Some(Ok((request, respond))) = connection.accept().await {
                    serve(seen.fetch_add(1, Ordering::Relaxed), request, respond);
                }
            });
        }
    });
    Setup { protocol: Protocol::H2c, ..Setup::new("c1", address) }
}

fn post(path: &str) -> http::Request<()> {
    http::Request::post(format!("https://{HOST}{path}")).body(()).unwrap()
}

#[tokio::test]
async fn a_post_that_an_h2_endpoint_has_refused_is_sent_again() {
    let setup = h2c(|nth, mut request, mut respond| {
        if nth == 0 {
            respond.send_reset(h2::Reason::REFUSED_STREAM);
            return;
        }
        tokio::spawn(async move {
            let len = ended(request.body_mut()).await.unwrap();
            let mut body = respond.send_response(http::Response::new(()), false).unwrap();
            body.send_data(format!("{len}").into(), true).unwrap();
        });
    })
    .await;
    let rig = Rig::new(&setup);
    let mut client = rig.h2().await;
    let (response, mut body) = client.send_request(post("/"), false).unwrap();
    body.send_data("hello".into(), true).unwrap();
    let response = soon(response).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(soon(response.into_body().data()).await.unwrap().unwrap(), "5");
    until("it is counted", || rig.proxy.upstream_status(&app()).unwrap().endpoints[0].tally.retried == 1).await;
}

#[tokio::test]
async fn a_post_that_an_h2_endpoint_has_broken_is_not_sent_again() {
    let setup = h2c(|_, _, mut respond| respond.send_reset(h2::Reason::INTERNAL_ERROR)).await;
    let rig = Rig::new(&setup);
    let mut client = rig.h2().await;
    let (response, _) = client.send_request(post("/"), true).unwrap();
    assert_eq!(soon(response).await.unwrap().status(), 502);
    let tally = || rig.proxy.upstream_status(&app()).unwrap().endpoints[0].tally;
    until("it is counted", || tally().broken == 1).await;
    assert_eq!(tally().retried, 0);
}

#[tokio::test]
async fn an_event_stream_from_an_h2_endpoint_gets_its_end() {
    let setup = h2c(|_, _, mut respond| {
        let response = http::Response::builder().header("content-type", "text/event-stream").body(()).unwrap();
        let mut body = respond.send_response(response, false).unwrap();
        body.send_data("data: 1\n\n".into(), false).unwrap();
        tokio::spawn(async move {
            std::future::pending::<()>().await;
            drop(body);
        });
    })
    .await;
    let rig = Rig::new(&setup);
    let mut client = rig.h2().await;
    let (response, _) = client.send_request(get("/events"), true).unwrap();
    let mut body = soon(response).await.unwrap().into_body();
    assert_eq!(soon(body.data()).await.unwrap().unwrap(), "data: 1\n\n");
    let draining = rig.retire();
    assert_eq!(draining.in_flight().streams, 1);
    assert_eq!(draining.end(&[Class::Stream], Duration::ZERO).await.left.total(), 0);
    ended(&mut body).await.expect("an end, and no error");
    assert_eq!(draining.tally().cut, 1);
}

/// An endpoint that answers a websocket's handshake and then sends a frame every so often, `times` times.
async fn ticking(every: Duration, times: u32) -> Setup {
    let address = endpoint(move |mut tcp, _| async move {
        let switch = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
        tcp.write_all(switch.as_bytes()).await.unwrap();
        for _ in 0..times {
            tokio::time::sleep(every).await;
            tcp.write_all(b"\x81\x01x").await.unwrap();
        }
        let _ = tcp.read(&mut [0; 64]).await;
    })
    .await;
    let policy = Policy { idle_timeout: Some(Duration::from_secs(2)), ..Policy::default() };
    Setup { policy, ..Setup::new("c1", address) }
}

#[tokio::test]
async fn a_websocket_ends_when_both_sides_are_silent_and_not_before() {
    let rig = Rig::new(&ticking(Duration::from_millis(500), 8).await);
    let mut client = rig.h1().await;
    let began = Instant::now();
    client.write_all(&websocket()).await.unwrap();
    assert!(head(&mut client).await.unwrap().starts_with("HTTP/1.1 101"));
    // Twice the limit without a word from the client.
    assert_eq!(exactly(&mut client, 8 * 3).await, b"\x81\x01x".repeat(8));
    assert!(began.elapsed() >= Duration::from_secs(4));
    assert!(rest(&mut client).await.0.is_empty());
    assert!(began.elapsed() >= Duration::from_secs(6));
}

#[tokio::test]
async fn an_early_answer_does_not_wait_for_a_long_body() {
    let rig = Rig::new(&Setup::default());
    let mut client = rig.h1().await;
    let head_of = |length: u64| format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n\r\n");
    // A short rest is thrown away, and the connection goes on.
    client.write_all(head_of(5).as_bytes()).await.unwrap();
    let answer = head(&mut client).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    let mut client = rig.h1().await;
    client.write_all(head_of(10_000_000_000).as_bytes()).await.unwrap();
    let answer = head(&mut client).await.unwrap().to_lowercase();
    assert!(answer.starts_with("http/1.1 503") && answer.contains("connection: close"), "{answer}");
    assert!(rest(&mut client).await.1, "it is closed without waiting for the body");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_while_they_are_held() {
    let address = endpoint(|mut tcp, mut first| async move {
        loop {
            let path = first.split(' ').nth(1).unwrap().to_owned();
            let said = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len());
            tcp.write_all(said.as_bytes()).await.unwrap();
            match head(&mut tcp).await {
                Some(next) => first = next,
                None => return,
            }
        }
    })
    .await;
    let rig = Rig::new(&Setup::new("c1", address));
    let hold = rig.proxy.hold(&app(), HoldLimits::default());
    let mut client = rig.h1().await;
    client.write_all(&[get_h1("/1"), get_h1("/2"), get_h1("/3")].concat()).await.unwrap();
    until("the first waits", || hold.held().waiting == 1).await;
    assert_eq!(hold.release().await.waited, 1);
    for path in ["/1", "/2", "/3"] {
        assert!(head(&mut client).await.unwrap().starts_with("HTTP/1.1 200"));
        assert_eq!(exactly(&mut client, 2).await, path.as_bytes());
    }
}
