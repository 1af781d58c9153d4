//! What is left at a retired endpoint is ended as its kind wants it, through real sockets.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use itsup_proxy::Class;
use itsup_proxy::status::InFlight;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

mod kit;
use kit::*;

const SSE: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
const EVENT: &str = "data: 1\n\n";
const CLOSE: [u8; 4] = [0x88, 2, 0x03, 0xe9];

fn chunk(data: &str) -> String {
    format!("{:x}\r\n{data}\r\n", data.len())
}

/// Says what it has to say, and then nothing, for as long as it is listened to.
async fn say(mut tcp: TcpStream, what: String) {
    tcp.write_all(what.as_bytes()).await.unwrap();
    let _ = tcp.read(&mut [0; 1024]).await;
}

async fn events() -> Rig {
    let address = endpoint(|tcp, _| say(tcp, format!("{SSE}{}", chunk(EVENT)))).await;
    Rig::new(&Setup::new("old", address))
}

fn streams(streams: u32) -> InFlight {
    InFlight { streams, ..InFlight::default() }
}

#[tokio::test]
async fn an_event_stream_over_h1_gets_its_last_chunk() {
    let rig = events().await;
    let mut client = rig.h1().await;
    client.write_all(&get_h1("/events")).await.unwrap();
    assert!(head(&mut client).await.unwrap().starts_with("HTTP/1.1 200"));
    assert_eq!(exactly(&mut client, chunk(EVENT).len()).await, chunk(EVENT).as_bytes());
    assert_eq!(rig.in_flight(), streams(1));

    let draining = rig.retire();
    assert_eq!(draining.wait_requests(PATIENCE).await.left, streams(1), "an event stream is no request to wait for");
    let drained = draining.end(&Class::LONG, Duration::ZERO).await;
    assert_eq!((drained.finished, drained.left), (streams(1), InFlight::default()));
    assert_eq!(rest(&mut client).await, (b"0\r\n\r\n".to_vec(), true));
    assert_eq!((draining.tally().cut, draining.tally().broken), (1, 0));
}

#[tokio::test]
async fn an_event_stream_over_h2_gets_its_end_and_its_neighbours_go_on() {
    let address = endpoint(|mut tcp, head| async move {
        if head.starts_with("GET /events") {
            say(tcp, format!("{SSE}{}", chunk(EVENT))).await;
        } else {
            tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok").await.unwrap();
        }
    })
    .await;
    let rig = Rig::new(&Setup::new("old", address));
    let mut client = rig.h2().await;
    let (response, _) = client.send_request(get("/events"), true).unwrap();
    let mut body = soon(response).await.unwrap().into_body();
    assert_eq!(soon(body.data()).await.unwrap().unwrap(), EVENT);

    let draining = rig.publish(&Setup::new("new", address));
    let drained = draining.end(&[Class::Stream], Duration::ZERO).await;
    assert_eq!(drained.left, InFlight::default());
    assert_eq!(ended(&mut body).await.expect("an end, and no error"), 0);
    assert_eq!(draining.tally().cut, 1);
    let (response, _) = client.send_request(get("/"), true).unwrap();
    assert_eq!(soon(response).await.unwrap().status(), 200, "the connection goes on");
}

#[tokio::test]
async fn a_half_sent_download_never_ends_well() {
    let heads = [
        ("chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"),
        ("by length", "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nhello"),
        ("by the connection's end", "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello"),
    ];
    for (what, said) in heads {
        let address = endpoint(move |tcp, _| say(tcp, said.into())).await;
        let rig = Rig::new(&Setup::new("old", address));
        let mut h1 = rig.h1().await;
        h1.write_all(&get_h1("/")).await.unwrap();
        head(&mut h1).await.unwrap();
        let mut h1_old = rig.h1().await;
        h1_old.write_all(format!("GET / HTTP/1.0\r\nHost: {HOST}\r\n\r\n").as_bytes()).await.unwrap();
        let old_head = head(&mut h1_old).await.unwrap();
        assert!(!old_head.to_lowercase().contains("transfer-encoding"), "HTTP/1.0 knows no chunks: {old_head}");
        assert_eq!(exactly(&mut h1_old, 5).await, b"hello");
        let mut client = rig.h2().await;
        let (response, _) = client.send_request(get("/"), true).unwrap();
        let mut h2 = soon(response).await.unwrap().into_body();
        assert_eq!(soon(h2.data()).await.unwrap().unwrap(), "hello");
        until("three streams", || rig.in_flight() == streams(3)).await;

        let draining = rig.retire();
        assert_eq!(draining.end(&Class::LONG, Duration::ZERO).await.left, InFlight::default(), "{what}");
        let (said, orderly) = rest(&mut h1).await;
        assert!(!orderly && !said.ends_with(b"0\r\n\r\n"), "{what}: {}", said.escape_ascii());
        assert!(!rest(&mut h1_old).await.1, "{what}: HTTP/1.0 takes an orderly end for the response's");
        assert!(ended(&mut h2).await.expect_err("no end").is_reset(), "{what}");
        assert_eq!(draining.tally().cut, 3, "{what}");
    }
}

