//! The end, and what else signals do: SIGTERM lets what is under way finish within the grace, SIGHUP reloads.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod harness;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use harness::{Itsup, PATIENCE, Root, Stream, Testd, db, eventually, project, tls, tls_config};
use nix::sys::signal::Signal;

/// The server behind, which is passed through as echo.test.
fn app() -> Testd {
    Testd::on("127.0.0.1", &["--tls-names", "echo.test"])
}

/// Longer than a test may take: whoever waits for it to pass has waited wrongly.
const LONG: &str = "10m";

fn site(app: &Testd) -> String {
    db(&[
        project("app", "app.test", &[app.addr()], ""),
        project("echo", "echo.test", &[app.tls()], "passthrough: true"),
    ])
}

fn start(app: &Testd, grace: &str) -> Itsup {
    Itsup::with().env("ITSUP_GRACE", grace).db(&site(app)).start()
}

fn ask(stream: &mut Stream, host: &str, path: &str) {
    harness::send(stream, "GET", host, path, &[], b"");
}

/// Waits until so many requests (with those that are long: streams), websockets and passthrough connections are in flight.
fn in_flight(itsup: &Itsup, wanted: [u64; 3]) {
    eventually("what is to be in flight", || {
        let status = itsup.status();
        let ends = status["upstreams"].as_array().unwrap().iter().flat_map(|up| up["endpoints"].as_array().unwrap());
        let mut sum = [0; 3];
        for end in ends {
            for (sum, classes) in sum.iter_mut().zip([&["requests", "streams"][..], &["websockets"], &["passthrough"]])
            {
                *sum += classes.iter().map(|class| end["in_flight"][class].as_u64().unwrap_or(0)).sum::<u64>();
            }
        }
        (sum == wanted).then_some(())
    });
}

fn refuses(itsup: &Itsup) {
    for address in [itsup.http(), itsup.https()] {
        eventually("nothing is accepted any more", || TcpStream::connect(address).is_err().then_some(()));
    }
}

#[test]
fn an_idle_one_ends_at_once_and_closes_idle_connections() {
    let app = app();
    let mut itsup = start(&app, LONG);
    // Kept by their clients, over each of the ways: h1, h2, one that has not spoken yet, and plain.
    let mut kept = tls(itsup.https(), "app.test", &itsup.ca());
    ask(&mut kept, "app.test", "/");
    assert_eq!(harness::read_answer(&mut kept, "GET").status, 200);
    let mut fresh = tls(itsup.https(), "app.test", &itsup.ca());
    fresh.flush().unwrap();
    let mut silent = harness::plain(itsup.https());
    let mut plain = harness::plain(itsup.http());
    eventually("all are accepted", || (itsup.status()["connections"] == 4).then_some(()));
    let began = Instant::now();
    itsup.signal(Signal::SIGTERM);
    let status = itsup.wait_exit(PATIENCE);
    assert_eq!(status.code(), Some(0));
    // Shorter than any limit that would have closed one of them anyway.
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
    for stream in [&mut kept, &mut fresh, &mut silent, &mut plain] {
        assert!(stream.ended());
    }
    for socket in ["data/itsup.sock", "data/api.sock"] {
        assert!(!itsup.root().path(socket).exists(), "{socket}");
    }
}

#[test]
fn sigterm_lets_requests_websockets_and_passthrough_finish() {
    let app = app();
    let mut itsup = start(&app, LONG);
    let mut slow = tls(itsup.https(), "app.test", &itsup.ca());
    // 200 pieces, 10 ms apart: well under way when the signal comes, and whole all the same.
    ask(&mut slow, "app.test", "/bytes/200000?piece=1000&ms=10");
    let (status, _) = harness::read_head(&mut slow).unwrap();
    let mut socket = tls(itsup.https(), "app.test", &itsup.ca());
    let upgrade = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    harness::send(&mut socket, "GET", "app.test", "/ws", &upgrade, b"");
    assert_eq!(harness::read_answer(&mut socket, "GET").status, 101);
    let mut passed = tls(itsup.https(), "echo.test", &app.cert());
    ask(&mut passed, "echo.test", "/bytes/200000?piece=1000&ms=10");
    in_flight(&itsup, [1, 1, 1]);

    itsup.signal(Signal::SIGTERM);
    refuses(&itsup);
    // The websocket still carries messages: a masked text frame goes out, the same text comes back.
    socket.write_all(&[0x81, 0x82, 0, 0, 0, 0, b'h', b'i']).unwrap();
    let mut frame = [0; 4];
    socket.read_exact(&mut frame).unwrap();
    assert_eq!(&frame, &[0x81, 0x02, b'h', b'i']);
    assert_eq!(status, 200);
    let mut body = Vec::new();
    (&mut slow as &mut dyn std::io::Read).take(200_000).read_to_end(&mut body).unwrap();
    let whole = |body: &[u8]| body.len() == 200_000 && body.iter().enumerate().all(|(i, b)| usize::from(*b) == i % 251);
    assert!(whole(&body), "{} bytes", body.len());
    assert!(slow.ended(), "no further request is awaited");
    let answer = harness::read_answer(&mut passed, "GET");
    assert!(whole(&answer.body), "{} bytes", answer.body.len());
    // Two have ended, and it waits for the third, and for that alone.
    std::thread::sleep(Duration::from_millis(300));
    drop(passed);
    assert!(itsup.is_running());
    socket.write_all(&[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8]).unwrap();
    drop(socket);
    assert_eq!(itsup.wait_exit(PATIENCE).code(), Some(0));
    assert!(!itsup.stderr().contains("were cut"), "{}", itsup.stderr());
}

