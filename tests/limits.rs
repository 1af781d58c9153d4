//! Slow and greedy clients: what ends them, and what of the kind never is ended.
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod harness;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use harness::{
    Itsup, Stream, Testd, db, eventually, plain, project, python, read_answer, read_head, run, send, tcp, tcp_from,
    tls, tls_config, tls_over, try_read_answer,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Far beyond every limit here, so that a client that is not ended shows as a failure and not as a hang.
const LONGEST: Duration = Duration::from_secs(150);

fn patient(stream: Stream) -> Stream {
    stream.tcp().set_read_timeout(Some(LONGEST)).unwrap();
    stream
}

/// Waits for the end of the connection; the bytes that came before, and how long it took from `start`.
fn end_of(stream: &mut Stream, start: Instant) -> (Vec<u8>, Duration) {
    let mut bytes = Vec::new();
    if let Err(error) = stream.read_to_end(&mut bytes) {
        let kind = error.kind();
        assert!(kind != std::io::ErrorKind::WouldBlock && kind != std::io::ErrorKind::TimedOut, "it was never ended");
    }
    (bytes, start.elapsed())
}

#[track_caller]
fn about(took: Duration, limit: u64) {
    let (least, most) = (Duration::from_millis(limit * 1000 - 500), Duration::from_secs(limit + 40));
    assert!(took >= least && took <= most, "{took:?} where {limit} s are the limit");
}

// One test, as all of it is waiting: together it takes as long as the longest limit.
#[test]
fn slow_clients_are_ended_at_their_limits_and_honest_ones_never() {
    let app = Testd::start();
    let itsup = Itsup::start(&db(&[project("app", "app.test", &[app.addr()], "")]));
    let (https, http, ca) = (itsup.https(), itsup.http(), itsup.ca());
    let client = move || patient(tls(https, "app.test", &ca));
    let mut all: Vec<(&str, JoinHandle<()>)> = Vec::new();
    let mut beside = |name, work: Box<dyn FnOnce() + Send>| {
        all.push((name, std::thread::Builder::new().name(name.into()).spawn(work).unwrap()));
    };

    beside(
        "a hello that does not come",
        Box::new(move || {
            let start = Instant::now();
            let mut stream = patient(Stream::Plain(tcp(https)));
            stream.write_all(&[22, 3, 1, 1, 0, 1]).unwrap();
            let (bytes, took) = end_of(&mut stream, start);
            assert_eq!(bytes, [0; 0]);
            about(took, 10);
        }),
    );
    let ca_file = itsup.ca();
    beside(
        "a handshake that stops half-way",
        Box::new(move || {
            let start = Instant::now();
            let name = "app.test".try_into().unwrap();
            let mut session = rustls::ClientConnection::new(tls_config(&ca_file, &[]).into(), name).unwrap();
            let mut stream = patient(Stream::Plain(tcp(https)));
            session.write_tls(&mut stream).unwrap();
            // The server's part is read, and ours never comes.
            let (bytes, took) = end_of(&mut stream, start);
            assert_eq!(bytes.first(), Some(&22));
            about(took, 10);
        }),
    );
    let connect = client.clone();
    beside(
        "a header that drips",
        Box::new(move || {
            let mut stream = connect();
            let start = Instant::now();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: app.test\r\nX: ").unwrap();
            stream.tcp().set_read_timeout(Some(Duration::from_millis(900))).unwrap();
            let answer = loop {
                // Each byte is well within any limit on a single read.
                let _ = stream.write_all(b"y");
                match try_read_answer(&mut stream, "GET") {
                    Ok(answer) => break answer,
                    Err(error) => assert!(start.elapsed() < LONGEST, "{error}"),
                }
            };
            assert_eq!((answer.status, answer.header("connection")), (408, Some("close")));
            about(start.elapsed(), 30);
        }),
    );
    beside(
        "a plain header that does not end",
        Box::new(move || {
            let mut stream = patient(plain(http));
            let start = Instant::now();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: app.test\r\n").unwrap();
            assert_eq!(read_answer(&mut stream, "GET").status, 408);
            about(start.elapsed(), 30);
        }),
    );
    let connect = client.clone();
    beside(
        "a promised body that stops",
        Box::new(move || {
            let mut stream = connect();
            send(&mut stream, "POST", "app.test", "/upload", &[("Content-Length", "100")], b"");
            stream.write_all(b"some").unwrap();
            let start = Instant::now();
            let answer = read_answer(&mut stream, "POST");
            assert_eq!(answer.status, 408);
            about(start.elapsed(), 30);
            assert!(stream.ended());
        }),
    );
    for (name, path, status) in [
        ("a body that stops after its answer", "/status/403", 403),
        ("a body that stops after an empty answer", "/status/204", 204),
    ] {
        let connect = client.clone();
        beside(
            name,
            Box::new(move || {
                let mut stream = connect();
                let start = Instant::now();
                send(&mut stream, "POST", "app.test", path, &[("Content-Length", "100")], b"");
                stream.write_all(b"some").unwrap();
                assert_eq!(read_answer(&mut stream, "POST").status, status);
                about(end_of(&mut stream, start).1, 5);
            }),
        );
    }
    let connect = client.clone();
    beside(
        "an idle kept connection",
        Box::new(move || {
            let mut stream = connect();
            send(&mut stream, "GET", "app.test", "/", &[], b"");
            assert_eq!(read_answer(&mut stream, "GET").status, 200);
            let (bytes, took) = end_of(&mut stream, Instant::now());
            assert_eq!(bytes, [0; 0]);
            about(took, 75);
        }),
    );
    beside(
        "an idle plain connection",
        Box::new(move || {
            let mut stream = patient(plain(http));
            let (_, took) = end_of(&mut stream, Instant::now());
            about(took, 75);
        }),
    );
    let ca = itsup.ca();
    beside(
        "an idle h2 connection",
        Box::new(move || {
            let mut stream = patient(tls_over(tcp(https), "app.test", tls_config(&ca, &["h2"])).unwrap());
            stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
            let (_, took) = end_of(&mut stream, Instant::now());
            about(took, 75);
        }),
    );

    let connect = client.clone();
    beside(
        "honest: an upload in drops",
        Box::new(move || {
            let mut stream = connect();
            send(&mut stream, "POST", "app.test", "/upload", &[("Content-Length", "12")], b"");
            for _ in 0..12 {
                std::thread::sleep(Duration::from_secs(4));
                stream.write_all(b"x").unwrap();
            }
            assert_eq!(read_answer(&mut stream, "POST").json()["bytes"], 12);
        }),
    );
    let connect = client.clone();
    beside(
        "honest: events with long silences",
        Box::new(move || {
            let mut stream = connect();
            send(&mut stream, "GET", "app.test", "/stream?n=3&ms=40000", &[], b"");
            assert_eq!(read_answer(&mut stream, "GET").text().matches("data:").count(), 3);
        }),
    );
    let connect = client.clone();
    beside(
        "honest: a slow answer",
        Box::new(move || {
            let mut stream = connect();
            send(&mut stream, "GET", "app.test", "/slow?ms=45000", &[], b"");
            assert_eq!(read_answer(&mut stream, "GET").status, 200);
        }),
    );
    let connect = client.clone();
    beside(
        "honest: an upload that pauses while it is answered",
        Box::new(move || {
            let mut stream = connect();
            send(&mut stream, "POST", "app.test", "/echo", &[("Content-Length", "8")], b"");
            stream.write_all(b"half").unwrap();
            assert_eq!(read_head(&mut stream).unwrap().0, 200);
            let mut half = [0; 4];
            stream.read_exact(&mut half).unwrap();
            std::thread::sleep(Duration::from_secs(40));
            stream.write_all(b"half").unwrap();
            stream.read_exact(&mut half).unwrap();
            assert_eq!(&half, b"half");
        }),
    );
    let mut websocket = python("websocket_client.py");
    websocket.args(["wss://app.test/ws", "--connect", &https.to_string(), "--hold", "80", "--ca"]).arg(itsup.ca());
    beside(
        "honest: a silent websocket",
        Box::new(move || {
            assert_eq!(run(&mut websocket).ok().json()["closed_by"], "us");
        }),
    );

    let failed: Vec<&str> =
        all.into_iter().filter_map(|(name, thread)| thread.join().is_err().then_some(name)).collect();
    assert_eq!(failed, [""; 0], "the panics above say why");
}

/// As many open files as the system lets us have.
fn raise_file_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

#[test]
fn one_client_address_has_a_bounded_number_of_connections() {
    const MOST: usize = 1024;
    raise_file_limit();
    let itsup = Itsup::with()
        .env("ITSUP_TRUSTED_PROXIES", "127.0.0.33")
        .db(&db(&["  - { name: hello, domain: hello.test }\n".into()]))
        .start();
    let open = |ip: &str, count: usize| -> Vec<TcpStream> {
        (0..count)
            .map(|number| tcp_from(ip, if number % 2 == 0 { itsup.https() } else { itsup.http() }, None))
            .collect()
    };
    let served = |ip: &str| {
        let config = tls_config(&itsup.ca(), &["http/1.1"]);
        tls_over(tcp_from(ip, itsup.https(), None), "hello.test", config).is_ok()
    };
    let held = open("127.0.0.32", MOST);
    eventually("all connections accepted", || {
        (itsup.status()["connections"].as_u64().unwrap() >= MOST as u64).then_some(())
    });
    assert!(!served("127.0.0.32"), "one more than the limit");
    assert!(served("127.0.0.34"), "another address has a limit of its own");
    assert!(itsup.metric("itsup_connections_refused_total{reason=\"client_limit\"}") >= 1.0);
    // A trusted proxy speaks for many.
    let many = open("127.0.0.33", MOST + 50);
    assert!(served("127.0.0.33"));
    drop((held, many));
    eventually("a place that was given back", || served("127.0.0.32").then_some(()));
}

#[test]
fn an_h2_connection_is_told_how_many_streams_it_may_have() {
    let itsup = Itsup::start(&db(&["  - { name: hello, domain: hello.test }\n".into()]));
    let mut stream = tls_over(tcp(itsup.https()), "hello.test", tls_config(&itsup.ca(), &["h2"])).unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    let mut head = [0; 9];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(head[3], 4, "SETTINGS come first");
    let mut settings = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
    stream.read_exact(&mut settings).unwrap();
    let value = |id: u8| {
        let setting = settings.chunks(6).find(|setting| setting[..2] == [0, id])?;
        Some(u32::from_be_bytes(setting[2..].try_into().unwrap()))
    };
    assert_eq!((value(3), value(6)), (Some(128), Some(64 * 1024)), "streams at a time, and bytes of header fields");
}