#[tokio::test]
async fn an_upload_that_is_ended_is_answered() {
    let address = endpoint(|mut tcp, _| async move {
        let _ = tokio::io::copy(&mut tcp, &mut tokio::io::sink()).await;
    })
    .await;
    let rig = Rig::new(&Setup::new("old", address));
    let mut client = rig.h1().await;
    let begin = format!("POST /upload HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1000000\r\n\r\nbegin");
    client.write_all(begin.as_bytes()).await.unwrap();
    until("an upload is a stream", || rig.in_flight() == streams(1)).await;
    let draining = rig.retire();
    assert_eq!(draining.end(&Class::LONG, Duration::ZERO).await.left, InFlight::default());
    let answer = head(&mut client).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.to_lowercase().contains("retry-after"), "{answer}");
}

#[tokio::test]
async fn small_requests_are_requests() {
    let went_on = Arc::new(Notify::new());
    let goes_on = went_on.clone();
    let address = endpoint(move |tcp, _| {
        let goes_on = goes_on.clone();
        async move {
            goes_on.notified().await;
            say(tcp, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".into()).await;
        }
    })
    .await;
    let rig = Rig::new(&Setup::new("old", address));
    let mut client = rig.h1().await;
    client
        .write_all(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 4\r\n\r\nbody").as_bytes())
        .await
        .unwrap();
    let request = InFlight { requests: 1, ..InFlight::default() };
    until("a request", || rig.in_flight() == request).await;
    let draining = rig.retire();
    assert_eq!(draining.end(&Class::ALL, Duration::ZERO).await.left, request, "requests proper are not ended");
    went_on.notify_one();
    assert!(head(&mut client).await.unwrap().starts_with("HTTP/1.1 200"));
    assert_eq!(exactly(&mut client, 2).await, b"ok");
    let drained = draining.wait(PATIENCE).await;
    assert_eq!(drained.left, InFlight::default());
    assert_eq!((draining.tally().served, draining.tally().cut), (1, 0));
}

/// A websocket whose server has sent `first`, and sends `second` when it is told to go on.
async fn websocket_rig(first: &'static [u8], second: &'static [u8]) -> (Rig, Arc<Notify>) {
    let goes_on = Arc::new(Notify::new());
    let told = goes_on.clone();
    let address = endpoint(move |mut tcp, _| {
        let goes_on = goes_on.clone();
        async move {
            let switch = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
            tcp.write_all(switch.as_bytes()).await.unwrap();
            tcp.write_all(first).await.unwrap();
            goes_on.notified().await;
            let _ = tcp.write_all(second).await;
            let _ = tcp.read(&mut [0; 1024]).await;
        }
    })
    .await;
    (Rig::new(&Setup::new("old", address)), told)
}

#[tokio::test]
async fn an_idle_websocket_is_told_that_the_server_goes_away() {
    let (rig, _) = websocket_rig(b"\x81\x02hi", b"").await;
    let mut client = rig.h1().await;
    client.write_all(&websocket()).await.unwrap();
    assert!(head(&mut client).await.unwrap().starts_with("HTTP/1.1 101"));
    assert_eq!(exactly(&mut client, 4).await, b"\x81\x02hi");
    // It works both ways before, and the client may be in the middle of sending.
    client.write_all(b"\x81\x82\0\0\0\0yo").await.unwrap();
    let websocket = InFlight { websockets: 1, ..InFlight::default() };
    until("a websocket", || rig.in_flight() == websocket).await;

    let draining = rig.retire();
    let drained = draining.end(&[Class::Websocket], Duration::ZERO).await;
    assert_eq!((drained.finished, drained.left), (websocket, InFlight::default()));
    let (last, orderly) = rest(&mut client).await;
    assert_eq!((last.as_slice(), orderly), (&CLOSE[..], true));
    assert_eq!(draining.tally().cut, 1);
}

#[tokio::test]
async fn a_websocket_is_closed_behind_the_frame_that_is_under_way() {
    // Ten bytes of a frame of 300, then the rest, and the next one, which is not to be begun.
    const REST: [u8; 294 + 4] = {
        let mut rest = [b'x'; 294 + 4];
        (rest[294], rest[295], rest[296], rest[297]) = (0x81, 2, b'n', b'o');
        rest
    };
    let (rig, goes_on) = websocket_rig(b"\x82\x7e\x01\x2c123456", &REST).await;
    let mut client = rig.h1().await;
    client.write_all(&websocket()).await.unwrap();
    head(&mut client).await.unwrap();
    exactly(&mut client, 10).await;
    let draining = rig.retire();
    let ending = tokio::spawn({
        let draining = draining.clone();
        async move { draining.end(&Class::LONG, Duration::ZERO).await }
    });
    // Told, it waits for its frame to end.
    assert!(tokio::time::timeout(Duration::from_millis(300), client.read_u8()).await.is_err());
    assert!(!ending.is_finished());
    goes_on.notify_one();
    let (said, orderly) = rest(&mut client).await;
    assert_eq!((said.len(), orderly), (294 + 4, true));
    assert!(said.starts_with(&REST[..294]) && said.ends_with(&CLOSE));
    assert_eq!(ending.await.unwrap().left, InFlight::default());
}

#[tokio::test]
async fn a_websocket_whose_frame_never_ends_loses_its_connection() {
    let (rig, _) = websocket_rig(b"\x82\x7e\x01\x2c123456", b"").await;
    let mut client = rig.h1().await;
    client.write_all(&websocket()).await.unwrap();
    head(&mut client).await.unwrap();
    exactly(&mut client, 10).await;
    let draining = rig.retire();
    assert_eq!(draining.end(&Class::LONG, Duration::ZERO).await.left, InFlight::default());
    assert!(rest(&mut client).await.0.is_empty(), "no close frame in the middle of a frame");
}

#[tokio::test]
async fn a_passthrough_connection_is_closed() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rig = Rig::new(&Setup::new("old", listener.local_addr().unwrap()));
    let mut client = TcpStream::connect(rig.proxy.https_addr()).await.unwrap();
    let hello = hello();
    client.write_all(&hello).await.unwrap();
    let (mut server, _) = soon(listener.accept()).await.unwrap();
    assert_eq!(exactly(&mut server, hello.len()).await, hello);
    server.write_all(b"answer").await.unwrap();
    assert_eq!(exactly(&mut client, 6).await, b"answer");
    let passed = InFlight { passthrough: 1, ..InFlight::default() };
    assert_eq!(rig.in_flight(), passed);

    let draining = rig.retire();
    let drained = draining.end(&[Class::Passthrough], Duration::ZERO).await;
    assert_eq!((drained.finished, drained.left), (passed, InFlight::default()));
    assert!(rest(&mut client).await.0.is_empty() && rest(&mut server).await.0.is_empty());
    assert_eq!(draining.tally().cut, 1);
}

#[tokio::test]
async fn ends_are_spread_over_a_time() {
    let rig = events().await;
    let mut client = rig.h2().await;
    let mut bodies = Vec::new();
    for _ in 0..10 {
        let (response, _) = client.send_request(get("/events"), true).unwrap();
        bodies.push(soon(response).await.unwrap().into_body());
    }
    let draining = rig.retire();
    let began = Instant::now();
    let ended: Vec<_> = bodies
        .into_iter()
        .map(|mut body| {
            tokio::spawn(async move {
                ended(&mut body).await.unwrap();
                began.elapsed()
            })
        })
        .collect();
    assert_eq!(draining.end(&Class::LONG, Duration::from_secs(2)).await.left, InFlight::default());
    let mut at = Vec::new();
    for ended in ended {
        at.push(ended.await.unwrap());
    }
    at.sort();
    assert!(at[9] - at[0] >= Duration::from_millis(1500), "{at:?}");
}

#[tokio::test]
async fn a_client_that_takes_nothing_does_not_hold_up_the_end() {
    let address = endpoint(|mut tcp, _| async move {
        tcp.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
        let data = Bytes::from(format!("{:x}\r\n{}\r\n", 65536, "x".repeat(65536)));
        while tcp.write_all(&data).await.is_ok() {}
    })
    .await;
    let rig = Rig::new(&Setup::new("old", address));
    let mut client = rig.h1().await;
    client.write_all(&get_h1("/")).await.unwrap();
    head(&mut client).await.unwrap();
    // Reading no more, it soon has the proxy wait for it.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let draining = rig.retire();
    assert_eq!(draining.end(&Class::LONG, Duration::ZERO).await.left, InFlight::default());
    assert!(!rest(&mut client).await.1, "a reset");
}
