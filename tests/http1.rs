//! HTTP/1 through the terminating proxy: connections, framing that is in order, streams, websockets, large bodies.
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod harness;

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use harness::{
    Backend, Itsup, Testd, curl, db, eventually, project, python, read_answer, read_head, read_line, run, send, tls,
    try_read_answer,
};

fn serving(app: &Testd) -> Itsup {
    Itsup::start(&db(&[project("app", "app.test", &[app.addr()], "")]))
}

#[test]
fn a_request_reaches_the_static_host_and_its_answer_the_client() {
    let app = Testd::start();
    let itsup = serving(&app);
    let answer = itsup.request("POST", "https://app.test/hello?x=1", &[("X-Mine", "yes")], b"body");
    assert_eq!(answer.status, 200, "{}", answer.text());
    let account = answer.json();
    assert_eq!((&account["method"], &account["path"]), (&"POST".into(), &"/hello?x=1".into()));
    assert_eq!(answer.seen("x-mine"), ["yes"]);

    let said = run(curl(&itsup).args(["--http1.1", "https://app.test/echo", "--data", "some text"])).ok();
    assert_eq!(said.stdout, "some text");
    let line = itsup.logged(|line| line["path"] == "/echo");
    assert_eq!((&line["status"], &line["host"]), (&200.into(), &"app.test".into()), "{line}");
    assert_eq!(itsup.status()["upstreams"].as_array().unwrap().len(), 1);
    itsup.stop();
}

#[test]
fn a_connection_is_kept_pipelined_on_and_closed_when_the_client_says_so() {
    let app = Testd::start();
    let itsup = serving(&app);
    let mut stream = tls(itsup.https(), "app.test", &itsup.ca());
    for number in 0..5 {
        send(&mut stream, "GET", "app.test", &format!("/{number}"), &[], b"");
        let answer = read_answer(&mut stream, "GET");
        assert_eq!(answer.json()["path"], format!("/{number}"));
        assert_eq!(answer.header("connection").unwrap_or("keep-alive"), "keep-alive");
    }
    // HEAD and bodies of every framing leave the connection in order for the next.
    for (method, path) in
        [("HEAD", "/bytes/1000"), ("GET", "/bytes/1000?chunked=1"), ("GET", "/status/204"), ("GET", "/status/304")]
    {
        send(&mut stream, method, "app.test", path, &[], b"");
        let answer = read_answer(&mut stream, method);
        assert!(answer.status < 400, "{method} {path}: {}", answer.status);
        assert_eq!(
            answer.body.len(),
            if answer.status == 200 && method == "GET" { 1000 } else { 0 },
            "{method} {path}"
        );
    }
    let mut all = String::new();
    for number in 0..20 {
        all.push_str(&format!(
            "POST /upload?{number} HTTP/1.1\r\nHost: app.test\r\nContent-Length: 5\r\n\r\nbody{}",
            number % 10
        ));
        all.push_str(&format!("GET /piped/{number} HTTP/1.1\r\nHost: app.test\r\n\r\n"));
    }
    stream.write_all(all.as_bytes()).unwrap();
    for number in 0..20 {
        assert_eq!(read_answer(&mut stream, "POST").json()["bytes"], 5);
        assert_eq!(read_answer(&mut stream, "GET").json()["path"], format!("/piped/{number}"));
    }
    send(&mut stream, "GET", "app.test", "/last", &[("Connection", "close")], b"");
    assert_eq!(read_answer(&mut stream, "GET").header("connection"), Some("close"));
    assert!(stream.ended());
    let accepted = itsup.metric("itsup_connections_accepted_total{listener=\"https\"}");
    assert_eq!(accepted, 1.0);
}

#[test]
fn http_1_0_is_spoken_with_and_without_keep_alive() {
    let app = Testd::start();
    let itsup = serving(&app);
    let mut stream = tls(itsup.https(), "app.test", &itsup.ca());
    stream.write_all(b"GET /old HTTP/1.0\r\nHost: app.test\r\nConnection: keep-alive\r\n\r\n").unwrap();
    let answer = read_answer(&mut stream, "GET");
    assert_eq!((answer.status, answer.header("connection")), (200, Some("keep-alive")));
    // What has no length is never chunked for HTTP/1.0: its end is the connection's.
    stream
        .write_all(b"GET /bytes/50000?chunked=1 HTTP/1.0\r\nHost: app.test\r\nConnection: keep-alive\r\n\r\n")
        .unwrap();
    let answer = read_answer(&mut stream, "GET");
    assert_eq!((answer.header("transfer-encoding"), answer.body.len()), (None, 50_000));
    assert!(stream.ended());
    let mut stream = tls(itsup.https(), "app.test", &itsup.ca());
    stream.write_all(b"GET /old HTTP/1.0\r\nHost: app.test\r\n\r\n").unwrap();
    assert_eq!(read_answer(&mut stream, "GET").status, 200);
    assert!(stream.ended());
    let said = run(curl(&itsup).args(["--http1.0", "--no-alpn", "https://app.test/bytes/1000"])).ok();
    assert_eq!(said.stdout.chars().count(), 1000);
}

