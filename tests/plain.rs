//! The plain port: challenges, redirects to https, and nothing for hosts that nobody knows.
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod harness;

use std::io::{Read as _, Write as _};

use harness::{Backend, Itsup, Testd, curl, db, dead_address, plain, project, read_answer, run, send};

/// A db with a terminated host, a redirecting one, and a passthrough one whose challenges go to this port.
fn hosts(app: &Testd, challenges: u16) -> String {
    let mut terminated = project("app", "app.test", &[app.addr()], "");
    terminated.push_str("    redirect_from: [old.test]\n    aliases: [\"*.app.test\"]\n");
    let passed =
        project("pass", "pass.test", &[app.tls()], &format!("passthrough: true, challenge_port: {challenges}"));
    db(&[terminated, passed])
}

#[test]
fn known_hosts_are_sent_to_https_and_unknown_ones_nowhere() {
    let app = Testd::start();
    let itsup = Itsup::start(&hosts(&app, 80));
    for (method, status) in
        [("GET", 301), ("HEAD", 301), ("POST", 308), ("PUT", 308), ("DELETE", 308), ("OPTIONS", 308)]
    {
        for (host, to) in [
            ("app.test", "https://app.test/a/b?c=d&e=%20"),
            ("APP.test:80", "https://app.test/a/b?c=d&e=%20"),
            ("x.app.test", "https://x.app.test/a/b?c=d&e=%20"),
            ("pass.test", "https://pass.test/a/b?c=d&e=%20"),
            ("old.test", "https://app.test/a/b?c=d&e=%20"),
        ] {
            let answer = itsup.request(method, &format!("http://{host}/a/b?c=d&e=%20"), &[], b"");
            assert_eq!((answer.status, answer.header("location")), (status, Some(to)), "{method} {host}");
        }
        assert_eq!(itsup.request(method, "http://unknown.test/a", &[], b"").status, 404, "{method}");
    }
    // A real client follows.
    let said = run(curl(&itsup).args(["--location", "http://old.test/status/200"])).ok();
    assert_eq!(said.stdout, "as told\n");
    let line = itsup.logged(|line| line["status"] == 404);
    assert_eq!(line["host"], "unknown.test", "{line}");
    itsup.logged(|line| line["status"] == 308 && line["method"] == "POST" && line["path"] == "/a/b?c=d&e=%20");
}

#[test]
fn redirects_name_the_public_port() {
    let itsup = Itsup::with()
        .env("ITSUP_PUBLIC_HTTPS_PORT", 8443)
        .db(&db(&["  - { name: hello, domain: hello.test }\n".into()]))
        .start();
    assert_eq!(itsup.get("http://hello.test/x").header("location"), Some("https://hello.test:8443/x"));
}

#[test]
fn a_connection_is_kept_and_pipelined_requests_are_answered_in_turn() {
    let itsup = Itsup::start(&db(&["  - { name: hello, domain: hello.test }\n".into()]));
    let mut stream = plain(itsup.http());
    for path in ["/1", "/2"] {
        send(&mut stream, "GET", "hello.test", path, &[], b"");
        assert_eq!(read_answer(&mut stream, "GET").header("location"), Some(&*format!("https://hello.test{path}")));
    }
    let two =
        "GET /3 HTTP/1.1\r\nHost: hello.test\r\n\r\nGET /4 HTTP/1.1\r\nHost: hello.test\r\nConnection: close\r\n\r\n";
    stream.write_all(two.as_bytes()).unwrap();
    assert_eq!(read_answer(&mut stream, "GET").header("location"), Some("https://hello.test/3"));
    let last = read_answer(&mut stream, "GET");
    assert_eq!((last.header("location"), last.header("connection")), (Some("https://hello.test/4"), Some("close")));
    assert!(stream.ended());
    // A body that nobody reads must not be taken for the next request.
    let mut stream = plain(itsup.http());
    let body = b"GET /smuggled HTTP/1.1\r\nHost: hello.test\r\n\r\n";
    send(&mut stream, "POST", "hello.test", "/5", &[], body);
    assert_eq!(read_answer(&mut stream, "POST").status, 308);
    assert!(stream.ended(), "closed, not read on");
}

#[test]
fn malformed_requests_get_400_and_a_closed_connection() {
    let itsup = Itsup::start(&db(&["  - { name: hello, domain: hello.test }\n".into()]));
    let bad: [&[u8]; 6] = [
        b"GET / HTTP/1.1\nHost: hello.test\n\n",
        b"GET / HTTP/1.1\r\nHost: hello.test\r\nHost: hello.test\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : hello.test\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: hello.test\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ];
    for bytes in bad {
        let mut stream = plain(itsup.http());
        stream.write_all(bytes).unwrap();
        let answer = read_answer(&mut stream, "GET");
        assert_eq!(answer.status, 400, "{}", String::from_utf8_lossy(bytes));
        assert!(stream.ended());
    }
    assert_eq!(itsup.metric("itsup_plain_requests_total{outcome=\"rejected\"}"), 6.0);
}

#[test]
fn challenges_of_a_passthrough_host_are_forwarded_and_nothing_else_is() {
    let behind = Backend::start(|_, mut stream| {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if stream.read(&mut byte).unwrap() == 0 {
                return;
            }
            head.push(byte[0]);
        }
        let text = String::from_utf8(head).unwrap();
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
            text.len()
        );
        stream.write_all(answer.as_bytes()).unwrap();
    });
    let app = Testd::start();
    let itsup = Itsup::start(&hosts(&app, behind.addr().port()));
    let answer = itsup.get("http://pass.test/.well-known/acme-challenge/token-1");
    assert_eq!(answer.status, 200);
    let seen = answer.text();
    assert!(seen.starts_with("GET /.well-known/acme-challenge/token-1 HTTP/1.1\r\n"), "{seen}");
    assert!(seen.contains("\r\nHost: pass.test\r\n") && seen.contains("\r\nX-Forwarded-For: 127.0.0.1\r\n"), "{seen}");
    assert_eq!(behind.connections(), 1);

    // Another path is redirected, another host's unknown token is not found; neither is forwarded.
    assert_eq!(itsup.get("http://pass.test/.well-known/other").status, 301);
    assert_eq!(itsup.get("http://app.test/.well-known/acme-challenge/token-1").status, 404);
    assert_eq!(itsup.get("http://unknown.test/.well-known/acme-challenge/token-1").status, 404);
    assert_eq!(behind.connections(), 1);

    itsup.reload_with(&hosts(&app, dead_address("127.0.0.1").port()));
    assert_eq!(itsup.get("http://pass.test/.well-known/acme-challenge/token-1").status, 502);
}

#[test]
fn one_listener_serves_both_families_and_ipv4_clients_are_told_as_such() {
    // Where there is no IPv6, the same setting means IPv4 alone.
    let itsup = Itsup::with()
        .env("ITSUP_HTTP", "[::]:0")
        .env("ITSUP_HTTPS", "[::]:0")
        .db(&db(&["  - { name: hello, domain: hello.test }\n".into()]))
        .start();
    let port = itsup.http().port();
    let families = std::net::TcpListener::bind("[::1]:0").map_or(vec!["127.0.0.1"], |_| vec!["127.0.0.1", "::1"]);
    for ip in families {
        let mut stream = plain(std::net::SocketAddr::new(ip.parse().unwrap(), port));
        send(&mut stream, "GET", "hello.test", "/", &[("Connection", "close")], b"");
        assert_eq!(read_answer(&mut stream, "GET").status, 301, "{ip}");
        itsup.logged(|line| line["client"] == ip);
    }
}
