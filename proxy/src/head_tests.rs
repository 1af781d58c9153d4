//! Vectors of request smuggling, and what the reader must make of them.

use proptest::prelude::*;

use super::*;

fn check(block: &[u8]) -> Progress {
    HeadReader::new(64 * 1024, 128).check(block)
}

fn accept(block: &str) -> Head {
    match check(block.as_bytes()) {
        Progress::Done(head) => head,
        other => panic!("{other:?} for {block:?}"),
    }
}

fn rejected(block: &[u8]) -> Option<u16> {
    match check(block) {
        Progress::Reject(reject) => Some(reject.status),
        _ => None,
    }
}

/// A request with these lines after `Host`.
fn with(fields: &str) -> String {
    format!("POST /a HTTP/1.1\r\nHost: a.example\r\n{fields}\r\n\r\n")
}

fn request_line(line: &str) -> String {
    format!("{line}\r\nHost: a.example\r\n\r\n")
}

#[test]
fn reads_a_request() {
    let text = "GET /a/b?c=d HTTP/1.1\r\nHost:  A.example:8443 \t\r\nX-A: b\r\nX-B:\r\n\r\nGET /next";
    let head = accept(text);
    assert_eq!(&text[head.method.clone()], "GET");
    assert_eq!(&text[head.target.clone()], "/a/b?c=d");
    assert_eq!(&text[head.path.clone()], "/a/b");
    assert_eq!(&text[head.host.clone().unwrap()], "A.example:8443");
    assert_eq!(&text[head.len..], "GET /next");
    assert_eq!((head.start, head.fields, head.version, head.framing), (0, 3, Version::Http11, Framing::None));
    assert!(head.keep_alive && !head.expect_continue && !head.websocket);
}

#[test]
fn reads_framing() {
    for (fields, want) in [
        ("X: y", Framing::None),
        ("Content-Length: 0", Framing::Length(0)),
        ("content-LENGTH:42\t", Framing::Length(42)),
        ("Content-Length: 007", Framing::Length(7)),
        ("Content-Length: 9223372036854775807", Framing::Length(i64::MAX as u64)),
        ("Transfer-Encoding: chunked", Framing::Chunked),
        ("TRANSFER-ENCODING:\tChUnKeD ", Framing::Chunked),
    ] {
        assert_eq!(accept(&with(fields)).framing, want, "{fields}");
    }
}

#[test]
fn reads_what_the_connection_is_for() {
    let keep = |text: &str| accept(text).keep_alive;
    assert!(keep(&with("Connection: keep-alive")));
    assert!(!keep(&with("Connection: close")));
    assert!(!keep(&with("Connection: keep-alive, CLOSE")));
    assert!(!keep(&with("Connection: x\r\nConnection: ,close,")));
    assert!(!keep("GET / HTTP/1.0\r\n\r\n"));
    assert!(keep("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"));
    assert!(!keep("GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n"));

    assert!(accept(&with("Expect: 100-Continue")).expect_continue);
    assert!(!accept(&with("Expect: 200-ok")).expect_continue);
    assert!(!accept("POST / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n").expect_continue);

    let websocket = |text: &str| accept(text).websocket;
    let get = |fields: &str| format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n");
    assert!(websocket(&get("Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket")));
    assert!(websocket(&get("Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 0")));
    for no in [
        get("Upgrade: websocket"),
        get("Connection: upgrade"),
        get("Connection: upgrade\r\nUpgrade: h2c"),
        get("Connection: upgrade\r\nUpgrade: websocket, h2c"),
        get("Connection: upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket"),
        get("Connection: upgrade\r\nUpgrade: websocket\r\nUpgrade: websocket"),
        get("Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 1"),
        get("Connection: upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked"),
        with("Connection: upgrade\r\nUpgrade: websocket"),
        "GET / HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n".to_owned(),
    ] {
        assert!(!websocket(&no), "{no}");
    }
}

#[test]
fn reads_every_form_of_target() {
    let path = |text: &str| text[accept(text).path].to_owned();
    let host = |text: &str| accept(text).host.map(|host| text[host].to_owned());
    let absolute = "GET http://a.example:80/b?c HTTP/1.1\r\nHost: a.example:80\r\n\r\n";
    assert_eq!((path(absolute), host(absolute)), ("/b".into(), Some("a.example:80".into())));
    let bare = "GET HTTPS://a.example HTTP/1.1\r\nHost: a.example\r\n\r\n";
    assert_eq!(path(bare), "");
    assert_eq!(path("GET http://a.example?x=/ HTTP/1.1\r\nHost: a.example\r\n\r\n"), "");
    assert_eq!(path("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"), "*");
    assert_eq!(path("GET //a/../b HTTP/1.1\r\nHost: a\r\n\r\n"), "//a/../b");
    let old = "GET http://a.example/ HTTP/1.0\r\n\r\n";
    assert_eq!(host(old), Some("a.example".into()));
    assert_eq!(host("GET / HTTP/1.0\r\n\r\n"), None);
    assert_eq!(host("GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n"), Some("[::1]:80".into()));
}