#[test]
fn chunked_bodies_go_through_in_both_directions() {
    let app = Testd::start();
    let itsup = serving(&app);
    for size in [1, 100, 70_000] {
        let mut stream = tls(itsup.https(), "app.test", &itsup.ca());
        send(&mut stream, "POST", "app.test", "/echo", &[("Transfer-Encoding", "chunked")], b"");
        let mut sent = Vec::new();
        for number in 0..10_u8 {
            let chunk = vec![b'a' + number; size];
            sent.extend_from_slice(&chunk);
            // Extensions and upper-case sizes are in order.
            stream.write_all(format!("{size:X};name=\"value\"\r\n").as_bytes()).unwrap();
            stream.write_all(&chunk).unwrap();
            stream.write_all(b"\r\n").unwrap();
        }
        stream.write_all(b"0\r\nX-Trailer: yes\r\n\r\n").unwrap();
        let answer = read_answer(&mut stream, "POST");
        assert_eq!(answer.header("transfer-encoding"), Some("chunked"));
        assert!(answer.body == sent, "{size}: {} of {} bytes", answer.body.len(), sent.len());
    }
    // Whole bodies, extensions and trailers leave the connection in order for the next request.
    let mut stream = tls(itsup.https(), "app.test", &itsup.ca());
    for number in 0..5 {
        let body = "5;a=b\r\nhello\r\n6\r\n world\r\n0\r\nX-Trailer: yes\r\n\r\n";
        send(&mut stream, "POST", "app.test", "/upload", &[("Transfer-Encoding", "chunked")], b"");
        stream.write_all(body.as_bytes()).unwrap();
        assert_eq!(read_answer(&mut stream, "POST").json()["bytes"], 11, "{number}");
    }
    // The answer's trailers may be dropped; its body may not.
    send(&mut stream, "GET", "app.test", "/trailers", &[], b"");
    assert_eq!(read_answer(&mut stream, "GET").text(), "hello\n");
}

#[test]
fn a_client_that_waits_for_100_is_told_when_the_endpoint_says_so() {
    let app = Testd::start();
    let itsup = serving(&app);
    let mut stream = tls(itsup.https(), "app.test", &itsup.ca());
    let head = b"POST /continue HTTP/1.1\r\nHost: app.test\r\nExpect: 100-continue\r\nContent-Length: 11\r\n\r\n";
    stream.write_all(head).unwrap();
    let (status, _) = read_head(&mut stream).unwrap();
    assert_eq!(status, 100);
    stream.write_all(b"hello world").unwrap();
    let answer = read_answer(&mut stream, "POST");
    assert_eq!((&answer.json()["bytes"], &answer.json()["expect"]), (&11.into(), &"100-continue".into()));

    // An endpoint that answers at once asks for no body; the client has not sent one.
    let mut stream = tls(itsup.https(), "app.test", &itsup.ca());
    let head = b"POST /status/403 HTTP/1.1\r\nHost: app.test\r\nExpect: 100-continue\r\nContent-Length: 11\r\n\r\n";
    stream.write_all(head).unwrap();
    let (status, _) = read_head(&mut stream).unwrap();
    assert_eq!(status, 403);

    let file = itsup.root().path("upload");
    std::fs::write(&file, vec![7; 3_000_000]).unwrap();
    let mut command = curl(&itsup);
    command.args(["--http1.1", "-v", "-H", "Expect: 100-continue", "-T"]).arg(&file).arg("https://app.test/upload");
    let said = run(&mut command).ok();
    assert_eq!(said.json()["bytes"], 3_000_000);
    assert!(said.stderr.contains("HTTP/1.1 100 Continue"), "{}", said.stderr);
}

#[test]
fn events_arrive_one_by_one_as_they_are_sent() {
    let app = Testd::start();
    let itsup = serving(&app);
    let mut stream = tls(itsup.https(), "app.test", &itsup.ca());
    let start = Instant::now();
    send(&mut stream, "GET", "app.test", "/stream?n=8&ms=500", &[("Accept", "text/event-stream")], b"");
    let (status, headers) = read_head(&mut stream).unwrap();
    assert_eq!(status, 200);
    assert!(headers.contains(&("content-type".into(), "text/event-stream".into())));
    let mut first = None;
    let mut seen = String::new();
    while !seen.contains("data: 7") {
        seen.push_str(&read_line(&mut stream).unwrap());
        seen.push('\n');
        if seen.contains("data: 0\n") && first.is_none() {
            first = Some(start.elapsed());
        }
    }
    // The whole takes three and a half seconds; buffered, the first would come with the last.
    let (first, last) = (first.unwrap(), start.elapsed());
    assert!(last - first > Duration::from_secs(2), "the first after {first:?}, the last after {last:?}");
}

