//! Malformed and ambiguous HTTP/1: answered 400, closed, never forwarded, and yet logged and counted.
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod harness;

use std::io::Write as _;
use std::sync::{Arc, Mutex};

use harness::{Backend, Itsup, Testd, db, eventually, project, read_answer, read_line, send, tls, try_read_answer};

#[test]
fn what_two_servers_could_read_in_two_ways_is_refused_logged_and_counted() {
    let app = Testd::start();
    let itsup = Itsup::start(&db(&[project("app", "app.test", &[app.addr()], "")]));
    let long = "x".repeat(70_000);
    let fields: String = (0..200).map(|i| format!("X-{i}: y\r\n")).collect();
    // What stands between the request line and the empty line, and the body behind it.
    let table: &[(u16, &str, String)] = &[
        (400, "CL with TE", "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into()),
        (400, "TE with CL", "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n".into()),
        (400, "TE gzip, chunked", "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n".into()),
        (400, "TE gzip", "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: gzip\r\n\r\n".into()),
        (400, "TE chunked twice", "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into()),
        (400, "TE chunked, identity", "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n".into()),
        (400, "TE xchunked", "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n".into()),
        (400, "TE in HTTP/1.0", "POST / HTTP/1.0\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into()),
        (400, "two different CL", "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!".into()),
        (400, "CL list", "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 5, 5\r\n\r\nhello".into()),
        (400, "negative CL", "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: -1\r\n\r\n".into()),
        (400, "signed CL", "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: +5\r\n\r\nhello".into()),
        (400, "hexadecimal CL", "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 0x5\r\n\r\nhello".into()),
        (400, "CL beyond numbers", "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 99999999999999999999\r\n\r\n".into()),
        (400, "empty CL", "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length:\r\n\r\n".into()),
        (400, "bare LF after the request line", "GET / HTTP/1.1\nHost: app.test\r\n\r\n".into()),
        (400, "bare LF after a field", "GET / HTTP/1.1\r\nHost: app.test\nX: y\r\n\r\n".into()),
        (400, "bare LF at the end", "GET / HTTP/1.1\r\nHost: app.test\r\n\n".into()),
        (400, "bare CR in a value", "GET / HTTP/1.1\r\nHost: app.test\r\nX: a\rb\r\n\r\n".into()),
        (400, "obs-fold", "GET / HTTP/1.1\r\nHost: app.test\r\nX: a\r\n b\r\n\r\n".into()),
        (400, "obs-fold by tab", "GET / HTTP/1.1\r\nHost: app.test\r\nX: a\r\n\tb\r\n\r\n".into()),
        (400, "space before the first field", "GET / HTTP/1.1\r\n Host: app.test\r\nHost: app.test\r\n\r\n".into()),
        (400, "space before the colon", "GET / HTTP/1.1\r\nHost : app.test\r\n\r\n".into()),
        (400, "tab before the colon", "GET / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n".into()),
        (400, "space in a name", "GET / HTTP/1.1\r\nHost: app.test\r\nX Y: z\r\n\r\n".into()),
        (400, "empty name", "GET / HTTP/1.1\r\nHost: app.test\r\n: z\r\n\r\n".into()),
        (400, "no colon", "GET / HTTP/1.1\r\nHost: app.test\r\nnonsense\r\n\r\n".into()),
        (400, "NUL in a value", "GET / HTTP/1.1\r\nHost: app.test\r\nX: a\0b\r\n\r\n".into()),
        (400, "DEL in a value", "GET / HTTP/1.1\r\nHost: app.test\r\nX: a\x7fb\r\n\r\n".into()),
        (400, "control byte in a name", "GET / HTTP/1.1\r\nHost: app.test\r\nX\x01: y\r\n\r\n".into()),
        (400, "control byte in the target", "GET /\x01 HTTP/1.1\r\nHost: app.test\r\n\r\n".into()),
        (400, "space in the target", "GET /a b HTTP/1.1\r\nHost: app.test\r\n\r\n".into()),
        (400, "two spaces in the request line", "GET  / HTTP/1.1\r\nHost: app.test\r\n\r\n".into()),
        (400, "fragment in the target", "GET /#a HTTP/1.1\r\nHost: app.test\r\n\r\n".into()),
        (400, "repeated Host", "GET / HTTP/1.1\r\nHost: app.test\r\nHost: app.test\r\n\r\n".into()),
        (400, "two Hosts", "GET / HTTP/1.1\r\nHost: app.test\r\nHost: other.test\r\n\r\n".into()),
        (400, "no Host", "GET / HTTP/1.1\r\n\r\n".into()),
        (400, "bad Host", "GET / HTTP/1.1\r\nHost: app.test/x\r\n\r\n".into()),
        (400, "Host with user", "GET / HTTP/1.1\r\nHost: user@app.test\r\n\r\n".into()),
        (400, "Host differs from the target", "GET https://other.test/ HTTP/1.1\r\nHost: app.test\r\n\r\n".into()),
        (400, "no method", " / HTTP/1.1\r\nHost: app.test\r\n\r\n".into()),
        (400, "bad method", "GE(T / HTTP/1.1\r\nHost: app.test\r\n\r\n".into()),
        (400, "two parts", "GET /\r\nHost: app.test\r\n\r\n".into()),
        (400, "lower-case version", "GET / http/1.1\r\nHost: app.test\r\n\r\n".into()),
        (400, "h2 preface without h2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into()),
        (505, "HTTP/2.0", "GET / HTTP/2.0\r\nHost: app.test\r\n\r\n".into()),
        (405, "CONNECT", "CONNECT app.test:443 HTTP/1.1\r\nHost: app.test\r\n\r\n".into()),
        (414, "target of 70,000 bytes", format!("GET /{long} HTTP/1.1\r\nHost: app.test\r\n\r\n")),
        (431, "field of 70,000 bytes", format!("GET / HTTP/1.1\r\nHost: app.test\r\nX: {long}\r\n\r\n")),
        (431, "200 fields", format!("GET / HTTP/1.1\r\nHost: app.test\r\n{fields}\r\n")),
    ];
    for (status, what, bytes) in table {
        let mut stream = tls(itsup.https(), "app.test", &itsup.ca());
        // A whole good request first: what follows on a kept connection is judged like the first.
        send(&mut stream, "GET", "app.test", "/good", &[], b"");
        assert_eq!(read_answer(&mut stream, "GET").status, 200);
        stream.write_all(bytes.as_bytes()).unwrap();
        // It asks for a second answer, which never comes.
        let _ = stream.write_all(b"GET /next HTTP/1.1\r\nHost: app.test\r\n\r\n");
        let answer = read_answer(&mut stream, "GET");
        // The preface is refused for its version or its form; both are refusals.
        let ok = answer.status == *status || (*what == "h2 preface without h2" && answer.status == 505);
        assert!(ok, "{what}: {} {}", answer.status, answer.text());
        assert_eq!(answer.header("connection"), Some("close"), "{what}");
        assert!(answer.header("x-request-id").is_some(), "{what}");
        assert!(stream.ended(), "{what}: the connection is closed");
    }
    let refused = table.len();
    assert_eq!(itsup.metric("itsup_http_rejected_total"), refused as f64);
    assert_eq!(itsup.metric("itsup_http_requests_total{protocol=\"h1\"}"), (2 * refused) as f64);
    let lines = eventually("a line for each", || {
        let lines: Vec<_> = itsup.access_log().into_iter().filter(|line| line["status"] != 200).collect();
        (lines.len() == refused).then_some(lines)
    });
    for line in lines {
        assert!(line["status"].as_u64().unwrap() >= 400 && line["failed"] == "client", "{line}");
        assert!(!line["why"].as_str().unwrap().is_empty(), "{line}");
    }
    // The good ones, and this one, are all that ever came through.
    assert_eq!(itsup.get("https://app.test/").json()["requests"], refused + 1);
}

#[test]
fn good_requests_that_look_odd_are_served() {
    let app = Testd::start();
    let itsup = Itsup::start(&db(&[project("app", "app.test", &[app.addr()], "")]));
    for (what, bytes) in [
        ("empty line first", "\r\nGET /odd HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n"),
        ("absolute form", "GET https://app.test/odd HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n"),
        ("names in any case", "GET /odd HTTP/1.1\r\nhOST: APP.test\r\ncONNECTION: CLOSE\r\n\r\n"),
        ("no space after the colon", "GET /odd HTTP/1.1\r\nHost:app.test\r\nConnection:close\r\n\r\n"),
        ("port in Host", "GET /odd HTTP/1.1\r\nHost: app.test:443\r\nConnection: close\r\n\r\n"),
        ("HTTP/1.0", "GET /odd HTTP/1.0\r\nHost: app.test\r\n\r\n"),
        ("empty value", "GET /odd HTTP/1.1\r\nHost: app.test\r\nX-Empty:\r\nConnection: close\r\n\r\n"),
        ("bytes beyond ASCII", "GET /odd HTTP/1.1\r\nHost: app.test\r\nX-Name: zoë\r\nConnection: close\r\n\r\n"),
    ] {
        let mut stream = tls(itsup.https(), "app.test", &itsup.ca());
        stream.write_all(bytes.as_bytes()).unwrap();
        let answer = read_answer(&mut stream, "GET");
        assert_eq!(answer.status, 200, "{what}: {}", answer.text());
        assert_eq!(answer.json()["path"], "/odd", "{what}");
        assert!(stream.ended(), "{what}");
    }
}

/// A server that notes how each request's body ended, and answers once it has.
fn noting() -> (Backend, Arc<Mutex<Vec<String>>>) {
    let notes = Arc::new(Mutex::new(Vec::new()));
    let to = notes.clone();
    let app = Backend::start(move |_, mut stream| {
        let mut told = String::new();
        while let Ok(line) = read_line(&mut stream) {
            if line.is_empty() {
                break;
            }
        }
        let mut body = 0;
        let ending = loop {
            let Ok(size) = read_line(&mut stream) else { break "aborted" };
            let Ok(size) = usize::from_str_radix(&size, 16) else { break "nonsense" };
            let mut chunk = vec![0; size + 2];
            if std::io::Read::read_exact(&mut stream, &mut chunk).is_err() {
                break "aborted";
            }
            body += size;
            if size == 0 {
                break "whole";
            }
        };
        told.push_str(&format!("{ending} after {body}"));
        to.lock().unwrap().push(told);
        // Nobody may be there to read it.
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    });
    (app, notes)
}

#[test]
fn a_bad_chunk_aborts_the_upstream_request_and_is_answered_400() {
    for bad in [
        "zz\r\n",
        "5 \r\nhello\r\n",
        "-1\r\n",
        "5\nhello",
        "3\r\nhello\r\n0\r\n\r\n",
        "fffffffffffffffff\r\n",
        "0x5\r\n",
        ";\r\n",
    ] {
        let (app, notes) = noting();
        let itsup = Itsup::start(&db(&[project("app", "app.test", &[app.addr()], "")]));
        let mut stream = tls(itsup.https(), "app.test", &itsup.ca());
        send(&mut stream, "POST", "app.test", "/", &[("Transfer-Encoding", "chunked")], b"");
        stream.write_all(b"4\r\ngood\r\n").unwrap();
        stream.write_all(bad.as_bytes()).unwrap();
        let answer = read_answer(&mut stream, "POST");
        assert_eq!(answer.status, 400, "{bad:?}: {}", answer.text());
        assert!(stream.ended(), "{bad:?}");
        let line = itsup.logged(|line| line["method"] == "POST");
        assert_eq!((&line["status"], &line["failed"]), (&400.into(), &"client".into()), "{line}");
        let note = eventually("the end of the upstream request", || notes.lock().unwrap().first().cloned());
        assert!(note.starts_with("aborted"), "{bad:?}: {note}");
    }
}

#[test]
fn a_bad_chunk_after_the_response_began_ends_both_connections() {
    let app = Testd::start();
    let itsup = Itsup::start(&db(&[project("app", "app.test", &[app.addr()], "")]));
    let mut stream = tls(itsup.https(), "app.test", &itsup.ca());
    // The echo begins to answer with the first chunk.
    send(&mut stream, "POST", "app.test", "/echo", &[("Transfer-Encoding", "chunked")], b"");
    stream.write_all(b"4\r\ngood\r\n").unwrap();
    let (status, _) = harness::read_head(&mut stream).unwrap();
    assert_eq!(status, 200);
    stream.write_all(b"nonsense\r\n").unwrap();
    // The answer must not end as if it were whole.
    let mut rest = Vec::new();
    let end = std::io::Read::read_to_end(&mut stream, &mut rest);
    assert!(!rest.ends_with(b"0\r\n\r\n"), "{end:?} {:?}", String::from_utf8_lossy(&rest));
    assert!(try_read_answer(&mut stream, "GET").is_err());
}