#[test]
fn lets_one_empty_line_through() {
    let text = "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let head = accept(text);
    assert_eq!((head.start, head.len), (2, text.len()));
    assert_eq!(&text[head.method], "GET");
    assert_eq!(rejected(format!("\r\n{text}").as_bytes()), Some(400));
    assert_eq!(rejected(b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), Some(400));
    assert_eq!(rejected(b"\r\n\r\n"), Some(400));
}

#[test]
fn refuses_ambiguous_framing() {
    for fields in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Transfer-Encoding: chunked\r\nContent-Length: 0",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5\r\ncontent-length: 5",
        "Content-Length: 5, 5",
        "Content-Length: 5,6",
        "Content-Length: 5,",
        "Content-Length:",
        "Content-Length: ",
        "Content-Length: +5",
        "Content-Length: -5",
        "Content-Length: 5 5",
        "Content-Length: 0x5",
        "Content-Length: 5.0",
        "Content-Length: 5e1",
        "Content-Length: 5;",
        "Content-Length: \"5\"",
        "Content-Length: ५",
        "Content-Length: five",
        "Content-Length: 1_000",
        "Content-Length: 9223372036854775808",
        "Content-Length: 18446744073709551616",
        "Content-Length: 99999999999999999999999999",
        "Transfer-Encoding: gzip",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked, gzip",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: identity, chunked",
        "Transfer-Encoding: chunked,",
        "Transfer-Encoding: ,chunked",
        "Transfer-Encoding: chunked;q=1",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunkedx",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding: chunk",
        "Transfer-Encoding:",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-encoding: identity",
        "Transfer-Encoding: x\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: \x0bchunked",
        "Transfer-Encoding: chunked\x0b",
        "Transfer-Encoding: chun\u{212a}ed",
    ] {
        assert_eq!(rejected(with(fields).as_bytes()), Some(400), "{fields:?}");
    }
    assert_eq!(rejected(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), Some(400));
}

#[test]
fn refuses_faulty_fields() {
    for fields in [
        "Transfer-Encoding : chunked",
        "Transfer-Encoding\t: chunked",
        "Content-Length : 5",
        "Content-Length\x0b: 5",
        "Content-Length\0: 5",
        " Content-Length: 5",
        "\tX: y",
        "X: y\r\n folded",
        "X: y\r\n\tfolded",
        "X:\r\n Transfer-Encoding: chunked",
        "Transfer-Encoding:\r\n chunked",
        "X: y\r\n ",
        ": y",
        ":",
        "X",
        "X y",
        "X\r",
        "X y: z",
        "(X): y",
        "X@: y",
        "X[1]: y",
        "X\u{e9}: y",
        "\u{feff}X: y",
        "X: a\0b",
        "X: a\x01b",
        "X: a\x7fb",
        "X: a\x1b[0m",
        "X: a\x0cb",
        "X: a\rb",
        "X: a\rTransfer-Encoding: chunked",
        "X: a\r\r",
        "X: a\nTransfer-Encoding: chunked",
        "X: a\n\nGET /admin HTTP/1.1",
        "X: a\n\r",
        "Host: a.example",
        "Host: b.example",
        "host: a.example",
        "HTTP/1.1 200 OK",
        "GET / HTTP/1.1",
    ] {
        assert_eq!(rejected(with(fields).as_bytes()), Some(400), "{fields:?}");
    }
    for block in [
        "GET / HTTP/1.1\r\n Host: a\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nX: y\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: \r\n\r\n",
        "GET / HTTP/1.1\r\nHost:\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a,b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a:b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a:80:80\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: http://a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\u{e9}\r\n\r\n",
        "GET / HTTP/1.0\r\nHost: a b\r\n\r\n",
        "GET / HTTP/1.1\nHost: a\n\n",
        "GET / HTTP/1.1\r\nHost: a\n\r\n",
        "GET / HTTP/1.1\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\n",
    ] {
        assert_eq!(rejected(block.as_bytes()), Some(400), "{block:?}");
    }
}