#[test]
fn websockets_are_carried_with_their_subprotocol_and_close_codes() {
    let app = Testd::start();
    let itsup = serving(&app);
    let connect = itsup.https().to_string();
    let mut command = python("websocket_client.py");
    command.args(["wss://app.test/ws", "--connect", &connect, "--ca"]).arg(itsup.ca());
    command.args(["--messages", "50", "--size", "100000", "--protocol", "chat"]);
    let told = run(&mut command).ok().json();
    assert_eq!(
        (&told["echoed"], &told["protocol"], &told["code"]),
        (&50.into(), &"chat".into(), &1000.into()),
        "{told}"
    );
    let line = itsup.logged(|line| line["path"] == "/ws");
    assert_eq!(line["status"], 101, "{line}");
    assert_eq!(itsup.metric("itsup_websockets_total"), 1.0);

    // Silence of minutes is the client's business; of some seconds here. Meanwhile it counts as in flight.
    let mut held = python("websocket_client.py");
    held.args(["wss://app.test/ws", "--connect", &connect, "--hold", "3", "--ca"]).arg(itsup.ca());
    let held = std::thread::spawn(move || run(&mut held));
    eventually("the websocket in flight", || {
        let status = itsup.status();
        (status["upstreams"][0]["endpoints"][0]["in_flight"]["websockets"] == 1).then_some(())
    });
    assert_eq!(held.join().unwrap().ok().json()["closed_by"], "us");
    eventually("nothing in flight", || {
        let status = itsup.status();
        (status["upstreams"][0]["endpoints"][0]["in_flight"]["websockets"] == 0).then_some(())
    });

    // Other upgrades are not passed on; the request is served without.
    let mut stream = tls(itsup.https(), "app.test", &itsup.ca());
    send(
        &mut stream,
        "GET",
        "app.test",
        "/",
        &[("Connection", "Upgrade"), ("Upgrade", "h2c"), ("HTTP2-Settings", "AAMAAABkAAQAAP__")],
        b"",
    );
    let answer = read_answer(&mut stream, "GET");
    assert_eq!((answer.status, answer.seen("upgrade"), answer.seen("http2-settings")), (200, vec![], vec![]));
}

#[test]
fn bodies_of_any_size_are_streamed_both_ways_with_flat_memory() {
    const SIZE: u64 = 200 << 20;
    let app = Testd::start();
    let itsup = serving(&app);
    let download = |bytes: u64| {
        let url = format!("https://app.test/bytes/{bytes}");
        let mut command = curl(&itsup);
        command.args(["--http1.1", "-o", "/dev/null", "-w", "%{size_download}", &url]);
        run(&mut command).ok().stdout.parse::<u64>().unwrap()
    };
    let upload = |bytes: u64| {
        let mut stream = tls(itsup.https(), "app.test", &itsup.ca());
        let length = bytes.to_string();
        send(&mut stream, "POST", "app.test", "/upload", &[("Content-Length", &length)], b"");
        let sent = std::io::copy(&mut std::io::repeat(9).take(bytes), &mut stream).unwrap();
        stream.flush().unwrap();
        assert_eq!(sent, bytes);
        read_answer(&mut stream, "POST").json()["bytes"].as_u64().unwrap()
    };
    assert_eq!((download(1 << 20), upload(1 << 20)), (1 << 20, 1 << 20));
    let before = itsup.memory();
    assert_eq!(download(SIZE), SIZE);
    assert_eq!(upload(SIZE), SIZE);
    let grown = itsup.memory().saturating_sub(before);
    assert!(grown < 16 << 20, "memory grew by {grown} bytes");
}

#[test]
fn a_client_that_reads_nothing_holds_the_endpoint_up_and_memory_stays_flat() {
    let app = Testd::start();
    let itsup = serving(&app);
    assert_eq!(itsup.get("https://app.test/bytes/100000").body.len(), 100_000);
    let before = itsup.memory();
    let clients: Vec<_> = (0..10)
        .map(|_| {
            let mut stream = tls(itsup.https(), "app.test", &itsup.ca());
            send(&mut stream, "GET", "app.test", "/bytes/1000000000", &[], b"");
            assert_eq!(read_head(&mut stream).unwrap().0, 200);
            stream
        })
        .collect();
    // Long enough for gigabytes, were nobody held up.
    std::thread::sleep(Duration::from_secs(3));
    let grown = itsup.memory().saturating_sub(before);
    assert!(grown < 32 << 20, "memory grew by {grown} bytes");
    drop(clients);
}