#[test]
fn h2_clients_are_sent_goaway_and_their_streams_finish() {
    let app = app();
    let mut itsup = start(&app, LONG);
    let mut stream =
        harness::tls_over(harness::tcp(itsup.https()), "app.test", tls_config(&itsup.ca(), &["h2"])).unwrap();
    assert_eq!(stream.session().alpn_protocol(), Some(&b"h2"[..]));
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    // GET https://app.test/slow?ms=1000, in literals without indexing.
    let mut block = vec![0x82, 0x87];
    for (name, value) in [(4_u8, "/slow?ms=1000"), (1, "app.test")] {
        block.push(name);
        block.push(u8::try_from(value.len()).unwrap());
        block.extend(value.as_bytes());
    }
    let mut head = vec![0, 0, u8::try_from(block.len()).unwrap(), 1, 0x05, 0, 0, 0, 1];
    head.append(&mut block);
    stream.write_all(&head).unwrap();
    in_flight(&itsup, [1, 0, 0]);
    itsup.signal(Signal::SIGTERM);
    let (mut goaway, mut ended) = (false, false);
    loop {
        let mut head = [0; 9];
        if stream.read_exact(&mut head).is_err() {
            break;
        }
        let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        stream.read_exact(&mut payload).unwrap();
        match head[3] {
            7 => {
                assert_eq!(payload[4..8], [0; 4], "GOAWAY for no error");
                goaway = true;
            }
            0 | 1 if head[8] == 1 => ended |= head[4] & 1 == 1,
            3 => panic!("the stream was reset: {payload:?}"),
            // The last GOAWAY comes when this one is known to have heard the first.
            6 if head[4] & 1 == 0 => stream.write_all(&[&[0, 0, 8, 6, 1, 0, 0, 0, 0], &payload[..]].concat()).unwrap(),
            _ => {}
        }
    }
    assert!(goaway && ended, "goaway {goaway}, ended {ended}");
    assert_eq!(itsup.wait_exit(PATIENCE).code(), Some(0));
}

#[test]
fn what_outlasts_the_grace_is_cut_and_the_grace_can_be_reloaded() {
    let app = app();
    let root = Root::new();
    root.write(".env", format!("ITSUP_GRACE={LONG}\n"));
    let mut itsup = Itsup::on(&root).db(&site(&app)).start();
    root.write(".env", "ITSUP_GRACE=500ms\n");
    itsup.reload();
    let mut hanging = tls(itsup.https(), "app.test", &itsup.ca());
    ask(&mut hanging, "app.test", "/hang");
    let mut events = tls(itsup.https(), "app.test", &itsup.ca());
    ask(&mut events, "app.test", "/stream?n=0&ms=20");
    let mut passed = tls(itsup.https(), "echo.test", &app.cert());
    ask(&mut passed, "echo.test", "/hang");
    in_flight(&itsup, [2, 0, 1]);
    let began = Instant::now();
    itsup.signal(Signal::SIGTERM);
    assert_eq!(itsup.wait_exit(PATIENCE).code(), Some(0));
    assert!(began.elapsed() >= Duration::from_millis(500), "not before the grace is over: {:?}", began.elapsed());
    assert!(itsup.stderr().contains("connections were cut"), "{}", itsup.stderr());
    assert!(hanging.ended() && passed.ended());
    let mut told = Vec::new();
    let _ = events.read_to_end(&mut told);
    assert!(told.ends_with(b"\r\n0\r\n\r\n"), "an event stream has its proper end: {}", String::from_utf8_lossy(&told));
}

#[test]
fn a_second_interrupt_does_not_wait() {
    let app = app();
    let mut itsup = start(&app, LONG);
    let mut hanging = tls(itsup.https(), "app.test", &itsup.ca());
    ask(&mut hanging, "app.test", "/hang");
    in_flight(&itsup, [1, 0, 0]);
    itsup.signal(Signal::SIGINT);
    refuses(&itsup);
    itsup.signal(Signal::SIGINT);
    assert_eq!(itsup.wait_exit(PATIENCE).code(), Some(130));
    assert!(!itsup.root().path("data/itsup.sock").exists());
}

#[test]
fn sighup_reloads_and_refuses_as_a_reload_does() {
    let itsup = Itsup::start("projects:\n  - name: one\n    domain: one.test\n");
    let two = "projects:\n  - name: one\n    domain: one.test\n  - name: two\n    domain: two.test\n";
    itsup.root().write("db.yml", two);
    itsup.signal(Signal::SIGHUP);
    eventually("two.test is served", || (itsup.get("http://two.test/").status == 301).then_some(()));
    itsup.root().write("db.yml", "projects:\n  - name: one\n    domian: one.test\n");
    itsup.signal(Signal::SIGHUP);
    eventually("the fault is told", || itsup.stderr().contains("did you mean `domain`?").then_some(()));
    assert!(itsup.stderr().contains("nothing was changed"), "{}", itsup.stderr());
    assert_eq!(itsup.get("https://two.test/").status, 200);
    assert_eq!(itsup.status()["reloads"], serde_json::json!({"done": 1, "refused": 1}));
}