#[test]
fn refuses_faulty_request_lines() {
    for (line, status) in [
        ("GET /", 400),
        ("GET", 400),
        ("GET  / HTTP/1.1", 400),
        ("GET /  HTTP/1.1", 400),
        ("GET / HTTP/1.1 ", 400),
        (" GET / HTTP/1.1", 400),
        ("GET\t/\tHTTP/1.1", 400),
        ("GET /a b HTTP/1.1", 400),
        ("GET /a\tb HTTP/1.1", 400),
        ("GET /a\x01 HTTP/1.1", 400),
        ("GET /a\0 HTTP/1.1", 400),
        ("GET /a\x7f HTTP/1.1", 400),
        ("GET /caf\u{e9} HTTP/1.1", 400),
        ("GET /a#b HTTP/1.1", 400),
        ("GET /a?b#c HTTP/1.1", 400),
        ("GET # HTTP/1.1", 400),
        ("GET /<a> HTTP/1.1", 400),
        ("GET /?<a> HTTP/1.1", 400),
        ("GET /?\" HTTP/1.1", 400),
        ("GET /a\rHost: HTTP/1.1", 400),
        ("GET a HTTP/1.1", 400),
        ("GET ?a HTTP/1.1", 400),
        ("GET \\a HTTP/1.1", 400),
        ("GET a.example HTTP/1.1", 400),
        ("GET a.example:443 HTTP/1.1", 400),
        ("GET * HTTP/1.1", 400),
        ("OPTIONS ** HTTP/1.1", 400),
        ("GET http:a.example/ HTTP/1.1", 400),
        ("GET http:/a.example/ HTTP/1.1", 400),
        ("GET http:/\\a.example/ HTTP/1.1", 400),
        ("GET http:///a HTTP/1.1", 400),
        ("GET http:// HTTP/1.1", 400),
        ("GET http://u@a.example/ HTTP/1.1", 400),
        ("GET http://a.example\\b/ HTTP/1.1", 400),
        ("GET http://b.example/ HTTP/1.1", 400),
        ("GET http://A.example/ HTTP/1.1", 400),
        ("GET http://a.example:80/ HTTP/1.1", 400),
        ("GET ftp://a.example/ HTTP/1.1", 400),
        ("GET ://a.example/ HTTP/1.1", 400),
        ("CONNECT a.example:443 HTTP/1.1", 405),
        ("CONNECT / HTTP/1.1", 405),
        ("G{T / HTTP/1.1", 400),
        ("G\u{e9}T / HTTP/1.1", 400),
        ("GET: / HTTP/1.1", 400),
        ("GET / HTTP/1.2", 505),
        ("GET / HTTP/2.0", 505),
        ("GET / HTTP/0.9", 505),
        ("GET / HTTP/9.9", 505),
        ("PRI * HTTP/2.0", 505),
        ("GET / HTTP/1.1x", 400),
        ("GET / HTTP/11.1", 400),
        ("GET / HTTP/1", 400),
        ("GET / HTTP/1.01", 400),
        ("GET / http/1.1", 400),
        ("GET / HTTQ/1.1", 400),
        ("GET / ICY/1.1", 400),
        ("GET / X HTTP/1.1", 400),
    ] {
        assert_eq!(rejected(request_line(line).as_bytes()), Some(status), "{line:?}");
    }
    let endless = format!("{} / HTTP/1.1", "A".repeat(33));
    assert_eq!(rejected(request_line(&endless).as_bytes()), Some(400));
}

#[test]
fn what_is_no_http_is_refused_with_its_first_byte() {
    for bytes in [&b"\x16\x03\x01"[..], b"\0", b"\xff", b" ", b"\"", b"\r\n\x16"] {
        assert_eq!(rejected(bytes), Some(400), "{bytes:?}");
    }
    assert_eq!(check(b"\r"), Progress::NeedMore);
    assert_eq!(check(b""), Progress::NeedMore);
}

#[test]
fn holds_the_limits() {
    let target = |len: usize| request_line(&format!("GET /{} HTTP/1.1", "a".repeat(len - 1)));
    assert!(matches!(check(target(MAX_TARGET).as_bytes()), Progress::Done(_)));
    assert_eq!(rejected(target(MAX_TARGET + 1).as_bytes()), Some(414));
    assert_eq!(rejected(&vec![b'a'; MAX_TARGET + 100]), Some(414), "before its line has ended");

    let fields = |count: usize| with(&vec!["X: y"; count - 1].join("\r\n"));
    assert_eq!(accept(&fields(128)).fields, 128);
    assert_eq!(rejected(fields(129).as_bytes()), Some(431));

    let block = with("X: y");
    let limited = |max: usize, bytes: &[u8]| HeadReader::new(max, 128).check(bytes);
    assert!(matches!(limited(block.len(), block.as_bytes()), Progress::Done(_)));
    let too_large = Progress::Reject(Reject { status: 431, reason: "header block too large" });
    assert_eq!(limited(block.len() - 1, block.as_bytes()), too_large);
    let body = [block.as_bytes(), &[b'x'; 1000]].concat();
    assert!(matches!(limited(block.len(), &body), Progress::Done(_)), "the body does not count");
    let endless = format!("GET / HTTP/1.1\r\nX: {}", "y".repeat(1000));
    assert_eq!(limited(1000, endless.as_bytes()), too_large);
}