#[test]
fn an_answer_that_breaks_off_is_never_passed_for_a_whole_one() {
    let app = Testd::start();
    let itsup = serving(&app);
    for (path, framed) in [("/close?after=1000&of=5000", "content-length"), ("/close?after=1000", "transfer-encoding")]
    {
        let mut stream = tls(itsup.https(), "app.test", &itsup.ca());
        send(&mut stream, "GET", "app.test", path, &[], b"");
        let (status, headers) = read_head(&mut stream).unwrap();
        assert_eq!(status, 200, "{path}");
        assert!(headers.iter().any(|header| header.0 == framed), "{path}: {headers:?}");
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.len() < 5000 && !rest.ends_with(b"0\r\n\r\n"), "{path}: {} bytes", rest.len());
    }
    // Before a byte of an answer it is the endpoint's fault.
    let answer = itsup.request("POST", "https://app.test/close", &[], b"x");
    assert_eq!(answer.status, 502);
    let line = itsup.logged(|line| line["status"] == 502);
    assert_eq!(line["failed"], "upstream", "{line}");
}

#[test]
fn an_answer_that_comes_before_the_body_has_been_sent_reaches_the_client() {
    let app = Testd::start();
    let itsup = serving(&app);
    let mut stream = tls(itsup.https(), "app.test", &itsup.ca());
    send(&mut stream, "POST", "app.test", "/status/403", &[("Content-Length", "10000000")], b"");
    stream.write_all(&[0; 10_000]).unwrap();
    let answer = read_answer(&mut stream, "POST");
    assert_eq!((answer.status, answer.text().as_str()), (403, "as told\n"));
}

#[test]
fn a_client_that_leaves_ends_the_request_at_the_endpoint() {
    let gone = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let seen = gone.clone();
    let app = Backend::start(move |_, mut stream| {
        let mut all = Vec::new();
        // Ends when the proxy hangs up.
        let _ = stream.read_to_end(&mut all);
        seen.store(true, std::sync::atomic::Ordering::SeqCst);
    });
    let itsup = Itsup::start(&db(&[project("app", "app.test", &[app.addr()], "")]));
    let mut stream = tls(itsup.https(), "app.test", &itsup.ca());
    send(&mut stream, "GET", "app.test", "/", &[], b"");
    eventually("the request at the endpoint", || (app.connections() == 1).then_some(()));
    drop(stream);
    eventually("the end of the request", || gone.load(std::sync::atomic::Ordering::SeqCst).then_some(()));
    let line = itsup.logged(|line| line["path"] == "/");
    assert_eq!((&line["status"], &line["failed"]), (&499.into(), &"client".into()), "{line}");
}

#[test]
fn informational_answers_are_passed_on() {
    let app = Backend::start(|_, mut stream| {
        while read_line(&mut stream).is_ok_and(|line| !line.is_empty()) {}
        stream.write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n").unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
    });
    let itsup = Itsup::start(&db(&[project("app", "app.test", &[app.addr()], "")]));
    let mut stream = tls(itsup.https(), "app.test", &itsup.ca());
    send(&mut stream, "GET", "app.test", "/", &[], b"");
    let (status, headers) = read_head(&mut stream).unwrap();
    assert_eq!((status, headers.len()), (103, 1), "{headers:?}");
    let answer = try_read_answer(&mut stream, "GET").unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
}

#[test]
fn an_endpoint_that_reads_nothing_holds_the_client_up_and_memory_stays_flat() {
    let app = Backend::start(|_, mut stream| {
        while read_line(&mut stream).is_ok_and(|line| !line.is_empty()) {}
        // Held open and never read, until the test is over.
        std::thread::park();
        drop(stream);
    });
    let itsup = Itsup::start(&db(&[project("app", "app.test", &[app.addr()], "")]));
    assert_eq!(itsup.get("http://app.test/").status, 301);
    let before = itsup.memory();
    let (mut taken, mut held) = (0, Vec::new());
    for _ in 0..5 {
        let mut stream = tls(itsup.https(), "app.test", &itsup.ca());
        send(&mut stream, "POST", "app.test", "/", &[("Content-Length", "1000000000")], b"");
        stream.tcp().set_write_timeout(Some(Duration::from_secs(1))).unwrap();
        // TLS takes a whole block and tells of what is stuck with the next; a write that waits for its limit is stuck.
        let mut start = Instant::now();
        while start.elapsed() < Duration::from_millis(900) {
            start = Instant::now();
            taken += stream.write(&[0; 65_536]).unwrap_or_default();
            assert!(taken < 200 << 20, "200 MB were taken for an endpoint that reads nothing");
        }
        held.push(stream);
    }
    let grown = itsup.memory().saturating_sub(before);
    assert!(grown < 24 << 20, "memory grew by {grown} bytes");
}