#[test]
fn small_pieces_cost_no_more_than_one() {
    let block = with(&format!("X: {}", "y".repeat(8000)));
    let mut reader = HeadReader::new(64 * 1024, 128);
    for len in 0..block.len() {
        assert_eq!(reader.check(&block.as_bytes()[..len]), Progress::NeedMore);
        assert_eq!(reader.searched, len, "nothing is searched twice");
    }
    assert_eq!(reader.check(block.as_bytes()), check(block.as_bytes()));
}

#[test]
fn a_refusal_stands() {
    let mut reader = HeadReader::new(1024, 8);
    let refusal = reader.check(b"GET / HTTP/1.1\n");
    assert!(matches!(refusal, Progress::Reject(_)));
    assert_eq!(reader.check(b"GET / HTTP/1.1\nHost: a\r\n\r\n"), refusal);
}

/// Lines that are nearly requests.
fn block() -> impl Strategy<Value = String> {
    let line = prop_oneof![
        Just("Content-Length: 5"),
        Just("Transfer-Encoding: chunked"),
        Just("Connection: close, upgrade"),
        Just("Upgrade: websocket"),
        Just("Expect: 100-continue"),
        Just("Host: b"),
        Just("X-Long-Name: some value; q=\"1\""),
        Just("X:"),
        Just(" folded"),
        Just("X : y"),
    ];
    let first = prop_oneof![
        5 => Just("GET /a/b?c HTTP/1.1"),
        1 => Just("POST http://a/b HTTP/1.1"),
        1 => Just("OPTIONS * HTTP/1.0"),
        1 => Just(""),
    ];
    let end = prop_oneof![9 => Just("\r\n"), 1 => Just("\n")];
    (first, prop::collection::vec((line, end), 0..5)).prop_map(|(first, lines)| {
        let lines: String = lines.into_iter().map(|(line, end)| format!("{line}{end}")).collect();
        format!("{first}\r\nHost: a\r\n{lines}\r\n")
    })
}

proptest! {
    #[test]
    fn pieces_make_no_difference(block in block(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8)) {
        let block = block.as_bytes();
        let whole = check(block);
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(block.len())).collect();
        cuts.sort_unstable();
        let mut reader = HeadReader::new(64 * 1024, 128);
        for cut in cuts {
            let got = reader.check(&block[..cut]);
            if got != Progress::NeedMore {
                prop_assert_eq!(got, whole);
                return Ok(());
            }
        }
        prop_assert_eq!(reader.check(block), whole);
    }

    /// The engine's own parsers take whatever is let through, and find the same in it.
    #[test]
    fn what_is_accepted_is_read_alike_by_the_engine(
        block in block(),
        change in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
    ) {
        let mut block = block.into_bytes();
        if let Some((at, byte)) = change {
            let at = at.index(block.len());
            block[at] = byte;
        }
        if let Progress::Done(head) = check(&block) {
            let bytes = &block[head.start..head.len];
            prop_assert!(bytes.ends_with(b"\r\n\r\n"));
            prop_assert_eq!(memchr::memmem::find(bytes, b"\r\n\r\n"), Some(bytes.len() - 4));
            let request = pingora::http::RequestHeader::build(&block[head.method.clone()], &block[head.target.clone()], None);
            let request = request.unwrap();
            let path = &block[head.path.clone()];
            prop_assert_eq!(request.uri.path().as_bytes(), if path.is_empty() { b"/" } else { path });
            prop_assert_eq!(request.raw_path(), &block[head.target.clone()]);
            for line in bytes.split(|&byte| byte == b'\n').skip(1) {
                let Some(line) = line.strip_suffix(b"\r").filter(|line| !line.is_empty()) else { continue };
                let colon = line.iter().position(|&byte| byte == b':').unwrap();
                http::HeaderName::from_bytes(&line[..colon]).unwrap();
                http::HeaderValue::from_bytes(&line[colon + 1..]).unwrap();
            }
        }
    }

    #[test]
    fn targets_are_taken_as_uris(target in "/[!-~]{0,30}") {
        let text = request_line(&format!("GET {target} HTTP/1.1"));
        if let Progress::Done(_) = check(text.as_bytes()) {
            prop_assert!(target.parse::<http::Uri>().is_ok() || http::uri::PathAndQuery::try_from(&*target).is_ok(), "{target}");
        }
    }

    #[test]
    fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        check(&bytes);
        check(&[b"GET / HTTP/1.1\r\nHost: a\r\n", &bytes[..], b"\r\n\r\n"].concat());
    }
}
